-- The Graph calls of each Page: how many, how fast, and what holds them back.
--
--   convsync psql -f sql/ops/budgets.sql              or, in psql as the owner: \i sql/ops/budgets.sql
--
-- What it shows: a row per Page, and one of the app's own (page_id `(app)`), which all Pages share: calls so far, the rate it may be
-- called at, the part of it that is used (pace) and why not all (usage, app_usage, slow_answers), how much of its allowance Meta
-- says is used, what an answer takes, until when Meta refuses calls and with which words. Blocked ones first.
--
-- When to worry: blocked_until moves on again and again, or pace is below 1 for days.
--
-- What to do: a block ends by itself, and calls during it make it longer: wait. If it comes back, something else spends the
-- same allowance (another tool with this app, another installation): find it, or lower CONVSYNC_CALLS_PER_SECOND.

select coalesce(nullif(b.page_id, ''), '(app)') as page_id, b.calls, b.calls_per_second, b.pace, b.pace_reason, b.usage_percent,
  b.response_ms, date_trunc('second', b.blocked_until) as blocked_until, b.block_reason, b.last_status, nullif(b.last_error, '') as last_error
from convsync_ops.budgets b
order by b.blocked_until desc nulls last, b.pace nulls last, b.calls desc, b.page_id;
