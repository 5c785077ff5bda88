-- Indexes that are broken or there twice.
--
--   convsync psql -f sql/ops/indexes.sql              or, in psql as the owner: \i sql/ops/indexes.sql
--
-- What it shows: a row per index that is `invalid` (its build broke off: it costs writes and serves nobody), or `double` (another
-- one has the same columns). select * from convsync_ops.index_health has all of them, with sizes and how often each was used.
--
-- When to worry: a row is there. An empty answer is the good one. An index that was never used is none of convsync's mistakes by
-- itself: some serve what is rarely asked, and statistics begin anew after a crash.
--
-- What to do: invalid: convsync psql -c "reindex index concurrently convsync.INDEX_NAME". double: drop the one that is not convsync's.

select i.table_name, i.index_name, i.state, pg_size_pretty(i.bytes) as size, i.scans
from convsync_ops.index_health i
where i.state <> 'good'
order by i.table_name, i.index_name;
