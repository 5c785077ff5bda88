-- How much may be asked of Graph at once: what works for a Page, and what it refused.
-- depends: 0009_contact_timezone

set local lock_timeout = '10s';

create table convsync.request_sizes (
  page_id text collate "C" not null,
  kind text not null,
  size_limit integer not null,
  nested integer not null,
  successes integer not null default 0,
  patience integer not null default 4,
  grown boolean not null default false,
  updated_at timestamptz not null default now(),
  constraint request_sizes_pkey primary key (page_id, kind),
  constraint request_sizes_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint request_sizes_kind check (kind in ('list', 'changes', 'thread', 'conversation')),
  constraint request_sizes_limit check (size_limit >= 1 and nested >= 0),
  constraint request_sizes_patience check (successes >= 0 and patience >= 1)
) with (fillfactor = 50);
comment on table convsync.request_sizes is
  'The size that works for one kind of request of a Page, where that is less than all; after `patience` successes it grows.';

create table convsync.refused_requests (
  page_id text collate "C" not null,
  kind text not null,
  place_digest bytea not null,
  size_limit integer not null,
  nested integer not null,
  refused_at timestamptz not null default now(),
  constraint refused_requests_pkey primary key (page_id, kind, place_digest),
  constraint refused_requests_page_fkey foreign key (page_id) references convsync.pages (page_id),
  constraint refused_requests_kind check (kind in ('list', 'changes', 'thread', 'conversation')),
  constraint refused_requests_limit check (size_limit >= 1 and nested >= 0)
);
create index refused_requests_by_age on convsync.refused_requests (page_id, refused_at);
comment on table convsync.refused_requests is
  'Requests that were too large for Graph: the smallest size it refused at each place, which is not asked for again. No id can be read from a digest.';
-- Two indexes begin with the Page: see 0007.
alter table convsync.refused_requests alter column page_id set (n_distinct = 10);
