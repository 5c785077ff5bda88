"""Installing without a superuser: what is missing is told before anything is tried, as what to run."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from pydantic import SecretStr

from convsync.database import installer
from convsync.database.bootstrap import open_database
from convsync.database.embedded import EmbeddedPostgres
from convsync.facts import Message
from convsync.settings import Settings
from convsync.store import Store, create_pool
from db.test_installer import in_thread, what_is_behind
from own_server import own_server
from secrets_hunt import marked

ROOT = Path(__file__).resolve().parents[2]
# Names that have to be quoted are names too.
OWNER, OTHER, LOGIN, DATABASE = "plain owner", "other-owner", "Service", "Managed DB"
STATEMENT = re.compile(r"^  (.+;)$", re.MULTILINE)


class Managed:
    """A server as a provider gives it: somebody else is its administrator."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self.administer(
            f'create role "{OWNER}" login', f'create role "{OTHER}" login', f'create role "{LOGIN}" login'
        )
        self.administer(f'create database "{DATABASE}"')

    def url(self, role: str) -> str:
        return psycopg.conninfo.make_conninfo(
            self._server.url("postgres", "postgres"), user=role, dbname=DATABASE
        )

    def administer(self, *statements: str, database: str = "postgres") -> None:
        url = psycopg.conninfo.make_conninfo(self._server.url("postgres", "postgres"), dbname=database)
        with psycopg.connect(url, autocommit=True) as administrator:
            for statement in statements:
                administrator.execute(statement.encode())

    def value(self, query: str) -> Any:
        with psycopg.connect(self.url("postgres"), autocommit=True) as administrator:
            row = administrator.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def refused(self, role: str) -> list[str]:
        """The statements that an install as this role is refused with."""
        with pytest.raises(
            installer.InstallError, match="an administrator of the database has to run"
        ) as why:
            in_thread(self.url(role))
        return STATEMENT.findall(str(why.value))


@pytest.fixture
def managed() -> Iterator[Managed]:
    with own_server() as server:
        yield Managed(server)


def test_a_login_without_rights_is_told_which_to_grant_and_with_exactly_these_it_installs(
    managed: Managed,
) -> None:
    missing = managed.refused(OWNER)
    assert missing == [
        f'grant create on database "{DATABASE}" to "{OWNER}";',
        'create role "convsync_service" nologin;',
        'create role "convsync_app" nologin;',
        'create role "convsync_reader" nologin;',
    ]
    assert managed.value("select count(*) from pg_namespace where nspname like 'convsync%'") == 0
    # One is as good as none, and only what is missing is told.
    managed.administer(missing[0], missing[2])
    assert managed.refused(OWNER) == [missing[1], missing[3]]
    assert managed.value("select count(*) from pg_namespace where nspname like 'convsync%'") == 0
    managed.administer(missing[1], missing[3])
    assert in_thread(managed.url(OWNER)).migrations == installer.migration_ids()
    assert not managed.value("select rolsuper from pg_roles where rolname = 'plain owner'")
    assert what_is_behind(managed.url(OWNER)) == []


def test_a_login_that_may_create_roles_needs_no_more_than_the_database(managed: Managed) -> None:
    managed.administer(f'alter role "{OWNER}" createrole')
    assert managed.refused(OWNER) == [f'grant create on database "{DATABASE}" to "{OWNER}";']
    managed.administer(f'alter database "{DATABASE}" owner to "{OWNER}"')
    assert in_thread(managed.url(OWNER)).functions
    # The group role is its own, so that it lets the service's login in by itself.
    with psycopg.connect(managed.url(OWNER), autocommit=True) as owner:
        owner.execute(f'grant convsync_service to "{LOGIN}"'.encode())
    with psycopg.connect(managed.url(LOGIN), autocommit=True) as service:
        service.execute("select convsync_api.schema_version()")


def test_who_is_not_the_owner_is_told_to_become_a_member(managed: Managed) -> None:
    managed.administer(f'alter role "{OWNER}" createrole', f'alter database "{DATABASE}" owner to "{OWNER}"')
    in_thread(managed.url(OWNER))
    with psycopg.connect(managed.url(OWNER), autocommit=True) as owner:
        owner.execute("update convsync.installation set functions_hash = 'of an older release'")
    missing = managed.refused(OTHER)
    assert missing == [f'grant "{OWNER}" to "{OTHER}";']
    assert what_is_behind(managed.url(OTHER)) != []
    managed.administer(*missing)
    assert in_thread(managed.url(OTHER)).functions
    assert (
        managed.value(
            "select count(*) from convsync.installation where functions_hash = 'of an older release'"
        )
        == 0
    )


