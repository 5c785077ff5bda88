"""The walker: carries the open work of one run, page by page, until nothing is left.

It decides neither what to read nor when a list has been read to its end: `next_sync_work` and
`apply_sync_page` do. Each applied page moves its cursor in the same transaction that stores its facts,
so a process that dies loses the calls it had under way and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from convsync.errors import BadData, InvalidArgument
from convsync.facts import Fact, Json, Message, drift_name
from convsync.graph.catalogue import (
    NO_CONNECTION,
    NO_WHOLE_ANSWER,
    UNREADABLE,
    ErrorClass,
)
from convsync.graph.client import GraphAnswer, node_path
from convsync.graph.errors import GraphError
from convsync.graph.reading import (
    LIST_FIELDS,
    NODE_FIELDS,
    NodePage,
    list_fields,
    message_fields,
    read_conversations,
    read_messages,
    read_node,
)
from convsync.observe.measures import SyncMeasures
from convsync.sync import refused
from convsync.sync.calls import Caller, Control, Stopped
from convsync.sync.ports import SawDrift, SyncStore, Work, ignore_drift
from convsync.sync.retry import BUDGETS
from convsync.sync.sizes import Place, Size, Sizes, list_place, person_place, thread_place

_IGNORED_TOO_OFTEN: Final = 3
_DIRECT: Final = frozenset({"confirm", "control"})  # threads that are read by themselves
# Without these a message or a thread cannot be told whose and when it is.
_ESSENTIAL: Final = frozenset({"id", "created_time", "updated_time", "from", "to", "message", "participants"})


@dataclass(frozen=True, slots=True)
class _Page:
    """What one read gives to `apply_sync_page`."""

    observed_at: datetime
    facts: list[Fact]
    threads: list[Json]
    next_cursor: str | None
    unreadable: int
    drift: Counter[str]
    newest: datetime | None = None  # of a thread; of the list's threads each says its own
    oldest: datetime | None = None
    node: NodePage | None = None  # of a thread that was read by itself


class _GaveUp(Exception):
    def __init__(self, error: GraphError, attempts: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.attempts = attempts


class _Restarted(Exception):
    """The list was set back to its front; its work comes anew."""


class Walker:
    """Works for one run of one Page.

    `reload_token` reads the Page's token again and returns it if somebody has replaced it since;
    `token_works` hears of each page that was read with it, `token_is_dead` what Graph said of it; `saw_drift`
    of each (page_id, name) that this release does not know.
    """

    def __init__(
        self,
        *,
        store: SyncStore,
        caller: Caller,
        control: Control,
        page_id: str,
        run_id: int,
        fence: int,
        unknown_fields: set[str],
        mode: str = "full",
        lease_seconds: float,
        token_works: Callable[[], Awaitable[None]],
        token_is_dead: Callable[[str], Awaitable[None]],
        reload_token: Callable[[], Awaitable[str | None]],
        concurrency: int = 3,
        log: Any = None,
        saw_drift: SawDrift = ignore_drift,
        measures: SyncMeasures | None = None,
    ) -> None:
        self._store = store
        self._caller = caller
        self._control = control
        self._page_id = page_id
        self._run_id = run_id
        self._fence = fence
        self._unknown_fields = unknown_fields
        self._mode = mode
        self._sizes = Sizes(store, page_id, control.patiently)
        self._lease_seconds = lease_seconds
        self._token_works = token_works
        self._token_is_dead = token_is_dead
        self._reload_token = reload_token
        self._concurrency = concurrency
        self._saw_drift = saw_drift
        self._measures = measures if measures is not None else SyncMeasures()
        self._log = log if log is not None else structlog.get_logger(__name__)
        self._restarts: Counter[tuple[str, str]] = Counter()
        self._ignored: Counter[tuple[str, str, str | None]] = Counter()
        self._reloading = asyncio.Lock()
        self._replaced = 0  # how often the token was

    async def walk(self) -> None:
        """Return when nothing is left, or when the run is to stop and the pages under way are done.

        `Control.reason` tells the two apart. Raises an exception group with `LeaseLost`, or with the
        database's error if it stayed away until the lease was lost.
        """
        busy: set[tuple[str, str]] = set()
        changed = asyncio.Event()

        async def carry(work: Work, key: tuple[str, str]) -> None:
            try:
                await self._carry(work)
            finally:
                busy.discard(key)
                changed.set()

        async with asyncio.TaskGroup() as group:
            while True:
                changed.clear()
                # What was under way before the question: a page that ends during it would come back
                # with the cursor it has just left.
                before = set(busy)
                if not self._control.stopping and len(before) < self._concurrency:
                    for work in await self._next_work():
                        key = (work.kind, work.thread_id)
                        if key not in before and len(busy) < self._concurrency:
                            busy.add(key)
                            group.create_task(carry(work, key))
                if not busy and not before:
                    return
                if busy:
                    await changed.wait()

    async def _next_work(self) -> list[Work]:
        work = await self._control.patiently(
            lambda: self._store.next_sync_work(
                page_id=self._page_id, run_id=self._run_id, fence=self._fence, limit=self._concurrency
            )
        )
        return list(work)

    async def _carry(self, work: Work) -> None:
        """Read one page and apply it, or record why it could not be read."""
        if work.kind in _DIRECT:
            await self._confirm(work)
            return
        try:
            try:
                page = await self._read(work)
            except _GaveUp as gave_up:
                error = gave_up.error
                if work.kind == "list":
                    error = await refused.named(error, self._page_id, self._probe)
                await self._fail(work, gave_up.attempts, error.as_json())
                if work.kind == "list" and error.error_class is ErrorClass.PERMISSION:
                    self._control.stop("permission_denied", failed=True)
                return
        except (Stopped, _Restarted):
            return
        try:
            applied = await self._control.patiently(
                lambda: self._store.apply_sync_page(
                    page_id=self._page_id,
                    run_id=self._run_id,
                    fence=self._fence,
                    kind=work.kind,
                    thread_id=work.thread_id,
                    cursor=work.cursor,
                    next_cursor=page.next_cursor,
                    observed_at=page.observed_at,
                    facts=page.facts,
                    threads=page.threads,
                    unreadable=page.unreadable,
                    lease_seconds=self._lease_seconds,
                    walk_pass=work.walk_pass,
                    oldest=page.oldest,
                    newest=page.newest,
                )
            )
        except (BadData, InvalidArgument) as error:
            await self._fail(work, 1, _refusal(type(error).__name__, error.message, error.sqlstate))
            return
        if not applied.applied:
            # Once is the answer to a commit whose own answer was lost. Ever again would be a loop.
            place = (work.kind, work.thread_id, work.cursor)
            self._ignored[place] += 1
            if self._ignored[place] >= _IGNORED_TOO_OFTEN:
                await self._fail(work, self._ignored[place], _refusal("Ignored", "the page is never applied"))
            return
        self._measures.applied(
            self._mode,
            conversations=0 if work.kind == "thread" else len(page.threads),
            messages=sum(isinstance(fact, Message) for fact in page.facts),
            added=applied.messages_added,
        )

    async def _confirm(self, work: Work) -> None:
        """Read a thread by itself; that Graph does not know it is an answer too."""
        token = self._replaced
        seen: NodePage | None = None
        error: Json | None = None
        try:
            page = await self._read(work)
        except (Stopped, _Restarted):
            return
        except _GaveUp as gave_up:
            observed_at = gave_up.error.granted_at
            if gave_up.error.error_class is not ErrorClass.GONE or observed_at is None:
                await self._fail(work, gave_up.attempts, gave_up.error.as_json())
                return
            error = gave_up.error.as_json()
        else:
            observed_at = page.observed_at
            seen = page.node
        if self._replaced != token:
            return  # of which token this was the answer, is not known: the work is still there
        await self._control.patiently(
            lambda: self._store.apply_confirmation(
                page_id=self._page_id,
                run_id=self._run_id,
                fence=self._fence,
                kind=work.kind,
                thread_id=work.thread_id,
                observed_at=observed_at,
                found=error is None,
                updated_time=seen.updated_time if seen else None,
                message_count=seen.message_count if seen else None,
                token=token,
                error=error,
                lease_seconds=self._lease_seconds,
            )
        )

    async def _fail(self, work: Work, attempts: int, error: Json) -> None:
        self._log.error(
            "sync_batch_failed",
            kind=work.kind,
            thread_id=work.thread_id,
            attempts=attempts,
            error=error,
        )
        self._measures.batch_failed(work.kind, error["class"])
        await self._control.patiently(
            lambda: self._store.fail_sync_batch(
                page_id=self._page_id,
                run_id=self._run_id,
                fence=self._fence,
                kind=work.kind,
                thread_id=work.thread_id,
                cursor=work.cursor,
                attempts=attempts,
                error=error,
            )
        )

    async def _read(self, work: Work) -> _Page:
        """Read the page at `work.cursor`, as often and as small as it takes."""
        place = self._place(work)
        failures: Counter[ErrorClass] = Counter()
        while True:
            size = await self._sizes.now(place)
            path, params = self._request(work, size)
            token = self._caller.token
            try:
                page = await self._caller.call(path, params, self._reader(work))
            except GraphError as error:
                failures[error.error_class] += 1
                self._log.warning(
                    "graph_call_failed",
                    kind=work.kind,
                    thread_id=work.thread_id,
                    limit=size.limit,
                    nested=size.nested,
                    failures=failures[error.error_class],
                    error=error.as_json(),
                )
                await self._after(error, work, place, size, failures, token)
            else:
                await self._sizes.accepted(place, size)
                self._saw_drift((self._page_id, name) for name in page.drift.elements())
                if self._caller.token == token:
                    await self._token_works()
                return page

    async def _after(
        self,
        error: GraphError,
        work: Work,
        place: Place,
        size: Size,
        failures: Counter[ErrorClass],
        token: str,
    ) -> None:
        """Do what an error asks for before the next try; raise what ends the tries."""
        failed = failures[error.error_class]
        if error.type == NO_CONNECTION and failed >= BUDGETS[ErrorClass.TRANSIENT]:
            # Graph is not to be reached, which says nothing of this page: the run waits at its cursors.
            self._control.stop("graph_unreachable")
            raise Stopped
        match error.error_class:
            case ErrorClass.THROTTLED:
                # The block is recorded; the budget says when to call again. No try is used up.
                return
            case ErrorClass.SHRINK if await self._sizes.refused(place, size):
                failures[ErrorClass.SHRINK] = 0
                return
            case ErrorClass.BAD_CURSOR if work.cursor is not None:
                await self._restart(work, error, failures)
            case ErrorClass.TOKEN:
                await self._replace_token(token, error)
                if failed < 3:
                    return
            case ErrorClass.BAD_REQUEST if self._without(error.unknown_field):
                return
            case ErrorClass.TRANSIENT if failed > 1 and (error.code == 1 or error.type in NO_WHOLE_ANSWER):
                # Perhaps no accident: Meta also runs out of time over pages that are too large.
                await self._sizes.suspected(place, size)
        if failed >= BUDGETS.get(error.error_class, 1):
            raise _GaveUp(error, failures.total())
        await self._control.pause(self._control.backoff.delay(failed, self._control.time.random()))

    async def _probe(self, path: str, params: Mapping[str, str | int]) -> GraphError | None:
        """Make one call for what becomes of it; `None` if it is answered."""
        while True:
            token = self._caller.token
            try:
                await self._caller.call(path, params, lambda answer, granted_at: None)
            except GraphError as error:
                if error.error_class is ErrorClass.TOKEN:
                    await self._replace_token(token, error)
                elif error.error_class is not ErrorClass.THROTTLED:
                    return error
            else:
                return None

    async def _restart(self, work: Work, error: GraphError, failures: Counter[ErrorClass]) -> None:
        key = (work.kind, work.thread_id)
        self._restarts[key] += 1
        if self._restarts[key] > BUDGETS[ErrorClass.BAD_CURSOR]:
            raise _GaveUp(error, failures.total())
        await self._control.patiently(
            lambda: self._store.restart_sync_list(
                page_id=self._page_id,
                run_id=self._run_id,
                fence=self._fence,
                thread_id=work.thread_id,
                cursor=work.cursor,
            )
        )
        raise _Restarted

    async def _replace_token(self, used: str, error: GraphError) -> None:
        """Go on with the new token if the old one was replaced; else the token is dead, and the run ends."""
        async with self._reloading:
            if self._caller.token != used:
                return
            replaced = await self._reload_token()
            if replaced is not None and replaced != used:
                self._caller.token = replaced
                self._replaced += 1
                return
            if not self._control.failed:
                self._control.stop("token_invalid", failed=True)
                await self._token_is_dead(error.explained())
        raise Stopped

    def _without(self, field: str | None) -> bool:
        """Stop asking for a field that this version of Graph does not have; false if that is no way out."""
        if field is None or field in _ESSENTIAL or field in self._unknown_fields:
            return False
        self._unknown_fields.add(field)
        return True

    def _place(self, work: Work) -> Place:
        if work.kind == "list":
            return list_place(work.cursor, self._mode, work.walk_pass)
        if work.kind == "contact":
            return person_place(work.thread_id, work.cursor)
        return thread_place(work.thread_id, work.cursor)

    def _request(self, work: Work, size: Size) -> tuple[str, Mapping[str, str | int]]:
        without = self._unknown_fields
        params: dict[str, str | int] = {"limit": size.limit}
        if work.cursor is not None:
            params["after"] = work.cursor
        if work.kind in _DIRECT:
            return node_path(work.thread_id), {"fields": NODE_FIELDS}
        if work.kind != "thread":
            params["platform"] = "messenger"
            params["fields"] = list_fields(size.nested, without)
            if work.kind == "contact":
                params["user_id"] = work.thread_id
            return node_path(self._page_id, "conversations"), params
        params["fields"] = message_fields(without)
        return node_path(work.thread_id, "messages"), params

    def _reader(self, work: Work) -> Callable[[GraphAnswer, datetime], _Page]:
        def read_list(answer: GraphAnswer, granted_at: datetime) -> _Page:
            requested = [name for name in LIST_FIELDS if name not in self._unknown_fields]
            page = read_conversations(self._page_id, answer.data, granted_at, requested)
            self._not_in_place(work, page.next_cursor)
            drift = page.drift + _version_drift(answer)
            return _Page(granted_at, page.facts, page.threads, page.next_cursor, page.unreadable, drift)

        def read_thread(answer: GraphAnswer, granted_at: datetime) -> _Page:
            owner = work.sender_id or f"thread:{work.thread_id}"
            page = read_messages(self._page_id, work.thread_id, owner, answer.data, granted_at)
            self._not_in_place(work, page.next_cursor)
            drift = page.drift + _version_drift(answer)
            unreadable: Json = {"unreadable_ids": page.unreadable_ids, "nameless": page.nameless}
            return _Page(
                granted_at,
                page.facts,
                [{"thread_id": work.thread_id, **unreadable}] if page.unreadable else [],
                page.next_cursor,
                page.unreadable,
                drift,
                page.newest,
                page.oldest,
            )

        def read_itself(answer: GraphAnswer, granted_at: datetime) -> _Page:
            node = read_node(work.thread_id, answer.data)
            return _Page(granted_at, [], [], None, 0, _version_drift(answer), node=node)

        if work.kind in _DIRECT:
            return read_itself
        return read_thread if work.kind == "thread" else read_list

    def _not_in_place(self, work: Work, next_cursor: str | None) -> None:
        """A list whose next page is this page would be read for ever."""
        if next_cursor is not None and next_cursor == work.cursor:
            raise GraphError("the list goes on where it is", type=UNREADABLE, http_status=200)


def _version_drift(answer: GraphAnswer) -> Counter[str]:
    """Another version than the one asked for is the largest drift there is."""
    if answer.version is None or answer.asked_version in (None, answer.version):
        return Counter()
    return Counter([drift_name(f"answer of {answer.version} to {answer.asked_version}")])


def _refusal(kind: str, message: str, sqlstate: str | None = None) -> Json:
    """What `sync_batches.error` says of a page that Graph gave and the database did not take."""
    return {
        "class": "refused",
        "code": None,
        "subcode": None,
        "http_status": None,
        "type": kind,
        "sqlstate": sqlstate,
        "message": message,
        "trace_id": None,
    }
