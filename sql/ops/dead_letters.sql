-- What could not be understood, by reason.
--
--   convsync psql -f sql/ops/dead_letters.sql         or, in psql as the owner: \i sql/ops/dead_letters.sql
--
-- What it shows: a row per Page, source and reason of the dead letters that wait for a person: how many, how often they came, since
-- when, and the newest one's id. `refused: ..` are those that the database will never take as they are.
--
-- When to worry: any row. What it holds is not in the mirror; it is deleted after CONVSYNC_DEAD_LETTER_DAYS.
--
-- What to do: look at one: convsync dead-letters show ID. After an upgrade that understands it: convsync dead-letters replay ID.
-- If nothing is lost with it: convsync dead-letters discard ID --reason "..".

select d.page_id, d.source, d.reason, d.open, d.times, date_trunc('second', d.first_seen_at) as first_seen,
  date_trunc('second', d.last_seen_at) as last_seen, d.newest_id
from convsync_ops.dead_letter_reasons d
order by d.open desc, d.page_id nulls last, d.source, d.reason;
