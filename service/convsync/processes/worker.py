"""One of the processes of `convsync serve --processes N`; the package says how it talks with its parent."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson

from convsync.observe.families import Family
from convsync.processes.handle import LINE_LIMIT
from convsync.processes.supervisor import REPORT_SECONDS
from convsync.settings import Settings, SettingsError
from convsync.tasks import end
from convsync.web.app import create_app, serve_on, stop
from convsync.web.state import ALL_PROCESSES, METRICS, TELLS

_ANSWER_SECONDS = 3.0


class _Parent:
    """The parent, at the other end of stdin."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    async def join(cls) -> _Parent:
        try:
            stdin = socket.socket(fileno=0)
        except OSError:
            raise SettingsError("`convsync serve --processes N` starts this command, nobody else") from None
        reader, writer = await asyncio.open_connection(sock=stdin, limit=LINE_LIMIT)
        return cls(reader, writer)

    async def order(self) -> dict[str, Any] | None:
        """What to do; None if the parent has gone already."""
        line = await self._reader.readline()
        order: dict[str, Any] | None = orjson.loads(line) if line else None
        return order

    def tell(self, **message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")

    async def leave(self) -> None:
        """Say the last words, unless nobody listens any more."""
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()

    async def follow(self, report: Callable[[], list[Family]]) -> None:
        """Do what it wants to know, until it is gone."""
        try:
            while line := await self._reader.readline():
                message = orjson.loads(line)
                if "look" in message:
                    self.tell(report=report(), look=message["look"])
                elif (asked := self._asked.pop(message.get("answer", -1), None)) and not asked.done():
                    asked.set_result(message)
        except ConnectionError:
            pass

    async def report(self, report: Callable[[], list[Family]]) -> None:
        """Tell it what was counted, every now and then: it is what is left of a process that is killed."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self.tell(report=report())

    async def all_processes(self) -> list[Family]:
        """What all processes have counted. TimeoutError if the parent does not answer."""
        families: list[Family] = (await self._answer("ask"))["families"]
        return families

    async def tells(self, alert: str, state: str) -> bool:
        """Whether this process tells of it. Without an answer it does: rather twice than not at all."""
        try:
            return bool((await self._answer("alert", name=alert, state=state))["tells"])
        except TimeoutError:
            return True

    async def _answer(self, what: str, **more: str) -> dict[str, Any]:
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(**{what: number}, **more)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer: dict[str, Any] = await asked
                return answer
        finally:
            self._asked.pop(number, None)


async def work(settings: Settings) -> None:
    """Serve as the parent orders, until it says so or is gone."""
    asked_to_stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    # Of a terminal that is closed; what follows from it is the parent's to say.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parent = await _Parent.join()
    order = await parent.order()
    if order is None:
        return
    settings = settings.model_copy(update={"host": order["host"], "port": order["port"]})
    url = order["database_url"] or (settings.database_url and settings.database_url.get_secret_value())
    if not url:
        raise SettingsError("CONVSYNC_DATABASE_URL was there when the service was started, and is not now")
    app = create_app(settings, url)
    app[ALL_PROCESSES], app[TELLS] = parent.all_processes, parent.tells
    runner = await serve_on(app, [socket.socket(fileno=number) for number in order["sockets"]])
    report = app[METRICS].of_process
    parent.tell(ready=True, report=report())
    following = asyncio.create_task(parent.follow(report), name="parent")
    reporting = asyncio.create_task(parent.report(report), name="reports")
    stopping = asyncio.create_task(asked_to_stop.wait(), name="stop")
    await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
    clean = await stop(runner)
    for task in (stopping, reporting, following):
        await end(task)
    parent.tell(report=report())
    await parent.leave()
    if not clean:
        sys.stderr.flush()
        os._exit(1)  # what did not end would keep the interpreter too
