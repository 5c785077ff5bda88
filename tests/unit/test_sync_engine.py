"""The walker and the runner, on a database and a Graph made of dictionaries, and a clock that never waits."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from convsync.errors import (
    AlreadyRunning,
    BadData,
    ConvsyncError,
    DatabaseUnavailable,
    LeaseLost,
    NotFound,
    TryAgain,
)
from convsync.facts import Message, Thread
from convsync.graph.catalogue import TIMEOUT
from convsync.graph.client import PARSED_IN_A_THREAD, GraphAnswer
from convsync.graph.errors import GraphError
from convsync.graph.usage import Usage
from convsync.sync.calls import Caller, Control
from convsync.sync.ports import Time
from convsync.sync.retry import BUDGETS, Backoff
from convsync.sync.runner import Outcome, RunnerSettings, SyncRunner

PAGE = "700100"
EPOCH = datetime(2026, 11, 20, tzinfo=UTC)


class Clock:
    """Virtual time: it jumps to the next sleeper once everybody else has nothing left to do."""

    def __init__(self) -> None:
        self.at = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = itertools.count()

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.at + max(seconds, 0), next(self._number), future))
        await future

    async def tick(self) -> None:
        while True:
            for _ in range(40):
                await asyncio.sleep(0)
            while self._sleepers:
                at, _, future = heapq.heappop(self._sleepers)
                if not future.done():
                    self.at = max(self.at, at)
                    future.set_result(None)
                    break

    @property
    def time(self) -> Time:
        return Time(now=self.now, sleep=self.sleep, random=lambda: 0.5)


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    clock = Clock()
    ticking = asyncio.create_task(clock.tick())
    yield clock
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking


@dataclass
class Begun:
    run_id: int
    fence: int
    resumed: bool


@dataclass
class Work:
    kind: str
    thread_id: str
    sender_id: str | None
    cursor: str | None
    walk_pass: int = 1
    done: bool = False
    failed: bool = False


@dataclass
class Applied:
    applied: bool
    messages_added: int = 0
    open_work: int = 0


@dataclass
class Grant:
    wait_ms: int
    granted_at: datetime | None


@dataclass
class RequestSize:
    size_limit: int
    nested: int


@dataclass
class Token:
    sealed: bytes | None
    state: str = "unchecked"


@dataclass
class Resumable:
    page_id: str
    mode: str


class Store:
    """The sync's SQL functions, as far as these tests look."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.work: dict[tuple[str, str], Work] = {}
        self.messages: Counter[str] = Counter()
        self.people: dict[str, Any] = {}
        self.token = Token(b"sealed")
        self.token_marks: list[str] = []
        self.marked_tokens: list[bytes | None] = []
        self.failed: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        self.restarts: list[tuple[str, str | None]] = []
        self.blocked_until = 0.0
        self.grants: list[float] = []
        self.pace = 0.0
        self.status = "new"
        self.begun: dict[str, Any] = {"request_id": None}
        self.reason: str | None = None
        self.fence = 0
        self.renewals = 0
        self.resume_after: float | None = None
        self.slow_answers = 0.0
        self.steps: Counter[str] = Counter()
        self.refused: dict[tuple[str, str], int] = {}
        self.trouble: dict[str, list[ConvsyncError]] = {}
        """Errors the named functions raise before they work again."""

    async def _enter(self, name: str, fence: int | None = None) -> None:
        await asyncio.sleep(0)
        if self.trouble.get(name):
            raise self.trouble[name].pop(0)
        if fence is not None and (fence != self.fence or self.status != "running"):
            raise LeaseLost("taken over")

    async def begin_sync(self, **call: Any) -> Begun:
        await self._enter("begin_sync")
        if self.status == "running":
            raise AlreadyRunning("at work", detail={"run_id": "1"})
        resumed = self.status == "paused"
        if not resumed:
            self.work = {("list", ""): Work("list", "", None, None)}
        call["request_id"] = call["request_id"] or self.begun["request_id"]
        self.status, self.fence, self.begun = "running", self.fence + 1, call
        return Begun(1, self.fence, resumed)

    async def next_sync_work(self, *, page_id: str, run_id: int, fence: int, limit: int) -> list[Work]:
        await self._enter("next_sync_work", fence)
        rows = [row for row in self.work.values() if not row.done and not row.failed]
        rows.sort(key=lambda row: row.kind, reverse=True)
        found = [Work(row.kind, row.thread_id, row.sender_id, row.cursor) for row in rows[:limit]]
        if self.slow_answers:
            await self.clock.sleep(self.slow_answers)
        return found

    async def apply_sync_page(self, **page: Any) -> Applied:
        await self._enter("apply_sync_page", page["fence"])
        row = self.work[(page["kind"], page["thread_id"])]
        if row.done or row.failed or row.cursor != page["cursor"]:
            return Applied(False)
        for fact in page["facts"]:
            if isinstance(fact, Message):
                self.messages[fact.message_id] += 1
            elif isinstance(fact, Thread):
                self.people[fact.sender_id] = fact.fields
        for thread in page["threads"]:
            if thread["read"] != "complete":
                key = ("thread", thread["thread_id"])
                self.work[key] = Work(*key, thread["sender_id"], thread["next_cursor"])
        row.cursor, row.done = page["next_cursor"], page["next_cursor"] is None
        if self.trouble.get("apply_sync_page answer"):
            raise self.trouble["apply_sync_page answer"].pop(0)
        return Applied(True)

    async def restart_sync_list(
        self, *, page_id: str, run_id: int, fence: int, thread_id: str, cursor: str | None
    ) -> None:
        await self._enter("restart_sync_list", fence)
        self.restarts.append((thread_id, cursor))
        self.work[("thread" if thread_id else "list", thread_id)].cursor = None

    async def fail_sync_batch(self, **batch: Any) -> None:
        await self._enter("fail_sync_batch", batch["fence"])
        self.failed.append(batch)
        self.work[(batch["kind"], batch["thread_id"])].failed = True

    async def renew_sync_lease(self, *, page_id: str, run_id: int, fence: int, lease_seconds: float) -> None:
        await self._enter("renew_sync_lease", fence)
        self.renewals += 1

    async def pause_sync(
        self, *, page_id: str, run_id: int, fence: int, reason: str, resume_after_seconds: float
    ) -> None:
        await self._enter("pause_sync", fence)
        self.status, self.reason, self.resume_after = "paused", reason, resume_after_seconds

    async def finish_sync(self, *, page_id: str, run_id: int, fence: int, failure: str | None) -> str:
        await self._enter("finish_sync", fence)
        open_work = any(not row.done and not row.failed for row in self.work.values())
        assert failure or not open_work
        self.status = "failed" if failure else "partial" if self.failed else "succeeded"
        self.reason = failure
        return self.status

    async def acquire_call(
        self, *, page_id: str, lane: str, run_id: int | None, fence: int | None, calls_per_second: float
    ) -> Grant:
        await self._enter("acquire_call", fence)
        ready = max(self.blocked_until, self.grants[-1] + self.pace if self.grants else 0.0)
        if ready > self.clock.at:
            return Grant(max(1, round((ready - self.clock.at) * 1000 + 0.5)), None)
        self.grants.append(self.clock.at)
        return Grant(0, EPOCH + timedelta(seconds=self.clock.at))

    async def record_call(self, **record: Any) -> None:
        await self._enter("record_call")
        self.records.append(record)
        if record["block_scope"]:
            self.blocked_until = max(self.blocked_until, self.clock.at + record["block_seconds"])

    async def page_token(self, *, page_id: str) -> Token:
        await self._enter("page_token")
        return self.token

    async def mark_token(
        self, *, page_id: str, state: str, error: str | None, token_sealed: bytes | None
    ) -> None:
        await self._enter("mark_token")
        self.token_marks.append(state)
        self.marked_tokens.append(token_sealed)

    async def get_sync_run(self, *, run_id: int) -> dict[str, Any]:
        await self._enter("get_sync_run")
        reason = "failed_batches" if self.status == "partial" else self.reason
        return {"request_id": self.begun["request_id"], "reason": reason}

    async def request_size(
        self, *, page_id: str, kind: str, place: str, full_limit: int, full_nested: int
    ) -> RequestSize:
        await self._enter("request_size")
        steps = self._steps(full_limit, full_nested)
        tried = max(self.steps[kind], self.refused.get((kind, place), -1) + 1)
        return RequestSize(*steps[min(tried, len(steps) - 1)])

    async def record_request_size(
        self,
        *,
        page_id: str,
        kind: str,
        place: str,
        size_limit: int,
        nested: int,
        outcome: str,
        full_limit: int,
        full_nested: int,
    ) -> bool:
        """As the database does it, but that every success makes the next request larger."""
        await self._enter("record_request_size")
        steps = self._steps(full_limit, full_nested)
        step = steps.index((size_limit, nested))
        if outcome == "accepted":
            self.steps[kind] = max(self.steps[kind] - 1, 0)
            return True
        self.steps[kind] = max(self.steps[kind], min(step + 1, len(steps) - 1))
        if outcome == "refused":
            self.refused[kind, place] = max(self.refused.get((kind, place), -1), step)
        return step + 1 < len(steps)

    @staticmethod
    def _steps(limit: int, nested: int) -> list[tuple[int, int]]:
        halves = [limit >> shift for shift in range(limit.bit_length())]
        return [(half, messages) for messages in dict.fromkeys((nested, 0)) for half in halves]

    async def resumable_syncs(self) -> list[Resumable]:
        await self._enter("resumable_syncs")
        return [Resumable(PAGE, "full")] if self.status == "paused" else []


