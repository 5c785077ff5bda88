"""Whole syncs through the real engine, client and database, against a simulator in a process of its own."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from bench.ingest import load_conversations
from bench.report import Line
from bench.server import Server, open_service
from bench.simulator import SimulatorProcess, open_simulator
from convsync.database.bootstrap import SERVICE_LOGIN
from convsync.facts import Message
from convsync.graph.client import GraphClient
from convsync.store import Applied, Begun, Grant, RequestSize, SealedToken, Store, Work, create_pool
from convsync.sync.runner import RunnerSettings, SyncRunner
from convsync.tokens import TokenBox, new_key

Tell = Callable[[str], None]

_CONVERSATIONS_PER_CALL, _MESSAGES_PER_CALL = 200, 100
_RATE, _RATE_RATIO = 5000, 0.3
_CALLS_PER_SECOND = 2.0
_MEMORY_MB = 250.0
_POOL = 6


class Discarding:
    """A store that keeps cursors in memory and nothing else: what client, models and engine cost without a
    database. It knows one run, of one Page, of one mode.
    """

    def __init__(self, sealed: bytes, key_id: str) -> None:
        self.messages = 0
        self._token = SealedToken(sealed, key_id, "valid")
        self._work: dict[tuple[str, str], Work] = {("list", ""): Work("list", "", None, None, 1)}

    async def begin_sync(self, **_: Any) -> Begun:
        return Begun(1, 1, False)

    async def page_token(self, **_: Any) -> SealedToken:
        return self._token

    async def request_size(self, *, full_limit: int, full_nested: int, **_: Any) -> RequestSize:
        return RequestSize(full_limit, full_nested)

    async def acquire_call(self, **_: Any) -> Grant:
        return Grant(0, datetime.now(UTC))

    async def record_call(self, **_: Any) -> None:
        return None

    async def renew_sync_lease(self, **_: Any) -> None:
        return None

    async def next_sync_work(self, *, limit: int, **_: Any) -> list[Work]:
        """Threads first, as the database has it."""
        threads = (work for work in self._work.values() if work.kind == "thread")
        lists = (work for work in self._work.values() if work.kind == "list")
        return list(itertools.islice(itertools.chain(threads, lists), limit))

    async def apply_sync_page(
        self,
        *,
        kind: str,
        thread_id: str,
        next_cursor: str | None,
        facts: Sequence[Any],
        threads: Sequence[Any],
        **_: Any,
    ) -> Applied:
        self.messages += sum(isinstance(fact, Message) for fact in facts)
        work = self._work.pop((kind, thread_id))
        if next_cursor is not None:
            self._work[kind, thread_id] = Work(kind, thread_id, work.sender_id, next_cursor, 1)
        if kind == "list":
            for thread in threads:
                if thread["read"] == "more":
                    name = thread["thread_id"]
                    self._work["thread", name] = Work(
                        "thread", name, thread["sender_id"], thread["next_cursor"], 1
                    )
        return Applied(True, 0, 0, len(self._work))

    async def finish_sync(self, **_: Any) -> str:
        return "succeeded"


@dataclass(frozen=True, slots=True)
class Mirror:
    """One database with a Page of the simulator, and the runner that syncs it."""

    store: Store
    runner: SyncRunner
    page_id: str

    async def sync(self, mode: str = "full") -> tuple[dict[str, Any], float]:
        """The run as it ended and the seconds it took; only a whole success is a measurement."""
        began = time.perf_counter()
        outcome = await self.runner.run(self.page_id, mode)
        took = time.perf_counter() - began
        run = await self.store.get_sync_run(run_id=outcome.run_id)
        if run["status"] != "succeeded":
            raise RuntimeError(f"{mode} sync of {self.page_id}: {run['status']} ({run['reason']})")
        return run, took


@asynccontextmanager
async def _mirror(
    server: Server, database: str, simulator: SimulatorProcess, place: int = 0, calls_per_second: float = 0
) -> AsyncIterator[Mirror]:
    page = simulator.pages[place]
    box = TokenBox(new_key())
    pool = create_pool(server.embedded.url(SERVICE_LOGIN, database), size=_POOL, name="bench")
    await pool.open(wait=True, timeout=10)
    try:
        store = Store(pool)
        await store.add_page(
            page_id=page["page_id"],
            token_sealed=box.seal(page["page_id"], page["token"]),
            token_key_id=box.key_id,
        )
        async with GraphClient(simulator.url) as graph:
            settings = RunnerSettings(calls_per_second=calls_per_second)
            yield Mirror(store, SyncRunner(store, graph, box.open, settings), page["page_id"])
    finally:
        await pool.close()


async def _discarded(simulator: SimulatorProcess, place: int = 0) -> tuple[int, float]:
    """Messages read of a Page and thrown away, and the seconds it took."""
    page = simulator.pages[place]
    box = TokenBox(new_key())
    store: Any = Discarding(box.seal(page["page_id"], page["token"]), box.key_id)
    async with GraphClient(simulator.url) as graph:
        runner = SyncRunner(store, graph, box.open, RunnerSettings(calls_per_second=0))
        began = time.perf_counter()
        outcome = await runner.run(page["page_id"], "full")
        took = time.perf_counter() - began
    if outcome.status != "succeeded":
        raise RuntimeError(f"discarding sync: {outcome}")
    return store.messages, took


def _least_calls(simulator: SimulatorProcess, place: int) -> tuple[int, int]:
    """The least calls that read a Page whole, and its messages: full lists of 200 conversations with 100
    messages each, and full pages of 100 of what is longer.
    """
    listed = [
        sum(message["readable"] and not message["deleted"] for message in conversation["messages"])
        for conversation in simulator.truth(place)
        if conversation["listed"]
    ]
    deeper = sum(max(0, math.ceil(count / _MESSAGES_PER_CALL) - 1) for count in listed)
    return math.ceil(len(listed) / _CONVERSATIONS_PER_CALL) + deeper, sum(listed)


def full(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """sync_full_calls, sync_full_rate: a whole Page into an empty database, limits off."""
    repetitions, conversations = (5, 200) if quick else (5, 1000)
    calls: list[float] = []
    least: list[float] = []
    rates: list[float] = []
    discarded: list[float] = []
    with open_simulator(conversations, 30, "--pages", str(repetitions + 1)) as simulator:
        for place in range(repetitions + 1):  # the first is not counted
            fewest, messages = _least_calls(simulator, place)
            with server.clone() as database:
                ours, theirs = (
                    _sync_once(server, database, simulator, place),
                    asyncio.run(_discarded(simulator, place)),
                )
            run, took = ours
            thrown, thrown_took = theirs
            if not run["messages_added"] == thrown == messages:
                raise RuntimeError(f"{messages} messages: {run['messages_added']} stored, {thrown} read")
            if place:
                calls.append(run["calls"])
                least.append(fewest)
                rates.append(messages / took)
                discarded.append(messages / thrown_took)
    return [
        Line(
            "sync_full_calls",
            f"calls for {conversations:,} conversations",
            "the least that read them, with 200 conversations and 100 messages per call",
            calls,
            least,
            goal=1.15,
            aim=1.02,
            better="lower",
        ),
        Line(
            "sync_full_rate",
            "messages/s",
            "the same client, models and engine with a store that discards",
            rates,
            discarded,
            goal=_RATE_RATIO,
            aim=0.5,
            goal_value=_RATE,
        ),
    ]


def _sync_once(
    server: Server, database: str, simulator: SimulatorProcess, place: int
) -> tuple[dict[str, Any], float]:
    async def work() -> tuple[dict[str, Any], float]:
        async with _mirror(server, database, simulator, place) as mirror:
            return await mirror.sync()

    return asyncio.run(work())


def growth(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """sync_full_growth: the same rate where other Pages' conversations fill the database."""
    repetitions, conversations = (5, 200) if quick else (5, 1000)
    few, many = (1000, 10_000) if quick else (10_000, 1_000_000)
    rates: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        databases = [stack.enter_context(server.clone()) for _ in range(2)]
        for database, stored in zip(databases, (many, few), strict=True):
            load_conversations(server, database, stored)
        simulator = stack.enter_context(
            open_simulator(conversations, 30, "--pages", str(repetitions + 1), "--seed", "2")
        )
        for place in range(repetitions + 1):  # the first is not counted
            order = (0, 1) if place % 2 else (1, 0)
            for which in order:
                run, took = _sync_once(server, databases[which], simulator, place)
                if place:
                    rates[which].append(run["messages_added"] / took)
    return [
        Line(
            "sync_full_growth" if not quick else "sync_full_growth_10k",
            f"messages/s with {many:,} conversations of other Pages stored",
            f"with {few:,}",
            rates[0],
            rates[1],
            goal=0.8,
            aim=0.95,
        )
    ]


