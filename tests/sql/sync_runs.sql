-- A run: begun once, carried by whoever holds its fence, resumed where it stopped, ended by its own ledger.
begin;
select plan(136);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

-- SQLSTATE, message, detail and hint of what a statement raises; numbers of runs are told as N
create function pg_temp.error_of(p_sql text) returns text language plpgsql as $$
declare
  v_state text; v_message text; v_detail text; v_hint text;
begin
  execute p_sql;
  return 'no error';
exception when others then
  get stacked diagnostics v_state = returned_sqlstate, v_message = message_text,
    v_detail = pg_exception_detail, v_hint = pg_exception_hint;
  return regexp_replace(concat_ws(' | ', v_state, v_message, 'detail: ' || nullif(v_detail, ''), 'hint: ' || nullif(v_hint, '')),
    '(run(?:_id)?"?:? "?)-?\d+', '\1N', 'g');
end $$;

-- the run that was begun last, and the statements that carry it with some fence
create function pg_temp.run() returns bigint language sql as $$ select max(run_id) from convsync.sync_runs $$;
create function pg_temp.fence() returns bigint language sql as $$ select fence from convsync.sync_runs where run_id = pg_temp.run() $$;
create function pg_temp.begin_sync(p_mode text default 'full', p_restart boolean default false, p_owner text default 'a') returns text language sql as $$
  select format('fence %s, resumed %s', b.fence, b.resumed) from convsync_api.begin_sync('100', p_mode, p_owner, p_restart => p_restart) b
$$;
create function pg_temp.work(p_limit integer default 10) returns table (kind text, thread_id text, sender_id text, last_cursor text, walk_pass integer)
language sql as $$ select * from convsync_api.next_sync_work('100', pg_temp.run(), pg_temp.fence(), p_limit) $$;
create function pg_temp.apply_list(p_cursor text, p_next text, p_threads jsonb default '[]', p_facts jsonb default '[]', p_unreadable integer default 0) returns text language sql as $$
  select format('applied %s, changed %s, added %s, open %s', a.applied, a.conversations_changed, a.messages_added, a.open_work)
  from convsync_api.apply_sync_page('100', pg_temp.run(), pg_temp.fence(), 'list', null, p_cursor, p_next, convsync_api._now(), p_facts, p_threads, p_unreadable) a
$$;
create function pg_temp.apply_thread(p_thread text, p_cursor text, p_next text, p_facts jsonb default '[]', p_unreadable integer default 0) returns text language sql as $$
  select format('applied %s, changed %s, added %s, open %s', a.applied, a.conversations_changed, a.messages_added, a.open_work)
  from convsync_api.apply_sync_page('100', pg_temp.run(), pg_temp.fence(), 'thread', p_thread, p_cursor, p_next, convsync_api._now(), p_facts, '[]', p_unreadable) a
$$;
create function pg_temp.message(p_sender text, p_id text, p_at text) returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'message', 'page_id', '100', 'sender_id', p_sender, 'message_id', p_id, 'direction', 'in', 'event_type', 'message',
    'at', '2026-03-01T' || p_at || 'Z', 'text', p_id, 'observed_at', '2026-03-01T12:00:00Z')
$$;
create function pg_temp.snapshot(p_sender text, p_thread text) returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'thread', 'page_id', '100', 'sender_id', p_sender, 'thread_id', p_thread, 'observed_at', '2026-03-01T12:00:00Z', 'fields', '{}'::jsonb)
$$;
create function pg_temp.listed(p_thread text, p_sender text, p_read text, p_next text default null, p_updated text default '2026-03-01T09:00:00Z', p_unreadable integer default 0)
returns jsonb language sql immutable as $$
  select jsonb_build_object('thread_id', p_thread, 'sender_id', p_sender, 'updated_time', p_updated, 'message_count', 2, 'newest_id', 'm_' || p_sender,
    'read', p_read, 'next_cursor', p_next, 'unreadable', p_unreadable)
$$;
create function pg_temp.document(variadic p_fields text[]) returns jsonb language sql as $$
  select jsonb_object_agg(f, convsync_api.get_sync_run(pg_temp.run()) -> f) from unnest(p_fields) f
$$;

