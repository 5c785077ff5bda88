-- Sync runs, their cursors and failed batches, and the call budget of each Page.
-- depends: 0002_mirror
--
-- Truth by constraint: `closed` is true only for a run that is `succeeded`; work that is still open or failed
-- refers to (run, closed = false). PostgreSQL so refuses a succeeded run beside open work, in both directions.

set local lock_timeout = '10s';

create table convsync.sync_runs (
  page_id text collate "C" not null,
  run_id bigint generated always as identity,
  mode text not null,
  status text not null,
  reason text,
  closed boolean generated always as (status = 'succeeded') stored,
  exclusive_kind text generated always as (case mode when 'incremental' then 'incremental' else 'walk' end) stored,
  fence bigint not null default 1,
  owner text,
  lease_expires_at timestamptz,
  resume_after timestamptz,
  request_id text,
  conversations_seen bigint not null default 0,
  conversations_changed bigint not null default 0,
  messages_added bigint not null default 0,
  unreadable bigint not null default 0,
  calls bigint not null default 0,
  pages_applied bigint not null default 0,
  progress bigint not null default 0,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  updated_at timestamptz not null default now(),
  constraint sync_runs_pkey primary key (page_id, run_id),
  constraint sync_runs_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint sync_runs_closed unique (page_id, run_id, closed),
  constraint sync_runs_mode check (mode in ('full', 'incremental', 'reconcile')),
  constraint sync_runs_status check (
    status in ('queued', 'running', 'paused', 'succeeded', 'partial', 'failed', 'cancelled')
  ),
  constraint sync_runs_finished check (
    (finished_at is not null) = (status in ('succeeded', 'partial', 'failed', 'cancelled'))
  ),
  constraint sync_runs_lease check ((status = 'running') = (lease_expires_at is not null)),
  constraint sync_runs_reason check (status not in ('partial', 'failed') or reason is not null)
) with (fillfactor = 80);
create unique index sync_runs_one_active
  on convsync.sync_runs (page_id, exclusive_kind) where status in ('queued', 'running');
create unique index sync_runs_one_paused on convsync.sync_runs (page_id, mode) where status = 'paused';
create index sync_runs_by_id on convsync.sync_runs (run_id);
comment on table convsync.sync_runs is
  'One sync of a Page. Whoever carries it presents its fence with every write; taking it over raises the fence.';

create table convsync.sync_cursors (
  page_id text collate "C" not null,
  run_id bigint not null,
  kind text not null,
  thread_id text collate "C" not null,
  sender_id text collate "C",
  last_cursor text,
  last_conversation_id text,
  walk_pass integer not null default 1,
  walk_started_at timestamptz not null default now(),
  pass_started_at timestamptz not null default now(),
  found_new boolean not null default false,
  restarts integer not null default 0,
  updated_time timestamptz,
  reported_count integer,
  newest_id text collate "C",
  unreadable integer not null default 0,
  counted boolean not null default false,
  completed boolean not null default false,
  failed boolean not null default false,
  run_closed boolean generated always as (case when not completed then false end) stored,
  updated_at timestamptz not null default now(),
  constraint sync_cursors_pkey primary key (page_id, run_id, kind, thread_id),
  constraint sync_cursors_run_fkey foreign key (page_id, run_id) references convsync.sync_runs (page_id, run_id),
  constraint sync_cursors_open_run foreign key (page_id, run_id, run_closed)
    references convsync.sync_runs (page_id, run_id, closed),
  constraint sync_cursors_kind check (kind in ('list', 'thread')),
  constraint sync_cursors_list_has_no_thread check ((kind = 'list') = (thread_id = '')),
  constraint sync_cursors_completed_not_failed check (not (completed and failed))
) with (fillfactor = 80);
create index sync_cursors_open on convsync.sync_cursors (page_id, run_id, kind desc, updated_at)
  where not completed and not failed;
comment on table convsync.sync_cursors is
  'How far a run has read: its walk of the list (one row) and each thread deeper than its nested slice.';

create table convsync.sync_batches (
  page_id text collate "C" not null,
  run_id bigint not null,
  batch integer not null,
  kind text not null,
  thread_id text collate "C" not null,
  cursor text,
  status text not null,
  attempts integer not null,
  error jsonb not null,
  progress bigint not null,
  run_closed boolean generated always as (case when status = 'failed' then false end) stored,
  failed_at timestamptz not null default now(),
  resolved_at timestamptz,
  constraint sync_batches_pkey primary key (page_id, run_id, batch),
  constraint sync_batches_run_fkey foreign key (page_id, run_id) references convsync.sync_runs (page_id, run_id),
  constraint sync_batches_open_run foreign key (page_id, run_id, run_closed)
    references convsync.sync_runs (page_id, run_id, closed),
  constraint sync_batches_status check (status in ('failed', 'resolved')),
  constraint sync_batches_resolved check ((status = 'resolved') = (resolved_at is not null)),
  constraint sync_batches_kind check (kind in ('list', 'thread')),
  constraint sync_batches_attempts check (attempts >= 1)
);
comment on table convsync.sync_batches is
  'What a run could not read after all its retries: the cursor, the attempts and the error.';

create table convsync.call_budgets (
  page_id text collate "C" not null,
  grants timestamptz[] not null default '{}',
  blocked_until timestamptz,
  block_reason text,
  live_wanted_until timestamptz,
  repair_wanted_until timestamptz,
  usage_percent numeric,
  usage jsonb,
  response_ms numeric,
  last_status integer,
  last_error jsonb,
  calls bigint not null default 0,
  updated_at timestamptz not null default now(),
  constraint call_budgets_pkey primary key (page_id)
) with (fillfactor = 50);
comment on table convsync.call_budgets is
  'The Graph calls granted to a Page, shared by every process; the row with page_id empty is the app''s own.';
