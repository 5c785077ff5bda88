-- What the platform tells a Page of itself: policy notices, the roles of its apps. It belongs to no conversation.
-- depends: 0005_conversation_fold

set local lock_timeout = '10s';

create table convsync.page_events (
  page_id text collate "C" not null,
  event_id text collate "C" not null,
  event_type text collate "C" not null,
  event_timestamp timestamptz not null,
  received_at timestamptz not null default now(),
  source text not null,
  metadata jsonb not null default '{}',
  constraint page_events_pkey primary key (page_id, event_id),
  constraint page_events_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint page_events_event_id_not_empty check (event_id <> ''),
  constraint page_events_event_type check (event_type <> ''),
  constraint page_events_source check (source in ('webhook', 'sync', 'sql', 'import')),
  constraint page_events_time check (isfinite(event_timestamp)),
  constraint page_events_metadata check (jsonb_typeof(metadata) = 'object')
);
create index page_events_newest on convsync.page_events (page_id, event_timestamp, event_id);
comment on table convsync.page_events is
  'What the platform told a Page of itself. An event that names a person is in contact_interaction_events.';
