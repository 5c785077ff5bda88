"""How much to ask for at once: as much as Meta allows, less where it says "reduce the amount of data".

That error never goes away at the same size. So a page that was refused is asked for again at half
the size, down to single items; a list whose single items are refused is asked for without messages,
and its threads are then read one by one. After a while of successes the sizes grow again, more
reluctantly each time growing turned out to be too early.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MESSAGES_LIMIT: Final = 100  # more is cut by Meta without a word
# Most threads are short: asking for all that may be had of each costs little, and spares the long
# ones their first calls. Of 1,000 threads with 30 messages on average, 25 x 100 reads the whole in
# 170 calls and at most 831 messages at once; 50 x 25 takes 373 calls and 662.
NESTED_LIMIT: Final = MESSAGES_LIMIT
LIST_LIMIT: Final = 25
# Where little has changed the list is what costs, and a few messages of each thread tell what has.
CHANGES_LIST_LIMIT: Final = 200
CHANGES_NESTED_LIMIT: Final = 10
_FIRST_PATIENCE: Final = 4
_LAST_PATIENCE: Final = 256


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one request. `nested` is the messages asked for with each conversation of a list."""

    limit: int
    nested: int = 0

    def halved(self, full: Size) -> Size | None:
        """The next smaller request; `None` if this is the smallest."""
        if self.limit > 1 and 1 < self.nested <= CHANGES_NESTED_LIMIT:
            # A list that only looks for changes still sees them with one message each.
            return Size(self.limit, 1)
        if self.limit > 1:
            return Size(self.limit // 2, self.nested)
        # Without messages a list is light: it may be long again.
        return Size(full.limit, 0) if self.nested else None

    def rank(self) -> tuple[bool, int, int]:
        return (self.nested > 0, self.limit, self.nested)


@dataclass(slots=True)
class SizeMemory:
    """The size that works for one kind of list of one Page, for the life of the process."""

    full: Size
    current: Size = field(init=False)
    _successes: int = 0
    _patience: int = _FIRST_PATIENCE
    _grown: bool = False

    def __post_init__(self) -> None:
        self.current = self.full

    def within(self, ceiling: Size | None) -> Size:
        """The size to ask for now; never above `ceiling`, the largest that this very page may have."""
        if ceiling is None or self.current.rank() <= ceiling.rank():
            return self.current
        return ceiling

    def refused(self, size: Size) -> Size | None:
        """A request of `size` was too large. Returns the ceiling for that page, `None` if none is left."""
        smaller = size.halved(self.full)
        if smaller is not None and smaller.rank() < self.current.rank():
            self.current = smaller
        if self._grown:
            self._patience = min(self._patience * 2, _LAST_PATIENCE)
        self._grown = False
        self._successes = 0
        return smaller

    def accepted(self, size: Size) -> None:
        """A request of `size` succeeded."""
        if self.current == self.full or size.rank() < self.current.rank():
            return
        self._successes += 1
        if self._successes < self._patience:
            return
        self._successes = 0
        self._grown = True
        if self.current.nested and self.current.limit >= self.full.limit:
            self.current = self.full
        elif self.current.nested < self.full.nested and self.current.limit >= self.full.limit:
            self.current = Size(1, self.full.nested)
        else:
            self.current = Size(min(self.current.limit * 2, self.full.limit), self.current.nested)


@dataclass(slots=True)
class PageMemory:
    """What is remembered of a Page between runs in one process."""

    lists: SizeMemory = field(default_factory=lambda: SizeMemory(Size(LIST_LIMIT, NESTED_LIMIT)))
    changes: SizeMemory = field(
        default_factory=lambda: SizeMemory(Size(CHANGES_LIST_LIMIT, CHANGES_NESTED_LIMIT))
    )
    contacts: SizeMemory = field(default_factory=lambda: SizeMemory(Size(1, NESTED_LIMIT)))
    threads: SizeMemory = field(default_factory=lambda: SizeMemory(Size(MESSAGES_LIMIT)))
    unknown_fields: set[str] = field(default_factory=set)  # those this version of Graph does not have
