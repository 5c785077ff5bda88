-- What is gone at Graph, and how a sync is sure of it.
--
-- A message: a page of a thread, newest first, lists everything between its newest and its oldest second. A message that the
-- mirror has there and the page has not is absent: taken back or removed, and no webhook told it. The page's oldest second may
-- go on on the next page, so it is judged there, with what was listed of it on both. What cannot be relied on is not judged:
-- a page that is not in order, one with an item without an id, whatever came here after the call was granted, the last minutes
-- of the thread, and what is older than a list whose end does not bear out the count that Graph reports.
--
-- A conversation: one that a walk of the whole list did not show may be gone. It is proposed, and no more than that. Too many
-- proposals are no credible news: then nothing is done and the run says so. Else each is read by itself. Graph says of what it
-- will not show that it does not exist; so that is believed only if, afterwards and by the same process with the same token, a
-- conversation that is known to be there can be read (the control). One that answers is hidden, not gone.

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
  -- The Page is a column all the way: of a constant the planner may know that it has no messages, from before it had any.
  select array_agg(t.thread_id) into v_known
  from jsonb_to_recordset(p_threads) t (thread_id text, sender_id text)
  where exists (
      select from convsync.messenger_conversations c where c.page_id = p_page_id and c.thread_id = t.thread_id)
    or exists (
      select from convsync.messenger_conversations c where c.page_id = p_page_id and c.sender_id = t.sender_id and c.thread_id is null);
  if v_known is null then
    return jsonb '{"absences": [], "ranges": []}';
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
      select p_page_id as page_id, t.thread_id, a.sender_id, l.listed_count, r.*
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
        select o.page_id, o.conversation_id, o.sender_id, o.in_several_threads
        from convsync.messenger_conversations o
        where o.page_id = l.page_id and o.thread_id = l.thread_id
        union all
        select o.page_id, o.conversation_id, o.sender_id, o.in_several_threads
        from convsync.messenger_conversations o
        where o.page_id = l.page_id and o.thread_id is null and o.sender_id = l.sender_id
      ) c
      join convsync.contact_interaction_events e on e.page_id = c.page_id and e.conversation_id = c.conversation_id
      where not c.in_several_threads and e.in_thread and e.deleted_at is null and e.received_at < p_granted_at
        and e.event_timestamp >= l.after_at + interval '1 second' and e.event_timestamp < l.upto_at + interval '1 second'
        -- What only a program told cannot be missed there. Another database had it from Graph.
        and (e.graph_at is not null or e.source in ('webhook', 'import'))
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

create or replace function convsync_api._propose_deletions(p_page_id text, p_run_id bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_started_at timestamptz;
  v_threads text[];
  v_known integer;
  v_held_back boolean;
begin
  -- Called when the list of a run has been walked to its end, and by the retry of one that held them back. What an incremental
  -- walk did not show says nothing. The allowance is used up when the run ends: under the locks of conversations no Page is written.
  select r.started_at into v_started_at
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.run_id = p_run_id and r.mode in ('full', 'reconcile')
    and exists (
      select from convsync.sync_cursors s
      where s.page_id = r.page_id and s.run_id = r.run_id and s.kind = 'list' and s.completed);
  if not found then
    return;
  end if;
  select count(distinct c.thread_id),
    array_agg(distinct c.thread_id) filter (where coalesce(p.listed_at < v_started_at, true)
      and coalesce(p.hidden_until <= v_now, true)
      and c.created_at < v_started_at
      -- Heard of since then: it is there, wherever in the list.
      and coalesce(greatest(c.thread_id_at, c.updated_time_at, c.last_message_time) < v_started_at, true))
  into v_known, v_threads
  from (
    select o.page_id, o.thread_id, o.created_at, o.thread_id_at, o.updated_time_at, o.last_message_time
    from convsync.messenger_conversations o
    where o.page_id = p_page_id and o.thread_id is not null and o.deleted_at is null
    offset 0 -- or the argument takes the column's place below: decision 0007
  ) c
  left join convsync.thread_proofs p on p.page_id = c.page_id and p.thread_id = c.thread_id;
  select cardinality(v_threads) > greatest(20, v_known / 10, g.deletions_allowed) into strict v_held_back
  from convsync.pages g
  where g.page_id = p_page_id;
  update convsync.sync_runs r
  set deletions_proposed = coalesce(cardinality(v_threads), 0), deletions_held_back = coalesce(v_held_back, false)
  where r.page_id = p_page_id and r.run_id = p_run_id;
  if v_threads is not null and not v_held_back then
    insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, updated_at)
    select p_page_id, p_run_id, 'confirm', t.thread_id, v_now
    from unnest(v_threads) t (thread_id)
    order by t.thread_id
    on conflict on constraint sync_cursors_pkey do nothing;
  end if;
