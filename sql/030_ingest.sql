-- The one way in. A webhook delivery and a Graph read both become facts, and all facts come through _ingest.
--
-- The order of work is the order of locks, the same in every transaction:
--   1. Pages that are new, in key order
--   2. conversations that are new, in key order; then every touched one is locked, in key order. A person who was erased and of
--      whom something of before is refused is touched too: their tombstone and what is known of their messages have no other lock
--   3. events by message_id, under the lock of their conversation
--   4. the digests of erased messages, what waits for a message, the change feed, the dead letters; last the refusals' counters,
--      where nobody waits
-- Locking and reading are separate statements: in read committed each statement sees what committed before it
-- began, so what is read after the lock is what the lock protects. docs/decisions/ tells why that is enough.
--
-- A call plans nothing: its statements keep their plans, and those are right for one fact and for thousands
-- (docs/decisions/0007). So a function here does one of two things, and its settings leave the planner no other way:
-- it joins what was told with what was told (hash joins), or it looks up in a table each thing that was told (nested
-- loops over a key; no hash join, no sequential scan).

create or replace function convsync_api._know_tables()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_table text;
begin
  -- Every index begins with page_id. In a small table that nobody has analyzed all of them look alike to the planner, and
  -- the plan that is kept may read a whole Page for each key. Autovacuum comes within minutes; the first thousand
  -- conversations come within seconds. So a small table that has grown fourfold is analyzed here, and its plans made anew.
  for v_table in
    select c.relname
    from pg_class c
    where c.oid in ('convsync.messenger_conversations'::regclass, 'convsync.contact_interaction_events'::regclass,
        'convsync.pending_amendments'::regclass)
      and pg_relation_size(c.oid) between 32768 * greatest(c.relpages, 0.5) and 2097152
  loop
    if pg_try_advisory_xact_lock(1668183670, 4) then
      execute format('analyze (skip_locked) convsync.%I', v_table);
    end if;
  end loop;
end
$$;

create or replace function convsync_api._number_copies(p_facts convsync.fact[])
returns convsync.fact[]
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- round numbers the copies of one thing: copies are merged one after the other, which the rules allow in any order.
  select array_agg(row(
      f.kind, f.page_id, f.sender_id, f.message_id, f.direction, f.at, f.text, f.event_type, f.metadata, f.observed_at,
      f.in_thread, f.num_edit, f.actor_id, f.action, f.reaction, f.emoji, f.what, f.thread_id, f.fields, f.reason, f.raw,
      f.n)::convsync.fact order by f.ordinality)
  from (
    select a.*, case when a.kind in ('watermark', 'gone', 'dead_letter') then 1
        else row_number() over (partition by a.kind, a.page_id, a.message_id, case when a.kind = 'thread' then a.sender_id end
          order by a.ordinality) end as n
    from unnest(p_facts) with ordinality a
  ) f;
$$;

create or replace function convsync_api._parse_facts(p_facts jsonb)
returns convsync.fact[]
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_facts convsync.fact[];
  v_index bigint;
  v_field text;
begin
  if p_facts is null or jsonb_typeof(p_facts) <> 'array' then
    raise exception 'facts must be an array' using errcode = 'ZC003', hint = 'facts';
  end if;

  select array_agg(row(
      r.kind, r.page_id, r.sender_id, r.message_id, r.direction,
      case when r.kind in ('absence', 'gone') then r.observed_at else r.at end, r.text,
      case r.kind when 'message' then coalesce(r.event_type, 'message') else r.event_type end, coalesce(r.metadata, '{}'), r.observed_at,
      coalesce(r.in_thread, true), r.num_edit, r.actor_id, r.action, r.reaction, r.emoji, r.what, r.thread_id, r.fields,
      r.reason, r.raw, 1)::convsync.fact)
  into v_facts
  from jsonb_populate_recordset(null::convsync.fact, p_facts) r;

  select w.index, w.field into v_index, v_field
  from (
    select f.ordinality - 1 as index,
      case
        when f.kind is null
          or f.kind not in ('message', 'edit', 'reaction', 'unsend', 'absence', 'watermark', 'thread', 'gone', 'page_event', 'dead_letter') then 'kind'
        when f.page_id is null or (f.page_id = '' and f.kind <> 'dead_letter') then 'page_id'
        when f.kind = 'dead_letter' then case when f.reason is null then 'reason' when f.raw is null then 'raw' end
        when f.kind <> 'page_event' and (f.sender_id is null or f.sender_id in ('', f.page_id) or f.sender_id like 'erased:%')
          then 'sender_id'
        when f.kind in ('message', 'edit', 'reaction', 'unsend', 'absence', 'page_event') and coalesce(f.message_id, '') = ''
          then 'message_id'
        when f.kind in ('thread', 'absence', 'gone') and (f.observed_at is null or not isfinite(f.observed_at)) then 'observed_at'
        when f.kind <> 'thread' and (f.at is null or not isfinite(f.at)) then 'at'
        when f.kind = 'thread' and (f.thread_id = '') then 'thread_id'
        when f.kind = 'thread' and jsonb_typeof(coalesce(f.fields, '{}')) <> 'object' then 'fields'
        when f.kind = 'message' and (f.direction is null or f.direction not in ('in', 'out')) then 'direction'
        when f.kind in ('message', 'page_event') and coalesce(f.event_type, '') = '' then 'event_type'
        when f.kind in ('message', 'page_event') and jsonb_typeof(f.metadata) <> 'object' then 'metadata'
        when f.kind = 'edit' and f.num_edit is null then 'num_edit'
        when f.kind = 'edit' and f.text is null then 'text'
        when f.kind = 'reaction' and coalesce(f.actor_id, '') = '' then 'actor_id'
        when f.kind = 'reaction' and (f.action is null or f.action not in ('react', 'unreact')) then 'action'
        when f.kind = 'watermark' and (f.what is null or f.what not in ('read', 'delivered')) then 'what'
      end as field
    from unnest(v_facts) with ordinality f
  ) w
  where w.field is not null
  limit 1;
  if found then
    raise exception 'facts[%].% is missing or wrong', v_index, v_field
      using errcode = 'ZC003', hint = format('facts[%s].%s', v_index, v_field);
  end if;

  if exists (
    select
    from unnest(v_facts) f
    where f.kind not in ('watermark', 'gone', 'dead_letter')
    group by f.kind, f.page_id, f.message_id, case when f.kind = 'thread' then f.sender_id end
    having count(*) > 1
  ) then
    return convsync_api._number_copies(v_facts);
  end if;
  return v_facts;