def error(code: int, message: str = "text", **more: Any) -> GraphError:
    return GraphError(message, code=code, http_status=more.pop("http_status", 400), **more)


REDUCE = "Please reduce the amount of data you're asking for, then retry your request"
Fault = Callable[[str, Mapping[str, Any]], GraphError | None]


@dataclass
class Call:
    at: float
    path: str
    limit: int
    after: str | None
    nested: int
    token: str


class Graph:
    """A Page of `threads` conversations; thread `n` has `sizes[n]` messages. Cursors are offsets."""

    def __init__(self, clock: Clock, sizes: list[int]) -> None:
        self.clock = clock
        self.sizes = sizes
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.seconds = 0.1
        self.usage: Usage | None = None
        self.running = self.most = 0

    def all_messages(self) -> Counter[str]:
        return Counter(f"m_{t}_{number}" for t, size in enumerate(self.sizes) for number in range(size))

    async def get(self, path: str, params: Mapping[str, str | int], token: str) -> GraphAnswer:
        fields = str(params["fields"])
        nested = int(fields.split("messages.limit(")[1].split(")")[0]) if "messages.limit(" in fields else 0
        limit, after = int(params["limit"]), params.get("after")
        self.calls.append(
            Call(self.clock.at, path, limit, None if after is None else str(after), nested, token)
        )
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.clock.sleep(self.seconds)
        finally:
            self.running -= 1
        for fault in self.faults:
            if (found := fault(path, {**params, "nested": nested, "token": token})) is not None:
                raise found
        start = int(after or 0)
        if path == f"{PAGE}/conversations":
            found_threads = range(len(self.sizes))[start : start + limit]
            items = [self._thread(number, nested) for number in found_threads]
            data = self._page(items, start + limit, len(self.sizes))
        else:
            number = int(path.split("/")[0].removeprefix("t_"))
            data = self._messages(number, start, limit)
        return GraphAnswer(data, self.usage, 200, 100, None, None)

    def _page(self, items: list[Any], end: int, total: int) -> dict[str, Any]:
        paging: dict[str, Any] = {"cursors": {"after": str(end)}}
        if end < total:
            paging["next"] = f"https://graph.example/?access_token=secret&after={end}"
        return {"data": items, "paging": paging}

    def _thread(self, number: int, nested: int) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": f"t_{number}",
            "updated_time": "2026-11-01T00:00:00+0000",
            "message_count": self.sizes[number],
            "participants": {"data": [{"id": f"8{number}", "name": f"Name {number}"}, {"id": PAGE}]},
        }
        if nested:
            item["messages"] = self._messages(number, 0, nested)
        return item

    def _messages(self, thread: int, start: int, limit: int) -> dict[str, Any]:
        total = self.sizes[thread]
        items = [
            {
                "id": f"m_{thread}_{number}",
                "created_time": 1790000000 - number,
                "from": {"id": f"8{thread}"},
                "message": "text",
            }
            for number in range(total)[start : start + limit]
        ]
        return self._page(items, start + limit, total)


