-- The largest threads.
--
--   convsync psql -f sql/ops/largest_threads.sql      or, in psql as the owner: \i sql/ops/largest_threads.sql
--
-- What it shows: the twenty conversations with the most messages: how many are stored, how many Graph last reported, when the
-- newest was sent, when a sync last verified the thread, how many of it Graph lists and does not return. No names, no texts.
--
-- When to worry: reported is far above stored, and verified_at is old or empty.
--
-- What to do: a call reads 100 messages of one thread, so one of 100,000 takes 1,000 calls once and few afterwards. To see how far a
-- sync is with it: convsync status PAGE_ID. What is missing: convsync verify PAGE_ID.

select t.page_id, t.conversation_id, t.thread_id, t.message_count as stored, t.reported_count as reported,
  date_trunc('second', t.last_message_time) as newest, date_trunc('second', t.verified_at) as verified_at, t.unreadable
from convsync_ops.threads t
where t.deleted_at is null
order by t.message_count desc, t.page_id, t.conversation_id
limit 20;
