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

-- The pace a run was granted in the last minute, in calls per second. Null where that is not known.
create or replace function convsync_api._sync_pace(p_run convsync.sync_runs)
returns numeric
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Without a grant for minutes (a block, a pause) it is the pace before that.
  select case
      when p_run.pace_next_since > k.at - interval '2 minutes' then
        case when k.at >= p_run.pace_since + interval '5 seconds'
          then (p_run.calls - p_run.pace_calls) / extract(epoch from k.at - p_run.pace_since) end
      else (p_run.pace_next_calls - p_run.pace_calls) / nullif(extract(epoch from p_run.pace_next_since - p_run.pace_since), 0)
    end
  from (values (convsync_api._now())) k (at);
$$;

-- How many calls a run has left, by what is open. Null where that is not known: how far an incremental reads the list, how many
-- conversations a Page has that was never walked.
create or replace function convsync_api._sync_calls_left(p_run convsync.sync_runs)
returns bigint
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with threads as (
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
  )
  select ceil(t.calls + l.calls)::bigint from threads t cross join list l where p_run.status in ('running', 'paused');
$$;

-- Seconds until a running run is done: its calls at its pace, after any block. Null where one of them is not known.
create or replace function convsync_api._sync_eta(p_run convsync.sync_runs)
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with blocked as (
    select coalesce(max(extract(epoch from b.blocked_until - k.at)), 0) as seconds
    from (values (convsync_api._now())) k (at) cross join convsync.call_budgets b
    where b.page_id in (p_run.page_id, '') and b.blocked_until > k.at
  )
  select case when e.seconds < 2147483647 then e.seconds::integer end
  from blocked b
  cross join lateral (
    select ceil(b.seconds + convsync_api._sync_calls_left(p_run) / nullif(convsync_api._sync_pace(p_run), 0)) as seconds
  ) e
  where p_run.status = 'running';
$$;

-- When each sync of a Page is due, also in time to come; due_syncs tells those that are.
create or replace function convsync_api._planned_syncs(p_modes text[], p_page_id text)
returns table (page_id text, mode text, due_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with pages as materialized (
    select p.page_id, p.added_at, convsync_api._list_was_walked(p.page_id) as walked
    from convsync.pages p
    where (p_page_id is null or p.page_id = p_page_id) and p.removed_at is null and p.added_at is not null
      and p.token_state in ('unchecked', 'valid')
  ), planned as (
    select p.page_id, p.added_at, m.mode, m.kind, m.every, m.at_leisure
    from pages p
    join (
      select v.mode, v.kind, v.walked, case v.mode when 'reconcile' then s.reconcile_interval else s.sync_interval end as every,
        greatest(s.sync_interval, s.reconcile_interval) as at_leisure
      from convsync_api._sync_schedule() s
      cross join (values ('full', 'walk', false), ('incremental', 'incremental', true), ('reconcile', 'walk', true)) v (mode, kind, walked)
    ) m on m.walked = p.walked
    where m.every > interval '0' and (p_modes is null or m.mode = any (p_modes))
      and not exists (
        select from convsync.sync_runs r
        where r.page_id = p.page_id and r.exclusive_kind = m.kind and r.status in ('queued', 'running'))
      and not exists (
        select from convsync.sync_runs r
        where r.page_id = p.page_id and r.exclusive_kind = m.kind and r.status = 'paused')
  ), dated as (
    select n.page_id, n.mode,
      -- A full one that could not finish the list began at its front and spent what calls there are: not at once again.
      coalesce(l.began_at, walk.began_at, n.added_at) + case when n.mode = 'full' and l.statuses[1] = 'partial' then n.at_leisure else n.every end
        -- One failure: twice as long; two in a row: four times.
        * case when l.statuses = '{failed,failed}' then 4 when l.statuses[1] = 'failed' then 2 else 1 end
        -- 0.9 to 1.1, the same for everybody who asks: Pages that were added together do not stay together.
        * (0.9 + 0.2 * (hashtext(n.page_id || ' ' || n.mode || ' ' || coalesce(l.run_id, 0)) & 1023) / 1023) as due_at
    from planned n
    cross join lateral (
      select max(r.run_id) as run_id, max(r.started_at) as began_at, array_agg(r.status order by r.run_id desc) as statuses
      from (
        select r.run_id, r.started_at, r.status from convsync.sync_runs r
        where r.page_id = n.page_id and r.exclusive_kind = n.kind
        order by r.run_id desc limit 2
      ) r
    ) l
    -- The first incremental follows the walk.
    cross join lateral (
      select max(r.started_at) as began_at
      from (
        select r.started_at from convsync.sync_runs r
        where r.page_id = n.page_id and r.exclusive_kind = 'walk'
        order by r.run_id desc limit 1
      ) r
    ) walk
  )
  select d.page_id, d.mode, d.due_at from dated d;
$$;

-- How many messages were sent in the last hour whose webhook has come.
create or replace function convsync_api._webhooks_last_hour(p_page_id text)
returns bigint
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  -- By the conversations with a message in it: those are few, and each has its index.
  select count(*)
  from (
    select o.page_id, o.conversation_id, since.at
    from (select convsync_api._now() - interval '1 hour' as at) since
    join convsync.messenger_conversations o on o.page_id = p_page_id and o.deleted_at is null
      and coalesce(o.last_message_time, 'epoch'::timestamptz) > since.at
    offset 0 -- or the argument takes the column's place below: decision 0007
  ) c
  join convsync.contact_interaction_events e on e.page_id = c.page_id and e.conversation_id = c.conversation_id
    and e.event_timestamp > c.at
  where e.in_thread and e.deleted_at is null and (e.source = 'webhook' or e.metadata ? 'webhook'
    or (e.source = 'sync' and e.text_original is not null));
$$;
