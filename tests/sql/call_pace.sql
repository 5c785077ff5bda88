-- How fast a Page is called: the rate, and less of it near the end of an allowance and while answers are slow.
begin;
select plan(50);
set local timezone = 'UTC';

create function pg_temp.ask(p_page_id text, p_rate numeric default 2, p_lane text default 'backfill') returns integer language sql as $$
  select wait_ms from convsync_api.acquire_call(p_page_id, p_lane, p_calls_per_second => p_rate)
$$;
create function pg_temp.answered(p_page_id text, p_ms integer default null, p_usage jsonb default null, p_status integer default 200)
returns void language sql as $$
  select convsync_api.record_call(p_page_id, p_status, p_ms, p_usage)
$$;
create function pg_temp.at(p_seconds numeric) returns void language sql as $$
  select set_config('convsync.now', ('2026-03-01T12:00:00Z'::timestamptz + p_seconds * interval '1 second')::text, true)
$$;
create function pg_temp.budget(p_page_id text, p_name text) returns text language sql as $$
  select convsync_api.add_page(p_page_id) -> 'budget' ->> p_name
$$;
-- The milliseconds to the next grant after one at this instant
create function pg_temp.gap(p_page_id text, p_rate numeric default 2) returns integer language plpgsql as $$
begin
  if pg_temp.ask(p_page_id, p_rate) <> 0 then
    return -1;
  end if;
  return pg_temp.ask(p_page_id, p_rate);
end $$;

-- By usage

select pg_temp.at(0);
select results_eq($$select pg_temp.budget('100', n) from unnest('{calls,calls_per_second,pace,pace_reason}'::text[]) n$$,
  $$values ('0'), (null), ('1'), (null)$$, 'a Page never called has a budget, and all of it');
select results_eq(
  $$select u.percent, pg_temp.gap('1' || u.percent) from (select percent, pg_temp.answered('1' || percent, null, jsonb_build_object('percent', percent))
      from unnest('{10,75,80,90,100,250}'::integer[]) percent) u$$,
  $$values (10, 0), (75, 0), (80, 610), (90, 1087), (100, 5000), (250, 5000)$$,
  'from 75 percent of the allowance on calls come one by one, ever slower, at 100 at a tenth of the rate');
select results_eq($$select pg_temp.budget('180', n) from unnest('{calls,calls_per_second,pace,pace_reason,usage_percent}'::text[]) n$$,
  $$values ('1'), ('2'), ('0.82'), ('usage'), ('80')$$, 'the budget says how slow, and why');
select is(pg_temp.budget('175', 'pace_reason'), null, 'and no reason where nothing is slow');
select pg_temp.at(0.6);
select is(pg_temp.ask('180'), 10, 'the wait is what it said');
select pg_temp.at(0.61);
select is(pg_temp.ask('180'), 0, 'then it is granted');
select is(pg_temp.ask('180'), 610, 'and the next one comes as long after it');
select is(pg_temp.ask('180', 2, 'live'), 610, 'a live call keeps the pace too');
select is(pg_temp.ask('180', 0), 0, 'no rate has no pace');
select is(pg_temp.budget('180', 'pace_reason'), null, 'nor is one shown');
select is(pg_temp.gap('190', 0.5), -1, 'a lower rate');
select pg_temp.at(10);
select is(pg_temp.gap('190', 0.5), 4348, 'is slowed down by as much');

-- It does not last

select pg_temp.answered('180', null, '{"percent": 30}');
select is(pg_temp.budget('180', 'pace'), '1', 'usage that falls ends it at once');
select is(pg_temp.gap('180'), 0, 'two calls at once again');
select pg_temp.at(299);
select is(pg_temp.budget('1100', 'pace'), '0.1', 'what was told counts for five minutes');
select pg_temp.at(300);
select is(pg_temp.budget('1100', 'pace'), '1', 'and no longer');
select is(pg_temp.budget('1100', 'usage_percent'), null, 'nor is it shown');
select is(pg_temp.gap('1100'), 0, 'nor kept');
select pg_temp.answered('1100', null, '{"percent": 99, "regain_seconds": 60}');
select pg_temp.at(359);
select is(pg_temp.budget('1100', 'pace'), '0.14', 'where Meta says how long it takes to regain, it counts so long');
select pg_temp.at(360);
select is(pg_temp.budget('1100', 'pace'), '1', 'not longer');
select pg_temp.answered('1100', null, '{"percent": 96}');
select pg_temp.answered('1100', 100);
select is(pg_temp.budget('1100', 'usage_percent'), '96', 'an answer that tells nothing of usage changes nothing of it');

-- By the time that answers take

select pg_temp.at(400);
select pg_temp.answered('201', 2000);
select is(pg_temp.gap('201'), 0, 'two seconds are not slow');
select pg_temp.answered('203', 3000);
select is(pg_temp.gap('203'), 750, 'at three seconds two thirds of the rate');
select results_eq($$select pg_temp.budget('203', n) from unnest('{pace,pace_reason,response_ms}'::text[]) n$$,
  $$values ('0.67'), ('slow_answers'), ('3000')$$, 'the budget says so');
