-- How two copies of one thing become one: every rule is a greatest under a total order, so that order,
-- repetition and batching do not matter. docs/merge-rules.md has them in one table.

create or replace function convsync_api._more_specific(p_a text, p_b text)
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- unknown < message < anything more specific (a postback that Graph lists as a message stays a postback).
  select case
    when p_a = p_b then p_a
    when p_a = 'unknown' then p_b
    when p_b = 'unknown' then p_a
    when p_a = 'message' then p_b
    when p_b = 'message' then p_a
    else greatest(p_a collate "C", p_b collate "C")
  end;
$$;

create or replace function convsync_api._merge_keys(p_a jsonb, p_b jsonb)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Each key a register of its own: the greater value in jsonb's order, in which more keys or items are greater.
  select case
    when p_a is null or p_a = p_b then p_b
    when p_b is null then p_a
    else (
      select coalesce(jsonb_object_agg(key, greatest(p_a -> key, p_b -> key)), '{}')
      from (select jsonb_object_keys(p_a) as key union select jsonb_object_keys(p_b)) k
    )
  end;
$$;

create or replace function convsync_api._merge_metadata(p_a jsonb, p_a_at timestamptz, p_b jsonb, p_b_at timestamptz)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- What Graph said is a register by the time it was observed; everything else one by its value. A copy that Graph did
  -- not tell is before every read; a read that said nothing is below every other of its instant ([] is jsonb's least).
  select convsync_api._merge_keys(p_a - '{graph,reactions}'::text[], p_b - '{graph,reactions}'::text[])
    || case when g.told ? 'graph' then jsonb_build_object('graph', g.told -> 'graph') else '{}' end
  from (
    select case
      when (coalesce(p_a_at, '-infinity'), coalesce(p_a -> 'graph', '[]')) >= (coalesce(p_b_at, '-infinity'), coalesce(p_b -> 'graph', '[]'))
        then p_a
      else p_b end as told
  ) g;
$$;

create or replace function convsync_api._reaction_mark(p_at timestamptz, p_action text, p_reaction text, p_emoji text)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- [microseconds, 1 = taken back, value]: jsonb compares arrays of one length item by item, so greatest() is the rule.
  select jsonb_build_array(
    (extract(epoch from p_at) * 1000000)::bigint,
    case p_action when 'unreact' then 1 else 0 end,
    case p_action when 'unreact' then '{}'::jsonb
      else jsonb_strip_nulls(jsonb_build_object('reaction', p_reaction, 'emoji', p_emoji)) end
  );
$$;

create or replace function convsync_api._fold_metadata(p_metadata jsonb, p_marks jsonb, p_graph_at timestamptz)
returns jsonb
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- metadata.reactions: what stands now. A Graph list overrides the older marks of every actor, listed or not.
  select case
    when p_marks is null and not coalesce(p_metadata -> 'graph' ? 'reactions', false) then p_metadata - 'reactions'
    else (
      select case when count(*) = 0 then p_metadata - 'reactions'
        else jsonb_set(p_metadata, '{reactions}', jsonb_agg(r.reaction order by r.reaction ->> 'actor' collate "C")) end
      from (
        select m.value -> 2 || jsonb_build_object('actor', m.key) as reaction
        from jsonb_each(coalesce(p_marks, '{}')) m
        where (m.value ->> 1) = '0'
          and (p_graph_at is null
            or (m.value ->> 0)::bigint > (extract(epoch from p_graph_at) * 1000000)::bigint)
        union all
        select g.value
        from jsonb_array_elements(
          case jsonb_typeof(p_metadata -> 'graph' -> 'reactions') when 'array' then p_metadata -> 'graph' -> 'reactions' else '[]' end
        ) g
        where p_graph_at is not null and jsonb_typeof(g.value) = 'object' and g.value ->> 'actor' is not null
          and not coalesce(
            (p_marks -> (g.value ->> 'actor') ->> 0)::bigint > (extract(epoch from p_graph_at) * 1000000)::bigint, false)
      ) r
    )
  end;
$$;

create or replace function convsync_api._same_but_for_signatures(p_a jsonb, p_b jsonb)
returns boolean
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Media links carry a signature that Meta renews with every read; a renewed one is kept, but changes nothing a person sees.
  select p_a = p_b
    or regexp_replace(p_a::text, '("https?://[^"?]*)\?[^"]*"', '\1"', 'g')
     = regexp_replace(p_b::text, '("https?://[^"?]*)\?[^"]*"', '\1"', 'g');
$$;

create or replace function convsync_api._outranks(p_new_sender text, p_old_sender text)
returns boolean
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- Whose message it is, when two copies disagree: a person with an id before a thread without one, then the greater id.
  select (p_new_sender not like 'thread:%', p_new_sender collate "C") > (p_old_sender not like 'thread:%', p_old_sender collate "C");
$$;
