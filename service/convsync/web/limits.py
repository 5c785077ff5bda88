"""How often a key may call: so many requests a minute, of which all may come at once. And how many
event streams may be open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from convsync.errors import ConvsyncError

_MINUTE = 60.0
_STREAMS_AGAIN_SECONDS = 10


class TooManyRequests(ConvsyncError):
    """The key has used up its requests of this minute; `Retry-After` says when there is one again."""

    code, status, title = "too_many_requests", 429, "Too many requests"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyStreams(ConvsyncError):
    """This process has as many event streams open as it may; a request without one is answered as ever."""

    code, status, title = "too_many_streams", 503, "Too many streams"
    retry_after = _STREAMS_AGAIN_SECONDS


class RateLimit:
    """Of each key, in this process. A minute's worth may come at once; from then on they come back evenly."""

    def __init__(self, per_minute: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._each = _MINUTE / per_minute if per_minute else 0.0
        self._now = now
        # Until when a key has used what comes back evenly. One number per key, and keys are few.
        self._used_until: dict[str, float] = {}

    def take(self, key: str) -> None:
        """Count a request of this key, or refuse it: what is refused does not count."""
        now = self._now()
        used_until = max(self._used_until.get(key, now), now) + self._each
        if used_until - now > _MINUTE + 1e-6:  # what a minute's worth of additions is rounded by
            wait = max(1, math.ceil(used_until - now - _MINUTE))
            raise TooManyRequests(f"this key may call again in {wait} s", retry_after=wait)
        self._used_until[key] = used_until


class Streams:
    """The event streams that are open in this process: each asks the database again and again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """For one stream, while it lasts."""
        if self.open >= self.most:
            raise TooManyStreams(f"this process has its {self.most} event streams open")
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1
