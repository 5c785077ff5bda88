-- Proof: what Graph says now against what the mirror holds. Nothing here writes.
--
-- The service reads Graph and hands over what it read, page by page; what differs is decided here, each page in one
-- statement, so that one state of the mirror is judged. A finding is unsettled while something still under way (a webhook,
-- an edit) may explain it: it counts only if it is there again when its thread is read a second time.

create or replace function convsync_api.compare_facts(p_page_id text, p_facts jsonb)
returns table (finding text, what text, id text, thread_id text, detail text, settled boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  -- What was erased or purged here is not missing.
  v_facts convsync.fact[] := convsync_api._admissible(convsync_api._parse_facts(p_facts));
begin
  if exists (select from unnest(v_facts) f where f.page_id is distinct from p_page_id) then
    raise exception 'a fact of another Page' using errcode = 'ZC003', hint = 'p_facts';
  end if;
  if exists (select from unnest(v_facts) f where f.kind = 'message' and f.observed_at is null) then
    raise exception 'a message that Graph did not tell' using errcode = 'ZC003', hint = 'p_facts';
  end if;

  return query
  with thread as materialized (
    -- A person keeps the conversation though Graph names nobody any more (thread:<id>).
    select f.sender_id, f.thread_id, f.observed_at, nullif(f.fields ->> 'name', '') as name,
      (f.fields ->> 'reported_count')::integer as reported, (f.fields ->> 'updated_time')::timestamptz as updated,
      c.conversation_id, c.sender_name, c.thread_id as known_thread_id, c.thread_id_at, c.deleted_at
    from unnest(v_facts) f
    left join lateral (
      select o.*
      from convsync.messenger_conversations o
      where o.page_id = p_page_id
        and (o.sender_id = f.sender_id or (o.thread_id = f.thread_id and f.sender_id = 'thread:' || f.thread_id))
      order by (o.sender_id = f.sender_id) desc, o.conversation_id
      limit 1
    ) c on true
    where f.kind = 'thread' and f.round = 1
  ), message as materialized (
    select f.message_id, f.at, f.observed_at, e.message_id is not null as known,
      nullif(concat_ws(', ',
        case when not e.in_thread then 'not of the thread' end,
        case when e.deleted_at is not null then 'deleted' end,
        case when e.direction <> f.direction then 'direction' end,
        -- Graph has whole seconds, the webhook milliseconds of the same instant.
        case when date_trunc('second', e.event_timestamp) <> date_trunc('second', f.at) then 'second' end,
        case when owner.sender_id <> f.sender_id and f.sender_id is distinct from 'thread:' || owner.thread_id then 'owner' end,
        -- What Graph leaves out asserts nothing against what only a webhook told.
        case when e.body is distinct from nullif(f.text, '') and (nullif(f.text, '') is not null or e.text_graph is not null)
          then 'text' end,
        -- A row known from a webhook only has no ids of Graph's to compare.
        case when e.metadata ? 'graph' and not (a.here @> a.there and a.there @> a.here) then 'attachments' end
      ), '') as differs
    from unnest(v_facts) f
    left join convsync.contact_interaction_events e on e.page_id = p_page_id and e.message_id = f.message_id
    left join convsync.messenger_conversations owner
      on owner.page_id = p_page_id and owner.conversation_id = e.conversation_id
    cross join lateral (
      select jsonb_path_query_array(e.metadata, 'lax $.graph.attachments[*].id') as here,
        jsonb_path_query_array(f.metadata, 'lax $.graph.attachments[*].id') as there
    ) a
    where f.kind = 'message' and f.round = 1
  )
  select 'missing', 'conversation', t.sender_id, t.thread_id, null::text,
    coalesce(t.updated < t.observed_at - interval '1 minute', false)
  from thread t
  where t.conversation_id is null
  union all
  select 'differing', 'conversation', t.sender_id, t.thread_id, d.differs, false
  from thread t
  cross join lateral (
    select nullif(concat_ws(', ',
      -- Known from webhooks only, a conversation has no name and no thread yet: it lacks them, it does not contradict.
      case when t.name <> t.sender_name or (t.name is not null and t.sender_name is null and t.thread_id_at is not null)
        then 'name' end,
      case when t.known_thread_id <> t.thread_id then 'thread_id' end,
      case when t.deleted_at is not null then 'deleted' end
    ), '') as differs
  ) d
  where t.conversation_id is not null and d.differs is not null
  union all
  -- Not a finding: what Graph reports and what is live here do not add up, so the thread has to be read to its end. What is
  -- counted are the events themselves, never a stored count.
  select 'count', 'conversation', min(t.sender_id), t.thread_id, format('%s reported, %s here', n.reported, n.live), false
  from thread t
  join lateral (
    select max(o.reported) as reported, (
        select count(*)
        from convsync.contact_interaction_events e
        where e.page_id = p_page_id and e.in_thread and e.deleted_at is null
          and e.conversation_id in (select i.conversation_id from thread i where i.thread_id = t.thread_id)
      ) as live
    from thread o
    where o.thread_id = t.thread_id
  ) n on n.reported is distinct from n.live
  group by t.thread_id, n.reported, n.live
  union all
  -- What was written after the read was granted is not judged: its webhook may well be on its way.
  select 'missing', 'message', m.message_id, null, null, m.at < m.observed_at - interval '1 minute'
  from message m
  where not m.known and m.at < m.observed_at
  union all
  select 'differing', 'message', m.message_id, null, m.differs, false
  from message m
  where m.known and m.differs is not null;
end
$$;
comment on function convsync_api.compare_facts(text, jsonb) is
$c$Compares facts that Graph told just now (messages and threads, as ingest takes them) with the mirror; changes nothing. A row per
finding: finding is missing, differing or count; what is message or conversation; id is the message_id or the sender_id, with
thread_id for a conversation; detail names what differs (direction, second, text, owner, deleted, attachments; name, thread_id). count is no finding yet: the number
of messages that Graph reports is not the number that is live here, so read that thread to its end. settled is false where
something still under way may explain it: read again before you count it. Errors: ZC003.$c$;

create or replace function convsync_api.compare_thread(
  p_page_id text, p_thread_id text, p_message_ids text[], p_observed_at timestamptz, p_sender_id text default null
)
returns table (finding text, what text, id text, thread_id text, detail text, settled boolean)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
  -- By the time a message came here, not by its own: both instants are then of this database's clock, and Graph had the
  -- message before this mirror did.
  return query
  select 'extra', 'message', e.message_id, p_thread_id, null::text, false
  from convsync.messenger_conversations c
  join convsync.contact_interaction_events e on e.page_id = c.page_id and e.conversation_id = c.conversation_id
  where c.page_id = p_page_id
    and (c.thread_id = p_thread_id or (c.thread_id is null and c.sender_id in (p_sender_id, 'thread:' || p_thread_id)))
    and e.in_thread and e.deleted_at is null and e.received_at < p_observed_at
    and not exists (select from unnest(p_message_ids) l (message_id) where l.message_id = e.message_id)
  order by e.event_timestamp, e.message_id;
end
$$;
comment on function convsync_api.compare_thread(text, text, text[], timestamptz, text) is
$c$Compares a thread that was read to its end with the mirror; changes nothing. p_message_ids: everything Graph listed in it;
p_observed_at: when its first page was granted, what came here later does not count; p_sender_id: whose thread it is, for a
conversation whose thread is not known here. A row per live message that Graph did not list, in the columns of compare_facts;
finding is extra.$c$;

create or replace function convsync_api.conversations_to_find(
  p_page_id text, p_before timestamptz, p_after bigint default 0, p_limit integer default 1000
)
returns table (conversation_id bigint, sender_id text, thread_id text)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select c.conversation_id, c.sender_id, c.thread_id
  from (
    select o.page_id, o.conversation_id, o.sender_id, o.thread_id
    from convsync.messenger_conversations o
    where o.page_id = p_page_id and o.conversation_id > p_after and o.deleted_at is null
    order by o.conversation_id
    offset 0 -- or the argument takes the column's place below: decision 0007
  ) c
  where exists (
      select from convsync.contact_interaction_events e
      where e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread and e.deleted_at is null
        and e.received_at < p_before
    )
  order by c.conversation_id
  limit p_limit;
$$;
comment on function convsync_api.conversations_to_find(text, timestamptz, bigint, integer) is
$c$The conversations that a list of the Page read since p_before must show: those not deleted with a live message that came before
then. By conversation_id, those after p_after, at most p_limit.$c$;

create or replace function convsync_api.history_complete(p_page_id text)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select not exists (select from convsync_api.certificate_conversations(p_page_id, p_limit => 1, p_incomplete_only => true));
$$;
comment on function convsync_api.history_complete(text) is
  'Whether every conversation of the Page is complete, as the certificate has it: read to its end by a sync, nothing held back or failed.';
