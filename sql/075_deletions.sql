-- What is gone at Graph, and how a sync is sure of it.
--
-- A message: a page of a thread, newest first, lists everything between its newest and its oldest second. A message that the
-- mirror has there and the page has not is absent: taken back or removed, and no webhook told it. The page's oldest second may
-- go on on the next page, so it is judged there, with what was listed of it on both. What cannot be relied on is not judged:
-- a page that is not in order, one with an item without an id, whatever came here after the call was granted, the last minutes
-- of the thread, and what is older than a list whose end does not bear out the count that Graph reports.

create or replace function convsync_api._listed_range(
  p_ids text[], p_times timestamptz[], p_first boolean, p_last boolean, p_granted_at timestamptz,
  inout boundary_at timestamptz, inout boundary_ids text[], out after_at timestamptz, out upto_at timestamptz, out listed text[]
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := case when not p_first then boundary_at end;
  v_before_ids text[] := case when not p_first then boundary_ids end;
  v_newest timestamptz;
  v_oldest timestamptz;
  v_in_order boolean;
begin
  -- From a page of a thread (ids and times as they were listed; a time is null where it could not be read) to the seconds of
  -- which it tells everything: those after after_at, up to and with upto_at; in these what is not in listed is not there.
  -- boundary: the oldest second that the pages before came to and what they listed of it; then the same, this page included.
  select max(t.at), min(t.at), coalesce(bool_and(t.at <= t.least), true) and coalesce(max(t.at) <= v_before, true)
  into v_newest, v_oldest, v_in_order
  from (
    select s.at, min(s.at) over (order by s.place rows between unbounded preceding and 1 preceding) as least
    from (select date_trunc('second', i.at) as at, i.place from unnest(p_times) with ordinality i (at, place) where i.at is not null) s
  ) t;
  boundary_at := null;
  boundary_ids := null;
  if not v_in_order then
    return;
  end if;
  if v_oldest is null then
    boundary_at := v_before;
    boundary_ids := v_before_ids || p_ids;
  else
    boundary_at := v_oldest;
    boundary_ids := case when v_oldest = v_before then v_before_ids else '{}' end || array(
      select i.id
      from unnest(p_ids, p_times) with ordinality i (id, at, place)
      where i.at is null or date_trunc('second', i.at) = v_oldest
      order by i.place);
  end if;
  after_at := case when p_last then '-infinity' else v_oldest end;
  upto_at := case
    -- A message is in a list a little later than it is sent, and clocks differ.
    when p_first then date_trunc('second', p_granted_at - convsync_api._overlap())
    when v_before is not null then v_before
    -- Nothing is known of the page before this one, so its last second may have begun there.
    else v_newest - interval '1 second' end;
  listed := p_ids || v_before_ids;
end
$$;

create or replace function convsync_api._judge_listing(p_page_id text, p_granted_at timestamptz, p_facts jsonb, p_threads jsonb)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_known text[];
begin
  -- What one answer lists of threads, against the mirror as it is before that answer: the facts of those that are absent, and
  -- for each thread how far the read has come ({thread_id, boundary_at, boundary_ids, listed_count}). p_threads has of each
  -- thread_id, sender_id, message_count, read, cursor (null on its first page), boundary_at, boundary_ids and listed_count of the
  -- pages before, unreadable_ids (of items that have no more than that), nameless (items without an id).
  select array_agg(t.thread_id) into v_known
  from jsonb_to_recordset(p_threads) t (thread_id text, sender_id text)
  where exists (
      select from convsync.messenger_conversations c where c.page_id = p_page_id and c.thread_id = t.thread_id)
    or exists (
      select from convsync.messenger_conversations c where c.page_id = p_page_id and c.sender_id = t.sender_id and c.thread_id is null);
  if v_known is null then
    return '{"absences": [], "ranges": []}';
  end if;
  return (
    with told as materialized (
      select f.value ->> 'thread_id' as thread_id, array_agg(f.value ->> 'message_id' order by f.place) as ids,
        array_agg((f.value ->> 'at')::timestamptz order by f.place) as times
      from jsonb_array_elements(p_facts) with ordinality f (value, place)
      where f.value ->> 'kind' = 'message' and f.value ->> 'thread_id' = any (v_known)
      group by 1
    ), alone as materialized (
      -- A person's messages are of this thread for sure, though nobody has said so yet, if it is theirs alone.
      select f.value ->> 'thread_id' as thread_id, min(f.value ->> 'sender_id') as sender_id
      from jsonb_array_elements(p_facts) f
      where f.value ->> 'kind' = 'thread' and f.value ->> 'thread_id' = any (v_known)
      group by 1
      having count(distinct f.value ->> 'sender_id') = 1
    ), listing as materialized (
      select t.thread_id, a.sender_id, l.listed_count, r.*
      from jsonb_to_recordset(p_threads) t (thread_id text, message_count integer, read text, cursor text,
        boundary_at timestamptz, boundary_ids text[], listed_count integer, unreadable_ids text[], nameless integer)
      left join alone a on a.thread_id = t.thread_id
      left join told o on o.thread_id = t.thread_id
      cross join lateral (
        select coalesce(o.ids, '{}') || coalesce(t.unreadable_ids, '{}') as ids,
          coalesce(o.times, '{}') || array_fill(null::timestamptz, array[coalesce(cardinality(t.unreadable_ids), 0)]) as times
      ) i
      cross join lateral (
        select case when t.cursor is null then 0 else coalesce(t.listed_count, 0) end + cardinality(i.ids) as listed_count
      ) l
      cross join lateral convsync_api._listed_range(
        i.ids, i.times, t.cursor is null, t.read = 'complete' and l.listed_count >= t.message_count, p_granted_at,
        t.boundary_at, t.boundary_ids) r
      where t.thread_id = any (v_known) and coalesce(t.nameless, 0) = 0 and t.read <> 'unread'
    ), absent as (
      select c.sender_id, e.message_id
      from listing l
      cross join lateral (
        select o.conversation_id, o.sender_id, o.in_several_threads
        from convsync.messenger_conversations o
        where o.page_id = p_page_id and o.thread_id = l.thread_id
        union all
        select o.conversation_id, o.sender_id, o.in_several_threads
        from convsync.messenger_conversations o
        where o.page_id = p_page_id and o.thread_id is null and o.sender_id = l.sender_id
      ) c
      join convsync.contact_interaction_events e on e.page_id = p_page_id and e.conversation_id = c.conversation_id
      where not c.in_several_threads and e.in_thread and e.deleted_at is null and e.received_at < p_granted_at
        and e.event_timestamp >= l.after_at + interval '1 second' and e.event_timestamp < l.upto_at + interval '1 second'
        -- What neither Graph nor a webhook ever told cannot be missed there.
        and (e.graph_at is not null or e.source = 'webhook')
        and e.message_id <> all (l.listed)
    )
    select jsonb_build_object(
      'absences', coalesce((
        select jsonb_agg(jsonb_build_object('kind', 'absence', 'page_id', p_page_id, 'sender_id', a.sender_id,
          'message_id', a.message_id, 'observed_at', p_granted_at) order by a.message_id)
        from absent a), '[]'),
      'ranges', coalesce((
        select jsonb_agg(jsonb_build_object('thread_id', l.thread_id, 'boundary_at', l.boundary_at,
          'boundary_ids', l.boundary_ids, 'listed_count', l.listed_count))
        from listing l), '[]'))
  );
end
$$;

create or replace function convsync_api._judge_page(
  p_cursor convsync.sync_cursors, p_next_cursor text, p_granted_at timestamptz, p_facts jsonb, p_threads jsonb
)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- What _judge_listing says of a page that a run has read, and of which threads it was.
  select jsonb_build_object('threads', t.threads)
    || convsync_api._judge_listing(p_cursor.page_id, p_granted_at, p_facts, t.threads)
  from (
    select case when p_cursor.kind <> 'thread' then p_threads
      else jsonb_build_array(coalesce(p_threads -> 0, '{}') || jsonb_build_object(
        'thread_id', p_cursor.thread_id, 'sender_id', p_cursor.sender_id, 'message_count', p_cursor.reported_count,
        'read', case when p_next_cursor is null then 'complete' else 'more' end, 'cursor', p_cursor.last_cursor,
        'next_cursor', p_next_cursor,
        'boundary_at', p_cursor.boundary_at, 'boundary_ids', p_cursor.boundary_ids, 'listed_count', p_cursor.listed_count)) end as threads
  ) t;
$$;

create or replace function convsync_api._check_absences(p_page_id text, p_judged jsonb)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  if exists (
    select from jsonb_to_recordset(p_judged -> 'absences') a (message_id text)
    where not exists (
      select from convsync.contact_interaction_events e where e.page_id = p_page_id and e.message_id = a.message_id)
  ) then
    -- Erased or purged between the look and the lock: nothing must be written down of it.
    raise exception 'a message was erased meanwhile, try again' using errcode = '40001';
  end if;
end
$$;

create or replace function convsync_api._keep_ranges(p_page_id text, p_run_id bigint, p_judged jsonb)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Of the place where the read of the thread goes on: one that has gone on from there meanwhile is not set back.
  update convsync.sync_cursors s
  set boundary_at = r.boundary_at, boundary_ids = r.boundary_ids, listed_count = coalesce(r.listed_count, 0)
  from jsonb_to_recordset(p_judged -> 'threads') t (thread_id text, next_cursor text)
  left join jsonb_to_recordset(p_judged -> 'ranges') r (thread_id text, boundary_at timestamptz, boundary_ids text[], listed_count integer)
    on r.thread_id = t.thread_id
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'thread' and s.thread_id = t.thread_id
    and s.last_cursor = t.next_cursor and not s.completed;
$$;
