"""What a login that is no superuser may not yet do, as the statements an administrator has to run for it.

Managed databases give no superuser. Nothing here needs one: a login that may create schemas in the database,
and three roles that exist. Asked before anything is tried, so that an install does not stop half-way.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

# As migration 0001 makes them; roles belong to the cluster, so a restored database may have to do without.
ROLES: Final = ("convsync_service", "convsync_app", "convsync_reader")

_STANDING: LiteralString = """
select
  current_user::text as login,
  current_database()::text as database,
  pg_catalog.has_database_privilege(current_database(), 'create') as may_create_schemas,
  (select r.rolsuper or r.rolcreaterole from pg_catalog.pg_roles r where r.rolname = current_user)
    as may_create_roles,
  (select n.nspowner::regrole::text from pg_catalog.pg_namespace n where n.nspname = 'convsync') as owner,
  (select pg_catalog.pg_has_role(n.nspowner, 'usage')
   from pg_catalog.pg_namespace n where n.nspname = 'convsync') as is_owner,
  array(
    select wanted.name
    from pg_catalog.unnest(%s::text[]) with ordinality as wanted (name, place)
    where not exists (select from pg_catalog.pg_roles r where r.rolname = wanted.name)
    order by wanted.place
  ) as missing_roles
"""

_CALLS_NOTHING: LiteralString = """
select current_user::text
from pg_catalog.pg_namespace n
where n.nspname = 'convsync_api' and not pg_catalog.has_schema_privilege(n.oid, 'usage')
"""


def missing_to_install(connection: psycopg.Connection[Any]) -> list[str]:
    """The statements without which this login cannot install or upgrade; empty where it can."""
    row = connection.execute(_STANDING, [list(ROLES)]).fetchone()
    assert row is not None  # noqa: S101 - a select without from has a row
    login, database, may_create_schemas, may_create_roles, owner, is_owner, missing_roles = row
    statements = []
    if owner is not None and not is_owner:
        # regrole's text is quoted where it has to be.
        statements.append(sql.SQL("grant {} to {}").format(sql.SQL(owner), sql.Identifier(login)))
    if owner is None and not may_create_schemas:
        statements.append(
            sql.SQL("grant create on database {} to {}").format(
                sql.Identifier(database), sql.Identifier(login)
            )
        )
    if not may_create_roles:
        statements += [
            sql.SQL("create role {} nologin").format(sql.Identifier(role)) for role in missing_roles
        ]
    return [f"{statement.as_string(connection)};" for statement in statements]


def missing_to_serve(connection: psycopg.Connection[Any]) -> list[str]:
    """The statement without which this login may call no function; empty where it may, or there is none."""
    return [
        sql.SQL("grant convsync_service to {}").format(sql.Identifier(login)).as_string(connection) + ";"
        for (login,) in connection.execute(_CALLS_NOTHING).fetchall()
    ]


def create_roles(connection: psycopg.Connection[Any]) -> None:
    """The group roles, where this cluster has not got them."""
    known = {
        name
        for (name,) in connection.execute(
            "select rolname::text from pg_catalog.pg_roles where rolname = any (%s)", [list(ROLES)]
        )
    }
    for role in ROLES:
        if role not in known:
            # An install of another database may be first.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(role)))


def to_run(statements: Iterable[str]) -> str:
    """The statements as the end of a sentence."""
    return "an administrator of the database has to run:\n  " + "\n  ".join(statements)
