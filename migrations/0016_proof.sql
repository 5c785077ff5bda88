-- Messages that a sync had to find because their webhook had not come.
-- depends: 0015_call_pace

set local lock_timeout = '10s';

create table convsync.webhook_losses (
  page_id text collate "C" not null,
  message_id text collate "C" not null,
  event_timestamp timestamptz not null,
  learnt_at timestamptz not null,
  constraint webhook_losses_pkey primary key (page_id, message_id)
);
create index webhook_losses_newest on convsync.webhook_losses (page_id, event_timestamp);
alter table convsync.webhook_losses alter column page_id set (n_distinct = 10);
comment on table convsync.webhook_losses is
  'Messages of a Page with webhooks that a sync told first. One whose webhook comes after all is taken off again.';

create table convsync.loss_meter (
  singleton boolean primary key default true,
  grace interval not null,
  updated_at timestamptz not null default now(),
  constraint loss_meter_is_one_row check (singleton),
  constraint loss_meter_not_negative check (grace >= interval '0')
);
comment on table convsync.loss_meter is
  'How long a webhook may be on its way before its message counts as lost, as the service that started last was told.';

alter table convsync.pages add column first_webhook_at timestamptz;
comment on column convsync.pages.first_webhook_at is 'When the first webhook of this Page came, since it was last removed.';
