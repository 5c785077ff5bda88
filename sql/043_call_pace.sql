-- How fast a Page may be called now, and why not faster.

create or replace function convsync_api._pace(
  p_page convsync.call_budgets, p_app convsync.call_budgets, p_now timestamptz, out pace numeric, out reason text
)
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- The part of the rate that is used. At 100 percent of an allowance Meta refuses, for longer with each further call: from 75
  -- on it falls to a tenth. Answers that take more than 2 s on average say that Graph has enough to do: at 10 s a fifth.
  -- What was told counts for a while only: without a word nothing stays slow.
  select p.pace, p.reason
  from (
    select 1 - 0.9 * least(greatest(u.percent - 75, 0), 25) / 25 as pace, u.reason
    from (values
      (p_page.usage_percent, p_page.usage_until, 'usage'),
      (p_app.usage_percent, p_app.usage_until, 'app_usage')
    ) u (percent, counts_until, reason)
    where u.counts_until > p_now
    union all
    select greatest(2000 / greatest(p_page.response_ms, 2000), 0.2), 'slow_answers'
    where p_page.response_until > p_now
    union all
    select 1, null
  ) p
  where p.pace < 1 or p.reason is null
  order by p.pace, p.reason
  limit 1;
$$;

create or replace function convsync_api._budget_document(p_page_id text)
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
  select jsonb_build_object(
    'calls', coalesce(b.calls, 0),
    'calls_per_second', trim_scale(b.calls_per_second),
    'pace', coalesce(trim_scale(round(p.pace, 2)), 1),
    'pace_reason', p.reason,
    'usage_percent', case when b.usage_until > k.at then trim_scale(b.usage_percent) end,
    'app_usage_percent', case when a.usage_until > k.at then trim_scale(a.usage_percent) end,
    'response_ms', case when b.response_until > k.at then trim_scale(b.response_ms) end,
    'blocked_until', x.blocked_until,
    'block_scope', x.scope,
    'block_reason', x.reason
  )
  from (select convsync_api._now() as at) k
  left join convsync.call_budgets b on b.page_id = p_page_id
  left join convsync.call_budgets a on a.page_id = ''
  left join lateral convsync_api._pace(b, a, k.at) p on b.calls_per_second is distinct from 0
  left join lateral (
    select v.*
    from (values (b.blocked_until, 'page', b.block_reason), (a.blocked_until, 'app', a.block_reason)) v (blocked_until, scope, reason)
    where v.blocked_until > k.at
    order by v.blocked_until desc
    limit 1
  ) x on true;
$$;
