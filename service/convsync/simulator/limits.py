"""How often a Page may be called: calls per second, and the allowances behind the usage headers; and blocks.

Sources: "Your app can make 2 calls per second per Facebook Page"; `X-Business-Use-Case-Usage` holds whole
percentages over a rolling hour and minutes to wait, `X-App-Usage` whole percentages for user and app tokens;
"continuing to make calls will continue to increase your call count, which will increase the time before calls
will be successful again" (developers.facebook.com/docs/graph-api/overview/rate-limiting). By how much a call
prolongs a block is not told; that it is `grow` seconds is invented.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from convsync.simulator.errors import (
    GraphError,
    application_limit,
    page_limit,
    too_fast,
    too_many_messenger_calls,
    too_many_page_calls,
    user_limit,
)

# The network stretches and squeezes the gaps between calls that left evenly: a limiter that knows no mercy
# would refuse an honest client. So a second's calls may come within 0.8 s, and ten seconds forgive one
# call.
_SHORT_SECONDS = 0.8
_LONG_SECONDS = 10.0
_HOUR = 3600.0
_HEADER_AFTER_CALLS = 10


class Allowance:
    """How many calls may be made in a rolling hour, None for no end. Refused calls count too: "continuing to
    make calls will continue to increase your call count".
    """

    def __init__(self, hourly_calls: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.hourly_calls = hourly_calls
        self._clock = clock
        self._hour: deque[float] = deque()

    @property
    def used(self) -> int:
        """Calls of the last hour, as of the last one."""
        return len(self._hour)

    def count(self, calls: int = 1) -> bool:
        """Count calls that arrive now; whether all was used up before."""
        now = self._clock()
        while self._hour and self._hour[0] <= now - _HOUR:
            self._hour.popleft()
        exceeded = self.hourly_calls is not None and len(self._hour) >= self.hourly_calls
        self._hour.extend([now] * calls)
        return exceeded

    def percent(self, otherwise: float = 0.0) -> int | None:
        """How much of it, or of `otherwise` where it has no end, is used. None while little was ("endpoints
        that receive enough requests"), or there is nothing to tell.
        """
        allowed = float(self.hourly_calls) if self.hourly_calls is not None else otherwise
        if len(self._hour) < _HEADER_AFTER_CALLS or allowed <= 0:
            return None
        return int(100 * len(self._hour) / allowed)

    def minutes(self) -> int:
        """Until a call will be answered again: enough calls have left the hour. Each one made meanwhile adds
        to it.
        """
        used = len(self._hour)
        if not self.hourly_calls or used < self.hourly_calls:
            return 0
        frees = self._hour[used - self.hourly_calls]
        return max(1, math.ceil((frees + _HOUR - self._clock()) / 60))

    def usage(self, kind: str, otherwise: float = 0.0) -> dict[str, Any] | None:
        """One entry of `X-Business-Use-Case-Usage`."""
        percent = self.percent(otherwise)
        if percent is None:
            return None
        return {
            "type": kind,
            "call_count": percent,
            "total_cputime": percent // 3,
            "total_time": percent // 2,
            "estimated_time_to_regain_access": self.minutes(),
        }


class PageLimits:
    """The limits of one Page. `rate` is in calls per second, 0 for none.

    `hourly_calls` None shows a header that rises with use but never blocks. `pages_hourly_calls` is the
    allowance of the calls that are not Messenger's: the Page itself, its subscriptions, profiles of people.
    """

    def __init__(
        self,
        rate: float,
        hourly_calls: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        pages_hourly_calls: int | None = None,
    ) -> None:
        self.rate = rate
        self.violations = 0
        """Calls refused so far."""
        self._clock = clock
        self._granted: deque[float] = deque()
        self._messenger = Allowance(hourly_calls, clock)
        self._pages = Allowance(pages_hourly_calls, clock)

    def check(self, calls: int = 1) -> GraphError | None:
        """Count calls of the Conversations API that arrive now; the error they are refused with, or None.

        A call refused for its pace does not use up a slot, or a client that is too fast would never get
        through; it does count against the hour.
        """
        now = self._clock()
        if self._messenger.count(calls):
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

    def check_page(self, by_person: bool = False) -> GraphError | None:
        """Count a call about the Page that is not Messenger's; the error it is refused with: 80001 with the
        Page's token, 32 with a person's.
        """
        if not self._pages.count():
            return None
        self.violations += 1
        return page_limit() if by_person else too_many_page_calls()

    def usage(self) -> list[dict[str, Any]]:
        """The entries of the Page's usage header."""
        found = (self._messenger.usage("messenger", self.rate * _HOUR * 1.5), self._pages.usage("pages"))
        return [one for one in found if one is not None]

    def page_usage(self) -> dict[str, int] | None:
        """`X-Page-Usage`, for a person's token."""
        percent = self._pages.percent()
        return None if percent is None else plain_usage(percent)


class PersonLimits:
    """The allowances of the tokens of people and apps, None for no end: of the app (code 4), and of the
    person (code 17), who uses up the app's as well.
    """

    def __init__(
        self,
        app_hourly_calls: int | None,
        user_hourly_calls: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = Allowance(app_hourly_calls, clock)
        self._user = Allowance(user_hourly_calls, clock)

    def check(self, calls: int = 1, *, by_person: bool) -> GraphError | None:
        """Count calls that arrive now; the error they are refused with, or None."""
        app = self._app.count(calls)
        user = by_person and self._user.count(calls)
        if app:
            return application_limit()
        return user_limit() if user else None

    def usage(self) -> dict[str, int] | None:
        """`X-App-Usage`, None while little was used. Of a person's allowance nothing is told."""
        percent = self._app.percent()
        return None if percent is None else plain_usage(percent)


def plain_usage(percent: int) -> dict[str, int]:
    """The value of `X-App-Usage` and `X-Page-Usage`."""
    return {"call_count": percent, "total_time": percent // 2, "total_cputime": percent // 3}


APP = "app"
"""The scope of a block that holds for every Page of the app."""

_APP_CODES = frozenset({4, 17})
_PAGES_CODES = frozenset({32, 80001})


@dataclass(slots=True)
class Block:
    """Calls are refused with `error` until `until` on the clock; each of them adds `grow` seconds."""

    error: GraphError
    until: float
    grow: float
    calls: int = 0
    """How many were made into it."""


class Blocks:
    """The blocks in force: of a Page, or of the app with codes 4 and 17."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._blocks: dict[str, Block] = {}

    def begin(self, page_id: str, error: GraphError, seconds: float, grow: float) -> None:
        """From now on for `seconds` calls of the Page (or the app) are refused with `error`."""
        scope = APP if error.code in _APP_CODES else page_id
        self._blocks[scope] = Block(error, self._clock() + seconds, grow)

    def check(self, page_id: str | None) -> GraphError | None:
        """What a call that arrives now is refused with; it prolongs the block it runs into."""
        block = self._in_force(APP) or (self._in_force(page_id) if page_id is not None else None)
        if block is None:
            return None
        block.calls += 1
        block.until += block.grow
        return block.error.with_traceback(None)

    def usage(self, page_id: str) -> dict[str, Any] | None:
        """An entry of the Page's usage header while it is blocked: 100 percent and the minutes to wait."""
        block = self._in_force(page_id)
        if block is None:
            return None
        return {
            "type": "pages" if block.error.code in _PAGES_CODES else "messenger",
            "call_count": 100 + block.calls,
            "total_cputime": 25,
            "total_time": 25,
            "estimated_time_to_regain_access": max(1, math.ceil((block.until - self._clock()) / 60)),
        }

    def app_usage(self) -> dict[str, int] | None:
        """`X-App-Usage` while the app is blocked. It does not tell how long."""
        block = self._in_force(APP)
        return None if block is None else plain_usage(100 + block.calls)

    def clear(self) -> None:
        self._blocks.clear()

    def _in_force(self, scope: str) -> Block | None:
        block = self._blocks.get(scope)
        if block is not None and self._clock() >= block.until:
            del self._blocks[scope]
            return None
        return block
