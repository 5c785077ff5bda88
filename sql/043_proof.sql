-- Proof from what is stored: what was verified of a Page and when (the certificate, the checksum), which webhooks never came
-- (the loss meter), the life of one message. 080_verify asks Graph; nothing here does.
--
-- Nothing is claimed that was not verified. A conversation is complete if a sync has read its thread to the end, all of it could be
-- read, no later read of it failed, and Graph shows its person in that thread alone. That is true as of verified_at: what came since is what webhooks told.

-- What complete means, for all who say it; a view, so that whoever counts does not call a function for each.
create or replace view convsync_api._standing as
select c.page_id, c.conversation_id, c.sender_id, c.thread_id, c.deleted_at, p.verified_at, p.verified_run_id, p.verified_through,
  p.full_read_at, case when f.failed_at > coalesce(p.verified_at, '-infinity') then f.failed_at end as failed_at,
  p.unreadable, c.reported_count, c.message_count as stored_count,
  c.deleted_at is null and c.history_complete_at is not null and not c.in_several_threads and p.full_read_at is not null
    and p.unreadable = 0 and not coalesce(f.failed_at > coalesce(p.verified_at, '-infinity'), false) as complete
from convsync.messenger_conversations c
left join convsync.thread_proofs p on p.page_id = c.page_id and p.thread_id = c.thread_id
left join (
  select b.page_id, b.thread_id, max(b.failed_at) as failed_at
  from convsync.sync_batches b
  where b.kind = 'thread' and b.status = 'failed'
  group by b.page_id, b.thread_id
) f on f.page_id = c.page_id and f.thread_id = c.thread_id;
comment on view convsync_api._standing is 'Each conversation with what syncs have verified of it, and whether that makes it complete.';

create or replace function convsync_api._certificate(p_page convsync.pages)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'conversations', n.conversations,
    'complete', n.complete,
    -- With the list unknown there may be conversations that nobody has counted.
    'whole', p_page.list_walked_at is not null and n.complete = n.conversations,
    'unreadable', n.unreadable,
    'verified_since', n.verified_since,
    'list_known', p_page.list_walked_at is not null,
    'list_walked_at', p_page.list_walked_at,
    'list_run', (
      select jsonb_build_object('run_id', r.run_id::text, 'mode', r.mode, 'status', r.status, 'started_at', r.started_at,
        'finished_at', r.finished_at)
      from convsync.sync_runs r
      where r.page_id = p_page.page_id and r.list_walked and r.mode in ('full', 'reconcile')
      order by r.run_id desc
      limit 1
    ),
    'deleted', n.deleted,
    'erased', n.erased,
    'purged_before', p_page.purged_before
  )
  from (
    select count(*) filter (where s.deleted_at is null) as conversations,
      count(*) filter (where s.complete) as complete, min(s.verified_at) filter (where s.complete) as verified_since,
      coalesce(sum(s.unreadable) filter (where s.deleted_at is null), 0) as unreadable,
      count(*) filter (where s.deleted_at is not null and s.sender_id not like 'erased:%') as deleted,
      count(*) filter (where s.deleted_at is not null and s.sender_id like 'erased:%') as erased
    from convsync_api._standing s
    where s.page_id = p_page.page_id
  ) n;
$$;

create or replace function convsync_api.certificate(p_page_id text)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_page convsync.pages;
begin
  select p.* into v_page from convsync.pages p where p.page_id = p_page_id;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  return jsonb_build_object('page_id', p_page_id, 'as_of', convsync_api._now()) || convsync_api._certificate(v_page);
end
$$;
comment on function convsync_api.certificate(text) is
$c$What is proved of a Page, as JSON: how many of its conversations (not deleted, not erased) are complete: their threads were read to
the end by a sync, without a message that Graph would not return (unreadable), and no later read failed. verified_since is the oldest
of these reads; list_walked_at when the list of conversations was last known without a gap (list_known: ever). whole: every
conversation of a known list is complete. What lies before purged_before is not held. Errors: ZC001.$c$;

