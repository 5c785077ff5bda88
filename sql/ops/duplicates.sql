-- Anything stored twice or counted wrong. Must be empty. (What was left alone: orphans.sql.)
--
--   convsync psql -f sql/ops/duplicates.sql           or, in psql as the owner: \i sql/ops/duplicates.sql
--
-- What it shows: a row per contradiction in the mirror. Each is impossible by constraint or kept true by the functions, so a
-- row means that data came in past them (a restore, a repair by hand, rows adopted from elsewhere) or that convsync has a bug.
--
--   message stored twice             two ids that are one message: m_mid.X (newer versions of Graph) and mid.X (older ones)
--   thread of several people         one thread_id, several conversations with messages in them
--   message_count is wrong           not the number of messages of the thread that are stored and not deleted
--   last message is wrong            not the newest of those
--   success beside open work         a run that succeeded with an open cursor or a failed batch
--
-- When to worry: always, if a row is there for longer than the transaction that is at work. Run it again to be sure.
--
-- What to do: keep the output and a backup before changing anything. Do not delete rows by hand: versions, counts and the
-- change feed would not know. convsync verify PAGE_ID compares the Page with Graph.
--
-- It reads the whole mirror once: some seconds for each million events, without locking anybody out.

select c.finding, c.page_id, c.conversation_ids, c.detail
from convsync_ops.contradictions c
order by 1, 2, 3, 4;
