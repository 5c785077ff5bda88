-- Which syncs are due, how fresh a Page is, how long a run still takes: all of it by the clock, which is moved here.
begin;
select plan(101);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

create function pg_temp.at(p_minutes numeric) returns text language sql as $$
  select left(set_config('convsync.now', ('2026-03-01T12:00:00Z'::timestamptz + p_minutes * interval '1 minute')::text, true), 0)
$$;
create function pg_temp.due(p_minutes numeric, variadic p_modes text[] default null) returns text language plpgsql as $$
begin
  perform pg_temp.at(p_minutes);
  return (select coalesce(string_agg(d.page_id || ' ' || d.mode, ', ' order by d.due_at, d.page_id, d.mode), 'nothing') from convsync_api.due_syncs(p_modes) d);
end $$;
-- the minute at which something gets due
create function pg_temp.due_from(p_mode text, p_page text default '100') returns numeric language plpgsql as $$
declare
  v_due timestamptz;
begin
  perform pg_temp.at(100000);
  select d.due_at into v_due from convsync_api.due_syncs(array[p_mode], p_page) d;
  return extract(epoch from v_due - '2026-03-01T12:00:00Z') / 60;
end $$;
create function pg_temp.run(p_page text default '100') returns bigint language sql as $$ select max(run_id) from convsync.sync_runs where page_id = p_page $$;
create function pg_temp.fence(p_page text default '100') returns bigint language sql as $$ select fence from convsync.sync_runs where run_id = pg_temp.run(p_page) $$;
create function pg_temp.begin_sync(p_mode text, p_page text default '100') returns boolean language sql as $$
  select b.run_id is not null from convsync_api.begin_sync(p_page, p_mode, 'a', 1000000) b
$$;
create function pg_temp.list(p_cursor text, p_next text, p_threads jsonb default '[]', p_page text default '100') returns boolean language sql as $$
  select a.applied from convsync_api.apply_sync_page(p_page, pg_temp.run(p_page), pg_temp.fence(p_page), 'list', null, p_cursor, p_next, convsync_api._now(), '[]', p_threads) a
$$;
create function pg_temp.finish(p_failure text default null, p_page text default '100') returns text language sql as $$
  select convsync_api.finish_sync(p_page, pg_temp.run(p_page), pg_temp.fence(p_page), p_failure)
$$;
-- a run from its beginning to its end
create function pg_temp.sync(p_mode text, p_page text default '100') returns text language plpgsql as $$
begin
  perform pg_temp.begin_sync(p_mode, p_page), pg_temp.list(null, null, '[]', p_page), pg_temp.list(null, null, '[]', p_page);
  return pg_temp.finish(null, p_page);
end $$;
create function pg_temp.fail_sync(p_mode text, p_failure text default 'internal_error') returns text language plpgsql as $$
begin
  perform pg_temp.begin_sync(p_mode);
  return pg_temp.finish(p_failure);
end $$;
-- what is due next, and in how many minutes
create function pg_temp.next() returns text language sql as $$
  select coalesce(d -> 'next_sync' ->> 'mode' || ' in ' || round(extract(epoch from (d -> 'next_sync' ->> 'due_at')::timestamptz - convsync_api._now()) / 60), 'nothing')
  from convsync_api.get_page('100') d
$$;
create function pg_temp.freshness(p_minutes numeric) returns text language plpgsql as $$
declare
  v_page jsonb;
begin
  perform pg_temp.at(p_minutes);
  v_page := convsync_api.get_page('100');
  return concat_ws(' ', v_page ->> 'freshness', v_page ->> 'freshness_reason', 'as of ' || to_char((v_page ->> 'synced_at')::timestamptz, 'HH24:MI'));
end $$;

-- A new Page: nobody hurries, whoever added it may begin by himself.

