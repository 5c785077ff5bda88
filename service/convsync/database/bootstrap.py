"""The database a command works on: the configured one, or the embedded one started for it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psycopg
import structlog
from psycopg import sql

from convsync.database import installer
from convsync.database.embedded import EmbeddedError, EmbeddedPostgres
from convsync.settings import Settings

_log = structlog.get_logger(__name__)

SERVICE_LOGIN = "convsync_login"
WATCH_SECONDS = 2.0

Schema = Literal["check", "upgrade", "leave"]


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the database is, for whom. They may hold passwords: never print them."""

    service: str
    owner: str
    psql: Path | None = None


class BehindError(Exception):
    """The configured database is not of this release, and this command is not the one to change that."""


@asynccontextmanager
async def open_database(settings: Settings, schema: Schema = "check") -> AsyncIterator[Urls]:
    """The database, of this release unless its schema is to be left as it is.

    A configured database is upgraded only where that was asked for: `check` refuses one that is behind. The
    embedded one is ours to bring up to date. Its server is started, brought back if it dies, and left (or
    stopped) at the end.
    """
    if settings.database_url is not None:
        service = settings.database_url.get_secret_value()
        direct = settings.migrate_database_url or settings.direct_database_url or settings.database_url
        owner = direct.get_secret_value()
        if schema != "leave" and not await installer.is_current(service):
            if schema == "upgrade":
                await installer.migrate(owner)
            if missing := await installer.missing_to_serve(service):
                raise installer.InstallError(missing)
            if schema == "check":
                raise BehindError("the database is behind this release: run convsync migrate")
        yield Urls(service, owner)
        return
    server = EmbeddedPostgres(settings.data_dir)
    async with _running(server):
        if schema != "leave":
            await installer.migrate(server.owner_url)
            await asyncio.to_thread(_ensure_login, server.owner_url)
        yield Urls(server.service_url(SERVICE_LOGIN), server.owner_url, server.psql_path)


@asynccontextmanager
async def _running(server: EmbeddedPostgres) -> AsyncIterator[None]:
    """The server, started, brought back whenever it dies, and left at the end."""
    # Cancelling does not reach into a thread: the lock lets a start that is under way end before the stop,
    # and the flag lets none begin after it.
    turn, stopped = threading.Lock(), threading.Event()

    def revive() -> None:
        with turn:
            if not stopped.is_set() and not server.running():
                _log.warning("embedded_postgres_died")
                server.start()
                _log.info("embedded_postgres_restarted")

    def stop() -> None:
        stopped.set()
        with turn:
            server.stop()

    async def watch() -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await asyncio.to_thread(revive)
            except (EmbeddedError, OSError, psycopg.Error) as error:
                _log.error("embedded_postgres_not_restarted", error=str(error))

    await asyncio.to_thread(server.start)
    watching = asyncio.create_task(watch(), name="embedded PostgreSQL")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.shield(asyncio.to_thread(stop))


def _ensure_login(owner_url: str) -> None:
    """The embedded service's login: a member of convsync_service, so it can call functions and no more."""
    create = sql.SQL("create role {} login in role convsync_service").format(sql.Identifier(SERVICE_LOGIN))
    with psycopg.connect(owner_url, autocommit=True) as connection:
        known = connection.execute("select from pg_roles where rolname = %s", [SERVICE_LOGIN]).fetchone()
        if known is None:
            # Another process may be first.
            with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(create)
