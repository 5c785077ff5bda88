"""A full sync from end to end: a simulated Facebook, the real client and engine, a real database.

The verdict is the checker's, which shares no code with what filled the mirror.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import pytest

from convsync.sync.ports import Time
from convsync.sync.runner import Outcome
from sync.world import LIST_CALL, FastTime, World, open_world

# Small answers, so that a small inbox takes many calls and has a middle.
SMALL_ANSWERS = {"max_conversations_per_call": 4, "max_messages_per_call": 20}


@pytest.fixture
async def inbox(database: Any) -> AsyncIterator[World]:
    """60 conversations as they come: one thread beyond 500 messages, people without name, id or account."""
    async with open_world(database, conversations=60, messages=50.0) as world:
        yield world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    """60 short conversations that take many calls."""
    async with open_world(database, messages=10.0, **SMALL_ANSWERS) as world:
        yield world


async def paused_at(world: World, number: int) -> Outcome:
    """A sync whose hour is over while its call `number` is under way."""
    late = 0.0

    def hour_passes(call: int, _: Any) -> None:
        nonlocal late
        late += 3600 * (call == number)

    world.on_call(hour_passes)
    runner = world.runner(lease_seconds=100_000, time=Time(now=lambda: time.monotonic() + late))
    outcome = await runner.run(world.page_id, "full", deadline_seconds=3600)
    assert world.calls() >= number
    return outcome


async def test_full_sync_mirrors_an_inbox_exactly(inbox: World) -> None:
    population = inbox.simulator.population
    kinds = Counter(conversation.kind for conversation in population.conversations)
    longest = max(conversation.message_count for conversation in population.conversations)
    assert longest > 500
    assert {"no_name", "facebook_user", "gone", "no_id"} <= kinds.keys()
    assert any(
        message.sticker
        for conversation in population.conversations
        for message in population.all_messages(conversation)
    )

    outcome = await inbox.sync()

    assert outcome.status == "succeeded"
    verdict = await inbox.verdict()
    assert verdict.clean, verdict.examples
    assert (verdict.conversations, verdict.messages) == (60, population.message_total())
    run = await inbox.run_of(outcome)
    assert (run["success"], run["partial"]) == (True, False)
    assert run["messages_added"] == population.message_total() == await inbox.event_count()
    assert run["conversations_seen"] == 60
    assert run["calls"] == inbox.calls()


async def test_thread_of_more_than_500_messages_is_whole(inbox: World) -> None:
    await inbox.sync()
    population = inbox.simulator.population
    busiest = max(population.conversations, key=lambda one: one.message_count)
    stored = await inbox.rows(
        """
        select e.message_id from convsync.contact_interaction_events e
        join convsync.messenger_conversations c using (page_id, conversation_id)
        where c.thread_id = %(thread)s
        """,
        thread=busiest.thread_id,
    )
    truth = [message.message_id for message in population.visible_messages(busiest)]
    assert len(truth) > 500
    assert sorted(row["message_id"] for row in stored) == sorted(truth)


async def test_every_conversation_of_a_clean_walk_has_its_whole_history(inbox: World) -> None:
    await inbox.sync()
    (row,) = await inbox.rows(
        """
        select count(*) as all, count(history_complete_at) as complete,
          count(*) filter (where last_synced_version <= version) as honest,
          count(*) filter (where message_count <> reported_count) as miscounted
        from convsync.messenger_conversations
        """
    )
    assert row == {"all": 60, "complete": 60, "honest": 60, "miscounted": 0}


async def test_second_full_sync_adds_nothing_and_moves_no_version(inbox: World) -> None:
    await inbox.sync()
    events, versions = await inbox.event_count(), await inbox.versions()

    outcome = await inbox.sync()

    run = await inbox.run_of(outcome)
    assert outcome.status == "succeeded"
    assert (run["messages_added"], run["conversations_changed"]) == (0, 0)
    assert await inbox.event_count() == events
    assert await inbox.versions() == versions
    assert (await inbox.verdict()).clean
    doubled = await inbox.rows(
        """
        select conversation_id, event_timestamp, event_type, direction, body, metadata
        from convsync.contact_interaction_events group by 1, 2, 3, 4, 5, 6 having count(*) > 1
        """
    )
    assert doubled == []


async def test_conversation_that_jumps_to_the_front_during_the_walk_is_found(world: World) -> None:
    """Behind the reader's back: the thread moves from the unread end of the list to its front."""
    population = world.simulator.population
    oldest = min(population.conversations, key=lambda one: one.key)

    def jump(number: int, call: Any) -> None:
        if number == 3:
            population.new_message(oldest, "in", "I have waited for two years")

    world.on_call(jump)
    outcome = await world.sync()

    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    last = await world.value(
        "select last_message from convsync.messenger_conversations where thread_id = %(thread)s",
        thread=oldest.thread_id,
    )
    assert last == "I have waited for two years"


