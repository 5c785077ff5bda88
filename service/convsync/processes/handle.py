"""A worker as its parent sees it: a process, and a socket to talk with it."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import structlog

from convsync.observe.families import Family

LINE_LIMIT: Final = 16 * 1024 * 1024
_LOOK_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class Worker:
    """A process that serves: what it was told, what it has told."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._looks: dict[int, asyncio.Event] = {}
        self._numbers = itertools.count()
        self.asks: asyncio.Queue[int] = asyncio.Queue()
        self.families: list[Family] = []
        self.silent = 0
        self.ready = False
        # Set when it is ready, and when it has ended.
        self.settled = asyncio.Event()
        self.ended = asyncio.Event()

    @classmethod
    async def start(cls, order: dict[str, Any], sockets: Sequence[socket.socket]) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
            try:
                # The last thing that is waited for: whoever is cancelled here leaves no process behind.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "convsync", "worker"),
                    stdin=theirs.fileno(),
                    pass_fds=[one.fileno() for one in sockets],
                    # A Ctrl-C is for the parent, which then asks its workers.
                    process_group=0,
                )
            except BaseException:
                writer.close()
                raise
        worker = cls(process, reader, writer)
        worker._tell({**order, "sockets": [one.fileno() for one in sockets]})
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def _tell(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    async def follow(self, tells: Callable[[Worker, str, str], bool]) -> None:
        """Hear what it has to say, until it has ended. `tells`: is it who tells of an alert."""
        try:
            while line := await self._reader.readline():
                self._hear(orjson.loads(line), tells)
        except ConnectionError:
            pass  # it has ended with something unread: whoever waits for it is told how
        except ValueError as error:
            _log.warning("process_not_understood", pid=self.pid, error=type(error).__name__)
        finally:
            self._writer.close()
        await self._process.wait()
        for looked in self._looks.values():
            looked.set()
        self.ended.set()
        self.settled.set()

    def _hear(self, message: dict[str, Any], tells: Callable[[Worker, str, str], bool]) -> None:
        self.silent = 0
        if "ready" in message:
            self.ready = True
            self.settled.set()
        if "ask" in message:
            self.asks.put_nowait(message["ask"])
        if "alert" in message:
            yes = tells(self, message["name"], message["state"])
            self._tell({"answer": message["alert"], "tells": yes})
        if "report" in message:
            self.families = message["report"]
            if (looked := self._looks.pop(message.get("look", -1), None)) is not None:
                looked.set()

    async def look(self) -> None:
        """Return when `families` is of now; or after a while, for one that hangs must not keep the others."""
        number = next(self._numbers)
        looked = self._looks[number] = asyncio.Event()
        self._tell({"look": number})
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await looked.wait()
        except TimeoutError:
            self._looks.pop(number, None)

    def answer(self, ask: int, families: list[Family]) -> None:
        self._tell({"answer": ask, "families": families})

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, seconds: float) -> bool:
        """Ask it to end; false if it had to be killed."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            _log.error("process_killed", pid=self.pid, reason=f"it has not ended within {seconds:g} s")
            self.send(signal.SIGKILL)
            await self.ended.wait()
            return False
        return True
