-- Moving another database in: whose rows were adopted, and when.
-- depends: 0018_outgoing

set local lock_timeout = '10s';

alter table convsync.pages add column adopted_at timestamptz;
comment on column convsync.pages.adopted_at is
  'When another database first told something of this Page; null: never, and then no event is looked at for being hearsay.';

alter table convsync.messenger_conversations add column adopted_at timestamptz;
comment on column convsync.messenger_conversations.adopted_at is
  'When another database first told of this person. Their status is taken over then, and not again.';
