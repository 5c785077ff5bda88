"""Every kind of event that Meta documents, through the real endpoint to the rows it ends in.

Shapes: developers.facebook.com/docs/messenger-platform/reference/webhook-events; the data is made up.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from http_support import (
    AT,
    PAGE,
    PERSON,
    Json,
    Owner,
    Service,
    delivery,
    entry,
    from_page,
    from_person,
    said,
    signature,
    wire,
)

from convsync.simulator import DEFAULT_APP_SECRET, Simulator
from convsync.web.state import CONTACTS

WHEN = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=AT)
LATER = WHEN + timedelta(seconds=5)
IMAGE = [{"type": "image", "payload": {"url": "https://cdn.example/v/1.jpg?sig=1"}}]
TEMPLATE = [{"type": "template", "title": "Pick one", "payload": {"template_type": "button", "buttons": []}}]
BOOKING = {"booking_id": "88", "booking_status": "CONFIRMED", "booking_time": 1_700_000_900}


def row(**expected: Any) -> Json:
    """What a row of a customer's message in the thread is, but for what is said."""
    return {
        "event_type": "message",
        "direction": "in",
        "in_thread": True,
        "event_timestamp": WHEN,
        "body": None,
        "deleted": False,
        **expected,
    }


def outside(event_type: str, event: Json, **expected: Any) -> Json:
    """What a row of an event that is no message is: all of it is kept."""
    return row(event_type=event_type, in_thread=False, webhook=event, **expected)


def messages(**parts: Any) -> tuple[Json, Json]:
    """A customer's message with these parts, and its row."""
    text = parts.get("text")
    rest = {key: value for key, value in parts.items() if key != "text"}
    return delivery(from_person(message={"mid": "m_1", **parts})), row(body=text, webhook=rest)


def events(event: Json, event_type: str, **expected: Any) -> tuple[Json, Json]:
    return delivery(event), outside(event_type, event, **expected)


MESSAGES: dict[str, tuple[Json, Json]] = {
    "text": messages(text="Is the blue one in stock?"),
    "quick reply": messages(text="Blue", quick_reply={"payload": "COLOUR_BLUE"}),
    "reply": messages(text="That one", reply_to={"mid": "m_0", "is_self_reply": False}),
    "commands": messages(text="/flights", commands=[{"name": "flights"}]),
    "a message from an ad": messages(
        text="Hello", referral={"ref": "r", "source": "ADS", "type": "OPEN_THREAD", "ad_id": "7"}
    ),
    "two images": messages(attachments=IMAGE * 2),
    "audio": messages(attachments=[{"type": "audio", "payload": {"url": "https://cdn.example/a.mp4"}}]),
    "video": messages(attachments=[{"type": "video", "payload": {"url": "https://cdn.example/v.mp4"}}]),
    "file": messages(attachments=[{"type": "file", "payload": {"url": "https://cdn.example/f.pdf"}}]),
    "location": messages(
        attachments=[{"type": "location", "payload": {"coordinates": {"lat": 52.5, "long": 13.4}}}]
    ),
    "sticker": messages(
        attachments=[{"type": "sticker", "payload": {"url": "https://x", "sticker_id": 369239263222822}}]
    ),
    "fallback": messages(
        text="https://shop.example", attachments=[{"type": "fallback", "title": "Shop", "payload": None}]
    ),
    "template": messages(attachments=TEMPLATE),
    "reel": messages(attachments=[{"type": "reel", "payload": {"url": "https://x", "reel_video_id": 5}}]),
    "post": messages(attachments=[{"type": "post", "payload": {"url": "https://x", "id": 12, "title": "A"}}]),
    "appointment": messages(attachments=[{"type": "appointment_booking", "payload": BOOKING}]),
    "an attachment without payload": messages(attachments=[{"type": "image"}]),
    "unsupported": messages(is_unsupported=True),
    "with what was said before": (
        delivery(
            {**said("m_1", "Still there?"), "prior_message": {"source": "checkbox_plugin", "identifier": "u"}}
        ),
        row(
            body="Still there?",
            webhook={"prior_message": {"source": "checkbox_plugin", "identifier": "u"}},
        ),
    ),
    "echo of the inbox": (
        delivery(
            from_page(message={"mid": "m_1", "is_echo": True, "app_id": 26390203743090, "text": "It is."})
        ),
        row(direction="out", body="It is.", webhook={"app_id": 26390203743090}),
    ),
    "echo of another app": (
        delivery(from_page(message={"mid": "m_1", "is_echo": True, "app_id": "1517", "metadata": "order:7"})),
        row(direction="out", webhook={"app_id": "1517", "metadata": "order:7"}),
    ),
    "echo in standby": (
        delivery(
            from_page(message={"mid": "m_1", "is_echo": True, "attachments": TEMPLATE}), channel="standby"
        ),
        row(direction="out", webhook={"attachments": TEMPLATE, "standby": True}),
    ),
    "standby": (
        delivery(said("m_1", "To the other app"), channel="standby"),
        row(body="To the other app", webhook={"standby": True}),
    ),
    "postback with mid": (
        delivery(
            from_person(postback={"mid": "m_1", "title": "Start", "payload": "GO", "referral": {"ref": "r"}})
        ),
        row(event_type="postback", body="Start", webhook={"payload": "GO", "referral": {"ref": "r"}}),
    ),
    "a field nobody has heard of": messages(text="Hi", mood={"warm": 1}),
    "numeric ids": (
        {
            "object": "page",
            "entry": [
                {
                    "id": int(PAGE),
                    "time": AT,
                    "messaging": [
                        {
                            "sender": {"id": int(PERSON)},
                            "recipient": {"id": int(PAGE)},
                            "timestamp": str(AT),
                            "message": {"mid": "m_1", "text": "by number"},
                        }
                    ],
                }
            ],
        },
        row(body="by number", webhook={}),
    ),
    "without a time of its own": (
        delivery(
            {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "message": {"mid": "m_1", "text": "when?"}}
        ),
        row(body="when?", event_timestamp=LATER, webhook={}),
    ),
    "the dashboard's test": (
        {
            "field": "messages",
            "value": {
                "sender": {"id": PERSON},
                "recipient": {"id": PAGE},
                "timestamp": "1700000000",
                "message": {"mid": "m_1", "text": "test"},
            },
        },
        row(body="test", event_timestamp=datetime.fromtimestamp(1_700_000_000, UTC), webhook={}),
    ),
}

