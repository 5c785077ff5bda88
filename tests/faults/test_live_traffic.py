"""Fifty messages a second while the list is walked, webhooks lost, doubled and in another order: after the
grace time one reconcile makes the mirror equal, and the loss meter has counted what never came.

What Graph does not return (watermarks, button presses without a message, the payload of a reply) can be known
only from webhooks that came: of these all, of the others none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from convsync.simulator.config import LifePlan
from sync.application import service
from sync.world import FastTime, World, open_world

MESSAGES_PER_SECOND = 50.0
MESSAGES = {"text": 20, "echo": 16, "new_person": 3, "attachment": 3, "sticker": 2, "reply": 3}
MESSAGES |= {"quick_reply": 2, "postback": 2}
OTHERS = {"edit": 4, "agent_edit": 2, "reaction": 5, "agent_reaction": 2, "silent_unsend": 3}
OTHERS |= {"read": 3, "delivery": 3, "postback_without_mid": 2, "referral": 1}
RATE = MESSAGES_PER_SECOND * (1 + sum(OTHERS.values()) / sum(MESSAGES.values()))
ALL_OF_IT = 3 * 365 * 86400.0
"""Edits, reactions and unsends here are of messages of any age; a reconcile reads again what it is told."""


@dataclass(slots=True)
class Told:
    """What the deliveries that were taken said."""

    message_ids: set[str] = field(default_factory=set)
    payloads: dict[str, str] = field(default_factory=dict)
    watermarks: dict[tuple[str, str], int] = field(default_factory=dict)
    besides: set[tuple[str, str, int]] = field(default_factory=set)
    """Kind, person and time of what is no message."""


def told(world: World) -> Told:
    found = Told()
    for delivery in world.simulator.webhooks.deliveries:
        if delivery.delivered:
            for event in _events(delivery.body):
                _note(found, event)
    return found


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for entry in json.loads(body)["entry"]:
        yield from entry["messaging"]


def _note(found: Told, event: dict[str, Any]) -> None:
    person = event["sender"]["id"]
    if message := event.get("message"):
        found.message_ids.add(message["mid"])
        if "quick_reply" in message:
            found.payloads[message["mid"]] = message["quick_reply"]["payload"]
    elif (postback := event.get("postback")) and "mid" in postback:
        found.message_ids.add(postback["mid"])
        found.payloads[postback["mid"]] = postback["payload"]
    elif "postback" in event or "referral" in event:
        kind = "postback" if "postback" in event else "referral"
        found.besides.add((kind, person, event["timestamp"]))
    else:
        for kind in {"read", "delivery"} & event.keys():
            key = (kind, person)
            found.watermarks[key] = max(found.watermarks.get(key, 0), event[kind]["watermark"])


async def assert_reactions_equal(world: World) -> int:
    """Of each message in the mirror those that Graph shows; how many there are."""
    rows = await world.rows(
        """select e.message_id, r ->> 'actor' as actor, r ->> 'reaction' as reaction
           from convsync.contact_interaction_events e, jsonb_array_elements(e.metadata -> 'reactions') r
           where e.deleted_at is null"""
    )
    stored = {(row["message_id"], row["actor"], row["reaction"]) for row in rows}
    population = world.simulator.population
    truth = set()
    for thread in population.iterate():
        people = {"page": world.page_id, "person": thread.customer_id}
        for message in population.visible_messages(thread):
            truth |= {(message.message_id, people[who], what) for who, what in message.reactions}
    truth = {one for one in truth if one[1] is not None}
    assert stored == truth
    return len(truth)


async def assert_told_by_webhooks_alone(world: World, known: Told) -> None:
    """What Graph cannot say is known of the webhooks that came, and of no others."""
    rows = await world.rows(
        """select message_id, metadata -> 'webhook' as webhook from convsync.contact_interaction_events
           where in_thread and metadata ? 'webhook'"""
    )
    assert {row["message_id"] for row in rows} == known.message_ids
    payloads = {}
    for row in rows:
        answer = row["webhook"].get("quick_reply", row["webhook"])
        if "payload" in answer:
            payloads[row["message_id"]] = answer["payload"]
    assert payloads == known.payloads

    rows = await world.rows(
        """select e.event_type, c.sender_id, (extract(epoch from e.event_timestamp) * 1000)::bigint as at
           from convsync.contact_interaction_events e
           join convsync.messenger_conversations c using (page_id, conversation_id) where not e.in_thread"""
    )
    assert sorted((row["event_type"], row["sender_id"], row["at"]) for row in rows) == sorted(known.besides)

    rows = await world.rows(
        """select sender_id, (extract(epoch from read_watermark) * 1000)::bigint as read,
             (extract(epoch from delivered_watermark) * 1000)::bigint as delivery
           from convsync.messenger_conversations"""
    )
    stored = {(kind, row["sender_id"]): row[kind] for row in rows for kind in ("read", "delivery")}
    assert {key: at for key, at in stored.items() if at is not None} == known.watermarks


async def assert_losses_are_the_withheld(world: World, known: Told, since_ms: int) -> tuple[int, int]:
    """The loss meter against what was written meanwhile, is still there, was never told: received, sent."""
    population = world.simulator.population
    withheld = {
        message.message_id: message.outbound
        for thread in population.iterate()
        for message in population.visible_messages(thread)
        if message.created_ms >= since_ms and message.message_id not in known.message_ids
    }
    sent = sum(withheld.values())
    hours = await world.store.webhook_losses(
        page_id=world.page_id, since=datetime.now(UTC) - timedelta(days=1)
    )
    assert (sum(hour.received for hour in hours), sum(hour.sent for hour in hours)) == (
        len(withheld) - sent,
        sent,
    )
    rows = await world.rows(
        """select message_id from convsync.webhook_losses
           join convsync.contact_interaction_events e using (page_id, message_id)
           where e.deleted_at is null"""
    )
    assert {row["message_id"] for row in rows} == withheld.keys()
    return len(withheld) - sent, sent


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.faults)])
async def test_after_live_traffic_and_the_grace_one_reconcile_makes_the_mirror_equal(
    database: Any, tmp_path: Path, seconds: int
) -> None:
    clock = FastTime(1)
    inbox: dict[str, Any] = {
        "conversations": 120,
        "messages": 12.0,
        "max_conversations_per_call": 4,
        "max_messages_per_call": 50,
        "now": datetime.now(UTC) - timedelta(hours=1),
    }
    async with open_world(database, clock=clock, **inbox) as world, service(world, tmp_path):
        await world.owner.execute("update convsync.pages set subscribed_at = now() - interval '1 minute'")
        simulator, webhooks = world.simulator, world.simulator.webhooks
        planted = [
            webhooks.faults.add("lose", share=0.05),
            webhooks.faults.add("duplicate", share=0.1),
            webhooks.faults.add("reorder", share=0.5, window=8),
        ]
        things = round(seconds * RATE)
        since_ms = int(datetime.now(UTC).timestamp() * 1000)
        simulator.life.begin(LifePlan(RATE, seed=5, kinds=MESSAGES | OTHERS, count=things))
        played = simulator.life.played[world.page_id]
        # The list alone has thirty pages: traffic goes on during the walk, however quick the machine is.
        simulator.faults.add("", "delay", seconds=seconds / 60)
        while not played.total():  # noqa: ASYNC110 - the first thing is a moment away
            await asyncio.sleep(0.01)
        async with asyncio.timeout(seconds + 300):
            before = played.total()
            assert (await world.runner().run(world.page_id, "full")).status == "succeeded"
            during = played.total() - before
            await simulator.life.finished()
            await webhooks.settle()
        assert during > things / 4
        assert all(fault.hits for fault in planted)
        assert webhooks.failing == 0

        simulator.faults.clear()
        assert not (await world.verdict()).clean
        clock.skip(minutes=20)
        outcome = await world.sync("reconcile", depth_seconds=ALL_OF_IT)

        assert outcome.status == "succeeded"
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples
        assert (verdict.unreadable, verdict.hidden, verdict.attachments_unchecked) == (0, 0, 0)
        known = told(world)
        reactions = await assert_reactions_equal(world)
        assert reactions > 0
        await assert_told_by_webhooks_alone(world, known)
        received, sent = await assert_losses_are_the_withheld(world, known, since_ms)
        assert received > 0 < sent
        run = await world.run_of(outcome)
        print(  # noqa: T201
            f"{things} things, {during} of them during the walk; hits {[fault.hits for fault in planted]}; "
            f"{verdict.messages} messages and {reactions} reactions equal; lost {received} received, "
            f"{sent} sent; reconcile {run['calls']} calls"
        )
