"""What is removed at Graph and told by nobody: found by the next read of it, and never found by mistake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation
from sync.world import FastTime, World, open_world

HOUR_AGO = timedelta(hours=1)
SMALL_ANSWERS = {"max_conversations_per_call": 10, "max_messages_per_call": 20}


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    """40 conversations that a full sync has read. The newest message is an hour old."""
    past = {"now": datetime.now(UTC) - HOUR_AGO}
    async with open_world(
        database, clock=FastTime(1), conversations=40, messages=30.0, **SMALL_ANSWERS, **past
    ) as world:
        assert (await world.sync()).status == "succeeded"
        yield world


def threads(world: World) -> list[Conversation]:
    """The conversations of ordinary people, longest first."""
    ordinary = [one for one in world.simulator.population.conversations if one.kind == "normal"]
    return sorted(ordinary, key=lambda one: -one.message_count)


def messages(world: World, conversation: Conversation) -> list[Message]:
    """What Graph shows of a thread, newest first."""
    return world.simulator.population.visible_messages(conversation)[::-1]


async def deleted(world: World) -> set[str]:
    found = await world.rows(
        "select message_id from convsync.contact_interaction_events where deleted_at is not null"
    )
    return {row["message_id"] for row in found}


async def assert_exact(world: World) -> None:
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


# --- messages


@pytest.mark.parametrize("mode", ["full", "reconcile"])
async def test_a_message_that_was_taken_back_without_a_webhook_is_found(world: World, mode: str) -> None:
    """Anywhere in a thread: first, last, at the edges of the pages, several of one thread, all of one."""
    population, long = world.simulator.population, threads(world)[0]
    assert long.message_count > 60
    listed = messages(world, long)
    removed = {listed[n].message_id for n in (0, 7, 19, 20, 21, 39, 40, len(listed) - 1)}
    short = threads(world)[-1]
    removed |= {message.message_id for message in messages(world, short)}
    for message_id in removed:
        population.unsend(message_id)
    before = await world.versions()
    if mode == "reconcile":
        # Its rolling share comes to every thread in time; here all are due at once.
        await world.owner.execute(
            "update convsync.thread_proofs set full_read_at = full_read_at - interval '31 days'"
        )

    outcome = await world.sync(mode)

    assert outcome.status == "succeeded"
    assert await deleted(world) == removed
    await assert_exact(world)
    changed = {key for key, version in (await world.versions()).items() if version != before[key]}
    feed = await world.rows(
        """select conversation_id, kinds from convsync.conversation_changes
           where version > 1 and conversation_id = any (%(changed)s) and kinds && '{absence}'""",
        changed=list(changed),
    )
    assert {row["conversation_id"] for row in feed} == changed
    assert len(changed) == 2
    await world.sync(mode)
    assert await deleted(world) == removed


async def test_an_incremental_sync_finds_those_among_the_newest_of_a_thread(world: World) -> None:
    population = world.simulator.population
    newest = max(threads(world), key=lambda one: one.key)
    listed = messages(world, newest)
    assert len(listed) > 2
    population.unsend(listed[1].message_id)

    outcome = await world.sync("incremental")

    assert outcome.status == "succeeded"
    assert await deleted(world) == {listed[1].message_id}
    await assert_exact(world)


async def test_a_message_that_is_there_again_comes_back(world: World) -> None:
    population = world.simulator.population
    conversation = threads(world)[3]
    message = messages(world, conversation)[1]
    population.unsend(message.message_id)
    await world.sync()
    assert await deleted(world) == {message.message_id}

    message.deleted = False
    conversation.message_count += 1
    await world.sync()

    assert await deleted(world) == set()
    await assert_exact(world)


async def test_the_last_minutes_of_a_thread_are_left_to_the_next_sync(world: World) -> None:
    """A list may be a little behind: what was told a moment ago and is not in it yet is not gone."""
    population = world.simulator.population
    conversation = threads(world)[3]
    written = population.new_message(conversation, "in", "Is anybody there?")[1]
    await world.sync("incremental")
    population.unsend(written.message_id)

    await world.sync()
    assert await deleted(world) == set()

    assert world.clock is not None
    world.clock.skip(minutes=10)
    await world.sync()
    assert await deleted(world) == {written.message_id}
    await assert_exact(world)


FAULTS: dict[str, list[dict[str, Any]]] = {
    "short pages of threads": [{"match": "/messages", "action": "short_page", "limit": 3}],
    "short pages of everything": [{"match": "/conversations|/messages", "action": "short_page", "limit": 2}],
    "empty pages": [{"match": "/messages", "action": "empty_page", "times": 3}],
    "an empty list": [{"match": "/conversations", "action": "empty_page", "times": 2}],
    "items without id": [{"match": "/messages", "action": "drift", "kinds": ["no_id"], "item": 4}],
    "values of another kind": [{"match": "/messages|/conversations", "action": "drift", "kinds": ["nulls"]}],
    "unwrapped lists": [{"match": "/messages|/conversations", "action": "drift", "kinds": ["unwrapped"]}],
    "dead cursors": [{"match": "after=", "action": "dead_cursor", "times": 2}],
    "no list beyond an item": [{"match": "/messages", "action": "too_deep", "items": 40}],
    "a list in no order": [{"match": "/conversations", "action": "unordered"}],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["full", "incremental"])
async def test_no_fault_of_graph_deletes_a_message(world: World, mode: str, fault: str) -> None:
    for planted in FAULTS[fault]:
        world.simulator.faults.plant(planted)
    await world.sync(mode)
    assert await deleted(world) == set()
    world.simulator.faults.clear()
    await world.sync()
    assert await deleted(world) == set()
    await assert_exact(world)
