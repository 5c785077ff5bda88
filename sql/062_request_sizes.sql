-- How much to ask of Graph at once: as much as it allows, less where it says "reduce the amount of data".
--
-- That error never goes away at the same size. So a request that was refused is made again at half the size, down to a single
-- item; a list whose single items are refused is asked for without messages, and its threads are then read one by one. After a
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

create or replace function convsync_api._smaller_size(p_size_limit integer, p_with_messages boolean, p_full_limit integer)
returns table (size_limit integer, with_messages boolean)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p_size_limit / 2, p_with_messages where p_size_limit > 1
  union all
  -- Without messages a list is light: it may be long again.
  select p_full_limit, false where p_size_limit = 1 and p_with_messages;
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
  v_messages boolean := p_full_nested > 0;
  v_row record;
  v_smaller record;
begin
  select s.size_limit, s.with_messages into v_row
  from convsync.request_sizes s
  where s.page_id = p_page_id and s.kind = p_kind;
  if found and (v_row.with_messages, v_row.size_limit) < (v_messages, v_limit) then
    v_limit := v_row.size_limit;
    v_messages := v_row.with_messages;
  end if;
  select r.size_limit, r.with_messages into v_row
  from convsync.refused_requests r
  where r.page_id = p_page_id and r.kind = p_kind and r.place_digest = convsync_api._place_digest(p_place)
    and r.refused_at > convsync_api._now() - interval '30 days';
  if found and (v_row.with_messages, v_row.size_limit) <= (v_messages, v_limit) then
    select m.size_limit, m.with_messages into v_smaller
    from convsync_api._smaller_size(v_row.size_limit, v_row.with_messages, p_full_limit) m;
    -- The smallest of all was refused: a later sync has to ask for it again, there is no other way to know.
    v_limit := coalesce(v_smaller.size_limit, v_row.size_limit);
    v_messages := coalesce(v_smaller.with_messages, v_row.with_messages);
  end if;
  return query select v_limit, case when v_messages then p_full_nested else 0 end;
end
$$;
comment on function convsync_api.request_size(text, text, text, integer, integer) is
$c$How much to ask for now: size_limit items, each with up to nested messages. p_kind: list (conversations with messages), thread
(messages), conversation (one, with messages); p_place names the request among those of its kind: its cursor, its thread;
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
  v_messages boolean := p_nested > 0;
  v_smaller record;
  v_left boolean;
begin
  if p_kind is null or p_kind not in ('list', 'thread', 'conversation') then
    raise exception 'kind must be list, thread or conversation' using errcode = 'ZC003', hint = 'p_kind';
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
      size_limit = case
        when s.successes + 1 < s.patience then s.size_limit
        when s.size_limit < p_full_limit then least(s.size_limit * 2, p_full_limit)
        else 1 end,
      with_messages = s.with_messages or (s.successes + 1 >= s.patience and s.size_limit >= p_full_limit),
      updated_at = v_now
    where s.page_id = p_page_id and s.kind = p_kind
      and (s.with_messages, s.size_limit) < (p_full_nested > 0, p_full_limit)
      and (v_messages, p_size_limit) >= (s.with_messages, s.size_limit);
    return true;
  end if;

  select m.size_limit, m.with_messages into v_smaller
  from convsync_api._smaller_size(p_size_limit, v_messages, p_full_limit) m;
  v_left := found;
  insert into convsync.request_sizes as s (page_id, kind, size_limit, with_messages, updated_at)
  values (p_page_id, p_kind, coalesce(v_smaller.size_limit, p_size_limit), coalesce(v_smaller.with_messages, v_messages), v_now)
  on conflict on constraint request_sizes_pkey do update
  set size_limit = case when (excluded.with_messages, excluded.size_limit) < (s.with_messages, s.size_limit)
      then excluded.size_limit else s.size_limit end,
    with_messages = s.with_messages and excluded.with_messages,
    -- It grew, and that was too early.
    patience = case when s.grown then least(s.patience * 2, 256) else s.patience end,
    grown = false,
    successes = 0,
    updated_at = v_now;
  if p_outcome = 'refused' then
    delete from convsync.refused_requests r
    where r.page_id = p_page_id and r.refused_at <= v_now - interval '30 days';
    insert into convsync.refused_requests as r (page_id, kind, place_digest, size_limit, with_messages, refused_at)
    values (p_page_id, p_kind, convsync_api._place_digest(p_place), p_size_limit, v_messages, v_now)
    on conflict on constraint refused_requests_pkey do update
    set size_limit = case when (excluded.with_messages, excluded.size_limit) < (r.with_messages, r.size_limit)
        then excluded.size_limit else r.size_limit end,
      with_messages = r.with_messages and excluded.with_messages,
      refused_at = v_now;
  end if;
  return v_left;
end
$$;
comment on function convsync_api.record_request_size(text, text, text, integer, integer, text, integer, integer) is
$c$Records what came of a request of p_size_limit items with p_nested messages each (0: without). p_outcome: accepted; refused as
too large, which is not asked for again; suspected, a failure that a smaller request may spare. The other arguments are those of
request_size. Returns whether there is a smaller request to make. Errors: ZC003.$c$;
