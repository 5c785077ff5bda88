-- What was verified of a thread is a register: whoever comes when, the read that was asked for later holds.
begin;
select plan(12);
set local timezone = 'UTC';
select lives_ok($$select convsync_api.add_page('100')$$, 'a Page');

create function pg_temp.proof(p_count integer, p_at text, p_whole boolean default true, p_unreadable integer default 0, p_through text default '10:00') returns jsonb
language sql immutable as $$
  select jsonb_build_array(jsonb_build_object('thread_id', 't_1', 'updated_time', '2026-03-01T10:00:00Z', 'message_count', p_count, 'newest_id', 'm_' || p_count,
    'verified_through', ('2026-03-01T' || p_through || 'Z')::timestamptz, 'verified_at', ('2026-03-01T' || p_at || 'Z')::timestamptz,
    'full_read_at', case when p_whole then ('2026-03-01T' || p_at || 'Z')::timestamptz end, 'unreadable', p_unreadable))
$$;
create function pg_temp.told() returns text language sql as $$
  select format('%s, run %s, through %s, whole %s, unreadable %s', p.newest_id, p.verified_run_id, to_char(p.verified_through, 'HH24:MI'),
    to_char(p.full_read_at, 'HH24:MI'), p.unreadable)
  from convsync.thread_proofs p where p.page_id = '100' and p.thread_id = 't_1'
$$;
create function pg_temp.outcome(p_mode text, p_run bigint, p_more jsonb default '{}', p_thread text default 't_1') returns text language sql as $$
  select t ->> 'outcome' || coalesce(' until ' || (t ->> 'stop_at'), '')
  from jsonb_array_elements(convsync_api._judge_threads('100', p_run, p_mode, jsonb_build_array(jsonb_build_object('thread_id', p_thread, 'sender_id', '2001',
    'updated_time', '2026-03-01T10:00:00Z', 'message_count', 5, 'newest_id', 'm_5', 'newest', '2026-03-01T10:00:00Z', 'oldest', '2026-03-01T09:58:00Z',
    'read', 'more', 'next_cursor', 'n1', 'unreadable', 0) || p_more), null, null, null)) t
$$;

select lives_ok($$select convsync_api._record_proofs('100', 1, pg_temp.proof(5, '12:00', p_unreadable => 2))$$, 'a read to the end');
select is(pg_temp.told(), 'm_5, run 1, through 10:00, whole 12:00, unreadable 2', 'is kept');
select is(
  array[pg_temp.outcome('incremental', 2), pg_temp.outcome('incremental', 2, '{"message_count": 6}'), pg_temp.outcome('full', 2), pg_temp.outcome('full', 1),
    pg_temp.outcome('incremental', 2, p_thread => 't_2')],
  '{nothing,"work until 2026-03-01T09:55:00+00:00","work until -infinity",nothing,"work until -infinity"}',
  'the same is not read by an incremental run, nor twice by one run; what changed is read down to what is known; what nobody knows, to its end');
select is(
  array[pg_temp.outcome('incremental', 2, '{"message_count": 6, "oldest": "2026-03-01T09:54:59Z"}'), pg_temp.outcome('incremental', 2, '{"message_count": 6, "oldest": null}'),
    pg_temp.outcome('incremental', 2, '{"message_count": 6, "read": "complete"}')],
  '{"done until 2026-03-01T09:55:00+00:00","work until 2026-03-01T09:55:00+00:00","done until 2026-03-01T09:55:00+00:00"}',
  'the messages that came with the list may have done it; if their order was none they have not');
select is(
  array[pg_temp.outcome('incremental', 2, '{"newest_id": "m_4"}'), pg_temp.outcome('incremental', 2, '{"updated_time": "2026-03-01T09:59:59Z"}')] = array_fill(
    'work until 2026-03-01T09:55:00+00:00'::text, '{2}'), true, 'each of the three may be what changed');

select lives_ok($$select convsync_api._record_proofs('100', 2, pg_temp.proof(6, '13:00', false, p_through => '10:05'))$$, 'a later read that stopped where all was known');
select is(pg_temp.told(), 'm_6, run 2, through 10:05, whole 12:00, unreadable 2', 'says nothing of what cannot be read below');
select lives_ok($$select convsync_api._record_proofs('100', 3, pg_temp.proof(4, '12:30', p_unreadable => 1))$$, 'one to the end, asked for earlier, comes last');
select is(pg_temp.told(), 'm_6, run 2, through 10:05, whole 12:30, unreadable 1', 'what is known does not go back');
select convsync_api._record_proofs('100', 4, pg_temp.proof(0, '14:00', true) #- '{0,updated_time}' #- '{0,message_count}' #- '{0,newest_id}');
select is(pg_temp.told(), 'm_6, run 4, through 10:05, whole 14:00, unreadable 0', 'a read that no list called for has no word of what the list says');
select is(pg_temp.outcome('incremental', 5, '{"newest_id": null, "newest": null, "oldest": null, "read": "unread"}'), 'work until 2026-03-01T10:00:00+00:00', 'a list without messages cannot say that nothing changed');

select * from finish();
rollback;
