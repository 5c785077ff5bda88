-- Reading conversations and threads, page by page. A position is the sort key of the last row, so nothing is skipped or
-- repeated however many rows arrive meanwhile.

create or replace function convsync_api._conversation_document(p_conversation convsync.messenger_conversations)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'page_id', p_conversation.page_id,
    'conversation_id', p_conversation.conversation_id::text,
    'sender_id', p_conversation.sender_id,
    'sender_name', p_conversation.sender_name,
    'thread_id', p_conversation.thread_id,
    'last_message', p_conversation.last_message,
    'last_message_id', p_conversation.last_message_id,
    'last_message_time', p_conversation.last_message_time,
    'last_inbound_time', p_conversation.last_inbound_time,
    'message_count', p_conversation.message_count,
    'unread_count', p_conversation.unread_count,
    'snippet', p_conversation.snippet,
    'can_reply', p_conversation.can_reply,
    'conversation_status', p_conversation.conversation_status,
    'tags', to_jsonb(p_conversation.tags),
    'assignee', p_conversation.assignee,
    'note', p_conversation.note,
    'timezone', p_conversation.timezone,
    'read_watermark', p_conversation.read_watermark,
    'delivered_watermark', p_conversation.delivered_watermark,
    'deleted_at', p_conversation.deleted_at,
    'history_complete_at', p_conversation.history_complete_at,
    'version', p_conversation.version,
    'created_at', p_conversation.created_at,
    'updated_at', p_conversation.updated_at
  );
$$;

create or replace function convsync_api._check_page(p_page_id text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from convsync.pages p where p.page_id = p_page_id and p.removed_at is null) then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
end
$$;

create or replace function convsync_api._list_position(p_at timestamptz, p_id text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from p_at) * 1000000)::bigint || '.' || p_id;
$$;

create or replace function convsync_api._read_list_position(p_before text, p_id_pattern text, out at timestamptz, out id text)
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_microseconds numeric;
begin
  if nullif(p_before, '') is null then
    return;
  end if;
  if p_before ~ ('^-?[0-9]{1,19}[.]' || p_id_pattern || '$') then
    v_microseconds := split_part(p_before, '.', 1)::numeric;
  end if;
  if v_microseconds is null or v_microseconds not between -62000000000000000 and 9200000000000000000 then
    raise exception 'before is not a position of this list' using errcode = 'ZC003', hint = 'before';
  end if;
  -- Whole seconds apart, because a product with an interval goes through a double.
  at := 'epoch'::timestamptz + div(v_microseconds, 1000000)::bigint * interval '1 second'
    + mod(v_microseconds, 1000000)::bigint * interval '1 microsecond';
  id := substr(p_before, position('.' in p_before) + 1);
end
$$;

create or replace function convsync_api._list_part(p_name text, p_documents jsonb[], p_positions text[], p_limit integer)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- One more than asked for was read: it tells that there is more, and comes with the next part.
  select jsonb_build_object(
    p_name, coalesce(to_jsonb(p_documents[:p_limit]), '[]'),
    'next', case when cardinality(p_documents) > p_limit then p_positions[p_limit] end);
$$;

