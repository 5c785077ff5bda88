"""The group commit against a database that is told how to fail."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from convsync.facts import DeadLetter, Fact, Message
from convsync.webhook.group_commit import (
    GroupCommit,
    QueueFull,
    RefusedError,
    TookTooLong,
    Unavailable,
    dead_letter,
)
from convsync.webhook.waiting_room import Entry, WaitingRoom

AT = datetime(2026, 11, 3, tzinfo=UTC)
POISON_STATES = ("22021", "23514", "ZC003")
TRANSIENT_STATES = ("40001", "40P01", "55P03", "57014", "08006", "53300", "57P01")


@dataclass
class Delivery:
    facts: list[Fact] = field(default_factory=list)
    size: int = 100

    def bytes_of(self, fact: Fact) -> bytes:
        assert any(one is fact for one in self.facts)
        return b'{"message_id":"%b"}' % name(fact).encode()


class Failure(Exception):
    def __init__(self, sqlstate: str, message: str = "refused by the test") -> None:
        super().__init__(f"{message} DETAIL: Failing row contains (secret)")
        self.sqlstate = sqlstate
        self.message = message


def is_poison(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) in POISON_STATES


def is_transient(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) in TRANSIENT_STATES


def fact(mid: str, page: str = "1", person: str = "9") -> Message:
    return Message(page, person, mid, "in", AT, text=mid)


def delivery(*mids: str, page: str = "1", person: str = "9") -> Delivery:
    return Delivery([fact(mid, page, person) for mid in mids])


def name(one: Fact) -> str:
    if isinstance(one, DeadLetter):
        return "dead:" + str(orjson.loads(one.raw)["message_id"])
    assert isinstance(one, Message)
    return one.message_id


class Database:
    """Takes all facts of a call or none. `rule` raises; `gate` holds calls while it is closed."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.stored: Counter[str] = Counter()
        self.letters: list[DeadLetter] = []
        self.rule: Callable[[list[str]], None] = lambda names: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.at_once = self.most_at_once = 0

    async def ingest(self, facts: Sequence[Fact]) -> None:
        names = [name(one) for one in facts]
        self.calls.append(names)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.set()
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            self.rule(names)
        finally:
            self.at_once -= 1
        self.stored.update(names)
        self.letters += [one for one in facts if isinstance(one, DeadLetter)]

    def fail(self, times: int, state: str) -> None:
        left = [times]

        def rule(names: list[str]) -> None:
            if left[0] > 0:
                left[0] -= 1
                raise Failure(state)

        self.rule = rule

    def refuse(self, state: str, *bad: str) -> None:
        """Any call with one of `bad` in it fails."""

        def rule(names: list[str]) -> None:
            if set(bad) & set(names):
                raise Failure(state, f"cannot take {bad[0]}")

        self.rule = rule


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - to be repeatable, not secret


