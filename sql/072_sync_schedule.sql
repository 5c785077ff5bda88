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