select pg_temp.answered('210', 60000);
select is(pg_temp.gap('210'), 2500, 'at ten seconds and more a fifth');
select is(pg_temp.budget('210', 'response_ms'), '10000', 'more than ten seconds count as ten');
select pg_temp.answered('203', 100);
select is(pg_temp.budget('203', 'response_ms'), '2420', 'it is a moving mean');
select pg_temp.answered('203', 100);
select is(pg_temp.budget('203', 'pace'), '1', 'two quick answers make up for a few of three seconds');
select pg_temp.answered('204', null, p_status => null);
select pg_temp.answered('204', 3, p_status => null);
select is(pg_temp.budget('204', 'response_ms'), null, 'a connection that is refused is no quick answer');
select pg_temp.answered('204', 8000, p_status => null);
select is(pg_temp.budget('204', 'pace'), '0.25', 'an answer that never came was slow');
select pg_temp.at(699);
select is(pg_temp.budget('204', 'pace'), '0.25', 'it counts for five minutes');
select pg_temp.at(700);
select is(pg_temp.budget('204', 'pace'), '1', 'and no longer');
select pg_temp.answered('204', 100);
select is(pg_temp.budget('204', 'response_ms'), '100', 'then the mean begins anew');

-- Whoever calls all the time: a second of 3 s answers, then quick ones

create temporary table asked (at numeric, granted boolean, quick boolean);
do $$
declare
  v_at numeric; v_granted boolean; v_quick boolean;
begin
  for v_tick in 0 .. 599 loop
    v_at := 1000 + v_tick * 0.1; v_quick := v_tick >= 300;
    perform pg_temp.at(v_at);
    v_granted := pg_temp.ask('300') = 0;
    if v_granted then
      perform pg_temp.answered('300', case when v_quick then 200 else 3000 end);
    end if;
    insert into asked values (v_at, v_granted, v_quick);
  end loop;
end $$;
select is((select count(*) from asked where granted and not quick), 38::bigint, 'of 60 calls in half a minute of slow answers 38 are made');
select is((select min(a.at - b.at) from asked a join asked b on b.at < a.at and b.granted where a.granted and not a.quick and b.at > 1000), 0.8,
  'and no two at once');
select is((select (array_agg(at order by at))[:6] from asked where granted and quick), '{1030.4,1031.1,1031.4,1032.1,1032.4,1033.1}'::numeric[],
  'two quick answers, and there are two calls a second again');
select is((select count(*) from asked where granted and at >= 1040 and at < 1060), 40::bigint, 'within ten seconds all of the rate is used again');
select is(pg_temp.budget('300', 'pace'), '1', 'and nothing is slow');

-- The worst a moving mean can be

select pg_temp.at(2000);
select pg_temp.answered('400', 60000) from generate_series(1, 50);
do $$
declare
  v_at numeric := 2000; v_wait integer;
begin
  while pg_temp.budget('400', 'pace') <> '1' loop
    v_wait := pg_temp.ask('400');
    if v_wait = 0 then
      perform pg_temp.answered('400', 100);
    else
      v_at := v_at + v_wait / 1000.0;
      perform pg_temp.at(v_at);
    end if;
    exit when v_at > 2300;
  end loop;
end $$;
select cmp_ok(convsync_api._now(), '<=', '2026-03-01T12:33:50Z'::timestamptz, 'after answers of a minute it takes less than 30 s of quick ones');

-- The least of them holds

select pg_temp.at(3000);
select pg_temp.answered('500', 8000, '{"percent": 80}');
select is(pg_temp.budget('500', 'pace'), '0.25', 'slower answers than usage asks for');
select pg_temp.answered('500', null, '{"percent": 100}');
select is(pg_temp.budget('500', 'pace_reason'), 'usage', 'more usage than the answers are slow');

-- The app's allowance is every Page's

select pg_temp.answered('600', null, '{"percent": null, "app_percent": 90}');
select results_eq($$select pg_temp.budget('600', n) from unnest('{pace,pace_reason,usage_percent,app_usage_percent}'::text[]) n$$,
  $$values ('0.46'), ('app_usage'), (null), ('90')$$, 'what the app has used up slows down the Page whose answer told');
select is(pg_temp.gap('601'), 1087, 'and any other');
select is(pg_temp.budget('602', 'pace_reason'), 'app_usage', 'one never called too');
select results_eq($$select usage_percent, grants from convsync.call_budgets where page_id = ''$$, $$values (90::numeric, '{}'::timestamptz[])$$,
  'it is kept once, in the row of the app');
select is((select usage_percent from convsync.call_budgets where page_id = '600'), null, 'and not as the Page''s');
select pg_temp.at(3030);
select pg_temp.answered('601', null, '{"percent": 5, "app_percent": 90}');
select is((select updated_at from convsync.call_budgets where page_id = ''), '2026-03-01T12:50:00Z', 'what is known is not written again');
select pg_temp.answered('601', null, '{"percent": 5, "app_percent": 20}');
select is(pg_temp.budget('600', 'pace'), '1', 'when it falls nobody is slow any more');

-- Blocks are seen

select pg_temp.at(3100);
select convsync_api.record_call('700', 400, 90, p_block_scope => 'page', p_block_seconds => 60, p_block_reason => 'too fast');
select convsync_api.record_call('701', 403, 90, p_block_scope => 'app', p_block_seconds => 30, p_block_reason => 'the app');
select results_eq($$select p, pg_temp.budget(p, 'blocked_until'), pg_temp.budget(p, 'block_scope'), pg_temp.budget(p, 'block_reason')
    from unnest('{700,702}'::text[]) p$$,
  $$values ('700', '2026-03-01T12:52:40+00:00', 'page', 'too fast'), ('702', '2026-03-01T12:52:10+00:00', 'app', 'the app')$$,
  'the block that ends last, whose it is and why');
select pg_temp.at(3160);
select is(pg_temp.budget('700', 'blocked_until'), null, 'and none that is over');

select * from finish();
rollback;
