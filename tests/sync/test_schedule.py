"""Syncs that begin by themselves: when it is time, once, by whichever process. Time is moved, not awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from convsync.errors import DatabaseUnavailable
from convsync.simulator.config import default_pages
from convsync.store import Begun, Due
from convsync.sync import runner
from convsync.sync.runner import RunnerSettings, Schedule, SyncRunner
from faults.processes import until
from sync.application import ended, supervised
from sync.world import QUICK, FastStore, FastTime, World, open_world

FULL = Schedule(900, 86400, modes=("full",))
A_DAY = 86400.0


class Moved(FastTime):
    """The wall's clock, moved on when a test says so."""

    def __init__(self) -> None:
        super().__init__(1)

    def move(self, seconds: float) -> None:
        self._began -= seconds


class Seen(FastStore):
    """The store of one process; how often it asked what is due, and what it began."""

    def __init__(self, pool: Any, clock: FastTime) -> None:
        super().__init__(pool, clock)
        self.asked = 0
        self.offered: list[Begun | None] = []
        self.before_beginning: Callable[[], Any] = lambda: asyncio.sleep(0)

    async def due_syncs(self, *, modes: Sequence[str]) -> list[Due]:
        due = await super().due_syncs(modes=modes)
        self.asked += 1
        if due:
            await self.before_beginning()
        return due

    async def begin_due_sync(self, **call: Any) -> Begun | None:
        begun = await super().begin_due_sync(**call)
        self.offered.append(begun)
        return begun


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Moved:
    monkeypatch.setattr(runner, "_DUE_SECONDS", 0.0)
    return Moved()


@pytest.fixture
async def world(database: Any, clock: Moved) -> AsyncIterator[World]:
    async with open_world(database, clock=clock, conversations=20, messages=5.0) as world:
        yield world


def process(world: World, **settings: Any) -> tuple[SyncRunner, Seen]:
    """A process of its own, which looks at the schedule all the time."""
    assert world.clock is not None
    store = Seen(world.store._pool, world.clock)
    told = RunnerSettings(calls_per_second=0, lease_seconds=60, poll_seconds=0.01, **settings)
    return SyncRunner(store, world.graph, world.box.open, told, backoff=QUICK), store


async def asked_again(store: Seen) -> None:
    """What was due when this was called has been seen, and begun or left."""
    asked = store.asked

    async def twice() -> bool:
        return store.asked >= asked + 2

    await until(twice, "two looks at what is due")


async def runs(world: World) -> list[dict[str, Any]]:
    return await world.rows("select run_id, page_id, mode, status, request_id from convsync.sync_runs")


async def the_run(world: World) -> int:
    async def begun() -> bool:
        return bool(await runs(world))

    await until(begun, "a run")
    return int((await runs(world))[0]["run_id"])


async def test_a_new_page_is_synced_wholly_once_its_time_has_come_and_no_second_time(
    world: World, clock: Moved
) -> None:
    supervisor, store = process(world)
    async with supervised(supervisor, schedule=FULL):
        await asked_again(store)
        assert await runs(world) == [], "whoever added it may begin by himself"
        clock.move(1000)
        run = await ended(world, await the_run(world))
        assert (run["mode"], run["status"]) == ("full", "succeeded")
        assert run["request_id"]
        assert (await world.verdict()).clean
        for _ in range(3):
            clock.move(A_DAY)
            await asked_again(store)
        assert len(await runs(world)) == 1, "a full sync is no substitute for one of what has changed"


async def test_what_has_changed_is_read_from_then_on_in_its_interval(world: World, clock: Moved) -> None:
    await world.sync()
    supervisor, store = process(world)
    schedule = Schedule(900, 0, modes=("full", "incremental", "reconcile"))
    async with supervised(supervisor, schedule=schedule):
        await asked_again(store)
        assert len(await runs(world)) == 1
        for number in (2, 3, 4):
            clock.move(1000)
            await asked_again(store)
            newest = (await runs(world))[-1]
            assert (len(await runs(world)), newest["mode"]) == (number, "incremental")
            assert (await ended(world, newest["run_id"]))["status"] == "succeeded"
            await asked_again(store)
        assert len({run["request_id"] for run in await runs(world)}) == 4


