-- When somebody last looked for what is wrong with Pages, so that one look serves all processes.
-- depends: 0020_alerts

set local lock_timeout = '10s';

create table convsync.alert_looks (
  singleton boolean primary key default true,
  looked_at timestamptz not null,
  constraint alert_looks_is_one_row check (singleton)
);
comment on table convsync.alert_looks is
  'One row at most: when the problems of Pages were last looked for, to become alerts.';
