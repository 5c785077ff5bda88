-- The one way in: what each kind of fact becomes, what is counted, and what is refused.
begin;
select plan(78);
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

create function pg_temp.message(p_id text, p_text text, p_at text, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'message', 'page_id', '100', 'sender_id', '2001', 'message_id', p_id, 'direction', 'in',
    'event_type', 'message', 'at', '2026-03-01T' || p_at || 'Z', 'text', p_text) || p_more
$$;
-- what ingest says of each conversation, without its number
create function pg_temp.ingest(p_source text, variadic p_facts jsonb[]) returns table (
  page_id text, sender_id text, version bigint, created boolean, events_added integer, events_changed integer
) language sql as $$
  select i.page_id, i.sender_id, i.version, i.created, i.events_added, i.events_changed
  from convsync_api.ingest(to_jsonb(p_facts), p_source) i
$$;

-- Nothing

select is_empty($$select * from convsync_api.ingest('[]', 'webhook')$$, 'no facts, no rows');
select is((select count(*) from convsync.pages), 0::bigint, 'and nothing stored');

-- A message

select results_eq($$select * from pg_temp.ingest('webhook', pg_temp.message('m_1', 'hello', '10:00:00.250', '{"metadata": {"webhook": {"is_new": [1]}}}'))$$,
  $$values ('100', '2001', 1::bigint, true, 1, 0)$$, 'the first message creates Page, conversation and event');
select isnt((select conversation_id from convsync_api.ingest(to_jsonb(array[pg_temp.message('m_1', 'hello', '10:00:00.250')]), 'webhook')), null,
  'conversation_id is there for what was known already');
select results_eq(
  $$select event_type, direction, event_timestamp, received_at, source, body, metadata, deleted_at
    from convsync.contact_interaction_events where page_id = '100' and message_id = 'm_1'$$,
  $$values ('message', 'in', '2026-03-01T10:00:00.25Z'::timestamptz, '2026-03-01T12:00:00Z'::timestamptz, 'webhook', 'hello',
    '{"webhook": {"is_new": [1]}}'::jsonb, null::timestamptz)$$,
  'the event holds what was said, unknown fields too');
select results_eq(
  $$select last_message, last_message_id, last_message_time, last_inbound_time, message_count, unread_count, conversation_status, updated_at
    from convsync.messenger_conversations$$,
  $$values ('hello', 'm_1' collate "C", '2026-03-01T10:00:00.25Z'::timestamptz, '2026-03-01T10:00:00.25Z'::timestamptz, 1, 0, 'active',
    '2026-03-01T12:00:00Z'::timestamptz)$$,
  'the conversation is the fold of its events');
select is((select last_webhook_at from convsync.pages where page_id = '100'), '2026-03-01T12:00:00Z', 'the Page knows when its last webhook came');
select results_eq($$select version, kinds from convsync.conversation_changes$$, $$values (1::bigint, '{message}'::text[])$$, 'the change feed has one row');

-- Again

call pg_temp.next_transaction();
set local convsync.now = '2026-03-01T12:00:30Z';
select results_eq($$select * from pg_temp.ingest('webhook', pg_temp.message('m_1', 'hello', '10:00:00.250', '{"metadata": {"webhook": {"is_new": [1]}}}'))$$,
  $$values ('100', '2001', 1::bigint, false, 0, 0)$$, 'a second delivery changes nothing');
select is((select count(*) from convsync.conversation_changes), 1::bigint, 'and is no row of the feed');
select is((select updated_at from convsync.messenger_conversations), '2026-03-01T12:00:00Z', 'nor an update');
select is((select last_webhook_at from convsync.pages where page_id = '100'), '2026-03-01T12:00:00Z', 'the Page''s webhook time is written once a minute');
set local convsync.now = '2026-03-01T12:01:01Z';
select results_eq($$select * from pg_temp.ingest('webhook', pg_temp.message('m_0', 'earlier', '09:00'))$$,
  $$values ('100', '2001', 2::bigint, false, 1, 0)$$, 'an older message that comes later is added');
select is((select last_webhook_at from convsync.pages where page_id = '100'), '2026-03-01T12:01:01Z', 'the Page''s webhook time moves on');
select results_eq($$select last_message, message_count from convsync.messenger_conversations$$, $$values ('hello', 2)$$, 'but is not the last message');
select results_eq($$select * from pg_temp.ingest('webhook', pg_temp.message('m_2', 'newest', '11:00'))$$,
  $$values ('100', '2001', 2::bigint, false, 1, 0)$$, 'version rises once per transaction, however many calls');
select results_eq($$select last_message, message_count from convsync.messenger_conversations$$, $$values ('newest', 3)$$, 'a newer one is');
select results_eq($$select count(*), max(version) from convsync.conversation_changes$$, $$values (2::bigint, 2::bigint)$$, 'the feed has one row per transaction');