create or replace function convsync_api.certificate_conversations(
  p_page_id text, p_after bigint default 0, p_limit integer default 100, p_incomplete_only boolean default false
)
returns table (
  conversation_id bigint, sender_id text, thread_id text, complete boolean, verified_at timestamptz, verified_run_id bigint,
  verified_through timestamptz, full_read_at timestamptz, failed_at timestamptz, unreadable integer, reported_count integer,
  stored_count integer
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
  return query
  select s.conversation_id, s.sender_id, s.thread_id, s.complete, s.verified_at, s.verified_run_id, s.verified_through, s.full_read_at,
    s.failed_at, s.unreadable, s.reported_count, s.stored_count
  from convsync_api._standing s
  where s.page_id = p_page_id and s.conversation_id > coalesce(p_after, 0) and s.deleted_at is null
    and not (coalesce(p_incomplete_only, false) and s.complete)
  order by s.conversation_id
  limit least(greatest(coalesce(p_limit, 100), 1), 1000);
end
$$;
comment on function convsync_api.certificate_conversations(text, bigint, integer, boolean) is
$c$The certificate, conversation by conversation (with p_incomplete_only those that are not complete): by conversation_id those after
p_after, at most p_limit (1 to 1000). verified_at: when the last read that a sync finished began, by verified_run_id; verified_through: down from
this message time all is known; full_read_at: when its thread was last read to the end; failed_at: since when it cannot be read.
unreadable is null where no sync has listed it; reported_count is what Graph said last, stored_count the live messages here: they may differ by
what was erased or purged, or came since.$c$;

create or replace function convsync_api.conversation_checksums(
  p_page_id text, p_from timestamptz default null, p_after bigint default 0, p_limit integer default 100
)
returns table (conversation_id bigint, sender_id text, messages bigint, checksum text, deleted bigint, deleted_checksum text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
  return query
  select d.conversation_id, d.sender_id, d.messages, lpad(to_hex(d.live_high), 16, '0') || lpad(to_hex(d.live_low), 16, '0'),
    d.deleted, lpad(to_hex(d.gone_high), 16, '0') || lpad(to_hex(d.gone_low), 16, '0')
  from (
    select c.conversation_id, c.sender_id,
      count(m.live) filter (where m.live) as messages,
      coalesce(bit_xor(m.high) filter (where m.live), 0) as live_high, coalesce(bit_xor(m.low) filter (where m.live), 0) as live_low,
      count(m.live) filter (where not m.live) as deleted,
      coalesce(bit_xor(m.high) filter (where not m.live), 0) as gone_high, coalesce(bit_xor(m.low) filter (where not m.live), 0) as gone_low
    from (
      select o.conversation_id, o.sender_id, o.page_id, o.deleted_at
      from convsync.messenger_conversations o
      where o.page_id = p_page_id and o.conversation_id > p_after and o.sender_id not like 'erased:%'
      order by o.conversation_id
      limit p_limit
    ) c
    left join lateral (
      select e.deleted_at is null and c.deleted_at is null as live, ('x' || substr(h.hex, 1, 16))::bit(64)::bigint as high,
        ('x' || substr(h.hex, 17, 16))::bit(64)::bigint as low
      from convsync.contact_interaction_events e
      cross join lateral (
        -- Graph has whole seconds. A list of JSON, so that no two messages are written the same.
        select encode(sha256(convert_to(json_build_array(c.sender_id, e.message_id, e.direction,
          floor(extract(epoch from e.event_timestamp)), e.body)::text, 'UTF8')), 'hex') as hex
      ) h
      -- By the column, not the argument: decision 0007.
      where e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread
        and (p_from is null or e.event_timestamp >= p_from)
    ) m on true
    group by c.conversation_id, c.sender_id
  ) d
  order by d.conversation_id;
end
$$;
comment on function convsync_api.conversation_checksums(text, timestamptz, bigint, integer) is
$c$A checksum of the live messages of each conversation (person, id, direction, second and text of each, in no order), and one of
those that were taken back or are gone with their conversation, which a mirror that was made later never had. Only messages since p_from; by conversation_id those after p_after, at
most p_limit (null: all). Two mirrors hold the same of a person if both give the same. Reads every message it tells of.$c$;

create or replace function convsync_api.mirror_checksum(p_page_id text, p_from timestamptz default null)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
  v_page convsync.pages;
begin
  select p.* into v_page from convsync.pages p where p.page_id = p_page_id;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  return (
    select jsonb_build_object(
      'page_id', p_page_id,
      'as_of', convsync_api._now(),
      -- A mirror that keeps more is asked from here on.
      'from', greatest(p_from, v_page.purged_before),
      'conversations', count(*) filter (where h.messages > 0),
      'messages', coalesce(sum(h.messages), 0),
      'checksum', lpad(to_hex(coalesce(bit_xor(h.high), 0)), 16, '0') || lpad(to_hex(coalesce(bit_xor(h.low), 0)), 16, '0'),
      'deleted', coalesce(sum(h.deleted), 0),
      'deleted_checksum', lpad(to_hex(coalesce(bit_xor(h.gone_high), 0)), 16, '0') || lpad(to_hex(coalesce(bit_xor(h.gone_low), 0)), 16, '0'),
      'erased', (
        select count(*) from convsync.messenger_conversations o where o.page_id = p_page_id and o.sender_id like 'erased:%')
    )
    from (
      select c.messages, c.deleted,
        ('x' || substr(c.checksum, 1, 16))::bit(64)::bigint as high, ('x' || substr(c.checksum, 17))::bit(64)::bigint as low,
        ('x' || substr(c.deleted_checksum, 1, 16))::bit(64)::bigint as gone_high,
        ('x' || substr(c.deleted_checksum, 17))::bit(64)::bigint as gone_low
      from convsync_api.conversation_checksums(p_page_id, p_from, 0, null) c
    ) h
  );
end
$$;
comment on function convsync_api.mirror_checksum(text, timestamptz) is
$c$The checksum of a whole Page, as JSON: conversation_checksums taken together, with the counts of what went into it. from is the
later of p_from and the Page's purge: ask a mirror that keeps more from there on. What was erased here is in no checksum; erased says of
how many people. Reads every message of the Page. Errors: ZC001.$c$;

-- The loss meter

create or replace function convsync_api._loss_grace()
returns interval
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select m.grace from convsync.loss_meter m), interval '15 minutes');
$$;

