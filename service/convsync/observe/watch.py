"""Watches the write path from beside it: counters that move, and what the database says, become alerts.

Looking costs the deliveries nothing, and whatever goes wrong in here stays in here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from convsync.errors import ConvsyncError
from convsync.facts import Json
from convsync.observe.alerts import EVENT_WRITES_FAILING, EVENTS_REFUSED_BY_DATABASE, Alerter
from convsync.observe.metrics import WriteCounters, WritePath
from convsync.store import Metrics

LOOK_SECONDS: Final = 1.0
_ASK_EVERY: Final = 30  # looks

_log = structlog.get_logger(__name__)


class WriteWatch:
    """Fires and clears the alerts of the write path. `run` is owned by the application."""

    def __init__(
        self,
        alerter: Alerter,
        commit: WriteCounters,
        path: WritePath,
        ask_database: Callable[[], Awaitable[Metrics]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._alerter = alerter
        self._commit = commit
        self._path = path
        self._ask_database = ask_database
        self._sleep = sleep
        self._refused = self._refusals()
        self._refused_before = self._refused  # when the alert that fires began
        self._batches = commit.batches
        self._poison = self._poison_before = commit.poison
        self._looks = 0

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self._sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                _log.exception("watch.defect")

    async def look(self) -> None:
        """What has happened since the last look."""
        self._look_at_refusals()
        self._look_at_poison()
        self._alerter.remind()
        self._looks += 1
        if self._alerter.firing(EVENTS_REFUSED_BY_DATABASE) and self._looks % _ASK_EVERY == 0:
            await self._look_at_dead_letters()

    def _refusals(self) -> dict[str, int]:
        commit = self._commit
        return {
            "full": commit.refused_full,
            "late": commit.refused_late,
            "unavailable": commit.refused_unavailable,
        }

    def _look_at_refusals(self) -> None:
        refused = self._refusals()
        if refused != self._refused:
            if not self._alerter.firing(EVENT_WRITES_FAILING):
                self._refused_before = self._refused
            self._refused = refused
            self._batches = self._commit.batches
            more = {why: number - self._refused_before[why] for why, number in refused.items()}
            self._alerter.fire(EVENT_WRITES_FAILING, {"refused_deliveries": more, **self._last_failure()})
        elif self._commit.batches > self._batches:
            # Only a commit shows that it works again, not that nobody sends anything.
            self._alerter.clear(EVENT_WRITES_FAILING)

    def _look_at_poison(self) -> None:
        poison = self._commit.poison
        if poison != self._poison:
            if not self._alerter.firing(EVENTS_REFUSED_BY_DATABASE):
                self._poison_before = self._poison
            self._poison = poison
            self._alerter.fire(EVENTS_REFUSED_BY_DATABASE, {"events": poison - self._poison_before})

    async def _look_at_dead_letters(self) -> None:
        """It is over when somebody has settled them all, whichever process they asked."""
        try:
            known = await self._ask_database()
        except ConvsyncError:
            return
        if not any(one["reason"] == "refused" for one in known.dead_letters):
            self._alerter.clear(EVENTS_REFUSED_BY_DATABASE)

    def _last_failure(self) -> Json:
        if self._path.last_failure is None:
            return {}
        error, state = self._path.last_failure
        return {"last_error": error, "sqlstate": state}
