-- Dead letters: what could not be understood. Kept with raw bytes and reason, read by a person, replayed once or discarded.

create or replace function convsync_api._dead_letter_document(p_letter convsync.dead_letters, p_with_raw boolean)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'dead_letter_id', p_letter.dead_letter_id::text,
    'page_id', nullif(p_letter.page_id, ''),
    'source', p_letter.source,
    'reason', p_letter.reason,
    'bytes', octet_length(p_letter.raw),
    'first_seen_at', p_letter.first_seen_at,
    'last_seen_at', p_letter.last_seen_at,
    'attempts', p_letter.attempts,
    'resolved_at', p_letter.resolved_at,
    'resolution', p_letter.resolution
  ) || case when p_with_raw then jsonb_build_object('raw_base64', translate(encode(p_letter.raw, 'base64'), E'\n', '')) else '{}' end;
$$;

create or replace function convsync_api.list_dead_letters(
  p_page_id text default null, p_resolved boolean default false, p_before bigint default null, p_limit integer default 50,
  p_pages text[] default null
)
returns setof jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select convsync_api._dead_letter_document(d, false)
  from convsync.dead_letters d
  where (p_page_id is null or d.page_id = p_page_id) and (p_pages is null or d.page_id = any (p_pages))
    and (d.resolved_at is not null) = coalesce(p_resolved, false)
    and (p_before is null or d.dead_letter_id < p_before)
  order by d.dead_letter_id desc
  limit least(greatest(coalesce(p_limit, 50), 1), 1000);
$$;
comment on function convsync_api.list_dead_letters(text, boolean, bigint, integer, text[]) is
$c$Dead letters as JSON without their bytes, newest first: waiting ones, or with p_resolved those that were settled. p_before is the
dead_letter_id to go on from, p_limit 1 to 1000, p_pages: only of these Pages, so none of no Page.$c$;

create or replace function convsync_api.get_dead_letter(p_dead_letter_id bigint)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_letter convsync.dead_letters;
begin
  select d.* into v_letter from convsync.dead_letters d where d.dead_letter_id = p_dead_letter_id;
  if not found then
    raise exception 'there is no dead letter %', p_dead_letter_id using errcode = 'ZC001';
  end if;
  return convsync_api._dead_letter_document(v_letter, true);
end
$$;
comment on function convsync_api.get_dead_letter(bigint) is
  'One dead letter as JSON, with its raw bytes in base64. Errors: ZC001.';

create or replace function convsync_api.replay_dead_letter(p_dead_letter_id bigint, p_facts jsonb)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '4s'
as $$
declare
  v_letter convsync.dead_letters;
begin
  select d.* into v_letter from convsync.dead_letters d where d.dead_letter_id = p_dead_letter_id;
  if not found then
    raise exception 'there is no dead letter %', p_dead_letter_id using errcode = 'ZC001';
  end if;
  if v_letter.resolved_at is not null then
    return false;
  end if;
  if exists (select from jsonb_array_elements(p_facts) f where f.value ->> 'kind' = 'dead_letter') then
    raise exception 'it is still not understood: %',
      (select f.value ->> 'reason' from jsonb_array_elements(p_facts) f where f.value ->> 'kind' = 'dead_letter' limit 1)
      using errcode = 'ZC003', hint = 'dead_letter_id';
  end if;
  perform from convsync_api._ingest(p_facts, v_letter.source);
  -- Conversations are locked before dead letters, here as everywhere. Of two operators who press at the same moment one settles it.
  update convsync.dead_letters d
  set resolved_at = convsync_api._now(), resolution = 'replayed'
  where d.page_id = v_letter.page_id and d.dead_letter_id = v_letter.dead_letter_id and d.resolved_at is null;
  if found then
    return true;
  end if;
  if exists (select from convsync.dead_letters d where d.dead_letter_id = p_dead_letter_id and d.resolution = 'replayed') then
    return false;
  end if;
  raise exception 'it was settled in another way meanwhile, try again' using errcode = '40001';
end
$$;
comment on function convsync_api.replay_dead_letter(bigint, jsonb) is
$c$Lands the facts that the service now reads in a dead letter, once: true if this call did it, false if it was settled before.
Errors: ZC001, ZC003 when it is still not understood, and those of ingest; then it keeps waiting.$c$;

create or replace function convsync_api.discard_dead_letter(p_dead_letter_id bigint, p_reason text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(p_reason, '') !~ '[^[:space:]]' then
    raise exception 'say why it is discarded' using errcode = 'ZC003', hint = 'reason';
  end if;
  update convsync.dead_letters d
  set resolved_at = convsync_api._now(), resolution = 'discarded: ' || left(p_reason, 500)
  where d.dead_letter_id = p_dead_letter_id and d.resolved_at is null;
  if found then
    return true;
  end if;
  if not exists (select from convsync.dead_letters d where d.dead_letter_id = p_dead_letter_id) then
    raise exception 'there is no dead letter %', p_dead_letter_id using errcode = 'ZC001';
  end if;
  return false;
end
$$;
comment on function convsync_api.discard_dead_letter(bigint, text) is
  'Settles a dead letter with a reason; false if it was settled before. Its bytes stay until it expires. Errors: ZC001, ZC003.';

create or replace function convsync_api.expire_dead_letters(p_days integer)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := convsync_api._expired_before(p_days, 3);
  v_gone bigint;
begin
  delete from convsync.dead_letters d
  where d.last_seen_at < v_before;
  get diagnostics v_gone = row_count;
  return v_gone;
end
$$;
comment on function convsync_api.expire_dead_letters(integer) is
  'Deletes dead letters last seen more than p_days ago; returns how many. Errors: ZC003.';
