-- A small layer with the names of pgTAP, for servers that do not have the pgTAP extension.
--
-- The SQL suite (tests/sql/*.sql) is written for pgTAP. Where the extension is installed the suite runs on it; where
-- it is not (the embedded PostgreSQL) the runner loads this file into the throw-away clone first. It goes into
-- `public`, where `create extension pgtap` also puts its functions, because functions in pg_temp are never found by an
-- unqualified name. Loading it twice does no harm.
--
-- It is deliberately narrow: only forms that pgTAP also accepts, always with a description, so that a file that runs
-- here runs there. The running number and the count of failures are kept in temporary sequences: they survive
-- `rollback to savepoint` and go away with the transaction of the file.

create or replace function public._tap_begin(p_planned integer) returns void
language plpgsql volatile as $$
begin
  if to_regclass('pg_temp._tap_number') is not null then
    raise exception 'You tried to plan twice!';
  end if;
  create temporary sequence _tap_number;
  create temporary sequence _tap_failed;
  -- minimum 0: a plan of zero tests (no_plan) must be representable
  create temporary sequence _tap_planned minvalue 0 start 0;
  -- a file may `set role` to test privileges, and goes on asserting as that role
  grant all on sequence pg_temp._tap_number, pg_temp._tap_failed, pg_temp._tap_planned to public;
  perform setval('pg_temp._tap_planned', p_planned);
end
$$;

-- How often a counting sequence was advanced.
create or replace function public._tap_count(p_sequence text) returns bigint
language plpgsql volatile as $$
declare
  v_count bigint;
begin
  execute format('select case when is_called then last_value else 0 end from pg_temp.%I', p_sequence) into v_count;
  return v_count;
end
$$;

create or replace function public.plan(integer) returns text
language plpgsql volatile as $$
begin
  if $1 < 1 then
    raise exception 'A plan needs at least one test, not %', $1;
  end if;
  perform public._tap_begin($1);
  return '1..' || $1;
end
$$;

create or replace function public.no_plan() returns setof boolean
language plpgsql volatile as $$
begin
  perform public._tap_begin(0);
  return;
end
$$;

create or replace function public.diag(p_text text) returns text
language sql immutable as $$
  select regexp_replace(coalesce(p_text, 'NULL'), '^', '# ', 'gn');
$$;

-- Every assertion ends here: counts it and words its line, with the details below a failure.
create or replace function public._tap_result(p_passed boolean, p_description text, p_details text default null)
returns text
language plpgsql volatile as $$
declare
  v_number bigint;
  -- a line break or a # in a description would be read as TAP of its own
  v_description text := replace(replace(coalesce(p_description, ''), '#', '\#'), E'\n', E'\n# ');
begin
  if to_regclass('pg_temp._tap_number') is null then
    raise exception 'You tried to run a test without a plan! Gotta have a plan';
  end if;
  v_number := nextval('pg_temp._tap_number');
  if p_passed then
    return concat('ok ', v_number, ' - ' || nullif(v_description, ''));
  end if;
  perform nextval('pg_temp._tap_failed');
  return concat_ws(
    E'\n',
    concat('not ok ', v_number, ' - ' || nullif(v_description, '')),
    public.diag(concat('Failed test ', v_number, ': "' || nullif(p_description, '') || '"')),
    public.diag('    ' || replace(coalesce(p_details, case when p_passed is null then '(test result was NULL)' end),
                                  E'\n', E'\n    ')));
end
$$;

create or replace function public.finish() returns setof text
language plpgsql volatile as $$
declare
  v_planned bigint;
  v_ran bigint := public._tap_count('_tap_number');
  v_failed bigint := public._tap_count('_tap_failed');
begin
  select last_value into v_planned from pg_temp._tap_planned;
  if v_planned = 0 then
    return next '1..' || v_ran;
  elsif v_planned <> v_ran then
    return next format('# Looks like you planned %s test%s but ran %s',
                       v_planned, case when v_planned <> 1 then 's' end, v_ran);
  end if;
  if v_failed > 0 then
    return next format('# Looks like you failed %s test%s of %s',
                       v_failed, case when v_failed <> 1 then 's' end, v_ran);
  end if;
end
$$;

-- Plain verdicts

create or replace function public.pass(p_description text) returns text
language sql volatile as $$ select public._tap_result(true, p_description) $$;

create or replace function public.fail(p_description text) returns text
language sql volatile as $$ select public._tap_result(false, p_description) $$;

create or replace function public.ok(p_passed boolean, p_description text) returns text
language sql volatile as $$ select public._tap_result(p_passed, p_description) $$;

-- Values

create or replace function public.is(p_have anyelement, p_want anyelement, p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    p_have is not distinct from p_want, p_description,
    format(E'    have: %s\n    want: %s', coalesce(p_have::text, 'NULL'), coalesce(p_want::text, 'NULL')));
$$;

create or replace function public.isnt(p_have anyelement, p_want anyelement, p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    p_have is distinct from p_want, p_description,
    format(E'    have: %s\n    want: anything else', coalesce(p_have::text, 'NULL')));
$$;

create or replace function public.matches(p_have anyelement, p_pattern text, p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    coalesce(p_have::text ~ p_pattern, false), p_description,
    format(E'    %s\n    doesn''t match: %L', coalesce(quote_literal(p_have::text), 'NULL'), p_pattern));
$$;

create or replace function public.doesnt_match(p_have anyelement, p_pattern text, p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    coalesce(p_have::text !~ p_pattern, false), p_description,
    format(E'    %s\n    matches: %L', coalesce(quote_literal(p_have::text), 'NULL'), p_pattern));
$$;

-- A null on either side is a failure, as in pgTAP: no operator says yes of null.
create or replace function public.cmp_ok(p_have anyelement, p_operator text, p_want anyelement, p_description text)
returns text
language plpgsql volatile as $$
declare
  v_passed boolean;
begin
  execute format('select $1 %s $2', p_operator) into v_passed using p_have, p_want;
  return public._tap_result(
    coalesce(v_passed, false), p_description,
    format(E'    %s\n        %s\n    %s', coalesce(quote_literal(p_have::text), 'NULL'), p_operator,
           coalesce(quote_literal(p_want::text), 'NULL')));
end
$$;

-- Queries

-- A query is given as text or as the name of a prepared statement.
create or replace function public._tap_query(p_sql text) returns text
language sql immutable as $$
  select case when p_sql ~ '^\s*\S+\s*$' then 'execute ' || p_sql else p_sql end;
$$;

-- Same rows in the same order, compared as records: a type that differs is a difference.
create or replace function public._tap_results_eq(p_have refcursor, p_want refcursor, p_description text)
returns text
language plpgsql volatile as $$
declare
  v_row bigint := 0;
  v_have record;
  v_want record;
  v_have_found boolean;
  v_want_found boolean;
begin
  loop
    v_row := v_row + 1;
    fetch p_have into v_have;
    v_have_found := found;
    fetch p_want into v_want;
    v_want_found := found;
    if not v_have_found and not v_want_found then
      return public._tap_result(true, p_description);
    end if;
    if v_have_found <> v_want_found or v_have is distinct from v_want then
      return public._tap_result(
        false, p_description,
        format(E'Results differ beginning at row %s:\n    have: %s\n    want: %s', v_row,
               case when v_have_found then v_have::text else 'no row' end,
               case when v_want_found then v_want::text else 'no row' end));
    end if;
  end loop;
exception
  when datatype_mismatch then
    return public._tap_result(
      false, p_description, 'Number of columns or their types differ between the queries');
end
$$;

create or replace function public.results_eq(p_have text, p_want text, p_description text) returns text
language plpgsql volatile as $$
declare
  v_have refcursor;
  v_want refcursor;
  v_result text;
begin
  open v_have for execute public._tap_query(p_have);
  open v_want for execute public._tap_query(p_want);
  v_result := public._tap_results_eq(v_have, v_want, p_description);
  close v_have;
  close v_want;
  return v_result;
end
$$;

create or replace function public.results_eq(p_have text, p_want anyarray, p_description text) returns text
language plpgsql volatile as $$
declare
  v_have refcursor;
  v_want refcursor;
  v_result text;
begin
  open v_have for execute public._tap_query(p_have);
  open v_want for execute 'select * from unnest($1)' using p_want;
  v_result := public._tap_results_eq(v_have, v_want, p_description);
  close v_have;
  close v_want;
  return v_result;
end
$$;

-- Same rows in any order; p_all = '' ignores how often a row comes, 'all' counts it.
create or replace function public._tap_set_eq(p_have text, p_want text, p_all text, p_description text) returns text
language plpgsql volatile as $$
declare
  v_extra text[];
  v_missing text[];
begin
  execute format(
    'select array(select r::text from ((%1$s) except %3$s (%2$s)) as r), '
    '       array(select r::text from ((%2$s) except %3$s (%1$s)) as r)',
    rtrim(p_have, E'; \n'), rtrim(p_want, E'; \n'), p_all) into v_extra, v_missing;
  return public._tap_result(
    v_extra = '{}' and v_missing = '{}', p_description,
    concat_ws(E'\n',
              E'Extra records:\n    ' || nullif(array_to_string(v_extra, E'\n    '), ''),
              E'Missing records:\n    ' || nullif(array_to_string(v_missing, E'\n    '), '')));
exception
  when datatype_mismatch or syntax_error then
    return public._tap_result(false, p_description, sqlerrm);
end
$$;

create or replace function public.set_eq(p_have text, p_want text, p_description text) returns text
language sql volatile as $$ select public._tap_set_eq(p_have, p_want, '', p_description) $$;

create or replace function public.bag_eq(p_have text, p_want text, p_description text) returns text
language sql volatile as $$ select public._tap_set_eq(p_have, p_want, 'all', p_description) $$;

create or replace function public.is_empty(p_sql text, p_description text) returns text
language plpgsql volatile as $$
declare
  v_row record;
  v_rows text[] := '{}';
begin
  for v_row in execute public._tap_query(p_sql) loop
    v_rows := v_rows || v_row::text;
  end loop;
  return public._tap_result(
    v_rows = '{}', p_description, E'Unexpected records:\n    ' || array_to_string(v_rows, E'\n    '));
end
$$;

create or replace function public.isnt_empty(p_sql text, p_description text) returns text
language plpgsql volatile as $$
declare
  v_row record;
begin
  for v_row in execute public._tap_query(p_sql) loop
    return public._tap_result(true, p_description);
  end loop;
  return public._tap_result(false, p_description, 'the query returned no row');
end
$$;

-- Statements that must fail, or must not

-- p_errmsg null: any message. p_errcode null: any SQLSTATE.
create or replace function public.throws_ok(p_sql text, p_errcode character(5), p_errmsg text, p_description text)
returns text
language plpgsql volatile as $$
begin
  execute public._tap_query(p_sql);
  return public._tap_result(
    false, p_description,
    format(E'      caught: no exception\n      wanted: %s',
           coalesce(nullif(concat_ws(': ', p_errcode, p_errmsg), ''), 'an exception')));
exception
  when others or assert_failure then
    return public._tap_result(
      (p_errcode is null or p_errcode = sqlstate) and (p_errmsg is null or p_errmsg = sqlerrm), p_description,
      format(E'      caught: %s: %s\n      wanted: %s', sqlstate, sqlerrm,
             coalesce(nullif(concat_ws(': ', p_errcode, p_errmsg), ''), 'an exception')));
end
$$;

create or replace function public.lives_ok(p_sql text, p_description text) returns text
language plpgsql volatile as $$
begin
  execute public._tap_query(p_sql);
  return public._tap_result(true, p_description);
exception
  when others or assert_failure then
    return public._tap_result(false, p_description, format('died: %s: %s', sqlstate, sqlerrm));
end
$$;

-- The catalog

create or replace function public.has_schema(p_schema name, p_description text) returns text
language sql volatile as $$
  select public._tap_result(exists (select from pg_catalog.pg_namespace where nspname = p_schema), p_description);
$$;

create or replace function public.has_role(p_role name, p_description text) returns text
language sql volatile as $$
  select public._tap_result(exists (select from pg_catalog.pg_roles where rolname = p_role), p_description);
$$;

create or replace function public._tap_has_relation(p_kinds "char"[], p_schema name, p_name name, p_description text)
returns text
language sql volatile as $$
  select public._tap_result(
    exists (select
            from pg_catalog.pg_class as c
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = p_schema and c.relname = p_name and c.relkind = any (p_kinds)),
    p_description);
$$;

create or replace function public.has_table(p_schema name, p_table name, p_description text) returns text
language sql volatile as $$ select public._tap_has_relation('{r,p}', p_schema, p_table, p_description) $$;

create or replace function public.has_view(p_schema name, p_view name, p_description text) returns text
language sql volatile as $$ select public._tap_has_relation('{v}', p_schema, p_view, p_description) $$;

create or replace function public.has_column(p_schema name, p_table name, p_column name, p_description text)
returns text
language sql volatile as $$
  select public._tap_result(
    exists (select
            from pg_catalog.pg_attribute as a
            join pg_catalog.pg_class as c on c.oid = a.attrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = p_schema and c.relname = p_table and a.attname = p_column
              and a.attnum > 0 and not a.attisdropped),
    p_description);
$$;

create or replace function public.has_function(p_schema name, p_function name, p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    exists (select
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            where n.nspname = p_schema and p.proname = p_function),
    p_description);
$$;

-- p_arguments: the types as `format_type` writes them ('integer', not 'int4'), as pgTAP asks for.
create or replace function public.has_function(
  p_schema name, p_function name, p_arguments name[], p_description text) returns text
language sql volatile as $$
  select public._tap_result(
    exists (select
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            where n.nspname = p_schema and p.proname = p_function
              and array(select format_type(t.type, null)
                        from unnest(p.proargtypes) with ordinality as t(type, at) order by t.at)
                  = p_arguments::text[]),
    p_description);
$$;
