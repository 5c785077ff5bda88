"""The parent of the workers: starts them, keeps them, replaces them, ends them, adds up what they count."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from contextlib import suppress
from typing import Final

import structlog

from convsync.database.bootstrap import Urls
from convsync.observe.families import Family, lasting, merged
from convsync.processes.handle import Worker
from convsync.processes.sockets import bound, listening, refuse_a_taken_port
from convsync.processes.tellers import Tellers
from convsync.settings import Settings
from convsync.tasks import end
from convsync.web.app import STOP_SECONDS

REPORT_SECONDS: Final = 2.0
_READY_SECONDS: Final = 60.0
_SILENT_REPORTS: Final = 15
_STEADY_SECONDS: Final = 60.0
_LONGEST_PAUSE: Final = 30.0
# What a worker may take for its own end, and a little for its exit.
_END_SECONDS: Final = STOP_SECONDS + 1.0
_DIED: Final[Family] = {
    "name": "convsync_process_deaths",
    "told": "Processes that ended without being asked to.",
    "kind": "counter",
    "samples": [["convsync_process_deaths_total", {}, 1.0]],
}

_log = structlog.get_logger(__name__)


class Place:
    """Where a worker serves: its sockets, and who is there now."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self.sockets = listening(host, port)
        self.worker: Worker | None = None
        # Whoever starts a worker here: after a death, or to replace one.
        self.turn = asyncio.Lock()

    def open(self) -> None:
        if not self.sockets:
            self.sockets = listening(*self._where)

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        self.sockets = []


class Supervisor:
    """Keeps the workers; the package says how."""

    def __init__(self, settings: Settings, urls: Urls, count: int, *, upgrade: bool) -> None:
        refuse_a_taken_port(settings.host, settings.port)
        # Never listens: it keeps the port ours while no worker is there.
        self._reserved = bound(settings.host, settings.port)
        host, port = self._reserved[0].getsockname()[:2]
        self.address: tuple[str, int] = host, port
        self._places = [Place(settings.host, port) for _ in range(count)]
        self._order = {
            "host": settings.host,
            "port": settings.port,
            # A configured address a worker reads for itself, so that a restart takes a new one.
            "database_url": urls.service if settings.embedded else None,
        }
        self._upgrade = upgrade
        self._live: set[Worker] = set()
        self._gone: list[Family] = []
        self._tellers = Tellers()
        self._restart = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, group: asyncio.TaskGroup) -> str | None:
        """Return when all workers serve, or why they do not; tasks of the group keep them until `stop`."""
        self._group = group
        began = await asyncio.gather(*(self._begin(place) for place in self._places))
        for place, worker in zip(self._places, began, strict=True):
            if not worker.ready:
                return f"a process ended with {worker.code} before it could serve"
            place.worker = worker
        works = [self._keep(place) for place in self._places]
        self._tasks = [
            self._group.create_task(work) for work in (*works, self._restarts(), self._watch_silence())
        ]
        return None

    def restart(self) -> None:
        """Replace the workers, one after the other; returns at once."""
        self._restart.set()

    async def stop(self) -> bool:
        """Drain the workers; false if one had to be killed or has not ended well."""
        for task in self._tasks:
            await end(task)
        for place in self._places:
            place.close()
        for one in self._reserved:
            one.close()
        serving = [worker for worker in self._live if worker.ready]
        ended = await asyncio.gather(*(worker.end(_END_SECONDS) for worker in self._live))
        return all(ended) and all(worker.code == 0 for worker in serving)

    async def _begin(self, place: Place) -> Worker:
        """A new worker, when it serves, or has ended."""
        worker = await Worker.start(self._order, place.sockets)
        self._live.add(worker)
        self._group.create_task(self._follow(worker))
        try:
            async with asyncio.timeout(_READY_SECONDS):
                await worker.settled.wait()
        except TimeoutError:
            _log.error("process_killed", pid=worker.pid, reason=f"not ready within {_READY_SECONDS:g} s")
            worker.send(signal.SIGKILL)
            await worker.ended.wait()
        if worker.ready:
            _log.info("process_serves", pid=worker.pid)
        return worker

    async def _follow(self, worker: Worker) -> None:
        answering = self._group.create_task(self._answer(worker))
        await worker.follow(self._tellers.tells)
        self._tellers.gone(worker)
        await end(answering)
        self._live.discard(worker)
        self._gone = merged([self._gone, lasting(worker.families)])

    async def _answer(self, worker: Worker) -> None:
        while True:
            ask = await worker.asks.get()
            live = [one for one in self._live if one.ready]
            await asyncio.gather(*(one.look() for one in live))
            # Who has ended meanwhile is among those that are gone.
            told = [one.families for one in live if one in self._live]
            worker.answer(ask, merged([*told, self._gone]))

    async def _keep(self, place: Place) -> None:
        """Start another worker whenever the one at this place dies."""
        loop = asyncio.get_running_loop()
        failures, began = 0, loop.time()
        while True:
            worker = place.worker
            assert worker is not None  # noqa: S101 - `start` saw to it
            await worker.ended.wait()
            if place.worker is not worker:
                began = loop.time()  # it was replaced
                continue
            failures = 1 if loop.time() - began > _STEADY_SECONDS else failures + 1
            pause = min(_LONGEST_PAUSE, 2.0 ** (failures - 2)) if failures > 1 else 0.0
            pause *= random.uniform(0.5, 1)  # noqa: S311 - jitter
            self._gone = merged([self._gone, [_DIED]])
            _log.error("process_died", pid=worker.pid, code=worker.code, again_in_seconds=round(pause, 1))
            if pause:
                place.close()
                await asyncio.sleep(pause)
            async with place.turn:
                if place.worker is not worker:
                    continue
                place.open()
                began = loop.time()
                place.worker = await self._begin(place)

    async def _restarts(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            _log.info("restart_begins", processes=len(self._places))
            if self._upgrade and not await self._upgraded():
                continue
            for place in self._places:
                if not await self._replace(place):
                    _log.error("restart_ends", reason="a new process did not come up; the others stay")
                    break
            else:
                _log.info("restart_ends")

    async def _upgraded(self) -> bool:
        """Bring the database to the release that is installed now; this process may be of an older one."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "convsync", "migrate"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
        if code:
            _log.error("restart_ends", reason=f"convsync migrate ended with {code}; the processes stay")
        return code == 0

    async def _replace(self, place: Place) -> bool:
        async with place.turn:
            place.open()
            new = await self._begin(place)
            if not new.ready:
                return False
            old, place.worker = place.worker, new
        if old is not None:
            await old.end(_END_SECONDS)
        return True

    async def _watch_silence(self) -> None:
        """Kill whoever has nothing to say any more: its event loop hangs."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            for worker in self._live:
                # Counted, not timed: while this process was stopped nobody was silent.
                worker.silent += 1
                if worker.ready and worker.silent == _SILENT_REPORTS:
                    _log.error("process_killed", pid=worker.pid, reason="it is silent")
                    worker.send(signal.SIGKILL)