end
$$;

create or replace function convsync_api.allow_deletions(p_page_id text, p_conversations integer)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_conversations is null or p_conversations < 1 then
    raise exception 'conversations must be 1 or more' using errcode = 'ZC003', hint = 'p_conversations';
  end if;
  update convsync.pages g
  set deletions_allowed = p_conversations
  where g.page_id = p_page_id and g.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
end
$$;
comment on function convsync_api.allow_deletions(text, integer) is
$c$A person has seen that so many conversations of a Page are really gone: the next full or reconciling sync asks for up to
p_conversations that the list does not show, one by one, where it would have held them back (reason deletion_breaker). Holds
for that one sync. Errors: ZC001, ZC003.$c$;

create or replace function convsync_api.allow_deletions_of_run(p_page_id text, p_run_id bigint)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run convsync.sync_runs;
  v_later bigint;
begin
  select r.* into v_run
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.run_id = p_run_id
  for no key update;
  if not found then
    raise exception 'Page % has no run %', p_page_id, p_run_id using errcode = 'ZC001';
  end if;
  if v_run.status <> 'partial' or not v_run.deletions_held_back then
    raise exception 'run % is %: it holds no deletions back', p_run_id, v_run.status using errcode = 'ZC003', hint = 'run_id';
  end if;
  -- What it found has been looked at, not what is missing by now: a later walk saw that better.
  select max(r.run_id) into v_later
  from convsync.sync_runs r
  where r.page_id = p_page_id and r.mode in ('full', 'reconcile') and r.list_walked and r.run_id > p_run_id;
  if v_later is not null then
    raise exception 'run % has walked the list of Page % since: look at what that one says', v_later, p_page_id
      using errcode = 'ZC003', hint = 'run_id';
  end if;
  perform convsync_api.allow_deletions(p_page_id, v_run.deletions_proposed);
  return v_run.deletions_proposed;
end
$$;
comment on function convsync_api.allow_deletions_of_run(text, bigint) is
$c$A person has seen that the conversations that a run holds back (reason deletion_breaker) are really gone: allow_deletions for as
many as it proposed. retry_sync of that run asks for them, one by one, or the next full or reconciling sync does. Returns how many.
Errors: ZC001 no such Page or run, ZC003 (hint: run_id) it holds none back, or the list was walked again since.$c$;

create or replace function convsync_api._call_for_control(p_page_id text, p_run_id bigint)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_unproven integer;
  v_unread integer;
  v_thread text;
begin
  -- After ten that are said to be gone, and when no more is to be asked.
  select count(s.gone_at), count(*) - count(s.gone_at), min(s.thread_id) filter (where s.gone_at is not null),
    greatest(v_now, max(s.updated_at))
  into v_unproven, v_unread, v_thread, v_now
  from convsync.sync_cursors s
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'confirm' and not s.completed and not s.failed;
  if v_unproven = 0 or (v_unproven < 10 and v_unread > 0) or exists (
    select from convsync.sync_cursors s
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'control' and not s.completed and not s.failed
  ) then
    return;
  end if;
  insert into convsync.sync_cursors as s (page_id, run_id, kind, thread_id, walk_started_at, updated_at)
  select p_page_id, p_run_id, 'control', p.thread_id, v_now, v_now
  from convsync.sync_runs r
  join convsync.thread_proofs p on p.page_id = r.page_id and p.listed_at >= r.started_at
  where r.page_id = p_page_id and r.run_id = p_run_id
    and exists (
      select from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.thread_id = p.thread_id and c.deleted_at is null)
    -- One that was gone itself when it was asked for is no control.
    and not exists (
      select from convsync.sync_cursors t
      where t.page_id = p_page_id and t.run_id = p_run_id and t.kind = 'control' and t.thread_id = p.thread_id and t.gone_at is not null)
  order by p.listed_at desc, p.thread_id
  limit 1
  on conflict on constraint sync_cursors_pkey do update
  set completed = false, failed = false, walk_started_at = v_now, updated_at = v_now;
  if not found then
    perform convsync_api._fail_confirmations(p_page_id, p_run_id, 'confirm', v_thread,
      '{"class": "no_control", "message": "no conversation was listed whose read could show that the others are gone"}');
  end if;