async def test_a_service_that_may_call_nothing_is_told_and_with_exactly_that_grant_it_serves(
    managed: Managed,
) -> None:
    managed.administer(f'alter role "{OWNER}" createrole', f'alter database "{DATABASE}" owner to "{OWNER}"')
    settings = Settings(
        _env_file=None,
        database_url=SecretStr(f"{managed.url(LOGIN)} password={marked('service')}"),
        migrate_database_url=SecretStr(managed.url(OWNER)),
    )
    for schema in ("upgrade", "check"):
        with pytest.raises(installer.InstallError) as why:
            async with open_database(settings, schema):
                pass
        assert STATEMENT.findall(str(why.value)) == [f'grant convsync_service to "{LOGIN}";']
        assert marked("service") not in str(why.value)
    managed.administer(f'grant convsync_service to "{LOGIN}"')
    async with (
        open_database(settings, "check") as urls,
        create_pool(urls.service, size=1, name="test") as pool,
    ):
        at = datetime(2026, 11, 1, tzinfo=UTC)
        (touched,) = await Store(pool).ingest([Message("199", "7", "m_1", "in", at, text="hello")], "webhook")
        assert touched.created
        assert (await Store(pool).health())["durable"]


def test_rights_that_a_restore_has_lost_are_given_again(managed: Managed) -> None:
    managed.administer(f'alter role "{OWNER}" createrole', f'alter database "{DATABASE}" owner to "{OWNER}"')
    in_thread(managed.url(OWNER))
    for role in ("convsync_service", "convsync_app", "convsync_reader"):
        managed.administer(f"drop owned by {role}", f"drop role {role}", database=DATABASE)
    assert what_is_behind(managed.url(OWNER)) == ["functions"]
    done = in_thread(managed.url(OWNER))
    assert (done.migrations, done.functions) == ([], True)
    assert what_is_behind(managed.url(OWNER)) == []
    assert managed.value("select has_schema_privilege('convsync_app', 'convsync_read', 'usage')")
    assert managed.value(
        "select has_table_privilege('convsync_app', 'convsync_read.conversations', 'select')"
    )


def test_the_login_that_compose_makes_serves_once_the_owner_has_migrated(tmp_path: Path) -> None:
    """The image of PostgreSQL runs it as its POSTGRES_USER, who is a superuser there."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    environment = compose["services"]["postgres"]["environment"]
    script = compose["configs"]["service_login"]["content"].replace("$$", "$")
    password = marked("it's a password; \\q")
    with own_server() as server:
        owner, database = "compose_owner", environment["POSTGRES_DB"]
        told = {"POSTGRES_USER": owner, "POSTGRES_DB": database, "SERVICE_PASSWORD": password}
        assert told.keys() <= environment.keys()
        assert environment["POSTGRES_USER"] == "convsync_owner"  # taken, on this server
        with psycopg.connect(server.url("postgres", "postgres"), autocommit=True) as administrator:
            administrator.execute(f"create role {owner} login superuser".encode())
        parts = psycopg.conninfo.conninfo_to_dict(server.url(owner, database))
        # A command line can be read by everybody on the machine.
        psql, seen = tmp_path / "psql", tmp_path / "arguments"
        psql.write_text(f'#!/bin/sh\necho "$@" > {seen}\nexec {server.psql_path} "$@"\n', encoding="utf-8")
        psql.chmod(0o755)
        done = subprocess.run(  # noqa: S603
            ["/bin/bash", "-euc", script],
            env={
                **told,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "PGHOST": str(parts["host"]),
                "PGPORT": str(parts["port"]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert owner in seen.read_text("utf-8")
        assert password not in seen.read_text("utf-8")
        in_thread(server.url(owner, database))
        with psycopg.connect(server.url("convsync_login", database)) as service:
            service.execute("select convsync_api.schema_version()")
        with psycopg.connect(server.url("postgres", "postgres"), autocommit=True) as administrator:
            row = administrator.execute(
                "select rolpassword like 'SCRAM-SHA-256$%', rolsuper, rolcreaterole from pg_authid"
                " where rolname = 'convsync_login'"
            ).fetchone()
        assert row == (True, False, False)