-- Many at once, of several conversations and Pages

call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('sync',
      pg_temp.message('m_9', 'c', '10:00', '{"page_id": "200", "sender_id": "2009"}'),
      pg_temp.message('m_8', 'b', '10:00', '{"sender_id": "2002", "direction": "out"}'),
      pg_temp.message('m_7', 'a', '10:00', '{"sender_id": "2002"}'),
      pg_temp.message('m_7', 'a', '10:00', '{"sender_id": "2002"}'),
      pg_temp.message('m_7', 'a', '10:00', '{"page_id": "200", "sender_id": "2009"}'),
      pg_temp.message('m_2', 'newest', '11:00'))$$,
  $$values ('100', '2001', 2::bigint, false, 0, 0), ('100', '2002', 1, true, 2, 0), ('200', '2009', 1, true, 2, 0)$$,
  'one row per conversation, in key order; a message that comes twice in one call is one; ids are the Page''s own');
select is((select last_inbound_time from convsync.messenger_conversations where sender_id = '2002'), '2026-03-01T10:00:00Z',
  'an echo is no inbound message');
select is((select last_synced_version from convsync.messenger_conversations where sender_id = '2001'), 2::bigint, 'what sync has seen is synced up to its version');
select is((select last_synced_version from convsync.messenger_conversations where sender_id = '2002'), 1::bigint, 'also what it brought');
select is((select last_webhook_at from convsync.pages where page_id = '200'), null, 'a sync is no webhook');

-- Edits, reactions, unsends

call pg_temp.next_transaction();
select results_eq($$select * from pg_temp.ingest('webhook', '{"kind": "edit", "page_id": "100", "sender_id": "2001", "message_id": "m_0",
    "at": "2026-03-01T09:05:00Z", "num_edit": 1, "text": "earlier!"}')$$,
  $$values ('100', '2001', 3::bigint, false, 0, 1)$$, 'an edit of an old message changes the version of its conversation');
select results_eq($$select body, text_original, num_edit from convsync.contact_interaction_events where message_id = 'm_0'$$,
  $$values ('earlier!', 'earlier', 1)$$, 'the text first written is kept');
call pg_temp.next_transaction();
select results_eq($$select * from pg_temp.ingest('webhook', '{"kind": "reaction", "page_id": "100", "sender_id": "2001", "message_id": "m_0",
    "at": "2026-03-01T09:06:00Z", "actor_id": "2001", "action": "react", "reaction": "love", "emoji": "❤"}')$$,
  $$values ('100', '2001', 4::bigint, false, 0, 1)$$, 'so does a reaction');
select is((select metadata -> 'reactions' from convsync.contact_interaction_events where message_id = 'm_0'),
  '[{"actor": "2001", "emoji": "❤", "reaction": "love"}]', 'which stands in metadata.reactions');
call pg_temp.next_transaction();
select results_eq($$select * from pg_temp.ingest('webhook', '{"kind": "unsend", "page_id": "100", "sender_id": "2001", "message_id": "m_2",
    "at": "2026-03-01T11:05:00Z"}')$$,
  $$values ('100', '2001', 5::bigint, false, 0, 1)$$, 'and an unsend');
select results_eq($$select last_message, message_count from convsync.messenger_conversations where sender_id = '2001'$$,
  $$values ('hello', 2)$$, 'the last message is the one before it, the count one less');
select is((select count(*) from convsync.contact_interaction_events where message_id = 'm_2'), 1::bigint, 'the unsent message stays as a row');
select results_eq($$select distinct kinds from convsync.conversation_changes where version in (3, 4, 5) order by 1$$,
  $$values ('{edit}'::text[]), ('{reaction}'), ('{unsend}')$$, 'the feed tells what it was');

call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('webhook',
    '{"kind": "unsend", "page_id": "100", "sender_id": "2003", "message_id": "m_20", "at": "2026-03-01T10:09:00Z"}',
    '{"kind": "edit", "page_id": "100", "sender_id": "2003", "message_id": "m_21", "at": "2026-03-01T10:08:00Z", "num_edit": 2, "text": "second"}')$$,
  $$values ('100', '2003', 1::bigint, true, 0, 0)$$, 'what comes before its message waits');
select is((select count(*) from convsync.pending_amendments), 2::bigint, 'as a pending amendment');
select results_eq($$select * from pg_temp.ingest('webhook',
    pg_temp.message('m_20', 'gone', '10:07', '{"sender_id": "2003"}'), pg_temp.message('m_21', 'first', '10:06', '{"sender_id": "2003"}'))$$,
  $$values ('100', '2003', 1::bigint, false, 2, 0)$$, 'until the message comes');
