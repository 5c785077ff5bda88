-- Pages and their sealed tokens. A token comes in sealed and goes out sealed; its key is never in the database.

create or replace function convsync_api.add_page(
  p_page_id text, p_name text default null, p_owner_ref text default null,
  p_token_sealed bytea default null, p_token_key_id text default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_page convsync.pages;
  v_now timestamptz := convsync_api._now();
begin
  if coalesce(p_page_id, '') = '' then
    raise exception 'the Page''s id is missing' using errcode = 'ZC003', hint = 'page_id';
  end if;
  if (p_token_sealed is null) <> (p_token_key_id is null) then
    raise exception 'a sealed token needs the id of its key' using errcode = 'ZC003', hint = 'p_token_key_id';
  end if;
  insert into convsync.pages as p (page_id, name, owner_ref, token_sealed, token_key_id, token_state, added_at)
  values (p_page_id, nullif(p_name, ''), nullif(p_owner_ref, ''), p_token_sealed, p_token_key_id,
    case when p_token_sealed is null then 'none' else 'unchecked' end, v_now)
  on conflict on constraint pages_pkey do update
  set name = coalesce(excluded.name, p.name),
    owner_ref = coalesce(excluded.owner_ref, p.owner_ref),
    token_sealed = coalesce(excluded.token_sealed, p.token_sealed),
    token_key_id = coalesce(excluded.token_key_id, p.token_key_id),
    token_state = case when excluded.token_sealed is null then p.token_state else 'unchecked' end,
    token_error = case when excluded.token_sealed is null then p.token_error end,
    added_at = coalesce(p.added_at, v_now),
    removed_at = null,
    updated_at = v_now
  returning p.* into strict v_page;
  return convsync_api._page_document(v_page);
end
$$;
comment on function convsync_api.add_page(text, text, text, bytea, text) is
$c$Adds a Page, or changes what is given of it; returns the Page as JSON, never its token. p_token_sealed is the token sealed by
the service, p_token_key_id names the key. Errors: ZC003.$c$;

create or replace function convsync_api.remove_page(p_page_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_page convsync.pages;
  v_now timestamptz := convsync_api._now();
begin
  -- Runs first: the lock order starts with them.
  update convsync.sync_runs r
  set status = 'cancelled', reason = 'page_removed', fence = r.fence + 1, lease_expires_at = null, owner = null,
    finished_at = v_now, updated_at = v_now, progress = r.progress + 1
  where r.page_id = p_page_id and r.status in ('queued', 'running', 'paused');
  update convsync.pages p
  set token_sealed = null, token_key_id = null, token_state = 'none', token_error = null,
    added_at = null, removed_at = v_now, subscribed_at = null, first_webhook_at = null, updated_at = v_now
  where p.page_id = p_page_id and p.removed_at is null
  returning p.* into v_page;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  return convsync_api._page_document(v_page);
end
$$;
comment on function convsync_api.remove_page(text) is
$c$Forgets a Page's token and stops its syncs; what was mirrored stays. Returns the Page as JSON. Errors: ZC001.$c$;

create or replace function convsync_api.list_pages(p_pages text[] default null, p_after text default null, p_limit integer default null)
returns setof jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Chosen first: a document takes a dozen lookups.
  select convsync_api._page_document(p)
  from (
    select g.* from convsync.pages g
    where g.removed_at is null and (p_pages is null or g.page_id = any (p_pages)) and (p_after is null or g.page_id > p_after)
    order by g.page_id
    limit p_limit
  ) g
  join convsync.pages p on p.page_id = g.page_id
  order by p.page_id;
$$;
comment on function convsync_api.list_pages(text[], text, integer) is
$c$Pages as JSON, by id: the state of the token (never the token), counts, budget and last run. added_at is null for one known only by
webhook. p_pages: only these; p_after: those after this page_id; p_limit: at most so many (null: all).$c$;

create or replace function convsync_api.find_pages(
  p_query text default null, p_pages text[] default null, p_after text default null, p_limit integer default 50
)
returns table (page_id text, name text, place text)
language sql
stable
rows 50
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- What list_problems finds by looking closer, at the runs and their parts, an alert tells a little later.
  select f.page_id, f.name, f.place
  from (
    select p.page_id, p.name, (
      case when p.token_state in ('none', 'invalid')
          or exists (select from convsync.alerts a where a.page_id = p.page_id and a.over_at is null)
          or exists (select from convsync.dead_letters d where d.page_id = p.page_id and d.resolved_at is null)
        then '0.' else '1.' end || p.page_id
    ) collate "C" as place
    from convsync.pages p
    where p.removed_at is null and (p_pages is null or p.page_id = any (p_pages))
      and (coalesce(p_query, '') = '' or starts_with(p.page_id, p_query) or strpos(lower(p.name), lower(p_query)) > 0)
  ) f
  where p_after is null or f.place > p_after
  order by f.place
  limit least(greatest(coalesce(p_limit, 50), 1), 1000);
$$;
comment on function convsync_api.find_pages(text, text[], text, integer) is
$c$Pages by name, cheaply: those first that have no usable token, a dead letter that waits, or a problem that somebody is told of, then by id.
p_query: a part of the name, or the beginning of the id; p_pages: only these; p_after: those after this place; p_limit: 1 to 1000.$c$;

create or replace function convsync_api.get_page(p_page_id text)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_page convsync.pages;
begin
  select p.* into v_page from convsync.pages p where p.page_id = p_page_id and p.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  return convsync_api._page_document(v_page);
end
$$;
comment on function convsync_api.get_page(text) is 'One Page as JSON, as list_pages gives it. Errors: ZC001.';

create or replace function convsync_api.page_token(p_page_id text)
returns table (token_sealed bytea, token_key_id text, token_state text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select p.token_sealed, p.token_key_id, p.token_state from convsync.pages p
  where p.page_id = p_page_id and p.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
end
$$;
comment on function convsync_api.page_token(text) is
  'The Page''s sealed token (null without one), the id of the key that sealed it, and its state. Errors: ZC001.';

create or replace function convsync_api.mark_token(
  p_page_id text, p_state text, p_error text default null, p_token_sealed bytea default null
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_state is null or p_state not in ('valid', 'invalid') then
    raise exception 'state must be valid or invalid' using errcode = 'ZC003', hint = 'p_state';
  end if;
  update convsync.pages p
  set token_state = p_state, token_error = case p_state when 'invalid' then p_error end,
    token_checked_at = convsync_api._now(), updated_at = convsync_api._now()
  where p.page_id = p_page_id and p.token_sealed = coalesce(p_token_sealed, p.token_sealed);
  -- Of another token that was stored meanwhile nothing is known.
  if not found and not exists (select from convsync.pages p where p.page_id = p_page_id and p.token_sealed is not null) then
    raise exception 'there is no Page % with a token', p_page_id using errcode = 'ZC001';
  end if;
end
$$;
comment on function convsync_api.mark_token(text, text, text, bytea) is
$c$Records what Graph said of the Page's token: valid, or invalid with the reason. p_token_sealed: of this one, as page_token gave it;
another that was stored meanwhile stays as it is. Errors: ZC001, ZC003.$c$;

create or replace function convsync_api.mark_subscribed(p_page_id text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update convsync.pages p
  set subscribed_at = convsync_api._now(), updated_at = convsync_api._now()
  where p.page_id = p_page_id and p.removed_at is null;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
end
$$;
comment on function convsync_api.mark_subscribed(text) is
  'Records that the app was subscribed to the Page''s webhooks just now. Errors: ZC001.';
