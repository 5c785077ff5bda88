-- What is gone at Graph: messages that a read of their thread did not list, conversations that a direct read confirmed gone.
-- depends: 0011_verified_threads

set local lock_timeout = '10s';

alter table convsync.pending_amendments add column if not exists absent_at timestamptz;

alter table convsync.messenger_conversations
  add column if not exists gone_confirmed_at timestamptz,
  add column if not exists in_several_threads boolean not null default false;
comment on column convsync.messenger_conversations.gone_confirmed_at is
  'When Graph last confirmed that it has no such conversation. deleted_at has it while nothing later shows the conversation alive.';
comment on column convsync.messenger_conversations.in_several_threads is
  'Graph showed the person in more than one thread: which of them a message belongs to is not known.';

alter table convsync.sync_cursors
  add column if not exists boundary_at timestamptz,
  add column if not exists boundary_ids text[],
  add column if not exists listed_count integer not null default 0;
comment on column convsync.sync_cursors.boundary_at is
  'The oldest second that the read of this thread has come to: more of it may stand on the next page. Null: no page before in order.';
comment on column convsync.sync_cursors.boundary_ids is 'What was listed of that second.';
comment on column convsync.sync_cursors.listed_count is 'How many messages the read of this thread has listed.';

alter table convsync.sync_cursors
  add column if not exists gone_at timestamptz,
  add column if not exists gone_seen text;
comment on column convsync.sync_cursors.gone_at is
  'When the direct read was granted to which Graph said that there is no such thread: not believed before a control read succeeds.';
comment on column convsync.sync_cursors.gone_seen is 'By whom and with which token that was read; the control read must be of the same.';

alter table convsync.thread_proofs add column if not exists hidden_until timestamptz;
comment on column convsync.thread_proofs.hidden_until is
  'Not listed and there all the same: a direct read found it. Until then no sync asks again whether it is gone.';

alter table convsync.sync_runs
  add column if not exists deletions_proposed integer not null default 0,
  add column if not exists deletions_confirmed integer not null default 0,
  add column if not exists deletions_held_back boolean not null default false;
comment on column convsync.sync_runs.deletions_held_back is
  'More conversations were missing from the list than is credible: none of them was asked for, a person has to look.';
-- squawk-ignore ban-drop-constraint
alter table convsync.sync_runs drop constraint if exists sync_runs_deletions_held_back;
alter table convsync.sync_runs
  add constraint sync_runs_deletions_held_back check (not (deletions_held_back and status = 'succeeded')) not valid;

-- The read of a conversation known to be alive is work too.
-- squawk-ignore ban-drop-constraint
alter table convsync.sync_cursors drop constraint sync_cursors_kind;
alter table convsync.sync_cursors
  add constraint sync_cursors_kind check (kind in ('list', 'thread', 'contact', 'confirm', 'control')) not valid;
-- squawk-ignore ban-drop-constraint
alter table convsync.sync_batches drop constraint sync_batches_kind;
alter table convsync.sync_batches
  add constraint sync_batches_kind check (kind in ('list', 'thread', 'contact', 'confirm', 'control')) not valid;

alter table convsync.pages add column if not exists deletions_allowed integer;
comment on column convsync.pages.deletions_allowed is
  'A person has looked: so many conversations may be missing from the list at the next whole walk. Used once.';
