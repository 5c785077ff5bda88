"""Calls slow down before Meta has to refuse them, and while Graph is slow; and no longer than that.

How much slower, and for how long, is in tests/sql/call_pace.sql. Here real answers say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from convsync.graph import client
from convsync.pages import TokenCheck, check_token
from convsync.simulator import faults
from convsync.simulator.limits import PageLimits
from convsync.sync.calls import Caller, Control
from convsync.sync.ports import Time
from sync.fake_graph import fake_graph
from sync.world import FastTime, Ledger, World, open_world

JITTER = 0.05  # between the clock of the log and that of the database


class SleepingTime(FastTime):
    """A clock that only sleep moves: what takes no sleep takes no time."""

    def __init__(self) -> None:
        self._at = 0.0

    def now(self) -> float:
        return self._at

    async def sleep(self, seconds: float) -> None:
        self._at += seconds
        await asyncio.sleep(0)

    def database_now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self._at)


def measure_with(clock: FastTime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client measures its answers by this clock, and the simulator takes its time by it."""
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=clock.now))
    monkeypatch.setattr(faults, "asyncio", SimpleNamespace(sleep=clock.sleep))


async def budget(world: World, page_id: str | None = None) -> dict[str, Any]:
    page = await world.store.get_page(page_id=page_id or world.page_id)
    return page["budget"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("seconds", "pace", "first_gaps"), [(3, 0.67, [0.6, 0.4]), (60, 0.2, [2.0, 1.6, 1.28, 1.024])]
)
async def test_slow_answers_slow_the_page_down_and_quick_ones_make_up_for_them(
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    pace: float,
    first_gaps: list[float],
) -> None:
    """By calls one after the other, in a time that nothing but answers and the budget takes."""
    clock = SleepingTime()
    measure_with(clock, monkeypatch)
    async with open_world(database, clock=clock) as world, asyncio.timeout(60):
        caller = Caller(
            store=world.store,
            graph=world.graph,
            page_id=world.page_id,
            run_id=None,
            fence=None,
            lane="backfill",
            calls_per_second=2.0,
            token=world.token.token,
            control=Control(time=Time(now=clock.now, sleep=clock.sleep), lease_until=float("inf")),
        )
        arrivals: list[float] = []
        world.on_call(lambda number, call: arrivals.append(clock.now()))

        async def call() -> None:
            await caller.call(world.page_id, {"fields": "id"}, lambda answer, granted_at: None)

        world.simulator.faults.add("", "delay", seconds=seconds)
        for _ in range(20):
            await call()
        slowed = await budget(world)
        assert (slowed["pace"], slowed["pace_reason"]) == (pace, "slow_answers")

        world.simulator.faults.clear()
        quick_since, quick = clock.now(), len(arrivals)
        while (await budget(world))["pace"] < 1:
            await call()
            assert clock.now() - quick_since < 30
        recovered = len(arrivals)
        for _ in range(21):
            await call()
        gaps = [later - earlier for earlier, later in pairwise(arrivals[quick:])]
        assert gaps[: len(first_gaps)] == pytest.approx(first_gaps, abs=0.002)
        assert arrivals[recovered + 20] - arrivals[recovered] == pytest.approx(10, abs=0.02)


async def test_sync_of_many_threads_at_once_gives_a_slow_graph_less_to_do(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten at once could make three calls a second, of three seconds each; two are allowed, 4/3 are made."""
    clock = FastTime(10)
    measure_with(clock, monkeypatch)
    ledger = Ledger(monkeypatch)
    async with open_world(
        database, clock=clock, conversations=10, messages=60.0, max_messages_per_call=20
    ) as world:
        world.simulator.faults.add("", "delay", seconds=3)
        outcome = await world.sync(concurrency=10, calls_per_second=2.0, lease_seconds=100_000)
        assert outcome.status == "succeeded"
        slowed = [granted for granted in ledger.grants if granted > ledger.answered[0]]
        assert len(slowed) > 10
        for earlier, later in pairwise(slowed):
            assert later - earlier >= timedelta(seconds=0.749)
        assert world.calls() == len(ledger.grants)
        assert (await budget(world))["pace_reason"] == "slow_answers"
        assert (await world.verdict()).clean


async def test_nearing_the_end_of_its_allowance_a_sync_slows_down(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """800 of the hour's 1000 calls are made already: at 80 percent there is a call every 610 ms."""
    clock = FastTime(5)
    ledger = Ledger(monkeypatch)
    async with open_world(database, clock=clock, conversations=24, max_conversations_per_call=2) as world:
        limits = world.simulator.state.limits[world.page_id] = PageLimits(0, 1000, clock=clock.now)
        limits.check(800)
        outcome = await world.sync(concurrency=1, calls_per_second=2.0, lease_seconds=100_000)
        assert outcome.status == "succeeded"
        usage = await budget(world)
        assert (usage["pace"], usage["pace_reason"], usage["usage_percent"]) == (0.78, "usage", 81)

        log = [clock.of_wall(call.at) for call in world.simulator.calls.calls]
        assert len(log) == len(ledger.grants) > 12
        for earlier, later in pairwise(ledger.grants):
            assert later - earlier >= timedelta(seconds=0.609)
        # One after the other: each call arrives between its grant and the next one's.
        for first, last in [(0, len(log) - 1), (1, len(log) // 2)]:
            assert log[last] - log[first] >= 0.609 * (last - first - 1) - JITTER

        limits = world.simulator.state.limits[world.page_id] = PageLimits(0, 1000, clock=clock.now)
        limits.check(300)
        outcome = await world.sync(concurrency=1, calls_per_second=2.0, lease_seconds=100_000)
        assert outcome.status == "succeeded"
        usage = await budget(world)
        assert (usage["pace"], usage["pace_reason"]) == (1, None)


async def test_what_the_app_has_used_up_slows_down_every_page(database: Any) -> None:
    """X-App-Usage comes with the answer to one Page, and is the other's too."""

    def answer(path: str, query: Mapping[str, str]) -> Any:
        usage = '{"call_count": 90, "total_time": 20, "total_cputime": 25}'
        return 200, {"id": "1", "name": "One"}, {"X-App-Usage": usage}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        assert await check_token(world.store, world.graph, world.page_id, world.token, 2) == TokenCheck(
            "valid"
        )
        other = "100000000000002"
        await world.store.add_page(page_id=other)
        for page_id in (world.page_id, other):
            shown = await budget(world, page_id)
            assert (shown["pace"], shown["pace_reason"], shown["usage_percent"]) == (0.46, "app_usage", None)
        first, second = [
            await world.store.acquire_call(page_id=other, lane="live", calls_per_second=2) for _ in range(2)
        ]
        assert first.wait_ms == 0
        assert second.granted_at is None
