"""A Graph API that serves a handful of answers as they are: for what the simulator never says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

Answer = Mapping[str, Any] | tuple[int, Mapping[str, Any], Mapping[str, str]]
Page = Callable[[str, Mapping[str, str]], Answer]


class FakeGraph:
    """What was asked of it, and where it is. `calls` holds (path without the version, query)."""

    def __init__(self, answer: Page) -> None:
        self._answer = answer
        self.url = ""
        self.calls: list[tuple[str, dict[str, str]]] = []

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path.split("/", 2)[2]
        query = dict(request.query)
        self.calls.append((path, query))
        answer = self._answer(path, query)
        status, body, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        return web.Response(
            status=status, body=orjson.dumps(body), content_type="application/json", headers=dict(headers)
        )


@asynccontextmanager
async def fake_graph(answer: Page) -> AsyncIterator[FakeGraph]:
    """Serve `answer(path, query)`: a document, or (status, document, headers)."""
    fake = FakeGraph(answer)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()


def conversation(number: int, participants: Any, messages: Any = None, **more: Any) -> dict[str, Any]:
    """A thread as Graph lists it."""
    thread: dict[str, Any] = {
        "id": f"t_{number}",
        "updated_time": f"2026-11-01T10:00:{number:02}+0000",
        "message_count": 1,
        "participants": participants,
        "messages": messages if messages is not None else {"data": [message(number, "1001")]},
    }
    return thread | more


def message(number: int, author: str, **more: Any) -> dict[str, Any]:
    """A message as Graph shows it."""
    return {
        "id": f"m_{number}",
        "created_time": f"2026-11-01T10:00:{number:02}+0000",
        "from": {"id": author},
        "message": f"message {number}",
    } | more
