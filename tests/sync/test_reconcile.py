"""The reconciling sync from end to end: what moves nothing in the list is found all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from convsync.facts import Message
from sync.world import LIST_CALL, FastTime, World, open_world


def past() -> dict[str, Any]:
    """An inbox whose newest conversation is an hour old, by every clock."""
    return {"now": datetime.now(UTC) - timedelta(hours=1)}


async def tell(world: World, thread: Any, message: Any) -> None:
    """The webhook of a message."""
    at = datetime.fromtimestamp(message.created_ms / 1000, UTC)
    fact = Message(world.page_id, thread.customer_id, message.message_id, "in", at, message.text)
    await world.store.ingest([fact], "webhook")


async def full_reads(world: World) -> dict[str, datetime]:
    rows = await world.rows("select thread_id, full_read_at from convsync.thread_proofs")
    return {row["thread_id"]: row["full_read_at"] for row in rows}


async def test_edit_whose_webhook_was_lost_is_found_where_messages_are_recent(database: Any) -> None:
    """An incremental sync cannot see it: nothing of the thread moved."""
    async with open_world(database, clock=FastTime(1), messages=30.0, **past()) as world:
        await world.sync()
        population = world.simulator.population
        recent = (datetime.now(UTC) - timedelta(days=6)).timestamp() * 1000
        # The one that lies deepest in its thread: further from its front than what comes with the list.
        _, message_id = max(
            (place, one.message_id)
            for conversation in population.conversations
            for place, one in enumerate(reversed(population.visible_messages(conversation)))
            if one.created_ms > recent and one.text
        )
        population.edit(message_id, "on second thoughts")
        assert (await world.sync("incremental")).status == "succeeded"
        assert (await world.verdict()).differing > 0

        assert (await world.sync("reconcile")).status == "succeeded"

        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


async def test_what_is_older_is_read_when_it_is_the_threads_turn(database: Any) -> None:
    async with open_world(database, clock=FastTime(1), messages=30.0, **past()) as world:
        assert world.clock is not None
        await world.sync()
        population = world.simulator.population
        thread = max(population.conversations, key=lambda one: one.message_count)
        old = population.visible_messages(thread)[0]
        population.react(old.message_id, "love")
        days = 0
        stored = """
            select metadata -> 'graph' -> 'reactions' from convsync.contact_interaction_events
            where message_id = %(id)s
        """
        while not await world.value(stored, id=old.message_id):
            days += 1
            assert days <= 31
            world.clock.skip(days=1)
            assert (await world.sync("reconcile")).status == "succeeded"
        assert days > 1


async def test_every_thread_is_read_to_its_end_within_thirty_days_and_no_day_reads_all(
    database: Any,
) -> None:
    """Whatever the interval: a day that was left out is made up for by the next."""
    async with open_world(database, clock=FastTime(1), conversations=90, messages=30.0, **past()) as world:
        assert world.clock is not None
        clock = world.clock
        await world.sync()
        # Threads that come whole with the list are read whole each time; the others have their turns.
        long = {one.thread_id for one in world.simulator.population.conversations if one.message_count > 10}
        assert len(long) > 30
        before = await full_reads(world)
        turns = []
        for days in [1] * 10 + [4, 1, 7] + [1] * 10:
            clock.skip(days=days)
            assert (await world.sync("reconcile")).status == "succeeded"
            now = await full_reads(world)
            turns.append(sum(now[one] > before[one] for one in long))
            assert min(now.values()) > clock.database_now() - timedelta(days=31)
            before = now
        # A thirtieth of ninety a day, and what is left of one. In the first week also those that have
        # messages as recent, if few.
        assert max(turns[-10:]) == 4
        assert max(turns) < len(long)


async def test_reconcile_lists_all_and_notes_when(database: Any) -> None:
    async with open_world(database, clock=FastTime(1), conversations=450, messages=8.0, **past()) as world:
        await world.sync()
        assert world.clock is not None
        world.clock.skip(days=1)
        world.simulator.calls.reset()
        outcome = await world.sync("reconcile")
        run = await world.run_of(outcome)
        assert (run["status"], run["conversations_seen"]) == ("succeeded", 450)
        # Three pages, and the front once more.
        assert world.calls(LIST_CALL) == 4
        assert world.calls() < 4 + 450 / 6
        (row,) = await world.rows(
            """
            select count(*) filter (where p.listed_at >= r.started_at) as listed
            from convsync.thread_proofs p join convsync.sync_runs r using (page_id) where r.run_id = %(run)s
            """,
            run=outcome.run_id,
        )
        assert row == {"listed": 450}


@pytest.mark.parametrize("mode", ["full", "reconcile", "incremental"])
async def test_where_listing_is_refused_the_known_contacts_are_read_one_by_one(
    database: Any, mode: str
) -> None:
    """A very busy Page. Whoever was never heard of is not to be found, and the run says so."""
    async with open_world(database, clock=FastTime(1), messages=30.0, **past()) as world:
        await world.sync()
        assert world.clock is not None
        world.clock.skip(minutes=10)
        await world.sync("incremental")
        world.clock.skip(minutes=10)
        population = world.simulator.population
        heard = population.conversations[7]
        _, lost = population.new_message(heard, "in", "the webhook of this was lost")
        _, told = population.new_message(heard, "in", "of this it was not")
        person, first = population.new_message(None, "in", "I am new, and this was lost")
        _, second = population.new_message(person, "in", "hello?")
        population.new_message(None, "in", "nobody heard of me")
        await tell(world, heard, told)
        await tell(world, person, second)
        world.simulator.faults.add(LIST_CALL, "refuse_listing")
        world.simulator.calls.reset()

        outcome = await world.sync(mode)

        run = await world.run_of(outcome)
        assert (run["status"], run["reason"]) == ("partial", "listing_refused")
        assert [batch["kind"] for batch in run["failed_batches"]] == ["list"]
        stored = {
            row["message_id"]
            for row in await world.rows("select message_id from convsync.contact_interaction_events")
        }
        assert {lost.message_id, first.message_id} <= stored
        verdict = await world.verdict()
        assert (verdict.missing, verdict.extra) == (1 + 1, 0)  # the stranger, and what they wrote
        asked = sum("user_id" in call.query for call in world.simulator.calls.calls)
        assert asked == 1
        threads = {call.path for call in world.simulator.calls.calls if "/messages" in call.path}
        assert len(threads) == (1 if mode == "incremental" else 60)
        walked = await world.value("select list_walked_at from convsync.pages")
        assert walked < datetime.fromisoformat(run["started_at"])


async def test_list_that_cannot_get_past_its_middle_leaves_no_known_contact_unread(database: Any) -> None:
    async with open_world(
        database, clock=FastTime(1), messages=12.0, max_conversations_per_call=4, **past()
    ) as world:
        await world.sync()
        population = world.simulator.population
        last = min(population.conversations, key=lambda one: one.key)
        edited = next(message for message in population.visible_messages(last) if message.text)
        population.edit(edited.message_id, "quite another thing")
        assert (await world.verdict()).differing > 0
        world.simulator.faults.add(f"{LIST_CALL}.*after=", "error", after=2, name="reduce_data")
        world.simulator.calls.reset()

        outcome = await world.sync()

        assert (await world.run_of(outcome))["reason"] == "failed_batches"
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples
        # Those that were listed before it failed are not read again.
        threads = {call.path for call in world.simulator.calls.calls if "/messages" in call.path}
        assert len(threads) == 60 - 12


async def test_list_that_fails_in_its_middle_for_the_moment_is_left_to_the_retry(database: Any) -> None:
    """On a large Page one bad moment would cost a call for every thread."""
    async with open_world(
        database, clock=FastTime(1), messages=12.0, max_conversations_per_call=4, **past()
    ) as world:
        await world.sync()
        world.simulator.faults.add(f"{LIST_CALL}.*after=", "error", after=2, code=2)
        world.simulator.calls.reset()

        outcome = await world.sync()

        assert (await world.run_of(outcome))["reason"] == "failed_batches"
        assert world.calls("/messages") == 0
