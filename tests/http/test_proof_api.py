"""Proof over HTTP: the life of a message, webhooks that never came, and how wrong questions are answered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from http_support import PAGE, PERSON, READ_KEY, Owner, Service, bearer, delivery, problem, said

from convsync.facts import Message
from convsync.web.state import STORE

MESSAGES = f"/api/pages/{PAGE}/messages"


async def test_losses_are_told_by_hour_on_the_page_and_to_prometheus(service: Service, owner: Owner) -> None:
    await service.add_page()
    owner.execute("update convsync.pages set subscribed_at = now() - interval '1 day'")
    sent = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    await service.app[STORE].ingest(
        [
            Message(PAGE, PERSON, "m_1", "in", sent, "hello", observed_at=datetime.now(UTC)),
            Message(PAGE, PERSON, "m_2", "out", sent, "hello", observed_at=datetime.now(UTC)),
            Message(PAGE, PERSON, "m_3", "in", datetime.now(UTC), "hello", observed_at=datetime.now(UTC)),
        ],
        "sync",
    )

    path = f"/api/pages/{PAGE}/webhook-losses"
    hour = sent.replace(minute=0, second=0)
    assert await service.call("GET", path, key=READ_KEY) == (
        200,
        {"hours": [{"hour": hour.isoformat(), "received": 1, "sent": 1}]},
    )
    later = (sent + timedelta(seconds=1)).isoformat()
    assert await service.call("GET", path, **{"from": later}) == (200, {"hours": []})
    assert await service.call("GET", path, to=sent.isoformat()) == (200, {"hours": []})
    _, page = await service.call("GET", f"/api/pages/{PAGE}")
    assert page["webhook_losses"]["last_day"] == 2
    async with service.client.get("/metrics", headers=bearer(READ_KEY)) as answer:
        assert f'convsync_webhook_lost_messages{{page_id="{PAGE}"}} 2.0' in await answer.text()


async def test_life_of_a_message(service: Service) -> None:
    await service.add_page()
    assert await service.deliver(delivery(said("m_a/b$c==", "hello"))) == 200
    status, life = await service.call("GET", f"{MESSAGES}/m_a%2Fb$c==", key=READ_KEY)
    assert (status, life["state"], life["stored"]["body"]) == (200, "live", "hello")
    assert (life["webhook_copy"], life["graph_copy"]) == (True, False)

    status, answer = await service.call("GET", f"{MESSAGES}/m_never")
    problem(answer, status, "not_found")
    await service.app[STORE].erase_contact(page_id=PAGE, sender_id=PERSON)
    status, answer = await service.call("GET", f"{MESSAGES}/m_a%2Fb$c==")
    assert PERSON not in problem(answer, status, "gone")["detail"]
    assert status == 410


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("webhook-losses", {"from": "yesterday"}, "from"),
        ("webhook-losses", {"from": "2026-03-01T12:00:00"}, "from"),
        ("webhook-losses", {"to": "0001-01-01T00:00:00+23:00"}, "to"),
        ("checksum", {"from": "2026-13-01T12:00:00Z"}, "from"),
        ("certificate/conversations", {"limit": "1001"}, "limit"),
        ("certificate/conversations", {"after": "-1"}, "after"),
        ("certificate/conversations", {"incomplete": "yes"}, "incomplete"),
    ],
)
async def test_wrong_parameter_is_named(
    service: Service, path: str, query: dict[str, str], field: str
) -> None:
    await service.add_page()
    status, answer = await service.call("GET", f"/api/pages/{PAGE}/{path}", **query)
    assert problem(answer, status, "invalid_argument")["field"] == field
    assert status == 422


@pytest.mark.parametrize("path", ["certificate", "checksum", "messages/m_1"])
async def test_page_that_is_not_there_is_not_found(service: Service, path: str) -> None:
    status, answer = await service.call("GET", f"/api/pages/{PAGE}/{path}")
    problem(answer, status, "not_found")