async def test_messages_that_arrive_all_through_the_walk_are_all_found(world: World) -> None:
    """Without a webhook: the walk alone has to see them, new people included."""
    population = world.simulator.population
    threads = sorted(population.conversations, key=lambda one: one.key)

    def write(number: int, call: Any) -> None:
        if number <= 24 and number % 3 == 0:
            population.new_message(threads[number], "in", f"while call {number} was under way")
        if number in (4, 11):
            population.new_message(None, "in", "hello, is this the right Page?")

    world.on_call(write)
    outcome = await world.sync()

    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    assert verdict.conversations == 62


async def test_page_where_people_never_stop_writing_is_synced_all_the_same(world: World) -> None:
    """With each call somebody writes, somebody new too. What was there before is whole."""
    population = world.simulator.population
    before = {
        message.message_id
        for conversation in population.conversations
        for message in population.visible_messages(conversation)
    }
    threads = sorted(population.conversations, key=lambda one: one.key)

    def write(number: int, call: Any) -> None:
        population.new_message(threads[number * 7 % len(threads)], "in", f"while call {number} was under way")
        if number % 5 == 0:
            population.new_message(None, "in", "and I am new here")

    world.on_call(write)
    outcome = await world.sync()

    assert outcome.status == "succeeded"
    # The walk, the threads that are longer than their slice, and the front twice.
    assert world.calls() < 120
    found = await world.rows("select message_id from convsync.contact_interaction_events")
    assert before <= {row["message_id"] for row in found}
    (run,) = await world.rows("select conversations_seen from convsync.sync_runs")
    people = await world.value("select count(*) from convsync.messenger_conversations")
    assert 60 <= run["conversations_seen"] <= people


async def test_empty_page_with_a_next_does_not_end_the_list(world: World) -> None:
    empty = world.simulator.faults.add(LIST_CALL, "empty_page", times=2, after=3)
    nested = world.simulator.faults.add("/messages", "empty_page", times=1)

    outcome = await world.sync()

    assert (empty.hits, nested.hits) == (2, 1)
    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_short_page_does_not_end_the_list(world: World) -> None:
    world.simulator.faults.add(LIST_CALL, "short_page", times=4, after=1, limit=1)
    outcome = await world.sync()
    assert outcome.status == "succeeded"
    assert (await world.verdict()).clean


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "error", "code": 2},
        {"action": "error", "code": 1, "is_transient": True},
        {"action": "status", "http": 500},
        {"action": "html"},
        {"action": "empty"},
        {"action": "reset"},
        {"action": "truncate"},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
async def test_passing_error_is_retried_and_costs_nothing_but_calls(
    world: World, fault: dict[str, Any]
) -> None:
    planted = world.simulator.faults.plant({"match": LIST_CALL, "after": 2, "times": 2, **fault})
    in_thread = world.simulator.faults.plant({"match": "/messages", "times": 1, **fault})

    outcome = await world.sync()

    assert (planted.hits, in_thread.hits) == (2, 1)
    assert outcome.status == "succeeded"
    assert (await world.run_of(outcome))["failed_batches"] == []
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_refused_size_shrinks_and_is_never_asked_for_again_at_that_place(database: Any) -> None:
    async with open_world(database, messages=10.0) as world:
        world.simulator.faults.add(LIST_CALL, "reduce_data", nodes=600)

        outcome = await world.sync()

        assert outcome.status == "succeeded"
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples
        refused: Counter[tuple[str, str, str]] = Counter()
        for call in world.simulator.calls.calls:
            if call.code == 1:
                query = parse_qs(call.query)
                refused[query.get("after", [""])[0], query["limit"][0], query["fields"][0]] += 1
        assert refused
        assert max(refused.values()) == 1


