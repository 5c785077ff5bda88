"""Live traffic: things happen in an inbox, and a webhook sender tells of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from convsync.simulator.acts import KINDS, Actor, UnknownKindError, weights_of
from convsync.simulator.events import Event
from convsync.simulator.population import Population
from convsync.simulator.webhooks import WebhookSender

__all__ = ["KINDS", "Teller", "TrafficReport", "UnknownKindError", "live_traffic"]


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """What a run of live traffic did. `played` things happened in the inbox; the rest counts webhooks.
    `not_sent` ones had nobody to go to or were lost on purpose, `late` ones are held back for now.
    """

    played: int
    delivered: int
    failed: int
    not_sent: int
    late: int = 0


async def live_traffic(
    population: Population,
    sender: WebhookSender,
    *,
    rate: float,
    count: int | None = None,
    seconds: float | None = None,
    seed: int = 1,
    kinds: Sequence[str] | Mapping[str, float] | None = None,
    silent: bool = False,
    in_flight: int = 20,
) -> TrafficReport:
    """Let things happen at `rate` per second (0: as fast as the receiver takes them) and send the webhooks of
    each.

    Ends after `count` things or `seconds`, whichever comes first (at least one of them must be given), and
    when the last webhook is delivered or given up. `kinds` are equally likely, or have weights. Up to
    `in_flight` things are told at once, so they may arrive out of order, as Meta warns. `silent` lets
    everything happen and sends nothing: what a receiver that was away has missed. Raises UnknownKindError
    before anything happens.
    """
    if count is None and seconds is None:
        raise ValueError("say how many or how long")
    weights = weights_of(kinds)
    random = Random(f"traffic:{population.page_id}:{seed}")  # noqa: S311 - made to be predictable
    actor = Actor(population, random)
    teller = Teller(population.page_id, sender, max(in_flight, sender.faults.most_gathered()))
    loop = asyncio.get_running_loop()
    started = loop.time()
    played = 0
    async with asyncio.TaskGroup() as group:
        while count is None or played < count:
            if rate > 0:
                await asyncio.sleep(max(0.0, started + played / rate - loop.time()))
            if seconds is not None and loop.time() - started >= seconds:
                break
            await teller.room()
            told = actor.play(random.choices(list(weights), weights=list(weights.values()))[0])
            played += 1
            if silent:
                teller.keep_silent(told)
                await asyncio.sleep(0)
            else:
                group.create_task(teller.tell(told))
    counts = teller.outcomes
    return TrafficReport(played, counts["delivered"], counts["failed"], counts["not_sent"], counts["late"])


class Teller:
    """Sends the webhooks of things that happened, of up to `in_flight` things at once."""

    def __init__(self, page_id: str, sender: WebhookSender, in_flight: int) -> None:
        self._page_id = page_id
        self._sender = sender
        self._gate = asyncio.Semaphore(in_flight)
        self.outcomes: Counter[str] = Counter()

    async def room(self) -> None:
        """Wait until one more may be told; `tell` or `keep_silent` have to follow."""
        await self._gate.acquire()

    def keep_silent(self, told: Sequence[Event]) -> None:
        self.outcomes["not_sent"] += len(told)
        self._gate.release()

    async def tell(self, told: Sequence[Event]) -> None:
        """The webhooks of one thing, one after the other."""
        try:
            for event in told:
                delivery = await self._sender.send(self._page_id, [event])
                if delivery is None:
                    outcome = "not_sent"
                elif delivery.late:
                    outcome = "late"
                else:
                    outcome = "delivered" if delivery.delivered else "failed"
                self.outcomes[outcome] += 1
        finally:
            self._gate.release()
