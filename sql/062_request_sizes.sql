-- How much to ask of Graph at once: as much as it allows, less where it says "reduce the amount of data".
--
-- That error never goes away at the same size. So a request that was refused is made again at half the size, down to a single
-- item; a list whose single items are refused is asked for without messages, and its threads are then read one by one. A list
-- that is to tell what has changed comes down to one message of each first: so it still tells it of many at once. After a
-- while of successes the size grows again, more reluctantly each time growing turned out to be too early. All processes share
-- what was learnt, and none makes a request again that was refused: each place (a cursor, a thread) has its own limit for
-- a month. Then Graph may hold other things there, and it is tried once more.

create or replace function convsync_api._place_digest(p_place text)
returns bytea
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select sha256(s.erasure_key || convert_to(chr(29) || coalesce(p_place, ''), 'UTF8')) from convsync.installation_secrets s;
$$;

-- A list is asked for with messages rather than without, then for many conversations rather than few, then for many messages of
-- each: `(nested > 0, size_limit, nested)` is the order of sizes. A list of changes tells them with one message of each, too.
create or replace function convsync_api._smaller_size(p_kind text, p_size_limit integer, p_nested integer, p_full_limit integer)
returns table (size_limit integer, nested integer)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select v.size_limit, v.nested
  from (select p_kind = 'changes' and p_nested > 1 as few) t
  cross join lateral (
    -- Without messages a list is light: it may be long again.
    select case when t.few then p_size_limit when p_size_limit > 1 then p_size_limit / 2 else p_full_limit end,
      case when t.few then 1 when p_size_limit > 1 then p_nested else 0 end
  ) v (size_limit, nested)
  where p_size_limit > 1 or p_nested > 0;
$$;

-- The same way back.
create or replace function convsync_api._larger_size(
  p_kind text, p_size_limit integer, p_nested integer, p_full_limit integer, p_full_nested integer
)
returns table (size_limit integer, nested integer)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when p_size_limit < p_full_limit then least(p_size_limit * 2, p_full_limit) when p_nested > 0 then p_full_limit else 1 end,
    case when p_size_limit < p_full_limit then p_nested when p_nested = 0 and p_kind = 'changes' then least(1, p_full_nested)
      else p_full_nested end;
$$;

create or replace function convsync_api.request_size(
  p_page_id text, p_kind text, p_place text, p_full_limit integer, p_full_nested integer default 0
)
returns table (size_limit integer, nested integer)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_limit integer := p_full_limit;
  v_nested integer := p_full_nested;
  v_row record;
  v_smaller record;
begin
  select s.size_limit, s.nested into v_row
  from convsync.request_sizes s
  where s.page_id = p_page_id and s.kind = p_kind;
  if found and (v_row.nested > 0, v_row.size_limit, v_row.nested) < (v_nested > 0, v_limit, v_nested) then
    v_limit := v_row.size_limit;
    v_nested := v_row.nested;
  end if;
  select r.size_limit, r.nested into v_row
  from convsync.refused_requests r
  where r.page_id = p_page_id and r.kind = p_kind and r.place_digest = convsync_api._place_digest(p_place)
    and r.refused_at > convsync_api._now() - interval '30 days';
  if found and (v_row.nested > 0, v_row.size_limit, v_row.nested) <= (v_nested > 0, v_limit, v_nested) then
    select m.size_limit, m.nested into v_smaller
    from convsync_api._smaller_size(p_kind, v_row.size_limit, v_row.nested, p_full_limit) m;
    -- The smallest of all was refused: a later sync has to ask for it again, there is no other way to know.
    v_limit := coalesce(v_smaller.size_limit, v_row.size_limit);
    v_nested := coalesce(v_smaller.nested, v_row.nested);
  end if;
  return query select v_limit, least(v_nested, p_full_nested);
end
$$;
comment on function convsync_api.request_size(text, text, text, integer, integer) is
$c$How much to ask for now: size_limit items, each with up to nested messages. p_kind: list (conversations with messages), changes
(the same, with a few messages of each), thread (messages), conversation (one, with messages); p_place names the request among those of its kind: its cursor, its thread;
p_full_limit and p_full_nested: the most that is ever asked for. Never what was refused at that place within 30 days, unless
nothing smaller is left.$c$;