end
$$;

create or replace function convsync_api._lock_conversations(p_facts convsync.fact[])
returns convsync.conversation_key[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_keys convsync.conversation_key[];
  v_wanted bigint;
begin
  -- A Page met for the first time through its webhook; its operator may add name and token later.
  insert into convsync.pages (page_id)
  select k.page_id
  from (select distinct f.page_id from unnest(p_facts) f where f.kind <> 'dead_letter') k
  where not exists (select from convsync.pages p where p.page_id = k.page_id)
  order by k.page_id collate "C"
  on conflict on constraint pages_pkey do nothing;

  select array_agg(row(k.page_id, k.sender_id, null, false)::convsync.conversation_key order by k.page_id collate "C", k.sender_id collate "C")
  into v_keys
  from (select distinct f.page_id, f.sender_id from unnest(p_facts) f where f.kind not in ('page_event', 'dead_letter')) k;
  if v_keys is null then
    return '{}'::convsync.conversation_key[];
  end if;
  v_wanted := cardinality(v_keys);

  insert into convsync.messenger_conversations as c (page_id, sender_id)
  select k.page_id, k.sender_id
  from unnest(v_keys) k
  where not exists (
    select from convsync.messenger_conversations o where o.page_id = k.page_id and o.sender_id = k.sender_id
  )
  order by k.page_id collate "C", k.sender_id collate "C"
  on conflict on constraint messenger_conversations_one_per_sender do nothing;

  -- Without a version it is of this transaction: nobody commits one that was not told of.
  select array_agg(row(l.page_id, l.sender_id, l.conversation_id, l.version = 0)::convsync.conversation_key) into v_keys
  from (
    select c.page_id, c.sender_id, c.conversation_id, c.version
    from unnest(v_keys) k
    join convsync.messenger_conversations c on c.page_id = k.page_id and c.sender_id = k.sender_id
    order by c.page_id, c.sender_id
    for no key update of c
  ) l;
  if v_wanted is distinct from cardinality(v_keys) then
    raise exception 'a conversation appeared and vanished, try again' using errcode = '40001';
  end if;
  return v_keys;
end
$$;

create or replace function convsync_api._lock_owners(p_facts convsync.fact[], p_keys convsync.conversation_key[])
returns convsync.conversation_key[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_others convsync.conversation_key[];
begin
  -- Two copies of one message can name different people (a thread read while its customer had no id). The other
  -- conversation is locked late, so never by waiting: 55P03 sends the caller back, and the lock order stays whole.
  select array_agg(row(o.page_id, o.sender_id, o.conversation_id, false)::convsync.conversation_key)
  into v_others
  from (
    select c.page_id, c.sender_id, c.conversation_id
    from (
      select e.page_id, e.conversation_id
      from unnest(p_facts) f
      join convsync.contact_interaction_events e on e.page_id = f.page_id and e.message_id = f.message_id
      except
      select k.page_id, k.conversation_id from unnest(p_keys) k
    ) t
    join convsync.messenger_conversations c on c.page_id = t.page_id and c.conversation_id = t.conversation_id
    for no key update of c nowait
  ) o;
  if v_others is null then
    return p_keys;
  end if;

  -- An event may have come to yet another conversation before these locks; nothing of it may be passed over.
  perform
  from (
    select e.page_id, e.conversation_id
    from unnest(p_facts) f
    join convsync.contact_interaction_events e on e.page_id = f.page_id and e.message_id = f.message_id
    except
    select k.page_id, k.conversation_id from unnest(p_keys || v_others) k
  ) t;
  if found then
    raise exception 'a message came to another conversation meanwhile, try again' using errcode = '40001';
  end if;
  return p_keys || v_others;
end
$$;

create or replace function convsync_api._lock_messages(p_facts convsync.fact[], p_keys convsync.conversation_key[])
returns convsync.conversation_key[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_pages text[];
  v_ids text[];
begin
  -- A message that is here is under the lock of its conversation. One that is not somebody may be bringing at this moment, as another
  -- person's and so under another lock. Its key is taken and given back: one of the two waits for the other, and then sees what
  -- it did.
  with awaited as (
    insert into convsync.contact_interaction_events as e
      (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
    select f.page_id, f.message_id, k.conversation_id, 'unknown', 'in', f.at, 'webhook'
    from unnest(p_facts) f
    join convsync.messenger_conversations k on k.page_id = f.page_id and k.sender_id = f.sender_id
    where f.round = 1
      and not exists (
        select from convsync.contact_interaction_events o where o.page_id = f.page_id and o.message_id = f.message_id
      )
    order by f.page_id collate "C", f.message_id collate "C"
    on conflict on constraint contact_interaction_events_pkey do nothing
    returning e.page_id, e.message_id
  )
  select array_agg(a.page_id), array_agg(a.message_id) into v_pages, v_ids
  from awaited a;
  delete from convsync.contact_interaction_events e
  using unnest(v_pages, v_ids) a (page_id, message_id)
  where e.page_id = a.page_id and e.message_id = a.message_id;
  return convsync_api._lock_owners(p_facts, p_keys);
end
$$;

create or replace function convsync_api._insert_messages(
  p_facts convsync.fact[], p_keys convsync.conversation_key[], p_source text, p_now timestamptz,
  out inserted text[], out deltas convsync.conversation_delta[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
declare
  v_inserted text[];
  v_deltas convsync.conversation_delta[];
begin
  with inserted as (
    insert into convsync.contact_interaction_events as e (
      page_id, message_id, conversation_id, event_type, direction, in_thread, event_timestamp, received_at, source,
      text_original, text_graph, text_graph_at, graph_at, metadata
    )
    select f.page_id, f.message_id, k.conversation_id, f.event_type, f.direction, f.in_thread, f.at, p_now, p_source,
      case when f.observed_at is null then nullif(f.text, '') end,
      case when f.observed_at is not null then nullif(f.text, '') end,
      case when nullif(f.text, '') is not null then f.observed_at end,
      f.observed_at,
      case when f.metadata -> 'graph' ? 'reactions' or f.metadata ? 'reactions'
        then convsync_api._fold_metadata(f.metadata, null, f.observed_at) else f.metadata end
    from unnest(p_facts) f
    join unnest(p_keys) k on k.page_id = f.page_id and k.sender_id = f.sender_id
    where f.kind = 'message' and f.round = 1
    order by f.page_id collate "C", f.message_id collate "C"
    on conflict on constraint contact_interaction_events_pkey do nothing
    returning e.page_id, e.message_id, e.conversation_id, e.event_type, e.in_thread
  )
  select array_agg(i.page_id || ' ' || i.message_id),
    array_agg(row(i.page_id, i.conversation_id, i.event_type, 1, 0, i.in_thread::integer)::convsync.conversation_delta)
  into v_inserted, v_deltas
  from inserted i;
  inserted := v_inserted;
  deltas := v_deltas;
end
$$;

create or replace function convsync_api._take_amendments(p_facts convsync.fact[])
returns convsync.conversation_delta[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_deltas convsync.conversation_delta[];
begin
  -- What waited for its message is read only now: whoever amends it takes the message's key first (_lock_messages).
  if not exists (select from convsync.pending_amendments) then
    return null;
  end if;
  with amended as (
    update convsync.contact_interaction_events e
    set num_edit = a.num_edit, edited_at = a.edited_at, edited_text = a.edited_text, unsent_at = a.unsent_at,
      absent_at = a.absent_at, reaction_marks = a.reaction_marks,
      metadata = case when a.reaction_marks is null then e.metadata
        else convsync_api._fold_metadata(e.metadata, a.reaction_marks, e.graph_at) end
    from unnest(p_facts) f
    join convsync.pending_amendments a on a.page_id = f.page_id and a.message_id = f.message_id
    where f.kind = 'message' and f.round = 1 and e.page_id = a.page_id and e.message_id = a.message_id
    returning e.page_id, e.conversation_id, e.event_type, -(e.in_thread and e.deleted_at is not null)::integer as live
  )
  select array_agg(row(a.page_id, a.conversation_id, a.event_type, 0, 0, a.live)::convsync.conversation_delta)
  into v_deltas
  from amended a;
  if v_deltas is not null then
    delete from convsync.pending_amendments a
    using unnest(p_facts) f
    where f.kind = 'message' and a.page_id = f.page_id and a.message_id = f.message_id;
  end if;
  return v_deltas;
end
$$;

create or replace function convsync_api._copies(p_facts convsync.fact[], p_inserted text[])
returns convsync.fact[]
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
as $$
begin
  -- The messages that were there before, or came twice in this call.
  return (
    select array_agg(f)
    from unnest(p_facts) f
    left join unnest(p_inserted) i (key) on f.round = 1 and i.key = f.page_id || ' ' || f.message_id
    where f.kind = 'message' and i.key is null
  );
end
$$;

create or replace function convsync_api._merge_messages(p_facts convsync.fact[])
returns convsync.conversation_delta[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_round integer;
  v_deltas convsync.conversation_delta[];
  v_more convsync.conversation_delta[];
begin
  for v_round in select distinct r.round from unnest(p_facts) r order by 1 loop
    with merged as (
      update convsync.contact_interaction_events e
      set conversation_id = case
          when k.conversation_id <> o.conversation_id and convsync_api._outranks(f.sender_id, owner.sender_id) then k.conversation_id
          else o.conversation_id end,
        event_type = case when f.event_type = o.event_type then o.event_type
          else convsync_api._more_specific(o.event_type, f.event_type) end,
        direction = greatest(o.direction, f.direction),
        in_thread = o.in_thread or f.in_thread,
        event_timestamp = greatest(o.event_timestamp, f.at),
        text_original = case when f.observed_at is null then greatest(o.text_original, nullif(f.text, '')) else o.text_original end,
        text_graph = case
          when f.observed_at is null or nullif(f.text, '') is null then o.text_graph
          when o.text_graph_at is null or (f.observed_at, f.text) > (o.text_graph_at, o.text_graph) then f.text
          else o.text_graph end,
        text_graph_at = case when nullif(f.text, '') is null then o.text_graph_at else greatest(o.text_graph_at, f.observed_at) end,
        graph_at = greatest(o.graph_at, f.observed_at),
        metadata = case when s.same then o.metadata
          else convsync_api._fold_metadata(
            convsync_api._merge_metadata(o.metadata, o.graph_at, f.metadata, f.observed_at),
            o.reaction_marks, greatest(o.graph_at, f.observed_at)) end
      from unnest(p_facts) f
      cross join lateral (
        -- Looked up by itself: as a join, all conversations of the Page may look cheaper to the planner than one row of them.
        select c.conversation_id
        from convsync.messenger_conversations c
        where c.page_id = f.page_id and c.sender_id = f.sender_id
        offset 0
      ) k
      join convsync.contact_interaction_events o on o.page_id = f.page_id and o.message_id = f.message_id
      join convsync.messenger_conversations owner on owner.page_id = o.page_id and owner.conversation_id = o.conversation_id
      cross join lateral (
        -- Every key that is told stands there with the same value: the costly merge would change nothing.
        select o.reaction_marks is null and o.metadata || f.metadata = o.metadata
          and (f.observed_at is null or f.metadata ? 'graph' or not o.metadata ? 'graph') as same
      ) s
      where f.round = v_round
        and e.page_id = o.page_id and e.message_id = o.message_id
        and (f.observed_at > o.graph_at or (f.observed_at is not null and o.graph_at is null)
          or f.at > o.event_timestamp
          or (f.direction <> o.direction and f.direction = 'out')
          or (f.in_thread and not o.in_thread)
          or (f.event_type <> o.event_type and convsync_api._more_specific(o.event_type, f.event_type) <> o.event_type)
          or (f.observed_at is null and nullif(f.text, '') is distinct from o.text_original and nullif(f.text, '') is not null
            and (o.text_original is null or f.text > o.text_original))
          or (f.observed_at = o.text_graph_at and f.text > o.text_graph)
          or (f.observed_at is not null and o.text_graph_at is null and nullif(f.text, '') is not null)
          or (f.observed_at > o.text_graph_at and nullif(f.text, '') is not null)
          or not (s.same or convsync_api._merge_metadata(o.metadata, o.graph_at, f.metadata, f.observed_at) = o.metadata - 'reactions')
          or (k.conversation_id <> o.conversation_id and convsync_api._outranks(f.sender_id, owner.sender_id)))
      returning e.page_id, e.conversation_id, o.conversation_id as old_conversation_id, e.event_type,
        (e.in_thread and e.deleted_at is null)::integer as live, (o.in_thread and o.deleted_at is null)::integer as old_live,
        e.body is distinct from o.body or e.event_timestamp <> o.event_timestamp or e.event_type <> o.event_type
          or e.direction <> o.direction or e.in_thread <> o.in_thread or e.deleted_at is distinct from o.deleted_at
          or (e.metadata <> o.metadata and not convsync_api._same_but_for_signatures(e.metadata, o.metadata)) as visible
    )
    select array_agg(d) into v_more
    from (
      select row(m.page_id, m.conversation_id, m.event_type, 0, 1,
        case when m.conversation_id = m.old_conversation_id then m.live - m.old_live else m.live end)::convsync.conversation_delta as d
      from merged m
      where m.visible or m.conversation_id <> m.old_conversation_id
      union all
      select row(m.page_id, m.old_conversation_id, m.event_type, 0, 1, -m.old_live)::convsync.conversation_delta
      from merged m
      where m.conversation_id <> m.old_conversation_id
    ) s;
    v_deltas := v_deltas || v_more;
  end loop;
  return v_deltas;
end
$$;

create or replace function convsync_api._amendments(p_facts convsync.fact[])
returns convsync.fact[]
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- One order for all kinds: a message may be edited, reacted to and unsent in one call.
  select array_agg(row(
      f.kind, f.page_id, f.sender_id, f.message_id, f.direction, f.at, f.text, f.event_type, f.metadata, f.observed_at,
      f.in_thread, f.num_edit, f.actor_id, f.action, f.reaction, f.emoji, f.what, f.thread_id, f.fields, f.reason, f.raw,
      f.n)::convsync.fact)
  from (
    select a.*, row_number() over (partition by a.page_id, a.message_id) as n
    from unnest(p_facts) a
    where a.kind in ('edit', 'reaction', 'unsend', 'absence')
  ) f;
$$;

create or replace function convsync_api._ingest_amendments(p_amendments convsync.fact[], p_now timestamptz)
returns convsync.conversation_delta[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_round integer;
  v_deltas convsync.conversation_delta[];
  v_more convsync.conversation_delta[];
begin
  for v_round in select distinct a.round from unnest(p_amendments) a order by 1 loop
    with merged as (
      update convsync.contact_interaction_events e
      set num_edit = case when f.kind = 'edit' and w.wins then f.num_edit else o.num_edit end,
        edited_at = case when f.kind = 'edit' and w.wins then f.at else o.edited_at end,
        edited_text = case when f.kind = 'edit' and w.wins then f.text else o.edited_text end,
        unsent_at = case when f.kind = 'unsend' then least(o.unsent_at, f.at) else o.unsent_at end,
        absent_at = case when f.kind = 'absence' then f.at else o.absent_at end,
        reaction_marks = m.marks,
        metadata = case when f.kind = 'reaction' then convsync_api._fold_metadata(o.metadata, m.marks, o.graph_at) else o.metadata end
      from unnest(p_amendments) f
      join convsync.contact_interaction_events o on o.page_id = f.page_id and o.message_id = f.message_id
      cross join lateral (
        select o.num_edit is null or (f.num_edit, f.at, f.text) > (o.num_edit, o.edited_at, o.edited_text) as wins
      ) w
      cross join lateral (
        select case when f.kind = 'reaction'
          then convsync_api._merge_keys(o.reaction_marks,
            jsonb_build_object(f.actor_id, convsync_api._reaction_mark(f.at, f.action, f.reaction, f.emoji)))
          else o.reaction_marks end as marks
      ) m
      where f.round = v_round
        and e.page_id = o.page_id and e.message_id = o.message_id
        and ((f.kind = 'edit' and w.wins)
          or (f.kind = 'unsend' and (o.unsent_at is null or f.at < o.unsent_at))
          or (f.kind = 'absence' and (o.absent_at is null or f.at > o.absent_at))
          or (f.kind = 'reaction' and m.marks is distinct from o.reaction_marks))
      returning e.page_id, e.conversation_id, f.kind,
        (e.in_thread and e.deleted_at is null)::integer - (o.in_thread and o.deleted_at is null)::integer as live,
        e.body is distinct from o.body or e.deleted_at is distinct from o.deleted_at or e.metadata <> o.metadata as visible
    )
    select array_agg(row(m.page_id, m.conversation_id, m.kind, 0, 1, m.live)::convsync.conversation_delta)
    into v_more
    from merged m
    where m.visible;
    v_deltas := v_deltas || v_more;

    -- Its message is not here yet: keep what was said of it. Whoever brings the message waits for its key (_lock_messages).
    insert into convsync.pending_amendments as a
      (page_id, message_id, sender_id, num_edit, edited_at, edited_text, unsent_at, absent_at, reaction_marks, first_seen_at)
    select f.page_id, f.message_id, f.sender_id, f.num_edit,
      case when f.kind = 'edit' then f.at end, case when f.kind = 'edit' then f.text end,
      case when f.kind = 'unsend' then f.at end, case when f.kind = 'absence' then f.at end,
      case when f.kind = 'reaction'
        then jsonb_build_object(f.actor_id, convsync_api._reaction_mark(f.at, f.action, f.reaction, f.emoji)) end,
      p_now
    from unnest(p_amendments) f
    where f.round = v_round
      and not exists (
        select from convsync.contact_interaction_events e where e.page_id = f.page_id and e.message_id = f.message_id
      )
    order by f.page_id collate "C", f.message_id collate "C"
    on conflict on constraint pending_amendments_pkey do update
    set sender_id = greatest(a.sender_id, excluded.sender_id),
      num_edit = case when a.num_edit is null
          or (excluded.num_edit, excluded.edited_at, excluded.edited_text) > (a.num_edit, a.edited_at, a.edited_text)
        then coalesce(excluded.num_edit, a.num_edit) else a.num_edit end,
      edited_at = case when a.num_edit is null
          or (excluded.num_edit, excluded.edited_at, excluded.edited_text) > (a.num_edit, a.edited_at, a.edited_text)
        then coalesce(excluded.edited_at, a.edited_at) else a.edited_at end,
      edited_text = case when a.num_edit is null
          or (excluded.num_edit, excluded.edited_at, excluded.edited_text) > (a.num_edit, a.edited_at, a.edited_text)
        then coalesce(excluded.edited_text, a.edited_text) else a.edited_text end,
      unsent_at = least(a.unsent_at, excluded.unsent_at),
      absent_at = greatest(a.absent_at, excluded.absent_at),
      reaction_marks = convsync_api._merge_keys(a.reaction_marks, excluded.reaction_marks);
  end loop;
  return v_deltas;
end
$$;

create or replace function convsync_api._ingest_threads(p_facts convsync.fact[])
returns convsync.conversation_delta[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_round integer;
  v_deltas convsync.conversation_delta[];
  v_more convsync.conversation_delta[];
begin
  -- A register per requested field: (observed_at, value). Requested but absent is null, but for unread (0) and
  -- what never becomes empty (name, thread_id, updated_time, reported_count).
  for v_round in select distinct f.round from unnest(p_facts) f where f.kind = 'thread' order by 1 loop
    with merged as (
      update convsync.messenger_conversations c
      set sender_name = case when w.name then s.name else o.sender_name end,
        sender_name_at = case when s.name is not null then greatest(o.sender_name_at, s.at) else o.sender_name_at end,
        thread_id = case when w.thread then s.thread_id else o.thread_id end,
        thread_id_at = case when s.thread_id is not null then greatest(o.thread_id_at, s.at) else o.thread_id_at end,
        in_several_threads = o.in_several_threads or w.another,
        unread_count = case when w.unread then s.unread else o.unread_count end,
        unread_count_at = case when s.has_unread then greatest(o.unread_count_at, s.at) else o.unread_count_at end,
        snippet = case when w.snippet then s.snippet else o.snippet end,
        snippet_at = case when s.has_snippet then greatest(o.snippet_at, s.at) else o.snippet_at end,
        can_reply = case when w.can_reply then s.can_reply else o.can_reply end,
        can_reply_at = case when s.has_can_reply then greatest(o.can_reply_at, s.at) else o.can_reply_at end,
        reported_count = case when w.reported then s.reported else o.reported_count end,
        reported_count_at = case when s.reported is not null then greatest(o.reported_count_at, s.at) else o.reported_count_at end,
        updated_time = case when w.updated then s.updated else o.updated_time end,
        updated_time_at = case when s.updated is not null then greatest(o.updated_time_at, s.at) else o.updated_time_at end
      from (
        select f.page_id, f.sender_id, f.observed_at as at, f.thread_id,
          nullif(f.fields ->> 'name', '') as name,
          f.fields ? 'unread_count' as has_unread, coalesce((f.fields ->> 'unread_count')::integer, 0) as unread,
          f.fields ? 'snippet' as has_snippet, nullif(f.fields ->> 'snippet', '') as snippet,
          f.fields ? 'can_reply' as has_can_reply, (f.fields ->> 'can_reply')::boolean as can_reply,
          (f.fields ->> 'reported_count')::integer as reported,
          (f.fields ->> 'updated_time')::timestamptz as updated
        from unnest(p_facts) f
        where f.kind = 'thread' and f.round = v_round
      ) s
      join convsync.messenger_conversations o on o.page_id = s.page_id and o.sender_id = s.sender_id
      cross join lateral (
        -- A null value is below every other at the same instant.
        select
          s.name is not null and (o.sender_name_at is null or (s.at, s.name) > (o.sender_name_at, coalesce(o.sender_name, ''))) as name,
          s.thread_id is not null and (o.thread_id_at is null or (s.at, s.thread_id) > (o.thread_id_at, coalesce(o.thread_id, ''))) as thread,
          coalesce(s.thread_id <> o.thread_id, false) as another,
          s.has_unread and (o.unread_count_at is null or (s.at, s.unread) > (o.unread_count_at, o.unread_count)) as unread,
          s.has_snippet and (o.snippet_at is null or (s.at, coalesce(s.snippet, '')) > (o.snippet_at, coalesce(o.snippet, ''))) as snippet,
          s.has_can_reply and (o.can_reply_at is null
            or (s.at, coalesce(s.can_reply::integer, -1)) > (o.can_reply_at, coalesce(o.can_reply::integer, -1))) as can_reply,
          s.reported is not null and (o.reported_count_at is null or (s.at, s.reported) > (o.reported_count_at, coalesce(o.reported_count, 0))) as reported,
          s.updated is not null and (o.updated_time_at is null or (s.at, s.updated) > (o.updated_time_at, coalesce(o.updated_time, s.updated))) as updated
      ) w
      where c.page_id = o.page_id and c.conversation_id = o.conversation_id
        and (w.name or w.thread or w.unread or w.snippet or w.can_reply or w.reported or w.updated
          or (w.another and not o.in_several_threads))
      returning c.page_id, c.conversation_id,
        (c.sender_name, c.thread_id, c.unread_count, c.snippet, c.can_reply, c.reported_count, c.updated_time)
          is distinct from (o.sender_name, o.thread_id, o.unread_count, o.snippet, o.can_reply, o.reported_count, o.updated_time) as visible
    )
    select array_agg(row(m.page_id, m.conversation_id, 'thread', 0, 0, 0)::convsync.conversation_delta)
    into v_more
    from merged m
    where m.visible;
    v_deltas := v_deltas || v_more;
  end loop;
  return v_deltas;
end
$$;

create or replace function convsync_api._ingest_gone(p_facts convsync.fact[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  -- A stamp; _fold tells what it means beside the conversation's signs of life.
  update convsync.messenger_conversations c
  set gone_confirmed_at = greatest(c.gone_confirmed_at, g.at)
  from (
    select f.page_id, f.sender_id, max(f.at) as at
    from unnest(p_facts) f
    where f.kind = 'gone'
    group by f.page_id, f.sender_id
  ) g
  where c.page_id = g.page_id and c.sender_id = g.sender_id;
end
$$;

create or replace function convsync_api._merged_notice(p_one jsonb, p_other jsonb)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The larger of two copies, which is the same in any order; one that named somebody who was erased stays without its words.
  select case when '{"erased": true}' in (p_one, p_other) then '{"erased": true}' else greatest(p_one, p_other) end;
$$;

create or replace function convsync_api._ingest_page_events(p_facts convsync.fact[], p_source text, p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- What the platform says to the Page may name a person, anywhere in it: as with dead letters.
  perform pg_advisory_xact_lock_shared(1668183670, 14);
  insert into convsync.page_events as e (page_id, event_id, event_type, event_timestamp, received_at, source, metadata)
  select t.page_id, t.message_id, max(t.event_type), max(t.at), p_now, p_source,
    case when bool_or(k.raw = '') then '{"erased": true}' else (array_agg(t.metadata order by t.metadata desc))[1] end
  from unnest(p_facts) t
  cross join lateral convsync_api._what_is_kept(t.page_id, '', convert_to(t.metadata::text, 'UTF8')) k
  where t.kind = 'page_event'
  group by t.page_id, t.message_id
  order by t.page_id collate "C", t.message_id collate "C"
  on conflict on constraint page_events_pkey do update
  set event_type = greatest(e.event_type, excluded.event_type),
    event_timestamp = greatest(e.event_timestamp, excluded.event_timestamp),
    metadata = convsync_api._merged_notice(e.metadata, excluded.metadata)
  where (e.event_type, e.event_timestamp, e.metadata) is distinct from (
    greatest(e.event_type, excluded.event_type), greatest(e.event_timestamp, excluded.event_timestamp),
    convsync_api._merged_notice(e.metadata, excluded.metadata));
end
$$;

create or replace function convsync_api._ingest_dead_letters(p_facts convsync.fact[], p_source text, p_now timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept integer;
begin
  -- An erasure that is under way is waited for: then its tombstone tells what must not be kept.
  perform pg_advisory_xact_lock_shared(1668183670, 14);
  insert into convsync.dead_letters as d (page_id, source, reason, raw, digest, first_seen_at, last_seen_at)
  select l.page_id, p_source, max(l.reason), l.raw, l.digest, p_now, p_now
  from (
    select f.page_id, k.reason, k.raw, k.digest
    from unnest(p_facts) f
    cross join lateral convsync_api._what_is_kept(f.page_id, f.reason, decode(f.raw, 'base64')) k
    where f.kind = 'dead_letter'
  ) l
  group by l.page_id, l.raw, l.digest
  order by l.page_id, l.digest
  on conflict on constraint dead_letters_once do update
  set last_seen_at = excluded.last_seen_at, attempts = d.attempts + 1;
  get diagnostics v_kept = row_count;
  return v_kept;
end
$$;

create or replace function convsync_api._told(
  p_facts convsync.fact[], p_keys convsync.conversation_key[], p_deltas convsync.conversation_delta[]
)
returns convsync.conversation_fold[]
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
as $$
begin
  -- All that was told and done, one row per conversation.
  return (
    select array_agg(row(k.page_id, k.sender_id, k.conversation_id, k.created, coalesce(d.kinds, '{receipt}'),
      coalesce(d.events_added, 0), coalesce(d.events_changed, 0), coalesce(d.live, 0), d.page_id is not null,
      m.inbound_at, m.read_at, m.delivered_at, null)::convsync.conversation_fold)
    from unnest(p_keys) k
    left join (
      select x.page_id, x.conversation_id, array_agg(distinct x.kind order by x.kind) as kinds,
        sum(x.events_added) as events_added, sum(x.events_changed) as events_changed, sum(x.live) as live
      from unnest(p_deltas) x
      group by x.page_id, x.conversation_id
    ) d on d.page_id = k.page_id and d.conversation_id = k.conversation_id
    left join (
      select f.page_id, f.sender_id,
        max(f.at) filter (where f.kind = 'message' and f.direction = 'in' and (f.in_thread or f.event_type = 'postback')) as inbound_at,
        max(f.at) filter (where f.kind = 'watermark' and f.what = 'read') as read_at,
        max(f.at) filter (where f.kind = 'watermark' and f.what = 'delivered') as delivered_at
      from unnest(p_facts) f
      where f.kind in ('message', 'watermark')
      group by f.page_id, f.sender_id
    ) m on m.page_id = k.page_id and m.sender_id = k.sender_id
  );
end
$$;

create or replace function convsync_api._fold(p_told convsync.conversation_fold[], p_source text, p_now timestamptz)
returns convsync.conversation_fold[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_sort = off
as $$
declare
  v_xid xid8 := pg_current_xact_id();
  v_changed convsync.conversation_fold[];
begin
  -- Counting by difference is exact because the conversation is locked; everything else is looked up.
  with folded as (
    update convsync.messenger_conversations c
    set message_count = c.message_count + t.live,
      last_message_id = l.message_id,
      last_message_time = l.event_timestamp,
      last_message = l.body,
      last_inbound_time = greatest(c.last_inbound_time, t.inbound_at),
      read_watermark = greatest(c.read_watermark, t.read_at),
      delivered_watermark = greatest(c.delivered_watermark, t.delivered_at),
      deleted_at = g.deleted_at,
      version = c.version + b.rises::integer,
      version_xid = case when b.rises then v_xid else c.version_xid end,
      last_synced_version = case when p_source = 'sync' then c.version + b.rises::integer else c.last_synced_version end,
      updated_at = case when v.visible then p_now else c.updated_at end
    from unnest(p_told) t
    join convsync.messenger_conversations o on o.page_id = t.page_id and o.conversation_id = t.conversation_id
    left join lateral (
      select e.message_id, e.event_timestamp, e.body
      from convsync.contact_interaction_events e
      where e.page_id = t.page_id and e.conversation_id = t.conversation_id and e.in_thread and e.deleted_at is null
      order by e.event_timestamp desc, e.message_id desc
      limit 1
    ) l on true
    left join lateral (
      select e.event_timestamp as at
      from convsync.contact_interaction_events e
      where o.gone_confirmed_at is not null
        and e.page_id = t.page_id and e.conversation_id = t.conversation_id and e.in_thread
      order by e.event_timestamp desc, e.message_id desc
      limit 1
    ) alive on true
    cross join lateral (
      -- Who was confirmed gone is deleted until a message or a snapshot is later than that. Few ever are: then nothing is looked up.
      select case when o.gone_confirmed_at is null then o.deleted_at
        when (o.gone_confirmed_at > greatest(o.updated_time_at, o.thread_id_at, alive.at)) is not false then o.gone_confirmed_at
        end as deleted_at
    ) g
    cross join lateral (
      select t.created or t.changed or g.deleted_at is distinct from o.deleted_at
        or coalesce(t.inbound_at > o.last_inbound_time or o.last_inbound_time is null and t.inbound_at is not null, false)
        or coalesce(t.read_at > o.read_watermark or o.read_watermark is null and t.read_at is not null, false)
        or coalesce(t.delivered_at > o.delivered_watermark or o.delivered_watermark is null and t.delivered_at is not null, false)
        as visible
    ) v
    cross join lateral (
      -- version rises once per transaction, however many calls that makes.
      select v.visible and o.version_xid is distinct from v_xid as rises
    ) b
    where c.page_id = t.page_id and c.conversation_id = t.conversation_id
      and (v.visible or (p_source = 'sync' and c.last_synced_version is distinct from c.version))
    returning c.page_id, c.conversation_id, c.version, v.visible,
      case when g.deleted_at is not distinct from o.deleted_at then t.kinds
        else array(
          select k from unnest(case when t.changed then t.kinds end || case when g.deleted_at is null then 'back' else 'gone' end) k order by k)
        end as kinds
  )
  select array_agg(row(f.page_id, null, f.conversation_id, null, f.kinds, null, null, null, true, null, null, null, f.version)::convsync.conversation_fold)
    filter (where f.visible)
  into v_changed
  from folded f;
  return v_changed;
end
$$;

create or replace function convsync_api._record_changes(p_changed convsync.conversation_fold[], p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xid xid8 := pg_current_xact_id();
  v_epoch integer := convsync_api._epoch();
begin
  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  select n.page_id, v_epoch, v_xid, n.conversation_id, n.version, n.kinds, p_now
  from unnest(p_changed) n
  order by n.page_id collate "C", n.conversation_id
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version,
    kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
end
$$;

create or replace function convsync_api._touched(p_told convsync.conversation_fold[], p_changed convsync.conversation_fold[])
returns table (
  page_id text, sender_id text, conversation_id bigint, version bigint, created boolean, events_added integer, events_changed integer,
  changed boolean
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
  return query
  select t.page_id, t.sender_id, t.conversation_id, c.version, t.created, t.events_added, t.events_changed, t.changed
  from (
    -- Who changed stands in both, with its version.
    select b.page_id, b.conversation_id, max(b.sender_id) as sender_id, bool_or(b.created) as created,
      max(b.events_added) as events_added, max(b.events_changed) as events_changed, bool_or(b.version is not null) as changed
    from unnest(p_told || p_changed) b
    group by b.page_id, b.conversation_id
  ) t
  join convsync.messenger_conversations c on c.page_id = t.page_id and c.conversation_id = t.conversation_id
  order by t.page_id, t.sender_id;
end
$$;

create or replace function convsync_api._ingest(p_facts jsonb, p_source text)
returns table (
  page_id text, sender_id text, conversation_id bigint, version bigint, created boolean, events_added integer, events_changed integer,
  changed boolean
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  v_facts convsync.fact[];
  v_refused convsync.fact[];
  v_proofs convsync.fact[];
  v_now timestamptz := convsync_api._now();
  v_kinds text[];
  v_keys convsync.conversation_key[];
  v_inserted text[];
  v_copies convsync.fact[];
  v_amendments convsync.fact[];
  v_deltas convsync.conversation_delta[];
  v_more convsync.conversation_delta[];
  v_told convsync.conversation_fold[];
  v_changed convsync.conversation_fold[];
begin
  select s.admitted, s.refused, s.proofs into v_facts, v_refused, v_proofs
  from convsync_api._sift(convsync_api._parse_facts(p_facts)) s;
  if p_source is null or p_source not in ('webhook', 'sync', 'sql', 'import') then
    raise exception 'source must be webhook, sync, sql or import' using errcode = 'ZC003', hint = 'source';
  end if;
  if v_proofs is not null then
    v_proofs := convsync_api._news_of_before(v_proofs);
  end if;
  if v_facts is null and v_proofs is null then
    perform convsync_api._count_refused(v_refused, p_source, v_now);
    return;
  end if;
  v_kinds := array(select distinct f.kind from unnest(v_facts) f);
  if p_source = 'import' then
    perform convsync_api._mark_adopted(v_facts, v_now);
  end if;
  v_keys := convsync_api._lock_conversations(v_facts || v_proofs);
  perform convsync_api._know_tables();
  if v_proofs is not null then
    select e.p_keys, e.deltas into v_keys, v_deltas from convsync_api._erase_messages(v_proofs, v_facts, v_now, v_keys) e;
  end if;
  if 'message' = any (v_kinds) then
    select i.inserted, i.deltas into v_inserted, v_more
    from convsync_api._insert_messages(v_facts, v_keys, p_source, v_now) i;
    v_deltas := v_deltas || v_more;
    if cardinality(v_inserted) is distinct from (select count(*) from unnest(v_facts) f where f.kind = 'message') then
      v_copies := convsync_api._copies(v_facts, v_inserted);
      v_keys := convsync_api._lock_owners(v_copies, v_keys);
    end if;
    perform convsync_api._meter_losses(v_facts, v_inserted, p_source, v_now);
  end if;
  if v_kinds && '{edit,reaction,unsend,absence}' then
    v_amendments := convsync_api._amendments(v_facts);
    v_keys := convsync_api._lock_messages(v_amendments, v_keys);
  end if;
  if cardinality(convsync_api._admissible(v_facts)) <> cardinality(v_facts) then
    -- Somebody of these was erased between the look and the locks, or a message.
    raise exception 'a contact or a message was erased meanwhile, try again' using errcode = '40001';
  end if;
  if 'message' = any (v_kinds) then
    v_deltas := v_deltas || convsync_api._take_amendments(v_facts);
    if v_copies is not null and convsync_api._is_adopted(v_facts) then
      if p_source = 'import' then
        select y.copies, y.deltas into v_copies, v_more from convsync_api._yield(v_copies) y;
        v_deltas := v_deltas || v_more;
      else
        v_deltas := v_deltas || convsync_api._take_over(v_copies, p_source, v_now);
      end if;
    end if;
    if v_copies is not null then
      v_deltas := v_deltas || convsync_api._merge_messages(v_copies);
    end if;
  end if;
  if v_amendments is not null then
    v_deltas := v_deltas || convsync_api._ingest_amendments(v_amendments, v_now);
  end if;
  if 'thread' = any (v_kinds) then
    v_deltas := v_deltas || convsync_api._ingest_threads(v_facts);
  end if;
  if 'gone' = any (v_kinds) then
    perform convsync_api._ingest_gone(v_facts);
  end if;
  if 'page_event' = any (v_kinds) then
    perform convsync_api._ingest_page_events(v_facts, p_source, v_now);
  end if;
  if 'dead_letter' = any (v_kinds) then
    perform convsync_api._ingest_dead_letters(v_facts, p_source, v_now);
  end if;

  v_told := convsync_api._told(v_facts, v_keys, v_deltas);
  v_changed := convsync_api._fold(v_told, p_source, v_now);
  if v_changed is not null then
    perform convsync_api._record_changes(v_changed, v_now);
  end if;
  if v_refused is not null then
    perform convsync_api._count_refused(v_refused, p_source, v_now);
  end if;
  return query select r.* from convsync_api._touched(v_told, v_changed) r;
end
$$;

create or replace function convsync_api.ingest(p_facts jsonb, p_source text)
returns table (
  page_id text, sender_id text, conversation_id bigint, version bigint, created boolean, events_added integer, events_changed integer
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
-- A conversation that somebody's idle session has locked delays only its own deliveries: after a second, 55P03.
declare
  v_now timestamptz := convsync_api._now();
begin
  return query
  select i.page_id, i.sender_id, i.conversation_id, i.version, i.created, i.events_added, i.events_changed
  from convsync_api._ingest(p_facts, p_source) i;
  if p_source = 'webhook' then
    -- The freshness of a Page's webhook, at most one write a minute. After the facts: they may have brought the Page.
    -- Nobody waits here: a Page whose row is being written by another delivery gets its time from that one.
    update convsync.pages p
    set last_webhook_at = v_now, first_webhook_at = coalesce(p.first_webhook_at, v_now)
    where p.page_id in (
      select o.page_id
      from convsync.pages o
      where o.page_id in (select f.value ->> 'page_id' from jsonb_array_elements(p_facts) f)
        and (o.last_webhook_at is null or o.last_webhook_at < v_now - interval '1 minute')
      order by o.page_id
      for no key update skip locked
    );
  end if;
end
$$;
comment on function convsync_api.ingest(jsonb, text) is
$c$Merges facts of any number of Pages and conversations in one transaction; a row per touched conversation.
p_facts: a JSON array of facts (docs/functions.md has each kind). p_source: webhook, sync, sql or import.
Any order, repetition, batching and concurrency of the same facts gives the same mirror. created is true exactly once
per conversation; events_added counts new rows, events_changed rows with a visible change. What import tells of a message holds only
while nobody else has told of it.
Errors: ZC003 names the fact and field that is wrong; 22xxx and 23xxx for values PostgreSQL refuses; 40001, 40P01 and
55P03 ask the caller to repeat the call. Nothing of a failing call remains.$c$;
