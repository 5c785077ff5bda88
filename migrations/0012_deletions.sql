-- What is gone at Graph: messages that a read of their thread did not list, conversations that a direct read confirmed gone.
-- depends: 0007_page_statistics

set local lock_timeout = '10s';

alter table convsync.pending_amendments add column if not exists absent_at timestamptz;

alter table convsync.messenger_conversations add column if not exists gone_confirmed_at timestamptz;
comment on column convsync.messenger_conversations.gone_confirmed_at is
  'When Graph last confirmed that it has no such conversation. deleted_at has it while nothing later shows the conversation alive.';
