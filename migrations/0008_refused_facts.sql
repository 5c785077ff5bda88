-- How many facts were refused, of people who were erased and of before a retention horizon: counted, not stored.
-- depends: 0007_page_statistics

set local lock_timeout = '10s';

create table convsync.refused_facts (
  page_id text collate "C" not null,
  source text not null,
  reason text not null,
  part bigint generated always as identity,
  facts bigint not null,
  first_refused_at timestamptz not null default now(),
  last_refused_at timestamptz not null default now(),
  constraint refused_facts_pkey primary key (page_id, source, reason, part),
  constraint refused_facts_source check (source in ('webhook', 'sync', 'sql', 'import')),
  constraint refused_facts_reason check (reason in ('erased', 'purged')),
  constraint refused_facts_facts check (facts >= 1)
);
comment on table convsync.refused_facts is
  'Facts that were refused, counted by why. In parts, as many as were ever written at once: nobody waits for a part that another has locked.';
