"""The database really stops: nothing is claimed that is not stored, and everything goes on when it is back.

These tests have a server of their own, a durable one: so readiness can be whole here, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from http_support import (
    API_KEYS,
    APP_SECRET,
    OPERATOR,
    TOKEN_KEY,
    VERIFY_TOKEN,
    Owner,
    Sent,
    Service,
    count,
    delivery,
    eventually,
    problem,
    said,
    sent_events,
    signature,
    wire,
)
from psycopg.rows import dict_row
from pydantic import SecretStr

from convsync.database.embedded import EmbeddedPostgres
from convsync.settings import Settings
from convsync.simulator import Simulator
from convsync.web import sse
from convsync.web.app import create_app
from own_server import LOGIN, install, own_server


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedPostgres]:
    with own_server() as server:
        yield server


@pytest.fixture
async def away(own: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    """The running server with an empty, migrated database."""
    await asyncio.to_thread(own.start)
    with psycopg.connect(own.url("postgres", "postgres"), autocommit=True) as connection:
        connection.execute("drop database if exists convsync with (force)")
        connection.execute("create database convsync owner convsync_owner")
    await install(own)
    yield own
    await asyncio.to_thread(own.start)


def owner_of(server: EmbeddedPostgres) -> Owner:
    return psycopg.connect(server.owner_url, autocommit=True, row_factory=dict_row)


def settings(server: EmbeddedPostgres, graph_url: str) -> Settings:
    return Settings(
        _env_file=None,
        database_url=SecretStr(server.service_url(LOGIN)),
        app_secret=SecretStr(APP_SECRET),
        verify_token=SecretStr(VERIFY_TOKEN),
        api_keys=SecretStr(API_KEYS),
        token_key=SecretStr(TOKEN_KEY),
        graph_url=graph_url,
        calls_per_second=0,
    )


async def test_a_delivery_while_the_database_is_stopped_is_refused_and_stored_once_after_its_return(
    away: EmbeddedPostgres, aiohttp_client: Any
) -> None:
    app = create_app(settings(away, "http://127.0.0.1:1"), away.service_url(LOGIN))
    service = Service(await aiohttp_client(app), app)

    async def ready() -> bool | None:
        status, _ = await service.call("GET", "/readyz", key="")
        return True if status == 200 else None

    assert await eventually(ready)
    status, document = await service.call("GET", "/readyz", key="")
    checks = {"database": True, "durable": True, "schema": True, "serving": True}
    assert (status, document) == (200, {"status": "ready", "checks": checks})
    assert await service.deliver(delivery(said("m_before", "before"))) == 200

    await asyncio.to_thread(away.stop)
    assert not away.running()
    body = wire(delivery(said("m_during", "during")))
    headers = {"X-Hub-Signature-256": signature(body)}

    async def refused() -> None:
        async with service.client.post("/api/webhook", data=body, headers=headers) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            problem(await answer.json(), 503, "database_unavailable")

    async def not_ready() -> None:
        status, document = await service.call("GET", "/readyz", key="")
        assert (status, document["checks"]["database"], document["checks"]["serving"]) == (503, False, True)
        assert (await service.call("GET", "/healthz", key=""))[0] == 200

    async def unavailable() -> None:
        async with service.client.get("/api/pages", headers=OPERATOR) as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers
            problem(await answer.json(), 503, "database_unavailable")

    await asyncio.gather(refused(), refused(), not_ready(), unavailable())

    await asyncio.to_thread(away.start)

    async def taken() -> bool | None:
        status, _ = await service.deliver_bytes(body)
        assert status in (200, 503)
        return True if status == 200 else None

    assert await eventually(taken, patience=120)
    assert await service.deliver_bytes(body) == (200, b"EVENT_RECEIVED")
    with owner_of(away) as owner:
        assert count(owner, "contact_interaction_events", "message_id = 'm_during'") == 1
        assert count(owner, "contact_interaction_events") == 2
        assert count(owner, "messenger_conversations", "message_count = 2") == 1
        assert count(owner, "dead_letters") == 0
    assert await eventually(ready)


async def test_a_service_that_starts_before_its_database_answers_and_then_works(
    away: EmbeddedPostgres, aiohttp_client: Any
) -> None:
    url = away.service_url(LOGIN)
    await asyncio.to_thread(away.stop)
    app = create_app(settings(away, "http://127.0.0.1:1"), url)
    service = Service(await aiohttp_client(app), app)
    assert (await service.call("GET", "/healthz", key=""))[0] == 200
    document = delivery(said("m_1", "early"))
    assert await service.deliver(document) == 503
    await asyncio.to_thread(away.start)

    async def taken() -> bool | None:
        return True if await service.deliver(document) == 200 else None

    assert await eventually(taken, patience=120)
    with owner_of(away) as owner:
        assert count(owner, "contact_interaction_events") == 1


async def test_a_sync_and_those_who_watch_it_outlive_a_restart_of_the_database(
    away: EmbeddedPostgres,
    simulator: Simulator,
    gate: Any,
    aiohttp_client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.02)
    app = create_app(settings(away, simulator.url), away.service_url(LOGIN))
    service = Service(await aiohttp_client(app), app)
    page_id = simulator.page.page_id

    async def added() -> bool | None:
        body = {"page_id": page_id, "token": simulator.page.token}
        return True if (await service.call("POST", "/api/pages", body))[0] == 201 else None

    assert await eventually(added)
    gate.shut(after=1)
    async with service.client.post(
        "/api/conversations/sync-stream", json={"page_id": page_id}, headers=OPERATOR
    ) as answer:
        assert answer.status == 200
        events = sent_events(answer)
        await gate.reached.wait()
        first = await anext(one async for one in events if isinstance(one, Sent))
        await asyncio.to_thread(away.stop)
        # A comment is what a reader hears while the database is away.
        assert await anext(one async for one in events if isinstance(one, str))
        await asyncio.to_thread(away.start)
        gate.open()
        rest = [one async for one in events if isinstance(one, Sent)]
    done = rest[-1]
    assert (done.event, done.data["run_id"]) == ("done", first.data["run_id"])
    run = done.data
    if run["status"] == "paused":  # its lease was over before the database was back: somebody goes on with it
        run = await service.ended(run["run_id"])
    assert run["status"] == "succeeded"
    with owner_of(away) as owner:
        total = count(owner, "contact_interaction_events")
    assert total == simulator.population.message_total()
