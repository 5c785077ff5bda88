"""How often a Page may be called: calls per second, and the Business Use Case allowance behind the usage
header.

Sources: "Your app can make 2 calls per second per Facebook Page"; `X-Business-Use-Case-Usage` holds whole
percentages over a rolling hour and minutes to wait; calls made while blocked push the end of the block out
(Meta, rate limiting pages).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from convsync.simulator.errors import GraphError, too_fast, too_many_messenger_calls

# The network stretches and squeezes the gaps between calls that left evenly: a limiter that knows no mercy
# would refuse an honest client. So a second's calls may come within 0.8 s, and ten seconds forgive one
# call.
_SHORT_SECONDS = 0.8
_LONG_SECONDS = 10.0
_HOUR = 3600.0
_HEADER_AFTER_CALLS = 10


class PageLimits:
    """The limits of one Page. `rate` is in calls per second, 0 for none.

    `hourly_calls` None shows a header that rises with use but never blocks.
    """

    def __init__(
        self, rate: float, hourly_calls: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self.hourly_calls = hourly_calls
        self.violations = 0
        """Calls refused so far."""
        self._clock = clock
        self._granted: deque[float] = deque()
        self._hour: deque[float] = deque()

    def check(self, calls: int = 1) -> GraphError | None:
        """Count calls that arrive now; the error they are refused with, or None.

        A call refused for its pace does not use up a slot, or a client that is too fast would never get
        through; it does count against the hour.
        """
        now = self._clock()
        while self._hour and self._hour[0] <= now - _HOUR:
            self._hour.popleft()
        blocked = self.hourly_calls is not None and len(self._hour) >= self.hourly_calls
        self._hour.extend([now] * calls)
        if blocked:
            self.violations += 1
            return too_many_messenger_calls()
        if self.rate <= 0:
            return None
        in_short = max(1, math.ceil(self.rate))
        short = _SHORT_SECONDS * in_short / self.rate
        in_long = max(1, math.floor(self.rate * _LONG_SECONDS)) + 1
        keep = max(_LONG_SECONDS, short)
        while self._granted and self._granted[0] <= now - keep:
            self._granted.popleft()
        recent = sum(1 for _ in takewhile(lambda at: at > now - short, reversed(self._granted)))
        if recent + min(calls, in_short) > in_short or len(self._granted) + calls > in_long:
            self.violations += 1
            return too_fast()
        self._granted.extend([now] * calls)
        return None

    def usage(self) -> dict[str, Any] | None:
        """One entry of the usage header, None while little was used ("endpoints that receive enough
        requests").
        """
        if len(self._hour) < _HEADER_AFTER_CALLS:
            return None
        if self.hourly_calls is not None:
            allowance = float(self.hourly_calls)
        elif self.rate > 0:
            allowance = self.rate * _HOUR * 1.5
        else:
            return None
        used = len(self._hour)
        percent = int(100 * used / allowance)
        wait = 0
        if self.hourly_calls is not None and used >= self.hourly_calls:
            # The block ends when enough calls have left the hour; each call during it adds one.
            frees = self._hour[used - self.hourly_calls]
            wait = max(1, math.ceil((frees + _HOUR - self._clock()) / 60))
        return {
            "type": "messenger",
            "call_count": percent,
            "total_cputime": percent // 3,
            "total_time": percent // 2,
            "estimated_time_to_regain_access": wait,
        }
