"""The log of a service as machines read it: whose each line of a sync is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from faults.processes import API_KEY, Commands, commands
from sync.world import World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, conversations=10, messages=4.0, max_conversations_per_call=5) as world:
        yield world


@pytest.fixture
async def cli(world: World, tmp_path: Path) -> AsyncIterator[Commands]:
    async with commands(world, tmp_path, CONVSYNC_LOG_FORMAT="json") as running:
        yield running


async def test_each_line_of_a_sync_has_the_request_the_run_and_the_page(cli: Commands, world: World) -> None:
    world.simulator.faults.add("/conversations", "error", name="service", times=2)
    service = await cli.start(
        "serve", "--port", "0", CONVSYNC_SYNC_INTERVAL="0", CONVSYNC_RECONCILE_INTERVAL="0"
    )
    address = (await service.line("convsync ")).split()[-1]
    headers = {"Authorization": f"Bearer {API_KEY}", "X-Request-ID": "r-42"}
    body = {"page_id": world.page_id, "mode": "full"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{address}api/conversations/sync?wait=60", json=body) as answer,
    ):
        run = await answer.json()
    assert run["status"] == "succeeded", service.errors()
    service.signal(15)
    assert await service.wait() == 0

    lines = [json.loads(line) for line in service.errors().splitlines()]
    assert all(
        {"timestamp", "level", "event", "request_id", "run_id", "page_id"} <= line.keys() for line in lines
    )
    of_the_sync = [line for line in lines if line["run_id"] is not None]
    assert {"sync_begun", "graph_call_failed", "sync_ended"} <= {line["event"] for line in of_the_sync}
    assert {(line["request_id"], line["run_id"], line["page_id"]) for line in of_the_sync} == {
        ("r-42", run["run_id"], world.page_id)
    }
