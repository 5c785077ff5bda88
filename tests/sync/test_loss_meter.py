"""The loss meter against a simulator that loses webhooks: it counts those, no others, while they are lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from convsync.sync.runner import SyncRunner
from sync.application import API_KEY, ended, service
from sync.world import FastTime, World, open_world

KINDS = ["text", "echo", "attachment", "sticker", "reply", "new_person"]
FIELDS = ["messages", "message_echoes"]


async def lost(world: World) -> int:
    hours = await world.store.webhook_losses(
        page_id=world.page_id, since=datetime.now(UTC) - timedelta(days=1)
    )
    return sum(hour.received + hour.sent for hour in hours)


async def synced(world: World, runner: SyncRunner, mode: str) -> None:
    begun = await runner.start(world.page_id, mode)
    assert (await ended(world, begun.run_id))["status"] == "succeeded"


async def test_losses_are_the_withheld_webhooks_and_late_ones_come_off_again(
    database: Any, tmp_path: Path
) -> None:
    clock = FastTime(1)
    async with open_world(database, clock=clock) as world, service(world, tmp_path) as (address, runner):
        await synced(world, runner, "full")
        # Since a minute: Graph tells whole seconds, and what began in the very second is not counted.
        await world.owner.execute("update convsync.pages set subscribed_at = now() - interval '1 minute'")
        webhooks = world.simulator.webhooks
        delayed = webhooks.faults.add("delay", seconds=3600.0, fields=FIELDS, times=7)
        withheld = webhooks.faults.add("lose", fields=FIELDS, share=0.4)
        report = await world.simulator.traffic(60, seed=3, kinds=KINDS)
        told = 60 - withheld.hits
        assert 10 < withheld.hits < 50
        assert report.delivered == told - delayed.hits
        assert delayed.hits == 7

        assert await lost(world) == 0  # nobody has heard of them
        await synced(world, runner, "incremental")
        assert await lost(world) == 0  # they may still be on their way
        assert (await world.verdict()).clean
        clock.skip(minutes=16)
        assert await lost(world) == withheld.hits + delayed.hits

        await webhooks.settle()
        assert await lost(world) == withheld.hits
        await synced(world, runner, "full")
        assert await lost(world) == withheld.hits

        page = await world.store.get_page(page_id=world.page_id)
        assert page["webhook_losses"]["last_day"] == withheld.hits
        proof = page["certificate"]
        assert (proof["complete"], proof["whole"]) == (proof["conversations"], True)
        assert proof["conversations"] == len(world.simulator.population.conversations)
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with aiohttp.ClientSession(address, headers=headers) as client:
            await _http_tells_the_same(client, world, proof)


async def _http_tells_the_same(client: aiohttp.ClientSession, world: World, proof: dict[str, Any]) -> None:
    base = f"/api/pages/{world.page_id}"
    async with client.get(f"{base}/certificate") as answer:
        assert proof.items() <= (await answer.json()).items()
    seen: list[str] = []
    after = "0"
    while after is not None:
        async with client.get(f"{base}/certificate/conversations?limit=25&after={after}") as answer:
            part = await answer.json()
        seen += [one["conversation_id"] for one in part["conversations"]]
        after = part["next"]
    assert len(seen) == len(set(seen)) == proof["conversations"]
    async with client.get(f"{base}/certificate/conversations?incomplete=true") as answer:
        assert await answer.json() == {"conversations": [], "next": None}
    async with client.get(f"{base}/checksum") as answer:
        summed = await answer.json()
    assert summed["messages"] == await world.event_count()
    assert summed == summed | {
        key: value
        for key, value in (await world.store.mirror_checksum(page_id=world.page_id)).items()
        if key != "as_of"
    }
