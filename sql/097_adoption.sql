-- Moving another database in. What it tells is hearsay: source import, the weakest of witnesses.
--
-- A copy of a message that import tells holds, in all of its registers, only while nobody else has told of that message. The first
-- witness (a webhook, a sync, a program) takes the row over as if it had made it; what import tells of a witnessed message adds to its
-- metadata and says nothing else. So a wrong time, direction, text or owner of the old database is gone with the first read of Graph, in
-- whichever order the two came, and what was done to the message (edits, reactions, unsends, absences) stays what it was.

create or replace function convsync_api._mark_adopted(p_facts convsync.fact[], p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Before the conversations, as all that concerns Pages. Who brings a message later sees the mark with the message.
  insert into convsync.pages as p (page_id, adopted_at)
  select k.page_id, p_now
  from (select distinct f.page_id from unnest(p_facts) f where f.kind <> 'dead_letter') k
  where not exists (select from convsync.pages o where o.page_id = k.page_id and o.adopted_at is not null)
  order by k.page_id collate "C"
  on conflict on constraint pages_pkey do update
  set adopted_at = coalesce(p.adopted_at, excluded.adopted_at);
end
$$;

create or replace function convsync_api._is_adopted(p_facts convsync.fact[])
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Of most Pages no other database ever told: then no copy is weighed.
  select exists (
    select
    from (select distinct f.page_id from unnest(p_facts) f) k
    join convsync.pages p on p.page_id = k.page_id
    where p.adopted_at is not null);
$$;

create or replace function convsync_api._take_over(p_copies convsync.fact[], p_source text, p_now timestamptz)
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
  -- A witness tells of what was hearsay. Its first copy takes the row over; the others of this call merge with that as always.
  with taken as (
    update convsync.contact_interaction_events e
    set conversation_id = k.conversation_id, event_type = f.event_type, direction = f.direction, in_thread = f.in_thread,
      event_timestamp = f.at, received_at = p_now, source = p_source,
      text_original = case when f.observed_at is null then nullif(f.text, '') end,
      text_graph = case when f.observed_at is not null then nullif(f.text, '') end,
      text_graph_at = case when nullif(f.text, '') is not null then f.observed_at end,
      graph_at = f.observed_at,
      metadata = convsync_api._fold_metadata(
        convsync_api._merge_metadata(o.metadata, null, f.metadata, f.observed_at), o.reaction_marks, f.observed_at)
    from unnest(p_copies) f
    cross join lateral (
      -- Looked up by itself, as in _merge_messages.
      select c.conversation_id
      from convsync.messenger_conversations c
      where c.page_id = f.page_id and c.sender_id = f.sender_id
      offset 0
    ) k
    join convsync.contact_interaction_events o on o.page_id = f.page_id and o.message_id = f.message_id
    where f.round = 1 and o.source = 'import' and e.page_id = o.page_id and e.message_id = o.message_id
    returning e.page_id, e.conversation_id, o.conversation_id as old_conversation_id, e.event_type,
      (e.in_thread and e.deleted_at is null)::integer as live, (o.in_thread and o.deleted_at is null)::integer as old_live,
      e.body is distinct from o.body or e.event_timestamp <> o.event_timestamp or e.event_type <> o.event_type
        or e.direction <> o.direction or e.in_thread <> o.in_thread or e.deleted_at is distinct from o.deleted_at
        or e.metadata <> o.metadata as visible
  )
  select array_agg(d) into v_deltas
  from (
    select row(t.page_id, t.conversation_id, t.event_type, 0, 1,
      case when t.conversation_id = t.old_conversation_id then t.live - t.old_live else t.live end)::convsync.conversation_delta as d
    from taken t
    where t.visible or t.conversation_id <> t.old_conversation_id
    union all
    select row(t.page_id, t.old_conversation_id, t.event_type, 0, 1, -t.old_live)::convsync.conversation_delta
    from taken t
    where t.conversation_id <> t.old_conversation_id
  ) s;
  return v_deltas;
end
$$;

create or replace function convsync_api._yield(p_copies convsync.fact[], out copies convsync.fact[], out deltas convsync.conversation_delta[])
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
  v_copies convsync.fact[];
  v_witnessed convsync.fact[];
  v_deltas convsync.conversation_delta[];
  v_more convsync.conversation_delta[];
  v_round integer;
begin
  -- Hearsay of a message that has its witness: only what stands in its metadata is new. The rest merges with hearsay.
  select array_agg(f) filter (where o.source = 'import'), array_agg(f) filter (where o.source <> 'import')
  into v_copies, v_witnessed
  from unnest(p_copies) f
  join convsync.contact_interaction_events o on o.page_id = f.page_id and o.message_id = f.message_id;
  for v_round in select distinct f.round from unnest(v_witnessed) f order by 1 loop
    with merged as (
      update convsync.contact_interaction_events e
      set metadata = m.metadata
      from unnest(v_witnessed) f
      join convsync.contact_interaction_events o on o.page_id = f.page_id and o.message_id = f.message_id
      cross join lateral (
        select convsync_api._fold_metadata(
          convsync_api._merge_metadata(o.metadata, o.graph_at, f.metadata, null), o.reaction_marks, o.graph_at) as metadata
      ) m
      where f.round = v_round and e.page_id = o.page_id and e.message_id = o.message_id and m.metadata <> o.metadata
      returning e.page_id, e.conversation_id, e.event_type
    )
    select array_agg(row(m.page_id, m.conversation_id, m.event_type, 0, 1, 0)::convsync.conversation_delta) into v_more
    from merged m;
    v_deltas := v_deltas || v_more;
  end loop;
  copies := v_copies;
  deltas := v_deltas;
end
$$;

create or replace function convsync_api.adopt_page(p_page_id text, p_owner_ref text, p_dry_run boolean default false)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
begin
  if coalesce(p_page_id, '') = '' then
    raise exception 'the Page''s id is missing' using errcode = 'ZC003', hint = 'p_page_id';
  end if;
  if coalesce(p_owner_ref, '') = '' then
    raise exception 'whose Page it is, is missing' using errcode = 'ZC003', hint = 'p_owner_ref';
  end if;
  if p_dry_run then
    return not exists (select from convsync.pages p where p.page_id = p_page_id and p.owner_ref is not null);
  end if;
  insert into convsync.pages as p (page_id, owner_ref, adopted_at)
  values (p_page_id, p_owner_ref, v_now)
  on conflict on constraint pages_pkey do update
  set owner_ref = excluded.owner_ref, adopted_at = coalesce(p.adopted_at, v_now), updated_at = v_now
  where p.owner_ref is null;
  return found;
end
$$;
comment on function convsync_api.adopt_page(text, text, boolean) is
$c$Says whose a Page is, as another database tells, if nobody has said so here; true if that was news. The Page is made if it is unknown,
without a token and not yet added (add_page). p_dry_run: changes nothing and returns what it would. Errors: ZC003.$c$;

create or replace function convsync_api._letters(p_page_id text, p_facts jsonb)
returns table (place bigint, digest bytea, is_here boolean, is_kept boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
  -- The dead letters of a call: whether the message that one seems to be is here, whether the letter is.
  return query
  select l.place, k.digest,
    l.sender_id is not null and exists (
      select
      from convsync.messenger_conversations c
      join convsync.contact_interaction_events e on e.page_id = c.page_id and e.conversation_id = c.conversation_id
      where c.page_id = p_page_id and c.sender_id = l.sender_id and e.in_thread
        and e.event_timestamp >= date_trunc('second', l.at) and e.event_timestamp < date_trunc('second', l.at) + interval '1 second'
        and (l.direction is null or e.direction = l.direction)
        and (coalesce(l."text", '') = coalesce(e.body, '') or l."text" in (e.text_original, e.text_graph))),
    exists (
      select from convsync.dead_letters d
      where d.page_id = l.page_id and d.source = 'import' and d.digest = k.digest)
  from (
    select f.ordinality as place, r.page_id, r.sender_id, r.at, r.direction, r."text", r.reason, r.raw
    from jsonb_array_elements(p_facts) with ordinality f (value, ordinality)
    cross join lateral jsonb_populate_record(null::convsync.fact, f.value) r
    where f.value ->> 'kind' = 'dead_letter'
  ) l
  cross join lateral convsync_api._what_is_kept(l.page_id, l.reason, decode(l.raw, 'base64')) k;
end
$$;

create or replace function convsync_api._take_standing(p_page_id text, p_standing jsonb, p_now timestamptz)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_xid xid8 := pg_current_xact_id();
  v_changed convsync.conversation_fold[];
begin
  -- The rows are locked: facts of each of these people came before. A status that somebody has given here is not touched.
  with taken as (
    update convsync.messenger_conversations c
    set adopted_at = p_now,
      conversation_status = case when s.news then s.status else c.conversation_status end,
      version = c.version + (s.news and c.version_xid is distinct from v_xid)::integer,
      version_xid = case when s.news then v_xid else c.version_xid end,
      updated_at = case when s.news then p_now else c.updated_at end
    from (
      select o.conversation_id, t.value as status, coalesce(t.value <> o.conversation_status and o.conversation_status = 'active', false) as news
      from jsonb_each_text(p_standing) t
      join convsync.messenger_conversations o on o.page_id = p_page_id and o.sender_id = t.key
      where o.adopted_at is null
    ) s
    where c.page_id = p_page_id and c.conversation_id = s.conversation_id
    returning c.page_id, c.conversation_id, c.version, s.news
  )
  select array_agg(row(t.page_id, null, t.conversation_id, null, '{adopted}', null, null, null, true, null, null, null, t.version)::convsync.conversation_fold)
  into v_changed
  from taken t
  where t.news;
  perform convsync_api._record_changes(v_changed, p_now);
  return coalesce(cardinality(v_changed), 0)::bigint;
end
$$;

create or replace function convsync_api.adopt_conversations(
  p_page_id text, p_facts jsonb, p_standing jsonb default '{}', p_dry_run boolean default false
)
returns table (
  conversations_added bigint, messages_added bigint, statuses_set bigint, letters_added bigint, letters_answered bigint, refused bigint
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '4s'
as $$
#variable_conflict use_column
declare
  v_now timestamptz := convsync_api._now();
  v_facts convsync.fact[];
  v_admitted convsync.fact[];
  v_told jsonb;
  v_person text;
begin
  -- Empty is the Page of dead letters that are of none.
  if p_page_id is null then
    raise exception 'the Page''s id is missing' using errcode = 'ZC003', hint = 'p_page_id';
  end if;
  v_facts := convsync_api._parse_facts(p_facts);
  if exists (select from unnest(v_facts) f where f.page_id <> p_page_id) then
    raise exception 'a fact of another Page' using errcode = 'ZC003', hint = 'p_facts';
  end if;
  select t.key into v_person
  from jsonb_each(case jsonb_typeof(p_standing) when 'object' then p_standing else '{"": null}' end) t
  where t.key = '' or jsonb_typeof(t.value) <> 'string' or length(t.value #>> '{}') not between 1 and 64
  limit 1;
  if found then
    raise exception 'p_standing must be an object of statuses of 1 to 64 characters, by sender_id; % is wrong', coalesce(nullif(v_person, ''), 'it')
      using errcode = 'ZC003', hint = 'p_standing';
  end if;
  v_admitted := convsync_api._admissible(v_facts);
  refused := (select count(*) from unnest(v_facts) f where f.kind = 'message')
    - (select count(*) from unnest(v_admitted) f where f.kind = 'message');

  if p_dry_run then
    -- Who is told of in several calls counts in the one that has their snapshot.
    select count(distinct f.sender_id) filter (where f.kind = 'thread' and c.conversation_id is null), count(distinct s.key)
    into conversations_added, statuses_set
    from unnest(v_admitted) f
    left join convsync.messenger_conversations c on c.page_id = p_page_id and c.sender_id = f.sender_id
    left join jsonb_each_text(p_standing) s
      on s.key = f.sender_id and s.value <> 'active' and coalesce(c.conversation_status, 'active') = 'active' and c.adopted_at is null
    where f.kind <> 'dead_letter';
    select count(distinct f.message_id) into messages_added
    from unnest(v_admitted) f
    where f.kind = 'message' and not exists (
      select from convsync.contact_interaction_events e where e.page_id = p_page_id and e.message_id = f.message_id);
    select count(distinct l.digest) filter (where not l.is_here and not l.is_kept), count(*) filter (where l.is_here)
    into letters_added, letters_answered
    from convsync_api._letters(p_page_id, p_facts) l;
    return next;
    return;
  end if;

  -- In two calls of one transaction: what a letter seems to be may be told in this very call.
  select jsonb_agg(f.value) into v_told from jsonb_array_elements(p_facts) f where f.value ->> 'kind' <> 'dead_letter';
  select count(*) filter (where i.created), coalesce(sum(i.events_added), 0::bigint) into conversations_added, messages_added
  from convsync_api._ingest(coalesce(v_told, '[]'), 'import') i;
  statuses_set := convsync_api._take_standing(p_page_id, p_standing, v_now);

  -- A letter that is kept already is not told again: nothing has happened to it.
  select jsonb_agg(f.value), count(distinct l.digest) into v_told, letters_added
  from convsync_api._letters(p_page_id, p_facts) l
  join jsonb_array_elements(p_facts) with ordinality f (value, ordinality) on f.ordinality = l.place
  where not l.is_here and not l.is_kept;
  select count(*) into letters_answered from convsync_api._letters(p_page_id, p_facts) l where l.is_here;
  if v_told is not null then
    perform from convsync_api._ingest(v_told, 'import');
  end if;
  update convsync.dead_letters d
  set resolved_at = v_now, resolution = 'its message is here'
  from convsync_api._letters(p_page_id, p_facts) l
  where l.is_here and l.is_kept and d.page_id = p_page_id and d.source = 'import' and d.digest = l.digest and d.resolved_at is null;
  return next;
end
$$;
comment on function convsync_api.adopt_conversations(text, jsonb, jsonb, boolean) is
$c$Takes over what another database holds of a Page: p_facts as ingest takes them, with source import, all in one transaction. What import
tells holds only while nobody else has told of it. A dead letter that is kept already is left alone; with sender_id, at, direction and text it
may say which message it seems to be, and is not kept (or is settled) if that message is here. p_standing: an object sender_id -> status, of
people in p_facts; taken over once, where nobody has given another here. Returns how many conversations, messages, statuses and letters
were new, how many letters had their message here, and how many messages were refused (erased or purged here). p_dry_run: changes nothing
and returns the same. Errors: ZC003 and those of ingest.$c$;
