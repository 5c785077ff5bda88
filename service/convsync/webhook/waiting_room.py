"""Who waits for the group commit: bounded in all, bounded per Page, served in turn. No I/O."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from convsync.facts import DeadLetter, Fact, PageEvent

Key = tuple[str, str]


class RefusedError(Exception):
    """The delivery is not known to be committed: HTTP 503, and Meta sends it again."""


class QueueFull(RefusedError):
    """Too much is waiting, in all or for one Page. Nothing of the delivery was taken."""


class TookTooLong(RefusedError):
    """The patience is over. The commit may still follow, which makes the repetition harmless."""


class Unavailable(RefusedError):
    """The database is away, or the service is stopping."""


class Submitted(Protocol):
    """What is needed of a delivery."""

    @property
    def facts(self) -> Sequence[Fact]: ...

    @property
    def size(self) -> int:
        """How many bytes it keeps."""

    def bytes_of(self, fact: Fact) -> bytes:
        """The bytes that told one of its facts, for a dead letter."""


@dataclass(slots=True, eq=False)
class Entry:
    """One delivery on its way. `outcome` resolves to None after the commit, else to the refusal; it is
    cancelled if its submitter is.

    `abandoned`: its submitter has already been told that it took too long. `held_back`: it had to wait once
    for another delivery of one of its conversations.
    """

    delivery: Submitted
    facts: Sequence[Fact]
    weights: Mapping[str, int]
    size: int
    deadline: float
    outcome: asyncio.Future[RefusedError | None]
    abandoned: bool = False
    held_back: bool = False

    def conversations(self) -> set[Key]:
        """(page_id, sender_id) of the conversations it touches."""
        return {
            (fact.page_id, fact.sender_id)
            for fact in self.facts
            if not isinstance(fact, (DeadLetter, PageEvent))
        }


class WaitingRoom:
    """The deliveries accepted and not yet settled, and those of them that still queue.

    Its measures are the fact and the byte, for one fact may be megabytes: at most `max_waiting` facts and
    `max_bytes` are held, wherever they are, and at most half of each for one Page. (The bytes of a delivery
    count for each Page in it.) One larger than its bound is taken if nothing else is held against it.
    """

    def __init__(self, max_waiting: int, max_bytes: int) -> None:
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._queues: OrderedDict[str, deque[Entry]] = OrderedDict()  # the first Page is served next
        self._open: set[Entry] = set()
        self._held: Counter[str] = Counter()
        self._held_bytes: Counter[str] = Counter()
        self.held = 0
        self.bytes_held = 0
        self.queued = 0
        self.empty = asyncio.Event()
        self.empty.set()

    def __bool__(self) -> bool:
        """Whether anything queues."""
        return bool(self._queues)

    def enter(
        self, delivery: Submitted, deadline: float, outcome: asyncio.Future[RefusedError | None]
    ) -> Entry:
        """Take a delivery in. Raises QueueFull."""
        facts = delivery.facts
        weights = _weights(facts)
        size = delivery.size
        full = self.held and (
            self.held + len(facts) > self._max_waiting or self.bytes_held + size > self._max_bytes
        )
        if full or any(self._crowded(page, more, size) for page, more in weights.items()):
            raise QueueFull("too much is waiting" + ("" if full else " for one Page"))
        entry = Entry(delivery, facts, weights, size, deadline, outcome)
        self._open.add(entry)
        self._held.update(weights)
        self._held_bytes.update(dict.fromkeys(weights, size))
        self.held += len(facts)
        self.bytes_held += size
        self.empty.clear()
        self._queue(entry).append(entry)
        self.queued += len(facts)
        return entry

    def _crowded(self, page: str, facts: int, size: int) -> bool:
        return self._held[page] > 0 and (
            self._held[page] + facts > self._max_waiting // 2
            or self._held_bytes[page] + size > self._max_bytes // 2
        )

    def put_back(self, entry: Entry) -> None:
        """One that was taken and is not settled queues again, as the first of its Page."""
        self._queue(entry).appendleft(entry)
        self.queued += len(entry.facts)

    def _queue(self, entry: Entry) -> deque[Entry]:
        return self._queues.setdefault(max(entry.weights, key=entry.weights.__getitem__), deque())

    def take(self, max_facts: int, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        """The next batch: one delivery of each Page in turn, until it is full.

        What is `unwanted` leaves the queue too, but is not in the batch: the caller has seen to it.
        """
        batch: list[Entry] = []
        size = 0
        while self._queues:
            page, queue = next(iter(self._queues.items()))
            entry = queue[0]
            if batch and size + len(entry.facts) > max_facts:
                break  # this Page stays first, so the next batch begins with it
            queue.popleft()
            self.queued -= len(entry.facts)
            if queue:
                self._queues.move_to_end(page)
            else:
                del self._queues[page]
            if not unwanted(entry):
                batch.append(entry)
                size += len(entry.facts)
        return batch

    def settle(self, entry: Entry, refusal: RefusedError | None) -> bool:
        """Answer the submitter and give the room back; false if that was done before."""
        if entry not in self._open:
            return False
        self._open.discard(entry)
        self._held.subtract(entry.weights)
        self._held_bytes.subtract(dict.fromkeys(entry.weights, entry.size))
        for page in entry.weights:
            if not self._held[page]:
                del self._held[page], self._held_bytes[page]
        self.held -= len(entry.facts)
        self.bytes_held -= entry.size
        if not entry.outcome.done():  # cancelled, or told that it took too long
            entry.outcome.set_result(refusal)
        if not self._open:
            self.empty.set()
        return True

    def clear(self) -> list[Entry]:
        """Let nothing queue any more; answers everything that is not settled."""
        self._queues.clear()
        self.queued = 0
        return list(self._open)


def _weights(facts: Iterable[Fact]) -> Mapping[str, int]:
    return Counter(fact.page_id for fact in facts)
