"""What was too much for Graph is remembered in the database: no other process asks for it again."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from convsync.facts import Message
from convsync.sync.contacts import ContactReader
from faults.processes import commands
from sync.test_error_catalogue import BY_ENTRY, asked, fault, inbox
from sync.world import LIST_CALL, World, open_world

TOO_MUCH = fault(BY_ENTRY["too_much_data"])


def refused(world: World) -> Counter[tuple[str, str]]:
    return Counter(asked(world, lambda call: call.fault is not None))


async def test_no_process_makes_a_request_again_that_another_was_refused(
    database: Any, tmp_path: Path
) -> None:
    """A sync that stops in its middle, the process that goes on with it, a check, and another sync."""
    async with inbox(database) as world, commands(world, tmp_path) as cli:
        large = rf"{LIST_CALL}.*limit=(200|100|50|25|12|6)&.*messages"
        world.simulator.faults.plant({"match": large, **TOO_MUCH})
        world.simulator.faults.plant({"match": r"/messages\?.*limit=(100|50)&", **TOO_MUCH})
        code, _, err = await cli.run("sync", world.page_id, "--deadline", "1", CONVSYNC_CALLS_PER_SECOND="8")
        assert code == 3, err
        first = refused(world)
        assert first
        for command in (("sync",), ("verify", "--deep"), ("sync",)):
            code, out, err = await cli.run(*command, world.page_id)
            assert code == 0, (command, out, err)
        assert refused(world).keys() > first.keys()
        assert not {request: times for request, times in refused(world).items() if times > 1}
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


async def test_no_sync_asks_again_for_changes_that_were_too_much(database: Any) -> None:
    async with inbox(database) as world:
        assert (await world.sync()).status == "succeeded"
        world.simulator.faults.plant({"match": rf"{LIST_CALL}.*limit=(200|100)&", **TOO_MUCH})
        for mode in ("incremental", "reconcile", "incremental"):
            assert (await world.sync(mode)).status == "succeeded"
        # 200 x 10, 200 x 1 and 100 x 1, each once; the list of a full sync is another.
        assert list(refused(world).values()) == [1, 1, 1]
        world.simulator.calls.reset()
        assert (await world.sync()).status == "succeeded"
        assert [query for path, query in asked(world) if LIST_CALL in path and "limit=200&" in query]


async def test_person_too_heavy_to_be_listed_with_messages_is_asked_for_so_once(database: Any) -> None:
    """Where the list is refused people without a known thread are asked for by their id."""
    async with inbox(database) as world:
        _, message = world.simulator.population.new_message(None, "in", "hello")
        person = world.simulator.population.conversations[-1]
        at = datetime.fromtimestamp(message.created_ms / 1000, UTC)
        told = Message(world.page_id, person.customer_id, message.message_id, "in", at, message.text)
        await world.store.ingest([told], "webhook")
        world.simulator.faults.plant({"match": rf"messages.*user_id={person.customer_id}", **TOO_MUCH})
        world.simulator.faults.plant({"match": rf"{LIST_CALL}\?(?!.*user_id)", "action": "refuse_listing"})
        for _ in range(2):
            outcome = await world.sync()
            assert (outcome.status, (await world.run_of(outcome))["reason"]) == ("partial", "listing_refused")
            await world.rows("update convsync.messenger_conversations set thread_id = null returning 1")
        queries = [query for path, query in asked(world) if "user_id=" in query]
        assert [("messages" in query) for query in queries] == [True, False, False]


async def test_size_grows_back_and_a_place_that_was_refused_keeps_its_own(database: Any) -> None:
    """Only the front is heavy: what comes after it is asked for at full size again."""
    async with open_world(database, conversations=12, messages=5.0, max_conversations_per_call=1) as world:
        world.simulator.faults.plant(
            {"match": rf"{LIST_CALL}\?(?!.*after=).*limit=(200|100|50|25)&.*messages", **TOO_MUCH}
        )
        for _ in range(3):
            outcome = await world.sync(concurrency=1)
            assert outcome.status == "succeeded"
        assert max(refused(world).values()) == 1
        last = [query for path, query in asked(world) if LIST_CALL in path][-12:]
        assert [query for query in last if "limit=200&" in query]


async def test_one_conversation_too_heavy_for_a_live_read_is_read_without_messages_from_then_on(
    database: Any,
) -> None:
    """A change of a busy thread is told again and again; the answer to the first is not asked for again."""
    async with inbox(database) as world:
        thread_id = world.simulator.population.conversations[0].thread_id
        world.simulator.faults.plant({"match": rf"/{thread_id}\?.*messages", **TOO_MUCH})
        for _ in range(2):
            reader = ContactReader(world.store, world.graph, world.box.open, calls_per_second=0)
            await reader._read_thread(world.page_id, thread_id)
        assert [("messages" in query) for _, query in asked(world)] == [True, False, False]
        found = await world.rows("select thread_id from convsync.messenger_conversations")
        assert found == [{"thread_id": thread_id}]


@pytest.mark.parametrize("kind", ["list", "thread"])
async def test_place_is_kept_as_a_digest(database: Any, kind: str) -> None:
    async with inbox(database) as world:
        match = LIST_CALL if kind == "list" else "/messages"
        world.simulator.faults.plant({"match": rf"{match}\?.*limit=(200|100)&", **TOO_MUCH})
        assert (await world.sync()).status == "succeeded"
        kept = await world.rows(
            "select kind, encode(place_digest, 'escape') as place from convsync.refused_requests"
        )
        assert kind in {row["kind"] for row in kept}
        threads = {one.thread_id for one in world.simulator.population.conversations}
        assert not [row for row in kept if any(thread in row["place"] for thread in threads)]
