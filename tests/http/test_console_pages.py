"""The console's pages over HTTP: whole without scripts, safe with whatever people wrote, readable errors."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from console_support import Person
from http_support import (
    OPERATE_KEY,
    OPERATOR,
    OTHER_PAGE,
    OTHER_PERSON,
    PAGE,
    PERSON,
    READ_KEY,
    Json,
    Owner,
    Service,
    contents,
    delivery,
    from_page,
    from_person,
    said,
)
from pydantic import SecretStr

from convsync.facts import DeadLetter
from convsync.simulator import Simulator
from convsync.store import Store
from convsync.web.app import create_app
from convsync.web.state import STORE

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "console.md").read_text(encoding="utf-8")
HOSTILE = (
    "<script>alert('x')</script> \"' onload=alert(1) & {{ 7 * 7 }} </textarea><img src=x onerror=alert(1)>"
)


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
async def person(service: Service) -> Person:
    person = Person(service)
    await service.add_page(name="Harbour")
    await person.log_in()
    return person


async def conversation_of(service: Service, sender: str = PERSON) -> str:
    _, listed = await service.call("GET", f"/api/pages/{PAGE}/conversations")
    (found,) = [one["conversation_id"] for one in listed["conversations"] if one["sender_id"] == sender]
    return found


async def dead_letter(service: Service, item: object = "no event") -> str:
    assert await service.deliver(delivery(item)) == 200
    _, listed = await service.call("GET", "/api/dead-letters")
    number: str = listed["dead_letters"][0]["dead_letter_id"]
    return number


async def every_page(service: Service) -> list[str]:
    """The address of each page of the console, with something on it."""
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    letter, conversation = await dead_letter(service), await conversation_of(service)
    _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    return [
        "/",
        "/console/login",
        f"/console/pages/{PAGE}",
        f"/console/sync-runs/{run['run_id']}",
        f"/console/pages/{PAGE}/conversations",
        f"/console/pages/{PAGE}/conversations/{conversation}",
        f"/console/pages/{PAGE}/conversations/{conversation}/timing",
        f"/console/pages/{PAGE}/messages/m_1",
        f"/console/pages/{PAGE}/timing",
        "/console/dead-letters",
        f"/console/dead-letters/{letter}",
        "/console/changes",
        "/console/nowhere",
    ]


async def test_every_page_forbids_whatever_is_not_the_consoles_own(service: Service, person: Person) -> None:
    for path in await every_page(service):
        shown = await person.see(path, 404 if path.endswith("nowhere") else 200)
        policy = dict(part.split(" ", 1) for part in shown.headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "style-src": "'self'",
            "script-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
        }
        assert shown.headers["X-Content-Type-Options"] == "nosniff"
        assert shown.headers["Cache-Control"] == "no-store"
        assert shown.headers["Referrer-Policy"] == "same-origin"
        assert shown.headers["X-Request-ID"]
        for tag, attributes in Elements(shown.text).found:
            assert tag not in ("style", "iframe", "object", "embed", "base"), path
            assert not [name for name in attributes if name == "style" or name.startswith("on")], path
            for name in ("src", "href", "action"):
                assert (attributes.get(name) or "/").startswith(("/", "#")), (path, attributes)
            assert tag != "script" or attributes.get("src"), path


async def test_whatever_people_wrote_is_text_on_every_page(
    service: Service, person: Person, owner: Owner
) -> None:
    await service.add_page(name=HOSTILE)
    picture = {"type": "image", "payload": {"url": "javascript:alert(1)", "title": HOSTILE}}
    link = {
        "type": "fallback",
        "title": HOSTILE,
        "payload": {"url": 'https://x.example/"><script>alert(1)</script>'},
    }
    odd = [None, 7, {"type": ["x"], "payload": "x"}]
    assert (
        await service.deliver(
            delivery(
                from_person(
                    message={
                        "mid": f"m_{HOSTILE[:40]}",
                        "text": HOSTILE,
                        "attachments": [picture, link, *odd],
                    }
                ),
                from_person(
                    reaction={
                        "mid": f"m_{HOSTILE[:40]}",
                        "action": "react",
                        "reaction": HOSTILE,
                        "emoji": HOSTILE,
                    }
                ),
                HOSTILE,
            )
        )
        == 200
    )
    conversation = await conversation_of(service)
    owner.execute(
        "update convsync.messenger_conversations set sender_name = %s, thread_id = %s", [HOSTILE, HOSTILE]
    )
    _, before = await service.call("GET", f"/api/pages/{PAGE}/conversations/{conversation}")
    async with service.client.patch(
        f"/api/pages/{PAGE}/conversations/{conversation}",
        json={"note": HOSTILE, "tags": [HOSTILE], "assignee": HOSTILE, "conversation_status": HOSTILE[:60]},
        headers=OPERATOR | {"If-Match": f'"{before["version"]}"'},
    ) as answer:
        assert answer.status == 200
    owner.execute("update convsync.dead_letters set reason = %s", [HOSTILE])
    _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    owner.execute("update convsync.sync_runs set reason = %s, request_id = %s", [HOSTILE, HOSTILE])
    owner.execute("update convsync.pages set token_error = %s", [HOSTILE])
    _, letters = await service.call("GET", "/api/dead-letters")
    letter = letters["dead_letters"][0]["dead_letter_id"]
    pages = {
        "/": 1,
        f"/console/pages/{PAGE}": 1,
        f"/console/sync-runs/{run['run_id']}": 1,
        f"/console/pages/{PAGE}/conversations": 1,
        f"/console/pages/{PAGE}/conversations?q={quote(HOSTILE)}&status={quote(HOSTILE)}": 1,
        f"/console/pages/{PAGE}/conversations/{conversation}": 5,
        f"/console/pages/{PAGE}/conversations/{conversation}/timing": 1,
        "/console/dead-letters": 1,
        f"/console/dead-letters/{letter}": 1,
    }
    for path, least in pages.items():
        shown = await person.see(path)
        assert shown.text.count("&lt;script&gt;alert(") >= least, path
        assert "<script>alert" not in shown.text, path
        assert "{{" in shown.text, path
        elements = Elements(shown.text).found
        assert [one for one in elements if one[0] == "script"] == [
            ("script", {"type": "module", "src": "/console/assets/console.js"})
        ]
        assert not [one for one in elements if one[0] == "img"]
        for _, attributes in elements:
            assert not [name for name in attributes if name.startswith("on")], path
            assert not (attributes.get("href") or "").lower().startswith("javascript:"), path
    for path in (f"/console/pages/{quote(HOSTILE)}", f"/console/pages/{PAGE}/timing?tz={quote(HOSTILE)}"):
        async with service.client.get(path, headers=person.headers) as answer:
            assert answer.status in (404, 422)
            assert "<script>alert" not in await answer.text()


# The overview and a Page


async def test_the_overview_tells_of_each_page_what_an_operator_asks_first(
    syncing: Service, simulator: Simulator
) -> None:
    person = Person(syncing)
    await person.log_in()
    page_id = simulator.page.page_id
    shown = await person.see("/")
    assert "0 of 0 complete, and there may be more" in shown.words
    assert "Next sync full," in shown.words
    _, run = await syncing.call("POST", "/api/conversations/sync", {"page_id": page_id}, wait="60")
    assert run["status"] == "succeeded"
    shown = await person.see("/")
    conversations = run["conversations_seen"]
    assert f"{conversations} of {conversations} complete" in shown.words
    assert "fresh" in shown.words
    assert "Last sync full, succeeded" in shown.words
    assert "Next sync incremental," in shown.words
    assert "Webhooks, last hour 0 messages" in shown.words
    assert page_id in shown.words


async def test_without_a_page_the_overview_says_how_to_add_one(service: Service) -> None:
    person = Person(service)
    await person.log_in()
    assert "No Page yet" in (await person.see("/")).words


async def test_pages_are_found_and_shown_part_by_part_those_with_a_problem_first(
    service: Service, person: Person, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many Pages there are, a page of the console has an end: it is asked for again all the time."""
    from convsync.web.routes import console

    monkeypatch.setattr(console, "_PAGES", 2)
    assert 'role="search"' not in (await person.see("/")).text, "there is nothing to search in one Page"
    others = [f"20000000000000{number}" for number in range(4)]
    for page_id in others:
        await service.add_page(page_id, name=f"Hill & Dale {page_id[-1]}")
    owner.execute(
        "update convsync.pages set token_state = 'valid', token_sealed = '\\x01', token_key_id = 'k1'"
    )
    owner.execute(
        "insert into convsync.alerts (page_id, problem, since, details)"
        " values (%s, 'token_invalid', now(), '{}')",
        [others[3]],
    )

    async def listed(path: str | None) -> list[list[str]]:
        parts = []
        while path is not None:
            shown = await person.see(path)
            parts.append(re.findall(r'data-page="(\d+)"', shown.text))
            further = re.search(r'rel="next" href="([^"]+)"', shown.text)
            path = unescape(further[1]) if further else None
        return parts

    assert await listed("/") == [[others[3], PAGE], [others[0], others[1]], [others[2]]]
    assert await listed("/?q=hill+%26") == [[others[3], others[0]], [others[1], others[2]]]
    assert await listed(f"/?q={PAGE}") == [[PAGE]]
    shown = await person.see("/?q=valley")
    assert "Nothing found" in shown.words
    assert 'value="valley"' in shown.text
    await person.see("/?q=%00", 422)


