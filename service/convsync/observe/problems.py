"""Has somebody told what is wrong with a Page: once, whichever process sees it, and when it is over.

Which problems stand, and who was told, the database knows. A process takes a few, tells them, and says so;
what it could not tell, or did not live to say, is offered again, to it or to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import structlog

from convsync.errors import ConvsyncError
from convsync.facts import Json
from convsync.observe.alerts import PROBLEMS, Alerter, Problem
from convsync.store import Alert

LOOK_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 86_400.0
# Longer than it takes to try `_EACH` notices in vain.
_HOLD_SECONDS: Final = 600.0
_AT_ONCE: Final = 1000
# Of more Pages than this with one problem, one notice tells; it names some.
_EACH: Final = 3
_NAMED: Final = 20

_log = structlog.get_logger(__name__)


class AlertStore(Protocol):
    """What the database knows of who is to be told."""

    async def take_alerts(
        self, *, again_seconds: float, hold_seconds: float, limit: int, look_seconds: float
    ) -> Sequence[Alert]: ...

    async def alert_told(self, *, page_ids: Sequence[str], problem: str, state: str) -> None: ...


class ProblemWatch:
    """Tells the problems of Pages. `run` is owned by the application."""

    def __init__(
        self,
        store: AlertStore,
        alerter: Alerter,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._alerter = alerter
        self._sleep = sleep

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self._sleep(LOOK_SECONDS)
            try:
                await self.look()
            except ConvsyncError as error:
                # Without the database nothing is known of Pages; whoever watches the writes tells of that.
                _log.warning("problems_unknown", error=type(error).__name__)
            except Exception:
                _log.exception("problems.defect")

    async def look(self) -> None:
        """Tell all that is to be told now."""
        while taken := await self._store.take_alerts(
            again_seconds=_AGAIN_SECONDS,
            hold_seconds=_HOLD_SECONDS,
            limit=_AT_ONCE,
            # One look serves all processes, and each finds its own of the last time too old.
            look_seconds=LOOK_SECONDS * 0.8,
        ):
            for together in [[one] for one in taken] if len(taken) <= _EACH else [taken]:
                await self._tell(together)

    async def _tell(self, alerts: Sequence[Alert]) -> None:
        """All of them in one notice: they have the problem and the state in common."""
        first = alerts[0]
        problem = PROBLEMS.get(first.problem) or _unheard_of(first.problem)
        page_ids = [one.page_id for one in alerts]
        details: Json = {"page_id": first.page_id, **first.details}
        if len(alerts) > 1:
            details = {"pages": len(alerts), "page_ids": page_ids[:_NAMED]}
        if await self._alerter.tell(problem, first.state, min(one.since for one in alerts), details):
            await self._store.alert_told(page_ids=page_ids, problem=first.problem, state=first.state)


def _unheard_of(name: str) -> Problem:
    """While releases change, the database may be a newer one that finds more."""
    return Problem(name, "Something is wrong with a Page.", "convsync status PAGE_ID shows what.")
