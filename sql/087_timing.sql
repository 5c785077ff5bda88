-- Contact timing: when a person (or everybody on a Page) writes, by weekday and hour of a zone.

create or replace function convsync_api.contact_timing(p_page_id text, p_conversation_id bigint default null, p_timezone text default null)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_timezone text;
  v_timing jsonb;
begin
  if p_conversation_id is not null then
    -- In a statement of its own: it also refuses one that is not there, whatever zone was asked for.
    v_timezone := convsync_api.get_conversation(p_page_id, p_conversation_id) ->> 'timezone';
  else
    perform convsync_api._check_page(p_page_id);
  end if;
  if p_timezone is not null then
    if not convsync_api._is_timezone(p_timezone) then
      raise exception 'there is no time zone %', p_timezone using errcode = 'ZC003', hint = 'tz';
    end if;
    v_timezone := p_timezone;
  elsif v_timezone is null or not convsync_api._is_timezone(v_timezone) then
    -- A Page has one grid, so one clock: hours of many zones in one grid are nobody's hours. And a server that was moved
    -- may not know every name that it knew when somebody gave it.
    v_timezone := 'UTC';
  end if;
  with counted as (
    -- Each message at the local time of its own instant: daylight saving is PostgreSQL's business.
    select extract(isodow from e.event_timestamp at time zone v_timezone)::integer as weekday,
      extract(hour from e.event_timestamp at time zone v_timezone)::integer as hour,
      count(*) as messages, max(e.event_timestamp) as latest
    from convsync.contact_interaction_events e
    where e.page_id = p_page_id and (p_conversation_id is null or e.conversation_id = p_conversation_id)
      and e.direction = 'in' and e.in_thread and e.deleted_at is null
    group by 1, 2
  ), grid as (
    select d.weekday, jsonb_agg(coalesce(c.messages, 0) order by h.hour) as hours
    from generate_series(1, 7) d (weekday)
    cross join generate_series(0, 23) h (hour)
    left join counted c on c.weekday = d.weekday and c.hour = h.hour
    group by d.weekday
  )
  select jsonb_build_object(
    'page_id', p_page_id,
    'conversation_id', p_conversation_id::text,
    'timezone', v_timezone,
    'messages', (select coalesce(sum(c.messages), 0) from counted c),
    'counts', (select jsonb_agg(g.hours order by g.weekday) from grid g),
    'best_hours', coalesce((
      select jsonb_agg(jsonb_build_object('weekday', b.weekday, 'hour', b.hour, 'messages', b.messages)
        order by b.messages desc, b.latest desc, b.weekday, b.hour)
      from (select c.* from counted c order by c.messages desc, c.latest desc, c.weekday, c.hour limit 5) b
    ), '[]')
  ) into strict v_timing;
  return v_timing;
end
$$;
comment on function convsync_api.contact_timing(text, bigint, text) is
$c$Inbound messages by weekday and hour, as JSON: counts is 7 rows (Monday first) of 24 local hours. timezone says of
which zone: p_timezone (an IANA name), else the contact's own (update_conversation), else UTC; of a whole Page p_timezone, else UTC.
best_hours the five busiest with weekday 1 (Monday) to 7. p_conversation_id null: the whole Page. Deleted messages do not count.
Errors: ZC001, ZC003, ZC006.$c$;
