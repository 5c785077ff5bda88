"""How much to ask for at once: as much as Meta allows, less where it says "reduce the amount of data".

The database decides and remembers (`request_size`, `record_request_size`), so that what one process was
refused no other asks for again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from convsync.sync.ports import SizeStore

_T = TypeVar("_T")
Outcome: TypeAlias = Literal["accepted", "refused", "suspected"]

MESSAGES_LIMIT: Final = 100  # more is cut by Meta without a word
CONVERSATIONS_LIMIT: Final = 200  # likewise
# Calls are what a sync waits for, and most threads are short: to ask for all that may be had of each costs
# little, and spares the long ones their first calls. Meta says where that is too much.
NESTED_LIMIT: Final = MESSAGES_LIMIT
# Where little has changed a few messages of each thread tell what has.
CHANGES_NESTED_LIMIT: Final = 10


class Patiently(Protocol):
    async def __call__(self, what: Callable[[], Awaitable[_T]]) -> _T:
        """Call the database, again while it is away, for as long as that makes sense."""
        ...


@dataclass(frozen=True, slots=True)
class Size:
    """The size of one request. `nested` is the messages asked for with each conversation."""

    limit: int
    nested: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """One request, whatever its size: `name` tells it from the others of its kind."""

    kind: str
    name: str

    @property
    def full(self) -> Size:
        """The most that is ever asked for."""
        return _FULL[self.kind]


_FULL: Final = {
    "list": Size(CONVERSATIONS_LIMIT, NESTED_LIMIT),
    "changes": Size(CONVERSATIONS_LIMIT, CHANGES_NESTED_LIMIT),
    "thread": Size(MESSAGES_LIMIT),
    "conversation": Size(1, NESTED_LIMIT),
}


def list_place(cursor: str | None, mode: str = "full", walk_pass: int = 1) -> Place:
    """The page of a Page's list at `cursor`. All modes but `full` look for what has changed, and so does who
    reads the front once more.
    """
    return Place("list" if mode == "full" and walk_pass == 1 else "changes", cursor or "")


def thread_place(thread_id: str, cursor: str | None) -> Place:
    """The page of a thread's messages at `cursor`."""
    return Place("thread", f"{thread_id} {cursor or ''}")


def conversation_place(thread_id: str) -> Place:
    """A conversation with its newest messages."""
    return Place("conversation", thread_id)


def person_place(sender_id: str, cursor: str | None = None) -> Place:
    """The page of the list of a person's conversations at `cursor`, one with its newest messages."""
    return Place("conversation", f"person {sender_id} {cursor}" if cursor else f"person {sender_id}")


class Sizes:
    """The sizes of one Page's requests. `patiently` makes each call of the database."""

    def __init__(self, store: SizeStore, page_id: str, patiently: Patiently) -> None:
        self._store = store
        self._page_id = page_id
        self._patiently = patiently

    async def now(self, place: Place) -> Size:
        """The size to ask for now: never one that was refused there, unless nothing smaller is left."""
        found = await self._patiently(
            lambda: self._store.request_size(
                page_id=self._page_id,
                kind=place.kind,
                place=place.name,
                full_limit=place.full.limit,
                full_nested=place.full.nested,
            )
        )
        return Size(found.size_limit, found.nested)

    async def accepted(self, place: Place, size: Size) -> None:
        """A request of `size` succeeded."""
        if size != place.full:
            await self._record(place, size, "accepted")

    async def refused(self, place: Place, size: Size) -> bool:
        """A request of `size` was too large; whether a smaller one can be made."""
        return await self._record(place, size, "refused")

    async def suspected(self, place: Place, size: Size) -> None:
        """A request of `size` failed in a way that a smaller one may not."""
        await self._record(place, size, "suspected")

    async def _record(self, place: Place, size: Size, outcome: Outcome) -> bool:
        return await self._patiently(
            lambda: self._store.record_request_size(
                page_id=self._page_id,
                kind=place.kind,
                place=place.name,
                size_limit=size.limit,
                nested=size.nested,
                outcome=outcome,
                full_limit=place.full.limit,
                full_nested=place.full.nested,
            )
        )
