"""A client of the simulator for its tests: it knows only what Meta documents."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from convsync.simulator import Simulator, SimulatorConfig


class GraphReader:
    """Calls with the first Page's token unless another is given."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session
        self.page_id = simulator.page.page_id
        self.list = f"{self.page_id}/conversations"

    async def call(self, path: str, method: str = "GET", **parameters: Any) -> tuple[int, Any, Any]:
        """Status, document and headers."""
        query = {"access_token": self.simulator.page.token, **parameters}
        where = {"params": query} if method == "GET" else {"data": query}
        url = f"{self.simulator.url}/v26.0/{path}"
        async with self.session.request(method, url, **where) as answer:
            return answer.status, json.loads(await answer.read()), answer.headers

    async def ok(self, path: str, method: str = "GET", **parameters: Any) -> Any:
        status, document, _ = await self.call(path, method, **parameters)
        assert status == 200, document
        return document

    async def error(self, path: str, method: str = "GET", **parameters: Any) -> dict[str, Any]:
        status, document, _ = await self.call(path, method, **parameters)
        assert status >= 400, document
        return {"http": status, **document["error"]}

    async def follow(self, first: Any) -> list[Any]:
        """Everything from a page of a list on, by its `next` addresses."""
        found = list(first["data"])
        following = first.get("paging", {}).get("next")
        while following:
            async with self.session.get(following) as answer:
                page = json.loads(await answer.read())
                assert answer.status == 200, page
            found += page["data"]
            following = page.get("paging", {}).get("next")
        return found

    async def batch(self, *items: dict[str, Any], **parameters: Any) -> Any:
        return await self.ok("", "POST", batch=json.dumps(items), **parameters)


@asynccontextmanager
async def reading(**config: Any) -> AsyncIterator[GraphReader]:
    """A simulator without limits, unless told otherwise, and a client of it."""
    settings = {"port": 0, "conversations": 60, "messages": 12, "calls_per_second": 0, **config}
    async with Simulator(SimulatorConfig(**settings)) as simulator, aiohttp.ClientSession() as session:
        yield GraphReader(simulator, session)