def incremental(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """sync_incremental_calls, sync_unchanged_calls: what it costs to find out what has changed."""
    repetitions, conversations = (5, 1000) if quick else (5, 10_000)
    changed = conversations // 100

    async def work(database: str, simulator: SimulatorProcess) -> tuple[list[float], list[float]]:
        nothing: list[float] = []
        some: list[float] = []
        async with _mirror(server, database, simulator) as mirror:
            await mirror.sync()
            for _ in range(repetitions):
                run, _took = await mirror.sync("incremental")
                nothing.append(run["calls"])
            for _ in range(repetitions):
                simulator.post("/_sim/traffic", {"count": changed, "kinds": ["text"], "silent": True})
                run, _took = await mirror.sync("incremental")
                if run["messages_added"] != changed:
                    raise RuntimeError(f"{changed} messages written, {run['messages_added']} found")
                some.append(run["calls"])
        return nothing, some

    with server.clone() as database, open_simulator(conversations, 3) as simulator:
        nothing, some = asyncio.run(work(database, simulator))
    return [
        Line(
            "sync_incremental_calls",
            f"calls of an incremental, {changed} of {conversations:,} conversations changed",
            "what is allowed; no changed thread is deeper than the list shows",
            some,
            [6.0] * repetitions,
            goal=1.0,
            better="lower",
        ),
        Line(
            "sync_unchanged_calls",
            f"calls of an incremental, nothing changed in {conversations:,} conversations",
            "the least there is",
            nothing,
            [1.0] * repetitions,
            goal=1.0,
            better="lower",
        ),
    ]


def utilisation(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """sync_utilisation: calls granted by the budget in a long walk, by what its two a second allow."""
    windows, window = (5, 2.0) if quick else (6, 10.0)

    async def work(database: str, simulator: SimulatorProcess) -> list[float]:
        async with _mirror(server, database, simulator, calls_per_second=_CALLS_PER_SECOND) as mirror:
            # The first second takes two calls at once and waits for imports and first plans.
            outcome = await mirror.runner.run(mirror.page_id, deadline_seconds=windows * window + 4)
            if outcome.status != "paused":
                raise RuntimeError(f"the walk was not long enough: {outcome}")
        moments = simulator.call_times()
        begins = moments[0] + 2
        return [
            sum(begins + n * window <= moment < begins + (n + 1) * window for moment in moments)
            for n in range(windows)
        ]

    # The simulator's own limit is on: a call too many would be refused, and the walk slowed down.
    with server.clone() as database, open_simulator(5000, 60, calls_per_second=2) as simulator:
        made = asyncio.run(work(database, simulator))
        complaints = simulator.violations()
    return [
        Line(
            "sync_utilisation",
            "calls/s of a walk that lasts",
            "two a second, what is allowed",
            [count / window for count in made],
            [_CALLS_PER_SECOND] * windows,
            goal=0.93,
            aim=0.98,
            also=complaints == 0,
            detail={"windows_seconds": window, "refused_by_the_simulator": complaints},
        )
    ]


def memory(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """sync_rss: resident memory of `convsync serve` while it reads a large Page whole."""
    conversations = 2000 if quick else 100_000
    samples: list[float] = []
    with open_simulator(conversations, 6) as simulator:
        page = simulator.pages[0]
        options = {"CONVSYNC_GRAPH_URL": simulator.url, "CONVSYNC_CALLS_PER_SECOND": "0"}
        with open_service(server, environment=options) as service:
            key = (server.embedded.data_dir / "api_key").read_text(encoding="utf-8").strip()
            ask = _Api(service.host, service.port, key)
            idle = service.resident_mb()
            ask("POST", "/api/pages", {"page_id": page["page_id"], "token": page["token"]})
            run = ask("POST", "/api/conversations/sync", {"page_id": page["page_id"], "mode": "full"})
            began = time.monotonic()
            while run["status"] in ("queued", "running"):
                samples.append(service.resident_mb())
                time.sleep(0.05 if quick else 0.5)
                run = ask("GET", f"/api/sync-runs/{run['run_id']}")
            took = time.monotonic() - began
    if run["status"] != "succeeded" or run["conversations_seen"] != conversations:
        raise RuntimeError(f"sync of {conversations} conversations: {run}")
    tenth = max(5, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    tell(f"sync of {conversations:,}: idle {idle:.0f} MB, at most {max(samples):.0f} MB, {took:.0f} s")
    return [
        Line(
            "sync_rss",
            f"MB in the last tenth of a full sync of {conversations:,} conversations",
            f"in the second tenth; at most {_MEMORY_MB:g} MB at any time",
            late,
            [median(early)] * len(late),
            goal=1.15,
            goal_value=_MEMORY_MB,
            also=max(samples) < _MEMORY_MB,
            better="lower",
            detail={
                "idle_mb": round(idle, 1),
                "peak_mb": round(max(samples), 1),
                "messages": run["messages_added"],
                "calls": run["calls"],
                "seconds": round(took, 1),
            },
        )
    ]


class _Api:
    """The service's own HTTP API; anything but 2xx is an error."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = (host, port)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return json.loads(text)
