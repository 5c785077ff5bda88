-- Conversations for programs and people: one conversation with its events in one call, and edits by version.

create or replace function convsync_api.sync_conversation_with_events(
  p_conversation jsonb, p_events jsonb, p_expected_version bigint default null
)
returns table (page_id text, conversation_id bigint, version bigint, outcome text, events_added integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_page_id text;
  v_sender_id text;
  v_actual bigint;
  v_observed_at timestamptz;
  v_field text;
  v_facts jsonb;
  v_result record;
begin
  if p_conversation is null or jsonb_typeof(p_conversation) <> 'object' then
    raise exception 'p_conversation must be an object' using errcode = 'ZC003', hint = 'p_conversation';
  end if;
  if jsonb_typeof(coalesce(p_events, '[]')) <> 'array' then
    raise exception 'p_events must be an array' using errcode = 'ZC003', hint = 'p_events';
  end if;
  v_page_id := p_conversation ->> 'page_id';
  v_sender_id := p_conversation ->> 'sender_id';
  if coalesce(v_page_id, '') = '' then
    raise exception 'p_conversation.page_id is missing' using errcode = 'ZC003', hint = 'p_conversation.page_id';
  end if;
  if coalesce(v_sender_id, '') in ('', v_page_id) then
    raise exception 'p_conversation.sender_id is missing or the Page itself' using errcode = 'ZC003', hint = 'p_conversation.sender_id';
  end if;
  select k into v_field
  from jsonb_object_keys(p_conversation) k
  where k not in ('page_id', 'sender_id', 'sender_name', 'thread_id', 'unread_count', 'snippet', 'can_reply',
    'reported_count', 'updated_time', 'observed_at')
  limit 1;
  if found then
    raise exception 'p_conversation.% is not a field', v_field using errcode = 'ZC003', hint = 'p_conversation.' || v_field;
  end if;
  select format('p_events[%s]', e.ordinality - 1) into v_field
  from jsonb_array_elements(coalesce(p_events, '[]')) with ordinality e
  where jsonb_typeof(e.value) <> 'object'
  limit 1;
  if found then
    raise exception '% must be an object', v_field using errcode = 'ZC003', hint = v_field;
  end if;
  select format('p_events[%s].%s', e.ordinality - 1, k.field) into v_field
  from jsonb_array_elements(coalesce(p_events, '[]')) with ordinality e
  cross join lateral unnest(array['message_id', 'direction', 'event_timestamp', 'metadata']) k (field)
  where case k.field
    when 'metadata' then jsonb_typeof(e.value -> 'metadata') not in ('object', 'null')
    when 'direction' then coalesce(e.value ->> 'direction', '') not in ('in', 'out')
    else coalesce(e.value ->> k.field, '') = '' end
  limit 1;
  if found then
    raise exception '% is missing or wrong', v_field using errcode = 'ZC003', hint = v_field;
  end if;
  v_observed_at := coalesce((p_conversation ->> 'observed_at')::timestamptz, convsync_api._now());

  select c.version into v_actual
  from convsync.messenger_conversations c
  where c.page_id = v_page_id and c.sender_id = v_sender_id
  for no key update;
  v_actual := coalesce(v_actual, 0);
  if p_expected_version is not null and p_expected_version <> v_actual then
    raise exception 'the conversation is at version %, not %', v_actual, p_expected_version
      using errcode = 'ZC002', detail = jsonb_build_object('expected', p_expected_version, 'actual', v_actual)::text;
  end if;

  v_facts := jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
      'kind', 'thread', 'page_id', v_page_id, 'sender_id', v_sender_id, 'thread_id', nullif(p_conversation ->> 'thread_id', ''),
      'observed_at', v_observed_at))
    || jsonb_build_object('fields',
      (p_conversation - '{page_id,sender_id,sender_name,thread_id,observed_at}'::text[])
        || jsonb_build_object('name', p_conversation -> 'sender_name')))
    || coalesce((
      select jsonb_agg(jsonb_build_object(
        'kind', 'message', 'page_id', v_page_id, 'sender_id', v_sender_id,
        'message_id', e.value -> 'message_id', 'direction', e.value -> 'direction',
        'event_type', coalesce(nullif(e.value ->> 'event_type', ''), 'message'),
        'at', e.value -> 'event_timestamp', 'text', e.value -> 'body',
        -- What the caller told beside the fields is kept, as everywhere.
        'metadata', (e.value - '{message_id,direction,event_type,event_timestamp,body,metadata,in_thread}'::text[])
          || coalesce(nullif(e.value -> 'metadata', 'null'), '{}'),
        'in_thread', coalesce((e.value ->> 'in_thread')::boolean, coalesce(nullif(e.value ->> 'event_type', ''), 'message') in ('message', 'postback'))))
      from jsonb_array_elements(coalesce(p_events, '[]')) e
    ), '[]');

  select i.conversation_id, i.version, i.created, i.changed, i.events_added into v_result
  from convsync_api._ingest(v_facts, 'sql') i
  where i.page_id = v_page_id and i.sender_id = v_sender_id;
  if not found then
    raise exception 'this contact was erased, and nothing of this is later' using errcode = 'ZC006';
  end if;

  if p_expected_version = 0 and not v_result.created then
    -- Somebody else created it between the look and the lock.
    raise exception 'the conversation exists, version 0 was expected'
      using errcode = 'ZC002', detail = jsonb_build_object('expected', 0, 'actual', v_result.version)::text;
  end if;
  return query select v_page_id, v_result.conversation_id, v_result.version,
    case when v_result.created then 'created' when v_result.changed then 'updated' else 'unchanged' end,
    v_result.events_added;
