"""Group commit: every delivery waiting now goes to the database in one call.

While one call is in the database the next batch collects; no timer delays a lone delivery. A batch that has
become as large as the one under way does not wait for it: under load the database always finds the next one
ready. Batches that are under way at once have no conversation in common, so that none waits for another's
locks. That saves time and nothing else: the row lock of a conversation orders whatever comes for it. `submit`
returns after the COMMIT of all facts of its delivery, and not before: that is when Meta gets its 200.

What goes wrong, and who pays for it:

- Poison (the database will never take it): the batch is halved down to the one fact, which is kept as a
  dead letter; everything else commits.
- Transient (a deadlock, the database away): the same call again with full jitter, a bounded number of
  times and within the patience of those who wait; then `Unavailable` for that batch.
- A conversation locked by somebody else's session: nobody can tell which one it is before the call has
  waited a second for it (55P03). So a call that takes long is overtaken by the next batches. After 55P03
  the deliveries of that batch go on one by one beside the main lane. Those of the locked conversation keep
  trying; and until one of them has passed, what comes for it stays out of the main lane. The lanes beside it
  do not ask what else is under way, they are there to wait: one that waits for a lock may hold the lock of
  another conversation of its delivery meanwhile, and who needs that is overtaken in its turn.
- Cancelled by a timeout (57014): halved, since the same size would be cancelled again.
- Anything else (a defect): halved as well, so that one delivery cannot hold up the others for ever; only
  as often as it takes to find a single culprit, because what fails everywhere is nobody's fault.

Order is not kept and need not be: facts commute.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from convsync.facts import DeadLetter, Fact
from convsync.webhook.waiting_room import (
    Entry,
    Key,
    QueueFull,
    RefusedError,
    Submitted,
    TookTooLong,
    Unavailable,
    WaitingRoom,
)

__all__ = [
    "GroupCommit",
    "QueueFull",
    "RefusedError",
    "Submitted",
    "TookTooLong",
    "Unavailable",
    "dead_letter",
]

LOCKED = "55P03"
CANCELLED = "57014"
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_ATTEMPTS = 8
_STUCK_FOR = 600.0
_PRUNE_ABOVE = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Call:
    """A batch that is in the database."""

    facts: int
    overtaken: bool = False


def dead_letter(fact: Fact, error: BaseException, raw: bytes) -> DeadLetter:
    """The fact the database refused, as the bytes that told it, with the database's own short reason."""
    diag = getattr(error, "diag", None)
    # Not str(error): what a driver prints holds the failing row and the query.
    message = getattr(error, "message", None) or getattr(diag, "message_primary", None)
    state = getattr(error, "sqlstate", None)
    parts = [str(part) for part in (state, message or type(error).__name__) if part]
    return DeadLetter(fact.page_id, "refused: " + " ".join(parts)[:300], raw)


