-- A run and a Page as the JSON documents that HTTP and the commands show.

create or replace function convsync_api._run_document(p_run convsync.sync_runs)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'run_id', p_run.run_id::text,
    'page_id', p_run.page_id,
    'mode', p_run.mode,
    'status', p_run.status,
    'reason', p_run.reason,
    'success', p_run.status = 'succeeded',
    'partial', p_run.status = 'partial',
    'failed_batches', coalesce((
      select jsonb_agg(jsonb_build_object('batch', b.batch, 'kind', b.kind, 'thread_id', nullif(b.thread_id, ''),
        'cursor', b.cursor, 'attempts', b.attempts, 'error', b.error, 'progress', b.progress::text) order by b.batch)
      from convsync.sync_batches b
      where b.page_id = p_run.page_id and b.run_id = p_run.run_id and b.status = 'failed'
    ), '[]'),
    'conversations_seen', p_run.conversations_seen,
    'conversations_changed', p_run.conversations_changed,
    'messages_added', p_run.messages_added,
    'unreadable', p_run.unreadable,
    'deletions_proposed', p_run.deletions_proposed,
    'deletions_confirmed', p_run.deletions_confirmed,
    'calls', p_run.calls,
    'calls_left', convsync_api._sync_calls_left(p_run),
    'calls_per_second', case when p_run.status = 'running' then round(convsync_api._sync_pace(p_run), 2) end,
    'eta_seconds', convsync_api._sync_eta(p_run),
    'progress', p_run.progress::text,
    'open_threads', (
      select count(*) from convsync.sync_cursors s
      where s.page_id = p_run.page_id and s.run_id = p_run.run_id and s.kind = 'thread' and not s.completed and not s.failed
    ),
    'started_at', p_run.started_at,
    'finished_at', p_run.finished_at,
    'request_id', p_run.request_id
  );
$$;

create or replace function convsync_api._page_document(p_page convsync.pages)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'page_id', p_page.page_id,
    'name', p_page.name,
    'owner_ref', p_page.owner_ref,
    'token', p_page.token_state,
    'token_error', p_page.token_error,
    'added_at', p_page.added_at,
    'subscribed_at', p_page.subscribed_at,
    'last_webhook_at', p_page.last_webhook_at,
    'conversations', (select count(*) from convsync.messenger_conversations c where c.page_id = p_page.page_id),
    'messages', (select coalesce(sum(c.message_count), 0) from convsync.messenger_conversations c where c.page_id = p_page.page_id),
    'dead_letters', (select count(*) from convsync.dead_letters d where d.page_id = p_page.page_id and d.resolved_at is null),
    'budget', convsync_api._budget_document(p_page.page_id),
    'last_run', (
      select convsync_api._run_document(r) from convsync.sync_runs r
      where r.page_id = p_page.page_id order by r.run_id desc limit 1
    ),
    'last_success_at', (
      select max(r.finished_at) from convsync.sync_runs r where r.page_id = p_page.page_id and r.status = 'succeeded'
    ),
    'next_sync', (
      select jsonb_build_object('mode', n.mode, 'due_at', n.due_at)
      from convsync_api._planned_syncs(null, p_page.page_id) n
      order by n.due_at, n.mode limit 1
    ),
    'webhooks_last_hour', convsync_api._webhooks_last_hour(p_page.page_id),
    'certificate', convsync_api._certificate(p_page),
    'webhook_losses', convsync_api._loss_document(p_page)
  ) || convsync_api._freshness(p_page);
$$;
