-- How much to ask of Graph at once.
begin;
select plan(49);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

create function pg_temp.error_of(p_sql text) returns text language plpgsql as $$
declare
  v_state text; v_message text; v_hint text;
begin
  execute p_sql;
  return 'no error';
exception when others then
  get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_hint = pg_exception_hint;
  return concat_ws(' | ', v_state, v_message, 'hint: ' || nullif(v_hint, ''));
end $$;

-- The next list request of a Page whose full size is 8 conversations with 25 messages each, as 'limit x nested'
create function pg_temp.size(p_place text, p_page text default '100', p_kind text default 'list') returns text language sql as $$
  select s.size_limit || ' x ' || s.nested from convsync_api.request_size(p_page, p_kind, p_place, 8, 25) s
$$;
create function pg_temp.told(p_place text, p_size text, p_outcome text, p_page text default '100', p_kind text default 'list') returns boolean language sql as $$
  select convsync_api.record_request_size(p_page, p_kind, p_place, split_part(p_size, ' x ', 1)::int, split_part(p_size, ' x ', 2)::int,
    p_outcome, 8, 25)
$$;
-- The sizes that are asked for at a place, each refused in its turn
create function pg_temp.ladder(p_place text, p_page text, p_kind text default 'list') returns text[] language plpgsql as $$
declare
  v_sizes text[] := '{}'; v_size text;
begin
  loop
    v_size := pg_temp.size(p_place, p_page, p_kind);
    v_sizes := v_sizes || v_size;
    exit when not pg_temp.told(p_place, v_size, 'refused', p_page, p_kind);
  end loop;
  return v_sizes;
end $$;
create function pg_temp.succeed(p_times integer, p_page text default '100', p_kind text default 'list') returns text language plpgsql as $$
begin
  for i in 1 .. p_times loop
    perform pg_temp.told('p' || i, pg_temp.size('p' || i, p_page, p_kind), 'accepted', p_page, p_kind);
  end loop;
  return pg_temp.size('elsewhere', p_page, p_kind);
end $$;

select lives_ok($$select convsync_api.add_page(p) from unnest('{100,101,102,103,104,105,106}'::text[]) p$$, 'some Pages');

-- Down

select is(pg_temp.size(''), '8 x 25', 'who was refused nothing asks for all');
select is(pg_temp.told('', '8 x 25', 'accepted'), true, 'and what succeeds at full size is no news');
select is((select count(*) from convsync.request_sizes), 0::bigint, 'of which nothing is kept');
select is(pg_temp.ladder('', '101'), array['8 x 25', '4 x 25', '2 x 25', '1 x 25', '8 x 0', '4 x 0', '2 x 0', '1 x 0'],
  'each refusal halves, down to one item, and then once more without messages');
select is(pg_temp.size('', '101'), '1 x 0', 'the smallest of all has to be asked for again');
select is(pg_temp.size('next', '101'), '1 x 0', 'another place begins with what is left of the size');
select is(pg_temp.size('', '102'), '8 x 25', 'another Page is not concerned');

select is(pg_temp.told('', '8 x 25', 'refused'), true, 'a refusal leaves something smaller to ask for');
select is(pg_temp.size(''), '4 x 25', 'which is half of it');
select is(pg_temp.size('c1'), '4 x 25', 'at every place');
select is(pg_temp.told('c1', '8 x 25', 'refused'), true, 'a larger request that was under way is refused too');
select is(pg_temp.size('c2'), '4 x 25', 'and does not halve it a second time');
select is(convsync_api.record_request_size('100', 'thread', 't_1', 1, 0, 'refused', 100), false, 'below one message there is nothing');
select is(pg_temp.size('c2'), '4 x 25', 'one kind of request says nothing of another');
select results_eq($$select * from convsync_api.request_size('100', 'thread', 't_2', 100)$$, $$values (1, 0)$$, 'a thread has no nested messages');
select is(convsync_api.record_request_size('100', 'conversation', 't_1', 1, 100, 'refused', 1, 100), true, 'one conversation can do without messages');
select results_eq($$select * from convsync_api.request_size('100', 'conversation', 't_1', 1, 100)$$, $$values (1, 0)$$, 'and then does');

-- A list of changes needs few messages before it needs few conversations

select is(pg_temp.ladder('', '105', 'changes'),
  array['8 x 25', '8 x 1', '4 x 1', '2 x 1', '1 x 1', '8 x 0', '4 x 0', '2 x 0', '1 x 0'], 'one message of each, then fewer, then none');
