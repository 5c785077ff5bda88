"""A living population: customers and agents write, edit, react and unsend while the simulator runs.

When what happens is drawn from a seed before it happens, not read from the clock: the same seed and inbox
give the same inbox after the same number of things, to the millisecond if simulated time has a fixed
beginning.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from convsync.simulator.acts import Actor, weights_of
from convsync.simulator.clock import SimulatedClock
from convsync.simulator.config import LifePlan
from convsync.simulator.population import Population
from convsync.simulator.traffic import Teller
from convsync.simulator.webhooks import WebhookSender

# The world does not wait for a receiver; this only bounds the memory of a simulator nobody listens to.
_IN_FLIGHT = 10_000


def check_plan(plan: LifePlan) -> None:
    """Raises ValueError, whose text begins with the name of the field."""
    if isinstance(plan.rate, bool) or not isinstance(plan.rate, int | float) or not 0 < plan.rate <= 10_000:
        raise ValueError("rate: a number above 0, up to 10,000, is wanted")
    if plan.count is not None and (not isinstance(plan.count, int) or plan.count < 1):
        raise ValueError("count: a whole number from 1 on is wanted")
    if plan.seed is not None and not isinstance(plan.seed, int):
        raise ValueError("seed: a whole number is wanted")
    if not isinstance(plan.silent, bool):
        raise ValueError("silent: true or false is wanted")
    if plan.kinds is not None and not isinstance(plan.kinds, Mapping):
        raise ValueError("kinds: a table of weights is wanted")
    try:
        weights_of(plan.kinds)
    except ValueError as error:
        raise ValueError(f"kinds: {error}") from None


class Life:
    """The life on the Pages of one simulator. `close` ends it."""

    def __init__(
        self, populations: Mapping[str, Population], sender: WebhookSender, clock: SimulatedClock, seed: int
    ) -> None:
        self._populations = populations
        self._sender = sender
        self._clock = clock
        self._seed = seed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.plans: dict[str, LifePlan] = {}
        self.played: dict[str, Counter[str]] = {page_id: Counter() for page_id in populations}
        """How often each kind happened on each Page."""

    def begin(self, plan: LifePlan, page_ids: Iterable[str] | None = None, at_ms: int | None = None) -> None:
        """Let things happen on these Pages (None: all) from `at_ms` of simulated time (None: now) on, instead
        of what happened there so far. Raises ValueError for a plan that cannot be.
        """
        check_plan(plan)
        begin_ms = self._clock.now_ms() if at_ms is None else at_ms
        chosen = list(self._populations if page_ids is None else page_ids)
        self.stop(chosen)
        for page_id in chosen:
            self.plans[page_id] = plan
            task = asyncio.create_task(self._live(self._populations[page_id], plan, begin_ms))
            task.add_done_callback(_report)
            self._tasks[page_id] = task

    def stop(self, page_ids: Iterable[str] | None = None) -> None:
        """Nothing happens on these Pages (None: all) any more; webhooks on their way are cut off."""
        for page_id in list(self._tasks if page_ids is None else page_ids):
            self.plans.pop(page_id, None)
            task = self._tasks.pop(page_id, None)
            if task is not None:
                task.cancel()

    async def finished(self) -> None:
        """Wait for the end of every plan that has one."""
        ending = [task for page_id, task in self._tasks.items() if self.plans[page_id].count is not None]
        if ending:
            await asyncio.wait(ending)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self.stop()
        await asyncio.gather(*tasks, return_exceptions=True)

    def describe(self) -> dict[str, Any]:
        """Per Page: the plan, null where there is none, and what was played so far."""
        pages: dict[str, Any] = {}
        for page_id, played in self.played.items():
            plan = self.plans.get(page_id)
            told = None
            if plan is not None:
                told = {
                    "rate": plan.rate,
                    "seed": self._seed if plan.seed is None else plan.seed,
                    "kinds": weights_of(plan.kinds),
                    "silent": plan.silent,
                    "count": plan.count,
                }
            pages[page_id] = {"plan": told, "played": dict(played), "total": played.total()}
        return {"speed": self._clock.speed, "now": self._clock.now_ms(), "pages": pages}

    async def _live(self, population: Population, plan: LifePlan, begin_ms: int) -> None:
        seed = self._seed if plan.seed is None else plan.seed
        random = Random(f"life:{population.page_id}:{seed}")  # noqa: S311 - made to be predictable
        weights = weights_of(plan.kinds)
        kinds, chances = list(weights), list(weights.values())
        actor = Actor(population, random)
        teller = Teller(population.page_id, self._sender, _IN_FLIGHT)
        played = self.played[population.page_id]
        moment = float(begin_ms)
        happened = 0
        async with asyncio.TaskGroup() as group:
            while plan.count is None or happened < plan.count:
                moment += random.expovariate(plan.rate) * 1000
                await self._clock.sleep((moment - self._clock.now_ms()) / 1000)
                await teller.room()
                kind = random.choices(kinds, weights=chances)[0]
                population.moment = int(moment)
                try:
                    told = actor.play(kind)
                finally:
                    population.moment = None
                happened += 1
                played[kind] += 1
                if plan.silent:
                    teller.keep_silent(told)
                else:
                    group.create_task(teller.tell(told))


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logging.getLogger(__name__).error("life has ended", exc_info=task.exception())