class GroupCommit:
    """Commits deliveries in groups. `run()` does the work and is owned by the application.

    `ingest` commits all the facts of one call or none. `max_waiting` bounds the facts accepted and not yet
    settled, wherever they are, and `max_bytes` the deliveries that told them; no Page may hold more than half
    of either. (A delivery larger than its bound is taken if nothing else is held against it.) `max_batch`
    bounds the facts of one call; a delivery is never divided between calls unless it has to be. A call that
    takes longer than `overtake_after` is overtaken, with no more than `main_calls` under way. Seconds
    everywhere, on the event loop's clock.
    """

    def __init__(
        self,
        ingest: Callable[[Sequence[Fact]], Awaitable[None]],
        *,
        is_poison: Callable[[BaseException], bool],
        is_transient: Callable[[BaseException], bool],
        to_dead_letter: Callable[[Fact, BaseException, bytes], DeadLetter] = dead_letter,
        max_waiting: int = 20_000,
        max_bytes: int = 64 * 1024 * 1024,
        max_batch: int = 2_500,
        patience: float = 4.0,
        call_timeout: float = 15.0,
        overtake_after: float = 0.1,
        main_calls: int = 3,
        side_lanes: int = 2,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ingest = ingest
        self._is_poison = is_poison
        self._is_transient = is_transient
        self._to_dead_letter = to_dead_letter
        self._room = WaitingRoom(max_waiting, max_bytes)
        self._max_batch = max_batch
        self._patience = patience
        self._call_timeout = call_timeout
        self._overtake_after = overtake_after
        self._main_calls = main_calls
        self._side_lanes = side_lanes
        self._random = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._sleep = sleep

        self._suspects: deque[Entry] = deque()  # from a batch that met a locked conversation
        self._stuck: deque[Entry] = deque()  # of a conversation known to be locked
        # Until when it is taken to be locked. One that passes ends that sooner: the time only bounds memory.
        self._stuck_keys: dict[Key, float] = {}
        self._under_way: dict[Entry, set[Key]] = {}  # what went into a batch and is not settled
        self._occupied: Counter[Key] = Counter()  # how many of those a conversation has
        self._held: dict[Key, list[Entry]] = {}  # until nothing of the conversation is under way
        self._overlooked: set[Entry] = set()  # held back more than once, of several conversations in turn

        self._calls: set[_Call] = set()
        self._patient: deque[Entry] = deque()  # in the order of their deadlines
        self._patience_ends: asyncio.TimerHandle | None = None

        self._work = asyncio.Event()
        self._side_work = asyncio.Condition()
        self._halt = asyncio.Event()
        self._ended = asyncio.Event()
        self._closing = False
        self._running = False

        # Counters, only ever rising. deliveries and facts: committed (a dead letter is a fact).
        self.deliveries = 0
        self.facts = 0
        self.batches = 0  # calls that committed
        self.retries = 0
        self.poison = 0
        self.isolated = 0  # batches taken apart because of a locked conversation
        self.refused_full = 0
        self.refused_late = 0
        self.refused_unavailable = 0

    @property
    def waiting(self) -> int:
        """Facts accepted and not yet settled."""
        return self._room.held

    async def submit(self, delivery: Submitted) -> None:
        """Return once all facts of the delivery are committed. Raises QueueFull, TookTooLong, Unavailable.

        Cancelling this call gives up the answer only: the delivery stays in its batch.
        """
        facts = delivery.facts
        if self._closing:
            self.refused_unavailable += 1
            raise Unavailable("the service is stopping")
        if not facts:
            self.deliveries += 1
            return
        loop = asyncio.get_running_loop()
        try:
            entry = self._room.enter(delivery, loop.time() + self._patience, loop.create_future())
        except QueueFull:
            self.refused_full += 1
            raise
        self._patient.append(entry)
        if self._patience_ends is None:
            self._patience_ends = loop.call_at(entry.deadline, self._lose_patience)
        self._work.set()
        refusal = await entry.outcome
        if refusal is not None:
            raise refusal

    def _lose_patience(self) -> None:
        """Tell those who have waited too long. One timer serves all: patience is the same for everybody."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._patient and (self._patient[0].outcome.done() or self._patient[0].deadline <= now):
            entry = self._patient.popleft()
            if not entry.outcome.done():
                entry.abandoned = True
                self.refused_late += 1
                entry.outcome.set_result(TookTooLong(f"not committed within {self._patience:g} s"))
        self._patience_ends = (
            loop.call_at(self._patient[0].deadline, self._lose_patience) if self._patient else None
        )

    async def run(self) -> None:
        """Commit what is submitted, until `close`. To be run once, in a task of the application."""
        if self._running:
            raise RuntimeError("a GroupCommit runs once")
        if self._ended.is_set():
            return  # closed before it began
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                lanes = [group.create_task(self._main_lane())]
                lanes += [group.create_task(self._side_lane()) for _ in range(self._side_lanes)]
                await self._halt.wait()
                for lane in lanes:
                    lane.cancel()
        finally:
            self._refuse_all()
            if self._patience_ends is not None:
                self._patience_ends.cancel()
            self._ended.set()

    async def close(self, drain: float) -> None:
        """Take nothing more; commit what was accepted for up to `drain` seconds, refuse the rest."""
        self._closing = True
        if self._running:
            try:
                async with asyncio.timeout(drain):
                    await self._room.empty.wait()
            except TimeoutError:
                pass
            self._halt.set()
            await self._ended.wait()
        else:
            self._refuse_all()
            self._ended.set()

    def _settle(self, entry: Entry, refusal: RefusedError | None = None) -> None:
        """Answer the submitter. Once only; later calls do nothing."""
        self._free(entry)
        self._overlooked.discard(entry)
        if not self._room.settle(entry, refusal):
            return
        while self._patient and self._patient[0].outcome.done():
            self._patient.popleft()  # else each delivery would stay in memory for as long as its patience
        if refusal is None:
            self.deliveries += 1
            self.facts += len(entry.facts)
        elif not entry.abandoned:
            self.refused_unavailable += 1

    def _refuse(self, entries: Iterable[Entry], why: str = "the database refused the call") -> None:
        for entry in entries:
            self._settle(entry, Unavailable(why))

    def _refuse_all(self) -> None:
        self._closing = True
        self._held.clear()
        self._overlooked.clear()
        self._refuse(self._room.clear(), "the service is stopping")
        self._suspects.clear()
        self._stuck.clear()

    # The main lane: batches.

    async def _main_lane(self) -> None:
        async with asyncio.TaskGroup() as calls:
            while True:
                await self._work.wait()
                self._work.clear()
                while self._room and self._may_call():
                    batch = await self._collect()
                    if batch:
                        self._begin(calls, batch)

    def _may_call(self) -> bool:
        if len(self._calls) >= self._main_calls:
            return False
        ahead = [call.facts for call in self._calls if not call.overtaken]
        if self._overlooked:
            # Two calls in alternation would keep one of its conversations occupied for ever.
            return not ahead
        return not ahead or (len(ahead) == 1 and self._room.queued >= ahead[0])

    def _begin(self, calls: asyncio.TaskGroup, batch: Sequence[Entry]) -> None:
        call = _Call(sum(len(entry.facts) for entry in batch))

        def overtake() -> None:
            call.overtaken = True
            self._work.set()

        def end(_task: asyncio.Task[None]) -> None:
            timer.cancel()
            self._calls.discard(call)
            self._work.set()

        self._calls.add(call)
        for entry in batch:
            self._occupy(entry)
        timer = asyncio.get_running_loop().call_later(self._overtake_after, overtake)
        work = self._commit(batch, [len(batch).bit_length() + 1])
        calls.create_task(self._guarded(batch, work)).add_done_callback(end)

    async def _guarded(self, entries: Sequence[Entry], work: Awaitable[None]) -> None:
        """A defect in here must cost one batch, not the lane."""
        try:
            await work
        except Exception:
            _log.exception("group_commit.defect", deliveries=len(entries))
            self._refuse(entries, "an unexpected error")

    async def _collect(self) -> list[Entry]:
        """The next batch, without what would only hold it up."""
        aside: list[Entry] = []
        now = asyncio.get_running_loop().time()

        def unwanted(entry: Entry) -> bool:
            if entry.abandoned:
                # Its sender has been told 503 and will repeat it: spend the time on those who still wait.
                self._settle(entry, TookTooLong())
                return True
            if self._stuck_keys and self._is_stuck(entry, now):
                aside.append(entry)
                return True
            return bool(self._occupied) and self._hold_back(entry)

        batch = self._room.take(self._max_batch, unwanted)
        if aside:
            await self._put_aside(self._stuck, aside)
        return batch

    async def _commit(self, entries: Sequence[Entry], allowance: list[int]) -> None:
        """Commit the deliveries and answer their submitters.

        `allowance` (one number, shared by the halves) is how many more failures that nothing explains are
        borne: to find a single culprit by halving takes as many as the number of deliveries has bits.
        """
        facts = [fact for entry in entries for fact in entry.facts]
        try:
            await self._call(facts, max(entry.deadline for entry in entries))
        except Unavailable as refusal:
            self._refuse(entries, str(refusal))
        except Exception as error:
            if _sqlstate(error) == LOCKED:
                self.isolated += 1
                _log.warning("group_commit.locked", deliveries=len(entries))
                await self._isolate(entries)
                return
            if not self._divisible(error):
                _log.error("group_commit.failed", error=type(error).__name__, sqlstate=_sqlstate(error))
                allowance[0] -= 1
                if allowance[0] <= 0 or len(entries) == 1:
                    self._refuse(entries)
                    return
            if len(entries) == 1:
                await self._commit_apart(entries[0], error)
                return
            middle = len(entries) // 2
            await self._commit(entries[:middle], allowance)
            if allowance[0] > 0:
                await self._commit(entries[middle:], allowance)
            else:
                self._refuse(entries[middle:])
        else:
            for entry in entries:
                self._settle(entry)

    async def _commit_apart(self, entry: Entry, refusal: Exception) -> None:
        """Commit a delivery that as a whole met `refusal`, in as many calls as it takes."""
        try:
            await self._divide(entry, entry.facts, refusal)
        except Unavailable as unavailable:
            self._settle(entry, unavailable)
        except Exception as error:
            if _sqlstate(error) == LOCKED:
                await self._isolate([entry])  # what is committed by then may repeat
                return
            _log.error("group_commit.failed", error=type(error).__name__, sqlstate=_sqlstate(error))
            self._refuse([entry])
        else:
            self._settle(entry)

    async def _divide(self, entry: Entry, facts: Sequence[Fact], refusal: Exception) -> None:
        """Commit facts of one delivery that together met `refusal`; poison becomes dead letters."""
        if len(facts) > 1:
            middle = len(facts) // 2
            for half in (facts[:middle], facts[middle:]):
                try:
                    await self._call(half, entry.deadline)
                except Exception as error:
                    if not self._divisible(error):
                        raise
                    await self._divide(entry, half, error)
            return
        fact = facts[0]
        if not self._is_poison(refusal) or isinstance(fact, DeadLetter):
            raise refusal
        self.poison += 1
        letter = self._to_dead_letter(fact, refusal, entry.delivery.bytes_of(fact))
        _log.error("group_commit.poison", page_id=fact.page_id, reason=letter.reason)
        await self._call([letter], entry.deadline)

    def _divisible(self, error: Exception) -> bool:
        return self._is_poison(error) or _sqlstate(error) == CANCELLED

    async def _call(self, facts: Sequence[Fact], deadline: float) -> None:
        """One ingest, repeated while its failure is transient, then Unavailable.

        What another division of the facts may help against is raised at once, as it came.
        """
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(self._call_timeout):
                    await self._ingest(facts)
            except Exception as error:
                state = _sqlstate(error)
                if state == LOCKED or (state == CANCELLED and len(facts) > 1):
                    raise
                if not isinstance(error, TimeoutError) and not self._is_transient(error):
                    raise  # poison, or a defect
                attempt += 1
                pause = self._pause(attempt)
                if attempt >= _ATTEMPTS or loop.time() + pause >= deadline:
                    _log.error("group_commit.unavailable", sqlstate=state, attempts=attempt)
                    raise Unavailable("the database is unavailable") from error
                self.retries += 1
                await self._sleep(pause)
            else:
                self.batches += 1
                return

    def _pause(self, attempt: int) -> float:
        """Full jitter: a random part of a bound that doubles."""
        return self._random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt))

    # What went into batches: of one conversation, into one at a time.

    def _occupy(self, entry: Entry) -> None:
        self._overlooked.discard(entry)
        self._under_way[entry] = entry.conversations()
        self._occupied.update(self._under_way[entry])

    def _free(self, entry: Entry) -> None:
        """It is settled: what was held back for its conversations goes on."""
        for key in self._under_way.pop(entry, ()):
            self._occupied[key] -= 1
            if not self._occupied[key]:
                del self._occupied[key]
                for held in reversed(self._held.pop(key, [])):
                    self._room.put_back(held)
                    self._work.set()

    def _hold_back(self, entry: Entry) -> bool:
        key = next((key for key in entry.conversations() if key in self._occupied), None)
        if key is None:
            return False
        self._held.setdefault(key, []).append(entry)
        if entry.held_back:
            self._overlooked.add(entry)
        entry.held_back = True
        return True

    async def _isolate(self, entries: Sequence[Entry]) -> None:
        """Let them go on one by one, of each conversation one first: that tells whether it is locked."""
        firsts: list[Entry] = []
        others: list[Entry] = []
        seen: set[Key] = set()
        for entry in entries:
            keys = entry.conversations()
            (others if keys & seen else firsts).append(entry)
            seen |= keys
        await self._put_aside(self._suspects, firsts)
        await self._put_aside(self._stuck, others)

    # The side lanes: one delivery at a time, around locked conversations.

    async def _put_aside(self, where: deque[Entry], entries: Iterable[Entry]) -> None:
        async with self._side_work:
            where.extend(entries)
            self._side_work.notify_all()

    async def _side_lane(self) -> None:
        while True:
            async with self._side_work:
                await self._side_work.wait_for(lambda: self._suspects or self._stuck)
                # Suspects first: all but one of them are innocent.
                entry = (self._suspects or self._stuck).popleft()
            if entry.abandoned:
                self._settle(entry, TookTooLong())
                continue
            await self._guarded((entry,), self._commit_alone(entry))

    async def _commit_alone(self, entry: Entry) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._call(entry.facts, entry.deadline)
        except Unavailable as refusal:
            self._settle(entry, refusal)
        except Exception as error:
            if self._divisible(error):
                await self._commit_apart(entry, error)
                return
            if _sqlstate(error) != LOCKED:
                _log.error("group_commit.failed", error=type(error).__name__, sqlstate=_sqlstate(error))
                self._refuse([entry])
                return
            self._mark_stuck(entry, loop.time())
            pause = self._pause(2)
            if loop.time() + pause >= entry.deadline:
                self._settle(entry, Unavailable("the conversation is locked"))
                return
            self.retries += 1
            await self._sleep(pause)
            await self._put_aside(self._stuck, [entry])
        else:
            for key in entry.conversations():
                self._stuck_keys.pop(key, None)
            self._settle(entry)

    def _mark_stuck(self, entry: Entry, now: float) -> None:
        if len(self._stuck_keys) > _PRUNE_ABOVE:
            self._stuck_keys = {key: until for key, until in self._stuck_keys.items() if until > now}
        for key in entry.conversations():
            self._stuck_keys[key] = now + _STUCK_FOR

    def _is_stuck(self, entry: Entry, now: float) -> bool:
        return any(self._stuck_keys.get(key, 0.0) > now for key in entry.conversations())


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None
