-- What is wrong with a Page so that a person has to act, found in what is stored: the one list from which the metrics and the alerts come.
--
-- A problem stands or it does not, whoever carried the run, by command or by service, and whether that process still lives. Of the
-- processes that look, one takes what is to be told, and says when it was. What nobody says was told is offered again.

create or replace function convsync_api._standings()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  -- How each Page stands that was added. Once for all who want to know: it is a dozen lookups for each.
  select coalesce(jsonb_agg(jsonb_build_object(
    'page_id', p.page_id,
    'token_state', p.token_state,
    'token_checked_at', p.token_checked_at,
    'last_webhook_at', p.last_webhook_at,
    'silent', convsync_api._webhooks_silent(p),
    'seconds', convsync_api._age(coalesce((f.standing ->> 'synced_at')::timestamptz, p.added_at), k.at)
  ) || f.standing), '[]')
  from (select convsync_api._now() as at) k
  cross join convsync.pages p
  cross join lateral (select convsync_api._freshness(p) as standing) f
  where p.removed_at is null and p.added_at is not null;
$$;

create or replace function convsync_api._problems(p_standings jsonb)
returns table (page_id text, problem text, details jsonb)
language sql
stable
rows 10
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with pages as materialized (
    select s.page_id, s.token_state, s.token_checked_at, s.last_webhook_at, s.silent, s.freshness, s.freshness_reason as reason, s.synced_at
    from jsonb_to_recordset(p_standings) s (page_id text, token_state text, token_checked_at timestamptz, last_webhook_at timestamptz,
      silent boolean, freshness text, freshness_reason text, synced_at timestamptz)
  ), ended as (
    -- The last of each kind that came to an end; one that is at work says nothing yet.
    select g.page_id, k.kind, r.run_id, r.mode, r.status, r.reason
    from pages g
    cross join (values ('walk'), ('incremental')) k (kind)
    cross join lateral (
      select r.run_id, r.mode, r.status, r.reason
      from convsync.sync_runs r
      where r.page_id = g.page_id and r.exclusive_kind = k.kind and r.status in ('succeeded', 'partial', 'failed')
      order by r.run_id desc limit 1
    ) r
  ), unsuccessful as (
    select distinct on (e.page_id, e.status) e.page_id, e.status,
      jsonb_build_object('run_id', e.run_id::text, 'mode', e.mode, 'reason', e.reason) as details
    from ended e
    -- Those have a name of their own.
    where e.status = 'failed' and e.reason not in ('token_invalid', 'token_missing')
      or e.status = 'partial' and e.reason <> 'deletion_breaker'
    order by e.page_id, e.status, e.run_id desc
  )
  select g.page_id, 'token_invalid', jsonb_build_object('checked_at', g.token_checked_at) from pages g where g.token_state = 'invalid'
  union all
  select u.page_id, 'sync_' || u.status, u.details from unsuccessful u
  union all
  -- Only a walk of the whole list says what is missing from it, and only the next one that it is not: one that failed does not.
  select g.page_id, 'deletions_held_back', jsonb_build_object('run_id', w.run_id::text, 'mode', w.mode)
  from pages g
  cross join lateral (
    select r.run_id, r.mode, r.reason
    from convsync.sync_runs r
    where r.page_id = g.page_id and r.exclusive_kind = 'walk' and r.status in ('succeeded', 'partial')
    order by r.run_id desc limit 1
  ) w
  where w.reason = 'deletion_breaker'
  union all
  select g.page_id, 'webhooks_silent', jsonb_build_object('last_webhook_at', g.last_webhook_at) from pages g where g.silent
  union all
  -- No sync succeeds, and none fails: whatever the reason, somebody has to look.
  select g.page_id, 'sync_overdue', jsonb_build_object('reason', g.reason, 'synced_at', g.synced_at)
  from pages g
  where exists (select from convsync_api._sync_schedule() s where greatest(s.sync_interval, s.reconcile_interval) > interval '0')
    and (g.freshness = 'stale' and g.reason = 'sync_overdue'
      or g.freshness = 'broken' and g.reason = 'never_synced'
      or g.freshness = 'stale' and g.reason = 'first_sync' and (
        -- The first one may take days, but every hour brings something.
        select max(greatest(r.updated_at, r.resume_after)) from convsync.sync_runs r
        where r.page_id = g.page_id and r.status in ('queued', 'running', 'paused')
      ) < convsync_api._now() - interval '1 hour');
$$;

create or replace function convsync_api.take_alerts(
  p_again_seconds numeric default 86400, p_hold_seconds numeric default 300, p_limit integer default 1000, p_look_seconds numeric default 0
)
returns table (page_id text, problem text, state text, since timestamptz, details jsonb)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_looked_at timestamptz;
  v_problems jsonb;
