-- A large mirror by set-based statements: what the growth line ingests into.

create schema bench_filler;

create function bench_filler.message_id(p_number bigint)
returns text
language sql
immutable
as $$
  -- 90 characters, unordered, as Messenger's own are.
  select 'm_' || translate(encode(sha512(convert_to('filler:' || p_number, 'UTF8')), 'base64'), E'+/=\n', '-_') || '0Q';
$$;

create function bench_filler.page_id(p_conversation bigint, p_pages text[])
returns text
language sql
immutable
as $$
  select p_pages[1 + p_conversation % cardinality(p_pages)];
$$;

create function bench_filler.said_at(p_conversation bigint, p_round integer)
returns timestamptz
language sql
immutable
as $$
  select timestamptz '2026-01-01 00:00Z' + make_interval(hours => p_round, secs => p_conversation * 0.01);
$$;

-- One event for each conversation, in the order of time, as webhooks bring them.
create function bench_filler.add_round(p_round integer, p_conversations bigint, p_pages text[])
returns void
language sql
volatile
as $$
  insert into convsync.contact_interaction_events
    (page_id, message_id, conversation_id, event_type, direction, event_timestamp, received_at, source, text_original, metadata)
  select bench_filler.page_id(n, p_pages), bench_filler.message_id(p_round * p_conversations + n), n + 1, 'message',
    case when p_round % 2 = 0 then 'in' else 'out' end, bench_filler.said_at(n, p_round), now(), 'webhook',
    'what was said in the middle of a conversation, number ' || n, '{"webhook": {}}'
  from generate_series(0, p_conversations - 1) n;
$$;

-- The conversations that belong to so many rounds; their ids are 1, 2, ..
create function bench_filler.add_conversations(p_rounds integer, p_conversations bigint, p_pages text[])
returns void
language sql
volatile
as $$
  insert into convsync.pages (page_id) select unnest(p_pages);
  insert into convsync.messenger_conversations (
    page_id, sender_id, sender_name, message_count, last_message, last_message_id, last_message_time, last_inbound_time, version
  )
  select bench_filler.page_id(n, p_pages), (6000000000000000 + n)::text, 'Person ' || n, p_rounds,
    'what was said in the middle of a conversation, number ' || n,
    bench_filler.message_id((p_rounds - 1) * p_conversations + n), bench_filler.said_at(n, p_rounds - 1),
    bench_filler.said_at(n, (p_rounds - 1) / 2 * 2), p_rounds
  from generate_series(0, p_conversations - 1) n
  order by n;
$$;
