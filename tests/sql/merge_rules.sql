-- Every merge rule, tested alone: the same facts in every order, each of them twice, and all in one call.
begin;
select plan(62);
set local timezone = 'UTC';
set local convsync.now = '2026-03-01T20:00:00Z';

-- Facts of one contact and one message on one day

create function pg_temp.t(p_time text) returns text language sql immutable as $$ select '2026-03-01T' || p_time || 'Z' $$;
create function pg_temp.told(p_text text, p_at text, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'message', 'sender_id', '2001', 'message_id', 'm_1', 'direction', 'in', 'event_type', 'message',
    'at', pg_temp.t(p_at), 'text', p_text, 'metadata', '{}'::jsonb) || p_more
$$;
create function pg_temp.read(p_text text, p_at text, p_observed_at text, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select pg_temp.told(p_text, p_at) || jsonb_build_object('observed_at', pg_temp.t(p_observed_at)) || p_more
$$;
create function pg_temp.edit(p_number integer, p_text text, p_at text) returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'edit', 'sender_id', '2001', 'message_id', 'm_1', 'at', pg_temp.t(p_at), 'num_edit', p_number, 'text', p_text)
$$;
create function pg_temp.react(p_action text, p_emoji text, p_at text, p_actor text default '2001') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'reaction', 'sender_id', '2001', 'message_id', 'm_1', 'at', pg_temp.t(p_at), 'actor_id', p_actor,
    'action', p_action, 'emoji', p_emoji)
$$;
create function pg_temp.unsend(p_at text, p_more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'unsend', 'sender_id', '2001', 'message_id', 'm_1', 'at', pg_temp.t(p_at)) || p_more
$$;
create function pg_temp.seen(p_what text, p_at text) returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'watermark', 'sender_id', '2001', 'what', p_what, 'at', pg_temp.t(p_at))
$$;
create function pg_temp.thread(p_observed_at text, p_fields jsonb, p_thread_id text default 't_1') returns jsonb language sql immutable as $$
  select jsonb_build_object('kind', 'thread', 'sender_id', '2001', 'thread_id', p_thread_id, 'observed_at', pg_temp.t(p_observed_at), 'fields', p_fields)
$$;

-- Everything the mirror holds of a Page, but for what may differ: numbers given out, versions, clocks, where it was learnt first.
create function pg_temp.state(p_page_id text) returns jsonb language sql as $$
  select jsonb_build_array(
    (select jsonb_agg(to_jsonb(c) - '{page_id,conversation_id,version,version_xid,last_synced_version,created_at,updated_at}'::text[]
      order by c.sender_id) from convsync.messenger_conversations c where c.page_id = p_page_id),
    (select jsonb_agg(to_jsonb(e) - '{page_id,conversation_id,source,received_at}'::text[] || jsonb_build_object('of', c.sender_id)
      order by e.message_id) from convsync.contact_interaction_events e
      join convsync.messenger_conversations c using (page_id, conversation_id) where e.page_id = p_page_id),
    (select jsonb_agg(to_jsonb(a) - '{page_id,first_seen_at}'::text[] order by a.message_id)
      from convsync.pending_amendments a where a.page_id = p_page_id))
$$;

-- What p_expression (of the conversation c and its events e) comes to, whatever the order, repetition and batching of the
-- facts. Outcomes that differ are all told; 'hidden' is said where only what the expression does not show differs.
create sequence pg_temp.page_number;
grant all on sequence pg_temp.page_number to public;
create function pg_temp.always(p_facts jsonb, p_expression text) returns text language plpgsql as $$
declare
  v_order integer[];
  v_way text;
  v_page text;
  v_facts jsonb;
  v_fact jsonb;
  v_outcome text;
  v_outcomes text[] := '{}';
  v_states jsonb[] := '{}';
begin
  for v_order in
    with recursive p as (
      select '{}'::integer[] as o
      union all
      select p.o || n from p, generate_series(0, jsonb_array_length(p_facts) - 1) n where n <> all (p.o)
    )
    select o from p where cardinality(o) = jsonb_array_length(p_facts)
  loop
    foreach v_way in array '{one by one,each twice,all at once}'::text[] loop
      v_page := 'p' || nextval('pg_temp.page_number');
      select jsonb_agg(p_facts -> i || jsonb_build_object('page_id', v_page) order by n) into v_facts
      from unnest(v_order) with ordinality o (i, n);
      if v_way = 'all at once' then
        perform convsync_api.ingest(v_facts, 'sync');
      else
        for v_fact in select f from jsonb_array_elements(v_facts) f loop
          perform convsync_api.ingest(
            case v_way when 'each twice' then jsonb_build_array(v_fact, v_fact) else jsonb_build_array(v_fact) end, 'webhook');
        end loop;
      end if;
      execute 'select coalesce(string_agg(distinct (' || p_expression || ')::text, '' + ''), ''null'')
        from convsync.messenger_conversations c
        left join convsync.contact_interaction_events e using (page_id, conversation_id) where page_id = $1'
      into v_outcome using v_page;
      if v_outcome <> all (v_outcomes) then
        v_outcomes := v_outcomes || v_outcome;
      end if;
      if pg_temp.state(v_page) <> all (v_states) then
        v_states := v_states || pg_temp.state(v_page);
      end if;
    end loop;
  end loop;
  return array_to_string(v_outcomes, ' OR ')
    || case when cardinality(v_outcomes) = 1 and cardinality(v_states) > 1 then ' hidden: ' || array_to_string(v_states, E'\n') else '' end;
