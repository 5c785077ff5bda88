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

create or replace function convsync_api._expired_before(p_days integer, p_lock integer)
returns timestamptz
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_days is null or p_days < 1 then
    raise exception 'days must be 1 or more' using errcode = 'ZC003', hint = 'p_days';
  end if;
  -- One at a time. Null, before which nothing is, if another janitor or a writer of the same is at it: tomorrow is early enough.
  if pg_try_advisory_xact_lock(1668183670, p_lock) then
    return convsync_api._now() - p_days * interval '1 day';
  end if;
  return null;
end
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
