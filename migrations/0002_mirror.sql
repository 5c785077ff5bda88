-- The mirror: Pages, conversations, events.
-- depends: 0001_foundation
--
-- Every mutable column is a register: the greatest under a total order that ends in the value itself.
-- A column <x>_at beside <x> is the stamp of that order. docs/merge-rules.md has them in one table.

set local lock_timeout = '10s';

create table convsync.pages (
  page_id text collate "C" primary key,
  name text,
  owner_ref text,
  token_sealed bytea,
  token_key_id text,
  token_state text not null default 'none',
  token_error text,
  token_checked_at timestamptz,
  added_at timestamptz,
  removed_at timestamptz,
  subscribed_at timestamptz,
  last_webhook_at timestamptz,
  purged_before timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint pages_page_id_not_empty check (page_id <> ''),
  constraint pages_token_state check (token_state in ('none', 'unchecked', 'valid', 'invalid')),
  constraint pages_token_needs_key check ((token_sealed is null) = (token_key_id is null)),
  constraint pages_no_token_no_state check ((token_sealed is null) = (token_state = 'none'))
);
comment on table convsync.pages is
  'A Page. added_at is null while it is known only from a webhook. Tokens are sealed by the service; the key is never here.';

create table convsync.messenger_conversations (
  page_id text collate "C" not null,
  conversation_id bigint generated always as identity,
  sender_id text collate "C" not null,
  sender_name text,
  sender_name_at timestamptz,
  thread_id text collate "C",
  thread_id_at timestamptz,
  last_message text,
  last_message_id text collate "C",
  last_message_time timestamptz,
  last_inbound_time timestamptz,
  message_count integer not null default 0,
  unread_count integer not null default 0,
  unread_count_at timestamptz,
  snippet text,
  snippet_at timestamptz,
  can_reply boolean,
  can_reply_at timestamptz,
  reported_count integer,
  reported_count_at timestamptz,
  updated_time timestamptz,
  updated_time_at timestamptz,
  read_watermark timestamptz,
  delivered_watermark timestamptz,
  conversation_status text not null default 'active',
  tags text[] not null default '{}',
  assignee text,
  note text,
  deleted_at timestamptz,
  history_complete_at timestamptz,
  version bigint not null default 0,
  version_xid xid8,
  last_synced_version bigint,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint messenger_conversations_pkey primary key (page_id, conversation_id),
  constraint messenger_conversations_one_per_sender unique (page_id, sender_id),
  constraint messenger_conversations_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint messenger_conversations_sender_not_empty check (sender_id <> ''),
  constraint messenger_conversations_sender_not_page check (sender_id <> page_id),
  constraint messenger_conversations_message_count check (message_count >= 0),
  constraint messenger_conversations_unread_count check (unread_count >= 0),
  constraint messenger_conversations_version check (version >= 0),
  constraint messenger_conversations_synced_version check (last_synced_version <= version),
  constraint messenger_conversations_name_not_empty check (sender_name <> ''),
  constraint messenger_conversations_status check (conversation_status <> '' and length(conversation_status) <= 64),
  constraint messenger_conversations_last_message check (
    (last_message_id is null) = (last_message_time is null) and (last_message is null or last_message_id is not null)
  )
) with (fillfactor = 85);
-- Partial, both: on a table that was empty when a plan was made, an index that begins with page_id looks as good as the key.
create index messenger_conversations_newest
  on convsync.messenger_conversations (page_id, coalesce(last_message_time, 'epoch'::timestamptz) desc, conversation_id desc)
  where deleted_at is null;
create index messenger_conversations_thread
  on convsync.messenger_conversations (page_id, thread_id) where thread_id is not null;
comment on table convsync.messenger_conversations is
  'One conversation of a Page with one person. Rows are never deleted. A person without an id is thread:<thread_id>.';

create table convsync.contact_interaction_events (
  page_id text collate "C" not null,
  message_id text collate "C" not null,
  conversation_id bigint not null,
  event_type text not null,
  direction text not null,
  in_thread boolean not null default true,
  event_timestamp timestamptz not null,
  received_at timestamptz not null default now(),
  source text not null,
  text_original text,
  text_graph text,
  text_graph_at timestamptz,
  num_edit integer,
  edited_at timestamptz,
  edited_text text,
  graph_at timestamptz,
  absent_at timestamptz,
  unsent_at timestamptz,
  reaction_marks jsonb,
  metadata jsonb not null default '{}',
  body text generated always as (
    case
      when text_graph_at > coalesce(edited_at, event_timestamp) then text_graph
      when edited_text is not null then edited_text
      else coalesce(text_original, text_graph)
    end
  ) stored,
  deleted_at timestamptz generated always as (
    least(unsent_at, case when absent_at > greatest(graph_at, event_timestamp) then absent_at end)
  ) stored,
  constraint contact_interaction_events_pkey primary key (page_id, message_id),
  constraint contact_interaction_events_conversation_fkey foreign key (page_id, conversation_id)
    references convsync.messenger_conversations (page_id, conversation_id),
  constraint contact_interaction_events_message_id_not_empty check (message_id <> ''),
  constraint contact_interaction_events_event_type check (event_type <> ''),
  constraint contact_interaction_events_direction check (direction in ('in', 'out')),
  constraint contact_interaction_events_source check (source in ('webhook', 'sync', 'sql', 'import')),
  constraint contact_interaction_events_time check (isfinite(event_timestamp)),
  constraint contact_interaction_events_edit check ((num_edit is null) = (edited_at is null) and (num_edit is null) = (edited_text is null)),
  constraint contact_interaction_events_graph_text check ((text_graph is null) = (text_graph_at is null) and text_graph_at <= graph_at),
  constraint contact_interaction_events_metadata check (jsonb_typeof(metadata) = 'object')
) with (fillfactor = 90);
create index contact_interaction_events_thread
  on convsync.contact_interaction_events (page_id, conversation_id, event_timestamp, message_id);
