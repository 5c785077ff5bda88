-- The retry of what a run could not read: refused where there is nothing to retry, honest until it has been read.
begin;
select plan(38);
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

-- the run that was begun last, and the statements that carry it with its fence
create function pg_temp.run() returns bigint language sql as $$ select max(run_id) from convsync.sync_runs $$;
create function pg_temp.fence() returns bigint language sql as $$ select fence from convsync.sync_runs where run_id = pg_temp.run() $$;
create function pg_temp.work() returns text language sql as $$
  select coalesce(string_agg(concat_ws(' ', w.kind, nullif(w.thread_id, ''), w.last_cursor), ', '), 'nothing')
  from convsync_api.next_sync_work('100', pg_temp.run(), pg_temp.fence(), 10) w
$$;
create function pg_temp.apply(p_kind text, p_thread text, p_cursor text, p_next text, p_threads jsonb default '[]') returns boolean language sql as $$
  select a.applied from convsync_api.apply_sync_page('100', pg_temp.run(), pg_temp.fence(), p_kind, p_thread, p_cursor, p_next, convsync_api._now(), '[]', p_threads) a
$$;
create function pg_temp.fail(p_kind text, p_thread text, p_cursor text) returns integer language sql as $$
  select convsync_api.fail_sync_batch('100', pg_temp.run(), pg_temp.fence(), p_kind, p_thread, p_cursor, 3, '{"class": "transient"}')
$$;
create function pg_temp.finish(p_failure text default null) returns text language sql as $$
  select convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence(), p_failure)
$$;
create function pg_temp.retry(p_run bigint default pg_temp.run()) returns text language sql as $$
  select format('fence %s, resumed %s', r.fence, r.resumed) from convsync_api.retry_sync('100', p_run, 'b', 15, 'req-2') r
$$;
create function pg_temp.batches() returns text language sql as $$
  select coalesce(string_agg(format('%s %s %s x%s', b.batch, b.status, concat_ws(' ', b.kind, nullif(b.thread_id, ''), b.cursor), b.attempts), ', ' order by b.batch), 'none')
  from convsync.sync_batches b where b.run_id = pg_temp.run()
$$;
create function pg_temp.document(variadic p_fields text[]) returns jsonb language sql as $$
  select jsonb_object_agg(f, convsync_api.get_sync_run(pg_temp.run()) -> f) from unnest(p_fields) f
$$;

-- Where there is nothing to retry

select is(pg_temp.error_of('select pg_temp.retry(1)'), 'ZC001 | there is no Page 100', 'a retry needs its Page');
select lives_ok($$select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k1')$$, 'which is added');
select is(pg_temp.error_of('select pg_temp.retry(-1)'), 'ZC001 | Page 100 has no run N', 'and a run of it');
select ok((select fence = 1 from convsync_api.begin_sync('100', 'full', 'a', 15, false, 'req-1')), 'which begins');
select is(pg_temp.error_of('select pg_temp.retry()'), 'ZC005 | run N is at work on Page 100, or paused | detail: {"run_id": "N"}', 'one at work is not retried');
select lives_ok($$select convsync_api.pause_sync('100', pg_temp.run(), pg_temp.fence(), 'deadline')$$, 'paused,');
select matches(pg_temp.error_of('select pg_temp.retry()'), 'ZC005', 'it goes on by itself');
select ok((select resumed from convsync_api.begin_sync('100', 'full', 'a', 15, false, 'req-1')), 'as it does');

-- A thread and the list fail: partial, and back to work on both.

select ok(pg_temp.apply('list', null, null, 'c1',
  '[{"thread_id": "t_1", "sender_id": "2001", "updated_time": "2026-02-01T10:00:00Z", "message_count": 9, "newest_id": "m_1", "read": "more", "next_cursor": "n1"}]'),
  'a page of the list');
select is(pg_temp.fail('thread', 't_1', 'n1'), 1, 'its thread fails');
select is(pg_temp.fail('list', null, 'c1'), 2, 'and the rest of the list');
select is(pg_temp.finish(), 'partial', 'so the run is partial');
select is(pg_temp.retry(), 'fence 4, resumed t', 'it is retried with a new fence');
select is(pg_temp.document('status', 'reason', 'finished_at', 'started_at', 'request_id', 'success'),
  '{"status": "running", "reason": null, "finished_at": null, "started_at": "2026-03-01T12:00:00+00:00", "request_id": "req-2", "success": false}',
  'runs again, for who asked for it');
select is(pg_temp.work(), 'thread t_1 n1, list c1', 'with both cursors where they were');
select is(pg_temp.batches(), '1 failed thread t_1 n1 x3, 2 failed list c1 x3', 'and says what it has not read');
select is(jsonb_array_length(pg_temp.document('failed_batches') -> 'failed_batches'), 2, 'in its document too');

-- Failing again is the same batch; what was read is settled when all of it was.

select ok(pg_temp.apply('thread', 't_1', 'n1', 'n2'), 'the thread goes on');
select is(pg_temp.batches(), '1 failed thread t_1 n1 x3, 2 failed list c1 x3', 'and is not settled by that');
select is(pg_temp.fail('thread', 't_1', 'n2'), 1, 'where it fails further on');
select is(pg_temp.fail('list', null, 'c1'), 2, 'and the list where it did before');
select is(pg_temp.batches(), '1 failed thread t_1 n2 x3, 2 failed list c1 x6', 'each batch says where, and how often there');
select is(pg_temp.finish(), 'partial', 'partial again');
select is(pg_temp.retry(), 'fence 5, resumed t', 'and retried again');
select ok(pg_temp.apply('thread', 't_1', 'n2', null), 'the thread is read to its end');
select is(pg_temp.fail('list', null, 'c1'), 2, 'the list fails');
select is(pg_temp.finish(), 'partial', 'partial, for the list alone');
select is(pg_temp.batches(), '1 resolved thread t_1 n2 x3, 2 failed list c1 x9', 'as its batches say');

-- Beside another run

select is(pg_temp.retry(), 'fence 6, resumed t', 'once more');
select is(pg_temp.error_of($$select * from convsync_api.begin_sync('100', 'full')$$), 'ZC005 | run N is at work on Page 100 | detail: {"run_id": "N"}',
  'now it is the run at work');
select ok(pg_temp.apply('list', null, 'c1', null) and pg_temp.apply('list', null, null, null), 'the list is read to its end');
select is(pg_temp.finish(), 'succeeded', 'and the run is whole');
select is(pg_temp.document('status', 'failed_batches', 'finished_at'),
  '{"status": "succeeded", "failed_batches": [], "finished_at": "2026-03-01T12:00:00+00:00"}', 'and says so');
select is(pg_temp.error_of('select pg_temp.retry()'), 'ZC003 | run N is succeeded: nothing in it is left to be retried | hint: run_id', 'nothing is left');

-- A run that failed as a whole goes on where it was.

select ok((select fence = 1 from convsync_api.begin_sync('100', 'full')) and pg_temp.apply('list', null, null, 'c1') and pg_temp.finish('token_invalid') = 'failed',
  'a token that died on the way');
select is(pg_temp.retry() || ': ' || pg_temp.work(), 'fence 2, resumed t: list c1', 'costs no call twice');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'cancelled', 'what was cancelled');
select is(pg_temp.error_of('select pg_temp.retry()'), 'ZC003 | run N is cancelled: nothing in it is left to be retried | hint: run_id', 'stays so');

select * from finish();
rollback;
