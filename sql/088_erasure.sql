-- Erasure and retention. What was erased stays erased: no redelivery, no later sync, no history still unread brings it back.
--
-- A tombstone is a digest of (Page, person) under a key of this installation, with the instant of the erasure. Facts up to that
-- instant are refused, by the fact itself, so in any order; later ones start a new contact. A thread's snapshot is of then if
-- its updated_time is.
--
-- What is done later to a message of before (an edit, a reaction, an unsend) has a later time and is no proof of itself. Neither has
-- a copy that has no time of its own, and so seems to be of the moment it is received. They are known by their message: of each
-- message that was erased, or that something refused proves to be of before, a digest is kept. What is told of such a message is
-- refused, and what came before the proof goes when it comes (_erase_messages), with a contact that nothing else was told of.
--
-- Refusals are counted, not stored.
--
-- What nobody can read (a dead letter) is no fact of a person. Its words, with JSON's escapes and without, are looked for among the
-- digests: of a letter that names somebody who was erased, or such a message, only what it was refused for is kept, unless each
-- event in it tells a time after the erasure. What the platform told the Page of itself (a page event) is looked through in the same
-- way; of one that names them it is kept that it came.

create or replace function convsync_api._contact_digest(p_page_id text, p_sender_id text)
returns bytea
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select sha256(s.erasure_key || convert_to(p_page_id || chr(31) || p_sender_id, 'UTF8')) from convsync.installation_secrets s;
$$;

create or replace function convsync_api._message_digest(p_page_id text, p_message_id text)
returns bytea
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select sha256(s.erasure_key || convert_to(p_page_id || chr(30) || p_message_id, 'UTF8')) from convsync.installation_secrets s;
$$;

