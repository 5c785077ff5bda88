"""Where a list cannot be read, the known people are: one by one, and no more of them than there is need."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from convsync.facts import Message
from sync.fake_graph import conversation, fake_graph, message
from sync.test_incremental import newest_first, past
from sync.world import LIST_CALL, FastTime, World, open_world

PAGE = "100000000000001"
DEAD = (400, {"error": {"code": 100, "message": "Invalid cursors values", "type": "OAuthException"}}, {})


async def threads_read(world: World, mode: str = "incremental") -> set[str]:
    """The threads of which a sync has read messages, an hour later."""
    assert world.clock is not None
    world.clock.skip(hours=1)
    world.simulator.calls.reset()
    run = await world.run_of(await world.sync(mode))
    assert (run["status"], run["reason"]) == ("partial", "listing_refused")
    return {call.path.split("/")[-2] for call in world.simulator.calls.calls if "/messages" in call.path}


async def test_where_listing_is_refused_for_days_an_incremental_reads_whom_it_heard_of_since(
    database: Any,
) -> None:
    """And not everybody of whom it ever heard since the last walk: that would be more each time."""
    async with open_world(database, clock=FastTime(1), messages=6.0, **past()) as world:
        await world.sync()
        assert world.clock is not None
        world.clock.skip(hours=1)
        await world.sync("incremental")
        world.simulator.faults.add(LIST_CALL, "refuse_listing")
        rounds: list[str] = []
        for heard in [one for one in newest_first(world)[10:] if one.customer_id][:5]:
            world.clock.skip(hours=1)
            _, told = world.simulator.population.new_message(heard, "in", "hello")
            fact = Message(
                world.page_id, heard.customer_id, told.message_id, "in", datetime.now(UTC), "hello"
            )
            await world.store.ingest([fact], "webhook")

            read = await threads_read(world)

            assert heard.thread_id in read
            # What the last one has brought is looked at once more.
            assert read <= {heard.thread_id, *rounds[-1:]}
            rounds.append(heard.thread_id)
        await threads_read(world)
        assert await threads_read(world) == set()


async def test_cursor_that_dies_among_the_threads_of_a_person_starts_them_again(database: Any) -> None:
    """Meta lists nobody; of the one person who is known it lists two threads, on a page each."""
    died: list[str] = []

    def answer(path: str, query: Mapping[str, str]) -> Any:
        if path == PAGE:
            return {"id": PAGE}
        if "user_id" not in query:
            return (500, {"error": {"code": 1, "message": "An unknown error occurred"}}, {})
        people = [{"id": "1001"}, {"id": PAGE}]
        if "after" not in query:
            following = {"cursors": {"after": "C1"}, "next": "https://graph.example/next?after=C1"}
            return {"data": [conversation(1, people)], "paging": following}
        if not died:
            died.append(query["after"])
            return DEAD
        return {"data": [conversation(2, people)]}

    async with (
        fake_graph(answer) as graph,
        open_world(database, clock=FastTime(1), graph_url=graph.url) as world,
    ):
        told = Message(PAGE, "1001", "m_1", "in", datetime(2026, 11, 1, 10, 0, 1, tzinfo=UTC), "message 1")
        await world.store.ingest([told], "webhook")

        run = await world.run_of(await world.sync())

        assert (run["status"], run["reason"]) == ("partial", "listing_refused")
        assert [batch["kind"] for batch in run["failed_batches"]] == ["list"]
        asked = [query.get("after") for _, query in graph.calls if "user_id" in query]
        assert asked == [None, "C1", None, "C1"]
        stored = await world.rows("select message_id from convsync.contact_interaction_events order by 1")
        assert [row["message_id"] for row in stored] == ["m_1", "m_2"]


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "lives"])
async def test_what_cannot_be_read_counts_once_though_the_thread_is_read_twice(
    database: Any, dies: bool
) -> None:
    died: list[str] = [] if dies else ["never"]
    nameless = {"created_time": "2026-10-01T10:00:00+0000"}
    people = [{"id": "1001"}, {"id": PAGE}]

    def following(cursor: str) -> dict[str, Any]:
        return {"cursors": {"after": cursor}, "next": f"https://graph.example/next?after={cursor}"}

    def answer(path: str, query: Mapping[str, str]) -> Any:
        if path != "t_3/messages":
            slice_ = {"data": [message(9, "1001")], "paging": following("N1")}
            return {"data": [conversation(3, people, slice_, message_count=4)]}
        if "after" not in query:
            return {"data": [message(9, "1001"), nameless], "paging": following("N2")}
        if query["after"] == "N1":
            return {"data": [nameless], "paging": following("N2")}
        if not died:
            died.append(query["after"])
            return DEAD
        return {"data": [message(1, "1001")]}

    async with (
        fake_graph(answer) as graph,
        open_world(database, clock=FastTime(1), graph_url=graph.url) as world,
    ):
        assert (await world.sync()).status == "succeeded"
        (row,) = await world.rows("select unreadable from convsync.thread_proofs")
        assert row["unreadable"] == 1