async def test_a_block_of_meta_is_told_where_the_page_stands(
    service: Service, person: Person, owner: Owner
) -> None:
    """Who wonders why a sync does not move looks at its Page."""
    owner.execute(
        "insert into convsync.call_budgets (page_id, blocked_until, block_reason)"
        " values (%s, now() + interval '1 hour', 'page_rate')",
        [PAGE],
    )
    for path in ("/", f"/console/pages/{PAGE}"):
        words = (await person.see(path)).words
        assert re.search(r"Graph calls 0 made; none until .* UTC \(page rate\)", words)


async def test_a_page_of_the_console_says_of_which_page_it_is(service: Service, person: Person) -> None:
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    conversation = await conversation_of(service)
    for path in (
        f"/console/sync-runs/{run['run_id']}",
        f"/console/pages/{PAGE}/conversations",
        f"/console/pages/{PAGE}/conversations/{conversation}",
        f"/console/pages/{PAGE}/conversations/{conversation}/timing",
        f"/console/pages/{PAGE}/messages/m_1",
        f"/console/pages/{PAGE}/timing",
    ):
        assert "Harbour" in (await person.see(path)).words, path


async def test_a_page_says_what_is_wrong_why_it_matters_and_what_mends_it(
    service: Service, person: Person
) -> None:
    shown = await person.see(f"/console/pages/{PAGE}")
    assert "The Page has no token." in shown.words
    assert "what no webhook tells is missing" in shown.words
    assert f"convsync page add {PAGE} --token-stdin" in shown.words