create or replace function convsync_api.record_request_size(
  p_page_id text, p_kind text, p_place text, p_size_limit integer, p_nested integer, p_outcome text,
  p_full_limit integer, p_full_nested integer default 0
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_smaller record;
  v_left boolean;
begin
  if p_kind is null or p_kind not in ('list', 'changes', 'thread', 'conversation') then
    raise exception 'kind must be list, changes, thread or conversation' using errcode = 'ZC003', hint = 'p_kind';
  end if;
  if p_outcome is null or p_outcome not in ('accepted', 'refused', 'suspected') then
    raise exception 'outcome must be accepted, refused or suspected' using errcode = 'ZC003', hint = 'p_outcome';
  end if;
  if p_size_limit is null or p_size_limit < 1 or p_nested is null or p_nested < 0 then
    raise exception 'a request has at least one item' using errcode = 'ZC003', hint = 'p_size_limit';
  end if;

  if p_outcome = 'accepted' then
    -- What grew is tried; what turns out too large is refused at its own place and comes down again.
    update convsync.request_sizes s
    set successes = case when s.successes + 1 < s.patience then s.successes + 1 else 0 end,
      grown = s.grown or s.successes + 1 >= s.patience,
      (size_limit, nested) = (
        select case when s.successes + 1 < s.patience then s.size_limit else l.size_limit end,
          case when s.successes + 1 < s.patience then s.nested else l.nested end
        from convsync_api._larger_size(s.kind, s.size_limit, s.nested, p_full_limit, p_full_nested) l),
      updated_at = v_now
    where s.page_id = p_page_id and s.kind = p_kind
      and (s.nested > 0, s.size_limit, s.nested) < (p_full_nested > 0, p_full_limit, p_full_nested)
      and (p_nested > 0, p_size_limit, p_nested) >= (s.nested > 0, s.size_limit, s.nested);
    return true;
  end if;

  select m.size_limit, m.nested into v_smaller
  from convsync_api._smaller_size(p_kind, p_size_limit, p_nested, p_full_limit) m;
  v_left := found;
  insert into convsync.request_sizes as s (page_id, kind, size_limit, nested, updated_at)
  values (p_page_id, p_kind, coalesce(v_smaller.size_limit, p_size_limit), coalesce(v_smaller.nested, p_nested), v_now)
  on conflict on constraint request_sizes_pkey do update
  set (size_limit, nested) = (
      select l.size_limit, l.nested
      from (values (excluded.size_limit, excluded.nested), (s.size_limit, s.nested)) l (size_limit, nested)
      order by l.nested > 0, l.size_limit, l.nested
      limit 1),
    -- It grew, and that was too early.
    patience = case when s.grown then least(s.patience * 2, 256) else s.patience end,
    grown = false,
    successes = 0,
    updated_at = v_now;
  if p_outcome = 'refused' then
    delete from convsync.refused_requests r
    where r.page_id = p_page_id and r.refused_at <= v_now - interval '30 days';
    insert into convsync.refused_requests as r (page_id, kind, place_digest, size_limit, nested, refused_at)
    values (p_page_id, p_kind, convsync_api._place_digest(p_place), p_size_limit, p_nested, v_now)
    on conflict on constraint refused_requests_pkey do update
    set (size_limit, nested) = (
        select l.size_limit, l.nested
        from (values (excluded.size_limit, excluded.nested), (r.size_limit, r.nested)) l (size_limit, nested)
        order by l.nested > 0, l.size_limit, l.nested
        limit 1),
      refused_at = v_now;
  end if;
  return v_left;
end
$$;
comment on function convsync_api.record_request_size(text, text, text, integer, integer, text, integer, integer) is
$c$Records what came of a request of p_size_limit items with p_nested messages each (0: without). p_outcome: accepted; refused as
too large, which is not asked for again; suspected, a failure that a smaller request may spare. The other arguments are those of
request_size. Returns whether there is a smaller request to make. Errors: ZC003.$c$;
