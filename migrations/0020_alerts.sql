-- What somebody is to be told of, so that of several processes one tells it, once, and a restart forgets nothing.
-- depends: 0019_adoption

set local lock_timeout = '10s';

create table convsync.alerts (
  page_id text collate "C" not null,
  problem text collate "C" not null,
  since timestamptz not null,
  details jsonb not null,
  taken_until timestamptz,
  told_at timestamptz,
  over_at timestamptz,
  constraint alerts_pkey primary key (page_id, problem),
  constraint alerts_page_fkey foreign key (page_id) references convsync.pages (page_id)
);
comment on table convsync.alerts is
  'Problems of Pages that somebody is told of, or will be that they are over. taken_until: a process is telling it just now.';
