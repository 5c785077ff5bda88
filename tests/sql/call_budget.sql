-- The call budget of a Page: two calls a second for all processes together, and none while told to wait.
begin;
select plan(44);
set local timezone = 'UTC';

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
create function pg_temp.ask(p_lane text, p_page_id text default '100', p_rate numeric default 2) returns integer language sql as $$
  select wait_ms from convsync_api.acquire_call(p_page_id, p_lane, p_calls_per_second => p_rate)
$$;

-- The rate

set local convsync.now = '2026-03-01T12:00:00Z';
select results_eq($$select wait_ms, granted_at from convsync_api.acquire_call('100', 'backfill')$$,
  $$values (0, '2026-03-01T12:00:00Z'::timestamptz)$$, 'the first call is granted at once, with its instant');
set local convsync.now = '2026-03-01T12:00:00.3Z';
select is(pg_temp.ask('backfill'), 0, 'so is the second');
set local convsync.now = '2026-03-01T12:00:00.4Z';
select results_eq($$select wait_ms, granted_at from convsync_api.acquire_call('100', 'backfill')$$,
  $$values (600, null::timestamptz)$$, 'the third has to wait until a second after the first');
select is((select calls from convsync.call_budgets where page_id = '100'), 2::bigint, 'and takes nothing');
select is(pg_temp.ask('backfill', '101'), 0, 'another Page has a budget of its own');
set local convsync.now = '2026-03-01T12:00:00.9999Z';
select is(pg_temp.ask('backfill'), 1, 'a wait is never rounded down to nothing');
set local convsync.now = '2026-03-01T12:00:01Z';
select is(pg_temp.ask('backfill'), 0, 'then it is granted');
select is(pg_temp.ask('backfill'), 300, 'the next one comes a second after the second');
set local convsync.now = '2026-03-01T12:00:01.3Z';
select is(pg_temp.ask('backfill'), 0, 'and is granted then');

set local convsync.now = '2026-03-01T12:01:00Z';
select is(array(select pg_temp.ask('backfill', '101', 0) from generate_series(1, 5)), '{0,0,0,0,0}', 'rate 0 has no limit');
select is(pg_temp.ask('backfill', '102', 0.5), 0, 'half a call a second: the first');
set local convsync.now = '2026-03-01T12:01:01Z';
select is(pg_temp.ask('backfill', '102', 0.5), 1000, 'the next two seconds later');

-- Lanes: live before repair before backfill

set local convsync.now = '2026-03-01T12:02:00Z';
select is(array(select pg_temp.ask('backfill') from generate_series(1, 2)), '{0,0}', 'both slots are taken');
set local convsync.now = '2026-03-01T12:02:00.5Z';
select is(pg_temp.ask('live'), 500, 'a live call has to wait too, and is awaited from now on');
set local convsync.now = '2026-03-01T12:02:01Z';
select is(pg_temp.ask('backfill'), 250, 'a backfill leaves the free slot to it');
select is(pg_temp.ask('repair'), 250, 'so does a repair');
select is(pg_temp.ask('live'), 0, 'the live call gets it');
select is(pg_temp.ask('backfill'), 500, 'now the waiting repair comes first');
select is(pg_temp.ask('repair'), 0, 'and gets the second slot');
set local convsync.now = '2026-03-01T12:02:01.5Z';
select is(pg_temp.ask('live'), 500, 'a live call waits again');
set local convsync.now = '2026-03-01T12:02:02.25Z';
select is(pg_temp.ask('backfill'), 0, 'a wish that nobody comes back for expires');

-- Blocks

set local convsync.now = '2026-03-01T12:03:00Z';
select is(convsync_api.record_call('100', 400, 90, p_error_code => 613, p_block_scope => 'page', p_block_seconds => 60,
    p_block_reason => 'code 613'), '2026-03-01T12:04:00Z', 'a throttled answer blocks the Page; its end comes back');
select is(pg_temp.ask('live'), 60000, 'nothing is granted, not even a live call');
select is(pg_temp.ask('backfill', '100', 0), 60000, 'not even without a rate');
select is(pg_temp.ask('live', '101'), 0, 'another Page goes on');
select is(convsync_api.record_call('100', 400, 90, p_block_scope => 'page', p_block_seconds => 10, p_block_reason => 'shorter'),
  '2026-03-01T12:04:00Z', 'a shorter block does not shorten it');
select is(convsync_api.add_page('101') -> 'budget' ->> 'blocked_until', null, 'the document of the other Page shows no block');
select is((select block_reason from convsync.call_budgets where page_id = '100'), 'code 613', 'nor change its reason');
set local convsync.now = '2026-03-01T12:04:00.5Z';
select is(pg_temp.ask('live'), 0, 'when it ends, calls are granted');
select is((select blocked_until from convsync.call_budgets where page_id = '100'), null, 'and the block is cleared');
select is(convsync_api.record_call('100', 200, 120), null, 'a good answer blocks nothing');

set local convsync.now = '2026-03-01T12:05:00Z';
select is(convsync_api.record_call('100', 400, 90, p_block_scope => 'app', p_block_seconds => 300, p_block_reason => 'code 4'),
  '2026-03-01T12:10:00Z', 'the app can be blocked as a whole');
select is(pg_temp.ask('live', '101'), 300000, 'then every Page waits');
select is(pg_temp.ask('live', '109'), 300000, 'also one never called before');
set local convsync.now = '2026-03-01T12:10:00Z';
select is(pg_temp.ask('live', '109'), 0, 'until it ends');

-- Usage and response time, from every answer

select is(convsync_api.record_call('103', null, null), null, 'a call without an answer is recorded too');
select is(convsync_api.record_call('103', 200, 100, '{"percent": 40, "call_count": 12}'), null, 'usage comes with any answer');
select is(convsync_api.record_call('103', 500, 200, null), null, 'or does not');
select results_eq($$select usage_percent, usage, response_ms from convsync.call_budgets where page_id = '103'$$,
  $$values (40::numeric, '{"percent": 40, "call_count": 12}'::jsonb, 120.0)$$,
  'the last usage that was told stays; response time is a moving mean');

-- Errors

select is(pg_temp.error_of($$select pg_temp.ask('live', '')$$), 'ZC003 | the Page''s id is missing | hint: p_page_id', 'a call has a Page');
select is(pg_temp.error_of($$select pg_temp.ask('soon')$$), 'ZC003 | lane must be live, repair or backfill | hint: p_lane', 'and a lane');
select is(pg_temp.error_of($$select pg_temp.ask('live', '100', -1)$$),
  'ZC003 | calls per second must not be negative | hint: p_calls_per_second', 'a rate is not negative');
select is(pg_temp.error_of($$select convsync_api.record_call('100', 400, 90, p_block_scope => 'world')$$),
  'ZC003 | block scope must be page or app | hint: p_block_scope', 'a block has a scope');
select is(pg_temp.error_of($$select * from convsync_api.acquire_call('100', 'backfill', 1, 1)$$),
  'ZC004 | run 1 of Page 100 is not carried with fence 1 any more', 'a run that was taken over gets no call');

select * from finish();
rollback;
