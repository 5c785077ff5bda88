"""What the sync engine needs of the rest: the database's functions, the Graph client, and time.

Each method of `SyncStore` is one SQL function of the same name: one call, one transaction. All raise
the exceptions of `convsync.errors`; those named here are the ones the engine acts on.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

from convsync.facts import Fact, Json
from convsync.graph.client import GraphAnswer

Mode: TypeAlias = Literal["full", "incremental", "reconcile"]
Kind: TypeAlias = Literal["list", "thread", "contact", "confirm", "control"]
Lane: TypeAlias = Literal["live", "repair", "backfill"]


SawDrift: TypeAlias = Callable[[Iterable[tuple[str, str]]], None]
"""Hears of each (page_id, name) that Graph answered and this release does not know."""


def ignore_drift(names: Iterable[tuple[str, str]]) -> None:
    pass


class Begun(Protocol):
    """A run that is ours now; `resumed` if it goes on where an earlier attempt stopped."""

    @property
    def run_id(self) -> int: ...
    @property
    def fence(self) -> int: ...
    @property
    def resumed(self) -> bool: ...


class Work(Protocol):
    """One open cursor: the list (`thread_id` empty), a thread, or a person whose thread is not known
    (`thread_id` is theirs), and where it goes on (`None`: its front).

    `confirm` and `control` are threads to be read by themselves: is this one gone, is that one still there.
    """

    @property
    def kind(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def sender_id(self) -> str | None: ...
    @property
    def cursor(self) -> str | None: ...
    @property
    def walk_pass(self) -> int: ...


class Applied(Protocol):
    """What a page did; `applied` is false for one that had been applied before."""

    @property
    def applied(self) -> bool: ...
    @property
    def messages_added(self) -> int: ...
    @property
    def open_work(self) -> int: ...


class Grant(Protocol):
    """Call now (`wait_ms` 0), observed at `granted_at`; or ask again after `wait_ms`."""

    @property
    def wait_ms(self) -> int: ...
    @property
    def granted_at(self) -> datetime | None: ...


class SealedToken(Protocol):
    """A Page's token (`None` if it has none), and what Graph last said of it: unchecked, valid, invalid."""

    @property
    def sealed(self) -> bytes | None: ...
    @property
    def state(self) -> str: ...


class Resumable(Protocol):
    """A run that is paused, or whose process is gone, and that may go on now."""

    @property
    def page_id(self) -> str: ...
    @property
    def mode(self) -> str: ...


class Due(Protocol):
    """A sync whose time has come."""

    @property
    def page_id(self) -> str: ...
    @property
    def mode(self) -> str: ...


class RequestSize(Protocol):
    """How much to ask for: `size_limit` items, each with up to `nested` messages."""

    @property
    def size_limit(self) -> int: ...
    @property
    def nested(self) -> int: ...


class SizeStore(Protocol):
    """The database's memory of how much may be asked for at once; see `convsync.sync.sizes`."""

    async def request_size(
        self, *, page_id: str, kind: str, place: str, full_limit: int, full_nested: int
    ) -> RequestSize: ...

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
        """Whether there is a smaller request to make."""
        ...


class SyncStore(SizeStore, Protocol):
    """The database, as far as a sync needs it."""

    async def begin_sync(
        self,
        *,
        page_id: str,
        mode: str,
        owner: str,
        lease_seconds: float,
        restart: bool,
        request_id: str | None,
        depth_seconds: float,
    ) -> Begun:
        """Begin or resume; `AlreadyRunning` if one of this kind runs."""
        ...

    async def retry_sync(
        self, *, page_id: str, run_id: int, owner: str, lease_seconds: float, request_id: str | None
    ) -> Begun:
        """Go on with what a run could not read; `AlreadyRunning` if one of its kind runs."""
        ...

    async def next_sync_work(self, *, page_id: str, run_id: int, fence: int, limit: int) -> Sequence[Work]:
        """Open cursors, threads first; none means that nothing is left."""
        ...

    async def apply_sync_page(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        cursor: str | None,
        next_cursor: str | None,
        observed_at: datetime,
        facts: Sequence[Fact],
        threads: Sequence[Json],
        unreadable: int,
        lease_seconds: float,
        walk_pass: int,
        oldest: datetime | None,
        newest: datetime | None,
    ) -> Applied:
        """Facts, cursor, counters and lease in one transaction; the same page again changes nothing.

        `oldest` and `newest` are message times of a page of a thread.
        """
        ...

    async def apply_confirmation(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        observed_at: datetime,
        found: bool,
        updated_time: datetime | None,
        message_count: int | None,
        token: int,
        error: Json | None,
        lease_seconds: float,
    ) -> bool:
        """What a `confirm` or `control` came to; false for one that had been applied before."""
        ...

    async def restart_sync_list(
        self, *, page_id: str, run_id: int, fence: int, thread_id: str, cursor: str | None
    ) -> object:
        """Graph refused `cursor`: read this list (`thread_id` empty) or thread again from its front."""
        ...

    async def fail_sync_batch(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        cursor: str | None,
        attempts: int,
        error: Json,
    ) -> object: ...

    async def renew_sync_lease(
        self, *, page_id: str, run_id: int, fence: int, lease_seconds: float
    ) -> object: ...

    async def pause_sync(
        self, *, page_id: str, run_id: int, fence: int, reason: str, resume_after_seconds: float
    ) -> object: ...

    async def finish_sync(self, *, page_id: str, run_id: int, fence: int, failure: str | None) -> str:
        """End the run; returns the status that what was read amounts to."""
        ...

    async def get_sync_run(self, *, run_id: int) -> Json: ...

    async def acquire_call(
        self, *, page_id: str, lane: str, run_id: int | None, fence: int | None, calls_per_second: float
    ) -> Grant: ...

    async def record_call(
        self,
        *,
        page_id: str,
        status: int | None,
        response_ms: int,
        usage: Json | None,
        error_code: int | None,
        error_subcode: int | None,
        block_scope: str | None,
        block_seconds: float | None,
        block_reason: str | None,
    ) -> object: ...

    async def page_token(self, *, page_id: str) -> SealedToken:
        """Raises `NotFound` for a Page that was removed."""
        ...

    async def mark_token(
        self, *, page_id: str, state: str, error: str | None, token_sealed: bytes | None
    ) -> object:
        """What Graph said of that token; another that was stored meanwhile stays as it is."""
        ...

    async def resumable_syncs(self) -> Sequence[Resumable]: ...

    async def set_sync_schedule(self, *, sync_seconds: float, reconcile_seconds: float) -> object: ...

    async def due_syncs(self, *, modes: Sequence[str]) -> Sequence[Due]: ...

    async def begin_due_sync(
        self,
        *,
        page_id: str,
        mode: str,
        owner: str,
        lease_seconds: float,
        request_id: str | None,
        depth_seconds: float,
    ) -> Begun | None:
        """Begin what is due; None if another process has."""
        ...

    async def lay_down_syncs(self) -> int: ...


class Graph(Protocol):
    """The Graph client: one attempt per call."""

    async def get(self, path: str, params: Mapping[str, str | int], token: str) -> GraphAnswer: ...


@dataclass(frozen=True, slots=True)
class Time:
    """Clock, sleep and chance, so that tests need neither wait nor guess. Seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    random: Callable[[], float] = random.random
