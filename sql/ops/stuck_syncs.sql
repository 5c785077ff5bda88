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

with clock as (
  select convsync_api._now() as now
),
stuck as (
  select r.*, p.token_state, p.token_error, greatest(b.blocked_until, a.blocked_until) as blocked_until,
    case
      when r.status = 'running' and r.lease_expires_at <= c.now then 'lease expired'
      when r.status = 'paused' and r.resume_after <= c.now then 'paused past its time'
      when r.status in ('running', 'queued') and r.updated_at <= c.now - :'minutes' * interval '1 minute' then 'no progress'
    end as why,
    c.now
  from convsync.sync_runs r
  cross join clock c
  join convsync.pages p on p.page_id = r.page_id
  left join convsync.call_budgets b on b.page_id = r.page_id
  left join convsync.call_budgets a on a.page_id = ''
  where r.status in ('queued', 'running', 'paused')
)
select
  s.page_id,
  s.run_id,
  s.mode,
  s.status,
  s.why,
  date_trunc('second', s.now - case s.why when 'lease expired' then s.lease_expires_at when 'paused past its time' then s.resume_after
    else s.updated_at end) as age,
  s.owner,
  case when l.completed then '(read to its end)' when l.failed then '(failed)' else coalesce(left(l.last_cursor, 40), '(front)') end as cursor,
  (
    select count(*) from convsync.sync_cursors t
    where t.page_id = s.page_id and t.run_id = s.run_id and t.kind = 'thread' and not t.completed and not t.failed
  ) as open_threads,
  case
    when s.token_state in ('none', 'invalid')
      then concat('no valid token', ' (' || s.token_error || ')', ': convsync page add ', s.page_id, ' --token-stdin')
    when s.blocked_until > s.now
      then 'Graph said to wait until ' || to_char(s.blocked_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') || ': wait'
    when s.why = 'no progress'
      then 'its process lives: look into its log for retries and slow answers; restarting the service resumes the run'
    else 'is convsync serve running? by hand: convsync sync ' || s.page_id || ' --mode ' || s.mode
  end as what_to_do
from stuck s
left join convsync.sync_cursors l
  on l.page_id = s.page_id and l.run_id = s.run_id and l.kind = 'list' and l.thread_id = ''
where s.why is not null
order by age desc, s.page_id, s.run_id;
