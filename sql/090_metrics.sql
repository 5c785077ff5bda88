-- What monitoring asks of the database, in one call: what waits for a person, what was refused, and how far the feed's readers are behind.

create or replace function convsync_api._age(p_since timestamptz, p_now timestamptz)
returns numeric
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select round(greatest(extract(epoch from p_now - coalesce(p_since, p_now)), 0), 3);
$$;

create or replace function convsync_api.metrics()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  with clock as (
    select convsync_api._now() as at, pg_snapshot_xmin(pg_current_snapshot()) as horizon, convsync_api._epoch() as epoch
  ), letters as (
    select d.source, case when d.reason like 'refused: %' then 'refused' else 'not_understood' end as reason,
      count(*) as open, min(d.first_seen_at) as since
    from convsync.dead_letters d
    where d.resolved_at is null
    group by 1, 2
  ), refused as (
    select r.source, r.reason, sum(r.facts) as facts
    from convsync.refused_facts r
    group by 1, 2
  ), consumers as (
    -- A name is whatever a caller says: the latest hundred, so that nobody can make this call slow.
    select f.consumer, split_part(f.last_position, '-', 1)::integer as epoch, split_part(f.last_position, '-', 2)::xid8 as xid,
      split_part(f.last_position, '-', 3)::bigint as change_id
    from convsync.feed_consumers f
    order by f.updated_at desc, f.consumer
    limit 100
  ), behind as (
    select s.consumer, b.behind, b.since
    from consumers s cross join clock k cross join lateral (
      select count(*) as behind, min(n.changed_at) as since
      from (
        -- What changes_after would give it next; not all of it, for one that never comes back.
        select c.changed_at
        from convsync.conversation_changes c
        where (c.epoch, c.xid, c.change_id) > (s.epoch, s.xid, s.change_id) and (c.epoch < k.epoch or c.xid < k.horizon)
        order by c.epoch, c.xid, c.change_id
        limit 10000
      ) n
    ) b
  )
  select jsonb_build_object(
    'dead_letters', coalesce((
      select jsonb_agg(jsonb_build_object(
        'source', l.source, 'reason', l.reason, 'open', l.open, 'oldest_seconds', convsync_api._age(l.since, k.at)
      ) order by l.source, l.reason) from letters l
    ), '[]'),
    'refused_facts', coalesce((
      select jsonb_agg(jsonb_build_object('source', r.source, 'reason', r.reason, 'facts', r.facts) order by r.source, r.reason)
      from refused r
    ), '[]'),
    'held_back', f.held_back,
    'held_seconds', convsync_api._age(f.held_since, k.at),
    'consumers', coalesce((
      select jsonb_agg(jsonb_build_object(
        'consumer', b.consumer, 'behind', b.behind, 'behind_seconds', convsync_api._age(b.since, k.at)
      ) order by b.consumer) from behind b
    ), '[]'),
    'webhook_losses', coalesce((
      select jsonb_agg(jsonb_build_object('page_id', l.page_id, 'last_day', l.lost) order by l.page_id)
      from (
        -- Those with the most, so that an answer stays short.
        select p.page_id, (convsync_api._loss_document(p) ->> 'last_day')::bigint as lost
        from convsync.pages p cross join clock c
        where exists (
          select from convsync.webhook_losses w where w.page_id = p.page_id and w.event_timestamp > c.at - interval '1 day')
        order by lost desc, p.page_id
        limit 100
      ) l
      where l.lost > 0
    ), '[]')
  )
  from clock k cross join convsync_api.feed_lag() f;
$$;
comment on function convsync_api.metrics() is
$c$What GET /metrics asks of the database: open dead letters by source and reason (refused by the database, not_understood), how many
facts were refused by source and reason (erased, purged), the changes the feed holds back, how far each named consumer of it is behind (counted up to 10000; the 100 last active), ages in seconds;
webhook_losses: messages of the last_day whose webhook never came, of the 100 Pages with the most.$c$;
