-- Stable views for applications: CRM screens, analytics, a Supabase front end. Columns are only ever added.
-- Role convsync_app may select from them; docs/read-views.md has the recipe for rows by owner_ref.

create or replace view convsync_read.pages with (security_barrier) as
select p.page_id, p.name, p.owner_ref, p.token_state, p.last_webhook_at, p.created_at
from convsync.pages p
where p.removed_at is null;
comment on view convsync_read.pages is 'A Page; owner_ref is your own reference to whom it belongs to.';

create or replace view convsync_read.conversations with (security_barrier) as
select c.page_id, c.conversation_id, c.sender_id, c.sender_name, c.thread_id, c.last_message, c.last_message_id,
  c.last_message_time, c.last_inbound_time, c.message_count, c.unread_count, c.snippet, c.can_reply, c.conversation_status,
  c.tags, c.assignee, c.note, c.read_watermark, c.delivered_watermark, c.history_complete_at, c.version, c.created_at, c.updated_at,
  p.owner_ref, c.timezone
from convsync.messenger_conversations c
join convsync.pages p on p.page_id = c.page_id
where c.deleted_at is null and p.removed_at is null;
comment on view convsync_read.conversations is
  'A conversation of a Page with one person, without erased and deleted ones.';

create or replace view convsync_read.events with (security_barrier) as
select e.page_id, e.message_id, e.conversation_id, e.event_type, e.direction, e.in_thread, e.event_timestamp, e.received_at,
  e.source, e.body, e.metadata, e.edited_at, coalesce(e.deleted_at, c.deleted_at) as deleted_at, p.owner_ref
from convsync.contact_interaction_events e
join convsync.messenger_conversations c on c.page_id = e.page_id and c.conversation_id = e.conversation_id
join convsync.pages p on p.page_id = e.page_id
where p.removed_at is null;
comment on view convsync_read.events is
  'A message or event. deleted_at is set for what was taken back or is gone, with its conversation too; in_thread is false for events that are no message.';

create or replace view convsync_read.page_events with (security_barrier) as
select e.page_id, e.event_id, e.event_type, e.event_timestamp, e.received_at, e.source, e.metadata, p.owner_ref
from convsync.page_events e
join convsync.pages p on p.page_id = e.page_id
where p.removed_at is null;
comment on view convsync_read.page_events is
  'What the platform told a Page of itself: policy notices, the roles of its apps.';
