-- Last: who may do what. EXECUTE on new functions goes to PUBLIC by default, so it is taken from all of them each time.

revoke all on schema convsync, convsync_api, convsync_read, convsync_ops from public;
revoke all on all tables in schema convsync from public;

grant usage on schema convsync_api to convsync_service;

-- Of this transaction's functions only: what no file defines any more stays untouched, which is how the installer knows it.
do $$
declare
  v_function regprocedure;
  v_is_public boolean;
begin
  for v_function, v_is_public in
    select p.oid::regprocedure, p.proname not like '\_%'
    from pg_catalog.pg_proc p
    where p.pronamespace = 'convsync_api'::regnamespace
      and p.xmin::text::bigint = pg_catalog.pg_current_xact_id()::text::bigint % 4294967296
  loop
    execute pg_catalog.format('revoke all on function %s from public', v_function);
    if v_is_public then
      execute pg_catalog.format('grant execute on function %s to convsync_service', v_function);
    end if;
  end loop;
end
$$;

grant usage on schema convsync_read to convsync_app;
grant select on all tables in schema convsync_read to convsync_app;
grant usage on schema convsync_ops to convsync_reader;
grant select on all tables in schema convsync_ops to convsync_reader;
