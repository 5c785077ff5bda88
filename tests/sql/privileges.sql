-- The service's role: it may call every public function, and reach nothing else.
begin;
select plan(140);

create temporary table tables_of_state (relation text) on commit drop;
insert into tables_of_state
select c.relname from pg_class c where c.relnamespace = 'convsync'::regnamespace and c.relkind = 'r' and c.relname !~ 'yoyo';
grant select on tables_of_state to public;

set local role convsync_service;

select is(current_user::text, 'convsync_service', 'this runs as the role of the service');

select throws_ok(format(statement, t.relation), '42501', 'permission denied for schema convsync', what || t.relation || ' is refused')
from (
  select relation from unnest('{alert_looks,alerts,call_budgets,contact_interaction_events,conversation_changes,dead_letters,deletion_requests,erased_contacts,
    erased_messages,feed_consumers,feed_epochs,feed_horizons,installation,installation_secrets,loss_meter,messenger_conversations,outgoing_dead_letters,outgoing_webhooks,page_events,pages,pending_amendments,refused_facts,refused_requests,request_sizes,schema_drift,sync_batches,sync_cursors,sync_runs,sync_schedule,thread_proofs,webhook_losses}'::text[]) relation
) t
cross join (values
  (1, 'reading ', 'select from convsync.%I'),
  (2, 'writing into ', 'insert into convsync.%I default values'),
  (3, 'deleting from ', 'delete from convsync.%I'),
  (4, 'truncating ', 'truncate convsync.%I')
) s (n, what, statement)
order by t.relation, s.n;

select throws_ok('update convsync.pages set name = null', '42501', 'permission denied for schema convsync', 'updating pages is refused');
select throws_ok('update convsync.sync_runs set status = $$succeeded$$, finished_at = now()', '42501',
  'permission denied for schema convsync', 'nobody declares a run succeeded by hand');

reset role;
select is_empty(
  $$select relation from tables_of_state
    where relation <> all ('{alert_looks,alerts,call_budgets,contact_interaction_events,conversation_changes,dead_letters,deletion_requests,erased_contacts,
      erased_messages,feed_consumers,feed_epochs,feed_horizons,installation,installation_secrets,loss_meter,messenger_conversations,outgoing_dead_letters,outgoing_webhooks,page_events,pages,pending_amendments,refused_facts,refused_requests,request_sizes,schema_drift,sync_batches,sync_cursors,sync_runs,sync_schedule,thread_proofs,webhook_losses}')$$,
  'no table was forgotten above');
set local role convsync_service;

select throws_ok('create table convsync.mine (n int)', '42501', 'permission denied for schema convsync', 'no table can be made among the state');
select throws_ok('create function convsync_api.mine() returns int language sql as $$select 1$$', '42501',
  'permission denied for schema convsync_api', 'no function can be put among the functions');
select throws_ok($$select convsync_api._ingest('[]', 'sync')$$, '42501', 'permission denied for function _ingest',
  'what begins with _ cannot be called past the public functions');
select throws_ok($$select convsync_api._now()$$, '42501', 'permission denied for function _now', 'not even the clock');
select throws_ok($$select from convsync_read.pages$$, '42501', 'permission denied for schema convsync_read', 'the views for applications are not the service''s');
select throws_ok($$select from convsync_ops.runs$$, '42501', 'permission denied for schema convsync_ops', 'nor those for operators');

select lives_ok($$select convsync_api.add_page('100', 'A shop')$$, 'add_page may be called');
select lives_ok($$select convsync_api.ingest('[]', 'webhook')$$, 'ingest may be called');
select lives_ok($$select * from convsync_api.begin_sync('100', 'full')$$, 'begin_sync may be called');
select is((select wait_ms from convsync_api.acquire_call('100', 'live')), 0, 'acquire_call may be called');
select results_eq(
  $$select outcome from convsync_api.sync_conversation_with_events('{"page_id": "100", "sender_id": "2001"}', '[]')$$,
  array['created'], 'sync_conversation_with_events may be called');

reset role;
select is_empty(
  $$select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'convsync_api'::regnamespace
      and has_function_privilege('convsync_service', p.oid, 'execute') <> (p.proname not like '\_%')$$,
  'the service may execute what is public and nothing that begins with _');

select * from finish();
rollback;