select is(pg_temp.size('', '105'), '8 x 25', 'which says nothing of the list of a full sync');
select is(array[pg_temp.succeed(4, '105', 'changes'), pg_temp.succeed(8, '105', 'changes'), pg_temp.succeed(4, '105', 'changes'),
    pg_temp.succeed(12, '105', 'changes'), pg_temp.succeed(4, '105', 'changes')],
  array['2 x 0', '8 x 0', '1 x 1', '8 x 1', '8 x 25'], 'and the same way back');
select is(pg_temp.told('c1', '8 x 25', 'refused', '106', 'changes'), true, 'where all was too much');
select is(array[pg_temp.succeed(4, '106', 'changes'), pg_temp.size('c1', '106', 'changes')], array['8 x 25', '8 x 1'], 'it is not asked for again');

-- Up again, and never again at the same place

select is(pg_temp.succeed(3), '4 x 25', 'three successes are not enough');
select is(pg_temp.succeed(1), '8 x 25', 'four are: it grows');
select is(pg_temp.size(''), '4 x 25', 'but not where that size was refused');
select is(pg_temp.size('c1'), '4 x 25', 'nor there');
select is(pg_temp.told('c9', '8 x 25', 'refused'), true, 'growing was too early');
select is(pg_temp.succeed(7), '4 x 25', 'so twice as many successes are waited for');
select is(pg_temp.succeed(1), '8 x 25', 'and then it is tried');
select is(pg_temp.size('c9'), '4 x 25', 'where it was not refused');
select is(pg_temp.succeed(4, '101'), '2 x 0', 'without messages the list grows first');
select is(pg_temp.succeed(8, '101'), '8 x 0', 'to its full length');
select is(pg_temp.succeed(4, '101'), '1 x 25', 'then messages come back, of one conversation at a time');
select is(pg_temp.succeed(12, '101'), '8 x 25', 'and then of more');
select is(pg_temp.ladder('', '101'), array['1 x 0'], 'the place where nothing went is asked for the least');
select is(pg_temp.told('', '2 x 25', 'accepted', '102'), true, 'a success of less than the size');
select is(pg_temp.size('', '102'), '8 x 25', 'where nothing was refused says nothing');
select is(pg_temp.told('', '8 x 25', 'refused', '103'), true, 'and while one was');
select is(pg_temp.succeed(0, '103') || pg_temp.told('', '1 x 0', 'accepted', '103') || pg_temp.succeed(3, '103'), '4 x 25true4 x 25',
  'a smaller one does not count towards growing');

-- Failures that a smaller request may spare

select is(pg_temp.told('c1', '8 x 25', 'suspected', '104'), true, 'who ran out of time asks for less');
select is(pg_temp.size('c1', '104'), '4 x 25', 'for a while');
select is(pg_temp.succeed(4, '104'), '8 x 25', 'and when it goes well again');
select is(pg_temp.size('c1', '104'), '8 x 25', 'for all, there too: that size was not refused');

-- A month

set local convsync.now = '2026-03-31T11:59:00Z';
select is(pg_temp.size(''), '4 x 25', 'a refusal holds for thirty days');
set local convsync.now = '2026-03-31T12:00:00Z';
select is(pg_temp.size(''), '8 x 25', 'then Graph may hold other things there');
select lives_ok($$select pg_temp.told('new', '8 x 25', 'refused')$$, 'and the next refusal');
select is((select count(*) from convsync.refused_requests where page_id = '100'), 1::bigint, 'deletes what is past its time');

-- Arguments

select is(array[
    pg_temp.error_of($$select convsync_api.record_request_size('100', 'page', '', 1, 0, 'refused', 8)$$),
    pg_temp.error_of($$select convsync_api.record_request_size('100', 'list', '', 1, 0, 'wrong', 8)$$),
    pg_temp.error_of($$select convsync_api.record_request_size('100', 'list', '', 0, 0, 'refused', 8)$$),
    pg_temp.error_of($$select convsync_api.record_request_size('100', 'list', '', 1, null, 'refused', 8)$$)],
  array['ZC003 | kind must be list, changes, thread or conversation | hint: p_kind',
    'ZC003 | outcome must be accepted, refused or suspected | hint: p_outcome',
    'ZC003 | a request has at least one item | hint: p_size_limit',
    'ZC003 | a request has at least one item | hint: p_size_limit'], 'wrong arguments are named');

select * from finish();
rollback;