-- Beginning

select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'full')$$), 'ZC001 | there is no Page 100', 'a sync needs its Page');
select lives_ok($$select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k1')$$, 'which is added');
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'fast')$$), 'ZC003 | mode must be full, incremental or reconcile | hint: mode', 'a mode that is known');
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', null)$$), 'ZC003 | mode must be full, incremental or reconcile | hint: mode', 'and told');
select results_eq($$select fence, resumed from convsync_api.begin_sync('100', 'full', 'a', 15, false, 'req-1')$$, $$values (1::bigint, false)$$, 'a run begins');
select results_eq(
  $$select mode, status, owner, lease_expires_at, request_id, started_at, finished_at from convsync.sync_runs$$,
  $$values ('full', 'running', 'a', '2026-03-01T12:00:15Z'::timestamptz, 'req-1', '2026-03-01T12:00:00Z'::timestamptz, null::timestamptz)$$,
  'with an owner and a lease');
select is(convsync_api.get_sync_run(pg_temp.run()) - '{run_id}'::text[],
  '{"page_id": "100", "mode": "full", "status": "running", "reason": null, "success": false, "partial": false, "failed_batches": [],
    "conversations_seen": 0, "conversations_changed": 0, "messages_added": 0, "unreadable": 0, "deletions_proposed": 0, "deletions_confirmed": 0, "calls": 0, "eta_seconds": null, "calls_left": null, "calls_per_second": null, "progress": "0", "open_threads": 0,
    "started_at": "2026-03-01T12:00:00+00:00", "finished_at": null, "request_id": "req-1"}'::jsonb, 'and a document with every field');
select is(jsonb_typeof(convsync_api.get_sync_run(pg_temp.run()) -> 'run_id'), 'string', 'in which a number that names something is a string');
select is(pg_temp.error_of('select convsync_api.get_sync_run(-1)'), 'ZC001 | there is no run N', 'a run that is not there is not found');

-- One at a time

select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'full')$$),
  'ZC005 | run N is at work on Page 100 | detail: {"run_id": "N"}', 'a second one is refused, and told which one runs');
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'full', p_restart => true)$$),
  'ZC005 | run N is at work on Page 100 | detail: {"run_id": "N"}', 'also when it wants to restart');
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'reconcile')$$),
  'ZC005 | run N is at work on Page 100 | detail: {"run_id": "N"}', 'a reconcile walks too');
select lives_ok($$select convsync_api.add_page('101')$$, 'another Page');
select results_eq($$select fence, resumed from convsync_api.begin_sync('101', 'full')$$, $$values (1::bigint, false)$$, 'has its own');
select is(convsync_api.cancel_sync('101', pg_temp.run()), 'cancelled', 'which an operator may cancel');
select results_eq($$select fence, resumed from convsync_api.begin_sync('100', 'incremental')$$, $$values (1::bigint, false)$$, 'one incremental may run beside it');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'cancelled', 'and be cancelled');
delete from convsync.sync_cursors c using convsync.sync_runs r where r.run_id = c.run_id and r.status = 'cancelled';
delete from convsync.sync_runs where status = 'cancelled';

-- Walking the list

select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 1)$$, 'the first work is the front of the list');
set local convsync.now = '2026-03-01T12:00:05Z';
select is(
  pg_temp.apply_list(null, 'c1',
    jsonb_build_array(pg_temp.listed('t_1', '2001', 'complete'), pg_temp.listed('t_2', '2002', 'more', 'n1'), pg_temp.listed('t_3', '2003', 'unread'),
      pg_temp.listed('t_4', '2004', 'complete', p_unreadable => 1)),
    jsonb_build_array(pg_temp.snapshot('2001', 't_1'), pg_temp.message('2001', 'm_2001', '09:00'), pg_temp.message('2001', 'm_2', '08:00'),
      pg_temp.snapshot('2002', 't_2'), pg_temp.message('2002', 'm_2002', '09:00'), pg_temp.snapshot('2004', 't_4')), 1),
  'applied t, changed 3, added 3, open 3', 'a page of the list: facts, cursor, and the threads that need more reading');