create or replace function convsync_api.set_loss_grace(p_seconds numeric)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := convsync_api._now();
begin
  if p_seconds is null or p_seconds not between 0 and 31622400 then
    raise exception 'the grace must be between 0 and 366 days' using errcode = 'ZC003', hint = 'p_seconds';
  end if;
  insert into convsync.loss_meter as m (grace, updated_at)
  values (p_seconds * interval '1 second', v_now)
  on conflict on constraint loss_meter_pkey do update
  set grace = excluded.grace, updated_at = excluded.updated_at
  where m.grace <> excluded.grace;
end
$$;
comment on function convsync_api.set_loss_grace(numeric) is
  'How many seconds after its message a webhook counts as lost; 900 if nobody said so. serve tells it as it starts. Errors: ZC003.';

create or replace function convsync_api._note_losses(p_facts convsync.fact[], p_inserted text[], p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_nestloop = off
set enable_mergejoin = off
as $$
begin
  -- Of what was sent since webhooks come. Graph's whole second is never later than the message.
  insert into convsync.webhook_losses (page_id, message_id, event_timestamp, learnt_at)
  select f.page_id, f.message_id, f.at, p_now
  from unnest(p_facts) f
  join unnest(p_inserted) i (key) on i.key = f.page_id || ' ' || f.message_id
  where f.kind = 'message' and f.round = 1 and f.in_thread
    and f.at > (select least(g.subscribed_at, g.first_webhook_at) from convsync.pages g where g.page_id = f.page_id)
  on conflict on constraint webhook_losses_pkey do nothing;
end
$$;

create or replace function convsync_api._meter_losses(
  p_facts convsync.fact[], p_inserted text[], p_source text, p_now timestamptz
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  -- Under the locks of the conversations, and with the messages' keys taken: of the two copies of a message one sees the other.
  if p_source = 'sync' and p_inserted is not null then
    perform convsync_api._note_losses(p_facts, p_inserted, p_now);
  elsif p_source = 'webhook' and exists (select from convsync.webhook_losses) then
    delete from convsync.webhook_losses l
    using unnest(p_facts) f
    where f.kind = 'message' and l.page_id = f.page_id and l.message_id = f.message_id;
  end if;
end
$$;

create or replace function convsync_api.webhook_losses(p_page_id text, p_from timestamptz, p_to timestamptz default null)
returns table (hour timestamptz, received bigint, sent bigint)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
  select date_trunc('hour', l.event_timestamp, 'UTC'), count(*) filter (where e.direction = 'in'),
    count(*) filter (where e.direction = 'out')
  from convsync.webhook_losses l
  join convsync.contact_interaction_events e on e.page_id = l.page_id and e.message_id = l.message_id
  join convsync.messenger_conversations c on c.page_id = e.page_id and c.conversation_id = e.conversation_id
  where l.page_id = p_page_id and l.event_timestamp >= p_from and (p_to is null or l.event_timestamp < p_to)
    and l.event_timestamp <= (select convsync_api._now() - convsync_api._loss_grace())
    -- What its sender took back, nobody has lost, nor what is gone with its conversation.
    and e.deleted_at is null and c.deleted_at is null
  group by 1
  order by 1;
$$;
comment on function convsync_api.webhook_losses(text, timestamptz, timestamptz) is
$c$The loss meter: live messages sent from p_from until before p_to that a sync had to find, because their webhook has not come within the
grace (set_loss_grace), by hour (UTC): received from people, and sent by the Page (echoes). Only of a Page whose webhooks come (subscribed_at, or
its first webhook), and of what was sent since. A webhook that comes after all takes its message off.$c$;

create or replace function convsync_api._loss_document(p_page convsync.pages)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'since', least(p_page.subscribed_at, p_page.first_webhook_at),
    'grace_seconds', extract(epoch from convsync_api._loss_grace())::bigint,
    'last_day', coalesce((
      select sum(h.received + h.sent)
      from convsync_api.webhook_losses(p_page.page_id, convsync_api._now() - interval '1 day') h), 0));
$$;

-- The life of one message

create or replace function convsync_api.explain_message(p_page_id text, p_message_id text)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
as $$
declare
  v_page convsync.pages;
  v_event convsync.contact_interaction_events;
  v_waiting convsync.pending_amendments;
  v_loss convsync.webhook_losses;
  v_conversation jsonb;
  v_letters jsonb;
  v_life jsonb;
begin
  select p.* into v_page from convsync.pages p where p.page_id = p_page_id;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  perform from convsync.erased_messages m
  where m.page_id = p_page_id and m.message_digest = convsync_api._message_digest(p_page_id, p_message_id);
  if found then
    raise exception 'this message was erased with its person, or refused because of that' using errcode = 'ZC006';
  end if;
  select e.* into v_event
  from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.message_id = p_message_id;
  select a.* into v_waiting
  from convsync.pending_amendments a
  where a.page_id = p_page_id and a.message_id = p_message_id;
  select l.* into v_loss
  from convsync.webhook_losses l
  where l.page_id = p_page_id and l.message_id = p_message_id;
  -- An id has no character that JSON must escape, but a slash may be.
  select coalesce(jsonb_agg(jsonb_build_object('dead_letter_id', d.dead_letter_id::text, 'source', d.source, 'reason', d.reason,
      'first_seen_at', d.first_seen_at, 'resolution', d.resolution) order by d.dead_letter_id), '[]')
  into v_letters
  from convsync.dead_letters d
  where d.page_id in (p_page_id, '') and p_message_id <> ''
    and (position(convert_to(p_message_id, 'UTF8') in d.raw) > 0
      or position(convert_to(replace(p_message_id, '/', '\/'), 'UTF8') in d.raw) > 0);
  if v_event.message_id is null and v_waiting.message_id is null and v_letters = '[]' then
    raise exception 'of message % of Page % nothing was ever heard%', p_message_id, p_page_id,
      coalesce(', or it was sent before ' || to_char(v_page.purged_before, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' and was purged', '')
      using errcode = 'ZC001';
  end if;

  select to_jsonb(c) || jsonb_build_object('conversation_id', c.conversation_id::text, 'verified_run_id', c.verified_run_id::text)
  into v_conversation
  from convsync_api.certificate_conversations(p_page_id, v_event.conversation_id - 1, 1) c
  where c.conversation_id = v_event.conversation_id;
  if v_conversation is null and v_event.message_id is not null then
    select jsonb_build_object('conversation_id', c.conversation_id::text, 'sender_id', c.sender_id, 'deleted_at', c.deleted_at)
    into v_conversation
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.conversation_id = v_event.conversation_id;
  end if;

  select coalesce(jsonb_agg(jsonb_build_object('at', t.at, 'what', t.what, 'detail', t.detail) order by t.at, t.place), '[]')
  into v_life
  from (
    values
      (1, v_event.event_timestamp, 'sent', case v_event.direction when 'in' then 'by the customer' when 'out' then 'by the Page' end),
      (2, v_event.received_at, 'first_learnt', v_event.source),
      (3, v_loss.learnt_at, 'webhook_missing', 'a sync had to find it'),
      (4, v_event.text_graph_at, 'text_read', v_event.text_graph),
      (5, v_event.edited_at, 'edited', format('edit %s: %s', v_event.num_edit, v_event.edited_text)),
      (6, v_event.graph_at, 'last_read', 'from Graph'),
      (7, v_event.absent_at, 'absent', 'its thread did not list it any more'),
      (8, v_event.unsent_at, 'unsent', null),
      (9, (v_conversation ->> 'verified_at')::timestamptz, 'thread_verified', 'by run ' || (v_conversation ->> 'verified_run_id')),
      (10, v_waiting.first_seen_at, 'amendment_waits', 'its message has not come'),
      (11, v_waiting.edited_at, 'edited', format('edit %s: %s', v_waiting.num_edit, v_waiting.edited_text)),
      (12, v_waiting.unsent_at, 'unsent', null),
      (15, (v_conversation ->> 'deleted_at')::timestamptz, 'conversation_gone', 'Graph has no such conversation, as a sync has confirmed')
    union all
    select 13, to_timestamp((m.value ->> 0)::numeric / 1000000), case m.value ->> 1 when '0' then 'reaction' else 'reaction_taken_back' end,
      concat_ws(' ', m.key, m.value -> 2 ->> 'emoji', m.value -> 2 ->> 'reaction')
    from jsonb_each(coalesce(v_event.reaction_marks, v_waiting.reaction_marks, '{}')) m
    union all
    select 14, (d.value ->> 'first_seen_at')::timestamptz, 'dead_letter', concat_ws(' ', d.value ->> 'dead_letter_id', d.value ->> 'reason')
    from jsonb_array_elements(v_letters) d
  ) t (place, at, what, detail)
  where t.at is not null;

  return jsonb_build_object(
    'page_id', p_page_id,
    'message_id', p_message_id,
    'state', case
      when v_event.deleted_at is not null then 'deleted'
      when v_event.message_id is not null then 'live'
      when v_waiting.message_id is not null then 'awaited'
      else 'not_understood' end,
    'life', v_life,
    -- A webhook that repeats what a sync has told leaves its text or its parts.
    'webhook_copy', case when v_event.message_id is not null then v_event.source = 'webhook' or v_event.metadata ? 'webhook'
      or (v_event.source = 'sync' and v_event.text_original is not null) end,
    'graph_copy', case when v_event.message_id is not null then v_event.graph_at is not null end,
    'loss', case when v_loss.message_id is not null then jsonb_build_object('learnt_at', v_loss.learnt_at,
      'counts', v_event.deleted_at is null and v_conversation ->> 'deleted_at' is null and v_loss.event_timestamp <= convsync_api._now() - convsync_api._loss_grace()) end,
    'stored', case when v_event.message_id is not null then
      to_jsonb(v_event) || jsonb_build_object('conversation_id', v_event.conversation_id::text) - '{page_id,message_id}'::text[] end,
    'waiting', case when v_waiting.message_id is not null then to_jsonb(v_waiting) - '{page_id,message_id}'::text[] end,
    'dead_letters', v_letters,
    'conversation', v_conversation);
end
$$;
comment on function convsync_api.explain_message(text, text) is
$c$The life of one message, as JSON. state: live, deleted, awaited (only an edit, a reaction or an unsend of it came) or not_understood (only
dead letters name it). life: what happened to it, by time. stored: every register with its stamp, as it is kept; webhook_copy and graph_copy: which of the
two told it; loss: that its webhook has not come, and whether that counts; waiting, dead_letters; conversation: whose it is, and what is verified of it, as
certificate_conversations tells. Errors: ZC001 nothing was ever heard of it, ZC006 it was erased.$c$;
