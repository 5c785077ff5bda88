"""What an operator does at the console, in a real browser: watch a sync, read a chat, replay a letter."""

from __future__ import annotations

import re
import time
from typing import Any

from browser_support import OPERATE_KEY, PHONE, READ_KEY, Screen, Served, eventually, open_screen
from playwright.async_api import Browser, Page, expect

from convsync.web.middlewares import KEYS
from convsync.web.sessions import LIFETIME_SECONDS, PLAIN_COOKIE
from convsync.web.state import SESSIONS

AT = 1_700_000_000_000
MARK = "window.loadedOnce = true"
SPOKEN = """() => {
  window.spoken = [];
  for (const status of document.querySelectorAll("[role=status]"))
    new MutationObserver(() => spoken.push(status.textContent)).observe(status, { childList: true });
}"""


async def test_an_operator_logs_in_begins_a_sync_and_sees_its_bar_move_to_the_end(
    screen: Screen, served: Served, gate: Any
) -> None:
    first = await served.synced()
    page = screen.page
    await screen.log_in()
    await page.get_by_role("link", name="Harbour Bicycles").click()
    # The list is read, some of its threads are not.
    gate.shut("/messages")
    await page.get_by_label("full: every conversation").check()
    await page.get_by_label("begin anew").check()
    await page.get_by_role("button", name="Begin").click()
    await expect(page.get_by_text("The sync has begun.")).to_be_visible()
    await gate.reached.wait()
    await page.evaluate(MARK)
    # The page is asked for again all the time; without that, what moves the bar is the run's event stream.
    asked_again = f"{served.url}/console/pages/{served.page_id}*"
    await page.route(asked_again, lambda route: route.abort())
    section = page.locator("section.run")
    bar = section.get_by_role("progressbar")
    await expect(section.locator('[data-of="calls"]')).not_to_have_text("0")

    async def part_of_the_way() -> float | None:
        share: float = await bar.evaluate("bar => bar.position")
        return share if 0 < share < 1 else None

    share = await eventually(part_of_the_way)
    await page.unroute(asked_again)
    gate.open()
    await expect(section.get_by_text("succeeded")).to_be_visible()
    await expect(bar).to_have_js_property("position", 1)
    assert 0 < share < 1
    # Its event stream said so, aloud for who does not see the bar.
    await expect(page.locator("#announcement")).to_have_text(re.compile(r"Run \d+ is succeeded\."))
    await expect(section.locator('[data-of="conversations_seen"]')).to_have_text(
        str(first["conversations_seen"])
    )
    await expect(page.get_by_role("table").get_by_role("row")).to_have_count(3)
    assert await page.evaluate("window.loadedOnce"), "without loading the page again"


async def test_a_second_sync_is_refused_in_words_while_the_first_goes_on(
    screen: Screen, served: Served, gate: Any
) -> None:
    gate.shut()
    page = screen.page
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}")
    await page.get_by_label("full: every conversation").check()
    await page.get_by_role("button", name="Begin").click()
    await gate.reached.wait()
    await page.get_by_label("reconcile: ").check()
    async with page.expect_response(lambda answer: answer.request.method == "POST") as refused:
        await page.get_by_role("button", name="Begin").click()
    assert (await refused.value).status == 409
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("This sync was not begun: run")
    await page.evaluate(MARK)
    gate.open()
    await expect(page.locator("section.run").get_by_text("succeeded")).to_be_visible()
    assert await page.evaluate("window.loadedOnce"), "this page is up to date too"
    await alert.get_by_role("link").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Run")


async def test_a_sync_is_cancelled(screen: Screen, served: Served, gate: Any) -> None:
    gate.shut()
    page = screen.page
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}")
    await page.get_by_role("button", name="Begin").click()
    await gate.reached.wait()
    await page.get_by_role("button", name="Cancel this sync").click()
    await expect(page.get_by_text("The sync was cancelled.")).to_be_visible()
    await expect(page.locator("section.run")).to_contain_text("cancelled")


async def test_a_browser_has_connections_left_however_many_syncs_are_at_work(
    screen: Screen, served: Served
) -> None:
    """It opens six to a host, for all of its windows together: each stream that is watched takes one."""
    page = screen.page
    await screen.log_in()
    for number in range(9):
        page_id = f"20000000000000{number}"
        await served.store.add_page(page_id=page_id, name=f"Hill {number}")
        await served.store.begin_sync(page_id=page_id, mode="full", owner="elsewhere", lease_seconds=600)
    # Windows that nobody looks at, of each page that holds a stream open.
    for path in ("/", "/console/pages/200000000000000", "/console/changes"):
        await screen.open(path)
        background = await screen.context.new_page()
        async with background.expect_response(lambda answer: "stream" in answer.url):
            await background.goto(served.url + path)
        await look_away(background)
    await screen.open("/")
    await expect(page.locator("[data-running]")).to_have_count(9)
    async with page.expect_response(lambda answer: answer.url == f"{served.url}/"):
        pass  # it is asked for again
    await page.get_by_role("link", name="Hill 8").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Hill 8")