OTHERS: dict[str, tuple[Json, Json]] = {
    "postback without mid": (
        delivery(from_person(postback={"title": "Start", "payload": "GO"})),
        row(event_type="postback", in_thread=False, body="Start", webhook={"payload": "GO"}),
    ),
    "referral": events(
        from_person(referral={"ref": "spring", "source": "SHORTLINK", "type": "OPEN_THREAD"}), "referral"
    ),
    "opt-in": events(
        from_person(
            optin={"type": "notification_messages", "payload": "P", "notification_messages_token": "1"}
        ),
        "optin",
    ),
    "pass thread control": events(
        from_person(
            pass_thread_control={"previous_owner_app_id": None, "new_owner_app_id": "123", "metadata": "m"}
        ),
        "pass_thread_control",
    ),
    "take thread control": events(
        from_person(take_thread_control={"previous_owner_app_id": 123, "new_owner_app_id": "9"}),
        "take_thread_control",
    ),
    "request thread control": events(
        from_person(request_thread_control={"requested_owner_app_id": 123, "metadata": "m"}),
        "request_thread_control",
    ),
    "account linking": events(
        from_person(account_linking={"status": "linked", "authorization_code": "c"}), "account_linking"
    ),
    "response feedback": events(
        from_person(response_feedback={"feedback": "Good", "mid": "m_0"}), "response_feedback"
    ),
    "order": events(from_person(order={"products": [{"id": "1", "quantity": 2}], "note": "gift"}), "order"),
    "an edit without its text": events(
        from_person(message_edit={"mid": "m_0", "num_edit": 0}), "message_edit"
    ),
    "what the Page has read": events(from_page(read={"watermark": AT}), "read", direction="out"),
    "a read that names a message": events(from_person(read={"mid": "m_0"}), "read"),
    "a kind nobody has heard of": events(from_person(mood={"warm": 1}), "unknown"),
    "a null": events(from_person(referral=None), "referral"),
    "a label": (
        {
            "object": "page",
            "entry": [
                {
                    "id": PAGE,
                    "time": AT,
                    "changes": [
                        {
                            "field": "inbox_labels",
                            "value": {"action": "add", "label": {"id": "5"}, "user": {"id": PERSON}},
                        }
                    ],
                }
            ],
        },
        outside(
            "inbox_labels",
            {
                "field": "inbox_labels",
                "value": {"action": "add", "label": {"id": "5"}, "user": {"id": PERSON}},
            },
        ),
    ),
}