end $$;

-- A message that is told twice

select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00:00.512'), pg_temp.read('hi', '10:00:00', '11:00')), 'e.event_timestamp'),
  '2026-03-01 10:00:00.512+00', 'event_timestamp is the greater: the webhook knows milliseconds, Graph only seconds');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00:00.512'), pg_temp.read('hi', '10:00:00', '11:00')), 'c.message_count'),
  '1', 'and it counts once');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00', '{"event_type": "postback"}'), pg_temp.read('A', '10:00', '11:00')), 'e.event_type'),
  'postback', 'a postback that Graph lists as a message stays a postback');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00', '{"event_type": "unknown"}'), pg_temp.read('A', '10:00', '11:00')), 'e.event_type'),
  'message', 'what was unknown becomes known');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00', '{"event_type": "order"}'), pg_temp.told('A', '10:00', '{"event_type": "referral"}')), 'e.event_type'),
  'referral', 'of two special kinds the greater name');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00'), pg_temp.told('A', '10:00', '{"direction": "out"}')), 'e.direction'),
  'out', 'an echo makes a message one of the Page');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00', '{"in_thread": false}'), pg_temp.told('A', '10:00')), 'e.in_thread, c.message_count'),
  '(t,1)', 'what one source calls a message of the thread is one');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00', '{"in_thread": false, "event_type": "referral"}')), 'c.message_count, c.last_message_id'),
  '(0,)', 'what is no message of the thread is neither counted nor the last message');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00'), pg_temp.told('A', '10:00', '{"sender_id": "thread:t_1"}')),
    $$c.sender_id, c.message_count, e.message_id$$),
  '(2001,1,m_1) + (thread:t_1,0,)', 'a message belongs to the person with an id, not to the thread without one');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('A', '10:00'), pg_temp.told('A', '10:00', '{"sender_id": "2002"}')),
    $$c.sender_id, c.message_count, c.last_message_id$$),
  '(2001,0,) + (2002,1,m_1)', 'of two people to the greater id, and the counts follow');

-- Text: what was written first, edits, what Graph shows

select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.told(null, '10:00')), 'e.body'), 'hi', 'no text never takes a text away');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.told('', '10:00')), 'e.body'), 'hi', 'nor does an empty one');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.told('hj', '10:00')), 'e.body'), 'hj', 'of two webhook texts the greater');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.read('hello', '10:00', '11:00')), 'e.body'), 'hello', 'what Graph shows later is newer');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.read('', '10:00', '11:00')), 'e.body'), 'hi', 'unless it shows none');
select is(pg_temp.always(jsonb_build_array(pg_temp.read('b', '10:00', '11:00'), pg_temp.read('a', '10:00', '12:00'), pg_temp.read('', '10:00', '13:00')), 'e.body'),
  'a', 'of what Graph showed the last that had a text');
select is(pg_temp.always(jsonb_build_array(pg_temp.read('a', '10:00', '11:00'), pg_temp.read('b', '10:00', '11:00')), 'e.body'),
  'b', 'and of two at one instant the greater');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'hello', '10:05')), 'e.body'),
  'hello', 'an edit, even if it comes before its message');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'b', '10:06'), pg_temp.edit(2, 'a', '10:05')), 'e.body'),
  'a', 'the edit with the higher number, not the later one');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'a', '10:05'), pg_temp.edit(1, 'b', '10:05')), 'e.body'),
  'b', 'of two equal numbers and times the greater text');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'hello', '12:00'), pg_temp.read('hi', '10:00', '11:00')), 'e.body'),
  'hello', 'what Graph showed before an edit does not undo it');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'hello', '12:00'), pg_temp.read('hey', '10:00', '13:00')), 'e.body'),
  'hey', 'what it shows after an edit is a later one');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.edit(1, 'hello', '10:05')), 'c.last_message'),
  'hello', 'last_message follows the edit');

