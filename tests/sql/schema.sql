-- What callers and operators rely on by name: schemas, roles, tables, their main columns, and that constraints have names
-- that say what they refuse.
begin;
select plan(38);

select has_schema(s, 'there is a schema ' || s)
from unnest('{convsync,convsync_api,convsync_read,convsync_ops}'::name[]) s;

select has_role(r, 'there is a role ' || r)
from unnest('{convsync_service,convsync_app,convsync_reader}'::name[]) r;

create temporary table contract (relation name, columns text) on commit drop;
insert into contract values
  ('installation', 'singleton, functions_hash, release, installed_at'),
  ('pages', 'page_id, name, owner_ref, token_sealed, token_key_id, token_state, added_at, removed_at, subscribed_at, last_webhook_at'),
  ('messenger_conversations', 'page_id, conversation_id, sender_id, sender_name, thread_id, last_message, last_message_id, '
    'last_message_time, last_inbound_time, message_count, unread_count, conversation_status, tags, assignee, note, deleted_at, '
    'history_complete_at, version, last_synced_version, created_at, updated_at'),
  ('contact_interaction_events', 'page_id, message_id, conversation_id, event_type, direction, event_timestamp, received_at, '
    'source, body, metadata, deleted_at'),
  ('pending_amendments', 'page_id, message_id, sender_id, num_edit, edited_at, edited_text, unsent_at, reaction_marks'),
  ('conversation_changes', 'page_id, change_id, xid, conversation_id, version, kinds, changed_at'),
  ('dead_letters', 'page_id, dead_letter_id, source, reason, raw, first_seen_at, last_seen_at, attempts, resolved_at, resolution'),
  ('refused_facts', 'page_id, source, reason, facts, first_refused_at, last_refused_at'),
  ('schema_drift', 'page_id, source, name, first_seen_at, last_seen_at, occurrences'),
  ('sync_runs', 'page_id, run_id, mode, status, reason, fence, lease_expires_at, conversations_seen, conversations_changed, '
    'messages_added, unreadable, calls, started_at, finished_at'),
  ('sync_cursors', 'page_id, run_id, kind, thread_id, last_cursor, last_conversation_id, completed, updated_at'),
  ('sync_batches', 'page_id, run_id, batch, cursor, status, attempts, error'),
  ('call_budgets', 'page_id, grants, calls_per_second, blocked_until, block_reason, usage_percent, usage_until, response_ms, response_until, calls');

select has_table('convsync', c.relation, 'there is a table convsync.' || c.relation) from contract c;

select is_empty(
  format('select w.column_name from unnest(%L::text[]) w (column_name) where not exists (select from information_schema.columns i '
    'where i.table_schema = %L and i.table_name = %L and i.column_name = w.column_name)',
    string_to_array(c.columns, ', '), 'convsync', c.relation),
  c.relation || ' has the columns that were promised')
from contract c;

select is_empty(
  $$select c.conname from pg_constraint c
    where c.connamespace = 'convsync'::regnamespace and c.conrelid::regclass::text !~ 'yoyo' and c.contype <> 'n'
      and c.conname not like (select r.relname from pg_class r where r.oid = c.conrelid) || '\_%'$$,
  'every constraint is named after its table');

select is_empty(
  $$select c.conname from pg_constraint c
    where c.connamespace = 'convsync'::regnamespace and c.conname ~ '_check[0-9]*$' and c.conrelid::regclass::text !~ 'yoyo'$$,
  'no check has the name that PostgreSQL makes up');

select results_eq(
  $$select c.conname::text collate "C" from pg_constraint c
    where c.contype = 'f' and c.conname in ('sync_cursors_open_run', 'sync_batches_open_run') order by 1$$,
  $$values ('sync_batches_open_run' collate "C"), ('sync_cursors_open_run')$$,
  'open work refers to a run that is not closed');

select matches(convsync_api.schema_version(), '^\d{4}_[a-z_]+\+[0-9a-f]{12}$',
  'schema_version() names the newest migration and the hash of the functions');

select is(
  split_part(convsync_api.schema_version(), '+', 2), (select left(i.functions_hash, 12) from convsync.installation i),
  'schema_version() tells the functions that are installed');

select * from finish();
rollback;
