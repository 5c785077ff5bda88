"""What a login finds of the database, installed or not, behind or not: the catalog alone is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg.rows import class_row

_PROBE: LiteralString = r"""
select current_setting('server_version_num')::integer as server_number,
  current_setting('server_version') as server_version,
  current_user::text as login, current_database()::text as database, r.rolsuper as superuser,
  exists (
    select from pg_namespace n where n.nspname = 'convsync' and pg_has_role(n.nspowner, 'usage')
  ) as owner,
  exists (
    select from pg_roles s where s.rolname = 'convsync_service' and pg_has_role(s.oid, 'usage')
  ) as member,
  to_regnamespace('convsync_api') is not null as installed,
  array(
    select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'convsync_api' and p.proname not like '\_%'
      and not (has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute'))
    order by 1
  ) as refused,
  array(
    select array[s.name, s.source] from pg_settings s
    where (s.name in ('fsync', 'full_page_writes', 'synchronous_commit')) and s.setting = 'off'
    order by 1
  ) as off,
  pg_is_in_recovery() as in_recovery
from pg_roles r
where r.rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Found:
    """`refused` are public functions that the login may not execute. `off` are settings that lose commits in
    a crash, each with where it was set. `owner`: the login has the rights of the schema's owner; `member`:
    those of convsync_service.
    """

    server_number: int
    server_version: str
    login: str
    database: str
    superuser: bool
    owner: bool
    member: bool
    installed: bool
    refused: list[str]
    off: list[list[str]]
    in_recovery: bool


@dataclass(frozen=True, slots=True)
class Probe:
    """`schema_version` is None where nothing is installed for this login. `ahead` is by how many seconds the
    database's clock is ahead of this machine's, give or take `within`.
    """

    found: Found
    schema_version: str | None
    ahead: float
    within: float


async def probe(url: str, now: Callable[[], float] = time.time) -> Probe:
    """Look at the database at `url`, as its login. Raises what psycopg raises."""
    return await asyncio.to_thread(_probe, url, now)


def _probe(url: str, now: Callable[[], float]) -> Probe:
    with psycopg.connect(
        url, application_name="convsync doctor", autocommit=True, connect_timeout=10, prepare_threshold=None
    ) as connection:
        with connection.cursor(row_factory=class_row(Found)) as cursor:
            found = cursor.execute(_PROBE).fetchone()
        assert found is not None  # noqa: S101 - the login's own role
        version = None
        if found.installed and not any(
            name.startswith("convsync_api.schema_version(") for name in found.refused
        ):
            try:
                row = connection.execute("select convsync_api.schema_version()").fetchone()
            except (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedTable):
                row = None  # half of an installation
            version = row[0] if row else None
        before = now()
        row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
        after = now()
        assert row is not None  # noqa: S101 - it always returns a row
        return Probe(found, version, row[0] - (before + after) / 2, (after - before) / 2)