end
$$;

create or replace function convsync_api._doubt_confirmations(p_page_id text, p_run_id bigint)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- None of them is believed any more. A retry of the run asks again.
  update convsync.sync_cursors s
  set failed = true, gone_at = null, gone_seen = null, updated_at = convsync_api._now()
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind in ('confirm', 'control') and not s.completed;
$$;

create or replace function convsync_api._fail_confirmations(
  p_page_id text, p_run_id bigint, p_kind text, p_thread_id text, p_error jsonb
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
begin
  perform convsync_api._doubt_confirmations(p_page_id, p_run_id);
  insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress, failed_at)
  select p_page_id, p_run_id, coalesce(max(b.batch), 0) + 1, p_kind, p_thread_id, 'failed', 1, p_error,
    (select r.progress from convsync.sync_runs r where r.page_id = p_page_id and r.run_id = p_run_id), v_now
  from convsync.sync_batches b
  where b.page_id = p_page_id and b.run_id = p_run_id
  having not coalesce(bool_or(b.kind = p_kind and b.thread_id = p_thread_id and b.status = 'failed'), false);
end
$$;

create or replace function convsync_api._after_failed_batch(p_page_id text, p_run_id bigint, p_kind text, p_error jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_kind = 'control' or (p_kind = 'confirm' and p_error ->> 'class' = 'permission') then
    perform convsync_api._doubt_confirmations(p_page_id, p_run_id);
  elsif p_kind = 'confirm' then
    perform convsync_api._call_for_control(p_page_id, p_run_id);
  end if;
end
$$;

create or replace function convsync_api.apply_confirmation(
  p_page_id text, p_run_id bigint, p_fence bigint, p_kind text, p_thread_id text, p_observed_at timestamptz, p_found boolean,
  p_updated_time timestamptz default null, p_message_count integer default null, p_token integer default 0,
  p_error jsonb default null, p_lease_seconds numeric default 15
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set lock_timeout = '5s'
as $$
declare
  v_now timestamptz;
  v_seen text := p_fence || '.' || p_token;
  v_cursor convsync.sync_cursors;
  v_gone text[] := array[]::text[];
  v_facts jsonb;
  v_changed integer := 0;
  v_doubted boolean;
begin
  perform convsync_api._hold_run(p_page_id, p_run_id, p_fence);
  v_now := convsync_api._now();
  if p_kind is null or p_kind not in ('confirm', 'control') then
    raise exception 'kind must be confirm or control' using errcode = 'ZC003', hint = 'p_kind';
  end if;
  if p_observed_at is null or not isfinite(p_observed_at) then
    raise exception 'the instant the call was granted is missing' using errcode = 'ZC003', hint = 'p_observed_at';
  end if;
  select s.* into v_cursor
  from convsync.sync_cursors s
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = p_kind and s.thread_id = p_thread_id;
  if not found or v_cursor.completed or v_cursor.failed or (p_kind = 'confirm' and v_cursor.gone_seen = v_seen) then
    return false;
  end if;

  if p_kind = 'control' and p_found then
    -- Only what was told before this control was called for, in answer to the same token: a control that was under way at the
    -- same time may have been answered before.
    v_gone := array(
      select s.thread_id
      from convsync.sync_cursors s
      where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'confirm' and not s.completed and not s.failed
        and s.gone_seen = v_seen and s.updated_at <= v_cursor.walk_started_at);
    v_facts := (
      select jsonb_agg(jsonb_build_object('kind', 'gone', 'page_id', p_page_id, 'sender_id', c.sender_id, 'observed_at', s.gone_at))
      from convsync.messenger_conversations c
      join convsync.sync_cursors s
        on s.page_id = c.page_id and s.run_id = p_run_id and s.kind = 'confirm' and s.thread_id = c.thread_id
      where c.page_id = p_page_id and c.thread_id = any (v_gone) and c.deleted_at is null);
  elsif p_kind = 'confirm' and p_found then
    v_facts := (
      select jsonb_agg(jsonb_build_object('kind', 'thread', 'page_id', p_page_id, 'sender_id', c.sender_id, 'thread_id', p_thread_id,
        'observed_at', p_observed_at, 'fields',
        jsonb_strip_nulls(jsonb_build_object('updated_time', p_updated_time, 'reported_count', p_message_count))))
      from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.thread_id = p_thread_id);
  end if;
  if v_facts is not null then
    select count(*) filter (where i.changed) into v_changed
    from convsync_api._ingest(v_facts, 'sync') i
    having not coalesce(bool_or(i.created), false);
    if not found then
      raise exception 'a contact was erased meanwhile, try again' using errcode = '40001';
    end if;
  end if;

  -- What is written down of threads comes after the locks of their conversations, as everywhere.
  if p_kind = 'control' and p_found then
    update convsync.sync_cursors s
    set gone_at = null, gone_seen = null, updated_at = v_now
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'confirm' and not s.completed and not s.failed
      and s.gone_seen <> v_seen;
    -- Those before it that could not be read make no row with those after it.
    update convsync.sync_cursors s
    set counted = true
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'control' and s.gone_at is not null and not s.counted;
  elsif p_kind = 'confirm' and p_found then
    -- There, and not in the list. It is read now, since no list will ask for it, and then left alone until that is due again.
    insert into convsync.thread_proofs as p (page_id, thread_id, hidden_until)
    select p_page_id, p_thread_id, v_now + interval '30 days'
    -- Not of a person who was erased while it was asked for.
    where exists (select from convsync.messenger_conversations c where c.page_id = p_page_id and c.thread_id = p_thread_id)
    on conflict on constraint thread_proofs_pkey do update
    set hidden_until = excluded.hidden_until;
    insert into convsync.sync_cursors
      (page_id, run_id, kind, thread_id, sender_id, updated_time, reported_count, listed_at, updated_at)
    select p_page_id, p_run_id, 'thread', p_thread_id, min(c.sender_id), p_updated_time, p_message_count, p_observed_at, v_now
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.thread_id = p_thread_id
    having count(*) > 0
    on conflict on constraint sync_cursors_pkey do nothing;
  end if;

  -- Three in a row that were listed a moment ago and cannot be read: it is not the conversations that are gone.
  v_doubted := p_kind = 'control' and not p_found and (
    select count(*) >= 2 from convsync.sync_cursors s
    where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'control' and s.gone_at is not null and not s.counted);
  update convsync.sync_cursors s
  set completed = p_found or (p_kind = 'control' and not v_doubted),
    gone_at = case when not p_found then p_observed_at end, gone_seen = case when not p_found then v_seen end, updated_at = v_now
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = p_kind and s.thread_id = p_thread_id;
  update convsync.sync_cursors s
  set completed = true, updated_at = v_now
  where s.page_id = p_page_id and s.run_id = p_run_id and s.kind = 'confirm' and s.thread_id = any (v_gone);
  if v_doubted then
    perform convsync_api._fail_confirmations(p_page_id, p_run_id, 'control', p_thread_id, coalesce(p_error, '{"class": "gone"}'));
  else
    perform convsync_api._call_for_control(p_page_id, p_run_id);
  end if;
  update convsync.sync_runs r
  set conversations_changed = r.conversations_changed + v_changed,
    deletions_confirmed = r.deletions_confirmed + cardinality(v_gone),
    pages_applied = r.pages_applied + 1,
    progress = r.progress + 1,
    lease_expires_at = greatest(r.lease_expires_at, v_now + p_lease_seconds * interval '1 second'),
    updated_at = v_now
  where r.page_id = p_page_id and r.run_id = p_run_id;
  return true;
end
$$;
comment on function convsync_api.apply_confirmation(text, bigint, bigint, text, text, timestamptz, boolean, timestamptz, integer, integer, jsonb, numeric) is
$c$Applies the direct read of a thread that next_sync_work asked for: of one that the list did not show (p_kind confirm) or of one
that it did (control). p_found: whether Graph has it (then p_updated_time and p_message_count as it says), or says that it does not
exist (p_error: what it said). p_observed_at: when the call was granted. p_token: a number that changes with the token in use. What
does not exist is deleted once a control of the same process and token succeeds that was called for afterwards; if the control
fails, nothing is. False: that read was applied before. Errors: ZC003, ZC004, and those of ingest.$c$;
