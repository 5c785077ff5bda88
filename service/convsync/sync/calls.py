"""One granted call: wait for the slot, call, and record what came back, whatever it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from convsync.errors import DatabaseError
from convsync.graph.catalogue import ErrorClass
from convsync.graph.client import PARSED_IN_A_THREAD, GraphAnswer
from convsync.graph.errors import GraphError
from convsync.graph.usage import Usage
from convsync.observe.measures import GraphMeasures
from convsync.sync.ports import Graph, SyncStore, Time
from convsync.sync.retry import Backoff, patiently

_T = TypeVar("_T")
_TICK: Final = 1.0  # how soon a waiting call notices that the run is to stop
_ASK_AGAIN: Final = 60.0  # a block may be lifted early; asking costs nothing
_LONGEST_BLOCK: Final = 3600


class Stopped(Exception):
    """The run is to stop; no slot was taken and no call made."""


@dataclass(slots=True, eq=False)
class Control:
    """What stops a run, shared by everything that works for it. Times are those of `Time.now`.

    `lease_until` is when the database would give the run to somebody else; `failed` says that
    `reason` ends the run rather than pausing it.
    """

    time: Time
    lease_until: float
    deadline: float | None = None
    reason: str | None = None
    failed: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    def stop(self, reason: str, *, failed: bool = False) -> None:
        """Stop at the next page; the first reason stays, unless a later one is a failure."""
        if self.reason is None or (failed and not self.failed):
            self.reason, self.failed = reason, failed

    @property
    def stopping(self) -> bool:
        if self.reason is None and self.deadline is not None and self.time.now() >= self.deadline:
            self.reason = "deadline"
        return self.reason is not None

    async def pause(self, seconds: float) -> None:
        """Sleep, in small steps; raise `Stopped` as soon as the run is to stop."""
        ends = self.time.now() + seconds
        while True:
            if self.stopping:
                raise Stopped
            rest = ends - self.time.now()
            if rest <= 0:
                return
            if self.deadline is not None:
                rest = min(rest, max(self.deadline - self.time.now(), 0.001))
            await self.time.sleep(min(rest, _TICK))

    async def patiently(self, what: Callable[[], Awaitable[_T]]) -> _T:
        """Call the database, as long as the lease holds."""
        return await patiently(what, until=lambda: self.lease_until, time=self.time, backoff=self.backoff)


class Caller:
    """Makes the calls of one run: each in a slot of the Page's budget, each recorded.

    `token` is the opened Page token; it may be replaced between calls.
    """

    def __init__(
        self,
        *,
        store: SyncStore,
        graph: Graph,
        page_id: str,
        run_id: int | None,
        fence: int | None,
        lane: str,
        calls_per_second: float,
        token: str,
        control: Control,
        measures: GraphMeasures | None = None,
    ) -> None:
        self.token = token
        self._measures = measures if measures is not None else GraphMeasures()
        self._store = store
        self._graph = graph
        self._page_id = page_id
        self._run_id = run_id
        self._fence = fence
        self._lane = lane
        self._calls_per_second = calls_per_second
        self._control = control
        self._throttles = 0
        self._throttled_at = float("-inf")

    async def call(
        self,
        path: str,
        params: Mapping[str, str | int],
        read: Callable[[GraphAnswer, datetime], _T],
    ) -> _T:
        """Make one call and `read` its answer with the instant it was granted.

        Raises `Stopped` if the run stops before a slot is taken, and `GraphError` (recorded) if the
        call fails or its answer cannot be read.
        """
        granted_at = await self._slot()
        started = self._control.time.now()
        try:
            answer = await self._graph.get(path, params, self.token)
        except GraphError as error:
            error.granted_at = granted_at
            await self._failed(error, started)
            raise
        try:
            if answer.size > PARSED_IN_A_THREAD:
                page = await asyncio.to_thread(read, answer, granted_at)
            else:
                page = read(answer, granted_at)
        except GraphError as error:
            error.usage, error.ms, error.http_status = answer.usage, answer.ms, answer.status
            error.trace_id, error.request_id = answer.trace_id, answer.request_id
            self._measures.unreadable(path)
            await self._failed(error, started)
            raise
        self._throttles = 0
        await self._record(status=answer.status, ms=answer.ms, usage=answer.usage)
        return page

    async def _slot(self) -> datetime:
        """Wait until the budget grants a call; return when it did, by the database's clock."""
        asked = self._control.time.now()
        while True:
            if self._control.stopping:
                raise Stopped
            grant = await self._control.patiently(
                lambda: self._store.acquire_call(
                    page_id=self._page_id,
                    lane=self._lane,
                    run_id=self._run_id,
                    fence=self._fence,
                    calls_per_second=self._calls_per_second,
                )
            )
            if grant.wait_ms <= 0:
                if grant.granted_at is None:
                    raise DatabaseError("acquire_call granted a call without saying when")
                self._measures.waited(self._lane, self._control.time.now() - asked)
                return grant.granted_at
            await self._control.pause(min(grant.wait_ms / 1000, _ASK_AGAIN))

    async def _failed(self, error: GraphError, started: float) -> None:
        scope, seconds, reason = None, None, None
        if error.error_class is ErrorClass.THROTTLED:
            # Calls that were under way together were refused together: that is one refusal.
            if started >= self._throttled_at:
                self._throttles += 1
            seconds = error.block_seconds
            if not error.block_told:
                # Meta did not say how long, and calling too early makes it longer: wait longer each time.
                seconds = min(seconds * 2 ** min(self._throttles - 1, 12), max(_LONGEST_BLOCK, seconds))
            scope, reason = error.block_scope, error.message[:300]
        await self._record(
            status=error.http_status,
            ms=error.ms,
            usage=error.usage,
            code=error.code,
            subcode=error.subcode,
            scope=scope,
            seconds=seconds,
            reason=reason,
        )
        if error.error_class is ErrorClass.THROTTLED:
            self._throttled_at = self._control.time.now()

    async def _record(
        self,
        *,
        status: int | None,
        ms: int,
        usage: Usage | None,
        code: int | None = None,
        subcode: int | None = None,
        scope: str | None = None,
        seconds: int | None = None,
        reason: str | None = None,
    ) -> None:
        if scope is None and usage is not None and usage.used_up_seconds > 0:
            scope, seconds, reason = "page", usage.used_up_seconds, "usage"
        if scope is not None:
            self._measures.blocked(scope)
        await self._control.patiently(
            lambda: self._store.record_call(
                page_id=self._page_id,
                status=status,
                response_ms=ms,
                usage=None if usage is None else usage.as_json(),
                error_code=code,
                error_subcode=subcode,
                block_scope=scope,
                block_seconds=seconds,
                block_reason=reason,
            )
        )
