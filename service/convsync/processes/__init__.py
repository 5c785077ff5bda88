"""How `convsync serve` serves: in its own process, or (`--processes N`) as a parent of N workers.

The parent serves nobody. It holds the listening sockets, a set of its own for each worker, all on one
address (SO_REUSEPORT): the kernel spreads new connections over the sets. A worker inherits its set, so who
connects while it is being replaced waits in the queue of a socket that stays open, and is served by the next.

A worker that dies is started again: at once, then after longer and longer pauses, in which its sockets are
closed so that the others get the connections. SIGHUP replaces one worker after the other: the next one serves
before the last one ends, and if it does not come up the old ones stay. SIGTERM drains them all.

Parent and worker talk in lines of JSON over a socket, which is the worker's stdin:

    parent -> worker   the order (what to listen on), then `look`: tell your counters; `answer`: to an
                       `ask` or `alert`
    worker -> parent   `ready`; `report`: its counters, every now and then and for a `look`;
                       `ask`: the counters of all, for somebody who scrapes this worker;
                       `alert`: is it this one who tells of it, or another who sees the same

So the numbers add up whichever worker is scraped, those of workers that are gone included; and a worker whose
parent is gone notices, and ends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from convsync.database.bootstrap import Urls
from convsync.processes.supervisor import Supervisor
from convsync.settings import Settings
from convsync.web.app import create_app, serve, stop

__all__ = ["Service", "ServingError", "serving"]


class ServingError(Exception):
    """The service cannot begin; the text says why."""


@dataclass(slots=True)
class Service:
    """What serves. `clean` turns false if something of it had to be left or killed at its end."""

    address: tuple[str, int]
    clean: bool = True


@asynccontextmanager
async def serving(settings: Settings, urls: Urls, *, upgrade: bool) -> AsyncIterator[Service]:
    """The service, until the end of the context; ServingError if it cannot begin.

    `upgrade`: a restart of the processes brings the database up to date first.
    """
    if settings.processes is None:
        with _told_where(settings):
            runner = await serve(create_app(settings, urls.service), settings.host, settings.port)
        host, port = runner.addresses[0][:2]
        service = Service((host, port))
        try:
            yield service
        finally:
            service.clean = await stop(runner)
        return
    # What a worker would stumble over is told once, before there are any.
    settings.keys(), settings.token_box()
    with _told_where(settings):
        supervisor = Supervisor(settings, urls, settings.processes, upgrade=upgrade)
    service = Service(supervisor.address)
    async with asyncio.TaskGroup() as group:
        try:
            why = await supervisor.start(group)
            if why is None:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.restart)
                yield service
        finally:
            service.clean = await supervisor.stop()
    if why is not None:
        raise ServingError(why)


@contextmanager
def _told_where(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise ServingError(f"cannot listen on {where}: {error.strerror}") from error
