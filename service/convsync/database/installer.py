"""Installs and upgrades the database: state by migrations, logic by re-applied functions.

One advisory lock, held by an open transaction on a connection of its own, lets exactly one installer
work; the others wait and then find nothing to do. Under it, yoyo applies the migrations that are
missing (each file once, each in its transaction); then, if the hash of `sql/*.sql` differs from the
installed one, a single transaction re-applies every file with `create or replace`, drops what the run
did not define, and records the hash. Calls in flight go on undisturbed: measured, drop-and-create
fails clients and replace-and-sweep does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.resources
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, cast
from urllib.parse import quote, urlencode

import psycopg
import yoyo
from psycopg import conninfo, sql

from convsync import __version__
from convsync.database import grants
from convsync.database.grants import to_run

_LOCK = 0x636F6E76_00000001  # "conv", 1: the installer
_MINIMUM_SERVER = 150000

_SWEEP: LiteralString = """
select p.oid::regprocedure::text, p.prokind = 'p'
from pg_catalog.pg_proc p
where p.pronamespace = 'convsync_api'::regnamespace
  and p.xmin::text::bigint <> pg_catalog.pg_current_xact_id()::text::bigint % 4294967296
"""


_GRANTED: LiteralString = r"""
select coalesce(pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage') and not exists (
  select from pg_catalog.pg_proc p
  where p.pronamespace = n.oid and p.proname not like '\_%'
    and not pg_catalog.has_function_privilege(r.oid, p.oid, 'execute')
), false)
from (select) as one
left join pg_catalog.pg_roles r on r.rolname = 'convsync_service'
left join pg_catalog.pg_namespace n on n.nspname = 'convsync_api'
"""
_MAY_NOT = "this login may not install or upgrade convsync here"


class InstallError(Exception):
    """The database cannot be installed or upgraded; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What `migrate` found and did."""

    migrations: list[str]
    functions: bool
    schema_version: str

    @property
    def changed(self) -> bool:
        return bool(self.migrations) or self.functions


def source(name: str) -> Path:
    """The folder `sql` or `migrations`: inside the wheel, or at the repository's root."""
    packaged = Path(str(importlib.resources.files("convsync"))) / f"_{name}"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / name


def function_files() -> list[Path]:
    """The files of `sql/` in the order they are applied; the last one grants privileges."""
    return sorted(source("sql").glob("*.sql"))


def migration_ids() -> list[str]:
    return sorted(path.stem for path in source("migrations").glob("*.sql"))


def functions_hash() -> str:
    digest = hashlib.sha256()
    for path in function_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def schema_version() -> str:
    """What a current database reports: the newest migration and the functions' hash, shortened."""
    return f"{migration_ids()[-1]}+{functions_hash()[:12]}"


async def migrate(url: str) -> Installed:
    """Bring the database at `url` (its owner's) to this release. Safe to run from many places at once."""
    return await asyncio.to_thread(_migrate, url)


async def behind(url: str) -> list[str]:
    """What `migrate` would do; empty when the database is current. Changes nothing."""
    return await asyncio.to_thread(_behind, url)


async def missing_to_serve(url: str) -> str | None:
    """Why this login may call no function of the installed schema, and what to run; None where it may."""
    return await asyncio.to_thread(_missing_to_serve, url)


async def is_current(url: str) -> bool:
    """Whether the database is of this release, asked as anybody who may call its functions."""
    return await asyncio.to_thread(_is_current, url)


def _is_current(url: str) -> bool:
    with psycopg.connect(url, application_name="convsync", autocommit=True) as connection:
        try:
            row = connection.execute("select convsync_api.schema_version()").fetchone()
        except (
            psycopg.errors.InvalidSchemaName,
            psycopg.errors.UndefinedFunction,
            psycopg.errors.InsufficientPrivilege,
        ):
            return False  # nothing is installed, or nothing for this login
        return row == (schema_version(),)


def _missing_to_serve(url: str) -> str | None:
    with psycopg.connect(url, application_name="convsync", autocommit=True) as connection:
        missing = grants.missing_to_serve(connection)
    return f"the login of CONVSYNC_DATABASE_URL may call no function; {to_run(missing)}" if missing else None


def _migrate(url: str) -> Installed:
    with psycopg.connect(url, application_name="convsync migrate") as guard:
        if guard.info.server_version < _MINIMUM_SERVER:
            raise InstallError(
                f"PostgreSQL 15 or newer is needed, this is {guard.info.server_version // 10000}"
            )
        if missing := grants.missing_to_install(guard):
            if _is_current(url):
                return Installed([], False, schema_version())
            owners = "CONVSYNC_MIGRATE_DATABASE_URL must be its owner's"
            raise InstallError(f"{_MAY_NOT}: {owners}, or {to_run(missing)}")
        guard.execute("select pg_catalog.pg_advisory_xact_lock(%s)", [_LOCK])
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                grants.create_roles(connection)
            applied = _apply_migrations(url)
            functions = _apply_functions(url)
        except psycopg.errors.InsufficientPrivilege as error:
            raise InstallError(f"{_MAY_NOT}: {error.diag.message_primary}") from error
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("select convsync_api.begin_feed_epoch()")
        return Installed(applied, functions, schema_version())


