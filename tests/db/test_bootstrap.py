"""An embedded server that dies under a command that uses it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from convsync.database import bootstrap
from convsync.database.bootstrap import open_database
from convsync.database.embedded import EmbeddedPostgres
from convsync.settings import Settings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An embedded database in a place of its own, looked after often."""
    monkeypatch.setattr(bootstrap, "WATCH_SECONDS", 0.05)
    for name in ("DATABASE_URL", "MIGRATE_DATABASE_URL"):
        monkeypatch.delenv(f"CONVSYNC_{name}", raising=False)
    path = Path(tempfile.mkdtemp(prefix="convsync-test-", dir="/tmp"))
    if os.geteuid() == 0:
        path.chmod(0o711)  # the server runs as another user, who has to pass
    yield Settings(_env_file=None, data_dir=path / "data")
    EmbeddedPostgres(path / "data").stop()
    shutil.rmtree(path, ignore_errors=True)


def postmaster(settings: Settings) -> int:
    file = settings.data_dir / "postgresql" / "data" / "postmaster.pid"
    return int(file.read_text(encoding="ascii").split("\n")[0])


async def brought_back(settings: Settings, url: str, before: int) -> None:
    """Return when the database answers by another server than before."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(url) as connection:
                    await connection.execute("select convsync_api.schema_version()")
                if postmaster(settings) != before:
                    return
            except (psycopg.OperationalError, FileNotFoundError):
                pass
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("migrate", "direct", "owner"),
    [
        ("postgresql://m/x", "postgresql://d/x", "postgresql://m/x"),
        (None, "postgresql://d/x", "postgresql://d/x"),
        (None, None, "postgresql://s/x"),
    ],
)
async def test_migrations_go_past_the_pooler(migrate: str | None, direct: str | None, owner: str) -> None:
    given = {
        "database_url": "postgresql://s/x",
        "migrate_database_url": migrate,
        "direct_database_url": direct,
    }
    urls = {name: SecretStr(url) if url else None for name, url in given.items()}
    async with open_database(Settings(_env_file=None, **urls), "leave") as found:
        assert (found.service, found.owner) == ("postgresql://s/x", owner)


async def test_a_server_that_dies_is_brought_back(settings: Settings) -> None:
    async with open_database(settings) as urls:
        for number in (signal.SIGQUIT, signal.SIGKILL):
            before = postmaster(settings)
            os.kill(before, number)
            await brought_back(settings, urls.service, before)
    assert not EmbeddedPostgres(settings.data_dir).running()


async def test_a_server_that_was_stopped_is_not_started_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was found dead, and its start was under way, when the end came."""
    begun = asyncio.Event()
    loop, start = asyncio.get_running_loop(), EmbeddedPostgres.start
    starts = []

    def noted(server: EmbeddedPostgres) -> None:
        starts.append(server)
        if len(starts) > 1:
            loop.call_soon_threadsafe(begun.set)
        start(server)

    monkeypatch.setattr(EmbeddedPostgres, "start", noted)
    async with open_database(settings):
        os.kill(postmaster(settings), signal.SIGQUIT)
        async with asyncio.timeout(60):
            await begun.wait()
    assert not EmbeddedPostgres(settings.data_dir).running()
    await asyncio.sleep(0.3)
    assert len(starts) == 2
    assert not EmbeddedPostgres(settings.data_dir).running()
