-- The call budget: every Graph call of every process asks here first. Meta allows 2 calls a second per Page on the
-- Conversations API (developers.facebook.com/documentation/business-messaging/messenger-platform/overview/rate-limiting).

create or replace function convsync_api.acquire_call(
  p_page_id text, p_lane text, p_run_id bigint default null, p_fence bigint default null,
  p_calls_per_second numeric default 2
)
returns table (wait_ms integer, granted_at timestamptz)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_row convsync.call_budgets;
  v_now timestamptz;
  v_burst integer := greatest(1, floor(p_calls_per_second))::integer;
  v_ready timestamptz;
  v_app convsync.call_budgets;
  v_pace numeric;
  v_place constant integer := array_position('{live,repair,backfill}'::text[], p_lane);
  v_turn boolean;
begin
  if coalesce(p_page_id, '') = '' then
    raise exception 'the Page''s id is missing' using errcode = 'ZC003', hint = 'p_page_id';
  end if;
  if p_lane is null or p_lane not in ('live', 'repair', 'backfill') then
    raise exception 'lane must be live, repair or backfill' using errcode = 'ZC003', hint = 'p_lane';
  end if;
  if p_calls_per_second is null or p_calls_per_second < 0 then
    raise exception 'calls per second must not be negative' using errcode = 'ZC003', hint = 'p_calls_per_second';
  end if;
  if p_run_id is not null then
    -- Presents the fence; a run that was taken over takes nothing of the budget.
    perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  end if;

  insert into convsync.call_budgets (page_id)
  select p_page_id
  where not exists (select from convsync.call_budgets b where b.page_id = p_page_id)
  on conflict on constraint call_budgets_pkey do nothing;
  select b.* into strict v_row from convsync.call_budgets b where b.page_id = p_page_id for no key update;
  v_now := convsync_api._now();
  -- Read without its lock: every Page's calls would queue for it.
  select b.* into v_app from convsync.call_budgets b where b.page_id = '';

  v_ready := greatest(v_row.blocked_until, v_app.blocked_until);
  if p_calls_per_second > 0 then
    -- A grant comes no sooner than one window after the grant `burst` before it: never more than the rate in any window.
    if cardinality(v_row.grants) >= v_burst then
      v_ready := greatest(v_ready,
        v_row.grants[cardinality(v_row.grants) - v_burst + 1] + v_burst / p_calls_per_second * interval '1 second');
    end if;
    -- Slowed down, they come one by one.
    select p.pace into strict v_pace from convsync_api._pace(v_row, v_app, v_now) p;
    if v_pace < 1 then
      v_ready := greatest(v_ready,
        v_row.grants[cardinality(v_row.grants)] + 1 / (p_calls_per_second * v_pace) * interval '1 second');
    end if;
    -- A higher lane that waits goes first. But one that three calls of others have passed by has its turn before them: however
    -- many new people write, a walk has a fifth of the calls.
    v_turn := coalesce(case p_lane when 'repair' then v_row.repair_passed when 'backfill' then v_row.backfill_passed end >= 3, false);
    v_ready := greatest(v_ready, (
      select max(o.wanted_until)
      from (values
        (1, false, v_row.live_wanted_until),
        (2, v_row.repair_passed >= 3, v_row.repair_wanted_until),
        (3, v_row.backfill_passed >= 3, v_row.backfill_wanted_until)
      ) o (place, turn, wanted_until)
      where (not o.turn, o.place) < (not v_turn, v_place)
    ));
  end if;

  if v_ready > v_now then
    -- Who has to wait says so, and whoever comes after them leaves the next slot to them. The wish expires by itself.
    update convsync.call_budgets b
    set live_wanted_until = case p_lane when 'live' then v_ready + interval '250 milliseconds' else b.live_wanted_until end,
      repair_wanted_until = case p_lane when 'repair' then v_ready + interval '250 milliseconds' else b.repair_wanted_until end,
      backfill_wanted_until = case p_lane when 'backfill' then v_ready + interval '250 milliseconds' else b.backfill_wanted_until end,
      updated_at = v_now
    where b.page_id = p_page_id;
    return query select greatest(1, least(ceil(extract(epoch from v_ready - v_now) * 1000), 2147483647))::integer, null::timestamptz;
    return;
  end if;

  update convsync.call_budgets b
  set grants = (case when p_calls_per_second > 0 then b.grants else '{}' end || v_now)
      [greatest(1, cardinality(case when p_calls_per_second > 0 then b.grants else '{}' end) + 2 - v_burst):],
    live_wanted_until = case when p_lane = 'live' then null else b.live_wanted_until end,
    repair_wanted_until = case when p_lane = 'repair' then null else b.repair_wanted_until end,
    backfill_wanted_until = case when p_lane = 'backfill' then null else b.backfill_wanted_until end,
    repair_passed = case when p_lane = 'repair' then 0 else b.repair_passed + coalesce(b.repair_wanted_until > v_now, false)::integer end,
    backfill_passed = case when p_lane = 'backfill' then 0 else b.backfill_passed + coalesce(b.backfill_wanted_until > v_now, false)::integer end,
    blocked_until = null, block_reason = null,
    calls_per_second = p_calls_per_second,
    calls = b.calls + 1,
    updated_at = v_now
  where b.page_id = p_page_id;
  if p_run_id is not null then
    update convsync.sync_runs r
    set calls = r.calls + 1
    where r.page_id = p_page_id and r.run_id = p_run_id;
    -- Every half minute the younger mark of the pace becomes the older one; after a long silence both begin anew.
    update convsync.sync_runs r
    set pace_since = case when r.pace_next_since > v_now - interval '2 minutes' then r.pace_next_since else v_now end,
      pace_calls = case when r.pace_next_since > v_now - interval '2 minutes' then r.pace_next_calls else r.calls - 1 end,
      pace_next_since = v_now, pace_next_calls = r.calls - 1
    where r.page_id = p_page_id and r.run_id = p_run_id
      and (r.pace_next_since is null or r.pace_next_since <= v_now - interval '30 seconds');
  end if;
  return query select 0, v_now;