begin
  if p_again_seconds is null or p_again_seconds <= 0 then
    raise exception 'again must be more than 0 seconds' using errcode = 'ZC003', hint = 'p_again_seconds';
  end if;
  if p_hold_seconds is null or p_hold_seconds <= 0 then
    raise exception 'hold must be more than 0 seconds' using errcode = 'ZC003', hint = 'p_hold_seconds';
  end if;
  -- One looks at a time; another one finds nothing to do.
  if not pg_try_advisory_xact_lock(1668183670, 20) then
    return;
  end if;
  v_now := convsync_api._now();
  select l.looked_at into v_looked_at from convsync.alert_looks l;
  -- A look in the future is of a clock that was wrong.
  if v_looked_at is null or v_looked_at not between v_now - coalesce(p_look_seconds, 0) * interval '1 second' and v_now
    or coalesce(p_look_seconds, 0) <= 0
  then
    select coalesce(jsonb_agg(to_jsonb(p) order by p.page_id, p.problem), '[]') into v_problems
    from convsync_api._problems(convsync_api._standings()) p;

    insert into convsync.alerts as a (page_id, problem, since, details)
    select p.page_id, p.problem, v_now, p.details
    from jsonb_to_recordset(v_problems) p (page_id text, problem text, details jsonb)
    on conflict on constraint alerts_pkey do update
    set details = excluded.details, over_at = null
    where a.details <> excluded.details or a.over_at is not null;
    update convsync.alerts a
    set over_at = v_now
    where a.over_at is null
      and not exists (
        select from jsonb_to_recordset(v_problems) p (page_id text, problem text)
        where p.page_id = a.page_id and p.problem = a.problem)
      -- A run that is tried again has not done better yet.
      and not exists (
        select from convsync.sync_runs r
        where r.page_id = a.page_id and r.run_id = (a.details ->> 'run_id')::bigint and r.status in ('queued', 'running', 'paused'));
    -- Of what nobody was told, nobody needs to be told that it is over.
    delete from convsync.alerts a
    where a.over_at is not null and a.told_at is null and coalesce(a.taken_until, '-infinity') <= v_now;
    insert into convsync.alert_looks as l (looked_at) values (v_now)
    on conflict on constraint alert_looks_pkey do update set looked_at = excluded.looked_at;
  end if;

  return query
  with due as materialized (
    select t.page_id, t.problem, t.since, t.over_at is null as firing
    from convsync.alerts t
    where case when t.over_at is null then t.told_at is null or t.told_at <= v_now - p_again_seconds * interval '1 second' else t.told_at is not null end
      and coalesce(t.taken_until, '-infinity') <= v_now
  ), taken as (
    -- Of one kind, so that what befell many Pages can be told as one.
    select d.page_id, d.problem
    from due d
    where (d.problem, d.firing) = (select f.problem, f.firing from due f order by f.since, f.problem, f.page_id limit 1)
    order by d.since, d.page_id
    limit greatest(coalesce(p_limit, 1000), 1)
  )
  update convsync.alerts a
  set taken_until = v_now + p_hold_seconds * interval '1 second'
  from taken t
  where a.page_id = t.page_id and a.problem = t.problem
  returning a.page_id, a.problem, case when a.over_at is null then 'firing' else 'resolved' end, a.since, a.details;
end
$$;
comment on function convsync_api.take_alerts(numeric, numeric, integer, numeric) is
$c$The Pages of which somebody is to be told now, at most p_limit: all with the same problem, in the same state. Each is given once, again after p_again_seconds
while it stands, and once as resolved. problem: token_invalid, sync_failed, sync_partial, deletions_held_back, webhooks_silent or sync_overdue; state: firing or
resolved; details: run_id, mode, reason, .., never what was said in a conversation. What is wrong is looked for if nobody has within p_look_seconds: it takes about a millisecond a
Page. Whoever took some calls alert_told once they were told; until then, or for p_hold_seconds, nobody else is given them, and then they are offered again. Errors: ZC003.$c$;

