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
