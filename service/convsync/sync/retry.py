"""How often and how long: the retry budgets by error class, and the wait between tries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from convsync.errors import DatabaseUnavailable, TryAgain
from convsync.graph.catalogue import ErrorClass
from convsync.sync.ports import Time

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

# How many times one page may fail in a class before it is given up. Throttling has no number: it
# ends by itself, and only the deadline of the run ends the waiting.
BUDGETS: Final[dict[ErrorClass, int]] = {
    ErrorClass.TRANSIENT: 6,
    ErrorClass.UNKNOWN: 3,
    ErrorClass.SHRINK: 1,  # once there is nothing left to make smaller
    ErrorClass.BAD_CURSOR: 3,  # restarts of one list
    ErrorClass.TOKEN: 1,
    ErrorClass.PERMISSION: 1,
    ErrorClass.GONE: 1,
    ErrorClass.BAD_REQUEST: 1,
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: any time up to an exponentially growing limit, so that retries never march in step."""

    base: float = 0.5
    cap: float = 30.0

    def delay(self, failures: int, random: float) -> float:
        """Seconds before the try after the `failures`-th failure; `random` is from [0, 1)."""
        limit = min(self.cap, self.base * 2.0 ** min(failures - 1, 30))
        return random * limit


async def patiently(
    what: Callable[[], Awaitable[_T]], *, until: Callable[[], float], time: Time, backoff: Backoff
) -> _T:
    """Call the database again while it is away or asks to be called again, until `until()`.

    Safe for every function of the engine: each is one transaction that may be repeated. Past
    `until()` (when the lease would be lost) the last error is raised.
    """
    failures = 0
    while True:
        try:
            return await what()
        except (TryAgain, DatabaseUnavailable) as error:
            failures += 1
            # never at once: a database that is coming back has enough to do
            delay = 0.05 + backoff.delay(failures, time.random())
            if time.now() + delay >= until():
                raise
            _log.warning("database_retry", error=type(error).__name__, failures=failures)
            await time.sleep(delay)
