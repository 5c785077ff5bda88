"""The console in a browser: the service on a port, a simulated Page behind it, and a person at the screen."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page

from convsync.simulator import DEFAULT_APP_SECRET, Simulator
from convsync.store import Store
from convsync.web.state import STORE
from secrets_hunt import look, marked, marked_key

Json = dict[str, Any]
T = TypeVar("T")

READ_KEY, OPERATE_KEY = marked("test-read-key"), marked("test-operate-key")
API_KEYS = f"reader:read:{READ_KEY},operator:operate:{OPERATE_KEY}"
TOKEN_KEY = marked_key()
PERSON = "7300000000000011"
DESKTOP, PHONE = {"width": 1100, "height": 760}, {"width": 390, "height": 780}


@dataclass
class Served:
    """The service at `url`, whose Graph API is the simulator's."""

    url: str
    app: web.Application
    simulator: Simulator

    @property
    def page_id(self) -> str:
        return self.simulator.page.page_id

    @property
    def store(self) -> Store:
        return self.app[STORE]

    async def deliver(self, *events: object) -> None:
        """Deliver events of the Page as Meta does."""
        entry = {"id": self.page_id, "time": 1_700_000_000_000, "messaging": list(events)}
        body = json.dumps({"object": "page", "entry": [entry]}).encode()
        signed = "sha256=" + hmac.new(DEFAULT_APP_SECRET.encode(), body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "X-Hub-Signature-256": signed}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/api/webhook", data=body, headers=headers) as answer,
        ):
            assert answer.status == 200, await answer.text()

    def said(self, mid: str, at: int, *, out: bool = False, **message: object) -> Json:
        """A message of the customer, or of the Page."""
        person, page = {"id": PERSON}, {"id": self.page_id}
        sender, recipient = (page, person) if out else (person, page)
        return {
            "sender": sender,
            "recipient": recipient,
            "timestamp": at,
            "message": {"mid": mid, **({"is_echo": True} if out else {}), **message},
        }

    def did(self, at: int, **event: object) -> Json:
        """Something else that the customer did."""
        return {"sender": {"id": PERSON}, "recipient": {"id": self.page_id}, "timestamp": at, **event}

    async def conversation_id(self) -> str:
        found = await self.store.list_conversations(page_id=self.page_id, query=PERSON)
        number: str = found["conversations"][0]["conversation_id"]
        return number

    async def began(self) -> str:
        """A sync through the API, begun: its run."""
        headers = {"Authorization": f"Bearer {OPERATE_KEY}"}
        async with (
            aiohttp.ClientSession(self.url, headers=headers) as session,
            session.post("/api/conversations/sync", json={"page_id": self.page_id}) as answer,
        ):
            run: Json = await answer.json()
            assert answer.status == 202, run
            return str(run["run_id"])

    async def synced(self, mode: str = "full") -> Json:
        """A sync through the API, to its end."""
        headers = {"Authorization": f"Bearer {OPERATE_KEY}"}
        async with (
            aiohttp.ClientSession(self.url, headers=headers) as session,
            session.post(
                "/api/conversations/sync?wait=60", json={"page_id": self.page_id, "mode": mode}
            ) as answer,
        ):
            run: Json = await answer.json()
            assert answer.status == 200, run
            return run


@dataclass
class Screen:
    """A browser's window. Whatever the console does that it must not is in `complaints`."""

    page: Page
    context: BrowserContext
    url: str
    complaints: list[str]

    async def open(self, path: str, status: int = 200) -> None:
        answer = await self.page.goto(self.url + path)
        assert answer is not None
        assert answer.status == status
        look("a page of the console", await answer.body())

    async def log_in(self, key: str = OPERATE_KEY) -> None:
        await self.open("/")
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Log in").click()
        await self.page.wait_for_url(f"{self.url}/")

    async def violations(self) -> list[str]:
        """What axe-core calls serious or critical on this page as it is now."""
        found = await Axe().run(self.page)
        return [
            f"{one['id']} ({one['impact']}): {one['help']}: {[node['html'] for node in one['nodes']][:3]}"
            for one in found.response["violations"]
            if one["impact"] in ("serious", "critical")
        ]


async def open_screen(browser: Browser, url: str, **options: Any) -> Screen:
    context = await browser.new_context(
        viewport=options.pop("viewport", DESKTOP),
        locale=options.pop("locale", "en-GB"),
        timezone_id="UTC",
        **options,
    )
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"script error: {error}"))
    page.on(
        "console",
        lambda told: (
            complaints.append(f"console: {told.text}")
            # That a page was answered 409 is no complaint; that a script or style was refused is.
            if told.type == "error" and "Failed to load resource" not in told.text
            else None
        ),
    )
    page.on(
        "request",
        lambda asked: (
            complaints.append(f"asked another host: {asked.url}") if not asked.url.startswith(url) else None
        ),
    )
    return Screen(page, context, url, complaints)


async def eventually(look: Callable[[], Awaitable[T | None]], patience: float = 30.0) -> T:
    """What `look` finds, as soon as it finds something."""
    async with asyncio.timeout(patience):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.05)
