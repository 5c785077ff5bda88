"""The commands of docs/deployment.md, run: a backup becomes the same mirror again, which goes on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from convsync.facts import Message
from convsync.store import Store, create_pool
from faults.processes import Commands, commands, inherited
from own_server import LOGIN, own_server
from sync.world import World, open_world

DEPLOYMENT = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"
# What a restore changes, and is meant to.
NOT_COMPARED = {"installation", "feed_epochs", "yoyo_lock", "_yoyo_log", "_yoyo_migration", "_yoyo_version"}


def told(step: str) -> str:
    """The commands of the document for a step."""
    (block,) = re.findall(
        rf"^```sh {step}\n(.*?)^```$", DEPLOYMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return block


def run(step: str, url: str, directory: Path, programs: Path) -> None:
    """Run them as the owner of the database at `url`."""
    where = conninfo_to_dict(url)
    names = {
        "host": "PGHOST",
        "port": "PGPORT",
        "user": "PGUSER",
        "password": "PGPASSWORD",
        "dbname": "PGDATABASE",
    }
    environment = {
        **inherited(),
        **{names[key]: str(value) for key, value in where.items() if key in names},
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    done = subprocess.run(  # noqa: S603 - the commands of our own document
        ["/bin/bash", "-euc", told(step)],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("step", "program"), [("backup", "pg_dump"), ("restore", "pg_restore")])
def test_with_docker_it_is_the_same_command_in_the_container(step: str, program: str) -> None:
    def options(command: str) -> set[str]:
        where = ("--file", "--dbname", "--username")
        return {one for one in re.findall(r"--[^ ]+", command) if not one.startswith(where)}

    (there,) = re.findall(
        rf"^docker compose exec -T postgres ({program} .*)$", DEPLOYMENT.read_text("utf-8"), re.MULTILINE
    )
    assert options(there) == options(told(step)) != set()
    assert "--username convsync_owner" in there


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, conversations=30) as world:
        assert (await world.sync()).status == "succeeded"
        yield world


@pytest.fixture
async def running(world: World, tmp_path: Path) -> AsyncIterator[Commands]:
    async with commands(world, tmp_path) as running:
        yield running


def contents(url: str) -> dict[str, Any]:
    """Every row of the state, but what belongs to the cluster."""
    found: dict[str, Any] = {}
    with psycopg.connect(url, autocommit=True) as owner:
        tables = owner.execute(
            "select relname from pg_class where relnamespace = 'convsync'::regnamespace and relkind = 'r'"
        ).fetchall()
        for (name,) in tables:
            if name not in NOT_COMPARED:
                rows = owner.execute(
                    sql.SQL("select pg_catalog.to_jsonb(t) - 'version_xid' from {} t").format(
                        sql.Identifier("convsync", name)
                    )
                ).fetchall()
                found[name] = sorted(orjson.dumps(row[0], option=orjson.OPT_SORT_KEYS) for row in rows)
    return found


def message(number: int) -> Message:
    """Of another Page than the one that verify compares."""
    at = datetime(2026, 11, 1, 10, number, tzinfo=UTC)
    return Message("199", "7300000000000099", f"m_backup_{number}", "in", at, text=f"number {number}")


def changes(url: str, after: str | None) -> list[dict[str, Any]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as owner:
        return owner.execute("select * from convsync_api.changes_after(%s, 1000)", [after]).fetchall()


def position(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as owner:
        row = owner.execute("select convsync_api.feed_end()").fetchone()
    assert row is not None
    return str(row[0])


async def test_a_backup_becomes_the_same_mirror_on_another_server_and_goes_on(
    world: World, running: Commands, server: Any, tmp_path: Path
) -> None:
    source, programs = world.database.owner_url, server.psql_path.parent
    await world.store.ingest([message(1)], "webhook")
    before = position(source)
    await world.store.set_feed_position(consumer="crm", position=before)
    await world.store.ingest([message(2)], "webhook")
    run("backup", source, tmp_path, programs)

    # It has none of our roles, its transactions have lower numbers, and its owner is no superuser.
    with own_server() as other:
        run("restore", other.owner_url, tmp_path, programs)
        here = {
            "CONVSYNC_DATABASE_URL": other.service_url(LOGIN),
            "CONVSYNC_MIGRATE_DATABASE_URL": other.owner_url,
        }
        code, out, errors = await running.run(*told("upgrade").split()[1:], **here)
        assert code == 0, errors
        assert "functions" in out
        with psycopg.connect(other.url("postgres", "postgres"), autocommit=True) as administrator:
            administrator.execute(f"create role {LOGIN} login in role convsync_service")
        code, out, errors = await running.run("migrate", "--check", **here)
        assert (code, out) == (0, "current\n"), errors

        assert contents(other.owner_url) == contents(source)
        code, out, errors = await running.run("verify", world.page_id, "--json", **here)
        assert code == 0, (out, errors)
        code, out, errors = await running.run("status", "--json", **here)
        assert code == 0, errors

        # It goes on: what is known is known, what is new is new, and the feed tells it once.
        async with create_pool(other.service_url(LOGIN), size=1, name="test") as pool:
            store = Store(pool)
            assert not any(one.events_added for one in await store.ingest([message(2)], "webhook"))
            assert [one.events_added for one in await store.ingest([message(3)], "webhook")] == [1]
            assert await store.feed_position(consumer="crm") == before
        first, second = changes(other.owner_url, before)
        assert first["next_after"].split("-")[0] == "1"
        assert second["next_after"].split("-")[0] == "2"
        assert second["version"] == first["version"] + 1
        assert changes(other.owner_url, second["next_after"]) == []


async def test_a_backup_restored_beside_its_source_keeps_the_positions_of_the_feed(
    world: World, server: Any, tmp_path: Path
) -> None:
    source, programs = world.database.owner_url, server.psql_path.parent
    before = position(source)
    await world.store.ingest([message(1)], "webhook")
    run("backup", source, tmp_path, programs)
    with server.fresh_database() as other:
        from db.test_installer import in_thread

        run("restore", other.owner_url, tmp_path, programs)
        with (
            psycopg.connect(other.service_url) as service,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            service.execute("select convsync_api.schema_version()")
        assert in_thread(other.owner_url).functions
        with psycopg.connect(other.service_url) as service:
            service.execute("select convsync_api.schema_version()")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute("select from convsync.pages")
        assert contents(other.owner_url) == contents(source)
        async with create_pool(other.service_url, size=1, name="test") as pool:
            await Store(pool).ingest([message(2)], "webhook")
        told_there = changes(other.owner_url, before)
        assert [change["next_after"].split("-")[0] for change in told_there] == ["1", "1"]
