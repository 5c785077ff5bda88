-- The change feed: what changed, in an order in which nothing can still appear before what was read.
--
-- A row is written in the transaction that changed the conversation, with its xid. A reader gets only rows whose xid is
-- below every transaction still in progress, in the order (epoch, xid, change_id); so no later commit can slip in before a
-- position that was handed out. A plain sequence would lose rows: an older transaction may commit a lower number later.
-- The epoch rises when the data wakes up in another cluster (restore, promotion), where xids begin anew.
-- Old changes are deleted in that same order. How far, is remembered by Page: who comes back with a position from before is told.

create or replace function convsync_api._cluster()
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The timeline that is written now, as the name of its WAL file tells; the control file learns it only at the next checkpoint.
  select s.system_identifier || '/' || ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
  from pg_control_system() s;
$$;

create or replace function convsync_api.begin_feed_epoch()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_cluster text := convsync_api._cluster();
  v_latest convsync.feed_epochs;
begin
  perform pg_advisory_xact_lock(1668183670, 2);
  select e.* into v_latest from convsync.feed_epochs e order by e.epoch desc limit 1;
  if v_latest.cluster <> v_cluster then
    -- A dump brought transaction numbers that this cluster has yet to give: met again, they would pass for the same transaction.
    update convsync.messenger_conversations c
    set version_xid = null
    where c.version_xid >= pg_current_xact_id();
  end if;
  if v_latest.epoch is null or v_latest.cluster <> v_cluster then
    insert into convsync.feed_epochs as e (epoch, cluster, began_at)
    values (coalesce(v_latest.epoch, 0) + 1, v_cluster, convsync_api._now())
    returning e.* into strict v_latest;
  end if;
  return v_latest.epoch;
end
$$;
comment on function convsync_api.begin_feed_epoch() is
$c$The epoch of the change feed; begins a new one if this is another cluster than the last time (a restore, a promotion).
Called at every start of the service and every install.$c$;

create or replace function convsync_api._position(p_epoch integer, p_xid xid8, p_change_id bigint)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select format('%s-%s-%s', p_epoch, p_xid, p_change_id);
$$;

