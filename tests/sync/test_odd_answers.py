"""Answers no documentation promises: odd participants, lists without wrappers, empty pages that go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from secrets_hunt import marked
from sync.fake_graph import conversation, fake_graph, message
from sync.world import open_world

PAGE = "100000000000001"


async def test_of_ten_participants_the_six_readable_ones_land_and_three_are_dead_letters(
    database: Any,
) -> None:
    """A null, one that is no object, one without id, and the Page itself, which is no contact."""
    people: list[Any] = [{"id": str(1001 + number), "name": f"Person {number}"} for number in range(6)]
    participants = [
        *people[:2],
        None,
        *people[2:4],
        "Facebook User",
        {"name": "Nobody"},
        {"id": PAGE, "name": "The Page"},
        *people[4:],
    ]
    assert len(participants) == 10

    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        return {"data": [conversation(1, {"data": participants})]}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        stored = await world.rows(
            "select sender_id, sender_name from convsync.messenger_conversations order by sender_id"
        )
        assert [(row["sender_id"], row["sender_name"]) for row in stored] == [
            (person["id"], person["name"]) for person in people
        ]
        letters = await world.rows(
            """
            select page_id, reason, convert_from(raw, 'UTF8') as raw
            from convsync.dead_letters order by reason
            """
        )
        assert [(row["page_id"], row["reason"], row["raw"]) for row in letters] == [
            (PAGE, "participants[2]: null (t_1)", "null"),
            (PAGE, "participants[5]: not an object (t_1)", '"Facebook User"'),
            (PAGE, "participants[6].id: missing (t_1)", '{"name":"Nobody"}'),
        ]
        assert await world.event_count() == 1


async def test_page_alone_is_nobody_and_its_thread_is_kept_by_its_own_id(database: Any) -> None:
    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        sent = {"data": [message(1, PAGE)]}
        return {"data": [conversation(1, {"data": [{"id": PAGE, "name": "The Page"}]}, sent)]}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        assert (await world.sync()).status == "succeeded"
        stored = await world.rows(
            "select sender_id, sender_name, message_count from convsync.messenger_conversations"
        )
        assert stored == [{"sender_id": "thread:t_1", "sender_name": None, "message_count": 1}]


@pytest.mark.parametrize("wrapped", [True, False], ids=["with data", "without data"])
async def test_lists_are_read_with_and_without_their_data_wrapper(database: Any, wrapped: bool) -> None:
    def listed(items: list[Any]) -> Any:
        return {"data": items} if wrapped else items

    picture = {"id": "att1", "mime_type": "image/jpeg", "image_data": {"url": "https://example.org/a.jpg"}}

    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        threads = [
            conversation(
                number,
                listed([{"id": str(1000 + number), "name": f"P{number}"}, {"id": PAGE}]),
                listed([message(number, str(1000 + number), attachments=listed([picture]))]),
            )
            for number in (2, 1)
        ]
        return {"data": threads}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        assert (await world.sync()).status == "succeeded"
        stored = await world.rows(
            """
            select c.sender_id, c.sender_name, e.message_id, e.direction, e.body,
              e.metadata -> 'graph' -> 'attachments' -> 0 ->> 'id' as attachment,
              c.history_complete_at is not null as complete
            from convsync.messenger_conversations c
            join convsync.contact_interaction_events e using (page_id, conversation_id)
            order by c.sender_id
            """
        )
        assert stored == [
            {
                "sender_id": str(1000 + number),
                "sender_name": f"P{number}",
                "message_id": f"m_{number}",
                "direction": "in",
                "body": f"message {number}",
                "attachment": "att1",
                "complete": True,
            }
            for number in (1, 2)
        ]


async def test_only_the_absence_of_next_ends_a_list(database: Any) -> None:
    """Five pages, two of them empty in the middle, one short: every one is asked for."""
    person = {"data": [{"id": "1001", "name": "P"}]}
    pages: dict[str, list[Any]] = {
        "": [conversation(5, {"data": [{"id": "1005"}]}, {"data": [message(5, "1005")]})],
        "a": [],
        "b": [],
        "c": [conversation(3, {"data": [{"id": "1003"}]}, {"data": [message(3, "1003")]})],
        "d": [conversation(1, person)],
    }
    order = list(pages)

    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        here = query.get("after", "")
        place = order.index(here)
        if place == len(order) - 1:
            return {"data": pages[here], "paging": {"cursors": {"after": "end"}}}
        following = order[place + 1]
        link = (
            f"https://graph.facebook.com/v26.0/{PAGE}/conversations?access_token={marked('EAAsecret')}&after="
        )
        return {
            "data": pages[here],
            "paging": {"cursors": {"after": following}, "next": link + following},
        }

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        assert (await world.sync()).status == "succeeded"
        people = await world.rows("select sender_id from convsync.messenger_conversations order by 1")
        assert [row["sender_id"] for row in people] == ["1001", "1003", "1005"]
        assert {query.get("after", "") for _, query in graph.calls} == set(order)


async def test_conversation_without_id_is_kept_as_a_dead_letter_and_its_siblings_land(database: Any) -> None:
    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        good = conversation(1, {"data": [{"id": "1001"}]})
        broken = conversation(2, {"data": [{"id": "1002"}]})
        del broken["id"]
        return {"data": [broken, None, good]}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        outcome = await world.sync()
        run = await world.run_of(outcome)
        assert run["status"] == "succeeded"
        # The list is read twice, what it will not give is the same two things.
        assert run["unreadable"] == 2
        assert await world.value("select count(*) from convsync.dead_letters") == 2
        assert await world.value("select count(*) from convsync.messenger_conversations") == 1


async def test_message_without_a_time_keeps_its_conversation_from_being_complete(database: Any) -> None:
    def answer(path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        timeless = message(2, "1001")
        del timeless["created_time"]
        return {
            "data": [
                conversation(1, {"data": [{"id": "1001"}]}, {"data": [message(1, "1001"), timeless]}),
                conversation(3, {"data": [{"id": "1003"}]}, {"data": [message(3, "1003")]}),
            ]
        }

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        complete = await world.rows(
            """
            select sender_id, history_complete_at is not null as complete
            from convsync.messenger_conversations order by 1
            """
        )
        assert [(row["sender_id"], row["complete"]) for row in complete] == [("1001", False), ("1003", True)]
        assert await world.value("select count(*) from convsync.dead_letters") == 1
        assert (await world.run_of(outcome))["unreadable"] == 1
