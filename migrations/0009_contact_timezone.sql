-- The time zone of a person, as people and programs say it: their hours are told in it.
-- depends: 0008_refused_facts

set local lock_timeout = '10s';

alter table convsync.messenger_conversations add column timezone text;
comment on column convsync.messenger_conversations.timezone is
  'An IANA name such as Europe/Berlin; null while nobody has said it. The platform does not tell it.';
