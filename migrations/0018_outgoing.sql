-- Outgoing webhooks: who is told of changes by a signed POST, how far each has come, and what could not be delivered.
-- depends: 0017_ends_and_shares

set local lock_timeout = '10s';

create table convsync.outgoing_webhooks (
  name text collate "C" not null,
  url text not null,
  secret_sealed bytea not null,
  secret_key_id text not null,
  pages text[],
  state text not null default 'active',
  pause_reason text,
  paused_at timestamptz,
  batch_after text,
  batch_end text,
  batch_size integer,
  attempts integer not null default 0,
  fence bigint not null default 0,
  leased_until timestamptz,
  next_attempt_at timestamptz not null default now(),
  last_attempt_at timestamptz,
  last_status integer,
  last_error text,
  delivered bigint not null default 0,
  delivered_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint outgoing_webhooks_pkey primary key (name),
  constraint outgoing_webhooks_name check (name ~ '^[A-Za-z0-9_.-]{1,100}$'),
  constraint outgoing_webhooks_state check (state in ('active', 'paused')),
  constraint outgoing_webhooks_paused check (
    (state = 'paused') = (paused_at is not null) and (paused_at is null) = (pause_reason is null)
  ),
  constraint outgoing_webhooks_batch check (
    (batch_size is null) = (batch_end is null) and (batch_size is null or batch_size >= 1)
  ),
  constraint outgoing_webhooks_attempts check (attempts >= 0),
  constraint outgoing_webhooks_pages check (pages is null or cardinality(pages) >= 1)
);
comment on table convsync.outgoing_webhooks is
  'Who is told of changes by a signed POST. The secret is sealed by the service; the key is never here. batch_* is what is being delivered.';

create table convsync.outgoing_dead_letters (
  name text collate "C" not null,
  dead_letter_id bigint generated always as identity,
  webhook_id text not null,
  batch_after text,
  batch_end text not null,
  changes jsonb not null,
  attempts integer not null,
  last_status integer,
  last_error text,
  failed_at timestamptz not null default now(),
  resolved_at timestamptz,
  resolution text,
  constraint outgoing_dead_letters_pkey primary key (name, dead_letter_id),
  constraint outgoing_dead_letters_webhook_fkey foreign key (name)
    references convsync.outgoing_webhooks (name) on delete cascade,
  constraint outgoing_dead_letters_changes check (jsonb_typeof(changes) = 'array'),
  constraint outgoing_dead_letters_attempts check (attempts >= 1),
  constraint outgoing_dead_letters_resolved check (
    (resolved_at is null) = (resolution is null) and (resolution is null or resolution in ('resumed', 'skipped'))
  )
);
create unique index outgoing_dead_letters_one_open on convsync.outgoing_dead_letters (name) where resolved_at is null;
comment on table convsync.outgoing_dead_letters is
  'What could not be delivered after all attempts, and paused its webhook. It tells changes, not what they say.';
