"""Every page of the console as everybody meets it: axe-core, dark and light, the width of a phone.

`CONVSYNC_WRITE_DOCS=1` writes what it looks like into ``docs/screenshots``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from browser_support import DESKTOP, PHONE, Screen, Served, open_screen
from playwright.async_api import Browser, expect

SCREENSHOTS = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": DESKTOP, "color_scheme": "light"},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    # Where a date is long.
    "phone": {"viewport": PHONE, "color_scheme": "light", "locale": "en-US"},
}
# Of a picture: enough to see what a page is.
HIGHEST = 1600
OUT_OF_THEIR_BOX = """[...document.querySelectorAll("dd, p, h1, h2")].filter(one =>
  one.scrollWidth > one.clientWidth + 1 && !one.matches(".sr")
  && getComputedStyle(one).overflowX === "visible"
).map(one => one.textContent.trim())"""


@pytest.fixture
async def pages(served: Served, gate: Any, owner: Any) -> dict[str, str]:
    """Each page with something on it, by name; a sync is at work."""
    now = int(time.time() * 1000) - 600_000
    picture = {"type": "image", "payload": {"url": "https://cdn.example/basket.jpg", "title": "basket.jpg"}}
    await served.synced()
    before = await served.store.feed_end()
    await served.deliver(
        served.said("m_1", now, text="Hello! Is the blue city bike still in stock?"),
        served.did(
            now + 20_000,
            message_edit={
                "mid": "m_1",
                "text": "Hello! Is the green city bike still in stock?",
                "num_edit": 1,
            },
        ),
        served.said("m_2", now + 60_000, out=True, text="It is, in M and L. Shall I put one aside for you?"),
        served.did(
            now + 65_000,
            reaction={"mid": "m_2", "action": "react", "reaction": "love", "emoji": "\u2764\ufe0f"},
        ),
        served.said("m_3", now + 90_000, text="my number is 555-0100"),
        served.did(now + 95_000, message={"mid": "m_3", "is_deleted": True}),
        served.said(
            "m_4", now + 120_000, text="M, please. With this basket, if it fits:", attachments=[picture]
        ),
        served.said(
            "m_5", now + 180_000, out=True, text="It fits. See you on Saturday!", reply_to={"mid": "m_4"}
        ),
        served.did(now + 200_000, read={"watermark": now + 190_000}),
        "an event of a new kind, which is no object",
    )
    conversation = await served.conversation_id()
    owner.execute(
        "update convsync.messenger_conversations set sender_name = 'Ada Lindqvist', tags = '{city bike}'"
        " where conversation_id = %s",
        [conversation],
    )
    letter = (await served.store.list_dead_letters())[0]["dead_letter_id"]
    gate.shut("/messages")
    runs = (await served.store.list_sync_runs(page_id=served.page_id))["runs"]
    page = f"/console/pages/{served.page_id}"
    return {
        "pages": "/",
        "page": page,
        "run": f"/console/sync-runs/{runs[0]['run_id']}",
        "conversations": f"{page}/conversations",
        "thread": f"{page}/conversations/{conversation}",
        "message": f"{page}/messages/m_1",
        "timing": f"{page}/timing",
        "dead-letters": "/console/dead-letters",
        "dead-letter": f"/console/dead-letters/{letter}",
        "changes": f"/console/changes?after={before}",
        "error": "/console/nowhere",
    }


@pytest.mark.parametrize("look", LOOKS)
async def test_no_page_has_a_serious_violation_or_is_wider_than_the_screen(
    browser: Browser, served: Served, pages: dict[str, str], gate: Any, look: str
) -> None:
    screen = await open_screen(browser, served.url, **LOOKS[look])
    await screen.open("/console/login")
    found = await check(screen, "login", look)
    await screen.log_in()
    await begin_a_sync(screen, pages["page"], gate)
    for name, path in pages.items():
        await screen.open(path, 404 if name == "error" else 200)
        if name == "changes":
            await expect(screen.page.get_by_text("Listening.")).to_be_visible()
            # An open transaction of another test on this server holds the feed back.
            await expect(screen.page.get_by_role("row").nth(1)).to_be_visible(timeout=60_000)
        found += await check(screen, name, look)
    await screen.context.close()
    assert found == []
    assert screen.complaints == []


async def begin_a_sync(screen: Screen, path: str, gate: Any) -> None:
    """One that stays at work while the pages are looked at."""
    await screen.open(path)
    await screen.page.get_by_label("full: every conversation").check()
    await screen.page.get_by_label("begin anew").check()
    await screen.page.get_by_role("button", name="Begin").click()
    await gate.reached.wait()


async def check(screen: Screen, name: str, look: str) -> list[str]:
    """What is wrong with the page that is open, in words; and its picture, if pictures are wanted."""
    wide: int = await screen.page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    found = [f"{name}: {one}" for one in await screen.violations()]
    if wide > 0:
        found.append(f"{name}: {wide} pixels wider than the screen")
    found += [f"{name}: out of its box: {one}" for one in await screen.page.evaluate(OUT_OF_THEIR_BOX)]
    if os.environ.get("CONVSYNC_WRITE_DOCS"):
        SCREENSHOTS.mkdir(exist_ok=True)
        high: int = await screen.page.evaluate("document.documentElement.scrollHeight")
        width = screen.page.viewport_size["width"] if screen.page.viewport_size else DESKTOP["width"]
        await screen.page.screenshot(
            path=SCREENSHOTS / f"{name}-{look}.png",
            animations="disabled",
            full_page=True,
            clip={"x": 0, "y": 0, "width": width, "height": min(high, HIGHEST)},
        )
    return found
