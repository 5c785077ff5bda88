"""The service ends: what it accepted is committed or refused, and it ends whatever it was doing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from http_support import Owner, count, delivery, said, signature, wire
from yarl import URL

from convsync import tasks
from convsync.web.app import create_app, serve
from convsync.web.state import COMMIT
from convsync.webhook.group_commit import Unavailable
from convsync.webhook.payload import parse


async def test_under_load_every_accepted_delivery_is_committed_and_no_other(
    configure: Any, database: Any, owner: Owner
) -> None:
    app = create_app(configure(), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    host, port = runner.addresses[0][:2]
    answers: dict[str, int | None] = {}
    accepted = asyncio.Event()

    async def sender(client: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while True:
            turn += 1
            mid = f"m_{number}_{turn}"
            body = wire(delivery(said(mid, "load", person=f"73000000000{number % 7:05}")))
            headers = {"X-Hub-Signature-256": signature(body)}
            answers[mid] = None
            try:
                async with client.post("/api/webhook", data=body, headers=headers) as answer:
                    answers[mid] = answer.status
            except aiohttp.ClientConnectorError:
                del answers[mid]  # nobody listens any more: it was never sent
                return
            except aiohttp.ClientError:
                continue  # it may have been taken or not: Meta would send it again
            if sum(status == 200 for status in answers.values()) >= 200:
                accepted.set()

    base = URL.build(scheme="http", host=host, port=port)
    async with aiohttp.ClientSession(base) as client, asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(sender(client, number))
        await accepted.wait()
        await runner.cleanup()

    taken = {mid for mid, status in answers.items() if status == 200}
    unknown = {mid for mid, status in answers.items() if status is None}
    assert set(answers.values()) <= {200, 503, None}
    rows = owner.execute("select message_id from convsync.contact_interaction_events").fetchall()
    stored = {row["message_id"] for row in rows}
    assert len(taken) >= 200
    assert taken <= stored
    assert stored - taken <= unknown
    assert app[COMMIT].waiting == 0
    assert app[COMMIT].deliveries == len(stored)
    assert count(owner, "dead_letters") == 0


async def test_after_the_end_a_delivery_is_refused_not_lost(
    configure: Any, database: Any, owner: Owner
) -> None:
    app = create_app(configure(), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    await runner.cleanup()
    with pytest.raises(Unavailable, match="stopping"):
        await app[COMMIT].submit(parse(wire(delivery(said("m_1", "late"))), datetime.now(UTC)))
    assert count(owner, "contact_interaction_events") == 0


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_CANCEL_AGAIN_SECONDS", 0.02)
    waits, lost = asyncio.Event(), 0

    async def deaf_twice() -> None:
        nonlocal lost
        while lost < 2:
            try:
                waits.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf_twice())
    await waits.wait()
    async with asyncio.timeout(30):
        await tasks.end(task)
    assert task.cancelled()
    assert lost == 2


async def test_a_service_that_ends_while_it_begins_ends(configure: Any, database: Any) -> None:
    """Its tasks are then in the middle of getting their first connection."""
    for turns in range(0, 60, 2):
        app = create_app(configure(), database.service_url)
        runner = await serve(app, "127.0.0.1", 0)
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await runner.cleanup()
