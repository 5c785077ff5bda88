-- For operators: views of schema convsync_ops (role convsync_reader), and what is wrong with which command mends it.
--
-- docs/operations.md shows each with its output. The recipes in sql/ops/ choose and order what these views have. Columns are only
-- ever added, at the end.

-- Text as one word of a shell: a Page's id goes into commands that people copy.
create or replace function convsync_api._shell_word(p_text text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when p_text ~ '^[A-Za-z0-9_.:-]+$' then p_text else '''' || replace(p_text, '''', '''\''''') || '''' end;
$$;

create or replace view convsync_ops.open_syncs as
select r.page_id, r.run_id, r.mode, r.status,
  case
    when r.status = 'running' and r.lease_expires_at <= k.at then 'lease expired'
    when r.status = 'paused' and r.resume_after <= k.at then 'paused past its time'
  end as abandoned,
  case
    when r.status = 'running' and r.lease_expires_at <= k.at then k.at - r.lease_expires_at
    when r.status = 'paused' and r.resume_after <= k.at then k.at - r.resume_after
  end as abandoned_for,
  k.at - r.updated_at as idle_for,
  r.owner,
  case when l.completed then '(read to its end)' when l.failed then '(failed)' else coalesce(left(l.last_cursor, 40), '(front)') end as cursor,
  (
    select count(*) from convsync.sync_cursors t
    where t.page_id = r.page_id and t.run_id = r.run_id and t.kind = 'thread' and not t.completed and not t.failed
  ) as open_threads,
  case
    when p.token_state in ('none', 'invalid')
      then concat('no valid token', ' (' || p.token_error || ')', ': convsync page add ', convsync_api._shell_word(r.page_id), ' --token-stdin')
    when greatest(b.blocked_until, a.blocked_until) > k.at
      then 'Graph said to wait until ' || to_char(greatest(b.blocked_until, a.blocked_until) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"') || ': wait'
    when (r.status = 'running' and r.lease_expires_at <= k.at) or (r.status = 'paused' and r.resume_after <= k.at)
      then 'is convsync serve running? by hand: convsync sync ' || convsync_api._shell_word(r.page_id) || ' --mode ' || r.mode
    else 'its process lives: look into its log for retries and slow answers; restarting the service resumes the run'
  end as what_to_do
from convsync.sync_runs r
cross join (select convsync_api._now() as at) k
join convsync.pages p on p.page_id = r.page_id
left join convsync.call_budgets b on b.page_id = r.page_id
left join convsync.call_budgets a on a.page_id = ''
left join convsync.sync_cursors l on l.page_id = r.page_id and l.run_id = r.run_id and l.kind = 'list' and l.thread_id = ''
where r.status in ('queued', 'running', 'paused');
comment on view convsync_ops.open_syncs is
  'Runs that have not ended: whether somebody carries them (abandoned: nobody does), how long nothing was applied, and what to do.';

create or replace view convsync_ops.failed_batches as
select b.page_id, b.run_id, r.mode, r.status, b.batch, b.kind, nullif(b.thread_id, '') as thread_id,
  coalesce(left(b.cursor, 40), '(front)') as cursor, b.attempts, b.error ->> 'class' as class,
  concat_ws('/', b.error ->> 'code', b.error ->> 'subcode') as code, left(b.error ->> 'message', 80) as message,
  b.failed_at,
  (
    select min(s.run_id) from convsync.sync_runs s
    where s.page_id = b.page_id and s.status = 'succeeded' and s.mode in ('full', 'reconcile') and s.started_at > b.failed_at
  ) as read_since_by
from convsync.sync_batches b
join convsync.sync_runs r on r.page_id = b.page_id and r.run_id = b.run_id
where b.status = 'failed';
comment on view convsync_ops.failed_batches is
  'What syncs could not read after all their retries; read_since_by is a later walk of the Page that succeeded.';

create or replace view convsync_ops.budgets as
select b.page_id, b.calls, trim_scale(b.calls_per_second) as calls_per_second, trim_scale(round(c.pace, 2)) as pace, c.reason as pace_reason,
  case when b.usage_until > k.at then trim_scale(b.usage_percent) end as usage_percent,
  case when b.response_until > k.at then trim_scale(round(b.response_ms)) end as response_ms,
  case when b.blocked_until > k.at then b.blocked_until end as blocked_until,
  case when b.blocked_until > k.at then b.block_reason end as block_reason,
  b.last_status, concat_ws('/', b.last_error ->> 'code', b.last_error ->> 'subcode') as last_error,
  (select max(g.at) from unnest(b.grants) g (at)) as last_call_at
from convsync.call_budgets b
cross join (select convsync_api._now() as at) k
left join convsync.call_budgets a on a.page_id = ''
left join lateral convsync_api._pace(b, a, k.at) c on b.page_id <> '' and b.calls_per_second is distinct from 0;
comment on view convsync_ops.budgets is
  'The Graph calls of each Page, what slows them down, and until when Meta refuses them. The row with page_id empty is the app''s own.';

create or replace view convsync_ops.dead_letter_reasons as
select nullif(d.page_id, '') as page_id, d.source, left(d.reason, 80) as reason, count(*) as open, sum(d.attempts) as times,
  min(d.first_seen_at) as first_seen_at, max(d.last_seen_at) as last_seen_at, max(d.dead_letter_id) as newest_id
from convsync.dead_letters d
where d.resolved_at is null
group by 1, 2, 3;
comment on view convsync_ops.dead_letter_reasons is
  'The dead letters that wait for a person, by Page, source and reason. page_id is null where it is unknown.';

create or replace view convsync_ops.webhook_losses as
select p.page_id, l.hour, l.received, l.sent
from convsync.pages p
cross join (select convsync_api._now() as at) k
cross join lateral convsync_api.webhook_losses(p.page_id, k.at - interval '7 days') l
where p.removed_at is null;
comment on view convsync_ops.webhook_losses is
  'Messages of the last seven days whose webhook never came, by the hour in which they were sent: received from people, sent by the Page.';

create or replace view convsync_ops.sync_speed as
select s.page_id, s.mode, s.runs, s.succeeded, s.average, s.longest, s.calls, s.seconds_per_call, s.conversations, s.messages_added
from (
  select r.page_id, r.mode, count(*) as runs, count(*) filter (where r.status = 'succeeded') as succeeded,
    avg(r.finished_at - r.started_at) as average, max(r.finished_at - r.started_at) as longest, sum(r.calls) as calls,
    round(extract(epoch from sum(r.finished_at - r.started_at)) / nullif(sum(r.calls), 0), 2) as seconds_per_call,
    sum(r.conversations_seen) as conversations, sum(r.messages_added) as messages_added
  from convsync.sync_runs r
  cross join (select convsync_api._now() as at) k
  where r.finished_at > k.at - interval '7 days' and r.status in ('succeeded', 'partial', 'failed')
  group by r.page_id, r.mode
) s;
comment on view convsync_ops.sync_speed is
  'How long the syncs took that ended in the last seven days, by Page and mode. Two calls per second are the most that Meta allows a Page.';

create or replace view convsync_ops.threads as
select c.page_id, c.conversation_id, c.thread_id, c.message_count, c.reported_count, c.last_message_time, p.verified_at, p.unreadable,
  c.deleted_at, c.version
from convsync.messenger_conversations c
left join convsync.thread_proofs p on p.page_id = c.page_id and p.thread_id = c.thread_id;
comment on view convsync_ops.threads is
  'Each conversation by its size: stored messages, what Graph reported, and when a sync last verified it. Without names and texts.';

create or replace view convsync_ops.contradictions as
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
select 'success beside open work', r.page_id, null, format('run %s', r.run_id)
from convsync.sync_runs r
where r.status = 'succeeded'
  and (exists (select from convsync.sync_cursors s where s.page_id = r.page_id and s.run_id = r.run_id and not s.completed)
    or exists (select from convsync.sync_batches b where b.page_id = r.page_id and b.run_id = r.run_id and b.status = 'failed'));
comment on view convsync_ops.contradictions is
  'Anything stored twice or counted wrong. Must be empty. Reads the whole mirror.';

create or replace view convsync_ops.orphans as
select 'event without conversation' as finding, e.page_id, e.conversation_id::text as conversation_ids, e.message_id as detail
from convsync.contact_interaction_events e
where not exists (
  select from convsync.messenger_conversations c where c.page_id = e.page_id and c.conversation_id = e.conversation_id)
union all
select 'conversation without Page', c.page_id, c.conversation_id::text, c.sender_id
from convsync.messenger_conversations c
where not exists (select from convsync.pages p where p.page_id = c.page_id)
union all
select 'change without conversation', h.page_id, h.conversation_id::text, format('change %s', h.change_id)
from convsync.conversation_changes h
where not exists (
  select from convsync.messenger_conversations c where c.page_id = h.page_id and c.conversation_id = h.conversation_id)
union all
select 'amendment left behind', a.page_id, e.conversation_id::text, a.message_id
from convsync.pending_amendments a
join convsync.contact_interaction_events e on e.page_id = a.page_id and e.message_id = a.message_id
union all
select 'loss without message', l.page_id, null, l.message_id
from convsync.webhook_losses l
where not exists (
  select from convsync.contact_interaction_events e where e.page_id = l.page_id and e.message_id = l.message_id)
union all
select 'cursor without run', s.page_id, null, format('run %s', s.run_id)
from convsync.sync_cursors s
where not exists (select from convsync.sync_runs r where r.page_id = s.page_id and r.run_id = s.run_id);
comment on view convsync_ops.orphans is
  'Rows that were left alone by what they belong to. Must be empty. Reads the whole mirror.';

create or replace view convsync_ops.table_health as
select s.relname::text as table_name, s.n_live_tup as rows, s.n_dead_tup as dead_rows,
  round(100.0 * s.n_dead_tup / nullif(s.n_live_tup + s.n_dead_tup, 0), 1) as dead_percent,
  pg_table_size(s.relid) as table_bytes, pg_indexes_size(s.relid) as index_bytes, s.seq_scan as sequential_scans, s.idx_scan as index_scans,
  greatest(s.last_vacuum, s.last_autovacuum) as vacuumed_at, greatest(s.last_analyze, s.last_autoanalyze) as analyzed_at
from pg_stat_user_tables s
where s.schemaname = 'convsync' and s.relname !~ 'yoyo';
comment on view convsync_ops.table_health is
  'How large each table is, how much of it is dead rows that vacuum has yet to free, and when it was last vacuumed and analyzed.';

create or replace view convsync_ops.index_health as
select s.relname::text as table_name, s.indexrelname::text as index_name, pg_relation_size(s.indexrelid) as bytes, s.idx_scan as scans,
  x.indisunique as is_unique,
  case
    when not x.indisvalid or not x.indisready then 'invalid'
    when exists (
      select from pg_index y
      where y.indrelid = x.indrelid and y.indexrelid <> x.indexrelid and not x.indisunique and y.indisvalid
        and y.indkey::text = x.indkey::text and y.indclass::text = x.indclass::text and y.indoption::text = x.indoption::text
        and coalesce(pg_get_expr(y.indexprs, y.indrelid), '') = coalesce(pg_get_expr(x.indexprs, x.indrelid), '')
        and coalesce(pg_get_expr(y.indpred, y.indrelid), '') = coalesce(pg_get_expr(x.indpred, x.indrelid), '')
    ) then 'double'
    else 'good'
  end as state
from pg_stat_user_indexes s
join pg_index x on x.indexrelid = s.indexrelid
where s.schemaname = 'convsync' and s.relname !~ 'yoyo';
comment on view convsync_ops.index_health is
  'Each index: its size, how often it was used since statistics began, and whether it is good, invalid (a build that broke off) or double.';

create or replace function convsync_api.list_problems(p_page_id text default null)
returns table (page_id text, problem text, what text, why text, mend text)
language sql
stable
rows 10
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  with clock as (
    select convsync_api._now() as at
  ), page as (
    select p.page_id, convsync_api._shell_word(p.page_id) as word, p.added_at, p.token_state, p.token_error, p.last_webhook_at,
      p.token_state in ('unchecked', 'valid') as readable, j.freshness ->> 'freshness_reason' as stale_because,
      j.freshness ->> 'synced_at' as synced_at, convsync_api._budget_document(p.page_id) as budget,
      p.added_at is not null and convsync_api._webhooks_silent(p) as silent,
      (convsync_api._loss_document(p) ->> 'last_day')::bigint as lost,
      exists (select from convsync.sync_runs r where r.page_id = p.page_id and r.status in ('queued', 'running', 'paused')) as at_work
    from convsync.pages p
    cross join lateral (select convsync_api._freshness(p) as freshness) j
    where p.removed_at is null and (p_page_id is null or p.page_id = p_page_id)
  ), ended as (
    -- The last word on each kind of sync.
    select p.page_id, l.run_id, l.mode, l.status, l.reason, l.deletions_held_back, l.deletions_proposed,
      (select count(*) from convsync.sync_batches b where b.page_id = p.page_id and b.run_id = l.run_id and b.status = 'failed') as batches
    from page p
    cross join (values ('incremental'), ('walk')) k (kind)
    cross join lateral (
      select r.* from convsync.sync_runs r
      where r.page_id = p.page_id and r.exclusive_kind = k.kind and r.status in ('succeeded', 'partial', 'failed')
      order by r.run_id desc
      limit 1
    ) l
  ), found as (
    select 10 as place, p.page_id, 'page_not_added' as problem, 'Webhooks of this Page come, and it was never added.' as what,
      'What was written before they began is not mirrored, and people have no names.' as why,
      format('convsync page add %s --token-stdin', p.word) as mend
    from page p where p.added_at is null
    union all
    select 11, p.page_id, 'token_missing', 'The Page has no token.', 'No sync can read it: what no webhook tells is missing.',
      format('convsync page add %s --token-stdin', p.word)
    from page p where p.added_at is not null and p.token_state = 'none'
    union all
    select 12, p.page_id, 'token_invalid', coalesce(p.token_error, 'Meta refuses the Page''s token.'),
      'No sync can read the Page: what no webhook tells is missing.', format('convsync page add %s --token-stdin', p.word)
    from page p where p.token_state = 'invalid'
    union all
    select 20, p.page_id, 'calls_blocked',
      concat(format('Meta refuses calls of the %s until %s', case p.budget ->> 'block_scope' when 'app' then 'app' else 'Page' end,
        p.budget ->> 'blocked_until'), ': ' || nullif(p.budget ->> 'block_reason', ''), '.'),
      'Syncs wait for it; a call in between would make it longer.', 'nothing: it goes on by itself'
    from page p where p.budget ->> 'blocked_until' is not null
    union all
    select 30, s.page_id, 'sync_abandoned', format('Run %s (%s) is abandoned (%s), for %s.', s.run_id, s.mode, s.abandoned, date_trunc('second', s.abandoned_for)),
      'No process carries it, so nothing is being read. convsync serve takes such runs up by itself within seconds: it is not running, or cannot.',
      format('convsync sync %s --mode %s', p.word, s.mode)
    from convsync_ops.open_syncs s join page p on p.page_id = s.page_id
    where s.abandoned_for > interval '2 minutes' and p.readable and p.budget ->> 'blocked_until' is null
    union all
    select 31, s.page_id, 'sync_without_progress', format('Run %s (%s) has applied nothing for %s.', s.run_id, s.mode, date_trunc('second', s.idle_for)),
      format('Its process (%s) lives and cannot go on; its log says why.', coalesce(s.owner, 'none')),
      'convsync psql -f sql/ops/stuck_syncs.sql'
    from convsync_ops.open_syncs s join page p on p.page_id = s.page_id
    where s.abandoned is null and s.status in ('queued', 'running') and s.idle_for >= interval '10 minutes' and p.readable
      and p.budget ->> 'blocked_until' is null
    union all
    select 32, p.page_id, 'never_synced', 'The Page was never synced.', 'Only what webhooks have told since it was added is mirrored.',
      format('convsync sync %s --mode full', p.word)
    from page p where p.stale_because = 'never_synced' and p.readable and not exists (select from ended e where e.page_id = p.page_id)
    union all
    select 33, p.page_id, 'sync_overdue', format('The last sync that succeeded began at %s.', p.synced_at),
      'What no webhook told since is missing. convsync serve begins what is due: it is not running, or cannot.',
      format('convsync sync %s --mode incremental', p.word)
    from page p where p.stale_because = 'sync_overdue' and p.readable and not p.at_work
    union all
    select 40, e.page_id, 'deletions_held_back',
      format('Run %s (%s) missed %s conversations in the Page''s list, more than is credible; none was marked.', e.run_id, e.mode, e.deletions_proposed),
      'They may be gone, or the token sees less than before: look at the Page in Meta''s inbox first.',
      format('convsync deletions allow %s %s', p.word, e.run_id)
    from ended e join page p on p.page_id = e.page_id
    where e.deletions_held_back
    union all
    select 41, e.page_id, 'failed_batches', format('Run %s (%s) is %s: %s of its parts could not be read.', e.run_id, e.mode, e.status, e.batches),
      'What they stand for may be missing.', format('convsync sync %s --retry %s', p.word, e.run_id)
    from ended e join page p on p.page_id = e.page_id
    where e.batches > 0 and not e.deletions_held_back and p.readable
    union all
    select 42, e.page_id, 'sync_failed', concat(format('Run %s (%s) failed', e.run_id, e.mode), ': ' || e.reason, '.'),
      'What it should have read may be missing.', format('convsync sync %s --mode %s', p.word, e.mode)
    from ended e join page p on p.page_id = e.page_id
    where e.status = 'failed' and e.batches = 0 and not e.deletions_held_back and p.readable
    union all
    select 50, p.page_id, 'webhooks_silent',
      concat('Messages come by sync, and no webhook tells of them', '; the last one came at ' || to_char(p.last_webhook_at at time zone 'UTC',
        'YYYY-MM-DD HH24:MI:SS "UTC"'), '.'),
      'They are in the mirror minutes late, and edits, reactions and unsends days late.', format('convsync doctor %s', p.word)
    from page p where p.silent
    union all
    select 51, p.page_id, 'webhooks_lost', format('Messages of the last day whose webhook never came: %s.', p.lost),
      'A sync had to find them, minutes late.', 'convsync psql -f sql/ops/webhook_losses.sql'
    from page p where p.lost > 0 and not p.silent
    union all
    select 60, nullif(d.page_id, ''), 'dead_letters', format('Dead letters wait for a person: %s.', count(*)),
      'What they hold could not be understood, and is not in the mirror.',
      concat('convsync dead-letters list', ' ' || convsync_api._shell_word(nullif(d.page_id, '')))
    from convsync.dead_letters d
    where d.resolved_at is null and (p_page_id is null or d.page_id = p_page_id)
    group by d.page_id
    union all
    select 70, null, 'feed_held_back', format('%s changes are held back from readers of the change feed, since %s.', f.held_back, f.held_since),
      format('A transaction that is open for so long keeps them back%s.', ' (' || f.blocking_application || ')'),
      case when f.blocking_pid is null then 'convsync psql -c "select * from convsync_api.feed_lag()"'
        else format('convsync psql -c "select pg_terminate_backend(%s)"', f.blocking_pid) end
    from convsync_api.feed_lag() f cross join clock k
    where p_page_id is null and f.held_back > 0 and f.held_since < k.at - interval '5 minutes'
    union all
    select 71, null, 'outgoing_paused', format('The outgoing webhook %s is paused since %s: %s.', w.name, w.paused_at,
        case w.pause_reason when 'changes_expired' then 'changes it was not told of have expired' else 'what it was to be told could not be delivered' end),
      'Its receiver hears of no change until it goes on.',
      format('convsync outgoing resume %s%s', convsync_api._shell_word(w.name), case w.pause_reason when 'changes_expired' then ' --skip' end)
    from convsync.outgoing_webhooks w
    where p_page_id is null and w.state = 'paused'
  )
  select f.page_id, f.problem, f.what, f.why, f.mend
  from found f
  order by f.page_id nulls last, f.place, f.what;
$$;
comment on function convsync_api.list_problems(text) is
$c$What is wrong with a Page (null: with every Page and the installation) as far as the database can tell: a name (problem), what is wrong,
why it matters, and the command that mends it. Empty: nothing. page_id is null for what belongs to no Page. Errors: none; a Page that is
not there has no problems.$c$;

create or replace view convsync_ops.problems as
select l.page_id, l.problem, l.what, l.why, l.mend from convsync_api.list_problems() l;
comment on view convsync_ops.problems is
  'What is wrong, why it matters, and the command that mends it. Empty: nothing.';

create or replace view convsync_ops.page_health as
select p.page_id, p.name, j.freshness ->> 'freshness' as freshness, j.freshness ->> 'freshness_reason' as why,
  (j.freshness ->> 'synced_at')::timestamptz as synced_at, p.token_state as token,
  (
    select concat(r.mode, ' ', r.status, ' (' || r.reason || ')') from convsync.sync_runs r
    where r.page_id = p.page_id order by r.run_id desc limit 1
  ) as last_sync,
  (j.proof ->> 'conversations')::bigint as conversations, (j.proof ->> 'complete')::bigint as complete,
  (j.proof ->> 'unreadable')::bigint as unreadable, p.list_walked_at, p.last_webhook_at,
  (convsync_api._loss_document(p) ->> 'last_day')::bigint as lost_last_day,
  (select count(*) from convsync.dead_letters d where d.page_id = p.page_id and d.resolved_at is null) as dead_letters,
  (select string_agg(l.problem, ', ') from convsync_api.list_problems(p.page_id) l) as problems
from convsync.pages p
cross join lateral (select convsync_api._freshness(p) as freshness, convsync_api._certificate(p) as proof) j
where p.removed_at is null;
comment on view convsync_ops.page_health is
  'A row per Page: how fresh it is and why not fresher, how much of it is proved, what was lost, and the names of its problems.';