create or replace function convsync_api.alert_told(p_page_ids text[], p_problem text, p_state text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
begin
  if p_state is null or p_state not in ('firing', 'resolved') then
    raise exception 'state must be firing or resolved' using errcode = 'ZC003', hint = 'p_state';
  end if;
  if p_state = 'resolved' then
    delete from convsync.alerts a where a.page_id = any (p_page_ids) and a.problem = p_problem and a.over_at is not null;
  end if;
  -- What came back while it was told that it is over has to be told anew.
  update convsync.alerts a
  set told_at = case p_state when 'firing' then v_now end, taken_until = null,
    since = case p_state when 'firing' then a.since else v_now end
  where a.page_id = any (p_page_ids) and a.problem = p_problem;
end
$$;
comment on function convsync_api.alert_told(text[], text, text) is
$c$Somebody was told of these Pages what take_alerts gave, in that state. Told twice, or of what is forgotten by now, it changes nothing. Errors: ZC003.$c$;

create or replace function convsync_api.page_metrics()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with clock as (
    select convsync_api._now() as at
  ), standings as materialized (
    select convsync_api._standings() as of_pages
  ), pages as materialized (
    select p.page_id, p.token_state, p.freshness, coalesce(p.freshness_reason, '') as reason, p.seconds
    from standings s
    cross join jsonb_to_recordset(s.of_pages) p (page_id text, token_state text, freshness text, freshness_reason text, seconds numeric)
  ), problems as materialized (
    select p.page_id, p.problem, row_number() over (partition by p.problem order by p.page_id) as place
    from standings s cross join convsync_api._problems(s.of_pages) p
  ), budgets as (
    select b.page_id, b.blocked_seconds, b.usage_percent
    from (
      select b.page_id, case when b.blocked_until > k.at then convsync_api._age(k.at, b.blocked_until) end as blocked_seconds,
        case when b.usage_until > k.at then b.usage_percent end as usage_percent
      from clock k cross join convsync.call_budgets b
    ) b
    where b.blocked_seconds is not null or b.usage_percent is not null
    order by b.page_id = '' desc, b.blocked_seconds desc nulls last, b.usage_percent desc nulls last, b.page_id
    limit 101
  ), runs as (
    -- In two, as the indexes are.
    select r.mode, r.status from convsync.sync_runs r where r.status in ('queued', 'running')
    union all
    select r.mode, r.status from convsync.sync_runs r where r.status = 'paused'
  )
  select jsonb_build_object(
    'tokens', coalesce((
      select jsonb_object_agg(t.token_state, t.pages) from (select p.token_state, count(*) as pages from pages p group by 1) t
    ), '{}'),
    'freshness', coalesce((
      select jsonb_agg(jsonb_build_object('freshness', f.freshness, 'reason', f.reason, 'pages', f.pages) order by f.freshness, f.reason)
      from (select p.freshness, p.reason, count(*) as pages from pages p group by 1, 2) f
    ), '[]'),
    -- Those with the most, here and below, so that an answer stays short.
    'ages', coalesce((
      select jsonb_agg(jsonb_build_object('page_id', a.page_id, 'seconds', a.seconds) order by a.page_id)
      from (select p.page_id, p.seconds from pages p order by p.seconds desc, p.page_id limit 100) a
    ), '[]'),
    'problems', coalesce((
      select jsonb_agg(jsonb_build_object('problem', c.problem, 'pages', c.pages, 'page_ids', c.page_ids) order by c.problem)
      from (
        select p.problem, count(*) as pages, jsonb_agg(p.page_id order by p.page_id) filter (where p.place <= 100) as page_ids
        from problems p
        group by 1
      ) c
    ), '[]'),
    'budgets', coalesce((
      select jsonb_agg(to_jsonb(b) order by b.page_id) from budgets b
    ), '[]'),
    'runs', coalesce((
      select jsonb_agg(jsonb_build_object('mode', r.mode, 'status', r.status, 'runs', r.runs) order by r.mode, r.status)
      from (select r.mode, r.status, count(*) as runs from runs r group by 1, 2) r
    ), '[]')
  );
$$;
comment on function convsync_api.page_metrics() is
$c$What GET /metrics asks of Pages and their syncs, as JSON. tokens: how many Pages by the state of their token; freshness: how many by freshness and
reason (as get_page judges them); ages: seconds since the beginning of the last sync that succeeded (since the Page was added, where none has), of the 100 oldest; problems:
what needs a person, how many Pages have it, and which (100 at most); budgets: usage_percent and the seconds that a block still lasts, where there is any, of the app
(page_id empty) and of 100 Pages; runs: those that have not ended, by mode and status. Only Pages that were added.$c$;

create or replace function convsync_api.certificate_metrics()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with pages as materialized (
    select p.page_id, (c.certificate ->> 'conversations')::bigint as conversations, (c.certificate ->> 'complete')::bigint as complete
    from convsync.pages p
    cross join lateral (select convsync_api._certificate(p) as certificate) c
    where p.removed_at is null and p.added_at is not null
  )
  select jsonb_build_object(
    'conversations', coalesce((select sum(p.conversations) from pages p), 0),
    'complete', coalesce((select sum(p.complete) from pages p), 0),
    'pages', coalesce((
      select jsonb_agg(jsonb_build_object('page_id', s.page_id, 'conversations', s.conversations, 'complete', s.complete) order by s.page_id)
      from (
        select p.page_id, p.conversations, p.complete from pages p
        order by p.complete::numeric / nullif(p.conversations, 0) nulls last, p.page_id limit 100
      ) s
    ), '[]')
  );
$$;
comment on function convsync_api.certificate_metrics() is
$c$How many conversations there are and how many of them are complete, as certificate tells them: of all Pages that were added, and of the 100 Pages with the
smallest share. Reads a row of each conversation: not to be asked often.$c$;
