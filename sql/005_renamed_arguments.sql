-- `create or replace` cannot rename an argument: a private function whose argument has another name in an earlier release is
-- dropped first, in the transaction that makes it anew. Only that one: others whose calls are in flight are left alone.

do $$
begin
  if exists (
    select from pg_catalog.pg_proc p
    where p.oid = pg_catalog.to_regprocedure('convsync_api._mentions(bytea,text[])') and 'p_raw' = any (p.proargnames)
  ) then
    drop function convsync_api._mentions(bytea, text[]); -- 0.1.0
  end if;
end
$$;
