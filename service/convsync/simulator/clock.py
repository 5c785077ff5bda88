"""The simulator's own time, which may run faster than the wall's.

What belongs to the simulated world waits and dates by it: when people write, how long a webhook is late or
fails. What belongs to real machines does not: how long a receiver may take to answer, calls per second.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class SimulatedClock:
    """Unix time that runs `speed` times as fast as the wall's, from `start_ms` on (default: now)."""

    def __init__(
        self,
        speed: float = 1.0,
        start_ms: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (speed > 0 and math.isfinite(speed)):
            raise ValueError("speed is a number above 0")
        self.speed = speed
        self.start_ms = int(time.time() * 1000) if start_ms is None else start_ms
        self._monotonic = monotonic
        self._began = monotonic()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self.start_ms + int(self.elapsed() * 1000)

    def elapsed(self) -> float:
        """Simulated seconds since the start."""
        return (self._monotonic() - self._began) * self.speed

    async def sleep(self, seconds: float) -> None:
        """Wait so many simulated seconds."""
        await asyncio.sleep(max(0.0, seconds / self.speed))
