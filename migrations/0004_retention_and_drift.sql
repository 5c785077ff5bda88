-- What Meta sends that nobody here has heard of; how far the change feed was deleted; messages that erasure refused.
-- depends: 0003_sync

set local lock_timeout = '10s';

create table convsync.schema_drift (
  page_id text collate "C" not null,
  source text not null,
  name text collate "C" not null,
  first_seen_at timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  occurrences bigint not null,
  constraint schema_drift_pkey primary key (page_id, source, name),
  constraint schema_drift_source check (source in ('webhook', 'sync')),
  constraint schema_drift_name check (name <> '' and length(name) <= 200),
  constraint schema_drift_occurrences check (occurrences >= 1)
);
comment on table convsync.schema_drift is
  'Fields and kinds of event that this release does not know, by name, and how often they came. page_id is empty where it is unknown.';

create table convsync.feed_horizons (
  page_id text collate "C" not null,
  epoch integer not null,
  xid xid8 not null,
  change_id bigint not null,
  expired_at timestamptz not null default now(),
  constraint feed_horizons_pkey primary key (page_id)
);
comment on table convsync.feed_horizons is
  'The last change of each Page that was deleted from the change feed: who has read less than that has missed it.';

create table convsync.erased_messages (
  page_id text collate "C" not null,
  message_digest bytea not null,
  constraint erased_messages_pkey primary key (page_id, message_digest)
);
comment on table convsync.erased_messages is
  'Messages that were erased, or refused because of an erasure: what is still said of them is not kept. No id can be read from a digest.';