end
$$;
comment on function convsync_api.sync_conversation_with_events(jsonb, jsonb, bigint) is
$c$Writes one conversation and any of its events in one transaction; all of it or nothing.
p_conversation: page_id, sender_id, optional sender_name, thread_id, unread_count, snippet, can_reply, reported_count,
updated_time, observed_at (default now). p_events: an array of message_id, direction (in or out), event_timestamp, optional
event_type (default message), body, metadata, in_thread; other keys are kept in metadata. p_expected_version: refuse unless the conversation is at this version
(0: it must not exist). outcome is created, updated or unchanged; an event already there is not added again.
Errors: ZC002 (detail: expected, actual), ZC003 (hint: the field), ZC006 (the contact was erased, and all of this is of before),
22xxx and 23xxx for refused values.$c$;

create or replace function convsync_api._is_timezone(p_name text)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- By its name: `at time zone` itself takes anything that looks like an offset, 'Mars4' too.
  select exists (select from pg_timezone_names z where z.name = p_name);
$$;

create or replace function convsync_api.update_conversation(
  p_page_id text, p_conversation_id bigint, p_expected_version bigint, p_patch jsonb
)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '1s'
as $$
-- Who presses again and again while somebody's idle session has the conversation locked must not use up the service's connections.
declare
  v_row convsync.messenger_conversations;
  v_now timestamptz := convsync_api._now();
  v_xid xid8;
  v_field text;
  v_tags text[];
  v_version bigint;
