-- What begins without a person: the retry of what failed, the syncs that are due, the runs whose process died.

create or replace function convsync_api.retry_sync(
  p_page_id text, p_run_id bigint, p_owner text default null, p_lease_seconds numeric default 15, p_request_id text default null
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
  v_run convsync.sync_runs;
  v_other bigint;
begin
  perform from convsync.pages p where p.page_id = p_page_id and p.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  -- With begin_sync in one queue.
  perform pg_advisory_xact_lock(1668183670, hashtext(p_page_id));
  select r.* into v_run
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.run_id = p_run_id
  for no key update;
  if not found then
    raise exception 'Page % has no run %', p_page_id, p_run_id using errcode = 'ZC001';
  end if;

  -- One that is paused has the place that this one takes when it is paused itself; it goes on first.
  select r.run_id into v_other
  from convsync.sync_runs r
  where r.page_id = p_page_id
    and (r.exclusive_kind = v_run.exclusive_kind and r.status in ('queued', 'running')
      or r.mode = v_run.mode and r.status = 'paused')
  order by r.status = 'paused'
  limit 1;
  if found then
    raise exception 'run % is at work on Page %, or paused', v_other, p_page_id
      using errcode = 'ZC005', detail = jsonb_build_object('run_id', v_other::text)::text;
  end if;
  if v_run.status not in ('partial', 'failed') then
    raise exception 'run % is %: nothing in it is left to be retried', p_run_id, v_run.status
      using errcode = 'ZC003', hint = 'run_id';
  end if;

  v_now := convsync_api._now();
  update convsync.sync_cursors s
  set failed = false, updated_at = v_now
  where s.page_id = p_page_id and s.run_id = p_run_id and s.failed;
  update convsync.sync_runs r
  set status = 'running', reason = null, fence = r.fence + 1, owner = p_owner, finished_at = null,
    lease_expires_at = v_now + p_lease_seconds * interval '1 second', request_id = coalesce(p_request_id, r.request_id),
    updated_at = v_now, progress = r.progress + 1
  where r.page_id = p_page_id and r.run_id = p_run_id
  returning r.* into strict v_run;
  return query select v_run.run_id, v_run.fence, true;
end
$$;
comment on function convsync_api.retry_sync(text, bigint, text, numeric, text) is
$c$Goes on with a run that ended partial or failed, at the cursors that could not be read, with a new fence: it is running
again, and can end as succeeded. Its batches stay failed until the thread or the list they belong to has been read to its end.
Errors: ZC001 no such Page or run, ZC003 the run ended well or was cancelled, ZC005 one of its kind is at work or paused
(detail: run_id).$c$;

create or replace function convsync_api.set_sync_schedule(p_sync_seconds numeric, p_reconcile_seconds numeric)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_sync interval := p_sync_seconds * interval '1 second';
  v_reconcile interval := p_reconcile_seconds * interval '1 second';
begin
  if p_sync_seconds is null or p_sync_seconds < 0 then
    raise exception 'sync seconds must not be negative' using errcode = 'ZC003', hint = 'p_sync_seconds';
  end if;
  if p_reconcile_seconds is null or p_reconcile_seconds < 0 then
    raise exception 'reconcile seconds must not be negative' using errcode = 'ZC003', hint = 'p_reconcile_seconds';
  end if;
  insert into convsync.sync_schedule as s (sync_interval, reconcile_interval, updated_at)
  values (v_sync, v_reconcile, convsync_api._now())
  on conflict on constraint sync_schedule_pkey do update
  set sync_interval = excluded.sync_interval, reconcile_interval = excluded.reconcile_interval, updated_at = excluded.updated_at
  where (s.sync_interval, s.reconcile_interval) is distinct from (excluded.sync_interval, excluded.reconcile_interval);
end
$$;
comment on function convsync_api.set_sync_schedule(numeric, numeric) is
$c$Sets how long after the beginning of one sync the next is due: p_sync_seconds for what has changed (the first, full one too),
p_reconcile_seconds for a reconcile; 0 is never. Until it is called: 15 minutes and a day. Freshness is judged by it.
Errors: ZC003.$c$;

create or replace function convsync_api.due_syncs(p_modes text[] default null, p_page_id text default null)
returns table (page_id text, mode text, due_at timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select d.page_id, d.mode, d.due_at
  from convsync_api._planned_syncs(p_modes, p_page_id) d
  where d.due_at <= convsync_api._now()
  order by d.due_at, d.page_id, d.mode;
$$;
comment on function convsync_api.due_syncs(text[], text) is
$c$The syncs that are due, the longest due first: of every Page with a usable token a full one until its list was read to the
end once, from then on incremental and reconcile ones, unless one of the kind is at work or paused. Due is the beginning of the last one of its kind (for
a new Page, when it was added) and the interval of set_sync_schedule, 10 % more or less; twice that after a failed run, four times after
two; after a full one that was partial the longer of the two intervals. p_modes: only these; p_page_id: of this Page.$c$;

create or replace function convsync_api.begin_due_sync(
  p_page_id text, p_mode text, p_owner text default null, p_lease_seconds numeric default 15, p_request_id text default null,
  p_depth_seconds numeric default 604800
)
returns table (run_id bigint, fence bigint, resumed boolean)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Every process that schedules sees the same due sync. Whoever is second in this queue sees that it has begun.
  perform pg_advisory_xact_lock(1668183670, hashtext(p_page_id));
  perform from convsync_api.due_syncs(array[p_mode], p_page_id);
  if not found then
    return;
  end if;
  return query
  select b.run_id, b.fence, b.resumed
  from convsync_api.begin_sync(p_page_id, p_mode, p_owner, p_lease_seconds, false, p_request_id, p_depth_seconds) b;
end
$$;
comment on function convsync_api.begin_due_sync(text, text, text, numeric, text, numeric) is
$c$Begins a sync that due_syncs told of, as begin_sync does; no row when it is not due any more, because another process has begun
it. Errors: those of begin_sync.$c$;

create or replace function convsync_api.lay_down_syncs()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_run record;
  v_count integer := 0;
begin
  if not pg_try_advisory_xact_lock(1668183670, 15) then
    return 0;
  end if;
  v_now := convsync_api._now();
  for v_run in
    select r.page_id, r.run_id
    from convsync.sync_runs r
    where r.status = 'running' and r.lease_expires_at <= v_now
    order by r.page_id, r.run_id
    for no key update skip locked
  loop
    perform convsync_api._lay_down_run(v_run.page_id, v_run.run_id, v_now);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function convsync_api.lay_down_syncs() is
$c$Pauses the runs whose process is gone (their lease has expired), also those that nobody can go on with, because their
Page has no usable token; returns how many. Of several calls at once one works.$c$;