-- Reactions: metadata.reactions is what stands now

select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('react', '❤', '10:01')), $$e.metadata -> 'reactions'$$),
  '[{"actor": "2001", "emoji": "❤"}]', 'a reaction, even if it comes before its message');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('react', '❤', '10:01'), pg_temp.react('unreact', null, '10:02')), $$e.metadata$$),
  '{}', 'taken back');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('react', '❤', '10:01'), pg_temp.react('unreact', null, '10:01')), $$e.metadata$$),
  '{}', 'also at the same instant');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('unreact', null, '10:02'), pg_temp.react('react', '👍', '10:03')), $$e.metadata -> 'reactions'$$),
  '[{"actor": "2001", "emoji": "👍"}]', 'and given again');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('react', '❤', '10:01'), pg_temp.react('react', '👍', '10:01', '100')), $$e.metadata -> 'reactions'$$),
  '[{"actor": "100", "emoji": "👍"}, {"actor": "2001", "emoji": "❤"}]', 'each actor has one of their own');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.react('react', '❤', '10:01'),
    pg_temp.read('hi', '10:00', '11:00', '{"metadata": {"graph": {"reactions": [{"actor": "100", "emoji": "😮"}]}}}')), $$e.metadata -> 'reactions'$$),
  '[{"actor": "100", "emoji": "😮"}]', 'a list that Graph shows later replaces what it does not list');
select is(pg_temp.always(jsonb_build_array(pg_temp.react('react', '❤', '12:00'),
    pg_temp.read('hi', '10:00', '11:00', '{"metadata": {"graph": {"reactions": [{"actor": "100", "emoji": "😮"}, {"actor": "2001", "emoji": "👍"}]}}}')), $$e.metadata -> 'reactions'$$),
  '[{"actor": "100", "emoji": "😮"}, {"actor": "2001", "emoji": "❤"}]', 'a reaction after it replaces what it lists of that actor');

-- Unsending is final

select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.unsend('10:05'), pg_temp.read('hi', '10:00', '11:00')), 'e.deleted_at, c.message_count'),
  '("2026-03-01 10:05:00+00",0)', 'an unsent message stays unsent, whoever shows it later');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.unsend('10:05'), pg_temp.unsend('10:04')), 'e.deleted_at'),
  '2026-03-01 10:04:00+00', 'since the first time it was said');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.told('yo', '10:01', '{"message_id": "m_2"}'), pg_temp.unsend('10:05', '{"message_id": "m_2"}')),
    'c.last_message, c.last_message_id, c.message_count'),
  '(hi,m_1,1)', 'the last message is then the one before it');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00'), pg_temp.unsend('10:05'), pg_temp.edit(1, 'x', '10:06')), 'c.last_message_id, c.message_count'),
  '(,0)', 'or none');

-- The last message

select is(pg_temp.always(jsonb_build_array(pg_temp.told('a', '10:00'), pg_temp.told('b', '10:00', '{"message_id": "m_2"}'), pg_temp.told('c', '09:00', '{"message_id": "m_3"}')),
    'c.last_message, c.last_message_id, c.message_count'),
  '(b,m_2,3)', 'the last message has the greatest time, then the greatest id');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('a', '10:00'), pg_temp.told('b', '11:00', '{"message_id": "m_2", "direction": "out"}')), 'c.last_inbound_time'),
  '2026-03-01 10:00:00+00', 'last_inbound_time is that of the last message from the person');

-- Receipts

select is(pg_temp.always(jsonb_build_array(pg_temp.seen('read', '10:00'), pg_temp.seen('read', '11:00'), pg_temp.seen('delivered', '12:00')), 'c.read_watermark, c.delivered_watermark'),
  '("2026-03-01 11:00:00+00","2026-03-01 12:00:00+00")', 'a watermark is the greatest of its kind');

-- The thread as Graph lists it: each requested field by the time it was observed

select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"name": "Bea"}'), pg_temp.thread('11:00', '{"name": "Ann"}')), 'c.sender_name'), 'Ann', 'the name that was seen last');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"name": "Bea"}'), pg_temp.thread('11:00', '{"name": null}')), 'c.sender_name'), 'Bea', 'a name never becomes empty');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"name": "Bea"}'), pg_temp.thread('10:00', '{"name": "Ann"}')), 'c.sender_name'), 'Bea', 'of two at one instant the greater');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"unread_count": 3}'), pg_temp.thread('11:00', '{"unread_count": null}')), 'c.unread_count'), '0', 'unread_count that is requested but absent is 0');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"unread_count": 3}'), pg_temp.thread('11:00', '{}')), 'c.unread_count'), '3', 'what was not requested says nothing');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"snippet": "x", "can_reply": true}'), pg_temp.thread('11:00', '{"snippet": null, "can_reply": null}')), 'c.snippet, c.can_reply'), '(,)', 'a snippet and can_reply can become null');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"snippet": "x", "can_reply": true}'), pg_temp.thread('10:00', '{"snippet": null, "can_reply": null}')), 'c.snippet, c.can_reply'), '(x,t)', 'but not at the same instant');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"reported_count": 9}'), pg_temp.thread('11:00', '{"reported_count": 8}')), 'c.reported_count'), '8', 'reported_count may fall');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('10:00', '{"updated_time": "2026-03-01T09:00:00Z"}'), pg_temp.thread('11:00', '{"updated_time": "2026-03-01T08:00:00Z"}')), 'c.updated_time'),
  '2026-03-01 08:00:00+00', 'so may updated_time');