@dataclass
class World:
    clock: Clock
    store: Store
    graph: Graph
    runner: SyncRunner
    opened: list[bytes] = field(default_factory=list)

    async def run(self, **options: Any) -> Outcome:
        async with asyncio.timeout(20):
            return await self.runner.run(PAGE, "full", **options)


def world(clock: Clock, sizes: list[int], **settings: Any) -> World:
    store, graph = Store(clock), Graph(clock, sizes)
    opened: list[bytes] = []

    def open_token(page_id: str, sealed: bytes) -> str:
        opened.append(sealed)
        return f"token of {sealed.decode()}"

    runner = SyncRunner(
        store,  # type: ignore[arg-type]
        graph,
        open_token,
        RunnerSettings(**settings),
        time=clock.time,
        backoff=Backoff(base=0.5, cap=30),
        owner="test",
    )
    return World(clock, store, graph, runner, opened)


def once(fault: Fault, times: int = 1) -> Fault:
    left = times

    def limited(path: str, params: Mapping[str, Any]) -> GraphError | None:
        nonlocal left
        found = fault(path, params) if left > 0 else None
        left -= found is not None
        return found

    return limited


# -- walking


async def test_every_message_of_every_thread_is_read_exactly_once(clock: Clock) -> None:
    it = world(clock, [3, 100, 25, 500, 0, 130] * 70)
    outcome = await it.run()
    assert outcome == Outcome(1, "succeeded", None)
    assert it.store.messages == it.graph.all_messages()
    assert len(it.store.people) == 420
    # 3 pages of the list; per six threads 4 + 1 further pages of messages
    assert len(it.graph.calls) == 3 + 70 * (4 + 1)
    assert len(it.store.records) == len(it.graph.calls) == len(it.store.grants)
    assert it.store.token_marks == ["valid"]


async def test_calls_go_on_side_by_side_but_never_more_than_allowed(clock: Clock) -> None:
    it = world(clock, [500] * 10, concurrency=3)
    await it.run()
    assert it.graph.most == 3
    assert it.store.messages == it.graph.all_messages()


