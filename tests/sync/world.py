"""A small world for end-to-end tests: a simulated Facebook, the real engine and database, the verdict.

Nothing here waits for a clock but what the engine itself waits for, and `FastTime` makes that short.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from convsync.graph.client import GraphClient
from convsync.pages import PageToken
from convsync.simulator import Simulator, SimulatorConfig
from convsync.simulator.checker import compare, fetch_truth
from convsync.simulator.verdict import Verdict
from convsync.store import Grant, Store, create_pool
from convsync.sync.ports import Time
from convsync.sync.retry import Backoff
from convsync.sync.runner import Outcome, RunnerSettings, SyncRunner
from convsync.tokens import TokenBox
from secrets_hunt import marked_key

QUICK = Backoff(base=0.01, cap=0.02)
LIST_CALL = "/conversations"


class FastTime:
    """A clock that runs `factor` times as fast as the wall, for the engine and, through `FastStore`, for the
    database.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._began = time.monotonic()
        self._epoch = datetime.now(UTC)
        self._epoch_wall = time.time()

    def now(self) -> float:
        return (time.monotonic() - self._began) * self.factor

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.factor)

    def database_now(self) -> datetime:
        return self._epoch + timedelta(seconds=self.now())

    def of_wall(self, wall: float) -> float:
        """The moment of this clock at a Unix time."""
        return (wall - self._epoch_wall) * self.factor

    def skip(self, **span: float) -> None:
        """Let that much time pass in the database, as `timedelta` takes it."""
        self._epoch += timedelta(**span)

    @property
    def time(self) -> Time:
        return Time(now=self.now, sleep=self.sleep)


class FastStore(Store):
    """A store whose database believes in a `FastTime`."""

    def __init__(self, pool: Any, clock: FastTime) -> None:
        super().__init__(pool)
        self._clock = clock

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        # One transaction, and the setting is its own: behind a pooler the next one has another connection.
        async with super()._connection() as connection, connection.transaction():
            moment = self._clock.database_now().isoformat()
            await connection.execute("select set_config('convsync.now', %s, true)", [moment])
            yield connection


class Ledger:
    """What the budget granted and what it was told, in the order it happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.grants: list[datetime] = []
        self.answered: list[datetime] = []
        self.blocks: list[tuple[datetime, datetime]] = []
        acquire, record = FastStore.acquire_call, FastStore.record_call

        async def acquire_call(store: FastStore, **arguments: Any) -> Grant:
            grant = await acquire(store, **arguments)
            if grant.granted_at is not None:
                self.grants.append(grant.granted_at)
            return grant

        async def record_call(store: FastStore, **arguments: Any) -> datetime | None:
            until = await record(store, **arguments)
            self.answered.append(store._clock.database_now())
            if arguments["block_scope"] is not None:
                assert until is not None
                # What was granted while the refusal was on its way could not know of it.
                self.blocks.append((store._clock.database_now(), until))
            return until

        monkeypatch.setattr(FastStore, "acquire_call", acquire_call)
        monkeypatch.setattr(FastStore, "record_call", record_call)

    def granted_while_blocked(self) -> int:
        return sum(began < granted < ends for began, ends in self.blocks for granted in self.grants)


@dataclass
class World:
    """One Page of one simulator, mirrored into one database."""

    simulator: Simulator
    database: Any
    store: Store
    graph: GraphClient
    box: TokenBox
    owner: psycopg.AsyncConnection[dict[str, Any]]
    token: PageToken
    clock: FastTime | None = None

    @property
    def page_id(self) -> str:
        return self.simulator.page.page_id

    def runner(self, *, time: Time | None = None, **settings: Any) -> SyncRunner:
        """A runner as a process of its own would have it."""
        defaults: dict[str, Any] = {"calls_per_second": 0.0, "lease_seconds": 60.0}
        return SyncRunner(
            self.store,
            self.graph,
            self.box.open,
            RunnerSettings(**(defaults | settings)),
            time=time or (self.clock.time if self.clock else None),
            backoff=QUICK,
        )

    async def sync(
        self,
        mode: str = "full",
        *,
        deadline_seconds: float | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> Outcome:
        """A sync by a new runner, bounded."""
        async with asyncio.timeout(120):
            return await self.runner(**settings).run(
                self.page_id, mode, deadline_seconds=deadline_seconds, restart=restart
            )

    async def run_of(self, outcome: Outcome) -> dict[str, Any]:
        return await self.store.get_sync_run(run_id=outcome.run_id)

    async def verdict(self) -> Verdict:
        return await compare(self.owner, fetch_truth(self.simulator.url, self.page_id), self.page_id)

    async def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        cursor = await self.owner.execute(query, values)  # type: ignore[arg-type]
        return await cursor.fetchall()

    async def value(self, query: str, **values: Any) -> Any:
        (row,) = await self.rows(query, **values)
        return next(iter(row.values()))

    async def event_count(self) -> int:
        return await self.value("select count(*) from convsync.contact_interaction_events where in_thread")

    async def versions(self) -> dict[int, int]:
        found = await self.rows("select conversation_id, version from convsync.messenger_conversations")
        return {row["conversation_id"]: row["version"] for row in found}

    def calls(self, part: str = "") -> int:
        """How many calls the simulator got, of those whose path has `part` in it."""
        return sum(part in call.path for call in self.simulator.calls.calls)

    def on_call(self, act: Callable[[int, Any], None]) -> None:
        """Let `act(number, call)` happen as each call arrives, before it is answered; numbers from 1."""
        begin, count = self.simulator.calls.begin, 0

        def hook(call: Any) -> None:
            nonlocal count
            count += 1
            begin(call)
            act(count, call)

        self.simulator.calls.begin = hook  # type: ignore[method-assign]


@asynccontextmanager
async def open_world(
    database: Any,
    *,
    clock: FastTime | None = None,
    graph_url: str | None = None,
    **config: Any,
) -> AsyncIterator[World]:
    """A world whose Page is added, with its token, and not synced yet."""
    defaults: dict[str, Any] = {"port": 0, "conversations": 60, "messages": 12.0, "calls_per_second": 0.0}
    async with contextlib.AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(SimulatorConfig(**(defaults | config))))
        pool = create_pool(database.service_url, size=6, name="test")
        await pool.open(wait=True, timeout=10)
        stack.push_async_callback(pool.close)
        store = FastStore(pool, clock) if clock else Store(pool)
        graph = await stack.enter_async_context(GraphClient(graph_url or simulator.url))
        owner = await psycopg.AsyncConnection.connect(
            database.owner_url, autocommit=True, row_factory=dict_row
        )
        stack.push_async_callback(owner.close)
        box = TokenBox(marked_key())
        page = simulator.page
        token = PageToken(page.token, box.seal(page.page_id, page.token))
        await store.add_page(page_id=page.page_id, token_sealed=token.sealed, token_key_id=box.key_id)
        yield World(simulator, database, store, graph, box, owner, token, clock)