end
$$;
comment on function convsync_api.acquire_call(text, text, bigint, bigint, numeric) is
$c$Asks for one Graph call on a Page. wait_ms 0: a slot is taken, call now; granted_at is the instant, and what the call reads is
observed then. More: nothing is taken, ask again after that many milliseconds. p_lane: live, repair or backfill; a waiting
higher lane goes first, but a lower one that waits has its turn after three calls of others at the latest. p_run_id and p_fence, for a sync's calls: counts the call, and refuses a run that was taken over.
p_calls_per_second: the Page's rate, 0 for no limit; blocks hold all the same. Near the end of an allowance, the Page's or the app's,
and while answers are slow, only a part of the rate is granted (pace in the budget of get_page). Errors: ZC003, ZC004.$c$;

create or replace function convsync_api.record_call(
  p_page_id text, p_status integer, p_response_ms integer, p_usage jsonb default null,
  p_error_code integer default null, p_error_subcode integer default null,
  p_block_scope text default null, p_block_seconds numeric default null, p_block_reason text default null
)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_percent constant numeric := (p_usage ->> 'percent')::numeric;
  v_app_percent constant numeric := (p_usage ->> 'app_percent')::numeric;
  -- A connection that is refused at once is no quick answer; one that took long and came to nothing is a slow one. It counts as
  -- 10 s at the most: as slow as it gets, and made up for within seconds.
  v_took constant boolean := coalesce(p_response_ms > 2000 or p_status is not null and p_response_ms >= 0, false);
  v_now timestamptz;
  v_block_until timestamptz;
begin
  if p_block_scope is not null and p_block_scope not in ('page', 'app') then
    raise exception 'block scope must be page or app' using errcode = 'ZC003', hint = 'p_block_scope';
  end if;
  if p_block_scope is not null and (p_block_seconds is null or p_block_seconds < 0) then
    raise exception 'a block needs its seconds' using errcode = 'ZC003', hint = 'p_block_seconds';
  end if;
  -- The app's row comes first: its key is the smaller one. What it says already is not written again, or the answers of all
  -- Pages would queue for it.
  v_now := convsync_api._now();
  v_block_until := case when p_block_scope = 'app' then v_now + p_block_seconds * interval '1 second' end;
  if v_block_until is not null or v_app_percent is not null and not exists (
    select from convsync.call_budgets b
    where b.page_id = '' and b.usage_percent = v_app_percent and b.usage_until > v_now + interval '4 minutes'
  ) then
    insert into convsync.call_budgets as b (page_id, blocked_until, block_reason, usage_percent, usage_until, updated_at)
    values ('', v_block_until, case when v_block_until is not null then p_block_reason end,
      v_app_percent, case when v_app_percent is not null then v_now + interval '5 minutes' end, v_now)
    on conflict on constraint call_budgets_pkey do update
    set blocked_until = greatest(b.blocked_until, excluded.blocked_until),
      block_reason = case when excluded.blocked_until > coalesce(b.blocked_until, '-infinity') then excluded.block_reason else b.block_reason end,
      usage_percent = coalesce(excluded.usage_percent, b.usage_percent),
      usage_until = coalesce(excluded.usage_until, b.usage_until),
      updated_at = v_now;
  end if;

  insert into convsync.call_budgets (page_id)
  select p_page_id
  where not exists (select from convsync.call_budgets b where b.page_id = p_page_id)
  on conflict on constraint call_budgets_pkey do nothing;
  perform from convsync.call_budgets b where b.page_id = p_page_id for no key update;
  v_now := convsync_api._now();
  v_block_until := case when p_block_scope = 'page' then v_now + p_block_seconds * interval '1 second' end;
  update convsync.call_budgets b
  set usage = coalesce(p_usage, b.usage),
    usage_percent = coalesce(v_percent, b.usage_percent),
    usage_until = case when v_percent is null then b.usage_until
      else v_now + coalesce(nullif((p_usage ->> 'regain_seconds')::numeric, 0), 300) * interval '1 second' end,
    last_status = p_status,
    last_error = case when p_error_code is not null
      then jsonb_build_object('code', p_error_code, 'subcode', p_error_subcode, 'at', v_now) else b.last_error end,
    response_ms = case when not v_took then b.response_ms
      when b.response_until > v_now then round(b.response_ms * 0.8 + least(p_response_ms, 10000) * 0.2, 1)
      else least(p_response_ms, 10000) end,
    response_until = case when v_took then v_now + interval '5 minutes' else b.response_until end,
    blocked_until = greatest(b.blocked_until, v_block_until),
    block_reason = case when v_block_until > coalesce(b.blocked_until, '-infinity') then p_block_reason else b.block_reason end,
    updated_at = v_now
  where b.page_id = p_page_id;
  return (
    select max(b.blocked_until) from convsync.call_budgets b
    where b.page_id in ('', p_page_id) and b.blocked_until > v_now
  );
end
$$;
comment on function convsync_api.record_call(text, integer, integer, jsonb, integer, integer, text, numeric, text) is
$c$Records what a Graph call came to: HTTP status (null when none came), response time in milliseconds, error code and subcode, and
usage, read from the headers of every answer: {"percent": of the Page's allowance, "app_percent": of the app's, which is every
Page's, "regain_seconds", ..}; null where it was not told. p_block_scope page or app with p_block_seconds blocks every process:
acquire_call grants nothing until it ends. Returns the end of the block that now holds, or null. Errors: ZC003.$c$;
