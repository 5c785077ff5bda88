"""Events that cannot be stored: retried, refused, kept; and somebody hears of it, once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from http_support import (
    OTHER_PERSON,
    PAGE,
    READ_KEY,
    SECRETS,
    Json,
    Owner,
    Service,
    bearer,
    count,
    delivery,
    eventually,
    inject,
    injections,
    said,
    wire,
)
from pydantic import SecretStr
from structlog.testing import capture_logs

from convsync.observe import watch
from convsync.observe.alerts import Alerter
from convsync.web.app import create_app
from convsync.web.state import ALERTER, COMMIT
from convsync.webhook.group_commit import Unavailable
from convsync.webhook.payload import parse
from secrets_hunt import marked

TOKEN = marked("hook-token")
TEXT = "text of a message"


class Hook:
    """Where alerts go: a local server, and what it was sent."""

    def __init__(self) -> None:
        self.notices: list[Json] = []
        self.answers: list[int] = []

    async def take(self, request: web.Request) -> web.Response:
        assert request.path == f"/{TOKEN}"
        assert request.content_type == "application/json"
        self.notices.append(await request.json())
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    def told(self) -> list[tuple[str, str]]:
        return [(notice["alert"], notice["state"]) for notice in self.notices]

    async def has(self, number: int) -> list[tuple[str, str]]:
        """What was told, once it was that much."""

        async def look() -> list[tuple[str, str]] | None:
            return self.told() if len(self.notices) >= number else None

        return await eventually(look)


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
async def service(
    hook: Hook, configure: Any, database: Any, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Service]:
    """A service that looks often, and sends its alerts to the hook."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_ASK_EVERY", 1)
    receiver = web.Application()
    receiver.router.add_post("/{token}", hook.take)
    async with TestServer(receiver) as server:
        url = SecretStr(str(server.make_url(f"/{TOKEN}")))
        app = create_app(configure(alert_webhook_url=url), database.service_url)
        client = await aiohttp_client(app)
        yield Service(client, app)
        await client.close()  # before the hook: the last notice has somewhere to go


