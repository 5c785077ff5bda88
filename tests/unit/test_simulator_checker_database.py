"""The verdict on rows in PostgreSQL: what the pure comparison convicts must also be found by its queries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from convsync.simulator import Population
from convsync.simulator.checker import compare
from convsync.simulator.config import DEFAULT_NOW
from convsync.simulator.control import truth_conversation
from convsync.simulator.verdict import Verdict

PAGE = "100000000000001"
Connection = psycopg.AsyncConnection[Any]


@pytest.fixture(scope="module")
def truth() -> list[dict[str, Any]]:
    population = Population(PAGE, 1, 30, 8, DEFAULT_NOW, page_name="Shop")
    busy = max(population.conversations, key=lambda one: one.size)
    population.unsend(population.all_messages(busy)[1].message_id)
    return [truth_conversation(population, one) for one in population.conversations]


@pytest.fixture
async def mirror(database: Any, truth: list[dict[str, Any]]) -> AsyncIterator[Connection]:
    """A right mirror, written with plain inserts, in a transaction that is rolled back."""
    async with await psycopg.AsyncConnection.connect(database.owner_url) as connection:
        await connection.execute("insert into convsync.pages (page_id) values (%s)", [PAGE])
        for thread in truth:
            await insert(connection, thread)
        yield connection
        await connection.rollback()


async def insert(connection: Connection, thread: dict[str, Any]) -> None:
    shown = [message for message in thread["messages"] if not message["deleted"]]
    cursor = await connection.execute(
        """
        insert into convsync.messenger_conversations
          (page_id, sender_id, sender_name, thread_id, last_message, last_message_id, last_message_time,
           message_count, history_complete_at)
        values (%s, %s, %s, %s, %s, %s, to_timestamp(%s), %s, now()) returning conversation_id
        """,
        [
            PAGE,
            thread["customer_id"] or "thread:" + thread["thread_id"],
            thread["name"],
            thread["thread_id"],
            shown[-1]["text"] or None,
            shown[-1]["id"],
            shown[-1]["created_time"] / 1000,
            len(shown),
        ],
    )
    row = await cursor.fetchone()
    assert row is not None
    for message in shown:
        graph: dict[str, Any] = {}
        if message["attachment_ids"]:
            graph["attachments"] = [{"id": one} for one in message["attachment_ids"]]
        if message["sticker"]:
            graph["sticker"] = message["sticker"]
        await connection.execute(
            """
            insert into convsync.contact_interaction_events
              (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source,
               text_original, graph_at, metadata)
            values (%s, %s, %s, 'message', %s, to_timestamp(%s), 'sync', %s, now(), %s)
            """,
            [
                PAGE,
                message["id"],
                row[0],
                message["direction"],
                message["created_time"] / 1000,
                message["text"] or None,
                Jsonb({"graph": graph}),
            ],
        )


def counts(verdict: Verdict) -> tuple[int, int, int]:
    return (verdict.missing, verdict.extra, verdict.differing)


async def test_a_right_mirror_is_acquitted(mirror: Connection, truth: list[dict[str, Any]]) -> None:
    verdict = await compare(mirror, truth, PAGE)
    assert verdict.examples == []
    assert verdict.clean
    assert verdict.conversations == 30
    assert verdict.messages == sum(not m["deleted"] for thread in truth for m in thread["messages"])


async def test_a_deleted_conversation_is_deleted_with_its_messages(
    mirror: Connection, truth: list[dict[str, Any]]
) -> None:
    thread = truth.pop()
    assert counts(await compare(mirror, truth, PAGE)) == (0, 1 + len(thread["messages"]), 0)
    await mirror.execute(
        "update convsync.messenger_conversations set deleted_at = now() where thread_id = %s",
        [thread["thread_id"]],
    )
    assert counts(await compare(mirror, truth, PAGE)) == (0, 0, 0)
    truth.append(thread)
    missing, extra, differing = counts(await compare(mirror, truth, PAGE))
    assert (missing, extra) == (1, 0)
    assert missing + differing > 0


# What happens to the mirror in SQL, and what must be found: missing, extra, differing. `:one` is a text
# message in the longest thread, `:events` and `:threads` are the tables.
PLANTED = {
    "a lost message": ("delete from :events where message_id = :one", (1, 0, 0)),
    "a wrong text": ("update :events set text_original = 'x' where message_id = :one", (0, 0, 1)),
    "a second off": (
        "update :events set event_timestamp = event_timestamp + interval '1 second' where message_id = :one",
        (0, 0, 1),
    ),
    "deleted": ("update :events set unsent_at = now() where message_id = :one", (0, 0, 1)),
    "the wrong person": (
        """
        update :events
           set conversation_id = (select conversation_id from :threads order by message_count limit 1)
         where message_id = :one
        """,
        (0, 0, 1),
    ),
    "lost attachments": (
        """
        update :events set metadata = '{}'
         where message_id = (select message_id from :events
                              where metadata @? '$.graph.attachments' and not metadata @? '$.graph.sticker'
                              limit 1)
        """,
        (0, 0, 1),
    ),
    "an invented message": (
        """
        insert into :events
          (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
        select page_id, 'm_invented', conversation_id, 'message', 'in', now(), 'sync' from :threads limit 1
        """,
        (0, 1, 0),
    ),
    "an event that is no message": (
        """
        insert into :events
          (page_id, message_id, conversation_id, event_type, direction, in_thread, event_timestamp, source)
        select page_id, 'read:1', conversation_id, 'read', 'in', false, now(), 'webhook'
          from :threads limit 1
        """,
        (0, 0, 0),
    ),
    "an invented conversation with a message": (
        """
        with made as (insert into :threads (page_id, sender_id) values ('100000000000001', 'nobody')
                      returning page_id, conversation_id)
        insert into :events
          (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
        select page_id, 'm_invented', conversation_id, 'message', 'in', now(), 'sync' from made
        """,
        (0, 2, 0),
    ),
    "a wrong count": (
        """
        update :threads set message_count = message_count + 1
         where conversation_id = (select min(conversation_id) from :threads)
        """,
        (0, 0, 1),
    ),
    # Not there under its person, there under another, and so is its one message.
    "a thread under another person": (
        """
        update :threads set sender_id = 'somebody else'
         where conversation_id = (select conversation_id from :threads where message_count = 1 limit 1)
        """,
        (1, 1, 1),
    ),
}
_ONE = """
(select message_id from :events
  where conversation_id = (select conversation_id from :threads order by message_count desc, 1 limit 1)
    and body is not null and metadata = '{"graph": {}}'
  order by event_timestamp limit 1)
"""


@pytest.mark.parametrize("planted", PLANTED)
async def test_a_planted_fault_is_convicted(
    mirror: Connection, truth: list[dict[str, Any]], planted: str
) -> None:
    statement, expected = PLANTED[planted]
    statement = statement.replace(":one", _ONE)
    statement = statement.replace(":events", "convsync.contact_interaction_events")
    statement = statement.replace(":threads", "convsync.messenger_conversations")
    cursor = await mirror.execute(statement.encode())
    assert cursor.rowcount == 1
    verdict = await compare(mirror, truth, PAGE)
    assert counts(verdict) == expected, verdict.examples


async def test_a_claim_to_have_all_of_what_nobody_can_read_is_convicted(
    mirror: Connection, truth: list[dict[str, Any]]
) -> None:
    longest = max(truth, key=lambda one: len(one["messages"]))
    alive = [message for message in longest["messages"] if not message["deleted"]]
    hidden = [message["id"] for message in alive[:4]]
    messages = [message | {"readable": message["id"] not in hidden} for message in longest["messages"]]
    told = [longest | {"messages": messages} if one is longest else one for one in truth]
    await mirror.execute(
        "delete from convsync.contact_interaction_events where message_id = any(%s)", [hidden]
    )
    claim = "update convsync.messenger_conversations set message_count = %s, history_complete_at = {} "
    where = "where thread_id = %s"
    values = [len(alive) - 4, longest["thread_id"]]
    await mirror.execute((claim.format("now()") + where).encode(), values)
    assert counts(await compare(mirror, told, PAGE)) == (0, 0, 1)
    await mirror.execute((claim.format("null") + where).encode(), values)
    honest = await compare(mirror, told, PAGE)
    assert honest.clean, honest.examples
    assert honest.unreadable == 4


async def test_other_pages_do_not_count(mirror: Connection, truth: list[dict[str, Any]]) -> None:
    verdict = await compare(mirror, [], "100000000000002")
    assert counts(verdict) == (0, 0, 0)
    assert (await compare(mirror, [], PAGE)).extra == 30 + sum(
        not message["deleted"] for thread in truth for message in thread["messages"]
    )