select is(pg_temp.always(jsonb_build_array(pg_temp.thread('11:00', '{}', 't_1'), pg_temp.thread('10:00', '{}', 't_2')), 'c.thread_id'), 't_1', 'the thread_id that was seen last');

-- metadata: what each source said is kept apart

select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00', '{"metadata": {"webhook": {"a": 1}}}'), pg_temp.read('hi', '10:00', '11:00', '{"metadata": {"graph": {"b": 2}}}')), 'e.metadata'),
  '{"graph": {"b": 2}, "webhook": {"a": 1}}', 'webhook and Graph stand side by side');
select is(pg_temp.always(jsonb_build_array(pg_temp.read('hi', '10:00', '12:00', '{"metadata": {"graph": {"b": 1}}}'), pg_temp.read('hi', '10:00', '11:00', '{"metadata": {"graph": {"b": 2}}}')), 'e.metadata'),
  '{"graph": {"b": 1}}', 'of Graph the last that was seen');
select is(pg_temp.always(jsonb_build_array(pg_temp.told('hi', '10:00', '{"metadata": {"webhook": {"a": 1}}}'), pg_temp.told('hi', '10:00', '{"metadata": {"webhook": {"a": 2}}}')), 'e.metadata'),
  '{"webhook": {"a": 2}}', 'of everything else the greater value');

-- The rules as functions

select results_eq(
  $$select convsync_api._more_specific(a, b) from (values ('unknown', 'message'), ('message', 'unknown'), ('message', 'postback'),
    ('postback', 'unknown'), ('a', 'b'), ('message', 'message')) v (a, b)$$,
  $$values ('message'), ('message'), ('postback'), ('postback'), ('b'), ('message')$$, '_more_specific: unknown, message, anything else');
select is(convsync_api._merge_keys('{"a": 1, "b": 2}', '{"a": 2, "c": 3}'), '{"a": 2, "b": 2, "c": 3}', '_merge_keys: each key the greater value');
select is(convsync_api._merge_keys(null, '{"a": 1}'), '{"a": 1}', '_merge_keys: nothing on one side');
select is(convsync_api._merge_metadata('{"graph": 1, "x": 1}', '2026-03-01T11:00Z', '{"graph": 2, "x": 2}', '2026-03-01T10:00Z'),
  '{"graph": 1, "x": 2}', '_merge_metadata: Graph by time, the rest by value');
select is(convsync_api._reaction_mark('1970-01-01T00:00:01.5Z', 'react', 'love', null), '[1500000, 0, {"reaction": "love"}]', '_reaction_mark: a reaction');
select is(convsync_api._reaction_mark('1970-01-01T00:00:01.5Z', 'unreact', 'love', '❤'), '[1500000, 1, {}]', '_reaction_mark: taken back, whatever it was');
select is(convsync_api._fold_metadata('{"graph": {"reactions": []}, "reactions": [1]}', null, '2026-03-01T10:00Z'), '{"graph": {"reactions": []}}',
  '_fold_metadata: an empty list of Graph''s leaves no reaction');
select is(convsync_api._same_but_for_signatures('{"url": "https://x.example/a.jpg?oh=1"}', '{"url": "https://x.example/a.jpg?oh=2"}'), true,
  '_same_but_for_signatures: a renewed link is the same');
select is(convsync_api._same_but_for_signatures('{"url": "https://x.example/a.jpg?oh=1"}', '{"url": "https://x.example/b.jpg?oh=1"}'), false,
  '_same_but_for_signatures: another file is not');
select is(convsync_api._outranks('2001', 'thread:t_1'), true, '_outranks: a person before a thread');
select is(convsync_api._outranks('2001', '2001'), false, '_outranks: nobody outranks themselves');
select results_eq($$select convsync_api._now()$$, $$values ('2026-03-01T20:00:00Z'::timestamptz)$$, '_now() is the time of the test');

select * from finish();
rollback;
