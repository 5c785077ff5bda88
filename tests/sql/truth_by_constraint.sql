-- What PostgreSQL refuses by itself, whatever a function or a person at the prompt does wrong.
begin;
select plan(57);

-- the name of the constraint that refuses a statement
create function pg_temp.refused_by(p_sql text) returns text language plpgsql as $$
declare
  v_constraint text; v_column text;
begin
  execute p_sql;
  return 'nothing';
exception when integrity_constraint_violation then
  get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
  return coalesce(nullif(v_constraint, ''), v_column || ' not null');
end $$;

-- A Page, its conversation -1 with one event, a running run -1 with an open list: numbers that no sequence gives out.
insert into convsync.pages (page_id) values ('100'), ('101');
insert into convsync.messenger_conversations (page_id, conversation_id, sender_id, version) overriding system value values ('100', -1, '2001', 3);
insert into convsync.contact_interaction_events (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
values ('100', 'm_1', -1, 'message', 'in', '2026-03-01T10:00:00Z', 'sql');
insert into convsync.sync_runs (page_id, run_id, mode, status, lease_expires_at) overriding system value values ('100', -1, 'full', 'running', now());
insert into convsync.sync_cursors (page_id, run_id, kind, thread_id) values ('100', -1, 'list', '');
insert into convsync.dead_letters (page_id, source, reason, raw, digest) values ('', 'webhook', 'no JSON', '\x00', '\x01');

-- A run cannot have succeeded while something is open or failed. In one direction:

prepare succeed as update convsync.sync_runs set status = 'succeeded', lease_expires_at = null, finished_at = now() where run_id = -1;
select is(pg_temp.refused_by('execute succeed'), 'sync_cursors_open_run', 'no success while the list is open');
update convsync.sync_cursors set completed = true;
insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, last_cursor) values ('100', -1, 'thread', 't_1', 'n1');
select is(pg_temp.refused_by('execute succeed'), 'sync_cursors_open_run', 'nor while a thread is');
update convsync.sync_cursors set failed = true where thread_id = 't_1';
select is(pg_temp.refused_by('execute succeed'), 'sync_cursors_open_run', 'nor when one failed');
update convsync.sync_cursors set failed = false, completed = true where thread_id = 't_1';
insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
values ('100', -1, 1, 'thread', 't_1', 'failed', 3, '{}', 1);
select is(pg_temp.refused_by('execute succeed'), 'sync_batches_open_run', 'nor beside a failed batch');
update convsync.sync_batches set status = 'resolved', resolved_at = now();
select is(pg_temp.refused_by('execute succeed'), 'nothing', 'only when all of it is done');

-- and in the other:

select is(pg_temp.refused_by($$insert into convsync.sync_cursors (page_id, run_id, kind, thread_id) values ('100', -1, 'thread', 't_2')$$),
  'sync_cursors_open_run', 'a succeeded run gets no open thread');
select is(pg_temp.refused_by($$update convsync.sync_cursors set completed = false where thread_id = 't_1'$$),
  'sync_cursors_open_run', 'nor one that is opened again');
select is(pg_temp.refused_by($$insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
    values ('100', -1, 2, 'list', '', 'failed', 3, '{}', 1)$$), 'sync_batches_open_run', 'nor a failed batch');
select is(pg_temp.refused_by($$update convsync.sync_batches set status = 'failed', resolved_at = null$$), 'sync_batches_open_run', 'nor one that fails again');
select is(pg_temp.refused_by($$insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, completed) values ('100', -1, 'thread', 't_2', true)$$),
  'nothing', 'what is completed may stand beside it');
select throws_ok($$update convsync.sync_runs set closed = false$$, '428C9', null, 'closed cannot be set by hand');
select throws_ok($$update convsync.sync_cursors set run_closed = true$$, '428C9', null, 'nor run_closed');

-- One active run of a kind, one paused one of a mode