select is(pg_temp.document('conversations_seen', 'conversations_changed', 'messages_added', 'unreadable', 'progress', 'open_threads'),
  '{"conversations_seen": 4, "conversations_changed": 3, "messages_added": 3, "unreadable": 1, "progress": "1", "open_threads": 2}', 'counted');
select is((select lease_expires_at from convsync.sync_runs where run_id = pg_temp.run()), '2026-03-01T12:00:20Z', 'a page that is applied renews the lease');
select results_eq($$select sender_id::text collate "default" from convsync.messenger_conversations where history_complete_at = '2026-03-01T12:00:05Z'$$, $$values ('2001')$$,
  'only a thread that was read whole, with nothing unreadable, is complete');
select results_eq('select * from pg_temp.work()',
  $$values ('thread', 't_2', '2002', 'n1', 1), ('thread', 't_3', '2003', null, 1), ('list', '', null, 'c1', 1)$$, 'threads come before the list');
select results_eq('select * from pg_temp.work(1)', $$values ('thread', 't_2', '2002', 'n1', 1)$$, 'as many as are asked for');
select results_eq('select * from pg_temp.work(-5)', $$values ('thread', 't_2', '2002', 'n1', 1)$$, 'at least one');

-- A page whose commit was answered into a broken connection is applied again

select is(pg_temp.apply_list(null, 'c1', jsonb_build_array(pg_temp.listed('t_9', '2009', 'more', 'n1')), jsonb_build_array(pg_temp.message('2009', 'm_9', '09:00'))),
  'applied f, changed 0, added 0, open 3', 'a page whose cursor has moved on changes nothing');
select is(pg_temp.document('conversations_seen', 'messages_added', 'progress'), '{"conversations_seen": 4, "messages_added": 3, "progress": "1"}', 'nor is it counted');
select is((select count(*) from convsync.contact_interaction_events where message_id = 'm_9'), 0::bigint, 'nor are its facts taken');

-- Threads

set local convsync.now = '2026-03-01T12:00:10Z';
select is(pg_temp.apply_thread('t_2', 'n1', 'n2', jsonb_build_array(pg_temp.message('2002', 'm_21', '08:00'))), 'applied t, changed 0, added 1, open 3', 'a page of a thread');
select is(pg_temp.apply_thread('t_2', 'n1', 'n2', jsonb_build_array(pg_temp.message('2002', 'm_21', '08:00'))), 'applied f, changed 0, added 0, open 3', 'once');
select is((select history_complete_at from convsync.messenger_conversations where sender_id = '2002'), null, 'it is not at its end yet');
select is(pg_temp.apply_thread('t_2', 'n2', null, jsonb_build_array(pg_temp.message('2002', 'm_22', '07:00'))), 'applied t, changed 0, added 1, open 2', 'its last page');
select is((select history_complete_at from convsync.messenger_conversations where sender_id = '2002'), '2026-03-01T12:00:10Z', 'makes it complete');
select is(pg_temp.apply_thread('t_3', null, null, jsonb_build_array(pg_temp.snapshot('2003', 't_3'), pg_temp.message('2003', 'm_2003', '07:00')), 2),
  'applied t, changed 1, added 1, open 1', 'another one, of which something cannot be read');
select is((select history_complete_at from convsync.messenger_conversations where sender_id = '2003'), null, 'is not complete');
select is(pg_temp.document('unreadable'), '{"unreadable": 3}', 'and says so in the run');
select is(pg_temp.apply_thread('t_8', null, null), 'applied f, changed 0, added 0, open 1', 'a thread that is no work of this run');

-- A cursor that Graph refuses

select is(convsync_api.restart_sync_list('100', pg_temp.run(), pg_temp.fence(), 'c1'), 1, 'the list is read from its front again');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 1)$$, 'its cursor is gone');
select is(convsync_api.restart_sync_list('100', pg_temp.run(), pg_temp.fence(), 'c1'), null, 'once');
select is(
  pg_temp.apply_list(null, 'c1', jsonb_build_array(pg_temp.listed('t_1', '2001', 'complete'), pg_temp.listed('t_2', '2002', 'more', 'n1'),
    pg_temp.listed('t_3', '2003', 'unread') || '{"message_count": 9}')),
  'applied t, changed 0, added 0, open 2', 'what was read already and has not moved is not read again, what has moved is');
