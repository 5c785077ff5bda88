"""Live contacts: the name and the thread of a person first met by webhook.

A delivery names nobody: it has the person's id and no more. So each person who is new gets one read of
their conversation (`/conversations?user_id=`), in the live lane of the Page's budget. It runs beside the
webhook, and whatever happens to it neither delays nor fails a delivery; what it misses, the next sync
brings. A person is asked for once, and not again for a while when Graph had nothing to tell.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from convsync.errors import ConvsyncError
from convsync.facts import Thread
from convsync.graph.client import GraphClient, node_path
from convsync.graph.errors import GraphError
from convsync.graph.reading import LIST_FIELDS, read_conversations
from convsync.pages import granted
from convsync.store import Store
from convsync.sync.ports import SawDrift, ignore_drift

_WAITING: Final = 10_000
_WORKERS: Final = 4
_NOT_AGAIN_SECONDS: Final = 3600.0
_REMEMBERED: Final = 50_000

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
    ) -> None:
        self._saw_drift = saw_drift
        self._store = store
        self._graph = graph
        self._open_token = open_token
        self._calls_per_second = calls_per_second
        self._now = now
        self._queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(_WAITING)
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()

    def want(self, page_id: str, sender_id: str) -> None:
        """Ask for a person, unless they were asked for lately, have no id, or too many wait already."""
        key = (page_id, sender_id)
        if ":" in sender_id or self._now() - self._asked.get(key, float("-inf")) < _NOT_AGAIN_SECONDS:
            return
        try:
            self._queue.put_nowait(key)
        except asyncio.QueueFull:
            return
        self._asked[key] = self._now()
        self._asked.move_to_end(key)
        while len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)

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
            page_id, sender_id = await self._queue.get()
            try:
                await self._read(page_id, sender_id)
            except (GraphError, ConvsyncError) as error:
                _log.info("contact_not_read", page_id=page_id, error=str(error))
            except Exception:
                _log.exception("contact_reader_broken", page_id=page_id)
            finally:
                self._queue.task_done()

    async def _read(self, page_id: str, sender_id: str) -> None:
        kept = await self._store.page_token(page_id=page_id)
        if kept.sealed is None or kept.state == "invalid":
            return
        token = self._open_token(page_id, kept.sealed)
        answer, granted_at = await granted(
            self._store,
            page_id,
            self._calls_per_second,
            lambda: self._graph.get(
                node_path(page_id, "conversations"),
                {"platform": "messenger", "user_id": sender_id, "fields": ",".join(LIST_FIELDS)},
                token,
            ),
        )
        page = read_conversations(page_id, answer.data, granted_at, LIST_FIELDS)
        self._saw_drift((page_id, name) for name in page.drift.elements())
        facts = [fact for fact in page.facts if isinstance(fact, Thread) and fact.sender_id == sender_id]
        if facts:
            await self._store.ingest(facts, "sync")
