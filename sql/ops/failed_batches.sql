-- What syncs could not read, after all their retries.
--
--   convsync psql -f sql/ops/failed_batches.sql       or, in psql as the owner: \i sql/ops/failed_batches.sql
--
-- What it shows: a row per failed batch, by run: the page of the list (or of a thread) by its cursor, how often it was
-- tried, what Graph said, since when. `read_since_by` is a later walk of that Page that did succeed: what the
-- batch stood for has been read since then.
--
-- When to worry: read_since_by is empty and the row is older than a day. A run with such rows is `partial`, never
-- `succeeded`, and says so everywhere.
--
-- What to do, by error: a class that passes by itself (transient, throttled): convsync sync PAGE_ID --retry RUN_ID reads
-- what is here and nothing else. A code that says the token or a permission is missing: put it right, then retry. The same
-- batch failing again and again: show the error's code, subcode and message to whoever looks after the app at Meta.

select b.page_id, b.run_id, b.mode, b.status, b.batch, b.kind, b.thread_id, b.cursor, b.attempts, b.class, b.code, b.message,
  date_trunc('second', b.failed_at) as since, b.read_since_by
from convsync_ops.failed_batches b
order by b.read_since_by nulls first, b.failed_at, b.page_id, b.run_id, b.batch;
