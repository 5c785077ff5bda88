"""Webhooks: the bytes Meta would send, signed as it signs, sent as often, for what really happened."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig, events
from convsync.simulator.traffic import KINDS, UnknownKindError, live_traffic
from convsync.simulator.webhooks import escaped_json, signatures
from unit.webhook_receiver import Receiver, listening


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening() as one:
        yield one


@pytest.fixture
async def simulator(receiver: Receiver) -> AsyncIterator[Simulator]:
    config = SimulatorConfig(
        port=0,
        conversations=20,
        messages=5,
        calls_per_second=0,
        webhooks_to=receiver.url,
        subscribed=True,
        webhook_retry_delay=0.01,
    )
    async with Simulator(config) as one:
        yield one


def test_bodies_are_escaped_as_meta_escapes_them() -> None:
    body = escaped_json({"text": 'äöå 😀 </b> 100% a@b " \\ \u2028 \x7f', "url": "https://x/y"})
    assert body.isascii()
    assert b'\\u00e4\\u00f6\\u00e5 \\ud83d\\ude00 <\\/b> 100% a@b \\" \\\\ \\u2028' in body
    assert b'"https:\\/\\/x\\/y"' in body
    assert json.loads(body)["url"] == "https://x/y"


def test_the_signature_is_an_hmac_over_exactly_those_bytes() -> None:
    body = escaped_json({"text": "é/😀"})
    headers = signatures("sim-app-secret", body)
    assert headers["X-Hub-Signature-256"] == "sha256=" + hmac.digest(b"sim-app-secret", body, "sha256").hex()
    assert headers["X-Hub-Signature"] == "sha1=" + hmac.digest(b"sim-app-secret", body, "sha1").hex()
    # Known answer, computed elsewhere, so that both sides cannot be wrong together.
    known = signatures("key", b"The quick brown fox jumps over the lazy dog")
    assert known["X-Hub-Signature-256"] == (
        "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    )
    assert known["X-Hub-Signature"] == "sha1=de7c9b85b8b78aa6bc8a7a36f70a90701c9db4d9"


async def test_a_message_arrives_signed_in_its_envelope(simulator: Simulator, receiver: Receiver) -> None:
    conversation, message = simulator.population.new_message(None, "in", "Grüße 👋🏽")
    delivery = await simulator.webhooks.send(
        simulator.page.page_id, [events.message_event(conversation, message)]
    )
    assert delivery is not None
    assert delivery.delivered
    body, headers = receiver.bodies[0], receiver.headers[0]
    digest = hmac.new(b"sim-app-secret", body, hashlib.sha256).hexdigest()
    assert headers["X-Hub-Signature-256"] == f"sha256={digest}"
    assert headers["Content-Type"] == "application/json"
    entry = json.loads(body)["entry"][0]
    assert entry["id"] == simulator.page.page_id
    assert entry["time"] > 10**12
    assert entry["messaging"] == [
        {
            "sender": {"id": conversation.psid},
            "recipient": {"id": simulator.page.page_id},
            "timestamp": message.created_ms,
            "message": {"mid": message.message_id, "text": "Grüße 👋🏽"},
        }
    ]


async def test_a_refused_webhook_is_sent_again_at_once_and_then_given_up(
    simulator: Simulator, receiver: Receiver
) -> None:
    receiver.status = lambda number: 200 if number == 3 else 500
    await simulator.traffic(1, kinds=["text"])
    assert len(receiver.bodies) == 3
    assert len(set(receiver.bodies)) == 1
    assert simulator.webhooks.deliveries[0].delivered
    receiver.status = lambda number: 503
    report = await simulator.traffic(1, kinds=["text"], seed=2)
    assert (report.played, report.delivered, report.failed) == (1, 0, 1)
    assert [attempt.status for attempt in simulator.webhooks.deliveries[1].attempts] == [503] * 4
    assert simulator.webhooks.outcomes["failed"] == 1
    receiver.status = lambda number: 200
    assert await simulator.webhooks.redeliver_failed() == 1
    assert simulator.webhooks.deliveries[1].delivered


async def test_a_receiver_that_is_too_slow_counts_as_failed(simulator: Simulator, receiver: Receiver) -> None:
    receiver.delay = 0.4
    await simulator.webhooks.close()
    simulator.webhooks.timeout = 0.05
    simulator.webhooks.retries = 1
    await simulator.webhooks.open()
    report = await simulator.traffic(1, kinds=["echo"])
    assert report.failed == 1
    assert [attempt.status for attempt in simulator.webhooks.deliveries[0].attempts] == [None, None]
    assert "Timeout" in str(simulator.webhooks.deliveries[0].attempts[0].error)


async def test_only_subscribed_fields_of_subscribed_pages_are_sent(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.subscribe(simulator.page.page_id, ["messages"])
    report = await simulator.traffic(4, kinds=["echo"])
    assert report.not_sent == 4
    simulator.webhooks.unsubscribe(simulator.page.page_id)
    assert (await simulator.traffic(3, kinds=["text"])).not_sent == 3
    assert receiver.bodies == []
    assert simulator.webhooks.outcomes["not_subscribed"] == 7


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_every_kind_of_traffic_tells_of_something_that_happened(
    simulator: Simulator, receiver: Receiver, kind: str
) -> None:
    population, page_id = simulator.population, simulator.page.page_id
    report = await simulator.traffic(3, kinds=[kind])
    assert (report.played, report.delivered) == (3, 3)
    for event in receiver.events:
        from_page = event["sender"]["id"] == page_id
        assert (event["recipient"]["id"] == page_id) != from_page
        person = event["recipient"]["id"] if from_page else event["sender"]["id"]
        conversation = population.conversation_with(person)
        assert conversation is not None
        part = next(part for name, part in event.items() if name not in ("sender", "recipient", "timestamp"))
        if "mid" not in part:
            continue
        found = population.find_message(part["mid"])
        assert found is not None
        assert found[0] is conversation
        if "message" in event and "is_deleted" not in part:
            assert part.get("is_echo", False) == found[1].outbound == from_page
            assert part.get("text", "") == found[1].text
            assert event["timestamp"] == found[1].created_ms
        elif "postback" in event:
            assert part["title"] == found[1].text
        elif "message_edit" in event:
            assert part["num_edit"] >= 1
            assert found[1].text.endswith("(edited)")
        elif "is_deleted" in part:
            assert found[1].deleted


async def test_attachments_and_stickers_have_the_webhooks_form(
    simulator: Simulator, receiver: Receiver
) -> None:
    conversation, picture = simulator.population.new_message(None, "in", kind="image")
    _, sticker = simulator.population.new_message(conversation, "in", kind="sticker")
    built = [events.message_event(conversation, one).body["message"] for one in (picture, sticker)]
    assert built[0]["attachments"] == [
        {"type": "image", "payload": {"url": picture.attachments[0]["image_data"]["url"]}}
    ]
    assert built[1]["attachments"][0]["type"] == "sticker"
    assert built[1]["attachments"][0]["payload"]["sticker_id"] == sticker.sticker_id
    assert "text" not in built[0]


async def test_a_reaction_taken_back_has_no_emoji(simulator: Simulator) -> None:
    conversation, message = simulator.population.new_message(None, "in", "x")
    given = events.reaction_event(conversation, message.message_id, "love", 1).body["reaction"]
    assert given["emoji"] == "\u2764\ufe0f"
    taken = events.reaction_event(conversation, message.message_id, None, 1).body["reaction"]
    assert taken == {"mid": message.message_id, "action": "unreact"}


async def test_the_same_traffic_on_the_same_inbox_is_the_same_play() -> None:
    plays = []
    for _ in range(2):
        config = SimulatorConfig(port=0, conversations=20, messages=5)
        async with Simulator(config) as simulator:
            simulator.population.clock = lambda: 1_800_000_000_000
            await simulator.traffic(200, seed=5)
            population = simulator.population
            plays.append(
                [
                    (m.message_id, m.text, m.edits)
                    for c in population.conversations
                    for m in population.all_messages(c)
                ]
            )
    assert plays[0] == plays[1]


async def test_mixed_traffic_is_delivered_and_bumps_threads(simulator: Simulator, receiver: Receiver) -> None:
    before = simulator.population.message_total()
    report = await simulator.traffic(300)
    assert (report.played, report.delivered, report.failed, report.not_sent) == (300, 300, 0, 0)
    told = {
        part["mid"]
        for event in receiver.events
        for name, part in event.items()
        if name in ("message", "postback") and "mid" in part
    }
    assert simulator.population.message_total() - before == len(told) > 200


@pytest.mark.parametrize("kind", sorted(KINDS - {"new_person"}))
async def test_in_an_empty_inbox_somebody_new_writes(receiver: Receiver, kind: str) -> None:
    config = SimulatorConfig(port=0, conversations=0, webhooks_to=receiver.url, subscribed=True)
    async with Simulator(config) as simulator:
        assert (await simulator.traffic(1, kinds=[kind])).delivered == 1
        assert simulator.population.message_total() == 1
    assert "mid" in receiver.events[0]["message"]


async def test_silent_traffic_happens_and_tells_nobody(simulator: Simulator, receiver: Receiver) -> None:
    before = simulator.population.message_total()
    report = await simulator.traffic(10, kinds=["text", "echo"], silent=True)
    assert (report.played, report.not_sent) == (10, 10)
    assert simulator.population.message_total() == before + 10
    assert receiver.bodies == []


async def test_traffic_keeps_its_rate_and_ends_in_time(simulator: Simulator) -> None:
    started = asyncio.get_running_loop().time()
    report = await live_traffic(simulator.population, simulator.webhooks, rate=50, seconds=0.4)
    assert 0.35 <= asyncio.get_running_loop().time() - started < 1.5
    assert 10 <= report.played <= 21
    with pytest.raises(UnknownKindError):
        await simulator.traffic(1, kinds=["dance"])
    with pytest.raises(ValueError, match="how many or how long"):
        await live_traffic(simulator.population, simulator.webhooks, rate=1)


async def test_control_plays_traffic_and_sets_the_callback(simulator: Simulator, receiver: Receiver) -> None:
    async with aiohttp.ClientSession() as session:
        control = f"{simulator.url}/_sim"
        async with session.post(f"{control}/traffic", json={"count": 5, "kinds": ["text", "echo"]}) as answer:
            assert (await answer.json())["delivered"] == 5
        async with session.post(f"{control}/traffic", json={"kinds": ["dance"]}) as answer:
            assert answer.status == 400
        async with session.post(f"{control}/traffic", json={"page_id": "7"}) as answer:
            assert answer.status == 400
        async with session.post(f"{control}/webhooks", json={"url": receiver.url}) as answer:
            assert (await answer.json())["verified"] is True
        async with session.post(f"{control}/webhooks", json={"url": simulator.url}) as answer:
            assert answer.status == 400
        async with session.get(f"{control}/webhooks") as answer:
            state = await answer.json()
        assert state["url"] == receiver.url
        assert state["outcomes"]["delivered"] == 5
        async with session.get(f"{control}/pages") as answer:
            pages = await answer.json()
        assert pages["pages"][0]["token"] == simulator.page.token
        assert pages["app"]["app_secret"] == "sim-app-secret"


async def test_a_postback_with_a_mid_is_a_message_of_the_thread_in_graph(
    simulator: Simulator, receiver: Receiver
) -> None:
    await simulator.traffic(1, kinds=["postback"])
    postback = receiver.events[0]["postback"]
    query = {"access_token": simulator.page.token, "fields": "message,from"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{simulator.url}/{postback['mid']}", params=query) as answer,
    ):
        read = await answer.json()
    assert read["message"] == postback["title"]
    before = simulator.population.message_total()
    await simulator.traffic(2, kinds=["postback_without_mid"])
    assert simulator.population.message_total() == before