async def test_webhooks_of_the_last_hour_are_counted_where_they_came(
    service: Service, person: Person, owner: Owner
) -> None:
    now = owner.execute("select (extract(epoch from now()) * 1000)::bigint as ms").fetchone()
    assert now is not None
    recent, old = now["ms"] - 60_000, now["ms"] - 2 * 3_600_000
    assert (
        await service.deliver(
            delivery(
                said("m_1", "now", at=recent),
                said("m_2", "then", at=old),
                said("m_3", "now too", at=recent, person=OTHER_PERSON),
                said("m_4", "taken back", at=recent),
                from_person(message={"mid": "m_4", "is_deleted": True}, at=recent),
            )
        )
        == 200
    )
    assert "Webhooks, last hour 2 messages" in (await person.see("/")).words


async def test_a_sync_is_begun_and_its_failure_told(service: Service, person: Person) -> None:
    shown = await person.send(f"/console/pages/{PAGE}/syncs", mode="full")
    assert "The sync has begun" in shown.words
    _, page = await service.call("GET", f"/api/pages/{PAGE}")
    run = await service.ended(page["last_run"]["run_id"])
    shown = await person.see(f"/console/pages/{PAGE}")
    assert "failed full sync" in shown.words
    assert "token missing" in shown.words
    retried = await person.send(f"/console/sync-runs/{run['run_id']}/retry")
    assert "goes on with what could not be read" in retried.words
    await service.ended(run["run_id"])
    # It ended before the button was pressed.
    cancelled = await person.send(f"/console/sync-runs/{run['run_id']}/cancel")
    assert "The sync was cancelled" not in cancelled.words
    assert "It had ended before." in cancelled.words


@pytest.mark.parametrize("mode", ["", "everything", "full\0"])
async def test_a_kind_of_sync_that_does_not_exist_is_refused_by_its_name(
    service: Service, person: Person, mode: str
) -> None:
    shown = await person.send(f"/console/pages/{PAGE}/syncs", 422, mode=mode)
    assert "mode: must be one of" in shown.words