async def test_a_page_applied_while_the_next_work_is_asked_for_is_not_read_again(clock: Clock) -> None:
    it = world(clock, [1000] * 4)
    it.store.slow_answers = 0.13
    await it.run()
    assert it.store.messages == it.graph.all_messages()
    assert len(it.graph.calls) == 1 + 4 * 9


async def test_an_empty_page_with_next_does_not_end_the_list(clock: Clock) -> None:
    it = world(clock, [2] * 30)
    honest = it.graph._page

    def holed(items: list[Any], end: int, total: int) -> dict[str, Any]:
        page = honest(items, end, total)
        if total == 30 and end == 25:
            page["paging"]["next"] = "https://graph.example/?after=24"
            page["paging"]["cursors"]["after"] = "24"
        if total == 30 and end == 49:
            page = {"data": [], "paging": {"cursors": {}, "next": "https://graph.example/?after=25"}}
        return page

    it.graph._page = holed  # type: ignore[method-assign]
    assert (await it.run()).status == "succeeded"
    assert set(it.store.messages) == set(it.graph.all_messages())


async def test_a_list_that_goes_on_where_it_is_fails_instead_of_turning_for_ever(clock: Clock) -> None:
    it = world(clock, [1] * 70)
    honest = it.graph._page

    def stuck(items: list[Any], end: int, total: int) -> dict[str, Any]:
        page = honest(items, end, total)
        if total == 70 and end > 25:
            page["paging"] = {"cursors": {"after": "25"}, "next": "https://graph.example/?after=25"}
        return page

    it.graph._page = stuck  # type: ignore[method-assign]
    assert (await it.run()).status == "partial"
    assert it.store.failed[0]["cursor"] == "25"


# -- errors


async def test_a_transient_error_is_retried_later_and_then_all_is_well(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(once(lambda path, params: error(2, http_status=503), times=3))
    assert (await it.run()).status == "succeeded"
    starts = [call.at for call in it.graph.calls]
    waits = [round(b - a - it.graph.seconds, 3) for a, b in itertools.pairwise(starts)]
    assert waits == [0.25, 0.5, 1.0]
    assert len(it.store.grants) == 4
    assert [record["error_code"] for record in it.store.records] == [2, 2, 2, None]


async def test_what_fails_for_good_is_recorded_and_the_rest_goes_on(clock: Clock) -> None:
    it = world(clock, [3, 160, 160])
    it.graph.faults.append(lambda path, params: error(2, "down") if path.startswith("t_1/") else None)
    assert (await it.run()).status == "partial"
    [batch] = it.store.failed
    assert (batch["kind"], batch["thread_id"], batch["cursor"]) == ("thread", "t_1", "100")
    assert batch["attempts"] == BUDGETS[error(2).error_class]
    assert (batch["error"]["class"], batch["error"]["code"]) == ("transient", 2)
    expected = it.graph.all_messages()
    for number in range(100, 160):
        del expected[f"m_1_{number}"]
    assert it.store.messages == expected


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        (error(100, "Unsupported get request.", subcode=33), 1),
        (error(200, http_status=403), 1),
        (error(100, "Param limit must be an integer"), 1),
        (error(31337), 3),
    ],
)
async def test_an_error_of_one_thread_costs_that_thread_only(
    clock: Clock, fault: GraphError, attempts: int
) -> None:
    it = world(clock, [3, 160, 160])
    it.graph.faults.append(lambda path, params: fault if path.startswith("t_1/") else None)
    assert (await it.run()).status == "partial"
    assert [batch["attempts"] for batch in it.store.failed] == [attempts]
    assert it.store.messages["m_2_159"] == 1


