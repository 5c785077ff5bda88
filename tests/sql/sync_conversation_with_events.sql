-- One conversation with its events in one call: all of it or nothing, once however often.
begin;
select plan(40);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

-- SQLSTATE, message, detail and hint of what a statement raises
create function pg_temp.error_of(p_sql text) returns text language plpgsql as $$
declare
  v_state text; v_message text; v_detail text; v_hint text;
begin
  execute p_sql;
  return 'no error';
exception when others then
  get stacked diagnostics v_state = returned_sqlstate, v_message = message_text,
    v_detail = pg_exception_detail, v_hint = pg_exception_hint;
  return concat_ws(' | ', v_state, v_message, 'detail: ' || nullif(v_detail, ''), 'hint: ' || nullif(v_hint, ''));
end $$;

-- A version rises once per transaction, and this whole file is one: as if it had been committed up to here.
create procedure pg_temp.next_transaction() language plpgsql as $$
begin
  update convsync.messenger_conversations set version_xid = null;
  update convsync.conversation_changes set xid = change_id::text::xid8;
end $$;

-- what the function says, without the conversation's number
create function pg_temp.write(p_conversation jsonb, p_events jsonb, p_expected_version bigint default null) returns table (
  page_id text, version bigint, outcome text, events_added integer
) language sql as $$
  select s.page_id, s.version, s.outcome, s.events_added
  from convsync_api.sync_conversation_with_events('{"page_id": "100", "sender_id": "2001"}' || p_conversation, p_events, p_expected_version) s
$$;

select results_eq(
  $$select * from pg_temp.write('{"sender_name": "Ann", "thread_id": "t_1", "unread_count": 1, "snippet": "hi", "can_reply": true,
      "reported_count": 2, "updated_time": "2026-03-01T10:01:00Z"}',
    '[{"message_id": "m_1", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z", "body": "hello", "metadata": {"mood": "good"}},
      {"message_id": "m_2", "direction": "out", "event_timestamp": "2026-03-01T10:01:00Z", "body": "hi"}]')$$,
  $$values ('100', 1::bigint, 'created', 2)$$, 'created');
select results_eq(
  $$select sender_name, thread_id::text collate "default", unread_count, snippet, can_reply, reported_count, updated_time, last_message, message_count
    from convsync.messenger_conversations$$,
  $$values ('Ann', 't_1', 1, 'hi', true, 2, '2026-03-01T10:01:00Z'::timestamptz, 'hi', 2)$$, 'the conversation');
select results_eq(
  $$select message_id::text collate "default", event_type, direction, body, source, metadata from convsync.contact_interaction_events order by 1$$,
  $$values ('m_1', 'message', 'in', 'hello', 'sql', '{"mood": "good"}'::jsonb), ('m_2', 'message', 'out', 'hi', 'sql', '{}')$$,
  'its events, of type message unless told');
select isnt((select conversation_id from convsync_api.sync_conversation_with_events('{"page_id": "100", "sender_id": "2001"}', null)), null,
  'conversation_id is there when nothing changed, and events may be null');

call pg_temp.next_transaction();
set local convsync.now = '2026-03-01T12:01:00Z';
select results_eq(
  $$select * from pg_temp.write('{"sender_name": "Ann", "thread_id": "t_1"}',
    '[{"message_id": "m_1", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z", "body": "hello"}]')$$,
  $$values ('100', 1::bigint, 'unchanged', 0)$$, 'the same again: unchanged');
select results_eq(
  $$select * from pg_temp.write('{}', '[{"message_id": "m_3", "direction": "in", "event_timestamp": "2026-03-01T10:02:00Z", "event_type": "postback", "body": "Buy"},
      {"message_id": "m_4", "direction": "in", "event_timestamp": "2026-03-01T10:03:00Z", "event_type": "referral"},
      {"message_id": "m_5", "direction": "in", "event_timestamp": "2026-03-01T10:01:30Z", "event_type": ""}]')$$,
  $$values ('100', 2::bigint, 'updated', 3)$$, 'new events: updated');
select results_eq($$select last_message, message_count from convsync.messenger_conversations$$, $$values ('Buy', 4)$$,
  'a postback is of the thread, a referral is not, a type that is empty is a message');

call pg_temp.next_transaction();
select results_eq($$select * from pg_temp.write('{"sender_name": "Bea", "observed_at": "2026-02-01T00:00:00Z"}', '[]')$$,
  $$values ('100', 2::bigint, 'unchanged', 0)$$, 'what was observed before what is known changes nothing');
select results_eq($$select * from pg_temp.write('{"sender_name": null}', '[]')$$, $$values ('100', 2::bigint, 'unchanged', 0)$$, 'a name never becomes empty');

-- The expected version

select results_eq($$select * from pg_temp.write('{"sender_name": "Bea"}', '[]', 2)$$, $$values ('100', 3::bigint, 'updated', 0)$$, 'the version that is expected');
select is(pg_temp.error_of($$select * from pg_temp.write('{}', '[{"message_id": "m_6", "direction": "in", "event_timestamp": "2026-03-01T10:09:00Z"}]', 2)$$),
  'ZC002 | the conversation is at version 3, not 2 | detail: {"actual": 3, "expected": 2}', 'another one is refused');
select is((select count(*) from convsync.contact_interaction_events where message_id = 'm_6'), 0::bigint, 'and nothing of the call remains');
select is(pg_temp.error_of($$select * from pg_temp.write('{}', '[]', 0)$$),
  'ZC002 | the conversation is at version 3, not 0 | detail: {"actual": 3, "expected": 0}', '0 means that it must not exist yet');
