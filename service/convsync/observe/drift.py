"""Schema drift: names of fields and events that nobody here has heard of, counted beside the work.

A new field comes in every delivery from one day to the next. So `saw` only adds in memory, and `run` writes
the sums at most every few seconds. Whatever the database does, a webhook neither waits for it nor fails;
what could not be written is written the next time (twice, if only the answer was lost).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import structlog

Source: TypeAlias = Literal["webhook", "sync"]
_Key: TypeAlias = tuple[str, Source, str]  # page_id, source, name

# What is counted under no name of its own, because too many others are; the database calls it so too.
OTHER: Final = "(other)"
_WRITE_SECONDS: Final = 5.0
_NAMES: Final = 2_000
_WARNED: Final = 10_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Drift:
    """So often came this name; `page_id` is empty where it is unknown."""

    page_id: str
    source: Source
    name: str
    occurrences: int


class DriftRecorder:
    """Counts names, and warns of each once. `run` does the writing and is owned by the application.

    `write` adds all the counts it is given, or none. `is_poison` tells the errors with which they would be
    refused for ever. `names` bounds what is held in memory; the rest is counted under `(other)`.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Drift]], Awaitable[object]],
        *,
        is_poison: Callable[[BaseException], bool],
        every: float = _WRITE_SECONDS,
        names: int = _NAMES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._write = write
        self._is_poison = is_poison
        self._every = every
        self._names = names
        self._sleep = sleep
        self._counts: Counter[_Key] = Counter()
        self._warned: set[_Key] = set()
        self._some = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Occurrences that are not written yet."""
        return self._counts.total()

    def saw(self, source: Source, names: Iterable[tuple[str, str]]) -> None:
        """Count each (page_id, name). Never waits, never fails."""
        for page_id, name in names:
            key = (page_id, source, name)
            if key not in self._warned and len(self._warned) < _WARNED:
                self._warned.add(key)
                _log.warning("schema_drift", source=source, page_id=page_id, name=name)
            self._add(key, 1)

    async def run(self) -> None:
        """Write what was seen, until cancelled: at once after a quiet time, else every few seconds."""
        while True:
            await self._some.wait()
            await self._attempt()
            await self._sleep(self._every)

    async def close(self, seconds: float) -> None:
        """Write what is left, once `run` has ended; gives up after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._attempt()
        except TimeoutError:
            pass
        if self._counts:
            _log.warning("schema_drift_lost", names=len(self._counts), occurrences=self.waiting)

    async def _attempt(self) -> None:
        try:
            await self._flush()
        except Exception as error:
            # Whatever it is, the application goes on, and the counts wait.
            _log.warning("schema_drift_not_written", error=str(error), occurrences=self.waiting)

    async def _flush(self) -> None:
        taken, self._counts = self._counts, Counter()
        self._some.clear()
        if not taken:
            return
        try:
            await self._write([Drift(*key, count) for key, count in taken.items()])
        except BaseException as error:
            if not self._is_poison(error):
                for key, count in taken.items():
                    self._add(key, count)
            raise

    def _add(self, key: _Key, count: int) -> None:
        if key not in self._counts and len(self._counts) >= self._names:
            key = ("", key[1], OTHER)
        self._counts[key] += count
        self._some.set()