select results_eq($$select body, deleted_at is not null from convsync.contact_interaction_events where message_id in ('m_20', 'm_21') order by message_id$$,
  $$values ('gone', true), ('second', false)$$, 'which takes it over');
select is((select count(*) from convsync.pending_amendments), 0::bigint, 'and leaves nothing behind');
select is((select message_count from convsync.messenger_conversations where sender_id = '2003'), 1, 'an unsent message does not count');

-- Receipts

call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('webhook', '{"kind": "watermark", "page_id": "100", "sender_id": "2001", "what": "read", "at": "2026-03-01T11:00:00Z"}')$$,
  $$values ('100', '2001', 6::bigint, false, 0, 0)$$, 'a receipt changes the conversation, no event');
select results_eq($$select kinds from convsync.conversation_changes where version = 6$$, $$values ('{receipt}'::text[])$$, 'the feed calls it a receipt');
call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('webhook', '{"kind": "watermark", "page_id": "100", "sender_id": "2001", "what": "read", "at": "2026-03-01T10:00:00Z"}')$$,
  $$values ('100', '2001', 6::bigint, false, 0, 0)$$, 'an older one changes nothing');

select results_eq(
  $$select * from pg_temp.ingest('webhook', pg_temp.message('m_5', 'late', '08:00'),
    '{"kind": "watermark", "page_id": "100", "sender_id": "2001", "what": "read", "at": "2026-03-01T10:00:00Z"}')$$,
  $$values ('100', '2001', 7::bigint, false, 1, 0)$$, 'also beside something that does');
select is((select read_watermark from convsync.messenger_conversations where page_id = '100' and sender_id = '2001'), '2026-03-01T11:00:00Z',
  'a watermark never falls');
call pg_temp.next_transaction();

-- A thread snapshot

select results_eq(
  $$select * from pg_temp.ingest('sync', '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "t_1", "observed_at": "2026-03-01T11:30:00Z",
    "fields": {"name": "Ann", "unread_count": 2, "snippet": "hello", "can_reply": true, "reported_count": 3, "updated_time": "2026-03-01T11:00:00Z"}}')$$,
  $$values ('100', '2001', 8::bigint, false, 0, 0)$$, 'a snapshot changes the conversation');
select results_eq(
  $$select sender_name, thread_id::text collate "default", unread_count, snippet, can_reply, reported_count, updated_time from convsync.messenger_conversations where sender_id = '2001'$$,
  $$values ('Ann', 't_1', 2, 'hello', true, 3, '2026-03-01T11:00:00Z'::timestamptz)$$, 'each requested field');
call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('sync', '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "t_1", "observed_at": "2026-03-01T11:31:00Z",
    "fields": {"name": "Ann", "unread_count": 2, "snippet": "hello", "can_reply": true, "reported_count": 3, "updated_time": "2026-03-01T11:00:00Z"}}')$$,
  $$values ('100', '2001', 8::bigint, false, 0, 0)$$, 'the same seen again later is no change');

-- A read of Graph's beside what the webhook said

