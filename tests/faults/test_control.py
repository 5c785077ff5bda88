"""Each flaw as a scenario, played to convsync and to the algorithm it replaces; one judge for both.

convsync has to pass, and the control has to fail: a scenario that the old way survives would prove nothing.
The numbers are those of docs/flaws.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from convsync.simulator.verdict import Verdict
from db.old_algorithm import OldSystem
from faults.old_sync import Control, Convsync, EventsEachTime, System
from sync.world import LIST_CALL, World, open_world

# Seven ordinary people, two to a page of the list: nobody without id, which the old code dies of (7).
INBOX: dict[str, Any] = {"conversations": 7, "max_conversations_per_call": 2}
Complaints = list[str]
Scenario = Callable[[System, World], Awaitable[Complaints]]


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, messages=6.0, **INBOX) as world:
        yield world


def findings(verdict: Verdict, *kinds: str) -> Complaints:
    return [f"{kind} {getattr(verdict, kind)}" for kind in kinds if getattr(verdict, kind)]


async def overtaken_by_a_webhook(system: System, world: World) -> Complaints:
    """1: a page was fetched, a message comes, then the page is written. T1 to T5 of the report."""
    newest = max(world.simulator.population.conversations, key=lambda one: one.key)

    async def customer_writes() -> None:
        told = world.simulator.population.new_message(newest, "in", "and one more thing")
        await system.webhook(*told)

    assert await system.sync(customer_writes)
    return findings(await system.verdict(), "missing", "extra", "differing")


async def nothing_is_new(system: System, world: World) -> Complaints:
    """2: where nothing has changed, nothing is read but the proof of it."""
    assert await system.sync()
    before = world.calls()
    assert await system.sync_what_is_new()
    calls = world.calls() - before
    return [] if calls == 1 else [f"{calls} calls"]


async def halves_are_left(system: System, world: World) -> Complaints:
    """3: the events cannot be stored; then their conversations are not there either."""
    await system.refuse_events()
    await system.sync()
    return [f"{person} without messages" for person, (_, ids) in (await system.mirrored()).items() if not ids]


async def events_are_optional(system: System, world: World) -> Complaints:
    """4: the events cannot be stored; nobody may call that a success."""
    await system.refuse_events()
    return ["success was claimed"] if await system.sync() else []


async def told_to_wait(system: System, world: World) -> Complaints:
    """6 and 22: Graph says to wait, and somebody asks for another sync: nobody calls until it is over."""
    world.simulator.faults.add(LIST_CALL, "block", name="messenger_limit", after=1, times=1, seconds=600)
    for _ in range(2):
        await system.sync_for_a_moment()
    totals = world.simulator.calls.totals()[world.page_id]
    assert totals["errors"] > 0, "it was said"
    return [f"{totals['blocked']} calls while told to wait"] if totals["blocked"] else []


async def mirrored_whole(system: System) -> Complaints:
    """A sync claims success, and everything is mirrored as it is."""
    try:
        claimed = await system.sync()
    except Exception as error:
        return [f"the sync died of {type(error).__name__}"]
    complaints = findings(await system.verdict(), "missing", "extra", "differing")
    return complaints if claimed else ["no success was claimed"]


async def somebody_without_id(system: System, world: World) -> Complaints:
    """7: a deleted account among the participants costs nobody else anything."""
    deleted = world.simulator.population.conversations[5]
    deleted.kind = "no_id"
    world.simulator.population.hold(deleted)
    return await mirrored_whole(system)


async def only_by_webhook(system: System, world: World) -> Complaints:
    """15 and 16: what a webhook tells is an event of its conversation; no sync has to bring it."""
    conversation = world.simulator.population.conversations[0]
    told = world.simulator.population.new_message(conversation, "in", "are you open today?")
    await system.webhook(*told)
    _, ids = (await system.mirrored())[conversation.psid]
    return [] if ids == [told[1].message_id] else [f"events: {ids}"]


async def counted(system: System, world: World) -> Complaints:
    """19: as many as there are, whether a sync or a webhook brought them."""
    assert await system.sync()
    told = world.simulator.population.new_message(
        world.simulator.population.conversations[0], "in", "one more"
    )
    await system.webhook(*told)
    mirrored = await system.mirrored()
    return [
        f"{count} counted of {one.message_count}"
        for one in world.simulator.population.conversations
        if (count := mirrored[one.psid][0]) != one.message_count
    ]


async def thread_that_was_deleted(system: System, world: World) -> Complaints:
    """20: a conversation that the Page's people have deleted does not live on."""
    assert await system.sync()
    world.simulator.population.remove(world.simulator.population.conversations[3])
    assert await system.sync()
    return findings(await system.verdict(), "extra")


async def first_met_by_webhook(system: System, world: World) -> Complaints:
    """5: a conversation that a webhook made is new to the sync all the same."""
    for conversation in world.simulator.population.conversations[:3]:
        told = world.simulator.population.new_message(conversation, "in", "good morning")
        await system.webhook(*told)
    assert await system.sync()
    return findings(await system.verdict(), "missing", "extra")


async def thread_of_more_than_25(system: System, world: World) -> Complaints:
    """8: the whole thread, not its newest 25."""
    conversation = world.simulator.population.conversations[2]
    for number in range(40):
        world.simulator.population.new_message(conversation, "in", f"message {number}")
    assert await system.sync()
    return findings(await system.verdict(), "missing")


