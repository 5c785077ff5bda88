-- What could not be understood is kept, with its bytes and the reason, once.
begin;
select plan(18);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

create function pg_temp.letter(p_raw bytea, p_reason text, p_page_id text default '100') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'dead_letter', 'page_id', p_page_id, 'reason', p_reason, 'raw', encode(p_raw, 'base64'))
$$;
create function pg_temp.message(p_sender text, p_id text) returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'message', 'page_id', '100', 'sender_id', p_sender, 'message_id', p_id, 'direction', 'in', 'event_type', 'message',
    'at', '2026-03-01T10:00:00Z')
$$;
prepare letters as select page_id::text collate "default", source, reason, raw, attempts, first_seen_at, last_seen_at, resolved_at
  from convsync.dead_letters order by dead_letter_id;

select is_empty($$select * from convsync_api.ingest(jsonb_build_array(pg_temp.letter('\x7b00ff', 'not JSON', '')), 'webhook')$$, 'a dead letter touches no conversation');
select results_eq('letters', $$values ('', 'webhook', 'not JSON', '\x7b00ff'::bytea, 1, '2026-03-01T12:00:00Z'::timestamptz, '2026-03-01T12:00:00Z'::timestamptz, null::timestamptz)$$,
  'it is kept byte for byte, also without a Page');
select is((select count(*) from convsync.pages), 0::bigint, 'it makes no Page');

set local convsync.now = '2026-03-01T13:00:00Z';
select lives_ok($$select convsync_api.ingest(jsonb_build_array(pg_temp.letter('\x7b00ff', 'not JSON', ''), pg_temp.letter('\x7b00ff', 'not JSON', '')), 'webhook')$$, 'it comes again');
select results_eq('letters', $$values ('', 'webhook', 'not JSON', '\x7b00ff'::bytea, 2, '2026-03-01T12:00:00Z'::timestamptz, '2026-03-01T13:00:00Z'::timestamptz, null::timestamptz)$$,
  'one row, one more attempt for the call, first and last seen');
select lives_ok($$select convsync_api.ingest(jsonb_build_array(pg_temp.letter('\x7b00ff', 'not JSON'), pg_temp.letter('\x7b00ff', 'no entry', ''), pg_temp.letter('\x01', 'not JSON', '')), 'webhook')$$,
  'another Page, another reason, other bytes');
select is((select count(*) from convsync.dead_letters), 4::bigint, 'are dead letters of their own');
select lives_ok($$select convsync_api.ingest(jsonb_build_array(pg_temp.letter('\x01', 'not JSON', '')), 'sync')$$, 'so is what a sync brings');
select is((select count(*) from convsync.dead_letters where source = 'sync'), 1::bigint, 'and it is called so');

-- A bad one among good ones

select results_eq(
  $$select sender_id, events_added from convsync_api.ingest(
    jsonb_build_array(pg_temp.message('2001', 'm_1'), pg_temp.letter('\x02', 'participant without id'), pg_temp.message('2002', 'm_2')), 'sync')$$,
  $$values ('2001', 1), ('2002', 1)$$, 'its siblings land');
select is((select count(*) from convsync.dead_letters where raw = '\x02'), 1::bigint, 'it is kept');
select is((convsync_api.add_page('100') ->> 'dead_letters')::int, 2, 'the document of the Page counts what is unresolved');
update convsync.dead_letters set resolved_at = now(), resolution = 'discarded: a test' where raw = '\x02';
select is((convsync_api.get_page('100') ->> 'dead_letters')::int, 1, 'and no more what is resolved');

-- Refused

select throws_ok($$select convsync_api.ingest('[{"kind": "dead_letter", "reason": "x", "raw": ""}]', 'webhook')$$, 'ZC003', 'facts[0].page_id is missing or wrong',
  'a dead letter names its Page, if only as empty');
select throws_ok($$select convsync_api.ingest('[{"kind": "dead_letter", "page_id": "", "raw": ""}]', 'webhook')$$, 'ZC003', 'facts[0].reason is missing or wrong', 'the reason');
select throws_ok($$select convsync_api.ingest('[{"kind": "dead_letter", "page_id": "", "reason": "x"}]', 'webhook')$$, 'ZC003', 'facts[0].raw is missing or wrong', 'and the bytes');
select throws_ok($$select convsync_api.ingest('[{"kind": "dead_letter", "page_id": "", "reason": "x", "raw": "?"}]', 'webhook')$$, '22023',
  'invalid symbol "?" found while decoding base64 sequence', 'in base64');
select is((select count(*) from convsync.dead_letters), 6::bigint, 'nothing of these calls remains');

select * from finish();
rollback;
