-- Schema drift: fields and kinds of event that this release does not know. What they hold is kept with its event; here they are
-- counted by name, so that an operator sees what Meta has added. The service sums in memory and tells of it every few seconds.

create or replace function convsync_api.record_schema_drift(p_drift jsonb)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '4s'
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_field text;
  v_names integer;
  v_most constant integer := 1000;
begin
  if p_drift is null or jsonb_typeof(p_drift) <> 'array' then
    raise exception 'p_drift must be an array' using errcode = 'ZC003', hint = 'p_drift';
  end if;
  select format('p_drift[%s].%s', t.ordinality - 1, k.field) into v_field
  from jsonb_array_elements(p_drift) with ordinality t
  cross join lateral unnest(array['page_id', 'source', 'name', 'occurrences']) k (field)
  where case k.field
    when 'page_id' then jsonb_typeof(t.value -> 'page_id') is distinct from 'string'
    when 'source' then coalesce(t.value ->> 'source', '') not in ('webhook', 'sync')
    when 'name' then jsonb_typeof(t.value -> 'name') is distinct from 'string' or t.value ->> 'name' = ''
    else coalesce(t.value ->> 'occurrences', '') !~ '^[1-9][0-9]{0,14}$' end
  limit 1;
  if found then
    raise exception '% is missing or wrong', v_field using errcode = 'ZC003', hint = v_field;
  end if;

  -- One recorder at a time: only so is the number of names a bound.
  perform pg_advisory_xact_lock(1668183670, 11);
  insert into convsync.schema_drift as d (page_id, source, name, first_seen_at, last_seen_at, occurrences)
  select t.page_id, t.source, case when t.kept then t.name else '(other)' end, v_now, v_now, sum(t.occurrences)
  from (
    select n.page_id, n.source, n.name, n.occurrences,
      n.known or n.known_names + count(*) filter (where not n.known) over (partition by n.page_id, n.source order by n.name) <= v_most as kept
    from (
      select r.page_id, r.source, r.name, sum(r.occurrences) as occurrences,
        r.name = '(other)' or exists (
          select from convsync.schema_drift o where o.page_id = r.page_id and o.source = r.source and o.name = r.name) as known,
        (select count(*) from convsync.schema_drift o
          where o.page_id = r.page_id and o.source = r.source and o.name <> '(other)') as known_names
      from (
        select e.value ->> 'page_id' as page_id, e.value ->> 'source' as source, left(e.value ->> 'name', 200) as name,
          (e.value ->> 'occurrences')::bigint as occurrences
        from jsonb_array_elements(p_drift) e
      ) r
      group by r.page_id, r.source, r.name
    ) n
  ) t
  group by 1, 2, 3
  order by 1, 2, 3
  on conflict on constraint schema_drift_pkey do update
  set last_seen_at = excluded.last_seen_at, occurrences = d.occurrences + excluded.occurrences;
  get diagnostics v_names = row_count;
  return v_names;
end
$$;
comment on function convsync_api.record_schema_drift(jsonb) is
$c$Counts fields and kinds of event that the service does not know. p_drift: an array of page_id (empty where it is unknown), source
(webhook or sync), name, occurrences; counts are added to what is there. Of a Page and source 1000 names are kept, whatever comes
beside them is counted as (other); a name is cut after 200 characters. Returns how many names were counted. Told again after an answer that got
lost, it counts again. Errors: ZC003.$c$;

create or replace function convsync_api.list_schema_drift(p_pages text[] default null, p_limit integer default 100)
returns setof jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'page_id', nullif(d.page_id, ''),
    'source', d.source,
    'name', d.name,
    'first_seen_at', d.first_seen_at,
    'last_seen_at', d.last_seen_at,
    'occurrences', d.occurrences
  )
  from convsync.schema_drift d
  where p_pages is null or d.page_id = any (p_pages)
  order by d.first_seen_at desc, d.page_id, d.source, d.name
  limit least(greatest(coalesce(p_limit, 100), 1), 1000);
$$;
comment on function convsync_api.list_schema_drift(text[], integer) is
$c$Fields and kinds of event that this release does not know, as JSON, the newest name first: page_id (null where it is unknown), source,
name, first_seen_at, last_seen_at, occurrences. p_pages: only those of these Pages; null: all. p_limit 1 to 1000.$c$;

create or replace function convsync_api.expire_schema_drift(p_days integer)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := convsync_api._expired_before(p_days, 11);
  v_gone bigint;
begin
  delete from convsync.schema_drift d
  where d.last_seen_at < v_before;
  get diagnostics v_gone = row_count;
  return v_gone;
end
$$;
comment on function convsync_api.expire_schema_drift(integer) is
  'Forgets names that were last seen more than p_days ago; returns how many. Errors: ZC003.';
