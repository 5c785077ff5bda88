-- Schemas and roles.
--
-- convsync       state: tables and types, changed by migrations only
-- convsync_api   functions: the one way in, re-applied from sql/ on each install
-- convsync_read  stable views for applications
-- convsync_ops   views for operators
--
-- Roles belong to the whole cluster, so another database's install may create them at this moment.
-- The owner of the database (who migrates) owns everything; a login role becomes a member of one of these.

set local lock_timeout = '10s';

create schema if not exists convsync;
create schema convsync_api;
create schema convsync_read;
create schema convsync_ops;

do $$
declare
  v_role text;
begin
  foreach v_role in array array['convsync_service', 'convsync_app', 'convsync_reader'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      begin
        execute pg_catalog.format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
end
$$;

create table convsync.installation (
  singleton boolean primary key default true,
  functions_hash text not null,
  release text not null,
  installed_at timestamptz not null default now(),
  constraint installation_is_one_row check (singleton)
);
comment on table convsync.installation is
  'What is installed: the hash of the functions last applied, and the release that applied them.';