select is(convsync_api.restart_sync_list('100', pg_temp.run(), pg_temp.fence(), 'n7', 't_3'), null, 'a thread''s cursor that is not its own restarts nothing');
select is(pg_temp.apply_thread('t_3', null, 'n7'), 'applied t, changed 0, added 0, open 2', 'a thread goes on');
select is(convsync_api.restart_sync_list('100', pg_temp.run(), pg_temp.fence(), 'n7', 't_3'), 1, 'and can be restarted too');
select is(pg_temp.apply_thread('t_3', null, null), 'applied t, changed 0, added 0, open 1', 'and read to its end');

-- The list moves while it is walked

set local convsync.now = '2026-03-01T12:10:00Z';
select is(pg_temp.apply_list('c1', null, jsonb_build_array(pg_temp.listed('t_5', '2005', 'complete')), jsonb_build_array(pg_temp.snapshot('2005', 't_5'))),
  'applied t, changed 1, added 0, open 1', 'the end of the list is not the end');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 2)$$, 'its front is read again');
select is(pg_temp.error_of('select convsync_api.finish_sync(''100'', pg_temp.run(), pg_temp.fence())'), 'ZC003 | run N has open work | hint: p_run_id',
  'a run with open work cannot be finished');
select is(
  pg_temp.apply_list(null, 'd1', jsonb_build_array(pg_temp.listed('t_6', '2006', 'complete', null, '2026-03-01T12:05:00Z')),
    jsonb_build_array(pg_temp.snapshot('2006', 't_6'), pg_temp.message('2006', 'm_6', '09:05'))),
  'applied t, changed 1, added 1, open 1', 'one that jumped to the front is found');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, 'd1', 2)$$, 'the walk goes on');
set local convsync.now = '2026-03-01T12:11:00Z';
select is(pg_temp.apply_list('d1', 'd2', jsonb_build_array(pg_temp.listed('t_5', '2005', 'complete'))), 'applied t, changed 0, added 0, open 1',
  'until a whole page is older than its start');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 3)$$, 'as something was found it is read once more');
select is(pg_temp.document('conversations_seen'), '{"conversations_seen": 9}', 'a conversation is counted once, also one that the first walk missed');
select is(pg_temp.apply_list(null, 'e1', jsonb_build_array(pg_temp.listed('t_6', '2006', 'complete', null, '2026-03-01T12:05:00Z'))), 'applied t, changed 0, added 0, open 1',
  'nothing new, but the pass before began earlier than that');
select is(pg_temp.apply_list('e1', 'e2', jsonb_build_array(pg_temp.listed('t_5', '2005', 'complete'))), 'applied t, changed 0, added 0, open 0',
  'until its start is reached: the list is at its end');
select is_empty('select * from pg_temp.work()', 'no work is left');
set local convsync.now = '2026-03-01T12:12:00Z';
select is(convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence()), 'succeeded', 'the run has succeeded');
select is(pg_temp.document('status', 'reason', 'success', 'partial', 'finished_at'),
  '{"status": "succeeded", "reason": null, "success": true, "partial": false, "finished_at": "2026-03-01T12:12:00+00:00"}', 'and says so');
select is(convsync_api.get_page('100') ->> 'last_success_at', '2026-03-01T12:12:00+00:00', 'the Page knows');

-- Who holds no fence changes nothing

