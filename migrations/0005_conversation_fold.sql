-- What the functions hand from statement to statement: all that one call told and did to a conversation.
-- depends: 0004_retention_and_drift

set local lock_timeout = '10s';

create type convsync.conversation_fold as (
  page_id text,
  sender_id text,
  conversation_id bigint,
  created boolean,
  kinds text[],
  events_added integer,
  events_changed integer,
  live integer,
  changed boolean,
  inbound_at timestamptz,
  read_at timestamptz,
  delivered_at timestamptz,
  version bigint
);
