-- What syncs have verified of each thread, how far back the list of a Page was last walked, and what a run still has to read.
-- depends: 0010_request_sizes

set local lock_timeout = '10s';

create table convsync.thread_proofs (
  page_id text collate "C" not null,
  thread_id text collate "C" not null,
  updated_time timestamptz,
  reported_count integer,
  newest_id text collate "C",
  verified_through timestamptz,
  verified_at timestamptz,
  verified_run_id bigint,
  full_read_at timestamptz,
  listed_at timestamptz,
  listed_run_id bigint,
  unreadable integer not null default 0,
  constraint thread_proofs_pkey primary key (page_id, thread_id),
  constraint thread_proofs_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint thread_proofs_thread_id_not_empty check (thread_id <> ''),
  constraint thread_proofs_verified check ((verified_at is null) = (verified_run_id is null)),
  constraint thread_proofs_listed check ((listed_at is null) = (listed_run_id is null)),
  constraint thread_proofs_unreadable check (unreadable >= 0)
) with (fillfactor = 80);
alter table convsync.thread_proofs alter column page_id set (n_distinct = 10);
comment on table convsync.thread_proofs is
  'What Graph said of a thread (updated, count, newest id) when a sync last read it as far as it had to be read, and when that was. Only a read that was completed moves it, never a webhook.';
comment on column convsync.thread_proofs.verified_through is 'Down from this message time everything is known without a gap.';
comment on column convsync.thread_proofs.verified_at is 'When the last such read began.';
comment on column convsync.thread_proofs.full_read_at is 'When the last read that went to the end of the thread began.';
comment on column convsync.thread_proofs.listed_at is 'When a full or reconciling sync last saw it in the list.';
comment on column convsync.thread_proofs.unreadable is 'Messages that Graph listed and did not return; 0 only after a read to the end without any.';

alter table convsync.pages add column list_walked_at timestamptz;
comment on column convsync.pages.list_walked_at is
  'When the last walk of the list without a gap began: what has not moved since was seen. Null: no walk yet, or the list was in no order.';

alter table convsync.sync_cursors
  add column stop_at timestamptz,
  add column listed_at timestamptz,
  add column read_began_at timestamptz,
  add column newest_at timestamptz,
  add column depth_at timestamptz,
  add column share_before timestamptz,
  add column share_thread text collate "C",
  add column oldest_updated timestamptz,
  add column out_of_order boolean not null default false;
comment on column convsync.sync_cursors.stop_at is 'A thread is read until a page reaches messages older than this; null: to its end.';
comment on column convsync.sync_cursors.listed_at is 'When the list told what this row says of the thread; null: no list did.';
comment on column convsync.sync_cursors.read_began_at is 'When the read of this thread began, with its nested slice or its first page.';
comment on column convsync.sync_cursors.newest_at is 'The newest message time that this read of the thread has seen.';
comment on column convsync.sync_cursors.depth_at is 'Of a reconcile''s list: messages newer than this are read again.';
comment on column convsync.sync_cursors.share_before is 'Of a reconcile''s list: its share are the threads last read to the end up to then, and up to share_thread at that very time; they are read to the end again.';
comment on column convsync.sync_cursors.oldest_updated is 'Of the list: the oldest update seen in this pass. What comes later and is newer shows that the list has no order.';

-- More kinds of work: a person without a known thread, and the direct read of a thread that the list does not show any more.
-- Rows that are there obey the narrower rule; to check them again would only block others.
-- squawk-ignore ban-drop-constraint
alter table convsync.sync_cursors drop constraint sync_cursors_kind;
alter table convsync.sync_cursors
  add constraint sync_cursors_kind check (kind in ('list', 'thread', 'contact', 'confirm')) not valid;
-- squawk-ignore ban-drop-constraint
alter table convsync.sync_batches drop constraint sync_batches_kind;
alter table convsync.sync_batches
  add constraint sync_batches_kind check (kind in ('list', 'thread', 'contact', 'confirm')) not valid;
