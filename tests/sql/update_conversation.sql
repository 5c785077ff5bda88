-- What people and programs own of a conversation is changed only by who has read its latest version.
begin;
select plan(27);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T12:00:00Z';

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

-- A version rises once per transaction, and this whole file is one: as if it had been committed up to here.
create procedure pg_temp.next_transaction() language plpgsql as $$
begin
  update convsync.messenger_conversations set version_xid = null;
  update convsync.conversation_changes set xid = change_id::text::xid8;
end $$;

-- conversation 1 of Page 100, at version 1
select is((select c.version from convsync_api.sync_conversation_with_events('{"page_id": "100", "sender_id": "2001"}', '[]') c),
  1::bigint, 'a new conversation has version 1');
call pg_temp.next_transaction();
create function pg_temp.update(p_version bigint, p_patch jsonb) returns bigint language sql as $$
  select convsync_api.update_conversation('100', (select conversation_id from convsync.messenger_conversations where sender_id = '2001'),
    p_version, p_patch)
$$;
prepare edited as select conversation_status, tags, assignee, note from convsync.messenger_conversations where sender_id = '2001';

select results_eq('edited', $$values ('active', '{}'::text[], null::text, null::text)$$, 'it begins active, without tags, assignee and note');
select is(pg_temp.update(1, '{"conversation_status": "done", "tags": ["vip", "eu", "vip"], "assignee": "ann", "note": "call back"}'),
  2::bigint, 'an edit of what was read last gives the next version');
select results_eq('edited', $$values ('done', '{eu,vip}'::text[], 'ann', 'call back')$$, 'and is there; tags are a set');
select results_eq(
  $$select version, kinds from convsync.conversation_changes where kinds = '{edit_by_person}'$$,
  $$values (2::bigint, '{edit_by_person}'::text[])$$, 'and in the change feed');
select is((select updated_at from convsync.messenger_conversations where sender_id = '2001'), '2026-03-01T12:00:00Z',
  'updated_at is the time of the edit');

select is(pg_temp.error_of($$select pg_temp.update(1, '{"note": "mine"}')$$),
  'ZC002 | the conversation is at version 2, not 1 | detail: {"actual": 2, "expected": 1}', 'an edit of a stale version is refused');
select results_eq('edited', $$values ('done', '{eu,vip}'::text[], 'ann', 'call back')$$, 'and changes nothing');
select throws_ok($$select pg_temp.update(3, '{"note": "mine"}')$$, 'ZC002', 'the conversation is at version 2, not 3',
  'a version of the future is refused too');

call pg_temp.next_transaction();
select is(pg_temp.update(2, '{"note": "call back"}'), 2::bigint, 'an edit that changes nothing leaves the version as it is');
select is(pg_temp.update(2, '{}'), 2::bigint, 'so does an empty one');
select is(pg_temp.update(2, '{"tags": ["vip", "eu"]}'), 2::bigint, 'and the same tags in another order');
select is((select count(*) from convsync.conversation_changes where version > 2), 0::bigint, 'nothing of that is in the change feed');
select is(pg_temp.update(2, '{"assignee": null}'), 3::bigint, 'null takes an assignee away');
select is(pg_temp.update(3, '{"note": null}'), 3::bigint, 'a second edit in one transaction does not raise the version again');
select results_eq('edited', $$values ('done', '{eu,vip}'::text[], null::text, null::text)$$, 'what is not named stays');

select is(pg_temp.error_of($$select convsync_api.update_conversation('100', -1, 1, '{}')$$),
  'ZC001 | Page 100 has no conversation -1', 'a conversation that does not exist is not found');
select is(
  pg_temp.error_of(format($$select convsync_api.update_conversation('101', %s, 1, '{}')$$,
    (select conversation_id from convsync.messenger_conversations where sender_id = '2001'))) ~ '^ZC001 | Page 101',
  true, 'nor is that of another Page');
select is(pg_temp.error_of($$select pg_temp.update(null, '{}')$$),
  'ZC003 | the version that was read is missing | hint: p_expected_version', 'the version that was read must be told');
select is(pg_temp.error_of($$select pg_temp.update(3, '[]')$$), 'ZC003 | p_patch must be an object | hint: p_patch', 'p_patch is an object');
select is(pg_temp.error_of($$select pg_temp.update(3, null)$$), 'ZC003 | p_patch must be an object | hint: p_patch', 'and not null');

select is(pg_temp.error_of(format('select pg_temp.update(3, %L)', patch)),
  format('ZC003 | p_patch.%1$s is unknown or wrong | hint: p_patch.%1$s', field), 'refused: ' || patch)
from (values
  ('message_count', '{"message_count": 0}'),
  ('conversation_status', '{"conversation_status": ""}'),
  ('conversation_status', '{"conversation_status": null}'),
  ('tags', '{"tags": "vip"}'),
  ('tags', '{"tags": ["vip", 1]}'),
  ('note', '{"note": {"text": "x"}}')
) w (field, patch);

select * from finish();
rollback;