async def test_list_that_is_refused_at_any_size_with_messages_is_read_without_them(database: Any) -> None:
    async with open_world(database, conversations=20, messages=10.0) as world:
        world.simulator.faults.add(LIST_CALL, "reduce_data", nodes=100, hidden=True)
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


async def test_dead_cursor_restarts_the_list_and_finishes(world: World) -> None:
    dead = world.simulator.faults.add(
        LIST_CALL + ".*after=", "error", times=1, after=4, code=100, message="(#100) Invalid cursor"
    )
    outcome = await world.sync()
    assert dead.hits == 1
    assert outcome.status == "succeeded"
    assert await world.value("select restarts from convsync.sync_cursors where kind = 'list'") == 1
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_dead_cursor_of_a_thread_restarts_that_thread_only(world: World) -> None:
    dead = world.simulator.faults.add(
        "/messages.*after=", "error", times=1, code=2642, message="Invalid cursors values"
    )
    outcome = await world.sync()
    assert dead.hits == 1
    assert outcome.status == "succeeded"
    restarts = await world.rows("select kind, sum(restarts) as n from convsync.sync_cursors group by kind")
    assert {row["kind"]: row["n"] for row in restarts} == {"list": 0, "thread": 1}
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_thread_that_fails_for_good_makes_the_run_partial_and_costs_no_other_thread(
    world: World,
) -> None:
    population = world.simulator.population
    longest = max(population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{longest.thread_id}/messages", "error", code=2)

    outcome = await world.sync()

    run = await world.run_of(outcome)
    assert outcome.status == run["status"] == "partial"
    assert (run["success"], run["partial"]) == (False, True)
    (batch,) = run["failed_batches"]
    asked = [call for call in world.simulator.calls.calls if f"/{longest.thread_id}/" in call.path]
    assert batch["batch"] == 1
    assert batch["thread_id"] == longest.thread_id
    assert batch["cursor"] == parse_qs(asked[0].query)["after"][0]
    assert batch["attempts"] == len(asked)
    assert (batch["error"]["class"], batch["error"]["code"]) == ("transient", 2)
    verdict = await world.verdict()
    first_slice = len(
        await world.rows(
            """
            select from convsync.contact_interaction_events e
            join convsync.messenger_conversations c using (page_id, conversation_id)
            where c.thread_id = %(thread)s
            """,
            thread=longest.thread_id,
        )
    )
    assert verdict.missing == longest.message_count - first_slice > 0
    assert verdict.extra == 0
    incomplete = await world.rows(
        "select thread_id from convsync.messenger_conversations where history_complete_at is null"
    )
    assert incomplete == [{"thread_id": longest.thread_id}]


async def test_sync_after_a_partial_one_makes_it_whole(world: World) -> None:
    longest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{longest.thread_id}/messages", "error", code=2)
    first = await world.sync()
    world.simulator.faults.clear()

    second = await world.sync()

    assert (first.status, second.status) == ("partial", "succeeded")
    assert first.run_id != second.run_id
    assert (await world.verdict()).clean


async def test_list_that_fails_for_good_is_partial_and_names_where(world: World) -> None:
    """What lies behind an unreadable page of the list cannot be reached; the run must not call it whole."""
    seen: list[str] = []

    def remember(number: int, call: Any) -> None:
        if call.path.endswith(LIST_CALL):
            seen.append(parse_qs(call.query).get("after", [""])[0])

    world.on_call(remember)
    world.simulator.faults.add(LIST_CALL, "error", after=3, code=2)

    outcome = await world.sync()

    run = await world.run_of(outcome)
    assert run["status"] == "partial"
    (batch,) = run["failed_batches"]
    assert (batch["kind"], batch["cursor"], batch["attempts"]) == ("list", seen[-1], seen.count(seen[-1]))
    assert (await world.verdict()).missing > 0


async def test_deadline_pauses_and_the_next_sync_goes_on_at_the_saved_cursor(
    database: Any, server: Any, template: str
) -> None:
    config: dict[str, Any] = {"messages": 10.0, **SMALL_ANSWERS}
    with server.fresh_database(template) as another:
        async with open_world(another, **config) as undisturbed:
            assert (await undisturbed.sync()).status == "succeeded"
            expected = undisturbed.calls()

    async with open_world(database, **config) as world:
        first = await paused_at(world, 6)
        assert (first.status, first.reason) == ("paused", "deadline")
        before = await world.run_of(first)
        saved = await world.value("select last_cursor from convsync.sync_cursors where kind = 'list'")
        made = world.calls()
        assert 0 < made < expected

        second = await world.sync()

        assert (second.status, second.run_id) == ("succeeded", first.run_id)
        continued = [call for call in list(world.simulator.calls.calls)[made:] if LIST_CALL in call.path]
        assert parse_qs(continued[0].query)["after"] == [saved]
        run = await world.run_of(second)
        assert run["calls"] == world.calls() == expected
        assert run["conversations_seen"] == 60 > before["conversations_seen"]
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


async def test_restart_begins_a_new_run_at_the_front(world: World) -> None:
    first = await paused_at(world, 6)
    made = world.calls()

    second = await world.sync(restart=True)

    assert second.run_id != first.run_id
    assert "after" not in parse_qs(list(world.simulator.calls.calls)[made].query)
    assert (await world.run_of(first))["status"] == "cancelled"
    assert (await world.verdict()).clean


async def test_revoked_token_fails_the_run_and_marks_the_page(world: World) -> None:
    def revoke(number: int, call: Any) -> None:
        if number == 4:
            world.simulator.state.tokens.clear()

    world.on_call(revoke)
    outcome = await world.sync()

    assert (outcome.status, outcome.reason) == ("failed", "token_invalid")
    run = await world.run_of(outcome)
    assert (run["status"], run["reason"], run["success"]) == ("failed", "token_invalid", False)
    page = await world.store.get_page(page_id=world.page_id)
    assert page["token"] == "invalid"
    # Those under way with it beside the one that was refused, and none after that.
    assert world.calls() <= 4 + 3
    assert await world.store.resumable_syncs() == []


async def test_token_that_is_replaced_in_mid_run_carries_it_to_its_end(world: World) -> None:
    """The old one is refused, the new one is in the database: no run is lost over it."""
    page = world.simulator.page
    fresh = "sim-page-token-fresh"

    async def replace() -> None:
        await world.store.add_page(
            page_id=page.page_id,
            token_sealed=world.box.seal(page.page_id, fresh),
            token_key_id=world.box.key_id,
        )

    world.simulator.faults.add(LIST_CALL, "delay", seconds=0.2, after=3, times=1)
    replacing: list[asyncio.Task[None]] = []

    def act(number: int, call: Any) -> None:
        if number == 4:
            tokens = world.simulator.state.tokens
            tokens[fresh] = tokens.pop(page.token)
            replacing.append(asyncio.ensure_future(replace()))

    world.on_call(act)
    outcome = await world.sync(concurrency=1)
    await asyncio.gather(*replacing)
    assert outcome.status == "succeeded"
    assert (await world.verdict()).clean


async def test_two_calls_per_second_are_never_exceeded(database: Any) -> None:
    """The simulator counts as Meta does; a client that is too fast once is convicted by its own log."""
    config: dict[str, Any] = {"conversations": 10, "max_conversations_per_call": 2, "calls_per_second": 2.0}
    async with open_world(database, **config) as world:
        outcome = await world.sync(calls_per_second=2.0)
        assert outcome.status == "succeeded"
        assert world.calls() >= 6
        assert world.simulator.state.limits[world.page_id].violations == 0
        assert not any(call.refused for call in world.simulator.calls.calls)
        assert (await world.verdict()).clean


async def test_graph_that_cannot_be_reached_pauses_the_run_where_it_is(database: Any) -> None:
    """An outage says nothing of the page that was asked for: no failed batch, no walk from the front."""
    async with open_world(database, clock=FastTime(1000), max_conversations_per_call=25) as world:
        reachable = world.graph._base

        def unplug(number: int, call: Any) -> None:
            if number == 3:
                world.graph._base = "http://127.0.0.1:9/v26.0"

        world.on_call(unplug)
        outcome = await world.sync(concurrency=1, lease_seconds=1_000_000)
        assert (outcome.status, outcome.reason) == ("paused", "graph_unreachable")
        (cursor,) = await world.rows(
            "select last_cursor, failed from convsync.sync_cursors where kind = 'list'"
        )
        assert cursor["last_cursor"] is not None
        assert not cursor["failed"]

        world.graph._base = reachable
        again = await world.sync(lease_seconds=1_000_000)
        assert (again.status, again.run_id) == ("succeeded", outcome.run_id)
        assert (await world.verdict()).clean