create or replace function convsync_api.list_conversations(
  p_page_id text, p_status text default null, p_query text default null, p_before text default null, p_limit integer default 50
)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
as $$
declare
  v_limit integer := least(greatest(coalesce(p_limit, 50), 1), 200);
  v_time timestamptz;
  v_id bigint;
  v_pattern text := '%' || replace(replace(replace(nullif(p_query, ''), '\', '\\'), '%', '\%'), '_', '\_') || '%';
  v_result jsonb;
begin
  perform convsync_api._check_page(p_page_id);
  select b.at, b.id::bigint into strict v_time, v_id from convsync_api._read_list_position(p_before, '[0-9]{1,18}') b;
  with found as (
    select coalesce(c.last_message_time, 'epoch') as at, c.conversation_id as id, convsync_api._conversation_document(c) as document
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.deleted_at is null
      and (nullif(p_status, '') is null or c.conversation_status = p_status)
      and (v_pattern is null or c.sender_name ilike v_pattern or c.last_message ilike v_pattern or c.sender_id = p_query)
      and (v_time is null or (coalesce(c.last_message_time, 'epoch'), c.conversation_id) < (v_time, v_id))
    order by coalesce(c.last_message_time, 'epoch') desc, c.conversation_id desc
    limit v_limit + 1
  )
  select convsync_api._list_part('conversations', array_agg(f.document order by f.at desc, f.id desc),
    array_agg(convsync_api._list_position(f.at, f.id::text) order by f.at desc, f.id desc), v_limit)
  into strict v_result
  from found f;
  return v_result;
end
$$;
comment on function convsync_api.list_conversations(text, text, text, text, integer) is
$c$The conversations of a Page, newest first: {"conversations": [..], "next": position or null}. p_query looks in name, last
message and the person's id; p_before is the next of the part before; p_limit 1 to 200. Errors: ZC001, ZC003.$c$;

create or replace function convsync_api.get_conversation(p_page_id text, p_conversation_id bigint)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_conversation convsync.messenger_conversations;
begin
  select c.* into v_conversation
  from convsync.messenger_conversations c
  join convsync.pages p on p.page_id = c.page_id and p.removed_at is null
  where c.page_id = p_page_id and c.conversation_id = p_conversation_id;
  if not found then
    raise exception 'Page % has no conversation %', p_page_id, p_conversation_id using errcode = 'ZC001';
  end if;
  if v_conversation.sender_id like 'erased:%' then
    raise exception 'this contact was erased' using errcode = 'ZC006';
  end if;
  return convsync_api._conversation_document(v_conversation);
end
$$;
comment on function convsync_api.get_conversation(text, bigint) is
  'One conversation as JSON, as list_conversations gives it. Errors: ZC001, ZC006 when the person was erased.';

create or replace function convsync_api.list_events(
  p_page_id text, p_conversation_id bigint, p_before text default null, p_limit integer default 50
)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
as $$
declare
  v_limit integer := least(greatest(coalesce(p_limit, 50), 1), 200);
  v_time timestamptz;
  v_id text;
  v_gone_at timestamptz;
  v_result jsonb;
begin
  v_gone_at := (convsync_api.get_conversation(p_page_id, p_conversation_id) ->> 'deleted_at')::timestamptz;
  select b.at, b.id into strict v_time, v_id from convsync_api._read_list_position(p_before, '.+') b;
  with found as (
    select e.event_timestamp as at, e.message_id as id, jsonb_build_object(
      'message_id', e.message_id, 'event_type', e.event_type, 'direction', e.direction, 'in_thread', e.in_thread,
      'event_timestamp', e.event_timestamp, 'received_at', e.received_at, 'source', e.source, 'body', e.body,
      'metadata', e.metadata, 'edited_at', e.edited_at, 'deleted_at', coalesce(e.deleted_at, v_gone_at)) as document
    from convsync.contact_interaction_events e
    where e.page_id = p_page_id and e.conversation_id = p_conversation_id
      and (v_time is null or (e.event_timestamp, e.message_id) < (v_time, v_id))
    order by e.event_timestamp desc, e.message_id desc
    limit v_limit + 1
  )
  select convsync_api._list_part('events', array_agg(f.document order by f.at desc, f.id desc),
    array_agg(convsync_api._list_position(f.at, f.id) order by f.at desc, f.id desc), v_limit)
  into strict v_result
  from found f;
  return v_result;
end
$$;
comment on function convsync_api.list_events(text, bigint, text, integer) is
$c$A conversation's events, newest first: {"events": [..], "next": position or null}. p_before is the next of the part before,
p_limit 1 to 200. deleted_at is set for what was taken back or is gone, with its conversation too. Errors: ZC001, ZC003, ZC006.$c$;

create or replace function convsync_api.message_texts(p_page_id text, p_conversation_id bigint, p_message_ids text[])
returns table (message_id text, body text)
language plpgsql
stable
rows 10
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_gone boolean;
begin
  v_gone := convsync_api.get_conversation(p_page_id, p_conversation_id) ->> 'deleted_at' is not null;
  return query
  select e.message_id, case when e.deleted_at is null and not v_gone then e.body end
  from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.conversation_id = p_conversation_id and e.message_id = any (p_message_ids);
end
$$;
comment on function convsync_api.message_texts(text, bigint, text[]) is
$c$The texts of messages of a conversation, as those that reply to them quote them: null for what was taken back, is gone or had
none. What the conversation does not have is left out. Errors: ZC001, ZC006.$c$;

create or replace function convsync_api.list_page_events(p_page_id text, p_before text default null, p_limit integer default 50)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
as $$
declare
  v_limit integer := least(greatest(coalesce(p_limit, 50), 1), 200);
  v_time timestamptz;
  v_id text;
  v_result jsonb;
begin
  perform convsync_api._check_page(p_page_id);
  select b.at, b.id into strict v_time, v_id from convsync_api._read_list_position(p_before, '.+') b;
  with found as (
    select e.event_timestamp as at, e.event_id as id, jsonb_build_object(
      'event_id', e.event_id, 'event_type', e.event_type, 'event_timestamp', e.event_timestamp,
      'received_at', e.received_at, 'source', e.source, 'metadata', e.metadata) as document
    from convsync.page_events e
    where e.page_id = p_page_id and (v_time is null or (e.event_timestamp, e.event_id) < (v_time, v_id))
    order by e.event_timestamp desc, e.event_id desc
    limit v_limit + 1
  )
  select convsync_api._list_part('events', array_agg(f.document order by f.at desc, f.id desc),
    array_agg(convsync_api._list_position(f.at, f.id) order by f.at desc, f.id desc), v_limit)
  into strict v_result
  from found f;
  return v_result;
end
$$;
comment on function convsync_api.list_page_events(text, text, integer) is
$c$What the platform told a Page of itself (policy_enforcement, app_roles), newest first: {"events": [..], "next": position or
null}. p_before is the next of the part before, p_limit 1 to 200. Errors: ZC001, ZC003.$c$;
