"""Each scenario that comes with the simulator, played to the engine: what runs say is held against the truth.

A run that ends `succeeded` has an equal mirror; one that ends otherwise names what is missing, and once the
faults are over it is retried and the mirror is equal. Few people live in each, a day takes seconds, and the
judge is first shown to convict.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convsync.graph.client import GraphClient
from convsync.simulator import faults
from convsync.simulator.limits import PageLimits
from convsync.simulator.scenario import Scenario, library
from faults.processes import until
from sync.application import ended, service, supervised
from sync.claims import Judgement, judge
from sync.world import FastTime, World, open_world

THINGS = 60
"""At least as much happens on each Page where there is life."""


def small(scenario: Scenario) -> dict[str, Any]:
    """The scenario with fewer people, small answers so that it still takes calls enough for every fault to
    hit, and a faster life that comes to an end."""
    config, life = scenario.config, scenario.config.life
    speed = max(config.speed, last_step(scenario) / 2)
    if life is not None:
        speed = max(speed, THINGS / life.rate)
        life = dataclasses.replace(life, count=max(THINGS, round(life.rate * last_step(scenario))))
    return {
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "port": 0,
        "conversations": min(config.conversations, 60),
        "messages": min(config.messages, 12.0),
        "max_conversations_per_call": 5,
        "max_messages_per_call": 10,
        # How many calls a second are right is tested elsewhere, and takes its time.
        "calls_per_second": 0.0,
        "speed": speed,
        "life": life,
        "now": datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1),
    }


def last_step(scenario: Scenario) -> float:
    """When the last thing is done that has a time, in simulated seconds."""
    timed = [step for step in scenario.config.timeline if step.at_calls is None]
    return max((max(step.at, step.until or 0.0) for step in timed), default=0.0)


class Played:
    """A world in which a scenario happens, all of its Pages added."""

    def __init__(self, scenario: Scenario, world: World) -> None:
        self.scenario = scenario
        self.world = world
        self.pages = [page.page_id for page in world.simulator.config.pages]

    async def tokens(self) -> None:
        """A person gives the tokens, again."""
        for page in self.world.simulator.config.pages:
            await self.world.store.add_page(
                page_id=page.page_id,
                token_sealed=self.world.box.seal(page.page_id, page.token),
                token_key_id=self.world.box.key_id,
            )

    async def sync(self) -> dict[str, int]:
        """A full sync of each Page, all at once: the runs by Page."""
        runner = self.world.runner(lease_seconds=1_000_000)
        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            runs = {page_id: group.create_task(runner.run(page_id, "full")) for page_id in self.pages}
        return {page_id: run.result().run_id for page_id, run in runs.items()}

    async def lived(self) -> None:
        """Life is over and told, and every step with a time is done."""
        simulator = self.world.simulator
        clock = simulator.state.clock

        async def over() -> bool:
            # A tenth of a second for the last step itself.
            return clock.elapsed() > last_step(self.scenario) + clock.speed / 10

        async with asyncio.timeout(120):
            await until(over, "the last step")
            await simulator.life.finished()
            await simulator.webhooks.settle()
        assert self.world.clock is not None
        self.world.clock.skip(minutes=20)

    async def judged(self, runs: dict[str, int]) -> list[Judgement]:
        return [await judge(self.world, page_id, run_id) for page_id, run_id in runs.items()]

    def all_of_it_happened(self) -> None:
        """No fault that was never met, no step that was never done."""
        simulator = self.world.simulator
        planted = [*simulator.faults.list(), *simulator.webhooks.faults.list()]
        assert [fault for fault in planted if not fault["hits"]] == []
        begun = [step["do"] for step in simulator.timeline.done if not step["do"].startswith("end of")]
        assert len(begun) == len(self.scenario.config.timeline)
        hourly = self.scenario.config.hourly_calls
        assert hourly is None or self.world.calls() > hourly

    async def lifted(self) -> None:
        """What was wrong with Graph is over, and what a person has to do for that is done."""
        simulator = self.world.simulator
        simulator.faults.clear()
        simulator.state.tokens.update({page.token: page for page in simulator.config.pages})
        await self.tokens()

    async def made_good(self, told: Judgement, page_id: str) -> None:
        """By a retry of what failed or, where nothing did, by the next sync."""
        run_id = int(told.run["run_id"])
        if told.run["status"] == "succeeded":
            run_id = (await self.sync())[page_id]
        else:
            runner = self.world.runner(lease_seconds=1_000_000)
            async with supervised(runner):
                await runner.retry(page_id, run_id, "full")
                await ended(self.world, run_id)
        after = await judge(self.world, page_id, run_id)
        assert (after.run["status"], after.complaints) == ("succeeded", [])
        assert after.verdict.clean, after.verdict.examples


@pytest.fixture
async def played(
    request: pytest.FixtureRequest, database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Played]:
    scenario: Scenario = request.param
    hourly = scenario.config.hourly_calls
    # An hour of waiting takes a second; nothing else is waited for that long.
    clock = FastTime(1 if hourly is None else 3000)
    # Faults that last seconds last hundredths of them, and the client is as impatient.
    monkeypatch.setattr(faults, "asyncio", SimpleNamespace(sleep=lambda one: asyncio.sleep(one / 100)))
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(open_world(database, clock=clock, **small(scenario)))
        world.graph = await stack.enter_async_context(GraphClient(world.simulator.url, read_timeout=3.0))
        for page_id in world.simulator.state.limits:
            world.simulator.state.limits[page_id] = PageLimits(0, hourly, clock=clock.now)
        one = Played(scenario, world)
        await one.tokens()
        if scenario.config.subscribed:
            await stack.enter_async_context(service(world, tmp_path))
        yield one


@pytest.mark.parametrize("played", library(), ids=lambda one: one.name, indirect=True)
async def test_scenario_ends_equal_or_says_what_is_missing_and_is_equal_once_it_is_over(
    played: Played,
) -> None:
    runs = await played.sync()
    if played.scenario.config.life is not None:
        # What happened during the walk is the next one's to find, and all stands still for it.
        await played.lived()
        runs = await played.sync()
    played.all_of_it_happened()
    told = await played.judged(runs)
    assert [one.complaints for one in told] == [[] for _ in played.pages]
    status = {(one.run["status"], one.run["reason"], len(one.lacking)) for one in told}
    print(f"{played.scenario.name}: {status}, {played.world.calls()} calls")  # noqa: T201
    await played.lifted()
    for page_id, one in zip(played.pages, told, strict=True):
        if not (one.run["status"] == "succeeded" and one.verdict.clean):
            await played.made_good(one, page_id)
