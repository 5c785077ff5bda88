"""The other end of simulated webhooks: keeps what came, answers what it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class Receiver:
    """The other end: keeps what came, answers what it is told to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.status: Callable[[int], int] = lambda number: 200
        self.delay = 0.0
        self.url = ""

    async def post(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        number = len(self.bodies)
        await asyncio.sleep(self.delay)
        return web.Response(status=self.status(number))

    async def get(self, request: web.Request) -> web.Response:
        if request.query.get("hub.verify_token") != "sim-verify-token":
            return web.Response(status=403)
        return web.Response(text=request.query["hub.challenge"])

    @property
    def events(self) -> list[dict[str, Any]]:
        found = []
        for body in self.bodies:
            document = json.loads(body)
            assert document["object"] == "page"
            for entry in document["entry"]:
                found += entry.get("messaging", [])
        return found

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry for body in self.bodies for entry in json.loads(body)["entry"]]


@asynccontextmanager
async def listening() -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    one = Receiver()
    app = web.Application()
    app.router.add_post("/hook", one.post)
    app.router.add_get("/hook", one.get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield one
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.002)
