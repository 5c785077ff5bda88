-- The records of syncs have an end, and each lane of the call budget has its share.
-- depends: 0016_proof

set local lock_timeout = '10s';

-- Known by the run itself, so that its cursors may go.
alter table convsync.sync_runs add column list_walked boolean not null default false;
comment on column convsync.sync_runs.list_walked is 'It came to the end of the list of conversations.';
update convsync.sync_runs r
set list_walked = true
from convsync.sync_cursors s
where s.page_id = r.page_id and s.run_id = r.run_id and s.kind = 'list' and s.completed;

-- The last run of a mode that ended so. Both made at once: a run is a row, and few threads fail.
-- squawk-ignore require-concurrent-index-creation
create index sync_runs_by_outcome on convsync.sync_runs (page_id, mode, status, run_id desc);
-- squawk-ignore require-concurrent-index-creation
create index sync_batches_failed_threads on convsync.sync_batches (page_id, thread_id, failed_at)
  where kind = 'thread' and status = 'failed';
-- Two indexes begin with the Page: see 0007.
alter table convsync.sync_batches alter column page_id set (n_distinct = 10);

alter table convsync.call_budgets
  add column backfill_wanted_until timestamptz,
  add column repair_passed integer not null default 0,
  add column backfill_passed integer not null default 0;
comment on column convsync.call_budgets.repair_passed is
  'How many calls of other lanes were granted while one of this waited; after three it is its turn. So backfill_passed.';