select is(pg_temp.error_of($$select * from pg_temp.write('{"sender_id": "2002"}', '[]', 4)$$),
  'ZC002 | the conversation is at version 0, not 4 | detail: {"actual": 0, "expected": 4}', 'a conversation that does not exist is at version 0');
select results_eq($$select * from pg_temp.write('{"sender_id": "2002"}', '[]', 0)$$, $$values ('100', 1::bigint, 'created', 0)$$, 'and may be expected to be');

-- All or nothing

select throws_ok(
  $$select * from pg_temp.write('{"sender_id": "2003"}', '[{"message_id": "m_7", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z"},
    {"message_id": "m_8", "direction": "in", "event_timestamp": "yesterday evening"}]')$$, '22007', null, 'an event with a time that is none');
select throws_ok($$select * from pg_temp.write('{"sender_id": "2003", "unread_count": -1}', '[{"message_id": "m_7", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z"}]')$$,
  '23514', null, 'or a value that a constraint refuses');
select is((select count(*) from convsync.messenger_conversations where sender_id = '2003'), 0::bigint, 'rolls back the conversation');
select is((select count(*) from convsync.contact_interaction_events where message_id in ('m_7', 'm_8')), 0::bigint, 'and every event');

-- Refused, with the field

select is(pg_temp.error_of(format('select * from convsync_api.sync_conversation_with_events(%L, %L)', conversation, events)), wanted, what)
from (values
  (1, null, '[]', 'ZC003 | p_conversation must be an object | hint: p_conversation', 'a conversation is told'),
  (2, '[]', '[]', 'ZC003 | p_conversation must be an object | hint: p_conversation', 'as an object'),
  (3, '{"page_id": "100", "sender_id": "2001"}', '{}', 'ZC003 | p_events must be an array | hint: p_events', 'events are an array'),
  (4, '{"sender_id": "2001"}', '[]', 'ZC003 | p_conversation.page_id is missing | hint: p_conversation.page_id', 'the Page is told'),
  (5, '{"page_id": "", "sender_id": "2001"}', '[]', 'ZC003 | p_conversation.page_id is missing | hint: p_conversation.page_id', 'and not empty'),
  (6, '{"page_id": "100"}', '[]', 'ZC003 | p_conversation.sender_id is missing or the Page itself | hint: p_conversation.sender_id', 'the contact is told'),
  (7, '{"page_id": "100", "sender_id": ""}', '[]', 'ZC003 | p_conversation.sender_id is missing or the Page itself | hint: p_conversation.sender_id', 'not empty'),
  (8, '{"page_id": "100", "sender_id": "100"}', '[]', 'ZC003 | p_conversation.sender_id is missing or the Page itself | hint: p_conversation.sender_id', 'and not the Page'),
  (9, '{"page_id": "100", "sender_id": "2001", "message_count": 5}', '[]', 'ZC003 | p_conversation.message_count is not a field | hint: p_conversation.message_count',
    'what is derived cannot be set'),
  (10, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "m", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z"}, 7]',
    'ZC003 | p_events[1] must be an object | hint: p_events[1]', 'an event is an object'),
  (11, '{"page_id": "100", "sender_id": "2001"}', '[{"direction": "in", "event_timestamp": "2026-03-01T10:00:00Z"}]',
    'ZC003 | p_events[0].message_id is missing or wrong | hint: p_events[0].message_id', 'with an id'),
  (12, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z"}]',
    'ZC003 | p_events[0].message_id is missing or wrong | hint: p_events[0].message_id', 'that is not empty'),
  (13, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "m", "event_timestamp": "2026-03-01T10:00:00Z"}]',
    'ZC003 | p_events[0].direction is missing or wrong | hint: p_events[0].direction', 'a direction'),
  (14, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "m", "direction": "up", "event_timestamp": "2026-03-01T10:00:00Z"}]',
    'ZC003 | p_events[0].direction is missing or wrong | hint: p_events[0].direction', 'that is in or out'),
  (15, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "m", "direction": "in"}]',
    'ZC003 | p_events[0].event_timestamp is missing or wrong | hint: p_events[0].event_timestamp', 'and a time'),
  (16, '{"page_id": "100", "sender_id": "2001"}', '[{"message_id": "m", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z", "metadata": [1]}]',
    'ZC003 | p_events[0].metadata is missing or wrong | hint: p_events[0].metadata', 'metadata is an object')
) w (n, conversation, events, wanted, what)
order by n;

-- Nothing is put together from text

select lives_ok(
  $q$select convsync_api.sync_conversation_with_events('{"page_id": "100", "sender_id": "x'' or 1=1 --", "sender_name": "\\\"; drop table convsync.pages; $$"}',
    '[{"message_id": "%s %I $1", "direction": "in", "event_timestamp": "2026-03-01T10:00:00Z", "body": "\u0027 || 1 || \u0027"}]')$q$,
  'quotes, backslashes and dollars are only text');
select results_eq($$select body from convsync.contact_interaction_events where message_id = '%s %I $1'$$, $$values (''' || 1 || ''')$$, 'and come out as they went in');
select results_eq($$select count(*) from convsync_api.sync_conversation_with_events('{"page_id": "400", "sender_id": "2001"}', '[]')$$, $$values (1::bigint)$$,
  'a Page that was never heard of is made');
select is((select added_at from convsync.pages where page_id = '400'), null, 'but is not called added');
select is((select count(*) from convsync.messenger_conversations where page_id = '100' and sender_id = '2001'), 1::bigint, 'a contact has one conversation');

select * from finish();
rollback;