create or replace function convsync_api._check_position(p_position text, p_name text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_epoch integer;
  v_now_epoch integer;
begin
  if p_position is null or p_position !~ '^[0-9]{1,9}-[0-9]{1,19}-[0-9]{1,18}$' then
    raise exception '% is not a position of this feed', p_name using errcode = 'ZC003', hint = p_name;
  end if;
  v_epoch := split_part(p_position, '-', 1)::integer;
  v_now_epoch := convsync_api._epoch();
  -- One that nobody was given yet would be answered with nothing, for ever. In an older epoch nothing is given any more, so any will do.
  if v_epoch < v_now_epoch
    or v_epoch = v_now_epoch and split_part(p_position, '-', 2)::xid8 < pg_snapshot_xmax(pg_current_snapshot()) then
    return;
  end if;
  -- A standby may be behind the server that gave it; and where the data has just woken up in another cluster, its epoch is yet to begin.
  if pg_is_in_recovery() or v_epoch = v_now_epoch
    and exists (select from convsync.feed_epochs e where e.epoch = v_now_epoch and e.cluster <> convsync_api._cluster()) then
    return;
  end if;
  raise exception '% is a position that this feed has not reached', p_name using errcode = 'ZC003', hint = p_name;
end
$$;

create or replace function convsync_api.feed_end()
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Whatever is not visible yet comes after it: who reads the mirror from here on and then the changes after it misses nothing.
  select coalesce((
    select convsync_api._position(l.epoch, l.xid, l.change_id)
    from (
      (select c.epoch, c.xid, c.change_id
        from convsync.conversation_changes c
        where c.epoch < convsync_api._epoch() or c.xid < pg_snapshot_xmin(pg_current_snapshot())
        order by c.epoch desc, c.xid desc, c.change_id desc
        limit 1)
      union all
      select h.epoch, h.xid, h.change_id from convsync.feed_horizons h
    ) l
    order by l.epoch desc, l.xid desc, l.change_id desc
    limit 1
  ), convsync_api._position(0, '0', 0));
$$;
comment on function convsync_api.feed_end() is
$c$The position behind all that changes_after gives now. Taken before the mirror is read, it is where to go on afterwards: what changes
meanwhile comes after it. Never null: where nothing has changed yet it is the beginning.$c$;

create or replace function convsync_api.changes_after(p_after text, p_limit integer default 100, p_pages text[] default null)
returns table (
  next_after text, page_id text, conversation_id bigint, version bigint, kinds text[], at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
declare
  v_epoch integer := 0;
  v_xid xid8 := '0'::xid8;
  v_change_id bigint := 0;
  v_horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_now_epoch integer;
begin
  if p_after is not null and p_after <> '' then
    perform convsync_api._check_position(p_after, 'after');
    v_epoch := split_part(p_after, '-', 1)::integer;
    v_xid := split_part(p_after, '-', 2)::xid8;
    v_change_id := split_part(p_after, '-', 3)::bigint;
    if exists (
      select from convsync.feed_horizons h
      where (h.epoch, h.xid, h.change_id) > (v_epoch, v_xid, v_change_id) and (p_pages is null or h.page_id = any (p_pages))
    ) then
      raise exception 'changes after this position are not kept any more'
        using errcode = 'ZC006', detail = jsonb_build_object('position', convsync_api.feed_end())::text,
          hint = 'Read the mirror again, then go on after the position in the detail.';
    end if;
  end if;
  select coalesce(max(e.epoch), 1) into v_now_epoch from convsync.feed_epochs e;
  return query
  select convsync_api._position(c.epoch, c.xid, c.change_id), c.page_id, c.conversation_id, c.version, c.kinds, c.changed_at
  from convsync.conversation_changes c
  where (c.epoch, c.xid, c.change_id) > (v_epoch, v_xid, v_change_id)
    -- What an older epoch holds is complete: nothing of that cluster is in progress here.
    and (c.epoch < v_now_epoch or c.xid < v_horizon)
    and (p_pages is null or c.page_id = any (p_pages))
  order by c.epoch, c.xid, c.change_id
  limit least(greatest(coalesce(p_limit, 100), 1), 10000);
end
$$;
comment on function convsync_api.changes_after(text, integer, text[]) is
$c$The changes after a position (null or empty: from the beginning of what is kept), at most p_limit (1 to 10000), in an order in which nothing
can still appear before what was given: gap-free. One row per conversation per transaction that changed it. kinds says what:
message, postback, .., edit, reaction, unsend, absence, thread, gone, back, receipt, edit_by_person, erased, purged. next_after is the opaque position to go on
from. p_pages limits the feed to these Pages. Errors: ZC003 also for a position that the feed has not reached; ZC006 if changes after that position have expired (detail: position, from which to go on once the mirror was
read again).$c$;

create or replace function convsync_api.feed_position(p_consumer text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select f.last_position from convsync.feed_consumers f where f.consumer = p_consumer;
$$;
comment on function convsync_api.feed_position(text) is
  'Where a named consumer of the change feed stands; null for one that never said.';

create or replace function convsync_api.set_feed_position(p_consumer text, p_position text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(p_consumer, '') = '' or length(p_consumer) > 200 then
    raise exception 'the name of a consumer has 1 to 200 characters' using errcode = 'ZC003', hint = 'consumer';
  end if;
  perform convsync_api._check_position(p_position, 'position');
  insert into convsync.feed_consumers as f (consumer, last_position, updated_at)
  values (p_consumer, p_position, convsync_api._now())
  on conflict on constraint feed_consumers_pkey do update
  set last_position = excluded.last_position, updated_at = excluded.updated_at;
end
$$;
comment on function convsync_api.set_feed_position(text, text) is
$c$Remembers how far a named consumer has come: call it after the work is done, and a consumer that crashes sees its last changes
again (at least once). Errors: ZC003 also for a position that the feed has not reached.$c$;

create or replace function convsync_api.expire_changes(p_days integer, p_unread_days integer default null, p_limit integer default 10000)
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
  v_now timestamptz := convsync_api._now();
  v_now_epoch integer := convsync_api._epoch();
  v_unread_days integer := coalesce(p_unread_days, 3 * p_days);
  v_read_epoch integer;
  v_read_xid xid8;
  v_read_id bigint;
  v_end_epoch integer;
  v_end_xid xid8;
  v_end_id bigint;
  v_gone bigint;
begin
  if p_days is null or p_days not between 1 and 36500 then
    raise exception 'days must be 1 or more' using errcode = 'ZC003', hint = 'p_days';
  end if;
  if v_unread_days < p_days then
    raise exception 'what was not read is kept no shorter than what was' using errcode = 'ZC003', hint = 'p_unread_days';
  end if;
  -- One janitor at a time; another one finds nothing to do.
  if not pg_try_advisory_xact_lock(1668183670, 12) then
    return 0;
  end if;
  -- The named consumer that is furthest behind.
  select split_part(f.last_position, '-', 1)::integer, split_part(f.last_position, '-', 2)::xid8, split_part(f.last_position, '-', 3)::bigint
  into v_read_epoch, v_read_xid, v_read_id
  from convsync.feed_consumers f
  order by 1, 2, 3
  limit 1;
  -- In the order in which they are read, up to the first one that has to stay: what is left has no hole.
  select t.epoch, t.xid, t.change_id
  into v_end_epoch, v_end_xid, v_end_id
  from (
    select o.epoch, o.xid, o.change_id, bool_and(o.may_go) over (order by o.epoch, o.xid, o.change_id) as goes
    from (
      select c.epoch, c.xid, c.change_id,
        c.changed_at < v_now - p_days * interval '1 day'
          -- What is held back from its readers is held back from here too.
          and (c.epoch < v_now_epoch or c.xid < pg_snapshot_xmin(pg_current_snapshot()))
          and (v_read_epoch is null or (c.epoch, c.xid, c.change_id) <= (v_read_epoch, v_read_xid, v_read_id)
            or c.changed_at < v_now - v_unread_days * interval '1 day') as may_go
      from convsync.conversation_changes c
      order by c.epoch, c.xid, c.change_id
      limit least(greatest(coalesce(p_limit, 10000), 1), 100000)
    ) o
  ) t
  where t.goes
  order by t.epoch desc, t.xid desc, t.change_id desc
  limit 1;
  if not found then
    return 0;
  end if;
  insert into convsync.feed_horizons as h (page_id, epoch, xid, change_id, expired_at)
  select distinct on (c.page_id) c.page_id, c.epoch, c.xid, c.change_id, v_now
  from convsync.conversation_changes c
  where (c.epoch, c.xid, c.change_id) <= (v_end_epoch, v_end_xid, v_end_id)
  order by c.page_id, c.epoch desc, c.xid desc, c.change_id desc
  on conflict on constraint feed_horizons_pkey do update
  set epoch = excluded.epoch, xid = excluded.xid, change_id = excluded.change_id, expired_at = excluded.expired_at;
  delete from convsync.conversation_changes c
  where (c.epoch, c.xid, c.change_id) <= (v_end_epoch, v_end_xid, v_end_id);
  get diagnostics v_gone = row_count;
  return v_gone;
end
$$;
comment on function convsync_api.expire_changes(integer, integer, integer) is
$c$Deletes changes older than p_days from the feed, at most p_limit (1 to 100000) per call: repeat while it returns more than 0. What a named
consumer has not read yet stays until it is older than p_unread_days (default: three times p_days). Who reads on from before what was
deleted gets ZC006 from changes_after. Returns how many. Errors: ZC003.$c$;

create or replace function convsync_api.feed_lag()
returns table (held_back bigint, held_since timestamptz, blocking_pid integer, blocking_application text, blocking_since timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with horizon as (
    select pg_snapshot_xmin(pg_current_snapshot()) as xmin
  ), held as (
    select count(*) as held_back, min(c.changed_at) as held_since
    from convsync.conversation_changes c, horizon h
    where c.epoch = (select coalesce(max(e.epoch), 1) from convsync.feed_epochs e) and c.xid >= h.xmin
  ), culprit as (
    -- A backend's own xid is known as 32 bits; the oldest one in progress is the horizon's.
    select a.pid, a.application_name, a.xact_start
    from pg_stat_activity a, horizon h
    where a.backend_xid::text::bigint = h.xmin::text::bigint % 4294967296
    limit 1
  )
  select d.held_back, d.held_since, c.pid, c.application_name, c.xact_start
  from held d left join culprit c on d.held_back > 0;
$$;
comment on function convsync_api.feed_lag() is
$c$How many committed changes are held back because an older transaction of this server is still open, since when, and whose it is
(blocking_application and blocking_since only where the owner may see other sessions).$c$;