select results_eq(
  $$select * from pg_temp.ingest('sync', pg_temp.message('m_1', 'hello', '10:00', '{"observed_at": "2026-03-01T11:40:00Z",
    "metadata": {"graph": {"attachments": [{"url": "https://cdn.example/a.jpg?oh=1"}]}}}'))$$,
  $$values ('100', '2001', 9::bigint, false, 0, 1)$$, 'what Graph adds to a known message changes it');
call pg_temp.next_transaction();
select results_eq(
  $$select * from pg_temp.ingest('sync', pg_temp.message('m_1', 'hello', '10:00', '{"observed_at": "2026-03-01T11:41:00Z",
    "metadata": {"graph": {"attachments": [{"url": "https://cdn.example/a.jpg?oh=2"}]}}}'))$$,
  $$values ('100', '2001', 9::bigint, false, 0, 0)$$, 'a link with a renewed signature is no change');
select is((select metadata -> 'graph' -> 'attachments' -> 0 ->> 'url' from convsync.contact_interaction_events where message_id = 'm_1' and page_id = '100'),
  'https://cdn.example/a.jpg?oh=2', 'but is the one that is kept');
select is((select event_timestamp from convsync.contact_interaction_events where message_id = 'm_1' and page_id = '100'), '2026-03-01T10:00:00.25Z',
  'the milliseconds of the webhook stay');

-- Refused, with the fact and the field; and nothing of such a call remains

select is(pg_temp.error_of($$select convsync_api.ingest('{}', 'webhook')$$), 'ZC003 | facts must be an array | hint: facts', 'facts are an array');
select is(pg_temp.error_of($$select convsync_api.ingest(null, 'webhook')$$), 'ZC003 | facts must be an array | hint: facts', 'and not null');
select is(pg_temp.error_of($$select convsync_api.ingest('[]', 'telepathy')$$), 'ZC003 | source must be webhook, sync, sql or import | hint: source', 'sources have names');
select is(pg_temp.error_of($$select convsync_api.ingest('[]', null)$$), 'ZC003 | source must be webhook, sync, sql or import | hint: source', 'and one is told');

select is(
  pg_temp.error_of(format('select convsync_api.ingest(%L, %L)', jsonb_build_array(pg_temp.message('m_30', 'x', '10:00'), wrong), 'sql')),
  format('ZC003 | facts[1].%1$s is missing or wrong | hint: facts[1].%1$s', field), what)
from (values
  (1, 'kind', '{"page_id": "100", "sender_id": "2001"}'::jsonb, 'a fact has a kind'),
  (2, 'kind', '{"kind": "wish", "page_id": "100", "sender_id": "2001"}', 'that is known'),
  (3, 'page_id', pg_temp.message('m_31', 'x', '10:00') - 'page_id', 'a Page'),
  (4, 'page_id', pg_temp.message('m_31', 'x', '10:00', '{"page_id": ""}'), 'that is not empty'),
  (5, 'sender_id', pg_temp.message('m_31', 'x', '10:00') - 'sender_id', 'a contact'),
  (6, 'sender_id', pg_temp.message('m_31', 'x', '10:00', '{"sender_id": "100"}'), 'that is not the Page'),
  (7, 'message_id', pg_temp.message('', 'x', '10:00'), 'a message has an id'),
  (8, 'at', pg_temp.message('m_31', 'x', '10:00') - 'at', 'a time'),
  (9, 'at', pg_temp.message('m_31', 'x', '10:00', '{"at": "infinity"}'), 'that is one'),
  (10, 'direction', pg_temp.message('m_31', 'x', '10:00', '{"direction": "up"}'), 'a direction'),
  (11, 'event_type', pg_temp.message('m_31', 'x', '10:00', '{"event_type": ""}'), 'a type'),
  (12, 'metadata', pg_temp.message('m_31', 'x', '10:00', '{"metadata": [1]}'), 'metadata that is an object'),
  (13, 'num_edit', '{"kind": "edit", "page_id": "100", "sender_id": "2001", "message_id": "m_1", "at": "2026-03-01T10:00:00Z", "text": "x"}', 'an edit its number'),
  (14, 'text', '{"kind": "edit", "page_id": "100", "sender_id": "2001", "message_id": "m_1", "at": "2026-03-01T10:00:00Z", "num_edit": 1}', 'and its text'),
  (15, 'actor_id', '{"kind": "reaction", "page_id": "100", "sender_id": "2001", "message_id": "m_1", "at": "2026-03-01T10:00:00Z", "action": "react"}', 'a reaction who reacted'),
  (16, 'action', '{"kind": "reaction", "page_id": "100", "sender_id": "2001", "message_id": "m_1", "at": "2026-03-01T10:00:00Z", "actor_id": "2001"}', 'and how'),
  (17, 'what', '{"kind": "watermark", "page_id": "100", "sender_id": "2001", "at": "2026-03-01T10:00:00Z", "what": "smelt"}', 'a watermark what it is of'),
  (18, 'observed_at', '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "t_1"}', 'a snapshot when it was seen'),
  (19, 'thread_id', '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "", "observed_at": "2026-03-01T10:00:00Z"}', 'no empty thread'),
  (20, 'fields', '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "t_1", "observed_at": "2026-03-01T10:00:00Z", "fields": 1}', 'fields that are an object')
) w (n, field, wrong, what)
order by n;

select throws_ok($$select convsync_api.ingest('[{"kind": "watermark", "page_id": "100", "sender_id": "2001", "what": "read", "at": "soon"}]', 'sql')$$, '22007',
  'invalid input syntax for type timestamp with time zone: "soon"', 'a time that is none is refused by PostgreSQL');
select throws_ok($$select convsync_api.ingest('[1]', 'sql')$$, '22023', null, 'so is a fact that is no object');
select throws_ok(
  $$select convsync_api.ingest(jsonb_build_array(pg_temp.message('m_30', 'x', '10:00', '{"sender_id": "2030", "page_id": "300"}'),
    '{"kind": "thread", "page_id": "100", "sender_id": "2001", "thread_id": "t_1", "observed_at": "2026-03-01T12:00:00Z", "fields": {"unread_count": -1}}'::jsonb), 'sql')$$,
  '23514', null, 'and a value that a constraint refuses');
select is((select count(*) from convsync.contact_interaction_events where message_id = 'm_30'), 0::bigint, 'nothing of a failing call remains: no event');
select is((select count(*) from convsync.messenger_conversations where sender_id = '2030'), 0::bigint, 'no conversation');

select * from finish();
rollback;