async def look_away(page: Page, *, hidden: bool = True) -> None:
    """Make it a window that nobody looks at, as far as its scripts can tell; or one that somebody does."""
    await page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def test_what_has_the_focus_is_kept_up_to_date_and_keeps_it(screen: Screen, served: Served) -> None:
    """Whoever clicked on a table, or opened one of its links in another window, still looks at this one."""
    page = screen.page
    await served.synced()
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}")
    table = page.get_by_role("region", name="Runs").locator("div.scroll")
    link = page.get_by_role("table").get_by_role("link", name="1", exact=True)
    for runs, focused in ((1, table), (2, link)):
        await focused.focus()
        await expect(page.get_by_role("table").get_by_role("row")).to_have_count(1 + runs)
        await served.synced("incremental")
        await expect(page.get_by_role("table").get_by_role("row")).to_have_count(2 + runs)
        await expect(focused).to_be_focused()


async def test_a_press_whose_end_the_page_is_not_told_of_stops_nothing(
    screen: Screen, served: Served
) -> None:
    """A context menu, or the list of a select, takes the pointer, and the page hears of no release."""
    page = screen.page
    await served.synced()
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}")
    rows = page.get_by_role("table").get_by_role("row")
    await page.get_by_role("table").get_by_role("link", name="1", exact=True).hover()
    await page.mouse.down(button="right")
    await served.synced("incremental")
    await expect(rows).to_have_count(3)
    await page.mouse.up(button="right")
    await page.evaluate("document.dispatchEvent(new PointerEvent('pointerdown'))")
    await page.mouse.move(5, 5)
    await served.synced("incremental")
    await expect(rows).to_have_count(4)


async def test_a_thread_is_read_as_a_chat_and_follows_what_happens_in_it(
    screen: Screen, served: Served
) -> None:
    await served.deliver(
        served.said("m_1", AT, text="Is the blue one in stock?"),
        served.said("m_2", AT + 1000, out=True, text="It is."),
        served.said("m_3", AT + 2000, text="Call me at 555-0100"),
    )
    page = screen.page
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}/conversations")
    await page.get_by_label("Name, last message or id").fill("555-0100")
    await page.get_by_role("button", name="Search").click()
    await page.get_by_role("link", name="Call me at 555-0100").click()
    bubbles = page.locator(".bubble")
    await expect(bubbles).to_have_count(3)
    await page.evaluate(MARK)

    await served.deliver(
        served.did(
            AT + 3000, message_edit={"mid": "m_1", "text": "Is the green one in stock?", "num_edit": 1}
        ),
        served.did(AT + 4000, message={"mid": "m_3", "is_deleted": True}),
        served.did(
            AT + 5000, reaction={"mid": "m_2", "action": "react", "reaction": "love", "emoji": "\u2764"}
        ),
        served.did(AT + 6000, read={"watermark": AT + 6000}),
        served.said("m_4", AT + 7000, text="Thank you!"),
    )
    await expect(bubbles).to_have_count(4)
    await expect(bubbles.nth(0)).to_contain_text("Is the green one in stock?")
    await expect(bubbles.nth(0)).to_contain_text("edited")
    await expect(bubbles.nth(1)).to_contain_text("\u2764")
    await expect(bubbles.nth(1)).to_contain_text("Read")
    await expect(bubbles.nth(2)).to_contain_text("This message was taken back.")
    await expect(page.get_by_text("555-0100")).to_have_count(0)
    await expect(bubbles.nth(3)).to_contain_text("Thank you!")
    assert await page.evaluate("window.loadedOnce")
    await bubbles.nth(0).get_by_role("link", name="Details").click()
    await expect(page.get_by_text("Is the blue one in stock?")).to_be_visible()


