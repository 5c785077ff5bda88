-- How each Page stands.
--
--   convsync psql -f sql/ops/page_health.sql          or, in psql as the owner: \i sql/ops/page_health.sql
--
-- What it shows: a row per Page, those that need somebody first: how fresh it is and why not fresher, when the sync began down to
-- which everything is known, its token, how its last sync ended, how many of its conversations are verified to their end,
-- messages that Graph lists and does not return, webhooks of the last day that never came, and the names of its problems.
--
-- When to worry: freshness is not `fresh` for longer than an hour, or there are problems. `complete` below `conversations` is
-- ordinary while people write: a new conversation is complete after the next sync.
--
-- What to do: problems.sql has a command for each name in the last column.

select p.page_id, p.name, p.freshness, p.why, date_trunc('second', p.synced_at) as synced_at, p.token, p.last_sync, p.conversations,
  p.complete, p.unreadable, p.lost_last_day as lost, p.dead_letters, p.problems
from convsync_ops.page_health p
order by array_position(array['broken', 'stale', 'late', 'fresh'], p.freshness), p.page_id;
