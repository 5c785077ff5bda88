"""The webhook, as Meta calls it: what it is answered, and what then stands in the tables."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from http_support import (
    APP_SECRET,
    AT,
    OTHER_PAGE,
    OTHER_PERSON,
    PAGE,
    PERSON,
    VERIFY_TOKEN,
    Json,
    Owner,
    Service,
    contents,
    count,
    delivery,
    entry,
    eventually,
    from_page,
    from_person,
    inject,
    injections,
    problem,
    said,
    signature,
    wire,
)
from pydantic import SecretStr

from convsync.facts import digest_id, instant
from convsync.simulator import Simulator
from convsync.web.app import create_app
from convsync.webhook.payload import parse

TEXT = "Grüße 🚲🇩🇪 50% off at https://shop.example/a?b=1&c=<2> @you"
WHEN = instant(AT)


def verification(**changes: str) -> dict[str, str]:
    return {
        "hub.mode": "subscribe",
        "hub.verify_token": VERIFY_TOKEN,
        "hub.challenge": "1158201444",
        **changes,
    }


def conversation(owner: Owner, person: str = PERSON, page_id: str = PAGE) -> Json:
    """The main columns of a conversation."""
    row = owner.execute(
        """select page_id, sender_id, sender_name, thread_id, last_message, last_message_id,
             last_message_time, last_inbound_time, message_count, unread_count,
             read_watermark, delivered_watermark,
             conversation_status, tags, assignee, note, deleted_at, history_complete_at, version,
             last_synced_version
           from convsync.messenger_conversations where page_id = %s and sender_id = %s""",
        [page_id, person],
    ).fetchone()
    assert row is not None
    return row


def expected_conversation(**told: Any) -> Json:
    return {
        "page_id": PAGE,
        "sender_id": PERSON,
        "sender_name": None,
        "thread_id": None,
        "last_message": None,
        "last_message_id": None,
        "last_message_time": None,
        "last_inbound_time": None,
        "message_count": 0,
        "unread_count": 0,
        "read_watermark": None,
        "delivered_watermark": None,
        "conversation_status": "active",
        "tags": [],
        "assignee": None,
        "note": None,
        "deleted_at": None,
        "history_complete_at": None,
        "version": 1,
        "last_synced_version": None,
        **told,
    }


def events(owner: Owner) -> list[Json]:
    """The main columns of every event."""
    return owner.execute(
        """select e.page_id, e.message_id, c.sender_id, e.event_type, e.direction, e.in_thread,
             e.event_timestamp, e.source, e.body, e.metadata, e.deleted_at
           from convsync.contact_interaction_events e
           join convsync.messenger_conversations c using (page_id, conversation_id)
           order by e.page_id, e.event_timestamp, e.message_id"""
    ).fetchall()


def expected_event(message_id: str, **told: Any) -> Json:
    return {
        "page_id": PAGE,
        "message_id": message_id,
        "sender_id": PERSON,
        "event_type": "message",
        "direction": "in",
        "in_thread": True,
        "event_timestamp": WHEN,
        "source": "webhook",
        "body": None,
        "metadata": {"webhook": {}},
        "deleted_at": None,
        **told,
    }


def dead_letters(owner: Owner) -> list[Json]:
    return owner.execute(
        """select page_id, source, reason, raw, attempts, resolved_at from convsync.dead_letters
           order by page_id, dead_letter_id"""
    ).fetchall()


# The verification GET


async def test_the_challenge_comes_back_bare(service: Service) -> None:
    async with service.client.get("/api/webhook", params=verification()) as answer:
        assert answer.status == 200
        assert await answer.read() == b"1158201444"
        assert answer.content_type == "text/plain"


@pytest.mark.parametrize(
    "query",
    [
        {},
        verification(**{"hub.verify_token": "wrong"}),
        verification(**{"hub.verify_token": ""}),
        verification(**{"hub.verify_token": VERIFY_TOKEN + "x"}),
        verification(**{"hub.mode": "unsubscribe"}),
        verification(**{"hub.challenge": ""}),
        {key: value for key, value in verification().items() if key != "hub.mode"},
        {key: value for key, value in verification().items() if key != "hub.challenge"},
        {key: value for key, value in verification().items() if key != "hub.verify_token"},
    ],
)
async def test_a_verification_that_does_not_match_is_refused(service: Service, query: dict[str, str]) -> None:
    async with service.client.get("/api/webhook", params=query) as answer:
        assert answer.status == 403
        text = await answer.text()
        problem(json.loads(text), 403, "forbidden")
        assert VERIFY_TOKEN not in text
        assert "1158201444" not in text


@pytest.mark.parametrize("unset", [None, SecretStr("")])
async def test_without_a_verify_token_nobody_can_subscribe(
    configure: Any, database: Any, aiohttp_client: Any, unset: SecretStr | None
) -> None:
    app = create_app(configure(verify_token=unset), database.service_url)
    client = await aiohttp_client(app)
    for token in ("", VERIFY_TOKEN):
        query = verification(**{"hub.verify_token": token})
        async with client.get("/api/webhook", params=query) as answer:
            assert answer.status == 403


# What a delivery becomes


async def test_a_message_becomes_a_conversation_and_an_event(service: Service, owner: Owner) -> None:
    before = datetime.now(UTC)
    message = {"mid": "m_text", "text": TEXT, "quick_reply": {"payload": "<OFFERS>"}}
    body = wire(delivery(from_person(message=message)))
    assert b"\\ud83d\\udeb2" in body
    assert b"https:\\/\\/shop.example\\/a" in body
    assert b"Gr\\u00fc\\u00dfe" in body
    assert await service.deliver_bytes(body) == (200, b"EVENT_RECEIVED")

    assert events(owner) == [
        expected_event("m_text", body=TEXT, metadata={"webhook": {"quick_reply": {"payload": "<OFFERS>"}}})
    ]
    assert conversation(owner) == expected_conversation(
        last_message=TEXT,
        last_message_id="m_text",
        last_message_time=WHEN,
        last_inbound_time=WHEN,
        message_count=1,
    )
    row = owner.execute("select received_at from convsync.contact_interaction_events").fetchone()
    assert row is not None
    assert before - timedelta(seconds=1) < row["received_at"] < datetime.now(UTC) + timedelta(seconds=1)


async def test_an_echo_is_an_outbound_message_of_the_person_it_was_sent_to(
    service: Service, owner: Owner
) -> None:
    told = {"app_id": 1517776481860111, "metadata": "FROM_THE_SHOP"}
    message = {"is_echo": True, "mid": "m_echo", "text": "hello, world!", **told}
    assert await service.deliver(delivery(from_page(message=message))) == 200
    assert events(owner) == [
        expected_event("m_echo", direction="out", body="hello, world!", metadata={"webhook": told})
    ]
    assert conversation(owner) == expected_conversation(
        last_message="hello, world!", last_message_id="m_echo", last_message_time=WHEN, message_count=1
    )


async def test_a_postback_with_a_mid_is_a_message_of_its_own_type(service: Service, owner: Owner) -> None:
    postback = {"mid": "m_postback", "title": "Get started", "payload": "START"}
    assert await service.deliver(delivery(from_person(postback=postback))) == 200
    assert events(owner) == [
        expected_event(
            "m_postback",
            event_type="postback",
            body="Get started",
            metadata={"webhook": {"payload": "START"}},
        )
    ]
    assert conversation(owner) == expected_conversation(
        last_message="Get started",
        last_message_id="m_postback",
        last_message_time=WHEN,
        last_inbound_time=WHEN,
        message_count=1,
    )


async def test_a_postback_without_a_mid_is_an_event_beside_the_thread(service: Service, owner: Owner) -> None:
    postback = {"title": "Opening hours", "payload": "HOURS"}
    assert await service.deliver(delivery(from_person(postback=postback))) == 200
    assert await service.deliver(delivery(from_person(postback=postback))) == 200
    identity = digest_id(PAGE, PERSON, WHEN, "postback", postback)
    assert events(owner) == [
        expected_event(
            identity,
            event_type="postback",
            in_thread=False,
            body="Opening hours",
            metadata={"webhook": {"payload": "HOURS"}},
        )
    ]
    assert conversation(owner) == expected_conversation(last_inbound_time=WHEN)


async def test_a_read_and_a_delivery_move_the_watermarks_and_never_back(
    service: Service, owner: Owner
) -> None:
    delivered = {
        "sender": {"id": PERSON},
        "recipient": {"id": PAGE},
        "delivery": {"mids": ["m_1"], "watermark": AT},
    }
    assert await service.deliver(delivery(delivered)) == 200
    assert await service.deliver(delivery(from_person(read={"watermark": AT + 1}, at=AT + 2))) == 200
    assert await service.deliver(delivery(from_person(read={"watermark": AT - 1000}, at=AT + 3))) == 200
    assert events(owner) == []
    assert conversation(owner) == expected_conversation(
        version=2, read_watermark=instant(AT + 1), delivered_watermark=WHEN
    )


async def test_an_attachment_is_kept_as_it_was_told(service: Service, owner: Owner) -> None:
    attachments = [{"type": "image", "payload": {"url": "https://cdn.example/a/b.jpg?x=1&y=%2F"}}]
    assert (
        await service.deliver(delivery(from_person(message={"mid": "m_image", "attachments": attachments})))
        == 200
    )
    assert events(owner) == [expected_event("m_image", metadata={"webhook": {"attachments": attachments}})]
    assert conversation(owner) == expected_conversation(
        last_message_id="m_image", last_message_time=WHEN, last_inbound_time=WHEN, message_count=1
    )


@pytest.mark.parametrize("order", ["edit after", "edit before"])
async def test_an_edit_changes_the_text_whenever_it_arrives(
    service: Service, owner: Owner, order: str
) -> None:
    original = delivery(said("m_edited", "tomorow"))
    edit = {"mid": "m_edited", "text": "tomorrow", "num_edit": 1}
    edited = delivery(from_person(at=AT + 500, message_edit=edit))
    for document in (original, edited) if order == "edit after" else (edited, original):
        assert await service.deliver(document) == 200
    assert events(owner) == [expected_event("m_edited", body="tomorrow")]
    assert conversation(owner) == expected_conversation(
        last_message="tomorrow",
        last_message_id="m_edited",
        last_message_time=WHEN,
        last_inbound_time=WHEN,
        message_count=1,
        version=2,
    )
    assert count(owner, "pending_amendments") == 0


async def test_a_reaction_stands_at_its_message_until_it_is_taken_back(
    service: Service, owner: Owner
) -> None:
    reaction = {"mid": "m_liked", "action": "react", "reaction": "love", "emoji": "❤️"}
    assert await service.deliver(delivery(said("m_liked", "new bikes"))) == 200
    assert await service.deliver(delivery(from_person(at=AT + 1, reaction=reaction))) == 200
    standing = {"actor": PERSON, "reaction": "love", "emoji": "❤️"}
    assert events(owner) == [
        expected_event("m_liked", body="new bikes", metadata={"webhook": {}, "reactions": [standing]})
    ]
    back = {"mid": "m_liked", "action": "unreact"}
    assert await service.deliver(delivery(from_person(at=AT + 2, reaction=back))) == 200
    assert events(owner) == [expected_event("m_liked", body="new bikes")]
    assert conversation(owner)["version"] == 3
    assert conversation(owner)["message_count"] == 1


async def test_an_event_of_an_unknown_kind_is_kept_whole(service: Service, owner: Owner) -> None:
    event = from_person(hologram={"mid": "m_holo", "depth": 3})
    assert await service.deliver(delivery(event)) == 200
    (kept,) = events(owner)
    assert kept.pop("message_id").startswith("evt_")
    expected = expected_event("", event_type="unknown", in_thread=False, metadata={"webhook": event})
    del expected["message_id"]
    assert kept == expected
    assert dead_letters(owner) == []


async def test_an_event_in_standby_is_stored_like_any_other(service: Service, owner: Owner) -> None:
    assert await service.deliver(delivery(said("m_standby", "hello"), channel="standby")) == 200
    assert events(owner) == [
        expected_event("m_standby", body="hello", metadata={"webhook": {"standby": True}})
    ]


async def test_what_cannot_be_understood_is_kept_raw_and_its_siblings_land(
    service: Service, owner: Owner
) -> None:
    broken = from_person(message={"text": "a message without a mid / 🚲"})
    too_many_edits = from_person(message_edit={"mid": "m_1", "text": "x", "num_edit": 2**31})
    document = delivery(said("m_1", "first"), broken, "not an object", too_many_edits, said("m_2", "last"))
    assert await service.deliver(document) == 200
    assert [event["message_id"] for event in events(owner)] == ["m_1", "m_2"]
    letters = dead_letters(owner)
    assert {(letter["page_id"], letter["source"], letter["attempts"]) for letter in letters} == {
        (PAGE, "webhook", 1)
    }
    kept = {letter["reason"].split(":")[0]: json.loads(bytes(letter["raw"])) for letter in letters}
    assert kept == {
        "message.mid": delivery(broken),
        "messaging": delivery("not an object"),
        "message_edit.num_edit": delivery(too_many_edits),
    }
    assert any(wire(broken) in bytes(letter["raw"]) for letter in letters)
    # The raw bytes are a delivery again.
    for letter in letters:
        assert len(parse(bytes(letter["raw"]), WHEN).facts) == 1

    assert await service.deliver(document) == 200
    assert [letter["attempts"] for letter in dead_letters(owner)] == [2, 2, 2]
    assert len(events(owner)) == 2


async def test_text_that_postgresql_cannot_hold_is_stored_with_marks(service: Service, owner: Owner) -> None:
    body = wire(delivery(said("m_odd", "TEXT"))).replace(b"TEXT", b"a\\u0000b\\ud83dc \\ud83d\\udeb2")
    assert (await service.deliver_bytes(body))[0] == 200
    assert [event["body"] for event in events(owner)] == ["a\ufffdb\ufffdc 🚲"]


async def test_the_same_delivery_twice_is_one_event(service: Service, owner: Owner) -> None:
    document = delivery(
        said("m_once", "hello"), from_page(message={"mid": "m_echo", "is_echo": True, "text": "hi"})
    )
    assert await service.deliver(document) == 200
    before = contents(owner)
    assert await service.deliver(document) == 200
    assert contents(owner) == before
    assert conversation(owner)["version"] == 1
    assert count(owner, "conversation_changes") == 1


async def test_many_copies_at_the_same_time_are_one_event(service: Service, owner: Owner) -> None:
    document = delivery(said("m_once", "hello"))
    assert set(await asyncio.gather(*(service.deliver(document) for _ in range(20)))) == {200}
    assert events(owner) == [expected_event("m_once", body="hello")]
    assert conversation(owner)["version"] == 1


async def test_a_delivery_of_several_pages_reaches_each(service: Service, owner: Owner) -> None:
    await service.add_page()
    document = {
        "object": "page",
        "entry": [
            entry(said("m_here", "here")),
            entry(said("m_there", "there", page_id=OTHER_PAGE), page_id=OTHER_PAGE),
        ],
    }
    assert await service.deliver(document) == 200
    assert events(owner) == [
        expected_event("m_here", body="here"),
        expected_event("m_there", body="there", page_id=OTHER_PAGE),
    ]
    pages = owner.execute(
        """select page_id, added_at is not null as added, last_webhook_at is not null as heard
           from convsync.pages order by page_id"""
    ).fetchall()
    assert pages == [
        {"page_id": PAGE, "added": True, "heard": True},
        {"page_id": OTHER_PAGE, "added": False, "heard": True},
    ]


async def test_a_delivery_for_a_page_never_added_is_stored(service: Service, owner: Owner) -> None:
    assert await service.deliver(delivery(said("m_1", "is anybody there?"))) == 200
    assert conversation(owner)["message_count"] == 1
    status, page = await service.call("GET", f"/api/pages/{PAGE}")
    assert (status, page["added_at"], page["token"], page["messages"]) == (200, None, "none", 1)


async def test_a_test_event_of_the_dashboard_is_accepted(service: Service, owner: Owner) -> None:
    value = {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "timestamp": str(AT // 1000)}
    document = {"field": "messages", "value": {**value, "message": {"mid": "m_test", "text": "test"}}}
    assert await service.deliver(document) == 200
    assert events(owner) == [
        expected_event("m_test", body="test", event_timestamp=instant(AT // 1000 * 1000))
    ]


async def test_a_webhook_message_is_an_event_in_the_transaction_of_its_conversation(
    service: Service, owner: Owner
) -> None:
    for number in (1, 2):
        assert await service.deliver(delivery(said(f"m_{number}", "hello", at=AT + number))) == 200
        row = owner.execute(
            """select e.xmin::text as event, c.xmin::text as conversation, h.xmin::text as change,
                 h.xid::text as change_xid, c.version_xid::text as version_xid, h.version, c.version as now
               from convsync.contact_interaction_events e
               join convsync.messenger_conversations c using (page_id, conversation_id)
               join convsync.conversation_changes h using (page_id, conversation_id)
               where e.message_id = %s
               order by h.version desc limit 1""",
            [f"m_{number}"],
        ).fetchone()
        assert row is not None
        assert row["event"] == row["conversation"] == row["change"]
        assert row["change_xid"] == row["version_xid"]
        assert row["version"] == row["now"] == number


async def test_a_person_first_met_by_webhook_gets_a_name_and_a_thread(
    syncing: Service, simulator: Simulator, owner: Owner
) -> None:
    page_id = simulator.page.page_id
    person = next(one for one in simulator.population.conversations if one.customer_id and one.name)
    assert person.customer_id is not None
    body = wire(delivery(said("m_new", "hello", page_id=page_id, person=person.customer_id), page_id=page_id))
    told = {"X-Hub-Signature-256": signature(body, simulator.config.app_secret)}
    assert (await syncing.deliver_bytes(body, **told))[0] == 200

    async def named() -> Json | None:
        row = conversation(owner, str(person.customer_id), page_id)
        return row if row["sender_name"] else None

    row = await eventually(named)
    assert (row["sender_name"], row["thread_id"]) == (person.name, person.thread_id)
    assert (row["message_count"], row["last_message_id"]) == (1, "m_new")


# What is refused


def forged(body: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    right = signature(body)
    yield "missing", {"X-Nothing": "here"}
    yield "empty", {"X-Hub-Signature-256": ""}
    yield "another secret", {"X-Hub-Signature-256": signature(body, "another")}
    yield "an empty secret", {"X-Hub-Signature-256": signature(body, "")}
    yield "of other bytes", {"X-Hub-Signature-256": signature(body + b" ")}
    yield "cut", {"X-Hub-Signature-256": right[:-1]}
    yield "no digits", {"X-Hub-Signature-256": "sha256=" + "z" * 64}
    yield "not ASCII", {"X-Hub-Signature-256": "sha256=" + "é" * 64}
    yield "sha1 in its place", {"X-Hub-Signature-256": right.replace("sha256", "sha1")}
    sha1 = hmac.new(APP_SECRET.encode(), body, hashlib.sha1).hexdigest()
    yield "sha1 only", {"X-Hub-Signature": f"sha1={sha1}"}
    unescaped = json.dumps(json.loads(body), ensure_ascii=False).encode()
    yield "of the unescaped text", {"X-Hub-Signature-256": signature(unescaped)}


async def test_a_wrong_or_missing_signature_is_refused_and_nothing_is_written(
    service: Service, owner: Owner
) -> None:
    assert await service.deliver(delivery(said("m_1", "a real one"))) == 200
    before = contents(owner)
    body = wire(delivery(said("m_2", "a forged one 🚲"), "rubbish", page_id=OTHER_PAGE))
    for name, headers in forged(body):
        status, text = await service.deliver_bytes(body, **headers)
        assert status == 403, name
        assert problem(json.loads(text), 403, "forbidden")["title"] == "Forbidden"
        assert APP_SECRET.encode() not in text
    assert contents(owner) == before
    assert (await service.deliver_bytes(body))[0] == 200


async def test_without_an_app_secret_every_delivery_is_refused(
    configure: Any, database: Any, owner: Owner, aiohttp_client: Any
) -> None:
    for unset in (None, SecretStr("")):
        app = create_app(configure(app_secret=unset), database.service_url)
        service = Service(await aiohttp_client(app), app)
        body = wire(delivery(said("m_1", "hello")))
        status, _ = await service.deliver_bytes(body, **{"X-Hub-Signature-256": signature(body, "")})
        assert status == 403
    assert not any(contents(owner).values())


async def test_a_body_of_five_megabytes_is_refused(service: Service, owner: Owner) -> None:
    body = wire(delivery(said("m_1", "x" * 5 * 1024 * 1024)))
    headers = {"X-Hub-Signature-256": signature(body)}
    async with service.client.post("/api/webhook", data=io.BytesIO(body), headers=headers) as answer:
        assert answer.status == 413
        problem(await answer.json(), 413, "request_entity_too_large")
    assert not any(contents(owner).values())
    assert await service.deliver(delivery(said("m_1", "x"))) == 200


async def test_a_thousand_updates_in_one_delivery_are_stored(service: Service, owner: Owner) -> None:
    updates = [
        said(f"m_{n}", f"text {n}", at=AT + n, person=str(7300000000000000 + n % 50)) for n in range(1000)
    ]
    assert await service.deliver(delivery(*updates)) == 200
    assert count(owner, "contact_interaction_events") == 1000
    assert count(owner, "messenger_conversations", "message_count = 20") == 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"object": "page", "entry": [',
        b"\xff\xfe",
        b"object=page&entry=1",
        b'{"object": "page", "entry": [NaN]}',
        b"[" * 100_000,
        b"[]",
        b"null",
        b'"page"',
        b"{}",
        b'{"object": "page"}',
        b'{"object": "page", "entry": {}}',
        b'{"entry": []}',
    ],
)
async def test_a_body_that_is_no_delivery_gets_a_problem_document(
    service: Service, owner: Owner, body: bytes
) -> None:
    headers = {"X-Hub-Signature-256": signature(body)}
    async with service.client.post("/api/webhook", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert answer.content_type == "application/problem+json"
        problem(await answer.json(), 400, "bad_request")
    assert not any(contents(owner).values())


# What the database does to a delivery


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "57P03"])
async def test_a_passing_failure_of_the_database_is_retried(
    service: Service, owner: Owner, sqlstate: str
) -> None:
    inject(owner, sqlstate, when="true", times=1)
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    assert injections(owner) == 2
    assert events(owner) == [expected_event("m_1", body="hello")]
    assert conversation(owner)["version"] == 1
    assert dead_letters(owner) == []


@pytest.mark.parametrize("sqlstate", ["22003", "23514"])
async def test_a_fact_the_database_will_never_take_becomes_a_dead_letter_and_the_rest_commits(
    service: Service, owner: Owner, sqlstate: str
) -> None:
    inject(owner, sqlstate, when="new.message_id = 'm_poison'", times=1_000_000)
    together = delivery(
        said("m_1", "before"),
        said("m_poison", "poison", person=OTHER_PERSON),
        said("m_2", "after", at=AT + 1),
    )
    answers = await asyncio.gather(
        service.deliver(together), *(service.deliver(delivery(said(f"m_beside_{n}", "x"))) for n in range(5))
    )
    assert set(answers) == {200}
    assert {event["message_id"] for event in events(owner)} == {
        "m_1",
        "m_2",
        *(f"m_beside_{n}" for n in range(5)),
    }
    (letter,) = dead_letters(owner)
    assert letter["page_id"] == PAGE
    assert letter["reason"] == f"refused: {sqlstate} injected by the test"
    # Its item as it came, without its siblings.
    poison = said("m_poison", "poison", person=OTHER_PERSON)
    assert wire(poison) in bytes(letter["raw"])
    assert json.loads(bytes(letter["raw"])) == delivery(poison)
    assert count(owner, "messenger_conversations", f"sender_id = '{OTHER_PERSON}'") == 0


async def test_a_defect_costs_its_own_delivery_only_and_is_no_dead_letter(
    service: Service, owner: Owner
) -> None:
    inject(owner, "42P01", when="new.message_id = 'm_defect'", times=1_000_000)
    documents = [delivery(said("m_defect", "x", person=OTHER_PERSON))]
    documents += [delivery(said(f"m_{n}", "x")) for n in range(5)]
    answers = await asyncio.gather(*(service.deliver(document) for document in documents))
    assert answers == [503, 200, 200, 200, 200, 200]
    assert count(owner, "contact_interaction_events") == 5
    assert dead_letters(owner) == []


async def test_a_locked_conversation_delays_only_its_own_deliveries(
    service: Service, owner: Owner, database: Any
) -> None:
    assert await service.deliver(delivery(said("m_0", "hello"))) == 200
    stuck = delivery(said("m_stuck", "for the locked one", at=AT + 1))
    with psycopg.connect(database.owner_url) as locker:
        locker.execute(
            "select 1 from convsync.messenger_conversations where sender_id = %s for update", [PERSON]
        )
        waiting = asyncio.create_task(service.deliver(stuck))
        others = [
            await service.deliver(delivery(said(f"m_other_{n}", "free", person=OTHER_PERSON)))
            for n in range(3)
        ]
        assert others == [200, 200, 200]
        assert await waiting == 503
    assert await service.deliver(stuck) == 200
    assert conversation(owner)["last_message_id"] == "m_stuck"
    assert count(owner, "contact_interaction_events", "message_id = 'm_stuck'") == 1
    assert count(owner, "contact_interaction_events") == 5
    assert dead_letters(owner) == []


async def test_a_503_says_when_to_come_back(service: Service, owner: Owner) -> None:
    inject(owner, "42P01", when="true", times=1_000_000)
    body = wire(delivery(said("m_1", "hello")))
    headers = {"X-Hub-Signature-256": signature(body)}
    async with service.client.post("/api/webhook", data=body, headers=headers) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        document = problem(await answer.json(), 503, "database_unavailable")
    assert "injected" not in document["detail"]
