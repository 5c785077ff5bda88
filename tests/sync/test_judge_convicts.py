"""The judge of what runs claim, against planted claims: each is convicted, and the honest ones are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sync.claims import judge
from sync.world import World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(
        database, conversations=20, max_conversations_per_call=5, max_messages_per_call=10
    ) as world:
        yield world


def longest(world: World, number: int = 1) -> list[str]:
    """The ids of the longest threads."""
    by_length = sorted(world.simulator.population.conversations, key=lambda one: -one.message_count)
    return [one.thread_id for one in by_length[:number]]


async def forget_newest(world: World, thread_id: str) -> None:
    """As if a bug had lost it: the count is right for what is there."""
    await world.owner.execute(
        """
        with gone as (
          delete from convsync.contact_interaction_events where (page_id, message_id) in (
            select e.page_id, e.message_id from convsync.contact_interaction_events e
            join convsync.messenger_conversations c using (page_id, conversation_id)
            where c.thread_id = %s order by e.event_timestamp desc limit 1)
          returning page_id, conversation_id)
        update convsync.messenger_conversations c set message_count = message_count - 1
        from gone where c.page_id = gone.page_id and c.conversation_id = gone.conversation_id
        """,
        [thread_id],
    )


async def test_message_lost_under_a_run_that_succeeded_is_convicted(world: World) -> None:
    outcome = await world.sync()
    told = await judge(world, world.page_id, outcome.run_id)
    assert (told.run["status"], told.complaints, told.lacking) == ("succeeded", [], set())

    (thread,) = longest(world)
    await forget_newest(world, thread)

    told = await judge(world, world.page_id, outcome.run_id)
    assert told.lacking == {thread}
    called, whole, succeeded = told.complaints
    assert called == f"{thread} is called complete"
    assert whole == f"the Page is called whole without ['{thread}']"
    assert succeeded.startswith("succeeded, and the mirror differs")


async def test_partial_run_that_names_one_thread_too_few_or_too_many_is_convicted(world: World) -> None:
    named, other = longest(world, 2)
    world.simulator.faults.add(f"/{named}/messages", "error", code=2)
    outcome = await world.sync()
    told = await judge(world, world.page_id, outcome.run_id)
    assert (told.run["status"], told.complaints, told.lacking) == ("partial", [], {named})

    await forget_newest(world, other)
    told = await judge(world, world.page_id, outcome.run_id)
    assert f"in no failed batch: {other}" in told.complaints

    world.simulator.faults.clear()
    assert (await world.sync()).status == "succeeded"
    told = await judge(world, world.page_id, outcome.run_id)
    assert told.complaints == [f"in a failed batch without need: {named}"]


async def test_run_that_has_not_ended_is_no_end(world: World) -> None:
    begun = await world.store.begin_sync(page_id=world.page_id, mode="full", owner="test", lease_seconds=300)
    assert (await judge(world, world.page_id, begun.run_id)).complaints == ["no end: running, None"]
