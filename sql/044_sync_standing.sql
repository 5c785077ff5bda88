-- How Pages and runs stand: is a Page known to be in step with Facebook, how long does a run still take. Nothing is written here.

create or replace function convsync_api._sync_schedule()
returns table (sync_interval interval, reconcile_interval interval)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(s.sync_interval, interval '15 minutes'), coalesce(s.reconcile_interval, interval '1 day')
  from (values (true)) always left join convsync.sync_schedule s on true;
$$;

-- Whether the list of a Page's conversations was ever read to its end: what is left out by a shorter sync is known then.
create or replace function convsync_api._list_was_walked(p_page_id text)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from convsync.sync_runs r where r.page_id = p_page_id and r.list_walked);
$$;

create or replace function convsync_api._webhooks_silent(p_page convsync.pages)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The newest message is later than the last webhook of any kind: a sync had to find it. Only where webhooks are to come: the
  -- Page was subscribed, or one came.
  select coalesce((
    select c.last_message_time from convsync.messenger_conversations c
    where c.page_id = p_page.page_id and c.deleted_at is null
    order by coalesce(c.last_message_time, 'epoch'::timestamptz) desc, c.conversation_id desc limit 1
  ) > greatest(p_page.subscribed_at, p_page.last_webhook_at) + interval '15 minutes'
    and coalesce(p_page.subscribed_at, p_page.first_webhook_at) is not null, false);
$$;

create or replace function convsync_api._freshness(p_page convsync.pages)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with known as (
    select convsync_api._now() as at,
      case when s.sync_interval > interval '0' then s.sync_interval when s.reconcile_interval > interval '0' then s.reconcile_interval
        else interval '15 minutes' end as every,
      -- What a run has read is true as of its beginning, also when a retry completes it days later.
      (
        select r.started_at from convsync.sync_runs r
        where r.page_id = p_page.page_id and r.status = 'succeeded'
        order by r.run_id desc limit 1
      ) as synced_at,
      (
        select r.status from convsync.sync_runs r
        where r.page_id = p_page.page_id and r.status in ('succeeded', 'partial', 'failed')
        order by r.run_id desc limit 1
      ) as last_end,
      -- In two, as the indexes are: there are many runs that have ended.
      exists (select from convsync.sync_runs r where r.page_id = p_page.page_id and r.status in ('queued', 'running'))
        or exists (select from convsync.sync_runs r where r.page_id = p_page.page_id and r.status = 'paused') as at_work,
      convsync_api._webhooks_silent(p_page) as silent
    from convsync_api._sync_schedule() s
  ), judged as (
    select k.synced_at, case
        when p_page.token_state = 'none' then array['broken', 'token_missing']
        when p_page.token_state = 'invalid' then array['broken', 'token_invalid']
        when k.synced_at is null and not k.at_work and k.at > p_page.added_at + 2 * k.every then array['broken', 'never_synced']
        when k.synced_at is null then array['stale', 'first_sync']
        when k.at > k.synced_at + 4 * k.every then array['stale', w.why]
        when k.at > k.synced_at + 2 * k.every then array['late', w.why]
        when k.silent then array['late', 'webhooks_silent']
        else array['fresh', null]
      end as verdict
    from known k
    cross join lateral (
      select case k.last_end when 'failed' then 'sync_failed' when 'partial' then 'sync_partial' else 'sync_overdue' end as why
    ) w
  )
  select jsonb_build_object('freshness', j.verdict[1], 'freshness_reason', j.verdict[2], 'synced_at', j.synced_at)
  from judged j;
$$;

-- Seconds until a running run is done, from what it has left and the pace it was granted in the last minute. Null where that
-- is not known: how far an incremental reads the list, how many conversations a Page has that was never walked.
create or replace function convsync_api._sync_eta(p_run convsync.sync_runs)
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with clock as (
    select convsync_api._now() as at
  ), pace as (
    -- Without a grant for minutes (a block, a pause) it is the pace before that.
    select case
        when p_run.pace_next_since > k.at - interval '2 minutes' then
          case when k.at >= p_run.pace_since + interval '5 seconds'
            then (p_run.calls - p_run.pace_calls) / extract(epoch from k.at - p_run.pace_since) end
        else (p_run.pace_next_calls - p_run.pace_calls) / nullif(extract(epoch from p_run.pace_next_since - p_run.pace_since), 0)
      end as calls_per_second
    from clock k
  ), threads as (
    -- One that is read back to what was verified of it takes a page, as a rule.
    select coalesce(sum(case when s.stop_at is not null then 1 else greatest(1, ceil(
        (s.reported_count - s.messages_read) / coalesce(nullif(s.messages_read, 0)::numeric / nullif(s.pages_applied, 0), 100)
      )) end), 0) as calls
    from convsync.sync_cursors s
    where s.page_id = p_run.page_id and s.run_id = p_run.run_id and s.kind <> 'list' and not s.completed and not s.failed
  ), list as (
    select case
        when s.completed or s.failed then 0
        when s.walk_pass > 1 then 1
        when p_run.mode = 'incremental' or p_run.conversations_known is null then null
        -- What is not listed yet costs what the rest did, threads and all; then the front is read again.
        else 1 + greatest(p_run.conversations_known - p_run.conversations_seen, 0) * (p_run.calls + t.calls)
          / nullif(p_run.conversations_seen, 0)
      end as calls
    from convsync.sync_cursors s cross join threads t
    where s.page_id = p_run.page_id and s.run_id = p_run.run_id and s.kind = 'list' and s.thread_id = ''
  ), blocked as (
    select coalesce(max(extract(epoch from b.blocked_until - k.at)), 0) as seconds
    from clock k cross join convsync.call_budgets b
    where b.page_id in (p_run.page_id, '') and b.blocked_until > k.at
  )
  select case when e.seconds < 2147483647 then e.seconds::integer end
  from pace p cross join threads t cross join list l cross join blocked b
  cross join lateral (select ceil(b.seconds + (t.calls + l.calls) / nullif(p.calls_per_second, 0)) as seconds) e
  where p_run.status = 'running';
$$;
