"""The Send API of the simulator: what the Page sends is in its thread, and comes back by webhook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from graph_reader import GraphReader, reading

from convsync.simulator.rules import GraphRules


class Receiver:
    """A callback that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.url = ""
        self.open = asyncio.Event()
        """Nothing is taken before this is set."""
        self.open.set()
        self.arrived = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        document = json.loads(await request.read())
        self.arrived.set()
        await self.open.wait()
        self.events += [event for entry in document["entry"] for event in entry["messaging"]]
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_post("/", one.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield one
    await runner.cleanup()


@pytest.fixture
async def reader(receiver: Receiver) -> AsyncIterator[GraphReader]:
    async with reading(webhooks_to=receiver.url, subscribed=True) as one:
        yield one


def somebody(reader: GraphReader) -> str:
    """A person who has written just now."""
    population = reader.simulator.population
    one = next(one for one in population.conversations if one.kind == "normal")
    population.new_message(one, "in", "hello?")
    return one.psid


@pytest.mark.parametrize("form", [False, True])
async def test_the_echo_of_a_message_comes_back_by_webhook(
    reader: GraphReader, receiver: Receiver, form: bool
) -> None:
    psid = somebody(reader)
    body: dict[str, Any] = {
        "recipient": {"id": psid},
        "messaging_type": "RESPONSE",
        "message": {"text": "It is ready 🚲", "metadata": "ours"},
    }
    url = f"{reader.simulator.url}/v26.0/me/messages"
    query = {"access_token": reader.simulator.page.token}
    sent: dict[str, Any] = (
        {
            "data": {
                name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()
            }
        }
        if form
        else {"json": body}
    )
    async with aiohttp.ClientSession() as session, session.post(url, params=query, **sent) as answer:
        assert answer.status == 200
        told = await answer.json()
    assert set(told) == {"recipient_id", "message_id"}
    assert told["recipient_id"] == psid
    (event,) = receiver.events
    assert (event["sender"]["id"], event["recipient"]["id"]) == (reader.page_id, psid)
    assert event["message"]["is_echo"] is True
    assert event["message"]["mid"] == told["message_id"]
    assert event["message"]["app_id"] == int(reader.simulator.config.app_id)
    assert event["message"]["metadata"] == "ours"
    read = await reader.ok(told["message_id"], fields="message,from")
    assert (read["message"], read["from"]["id"]) == ("It is ready 🚲", reader.page_id)
    first = await reader.ok(reader.list, limit=1, fields="snippet")
    assert first["data"][0]["snippet"] == "It is ready 🚲"


async def test_attachments_replies_and_actions_are_sent(reader: GraphReader, receiver: Receiver) -> None:
    psid = somebody(reader)
    person = json.dumps({"id": psid})
    path = f"{reader.page_id}/messages"
    picture = json.dumps({"attachment": {"type": "image", "payload": {"url": "https://example.org/a.png"}}})
    sent = await reader.ok(path, "POST", recipient=person, message=picture)
    read = await reader.ok(sent["message_id"], fields="attachments")
    assert "image_data" in read["attachments"]["data"][0]
    reply = json.dumps({"mid": sent["message_id"]})
    answer = await reader.ok(path, "POST", recipient=person, message='{"text": "see"}', reply_to=reply)
    read = await reader.ok(answer["message_id"], fields="reply_to")
    assert read["reply_to"] == {"mid": sent["message_id"], "is_self_reply": True}
    assert len(receiver.events) == 2
    conversation = reader.simulator.population.conversation_with(psid)
    assert conversation is not None
    reader.simulator.population.new_message(conversation, "in", "and now?")
    assert (await reader.ok(conversation.thread_id, fields="unread_count"))["unread_count"] == 1
    seen = await reader.ok(path, "POST", recipient=person, sender_action="mark_seen")
    assert seen == {"recipient_id": psid}
    shown = await reader.ok(conversation.thread_id, fields="unread_count")
    assert shown.get("unread_count", 0) == 0
    assert len(receiver.events) == 2


async def test_what_cannot_be_sent_is_refused_and_nothing_appears(
    reader: GraphReader, receiver: Receiver
) -> None:
    person = json.dumps({"id": somebody(reader)})
    path = f"{reader.page_id}/messages"
    before = reader.simulator.population.message_total()
    stranger = await reader.error(path, "POST", recipient='{"id": "1"}', message='{"text": "x"}')
    assert (stranger["code"], stranger["error_subcode"]) == (100, 2018001)
    for bad in (
        {"message": '{"text": "x"}'},
        {"recipient": person},
        {"recipient": "nobody", "message": '{"text": "x"}'},
        {"recipient": person, "message": "{}"},
        {"recipient": person, "message": '{"text": ""}'},
        {"recipient": person, "message": json.dumps({"text": "x" * 2001})},
        {"recipient": person, "message": '{"attachment": {"type": "hologram"}}'},
        {"recipient": person, "sender_action": "dance"},
    ):
        assert (await reader.error(path, "POST", **bad))["code"] == 100, bad
    token = reader.simulator.config.graph.user_token
    person_sends = {"recipient": person, "message": '{"text": "x"}', "access_token": token}
    assert (await reader.error("me/messages", "POST", **person_sends))["error_subcode"] == 33
    assert reader.simulator.population.message_total() == before
    assert receiver.events == []


HOUR = 3_600_000


@pytest.mark.parametrize(
    ("hours", "tag", "refused"),
    [
        (23.9, None, False),
        (24.1, None, True),
        (24.1, "HUMAN_AGENT", False),
        (7 * 24 + 0.1, "HUMAN_AGENT", True),
        (0.1, "CONFIRMED_EVENT_UPDATE", True),
    ],
)
async def test_a_page_may_write_to_a_person_for_a_day_and_an_agent_for_a_week(
    reader: GraphReader, hours: float, tag: str | None, refused: bool
) -> None:
    population = reader.simulator.population
    thread = next(one for one in population.conversations if one.kind == "normal")
    _, message = population.new_message(thread, "in", "are you there?")
    # What the Page writes does not open it again.
    population.new_message(thread, "out", "yes")
    population.moment = message.created_ms + int(hours * HOUR)
    tagged = {} if tag is None else {"messaging_type": "MESSAGE_TAG", "tag": tag}
    send = {"recipient": json.dumps({"id": thread.psid}), "message": '{"text": "hello"}', **tagged}
    before = population.message_total()
    if not refused:
        await reader.ok("me/messages", "POST", **send)
        return
    error = await reader.error("me/messages", "POST", **send)
    known_tag = tag in (None, "HUMAN_AGENT")
    assert (error["code"], error.get("error_subcode")) == ((10, 2018278) if known_tag else (100, None))
    assert population.message_total() == before


async def test_who_never_wrote_is_not_written_to_unless_there_is_no_window() -> None:
    for window in (True, False):
        rules = GraphRules(messaging_window=window)
        async with reading(conversations=0, graph=rules) as reader:
            thread, _ = reader.simulator.population.new_message(None, "out", "welcome")
            send = {"recipient": json.dumps({"id": thread.psid}), "message": '{"text": "hello"}'}
            status, document, _ = await reader.call("me/messages", "POST", **send)
            assert status == (400 if window else 200), document


async def test_the_echo_comes_before_the_answer_or_after_it(receiver: Receiver) -> None:
    for first in (True, False):
        receiver.events.clear()
        receiver.open.clear()
        async with reading(webhooks_to=receiver.url, subscribed=True, echo_before_answer=first) as reader:
            call = asyncio.create_task(
                reader.ok(
                    "me/messages",
                    "POST",
                    recipient=json.dumps({"id": somebody(reader)}),
                    message='{"text": "hello"}',
                )
            )
            if first:
                await receiver.arrived.wait()
                assert not call.done(), "the answer waits for the echo"
                receiver.open.set()
                await call
            else:
                await call
                assert receiver.events == [], "the answer does not wait for the echo"
                receiver.open.set()
                await reader.simulator.webhooks.settle()
            assert [one["message"]["text"] for one in receiver.events] == ["hello"]
