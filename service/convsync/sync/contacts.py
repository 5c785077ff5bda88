"""Live contacts: who a person first met by webhook is, and threads that are said to have changed.

A delivery names nobody: it has the person's id and no more. So each person who is new gets one read of
their conversation (`/conversations?user_id=`), in the live lane of the Page's budget. It runs beside the
webhook, and whatever happens to it neither delays nor fails a delivery; what it misses, the next sync
brings. A person is asked for once, and not again for a while when Graph had nothing to tell; nor at all if
a sync brings their name while they wait, or if they are erased meanwhile.

A change of the field `conversations` tells that a thread changed and not how. It gets one read too, of the
thread and its newest messages; changes told while it waits for that are one read.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, TypeVar

import structlog

from convsync.errors import ConvsyncError, Erased, NotFound
from convsync.facts import Json, Thread
from convsync.graph.catalogue import ErrorClass
from convsync.graph.client import GraphClient, node_path
from convsync.graph.errors import GraphError
from convsync.graph.reading import LIST_FIELDS, list_fields, read_conversations
from convsync.observe.measures import GraphMeasures
from convsync.pages import granted
from convsync.store import Store
from convsync.sync.ports import SawDrift, ignore_drift
from convsync.sync.sizes import Sizes, conversation_place

_WAITING: Final = 10_000
_WORKERS: Final = 4
_NOT_AGAIN_SECONDS: Final = 3600.0
_REMEMBERED: Final = 50_000

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class ContactReader:
    """Reads the conversations of new people. `run` does the work and is owned by the application."""

    def __init__(
        self,
        store: Store,
        graph: GraphClient,
        open_token: Callable[[str, bytes], str],
        *,
        calls_per_second: float,
        now: Callable[[], float] = time.monotonic,
        saw_drift: SawDrift = ignore_drift,
        measures: GraphMeasures | None = None,
    ) -> None:
        self._saw_drift = saw_drift
        self._measures = measures
        self._store = store
        self._graph = graph
        self._open_token = open_token
        self._calls_per_second = calls_per_second
        self._now = now
        # A Page, and a thread of it, or a person with the number of their conversation here.
        self._queue: asyncio.Queue[tuple[str, str, int | None]] = asyncio.Queue(_WAITING)
        self._threads: set[tuple[str, str]] = set()  # of those that wait
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()

    def want(self, page_id: str, sender_id: str, conversation_id: int) -> None:
        """Ask for a person, unless they were asked for lately, have no id, or too many wait already."""
        key = (page_id, sender_id)
        if ":" in sender_id or self._now() - self._asked.get(key, float("-inf")) < _NOT_AGAIN_SECONDS:
            return
        try:
            self._queue.put_nowait((*key, conversation_id))
        except asyncio.QueueFull:
            return
        self._asked[key] = self._now()
        self._asked.move_to_end(key)
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)

    def want_thread(self, page_id: str, thread_id: str) -> None:
        """Ask for a thread, unless it waits already, or too many do."""
        key = (page_id, thread_id)
        if key in self._threads:
            return
        try:
            self._queue.put_nowait((*key, None))
        except asyncio.QueueFull:
            return
        self._threads.add(key)

    async def idle(self) -> None:
        """Return when everybody who was asked for has been read, or could not be."""
        await self._queue.join()

    async def run(self) -> None:
        """Read whoever is asked for, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            page_id, wanted, conversation_id = await self._queue.get()
            try:
                if conversation_id is None:
                    # Before the read: what changes from now on may not be in it.
                    self._threads.discard((page_id, wanted))
                    await self._read_thread(page_id, wanted)
                elif not await self._is_known(page_id, conversation_id):
                    await self._read_person(page_id, wanted)
            except (GraphError, ConvsyncError) as error:
                _log.info("contact_not_read", page_id=page_id, error=str(error))
            except Exception:
                _log.exception("contact_reader_broken", page_id=page_id)
            finally:
                self._queue.task_done()

    async def _is_known(self, page_id: str, conversation_id: int) -> bool:
        """Whether there is nothing to ask any more: many may wait for the two calls of a second."""
        try:
            found = await self._store.get_conversation(page_id=page_id, conversation_id=conversation_id)
        except (Erased, NotFound):
            return True
        return found["sender_name"] is not None and found["thread_id"] is not None

    async def _read_person(self, page_id: str, sender_id: str) -> None:
        query = {"platform": "messenger", "user_id": sender_id, "fields": ",".join(LIST_FIELDS)}
        answered = await self._get(page_id, node_path(page_id, "conversations"), query)
        if answered is None:
            return
        page = read_conversations(page_id, *answered, LIST_FIELDS)
        self._saw_drift((page_id, name) for name in page.drift.elements())
        facts = [fact for fact in page.facts if isinstance(fact, Thread) and fact.sender_id == sender_id]
        if facts:
            await self._store.ingest(facts, "sync")

    async def _read_thread(self, page_id: str, thread_id: str) -> None:
        sizes, place = Sizes(self._store, page_id, _once), conversation_place(thread_id)
        while True:
            size = await sizes.now(place)
            try:
                answered = await self._get(
                    page_id, node_path(thread_id), {"fields": list_fields(size.nested)}
                )
            except GraphError as error:
                if error.error_class is ErrorClass.SHRINK and await sizes.refused(place, size):
                    continue
                raise
            break
        if answered is None:
            return
        await sizes.accepted(place, size)
        thread, granted_at = answered
        page = read_conversations(page_id, {"data": [thread]}, granted_at, LIST_FIELDS)
        self._saw_drift((page_id, name) for name in page.drift.elements())
        if page.facts:
            await self._store.ingest(page.facts, "sync")

    async def _get(self, page_id: str, path: str, query: Json) -> tuple[Json, datetime] | None:
        """What Graph answered, and when it was asked; None while the Page has no token that works."""
        kept = await self._store.page_token(page_id=page_id)
        if kept.sealed is None or kept.state == "invalid":
            return None
        token = self._open_token(page_id, kept.sealed)
        answer, granted_at = await granted(
            self._store,
            page_id,
            self._calls_per_second,
            kept.sealed,
            lambda: self._graph.get(path, query, token),
            measures=self._measures,
        )
        return answer.data, granted_at


async def _once(what: Callable[[], Awaitable[_T]]) -> _T:
    """Nobody waits for a contact: what fails now, the next sync brings."""
    return await what()
