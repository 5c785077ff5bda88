"""The service with another way to commit: `python -m bench.service VARIANT SERVE-OPTIONS..`.

Everything but the object that commits is the service itself: the same routes, middlewares and settings,
started by the same command.

parse_only      verifies and parses, then answers: nothing is stored
one_per_commit  one delivery per commit, one after the other
parallel        one delivery per commit, as many at once as the pool has connections
trivial         no service at all: a fixed answer to anything, to learn what the load generator can do
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from convsync import cli
from convsync.facts import Fact
from convsync.web import app
from convsync.webhook.group_commit import GroupCommit, Submitted


class ParseOnly:
    """Takes the place of GroupCommit and lets every delivery pass."""

    def __init__(self, ingest: Callable[[Sequence[Fact]], Awaitable[None]], **_: Any) -> None:
        self._ingest = ingest
        self._closed = asyncio.Event()
        # What the service reads of it.
        self.deliveries = self.facts = self.batches = self.retries = self.poison = self.isolated = 0
        self.refused_full = self.refused_late = self.refused_unavailable = self.waiting = 0

    async def submit(self, delivery: Submitted) -> None:
        return

    async def run(self) -> None:
        await self._closed.wait()

    async def close(self, drain: float) -> None:
        self._closed.set()


class Parallel(ParseOnly):
    """Each delivery commits for itself; the pool's connections are what bounds them."""

    async def submit(self, delivery: Submitted) -> None:
        await self._ingest(delivery.facts)


VARIANTS: dict[str, Any] = {
    "parse_only": ParseOnly,
    "one_per_commit": partial(GroupCommit, max_batch=1),
    "parallel": Parallel,
}


class Trivial(asyncio.Protocol):
    """One fixed answer for each segment that arrives: enough for one request at a time."""

    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nEVENT_RECEIVED"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer)


async def trivial() -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    sys.stdout.write(f"listens on http://{host}:{port}/\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    variant = sys.argv.pop(1)
    if variant == "trivial":
        asyncio.run(trivial())
        return
    app.GroupCommit = VARIANTS[variant]  # type: ignore[attr-defined]
    sys.argv.insert(1, "serve")
    cli.main()


if __name__ == "__main__":
    main()
