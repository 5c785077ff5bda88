-- The planner must never take a Page for one row, as it does with thousands of Pages of a conversation each: then every index
-- that begins with page_id looks as good as the key. In force from the next ANALYZE on (autovacuum's, or that of ingest).
-- depends: 0006_page_events

set local lock_timeout = '10s';

alter table convsync.messenger_conversations alter column page_id set (n_distinct = 10);
alter table convsync.contact_interaction_events alter column page_id set (n_distinct = 10);
alter table convsync.pending_amendments alter column page_id set (n_distinct = 10);