async def test_of_two_processes_that_see_it_due_one_begins_it_and_the_other_is_quiet(
    world: World, clock: Moved
) -> None:
    both_have_seen = asyncio.Barrier(2)
    (one, its), (other, others) = process(world), process(world)
    for store in (its, others):
        store.before_beginning = both_have_seen.wait
    clock.move(1000)
    with capture_logs() as logs:
        async with supervised(one, schedule=FULL), supervised(other, schedule=FULL):
            assert (await ended(world, await the_run(world)))["status"] == "succeeded"
            await asked_again(its)
            await asked_again(others)
    assert len(await runs(world)) == 1
    offered = [*its.offered, *others.offered]
    assert len(offered) == 2
    assert offered.count(None) == 1
    assert [entry for entry in logs if entry["log_level"] not in ("info", "debug")] == []


async def test_who_comes_when_it_is_done_begins_nothing(world: World, clock: Moved) -> None:
    """It was seen due, and then another process has begun it and brought it to its end."""
    clock.move(1000)
    _, late = process(world)
    (due,) = await late.due_syncs(modes=["full"])
    assert (await world.sync()).status == "succeeded"
    assert await late.begin_due_sync(page_id=due.page_id, mode=due.mode, owner="late") is None
    assert len(await runs(world)) == 1


async def test_a_process_carries_no_more_than_it_is_told_to(database: Any, clock: Moved) -> None:
    pages = default_pages(3)
    async with open_world(database, clock=clock, conversations=3, messages=3.0, pages=pages) as world:
        for page in pages[1:]:
            await world.store.add_page(
                page_id=page.page_id,
                token_sealed=world.box.seal(page.page_id, page.token),
                token_key_id=world.box.key_id,
            )
        get, opened = world.graph.get, asyncio.Event()

        async def held(*call: Any) -> Any:
            await opened.wait()
            return await get(*call)

        world.graph.get = held  # type: ignore[method-assign]
        supervisor, store = process(world, runs_at_once=2)
        clock.move(1000)
        async with supervised(supervisor, schedule=FULL):
            await the_run(world)
            await asked_again(store)
            assert [run["status"] for run in await runs(world)] == ["running"] * 2
            opened.set()

            async def all_done() -> bool:
                return [run["status"] for run in await runs(world)] == ["succeeded"] * 3

            await until(all_done, "the third, once there is room")


async def test_a_run_that_nobody_can_go_on_with_does_not_stay_running(world: World, clock: Moved) -> None:
    begun = await world.store.begin_sync(page_id=world.page_id, mode="full", owner="dead", lease_seconds=15)
    await world.store.mark_token(page_id=world.page_id, state="invalid", error="expired")
    clock.move(16)
    supervisor, _ = process(world)
    async with supervised(supervisor, schedule=FULL, resume=True):
        run = await ended(world, begun.run_id)
    assert (run["status"], run["reason"]) == ("paused", "lease_expired")


async def test_a_database_that_is_away_is_asked_again(world: World, clock: Moved) -> None:
    supervisor, store = process(world)
    away = [DatabaseUnavailable("away"), DatabaseUnavailable("away")]
    real = store.begin_due_sync

    async def begin(**call: Any) -> Begun | None:
        if away:
            raise away.pop()
        return await real(**call)

    store.begin_due_sync = begin  # type: ignore[method-assign]
    clock.move(1000)
    with capture_logs() as logs:
        async with supervised(supervisor, schedule=FULL):
            assert (await ended(world, await the_run(world)))["status"] == "succeeded"
    assert [entry["event"] for entry in logs].count("sync_not_begun") == 2


async def test_the_schedule_is_what_freshness_is_judged_by(world: World, clock: Moved) -> None:
    await world.sync()
    supervisor, store = process(world)
    async with supervised(supervisor, schedule=Schedule(2 * A_DAY, 0, modes=())):
        await asked_again(store)
    clock.move(3 * A_DAY)
    page = await world.store.get_page(page_id=world.page_id)
    assert (page["freshness"], page["freshness_reason"]) == ("fresh", None)
    assert page["synced_at"] < (clock.database_now() - timedelta(days=2)).isoformat()
    clock.move(2 * A_DAY)
    assert (await world.store.get_page(page_id=world.page_id))["freshness"] == "late"
