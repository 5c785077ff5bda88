-- Three lanes at once: a waiting higher one goes first, and none is kept from its share.
begin;
select plan(10);
set local timezone = 'UTC';

-- Askers of these lanes for so long, each again as soon as it may: at once after a call that was granted, else when it was told.
create function pg_temp.contend(p_page_id text, p_seconds integer, variadic p_lanes text[]) returns jsonb language plpgsql as $$
declare
  v_next numeric[] := array_fill(0::numeric, array[cardinality(p_lanes)]);
  v_granted integer[] := array_fill(0, array[cardinality(p_lanes)]);
  v_who integer;
  v_wait integer;
begin
  loop
    select a.place into v_who from unnest(v_next) with ordinality a (at, place) order by a.at, a.place desc limit 1;
    exit when v_next[v_who] >= p_seconds;
    perform set_config('convsync.now', ('2026-03-01T12:00:00Z'::timestamptz + v_next[v_who] * interval '1 second')::text, true);
    select c.wait_ms into strict v_wait from convsync_api.acquire_call(p_page_id, p_lanes[v_who]) c;
    v_granted[v_who] := v_granted[v_who] + (v_wait = 0)::integer;
    -- A call takes a while.
    v_next[v_who] := v_next[v_who] + case when v_wait = 0 then 0.1 else v_wait / 1000.0 end;
  end loop;
  return (
    select jsonb_object_agg(t.lane, t.granted)
    from (select l.lane, sum(v_granted[l.place]) as granted from unnest(p_lanes) with ordinality l (lane, place) group by l.lane) t
  );
end $$;

-- Two live readers and more to read than they can: they take the most, and the walks go on.
create temporary table three on commit drop as
  select r.* from jsonb_to_record(pg_temp.contend('100', 100, 'live', 'live', 'repair', 'backfill', 'backfill')) r (live integer, repair integer, backfill integer);
select cmp_ok((select live + repair + backfill from three), '>=', 180, 'hardly a call of 200 is lost by it');
select cmp_ok((select live + repair + backfill from three), '<=', 202, 'and none is too many');
select cmp_ok((select backfill from three), '>=', 36, 'a fifth of the calls is for the walk of everything');
select cmp_ok((select repair from three), '>=', 36, 'and a fifth for that of what has changed');
select cmp_ok((select live from three), '>=', 100, 'the rest for those who write now');

create temporary table two on commit drop as
  select r.* from jsonb_to_record(pg_temp.contend('101', 100, 'repair', 'repair', 'repair', 'backfill')) r (repair integer, backfill integer);
select cmp_ok((select repair + backfill from two), '>=', 190, 'of two lanes');
select cmp_ok((select backfill from two), '>=', 45, 'the lower one has a quarter');
select cmp_ok((select repair from two), '>=', 130, 'and the higher one the rest');
select cmp_ok((pg_temp.contend('102', 100, 'backfill', 'backfill', 'backfill') ->> 'backfill')::integer, '>=', 200, 'alone, one has all');
select is((select repair_passed + backfill_passed from convsync.call_budgets where page_id = '102'), 0, 'whom nobody waits beside, nobody passes');

select * from finish();
rollback;
