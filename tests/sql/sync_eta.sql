-- How long a run still takes: by what is open, at the pace it was granted, and not at all where that is not known.
begin;
select plan(37);
set local timezone = 'UTC';

create function pg_temp.at(p_seconds numeric) returns text language sql as $$
  select left(set_config('convsync.now', ('2026-03-01T12:00:00Z'::timestamptz + p_seconds * interval '1 second')::text, true), 0)
$$;
create function pg_temp.run() returns bigint language sql as $$ select max(run_id) from convsync.sync_runs $$;
create function pg_temp.fence() returns bigint language sql as $$ select fence from convsync.sync_runs where run_id = pg_temp.run() $$;
create function pg_temp.begin_sync(p_mode text) returns boolean language sql as $$
  select b.run_id is not null from convsync_api.begin_sync('100', p_mode, 'a', 1000000) b
$$;
-- grants, one a second from a second on
create function pg_temp.calls(p_from integer, p_to integer) returns integer language plpgsql as $$
declare
  v_granted integer := 0;
begin
  for v_second in p_from .. p_to loop
    perform pg_temp.at(v_second);
    v_granted := v_granted + (select (a.wait_ms = 0)::integer from convsync_api.acquire_call('100', 'backfill', pg_temp.run(), pg_temp.fence()) a);
  end loop;
  return v_granted;
end $$;
-- a page of the list with people on it, whose threads go on after it if they have more than 100 messages
create function pg_temp.list(p_cursor text, p_next text, p_count integer default null, variadic p_people integer[] default '{}') returns boolean language sql as $$
  select a.applied from convsync_api.apply_sync_page('100', pg_temp.run(), pg_temp.fence(), 'list', null, p_cursor, p_next, convsync_api._now(),
    (select coalesce(jsonb_agg(jsonb_build_object('kind', 'thread', 'page_id', '100', 'sender_id', p::text, 'thread_id', 't_' || p,
      'observed_at', convsync_api._now(), 'fields', '{}'::jsonb)), '[]') from unnest(p_people) p),
    (select coalesce(jsonb_agg(jsonb_build_object('thread_id', 't_' || p, 'sender_id', p::text, 'updated_time', '2026-02-01T10:00:00Z',
      'message_count', p_count, 'newest_id', 'm', 'read', case when p_count > 100 then 'more' else 'complete' end, 'next_cursor', 'n0')), '[]')
      from unnest(p_people) p)) a
$$;
create function pg_temp.thread(p_person integer, p_cursor text, p_next text, p_from integer, p_to integer) returns boolean language sql as $$
  select a.applied from convsync_api.apply_sync_page('100', pg_temp.run(), pg_temp.fence(), 'thread', 't_' || p_person, p_cursor, p_next, convsync_api._now(),
    (select coalesce(jsonb_agg(jsonb_build_object('kind', 'message', 'page_id', '100', 'sender_id', p_person::text, 'message_id', format('m_%s_%s', p_person, n),
      'direction', 'in', 'event_type', 'message', 'at', '2026-01-01T00:00:00Z', 'text', 'x', 'observed_at', convsync_api._now())), '[]')
      from generate_series(p_from, p_to) n)) a
$$;
create function pg_temp.left() returns integer language sql as $$ select (convsync_api.get_sync_run(pg_temp.run()) ->> 'calls_left')::integer $$;
create function pg_temp.pace() returns numeric language sql as $$ select (convsync_api.get_sync_run(pg_temp.run()) ->> 'calls_per_second')::numeric $$;
create function pg_temp.eta() returns integer language sql as $$ select (convsync_api.get_sync_run(pg_temp.run()) ->> 'eta_seconds')::integer $$;

-- The first walk: nobody knows how many conversations there are, but what is known in the end is told.

select is(pg_temp.at(0), '', 'the clock');
select lives_ok($$select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k')$$, 'a Page');
select ok(pg_temp.begin_sync('full'), 'its first sync');
select is(pg_temp.eta(), null, 'takes nobody knows how long');
select is(pg_temp.calls(0, 9), 10, 'also after calls at a known pace,');
select ok(pg_temp.list(null, 'c1', 450, 1, 2), 'and with threads open');
select is(pg_temp.eta(), null, 'since the list may be of any length');
select is(pg_temp.left(), null, 'so that nobody knows how many calls it has left,');
select is(pg_temp.pace(), 1.11, 'though its pace');
select ok(pg_temp.list('c1', null, 10, 3, 4, 5, 6, 7, 8, 9, 10), 'once the list was read');
-- 450 messages are 5 pages of 100, twice; then the front of the list. 10 calls in 9 seconds were granted.
select is(pg_temp.eta(), ceil(11 / (10 / 9.0))::integer, 'it is the threads by what Graph says they have, and the front');
select is(pg_temp.left(), 11, 'as many calls are left');
select ok(pg_temp.thread(1, 'n0', 'n1', 1, 50), 'a page of fewer messages');
-- 400 messages of 50 a page
select is(pg_temp.eta(), ceil((8 + 5 + 1) / (10 / 9.0))::integer, 'tells how many pages that is');
select ok(pg_temp.thread(1, 'n1', null, 51, 400), 'a thread at its end');
select is(pg_temp.eta(), ceil((5 + 1) / (10 / 9.0))::integer, 'takes no more');

-- The pace is that of the last minute.

select is(pg_temp.calls(10, 100), 91, 'a call a second');
select is(pg_temp.eta(), ceil(6 / (41 / 40.0))::integer, 'and the time at that pace');
select is(pg_temp.at(130), '', 'half a minute without a call');
select is(pg_temp.eta(), ceil(6 / (41 / 70.0))::integer, 'is seen in it');
select lives_ok($$select convsync_api.record_call('100', 400, 100, p_error_code => 613, p_block_scope => 'page', p_block_seconds => 3600, p_block_reason => 'told to wait')$$,
  'and a block');
select is(pg_temp.eta(), 3600 + ceil(6 / (41 / 70.0))::integer, 'is waited for');
select is(pg_temp.at(130 + 3000), '', 'until it ends');
select is(pg_temp.eta(), ceil(600 + 6 / (30 / 30.0))::integer, 'at the pace from before it');
select ok(pg_temp.thread(2, 'n0', null, 1, 450) and pg_temp.list(null, null), 'the rest');
select is(convsync_api.finish_sync('100', pg_temp.run(), pg_temp.fence()), 'succeeded', 'is done');
select is(pg_temp.eta(), null, 'a run that has ended takes no time');
select is(pg_temp.left(), null, 'no calls');
select is(pg_temp.pace(), null, 'and has no pace');

-- The next walk knows how many there are, and by what it has read what each costs.

select is(pg_temp.at(10000) || pg_temp.begin_sync('full')::text, 'true', 'the next');
select is(pg_temp.calls(10000, 10019), 20, 'after 20 calls');
select ok(pg_temp.list(null, 'c1', 250, 1, 2), 'for two of ten conversations');
-- 3 + 3 pages of these threads; for each of the other 8 a half of all that; the front again
select is(pg_temp.eta(), ceil((6 + 8 * (20 + 6) / 2.0 + 1) / (20 / 19.0))::integer, 'knows of the other eight');
select is(pg_temp.left(), 111, 'and of their calls');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'cancelled', 'an incremental');
select ok(pg_temp.at(20000) = '' and pg_temp.begin_sync('incremental') and pg_temp.calls(20000, 20009) = 10 and pg_temp.list(null, 'c1', 250, 1, 2), 'reads the list');
select is(pg_temp.eta(), null, 'nobody knows how far');

select * from finish();
rollback;
