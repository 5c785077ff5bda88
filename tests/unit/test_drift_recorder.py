"""The recorder of schema drift against a database that is told how to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from convsync.observe.drift import OTHER, Drift, DriftRecorder


class Refused(Exception):
    """The database will never take it."""


class Database:
    """Takes what it is given, unless it is told to fail; `pauses` are what the recorder waited."""

    def __init__(self) -> None:
        self.calls: list[list[Drift]] = []
        self.failures: list[BaseException] = []
        self.pauses: list[float] = []
        self.attempts = 0
        self.again = asyncio.Semaphore(0)
        self.tried = asyncio.Semaphore(0)

    async def write(self, drift: Sequence[Drift]) -> int:
        self.attempts += 1
        self.tried.release()
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append(list(drift))
        return len(drift)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.again.acquire()

    def counted(self) -> dict[tuple[str, str, str], int]:
        sums: dict[tuple[str, str, str], int] = {}
        for one in (one for call in self.calls for one in call):
            key = (one.page_id, one.source, one.name)
            sums[key] = sums.get(key, 0) + one.occurrences
        return sums


def recorder(database: Database, **more: Any) -> DriftRecorder:
    return DriftRecorder(
        database.write, is_poison=lambda error: isinstance(error, Refused), sleep=database.pause, **more
    )


@pytest.fixture
def database() -> Database:
    return Database()


async def test_what_is_seen_often_is_written_once_with_its_number(database: Database) -> None:
    drift = recorder(database)
    for _ in range(500):
        drift.saw("webhook", [("1", "message.mood"), ("1", "event.surface")])
    drift.saw("sync", [("1", "message.mood")])
    drift.saw("webhook", [("2", "message.mood"), ("", "object.user")])
    assert drift.waiting == 1003
    await drift.close(10)
    assert database.attempts == 1
    assert database.counted() == {
        ("1", "webhook", "message.mood"): 500,
        ("1", "webhook", "event.surface"): 500,
        ("1", "sync", "message.mood"): 1,
        ("2", "webhook", "message.mood"): 1,
        ("", "webhook", "object.user"): 1,
    }
    assert drift.waiting == 0


async def test_it_writes_at_once_and_then_at_most_every_few_seconds(database: Database) -> None:
    drift = recorder(database, every=5.0)
    running = asyncio.create_task(drift.run())
    async with asyncio.timeout(10):
        drift.saw("webhook", [("1", "a")])
        await database.tried.acquire()
        # as many deliveries as may come meanwhile make one more statement
        for _ in range(100):
            drift.saw("webhook", [("1", "a")])
            await asyncio.sleep(0)
        assert (database.attempts, database.pauses) == (1, [5.0])
        database.again.release()
        await database.tried.acquire()
    assert database.attempts == 2
    assert database.counted() == {("1", "webhook", "a"): 101}
    running.cancel()


async def test_nothing_seen_is_nothing_written(database: Database) -> None:
    drift = recorder(database)
    drift.saw("webhook", [])
    await drift.close(10)
    assert database.attempts == 0


async def test_a_database_that_fails_loses_no_count_and_ends_nothing(database: Database) -> None:
    drift = recorder(database)
    database.failures = [ConnectionError("away"), RuntimeError("a defect"), TimeoutError()]
    running = asyncio.create_task(drift.run())
    async with asyncio.timeout(10):
        for turn in range(4):
            drift.saw("webhook", [("1", "a"), ("1", f"only {turn}")])
            await database.tried.acquire()
            database.again.release()
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})
    await drift.close(10)
    assert database.counted() == {
        ("1", "webhook", "a"): 4,
        **{("1", "webhook", f"only {turn}"): 1 for turn in range(4)},
    }


async def test_what_is_seen_while_it_writes_is_kept_beside_what_failed(database: Database) -> None:
    drift: DriftRecorder

    async def write(_: Sequence[Drift]) -> int:
        drift.saw("webhook", [("1", "a"), ("1", "b")])
        raise ConnectionError

    drift = DriftRecorder(write, is_poison=lambda _: False)
    drift.saw("webhook", [("1", "a")])
    await drift.close(10)
    assert drift.waiting == 3


async def test_what_would_be_refused_for_ever_is_given_up(database: Database) -> None:
    drift = recorder(database)
    database.failures = [Refused()]
    drift.saw("webhook", [("1", "a")])
    await drift.close(10)
    assert (drift.waiting, database.calls) == (0, [])
    drift.saw("webhook", [("1", "b")])
    await drift.close(10)
    assert database.counted() == {("1", "webhook", "b"): 1}


async def test_being_cancelled_in_the_middle_of_a_write_loses_no_count(database: Database) -> None:
    begun = asyncio.Event()

    async def hang(_: Sequence[Drift]) -> int:
        begun.set()
        await asyncio.Event().wait()
        return 0

    drift = DriftRecorder(hang, is_poison=lambda _: False)
    drift.saw("webhook", [("1", "a")])
    running = asyncio.create_task(drift.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait({running})
    assert drift.waiting == 1
    # and an end that cannot write is an end all the same
    with capture_logs() as logs:
        async with asyncio.timeout(10):
            await drift.close(0.01)
    assert [(line["event"], line["occurrences"]) for line in logs] == [("schema_drift_lost", 1)]


async def test_memory_is_bounded_whatever_comes(database: Database) -> None:
    drift = recorder(database, names=10)
    for number in range(1000):
        drift.saw("webhook", [(str(number % 7), f"field_{number}")])
        drift.saw("sync", [("1", f"field_{number}")])
    assert drift.waiting == 2000
    await drift.close(10)
    [call] = database.calls
    assert len(call) <= 12
    assert sum(one.occurrences for one in call) == 2000
    assert {one.page_id for one in call if one.name == OTHER} == {""}


async def test_a_name_is_warned_of_once_per_page(database: Database) -> None:
    drift = recorder(database)
    with capture_logs() as logs:
        for _ in range(3):
            drift.saw("webhook", [("1", "message.mood"), ("2", "message.mood"), ("1", "message.mood")])
            await drift.close(10)
    assert [line for line in logs if line["event"] == "schema_drift"] == [
        {
            "event": "schema_drift",
            "log_level": "warning",
            "source": "webhook",
            "page_id": page,
            "name": "message.mood",
        }
        for page in ("1", "2")
    ]
