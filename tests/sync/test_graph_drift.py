"""The schema moves: everything that still can be read lands, what cannot is kept, and both are counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults.processes import commands
from sync.application import ended, service
from sync.fake_graph import conversation, fake_graph, message
from sync.world import World, open_world

PAGE = "100000000000001"
WITHOUT_ID = 57


def moved_schema(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
    """A hundred threads of one message each, as no release has seen them; one without an id."""
    threads = []
    for number in range(1, 101):
        person = {"id": str(1000 + number), "name": f"Person {number}", "badge": "gold"}
        thread = conversation(
            number,
            [person, {"id": PAGE}],  # without its wrapper
            {"data": [message(number, str(1000 + number), mood={"emoji": "x"}, tags="inbox")]},
            updated_time=f"2026-11-01T10:{number // 60:02}:{number % 60:02}+0000",
            verified_by_meta=True,  # a new field
            unread_count={"total": 3},  # a field of a new type
            snippet=[1, 2],
        )
        thread["messages"]["data"][0]["created_time"] = thread["updated_time"]
        threads.append(thread)
    del threads[WITHOUT_ID]["id"]
    return {"data": threads, "paging": {"cursors": {"after": "Q"}}, "edge_insights": {}}


EXPECTED = {
    "answer.edge_insights",
    "conversation.participants (list)",
    "conversation.snippet (list)",
    "conversation.unread_count (object)",
    "conversation.verified_by_meta",
    "conversation.id: missing",
    "participants.badge",
    "message.mood",
    "message.tags (text)",
}


async def check(world: World, lists: int) -> None:
    people = await world.rows("select sender_id from convsync.messenger_conversations")
    assert {row["sender_id"] for row in people} == {
        str(1001 + number) for number in range(100) if number != WITHOUT_ID
    }
    assert await world.event_count() == 99
    (letter,) = await world.rows(
        "select page_id, source, reason, convert_from(raw, 'UTF8') as raw from convsync.dead_letters"
    )
    assert (letter["page_id"], letter["source"], letter["reason"]) == (
        PAGE,
        "sync",
        "conversation.id: missing",
    )
    assert f'"id":"{1001 + WITHOUT_ID}"' in letter["raw"]
    assert f"message {WITHOUT_ID + 1}" in letter["raw"]
    drift = await world.rows("select page_id, source, name, occurrences from convsync.schema_drift")
    assert {(row["page_id"], row["source"]) for row in drift} == {(PAGE, "sync")}
    counted = {row["name"]: row["occurrences"] for row in drift}
    assert counted.keys() == EXPECTED
    # Each time the list was read, whatever was written last included.
    assert lists > 1
    assert counted["conversation.id: missing"] == lists
    assert counted["conversation.verified_by_meta"] == counted["message.mood"] == 99 * lists


async def test_service_lands_99_of_100_items_of_a_moved_schema_and_counts_what_moved(
    database: Any, tmp_path: Path
) -> None:
    async with fake_graph(moved_schema) as graph, open_world(database, graph_url=graph.url) as world:
        async with service(world, tmp_path, graph_url=graph.url) as (_, runner):
            begun = await runner.start(PAGE, "full")
            run = await ended(world, begun.run_id)
            assert (run["status"], run["unreadable"]) == ("succeeded", 1)
        await check(world, len(graph.calls))


async def test_command_lands_99_of_100_items_of_a_moved_schema_and_counts_what_moved(
    database: Any, tmp_path: Path
) -> None:
    async with (
        fake_graph(moved_schema) as graph,
        open_world(database, graph_url=graph.url) as world,
        commands(world, tmp_path) as cli,
    ):
        code, _, err = await cli.run("sync", PAGE, CONVSYNC_GRAPH_URL=graph.url)
        assert code == 0, err
        assert "conversation.verified_by_meta" in err
        assert "Traceback" not in err
        await check(world, len(graph.calls))
        code, out, _ = await cli.run("status")
        assert code == 0
        assert "message.mood" in out


async def test_message_without_an_id_among_a_hundred_costs_none_of_its_siblings(
    database: Any, tmp_path: Path
) -> None:
    messages = [
        message(number, "1001") | {"created_time": 1_790_000_000 + number} for number in range(100, 0, -1)
    ]
    del messages[30]["id"]

    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        listed = {
            "data": messages[:25],
            "paging": {"cursors": {"after": "25"}, "next": "https://x/?after=25"},
        }
        if path.endswith("/messages"):
            assert query["after"] == "25"
            return {"data": messages[25:]}
        return {"data": [conversation(1, {"data": [{"id": "1001"}]}, listed, message_count=100)]}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        async with service(world, tmp_path, graph_url=graph.url) as (_, runner):
            begun = await runner.start(PAGE, "full")
            assert (await ended(world, begun.run_id))["status"] == "succeeded"
        assert await world.event_count() == 99
        assert await world.value("select reason from convsync.dead_letters") == "message.id: missing (t_1)"
        names = await world.rows("select name from convsync.schema_drift")
        assert [row["name"] for row in names] == ["message.id: missing"]


async def test_answer_of_another_version_is_counted_as_drift(database: Any, tmp_path: Path) -> None:
    def answer(path: str, query: Mapping[str, str]) -> Any:
        body = {"data": [conversation(1, {"data": [{"id": "1001"}]})]}
        return 200, body, {"facebook-api-version": "v27.0"}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        async with service(world, tmp_path, graph_url=graph.url) as (_, runner):
            begun = await runner.start(PAGE, "full")
            assert (await ended(world, begun.run_id))["status"] == "succeeded"
        names = await world.rows("select name from convsync.schema_drift")
        assert [row["name"] for row in names] == ["answer of v27.0 to v26.0"]


async def test_what_is_known_of_graph_is_no_drift(database: Any, tmp_path: Path) -> None:
    """Everything the simulator says, with people of every kind, attachments, stickers and replies."""
    async with open_world(database, conversations=40, messages=20.0) as world:
        async with service(world, tmp_path) as (_, runner):
            begun = await runner.start(world.page_id, "full")
            assert (await ended(world, begun.run_id))["status"] == "succeeded"
        names = await world.rows("select name from convsync.schema_drift")
        assert not [row["name"] for row in names if not row["name"].startswith("participants.id")]
