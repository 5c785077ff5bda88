-- Last, after the sweep: who may do what. EXECUTE on new functions goes to PUBLIC by default, so it is taken from all of them each time.

revoke all on schema convsync, convsync_api, convsync_read, convsync_ops from public;
revoke all on all tables in schema convsync from public;
revoke all on all functions in schema convsync_api from public;

grant usage on schema convsync_api to convsync_service;

do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure
    from pg_catalog.pg_proc p
    where p.pronamespace = 'convsync_api'::regnamespace and p.proname not like '\_%'
  loop
    execute pg_catalog.format('grant execute on function %s to convsync_service', v_function);
  end loop;
end
$$;

grant usage on schema convsync_read to convsync_app;
grant select on all tables in schema convsync_read to convsync_app;
grant usage on schema convsync_ops to convsync_reader;
grant select on all tables in schema convsync_ops to convsync_reader;
-- What the views call is checked as whoever reads them; the rest of the functions stays closed.
grant usage on schema convsync_api to convsync_reader;
grant execute on function
  convsync_api._now(), convsync_api._shell_word(text), convsync_api._freshness(convsync.pages), convsync_api._certificate(convsync.pages),
  convsync_api._loss_document(convsync.pages), convsync_api.webhook_losses(text, timestamptz, timestamptz),
  convsync_api._pace(convsync.call_budgets, convsync.call_budgets, timestamptz), convsync_api.list_problems(text)
to convsync_reader;