def later(service: Service, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Alerter:
    """Let that much time be over for the alerter."""
    alerter = service.app[ALERTER]
    monkeypatch.setattr(alerter, "_now", lambda: time.monotonic() + seconds)
    return alerter


async def looked(service: Service) -> None:
    """Return when the watch has looked again, twice: whatever it was to see, it has seen."""
    alerter = service.app[ALERTER]
    remind, looks = alerter.remind, asyncio.Queue[None]()

    def counted() -> None:
        looks.put_nowait(None)
        remind()

    alerter.remind = counted  # type: ignore[method-assign]
    try:
        async with asyncio.timeout(30):
            await looks.get()
            await looks.get()
    finally:
        alerter.remind = remind  # type: ignore[method-assign]


async def scraped(service: Service) -> str:
    async with service.client.get("/metrics", headers=bearer(READ_KEY)) as answer:
        assert answer.status == 200
        return await answer.text()


@pytest.mark.parametrize("failures", [1, 3])
async def test_writes_that_fail_a_few_times_are_retried_and_nobody_is_alarmed(
    service: Service, owner: Owner, hook: Hook, failures: int
) -> None:
    inject(owner, "40001", when="true", times=failures)
    assert await service.deliver(delivery(said("m_1", TEXT))) == 200
    assert injections(owner) == failures + 1
    assert count(owner, "contact_interaction_events") == 1
    assert count(owner, "messenger_conversations", "message_count = 1 and version = 1") == 1
    assert count(owner, "dead_letters") == 0
    text = await scraped(service)
    assert f"\nconvsync_commit_retries_total {failures}.0\n" in text
    assert f'convsync_commit_call_duration_seconds_count{{outcome="failed"}} {failures}.0\n' in text
    assert 'convsync_deliveries_refused_total{reason="unavailable"} 0.0\n' in text
    await looked(service)
    await service.app[ALERTER].drain(5)
    assert hook.notices == []


@pytest.mark.parametrize("sqlstate", ["40001", "42P01"], ids=["passing", "a defect"])
async def test_writes_that_go_on_failing_are_refused_logged_counted_and_told_once_and_so_is_their_recovery(
    service: Service, owner: Owner, hook: Hook, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    hook.answers = [503, 429]  # the receiver has its own troubles
    monkeypatch.setattr(service.app[ALERTER], "_sleep", lambda _: asyncio.sleep(0))
    inject(owner, sqlstate, when="true", times=1_000_000)
    documents = [delivery(said(f"m_{n}", TEXT)) for n in range(12)]
    with capture_logs() as logs:
        for part in (documents[:6], documents[6:]):
            answers = await asyncio.gather(*(service.deliver(document) for document in part))
            assert set(answers) == {503}
            await looked(service)
        assert await hook.has(3) == [("event_writes_failing", "firing")] * 3
    assert count(owner, "contact_interaction_events") == count(owner, "dead_letters") == 0

    errors = [line for line in logs if line["log_level"] == "error"]
    failed = {"40001": "group_commit.unavailable", "42P01": "group_commit.failed"}[sqlstate]
    assert sqlstate in {line.get("sqlstate") for line in errors if line["event"] == failed}
    assert [line["state"] for line in errors if line["event"] == "alert"] == ["firing"]

    # As many were refused as were sent, and they are counted where Prometheus reads.
    commit = service.app[COMMIT]
    refused = {"late": commit.refused_late, "unavailable": commit.refused_unavailable}
    assert refused["unavailable"] >= 1
    assert sum(refused.values()) == 12
    text = await scraped(service)
    for why, number in refused.items():
        assert f'convsync_deliveries_refused_total{{reason="{why}"}} {number}.0\n' in text
    assert 'convsync_webhook_requests_total{status="503"} 12.0\n' in text
    assert 'convsync_alerts_firing{alert="event_writes_failing"} 1.0\n' in text

    notice = hook.notices[0]
    assert set(notice) == {"alert", "state", "since", "summary", "remedy", "details", "text"}
    assert notice["details"]["sqlstate"] == sqlstate
    assert sum(notice["details"]["refused_deliveries"].values()) >= 1

    owner.execute("drop trigger inject on convsync.contact_interaction_events")
    for document in documents:
        assert await service.deliver(document) == 200  # Meta sends it again
    assert count(owner, "contact_interaction_events") == 12
    await looked(service)
    assert len(hook.notices) == 3, "a moment without failures is not the end of it"
    later(service, monkeypatch, 61)
    assert (await hook.has(4))[3:] == [("event_writes_failing", "resolved")]
    await looked(service)
    assert len(hook.notices) == 4
    text = await scraped(service)
    assert 'convsync_alerts_firing{alert="event_writes_failing"} 0.0\n' in text
    assert 'convsync_alert_notices_total{outcome="sent"} 2.0\n' in text

    shown = [str(logs), text, str(hook.notices)]
    for secret in (*SECRETS, TOKEN, TEXT):
        assert not any(secret in one for one in shown)


async def test_poison_is_kept_and_told_until_a_person_has_settled_it(
    service: Service, owner: Owner, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(owner, "22003", when="new.message_id like 'm_poison%'", times=1_000_000)
    for number in range(3):
        document = delivery(said(f"m_{number}", TEXT), said(f"m_poison_{number}", TEXT, person=OTHER_PERSON))
        assert await service.deliver(document) == 200
    assert count(owner, "dead_letters", "reason = 'refused: 22003 injected by the test'") == 3
    assert count(owner, "contact_interaction_events") == 3
    assert await hook.has(1) == [("events_refused_by_database", "firing")]
    assert hook.notices[0]["details"]["events"] >= 1
    assert TEXT not in str(hook.notices)

    await looked(service)
    later(service, monkeypatch, 61)
    _, found = await service.call("GET", "/api/dead-letters", page_id=PAGE)
    for letter in found["dead_letters"]:
        await looked(service)
        assert len(hook.notices) == 1, "some of them still wait"
        path = f"/api/dead-letters/{letter['dead_letter_id']}/discard"
        assert (await service.call("POST", path, {"reason": "seen"}))[0] == 200
    assert (await hook.has(2))[1:] == [("events_refused_by_database", "resolved")]


async def test_a_receiver_that_is_away_delays_and_fails_no_delivery(
    configure: Any, database: Any, owner: Owner, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    url = SecretStr(f"http://127.0.0.1:1/{TOKEN}")
    app = create_app(configure(alert_webhook_url=url), database.service_url)
    monkeypatch.setattr("convsync.web.app._LAST_SECONDS", 0.0)
    service = Service(await aiohttp_client(app), app)
    inject(owner, "22003", when="new.message_id = 'm_poison'", times=1_000_000)
    with capture_logs() as logs:
        assert await service.deliver(delivery(said("m_poison", TEXT))) == 200
        await looked(service)
        answers = await asyncio.gather(*(service.deliver(delivery(said(f"m_{n}", TEXT))) for n in range(5)))
        assert set(answers) == {200}
        await service.client.close()  # nor does it hold up the end
    assert [line["alert"] for line in logs if line["event"] == "alert"] == ["events_refused_by_database"]
    assert TOKEN not in str(logs)


async def test_what_is_refused_because_the_service_ends_is_no_alert(
    service: Service, hook: Hook, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("convsync.web.app.STOP_SECONDS", 0.0)
    commit = service.app[COMMIT]
    assert await service.deliver(delivery(said("m_1", TEXT))) == 200
    with psycopg.connect(database.owner_url) as locker:
        locker.execute("select 1 from convsync.messenger_conversations for update")
        late = parse(wire(delivery(said("m_2", TEXT))), datetime.now(UTC))
        waiting = asyncio.create_task(commit.submit(late))
        await asyncio.sleep(0)
        assert commit.waiting == 1
        await service.client.server.close()
        with pytest.raises(Unavailable, match="stopping"):
            await waiting
    assert commit.refused_unavailable == 1
    assert hook.notices == []