async def test_a_dead_letter_is_replayed_and_lands(screen: Screen, served: Served, owner: Any) -> None:
    # What the database refuses for the time being.
    owner.execute(
        "alter table convsync.contact_interaction_events"
        " add constraint refused check (message_id <> 'm_9') not valid"
    )
    await served.deliver(served.said("m_9", AT, text="At last!"))
    owner.execute("alter table convsync.contact_interaction_events drop constraint refused")
    page = screen.page
    await screen.log_in()
    await page.get_by_role("link", name="1 waiting").click()
    await page.get_by_role("table").get_by_role("link").first.click()
    await expect(page.locator("pre")).to_contain_text("At last!")
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_text("Replayed: what it says is in the mirror now.")).to_be_visible()
    await expect(page.get_by_role("button", name="Replay")).to_have_count(0)
    await screen.open(f"/console/pages/{served.page_id}/conversations/{await served.conversation_id()}")
    await expect(page.locator(".bubble")).to_contain_text("At last!")


async def test_changes_appear_as_they_happen(screen: Screen, served: Served) -> None:
    page = screen.page
    await screen.log_in()
    await page.get_by_role("link", name="Changes").click()
    await expect(page.get_by_text("Listening.")).to_be_visible()
    await page.evaluate(SPOKEN)
    await served.deliver(served.said("m_1", AT, text="hello"))
    conversation = await served.conversation_id()
    # An open transaction of another test on this server holds the feed back.
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=conversation, exact=True))
    await expect(row).to_be_visible(timeout=60_000)
    await expect(page.locator("#feed-count")).to_have_text("Changes so far: 1.")
    # While nobody looks it listens to nothing; who comes back has missed nothing.
    await look_away(page)
    await served.deliver(served.did(AT + 1000, read={"watermark": AT + 1000}))
    await look_away(page, hidden=False)
    await expect(row).to_have_count(2, timeout=60_000)
    # A screen reader hears whether it listens, and nothing of each change.
    assert await page.evaluate("spoken") == ["Paused.", "Listening."]
    row = row.first
    await row.get_by_role("link", name=conversation, exact=True).click()
    await expect(page.locator(".bubble")).to_contain_text("hello")


async def test_whoever_reads_has_nothing_to_press(screen: Screen, served: Served) -> None:
    await screen.log_in(READ_KEY)
    await screen.open(f"/console/pages/{served.page_id}")
    buttons = await screen.page.get_by_role("button").all_inner_texts()
    assert buttons == ["Log out"]


async def test_a_session_that_ends_leads_an_open_page_to_the_login_and_back(
    screen: Screen, served: Served
) -> None:
    page = screen.page
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}")
    (_, operator) = served.app[KEYS]
    over = served.app[SESSIONS].issue(operator, now=time.time() - LIFETIME_SECONDS)
    await screen.context.add_cookies([{"name": PLAIN_COOKIE, "value": over, "url": served.url}])
    await expect(page.get_by_label("API key")).to_be_visible()
    await page.get_by_label("API key").fill(OPERATE_KEY)
    await page.get_by_role("button", name="Log in").click()
    await expect(page).to_have_url(f"{served.url}/console/pages/{served.page_id}")


async def test_scripts_cannot_read_the_session_and_hostile_text_runs_nowhere(
    screen: Screen, served: Served
) -> None:
    hostile = '<img src=x onerror="window.stolen=1"><script>window.stolen=1</script>'
    await served.deliver(
        served.said(
            "m_1", AT, text=hostile, attachments=[{"type": "file", "payload": {"url": "javascript:stolen=1"}}]
        )
    )
    await screen.log_in()
    assert await screen.page.evaluate("document.cookie") == ""
    conversation = await served.conversation_id()
    for path in ("conversations", f"conversations/{conversation}", "messages/m_1"):
        await screen.open(f"/console/pages/{served.page_id}/{path}")
        await expect(screen.page.get_by_text("onerror").first).to_be_visible()
    assert await screen.page.evaluate("window.stolen === undefined")


async def test_everything_is_reached_by_keyboard(screen: Screen, served: Served) -> None:
    page = screen.page
    await screen.open("/")
    await expect(page.get_by_label("API key")).to_be_focused()
    await page.keyboard.type(OPERATE_KEY)
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{served.url}/")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Harbour Bicycles")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/console/pages/{served.page_id}")


async def test_without_scripts_the_console_is_whole(browser: Browser, served: Served) -> None:
    await served.deliver(served.said("m_1", AT, text="hello"))
    screen = await open_screen(browser, served.url, java_script_enabled=False, viewport=PHONE)
    await screen.log_in()
    await screen.open(f"/console/pages/{served.page_id}/conversations")
    await screen.page.get_by_role("link", name="hello").click()
    await expect(screen.page.locator(".bubble")).to_contain_text("hello")
    await screen.page.get_by_role("button", name="Log out").click()
    await expect(screen.page.get_by_label("API key")).to_be_visible()
    await screen.context.close()
