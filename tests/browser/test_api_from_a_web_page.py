"""What `docs/api.md` shows for a web page of another origin, as a browser runs it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from browser_support import READ_KEY, Served, eventually
from playwright.async_api import Browser, Page, Route
from playwright.async_api import Error as BrowserError

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text("utf-8")
EXAMPLE = re.compile(r"```ts\n(async function watch\(.*?\n\}\n)```", re.DOTALL)
# TypeScript without its types.
TYPES = re.compile(r": (?:string|\(\w+: \w+\) => void)(?=[,)])")


@pytest.fixture
async def elsewhere() -> AsyncIterator[str]:
    """A page of another origin, with nothing on it: its address."""

    async def blank(_request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>a page</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", blank)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
def cors_origins(elsewhere: str) -> str:
    return elsewhere


@pytest.fixture
async def page(browser: Browser, elsewhere: str, served: Served) -> AsyncIterator[Page]:
    """That page, with the example in it."""
    context = await browser.new_context()
    one = await context.new_page()
    await one.goto(elsewhere)
    example = EXAMPLE.search(TEXT)
    assert example is not None
    await one.evaluate(
        f"""([url, given]) => {{
          globalThis.CONVSYNC = url; globalThis.key = given; globalThis.seen = [];
          {TYPES.sub("", example[1])}
          globalThis.watch = watch;
        }}""",
        [served.url, READ_KEY],
    )
    yield one
    await context.close()


async def watch(page: Page, run_id: str) -> None:
    await page.evaluate("id => watch(id, run => seen.push(run.status))", run_id)


async def test_the_example_follows_a_sync_to_its_end(page: Page, served: Served, gate: Any) -> None:
    gate.shut()
    begun = await served.began()
    await watch(page, begun)

    async def at_work() -> bool | None:
        return await page.evaluate("seen.includes('running')") or None

    async def ended() -> bool | None:
        return await page.evaluate("seen.at(-1) === 'succeeded'") or None

    await eventually(at_work)
    gate.open()
    await eventually(ended)


async def test_the_example_says_why_it_cannot_and_asks_no_more(page: Page, served: Served) -> None:
    """Who is told that there is no such run, or no such key, and begins anew, does so for ever."""
    asked: list[str] = []
    page.on("request", lambda one: asked.append(f"{one.method} {one.url.removeprefix(served.url)}"))
    with pytest.raises(BrowserError, match="there is no run 999"):
        await watch(page, "999")
    await page.evaluate("key = 'wrong'")
    with pytest.raises(BrowserError, match="send an API key"):
        await watch(page, "1")
    assert [one for one in asked if one.startswith("POST")] == ["POST /api/stream-tickets"] * 2
    assert not [one for one in asked if "sync-stream" in one]


async def test_the_example_outlasts_a_service_that_is_away_for_a_moment(
    page: Page, served: Served, gate: Any
) -> None:
    gate.shut()
    begun = await served.began()
    headers = {"Access-Control-Allow-Origin": "*"}
    refusals = iter([503, None])

    async def stream(route: Route) -> None:
        await route.fulfill(status=503)

    async def ticket(route: Route) -> None:
        status = next(refusals, 0)
        if status is None:
            await route.abort("connectionrefused")
        elif status:
            await route.fulfill(status=status, headers=headers, json={"detail": "the database is away"})
        else:
            await route.continue_()

    await page.route("**/sync-stream?*", stream, times=1)
    await watch(page, begun)
    await page.route("**/stream-tickets", ticket)
    gate.open()

    async def ended() -> bool | None:
        return await page.evaluate("seen.at(-1) === 'succeeded'") or None

    await eventually(ended)
    assert list(refusals) == []