async def soon(_: float) -> None:
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(database: Database, **options: Any) -> AsyncIterator[GroupCommit]:
    # Nothing is overtaken, however slow the machine is, but where a test is about that.
    options = {"sleep": soon, "rng": seeded(1), "overtake_after": 60.0, **options}
    commit = GroupCommit(database.ingest, is_poison=is_poison, is_transient=is_transient, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(commit.run())
        await asyncio.sleep(0)
        try:
            yield commit
        finally:
            database.gate.set()
            await commit.close(0.2)
    assert commit.waiting == 0


async def together(*submits: Awaitable[None]) -> list[BaseException | None]:
    return await asyncio.gather(*submits, return_exceptions=True)


async def hold(database: Database, commit: GroupCommit, group: asyncio.TaskGroup) -> asyncio.Task[None]:
    """Put a call into the database that stays there until the gate opens, so that what follows collects."""
    database.gate.clear()
    database.entered.clear()
    task = group.create_task(commit.submit(delivery("held")))
    await database.entered.wait()
    return task


async def test_a_lone_delivery_goes_out_at_once_and_returns_after_its_commit() -> None:
    database = Database()
    async with running(database) as commit:
        await commit.submit(delivery("a", "b"))
        assert database.calls == [["a", "b"]]
        assert (commit.deliveries, commit.facts, commit.batches) == (1, 2, 1)


async def test_submit_does_not_return_before_the_commit() -> None:
    database = Database()
    async with running(database) as commit, asyncio.TaskGroup() as group:
        task = await hold(database, commit, group)
        await asyncio.sleep(0.02)
        assert not task.done()
        database.gate.set()
        await task
        assert database.stored == {"held": 1}


async def test_a_delivery_without_facts_costs_no_call() -> None:
    database = Database()
    async with running(database) as commit:
        await commit.submit(Delivery())
        assert database.calls == []
        assert commit.deliveries == 1


async def test_all_that_waits_while_calls_run_goes_out_in_one() -> None:
    database = Database()
    async with running(database) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for number in range(50):
                group.create_task(commit.submit(delivery(f"m{number}", person=f"p{number}")))
            await asyncio.sleep(0.01)
            late = group.create_task(commit.submit(delivery("late", person="late")))
            await asyncio.sleep(0.01)
            assert not late.done()
            database.gate.set()
        # As many as those under way do not wait for them; then the next has to.
        assert [len(call) for call in database.calls] == [1, 50, 1]
        assert database.most_at_once == 2


async def test_a_batch_smaller_than_the_one_under_way_waits_for_it() -> None:
    database = Database()
    async with running(database) as commit, asyncio.TaskGroup() as group:
        database.gate.clear()
        group.create_task(commit.submit(delivery("a", "b", "c", person="first")))
        await database.entered.wait()
        for number in range(2):
            group.create_task(commit.submit(delivery(f"m{number}", person=str(number))))
        await asyncio.sleep(0.01)
        assert len(database.calls) == 1
        group.create_task(commit.submit(delivery("m2", person="2")))
        await asyncio.sleep(0.01)
        assert [len(call) for call in database.calls] == [3, 3]
        database.gate.set()


class OneByOne(Database):
    """Each call ends when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[asyncio.Event] = []

    async def ingest(self, facts: Sequence[Fact]) -> None:
        end = asyncio.Event()
        self.ends.append(end)
        self.calls.append([name(one) for one in facts])
        await end.wait()
        self.stored.update(self.calls[self.ends.index(end)])


async def test_a_delivery_of_several_busy_conversations_has_its_turn() -> None:
    database = OneByOne()

    async def settle() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async with running(database) as commit, asyncio.TaskGroup() as group:
        for person in ("p1", "p2"):
            group.create_task(commit.submit(delivery(f"{person}-0", person=person)))
            await settle()
        assert [len(call) for call in database.calls] == [1, 1]
        both = Delivery([fact("both-1", person="p1"), fact("both-2", person="p2")])
        group.create_task(commit.submit(both))
        # Both conversations go on and on, and there are always two calls that could alternate.
        for turn in range(6):
            for person in ("p1", "p2"):
                group.create_task(commit.submit(delivery(f"{person}-{turn + 1}", person=person)))
            await settle()
            for end in database.ends:
                if not end.is_set():
                    end.set()  # the elder of those under way
                    break
            await settle()
        asked = [place for place, call in enumerate(database.calls) if "both-1" in call]
        while len(database.stored) < 16:
            for end in database.ends:
                end.set()
            await settle()
    # After one more of each at most; which of the two it waits for first is chance.
    assert len(asked) == 1
    assert asked[0] <= 4


async def test_of_one_conversation_there_is_one_call_at_a_time() -> None:
    database = Database()
    async with running(database) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for number in range(50):
                group.create_task(commit.submit(delivery(f"m{number}")))
            await asyncio.sleep(0.01)
            database.gate.set()
        assert [len(call) for call in database.calls] == [1, 50]
        assert database.most_at_once == 1


async def test_a_batch_keeps_to_its_limit_and_a_larger_delivery_goes_alone() -> None:
    database = Database()
    async with running(database, max_batch=10) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for number in range(4):
                group.create_task(commit.submit(delivery(*(f"{number}-{part}" for part in range(4)))))
            group.create_task(commit.submit(delivery(*(f"big-{part}" for part in range(30)))))
            await asyncio.sleep(0.01)
            database.gate.set()
        assert [len(call) for call in database.calls] == [1, 8, 8, 30]


async def test_pages_take_turns_in_a_batch() -> None:
    database = Database()
    async with running(database, max_batch=6) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for number in range(100):
                group.create_task(commit.submit(delivery(f"loud{number}", page="loud")))
            for number in range(3):
                group.create_task(commit.submit(delivery(f"quiet{number}", page="quiet")))
            group.create_task(commit.submit(delivery("shy", page="shy")))
            await asyncio.sleep(0.01)
            database.gate.set()
        assert sorted(database.calls[1]) == ["loud0", "loud1", "loud2", "quiet0", "quiet1", "shy"]
        assert sum(database.stored.values()) == 105


async def test_a_full_queue_refuses_and_takes_again_when_there_is_room() -> None:
    database = Database()
    async with running(database, max_waiting=10) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for page in ("2", "3"):
                group.create_task(commit.submit(delivery(*"abcd", page=page)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await commit.submit(delivery("e", "f", page="4"))
            await asyncio.sleep(0)
            assert commit.waiting == 9
            database.gate.set()
        await commit.submit(delivery("e", "f", page="4"))
        assert commit.refused_full == 1


async def test_no_page_holds_more_than_half_of_the_queue() -> None:
    database = Database()
    async with running(database, max_waiting=10) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            group.create_task(commit.submit(delivery(*"abcd", page="1")))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await commit.submit(delivery("e", page="1"))
            group.create_task(commit.submit(delivery("f", page="2")))
            await asyncio.sleep(0)
            database.gate.set()
        assert database.stored["f"] == 1
        assert database.stored["e"] == 0


async def test_the_half_counts_every_page_of_a_mixed_delivery() -> None:
    database = Database()
    async with running(database, max_waiting=10) as commit, asyncio.TaskGroup() as group:
        await hold(database, commit, group)
        group.create_task(commit.submit(Delivery([fact("a", "2"), *delivery(*"bcde", page="3").facts])))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await commit.submit(Delivery([fact("x", "4"), *delivery("y", "z", page="3").facts]))
        database.gate.set()


async def test_a_delivery_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    database = Database()
    async with running(database, max_waiting=4) as commit:
        await commit.submit(delivery(*(str(number) for number in range(20))))
        assert len(database.stored) == 20


@pytest.mark.parametrize("state", ["40001", "40P01", "08006", "53300", "57P01", "57014"])
async def test_a_transient_failure_is_repeated_until_it_passes(state: str) -> None:
    database = Database()
    database.fail(3, state)
    async with running(database) as commit:
        await commit.submit(delivery("a"))
        assert database.stored == {"a": 1}
        assert (commit.retries, commit.batches) == (3, 1)


async def test_a_call_that_hangs_is_given_up_and_repeated() -> None:
    database = Database()
    async with running(database, call_timeout=0.02) as commit:
        database.gate.clear()
        asyncio.get_running_loop().call_later(0.03, database.gate.set)
        await commit.submit(delivery("a"))
        assert database.stored == {"a": 1}
        assert commit.retries == 1


async def test_pauses_grow_with_full_jitter_and_are_the_same_for_the_same_seed() -> None:
    async def pauses(seed: int) -> list[float]:
        database, slept = Database(), []
        database.fail(6, "40001")

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        async with running(database, sleep=sleep, rng=seeded(seed)) as commit:
            await commit.submit(delivery("a"))
        return slept

    first = await pauses(3)
    assert first == await pauses(3)
    assert first != await pauses(4)
    assert all(0 <= pause <= min(1.0, 0.1 * 2**number) for number, pause in enumerate(first))


async def test_when_the_database_stays_away_everybody_in_the_batch_is_told() -> None:
    database = Database()
    database.fail(10**6, "08006")
    async with running(database) as commit:
        results = await together(*(commit.submit(delivery(f"m{number}")) for number in range(5)))
        assert [type(result) for result in results] == [Unavailable] * 5
        assert len(database.calls) < 50
        assert commit.refused_unavailable == 5
        database.rule = lambda names: None
        await commit.submit(delivery("later"))
        assert database.stored == {"later": 1}


async def test_retries_end_with_the_patience() -> None:
    database = Database()
    database.fail(10**6, "40001")
    async with running(database, patience=0.05, sleep=asyncio.sleep) as commit:
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await commit.submit(delivery("a"))
        assert asyncio.get_running_loop().time() - started <= 0.05


async def test_after_the_patience_the_answer_is_no_even_if_the_commit_follows() -> None:
    database = Database()
    async with running(database, patience=0.03) as commit:
        database.gate.clear()
        with pytest.raises(TookTooLong):
            await commit.submit(delivery("a"))
        assert commit.refused_late == 1
        database.gate.set()
        await commit.close(1)
        assert database.stored == {"a": 1}


async def test_what_nobody_waits_for_any_more_is_not_sent_when_the_queue_was_too_slow() -> None:
    database = Database()
    async with running(database, patience=0.03) as commit:
        async with asyncio.TaskGroup() as group:
            held = asyncio.ensure_future(together(commit.submit(delivery("held"))))
            database.gate.clear()
            await asyncio.sleep(0.01)
            late = await together(*(commit.submit(delivery(f"late{number}")) for number in range(3)))
            assert [type(result) for result in late] == [TookTooLong] * 3
            group.create_task(commit.submit(delivery("fresh")))
            await asyncio.sleep(0)
            database.gate.set()
        await held
        assert database.stored == {"held": 1, "fresh": 1}
        assert commit.waiting == 0


@pytest.mark.parametrize("state", POISON_STATES)
async def test_poison_is_kept_as_a_dead_letter_and_the_rest_commits(state: str) -> None:
    database = Database()
    database.refuse(state, "d3-f2", "d7-f0")
    async with running(database) as commit:
        async with asyncio.TaskGroup() as group:
            await hold(database, commit, group)
            for number in range(12):
                mids = (f"d{number}-f{part}" for part in range(4))
                group.create_task(commit.submit(delivery(*mids, person=str(number))))
            await asyncio.sleep(0.01)
            database.gate.set()
        expected = {f"d{number}-f{part}" for number in range(12) for part in range(4)} | {"held"}
        bad = {"d3-f2", "d7-f0"}
        assert set(database.stored) == expected - bad | {f"dead:{mid}" for mid in bad}
        assert set(database.stored.values()) == {1}
        assert commit.poison == 2
        assert (commit.deliveries, commit.facts) == (13, 49)
        assert commit.retries == 0


async def test_a_dead_letter_holds_the_bytes_that_told_the_fact_and_a_reason_without_the_row() -> None:
    database = Database()
    database.refuse("22021", "bad")
    async with running(database) as commit:
        await commit.submit(delivery("bad", page="7"))
    (letter,) = database.letters
    assert letter.page_id == "7"
    assert letter.reason == "refused: 22021 cannot take bad"
    assert letter.raw == b'{"message_id":"bad"}'
    assert dead_letter(fact("x"), ValueError("secret"), b"").reason == "refused: ValueError"


async def test_a_dead_letter_that_is_refused_itself_is_not_acknowledged() -> None:
    database = Database()
    database.refuse("23514", "bad", "dead:bad")
    async with running(database) as commit:
        with pytest.raises(Unavailable):
            await commit.submit(delivery("bad"))
        await commit.submit(delivery("good"))
        assert database.stored == {"good": 1}


async def test_a_dead_letter_from_the_parser_is_not_wrapped_in_another() -> None:
    database = Database()
    database.refuse("23514", "dead:x")
    async with running(database) as commit:
        with pytest.raises(Unavailable):
            await commit.submit(Delivery([DeadLetter("1", "a reason", b'{"message_id": "x"}')]))
        assert commit.poison == 0


async def test_a_transient_failure_while_poison_is_sought_loses_nothing() -> None:
    database = Database()
    hits = [0]

    def rule(names: list[str]) -> None:
        hits[0] += 1
        if hits[0] % 2:
            raise Failure("40P01")
        if "bad" in names:
            raise Failure("22021")

    database.rule = rule
    async with running(database) as commit:
        await commit.submit(delivery("a", "bad", "b", "c"))
        assert set(database.stored) == {"a", "b", "c", "dead:bad"}


async def test_a_call_cancelled_for_its_length_is_halved() -> None:
    database = Database()

    def rule(names: list[str]) -> None:
        if len(names) > 3:
            raise Failure("57014")

    database.rule = rule
    async with running(database) as commit:
        await commit.submit(delivery(*"abcdefghij"))
        assert database.stored == Counter("abcdefghij")


async def test_an_unexplained_failure_of_one_delivery_does_not_refuse_the_others() -> None:
    database = Database()
    database.refuse("XX000", "d5")
    async with running(database) as commit:
        results = await together(*(commit.submit(delivery(f"d{number}")) for number in range(16)))
        assert [number for number, result in enumerate(results) if result is not None] == [5]
        assert isinstance(results[5], Unavailable)
        assert len(database.stored) == 15


async def test_a_failure_of_every_call_does_not_cost_a_call_per_delivery() -> None:
    database = Database()
    database.fail(10**6, "42883")
    async with running(database) as commit:
        results = await together(*(commit.submit(delivery(f"d{number}")) for number in range(256)))
        assert {type(result) for result in results} == {Unavailable}
        assert len(database.calls) < 15


class Locks:
    """Conversations (by message name prefix) that somebody else's session holds: 55P03."""

    def __init__(self, database: Database, *held: str) -> None:
        self.held = set(held)
        database.rule = self

    def __call__(self, names: list[str]) -> None:
        if any(one.split("-")[0] in self.held for one in names):
            raise Failure("55P03")


async def test_a_locked_conversation_delays_only_its_own_deliveries() -> None:
    database = Database()
    locks = Locks(database, "stuck")
    # Real pauses for the one that keeps trying: it must not be able to starve the others.
    async with running(database, sleep=asyncio.sleep) as commit:
        stuck = asyncio.ensure_future(commit.submit(delivery("stuck-1", person="stuck")))
        submits = (commit.submit(delivery(f"free{number}-1", person=str(number))) for number in range(40))
        assert await together(*submits) == [None] * 40
        assert not stuck.done()
        locks.held.clear()
        await stuck
        assert set(database.stored.values()) == {1}
        assert len(database.stored) == 41
        assert commit.retries >= 1


async def test_what_follows_for_a_locked_conversation_stays_out_of_the_batches() -> None:
    database = Database()
    locks = Locks(database, "stuck")
    async with running(database, sleep=asyncio.sleep) as commit:
        first = asyncio.ensure_future(commit.submit(delivery("stuck-1", person="stuck")))
        await asyncio.sleep(0.02)
        isolated = commit.isolated
        second = asyncio.ensure_future(commit.submit(delivery("stuck-2", person="stuck")))
        for number in range(20):
            await commit.submit(delivery(f"free-{number}", person="free"))
        assert commit.isolated == isolated
        assert not first.done()
        assert not second.done()
        locks.held.clear()
        await first
        await second
        await commit.submit(delivery("stuck-3", person="stuck"))
        assert len(database.stored) == 23


async def test_a_conversation_that_stays_locked_is_refused_after_the_patience() -> None:
    database = Database()
    Locks(database, "stuck")
    async with running(database, patience=0.1, sleep=asyncio.sleep) as commit:
        results = await together(
            commit.submit(delivery("stuck-1", person="stuck")),
            commit.submit(delivery("free-1", person="free")),
        )
        assert isinstance(results[0], RefusedError)
        assert results[1] is None


async def test_those_of_known_locked_conversations_let_the_others_of_a_batch_pass_first() -> None:
    database = Database()
    locks = Locks(database, "one", "two")
    async with running(database, side_lanes=1, sleep=asyncio.sleep) as commit:
        waiting = [asyncio.ensure_future(commit.submit(delivery("one-0", person="one")))]
        await asyncio.sleep(0.01)
        waiting += [
            asyncio.ensure_future(commit.submit(delivery(f"one-{number}", person="one")))
            for number in range(1, 30)
        ]
        waiting.append(asyncio.ensure_future(commit.submit(delivery("two-0", person="two"))))
        async with asyncio.timeout(1):
            await commit.submit(delivery("free-0", person="free"))
        assert not any(task.done() for task in waiting)
        locks.held.clear()
        await commit.close(5)
        assert len(database.stored) == 32


class Waiting(Database):
    """As PostgreSQL has it: a call waits for the locked conversation until `times_out`, then 55P03."""

    def __init__(self, *held: str) -> None:
        super().__init__()
        self.held = set(held)
        self.waits = asyncio.Event()
        self.times_out = asyncio.Event()

    async def ingest(self, facts: Sequence[Fact]) -> None:
        names = [name(one) for one in facts]
        if not any(one.split("-")[0] in self.held for one in names):
            await super().ingest(facts)
            return
        self.calls.append(names)
        self.waits.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.times_out.wait()
        finally:
            self.at_once -= 1
        raise Failure("55P03")


async def test_a_call_that_waits_for_a_lock_is_overtaken_and_holds_back_what_it_may_have_locked() -> None:
    database = Waiting("stuck")
    async with running(database, overtake_after=0.01, sleep=asyncio.sleep) as commit:
        first = [
            asyncio.ensure_future(commit.submit(delivery("stuck-1", person="stuck"))),
            asyncio.ensure_future(commit.submit(delivery("mate-1", person="mate"))),
        ]
        await database.waits.wait()
        await commit.submit(delivery("free-1", person="free"))
        second = [
            asyncio.ensure_future(commit.submit(delivery("stuck-2", person="stuck"))),
            asyncio.ensure_future(commit.submit(delivery("mate-2", person="mate"))),
        ]
        for number in range(2, 20):
            await commit.submit(delivery(f"free-{number}", person="free"))
        assert not any(task.done() for task in first + second)
        assert database.calls[0] == ["stuck-1", "mate-1"]
        assert {call[0].split("-")[0] for call in database.calls[1:]} == {"free"}

        database.times_out.set()
        assert await together(first[1], second[1]) == [None, None]
        assert not first[0].done()
        database.held.clear()
        assert await together(first[0], second[0]) == [None, None]
        assert set(database.stored.values()) == {1}
        assert len(database.stored) == 4 + 19


async def test_no_more_calls_wait_for_locks_than_are_allowed() -> None:
    database = Waiting("one", "two", "three")
    async with running(database, overtake_after=0.01, main_calls=2) as commit:
        tasks = []
        for person in ("one", "two", "three"):
            database.waits.clear()
            tasks.append(asyncio.ensure_future(commit.submit(delivery(f"{person}-1", person=person))))
            if person != "three":
                await database.waits.wait()
        await asyncio.sleep(0.05)
        assert database.most_at_once == 2
        assert len(database.calls) == 2
        database.held.clear()
        database.times_out.set()
        assert await together(*tasks) == [None] * 3


async def test_what_a_slow_call_held_back_follows_it_in_one_call() -> None:
    database = Database()
    async with running(database, overtake_after=0.01) as commit, asyncio.TaskGroup() as group:
        await hold(database, commit, group)
        database.entered.clear()
        other = group.create_task(commit.submit(delivery("other", person="other")))
        await database.entered.wait()
        for number in range(20):
            group.create_task(commit.submit(delivery(f"m{number}")))
        await asyncio.sleep(0.05)
        assert [len(call) for call in database.calls] == [1, 1]
        database.gate.set()
        await other
    assert [len(call) for call in database.calls] == [1, 1, 20]


async def test_several_deliveries_of_a_locked_conversation_do_not_hold_up_the_others_of_their_batch() -> None:
    database = Waiting("stuck")
    async with running(database, side_lanes=2, sleep=asyncio.sleep) as commit:
        submits = [commit.submit(delivery(f"stuck-{number}", person="stuck")) for number in range(5)]
        stuck = [asyncio.ensure_future(submit) for submit in submits]
        free = asyncio.ensure_future(commit.submit(delivery("free-1", person="free")))
        await database.waits.wait()
        database.times_out.set()
        await asyncio.sleep(0)
        database.times_out.clear()  # the next ones wait
        await free
        assert not any(task.done() for task in stuck)
        database.held.clear()
        database.times_out.set()
        assert await together(*stuck) == [None] * 5


async def test_close_refuses_what_is_held_back() -> None:
    database = Waiting("stuck")
    async with running(database, overtake_after=0.01) as commit:
        waiting = [asyncio.ensure_future(commit.submit(delivery("stuck-1", person="stuck")))]
        await database.waits.wait()
        await commit.submit(delivery("free-1", person="free"))
        waiting.append(asyncio.ensure_future(commit.submit(delivery("stuck-2", person="stuck"))))
        await commit.submit(delivery("free-2", person="free"))
        await commit.close(0.02)
        results = await together(*waiting)
        assert [type(result) for result in results] == [Unavailable] * 2


async def test_poison_beside_a_locked_conversation_is_still_found() -> None:
    database = Database()
    held = {"stuck-1"}

    def rule(names: list[str]) -> None:
        if held & set(names):
            raise Failure("55P03")
        if "bad" in names:
            raise Failure("22021")

    database.rule = rule
    async with running(database, sleep=asyncio.sleep) as commit:
        stuck = asyncio.ensure_future(commit.submit(delivery("stuck-1", person="stuck")))
        assert await together(commit.submit(delivery("a", "bad", "b"))) == [None]
        held.clear()
        await stuck
        assert set(database.stored) == {"a", "b", "dead:bad", "stuck-1"}


async def test_cancelling_one_submitter_leaves_the_batch_alone() -> None:
    database = Database()
    async with running(database) as commit:
        async with asyncio.TaskGroup() as group:
            held = await hold(database, commit, group)
            gone = group.create_task(commit.submit(delivery("gone")))
            stays = group.create_task(commit.submit(delivery("stays")))
            await asyncio.sleep(0.01)
            held.cancel()
            gone.cancel()
            await asyncio.sleep(0)
            database.gate.set()
            await stays
        assert database.stored == {"held": 1, "gone": 1, "stays": 1}
        assert commit.waiting == 0


async def test_close_commits_what_was_accepted_and_takes_nothing_more() -> None:
    database = Database()
    async with running(database) as commit, asyncio.TaskGroup() as group:
        await hold(database, commit, group)
        for number in range(10):
            group.create_task(commit.submit(delivery(f"m{number}")))
        await asyncio.sleep(0)
        closing = group.create_task(commit.close(5))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await commit.submit(delivery("too late"))
        database.gate.set()
        await closing
        assert len(database.stored) == 11


async def test_close_refuses_what_the_drain_was_too_short_for() -> None:
    database = Database()
    async with running(database) as commit:
        database.gate.clear()
        waiting = [asyncio.ensure_future(commit.submit(delivery(f"m{number}"))) for number in range(4)]
        await asyncio.sleep(0.01)
        await commit.close(0.02)
        results = await together(*waiting)
        assert [type(result) for result in results] == [Unavailable] * 4
        assert database.stored == {}


async def test_close_refuses_a_delivery_whose_conversation_stays_locked() -> None:
    database = Database()
    Locks(database, "stuck")
    async with running(database, sleep=asyncio.sleep) as commit:
        stuck = asyncio.ensure_future(commit.submit(delivery("stuck-1")))
        await asyncio.sleep(0.02)
        await commit.close(0.05)
        assert isinstance((await together(stuck))[0], Unavailable)


async def test_cancelling_the_run_refuses_everything_accepted() -> None:
    database = Database()
    commit = GroupCommit(database.ingest, is_poison=is_poison, is_transient=is_transient)
    run = asyncio.ensure_future(commit.run())
    database.gate.clear()
    waiting = asyncio.ensure_future(commit.submit(delivery("a")))
    await asyncio.sleep(0.01)
    run.cancel()
    assert isinstance((await together(waiting))[0], Unavailable)
    with pytest.raises(Unavailable):
        await commit.submit(delivery("b"))
    with pytest.raises(asyncio.CancelledError):
        await run
    await commit.close(1)


async def test_closing_before_running_refuses_and_ends() -> None:
    database = Database()
    commit = GroupCommit(database.ingest, is_poison=is_poison, is_transient=is_transient)
    waiting = asyncio.ensure_future(commit.submit(delivery("a")))
    await asyncio.sleep(0)
    await commit.close(1)
    assert isinstance((await together(waiting))[0], Unavailable)
    await commit.run()
    assert database.calls == []


async def test_the_room_of_a_delivery_is_given_back_once() -> None:
    room = WaitingRoom(10, 1000)
    outcome = asyncio.get_running_loop().create_future()
    entry = room.enter(Delivery([fact("a"), fact("b", "2")]), 1.0, outcome)
    assert (room.held, entry.conversations()) == (2, {("1", "9"), ("2", "9")})
    assert room.bytes_held == 100
    assert room.settle(entry, None)
    assert not room.settle(entry, Unavailable())
    assert outcome.result() is None
    assert (room.held, room.bytes_held) == (0, 0)


async def test_few_facts_of_many_bytes_fill_the_room_too() -> None:
    room = WaitingRoom(100, 1000)

    def enter(size: int, *pages: str) -> Entry:
        facts: list[Fact] = [fact("m", page) for page in pages]
        return room.enter(Delivery(facts, size), 1.0, asyncio.get_running_loop().create_future())

    mine = enter(400, "1")
    with pytest.raises(QueueFull, match="for one Page"):
        enter(101, "1")
    with pytest.raises(QueueFull, match="for one Page"):
        enter(101, "2", "1")
    both = enter(100, "2", "1")
    enter(400, "2")
    with pytest.raises(QueueFull, match=r"waiting$"):
        enter(101, "3")
    enter(100, "3")
    assert room.bytes_held == 1000
    room.settle(mine, None)
    room.settle(both, None)
    assert room.bytes_held == 500
    # larger than its Page may hold, but nothing else is held of it
    enter(500, "1")
    with pytest.raises(QueueFull, match=r"waiting$"):
        enter(1, "4")


async def test_a_delivery_larger_than_all_bytes_is_taken_alone() -> None:
    room = WaitingRoom(100, 1000)
    for _ in range(2):
        entry = room.enter(Delivery([fact("a")], 5000), 1.0, asyncio.get_running_loop().create_future())
        room.settle(entry, None)
    assert room.bytes_held == 0


async def test_a_defect_in_here_costs_one_batch_and_not_the_lane() -> None:
    database = Database()
    database.refuse("22021", "bad")

    def broken(one: Fact, error: BaseException, raw: bytes) -> DeadLetter:
        raise RuntimeError("a defect")

    async with running(database, to_dead_letter=broken) as commit:
        with pytest.raises(Unavailable):
            await commit.submit(delivery("bad"))
        await commit.submit(delivery("good"))
        assert database.stored == {"good": 1}


@pytest.mark.parametrize("seed", range(20))
async def test_under_any_mixture_of_failures_an_acknowledged_delivery_is_stored(seed: int) -> None:
    chance = seeded(seed)
    database = Database()

    def rule(names: list[str]) -> None:
        if any(one.startswith("bad") for one in names):
            raise Failure("22021")
        if chance.random() < 0.3:
            raise Failure(chance.choice([*TRANSIENT_STATES, "XX000"]))

    database.rule = rule
    options = {"overtake_after": chance.choice([0.0, 60.0]), "main_calls": 1 + seed % 3}
    async with running(database, max_batch=20, max_waiting=300, patience=2, **options) as commit:
        deliveries = [
            delivery(
                *(
                    f"{'bad' if chance.random() < 0.02 else 'ok'}{number}-{part}"
                    for part in range(chance.randint(1, 6))
                ),
                page=str(number % 3),
                person=str(number % 17),
            )
            for number in range(150)
        ]
        results = await together(*(commit.submit(one) for one in deliveries))
        for one, result in zip(deliveries, results, strict=True):
            assert result is None or isinstance(result, RefusedError)
            if result is None:
                for mid in map(name, one.facts):
                    assert database.stored["dead:" + mid if mid.startswith("bad") else mid] >= 1
        assert not any(mid.startswith("bad") for mid in database.stored)
        assert commit.waiting == 0