comment on table convsync.contact_interaction_events is
  'One row per message or event. body and deleted_at are folds of the registers beside them, kept by PostgreSQL itself.';

create table convsync.pending_amendments (
  page_id text collate "C" not null,
  message_id text collate "C" not null,
  sender_id text collate "C" not null,
  num_edit integer,
  edited_at timestamptz,
  edited_text text,
  unsent_at timestamptz,
  reaction_marks jsonb,
  first_seen_at timestamptz not null default now(),
  constraint pending_amendments_pkey primary key (page_id, message_id),
  constraint pending_amendments_edit check ((num_edit is null) = (edited_at is null) and (num_edit is null) = (edited_text is null))
);
create index pending_amendments_sender on convsync.pending_amendments (page_id, sender_id);
comment on table convsync.pending_amendments is
  'Edits, reactions and unsends that arrived before their message; taken over when the message arrives.';

create table convsync.conversation_changes (
  page_id text collate "C" not null,
  change_id bigint generated always as identity,
  epoch integer not null,
  xid xid8 not null,
  conversation_id bigint not null,
  version bigint not null,
  kinds text[] not null,
  changed_at timestamptz not null default now(),
  constraint conversation_changes_pkey primary key (page_id, change_id),
  constraint conversation_changes_once_per_transaction unique (page_id, conversation_id, epoch, xid)
);
create index conversation_changes_order on convsync.conversation_changes (epoch, xid, change_id);
comment on table convsync.conversation_changes is
  'The change feed: one row per conversation per transaction that changed it, written in that transaction.';

create table convsync.feed_epochs (
  epoch integer not null,
  cluster text not null,
  began_at timestamptz not null default now(),
  constraint feed_epochs_pkey primary key (epoch)
);
comment on table convsync.feed_epochs is
  'The clusters this data has lived in: transaction numbers count from the beginning of each.';

create table convsync.feed_consumers (
  consumer text not null,
  last_position text not null,
  updated_at timestamptz not null default now(),
  constraint feed_consumers_pkey primary key (consumer)
);
comment on table convsync.feed_consumers is
  'How far each named consumer of the change feed has come.';

create table convsync.dead_letters (
  page_id text collate "C" not null,
  dead_letter_id bigint generated always as identity,
  source text not null,
  reason text not null,
  raw bytea not null,
  digest bytea not null,
  first_seen_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  attempts integer not null default 1,
  resolved_at timestamptz,
  resolution text,
  constraint dead_letters_pkey primary key (page_id, dead_letter_id),
  constraint dead_letters_once unique (page_id, source, digest),
  constraint dead_letters_source check (source in ('webhook', 'sync', 'sql', 'import')),
  constraint dead_letters_resolved check ((resolved_at is null) = (resolution is null)),
  constraint dead_letters_attempts check (attempts >= 1)
);
create index dead_letters_by_id on convsync.dead_letters (dead_letter_id);
comment on table convsync.dead_letters is
  'What could not be understood, with its raw bytes. page_id is empty where it is unknown.';

create table convsync.installation_secrets (
  singleton boolean primary key default true,
  erasure_key bytea not null default sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')),
  constraint installation_secrets_is_one_row check (singleton)
);
insert into convsync.installation_secrets default values;
comment on table convsync.installation_secrets is
  'The key under which tombstones are digests.';

create table convsync.erased_contacts (
  page_id text collate "C" not null,
  contact_digest bytea not null,
  erased_at timestamptz not null,
  constraint erased_contacts_pkey primary key (page_id, contact_digest)
);
comment on table convsync.erased_contacts is
  'Tombstones: facts about these people from up to erased_at are refused. Nobody can be read from a digest.';

create table convsync.deletion_requests (
  confirmation_code text not null,
  person_digest bytea not null,
  requested_at timestamptz not null,
  completed_at timestamptz,
  contacts integer not null default 0,
  constraint deletion_requests_pkey primary key (confirmation_code)
);
comment on table convsync.deletion_requests is
  'Deletion requests that came through Meta, for their status page.';

-- What the functions hand from statement to statement.

create type convsync.fact as (
  kind text,
  page_id text,
  sender_id text,
  message_id text,
  direction text,
  at timestamptz,
  "text" text,
  event_type text,
  metadata jsonb,
  observed_at timestamptz,
  in_thread boolean,
  num_edit integer,
  actor_id text,
  action text,
  reaction text,
  emoji text,
  what text,
  thread_id text,
  fields jsonb,
  reason text,
  raw text,
  round integer
);

create type convsync.conversation_key as (
  page_id text,
  sender_id text,
  conversation_id bigint,
  created boolean
);

create type convsync.conversation_delta as (
  page_id text,
  conversation_id bigint,
  kind text,
  events_added integer,
  events_changed integer,
  live integer
);
