"""The verdict on a mirror: the database, read by plain SQL, against the truth of the simulator.

It knows two tables by name and nothing else of convsync: no function of the service or the database takes
part.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
import psycopg

from convsync.simulator.verdict import (
    Comparison,
    MirrorConversation,
    MirrorMessage,
    TruthConversation,
    Verdict,
    truth_from_json,
)

_CHUNK_CONVERSATIONS = 200
_CHUNK_MESSAGES = 10_000

_CONVERSATIONS = """
select conversation_id, sender_id, sender_name, thread_id, last_message, message_count,
       deleted_at is not null,
       floor(extract(epoch from history_complete_at))::bigint
  from convsync.messenger_conversations
 where page_id = %(page_id)s
"""

_MESSAGES = """
select message_id, conversation_id, direction, body, floor(extract(epoch from event_timestamp))::bigint,
       deleted_at is not null,
       graph_at is not null or metadata ? 'graph',
       jsonb_path_query_array(metadata, 'lax $.graph.attachments[*].id'),
       metadata -> 'graph' ->> 'sticker'
  from convsync.contact_interaction_events
 where page_id = %(page_id)s
   and in_thread
"""

# Two queries whose answers share no row, so that a row that is there twice is seen twice.
_IN_THREADS = _MESSAGES + " and conversation_id = any(%(conversations)s)"
_ELSEWHERE = _MESSAGES + " and message_id = any(%(messages)s) and conversation_id <> all(%(conversations)s)"

_BESIDES = """
select event.message_id
  from convsync.contact_interaction_events as event
  left join convsync.messenger_conversations as conversation
    on conversation.page_id = event.page_id and conversation.conversation_id = event.conversation_id
 where event.page_id = %(page_id)s
   and event.in_thread
   and event.deleted_at is null
   and conversation.deleted_at is null
   and (conversation.conversation_id is null or event.conversation_id = any(%(conversations)s))
"""

Truth = Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]]


async def fetch_truth(url: str, page_id: str, *, part: int = 200) -> AsyncIterator[dict[str, Any]]:
    """The conversations of a Page as the simulator at `url` has them, in parts of `part` so that a big inbox
    is never in memory at once. Raises aiohttp.ClientError when the simulator does not answer.
    """
    after: str | None = "-1"
    address = f"{url.rstrip('/')}/_sim/truth/{quote(page_id)}"
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        while after is not None:
            async with session.get(address, params={"after": after, "limit": str(part)}) as answer:
                document = orjson.loads(await answer.read())
            for conversation in document["conversations"]:
                yield conversation
            after = document["next"]


async def compare(conn: psycopg.AsyncConnection[Any], truth: Truth, page_id: str) -> Verdict:
    """The verdict on the mirror of one Page.

    `truth` gives conversations in the JSON form of `/_sim/truth/{page_id}` (a list, or `fetch_truth(..)`).
    Reads the mirror through `conn` and writes nothing. For a mirror that changes meanwhile, run it in a
    repeatable read transaction; the truth must stand still in any case.
    """
    comparison = Comparison()
    by_person: dict[str, list[MirrorConversation]] = {}
    everywhere: set[int] = set()
    async with conn.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        await cursor.execute(_CONVERSATIONS, {"page_id": page_id})
        async for row in cursor:
            found = MirrorConversation(*row)
            everywhere.add(found.conversation_id)
            if not found.deleted:
                by_person.setdefault(found.sender_id, []).append(found)

    chunk: list[tuple[TruthConversation, list[MirrorConversation]]] = []
    size = 0
    async for document in _each(truth):
        conversation = truth_from_json(document)
        chunk.append((conversation, by_person.pop(conversation.sender_id, [])))
        size += len(conversation.messages)
        if len(chunk) >= _CHUNK_CONVERSATIONS or size >= _CHUNK_MESSAGES:
            everywhere -= await _compare_chunk(conn, page_id, comparison, chunk)
            chunk, size = [], 0
    if chunk:
        everywhere -= await _compare_chunk(conn, page_id, comparison, chunk)

    # What is left over has no thread in the truth. A deleted conversation is deleted with its messages.
    names = [f"{one.conversation_id} with {one.sender_id}" for left in by_person.values() for one in left]
    async with conn.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        await cursor.execute(_BESIDES, {"page_id": page_id, "conversations": sorted(everywhere)})
        comparison.besides(names, [row[0] for row in await cursor.fetchall()])
    return comparison.finish()


async def _compare_chunk(
    conn: psycopg.AsyncConnection[Any],
    page_id: str,
    comparison: Comparison,
    chunk: list[tuple[TruthConversation, list[MirrorConversation]]],
) -> set[int]:
    """Compare some threads; the ids of the mirror's conversations that were looked at."""
    home: dict[int, int] = {}
    expected: dict[str, int] = {}
    for number, (truth, mirrors) in enumerate(chunk):
        home.update(dict.fromkeys((mirror.conversation_id for mirror in mirrors), number))
        expected.update(dict.fromkeys((message.message_id for message in truth.messages), number))
    rows: list[list[MirrorMessage]] = [[] for _ in chunk]
    parameters = {"page_id": page_id, "conversations": list(home), "messages": list(expected)}
    async with conn.cursor(row_factory=psycopg.rows.tuple_row) as cursor:
        for query in (_IN_THREADS, _ELSEWHERE):
            await cursor.execute(query, parameters)
            async for row in cursor:
                message = _message(row)
                places = {home.get(message.conversation_id), expected.get(message.message_id)}
                for place in places:
                    if place is not None:
                        rows[place].append(message)
    for (truth, mirrors), found in zip(chunk, rows, strict=True):
        comparison.conversation(truth, mirrors, found)
    return set(home)


def _message(row: tuple[Any, ...]) -> MirrorMessage:
    message_id, conversation_id, direction, text, second, deleted, from_graph, attachments, sticker = row
    return MirrorMessage(
        message_id,
        conversation_id,
        direction,
        text,
        second,
        deleted=deleted,
        from_graph=bool(from_graph),
        attachment_ids=tuple(str(one) for one in attachments or ()),
        sticker=sticker,
    )


async def _each(truth: Truth) -> AsyncIterator[Mapping[str, Any]]:
    if isinstance(truth, AsyncIterable):
        async for document in truth:
            yield document
    else:
        for document in truth:
            yield document