def _behind(url: str) -> list[str]:
    with psycopg.connect(url, application_name="convsync migrate --check", autocommit=True) as connection:
        if grants.missing_to_install(connection):
            return [] if _is_current(url) else ["an upgrade as the database's owner"]
        if connection.execute("select to_regclass('convsync._yoyo_migration') is null").fetchone() == (True,):
            return [f"migration {name}" for name in migration_ids()] + ["functions"]
        done = {row[0] for row in connection.execute("select migration_id from convsync._yoyo_migration")}
        todo = [f"migration {name}" for name in migration_ids() if name not in done]
        if connection.execute("select to_regclass('convsync.installation') is null").fetchone() == (True,):
            return [*todo, "functions"]
        if _installed_hash(connection) != functions_hash() or not _granted(connection):
            todo.append("functions")
        return todo


def _apply_migrations(url: str) -> list[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("select to_regnamespace('convsync') is null").fetchone() == (True,):
            # yoyo keeps its own tables here, so the schema has to be there before the first migration.
            connection.execute("create schema convsync")
    with _quiet_yoyo(), _closing(yoyo.get_backend(_yoyo_url(url))) as backend:
        # A killed installer leaves yoyo's lock row behind; the advisory lock says that nobody holds it now.
        backend.break_lock()
        with backend.lock():
            pending = backend.to_apply(yoyo.read_migrations(str(source("migrations"))))
            names = [migration.id for migration in pending]
            backend.apply_migrations(pending)
    return names


def _apply_functions(url: str) -> bool:
    wanted = functions_hash()
    with psycopg.connect(url) as connection:
        if _installed_hash(connection) == wanted and _granted(connection):
            return False
        connection.execute("set local plpgsql.extra_errors = 'all'")
        connection.execute("set local client_min_messages = warning")
        connection.execute("set local search_path = pg_catalog, pg_temp")
        *files, privileges = function_files()
        for path in files:
            _apply_file(connection, path)
        # `create or replace` gave each function of this release a new row version; whatever else is there, no
        # file defines any more. Privileges come after this: granting makes new row versions too.
        for signature, procedure in connection.execute(_SWEEP).fetchall():
            kind = sql.SQL("procedure" if procedure else "function")
            connection.execute(sql.SQL("drop {} {}").format(kind, sql.SQL(signature)))
        _apply_file(connection, privileges)
        connection.execute(
            """insert into convsync.installation (functions_hash, release) values (%s, %s)
               on conflict on constraint installation_pkey do update
               set functions_hash = excluded.functions_hash, release = excluded.release,
                   installed_at = now()""",
            [wanted, __version__],
        )
        return True


def _apply_file(connection: psycopg.Connection[Any], path: Path) -> None:
    try:
        # The files are this package's own, as trusted as its code.
        connection.execute(path.read_bytes())
    except psycopg.Error as error:
        raise InstallError(f"{path.name}: {error}") from error


def _installed_hash(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute("select functions_hash from convsync.installation").fetchone()
    return row[0] if row else None


def _granted(connection: psycopg.Connection[Any]) -> bool:
    """Whether the service's role may call the functions: a dump restored without privileges has lost that."""
    return connection.execute(_GRANTED).fetchone() == (True,)


def _yoyo_url(url: str) -> str:
    """The same connection in yoyo's spelling: its psycopg 3 scheme, everything in the query."""
    parts = conninfo.conninfo_to_dict(url)
    user, password = parts.pop("user", None), parts.pop("password", None)
    login = (
        (quote(str(user), safe="") + (":" + quote(str(password), safe="") if password else "") + "@")
        if user
        else ""
    )
    # The database's name too: in the path it would be taken as it is written there, escapes and all.
    query = urlencode(
        {key: str(value) for key, value in parts.items() if value is not None} | {"schema": "convsync"}
    )
    return f"postgresql+psycopg://{login}/?{query}"


@contextmanager
def _closing(backend: Any) -> Iterator[Any]:
    try:
        yield backend
    finally:
        backend.connection.close()


@contextmanager
def _quiet_yoyo() -> Iterator[None]:
    """yoyo logs every step to the root logger and warns of its own nested transactions."""
    logger = logging.getLogger("yoyo")
    level, restore = logger.level, cast(Callable[[int], None], logger.setLevel)
    restore(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        restore(level)
