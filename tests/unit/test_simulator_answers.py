"""The answers byte by byte: what is written in parts and in advance is the plain JSON of the whole."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from graph_reader import GraphReader, reading

from convsync.simulator.acts import ALL_KINDS, Actor
from convsync.simulator.messages import Message
from convsync.simulator.paging import encode_cursor
from convsync.simulator.population import Conversation

MESSAGE = (
    "id,created_time,from,to{id},message,attachments,shares{id,link,name,description,picture},sticker,tags,"
    "reactions,reply_to,is_unsupported"
)
LIST = f"id,updated_time,message_count,participants{{id,name}},messages.limit(7){{{MESSAGE}}}"


def moment(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def people(reader: GraphReader, thread: Conversation) -> tuple[dict[str, Any], dict[str, Any] | None]:
    page_id = reader.page_id
    page = {"name": reader.simulator.page.name, "email": f"{page_id}@facebook.com", "id": page_id}
    if thread.kind == "gone":
        return page, None
    person: dict[str, Any] = {}
    if thread.name is not None or thread.index % 2:
        person["name"] = thread.name or ""
    if thread.customer_id:
        person |= {"email": f"{thread.customer_id}@facebook.com", "id": thread.customer_id}
    return page, person


def plain_message(reader: GraphReader, thread: Conversation, message: Message) -> dict[str, Any]:
    """A message with the fields of `MESSAGE`, in their order, and nothing that has no data."""
    page, person = people(reader, thread)
    author, receiver = (page, person) if message.outbound else (person, page)
    node: dict[str, Any] = {"id": message.message_id, "created_time": moment(message.created_ms)}
    if author:
        node["from"] = author
    if receiver:
        node["to"] = {"data": [{"id": receiver["id"]} if "id" in receiver else {}]}
    node["message"] = message.text
    if message.attachments:
        query = {"access_token": reader.simulator.page.token, "pretty": "0", "limit": "25", "after": "MAZDZD"}
        node["attachments"] = {
            "data": list(message.attachments),
            "paging": {
                "cursors": {"before": "MAZDZD", "after": "MAZDZD"},
                "next": f"{reader.simulator.url}/v26.0/{message.message_id}/attachments?{urlencode(query)}",
            },
        }
    if message.share:
        node["shares"] = {
            "data": [{n: message.share[n] for n in ("id", "link", "name", "description", "picture")}]
        }
    if message.sticker:
        node["sticker"] = message.sticker
    tags = ["inbox", "sent", "read"] if message.outbound else ["inbox"]
    node["tags"] = {"data": [{"name": name} for name in (*tags, message.source)]}
    if message.reactions:
        node["reactions"] = {"data": []}
        for who, reaction in message.reactions:
            user = page if who == "page" else person
            shown = {name: user[name] for name in ("name", "id") if name in user} if user else {}
            node["reactions"]["data"].append({"reaction": reaction, "users": [shown] if shown else []})
    if message.reply_to:
        found = reader.simulator.population.find_message(message.reply_to)
        assert found is not None
        own = found[1].outbound == message.outbound
        node["reply_to"] = {"mid": message.reply_to, "is_self_reply": own}
    if message.unsupported:
        node["is_unsupported"] = True if message.number % 2 else "true"
    return node


def plain_list(reader: GraphReader, threads: list[Conversation], more: bool) -> dict[str, Any]:
    """The first page of the list with the fields of `LIST`."""
    population, token = reader.simulator.population, reader.simulator.page.token
    base = f"{reader.simulator.url}/v26.0"
    data = []
    for thread in threads:
        node: dict[str, Any] = {
            "id": thread.thread_id,
            "updated_time": moment(thread.updated_ms),
            "message_count": thread.message_count,
        }
        page, person = people(reader, thread)
        if not (thread.kind == "gone" and thread.index % 2):
            everybody = [page] if person is None else [person, page]
            if person is not None and thread.index % 7 == 3:
                everybody.reverse()
            node["participants"] = {
                "data": [{n: v for n, v in one.items() if n != "email"} for one in everybody]
            }
        visible = [one for one in population.all_messages(thread) if not one.deleted][::-1]
        shown = visible[:7]
        if shown:
            cursors = {
                "before": encode_cursor(thread.thread_id, shown[0].key, 0),
                "after": encode_cursor(thread.thread_id, shown[-1].key, len(shown)),
            }
            paging: dict[str, Any] = {"cursors": cursors}
            if len(visible) > 7:
                query = {"access_token": token, "pretty": "0", "limit": "7", "fields": MESSAGE}
                query["after"] = cursors["after"]
                paging["next"] = f"{base}/{thread.thread_id}/messages?{urlencode(query, quote_via=quote)}"
            node["messages"] = {
                "data": [plain_message(reader, thread, one) for one in shown],
                "paging": paging,
            }
        data.append(node)
    cursors = {
        "before": encode_cursor(reader.page_id, threads[0].key, 0),
        "after": encode_cursor(reader.page_id, threads[-1].key, len(threads)),
    }
    answer: dict[str, Any] = {"data": data, "paging": {"cursors": cursors}}
    if more:
        query = {"access_token": token, "pretty": "0", "fields": LIST, "limit": "180"}
        query["after"] = cursors["after"]
        answer["paging"]["next"] = f"{base}/{reader.list}?{urlencode(query, quote_via=quote)}"
    return answer


async def raw(reader: GraphReader, path: str, **parameters: Any) -> bytes:
    query = {"access_token": reader.simulator.page.token, **parameters}
    async with reader.session.get(f"{reader.simulator.url}/{path}", params=query) as answer:
        assert answer.status == 200
        return await answer.read()


async def test_an_answer_is_byte_for_byte_the_plain_json_of_its_threads() -> None:
    async with reading(conversations=185, messages=20, seed=2) as reader:
        population = reader.simulator.population
        actor = Actor(population, Random(3))  # noqa: S311 - to be the same each time
        # Before anybody has looked, and after much has happened.
        for things in (0, 400):
            for number in range(things):
                actor.play(sorted(ALL_KINDS)[number % len(ALL_KINDS)])
            threads = sorted(population.conversations, key=lambda one: one.key, reverse=True)
            answered = await raw(reader, f"v26.0/{reader.list}", fields=LIST, limit=180)
            assert answered == orjson.dumps(plain_list(reader, threads[:180], len(threads) > 180))
            assert await raw(reader, f"v26.0/{reader.list}", fields=LIST, limit=180) == answered
    kinds = {one.kind for one in threads[:180]}
    messages = [one for thread in threads[:180] for one in population.visible_messages(thread)[-7:]]
    assert kinds == {"normal", "no_name", "facebook_user", "gone", "no_id"}
    for name in ("attachments", "share", "sticker", "reactions", "reply_to", "unsupported"):
        assert any(getattr(one, name) for one in messages), name


async def test_a_seed_gives_the_same_bytes_as_ever() -> None:
    """Whoever wrote down what a seed gives relies on it. Change these only for an inbox that is to change."""
    digests = {}
    for seed in (1, 7):
        digest = hashlib.sha256()
        async with reading(conversations=70, messages=25, seed=seed) as reader:
            address = reader.simulator.url.encode()
            first = await raw(reader, f"v26.0/{reader.list}", fields=LIST)
            second = await raw(
                reader, f"v26.0/{reader.list}", limit=100, fields="snippet,unread_count,messages"
            )
            for body in (first, second):
                digest.update(body.replace(address, b"http://simulator"))
        digests[seed] = digest.hexdigest()[:16]
    assert digests == {1: "c46fec579ad7934d", 7: "0100749a5982d46e"}
