"""PostgreSQL dies under a service at its limit and comes back: what was answered 200 is there, once.

The server is the test's own, and a durable one; the service and the load are processes of their own. An
immediate shutdown is a crash: no checkpoint, every transaction torn off, recovery from the log at the start.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from convsync.database.embedded import EmbeddedPostgres
from convsync.facts import DeadLetter, Message
from convsync.store import Store, create_pool
from faults.processes import until
from faults.promises import Load, complaints, ready, running
from own_server import LOGIN, install, own_server

PEOPLE = 500


@pytest.fixture
async def own() -> AsyncIterator[EmbeddedPostgres]:
    with own_server() as server:
        await install(server)
        yield server


def postmaster(server: EmbeddedPostgres) -> int:
    file = server.data_dir / "postgresql" / "data" / "postmaster.pid"
    return int(file.read_text(encoding="utf-8").split("\n")[0])


async def kill(server: EmbeddedPostgres) -> None:
    """`pg_ctl stop --mode=immediate`: SIGQUIT to the postmaster, which takes all its processes along."""
    file = server.data_dir / "postgresql" / "data" / "postmaster.pid"
    os.kill(postmaster(server), signal.SIGQUIT)

    async def gone() -> bool:
        return not file.exists() and not await asyncio.to_thread(server.running)

    await until(gone, "the end of PostgreSQL")


async def killed_under_load(server: EmbeddedPostgres, directory: Path, kills: int, seconds: float) -> None:
    """`seconds` of load before each kill and after the last; then everything promised is there, once."""
    async with running(server.service_url(LOGIN), directory) as run:
        pid = run.service.pid
        # The end of the load is told to it; this is for the case that nobody is left to tell.
        load = await run.load(rate=None, people=PEOPLE, seconds=180.0)
        story = []
        await load.until_more(200, 200, seconds=seconds)
        story.append(told(load))
        for _ in range(kills):
            await kill(server)
            await load.until_more(503, 10)
            story.append(told(load))
            await asyncio.to_thread(server.start)
            await load.until_more(200, 200, seconds=seconds)
            story.append(told(load))
        await load.end()
        story.append(told(load))

        async def ready_again() -> bool:
            return await ready(run.address)

        await until(ready_again, "readiness")
        assert (run.service.pid, run.service.returncode) == (pid, None), run.service.errors()
    print("answers by then:", *story, sep="\n  ")  # noqa: T201
    with psycopg.connect(server.owner_url, autocommit=True) as owner:
        assert complaints(owner, load.promised) == []
        row = owner.execute("select count(*) from convsync.contact_interaction_events").fetchone()
    # The load ended when the last refused delivery was taken: so nothing else may be there, either.
    assert row == (len(set(load.promised)),)
    assert len(load.promised) == len(set(load.promised))
    assert set(load.statuses) == {200, 503}


def told(load: Load) -> str:
    span = load.answers[-1].at - load.answers[0].at
    return f"{span:5.1f} s: {dict(load.statuses)}"


async def test_every_delivery_answered_200_outlives_a_crash_of_postgresql_exactly_once(
    own: EmbeddedPostgres, tmp_path: Path
) -> None:
    await killed_under_load(own, tmp_path, kills=1, seconds=1.5)


@pytest.mark.faults
async def test_every_delivery_answered_200_outlives_two_crashes_in_a_minute_of_load(
    own: EmbeddedPostgres, tmp_path: Path
) -> None:
    await killed_under_load(own, tmp_path, kills=2, seconds=20.0)


async def test_the_judge_sees_a_lost_delivery_a_doubled_one_and_a_wrong_count(database: Any) -> None:
    """Nothing above proves anything unless this judge convicts."""
    at = datetime(2026, 11, 3, tzinfo=UTC)
    facts = [Message("1", "7", f"m_{number}", "in", at, text="hello") for number in range(3)]
    promised = [fact.message_id for fact in facts]
    async with create_pool(database.service_url, size=1, name="test") as pool:
        await Store(pool).ingest(facts, "webhook")
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        assert complaints(owner, promised) == []
        (lost,) = complaints(owner, [*promised, "m_more"])
        assert lost == "1 answered 200 and not stored: ['m_more']"

        # The key is what makes a doubled event impossible, so it is doubled in a copy without the key.
        owner.execute("create table convsync.doubled as table convsync.contact_interaction_events")
        owner.execute("insert into convsync.doubled select * from convsync.doubled where message_id = 'm_1'")
        doubled, miscounted = complaints(owner, promised, events="doubled")
        assert doubled == "1 stored more than once: ['m_1']"
        assert miscounted.startswith("1 conversations with a wrong message_count: [('1', '7', 3, 4)]")
        assert complaints(owner, [*promised, "m_more"], events="doubled") == [lost, doubled, miscounted]

    async with create_pool(database.service_url, size=1, name="test") as pool:
        await Store(pool).ingest([DeadLetter("1", "a test", b"{}")], "webhook")
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        assert complaints(owner, promised) == ["1 dead letters: [('a test',)]"]
