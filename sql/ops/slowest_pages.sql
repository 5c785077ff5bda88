-- The Pages whose syncs take longest.
--
--   convsync psql -f sql/ops/slowest_pages.sql        or, in psql as the owner: \i sql/ops/slowest_pages.sql
--
-- What it shows: a row per Page and mode of the syncs that ended in the last seven days: how many, how many of them succeeded, how
-- long they took on average and at most, their calls, and the seconds per call. The slowest first, twenty of them.
--
-- When to worry: an incremental sync takes longer than CONVSYNC_SYNC_INTERVAL, or seconds_per_call is far above 0.5, which is what
-- two calls per second come to. (A sync that was paused has waited too.)
--
-- What to do: budgets.sql says what holds the calls back; largest_threads.sql which threads they go to.

select s.page_id, s.mode, s.runs, s.succeeded, date_trunc('second', s.average) as average, date_trunc('second', s.longest) as longest,
  s.calls, s.seconds_per_call, s.conversations, s.messages_added
from convsync_ops.sync_speed s
order by s.average desc, s.page_id, s.mode
limit 20;
