-- Anything stored twice, counted wrong or left alone. Must be empty.
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
--   event without conversation       its conversation is not there
--   amendment left behind            an edit, reaction or unsend that waits for a message that has come
--   success beside open work         a run that succeeded with an open cursor or a failed batch
--
-- When to worry: always, if a row is there for longer than the transaction that is at work. Run it again to be sure.
--
-- What to do: keep the output and a backup before changing anything. Do not delete rows by hand: versions, counts and the
-- change feed would not know. convsync verify PAGE_ID compares the Page with Graph.
--
-- It reads the whole mirror once: some seconds for each million events, without locking anybody out.

with recount as (
  select c.page_id, c.conversation_id, c.thread_id, c.sender_id, c.message_count, c.last_message_id, c.last_message_time, c.last_message,
    coalesce(n.live, 0) as live, l.message_id as newest_id, l.event_timestamp as newest_time, l.body as newest_body
  from convsync.messenger_conversations c
  left join (
    select e.page_id, e.conversation_id, count(*) as live
    from convsync.contact_interaction_events e
    where e.in_thread and e.deleted_at is null
    group by e.page_id, e.conversation_id
  ) n on n.page_id = c.page_id and n.conversation_id = c.conversation_id
  left join lateral (
    select e.message_id, e.event_timestamp, e.body
    from convsync.contact_interaction_events e
    where e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread and e.deleted_at is null
    order by e.event_timestamp desc, e.message_id desc
    limit 1
  ) l on true
)
select 'message stored twice' as finding, e.page_id, string_agg(distinct e.conversation_id::text, ', ') as conversation_ids,
  string_agg(e.message_id, ', ' order by e.message_id) as detail
from convsync.contact_interaction_events e
group by e.page_id, regexp_replace(e.message_id, '^m_mid\.', 'mid.')
having count(*) > 1
union all
select 'thread of several people', r.page_id, string_agg(r.conversation_id::text, ', ' order by r.conversation_id),
  format('thread %s of %s', r.thread_id, string_agg(r.sender_id, ', ' order by r.conversation_id))
from recount r
where r.thread_id is not null and r.live > 0
group by r.page_id, r.thread_id
having count(*) > 1
union all
select 'message_count is wrong', r.page_id, r.conversation_id::text, format('says %s, stored are %s', r.message_count, r.live)
from recount r
where r.message_count <> r.live
union all
select 'last message is wrong', r.page_id, r.conversation_id::text,
  format('says %s, the newest is %s', coalesce(r.last_message_id, 'none'), coalesce(r.newest_id, 'none'))
from recount r
where (r.last_message_id, r.last_message_time, r.last_message) is distinct from (r.newest_id, r.newest_time, r.newest_body)
union all
select 'event without conversation', e.page_id, e.conversation_id::text, e.message_id
from convsync.contact_interaction_events e
where not exists (
  select from convsync.messenger_conversations c where c.page_id = e.page_id and c.conversation_id = e.conversation_id
)
union all
select 'amendment left behind', a.page_id, e.conversation_id::text, a.message_id
from convsync.pending_amendments a
join convsync.contact_interaction_events e on e.page_id = a.page_id and e.message_id = a.message_id
union all
select 'success beside open work', r.page_id, null, format('run %s', r.run_id)
from convsync.sync_runs r
where r.status = 'succeeded'
  and (exists (select from convsync.sync_cursors s where s.page_id = r.page_id and s.run_id = r.run_id and not s.completed)
    or exists (select from convsync.sync_batches b where b.page_id = r.page_id and b.run_id = r.run_id and b.status = 'failed'))
order by 1, 2, 3, 4;
