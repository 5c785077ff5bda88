-- Syncs that do not move.
--
--   convsync psql -f sql/ops/stuck_syncs.sql          or, in psql as the owner: \i sql/ops/stuck_syncs.sql
--   convsync psql -v minutes=30 -f sql/ops/stuck_syncs.sql
--
-- What it shows: a row per run that is running with an expired lease (its process died), paused past its time, or
-- running (or queued) without an applied page for :minutes minutes (10 unless set): since when, who carries it, the
-- cursor of its list, how many threads are open, and what to do. The longest first.
--
-- When to worry: a row is still there after two minutes. `convsync serve` resumes paused and abandoned runs by itself
-- within seconds, so no service is at work, or it cannot go on. An empty answer is the good one.
--
-- What to do: the last column. Nothing is lost by waiting or by resuming: a run goes on at its saved cursors. Cancel a run
-- only to begin from the front: select convsync_api.cancel_sync('PAGE_ID', RUN_ID);

\if :{?minutes}
\else
  \set minutes 10
\endif

select s.page_id, s.run_id, s.mode, s.status, coalesce(s.abandoned, 'no progress') as why,
  date_trunc('second', coalesce(s.abandoned_for, s.idle_for)) as age, s.owner, s.cursor, s.open_threads, s.what_to_do
from convsync_ops.open_syncs s
where s.abandoned is not null or (s.status in ('running', 'queued') and s.idle_for >= :'minutes' * interval '1 minute')
order by age desc, s.page_id, s.run_id;
