"""The incremental sync from end to end: what it reads, what it leaves alone, and that nothing is lost by it.

What it costs is taken from the simulator's own log. The inbox is the same for each seed, so the numbers are
exact.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest

from convsync.facts import Message
from convsync.sync.ports import Time
from sync.fake_graph import conversation, fake_graph, message
from sync.world import LIST_CALL, FastTime, World, open_world

PAGE = "100000000000001"


def past() -> dict[str, Any]:
    """An inbox whose newest conversation is an hour old, by every clock."""
    return {"now": datetime.now(UTC) - timedelta(hours=1)}


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    """450 conversations that a full sync has read: three pages of the list, where 200 are had at once."""
    async with open_world(database, clock=FastTime(1), conversations=450, messages=12.0, **past()) as world:
        assert (await world.sync()).status == "succeeded"
        world.simulator.calls.reset()
        yield world


@pytest.fixture
async def small(database: Any) -> AsyncIterator[World]:
    """60 conversations that a full sync has read, in answers so small that everything takes many calls."""
    async with open_world(
        database,
        clock=FastTime(1),
        messages=30.0,
        max_conversations_per_call=4,
        max_messages_per_call=20,
        **past(),
    ) as world:
        assert (await world.sync()).status == "succeeded"
        world.simulator.calls.reset()
        yield world


def newest_first(world: World) -> list[Any]:
    """The conversations as the list has them."""
    return sorted(world.simulator.population.conversations, key=lambda one: one.key, reverse=True)


async def proof(world: World, thread_id: str) -> dict[str, Any]:
    (row,) = await world.rows(
        "select * from convsync.thread_proofs where thread_id = %(thread)s", thread=thread_id
    )
    return row


async def assert_exact(world: World) -> None:
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_nothing_changed_costs_one_call(world: World) -> None:
    events, versions = await world.event_count(), await world.versions()

    outcome = await world.sync("incremental")

    assert outcome.status == "succeeded"
    assert world.calls() == 1
    (call,) = world.simulator.calls.calls
    query = parse_qs(call.query)
    assert query["limit"] == ["200"]
    assert "messages.limit(10)" in query["fields"][0]
    assert (await world.event_count(), await world.versions()) == (events, versions)


async def test_one_in_a_hundred_changed_costs_the_pages_they_are_on(world: World) -> None:
    population = world.simulator.population
    for each in newest_first(world)[::90]:
        population.new_message(each, "in", "Is it ready?")
    population.new_message(None, "in", "hello, I am new here")

    outcome = await world.sync("incremental")

    assert outcome.status == "succeeded"
    run = await world.run_of(outcome)
    assert (run["messages_added"], run["conversations_changed"]) == (6, 6)
    # They are all on the first page; the second is the first on which nothing has moved.
    assert world.calls() == world.calls(LIST_CALL) == 2
    await assert_exact(world)

    assert world.clock is not None
    world.clock.skip(minutes=10)
    assert (await world.sync("incremental")).status == "succeeded"
    # What moved at the time of the walk before is looked at once more.
    assert world.calls() == 4
    world.clock.skip(minutes=10)
    await world.sync("incremental")
    assert world.calls() == 5


async def test_thread_with_more_new_messages_than_its_slice_is_read_down_to_what_was_verified(
    small: World,
) -> None:
    population = small.simulator.population
    longest = max(population.conversations, key=lambda one: one.message_count)
    assert longest.message_count > 300
    before = await proof(small, longest.thread_id)
    for number in range(65):
        population.new_message(longest, "in", f"and another thing: {number}")

    outcome = await small.sync("incremental")

    run = await small.run_of(outcome)
    assert (run["status"], run["messages_added"]) == ("succeeded", 65)
    # Ten came with the list; of three pages the last one reaches what was known.
    assert small.calls(f"/{longest.thread_id}/messages") == 3
    await assert_exact(small)
    after = await proof(small, longest.thread_id)
    assert after["verified_through"] > before["verified_through"]
    assert after["full_read_at"] == before["full_read_at"] < after["verified_at"]
    assert after["reported_count"] == longest.message_count


@pytest.mark.parametrize("number", [1, 15], ids=["within the slice", "beyond the slice"])
async def test_loss_hidden_by_an_unsend_is_found(world: World, number: int) -> None:
    """m6 was never delivered and m3 was taken back: the count is right, and looks as if nothing was."""
    population = world.simulator.population
    thread = next(one for one in newest_first(world) if one.message_count >= number + 5)
    count = thread.message_count
    before = list(population.visible_messages(thread))
    lost = [population.new_message(thread, "in", "where is my bicycle?")[1] for _ in range(number)]
    for taken_back in before[-number - 2 : -2]:
        population.unsend(taken_back.message_id)
    assert thread.message_count == count == (await proof(world, thread.thread_id))["reported_count"]

    assert (await world.sync("incremental")).status == "succeeded"

    stored = await world.rows("select message_id from convsync.contact_interaction_events")
    assert {message.message_id for message in lost} <= {row["message_id"] for row in stored}


async def test_webhook_moves_nothing_that_a_sync_has_verified(world: World) -> None:
    """It told the newest message and not the one before: what was verified is what a read has seen."""
    population = world.simulator.population
    thread = newest_first(world)[0]
    before = await proof(world, thread.thread_id)
    _, lost = population.new_message(thread, "in", "the first of two")
    _, told = population.new_message(thread, "in", "the second")
    at = datetime.fromtimestamp(told.created_ms / 1000, UTC)
    await world.store.ingest(
        [Message(PAGE, thread.customer_id, told.message_id, "in", at, "the second")], "webhook"
    )
    assert await proof(world, thread.thread_id) == before

    assert (await world.sync("incremental")).status == "succeeded"

    assert await world.value(
        "select count(*) from convsync.contact_interaction_events where message_id = %(id)s",
        id=lost.message_id,
    )
    await assert_exact(world)


async def test_never_synced_page_is_read_whole(database: Any) -> None:
    async with open_world(database, clock=FastTime(1), messages=30.0, **past()) as world:
        outcome = await world.sync("incremental")
        assert outcome.status == "succeeded"
        await assert_exact(world)
        (row,) = await world.rows(
            """
            select count(*) as all, count(history_complete_at) as complete
            from convsync.messenger_conversations
            """
        )
        assert row == {"all": 60, "complete": 60}
        assert await world.value("select count(full_read_at) from convsync.thread_proofs") == 60
        world.simulator.calls.reset()
        await world.sync("incremental")
        assert world.calls() == 1


async def test_conversation_that_jumps_to_the_front_while_the_list_is_walked_is_found_by_the_next(
    small: World,
) -> None:
    """There is no second pass: the next one goes back to where this one began."""
    population = small.simulator.population
    recent, oldest = newest_first(small)[:12], newest_first(small)[-1]
    for each in recent:
        population.new_message(each, "in", "hello?")

    def jump(number: int, call: Any) -> None:
        if number == 3:
            population.new_message(oldest, "in", "I have waited for two years")

    small.on_call(jump)
    await small.sync("incremental")
    assert (await small.verdict()).missing == 1
    assert small.clock is not None
    small.clock.skip(minutes=30)

    assert (await small.sync("incremental")).status == "succeeded"

    await assert_exact(small)


async def test_list_in_no_order_is_walked_to_its_end(world: World) -> None:
    """One conversation in five comes after all others, whenever it was updated."""
    population = world.simulator.population
    late = next(one for one in newest_first(world) if one.index % 5 == 2)
    walked = "select list_walked_at from convsync.pages"
    unordered = world.simulator.faults.add(LIST_CALL, "unordered")
    await world.sync()
    assert await world.value(walked) is None
    world.simulator.calls.reset()
    population.new_message(late, "in", "I come last")

    assert (await world.sync("incremental")).status == "succeeded"

    assert world.calls(LIST_CALL) == 3
    await assert_exact(world)
    world.simulator.faults.remove(unordered.fault_id)
    assert world.clock is not None
    world.clock.skip(minutes=10)
    # Once more to the end; it came in order, and the next one trusts it.
    for calls in (3, 1):
        world.simulator.calls.reset()
        await world.sync("incremental")
        assert world.calls() == calls
        world.clock.skip(minutes=10)


async def test_order_that_is_lost_in_mid_walk_takes_the_walk_to_its_end(small: World) -> None:
    """The list was in order so far. The pages on which that is seen are no place to stop."""
    population = small.simulator.population
    by_place = newest_first(small)
    in_time = [one for one in by_place if one.index % 5 != 2]
    # Each page has one that changed and did not move, so that the walk gets to those that are out of time.
    for each in in_time:
        if each.message_count > 1:
            population.unsend(population.visible_messages(each)[0].message_id)
    small.simulator.faults.add(LIST_CALL, "unordered")
    late = [one for one in by_place if one.index % 5 == 2][-1]
    population.unsend(population.visible_messages(late)[-1].message_id)

    assert (await small.sync("incremental")).status == "succeeded"

    assert small.calls(LIST_CALL) == 15
    assert (await proof(small, late.thread_id))["reported_count"] == late.message_count
    assert await small.value("select list_walked_at from convsync.pages") is None


async def test_dead_cursor_restarts_the_list_and_reads_no_thread_twice(small: World) -> None:
    population = small.simulator.population
    changed = newest_first(small)[:10]
    for each in changed:
        for number in range(25):
            population.new_message(each, "in", f"line {number}")
    dead = small.simulator.faults.add(
        LIST_CALL + ".*after=", "error", times=1, after=1, code=100, message="(#100) Invalid cursor"
    )

    outcome = await small.sync("incremental")

    assert (dead.hits, outcome.status) == (1, "succeeded")
    asked = [(call.path, call.query) for call in small.simulator.calls.calls if "/messages" in call.path]
    assert len(asked) == len(set(asked)) >= 10
    await assert_exact(small)


async def test_killed_in_the_middle_it_goes_on_where_it_was(small: World) -> None:
    population = small.simulator.population
    changed = newest_first(small)[:10]
    for each in changed:
        for number in range(25):
            population.new_message(each, "in", f"line {number}")
    late = 0.0

    def hour_passes(number: int, _: Any) -> None:
        nonlocal late
        late += 3600 * (number == 5)

    small.on_call(hour_passes)
    runner = small.runner(lease_seconds=100_000, time=Time(now=lambda: time.monotonic() + late))
    first = await runner.run(small.page_id, "incremental", deadline_seconds=3600)
    assert (first.status, first.reason) == ("paused", "deadline")
    made = small.calls()

    second = await small.sync("incremental")

    assert (second.run_id, second.status) == (first.run_id, "succeeded")
    assert small.calls() > made
    await assert_exact(small)
    asked = [(call.path, call.query) for call in small.simulator.calls.calls]
    assert len(asked) == len(set(asked))
    # The walk counts from its beginning, not from where it was taken up.
    (row,) = await small.rows(
        """
        select p.list_walked_at = r.started_at as from_the_beginning
        from convsync.pages p join convsync.sync_runs r using (page_id) where r.run_id = %(run)s
        """,
        run=first.run_id,
    )
    assert row == {"from_the_beginning": True}


async def test_cancelled_run_leaves_its_changes_to_the_next(small: World) -> None:
    """The list was walked, the threads were not read: that is no walk to count from."""
    population = small.simulator.population
    walked = await small.value("select list_walked_at from convsync.pages")
    busy = newest_first(small)[0]
    for number in range(25):
        population.new_message(busy, "in", f"line {number}")
    begun = await small.store.begin_sync(page_id=small.page_id, mode="incremental", owner="test")
    await small.store.cancel_sync(page_id=small.page_id, run_id=begun.run_id)
    assert await small.value("select list_walked_at from convsync.pages") == walked
    assert (await small.sync("incremental")).status == "succeeded"
    await assert_exact(small)


async def test_runs_beside_a_full_sync(small: World) -> None:
    population = small.simulator.population
    for each in newest_first(small)[3:40:4]:
        population.new_message(each, "in", "while both are at work")

    full, incremental = await asyncio.gather(small.sync(), small.sync("incremental"))

    assert (full.status, incremental.status) == ("succeeded", "succeeded")
    assert full.run_id != incremental.run_id
    await assert_exact(small)


async def test_thread_that_failed_is_taken_up_by_the_next_however_far_down_it_is(database: Any) -> None:
    """The list was walked past it. It will not move, so no list would lead to it again."""
    async with open_world(
        database,
        clock=FastTime(1),
        messages=30.0,
        max_conversations_per_call=4,
        max_messages_per_call=20,
        **past(),
    ) as world:
        thread = max(newest_first(world)[30:], key=lambda one: one.message_count)
        broken = world.simulator.faults.add(f"/{thread.thread_id}/messages", "error", code=2)
        assert (await world.sync()).status == "partial"
        assert (await world.verdict()).missing == thread.message_count - 20 > 0
        assert (await world.sync("incremental")).status == "partial"
        world.simulator.faults.remove(broken.fault_id)
        world.simulator.calls.reset()

        assert (await world.sync("incremental")).status == "succeeded"

        assert world.calls(LIST_CALL) == 1
        await assert_exact(world)
        world.simulator.calls.reset()
        await world.sync("incremental")
        assert world.calls() == 1


async def test_threads_of_a_retry_that_was_cancelled_are_taken_up_too(database: Any) -> None:
    async with open_world(
        database,
        clock=FastTime(1),
        messages=30.0,
        max_conversations_per_call=4,
        max_messages_per_call=20,
        **past(),
    ) as world:
        thread = max(newest_first(world)[30:], key=lambda one: one.message_count)
        world.simulator.faults.add(f"/{thread.thread_id}/messages", "error", code=2)
        run_id = (await world.sync()).run_id
        await world.store.retry_sync(page_id=world.page_id, run_id=run_id, owner="somebody")
        assert await world.store.cancel_sync(page_id=world.page_id, run_id=run_id) == "cancelled"
        world.simulator.faults.clear()
        world.simulator.calls.reset()

        assert (await world.sync("incremental")).status == "succeeded"

        assert world.calls(LIST_CALL) == 1
        await assert_exact(world)


async def test_thread_that_failed_and_is_gone_since_is_not_asked_for_for_ever(database: Any) -> None:
    async with open_world(
        database,
        clock=FastTime(1),
        messages=30.0,
        max_conversations_per_call=4,
        max_messages_per_call=20,
        **past(),
    ) as world:
        thread = max(newest_first(world)[30:], key=lambda one: one.message_count)
        broken = world.simulator.faults.add(f"/{thread.thread_id}/messages", "error", code=2)
        assert (await world.sync()).status == "partial"
        world.simulator.faults.remove(broken.fault_id)
        world.simulator.population.remove(thread)
        assert (await world.sync("incremental")).status == "partial"
        world.simulator.calls.reset()

        assert (await world.sync("incremental")).status == "succeeded"

        assert world.calls() == 1


async def test_erased_person_is_neither_read_again_nor_brought_back(small: World) -> None:
    thread = next(one for one in newest_first(small)[:20] if one.message_count > 30 and one.customer_id)
    await small.store.erase_contact(page_id=small.page_id, sender_id=thread.customer_id)
    left = "select count(*) from convsync.thread_proofs where thread_id = %(thread)s"
    assert await small.value(left, thread=thread.thread_id) == 0
    events = await small.event_count()

    for mode in ("incremental", "full"):
        assert (await small.sync(mode)).status == "succeeded"

    assert small.calls(f"/{thread.thread_id}/messages") == 0
    assert await small.event_count() == events
    assert await small.value(left, thread=thread.thread_id) == 0
    # And a Page with an erased person on its first page is still done with one call.
    small.simulator.calls.reset()
    await small.sync("incremental")
    assert small.calls() == 1


async def test_what_cannot_be_read_is_not_read_for_ever(database: Any) -> None:
    """The ten newest messages of one thread have no id, nor has the newest of another."""
    nameless = [{"created_time": f"2026-10-01T10:00:{second:02}+0000"} for second in range(40, 30, -1)]
    deep = {
        "data": nameless,
        "paging": {"cursors": {"after": "DEEPER"}, "next": "https://graph.example/next?after=DEEPER"},
    }

    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        if path == "t_2/messages":
            return {"data": [message(2, "1002")]}
        return {
            "data": [
                conversation(2, [{"id": "1002"}, {"id": PAGE}], deep, message_count=11),
                conversation(1, [{"id": "1001"}, {"id": PAGE}], {"data": [nameless[0], message(1, "1001")]}),
            ]
        }

    async with (
        fake_graph(answer) as graph,
        open_world(database, clock=FastTime(1), graph_url=graph.url) as world,
    ):
        assert (await world.sync()).status == "succeeded"
        assert [(await proof(world, f"t_{number}"))["unreadable"] for number in (1, 2)] == [1, 10]
        for _ in range(2):
            del graph.calls[:]
            assert (await world.sync("incremental")).status == "succeeded"
            assert [path for path, _ in graph.calls] == [f"{PAGE}/conversations"]
        complete = "select count(history_complete_at) from convsync.messenger_conversations"
        assert await world.value(complete) == 0
