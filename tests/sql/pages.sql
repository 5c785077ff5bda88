-- Pages and their sealed tokens.
begin;
select plan(57);
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

-- Adding

select is(convsync_api.add_page('100', 'A shop', 'customer-7') - '{added_at}'::text[],
  '{"page_id": "100", "name": "A shop", "owner_ref": "customer-7", "token": "none", "token_error": null, "subscribed_at": null,
    "last_webhook_at": null, "conversations": 0, "messages": 0, "dead_letters": 0, "last_run": null, "budget": {"calls": 0, "calls_per_second": null, "pace": 1, "pace_reason": null,
      "usage_percent": null, "app_usage_percent": null, "response_ms": null, "blocked_until": null, "block_scope": null, "block_reason": null},
    "last_success_at": null, "freshness": "broken", "freshness_reason": "token_missing", "synced_at": null, "next_sync": null, "webhooks_last_hour": 0,
    "certificate": {"conversations": 0, "complete": 0, "whole": false, "unreadable": 0, "verified_since": null,
    "list_known": false, "list_walked_at": null, "list_run": null, "deleted": 0, "erased": 0, "purged_before": null},
    "webhook_losses": {"since": null, "grace_seconds": 900, "last_day": 0}}'::jsonb,
  'a Page comes back as a document with every field');
select is(convsync_api.get_page('100') ->> 'added_at', '2026-03-01T12:00:00+00:00', 'added_at is the time of the addition');
select is((select token_state from convsync_api.page_token('100')), 'none', 'a Page without token has the state none');
select is((select token_sealed from convsync_api.page_token('100')), null, 'and no sealed token');
set local convsync.now = '2026-03-02T12:00:00Z';
select is(convsync_api.add_page('100', p_token_sealed => '\x01', p_token_key_id => 'k1') ->> 'token', 'unchecked',
  'a token that comes later is unchecked');
select results_eq($$select token_sealed, token_key_id, token_state from convsync_api.page_token('100')$$,
  $$values ('\x01'::bytea, 'k1', 'unchecked')$$, 'it goes out as it came in, sealed');
select is(convsync_api.get_page('100') ->> 'name', 'A shop', 'what was not given again stays');
select is(convsync_api.get_page('100') ->> 'owner_ref', 'customer-7', 'the owner too');
select is(convsync_api.get_page('100') ->> 'added_at', '2026-03-01T12:00:00+00:00', 'and when it was added');
select is(convsync_api.add_page('100', 'The shop', '') ->> 'name', 'The shop', 'a new name replaces the old one');
select is(convsync_api.get_page('100') ->> 'owner_ref', 'customer-7', 'an empty one replaces nothing');
select is(convsync_api.get_page('100')::text ~ '\\x01|token_sealed|k1', false, 'a document never has the token');

select is(pg_temp.error_of($$select convsync_api.add_page('')$$), 'ZC003 | the Page''s id is missing | hint: page_id', 'a Page has an id');
select is(pg_temp.error_of($$select convsync_api.add_page(null)$$), 'ZC003 | the Page''s id is missing | hint: page_id', 'that is not null');
select is(pg_temp.error_of($$select convsync_api.add_page('100', p_token_sealed => '\x01')$$),
  'ZC003 | a sealed token needs the id of its key | hint: p_token_key_id', 'a sealed token comes with its key''s id');
select is(pg_temp.error_of($$select convsync_api.add_page('100', p_token_key_id => 'k1')$$),
  'ZC003 | a sealed token needs the id of its key | hint: p_token_key_id', 'and a key''s id with a sealed token');

-- What Graph says of the token

select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'session expired')$$, 'a token can turn out invalid');
select results_eq($$select convsync_api.get_page('100') ->> 'token', convsync_api.get_page('100') ->> 'token_error'$$,
  $$values ('invalid', 'session expired')$$, 'which is shown with its reason');
select lives_ok($$select convsync_api.mark_token('100', 'valid', 'ignored')$$, 'or valid');
select results_eq($$select convsync_api.get_page('100') ->> 'token', convsync_api.get_page('100') ->> 'token_error'$$,
  $$values ('valid', null::text)$$, 'without one');
select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired', '\x00')$$, 'what is said of a token that was replaced meanwhile');
select results_eq($$select convsync_api.get_page('100') ->> 'token', convsync_api.get_page('100') ->> 'token_error'$$,
  $$values ('valid', null::text)$$, 'is not said of this one');
select lives_ok($$select convsync_api.mark_token('100', 'invalid', 'expired', '\x01')$$, 'of this one');
select is(convsync_api.get_page('100') ->> 'token_error', 'expired', 'it is');
select is((select token_checked_at from convsync.pages where page_id = '100'), '2026-03-02T12:00:00Z', 'and when it was checked');
select is(convsync_api.add_page('100', p_token_sealed => '\x02', p_token_key_id => 'k1') ->> 'token', 'unchecked',
  'another token is unchecked again');
select is(pg_temp.error_of($$select convsync_api.mark_token('100', 'none')$$),
  'ZC003 | state must be valid or invalid | hint: p_state', 'a state is valid or invalid');
select is(pg_temp.error_of($$select convsync_api.mark_token('100', null)$$),
  'ZC003 | state must be valid or invalid | hint: p_state', 'and not null');
select is(pg_temp.error_of($$select convsync_api.mark_token('101', 'valid')$$), 'ZC001 | there is no Page 101 with a token',
  'only a Page that is there has a token');
