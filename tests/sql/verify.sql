-- What Graph says now against what the mirror holds: found is what differs, and nothing is written.
begin;
select plan(26);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

create function pg_temp.message(p_id text, p_text text, p_at text, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'message', 'page_id', '100', 'sender_id', '2001', 'message_id', p_id, 'direction', 'in',
    'event_type', 'message', 'at', '2026-03-01T' || p_at || 'Z', 'observed_at', '2026-03-01T12:30:00Z', 'text', p_text) || p_more
$$;
create function pg_temp.thread(p_fields jsonb, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'thread', 'page_id', '100', 'sender_id', '2001', 'thread_id', 't_1',
    'observed_at', '2026-03-01T12:30:00Z', 'fields', p_fields) || p_more
$$;
-- what is found, one finding per line
create function pg_temp.compare(variadic p_facts jsonb[]) returns text language sql as $$
  select coalesce(string_agg(concat_ws(' ', c.finding, c.what, c.id, '(' || c.detail || ')', case when c.settled then 'settled' end), ', ' order by c.finding, c.id), 'nothing')
  from convsync_api.compare_facts('100', to_jsonb(p_facts)) c
$$;

select is(convsync_api.history_complete('100'), true, 'a Page without conversations lacks no history');
select lives_ok(
  $$select convsync_api.ingest(jsonb_build_array(
    pg_temp.thread('{"name": "Ann"}', '{"observed_at": "2026-03-01T11:00:00Z"}'),
    pg_temp.message('m_1', 'one', '10:00:00', '{"observed_at": "2026-03-01T11:00:00Z"}'),
    pg_temp.message('m_2', 'two', '10:01:00.500') - 'observed_at'), 'sync')$$, 'a mirror of two messages');
select is(convsync_api.history_complete('100'), false, 'whose history was not read to its end');
create temporary table before_it on commit drop as select * from convsync.messenger_conversations;

-- Facts

select is(pg_temp.compare(pg_temp.thread('{"name": "Ann", "reported_count": 2}'), pg_temp.message('m_1', 'one', '10:00:00'), pg_temp.message('m_2', 'two', '10:01:00')),
  'nothing', 'what is the same but for the milliseconds is no finding');
select is(pg_temp.compare(pg_temp.message('m_3', 'three', '10:02:00')), 'missing message m_3 settled', 'a message that is not here');
select is(pg_temp.compare(pg_temp.message('m_3', 'three', '12:29:30')), 'missing message m_3', 'is not settled in its first minute');
select is(pg_temp.compare(pg_temp.message('m_3', 'three', '12:30:01')), 'nothing', 'nor looked at if it came after the read');
select is(pg_temp.compare(pg_temp.message('m_1', 'uno', '10:00:00')), 'differing message m_1 (text)', 'another text');
select is(pg_temp.compare(pg_temp.message('m_2', '', '10:01:00')), 'nothing', 'a text that Graph leaves out says nothing');
select is(pg_temp.compare(pg_temp.message('m_1', 'one', '10:00:01', '{"direction": "out"}')), 'differing message m_1 (direction, second)', 'another direction and second');
select is(pg_temp.compare(pg_temp.message('m_1', 'one', '10:00:00', '{"sender_id": "2009"}')), 'differing message m_1 (owner)', 'another person');
select is(pg_temp.compare(pg_temp.thread('{"name": "Bea", "reported_count": 2}')), 'differing conversation 2001 (name)', 'another name');
select is(pg_temp.compare(pg_temp.thread('{}', '{"thread_id": "t_2"}')) ~ '^(count|differing) conversation 2001', true, 'another thread');
select is(pg_temp.compare(pg_temp.thread('{"name": "Ann", "reported_count": 3}')), 'count conversation 2001 (3 reported, 2 here)', 'a count that does not add up');
select is(pg_temp.compare(pg_temp.thread('{"reported_count": 0, "updated_time": "2026-03-01T09:00:00Z"}', '{"sender_id": "2002", "thread_id": "t_9"}')),
  'missing conversation 2002 settled', 'a conversation that is not here');
select throws_ok($$select * from convsync_api.compare_facts('101', jsonb_build_array(pg_temp.message('m_1', 'one', '10:00:00')))$$, 'ZC003', 'a fact of another Page',
  'facts are of the Page');
select throws_ok($$select pg_temp.compare(pg_temp.message('m_1', 'one', '10:00:00') - 'observed_at')$$, 'ZC003', 'a message that Graph did not tell', 'and of Graph');
select throws_ok($$select * from convsync_api.compare_facts('100', '{}')$$, 'ZC003', 'facts must be an array', 'and an array');

-- A thread to its end

create function pg_temp.extra(p_ids text[], p_observed_at timestamptz, p_thread_id text default 't_1', p_sender_id text default null) returns text language sql as $$
  select coalesce(string_agg(concat_ws(' ', c.finding, c.id), ', '), 'nothing')
  from convsync_api.compare_thread('100', p_thread_id, p_ids, p_observed_at, p_sender_id) c
$$;
select is(pg_temp.extra('{m_1,m_2,m_3}', '2026-03-01T12:30:00Z'), 'nothing', 'all that is here was listed');
select is(pg_temp.extra('{m_2}', '2026-03-01T12:30:00Z'), 'extra m_1', 'what was not listed is extra');
select is(pg_temp.extra('{}', '2026-03-01T12:00:00Z'), 'nothing', 'unless it came here after the read began');
select is(pg_temp.extra('{}', '2026-03-01T12:30:00Z', 't_8', '2001'), 'nothing', 'another thread is not compared');

-- What a list must show

select results_eq(
  $$select sender_id::text collate "default", thread_id::text collate "default" from convsync_api.conversations_to_find('100', '2026-03-01T12:30:00Z')$$,
  $$values ('2001', 't_1')$$, 'a conversation with a message is to be found');
select is_empty($$select * from convsync_api.conversations_to_find('100', '2026-03-01T12:00:00Z')$$, 'one whose messages came later is not');
select is_empty($$select * from convsync_api.conversations_to_find('100', '2026-03-01T12:30:00Z',
    (select max(conversation_id) from convsync.messenger_conversations))$$, 'nor one that was looked at already');

select results_eq('select * from before_it', 'select * from convsync.messenger_conversations', 'nothing was written');

select * from finish();
rollback;