create or replace function convsync_api._sift(
  p_facts convsync.fact[], out admitted convsync.fact[], out refused convsync.fact[], out proofs convsync.fact[]
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_key bytea;
  v_admitted convsync.fact[];
  v_refused convsync.fact[];
  v_proofs convsync.fact[];
begin
  -- Most Pages have no tombstone and no horizon: then nothing is computed.
  if not exists (
    select
    from (select distinct f.page_id from unnest(p_facts) f) t
    where exists (select from convsync.erased_contacts e where e.page_id = t.page_id)
      or exists (select from convsync.pages p where p.page_id = t.page_id and p.purged_before is not null)
  ) then
    admitted := p_facts;
    return;
  end if;
  select s.erasure_key into strict v_key from convsync.installation_secrets s;
  -- What is refused says why in its reason. Some of it proves that its message is of before: one whose time is, and an amendment
  -- whose time is, for its message is older still. Graph's times are cut down to their second: another copy may be of after
  -- the erasure, until the whole second is of before.
  -- The rounds are counted anew: a copy of the first round may be refused and one of the second pass.
  select array_agg(r.fact) filter (where r.refused is null), array_agg(r.fact) filter (where r.refused is not null),
    array_agg(r.fact) filter (where r.proof)
  into v_admitted, v_refused, v_proofs
  from (
    select c.refused, c.proof, row(c.kind, c.page_id, c.sender_id, c.message_id, c.direction, c.at, c.text, c.event_type, c.metadata,
      c.observed_at, c.in_thread, c.num_edit, c.actor_id, c.action, c.reaction, c.emoji, c.what, c.thread_id,
      case when c.kind = 'thread' and (c.fields ->> 'updated_time')::timestamptz < c.purged_before then c.fields - 'snippet'
        else c.fields end,
      coalesce(c.refused, c.reason), c.raw, c.counted)::convsync.fact as fact
    from (
      select w.*,
        case when w.kind in ('watermark', 'dead_letter') then 1
          else row_number() over (partition by w.refused is null, w.kind, w.page_id, w.message_id,
            case when w.kind = 'thread' then w.sender_id end order by w.round) end as counted
      from (
        select j.*,
          case when j.kind = 'dead_letter' then null
            when j.of_before or j.known
              or (j.is_of_message and bool_or(j.proof) over (partition by j.page_id, j.message_id)) then 'erased'
            when j.kind not in ('thread', 'watermark') and j.at < j.purged_before then 'purged' end as refused
        from (
          -- The digests of _contact_digest and _message_digest, without a call for each.
          select f.*, p.purged_before, t.is_of_message, m.page_id is not null as known,
            e.erased_at is not null and not coalesce(
              case f.kind when 'thread' then (f.fields ->> 'updated_time')::timestamptz else f.at end > e.erased_at, false) as of_before,
            t.is_of_message and coalesce(
              f.at + case when f.observed_at is null then interval '0' else interval '999 milliseconds' end <= e.erased_at, false) as proof
          from unnest(p_facts) f
          cross join lateral (select f.kind in ('message', 'edit', 'reaction', 'unsend', 'absence') as is_of_message) t
          left join convsync.pages p on p.page_id = f.page_id
          left join convsync.erased_contacts e
            on f.kind <> 'dead_letter' and e.page_id = f.page_id
              and e.contact_digest = sha256(v_key || convert_to(f.page_id || chr(31) || f.sender_id, 'UTF8'))
          left join convsync.erased_messages m
            on t.is_of_message and m.page_id = f.page_id
              and m.message_digest = sha256(v_key || convert_to(f.page_id || chr(30) || f.message_id, 'UTF8'))
        ) j
      ) w
    ) c
  ) r;
  admitted := v_admitted;
  refused := v_refused;
  proofs := v_proofs;
end
$$;

create or replace function convsync_api._admissible(p_facts convsync.fact[])
returns convsync.fact[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(s.admitted, '{}') from convsync_api._sift(p_facts) s;
$$;

create or replace function convsync_api._news_of_before(p_proofs convsync.fact[])
returns convsync.fact[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  -- The proofs that a message is of before which was not known as such, or of which something is here.
  return (
    select array_agg(f)
    from unnest(p_proofs) f
    where not exists (
        select from convsync.erased_messages m
        where m.page_id = f.page_id and m.message_digest = convsync_api._message_digest(f.page_id, f.message_id))
      or exists (
        select from convsync.contact_interaction_events e where e.page_id = f.page_id and e.message_id = f.message_id)
      or exists (
        select from convsync.pending_amendments a where a.page_id = f.page_id and a.message_id = f.message_id)
  );
end
$$;

create or replace function convsync_api._scrub_conversations(p_page_id text, p_conversations bigint[], p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_xid xid8 := pg_current_xact_id();
begin
  -- The row stays, without anything of the person: its number and its changes keep their meaning.
  update convsync.messenger_conversations c
  set sender_id = 'erased:' || c.conversation_id,
    sender_name = null, sender_name_at = null, thread_id = null, thread_id_at = null,
    last_message = null, last_message_id = null, last_message_time = null, last_inbound_time = null,
    message_count = 0, unread_count = 0, unread_count_at = null, snippet = null, snippet_at = null,
    can_reply = null, can_reply_at = null, reported_count = null, reported_count_at = null,
    updated_time = null, updated_time_at = null, read_watermark = null, delivered_watermark = null,
    conversation_status = default, tags = '{}', assignee = null, note = null, timezone = null, gone_confirmed_at = null, in_several_threads = false,
    deleted_at = p_now, history_complete_at = null,
    version = c.version + (c.version_xid is distinct from v_xid)::integer, version_xid = v_xid, updated_at = p_now
  where c.page_id = p_page_id and c.conversation_id = any (p_conversations);
  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  select c.page_id, convsync_api._epoch(), v_xid, c.conversation_id, c.version, '{erased}', p_now
  from convsync.messenger_conversations c
  where c.page_id = p_page_id and c.conversation_id = any (p_conversations)
  order by c.conversation_id
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version, kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
end
$$;

create or replace function convsync_api._who_is_told(
  p_facts convsync.fact[], p_keys convsync.conversation_key[],
  out told convsync.conversation_key[], out silent convsync.conversation_key[]
)
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set enable_mergejoin = off
as $$
declare
  v_told convsync.conversation_key[];
  v_silent convsync.conversation_key[];
begin
  -- Of the conversations that are locked, those that this call has facts of, and those that are locked for something else.
  select array_agg(k) filter (where f.page_id is not null), array_agg(k) filter (where f.page_id is null)
  into v_told, v_silent
  from unnest(p_keys) k
  left join (select distinct a.page_id, a.sender_id from unnest(p_facts) a) f on f.page_id = k.page_id and f.sender_id = k.sender_id;
  told := v_told;
  silent := v_silent;
end
$$;

create or replace function convsync_api._erase_messages(
  p_proofs convsync.fact[], p_facts convsync.fact[], p_now timestamptz,
  inout p_keys convsync.conversation_key[], out deltas convsync.conversation_delta[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_gone convsync.conversation_fold[];
  v_waited boolean;
  v_told convsync.conversation_key[];
  v_silent convsync.conversation_key[];
  v_emptied convsync.conversation_key[];
  v_page text;
begin
  -- Another copy of such a message, or what was done to it, may have come first and seemed to be of after the erasure. Whoever is
  -- bringing one at this moment is waited for; who comes later finds the digest.
  p_keys := convsync_api._lock_messages(p_proofs, p_keys);
  -- Whose amendments wait for it, locked late and so without waiting, as in _lock_owners.
  p_keys := p_keys || array(
    select row(l.page_id, l.sender_id, l.conversation_id, false)::convsync.conversation_key
    from (
      select c.page_id, c.sender_id, c.conversation_id
      from (
        select a.page_id, a.sender_id
        from unnest(p_proofs) f
        join convsync.pending_amendments a on a.page_id = f.page_id and a.message_id = f.message_id
        except
        select k.page_id, k.sender_id from unnest(p_keys) k
      ) t
      join convsync.messenger_conversations c on c.page_id = t.page_id and c.sender_id = t.sender_id
      for no key update of c nowait
    ) l);
  insert into convsync.erased_messages (page_id, message_digest)
  select distinct f.page_id, convsync_api._message_digest(f.page_id, f.message_id) as digest
  from unnest(p_proofs) f
  order by f.page_id, digest
  on conflict on constraint erased_messages_pkey do nothing;

  perform
  from unnest(p_proofs) f
  join convsync.pending_amendments a on a.page_id = f.page_id and a.message_id = f.message_id
  order by a.page_id, a.message_id
  for update of a;
  delete from convsync.pending_amendments a
  using unnest(p_proofs) f
  where a.page_id = f.page_id and a.message_id = f.message_id;
  v_waited := found;
  delete from convsync.webhook_losses l
  using unnest(p_proofs) f
  where l.page_id = f.page_id and l.message_id = f.message_id;
  with gone as (
    delete from convsync.contact_interaction_events e
    using unnest(p_proofs) f
    where e.page_id = f.page_id and e.message_id = f.message_id
    returning e.page_id, e.conversation_id, e.event_timestamp, (e.in_thread and e.deleted_at is null)::integer as live
  )
  select array_agg(row(g.page_id, null, g.conversation_id, null, null, 0, g.events, -g.live, true, g.at, null, null, null)::convsync.conversation_fold)
  into v_gone
  from (
    select d.page_id, d.conversation_id, count(*) as events, sum(d.live) as live, max(d.event_timestamp) as at
    from gone d
    group by d.page_id, d.conversation_id
  ) g;
  update convsync.messenger_conversations c
  set last_inbound_time = (
    select max(e.event_timestamp)
    from convsync.contact_interaction_events e
    where e.page_id = c.page_id and e.conversation_id = c.conversation_id
      and e.direction = 'in' and (e.in_thread or e.event_type = 'postback'))
  from unnest(v_gone) g
  where c.page_id = g.page_id and c.conversation_id = g.conversation_id and c.last_inbound_time <= g.inbound_at;

  -- Who was here only because of that goes with it, unless this call tells something else of them.
  select t.told, t.silent into v_told, v_silent from convsync_api._who_is_told(p_facts, p_keys) t;
  select array_agg(k) into v_emptied
  from unnest(v_silent) k
  join convsync.messenger_conversations c on c.page_id = k.page_id and c.conversation_id = k.conversation_id
  where (k.created or v_gone is not null or v_waited)
    and num_nonnulls(c.sender_name_at, c.thread_id_at, c.unread_count_at, c.snippet_at, c.can_reply_at, c.reported_count_at,
      c.updated_time_at, c.read_watermark, c.delivered_watermark, c.last_inbound_time, c.gone_confirmed_at, c.assignee, c.note,
      c.timezone) = 0
    and c.tags = '{}' and c.conversation_status = 'active'
    and not exists (
      select from convsync.contact_interaction_events e where e.page_id = c.page_id and e.conversation_id = c.conversation_id)
    and not exists (
      select from convsync.pending_amendments a where a.page_id = c.page_id and a.sender_id = c.sender_id);
  -- A row that was inserted for the lock only: nobody has seen it.
  delete from convsync.messenger_conversations c
  using unnest(v_emptied) k
  where k.created and c.page_id = k.page_id and c.conversation_id = k.conversation_id;
  for v_page in select distinct k.page_id from unnest(v_emptied) k where not k.created order by 1 loop
    perform convsync_api._scrub_conversations(v_page,
      array(select k.conversation_id from unnest(v_emptied) k where k.page_id = v_page and not k.created), p_now);
  end loop;

  deltas := array(
    select row(g.page_id, g.conversation_id, 'purged', 0, g.events_changed, g.live)::convsync.conversation_delta
    from unnest(v_gone) g
    where not exists (select from unnest(v_emptied) k where k.page_id = g.page_id and k.conversation_id = g.conversation_id));
  p_keys := v_told || array(
    select k
    from unnest(v_silent) k
    where exists (select from unnest(deltas) d where d.page_id = k.page_id and d.conversation_id = k.conversation_id));
end
$$;

create or replace function convsync_api._count_refused(p_refused convsync.fact[], p_source text, p_now timestamptz)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_page_id text;
  v_reason text;
  v_facts bigint;
begin
  for v_page_id, v_reason, v_facts in
    select f.page_id, f.reason, count(*) from unnest(p_refused) f group by f.page_id, f.reason order by f.page_id, f.reason
  loop
    -- Any part that is free, or a new one: a transaction that stays open holds up nobody's count, and no order can deadlock.
    update convsync.refused_facts r
    set facts = r.facts + v_facts, last_refused_at = greatest(r.last_refused_at, p_now)
    where r.page_id = v_page_id and r.source = p_source and r.reason = v_reason
      and r.part = (
        select o.part
        from convsync.refused_facts o
        where o.page_id = v_page_id and o.source = p_source and o.reason = v_reason
        order by o.part
        limit 1
        for no key update skip locked);
    if not found then
      insert into convsync.refused_facts (page_id, source, reason, facts, first_refused_at, last_refused_at)
      values (v_page_id, p_source, v_reason, v_facts, p_now, p_now);
    end if;
  end loop;
end
$$;

create or replace function convsync_api.list_refused_facts(p_pages text[] default null, p_limit integer default 100)
returns setof jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'page_id', r.page_id,
    'source', r.source,
    'reason', r.reason,
    'facts', sum(r.facts),
    'first_refused_at', min(r.first_refused_at),
    'last_refused_at', max(r.last_refused_at)
  )
  from convsync.refused_facts r
  where p_pages is null or r.page_id = any (p_pages)
  group by r.page_id, r.source, r.reason
  order by max(r.last_refused_at) desc, r.page_id, r.source, r.reason
  limit least(greatest(coalesce(p_limit, 100), 1), 1000);
$$;
comment on function convsync_api.list_refused_facts(text[], integer) is
$c$How many facts were refused and not stored, as JSON, the latest refusal first: page_id, source, reason (erased: of a person who was
erased, or of a message of theirs; purged: of before the Page's horizon), facts, first_refused_at, last_refused_at. A repetition counts again.
p_pages: only of these Pages; null: of all. p_limit 1 to 1000.$c$;

create or replace function convsync_api._is_erased(p_page_id text, p_sender_id text, p_at timestamptz)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from convsync.erased_contacts e
    where e.page_id = p_page_id and e.contact_digest = convsync_api._contact_digest(p_page_id, p_sender_id)
      and not coalesce(p_at > e.erased_at, false)
  );
$$;

create or replace function convsync_api._is_erased_thread(p_page_id text, p_sender_id text, p_thread_id text, p_updated_time timestamptz)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- A sync need not read on in it, and must not write down whose it is. A thread of several people stays the others'.
  select exists (select from convsync.erased_contacts e where e.page_id = p_page_id)
    and (convsync_api._is_erased(p_page_id, p_sender_id, p_updated_time)
      or convsync_api._is_erased(p_page_id, 'thread:' || p_thread_id, p_updated_time))
    and not exists (
      select from convsync.messenger_conversations c where c.page_id = p_page_id and c.thread_id = p_thread_id
    );
$$;

create or replace function convsync_api._mentions(p_told bytea, p_words text[])
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- 2001 is not mentioned in 12001; it is after a byte that encode wrote as \377.
  select exists (
    select
    from unnest(p_words) w (word)
    where encode(p_told, 'escape') ~ (
      case when w.word ~ '^[0-9]' then '(^|[^0-9]|\\[0-7]{3})' else '' end
      || regexp_replace(encode(convert_to(w.word, 'UTF8'), 'escape'), '([^A-Za-z0-9])', '\\\1', 'g')
      || case when w.word ~ '[0-9]$' then '($|[^0-9])' else '' end)
  );
$$;

create or replace function convsync_api._letter_text(p_raw bytea)
returns text
language plpgsql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return convert_from(p_raw, 'UTF8');
exception when character_not_in_repertoire or untranslatable_character then
  -- Other bytes part words. What was a backslash stays one; the digits after it are no byte's.
  return replace(regexp_replace(replace(encode(p_raw, 'escape'), '\\', chr(1)), '\\[0-7]{3}', ' ', 'g'), chr(1), '\');
end
$$;

create or replace function convsync_api._json_decoded(p_text text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Without JSON's escapes, wherever they are. What is no letter becomes a space.
  select case when strpos(p_text, '\') = 0 then p_text else (
    select string_agg(case
        when m.token[1] !~ '^\\' then m.token[1]
        when length(m.token[1]) = 12 then chr(65536 + (c.code - 55296) * 1024
          + ('x' || lpad(substr(m.token[1], 9), 8, '0'))::bit(32)::integer - 56320)
        when length(m.token[1]) = 6 then case when c.code = 0 or c.code between 55296 and 57343 then ' ' else chr(c.code) end
        when m.token[1] ~ '^\\[bfnrt]' then ' '
        else substr(m.token[1], 2) end, '' order by m.n)
    from regexp_matches(p_text,
      '(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]+)', 'g') with ordinality m (token, n)
    cross join lateral (
      select case when length(m.token[1]) in (6, 12) and m.token[1] ~ '^\\u[0-9a-fA-F]{4}'
        then ('x' || lpad(substr(m.token[1], 3, 4), 8, '0'))::bit(32)::integer end as code
    ) c
  ) end;
$$;

create or replace function convsync_api._letter_forms(p_text text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- As it is, and as JSON's readers have it: also of JSON in a string, and of that in another.
  select concat_ws(chr(10), p_text, nullif(a.decoded, p_text), nullif(b.decoded, a.decoded), nullif(c.decoded, b.decoded))
  from (select convsync_api._json_decoded(p_text) as decoded offset 0) a
  cross join lateral (select convsync_api._json_decoded(a.decoded) as decoded offset 0) b
  cross join lateral (select convsync_api._json_decoded(b.decoded) as decoded offset 0) c;
$$;

create or replace function convsync_api._letter_words(p_text text)
returns text[]
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Everything that may be an id: a string of JSON, a word, a number.
  select array(
    select w.word from regexp_split_to_table(p_text, '\\*"') w (word) where length(w.word) between 1 and 512
    union
    select w.word from regexp_split_to_table(p_text, '[][\s\\"''(){}<>,;:]+') w (word) where length(w.word) between 1 and 512
    union
    select n.digits[1] from regexp_matches(p_text, '[0-9]+', 'g') n (digits) where length(n.digits[1]) <= 512);
$$;

create or replace function convsync_api._letter_time(p_text text)
returns timestamptz
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_at timestamptz;
  v_times bigint;
  v_items bigint;
begin
  -- The earliest that an event of a webhook, a fact or a node of Graph tells; null if one of them tells none. In a text that
  -- somebody wrote JSON's quotes stand behind a backslash.
  select min(t.at), count(*) into v_at, v_times
  from (
    select case when n.told[1]::bigint < 100000000000 then to_timestamp(n.told[1]::bigint)
      else to_timestamp(n.told[1]::bigint / 1000.0) end as at
    from regexp_matches(p_text, '"timestamp"\s*:\s*"?([0-9]{1,15})\M', 'g') n (told)
    union all
    select n.told[1]::timestamptz
    from regexp_matches(p_text, '"(?:at|created_time|updated_time)"\s*:\s*"([-0-9]{10}T[0-9:.]{8,15}(?:Z|[-+][0-9:]{4,6}))"', 'g') n (told)
  ) t;
  select max(i.items) into v_items
  from (values ('sender'), ('recipient'), ('message')) k (name)
  cross join lateral (select count(*) as items from regexp_matches(p_text, '"' || k.name || '"\s*:', 'g') m) i;
  if v_times >= v_items then
    return v_at;
  end if;
  return null;
exception when data_exception then
  return null;
end
$$;

create or replace function convsync_api._what_is_kept(
  p_page_id text, p_reason text, p_raw bytea, out reason text, out raw bytea, out digest bytea
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  v_pages text[];
  v_text text;
  v_words text[];
  v_named text[];
  v_erased_at timestamptz;
  v_word text;
  v_key bytea;
begin
  reason := p_reason;
  raw := p_raw;
  digest := sha256(convert_to(p_reason, 'UTF8') || '\x00'::bytea || p_raw);
  -- One of an unknown Page may be of any. Most Pages have no tombstone: then nothing is looked for.
  v_pages := array(
    select p.page_id
    from convsync.pages p
    where (p_page_id = '' or p.page_id = p_page_id)
      and exists (select from convsync.erased_contacts e where e.page_id = p.page_id));
  if cardinality(v_pages) = 0 then
    return;
  end if;
  select s.erasure_key into strict v_key from convsync.installation_secrets s;
  if octet_length(p_raw) <= 262144 then
    v_text := convsync_api._letter_text(p_raw) || chr(10) || p_reason;
    v_words := convsync_api._letter_words(convsync_api._letter_forms(v_text));
  end if;
  if v_words is null or cardinality(v_words) * cardinality(v_pages) > 20000 then
    reason := p_reason || ' (bytes not kept: too long to look for somebody who was erased)';
  else
    -- The digests of _contact_digest and _message_digest, without a call for each.
    select array_agg(distinct h.word), max(h.erased_at) into v_named, v_erased_at
    from (
      select w.word, e.erased_at
      from unnest(v_words) w (word)
      cross join unnest(v_pages) p (page_id)
      cross join lateral (values (w.word), ('thread:' || w.word), ('user_ref:' || w.word)) s (sender_id)
      join convsync.erased_contacts e
        on e.page_id = p.page_id and e.contact_digest = sha256(v_key || convert_to(p.page_id || chr(31) || s.sender_id, 'UTF8'))
      union all
      -- What is said of such a message is of before, whenever it is said.
      select w.word, 'infinity'
      from unnest(v_words) w (word)
      cross join unnest(v_pages) p (page_id)
      join convsync.erased_messages m
        on m.page_id = p.page_id and m.message_digest = sha256(v_key || convert_to(p.page_id || chr(30) || w.word, 'UTF8'))
    ) h;
    if v_named is null or coalesce(convsync_api._letter_time(v_text) > v_erased_at, false) then
      return;
    end if;
    foreach v_word in array v_named loop
      reason := replace(reason, v_word, '#');
    end loop;
    if exists (select from unnest(v_named) n (word) where strpos(convsync_api._letter_forms(reason), n.word) > 0) then
      -- It is in there in escapes.
      reason := '#';
    end if;
    reason := reason || ' (bytes not kept: they name somebody who was erased)';
  end if;
  -- Told again it is the same letter, and who does not know the key cannot try out what it was.
  digest := sha256(v_key || digest);
  raw := '';
end
$$;

create or replace function convsync_api._lock_contact(p_page_id text, p_sender_id text)
returns convsync.conversation_key
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_inserted bigint;
  v_locked bigint;
begin
  -- Inserted if missing, then locked: whatever is being ingested for this person is waited for, and what comes after finds the
  -- tombstone. Again if another erasure has just taken the row.
  loop
    insert into convsync.messenger_conversations as c (page_id, sender_id)
    select p_page_id, p_sender_id
    where not exists (
      select from convsync.messenger_conversations o where o.page_id = p_page_id and o.sender_id = p_sender_id)
    on conflict on constraint messenger_conversations_one_per_sender do nothing
    returning c.conversation_id into v_inserted;
    select c.conversation_id into v_locked
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.sender_id = p_sender_id
    for update;
    exit when found;
  end loop;
  return row(p_page_id, p_sender_id, v_locked, v_inserted is not null)::convsync.conversation_key;
end
$$;

create or replace function convsync_api._letters_that_name(
  p_page_id text, p_words text[], p_conversations bigint[], p_senders text[], p_but bigint[]
)
returns bigint[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  -- Of the Page's letters and those of no known Page, but for some: those with one of the words, or a message of the conversations or senders.
  return array(
    select t.dead_letter_id
    from (
      -- offset 0: each letter is taken apart once, not wherever one of its columns is used.
      select f.dead_letter_id, f.raw || convert_to(chr(10) || f.forms, 'UTF8') as told, convsync_api._letter_words(f.forms) as words
      from (
        select l.dead_letter_id, l.raw, convsync_api._letter_forms(
          convsync_api._letter_text(l.raw) || chr(10) || l.reason || chr(10) || coalesce(l.resolution, '')) as forms
        from convsync.dead_letters l
        where l.page_id in (p_page_id, '') and l.dead_letter_id <> all (p_but)
        offset 0
      ) f
      offset 0
    ) t
    where convsync_api._mentions(t.told, p_words)
      or exists (
        select
        from unnest(t.words) w (word)
        join convsync.contact_interaction_events e on e.page_id = p_page_id and e.message_id = w.word
        where e.conversation_id = any (p_conversations))
      or exists (
        select
        from unnest(t.words) w (word)
        join convsync.pending_amendments a on a.page_id = p_page_id and a.message_id = w.word
        where a.sender_id = any (p_senders)));
end
$$;

create or replace function convsync_api.erase_contact(p_page_id text, p_sender_id text)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
set lock_timeout = '4s'
as $$
-- It holds the Page's runs while it waits for the person: not for as long as somebody's idle session has them locked.
declare
  v_now timestamptz;
  v_erased_at timestamptz;
  v_keys convsync.conversation_key[];
  v_ids bigint[];
  v_senders text[];
  v_threads text[];
  v_words text[];
  v_thread text;
  v_looked_through bigint[];
  v_named bigint[];
  v_events bigint;
  v_pending bigint;
  v_letters bigint;
begin
  if coalesce(p_page_id, '') = '' or coalesce(p_sender_id, '') in ('', p_page_id) then
    raise exception 'Page and person must be named' using errcode = 'ZC003', hint = 'p_sender_id';
  end if;
  if p_sender_id like 'erased:%' then
    raise exception 'this contact was erased' using errcode = 'ZC006';
  end if;
  -- The lock order: runs, Pages, conversations, the rest. A page of a run that is being applied is waited for.
  perform from convsync.sync_runs r
  where r.page_id = p_page_id and r.status in ('queued', 'running', 'paused')
  order by r.run_id
  for no key update;
  -- A Page that nobody knows is a slip of the pen: its person would be said to be erased, and stay where they are.
  if not exists (select from convsync.pages p where p.page_id = p_page_id) then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  v_keys := array[convsync_api._lock_contact(p_page_id, p_sender_id)];

  -- The threads that are this person's alone: Graph may name nobody in them one day, and list them as thread:<id>.
  v_threads := array(
    select t.thread_id
    from (
      select c.thread_id from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.sender_id = p_sender_id and c.thread_id is not null
      union
      select s.thread_id from convsync.sync_cursors s where s.page_id = p_page_id and s.sender_id = p_sender_id
    ) t
    where not exists (
      select from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.thread_id = t.thread_id and c.sender_id not in (p_sender_id, 'thread:' || t.thread_id))
    order by t.thread_id);
  foreach v_thread in array v_threads loop
    if 'thread:' || v_thread <> p_sender_id then
      v_keys := v_keys || convsync_api._lock_contact(p_page_id, 'thread:' || v_thread);
    end if;
  end loop;
  v_ids := array(select k.conversation_id from unnest(v_keys) k);
  v_senders := array(select k.sender_id from unnest(v_keys) k);
  v_words := array(
    select p_sender_id where p_sender_id not like 'thread:%'
    union select t.thread_id from unnest(v_threads) t (thread_id)
    union select substr(p_sender_id, 8) where p_sender_id like 'thread:_%'
    union select substr(p_sender_id, 10) where p_sender_id like 'user_ref:_%'
    union select c.sender_name from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.conversation_id = any (v_ids) and length(c.sender_name) > 3);
  -- Dead letters have no conversation to be locked: those that are being kept are waited for, and what comes after finds the tombstone.
  -- Nobody can keep one meanwhile, so all that are here already are looked through before that. (A letter's bytes never change.)
  v_looked_through := array(select d.dead_letter_id from convsync.dead_letters d where d.page_id in (p_page_id, ''));
  v_named := convsync_api._letters_that_name(p_page_id, v_words, v_ids, v_senders, array[]::bigint[]);
  perform pg_advisory_xact_lock(1668183670, 14);
  v_now := convsync_api._now();

  -- What came from a clock ahead of ours is of before as well; one that is days ahead is wrong.
  select least(v_now + interval '1 day', greatest(v_now,
      (select max(e.event_timestamp) from convsync.contact_interaction_events e
        where e.page_id = p_page_id and e.conversation_id = any (v_ids)),
      (select max(greatest(a.edited_at, a.unsent_at)) from convsync.pending_amendments a
        where a.page_id = p_page_id and a.sender_id = any (v_senders)),
      (select max(greatest(c.updated_time, c.read_watermark, c.delivered_watermark)) from convsync.messenger_conversations c
        where c.page_id = p_page_id and c.conversation_id = any (v_ids))))
  into strict v_erased_at;
  insert into convsync.erased_contacts as e (page_id, contact_digest, erased_at)
  select p_page_id, t.digest, v_erased_at
  from (select convsync_api._contact_digest(p_page_id, s.sender_id) as digest from unnest(v_senders) s (sender_id)) t
  order by t.digest
  on conflict on constraint erased_contacts_pkey do update set erased_at = greatest(e.erased_at, excluded.erased_at);

  -- What comes later of these messages will not wait for them.
  insert into convsync.erased_messages (page_id, message_digest)
  select p_page_id, t.digest
  from (
    select convsync_api._message_digest(p_page_id, e.message_id) as digest
    from convsync.contact_interaction_events e
    where e.page_id = p_page_id and e.conversation_id = any (v_ids) and e.event_timestamp <= v_erased_at
    union
    select convsync_api._message_digest(p_page_id, a.message_id)
    from convsync.pending_amendments a
    where a.page_id = p_page_id and a.sender_id = any (v_senders)
      and (a.edited_at <= v_erased_at or a.unsent_at <= v_erased_at or a.absent_at <= v_erased_at
        or exists (
          select from jsonb_each(a.reaction_marks) m
          where (m.value ->> 0)::numeric <= extract(epoch from v_erased_at) * 1000000))
  ) t
  order by t.digest
  on conflict on constraint erased_messages_pkey do nothing;

  -- Dead letters that name them, or a message of theirs.
  v_named := v_named || convsync_api._letters_that_name(p_page_id, v_words, v_ids, v_senders, v_looked_through);
  delete from convsync.dead_letters d
  where d.page_id in (p_page_id, '') and d.dead_letter_id = any (v_named);
  get diagnostics v_letters = row_count;

  -- And what the platform said to the Page of them: that it did is left.
  update convsync.page_events n
  set metadata = '{"erased": true}'
  from (
    select f.event_id, convert_to(f.forms, 'UTF8') as told, convsync_api._letter_words(f.forms) as words
    from (
      select o.event_id, convsync_api._letter_forms(o.metadata::text) as forms
      from convsync.page_events o
      where o.page_id = p_page_id
      offset 0
    ) f
    offset 0
  ) t
  where n.page_id = p_page_id and n.event_id = t.event_id
    and (convsync_api._mentions(t.told, v_words)
      or exists (
        select
        from unnest(t.words) w (word)
        join convsync.contact_interaction_events e on e.page_id = p_page_id and e.message_id = w.word
        where e.conversation_id = any (v_ids))
      or exists (
        select
        from unnest(t.words) w (word)
        join convsync.pending_amendments a on a.page_id = p_page_id and a.message_id = w.word
        where a.sender_id = any (v_senders)));

  delete from convsync.webhook_losses l
  using convsync.contact_interaction_events e
  where l.page_id = p_page_id and e.page_id = p_page_id and e.message_id = l.message_id and e.conversation_id = any (v_ids);
  delete from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.conversation_id = any (v_ids);
  get diagnostics v_events = row_count;
  delete from convsync.pending_amendments a where a.page_id = p_page_id and a.sender_id = any (v_senders);
  get diagnostics v_pending = row_count;

  -- What syncs wrote down of their threads. There is nothing left to read in them.
  delete from convsync.thread_proofs t where t.page_id = p_page_id and t.thread_id = any (v_threads);
  delete from convsync.sync_cursors s
  where s.page_id = p_page_id
    and ((s.kind in ('thread', 'confirm', 'control') and s.thread_id = any (v_threads)) or (s.kind = 'contact' and s.thread_id = any (v_senders)));
  update convsync.sync_cursors s
  set sender_id = null
  where s.page_id = p_page_id and s.sender_id = p_sender_id;
  update convsync.sync_cursors s
  set last_conversation_id = null
  where s.page_id = p_page_id and s.last_conversation_id = any (v_threads);
  update convsync.sync_cursors s
  set share_thread = null
  where s.page_id = p_page_id and s.share_thread = any (v_threads);
  update convsync.sync_batches b
  set thread_id = 'erased:' || v_ids[1], cursor = null, error = b.error - 'message', status = 'resolved', resolved_at = v_now
  where b.page_id = p_page_id
    and ((b.kind in ('thread', 'confirm', 'control') and b.thread_id = any (v_threads)) or (b.kind = 'contact' and b.thread_id = any (v_senders)));

  -- A row that was inserted for the lock only: nobody has seen it.
  delete from convsync.messenger_conversations c
  using unnest(v_keys) k
  where k.created and c.page_id = p_page_id and c.conversation_id = k.conversation_id;
  perform convsync_api._scrub_conversations(p_page_id, v_ids, v_now);
  return jsonb_build_object(
    'conversation_id', (select min(k.conversation_id)::text from unnest(v_keys) k where not k.created),
    'events', v_events, 'waiting_amendments', v_pending, 'dead_letters', v_letters, 'erased_at', v_erased_at);
end
$$;
comment on function convsync_api.erase_contact(text, text) is
$c$Erases a person from a Page: every message, the name, the thread, what people noted, waiting edits, dead letters that mention
them or a message of theirs, the words (metadata) of page events that do. The row of the conversation stays without a trace of the person. Facts up to erased_at are refused for
ever, and so is whatever is told of a message of before, also if that came first; later ones start a new contact. Refusals are counted
(list_refused_facts). What is not understood keeps no bytes if it names them or a message of before, unless each event in it tells a later time. Also for a person never seen: then conversation_id is null, and
what comes later of before is refused. Returns counts. Errors: ZC001 no such Page (one that was removed is one), ZC003, ZC006; 40001, 40P01
and 55P03 (something of theirs stays locked for four seconds) ask the caller to repeat the call.$c$;

create or replace function convsync_api.purge_events(p_page_id text, p_before timestamptz, p_limit integer default 10000)
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
set timezone = 'UTC'
set lock_timeout = '4s'
as $$
-- It holds many conversations while it waits for the next one: not for as long as somebody's idle session has that locked.
declare
  v_now timestamptz := convsync_api._now();
  v_limit integer := greatest(coalesce(p_limit, 10000), 1);
  v_horizon timestamptz;
  v_xid xid8 := pg_current_xact_id();
  v_conversations bigint[];
  v_more boolean;
  v_events bigint;
begin
  if p_before is null or not isfinite(p_before) or p_before > v_now then
    raise exception 'before must be in the past' using errcode = 'ZC003', hint = 'p_before';
  end if;
  -- One purge of a Page at a time.
  select p.purged_before into v_horizon
  from convsync.pages p
  where p.page_id = p_page_id
  for no key update;
  if not found then
    raise exception 'there is no Page %', p_page_id using errcode = 'ZC001';
  end if;
  if (v_horizon >= p_before) is not true then
    -- It is committed before anything is deleted: then who has the lock of a conversation has seen it (the second look in _ingest), or
    -- had the lock before, and is waited for below.
    update convsync.pages p
    set purged_before = p_before, updated_at = v_now
    where p.page_id = p_page_id;
    return jsonb_build_object('events', 0, 'conversations', 0, 'purged_before', p_before, 'more', true);
  end if;
  -- The oldest event of each, by the index of their threads: there is none by time, which every message would pay for.
  v_conversations := array(
    select c.conversation_id
    from convsync.messenger_conversations c
    cross join lateral (
      select
      from convsync.contact_interaction_events e
      where e.page_id = p_page_id and e.conversation_id = c.conversation_id and e.event_timestamp < v_horizon
      limit 1
    ) e
    where c.page_id = p_page_id
    limit v_limit + 1);
  if cardinality(v_conversations) <= v_limit then
    -- Last, words of before of which no event was ever stored.
    v_conversations := v_conversations || array(
      select c.conversation_id
      from convsync.messenger_conversations c
      where c.page_id = p_page_id and c.snippet is not null and c.updated_time < v_horizon
        and c.conversation_id <> all (v_conversations)
      limit v_limit + 1 - cardinality(v_conversations));
  end if;
  v_more := cardinality(v_conversations) > v_limit;
  v_conversations := v_conversations[:v_limit];
  -- Their events are read after that, in other statements: also those that whoever had the lock has just committed.
  select array_agg(l.conversation_id) into v_conversations
  from (
    select c.conversation_id
    from convsync.messenger_conversations c
    where c.page_id = p_page_id and c.conversation_id = any (v_conversations)
    order by c.page_id, c.sender_id
    for no key update
  ) l;
  delete from convsync.contact_interaction_events e
  where e.page_id = p_page_id and e.conversation_id = any (v_conversations) and e.event_timestamp < v_horizon;
  get diagnostics v_events = row_count;
  delete from convsync.page_events e where e.page_id = p_page_id and e.event_timestamp < v_horizon;
  delete from convsync.webhook_losses l where l.page_id = p_page_id and l.event_timestamp < v_horizon;
  -- Edits, reactions and unsends that still wait for a message: each part by its own time.
  update convsync.pending_amendments a
  set num_edit = case when a.edited_at >= v_horizon then a.num_edit end,
    edited_text = case when a.edited_at >= v_horizon then a.edited_text end,
    edited_at = case when a.edited_at >= v_horizon then a.edited_at end,
    unsent_at = case when a.unsent_at >= v_horizon then a.unsent_at end,
    absent_at = case when a.absent_at >= v_horizon then a.absent_at end,
    reaction_marks = (
      select jsonb_object_agg(m.key, m.value)
      from jsonb_each(a.reaction_marks) m
      where (m.value ->> 0)::numeric >= extract(epoch from v_horizon) * 1000000)
  where a.page_id = p_page_id and (
    a.edited_at < v_horizon or a.unsent_at < v_horizon or a.absent_at < v_horizon
    or exists (
      select from jsonb_each(a.reaction_marks) m
      where (m.value ->> 0)::numeric < extract(epoch from v_horizon) * 1000000));
  delete from convsync.pending_amendments a
  where a.page_id = p_page_id and a.num_edit is null and a.unsent_at is null and a.absent_at is null
    and a.reaction_marks is null;
  update convsync.messenger_conversations c
  set message_count = (
      select count(*) from convsync.contact_interaction_events e
      where e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread and e.deleted_at is null),
    last_message_id = l.message_id, last_message_time = l.event_timestamp, last_message = l.body,
    snippet = case when c.updated_time < v_horizon then null else c.snippet end,
    version = c.version + (c.version_xid is distinct from v_xid)::integer, version_xid = v_xid, updated_at = v_now
  from unnest(v_conversations) t (conversation_id)
  left join lateral (
    select e.message_id, e.event_timestamp, e.body
    from convsync.contact_interaction_events e
    where e.page_id = p_page_id and e.conversation_id = t.conversation_id and e.in_thread and e.deleted_at is null
    order by e.event_timestamp desc, e.message_id desc
    limit 1
  ) l on true
  where c.page_id = p_page_id and c.conversation_id = t.conversation_id;
  insert into convsync.conversation_changes as h (page_id, epoch, xid, conversation_id, version, kinds, changed_at)
  select c.page_id, convsync_api._epoch(), v_xid, c.conversation_id, c.version, '{purged}', v_now
  from convsync.messenger_conversations c
  where c.page_id = p_page_id and c.conversation_id = any (v_conversations)
  order by c.conversation_id
  on conflict on constraint conversation_changes_once_per_transaction do update
  set version = excluded.version, kinds = array(select distinct k from unnest(h.kinds || excluded.kinds) k order by k);
  return jsonb_build_object('events', v_events, 'conversations', coalesce(cardinality(v_conversations), 0),
    'purged_before', v_horizon,
    'more', v_more);
end
$$;
comment on function convsync_api.purge_events(text, timestamptz, integer) is
$c$Deletes a Page's events from before an instant, of at most p_limit conversations per call (repeat while more is true, each call in a
transaction of its own), and remembers the horizon: facts from before it are not stored any more, but counted (list_refused_facts). A call
that moves the horizon deletes nothing yet, and says more. What an ingest under way then stores of before, in a conversation where
nothing else was, goes with the next purge: the service repeats each Page's daily (list_horizons). Returns counts.
Errors: ZC001, ZC003; 40P01 and 55P03 (a conversation stays locked for four seconds) ask the caller to repeat the call.$c$;

create or replace function convsync_api.list_horizons()
returns table (page_id text, purged_before timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.page_id, p.purged_before from convsync.pages p where p.purged_before is not null order by p.page_id;
$$;
comment on function convsync_api.list_horizons() is
$c$The Pages that were ever purged, also removed ones, and before which instant: what purge_events is to be repeated with.$c$;

create or replace function convsync_api.expire_pending_amendments(p_days integer)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := convsync_api._expired_before(p_days, 13);
  v_gone bigint;
begin
  delete from convsync.pending_amendments a
  where a.first_seen_at < v_before;
  get diagnostics v_gone = row_count;
  return v_gone;
end
$$;
comment on function convsync_api.expire_pending_amendments(integer) is
$c$Deletes edits, reactions and unsends whose message has not come within p_days of the first of them; returns of how many messages.
Errors: ZC003.$c$;