select throws_ok('select convsync_api.set_sync_schedule(-1, 0)', 'ZC003', null, 'an interval is not negative');
select throws_ok('select convsync_api.set_sync_schedule(0, null)', 'ZC003', null, 'nor unknown');
select lives_ok($$select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k')$$, 'a Page with a token');
select is(pg_temp.due(13), 'nothing', 'is not synced at once');
select matches(pg_temp.next(), '^full in [0-4]$', 'but is said to be soon');
select is(pg_temp.due(17), '100 full', 'but after an interval, by default of 15 minutes, and wholly');
select is(pg_temp.due(17, 'incremental', 'reconcile'), 'nothing', 'if somebody here can');
select is(pg_temp.due(17, 'full', 'incremental'), '100 full', 'as most can');
select lives_ok('select convsync_api.set_sync_schedule(3600, 86400)', 'the interval is set to an hour');
select is(pg_temp.due(53), 'nothing', 'so it is later');
select is(pg_temp.due(67), '100 full', 'by 10 % more or less');
select matches(pg_temp.next(), '^full in -[0-9]+$', 'and was to be by now');
select ok(pg_temp.due_from('full') between 54 and 66, 'from one moment on');
select is(pg_temp.due(pg_temp.due_from('full') - 0.01) || ', ' || pg_temp.due(pg_temp.due_from('full')), 'nothing, 100 full', 'and not before');
select lives_ok('select convsync_api.set_sync_schedule(0, 86400)', '0');
select is(pg_temp.due(100000), 'nothing', 'is never');
select is(pg_temp.next(), 'nothing', 'and planned for no time');
select lives_ok('select convsync_api.set_sync_schedule(900, 86400)', 'back to 15 minutes');

-- Who cannot be synced

select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired')$$, 'a dead token');
select is(pg_temp.due(17), 'nothing', 'syncs nothing');
select is(pg_temp.next(), 'nothing', 'nor later');
select lives_ok($$select convsync_api.mark_token('100', 'valid')$$, 'a valid one');
select is(pg_temp.due(17), '100 full', 'does');
select lives_ok($$select convsync_api.remove_page('100')$$, 'a Page that was removed');
select is(pg_temp.due(17), 'nothing', 'is left alone');
select is(pg_temp.at(0), '', 'back at the beginning');
select lives_ok($$select convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k'), convsync_api.add_page('101')$$, 'one without a token');
select is(pg_temp.due(17), '100 full', 'too');

-- Begun once

select ok((select fence = 1 from convsync_api.begin_due_sync('100', 'full', 'a', 15, 'req')), 'what is due is begun');
select is(convsync_api.get_sync_run(pg_temp.run()) ->> 'request_id', 'req', 'for whom it says');
select is_empty($$select * from convsync_api.begin_due_sync('100', 'full', 'b', 15)$$, 'once');
select is(pg_temp.due(17), 'nothing', 'nothing is due beside it');
select is(pg_temp.next(), 'nothing', 'nor planned after it, since that depends on how it ends');
select lives_ok($$select convsync_api.pause_sync('100', pg_temp.run(), pg_temp.fence(), 'deadline')$$, 'also while it is paused:');
select is(pg_temp.due(10000), 'nothing', 'it goes on by itself');
select is(pg_temp.at(17), '', 'as it does');
select ok((select resumed from convsync_api.begin_sync('100', 'full')), 'here');

-- After failures it takes longer, up to four times as long.

select is(pg_temp.finish('internal_error'), 'failed', 'it fails');
select ok(pg_temp.due_from('full') between 17 + 27 and 17 + 33.5, 'the next is due after two intervals');
select is(pg_temp.at(50) || pg_temp.fail_sync('full'), 'failed', 'which fails too');
select ok(pg_temp.due_from('full') between 50 + 54 and 50 + 66.5, 'the next after four');
select is(pg_temp.at(120) || pg_temp.fail_sync('full'), 'failed', 'and so on');
select ok(pg_temp.due_from('full') between 120 + 54 and 120 + 66.5, 'never more');

-- Once the list was read to its end: what changed, and the reconcile

select is(pg_temp.at(200) || pg_temp.sync('full'), 'succeeded', 'a full one succeeds');
select is(pg_temp.due_from('full'), null, 'and is never due again');
select ok(pg_temp.due_from('incremental') between 213.5 and 217, 'an incremental is, an interval after the walk began');
select ok(pg_temp.due_from('reconcile') between 200 + 1296 and 200 + 1585, 'and a reconcile a day after it');
select is(pg_temp.due(10000, 'full'), 'nothing', 'where nothing but full ones can be made, nothing more is');
select ok(pg_temp.at(218) = '' and pg_temp.begin_sync('incremental'), 'an incremental begins');
select is(pg_temp.due(2000), '100 reconcile', 'a reconcile may be made beside it');
select ok((array[pg_temp.list(null, null), pg_temp.list(null, null)])[1], 'it ends, with one pass over the list or two');
select is(pg_temp.at(219) || pg_temp.finish(), 'succeeded', 'well');
select ok(pg_temp.due_from('incremental') between 231.5 and 235, 'and the next is due by its beginning');
select is(pg_temp.due(2000), '100 incremental, 100 reconcile', 'the longest due first');
select is(pg_temp.at(240) || pg_temp.fail_sync('incremental'), 'failed', 'failures of a kind');
select ok(pg_temp.due_from('incremental') between 240 + 27 and 240 + 33.5, 'make this kind wait');
select ok(pg_temp.due_from('reconcile') between 200 + 1296 and 200 + 1585, 'and no other');

-- Whose process is gone

select is(pg_temp.at(300), '', 'later');
select ok((select fence = 1 from convsync_api.begin_sync('100', 'full', 'a', 15)), 'a run with a lease');
select is(convsync_api.lay_down_syncs(), 0, 'which holds');
select is(pg_temp.at(301), '', 'until it has expired');
select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired')$$, 'and the token with it, so that nobody goes on with the run');
select is((select count(*)::integer from convsync_api.resumable_syncs()), 0, 'by itself');
select is(convsync_api.lay_down_syncs(), 1, 'it is laid down');
select is(convsync_api.get_sync_run(pg_temp.run()) ->> 'status', 'paused', 'paused');
select is(convsync_api.lay_down_syncs(), 0, 'once');
select lives_ok($$select convsync_api.mark_token('100', 'valid')$$, 'and with a new token');
select is((select count(*)::integer from convsync_api.resumable_syncs()), 1, 'it is gone on with');
select is(convsync_api.cancel_sync('100', pg_temp.run()), 'cancelled', 'or not');

-- Freshness

select is(pg_temp.freshness(218 + 29), 'fresh as of 15:38', 'fresh for two intervals since the last that succeeded began');
select is(pg_temp.freshness(218 + 31), 'late sync_failed as of 15:38', 'then late, here because one failed');
select is(pg_temp.freshness(218 + 61), 'stale sync_failed as of 15:38', 'after four stale');
select is(pg_temp.at(300) || pg_temp.sync('incremental'), 'succeeded', 'a sync');
select is(pg_temp.freshness(310), 'fresh as of 17:00', 'makes it fresh');
select is(pg_temp.freshness(331), 'late sync_overdue as of 17:00', 'or nobody syncs at all');
select lives_ok('select convsync_api.set_sync_schedule(3600, 0)', 'by the interval that is set');
select is(pg_temp.freshness(331), 'fresh as of 17:00', 'which can be longer');
select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired')$$, 'a dead token');
select is(pg_temp.freshness(310), 'broken token_invalid as of 17:00', 'breaks it');
select lives_ok($$select convsync_api.mark_token('100', 'valid')$$, 'until there is another');
select is((select array[d ->> 'freshness', d ->> 'freshness_reason'] from convsync_api.get_page('101') d), '{broken,token_missing}', 'a Page without any is broken');
select lives_ok($$select convsync_api.add_page('102', p_token_sealed => '\x01', p_token_key_id => 'k')$$, 'one that was just added');
select is((select array[d ->> 'freshness', d ->> 'freshness_reason'] from convsync_api.get_page('102') d), '{stale,first_sync}', 'is stale until its first sync succeeds');
select is(pg_temp.at(310 + 121), '', 'if none ever begins');
select is((select array[d ->> 'freshness', d ->> 'freshness_reason'] from convsync_api.get_page('102') d), '{broken,never_synced}', 'it is broken');
select ok(pg_temp.begin_sync('full', '102'), 'and while one runs');
select is((select array[d ->> 'freshness', d ->> 'freshness_reason'] from convsync_api.get_page('102') d), '{stale,first_sync}', 'it is not');

-- A webhook that fell silent

select is(pg_temp.at(300), '', 'in time');
select lives_ok($$select convsync_api.mark_subscribed('100')$$, 'a Page that is subscribed');
select is(pg_temp.freshness(310), 'fresh as of 17:00', 'may be quiet');
select lives_ok($$select * from convsync_api.ingest('[{"kind": "message", "page_id": "100", "sender_id": "2001", "message_id": "m_1", "direction": "in", "event_type": "message",
  "at": "2026-03-01T17:16:00Z", "text": "hello", "observed_at": "2026-03-01T17:20:00Z"}]', 'sync')$$, 'but when a sync finds a message that no webhook told');
select is(pg_temp.freshness(321), 'late webhooks_silent as of 17:00', 'it is late');
select lives_ok($$select * from convsync_api.ingest('[{"kind": "message", "page_id": "100", "sender_id": "2001", "message_id": "m_2", "direction": "in", "event_type": "message",
  "at": "2026-03-01T17:21:00Z", "text": "hello"}]', 'webhook')$$, 'until a webhook comes');
select is(pg_temp.freshness(322), 'fresh as of 17:00', 'again');

-- A list that cannot be finished

select is(pg_temp.at(1000), '', 'later');
select lives_ok('select convsync_api.set_sync_schedule(900, 86400)', 'each quarter of an hour, and once a day');
select lives_ok($$select convsync_api.add_page('103', p_token_sealed => '\x01', p_token_key_id => 'k')$$, 'a Page with a token');
select ok(pg_temp.begin_sync('full', '103'), 'is read for the first time');
select is(convsync_api.fail_sync_batch('103', pg_temp.run('103'), pg_temp.fence('103'), 'list', null, null, 3, '{"class": "transient"}'), 1, 'and its list breaks off');
select is(pg_temp.finish(null, '103'), 'partial', 'so that is partial');
select ok(pg_temp.due_from('full', '103') between 1000 + 0.9 * 1440 and 1000 + 1.1 * 1440,
  'and does not begin again before a day is over: each would read all that is known');

select * from finish();
rollback;