begin
  if p_expected_version is null then
    raise exception 'the version that was read is missing' using errcode = 'ZC003', hint = 'p_expected_version';
  end if;
  if p_patch is null or jsonb_typeof(p_patch) <> 'object' then
    raise exception 'p_patch must be an object' using errcode = 'ZC003', hint = 'p_patch';
  end if;
  select k.key into v_field
  from jsonb_each(p_patch) k
  where not case k.key
    when 'conversation_status' then jsonb_typeof(k.value) = 'string' and length(k.value #>> '{}') between 1 and 64
    when 'tags' then jsonb_typeof(k.value) = 'array'
      and not exists (select from jsonb_array_elements(case jsonb_typeof(k.value) when 'array' then k.value else '[]' end) t
        where jsonb_typeof(t.value) <> 'string' or t.value #>> '{}' = '')
    when 'assignee' then jsonb_typeof(k.value) in ('string', 'null')
    when 'note' then jsonb_typeof(k.value) in ('string', 'null')
    when 'timezone' then jsonb_typeof(k.value) in ('string', 'null')
    else false
  end
  limit 1;
  if found then
    raise exception 'p_patch.% is unknown or wrong', v_field using errcode = 'ZC003', hint = 'p_patch.' || v_field;
  end if;
  if p_patch ->> 'timezone' is not null and not convsync_api._is_timezone(p_patch ->> 'timezone') then
    raise exception 'p_patch.timezone: there is no time zone %', p_patch ->> 'timezone' using errcode = 'ZC003', hint = 'p_patch.timezone';
  end if;

  select c.* into v_row
  from convsync.messenger_conversations c
  where c.page_id = p_page_id and c.conversation_id = p_conversation_id
  for no key update;
  if not found then
    raise exception 'Page % has no conversation %', p_page_id, p_conversation_id using errcode = 'ZC001';
  end if;
  if v_row.sender_id like 'erased:%' then
    raise exception 'this contact was erased' using errcode = 'ZC006';
  end if;
  if v_row.version <> p_expected_version then
    raise exception 'the conversation is at version %, not %', v_row.version, p_expected_version
      using errcode = 'ZC002', detail = jsonb_build_object('expected', p_expected_version, 'actual', v_row.version)::text;
  end if;

  v_tags := case when p_patch ? 'tags'
    then array(select distinct t.value from jsonb_array_elements_text(p_patch -> 'tags') t order by 1) else v_row.tags end;
  if (coalesce(p_patch ->> 'conversation_status', v_row.conversation_status), v_tags,
      case when p_patch ? 'assignee' then p_patch ->> 'assignee' else v_row.assignee end,
      case when p_patch ? 'note' then p_patch ->> 'note' else v_row.note end,
      case when p_patch ? 'timezone' then p_patch ->> 'timezone' else v_row.timezone end)
    is not distinct from (v_row.conversation_status, v_row.tags, v_row.assignee, v_row.note, v_row.timezone) then
    return v_row.version;
  end if;

  v_xid := pg_current_xact_id();
  update convsync.messenger_conversations c
  set conversation_status = coalesce(p_patch ->> 'conversation_status', c.conversation_status),
    tags = v_tags,
    assignee = case when p_patch ? 'assignee' then p_patch ->> 'assignee' else c.assignee end,
    note = case when p_patch ? 'note' then p_patch ->> 'note' else c.note end,
    timezone = case when p_patch ? 'timezone' then p_patch ->> 'timezone' else c.timezone end,
    version = c.version + (c.version_xid is distinct from v_xid)::integer,
    version_xid = v_xid,
    updated_at = v_now
  where c.page_id = p_page_id and c.conversation_id = p_conversation_id
  returning c.version into strict v_version;

  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  values (p_page_id, convsync_api._epoch(), v_xid, p_conversation_id, v_version, '{edit_by_person}', v_now)
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version,
    kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
  return v_version;
end
$$;
comment on function convsync_api.update_conversation(text, bigint, bigint, jsonb) is
$c$Changes what people and programs own of a conversation, if it is still at the version they read; returns the new version.
p_patch: any of conversation_status (1 to 64 characters), tags (an array of strings), assignee, note (string or null),
timezone (of the person, an IANA name, or null: contact_timing tells their hours in it).
Nothing to change leaves the version as it is. Errors: ZC001 no such conversation, ZC002 version conflict
(detail: expected, actual), ZC003 (hint: the field), ZC006; 55P03 (it stays locked for a second) asks the caller to repeat the call.$c$;
