"""The database of the tests: a server per run (per xdist worker), a migrated template, a clone for each test.

``database``
    a fresh copy of the migrated schema: ``.owner_url``, ``.service_url``, ``.name``
``raw_database``
    a fresh database without anything in it
``server``
    the server itself: ``.url(role, database)``, ``.connection`` (superuser, autocommit)

The server is the embedded one, in a directory of its own (``scratch.py``), without fsync. If
``CONVSYNC_TEST_DATABASE_URL`` is set (an owner who may create databases and roles) that server is used
instead, for example Debian's PostgreSQL 15. With ``CONVSYNC_TEST_POOLER`` the services reach it through
PgBouncer (``pooler.py``).

pytest-postgresql's janitor makes and drops the databases. Its ``noproc`` fixtures are not used: they want
host and port when the module is imported, before a server in a temporary directory exists, and its own
process start fails as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql
from pytest_postgresql.janitor import DatabaseJanitor

import called_functions
import secrets_hunt
from convsync.database.embedded import EmbeddedError, EmbeddedPostgres
from pooler import Pooler, changes_connections, pgbouncer
from scratch import PLACES, PREFIX, scratch_directory

SERVICE_LOGIN = "convsync_test_login"
SERVICE_PASSWORD = secrets_hunt.marked("password")


@dataclass(frozen=True)
class Database:
    """One database for one test. Both URLs are understood by libpq, psycopg and (with its scheme) yoyo."""

    name: str
    owner_url: str
    service_url: str


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(called_functions, "called_functions")
    config.pluginmanager.register(secrets_hunt, "secrets_hunt")


class Server:
    """A running server on which databases come and go."""

    def __init__(self, url: str, psql_path: Path) -> None:
        self.pooler: Pooler | None = None
        self.owner_url = url
        self.psql_path = psql_path
        self.connection = psycopg.connect(url, autocommit=True)
        self._prefix = f"convsync_test_{os.getpid()}_{secrets.token_hex(3)}"
        self._count = 0

    def close(self) -> None:
        self.connection.close()

    def url(self, database: str, role: str | None = None, password: str | None = None) -> str:
        """The URL of the server with another database and, if given, another login."""
        parts = urlsplit(self.owner_url)
        netloc = parts.netloc
        if role is not None:
            login = quote(role, safe="") + (f":{quote(password, safe='')}" if password else "")
            netloc = f"{login}@{netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(netloc=netloc, path=f"/{quote(database, safe='')}"))

    def _service_url(self, database: str) -> str:
        if self.pooler is not None:
            return self.pooler.url(SERVICE_LOGIN, SERVICE_PASSWORD, database)
        return self.url(database, SERVICE_LOGIN, SERVICE_PASSWORD)

    @contextlib.contextmanager
    def fresh_database(self, template: str = "template0") -> Iterator[Database]:
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        info = self.connection.info
        janitor = DatabaseJanitor(
            user=info.user,
            password=info.password or None,
            host=info.host,
            port=info.port,
            dbname=name,
        )
        # The janitor's own way goes through the WAL, page by page: four times the work for the server.
        clone = sql.SQL("create database {} template {} strategy file_copy")
        with janitor.cursor() as cursor:
            cursor.execute(clone.format(sql.Identifier(name), sql.Identifier(template)))
        called_functions.watch(self.connection, name)
        try:
            yield Database(name, self.url(name), self._service_url(name))
        finally:
            called_functions.end_sessions(self.connection, name)
            with psycopg.connect(self.url(name), autocommit=True) as connection:
                called_functions.note(connection)
                secrets_hunt.look_into(connection)
            janitor.drop()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for the run, stopped and removed after it."""
    with contextlib.ExitStack() as stack:
        if url := os.environ.get("CONVSYNC_TEST_DATABASE_URL"):
            psql_path = Path(shutil.which("psql") or "psql")
        else:
            remove_leftovers()
            directory = scratch_directory()
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.callback(secrets_hunt.look_into_files, directory)
            embedded = stack.enter_context(EmbeddedPostgres(directory / "data", durable=False))
            url, psql_path = embedded.url("postgres", "postgres"), embedded.psql_path
        server = Server(url, psql_path)
        stack.callback(server.close)
        if os.environ.get("CONVSYNC_TEST_POOLER"):
            users = {SERVICE_LOGIN: SERVICE_PASSWORD}
            server.pooler = stack.enter_context(pgbouncer(server.connection.info, users))
        yield server


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """A database with everything installed, from which the others are cloned."""
    from convsync.database.installer import migrate

    with server.fresh_database() as made:
        # Roles belong to the whole server: runs that share an external one take turns to create them.
        server.connection.execute("select pg_advisory_lock(hashtextextended('convsync test roles', 0))")
        try:
            # In a thread of its own, because asyncio.run would take the event loop of pytest-asyncio away.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, migrate(made.owner_url)).result()
            known = server.connection.execute(
                "select from pg_roles where rolname = %s", [SERVICE_LOGIN]
            ).fetchone()
            if known is None:
                server.connection.execute(
                    sql.SQL("create role {} login password {} in role convsync_service").format(
                        sql.Identifier(SERVICE_LOGIN), sql.Literal(SERVICE_PASSWORD)
                    )
                )
        finally:
            server.connection.execute("select pg_advisory_unlock(hashtextextended('convsync test roles', 0))")
        if server.pooler is not None:
            # Else nothing would be tested.
            assert changes_connections(made.service_url)
            # A template that somebody is connected to cannot be cloned.
            server.connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [made.name]
            )
        yield made.name


@pytest.fixture
def database(server: Server, template: str) -> Iterator[Database]:
    """A migrated database that belongs to this test alone."""
    with server.fresh_database(template) as made:
        yield made


@pytest.fixture
def raw_database(server: Server) -> Iterator[Database]:
    """An empty database that belongs to this test alone; ``service_url`` waits for its role."""
    with server.fresh_database() as made:
        yield made


def remove_leftovers() -> None:
    """Removes servers of runs that were killed. A run that lives holds a lock and is left alone."""
    for directory in (found for place in PLACES for found in place.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError, EmbeddedError):
            old = time.time() - directory.stat().st_mtime > 3600
            if not old or directory.stat().st_uid != os.geteuid():
                continue
            leftover = EmbeddedPostgres(directory / "data")
            leftover.stop()
            if not leftover.running():
                shutil.rmtree(directory, ignore_errors=True)