def stored(owner: Owner) -> list[Json]:
    return owner.execute(
        """select e.page_id, c.sender_id, e.message_id, e.event_type, e.direction, e.in_thread,
             e.event_timestamp,
             e.body, e.metadata -> 'webhook' as webhook, e.deleted_at is not null as deleted, e.source
           from convsync.contact_interaction_events e
           join convsync.messenger_conversations c using (page_id, conversation_id)
           order by e.event_timestamp, e.message_id"""
    ).fetchall()


def letters(owner: Owner) -> list[str]:
    return [
        found["reason"]
        for found in owner.execute("select reason from convsync.dead_letters order by 1").fetchall()
    ]


@pytest.mark.parametrize("kind", MESSAGES)
async def test_each_kind_of_message_is_this_row(service: Service, owner: Owner, kind: str) -> None:
    body, expected = MESSAGES[kind]
    for _ in range(2):  # Meta repeats itself
        assert await service.deliver(body) == 200
    assert stored(owner) == [
        {"page_id": PAGE, "sender_id": PERSON, "message_id": "m_1", "source": "webhook", **expected}
    ]
    assert letters(owner) == []


@pytest.mark.parametrize("kind", OTHERS)
async def test_each_other_kind_is_this_row(service: Service, owner: Owner, kind: str) -> None:
    body, expected = OTHERS[kind]
    for _ in range(2):
        assert await service.deliver(body) == 200
    [found] = stored(owner)
    assert found.pop("message_id").startswith("evt_")
    assert found == {"page_id": PAGE, "sender_id": PERSON, "source": "webhook", **expected}
    assert letters(owner) == []


async def test_edits_reactions_and_unsends_change_the_row_of_their_message(
    service: Service, owner: Owner
) -> None:
    async def now(*later: Json) -> Json:
        assert await service.deliver(delivery(*later)) == 200
        found = owner.execute(
            """select body, edited_at is not null as edited, metadata -> 'reactions' as reactions,
                 deleted_at is not null as deleted
               from convsync.contact_interaction_events"""
        ).fetchall()
        assert letters(owner) == []
        return found[0] if found else {}

    # The edit overtakes its message.
    assert await now(from_person(message_edit={"mid": "m_1", "text": "red", "num_edit": 1}, at=AT + 10)) == {}
    plain = {"body": "red", "edited": True, "reactions": None, "deleted": False}
    assert await now(said("m_1", "rde")) == plain
    love = {"mid": "m_1", "action": "react", "reaction": "love", "emoji": "❤"}
    reacted = [{"actor": PAGE, "reaction": "love", "emoji": "❤"}]
    assert await now(from_page(reaction=love, at=AT + 20)) == plain | {"reactions": reacted}
    assert await now(from_page(reaction={"mid": "m_1", "action": "unreact"}, at=AT + 30)) == plain
    assert await now(from_person(message={"mid": "m_1", "is_deleted": True}, at=AT + 40)) == plain | {
        "deleted": True
    }


