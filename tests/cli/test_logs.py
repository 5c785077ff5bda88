"""The log of a service as machines read it: whose each line of a sync is, and what of it goes to Sentry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from faults.processes import API_KEY, Commands, Process, commands
from secrets_hunt import marked
from sentry_receiver import DSN_KEY, Receiver
from sync.world import World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, conversations=10, messages=4.0, max_conversations_per_call=5) as world:
        yield world


@pytest.fixture
async def cli(world: World, tmp_path: Path) -> AsyncIterator[Commands]:
    async with commands(world, tmp_path, CONVSYNC_LOG_FORMAT="json") as running:
        yield running


async def synced(cli: Commands, **environment: str) -> tuple[dict[str, Any], Process]:
    """A full sync that was begun by HTTP as `r-42`, and the service that carried it, which has ended."""
    alone = {"CONVSYNC_SYNC_INTERVAL": "0", "CONVSYNC_RECONCILE_INTERVAL": "0"}
    service = await cli.start("serve", "--port", "0", **alone, **environment)
    address = (await service.line("convsync ")).split()[-1]
    headers = {"Authorization": f"Bearer {API_KEY}", "X-Request-ID": "r-42"}
    body = {"page_id": cli.world.page_id, "mode": "full"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{address}api/conversations/sync?wait=60", json=body) as answer,
    ):
        run = await answer.json()
    service.signal(15)
    assert await service.wait() == 0
    return run, service


async def test_each_line_of_a_sync_has_the_request_the_run_and_the_page(cli: Commands, world: World) -> None:
    world.simulator.faults.add("/conversations", "error", name="service", times=2)
    run, service = await synced(cli)
    assert run["status"] == "succeeded", service.errors()

    lines = [json.loads(line) for line in service.errors().splitlines()]
    assert all(
        {"timestamp", "level", "event", "request_id", "run_id", "page_id"} <= line.keys() for line in lines
    )
    of_the_sync = [line for line in lines if line["run_id"] is not None]
    assert {"sync_begun", "graph_call_failed", "sync_ended"} <= {line["event"] for line in of_the_sync}
    assert {(line["request_id"], line["run_id"], line["page_id"]) for line in of_the_sync} == {
        ("r-42", run["run_id"], world.page_id)
    }


async def test_an_error_of_a_sync_reaches_sentry_with_its_ids_and_without_what_was_said(
    cli: Commands, world: World
) -> None:
    said, token = "do you still have the red bicycle", marked("EAAtoken")
    message = f"(#100) Invalid parameter: {said}, {token}"
    world.simulator.faults.add("/conversations", "error", code=100, message=message, http=400)
    with Receiver() as receiver:
        run, service = await synced(cli, CONVSYNC_SENTRY_DSN=receiver.dsn)
    assert run["status"] != "succeeded"
    assert said in service.errors()  # else there was nothing to keep back
    failed = [event for event in receiver.events() if event["tags"]["event"] == "sync_batch_failed"]
    assert failed, service.errors()
    assert failed[0]["tags"] == {
        "event": "sync_batch_failed",
        "request_id": "r-42",
        "run_id": run["run_id"],
        "page_id": world.page_id,
    }
    assert failed[0]["extra"]["error"]["code"] == 100
    for envelope in receiver.raw:
        told = envelope.partition(b"\n")[2]
        for secret in (said, token, DSN_KEY, API_KEY, world.simulator.page.token):
            assert secret.encode() not in told
