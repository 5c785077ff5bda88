"""What is done to a running simulator when: faults that come and go, a life that changes, a token that dies.

A step has its time in simulated seconds, or in Graph calls that came: a sync is then always hit at the same
place, however fast it is.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any

from aiohttp import web

from convsync.simulator.acts import weights_of
from convsync.simulator.config import LifePlan, Step
from convsync.simulator.faults import FaultError, Faults
from convsync.simulator.life import check_plan
from convsync.simulator.state import SimulatorState
from convsync.simulator.traffic import live_traffic
from convsync.simulator.webhook_faults import WebhookFaultError, parse_webhook_fault

Undo = Callable[[], object]
Action = Callable[[SimulatorState, Mapping[str, Any]], Awaitable[Undo | None]]


class StepError(ValueError):
    """A step that cannot be; the text begins with the field that is to blame."""


async def _fault(state: SimulatorState, what: Mapping[str, Any]) -> Undo:
    number = state.faults.plant(what).fault_id
    return lambda: state.faults.remove(number)


async def _webhook_fault(state: SimulatorState, what: Mapping[str, Any]) -> Undo:
    number = state.webhooks.faults.plant(what).fault_id
    return lambda: state.webhooks.faults.remove(number)


async def _life(state: SimulatorState, what: Mapping[str, Any]) -> Undo:
    state.life.begin(_plan(what), _pages(state, what))
    return lambda: state.life.stop(_pages(state, what))


async def _stop_life(state: SimulatorState, what: Mapping[str, Any]) -> None:
    state.life.stop(_pages(state, what))


async def _traffic(state: SimulatorState, what: Mapping[str, Any]) -> None:
    for page_id in _pages(state, what) or state.pages:
        population = state.populations[page_id]
        await live_traffic(
            population,
            state.webhooks,
            rate=0,
            count=what.get("count", 1),
            seed=what.get("seed", population.live_changes),
            kinds=what.get("kinds"),
            silent=what.get("silent", False),
        )


async def _unsubscribe(state: SimulatorState, what: Mapping[str, Any]) -> Undo:
    former = dict(state.webhooks.subscriptions)
    pages = list(_pages(state, what) or state.pages)
    for page_id in pages:
        state.webhooks.unsubscribe(page_id)

    def undo() -> None:
        for page_id in pages:
            if page_id in former:
                state.webhooks.subscribe(page_id, former[page_id])

    return undo


async def _revoke_token(state: SimulatorState, what: Mapping[str, Any]) -> Undo:
    pages = list(_pages(state, what) or state.pages)
    for page_id in pages:
        state.tokens.pop(state.pages[page_id].token, None)

    def undo() -> None:
        for page_id in pages:
            state.tokens[state.pages[page_id].token] = state.pages[page_id]

    return undo


async def _settle(state: SimulatorState, what: Mapping[str, Any]) -> None:
    await state.webhooks.settle()


ACTIONS: dict[str, Action] = {
    "fault": _fault,
    "webhook_fault": _webhook_fault,
    "life": _life,
    "stop_life": _stop_life,
    "traffic": _traffic,
    "unsubscribe": _unsubscribe,
    "revoke_token": _revoke_token,
    "settle": _settle,
}
_TAKES: dict[str, frozenset[str]] = {
    "life": frozenset({"rate", "seed", "kinds", "silent", "count", "page"}),
    "stop_life": frozenset({"page"}),
    "traffic": frozenset({"count", "seed", "kinds", "silent", "page"}),
    "unsubscribe": frozenset({"page"}),
    "revoke_token": frozenset({"page"}),
    "settle": frozenset(),
}


def check_step(step: Step, pages: int) -> None:
    """Raises StepError for a step that cannot be on a simulator of so many Pages."""
    if step.do not in ACTIONS:
        raise StepError(f"do: {step.do!r} is none of {', '.join(sorted(ACTIONS))}")
    try:
        if step.do == "fault":
            Faults().plant(step.what)
        elif step.do == "webhook_fault":
            parse_webhook_fault(step.what)
    except (FaultError, WebhookFaultError) as error:
        raise StepError(str(error)) from None
    takes = _TAKES.get(step.do)
    if takes is None:
        return
    for name in step.what:
        if name not in takes:
            known = ", ".join(sorted(takes)) or "nothing"
            raise StepError(f"{name}: {step.do} does not know it; it takes {known}")
    page = step.what.get("page", 1)
    if isinstance(page, bool) or not isinstance(page, int) or not 1 <= page <= pages:
        raise StepError(f"page: the number of a Page, from 1 to {pages}, is wanted")
    if step.do == "life":
        try:
            check_plan(_plan(step.what))
        except ValueError as error:
            raise StepError(str(error)) from None
    if step.do == "traffic":
        _check_traffic(step.what)


def _check_traffic(what: Mapping[str, Any]) -> None:
    number = what.get("count", 1)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise StepError("count: a whole number from 1 on is wanted")
    try:
        weights_of(what.get("kinds"))
    except (ValueError, TypeError) as error:
        raise StepError(f"kinds: {error}") from None


def _plan(what: Mapping[str, Any]) -> LifePlan:
    given = {name: value for name, value in what.items() if name != "page"}
    if "rate" not in given:
        raise StepError("rate: is wanted")
    return LifePlan(**given)


def _pages(state: SimulatorState, what: Mapping[str, Any]) -> list[str] | None:
    """The one Page that `page` (counted from 1) names, None for all."""
    return [list(state.pages)[what["page"] - 1]] if "page" in what else None


class Timeline:
    """Does the steps of a config in their time. A step that fails is logged, the others go on."""

    def __init__(self, state: SimulatorState) -> None:
        self._state = state
        self._calls = 0
        self._number = count()
        self._by_calls: list[tuple[int, int, Callable[[], Awaitable[None]]]] = []
        self._by_time: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
        self._changed = asyncio.Event()
        self.done: list[dict[str, Any]] = []
        """What was done: `do`, `at` (simulated seconds) and `calls` (Graph calls so far)."""
        for step in state.config.timeline:
            self._plan_step(step)

    @property
    def counts_calls(self) -> bool:
        return any(
            step.at_calls is not None or step.until_calls is not None for step in self._state.config.timeline
        )

    def describe(self) -> dict[str, Any]:
        waiting = len(self._by_calls) + len(self._by_time)
        return {"calls": self._calls, "done": self.done, "waiting": waiting}

    async def called(self) -> None:
        """A Graph call is about to be answered: do what was waiting for it."""
        self._calls += 1
        while self._by_calls and self._by_calls[0][0] < self._calls:
            await heapq.heappop(self._by_calls)[2]()

    async def run(self) -> None:
        """Do what has a time, until cancelled."""
        clock = self._state.clock
        while True:
            self._changed.clear()
            now = clock.elapsed()
            while self._by_time and self._by_time[0][0] <= now:
                await heapq.heappop(self._by_time)[2]()
            wait = None if not self._by_time else (self._by_time[0][0] - clock.elapsed()) / clock.speed
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _plan_step(self, step: Step) -> None:
        async def act() -> None:
            undo = await self._do(step.do, lambda: ACTIONS[step.do](self._state, step.what))
            if undo is not None and (step.until is not None or step.until_calls is not None):
                self._plan_at(step.until, step.until_calls, lambda: self._undo(step.do, undo))

        self._plan_at(None if step.at_calls is not None else step.at, step.at_calls, act)

    def _plan_at(self, at: float | None, at_calls: int | None, act: Callable[[], Awaitable[None]]) -> None:
        if at_calls is not None:
            heapq.heappush(self._by_calls, (at_calls, next(self._number), act))
        elif at is not None:
            heapq.heappush(self._by_time, (at, next(self._number), act))
            self._changed.set()

    async def _undo(self, name: str, undo: Undo) -> None:
        async def call() -> None:
            undo()

        await self._do(f"end of {name}", call)

    async def _do(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        elapsed = self._state.clock.elapsed()
        self.done.append({"do": name, "at": round(elapsed, 3), "calls": self._calls})
        try:
            return await act()
        except Exception:
            logging.getLogger(__name__).exception("a step of the timeline failed: %s", name)
            return None


TIMELINE: web.AppKey[Timeline] = web.AppKey("timeline", Timeline)


@web.middleware
async def count_graph_calls(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tell the timeline of each Graph call, before it is answered."""
    if not request.path.startswith("/_sim/"):
        await request.app[TIMELINE].called()
    return await handler(request)


def begin_life(state: SimulatorState) -> None:
    """Let the life of the config begin with simulated time itself."""
    if state.config.life is not None:
        state.life.begin(state.config.life, at_ms=state.clock.start_ms)