insert into convsync.sync_runs (page_id, run_id, mode, status, lease_expires_at) overriding system value values ('100', -2, 'full', 'running', now());
select is(pg_temp.refused_by(statement), constraint_name, what)
from (values
  (1, 'sync_runs_one_active', $$insert into convsync.sync_runs (page_id, mode, status, lease_expires_at) values ('100', 'full', 'running', now())$$, 'one full run at a time'),
  (2, 'sync_runs_one_active', $$insert into convsync.sync_runs (page_id, mode, status, lease_expires_at) values ('100', 'reconcile', 'running', now())$$, 'a reconcile is of its kind'),
  (3, 'sync_runs_one_active', $$insert into convsync.sync_runs (page_id, mode, status) values ('100', 'full', 'queued')$$, 'a queued one counts'),
  (4, 'nothing', $$insert into convsync.sync_runs (page_id, mode, status, lease_expires_at) values ('100', 'incremental', 'running', now())$$, 'an incremental may run beside it'),
  (5, 'nothing', $$insert into convsync.sync_runs (page_id, mode, status) values ('100', 'full', 'paused')$$, 'one may be paused'),
  (6, 'sync_runs_one_paused', $$insert into convsync.sync_runs (page_id, mode, status) values ('100', 'full', 'paused')$$, 'not two of a mode'),
  -- What a run may be
  (7, 'sync_runs_mode', $$insert into convsync.sync_runs (page_id, mode, status) values ('101', 'fast', 'queued')$$, 'a mode that is known'),
  (8, 'sync_runs_status', $$insert into convsync.sync_runs (page_id, mode, status) values ('101', 'full', 'fine')$$, 'a status that is known'),
  (9, 'sync_runs_finished', $$insert into convsync.sync_runs (page_id, mode, status) values ('101', 'full', 'cancelled')$$, 'a run that is over has an end'),
  (10, 'sync_runs_finished', $$insert into convsync.sync_runs (page_id, mode, status, finished_at) values ('101', 'full', 'queued', now())$$, 'one that is not has none'),
  (11, 'sync_runs_lease', $$insert into convsync.sync_runs (page_id, mode, status) values ('101', 'full', 'running')$$, 'a running run has a lease'),
  (12, 'sync_runs_lease', $$insert into convsync.sync_runs (page_id, mode, status, lease_expires_at) values ('101', 'full', 'paused', now())$$, 'a paused one has none'),
  (13, 'sync_runs_reason', $$insert into convsync.sync_runs (page_id, mode, status, finished_at) values ('101', 'full', 'partial', now())$$, 'partial has a reason'),
  (14, 'sync_runs_reason', $$insert into convsync.sync_runs (page_id, mode, status, finished_at) values ('101', 'full', 'failed', now())$$, 'so has failed'),
  (15, 'sync_runs_page_fkey', $$insert into convsync.sync_runs (page_id, mode, status) values ('109', 'full', 'queued')$$, 'a run has a Page'),
  (16, 'sync_cursors_list_has_no_thread', $$insert into convsync.sync_cursors (page_id, run_id, kind, thread_id) values ('100', -2, 'list', 't_1')$$, 'the list is no thread'),
  (17, 'sync_cursors_completed_not_failed', $$insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, completed, failed) values ('100', -2, 'list', '', true, true)$$,
    'what is completed has not failed'),
  (18, 'sync_batches_attempts', $$insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
    values ('100', -2, 1, 'list', '', 'failed', 0, '{}', 1)$$, 'what failed was tried'),
  (19, 'sync_batches_resolved', $$insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
    values ('100', -2, 1, 'list', '', 'resolved', 1, '{}', 1)$$, 'what is resolved has a time'),
  -- Conversations
  (20, 'messenger_conversations_one_per_sender', $$insert into convsync.messenger_conversations (page_id, sender_id) values ('100', '2001')$$, 'one conversation per contact'),
  (21, 'messenger_conversations_sender_not_empty', $$insert into convsync.messenger_conversations (page_id, sender_id) values ('100', '')$$, 'a contact has an id'),
  (22, 'messenger_conversations_sender_not_page', $$insert into convsync.messenger_conversations (page_id, sender_id) values ('100', '100')$$, 'the Page is no contact'),
  (23, 'messenger_conversations_page_fkey', $$insert into convsync.messenger_conversations (page_id, sender_id) values ('109', '2001')$$, 'a conversation has a Page'),
  (24, 'messenger_conversations_message_count', $$update convsync.messenger_conversations set message_count = -1$$, 'a count is not negative'),
  (25, 'messenger_conversations_unread_count', $$update convsync.messenger_conversations set unread_count = -1$$, 'nor is unread_count'),
  (26, 'messenger_conversations_version', $$update convsync.messenger_conversations set version = -1$$, 'nor a version'),
  (27, 'messenger_conversations_synced_version', $$update convsync.messenger_conversations set last_synced_version = 4$$, 'what is synced is not ahead of what is there'),
  (28, 'messenger_conversations_name_not_empty', $$update convsync.messenger_conversations set sender_name = ''$$, 'no name is null, not empty'),
  (29, 'messenger_conversations_status', $$update convsync.messenger_conversations set conversation_status = ''$$, 'a status is not empty'),
  (30, 'messenger_conversations_last_message', $$update convsync.messenger_conversations set last_message = 'hi'$$, 'a last message has an id and a time'),
  -- Events
  (31, 'contact_interaction_events_pkey', $$insert into convsync.contact_interaction_events (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
    values ('100', 'm_1', -1, 'message', 'in', now(), 'sql')$$, 'one row per message'),
  (32, 'contact_interaction_events_message_id_not_empty', $$update convsync.contact_interaction_events set message_id = ''$$, 'a message has an id'),
  (33, 'contact_interaction_events_conversation_fkey', $$update convsync.contact_interaction_events set conversation_id = -2$$, 'and a conversation'),
  (34, 'contact_interaction_events_conversation_fkey', $$update convsync.contact_interaction_events set page_id = '101'$$, 'of its own Page'),
  (35, 'contact_interaction_events_direction', $$update convsync.contact_interaction_events set direction = 'up'$$, 'it goes in or out'),
  (36, 'contact_interaction_events_event_type', $$update convsync.contact_interaction_events set event_type = ''$$, 'has a type'),
  (37, 'contact_interaction_events_time', $$update convsync.contact_interaction_events set event_timestamp = 'infinity'$$, 'and a time that is one'),
  (38, 'contact_interaction_events_edit', $$update convsync.contact_interaction_events set num_edit = 1$$, 'an edit has number, time and text'),
  (39, 'contact_interaction_events_metadata', $$update convsync.contact_interaction_events set metadata = '[]'$$, 'metadata is an object'),
  -- Pages, dead letters
  (40, 'pages_page_id_not_empty', $$insert into convsync.pages (page_id) values ('')$$, 'a Page has an id'),
  (41, 'pages_token_needs_key', $$update convsync.pages set token_sealed = '\x01', token_state = 'unchecked'$$, 'a sealed token names its key'),
  (42, 'pages_no_token_no_state', $$update convsync.pages set token_state = 'valid'$$, 'no token is not valid'),
  (43, 'dead_letters_once', $$insert into convsync.dead_letters (page_id, source, reason, raw, digest) values ('', 'webhook', 'no JSON', '\x00', '\x01')$$, 'a dead letter is kept once'),
  (44, 'dead_letters_resolved', $$update convsync.dead_letters set resolved_at = now()$$, 'what was done with it is told with the time'),
  (45, 'dead_letters_attempts', $$update convsync.dead_letters set attempts = 0$$, 'it came at least once')
) w (n, constraint_name, statement, what)
order by n;

select * from finish();
rollback;
