-- Tables: size, dead rows, vacuum.
--
--   convsync psql -f sql/ops/tables.sql               or, in psql as the owner: \i sql/ops/tables.sql
--
-- What it shows: a row per table that has rows: how many, how many dead ones (old versions that vacuum has yet to free) and their
-- part, the size of the table and of its indexes, how it is read, and when vacuum and analyze last came. The largest first.
--
-- When to worry: dead_percent stays above 20 in a large table, or analyzed_at is empty where there are many rows.
--
-- What to do: a transaction that is open for hours keeps vacuum from its work (select * from convsync_api.feed_lag() names it). Else
-- convsync psql -c "vacuum (analyze) convsync.TABLE_NAME"; it locks nobody out. Never `vacuum full` while the service runs.

select t.table_name, t.rows, t.dead_rows, t.dead_percent, pg_size_pretty(t.table_bytes) as table_size,
  pg_size_pretty(t.index_bytes) as index_size, t.sequential_scans, t.index_scans, date_trunc('second', t.vacuumed_at) as vacuumed_at,
  date_trunc('second', t.analyzed_at) as analyzed_at
from convsync_ops.table_health t
where t.rows > 0 or t.dead_rows > 0
order by t.table_bytes + t.index_bytes desc, t.table_name;