select is(pg_temp.begin_sync(), 'fence 1, resumed f', 'a new run');
create temporary table before_it on commit drop as select r.* from convsync.sync_runs r where r.run_id = pg_temp.run();
select is(pg_temp.error_of(format(statement, pg_temp.run(), 7)), 'ZC004 | run N of Page 100 is not carried with fence 7 any more', 'refused with another fence: ' || what)
from (values
  (1, 'next_sync_work', 'select * from convsync_api.next_sync_work(''100'', %s, %s)'),
  (2, 'apply_sync_page', 'select * from convsync_api.apply_sync_page(''100'', %s, %s, ''list'', null, null, null, now(), ''[]'')'),
  (3, 'restart_sync_list', 'select convsync_api.restart_sync_list(''100'', %s, %s, ''c1'')'),
  (4, 'fail_sync_batch', 'select convsync_api.fail_sync_batch(''100'', %s, %s, ''list'', null, null, 3, ''{}'')'),
  (5, 'renew_sync_lease', 'select convsync_api.renew_sync_lease(''100'', %s, %s)'),
  (6, 'pause_sync', 'select convsync_api.pause_sync(''100'', %s, %s, ''shutdown'')'),
  (7, 'finish_sync', 'select convsync_api.finish_sync(''100'', %s, %s)'),
  (8, 'cancel_sync', 'select convsync_api.cancel_sync(''100'', %s, %s)'),
  (9, 'acquire_call', 'select * from convsync_api.acquire_call(''100'', ''backfill'', %s, %s)')
) w (n, what, statement)
order by n;
select is(pg_temp.error_of($$select * from convsync_api.next_sync_work('101', pg_temp.run(), pg_temp.fence())$$) ~ '^ZC004', true, 'refused for another Page');
select is(pg_temp.error_of($$select convsync_api.renew_sync_lease('100', pg_temp.run(), null)$$) ~ '^ZC004', true, 'refused without a fence');
select results_eq('select * from before_it', 'select r.* from convsync.sync_runs r where r.run_id = pg_temp.run()', 'the run is as it was');
select is_empty($$select from convsync.call_budgets where calls > 0$$, 'and no call was taken');

-- The lease

select is((select wait_ms from convsync_api.acquire_call('100', 'backfill', pg_temp.run(), pg_temp.fence())), 0, 'who holds the fence gets calls');
select is(pg_temp.document('calls'), '{"calls": 1}', 'which the run counts');
set local convsync.now = '2026-03-01T12:12:10Z';
select is(convsync_api.renew_sync_lease('100', pg_temp.run(), pg_temp.fence()), '2026-03-01T12:12:25Z', 'a lease is renewed');
select is(convsync_api.renew_sync_lease('100', pg_temp.run(), pg_temp.fence(), 1), '2026-03-01T12:12:25Z', 'never shortened');
set local convsync.now = '2026-03-01T12:12:24Z';
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'full')$$) ~ '^ZC005', true, 'until it ends nobody else begins');
select is_empty('select * from convsync_api.resumable_syncs()', 'and there is nothing to resume');
set local convsync.now = '2026-03-01T12:12:25Z';
select results_eq('select page_id, mode, run_id from convsync_api.resumable_syncs()', $$select '100', 'full', pg_temp.run()$$, 'then its process is taken for dead');
select is(pg_temp.apply_list(null, 'c1', jsonb_build_array(pg_temp.listed('t_2', '2002', 'more', 'n1'))), 'applied t, changed 0, added 0, open 2',
  'one that only was slow goes on');
set local convsync.now = '2026-03-01T12:13:00Z';
select is(pg_temp.begin_sync(p_owner => 'b'), 'fence 3, resumed t', 'until another takes the run over');
select is((select count(*) from convsync.sync_runs where page_id = '100' and mode = 'full'), 2::bigint, 'it is the same run');
select is(pg_temp.error_of($$select convsync_api.renew_sync_lease('100', pg_temp.run(), 1)$$), 'ZC004 | run N of Page 100 is not carried with fence 1 any more',
  'from then on the first one is refused');
select results_eq('select * from pg_temp.work()', $$values ('thread', 't_2', '2002', 'n1', 1), ('list', '', null, 'c1', 1)$$, 'the second reads on at the saved cursors');

-- Pausing

select lives_ok($$select convsync_api.pause_sync('100', pg_temp.run(), pg_temp.fence(), 'deadline', 60)$$, 'a run can be paused');
select results_eq(
  $$select status, reason, owner, lease_expires_at, resume_after, finished_at from convsync.sync_runs where run_id = pg_temp.run()$$,
  $$values ('paused', 'deadline', null::text, null::timestamptz, '2026-03-01T12:14:00Z'::timestamptz, null::timestamptz)$$, 'nobody carries it then');
