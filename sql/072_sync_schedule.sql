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
  if v_run.deletions_held_back then
    -- Those that are still missing, as many as a person has allowed meanwhile.
    perform convsync_api._propose_deletions(p_page_id, p_run_id);
    if not exists (
      select from convsync.sync_cursors s
      where s.page_id = p_page_id and s.run_id = p_run_id and not s.completed
    ) and (select r.deletions_held_back from convsync.sync_runs r where r.page_id = p_page_id and r.run_id = p_run_id) then
      raise exception 'run % holds back the deletion of % conversations, and nothing else of it is left to be retried: if they are really gone, allow it',
        p_run_id, v_run.deletions_proposed using errcode = 'ZC003', hint = 'run_id';
    end if;
  end if;
  update convsync.sync_cursors s
  set failed = false, updated_at = v_now
  where s.page_id = p_page_id and s.run_id = p_run_id and s.failed;
  -- Controls that could not be read then make no row with those of now.
  update convsync.sync_cursors s
  set counted = true
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'control' and s.gone_at is not null and not s.counted;
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
One that held deletions back (deletion_breaker) asks for those that are still missing, once a person has allowed it
(allow_deletions_of_run). Errors: ZC001 no such Page or run, ZC003 the run ended well or was cancelled, or the deletions that it holds back,
which nobody has allowed, are all that is left; ZC005 one of its kind is at work or paused
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

create or replace function convsync_api.expire_sync_runs(p_days integer, p_limit integer default 10000)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_before timestamptz := convsync_api._expired_before(p_days, 17);
  v_day_ago timestamptz := convsync_api._now() - interval '1 day';
  v_limit integer := least(greatest(coalesce(p_limit, 10000), 1), 100000);
  v_pages text[];
  v_runs bigint[];
  v_cursors bigint;
  v_gone bigint;
begin
  if v_before is null then
    return 0;
  end if;
  -- Where a run was in what it has read: nobody asks any more once it has ended well, and a retry goes by what it has not read.
  -- Where Graph showed a person in several threads, this may be all that tells an erasure of them.
  delete from convsync.sync_cursors s
  using (
    select c.page_id, c.run_id, c.kind, c.thread_id
    from convsync.sync_runs r
    join convsync.sync_cursors c on c.page_id = r.page_id and c.run_id = r.run_id
    where r.finished_at < v_day_ago and (r.status in ('succeeded', 'cancelled') or (c.kind = 'thread' and c.completed))
      and not exists (
        select from convsync.messenger_conversations o
        where o.page_id = c.page_id and o.sender_id = c.sender_id and o.in_several_threads)
    limit v_limit
    for update of c skip locked
  ) t
  where s.page_id = t.page_id and s.run_id = t.run_id and s.kind = t.kind and s.thread_id = t.thread_id;
  get diagnostics v_cursors = row_count;
  if v_cursors = v_limit then
    return v_cursors;
  end if;

  -- A run that nothing refers to any more. What stays: the last of its mode that ended so, and that came as far; the last two
  -- of a kind, which the schedule goes by; one by which a thread is verified; one that has the last word on a thread that could not be read.
  select array_agg(t.page_id), array_agg(t.run_id)
  into v_pages, v_runs
  from (
    select r.page_id, r.run_id
    from convsync.sync_runs r
    where r.finished_at < v_before
      and exists (
        select from convsync.sync_runs n
        where n.page_id = r.page_id and n.mode = r.mode and n.status = r.status and n.run_id > r.run_id
          and n.list_walked >= r.list_walked and n.finished_at >= r.finished_at)
      and exists (
        select from convsync.sync_runs n
        where n.page_id = r.page_id and n.exclusive_kind = r.exclusive_kind and n.run_id > r.run_id
        offset 1)
      and not exists (
        select from convsync.thread_proofs p where p.page_id = r.page_id and p.verified_run_id = r.run_id)
      and not exists (
        select
        from convsync.sync_batches b
        left join convsync.thread_proofs p on p.page_id = b.page_id and p.thread_id = b.thread_id
        where b.page_id = r.page_id and b.run_id = r.run_id and b.kind = 'thread' and b.status = 'failed'
          and (p.verified_at is null or p.verified_at < b.failed_at)
          and not exists (
            select from convsync.sync_batches l
            where l.page_id = b.page_id and l.thread_id = b.thread_id and l.kind = 'thread' and l.status = 'failed'
              and l.failed_at > b.failed_at))
    order by r.finished_at
    limit v_limit
    for update of r skip locked
  ) t;
  delete from convsync.sync_cursors s
  using unnest(v_pages, v_runs) t (page_id, run_id)
  where s.page_id = t.page_id and s.run_id = t.run_id;
  delete from convsync.sync_batches b
  using unnest(v_pages, v_runs) t (page_id, run_id)
  where b.page_id = t.page_id and b.run_id = t.run_id;
  delete from convsync.sync_runs r
  using unnest(v_pages, v_runs) t (page_id, run_id)
  where r.page_id = t.page_id and r.run_id = t.run_id;
  get diagnostics v_gone = row_count;
  return v_cursors + v_gone;
end
$$;
comment on function convsync_api.expire_sync_runs(integer, integer) is
$c$Deletes sync runs that ended more than p_days ago, with what could not be read in them, and the cursors of those that ended more than a day ago, but for
what a retry needs: at most p_limit (1 to 100000) of either per call, repeat while it returns more than 0. A run stays while something refers to
it: the last of each mode and status, the last that came to the end of the list, one by which a thread is verified, one whose failed
thread nobody has read since. Returns how many rows of both. Errors: ZC003.$c$;
