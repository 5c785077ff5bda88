-- Rows that were left alone by what they belong to. Must be empty.
--
--   convsync psql -f sql/ops/orphans.sql              or, in psql as the owner: \i sql/ops/orphans.sql
--
-- What it shows: a row per row that points at nothing. Most are impossible by foreign key, the rest is kept true by the
-- functions, so one means that data came in past them (a restore of some tables, a repair by hand) or that convsync has a bug.
--
--   event without conversation       its conversation is not there
--   conversation without Page        its Page is not there
--   change without conversation      the change feed tells of a conversation that is not there
--   amendment left behind            an edit, reaction or unsend that waits for a message that has come
--   loss without message             the loss meter counts a message that is not there
--   cursor without run               the cursor of a sync that is not there
--
-- When to worry: always, if a row is there for longer than the transaction that is at work. Run it again to be sure.
--
-- What to do: keep the output and a backup before changing anything, and do not delete rows by hand. What Graph still has comes
-- back by itself: convsync sync PAGE_ID --mode full, then convsync verify PAGE_ID.
--
-- It reads the whole mirror once: some seconds for each million events, without locking anybody out.

select o.finding, o.page_id, o.conversation_ids, o.detail
from convsync_ops.orphans o
order by 1, 2, 3, 4;