select is(pg_temp.error_of($$select convsync_api.renew_sync_lease('100', pg_temp.run(), 3)$$) ~ '^ZC004', true, 'not even who paused it');
select is_empty('select * from convsync_api.resumable_syncs()', 'it is not due yet');
set local convsync.now = '2026-03-01T12:14:00Z';
select is((select count(*) from convsync_api.resumable_syncs()), 1::bigint, 'after its pause it is');
select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired')$$, 'with an invalid token');
select is_empty('select * from convsync_api.resumable_syncs()', 'nothing is resumed');
select lives_ok($$select convsync_api.mark_token('100', 'valid')$$, 'with a valid one');
select is(pg_temp.begin_sync('reconcile'), 'fence 1, resumed f', 'a paused full run does not hinder a reconcile');
select is(convsync_api.cancel_sync('100', pg_temp.run(), 1), 'cancelled', 'that ends');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'cancelled', 'once');
delete from convsync.sync_cursors where run_id = pg_temp.run();
delete from convsync.sync_runs where run_id = pg_temp.run();
select is(pg_temp.begin_sync(), 'fence 5, resumed t', 'beginning its mode resumes the paused run');
select is(pg_temp.document('status', 'reason'), '{"status": "running", "reason": null}', 'it runs');
select lives_ok($$select convsync_api.pause_sync('100', pg_temp.run(), pg_temp.fence(), 'shutdown')$$, 'paused again');
select is(pg_temp.begin_sync('full', true), 'fence 1, resumed f', 'a restart begins a new one');
select results_eq($$select status, reason from convsync.sync_runs where page_id = '100' order by run_id$$,
  $$values ('succeeded', null), ('cancelled', 'restarted'), ('running', null)$$, 'and ends the paused one');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 1)$$, 'from the front');

-- What cannot be read

select is(pg_temp.apply_list(null, 'c1', jsonb_build_array(pg_temp.listed('t_2', '2002', 'more', 'n1'), pg_temp.listed('t_3', '2003', 'more', 'n1'))),
  'applied t, changed 0, added 0, open 3', 'a walk');
select is(convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'list', null, 'c0', 5, '{}'), null, 'a cursor that has moved on has not failed');
select is(convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'list', null, 'c1', 5, '{"class": "transient", "code": 2, "message": "try later"}'), 1,
  'a page that cannot be read is batch 1');
select is(convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'list', null, 'c1', 5, '{}'), null, 'once');
select is(convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'thread', 't_2', 'n1', 0, null), 2, 'a thread''s is batch 2');
select is(pg_temp.document('failed_batches') #- '{failed_batches,0,progress}' #- '{failed_batches,1,progress}',
  '{"failed_batches": [
    {"batch": 1, "kind": "list", "thread_id": null, "cursor": "c1", "attempts": 5, "error": {"class": "transient", "code": 2, "message": "try later"}},
    {"batch": 2, "kind": "thread", "thread_id": "t_2", "cursor": "n1", "attempts": 1, "error": {}}]}', 'the run says what, where and why');
select results_eq('select * from pg_temp.work()', $$values ('thread', 't_3', '2003', 'n1', 1)$$, 'the rest goes on');
select is(pg_temp.error_of($$select convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence())$$), 'ZC003 | run N has open work | hint: p_run_id',
  'and has to be done before the end, also beside a failed batch');
select is(pg_temp.apply_thread('t_3', 'n1', null), 'applied t, changed 0, added 0, open 0', 'it is');
select is(convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence()), 'partial', 'then the run is partial, whatever its carrier thinks');
select is(pg_temp.document('status', 'reason', 'success', 'partial'), '{"status": "partial", "reason": "failed_batches", "success": false, "partial": true}', 'and says why');

-- Where the list fails its threads are read in its place, unless it will pass

create function pg_temp.retried(p_cursor text, p_error jsonb) returns text language plpgsql as $$
declare
  v_work text;
begin
  perform convsync_api.retry_sync('100', pg_temp.run());
  perform convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'thread', 't_2', 'n1', 1, '{}');
  perform convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'list', null, p_cursor, 1, p_error);
  select string_agg(w.thread_id || coalesce(' at ' || w.last_cursor, ''), ', ' order by w.thread_id) into v_work from pg_temp.work() w;
  perform pg_temp.apply_thread(w.thread_id, w.last_cursor, null) from pg_temp.work() w;
  perform convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence());
  return concat_ws(': ', pg_temp.document('status', 'reason'), v_work);
