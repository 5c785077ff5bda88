-- When Pages are synced by themselves, and what tells how long a run still takes.
-- depends: 0012_deletions

set local lock_timeout = '10s';

create table convsync.sync_schedule (
  singleton boolean primary key default true,
  sync_interval interval not null,
  reconcile_interval interval not null,
  updated_at timestamptz not null default now(),
  constraint sync_schedule_is_one_row check (singleton),
  constraint sync_schedule_not_negative check (sync_interval >= interval '0' and reconcile_interval >= interval '0')
);
comment on table convsync.sync_schedule is
  'How long after the beginning of one sync the next is due, as the service that started last was told; 0 is never.';

-- The latest run of a kind: walks are rare among the incremental ones. Made at once: a run is a row, so they are few.
-- squawk-ignore require-concurrent-index-creation
create index sync_runs_latest on convsync.sync_runs (page_id, exclusive_kind, run_id desc);

-- Two marks, half a minute or more apart: the calls granted since the older one are the pace of the last minute.
alter table convsync.sync_runs
  add column conversations_known integer,
  add column pace_since timestamptz,
  add column pace_calls bigint,
  add column pace_next_since timestamptz,
  add column pace_next_calls bigint;

alter table convsync.sync_cursors
  add column pages_applied integer not null default 0,
  add column messages_read integer not null default 0;
