"""The database a command works on: the configured one, or the embedded one started for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from convsync.database import installer
from convsync.database.embedded import EmbeddedPostgres
from convsync.settings import Settings

SERVICE_LOGIN = "convsync_login"


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the database is, for whom. They may hold passwords: never print them."""

    service: str
    owner: str
    psql: Path | None = None


@asynccontextmanager
async def open_database(settings: Settings, *, migrate: bool = True) -> AsyncIterator[Urls]:
    """The database, current if `migrate`. An embedded server is started, and left (or stopped) at the end."""
    if settings.database_url is not None:
        service = settings.database_url.get_secret_value()
        owner = settings.migrate_database_url.get_secret_value() if settings.migrate_database_url else service
        if migrate:
            await installer.migrate(owner)
        yield Urls(service, owner)
        return
    server = EmbeddedPostgres(settings.data_dir)
    await asyncio.to_thread(server.start)
    try:
        if migrate:
            await installer.migrate(server.owner_url)
            await asyncio.to_thread(_ensure_login, server.owner_url)
        yield Urls(server.service_url(SERVICE_LOGIN), server.owner_url, server.psql_path)
    finally:
        await asyncio.shield(asyncio.to_thread(server.stop))


def _ensure_login(owner_url: str) -> None:
    """The embedded service's login: a member of convsync_service, so it can call functions and no more."""
    create = sql.SQL("create role {} login in role convsync_service").format(sql.Identifier(SERVICE_LOGIN))
    with psycopg.connect(owner_url, autocommit=True) as connection:
        known = connection.execute("select from pg_roles where rolname = %s", [SERVICE_LOGIN]).fetchone()
        if known is None:
            # Another process may be first.
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(create)
