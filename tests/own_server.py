"""A durable server of a test's own, for those who stop or kill it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

import secrets_hunt
from convsync.database.embedded import EmbeddedPostgres
from convsync.database.installer import migrate
from scratch import scratch_directory

LOGIN = "own_server_login"


@contextmanager
def own_server() -> Iterator[EmbeddedPostgres]:
    """Started, and empty; stopped and removed at the end."""
    directory = scratch_directory()
    try:
        with EmbeddedPostgres(directory / "data") as server:
            yield server
    finally:
        secrets_hunt.look_into_files(directory)
        shutil.rmtree(directory, ignore_errors=True)


async def install(server: EmbeddedPostgres) -> None:
    """Everything convsync needs in its database, and a login for the service."""
    await migrate(server.owner_url)
    with psycopg.connect(server.url("postgres", "postgres"), autocommit=True) as connection:
        if connection.execute("select from pg_roles where rolname = %s", [LOGIN]).fetchone() is None:
            connection.execute(f"create role {LOGIN} login in role convsync_service")
