-- What ingest is compared with, in a schema of its own. Written anew from how these work, not copied.

create schema bench_message_db;

-- message-db: a message store whose one write function takes an advisory lock per category, reads the stream's
-- version, checks the expected one, and inserts at the next position.
-- https://github.com/message-db/message-db#write-a-message
create table bench_message_db.messages (
  global_position bigint generated always as identity primary key,
  position bigint not null,
  time timestamp not null default (now() at time zone 'utc'),
  stream_name text not null,
  type text not null,
  data jsonb,
  metadata jsonb,
  id uuid not null default gen_random_uuid()
);

create function bench_message_db.category(p_stream_name text)
returns text
language sql
immutable
as $$
  select split_part(p_stream_name, '-', 1);
$$;

create unique index messages_id on bench_message_db.messages (id);
create unique index messages_stream on bench_message_db.messages (stream_name, position);
create index messages_category on bench_message_db.messages
  (bench_message_db.category(stream_name), global_position, bench_message_db.category(metadata ->> 'correlationStreamName'));

create function bench_message_db.write_message(
  p_id uuid, p_stream_name text, p_type text, p_data jsonb, p_metadata jsonb default null, p_expected_version bigint default null
)
returns bigint
language plpgsql
volatile
as $$
declare
  v_version bigint;
begin
  perform pg_advisory_xact_lock(('x' || left(md5(bench_message_db.category(p_stream_name)), 16))::bit(64)::bigint);

  select coalesce(max(m.position), -1) into v_version
  from bench_message_db.messages m
  where m.stream_name = p_stream_name;
  if p_expected_version is not null and p_expected_version <> v_version then
    raise exception 'wrong expected version: % (stream: %, stream version: %)', p_expected_version, p_stream_name, v_version;
  end if;

  insert into bench_message_db.messages (id, stream_name, position, type, data, metadata)
  values (p_id, p_stream_name, v_version + 1, p_type, p_data, p_metadata);
  return v_version + 1;
end
$$;

-- The algorithm that convsync replaces: it upserts the conversation, then inserts the event, each with a commit of its
-- own, without knowing a message it has seen.
create schema bench_old;
create table bench_old.messenger_conversations (
  id bigint generated always as identity primary key,
  page_id text not null,
  sender_id text not null,
  last_message text,
  last_message_time timestamptz,
  conversation_status text not null default 'active',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (page_id, sender_id)
);
create table bench_old.contact_interaction_events (
  id bigint generated always as identity primary key,
  conversation_id bigint not null references bench_old.messenger_conversations,
  event_type text not null,
  event_timestamp timestamptz not null,
  metadata jsonb not null
);