async def test_a_second_sync_is_refused_readably_and_leads_to_the_first(
    syncing: Service, simulator: Simulator, gate: Any
) -> None:
    person = Person(syncing)
    await person.log_in()
    gate.shut()
    page_id = simulator.page.page_id
    await person.send(f"/console/pages/{page_id}/syncs", mode="full")
    _, page = await syncing.call("GET", f"/api/pages/{page_id}")
    run_id = page["last_run"]["run_id"]
    shown = await person.send(f"/console/pages/{page_id}/syncs", 409, mode="reconcile")
    assert f"This sync was not begun: run {run_id} is at work on this Page." in shown.words
    assert f'href="/console/sync-runs/{run_id}"' in shown.text
    assert 'role="alert"' in shown.text
    cancelled = await person.send(f"/console/sync-runs/{run_id}/cancel")
    assert "The sync was cancelled" in cancelled.words
    gate.open()
    assert (await syncing.ended(run_id))["status"] == "cancelled"


async def test_deletions_that_are_held_back_are_allowed_by_who_operates_and_then_asked_for(
    syncing: Service, simulator: Simulator
) -> None:
    page_id, form = simulator.page.page_id, "Allow these deletions"
    _, run = await syncing.call("POST", "/api/conversations/sync", {"page_id": page_id}, wait="60")
    assert run["status"] == "succeeded"
    person = Person(syncing)
    await person.log_in()
    address = f"/console/sync-runs/{run['run_id']}"
    assert form not in (await person.see(address)).words
    assert "it holds no deletions back" in (await person.send(f"{address}/allow-deletions", 422)).words
    for conversation in simulator.population.conversations[:30]:
        simulator.population.remove(conversation)
    _, run = await syncing.call("POST", "/api/conversations/sync", {"page_id": page_id}, wait="60")
    assert (run["status"], run["reason"]) == ("partial", "deletion_breaker")
    address, missing = f"/console/sync-runs/{run['run_id']}", run["deletions_proposed"]
    await person.log_in(READ_KEY)
    assert form not in (await person.see(address)).words
    await person.send(f"{address}/allow-deletions", 403)
    await person.log_in()
    for path in (f"/console/pages/{page_id}", address):
        shown = await person.see(path)
        assert f"did not show {missing} conversations" in shown.words
        assert f"Look at the Page in Meta's inbox first. {form}" in shown.words
    assert "holds back the deletion" in (await person.send(f"{address}/retry", 422)).words
    await person.send(f"{address}/allow-deletions", 403, token="0" * 64)
    shown = await person.send(f"{address}/allow-deletions")
    assert "Allowed: a retry asks for each of them." in shown.words
    await person.send(f"{address}/retry")
    run = await syncing.ended(run["run_id"])
    assert (run["status"], run["deletions_confirmed"]) == ("succeeded", missing)
    assert form not in (await person.see(address)).words


