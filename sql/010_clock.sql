-- The one clock, and the version of what is installed.

create or replace function convsync_api._now()
returns timestamptz
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Tests move time with the setting convsync.now; leases and budgets ask for the time after their lock is held.
  select coalesce(nullif(current_setting('convsync.now', true), '')::timestamptz, clock_timestamp());
$$;

create or replace function convsync_api._epoch()
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(max(e.epoch), 1) from convsync.feed_epochs e;
$$;

create or replace function convsync_api.schema_version()
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select (select max(m.migration_id) from convsync._yoyo_migration m) || '+' || left(i.functions_hash, 12)
  from convsync.installation i;
$$;
comment on function convsync_api.schema_version() is
  'What is installed: the newest migration and the hash of the functions, as text. Readiness compares it with the release.';

create or replace function convsync_api.health()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'schema_version', convsync_api.schema_version(),
    'server_version', current_setting('server_version'),
    'durable', current_setting('fsync')::boolean and current_setting('full_page_writes')::boolean
      and current_setting('synchronous_commit') <> 'off',
    'writable', not pg_is_in_recovery(),
    'now', clock_timestamp()
  );
$$;
comment on function convsync_api.health() is
  'What readiness asks of the database: schema version, whether a commit survives a crash, whether it can be written, its clock.';
