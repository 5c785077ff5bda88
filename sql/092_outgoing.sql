-- Outgoing webhooks: changes of the feed, told in their order by a signed POST to who cannot hold a stream.
--
-- A webhook is a named consumer of the feed: its position is kept beside theirs (`outgoing:NAME`), moves only past what was
-- delivered, and keeps what it has not had from expiring. A batch is claimed under a lease with a fence, so that one process
-- delivers it, and POSTed outside of any transaction. Until it is delivered it stays the same batch under the same id: its
-- beginning and its size are remembered, and the feed gives the same changes again. After too many attempts it is kept as a
-- dead letter and the webhook is paused, because to go on would be to leave it out.

create or replace function convsync_api._outgoing_consumer(p_name text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select 'outgoing:' || p_name;
$$;

create or replace function convsync_api._outgoing_id(p_name text, p_after text, p_end text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The same batch has the same id, however often it is sent: its receiver can tell that it had it.
  select 'chg_' || left(encode(sha256(convert_to(concat_ws(' ', p_name, coalesce(p_after, ''), p_end), 'UTF8')), 'hex'), 32);
$$;

create or replace function convsync_api._outgoing_changes(p_after text, p_limit integer, p_pages text[])
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_agg(jsonb_build_object('position', c.next_after, 'page_id', c.page_id, 'conversation_id', c.conversation_id::text,
    'version', c.version, 'kinds', to_jsonb(c.kinds), 'at', c.at) order by c.ordinality)
  from convsync_api.changes_after(p_after, p_limit, p_pages)
    with ordinality c (next_after, page_id, conversation_id, version, kinds, at, ordinality);
$$;

create or replace function convsync_api._outgoing_document(p_webhook convsync.outgoing_webhooks)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'name', p_webhook.name,
    'url', p_webhook.url,
    'pages', to_jsonb(p_webhook.pages),
    'state', p_webhook.state,
    'pause_reason', p_webhook.pause_reason,
    'paused_at', p_webhook.paused_at,
    'position', convsync_api.feed_position(convsync_api._outgoing_consumer(p_webhook.name)),
    'delivered', p_webhook.delivered,
    'delivered_at', p_webhook.delivered_at,
    'attempts', p_webhook.attempts,
    'next_attempt_at', case when p_webhook.state = 'active' and p_webhook.attempts > 0 then p_webhook.next_attempt_at end,
    'last_attempt_at', p_webhook.last_attempt_at,
    'last_status', p_webhook.last_status,
    'last_error', p_webhook.last_error,
    'dead_letter', (
      select jsonb_build_object('dead_letter_id', d.dead_letter_id::text, 'webhook_id', d.webhook_id, 'changes', d.changes,
        'attempts', d.attempts, 'last_status', d.last_status, 'last_error', d.last_error, 'failed_at', d.failed_at)
      from convsync.outgoing_dead_letters d
      where d.name = p_webhook.name and d.resolved_at is null
    ),
    'created_at', p_webhook.created_at
  );
$$;

create or replace function convsync_api._hold_outgoing(p_name text)
returns convsync.outgoing_webhooks
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook convsync.outgoing_webhooks;
begin
  select w.* into v_webhook from convsync.outgoing_webhooks w where w.name = p_name for no key update;
  if not found then
    raise exception 'there is no outgoing webhook %', p_name using errcode = 'ZC001';
  end if;
  return v_webhook;
end
$$;

create or replace function convsync_api.add_outgoing(
  p_name text, p_url text, p_secret_sealed bytea, p_secret_key_id text, p_pages text[] default null, p_after text default null
)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_webhook convsync.outgoing_webhooks;
  v_now timestamptz := convsync_api._now();
  v_consumer text := convsync_api._outgoing_consumer(p_name);
begin
  if p_after is not null then
    perform convsync_api._check_position(p_after, 'after');
  end if;
  if p_name is null or p_name !~ '^[A-Za-z0-9_.-]{1,100}$' then
    raise exception 'a name has 1 to 100 letters, digits, points, dashes and underscores' using errcode = 'ZC003', hint = 'p_name';
  end if;
  if p_url is null or p_url !~ '^https?://[^[:space:]]+$' or length(p_url) > 2000 then
    raise exception 'the address must be http or https' using errcode = 'ZC003', hint = 'p_url';
  end if;
  if p_secret_sealed is null or coalesce(p_secret_key_id, '') = '' then
    raise exception 'the sealed secret and the id of its key are missing' using errcode = 'ZC003', hint = 'p_secret_sealed';
  end if;
  if cardinality(p_pages) = 0 or '' = any (p_pages) or array_position(p_pages, null) is not null then
    raise exception 'name the Pages, or leave them out for all' using errcode = 'ZC003', hint = 'p_pages';
  end if;
  insert into convsync.outgoing_webhooks as w (name, url, secret_sealed, secret_key_id, pages, next_attempt_at, created_at, updated_at)
  values (p_name, p_url, p_secret_sealed, p_secret_key_id, p_pages, v_now, v_now, v_now)
  on conflict on constraint outgoing_webhooks_pkey do update
  set url = excluded.url, secret_sealed = excluded.secret_sealed, secret_key_id = excluded.secret_key_id,
    -- Of other Pages the same places hold another batch.
    batch_after = case when w.pages is not distinct from excluded.pages then w.batch_after end,
    batch_end = case when w.pages is not distinct from excluded.pages then w.batch_end end,
    batch_size = case when w.pages is not distinct from excluded.pages then w.batch_size end,
    pages = excluded.pages, next_attempt_at = excluded.next_attempt_at, updated_at = excluded.updated_at
  returning w.* into strict v_webhook;
  if p_after is not null or convsync_api.feed_position(v_consumer) is null then
    perform convsync_api.set_feed_position(v_consumer, coalesce(p_after, convsync_api.feed_end()));
  end if;
  return convsync_api._outgoing_document(v_webhook);
end
$$;
comment on function convsync_api.add_outgoing(text, text, bytea, text, text[], text) is
$c$Adds an outgoing webhook, or changes its address, secret and Pages (null: all); returns it as JSON, never its secret. p_secret_sealed is
the secret sealed by the service, p_secret_key_id names the key. A new one is told of what changes from now on, or after the position
p_after; one that is known goes on where it stands, unless p_after says otherwise. Errors: ZC003.$c$;

create or replace function convsync_api.list_outgoing()
returns setof jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select convsync_api._outgoing_document(w) from convsync.outgoing_webhooks w order by w.name;
$$;
comment on function convsync_api.list_outgoing() is
$c$Every outgoing webhook as JSON: its address, state (active or paused, with the reason), position, what was delivered, how the last
attempt went, and what could not be delivered (dead_letter). Never its secret.$c$;

create or replace function convsync_api.remove_outgoing(p_name text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_document jsonb := convsync_api._outgoing_document(convsync_api._hold_outgoing(p_name));
begin
  delete from convsync.outgoing_webhooks w where w.name = p_name;
  delete from convsync.feed_consumers f where f.consumer = convsync_api._outgoing_consumer(p_name);
  return v_document;
end
$$;
comment on function convsync_api.remove_outgoing(text) is
  'Removes an outgoing webhook with its secret, its position and what could not be delivered; returns it as it was. Errors: ZC001.';

create or replace function convsync_api._pause_outgoing(p_name text, p_reason text, p_now timestamptz)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update convsync.outgoing_webhooks w
  set state = 'paused', pause_reason = p_reason, paused_at = p_now, leased_until = null, updated_at = p_now
  where w.name = p_name;
$$;

create or replace function convsync_api.claim_outgoing(p_lease_seconds numeric default 60, p_batch integer default 100)
returns table (
  name text, url text, secret_sealed bytea, secret_key_id text, fence bigint, webhook_id text, attempt integer, changes jsonb
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := convsync_api._now();
  v_name text;
  v_webhook convsync.outgoing_webhooks;
  v_size integer;
  v_attempts integer;
  v_after text;
  v_end text;
  v_changes jsonb;
begin
  if p_lease_seconds is null or p_lease_seconds not between 1 and 3600 then
    raise exception 'the lease must be between 1 second and an hour' using errcode = 'ZC003', hint = 'p_lease_seconds';
  end if;
  for v_name in
    select w.name
    from convsync.outgoing_webhooks w
    where w.state = 'active' and w.next_attempt_at <= v_now and (w.leased_until is null or w.leased_until <= v_now)
    order by w.next_attempt_at, w.name
  loop
    -- Whom another process is just claiming is not waited for.
    select w.* into v_webhook
    from convsync.outgoing_webhooks w
    where w.name = v_name and w.state = 'active' and w.next_attempt_at <= v_now
      and (w.leased_until is null or w.leased_until <= v_now)
    for no key update skip locked;
    if not found then
      continue;
    end if;
    v_after := convsync_api.feed_position(convsync_api._outgoing_consumer(v_name));
    -- Before the changes are looked for: what comes between is after it.
    v_end := convsync_api.feed_end();
    if v_webhook.batch_size is null or v_webhook.batch_after is distinct from v_after then
      v_size := least(greatest(coalesce(p_batch, 100), 1), 1000);
      v_attempts := 0;
    else
      v_size := v_webhook.batch_size;
      v_attempts := v_webhook.attempts;
    end if;
    begin
      v_changes := convsync_api._outgoing_changes(v_after, v_size, v_webhook.pages);
    exception when sqlstate 'ZC006' then
      -- What it has missed nobody can tell it: somebody has to say that it may go on without.
      perform convsync_api._pause_outgoing(v_name, 'changes_expired', v_now);
      continue;
    end;
    if v_changes is null then
      -- Of its Pages there is nothing: what others have is not kept for it.
      if v_after is distinct from v_end then
        perform convsync_api.set_feed_position(convsync_api._outgoing_consumer(v_name), v_end);
      end if;
      continue;
    end if;
    update convsync.outgoing_webhooks w
    set batch_after = v_after, batch_end = v_changes -> -1 ->> 'position', batch_size = jsonb_array_length(v_changes),
      attempts = v_attempts + 1, fence = w.fence + 1, leased_until = v_now + p_lease_seconds * interval '1 second',
      last_attempt_at = v_now, updated_at = v_now
    where w.name = v_name
    returning w.* into strict v_webhook;
    return query select v_webhook.name, v_webhook.url, v_webhook.secret_sealed, v_webhook.secret_key_id, v_webhook.fence,
      convsync_api._outgoing_id(v_name, v_after, v_webhook.batch_end), v_webhook.attempts, v_changes;
    return;
  end loop;
end
$$;
comment on function convsync_api.claim_outgoing(numeric, integer) is
$c$The next batch that is due for an outgoing webhook, at most p_batch (1 to 1000) changes in the feed's order; no row if there is none. It is the
caller's alone for p_lease_seconds (1 to 3600): to be POSTed and then told of with record_outgoing and this fence. What was claimed before
and not delivered is the same batch, under the same webhook_id, and a higher attempt. A webhook whose changes have expired is paused. Errors: ZC003.$c$;

create or replace function convsync_api.record_outgoing(
  p_name text, p_fence bigint, p_delivered boolean, p_status integer default null, p_error text default null,
  p_retry_seconds numeric default 60, p_attempts integer default 12
)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_webhook convsync.outgoing_webhooks := convsync_api._hold_outgoing(p_name);
  v_consumer text := convsync_api._outgoing_consumer(p_name);
begin
  if v_webhook.fence <> p_fence or v_webhook.batch_end is null or v_webhook.state <> 'active' then
    raise exception 'webhook % is not delivered with fence % any more', p_name, p_fence using errcode = 'ZC004';
  end if;
  if p_retry_seconds is null or p_retry_seconds not between 0 and 604800 then
    raise exception 'it is tried again within a week' using errcode = 'ZC003', hint = 'p_retry_seconds';
  end if;
  if p_delivered then
    -- Somebody who moved the position meanwhile knows where it is to go on.
    if convsync_api.feed_position(v_consumer) is not distinct from v_webhook.batch_after then
      perform convsync_api.set_feed_position(v_consumer, v_webhook.batch_end);
    end if;
    update convsync.outgoing_webhooks w
    set delivered = w.delivered + w.batch_size, delivered_at = v_now, attempts = 0, batch_after = null, batch_end = null,
      batch_size = null, leased_until = null, next_attempt_at = v_now, last_status = p_status, last_error = null, updated_at = v_now
    where w.name = p_name;
    return 'active';
  end if;
  update convsync.outgoing_webhooks w
  set leased_until = null, next_attempt_at = v_now + p_retry_seconds * interval '1 second', last_status = p_status,
    last_error = left(p_error, 500), updated_at = v_now
  where w.name = p_name;
  if v_webhook.attempts < coalesce(p_attempts, 12) then
    return 'active';
  end if;
  insert into convsync.outgoing_dead_letters (name, webhook_id, batch_after, batch_end, changes, attempts, last_status, last_error, failed_at)
  values (p_name, convsync_api._outgoing_id(p_name, v_webhook.batch_after, v_webhook.batch_end), v_webhook.batch_after, v_webhook.batch_end,
    coalesce(convsync_api._outgoing_changes(v_webhook.batch_after, v_webhook.batch_size, v_webhook.pages), '[]'), v_webhook.attempts,
    p_status, left(p_error, 500), v_now);
  perform convsync_api._pause_outgoing(p_name, 'not_delivered', v_now);
  return 'paused';
end
$$;
comment on function convsync_api.record_outgoing(text, bigint, boolean, integer, text, numeric, integer) is
$c$How the attempt went that claim_outgoing gave p_fence for. Delivered: the position moves past the batch. Not: it is due again after
p_retry_seconds, or, after p_attempts (1: at once), kept as a dead letter and the webhook paused. Returns its state.
Errors: ZC001, ZC003, ZC004 if somebody else has it now.$c$;

create or replace function convsync_api.resume_outgoing(p_name text, p_skip boolean default false)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_webhook convsync.outgoing_webhooks := convsync_api._hold_outgoing(p_name);
  v_consumer text := convsync_api._outgoing_consumer(p_name);
  v_skip boolean := coalesce(p_skip, false);
begin
  if v_skip and v_webhook.state <> 'paused' then
    raise exception 'webhook % is not paused: there is nothing to be left out', p_name using errcode = 'ZC003', hint = 'p_skip';
  end if;
  if v_skip then
    perform convsync_api.set_feed_position(v_consumer,
      case v_webhook.pause_reason when 'not_delivered' then v_webhook.batch_end else convsync_api.feed_end() end);
  end if;
  update convsync.outgoing_dead_letters d
  set resolved_at = v_now, resolution = case when v_skip then 'skipped' else 'resumed' end
  where d.name = p_name and d.resolved_at is null;
  -- They tell what was left out, for a while.
  delete from convsync.outgoing_dead_letters d
  where d.name = p_name and d.resolved_at < v_now - interval '90 days';
  update convsync.outgoing_webhooks w
  set state = 'active', pause_reason = null, paused_at = null, attempts = 0, next_attempt_at = v_now, updated_at = v_now,
    batch_after = case when v_skip then null else w.batch_after end, batch_end = case when v_skip then null else w.batch_end end,
    batch_size = case when v_skip then null else w.batch_size end
  where w.name = p_name
  returning w.* into strict v_webhook;
  return convsync_api._outgoing_document(v_webhook);
end
$$;
comment on function convsync_api.resume_outgoing(text, boolean) is
$c$Tries an outgoing webhook again, at once and with all its attempts, also one that was paused. p_skip: without what could not be delivered, or,
where changes have expired, from the feed's end on. Returns it as JSON. Errors: ZC001, ZC003 if there is nothing to skip.$c$;
