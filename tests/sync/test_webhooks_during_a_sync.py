"""Webhooks and the walk at the same time, through the whole service: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from convsync.errors import AlreadyRunning
from convsync.simulator.config import DEFAULT_APP_SECRET
from convsync.simulator.webhooks import signatures
from sync.application import API_KEY, ended, service
from sync.world import World, open_world

SMALL_ANSWERS = {"max_conversations_per_call": 4, "max_messages_per_call": 20}


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, messages=10.0, **SMALL_ANSWERS) as world:
        yield world


async def test_messages_that_come_by_webhook_during_the_walk_are_there_once(
    world: World, tmp_path: Path
) -> None:
    """Each is on its way while the walk reads the very thread it belongs to, or one it has left."""
    async with service(world, tmp_path) as (_, runner), asyncio.TaskGroup() as group:
        kinds = ["text", "echo", "new_person", "attachment", "sticker", "reply", "postback"]

        def happen(number: int, call: Any) -> None:
            if number % 3 == 0 and number < 40:
                group.create_task(world.simulator.traffic(2, seed=number, kinds=kinds))

        world.on_call(happen)
        begun = await runner.start(world.page_id, "full")
        run = await ended(world, begun.run_id)
        assert run["status"] == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    assert verdict.messages == world.simulator.population.message_total()
    by_source = await world.rows(
        "select source, count(*) as n from convsync.contact_interaction_events where in_thread group by 1"
    )
    assert {row["source"] for row in by_source} == {"webhook", "sync"}
    assert sum(row["n"] for row in by_source) == verdict.messages


async def test_webhooks_told_again_and_read_again_change_nothing(world: World, tmp_path: Path) -> None:
    """Delivered, synced, delivered once more and synced once more: each message is one event."""
    async with service(world, tmp_path) as (_, runner):
        report = await world.simulator.traffic(20, seed=5, kinds=["text", "echo", "sticker"])
        assert report.delivered == 20
        first = await runner.start(world.page_id, "full")
        assert (await ended(world, first.run_id))["status"] == "succeeded"
        events, versions = await world.event_count(), await world.versions()

        async with aiohttp.ClientSession() as client:
            for delivery in list(world.simulator.webhooks.deliveries):
                again = await client.post(
                    world.simulator.webhooks.url or "",
                    data=delivery.body,
                    headers=_signed(delivery.body),
                )
                assert again.status == 200
        second = await runner.start(world.page_id, "full")
        assert (await ended(world, second.run_id))["messages_added"] == 0

    assert await world.event_count() == events
    assert await world.versions() == versions
    assert (await world.verdict()).clean


async def test_second_start_while_one_runs_is_refused_with_the_run_that_runs(
    world: World, tmp_path: Path
) -> None:
    async with service(world, tmp_path) as (address, runner):
        held = asyncio.Event()
        world.simulator.faults.add("", "delay", seconds=0.05)
        world.on_call(lambda number, _: held.set() if number >= 3 else None)
        begun = await runner.start(world.page_id, "full")
        await asyncio.wait_for(held.wait(), 30)
        with pytest.raises(AlreadyRunning) as refused:
            await runner.start(world.page_id, "full")
        assert refused.value.run_id == begun.run_id
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as client:
            answer = await client.post(
                f"{address}/api/conversations/sync", json={"page_id": world.page_id, "mode": "full"}
            )
            problem = await answer.json()
            assert (answer.status, problem["code"]) == (409, "sync_running")
            assert problem["run_id"] == str(begun.run_id)
        assert (await ended(world, begun.run_id))["status"] == "succeeded"
    assert await world.value("select count(*) from convsync.sync_runs") == 1


def _signed(body: bytes) -> dict[str, str]:
    return {"Content-Type": "application/json", **signatures(DEFAULT_APP_SECRET, body)}