select lives_ok($$select convsync_api.add_page('102')$$, 'a second Page, without token');
select is(pg_temp.error_of($$select convsync_api.mark_token('102', 'valid')$$), 'ZC001 | there is no Page 102 with a token',
  'a Page without token has none to mark');

-- Subscription

select lives_ok($$select convsync_api.mark_subscribed('100')$$, 'a subscription is recorded');
select is(convsync_api.get_page('100') ->> 'subscribed_at', '2026-03-02T12:00:00+00:00', 'with its time');
select is(pg_temp.error_of($$select convsync_api.mark_subscribed('101')$$), 'ZC001 | there is no Page 101', 'of a Page that is there');

-- Listing

select lives_ok(
  $$select convsync_api.ingest('[{"kind": "message", "page_id": "050", "sender_id": "2001", "message_id": "m_1", "direction": "in",
    "at": "2026-03-01T10:00:00Z", "event_type": "message", "text": "hi"}]', 'webhook')$$, 'a webhook brings a Page that nobody added');
select results_eq($$select l ->> 'page_id', l ->> 'added_at' is null, (l ->> 'conversations')::int, (l ->> 'messages')::int
    from convsync_api.list_pages() l$$,
  $$values ('050', true, 1, 1), ('100', false, 0, 0), ('102', false, 0, 0)$$, 'Pages are listed by id, that one without added_at');
select results_eq($$select l ->> 'page_id' from convsync_api.list_pages(p_limit => 2) l$$, array['050', '100'], 'part');
select results_eq($$select l ->> 'page_id' from convsync_api.list_pages(p_after => '100', p_limit => 2) l$$, array['102'], 'by part');
select results_eq($$select l ->> 'page_id' from convsync_api.list_pages(p_pages => array['102', '050', '999'], p_after => '0') l$$,
  array['050', '102'], 'or only those that are named');

-- Finding

select lives_ok(
  $$select convsync_api.add_page(page_id, name, null, '\x01', 'k1') from (values ('103', 'Café 100%_\'), ('104', null), ('105', null), ('106', null),
    ('107', null)) p (page_id, name)$$, 'Pages with a token, and one with a name');
select results_eq($$select f.page_id, f.name from convsync_api.find_pages('', array['100', '103']) f$$,
  $$values ('100', 'The shop'), ('103', 'Café 100%_\')$$, 'of those that are named');
select results_eq($$select f.page_id from convsync_api.find_pages('cAFé 100%_\') f$$, array['103'], 'by a part of the name, in either case');
select results_eq($$select f.page_id from convsync_api.find_pages('10', array['050', '100', '103', '999']) f$$, array['100', '103'], 'or the beginning of the id');
update convsync.pages set token_state = 'invalid' where page_id = '104';
insert into convsync.dead_letters (page_id, source, reason, raw, digest, resolved_at, resolution)
values ('105', 'webhook', 'odd', '\x01', '\x01', null, null), ('106', 'webhook', 'odd', '\x01', '\x01', now(), 'discarded');
insert into convsync.alerts (page_id, problem, since, details, over_at)
values ('106', 'sync_failed', now(), '{}', now()), ('107', 'sync_failed', now(), '{}', null);
select results_eq($$select f.page_id from convsync_api.find_pages() f$$, array['050', '102', '104', '105', '107', '100', '103', '106'],
  'first those without a usable token, with a dead letter that waits, and those that somebody is told of, by id');
select results_eq(
  $$select f.page_id from convsync_api.find_pages(p_after => (select max(f.place) from convsync_api.find_pages(p_limit => 4) f)) f$$,
  array['107', '100', '103', '106'], 'and then the others, part by part');
delete from convsync.alerts;
delete from convsync.dead_letters;
delete from convsync.pages where page_id between '103' and '107';
select is(convsync_api.get_page('050') ->> 'last_webhook_at', '2026-03-02T12:00:00+00:00', 'its first webhook is noted');
select is(pg_temp.error_of($$select convsync_api.get_page('101')$$), 'ZC001 | there is no Page 101', 'a Page that is not there is not found');
select is(pg_temp.error_of($$select * from convsync_api.page_token('101')$$), 'ZC001 | there is no Page 101', 'nor is its token');

-- Removing

select lives_ok($$select convsync_api.begin_sync('100', 'full')$$, 'a sync runs');
select is(convsync_api.remove_page('100') ->> 'token', 'none', 'a removed Page has no token any more');
select results_eq($$select status, reason from convsync.sync_runs where page_id = '100'$$,
  $$values ('cancelled', 'page_removed')$$, 'its sync is cancelled');
select is((select token_sealed from convsync.pages where page_id = '100'), null, 'the sealed token is gone');
select is(pg_temp.error_of($$select convsync_api.get_page('100')$$), 'ZC001 | there is no Page 100', 'it is not found');
select is(pg_temp.error_of($$select convsync_api.remove_page('100')$$), 'ZC001 | there is no Page 100', 'nor removed again');
select results_eq($$select l ->> 'page_id' from convsync_api.list_pages() l$$, array['050', '102'], 'nor listed');
select is(convsync_api.add_page('100') ->> 'name', 'The shop', 'added again it is as it was');
select is(convsync_api.get_page('100') -> 'last_run' ->> 'status', 'cancelled', 'with its last run');

select * from finish();
rollback;
