-- How fast a Page is called: until when what Graph told of usage and what its answers took count, and the rate in force.
-- depends: 0014_sync_schedule

set local lock_timeout = '10s';

alter table convsync.call_budgets
  add column usage_until timestamptz,
  add column response_until timestamptz,
  add column calls_per_second numeric;