async def test_a_list_that_may_not_be_read_fails_the_run_and_says_why(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(lambda path, params: error(200, http_status=403))
    assert await it.run() == Outcome(1, "failed", "permission_denied")
    assert len(it.graph.calls) == 1
    assert it.store.failed[0]["error"]["class"] == "permission"


async def test_too_much_data_is_halved_and_never_asked_for_twice(clock: Clock) -> None:
    it = world(clock, [2] * 100)

    def heavy(path: str, params: Mapping[str, Any]) -> GraphError | None:
        return error(1, REDUCE, http_status=500) if params["nested"] and params["limit"] > 3 else None

    it.graph.faults.append(heavy)
    assert (await it.run()).status == "succeeded"
    assert it.store.messages == it.graph.all_messages()
    refused = [(call.after, call.limit) for call in it.graph.calls if call.limit > 3 and call.nested]
    assert len(refused) == len(set(refused))
    assert [limit for _, limit in refused[:3]] == [200, 100, 50]


async def test_a_refused_size_is_not_asked_for_again_though_others_succeed_with_it(clock: Clock) -> None:
    it = world(clock, [150] + [2000] * 5)
    away = once(lambda path, params: error(2, http_status=503), times=4)

    def heavy(path: str, params: Mapping[str, Any]) -> GraphError | None:
        if not path.startswith("t_0"):
            return None
        return error(1, REDUCE) if params["limit"] > 10 else away(path, params)

    it.graph.faults.append(heavy)
    assert (await it.run()).status == "succeeded"
    asked = [call.limit for call in it.graph.calls if call.path.startswith("t_0") and call.after == "100"]
    assert asked == [100, 50, 25, 12, 6, 6, 6, 6, 6]
    assert it.store.messages == it.graph.all_messages()


async def test_a_list_too_heavy_at_any_size_is_read_without_messages(clock: Clock) -> None:
    it = world(clock, [2, 130, 0, 5])
    it.graph.faults.append(lambda path, params: error(1, REDUCE) if params["nested"] else None)
    assert (await it.run()).status == "succeeded"
    assert it.store.messages == it.graph.all_messages()
    assert [call.limit for call in it.graph.calls if call.nested] == [200, 100, 50, 25, 12, 6, 3, 1]
    threads = [call.path for call in it.graph.calls if call.path.startswith("t_")]
    assert sorted(threads) == ["t_0/messages", "t_1/messages", "t_1/messages", "t_3/messages"]


async def test_a_message_too_heavy_by_itself_is_asked_for_once_at_the_smallest_size(clock: Clock) -> None:
    it = world(clock, [200])
    it.graph.faults.append(lambda path, params: error(1, REDUCE) if path.startswith("t_0") else None)
    assert (await it.run()).status == "partial"
    assert [call.limit for call in it.graph.calls if call.path.startswith("t_0")] == [
        100,
        50,
        25,
        12,
        6,
        3,
        1,
    ]


async def test_a_page_that_times_out_again_is_made_smaller(clock: Clock) -> None:
    it = world(clock, [2] * 30)
    it.graph.faults.append(
        lambda path, params: GraphError("no answer", type=TIMEOUT) if params["limit"] > 120 else None
    )
    assert (await it.run()).status == "succeeded"
    assert [call.limit for call in it.graph.calls][:3] == [200, 200, 100]


async def test_a_dead_cursor_starts_that_list_again_from_its_front(clock: Clock) -> None:
    it = world(clock, [2] * 420)
    it.graph.faults.append(
        once(lambda path, params: error(2642, "Invalid cursors values") if params.get("after") else None)
    )
    assert (await it.run()).status == "succeeded"
    assert it.store.restarts == [("", "200")]
    assert set(it.store.messages) == set(it.graph.all_messages())


async def test_cursors_that_always_die_are_given_up(clock: Clock) -> None:
    it = world(clock, [200])
    it.graph.faults.append(
        lambda path, params: error(2642) if path.startswith("t_0") and params.get("after") else None
    )
    assert (await it.run()).status == "partial"
    assert [batch["error"]["class"] for batch in it.store.failed] == ["bad_cursor"]
    assert len(it.store.restarts) == BUDGETS[error(2642).error_class]


async def test_a_field_that_graph_does_not_have_is_not_asked_for_again(clock: Clock) -> None:
    it = world(clock, [160, 160])

    def picky(path: str, params: Mapping[str, Any]) -> GraphError | None:
        message = "(#100) Tried accessing nonexisting field (reply_to) on node type (UnifiedMessage)"
        return error(100, message) if "reply_to" in str(params["fields"]) else None

    it.graph.faults.append(picky)
    assert (await it.run()).status == "succeeded"
    assert len(it.graph.calls) == 1 + 3
    assert it.store.messages == it.graph.all_messages()


async def test_a_dead_token_stops_the_page_and_says_so(clock: Clock) -> None:
    it = world(clock, [160] * 10)
    it.graph.faults.append(
        lambda path, params: error(190, "expired", subcode=463) if path.startswith("t_") else None
    )
    assert await it.run() == Outcome(1, "failed", "token_invalid")
    assert it.store.token_marks == ["valid", "invalid"]
    assert it.store.marked_tokens == [b"sealed", b"sealed"]
    assert len(it.graph.calls) <= 1 + 3
    assert it.store.failed == []


async def test_a_token_replaced_meanwhile_is_taken_and_the_run_goes_on(clock: Clock) -> None:
    it = world(clock, [160] * 10)

    def expires(path: str, params: Mapping[str, Any]) -> GraphError | None:
        if path.startswith("t_") and params["token"] == "token of sealed":
            it.store.token = Token(b"renewed")
            return error(190, "expired")
        return None

    it.graph.faults.append(expires)
    assert (await it.run()).status == "succeeded"
    assert it.opened == [b"sealed", b"renewed"]
    assert it.store.messages == it.graph.all_messages()


@pytest.mark.parametrize(
    ("trouble", "token", "reason"),
    [
        ({}, Token(None), "token_missing"),
        ({"page_token": [NotFound("no such Page")]}, Token(b"x"), "page_removed"),
        ({}, Token(b"\xff"), "token_unreadable"),
    ],
)
async def test_without_a_token_the_run_fails_without_a_call(
    clock: Clock, trouble: dict[str, list[ConvsyncError]], token: Token, reason: str
) -> None:
    it = world(clock, [3])
    it.store.trouble, it.store.token = trouble, token
    assert await it.run() == Outcome(1, "failed", reason)
    assert it.graph.calls == []


@pytest.mark.parametrize("size", [1000, PARSED_IN_A_THREAD + 1])
async def test_a_large_answer_is_read_beside_the_loop(clock: Clock, size: int) -> None:
    """Turning megabytes into facts takes as long as parsing them; webhooks are answered meanwhile."""
    it = world(clock, [3])
    it.store.status = "running"
    control = Control(time=clock.time, lease_until=60)
    caller = Caller(
        store=it.store,  # type: ignore[arg-type]
        graph=it.graph,
        page_id=PAGE,
        run_id=None,
        fence=None,
        lane="repair",
        calls_per_second=0,
        token="token",
        control=control,
    )
    honest = it.graph.get

    async def sized(*call: Any) -> GraphAnswer:
        return replace(await honest(*call), size=size)

    it.graph.get = sized  # type: ignore[method-assign]
    params = {"limit": 1, "fields": "id"}
    thread = await caller.call(f"{PAGE}/conversations", params, lambda answer, at: threading.get_ident())
    assert (thread != threading.get_ident()) is (size > PARSED_IN_A_THREAD)


async def test_each_failure_is_logged_with_what_metas_support_asks_for(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(once(lambda path, params: error(2, "down", trace_id="T1", request_id="R1")))
    with capture_logs() as logs:
        assert (await it.run()).status == "succeeded"
    (failed,) = [entry for entry in logs if entry["event"] == "graph_call_failed"]
    assert {
        "trace_id": "T1",
        "request_id": "R1",
        "code": 2,
        "entry": "service_unavailable",
    }.items() <= failed["error"].items()


# -- the budget


async def test_no_call_is_made_before_the_budget_grants_one(clock: Clock) -> None:
    it = world(clock, [150] * 6)
    it.store.pace = 0.5
    assert (await it.run()).status == "succeeded"
    assert [call.at for call in it.graph.calls] == it.store.grants
    assert all(b - a >= 0.5 for a, b in itertools.pairwise(it.store.grants))


async def test_no_call_is_made_while_meta_says_wait(clock: Clock) -> None:
    it = world(clock, [160] * 30)
    usage = Usage(percent=100, regain_seconds=120)
    it.graph.faults.append(
        once(lambda path, params: error(80006, usage=usage) if path.startswith("t_") else None)
    )
    assert (await it.run()).status == "succeeded"
    [blocked] = [record for record in it.store.records if record["block_scope"]]
    assert (blocked["block_scope"], blocked["block_seconds"]) == ("page", 120)
    starts = [call.at for call in it.graph.calls]
    assert sum(b - a >= 119 for a, b in itertools.pairwise(starts)) == 1
    assert it.store.messages == it.graph.all_messages()
    assert it.store.failed == []


async def test_a_block_of_unknown_length_grows_while_calls_are_refused(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(once(lambda path, params: error(613), times=4))
    assert (await it.run()).status == "succeeded"
    blocks = [record["block_seconds"] for record in it.store.records if record["block_scope"]]
    assert blocks == [10, 20, 40, 80]


async def test_calls_refused_together_are_one_refusal(clock: Clock) -> None:
    it = world(clock, [160] * 3)
    it.graph.faults.append(once(lambda path, params: error(613) if path.startswith("t_") else None, times=3))
    assert (await it.run()).status == "succeeded"
    assert [record["block_seconds"] for record in it.store.records if record["block_scope"]] == [10, 10, 10]


async def test_the_limit_of_the_app_blocks_the_app(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(once(lambda path, params: error(4, http_status=403)))
    await it.run()
    assert [record["block_scope"] for record in it.store.records] == ["app", None]


async def test_an_allowance_used_up_blocks_though_the_call_succeeded(clock: Clock) -> None:
    it = world(clock, [160])
    it.graph.usage = Usage(percent=100, regain_seconds=300)
    await it.run()
    first, second = it.graph.calls
    assert second.at - first.at >= 300
    assert it.store.records[0]["usage"]["percent"] == 100


# -- ending


async def test_at_the_deadline_the_pages_under_way_are_applied_and_the_run_pauses(clock: Clock) -> None:
    it = world(clock, [200] * 40)
    it.store.pace = 0.5
    it.graph.seconds = 2.0
    outcome = await it.run(deadline_seconds=10)
    assert outcome == Outcome(1, "paused", "deadline")
    assert (it.store.status, it.store.reason, it.store.resume_after) == ("paused", "deadline", 60)
    assert len(it.graph.calls) == sum(row.status == 200 for row in map(_record, it.store.records))
    assert max(it.store.grants) < 10
    assert clock.at < 13


def _record(record: dict[str, Any]) -> Any:
    return type("Record", (), record)


async def test_a_paused_run_goes_on_where_it_was(clock: Clock) -> None:
    it = world(clock, [500] * 10)
    it.store.pace = 0.5
    first = await it.run(deadline_seconds=6)
    second = await it.run()
    assert (first.status, second.status) == ("paused", "succeeded")
    assert it.store.messages == it.graph.all_messages()


async def test_a_deadline_ends_the_wait_for_a_block(clock: Clock) -> None:
    it = world(clock, [3])
    it.store.blocked_until = 3600
    assert await it.run(deadline_seconds=30) == Outcome(1, "paused", "deadline")
    assert clock.at < 32
    assert it.graph.calls == []


async def test_who_lost_the_lease_stops_and_writes_nothing_more(clock: Clock) -> None:
    it = world(clock, [200] * 40)
    it.store.pace = 0.5

    def taken_over(path: str, params: Mapping[str, Any]) -> None:
        if len(it.graph.calls) == 5:
            it.store.fence += 1

    it.graph.faults.append(taken_over)
    assert await it.run() == Outcome(1, "lease_lost", None)
    assert len(it.graph.calls) <= 7
    assert it.store.status == "running"


async def test_the_lease_is_renewed_while_the_run_waits(clock: Clock) -> None:
    it = world(clock, [3], lease_seconds=15)
    it.store.blocked_until = 100
    assert (await it.run()).status == "succeeded"
    assert 19 <= it.store.renewals <= 21


async def test_a_renewed_lease_gives_time_to_wait_for_the_database_again(clock: Clock) -> None:
    it = world(clock, [3], lease_seconds=15)
    it.store.blocked_until = 100
    it.store.trouble["apply_sync_page"] = [TryAgain("deadlock"), TryAgain("deadlock")]
    assert (await it.run()).status == "succeeded"


async def test_a_lease_lost_while_waiting_ends_the_wait(clock: Clock) -> None:
    it = world(clock, [3])
    it.store.blocked_until = 3600
    it.store.trouble["renew_sync_lease"] = [LeaseLost("taken over")]
    assert (await it.run()).status == "lease_lost"
    assert clock.at < 10


async def test_a_database_that_comes_back_in_time_is_waited_for(clock: Clock) -> None:
    it = world(clock, [160, 3])
    it.store.trouble = {
        name: [TryAgain("serialization"), DatabaseUnavailable("starting")]
        for name in ("begin_sync", "next_sync_work", "apply_sync_page", "acquire_call", "record_call",
                     "page_token", "mark_token", "finish_sync")
    }  # fmt: skip
    assert (await it.run()).status == "succeeded"
    assert it.store.messages == it.graph.all_messages()


async def test_a_commit_whose_answer_was_lost_is_not_applied_twice(clock: Clock) -> None:
    it = world(clock, [160, 3])
    it.store.trouble["apply_sync_page answer"] = [DatabaseUnavailable("cut"), DatabaseUnavailable("cut")]
    assert (await it.run()).status == "succeeded"
    assert it.store.messages == it.graph.all_messages()
    assert len(it.graph.calls) == 2


async def test_a_database_that_stays_away_ends_the_attempt_when_the_lease_would_be_lost(clock: Clock) -> None:
    it = world(clock, [160, 3], lease_seconds=15)
    gone: list[ConvsyncError] = [DatabaseUnavailable("away") for _ in range(1000)]
    it.store.trouble = {"apply_sync_page": gone, "renew_sync_lease": gone, "pause_sync": gone}
    assert await it.run() == Outcome(1, "interrupted", "database_unavailable")
    assert clock.at <= 15


async def test_a_page_the_database_refuses_is_a_failed_batch(clock: Clock) -> None:
    it = world(clock, [160, 160])
    honest = it.store.apply_sync_page

    async def refuses(**page: Any) -> Applied:
        if page["thread_id"] == "t_1":
            raise BadData("invalid byte sequence", sqlstate="22021")
        return await honest(**page)

    it.store.apply_sync_page = refuses  # type: ignore[method-assign]
    assert (await it.run()).status == "partial"
    assert [(batch["thread_id"], batch["error"]["class"]) for batch in it.store.failed] == [
        ("t_1", "refused")
    ]
    assert it.store.messages["m_0_159"] == 1


async def test_a_page_that_is_never_applied_is_not_read_for_ever(clock: Clock) -> None:
    it = world(clock, [160])
    honest = it.store.apply_sync_page

    async def ignores(**page: Any) -> Applied:
        return Applied(False) if page["kind"] == "thread" else await honest(**page)

    it.store.apply_sync_page = ignores  # type: ignore[method-assign]
    assert (await it.run()).status == "partial"
    assert len(it.graph.calls) == 1 + 3


async def test_a_defect_fails_the_run_instead_of_leaving_it_running(clock: Clock) -> None:
    it = world(clock, [3])
    it.graph.faults.append(lambda path, params: 1 / 0)  # type: ignore[arg-type, return-value]
    assert await it.run() == Outcome(1, "failed", "internal_error")


async def test_a_cancelled_run_pauses(clock: Clock) -> None:
    it = world(clock, [200] * 40)
    it.store.pace = 0.5
    running = asyncio.create_task(it.run())
    await clock.sleep(3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (it.store.status, it.store.reason, it.store.resume_after) == ("paused", "shutdown", 0)


# -- many runs in one process


@contextlib.asynccontextmanager
async def supervised(it: World) -> AsyncIterator[None]:
    supervisor = asyncio.create_task(it.runner.supervise())
    try:
        yield
    finally:
        supervisor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await supervisor


async def until(clock: Clock, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await clock.sleep(0.5)


async def test_a_started_run_is_known_at_once_and_carried_by_the_supervisor(clock: Clock) -> None:
    it = world(clock, [200] * 5)
    async with supervised(it):
        begun = await it.runner.start(PAGE, "full", request_id="r-1")
        assert (begun.run_id, begun.resumed) == (1, False)
        assert it.store.begun["request_id"] == "r-1"
        with pytest.raises(AlreadyRunning) as caught:
            await it.runner.start(PAGE, "full")
        assert caught.value.run_id == 1
        await until(clock, lambda: it.store.status == "succeeded")
    assert it.store.messages == it.graph.all_messages()


async def test_the_supervisor_resumes_what_was_paused(clock: Clock) -> None:
    it = world(clock, [200] * 10)
    it.store.pace = 0.5
    await it.run(deadline_seconds=4)
    assert it.store.status == "paused"
    it.store.trouble["resumable_syncs"] = [DatabaseUnavailable("starting")]
    async with supervised(it):
        await until(clock, lambda: it.store.status == "succeeded")
    assert it.store.messages == it.graph.all_messages()


async def test_a_run_that_another_process_goes_on_with_keeps_its_request_id_in_the_log(clock: Clock) -> None:
    it = world(clock, [200] * 10)
    it.store.pace = 0.5
    with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
        await it.run(deadline_seconds=4, request_id="r-1")
        assert it.store.status == "paused"
        it.store.trouble["acquire_call"] = [DatabaseUnavailable("for a moment")]
        async with supervised(it):
            await until(clock, lambda: it.store.status == "succeeded")
    assert {"sync_begun", "sync_ended", "database_retry"} <= {line["event"] for line in logs}
    assert {(line["run_id"], line["request_id"]) for line in logs} == {(1, "r-1")}
    assert structlog.contextvars.get_contextvars() == {}, "nothing of it is left with who called"


async def test_a_run_that_nobody_asked_for_by_http_has_a_request_id_too(clock: Clock) -> None:
    it = world(clock, [10])
    with capture_logs() as logs:
        await it.run()
        first = it.store.begun["request_id"]
        await it.run()
    assert first
    assert it.store.begun["request_id"] not in ("", None, first)
    assert {line["request_id"] for line in logs} == {first, it.store.begun["request_id"]}


async def test_a_supervisor_told_not_to_leaves_paused_runs_alone(clock: Clock) -> None:
    it = world(clock, [500] * 10)
    it.store.pace = 0.5
    await it.run(deadline_seconds=4)
    supervisor = asyncio.create_task(it.runner.supervise(resume=False))
    await clock.sleep(60)
    supervisor.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await supervisor
    assert it.store.status == "paused"


async def test_stopping_the_supervisor_pauses_its_runs(clock: Clock) -> None:
    it = world(clock, [200] * 40)
    it.store.pace = 0.5
    async with supervised(it):
        await it.runner.start(PAGE, "full")
        await until(clock, lambda: len(it.graph.calls) > 3)
    assert (it.store.status, it.store.reason) == ("paused", "shutdown")


async def test_draining_applies_what_is_under_way_and_begins_nothing_more(clock: Clock) -> None:
    it = world(clock, [200] * 40)
    it.store.pace = 0.5
    async with supervised(it):
        await it.runner.start(PAGE, "full")
        await until(clock, lambda: len(it.graph.calls) > 3)
        assert await it.runner.drain(5)
        assert (it.store.status, it.store.reason) == ("paused", "shutdown")
        calls = len(it.graph.calls)
        assert calls == len(it.store.records)
        await clock.sleep(60)
        assert len(it.graph.calls) == calls


@pytest.mark.parametrize("patience", [5, 0])
async def test_what_a_person_interrupted_rests_before_others_go_on(clock: Clock, patience: float) -> None:
    """Also if the pages under way take too long and the run is cancelled."""
    it = world(clock, [200] * 40)
    it.store.pace = 0.5
    async with supervised(it):
        await it.runner.start(PAGE, "full")
        await until(clock, lambda: len(it.graph.calls) > 3)
        assert await it.runner.drain(patience, "interrupted") is (patience > 0)
    assert (it.store.status, it.store.reason, it.store.resume_after) == ("paused", "interrupted", 60)


# -- waiting


def test_the_wait_before_a_retry_is_anything_up_to_a_growing_limit() -> None:
    backoff = Backoff(base=1, cap=10)
    assert [backoff.delay(failures, 1.0) for failures in (1, 2, 3, 4, 5, 60)] == [1, 2, 4, 8, 10, 10]
    assert backoff.delay(5, 0.0) == 0