async def read_in_other_shapes(system: System, world: World, *kinds: str) -> Complaints:
    """What is there is mirrored, however it is told."""
    world.simulator.faults.add("", "drift", kinds=list(kinds))
    return await mirrored_whole(system)


async def schema_that_moved(system: System, world: World) -> Complaints:
    """9: lists without their wrapper, fields that nobody knows, null where nothing was."""
    return await read_in_other_shapes(system, world, "unwrapped", "new_field", "nulls")


async def fields_of_other_types(system: System, world: World) -> Complaints:
    """23: ids and times as numbers, counts as text."""
    return await read_in_other_shapes(system, world, "number_ids", "unix_time", "text_counts")


async def ids_as_numbers(system: System, world: World) -> Complaints:
    """23 in silence: the Page's own id is another type than the one it is compared with."""
    return await read_in_other_shapes(system, world, "number_ids")


async def synced_twice(system: System, world: World) -> Complaints:
    """10: the second sync meets what the first one wrote."""
    assert await system.sync()
    assert await system.sync()
    return findings(await system.verdict(), "extra")


async def out_of_time_again_and_again(system: System, world: World) -> Complaints:
    """11: each time there is time for two pages; the list has four. A dozen syncs have to get through."""
    for _ in range(12):
        await system.sync_for_two_pages()
    return findings(await system.verdict(), "missing")


async def asked_for_twice(system: System, world: World) -> Complaints:
    """12: two at once are one."""
    done = await system.two_syncs_at_once()
    return [] if done == 1 else [f"{done} syncs at once"]


async def bad_moment_of_graph(system: System, world: World) -> Complaints:
    """13: one page fails once; what is behind it is read, or success is not claimed."""
    world.simulator.faults.add(LIST_CALL, "error", code=2, after=1, times=1)
    claimed = await system.sync()
    complaints = findings(await system.verdict(), "missing")
    return complaints if claimed else []


async def page_that_never_comes(system: System, world: World) -> Complaints:
    """13 again: one page fails for ever. Nobody can read it; but nobody may call that a success."""
    world.simulator.faults.add(LIST_CALL, "error", code=2, after=1)
    claimed = await system.sync()
    assert (await system.verdict()).missing > 0
    return ["success was claimed"] if claimed else []


async def two_operators(system: System, world: World) -> Complaints:
    """14: deliveries of one person to a Page that two people have connected are one conversation."""
    conversation = world.simulator.population.conversations[0]
    for user in ("a", "b"):
        told = world.simulator.population.new_message(conversation, "in", f"hello, operator {user}")
        await system.webhook(*told, user=user)
    verdict = await system.verdict()
    return [one["detail"] for one in verdict.examples if one["finding"] == "extra"]


FLAWS: list[Any] = [
    pytest.param(overtaken_by_a_webhook, id="1 webhook and sync"),
    pytest.param(nothing_is_new, id="2 all of it"),
    pytest.param(halves_are_left, id="3 halves"),
    pytest.param(events_are_optional, id="4 optional events"),
    pytest.param(first_met_by_webhook, id="5 new or not"),
    pytest.param(told_to_wait, id="6, 22 told to wait"),
    pytest.param(somebody_without_id, id="7 without id"),
    pytest.param(thread_of_more_than_25, id="8 25 messages"),
    pytest.param(schema_that_moved, id="9 another schema"),
    pytest.param(synced_twice, id="10 doubled events"),
    pytest.param(out_of_time_again_and_again, id="11 time is over"),
    pytest.param(asked_for_twice, id="12 two at once"),
    pytest.param(bad_moment_of_graph, id="13 stops at an error"),
    pytest.param(page_that_never_comes, id="13 claims success"),
    pytest.param(two_operators, id="14 two constraints"),
    pytest.param(only_by_webhook, id="15, 16 no events by webhook"),
    pytest.param(counted, id="19 counts"),
    pytest.param(thread_that_was_deleted, id="20 deleted threads"),
    pytest.param(fields_of_other_types, id="23 other types"),
    pytest.param(ids_as_numbers, id="23 ids as numbers"),
]


@pytest.mark.parametrize("scenario", FLAWS)
async def test_convsync_passes(scenario: Scenario, world: World) -> None:
    assert await scenario(Convsync(world), world) == []


@pytest.mark.parametrize("scenario", FLAWS)
async def test_the_old_algorithm_fails(
    scenario: Scenario, world: World, raw_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = EventsEachTime if scenario is synced_twice else OldSystem
    conflict = "user_id, page_id, sender_id" if scenario is two_operators else "page_id, sender_id"
    control = Control(world, monkeypatch, kind(raw_database.owner_url, conflict=conflict))
    try:
        assert await scenario(control, world) != []
    finally:
        control.close()


async def test_the_old_algorithm_mirrors_what_no_flaw_touches(
    world: World, raw_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is no straw man: a small inbox, left in peace, it mirrors without a finding."""
    control = Control(world, monkeypatch, OldSystem(raw_database.owner_url))
    try:
        assert max(one.message_count for one in world.simulator.population.conversations) <= 25
        assert await control.sync()
        verdict = await control.verdict()
        assert verdict.clean, verdict.examples
    finally:
        control.close()
