-- Sync runs: a state machine that only these functions move.
--
--   begin_sync -> running -> finish_sync -> succeeded | partial | failed
--                    |  \-> cancel_sync -> cancelled   \-> retry_sync (the same run, on what is left)
--                    \-> pause_sync -> paused -> begin_sync (the same run goes on)
--
-- Whoever carries a run holds a lease with a fence. Each function locks the run's row by its fence first; a run that was
-- taken over meanwhile changes nothing (ZC004). The lease only says when somebody else may try; the fence makes it safe.

create or replace function convsync_api._hold_run(p_page_id text, p_run_id bigint, p_fence bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform from convsync.sync_runs r
  where r.page_id = p_page_id and r.run_id = p_run_id and r.fence = p_fence and r.status = 'running'
  for no key update;
  if not found then
    raise exception 'run % of Page % is not carried with fence % any more', p_run_id, p_page_id, p_fence
      using errcode = 'ZC004';
  end if;
end
$$;

-- Its process died. Nobody carries it now; whoever held its fence changes nothing from here on.
create or replace function convsync_api._lay_down_run(p_page_id text, p_run_id bigint, p_now timestamptz)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update convsync.sync_runs r
  set status = 'paused', reason = 'lease_expired', fence = r.fence + 1, lease_expires_at = null, owner = null,
    resume_after = p_now, updated_at = p_now, progress = r.progress + 1
  where r.page_id = p_page_id and r.run_id = p_run_id;
$$;

create or replace function convsync_api.begin_sync(
  p_page_id text, p_mode text, p_owner text default null, p_lease_seconds numeric default 15,
  p_restart boolean default false, p_request_id text default null, p_depth_seconds numeric default 604800
)
returns table (run_id bigint, fence bigint, resumed boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_expiry timestamptz;
  v_run convsync.sync_runs;
  v_known integer;
begin
  if p_mode is null or p_mode not in ('full', 'incremental', 'reconcile') then
    raise exception 'mode must be full, incremental or reconcile' using errcode = 'ZC003', hint = 'mode';
  end if;
  perform from convsync.pages p where p.page_id = p_page_id and p.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;

  -- Beginnings of one Page queue here; the unique index is what makes two impossible.
  perform pg_advisory_xact_lock(1668183670, hashtext(p_page_id));
  v_now := convsync_api._now();
  v_expiry := v_now + p_lease_seconds * interval '1 second';

  select r.* into v_run
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.status in ('queued', 'running')
    and r.exclusive_kind = case p_mode when 'incremental' then 'incremental' else 'walk' end
  for no key update;
  if found then
    if v_run.lease_expires_at > v_now or v_run.status = 'queued' then
      raise exception 'run % is at work on Page %', v_run.run_id, p_page_id
        using errcode = 'ZC005', detail = jsonb_build_object('run_id', v_run.run_id::text)::text;
    end if;
    perform convsync_api._lay_down_run(p_page_id, v_run.run_id, v_now);
  end if;

  select r.* into v_run
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.mode = p_mode and r.status = 'paused'
  for no key update;
  if found and not p_restart then
    update convsync.sync_runs r
    set status = 'running', reason = null, fence = r.fence + 1, owner = p_owner, lease_expires_at = v_expiry,
      resume_after = null, request_id = coalesce(p_request_id, r.request_id), updated_at = v_now, progress = r.progress + 1
    where r.page_id = p_page_id and r.run_id = v_run.run_id
    returning r.* into strict v_run;
    return query select v_run.run_id, v_run.fence, true;
    return;
  end if;
  if found then
    update convsync.sync_runs r
    set status = 'cancelled', reason = 'restarted', fence = r.fence + 1, resume_after = null, finished_at = v_now,
      updated_at = v_now, progress = r.progress + 1
    where r.page_id = p_page_id and r.run_id = v_run.run_id;
  end if;

  -- How many conversations a walk will list, for its ETA; unknown before the first.
  if p_mode <> 'incremental' and convsync_api._list_was_walked(p_page_id) then
    select count(*) into v_known from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.thread_id is not null and c.deleted_at is null;
  end if;
  insert into convsync.sync_runs as r
    (page_id, mode, status, owner, lease_expires_at, request_id, conversations_known, started_at, updated_at)
  values (p_page_id, p_mode, 'running', p_owner, v_expiry, p_request_id, v_known, v_now, v_now)
  returning r.* into strict v_run;
  insert into convsync.sync_cursors
    (page_id, run_id, kind, thread_id, walk_started_at, pass_started_at, depth_at, share_before, share_thread, updated_at)
  select p_page_id, v_run.run_id, 'list', '', v_now, v_now,
    case p_mode when 'reconcile' then v_now - p_depth_seconds * interval '1 second' end, t.full_read_at, t.thread_id, v_now
  from (select) one
  left join convsync_api._share_of_turn(p_page_id, v_now) t on p_mode = 'reconcile';
  if p_mode = 'incremental' then
    perform convsync_api._take_up_failed_threads(p_page_id, v_run.run_id, v_now);
  end if;
  return query select v_run.run_id, v_run.fence, false;
end
$$;
comment on function convsync_api.begin_sync(text, text, text, numeric, boolean, text, numeric) is
$c$Begins a sync of a Page, or goes on with the paused or abandoned run of that mode (resumed; the same run_id, a new fence),
unless p_restart. p_mode: full (every message of every thread), incremental (what changed) or reconcile (the whole list, all
messages of the last p_depth_seconds, and a share of the threads to their end, so that each is read whole within 30 days). The
lease lasts p_lease_seconds and is renewed by renew_sync_lease and by every applied page. Errors: ZC001 no such Page, ZC003,
ZC005 one of this kind is at work (detail: run_id).$c$;

create or replace function convsync_api._overlap()
returns interval
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- How far the clocks of Meta and of this database may differ, and messages be late in a list.
  select interval '5 minutes';
$$;

create or replace function convsync_api._share_of_turn(p_page_id text, p_now timestamptz)
returns table (full_read_at timestamptz, thread_id text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Of all threads as large a part as the time since the last whole walk is of 30 days, those read longest ago: here is the last
  -- of them. Whatever is older than 30 days is of the share all the same.
  select greatest(t.full_read_at, p_now - interval '30 days'), t.thread_id
  from (
    select p.full_read_at, p.thread_id, row_number() over (order by p.full_read_at, p.thread_id) as place, count(*) over () as threads
    from convsync.thread_proofs p
    where p.page_id = p_page_id and p.full_read_at is not null
  ) t
  where t.place = ceil(t.threads * extract(epoch from least(interval '30 days', p_now - coalesce((
      select max(r.started_at)
      from convsync.sync_runs r
      where r.page_id = p_page_id and r.list_walked and r.mode in ('full', 'reconcile') and r.status in ('succeeded', 'partial')
    ), p_now - interval '1 day'))) / extract(epoch from interval '30 days'));
$$;

create or replace function convsync_api._take_up_failed_threads(p_page_id text, p_run_id bigint, p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  -- Their run walked the list past them. This one will not come that far down.
  insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, sender_id, stop_at, updated_at)
  select p_page_id, p_run_id, 'thread', b.thread_id,
    (select min(c.sender_id) from convsync.messenger_conversations c where c.page_id = p_page_id and c.thread_id = b.thread_id),
    p.verified_through - convsync_api._overlap(), p_now
  from (
    select distinct on (b.thread_id) b.thread_id, b.failed_at, b.error ->> 'class' as class
    from convsync.sync_batches b
    join convsync.sync_runs r on r.page_id = b.page_id and r.run_id = b.run_id
    -- A partial run that was retried may have ended otherwise since.
    where b.page_id = p_page_id and b.kind = 'thread' and b.status = 'failed' and r.status in ('partial', 'failed', 'cancelled')
    order by b.thread_id, b.failed_at desc
  ) b
  left join convsync.thread_proofs p on p.page_id = p_page_id and p.thread_id = b.thread_id
  -- What Graph says is gone is no matter of trying again, whatever it said before.
  where b.class is distinct from 'gone' and (p.verified_at is null or p.verified_at < b.failed_at)
    and coalesce((
      select bool_or(c.deleted_at is null) from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.thread_id = b.thread_id), true)
  order by b.thread_id;
end
$$;

create or replace function convsync_api.next_sync_work(
  p_page_id text, p_run_id bigint, p_fence bigint, p_limit integer default 1
)
returns table (kind text, thread_id text, sender_id text, last_cursor text, walk_pass integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  -- Threads first: so the open ones stay few, however many the list brings. Those that no list called for wait for it: it may
  -- spare their calls.
  return query
  select s.kind, s.thread_id, s.sender_id, s.last_cursor, s.walk_pass
  from convsync.sync_cursors s
  where s.page_id = p_page_id and s.run_id = p_run_id and not s.completed and not s.failed
    -- Those that are said to be gone wait for their control; what another process was told is asked again.
    and not coalesce(s.kind = 'confirm' and s.gone_seen like p_fence || '.%', false)
    and not (s.kind = 'thread' and s.listed_at is null and exists (
      select from convsync.sync_cursors l
      where l.page_id = p_page_id and l.run_id = p_run_id and l.kind = 'list' and not l.completed and not l.failed))
  order by s.kind desc, s.updated_at, s.thread_id
  limit greatest(p_limit, 1);
end
$$;
comment on function convsync_api.next_sync_work(text, bigint, bigint, integer) is
$c$What the run should read next: open cursors, threads first, at most p_limit; no row when nothing is open. last_cursor is null
at the front. Errors: ZC004.$c$;

create or replace function convsync_api._judge_threads(
  p_page_id text, p_run_id bigint, p_mode text, p_threads jsonb, p_depth_at timestamptz, p_share_before timestamptz, p_share_thread text
)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  -- What a list says of threads, against what was verified of them: how far each has to be read (stop_at: until a message older
  -- than this; null: not at all), and whether the messages that came with the list have done it (outcome: nothing, done, work).
  return (
    select coalesce(jsonb_agg(to_jsonb(j) || jsonb_build_object('outcome', case
        when j.stop_at is null then 'nothing'
        when j.read = 'complete' or j.oldest < j.stop_at then 'done'
        else 'work' end) order by j.thread_id), '[]')
    from (
      select distinct on (t.thread_id) t.*, e.erased, u.unchanged,
        -- Whether nothing unreadable stands in the way of a whole history, if this read succeeds.
        coalesce(t.unreadable, 0) = 0 and (t.read = 'complete' or (p.full_read_at is not null and p.unreadable = 0)) as clean,
        case
          -- This run has read it, and it has not moved since. Of an erased one there is nothing to read.
          when e.erased or (u.same and p.verified_run_id = p_run_id) then null
          when p_mode = 'full' or p.verified_at is null then '-infinity'
          else least(
            case when not u.unchanged then coalesce(p.verified_through - convsync_api._overlap(), '-infinity') end,
            case when p_mode = 'reconcile' and (t.read = 'complete'
              or (p.full_read_at, p.thread_id) <= (p_share_before, p_share_thread)) then '-infinity'::timestamptz end,
            case when p_mode = 'reconcile' and (not u.unchanged or greatest(t.updated_time, t.newest) >= p_depth_at) then p_depth_at end)
        end as stop_at
      from jsonb_to_recordset(p_threads) t (thread_id text, sender_id text, next_cursor text, updated_time timestamptz,
        message_count integer, newest_id text, newest timestamptz, oldest timestamptz, read text, unreadable integer)
      left join convsync.thread_proofs p on p.page_id = p_page_id and p.thread_id = t.thread_id
      cross join lateral (
        select convsync_api._is_erased_thread(p_page_id, t.sender_id, t.thread_id, t.updated_time) as erased
      ) e
      cross join lateral (
        select s.same,
          -- A list without messages does not know the newest; one that shows only what cannot be read knows that there is none.
          e.erased or (s.same and (t.newest_id is not null or t.message_count = 0 or t.read <> 'unread')) as unchanged
        from (
          select p.verified_at is not null and (p.updated_time, p.reported_count, p.newest_id)
            is not distinct from (t.updated_time, t.message_count, t.newest_id) as same
        ) s
      ) u
      where t.thread_id is not null
      order by t.thread_id
    ) j
  );
end
$$;

create or replace function convsync_api._record_proofs(p_page_id text, p_run_id bigint, p_proofs jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  insert into convsync.thread_proofs as p
    (page_id, thread_id, updated_time, reported_count, newest_id, verified_through, verified_at, verified_run_id, full_read_at,
     listed_at, listed_run_id, unreadable)
  select p_page_id, t.thread_id, t.updated_time, t.message_count, t.newest_id, t.verified_through, t.verified_at,
    case when t.verified_at is not null then p_run_id end, t.full_read_at,
    t.listed_at, case when t.listed_at is not null then p_run_id end, coalesce(t.unreadable, 0)
  from jsonb_to_recordset(p_proofs) t (thread_id text, updated_time timestamptz, message_count integer, newest_id text,
    verified_through timestamptz, verified_at timestamptz, full_read_at timestamptz, listed_at timestamptz, unreadable integer)
  order by t.thread_id
  on conflict on constraint thread_proofs_pkey do update
  set (updated_time, reported_count, newest_id) = (
      -- Of two syncs at once the one that asked later knows better. A read that no list called for has nothing to say of this.
      select v.updated_time, v.reported_count, v.newest_id
      from (values (excluded.updated_time, excluded.reported_count, excluded.newest_id, true),
        (p.updated_time, p.reported_count, p.newest_id, false)) v (updated_time, reported_count, newest_id, told)
      where v.told = (coalesce(excluded.verified_at >= coalesce(p.verified_at, '-infinity'), false)
        and num_nonnulls(excluded.updated_time, excluded.reported_count, excluded.newest_id) > 0)),
    verified_through = greatest(p.verified_through, excluded.verified_through),
    verified_at = greatest(p.verified_at, excluded.verified_at),
    verified_run_id = case when excluded.verified_at >= coalesce(p.verified_at, '-infinity') then excluded.verified_run_id
      else p.verified_run_id end,
    full_read_at = greatest(p.full_read_at, excluded.full_read_at),
    listed_at = greatest(p.listed_at, excluded.listed_at),
    listed_run_id = case when excluded.listed_at >= coalesce(p.listed_at, '-infinity') then excluded.listed_run_id
      else p.listed_run_id end,
    -- A read that did not go to the end saw no more than some of them.
    unreadable = case when excluded.full_read_at is not null then excluded.unreadable
      else greatest(p.unreadable, excluded.unreadable) end;
end
$$;

create or replace function convsync_api.apply_sync_page(
  p_page_id text, p_run_id bigint, p_fence bigint, p_kind text, p_thread_id text, p_cursor text, p_next_cursor text,
  p_observed_at timestamptz, p_facts jsonb, p_threads jsonb default '[]', p_unreadable integer default 0,
  p_lease_seconds numeric default 15, p_walk_pass integer default null, p_oldest timestamptz default null,
  p_newest timestamptz default null
)
returns table (applied boolean, conversations_changed integer, messages_added integer, open_work integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set lock_timeout = '5s'
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_cursor convsync.sync_cursors;
  v_seen integer := 0;
  v_people text[];
  v_changed integer;
  v_added integer;
  v_open integer;
  v_mode text;
  v_threads jsonb;
  v_over boolean;
  v_again boolean;
  v_news boolean;
  v_disorder boolean;
  v_oldest timestamptz;
  v_unreadable integer;
  v_missed integer := 0;
  v_judged jsonb;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  v_now := convsync_api._now();
  if p_kind is null or p_kind not in ('list', 'thread', 'contact') then
    raise exception 'kind must be list, thread or contact' using errcode = 'ZC003', hint = 'p_kind';
  end if;
  if p_observed_at is null or not isfinite(p_observed_at) then
    raise exception 'the instant the call was granted is missing' using errcode = 'ZC003', hint = 'p_observed_at';
  end if;
  p_threads := coalesce(p_threads, '[]');
  if jsonb_typeof(p_threads) <> 'array' then
    raise exception 'p_threads must be an array' using errcode = 'ZC003', hint = 'p_threads';
  end if;
  if exists (select from jsonb_array_elements(p_facts) f where f.value ->> 'page_id' is distinct from p_page_id) then
    raise exception 'a fact of another Page' using errcode = 'ZC003', hint = 'p_facts';
  end if;

  select s.* into v_cursor
  from convsync.sync_cursors s
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = p_kind and s.thread_id = coalesce(p_thread_id, '');
  if not found or v_cursor.completed or v_cursor.failed or v_cursor.last_cursor is distinct from p_cursor
    or p_walk_pass <> v_cursor.walk_pass then
    -- This page was applied already: the answer to that commit was lost on its way.
    select count(*) into v_open from convsync.sync_cursors s
    where s.page_id = p_page_id and s.run_id = p_run_id and not s.completed and not s.failed;
    return query select false, 0, 0, v_open;
    return;
  end if;

  -- Missed: there before the run began, read by nobody until now. Only asked when the front is read again.
  if p_kind = 'list' and v_cursor.walk_pass > 1 then
    select count(distinct f.sender_id) into v_missed
    from unnest(convsync_api._admissible(convsync_api._parse_facts(p_facts))) f
    where f.kind = 'message' and f.in_thread
      -- Graph has whole seconds.
      and f.at < (
        select date_trunc('second', r.started_at) from convsync.sync_runs r where r.page_id = p_page_id and r.run_id = p_run_id)
      -- By the fact's Page: of p_page_id the planner may know that it has no messages, from before it had any, and would look
      -- through all of them for each fact.
      and not exists (
        select from convsync.contact_interaction_events e where e.page_id = f.page_id and e.message_id = f.message_id);
  end if;

  v_judged := convsync_api._judge_page(v_cursor, p_next_cursor, p_observed_at, p_facts, p_threads);
  select coalesce(array_agg(i.sender_id) filter (where i.created or i.events_added + i.events_changed > 0), '{}'),
    coalesce(sum(i.events_added), 0)
  into v_people, v_added
  from convsync_api._ingest(p_facts || (v_judged -> 'absences'), 'sync') i;
  perform convsync_api._check_absences(p_page_id, v_judged);
  v_changed := cardinality(v_people);

  select r.mode into strict v_mode from convsync.sync_runs r where r.page_id = p_page_id and r.run_id = p_run_id;
  if p_kind <> 'thread' then
    v_seen := jsonb_array_length(p_threads);
    if v_cursor.walk_pass > 1 then
      v_seen := v_missed;
    end if;
    v_threads := convsync_api._judge_threads(p_page_id, p_run_id, v_mode, p_threads, v_cursor.depth_at, v_cursor.share_before,
      v_cursor.share_thread);

    -- Conversations are locked before what is written of their threads.
    perform convsync_api._complete_history(p_page_id, p_observed_at, array(
      select t.thread_id
      from jsonb_to_recordset(v_threads) t (thread_id text, read text, clean boolean, outcome text)
      where t.clean and (t.read = 'complete' or t.outcome = 'done')));
    -- A thread that its nested slice has not read as far as it has to be read becomes work of its own, with its own cursor.
    insert into convsync.sync_cursors as s
      (page_id, run_id, kind, thread_id, sender_id, last_cursor, updated_time, reported_count, newest_id, unreadable, counted,
       stop_at, listed_at, read_began_at, newest_at, completed, updated_at)
    select p_page_id, p_run_id, 'thread', t.thread_id,
      case when not convsync_api._is_erased(p_page_id, t.sender_id, t.updated_time) then t.sender_id end,
      t.next_cursor, t.updated_time, t.message_count, t.newest_id, coalesce(t.unreadable, 0),
      coalesce(t.sender_id = any (v_people), false), nullif(t.stop_at, '-infinity'), p_observed_at, case t.read when 'more' then p_observed_at end, t.newest,
      false, v_now
    from jsonb_to_recordset(v_threads) t (thread_id text, sender_id text, next_cursor text, updated_time timestamptz,
      message_count integer, newest_id text, newest timestamptz, read text, unreadable integer, stop_at timestamptz, outcome text)
    where t.outcome = 'work'
    order by t.thread_id
    on conflict on constraint sync_cursors_pkey do update
    set sender_id = excluded.sender_id,
      last_cursor = excluded.last_cursor,
      updated_time = excluded.updated_time,
      reported_count = excluded.reported_count,
      newest_id = excluded.newest_id,
      unreadable = excluded.unreadable,
      counted = s.counted or excluded.counted,
      pages_applied = 0,
      messages_read = 0,
      stop_at = excluded.stop_at,
      listed_at = excluded.listed_at,
      read_began_at = excluded.read_began_at,
      newest_at = excluded.newest_at,
      completed = false,
      updated_at = v_now
    where s.completed or (s.listed_at is null and s.read_began_at is null and not s.failed);
    update convsync.sync_cursors s
    set completed = true, listed_at = p_observed_at, updated_at = v_now
    from jsonb_to_recordset(v_threads) t (thread_id text, outcome text)
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'thread' and s.thread_id = t.thread_id and t.outcome <> 'work'
      and s.listed_at is null and s.read_began_at is null and not s.completed and not s.failed;

    perform convsync_api._record_proofs(p_page_id, p_run_id, coalesce((
      select jsonb_agg(case when t.outcome = 'done'
        then jsonb_build_object('thread_id', t.thread_id, 'updated_time', t.updated_time, 'message_count', t.message_count,
          'newest_id', t.newest_id, 'verified_through', least(t.newest, p_observed_at), 'verified_at', p_observed_at,
          'full_read_at', case t.read when 'complete' then p_observed_at end, 'unreadable', t.unreadable)
        else jsonb_build_object('thread_id', t.thread_id) end
        || case when v_mode <> 'incremental' and p_kind = 'list' then jsonb_build_object('listed_at', p_observed_at) else '{}' end)
      from jsonb_to_recordset(v_threads) t (thread_id text, updated_time timestamptz, message_count integer, newest_id text,
        newest timestamptz, read text, unreadable integer, erased boolean, outcome text)
      where not t.erased and (t.outcome = 'done' or (v_mode <> 'incremental' and p_kind = 'list'))
    ), '[]'));
  end if;

  if p_kind = 'list' then
    -- Newest first is how the list comes, but nobody promised it.
    select coalesce(bool_or(t.updated_time > t.oldest + convsync_api._overlap()), false), least(v_cursor.oldest_updated, min(t.updated_time))
    into v_disorder, v_oldest
    from (
      select t.updated_time, least(v_cursor.oldest_updated, min(t.updated_time) over (order by t.place)) as oldest
      from (
        select (l.value ->> 'updated_time')::timestamptz as updated_time, l.place
        from jsonb_array_elements(p_threads) with ordinality l (value, place)
      ) t
    ) t;
    -- Nor is a list with a conversation that cannot be told (no id) one that is known up to some place.
    v_disorder := v_disorder or v_cursor.out_of_order or coalesce(p_unreadable, 0) > (
      select coalesce(sum((t.value ->> 'unreadable')::integer), 0) from jsonb_array_elements(p_threads) t (value));

    -- The list moves while it is walked: what jumped to its front is seen by reading the front again, until a whole page is
    -- older than the start of the pass before, and nothing was found that had been missed. What is written while the walk goes
    -- on is no reason to go on: on a busy Page there would always be more of it. An incremental run leaves all that to the next
    -- one. It ends where nothing has changed and nothing has moved since the list was last walked, if there is such a place.
    -- An empty page says nothing of what is older.
    v_news := v_cursor.found_new or v_missed > 0;
    v_over := p_next_cursor is null or (
      jsonb_array_length(p_threads) > 0 and (v_mode = 'incremental' or v_cursor.walk_pass > 1)
      and coalesce((
        select bool_and(coalesce(t.updated_time < w.since - convsync_api._overlap(), false) and (v_mode <> 'incremental' or t.unchanged))
        from (
          select case when v_mode <> 'incremental' then v_cursor.walk_started_at when not v_disorder then g.list_walked_at end as since
          from convsync.pages g where g.page_id = p_page_id
        ) w
        cross join jsonb_to_recordset(v_threads) t (updated_time timestamptz, unchanged boolean)
      ), false));
    v_again := v_over and v_mode <> 'incremental' and (v_cursor.walk_pass = 1 or v_news);
    update convsync.sync_cursors s
    set last_cursor = case when not v_over then p_next_cursor end,
      last_conversation_id = case
        when convsync_api._is_erased_thread(p_page_id, p_threads -> -1 ->> 'sender_id', p_threads -> -1 ->> 'thread_id',
          (p_threads -> -1 ->> 'updated_time')::timestamptz) then s.last_conversation_id
        else coalesce(p_threads -> -1 ->> 'thread_id', s.last_conversation_id) end,
      walk_pass = s.walk_pass + v_again::integer,
      -- The next pass has to see what moved since this one began.
      walk_started_at = case when v_over then s.pass_started_at else s.walk_started_at end,
      pass_started_at = case when v_over then v_now else s.pass_started_at end,
      found_new = v_news and not v_over,
      oldest_updated = case when not v_over then v_oldest end,
      out_of_order = v_disorder,
      completed = v_over and not v_again,
      updated_at = v_now
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'list' and s.thread_id = '';
    if v_over and not v_again then
      perform convsync_api._propose_deletions(p_page_id, p_run_id);
    end if;
  elsif p_kind = 'contact' then
    update convsync.sync_cursors s
    set last_cursor = p_next_cursor, completed = p_next_cursor is null, updated_at = v_now
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'contact' and s.thread_id = p_thread_id;
  else
    -- A conversation counts once, however many pages its thread has.
    v_changed := case when v_cursor.counted then 0 else least(v_changed, 1) end;
    v_over := p_next_cursor is null or coalesce(p_oldest < v_cursor.stop_at, false);
    v_unreadable := v_cursor.unreadable + coalesce(p_unreadable, 0);
    if v_over and v_unreadable = 0 and (p_next_cursor is null or exists (
      select from convsync.thread_proofs p
      where p.page_id = p_page_id and p.thread_id = p_thread_id and p.full_read_at is not null and p.unreadable = 0
    )) then
      perform convsync_api._complete_history(p_page_id, p_observed_at, array[p_thread_id]);
    end if;
    update convsync.sync_cursors s
    set last_cursor = p_next_cursor,
      counted = s.counted or v_changed > 0,
      pages_applied = s.pages_applied + 1,
      messages_read = s.messages_read + coalesce(p_unreadable, 0)
        + (select count(*) from jsonb_array_elements(p_facts) f where f.value ->> 'kind' = 'message')::integer,
      unreadable = v_unreadable,
      read_began_at = coalesce(s.read_began_at, p_observed_at),
      newest_at = greatest(s.newest_at, p_newest),
      completed = v_over,
      updated_at = v_now
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'thread' and s.thread_id = p_thread_id
    returning s.* into strict v_cursor;
    if v_over then
      perform convsync_api._record_proofs(p_page_id, p_run_id, jsonb_build_array(jsonb_build_object('thread_id', p_thread_id,
        'updated_time', v_cursor.updated_time, 'message_count', v_cursor.reported_count, 'newest_id', v_cursor.newest_id,
        -- Not what is of the future: behind it the next read would stop too soon.
        'verified_through', least(v_cursor.newest_at, p_observed_at), 'verified_at', coalesce(v_cursor.listed_at, v_cursor.read_began_at),
        'full_read_at', case when p_next_cursor is null then v_cursor.read_began_at end, 'unreadable', v_unreadable)));
    end if;
  end if;

  perform convsync_api._keep_ranges(p_page_id, p_run_id, v_judged);
  update convsync.sync_runs r
  set conversations_seen = r.conversations_seen + v_seen,
    conversations_changed = r.conversations_changed + v_changed,
    messages_added = r.messages_added + v_added,
    -- The front of the list is read more than once; what it does not give counts the first time.
    unreadable = r.unreadable + case when p_kind = 'list' and v_cursor.walk_pass > 1 then 0 else coalesce(p_unreadable, 0) end,
    pages_applied = r.pages_applied + 1,
    list_walked = r.list_walked or (p_kind = 'list' and v_over and not v_again),
    progress = r.progress + 1,
    lease_expires_at = greatest(r.lease_expires_at, v_now + p_lease_seconds * interval '1 second'),
    updated_at = v_now
  where r.page_id = p_page_id and r.run_id = p_run_id;

  select count(*) into v_open from convsync.sync_cursors s
  where s.page_id = p_page_id and s.run_id = p_run_id and not s.completed and not s.failed;
  return query select true, v_changed, v_added, v_open;
end
$$;
comment on function convsync_api.apply_sync_page(text, bigint, bigint, text, text, text, text, timestamptz, jsonb, jsonb, integer, numeric, integer, timestamptz, timestamptz) is
$c$Applies one page that was read, in one transaction: its facts, the cursor, the counters, what was verified, the threads that need
more reading. p_kind: list, thread, or contact (one person's threads); p_cursor, p_walk_pass: the cursor and pass the page was
read with, as next_sync_work gave them; p_next_cursor: null at the end; p_observed_at: when its call was granted, history is
complete as of then. p_threads, for a page of conversations: an array of thread_id, sender_id, updated_time, message_count,
newest_id, newest and oldest (message times; oldest null if they did not come newest first), read (complete, more, unread),
next_cursor, unreadable. p_oldest, p_newest: the same of a page of a thread. A page that was applied before (its cursor has moved
on) changes nothing: applied is false. Errors: ZC003, ZC004, and those of ingest.$c$;

create or replace function convsync_api._complete_history(p_page_id text, p_observed_at timestamptz, p_threads text[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  if cardinality(p_threads) = 0 then
    return;
  end if;
  -- Bookkeeping of the sync, not a change of the conversation: no version. What the page touched is locked already, and a page
  -- without facts waits for the one it completes.
  update convsync.messenger_conversations c
  set history_complete_at = greatest(c.history_complete_at, p_observed_at)
  from (
    select o.page_id, o.conversation_id
    from (select p_page_id as page_id, unnest(p_threads) as thread_id) t
    join convsync.messenger_conversations o on o.page_id = t.page_id and o.thread_id = t.thread_id
    order by o.page_id, o.sender_id
    for no key update of o
  ) t
  where c.page_id = t.page_id and c.conversation_id = t.conversation_id;
end
$$;

create or replace function convsync_api.restart_sync_list(
  p_page_id text, p_run_id bigint, p_fence bigint, p_cursor text, p_thread_id text default ''
)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_restarts integer;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  update convsync.sync_cursors s
  set last_cursor = null, oldest_updated = null, restarts = s.restarts + 1, pages_applied = 0, messages_read = 0, unreadable = 0,
    updated_at = convsync_api._now()
  where s.page_id = p_page_id and s.run_id = p_run_id
    and case p_thread_id when '' then s.kind = 'list' else s.kind in ('thread', 'contact') end
    and s.thread_id = p_thread_id and s.last_cursor = p_cursor and not s.completed
  returning s.restarts into v_restarts;
  return v_restarts;
end
$$;
comment on function convsync_api.restart_sync_list(text, bigint, bigint, text, text) is
$c$Graph refused p_cursor: read the list (or the thread, or what is listed of the person p_thread_id) from the front again. Returns how often that happened in this run; null
when the cursor has moved on already. Errors: ZC004.$c$;

create or replace function convsync_api._walk_known_contacts(p_page_id text, p_run_id bigint, p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  -- The list cannot be read, and single threads can: Meta says so of very busy Pages. An incremental run takes those of whom
  -- something was heard since the last walk, or since their thread was verified: on such a Page there may be no walk for months.
  insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, sender_id, stop_at, updated_at)
  select distinct on (k.kind, k.work_id) p_page_id, p_run_id, k.kind, k.work_id, c.sender_id,
    case
      when r.mode = 'full' or p.verified_through is null or (p.full_read_at, p.thread_id) <= (l.share_before, l.share_thread) then null
      else least(p.verified_through - convsync_api._overlap(), l.depth_at)
    end, p_now
  from convsync.sync_runs r
  join convsync.pages g on g.page_id = r.page_id
  join convsync.sync_cursors l on l.page_id = r.page_id and l.run_id = r.run_id and l.kind = 'list'
  join convsync.messenger_conversations c on c.page_id = r.page_id
  left join convsync.thread_proofs p on p.page_id = c.page_id and p.thread_id = c.thread_id
  cross join lateral (
    select case when c.thread_id is null then 'contact' else 'thread' end as kind, coalesce(c.thread_id, c.sender_id) as work_id
  ) k
  where r.page_id = p_page_id and r.run_id = p_run_id and c.deleted_at is null and (c.thread_id is not null or c.sender_id !~ ':')
    and p.listed_run_id is distinct from p_run_id and p.verified_run_id is distinct from p_run_id
    and (r.mode <> 'incremental'
      or c.updated_at >= coalesce(greatest(g.list_walked_at, p.verified_at) - convsync_api._overlap(), '-infinity'))
  order by k.kind, k.work_id, c.sender_id
  on conflict on constraint sync_cursors_pkey do nothing;
end
$$;

create or replace function convsync_api.fail_sync_batch(
  p_page_id text, p_run_id bigint, p_fence bigint, p_kind text, p_thread_id text, p_cursor text, p_attempts integer, p_error jsonb
)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_batch integer;
  v_progress bigint;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  v_now := convsync_api._now();
  update convsync.sync_runs r
  set progress = r.progress + 1, updated_at = v_now
  where r.page_id = p_page_id and r.run_id = p_run_id
  returning r.progress into strict v_progress;
  update convsync.sync_cursors s
  set failed = true, updated_at = v_now
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = p_kind and s.thread_id = coalesce(p_thread_id, '')
    and s.last_cursor is not distinct from p_cursor and not s.completed and not s.failed;
  if not found then
    return null;
  end if;
  -- What passes is left to a retry or to the next sync: for one bad moment nobody reads every thread of a large Page.
  if p_kind = 'list' and (p_error ->> 'entry' = 'listing_refused'
      or (p_cursor is not null and coalesce(p_error ->> 'class', 'unknown') not in ('transient', 'unknown', 'permission'))) then
    perform convsync_api._walk_known_contacts(p_page_id, p_run_id, v_now);
  end if;
  perform convsync_api._after_failed_batch(p_page_id, p_run_id, p_kind, p_error);
  -- Failed again, after a retry: the same batch, wherever in it that was.
  update convsync.sync_batches b
  set cursor = p_cursor, progress = v_progress, failed_at = v_now, error = coalesce(p_error, '{}'),
    attempts = greatest(p_attempts, 1) + case when b.cursor is not distinct from p_cursor then b.attempts else 0 end
  where b.page_id = p_page_id and b.run_id = p_run_id and b.kind = p_kind and b.thread_id = coalesce(p_thread_id, '')
    and b.status = 'failed'
  returning b.batch into v_batch;
  if found then
    return v_batch;
  end if;
  select coalesce(max(b.batch), 0) + 1 into v_batch
  from convsync.sync_batches b
  where b.page_id = p_page_id and b.run_id = p_run_id;
  insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, cursor, status, attempts, error, progress, failed_at)
  values (p_page_id, p_run_id, v_batch, p_kind, coalesce(p_thread_id, ''), p_cursor, 'failed', greatest(p_attempts, 1),
    coalesce(p_error, '{}'), v_progress, v_now);
  return v_batch;
end
$$;
comment on function convsync_api.fail_sync_batch(text, bigint, bigint, text, text, text, integer, jsonb) is
$c$Records what could not be read after p_attempts: the run goes on with the rest and can end partial, never succeeded. Where it
is the list, and it is refused as such or stays unreadable beyond p_cursor for a reason that does not pass by itself, the known
threads and people that this run has not listed become work instead. p_error: {"class", "entry", "code", "subcode", "message", ..}.
Returns the batch's number, the same one if it fails again after retry_sync; null when that cursor has moved on already.
Errors: ZC004.$c$;

create or replace function convsync_api.renew_sync_lease(
  p_page_id text, p_run_id bigint, p_fence bigint, p_lease_seconds numeric default 15
)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_expiry timestamptz;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  update convsync.sync_runs r
  set lease_expires_at = greatest(r.lease_expires_at, convsync_api._now() + p_lease_seconds * interval '1 second')
  where r.page_id = p_page_id and r.run_id = p_run_id
  returning r.lease_expires_at into strict v_expiry;
  return v_expiry;
end
$$;
comment on function convsync_api.renew_sync_lease(text, bigint, bigint, numeric) is
  'Keeps the lease of a run that is at work; returns its new end, on the database''s clock. Errors: ZC004.';

create or replace function convsync_api.pause_sync(
  p_page_id text, p_run_id bigint, p_fence bigint, p_reason text, p_resume_after_seconds numeric default 60
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  update convsync.sync_runs r
  set status = 'paused', reason = p_reason, fence = r.fence + 1, lease_expires_at = null, owner = null,
    resume_after = convsync_api._now() + p_resume_after_seconds * interval '1 second',
    updated_at = convsync_api._now(), progress = r.progress + 1
  where r.page_id = p_page_id and r.run_id = p_run_id;
end
$$;
comment on function convsync_api.pause_sync(text, bigint, bigint, text, numeric) is
$c$Lays a run down at its saved cursors (a deadline, a shutdown). begin_sync of its mode goes on with it; the service does so by
itself after p_resume_after_seconds. Errors: ZC004.$c$;

create or replace function convsync_api.finish_sync(
  p_page_id text, p_run_id bigint, p_fence bigint, p_failure text default null
)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_status text;
  v_reason text;
  v_run convsync.sync_runs;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  v_now := convsync_api._now();
  -- A retry settles a batch once the thread or the list that it belongs to has been read to its end.
  update convsync.sync_batches b
  set status = 'resolved', resolved_at = v_now
  where b.page_id = p_page_id and b.run_id = p_run_id and b.status = 'failed' and not exists (
    select from convsync.sync_cursors s
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = b.kind and s.thread_id = b.thread_id and not s.completed);
  select r.* into strict v_run from convsync.sync_runs r where r.page_id = p_page_id and r.run_id = p_run_id;
  -- The ledger decides, not the caller: what is open or failed keeps a run from succeeding.
  if p_failure is not null then
    v_status := 'failed';
    v_reason := p_failure;
  elsif exists (
    select from convsync.sync_cursors s
    where s.page_id = p_page_id and s.run_id = p_run_id and not s.completed and not s.failed
  ) then
    raise exception 'run % has open work', p_run_id using errcode = 'ZC003', hint = 'p_run_id';
  elsif v_run.deletions_held_back then
    v_status := 'partial';
    v_reason := 'deletion_breaker';
  elsif exists (select from convsync.sync_batches b where b.page_id = p_page_id and b.run_id = p_run_id and b.status = 'failed') then
    v_status := 'partial';
    v_reason := case when exists (
        select from convsync.sync_batches b
        where b.page_id = p_page_id and b.run_id = p_run_id and b.status = 'failed' and b.error ->> 'entry' = 'listing_refused')
      then 'listing_refused' else 'failed_batches' end;
  elsif exists (select from convsync.sync_cursors s where s.page_id = p_page_id and s.run_id = p_run_id and s.failed) then
    -- Whose batch went with a person who was erased.
    v_status := 'partial';
    v_reason := 'failed_batches';
  else
    v_status := 'succeeded';
  end if;
  if v_status <> 'failed' then
    -- Threads that failed are known by their batches; the list was walked past them all the same. A list in no order has no
    -- place up to which it was walked: the next run goes to its end again.
    update convsync.pages g
    set list_walked_at = case when not s.out_of_order then greatest(g.list_walked_at, s.walk_started_at) end,
      -- What a person allowed was for this walk.
      deletions_allowed = case when v_run.deletions_proposed = 0 or v_run.deletions_held_back then g.deletions_allowed end
    from convsync.sync_cursors s
    where g.page_id = p_page_id and s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'list' and s.completed;
  end if;
  update convsync.sync_runs r
  set status = v_status, reason = v_reason, lease_expires_at = null, owner = null, finished_at = v_now, updated_at = v_now,
    progress = r.progress + 1
  where r.page_id = p_page_id and r.run_id = p_run_id;
  return v_status;
end
$$;
comment on function convsync_api.finish_sync(text, bigint, bigint, text) is
$c$Ends a run; the status is derived from its ledger: succeeded, partial (deletion_breaker: more conversations were missing than is
credible, and none was marked; listing_refused: Meta does not list the Page's conversations; failed_batches), or failed with the
reason p_failure.
Errors: ZC003 while work is open, ZC004.$c$;

create or replace function convsync_api.cancel_sync(p_page_id text, p_run_id bigint, p_fence bigint default null)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_status text;
begin
  if p_fence is not null then
    perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  end if;
  select r.status into v_status
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.run_id = p_run_id
  for no key update;
  if not found then
    raise exception 'Page % has no run %', p_page_id, p_run_id using errcode = 'ZC001';
  end if;
  if v_status in ('queued', 'running', 'paused') then
    update convsync.sync_runs r
    set status = 'cancelled', reason = 'cancelled', fence = r.fence + 1, lease_expires_at = null, owner = null, resume_after = null,
      finished_at = convsync_api._now(), updated_at = convsync_api._now(), progress = r.progress + 1
    where r.page_id = p_page_id and r.run_id = p_run_id
    returning r.status into strict v_status;
  end if;
  return v_status;
end
$$;
comment on function convsync_api.cancel_sync(text, bigint, bigint) is
$c$Ends a run that is not over; who carries it is refused from then on. An operator needs no fence. Returns the run's status: a run
that was over already keeps its own. Errors: ZC001, ZC004 with a fence that is not the run's.$c$;

create or replace function convsync_api.get_sync_run(p_run_id bigint)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run convsync.sync_runs;
begin
  select r.* into v_run from convsync.sync_runs r where r.run_id = p_run_id;
  if not found then
    raise exception 'there is no run %', p_run_id using errcode = 'ZC001';
  end if;
  return convsync_api._run_document(v_run);
end
$$;
comment on function convsync_api.get_sync_run(bigint) is
$c$A run as JSON: status, reason, counters, failed batches. progress is a number that rises with each change of the run, for
streams to resume by. Errors: ZC001.$c$;

create or replace function convsync_api.list_sync_runs(p_page_id text, p_before bigint default null, p_limit integer default 20)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit integer := least(greatest(coalesce(p_limit, 20), 1), 200);
  v_result jsonb;
begin
  perform convsync_api._check_page(p_page_id);
  select convsync_api._list_part('runs', array_agg(convsync_api._run_document(r.run) order by r.run_id desc),
    array_agg(r.run_id::text order by r.run_id desc), v_limit)
  into strict v_result
  from (
    select s as run, s.run_id
    from convsync.sync_runs s
    where s.page_id = p_page_id and (p_before is null or s.run_id < p_before)
    order by s.run_id desc
    limit v_limit + 1
  ) r;
  return v_result;
end
$$;
comment on function convsync_api.list_sync_runs(text, bigint, integer) is
$c$The runs of a Page, newest first, each as get_sync_run gives it: {"runs": [..], "next": run_id or null}. p_before is the next of the
part before, p_limit 1 to 200. Errors: ZC001.$c$;

create or replace function convsync_api.resumable_syncs()
returns table (page_id text, mode text, run_id bigint)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.page_id, r.mode, r.run_id
  from convsync.sync_runs r
  join convsync.pages p on p.page_id = r.page_id
  where p.token_state in ('unchecked', 'valid')
    and ((r.status = 'paused' and r.resume_after <= convsync_api._now())
      or (r.status = 'running' and r.lease_expires_at <= convsync_api._now()))
  order by r.updated_at;
$$;
comment on function convsync_api.resumable_syncs() is
  'Runs that nobody carries and that are due: paused ones after their pause, and those whose process died.';
