"""The checker against a client with a planted bug: what it convicts, it does not share the code of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from convsync.graph import models, reading
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