async def test_the_runs_of_a_page_are_listed_part_by_part(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console

    monkeypatch.setattr(console, "_HISTORY", 2)
    runs = []
    for _ in range(5):
        _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
        runs.append(run["run_id"])
    listed: list[str] = []
    path: str | None = f"/console/pages/{PAGE}"
    while path is not None:
        shown = await person.see(path)
        listed += re.findall(r'<th scope="row"><a href="/console/sync-runs/(\d+)">', shown.text)
        older = re.search(r'rel="next" href="([^"]+)"', shown.text)
        path = older[1] if older else None
    assert listed == runs[::-1]


# Conversations


async def test_conversations_are_found_and_listed_part_by_part(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console_mirror

    monkeypatch.setattr(console_mirror, "_CONVERSATIONS", 2)
    for number in range(5):
        assert (
            await service.deliver(
                delivery(
                    said(
                        f"m_{number}",
                        f"bicycle & bell {number}",
                        person=f"70{number}",
                        at=1_700_000_000_000 + number,
                    )
                )
            )
            == 200
        )
    listed: list[str] = []
    path: str | None = f"/console/pages/{PAGE}/conversations?q=bicycle+%26"
    while path is not None:
        shown = await person.see(path)
        listed += re.findall(r'<strong dir="auto">(\d+)</strong>', shown.text)
        older = re.search(r'rel="next" href="([^"]+)"', shown.text)
        path = older[1].replace("&amp;", "&") if older else None
    assert listed == ["704", "703", "702", "701", "700"]
    assert "Nothing found" in (await person.see(f"/console/pages/{PAGE}/conversations?q=tandem")).words
    await person.see(f"/console/pages/{PAGE}/conversations?before=none", 422)


async def test_what_the_search_does_not_look_in_the_sql_of_the_guide_finds(
    service: Service, person: Person, owner: Owner
) -> None:
    messages = [
        said("m_1", "The Bicycle is blue", at=1_700_000_000_000),
        said("m_2", "my bicycle secret", at=1_700_000_001_000),
        from_person(message={"mid": "m_2", "is_deleted": True}, at=1_700_000_002_000),
        said("m_3", "hello", at=1_700_000_003_000),
    ]
    assert await service.deliver(delivery(*messages)) == 200
    assert "Nothing found" in (await person.see(f"/console/pages/{PAGE}/conversations?q=bicycle")).words
    (query,) = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
    found = owner.execute(query.replace("PAGE_ID", PAGE).encode()).fetchall()
    assert [(str(one["conversation_id"]), one["body"]) for one in found] == [
        (await conversation_of(service), "The Bicycle is blue")
    ]


async def test_a_conversation_that_ends_with_a_picture_says_so_in_the_list(
    service: Service, person: Person
) -> None:
    picture = {"type": "image", "payload": {"url": "https://cdn.example/p.jpg"}}
    sent = from_person(message={"mid": "m_1", "attachments": [picture]}, at=1_700_000_000_000)
    assert await service.deliver(delivery(sent)) == 200
    shown = await person.see(f"/console/pages/{PAGE}/conversations")
    assert re.findall(r'<span class="snippet"[^>]*>(.*?)</span>', shown.text) == ["<em>attachment</em>"]


async def test_a_thread_reads_like_a_chat(service: Service, person: Person) -> None:
    at = 1_700_000_000_000
    assert (
        await service.deliver(
            delivery(
                said("m_1", "Is the blue one in stock?", at=at),
                from_person(
                    message_edit={"mid": "m_1", "text": "Is the green one in stock?", "num_edit": 1},
                    at=at + 1000,
                ),
                from_page(message={"mid": "m_2", "text": "It is.", "is_echo": True}, at=at + 2000),
                from_person(
                    reaction={"mid": "m_2", "action": "react", "reaction": "love", "emoji": "\u2764"},
                    at=at + 3000,
                ),
                said("m_3", "my secret", at=at + 4000),
                from_person(message={"mid": "m_3", "is_deleted": True}, at=at + 5000),
                from_person(
                    message={
                        "mid": "m_4",
                        "attachments": [
                            {"type": "image", "payload": {"url": "https://cdn.example/p.jpg?a=1&b=2"}}
                        ],
                        "reply_to": {"mid": "m_2"},
                    },
                    at=at + 6000,
                ),
                from_page(message={"mid": "m_5", "text": "See you.", "is_echo": True}, at=at + 7000),
                from_person(delivery={"watermark": at + 8000}, at=at + 8000),
                from_person(read={"watermark": at + 2500}, at=at + 9000),
                from_person(
                    referral={"ref": "shop", "source": "SHORTLINK", "type": "OPEN_THREAD"}, at=at + 86_400_000
                ),
            )
        )
        == 200
    )
    conversation = await conversation_of(service)
    shown = await person.see(f"/console/pages/{PAGE}/conversations/{conversation}")
    bubbles = re.findall(
        r'<li class="bubble ([^"]*)" data-message="(m_\d)">(.*?)</li>', shown.text, re.DOTALL
    )
    told = {mid: (kind, " ".join(re.sub(r"<[^>]*>", " ", inside).split())) for kind, mid, inside in bubbles}
    assert [mid for _, mid, _ in bubbles] == ["m_1", "m_2", "m_3", "m_4", "m_5"]
    assert told["m_1"][0] == "theirs"
    assert "Is the green one in stock?" in told["m_1"][1]
    assert "edited" in told["m_1"][1]
    assert told["m_2"][0] == "ours"
    assert "\u2764" in told["m_2"][1]
    assert told["m_2"][1].count("Read") == 1
    assert told["m_3"][0] == "theirs gone"
    assert "taken back" in told["m_3"][1]
    assert "It is." in told["m_4"][1], "what it answers"
    assert 'href="https://cdn.example/p.jpg?a=1&amp;b=2"' in shown.text
    assert 'rel="noopener noreferrer nofollow"' in shown.text
    assert "Delivered" in told["m_5"][1]
    assert "Read" not in told["m_5"][1]
    assert "my secret" not in shown.text
    assert "blue one" not in shown.text
    assert "referral" in shown.words
    assert "Tuesday, 14 November 2023" in shown.words
    assert "Wednesday, 15 November 2023" in shown.words
    life = await person.see(f"/console/pages/{PAGE}/messages/m_1")
    assert "Before it was edited Is the blue one in stock?" in life.words
    assert "my secret" not in (await person.see(f"/console/pages/{PAGE}/messages/m_3")).text


async def test_a_long_thread_is_read_part_by_part_and_loses_nothing(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console_mirror

    monkeypatch.setattr(console_mirror, "_EVENTS", 3)
    messages = [
        said(f"m_{number}", f"text {number}", at=1_700_000_000_000 + number // 2) for number in range(8)
    ]
    assert await service.deliver(delivery(*messages)) == 200
    base = f"/console/pages/{PAGE}/conversations/{await conversation_of(service)}"
    parts: list[list[str]] = []
    path: str | None = base
    while path is not None:
        shown = await person.see(path)
        parts.append(re.findall(r'data-message="(m_\d)"', shown.text))
        older = re.search(r'rel="next" href="([^"]+)"', shown.text)
        path = older[1] if older else None
    assert [mid for part in reversed(parts) for mid in part] == [f"m_{number}" for number in range(8)]
    assert [len(part) for part in parts] == [3, 3, 2]


async def test_a_reply_quotes_also_what_stands_on_another_part_of_the_thread(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console_mirror

    monkeypatch.setattr(console_mirror, "_EVENTS", 3)
    at = 1_700_000_000_000

    def reply(number: int, to: str) -> Json:
        message = {"mid": f"m_{number}", "text": f"reply {number}", "reply_to": {"mid": to}}
        return from_person(message=message, at=at + number)

    said_before = [
        said("m_1", "Is it <blue>?", at=at + 1),
        said("m_2", "my secret", at=at + 2),
        from_person(message={"mid": "m_2", "is_deleted": True}, at=at + 3),
        said("m_of_another", "nobody's business", person=OTHER_PERSON, at=at),
    ]
    replies = [reply(4, "m_1"), reply(5, "m_2"), reply(6, "m_of_another")]
    assert await service.deliver(delivery(*said_before, *replies)) == 200
    shown = await person.see(f"/console/pages/{PAGE}/conversations/{await conversation_of(service)}")
    assert re.findall(r'data-message="(m_\d)"', shown.text) == ["m_4", "m_5", "m_6"]
    quoted = re.findall(r'<blockquote dir="auto">([^<]*)</blockquote>', shown.text)
    assert quoted == ["Is it &lt;blue&gt;?", "a message"]
    assert "my secret" not in shown.text


async def test_the_message_id_that_facebook_makes_leads_to_its_life(service: Service, person: Person) -> None:
    mid = "m_AbC/+==%2F-_?#x"
    assert await service.deliver(delivery(said(mid, "hello"))) == 200
    shown = await person.see(f"/console/pages/{PAGE}/conversations/{await conversation_of(service)}")
    (address,) = re.findall(r'href="(/console/pages/\d+/messages/[^"]+)"', shown.text)
    from yarl import URL

    url = service.client.make_url("/").join(URL(address, encoded=True))
    async with service.client.session.get(url, headers=person.headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    assert "m_AbC/+==%2F-_?#x" in text


async def test_an_erased_person_is_gone_and_said_to_be(service: Service, person: Person) -> None:
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    conversation = await conversation_of(service)
    await service.call("POST", f"/api/pages/{PAGE}/erasures", {"sender_id": PERSON})
    shown = await person.see(f"/console/pages/{PAGE}/conversations/{conversation}", 410)
    assert "erased" in shown.words


async def test_the_heat_map_is_a_table_of_hours_in_the_zone_that_was_asked_for(
    service: Service, person: Person
) -> None:
    monday = 1_767_607_200_000  # 2026-01-05 10:00 UTC
    messages = [said(f"m_{number}", "hello", at=monday + number * 60_000) for number in range(3)]
    assert (
        await service.deliver(delivery(*messages, said("m_9", "evening", at=monday + 9 * 3_600_000))) == 200
    )
    for path in ("timing", f"conversations/{await conversation_of(service)}/timing"):
        shown = await person.see(f"/console/pages/{PAGE}/{path}?tz=Europe/Berlin")
        rows = re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', shown.text, re.DOTALL)
        assert (len(rows), rows[0][0]) == (7, "Monday")
        cells = re.findall(r'<td class="heat-(\d)">(\d+)</td>', rows[0][1])
        assert len(cells) == 24
        assert cells[11] == ("8", "3")
        assert cells[20] == ("3", "1")
        assert sum(int(count) for _, count in cells) == 4
        assert "Busiest: Monday 11:00 (3)" in shown.words
    await person.see(f"/console/pages/{PAGE}/timing?tz=Mars/Olympus", 422)


# Dead letters


async def test_a_dead_letter_is_shown_with_its_bytes_replayed_and_lands(
    service: Service, person: Person, owner: Owner
) -> None:
    at = 1_700_000_000_000
    assert await service.deliver(delivery({**said("m_1", "at last", at=at), "timestamp": "never"})) == 200
    _, listed = await service.call("GET", "/api/dead-letters")
    (letter,) = listed["dead_letters"]
    address = f"/console/dead-letters/{letter['dead_letter_id']}"
    assert address in (await person.see("/console/dead-letters")).text
    shown = await person.see(address)
    assert letter["reason"] in shown.words
    assert '"mid": "m_1"' in shown.words
    refused = await person.send(f"{address}/replay", 422)
    assert "Not replayed: it is still not understood" in refused.words
    # A release that understands it.
    raw = owner.execute("select raw from convsync.dead_letters").fetchone()
    assert raw is not None
    owner.execute(
        "update convsync.dead_letters set raw = %s", [bytes(raw["raw"]).replace(b'"never"', b"1700000000000")]
    )
    assert "in the mirror now" in (await person.send(f"{address}/replay")).words
    thread = await person.see(f"/console/pages/{PAGE}/conversations/{await conversation_of(service)}")
    assert "at last" in thread.words
    before = contents(owner)
    assert "settled before" in (await person.send(f"{address}/replay")).words
    assert contents(owner) == before
    assert address not in (await person.see("/console/dead-letters")).text
    assert "replayed" in (await person.see("/console/dead-letters?resolved=true")).words


async def test_a_dead_letter_is_discarded_with_a_reason_and_only_with_one(
    service: Service, person: Person
) -> None:
    address = f"/console/dead-letters/{await dead_letter(service)}"
    shown = await person.send(f"{address}/discard", 422, reason="  ")
    assert "say why" in shown.words
    await person.send(f"{address}/discard", 422, reason="a\0b")
    shown = await person.send(f"{address}/discard", reason="a test of <ours>")
    assert "discarded: a test of <ours>" in shown.words
    assert "Replay" not in shown.words


async def test_dead_letters_are_listed_part_by_part(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console_letters

    monkeypatch.setattr(console_letters, "_LETTERS", 2)
    made = [await dead_letter(service, f"item {number}") for number in range(5)]
    listed: list[str] = []
    path: str | None = f"/console/dead-letters?page_id={PAGE}"
    while path is not None:
        shown = await person.see(path)
        listed += re.findall(r'href="/console/dead-letters/(\d+)"', shown.text)
        older = re.search(r'rel="next" href="([^"]+)"', shown.text)
        path = older[1].replace("&amp;", "&") if older else None
    assert listed == made[::-1]


async def test_among_many_pages_dead_letters_are_asked_for_by_the_id_of_one(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convsync.web.routes import console_letters

    number = await dead_letter(service)
    assert '<option value="">all</option>' in (await person.see("/console/dead-letters")).text
    monkeypatch.setattr(console_letters, "_OPTIONS", 1)
    await service.add_page(OTHER_PAGE, name="Hill")
    shown = await person.see("/console/dead-letters")
    assert "Hill" not in shown.words
    assert '<input id="page_id" name="page_id" value="">' in " ".join(shown.text.split())
    assert f'href="/console/dead-letters/{number}"' in shown.text
    shown = await person.see(f"/console/dead-letters?page_id={OTHER_PAGE}")
    assert f'value="{OTHER_PAGE}"' in shown.text
    assert f'href="/console/dead-letters/{number}"' not in shown.text


async def test_a_key_limited_to_several_pages_is_shown_the_dead_letters_of_all_of_them(
    configure: Any, database: Any, aiohttp_client: Any
) -> None:
    key, third = "k" * 20, "104000000000003"
    keys = SecretStr(f"operator:operate:{OPERATE_KEY},twice:read:{key}:{OTHER_PAGE}+{third}")
    app = create_app(configure(api_keys=keys), database.service_url)
    service = Service(await aiohttp_client(app), app)
    for page in (PAGE, OTHER_PAGE, third):
        await service.add_page(page)
    letters = [DeadLetter(page, "why", page.encode()) for page in ("", PAGE, OTHER_PAGE, third)]
    await app[STORE].ingest(letters, "webhook")
    person = Person(service)
    await person.log_in(key)

    async def listed(query: str = "") -> list[str]:
        shown = await person.see(f"/console/dead-letters{query}")
        assert '<option value="">all</option>' in shown.text
        return re.findall(r"<td>(\d{10,}|unknown)</td>", shown.text)

    assert sorted(await listed()) == sorted([OTHER_PAGE, third])
    assert await listed(f"?page_id={third}") == [third]
    await person.see(f"/console/dead-letters?page_id={PAGE}", 404)


async def test_it_says_how_long_dead_letters_are_kept(service: Service, person: Person) -> None:
    assert "30 days after it was seen last" in (await person.see("/console/dead-letters")).words


# Changes


async def test_changes_after_a_position_are_shown_without_scripts(service: Service, person: Person) -> None:
    _, end = await service.call("GET", "/api/changes/end")
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    conversation = await conversation_of(service)
    async with asyncio.timeout(30):
        while True:  # another test's open transaction holds the feed back
            shown = await person.see(f"/console/changes?after={end['position']}")
            if f"/conversations/{conversation}" in shown.text:
                break
            await asyncio.sleep(0.05)
    await person.see("/console/changes?after=none", 422)


# Errors


async def test_an_error_is_a_page_for_people_and_a_problem_for_programs(
    service: Service, person: Person
) -> None:
    shown = await person.see("/console/nowhere", 404)
    assert shown.headers["Content-Type"].startswith("text/html")
    assert shown.headers["X-Request-ID"] in shown.words
    async with service.client.get("/console/nowhere", headers=OPERATOR) as answer:
        assert answer.content_type == "application/problem+json"
    async with service.client.get("/api/nowhere", headers=person.headers) as answer:
        assert answer.content_type == "application/problem+json"


async def test_a_defect_is_a_page_that_tells_nothing_of_its_inside(
    service: Service, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr(Store, "list_pages", broken)
    shown = await person.see("/", 500)
    assert "inside" not in shown.text
    assert shown.headers["X-Request-ID"] in shown.words


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"mode=full", "application/json"),
        (b"\xff\xfe=\xff", "application/x-www-form-urlencoded"),
        (b"mode=full", "application/x-www-form-urlencoded; charset=none-such"),
        (b"--x", "multipart/form-data; boundary=x"),
        (b"csrf=%ED%A0%80", "application/x-www-form-urlencoded"),
    ],
)
async def test_a_form_that_is_none_is_refused_and_no_defect(
    service: Service, person: Person, body: bytes, kind: str
) -> None:
    for path in (f"/console/pages/{PAGE}/syncs", "/console/login"):
        async with service.client.post(
            path, data=body, headers=person.headers | {"Content-Type": kind}
        ) as answer:
            assert answer.status in (400, 401, 403, 415, 422), await answer.text()


async def test_the_consoles_files_are_served_with_their_types(service: Service) -> None:
    for file, kind in (
        ("console.css", "text/css"),
        ("console.js", "text/javascript"),
        ("live.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        async with service.client.get(f"/console/assets/{file}") as answer:
            assert (answer.status, answer.content_type) == (200, kind)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            text = await answer.text()
            assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in text


async def test_the_consoles_pages_are_whole_with_every_state_of_a_run(
    service: Service, person: Person, owner: Owner
) -> None:
    _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    batch: Json = {"message": "reduce the amount", "told": "Ask for less."}
    from psycopg.types.json import Jsonb

    owner.execute(
        "insert into convsync.sync_batches (page_id, run_id, batch, kind, thread_id, status, attempts, error,"
        " progress) values (%s, %s, 1, 'thread', 't_1', 'failed', 5, %s, 1)",
        [PAGE, run["run_id"], Jsonb(batch)],
    )
    for status in ("running", "paused", "partial", "failed", "cancelled"):
        owner.execute(
            "update convsync.sync_runs set status = %(status)s,"
            " lease_expires_at = case %(status)s when 'running' then now() + interval '1 hour' end,"
            " finished_at = case when %(status)s not in ('running', 'paused') then now() end",
            {"status": status},
        )
        for path in ("/", f"/console/pages/{PAGE}", f"/console/sync-runs/{run['run_id']}"):
            shown = await person.see(path)
            if path != "/":
                assert status in shown.words
                assert "Ask for less." in shown.words