@pytest.mark.parametrize(
    ("part", "column"),
    [
        ({"read": {"watermark": AT}}, "read_watermark"),
        ({"delivery": {"watermark": AT}}, "delivered_watermark"),
        ({"delivery": {"watermark": AT, "mids": ["m_0", "m_1"]}}, "delivered_watermark"),
    ],
    ids=["read", "delivery", "delivery with mids"],
)
async def test_receipts_move_a_watermark_and_add_no_row(
    service: Service, owner: Owner, part: Json, column: str
) -> None:
    event = {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, **part}
    assert await service.deliver(delivery(event)) == 200
    [found] = owner.execute("select * from convsync.messenger_conversations").fetchall()
    assert (found["sender_id"], found[column], found["message_count"]) == (PERSON, WHEN, 0)
    assert stored(owner) == []
    assert letters(owner) == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("policy_enforcement", {"action": "block", "reason": "spam"}),
        ("app_roles", {"123": ["primary_receiver"]}),
    ],
)
async def test_what_is_told_of_the_page_itself_is_its_event(
    service: Service, owner: Owner, kind: str, told: Json
) -> None:
    await service.add_page()
    event = {"recipient": {"id": PAGE}, "timestamp": AT, kind: told}
    for _ in range(2):
        assert await service.deliver(delivery(event)) == 200
    status, found = await service.call("GET", f"/api/pages/{PAGE}/events")
    assert status == 200
    assert found["next"] is None
    [one] = found["events"]
    assert (one["event_type"], one["metadata"], one["source"]) == (kind, {"webhook": event}, "webhook")
    assert datetime.fromisoformat(one["event_timestamp"]) == WHEN
    assert letters(owner) == []
    assert stored(owner) == []
    assert owner.execute("select from convsync.messenger_conversations").fetchall() == []


async def test_a_new_page_may_be_met_by_a_notice(service: Service, owner: Owner) -> None:
    event = {"recipient": {"id": PAGE}, "timestamp": AT, "policy_enforcement": {"action": "warning"}}
    assert await service.deliver(delivery(event)) == 200
    [found] = owner.execute("select page_id, event_type from convsync.page_events").fetchall()
    assert found == {"page_id": PAGE, "event_type": "policy_enforcement"}


async def test_the_events_of_a_page_come_in_parts(service: Service) -> None:
    await service.add_page()
    for number in range(5):
        event = {"recipient": {"id": PAGE}, "timestamp": AT + number, "app_roles": {"n": [number]}}
        assert await service.deliver(delivery(event)) == 200
    seen, before = [], None
    while True:
        query = {"limit": "2", **({"before": before} if before else {})}
        _, part = await service.call("GET", f"/api/pages/{PAGE}/events", **query)
        seen += [one["metadata"]["webhook"]["app_roles"]["n"][0] for one in part["events"]]
        before = part["next"]
        if before is None:
            break
    assert seen == [4, 3, 2, 1, 0]


async def test_only_what_nobody_can_place_becomes_a_dead_letter(service: Service, owner: Owner) -> None:
    nobody = {"recipient": {"id": PAGE}, "timestamp": AT, "message": {"mid": "m_1", "text": "who?"}}
    nowhere = {"object": "user", "entry": [{"id": "1", "time": 1, "changed_fields": ["photos"]}]}
    assert await service.deliver(delivery(nobody)) == 200
    assert await service.deliver(nowhere) == 200
    assert letters(owner) == ["object: neither page nor instagram", "sender.id: a message without a sender"]


async def test_several_entries_and_pages_of_one_delivery_all_land(service: Service, owner: Owner) -> None:
    other = "104000000000002"
    body = {
        "object": "page",
        "entry": [
            entry(*(said(f"m_{number}", "x") for number in range(998))),
            entry(said("m_x", "y", page_id=other), page_id=other),
            entry(said("m_s", "z"), channel="standby"),
        ],
    }
    assert await service.deliver(body) == 200
    assert len(stored(owner)) == 1000
    assert {found["page_id"] for found in stored(owner)} == {PAGE, other}


async def test_a_thread_that_is_said_to_have_changed_is_read(
    syncing: Service, simulator: Simulator, owner: Owner
) -> None:
    page_id = simulator.page.page_id
    thread = next(
        one for one in simulator.population.conversations if one.kind == "normal" and one.message_count > 3
    )
    value = {"thread_id": thread.thread_id, "page_id": page_id}
    body = {
        "object": "page",
        "entry": [{"id": page_id, "time": AT, "changes": [{"field": "conversations", "value": value}]}],
    }
    raw = wire(body)
    signed = signature(raw, DEFAULT_APP_SECRET)
    status, _ = await syncing.deliver_bytes(raw, **{"X-Hub-Signature-256": signed})
    assert status == 200
    await syncing.app[CONTACTS].idle()
    [found] = owner.execute("select * from convsync.messenger_conversations").fetchall()
    assert (found["thread_id"], found["reported_count"]) == (thread.thread_id, thread.message_count)
    assert found["message_count"] == min(thread.message_count, 25)
    assert {one["source"] for one in stored(owner)} == {"sync"}
    assert letters(owner) == []
