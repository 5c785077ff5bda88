-- Every PL/pgSQL function of convsync_api, against the tables as they are: unknown columns, wrong types, dead code,
-- unused variables and parameters, SQL put together from text. Fails with the list of findings.
-- Functions in `language sql` need none of this: PostgreSQL checks their body when it creates them.

do $$
declare
  -- Findings that are as they should be: {"function": {"message": "why"}}
  v_known constant jsonb := '{}';
  v_checked integer;
  v_findings text;
begin
  select count(distinct p.oid),
         string_agg(format(E'%s line %s: %s %s: %s%s', p.oid::regprocedure, f.lineno, f.level, f.sqlstate, f.message,
                           E'\n    ' || nullif(concat_ws(' ', f.detail, f.hint), '')), E'\n'
                    order by p.oid::regprocedure::text, f.lineno)
           filter (where f.message is not null)
  into v_checked, v_findings
  from pg_proc as p
  join pg_language as l on l.oid = p.prolang and l.lanname = 'plpgsql'
  left join lateral plpgsql_check_function_tb(
    p.oid, fatal_errors => false, extra_warnings => true, performance_warnings => false,
    security_warnings => true) as f on not coalesce(v_known -> p.proname ? f.message, false)
  where p.pronamespace = 'convsync_api'::regnamespace;

  if v_checked = 0 then
    raise exception 'no PL/pgSQL function found in convsync_api: nothing was checked';
  end if;
  raise notice '% PL/pgSQL functions checked', v_checked;
  if v_findings is not null then
    raise exception using message = E'plpgsql_check found:\n' || v_findings;
  end if;
end
$$;