end $$;
select is(pg_temp.retried('c1', '{"class": "permission"}'), '{"reason": "failed_batches", "status": "partial"}', 'what a person has to allow is asked of nobody');
select is(pg_temp.retried('c1', '{"class": "shrink", "entry": "too_much_data"}'), '{"reason": "failed_batches", "status": "partial"}: t_1, t_4, t_5, t_6',
  'beyond a place that cannot be read the threads are read that are known and were not listed');
select is(pg_temp.retried('c1', '{"class": "listing", "entry": "listing_refused"}'), '{"reason": "listing_refused", "status": "partial"}',
  'a refused list is a reason of its own; what this run has read it does not read again');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'partial', 'a run that is over keeps its status');
select is(pg_temp.begin_sync('incremental'), 'fence 1, resumed f', 'the next');
select is(convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence(), 'token_invalid'), 'failed', 'can fail as a whole');
select is(pg_temp.document('status', 'reason'), '{"status": "failed", "reason": "token_invalid"}', 'for a reason');
select is(pg_temp.begin_sync(), 'fence 1, resumed f', 'a list that fails at its front');
select is(convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), 'list', null, null, 1, '{"class": "gone"}'), 1, 'has nothing');
select is(convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence()), 'partial', 'to be read in its place');
select is(pg_temp.retried(null, '{"class": "listing", "entry": "listing_refused"}'),
  '{"reason": "listing_refused", "status": "partial"}: t_1, t_2, t_3, t_4, t_5, t_6', 'unless it is the list that is refused');
select is(pg_temp.error_of($$select convsync_api.cancel_sync('100', -1)$$), 'ZC001 | Page 100 has no run N', 'a run that is not there cannot be cancelled');

-- The runs of a Page

create function pg_temp.listed(p_before bigint, p_limit integer) returns bigint[] language sql as $$
  select array_agg((r ->> 'run_id')::bigint) from jsonb_array_elements(convsync_api.list_sync_runs('100', p_before, p_limit) -> 'runs') r
$$;
select is(pg_temp.listed(null, 200), (select array_agg(run_id order by run_id desc) from convsync.sync_runs where page_id = '100'), 'all runs are listed, newest first');
select is(convsync_api.list_sync_runs('100') -> 'runs' -> 0, convsync_api.get_sync_run(pg_temp.run()), 'each as get_sync_run gives it');
select is(pg_temp.listed(null, 2) || pg_temp.listed((convsync_api.list_sync_runs('100', null, 2) ->> 'next')::bigint, 200), pg_temp.listed(null, 200), 'and part by part');
select is(convsync_api.list_sync_runs('100', 0), '{"runs": [], "next": null}'::jsonb, 'to the first');
select is(pg_temp.error_of($$select convsync_api.list_sync_runs('999')$$), 'ZC001 | there is no Page 999', 'of a Page that is there');
select is(jsonb_array_length(convsync_api.list_sync_runs('100', null, 0) -> 'runs'), 1, 'one at least');

-- What apply_sync_page refuses

select is(pg_temp.begin_sync(), 'fence 1, resumed f', 'one more run');
select is(pg_temp.error_of($$select pg_temp.apply_list(null, null, '{}')$$), 'ZC003 | p_threads must be an array | hint: p_threads', 'threads are an array');
select is(pg_temp.error_of($$select pg_temp.apply_list(null, null, '[]', jsonb_build_array(pg_temp.message('2001', 'm_50', '10:00') || '{"page_id": "101"}'))$$),
  'ZC003 | a fact of another Page | hint: p_facts', 'facts are of the run''s Page');
select is(pg_temp.error_of($$select pg_temp.apply_list(null, null, '[]', '[{"kind": "wish", "page_id": "100"}]')$$),
  'ZC003 | facts[0].kind is missing or wrong | hint: facts[0].kind', 'and facts that ingest takes');
select results_eq('select * from pg_temp.work()', $$values ('list', '', null::text, null::text, 1)$$, 'the cursor has not moved');

select * from finish();
rollback;
