-- Erasure and retention. What was erased stays erased: no redelivery, no later sync, no history still unread brings it back.
--
-- A tombstone is a digest of (Page, person) under a key of this installation, with the instant of the erasure. Facts up to that
-- instant are refused, by the fact itself, so in any order; later ones start a new contact. A thread's snapshot is of then if
-- its updated_time is.

create or replace function convsync_api._contact_digest(p_page_id text, p_sender_id text)
returns bytea
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select sha256(s.erasure_key || convert_to(p_page_id || chr(31) || p_sender_id, 'UTF8')) from convsync.installation_secrets s;
$$;

create or replace function convsync_api._admissible(p_facts convsync.fact[])
returns convsync.fact[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  -- Most Pages have no tombstone and no horizon: then nothing is computed.
  if not exists (
    select
    from (select distinct f.page_id from unnest(p_facts) f) t
    where exists (select from convsync.erased_contacts e where e.page_id = t.page_id)
      or exists (select from convsync.pages p where p.page_id = t.page_id and p.purged_before is not null)
  ) then
    return p_facts;
  end if;
  return (
    select coalesce(array_agg(f), '{}')
    from unnest(p_facts) f
    left join convsync.pages p on p.page_id = f.page_id
    left join convsync.erased_contacts e
      on f.kind <> 'dead_letter' and e.page_id = f.page_id and e.contact_digest = convsync_api._contact_digest(f.page_id, f.sender_id)
    where f.kind = 'dead_letter'
      or ((e.erased_at is null
          or case f.kind when 'thread' then (f.fields ->> 'updated_time')::timestamptz else f.at end > e.erased_at)
        and (p.purged_before is null or f.kind in ('thread', 'watermark') or f.at >= p.purged_before))
  );
end
$$;

create or replace function convsync_api.erase_contact(p_page_id text, p_sender_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_now timestamptz;
  v_xid xid8;
  v_row convsync.messenger_conversations;
  v_digest bytea;
  v_version bigint;
  v_events bigint;
  v_pending bigint;
  v_letters bigint;
begin
  if coalesce(p_page_id, '') = '' or coalesce(p_sender_id, '') in ('', p_page_id) then
    raise exception 'Page and person must be named' using errcode = 'ZC003', hint = 'p_sender_id';
  end if;
  if p_sender_id like 'erased:%' then
    raise exception 'this contact was erased' using errcode = 'ZC006';
  end if;
  insert into convsync.pages (page_id)
  select p_page_id where not exists (select from convsync.pages p where p.page_id = p_page_id)
  on conflict on constraint pages_pkey do nothing;
  -- Inserted if missing, then locked: whatever is being ingested for this person is waited for, and what comes after finds the
  -- tombstone.
  insert into convsync.messenger_conversations (page_id, sender_id)
  select p_page_id, p_sender_id
  where not exists (
    select from convsync.messenger_conversations c where c.page_id = p_page_id and c.sender_id = p_sender_id)
  on conflict on constraint messenger_conversations_one_per_sender do nothing;
  select c.* into v_row
  from convsync.messenger_conversations c
  where c.page_id = p_page_id and c.sender_id = p_sender_id
  for update;
  if not found then
    raise exception 'the contact was erased meanwhile' using errcode = '40001';
  end if;
  v_now := convsync_api._now();
  v_xid := pg_current_xact_id();
  v_digest := convsync_api._contact_digest(p_page_id, p_sender_id);

  insert into convsync.erased_contacts as e (page_id, contact_digest, erased_at)
  values (p_page_id, v_digest, v_now)
  on conflict on constraint erased_contacts_pkey do update set erased_at = greatest(e.erased_at, excluded.erased_at);

  delete from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.conversation_id = v_row.conversation_id;
  get diagnostics v_events = row_count;
  delete from convsync.pending_amendments a where a.page_id = p_page_id and a.sender_id = p_sender_id;
  get diagnostics v_pending = row_count;
  delete from convsync.dead_letters d
  where (d.page_id = p_page_id or d.page_id = '')
    and (position(convert_to(p_sender_id, 'UTF8') in d.raw) > 0
      or (v_row.thread_id is not null and position(convert_to(v_row.thread_id, 'UTF8') in d.raw) > 0)
      or (length(v_row.sender_name) > 3 and position(convert_to(v_row.sender_name, 'UTF8') in d.raw) > 0));
  get diagnostics v_letters = row_count;
  update convsync.sync_cursors s
  set sender_id = null, completed = not s.failed
  where s.page_id = p_page_id and s.sender_id = p_sender_id;

  -- The row stays, without anything of the person: its number and its changes keep their meaning.
  update convsync.messenger_conversations c
  set sender_id = 'erased:' || c.conversation_id,
    sender_name = null, sender_name_at = null, thread_id = null, thread_id_at = null,
    last_message = null, last_message_id = null, last_message_time = null, last_inbound_time = null,
    message_count = 0, unread_count = 0, unread_count_at = null, snippet = null, snippet_at = null,
    can_reply = null, can_reply_at = null, reported_count = null, reported_count_at = null,
    updated_time = null, updated_time_at = null, read_watermark = null, delivered_watermark = null,
    tags = '{}', assignee = null, note = null, deleted_at = v_now, history_complete_at = null,
    version = c.version + (c.version_xid is distinct from v_xid)::integer, version_xid = v_xid, updated_at = v_now
  where c.page_id = p_page_id and c.conversation_id = v_row.conversation_id
  returning c.version into strict v_version;
  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  values (p_page_id, convsync_api._epoch(), v_xid, v_row.conversation_id, v_version, '{erased}', v_now)
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version, kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
  return jsonb_build_object('conversation_id', v_row.conversation_id::text, 'events', v_events, 'waiting_amendments', v_pending,
    'dead_letters', v_letters, 'erased_at', v_now);
end
$$;
comment on function convsync_api.erase_contact(text, text) is
$c$Erases a person from a Page: every message, the name, the thread, what people noted, waiting edits, dead letters that mention
them. The conversation's row stays without a trace of the person. Facts up to now are refused for ever; later ones start a new
contact. Returns counts. Errors: ZC003, ZC006.$c$;

create or replace function convsync_api.purge_events(p_page_id text, p_before timestamptz, p_limit integer default 10000)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_horizon timestamptz;
  v_xid xid8 := pg_current_xact_id();
  v_conversations bigint[];
  v_events bigint;
begin
  if p_before is null or not isfinite(p_before) or p_before > v_now then
    raise exception 'before must be in the past' using errcode = 'ZC003', hint = 'p_before';
  end if;
  update convsync.pages p
  set purged_before = greatest(p.purged_before, p_before), updated_at = v_now
  where p.page_id = p_page_id
  returning p.purged_before into v_horizon;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  select array_agg(l.conversation_id) into v_conversations
  from (
    select c.conversation_id
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.conversation_id in (
      select e.conversation_id
      from convsync.contact_interaction_events e
      where e.page_id = p_page_id and e.event_timestamp < v_horizon
      group by e.conversation_id
      limit greatest(coalesce(p_limit, 10000), 1))
    order by c.page_id, c.sender_id
    for no key update
  ) l;
  delete from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.conversation_id = any (v_conversations) and e.event_timestamp < v_horizon;
  get diagnostics v_events = row_count;
  update convsync.messenger_conversations c
  set message_count = (
      select count(*) from convsync.contact_interaction_events e
      where e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread and e.deleted_at is null),
    last_message_id = l.message_id, last_message_time = l.event_timestamp, last_message = l.body,
    version = c.version + (c.version_xid is distinct from v_xid)::integer, version_xid = v_xid, updated_at = v_now
  from unnest(v_conversations) t (conversation_id)
  left join lateral (
    select e.message_id, e.event_timestamp, e.body
    from convsync.contact_interaction_events e
    where e.page_id = p_page_id and e.conversation_id = t.conversation_id and e.in_thread and e.deleted_at is null
    order by e.event_timestamp desc, e.message_id desc
    limit 1
  ) l on true
  where c.page_id = p_page_id and c.conversation_id = t.conversation_id;
  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  select c.page_id, convsync_api._epoch(), v_xid, c.conversation_id, c.version, '{purged}', v_now
  from convsync.messenger_conversations c
  where c.page_id = p_page_id and c.conversation_id = any (v_conversations)
  order by c.conversation_id
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version, kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
  return jsonb_build_object('events', v_events, 'conversations', coalesce(cardinality(v_conversations), 0),
    'purged_before', v_horizon,
    'more', exists (select from convsync.contact_interaction_events e where e.page_id = p_page_id and e.event_timestamp < v_horizon));
end
$$;
comment on function convsync_api.purge_events(text, timestamptz, integer) is
$c$Deletes a Page's events from before an instant, of at most p_limit conversations per call (repeat while more is true), and
remembers the horizon: facts from before it are not stored any more. Returns counts. Errors: ZC001, ZC003.$c$;
