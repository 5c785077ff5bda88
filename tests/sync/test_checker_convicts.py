"""The checker against a client with a planted bug: what it convicts, it does not share the code of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from convsync.graph import models, reading
from convsync.simulator.rules import GraphRules
from sync.world import World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    config = {"max_conversations_per_call": 10, "max_messages_per_call": 20}
    async with open_world(database, conversations=30, messages=15.0, **config) as world:
        yield world


async def test_without_a_bug_the_same_inbox_is_clean(world: World) -> None:
    assert (await world.sync()).status == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_client_that_ignores_the_next_of_nested_messages_is_convicted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long threads end where their first slice ends: the run thinks it succeeded, the checker does not."""
    original = reading._read_thread

    def cut(page_id: str, node: Any, *rest: Any) -> Any:
        if isinstance(node.messages, dict):
            node.messages = {"data": node.messages["data"]}
        return original(page_id, node, *rest)

    monkeypatch.setattr(reading, "_read_thread", cut)
    outcome = await world.sync()

    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    shown = [conversation.message_count for conversation in world.simulator.population.conversations]
    assert verdict.missing == sum(max(0, count - 20) for count in shown) > 0
    assert verdict.extra == 0


async def test_client_that_stops_after_the_first_page_of_the_list_is_convicted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if no answer had a `next`; its threads are read whole, but only the first ten of them."""
    monkeypatch.setattr(models.Paging, "has_next", property(lambda paging: False))
    monkeypatch.setattr(models.Paging, "after", property(lambda paging: None))
    outcome = await world.sync()

    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    assert await world.value("select count(*) from convsync.messenger_conversations") == 10
    # A missing conversation is one finding, each of its messages another.
    assert verdict.missing > 20
    assert not verdict.clean


async def test_client_that_drops_every_tenth_message_is_convicted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = reading._message, iter(range(1_000_000))

    def wrong(*arguments: Any) -> Any:
        fact = original(*arguments)
        return fact if next(seen) % 10 else reading._dead_letter(fact.page_id, "planted", {"at": next(seen)})

    monkeypatch.setattr(reading, "_message", wrong)
    assert (await world.sync()).status == "succeeded"
    verdict = await world.verdict()
    assert verdict.missing > 0


async def test_what_nobody_can_read_is_counted_and_a_claim_to_have_all_of_it_is_convicted(
    database: Any,
) -> None:
    """Only the 20 newest messages of a thread can be read, and some threads are listed to nobody."""
    rules = GraphRules(twenty_messages=frozenset({"messenger"}), requests=0.2)
    async with open_world(database, conversations=30, messages=15.0, graph=rules) as world:
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples
        assert verdict.hidden > 0
        assert verdict.unreadable > (await world.run_of(outcome))["unreadable"] > 0
        long = {one.thread_id for one in world.simulator.population.conversations if one.message_count > 20}
        known = await world.rows("select thread_id from convsync.messenger_conversations")
        incomplete = await world.rows(
            "select thread_id from convsync.messenger_conversations where history_complete_at is null"
        )
        assert {row["thread_id"] for row in incomplete} == long & {row["thread_id"] for row in known} != set()

        await world.owner.execute(
            "update convsync.messenger_conversations set history_complete_at = now() where thread_id = %s",
            [incomplete[0]["thread_id"]],
        )
        lied = await world.verdict()
        assert (lied.missing, lied.extra, lied.differing) == (0, 0, 1)
        assert "complete" in lied.examples[0]["detail"]
