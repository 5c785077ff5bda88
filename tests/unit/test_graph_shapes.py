"""Each shape Graph was seen, or is documented, to answer in: what lands of it, and what of it is drift."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from convsync.facts import DeadLetter, Message, Thread
from convsync.graph.models import Edge
from convsync.graph.reading import read_conversations, read_messages

PAGE, ANNA = "700100", "810001"
SEEN = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
AT = "2026-11-20T09:00:00+0000"
GIF = {
    "id": "93400000000001",
    "mime_type": "image/gif",
    "name": "1.gif",
    "size": None,
    "image_data": {"width": 244, "height": 150, "render_as_sticker": False, "url": "https://cdn.example/1",
                   "raw_gif_image": ""},
}  # fmt: skip
FILE = {"id": "94600000000001", "mime_type": "text/plain", "name": "a.txt", "size": 324,
        "file_url": "https://cdn.example/a.txt"}  # fmt: skip
PLACEHOLDER = {
    "id": "1234",
    "name": "Media not available due to new privacy rules in Europe. See developer ..",
}
PRODUCTS = {
    "link": "https://example.org/1",
    "template": {"payload": {"product": {"elements": {"data": [{"id": "1", "price": "$1"}]}}}},
}

# A message beside its id, time and author; what is kept of it as it came.
MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text with tags": ({"message": "Test", "tags": {"data": [{"name": "inbox"}]}}, {"tags": ["inbox"]}),
    "gif": ({"attachments": {"data": [GIF]}}, {"attachments": [GIF]}),
    "file": ({"attachments": {"data": [FILE]}}, {"attachments": [FILE]}),
    "placeholder of the EU": ({"attachments": {"data": [PLACEHOLDER]}}, {"attachments": [PLACEHOLDER]}),
    "sticker": ({"message": "", "sticker": "https://x/s"}, {"sticker": "https://x/s"}),
    "not supported, as text": ({"is_unsupported": "true"}, {"is_unsupported": "true"}),
    "not supported": ({"is_unsupported": True}, {"is_unsupported": True}),
    "reply": (
        {"reply_to": {"mid": "m_0", "is_self_reply": False}},
        {"reply_to": {"mid": "m_0", "is_self_reply": False}},
    ),
    "share with nulls": (
        {"shares": {"data": [{"id": None, "link": "https://example.org/1", "description": None}]}},
        {"shares": [{"id": None, "link": "https://example.org/1", "description": None}]},
    ),
    "share of products": (
        {"shares": {"data": [PRODUCTS]}},
        {"shares": [{"link": "https://example.org/1",
                     "template": {"payload": {"product": {"elements": [{"id": "1", "price": "$1"}]}}}}]},
    ),
    "story of Instagram": (
        {"story": {"mention": {"link": "https://x/s", "id": "1"}}},
        {"story": {"mention": {"link": "https://x/s", "id": "1"}}},
    ),
    "reactions": (
        {"reactions": {"data": [{"reaction": "love", "users": [{"username": "a", "id": ANNA}]}]}},
        {"reactions": [{"actor": ANNA, "reaction": "love", "emoji": None}]},
    ),
}  # fmt: skip


def a_message(**fields: Any) -> dict[str, Any]:
    return {"id": "m_1", "created_time": AT, "from": {"id": ANNA}, **fields}


def a_thread(**fields: Any) -> dict[str, Any]:
    people = {"data": [{"id": ANNA}, {"id": PAGE}]}
    return {"id": "t_1", "updated_time": AT, "participants": people, **fields}


@pytest.mark.parametrize("shape", MESSAGES)
@pytest.mark.parametrize("wrapped", [True, False], ids=["", "without wrappers"])
def test_a_known_shape_of_a_message_lands_and_is_no_drift(shape: str, wrapped: bool) -> None:
    fields, kept = MESSAGES[shape]
    if not wrapped:
        fields = {
            name: value["data"] if isinstance(value, dict) and "data" in value else value
            for name, value in fields.items()
        }
    page = read_messages(PAGE, "t_1", ANNA, {"data": [a_message(**fields)]}, SEEN)
    (fact,) = page.facts
    assert isinstance(fact, Message)
    assert fact.metadata == {"graph": kept}
    unwrapped = [f"message.{name} (list)" for name, value in fields.items() if isinstance(value, list)]
    assert sorted(page.drift) == unwrapped


@pytest.mark.parametrize(
    "thread",
    [
        {"is_owner": True},
        {"is_owner": False, "messages": {"data": [a_message()]}},
        {"updated_time": 1_790_000_000},
        {"updated_time": "1790000000"},
        {"message_count": "3", "unread_count": "0"},
        {"message_count": None, "unread_count": None, "snippet": None, "updated_time": None},
        {"participants": {"data": [{"username": "anna", "id": ANNA, "user_id": "1784"}]}},
        {"participants": {"data": [{"id": int(ANNA), "name": "true"}, {"id": int(PAGE)}]}},
        {"former_participants": {"data": []}, "senders": {"data": [{"id": ANNA}]}, "is_subscribed": True,
         "link": "/700100/inbox/1/", "scoped_thread_key": "t_1", "folder": "inbox", "wallpaper": ""},
        {"messages": {"data": [a_message(to={"data": [{"id": PAGE, "email": "a@b"}]})],
                      "paging": {"cursors": {"before": "A", "after": "A"}}}},
    ],
)  # fmt: skip
def test_a_known_shape_of_a_conversation_lands_and_is_no_drift(thread: dict[str, Any]) -> None:
    body = {"data": [a_thread(**thread)], "paging": {"cursors": {"before": "A"}, "previous": "https://x"}}
    page = read_conversations(PAGE, body, SEEN)
    assert [fact.sender_id for fact in page.facts if isinstance(fact, Thread)] == [ANNA]
    assert not [fact for fact in page.facts if isinstance(fact, DeadLetter)]
    assert page.drift == {}


@pytest.mark.parametrize(
    ("thread", "names"),
    [
        ({"colour": "red"}, ["conversation.colour"]),
        ({"snippet": {"text": "x"}}, ["conversation.snippet (object)"]),
        ({"message_count": "many"}, ["conversation.message_count (text)"]),
        ({"can_reply": 1}, ["conversation.can_reply (number)"]),
        ({"participants": [{"id": ANNA}]}, ["conversation.participants (list)"]),
        ({"participants": {"data": [{"id": ANNA, "vip": 1}]}}, ["participants.vip"]),
        ({"participants": {"data": [{"id": ANNA}, {}, None]}},
         ["participants.id: missing", "participants: null"]),
        ({"messages": {"data": [a_message(**{"from": ANNA})]}}, ["message.from (digits)"]),
        ({"messages": {"data": [a_message(message={"body": "x"})]}}, ["message.message (object)"]),
        ({"messages": {"data": [a_message(to={"id": PAGE})]}}, ["message.to (object)"]),
        ({"messages": {"data": [a_message(attachments={"data": [{"id": "1", "hologram": {}}]})]}},
         ["attachments.hologram"]),
        ({"messages": {"data": [a_message(attachments={"data": ["gone"]})]}}, ["attachments (text)"]),
        ({"messages": {"data": [a_message(shares=[{"type": "reel", "video": "1"}])]}},
         ["message.shares (list)", "shares.video"]),
        ({"messages": {"data": [a_message(id=None), a_message(created_time="soon")]}},
         ["message.created_time: not a time", "message.id: null"]),
        ({"k" * 300: 1}, ["conversation." + "k" * 87]),
        ({"field_of_810001234": 1}, ["conversation.field_of_#"]),
        ({"\x00\n": 1}, ["conversation.\\x00\\n"]),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named_and_everything_else_lands(
    thread: dict[str, Any], names: list[str]
) -> None:
    page = read_conversations(PAGE, {"data": [a_thread(**thread), a_thread(id="t_2")]}, SEEN)
    assert sorted(page.drift) == sorted(names)
    assert {fact.thread_id for fact in page.facts if isinstance(fact, Thread)} == {"t_1", "t_2"}


def test_names_beside_a_list_are_known_or_drift() -> None:
    body = {"data": [], "paging": {"cursors": {}, "depth": 3}, "summary": {}, "insights": 1}
    assert read_messages(PAGE, "t_1", ANNA, body, SEEN).drift == {"paging.depth": 1, "answer.insights": 1}


def test_the_documented_paging_goes_on_at_its_cursor() -> None:
    edge = Edge.of(
        {
            "data": [],
            "paging": {
                "cursors": {"after": "MTAx", "before": "NDMy"},
                "previous": "https://graph.facebook.com/1/albums?limit=25&before=NDMy",
                "next": "https://graph.facebook.com/1/albums?limit=25&after=MTAx",
            },
        }
    )
    assert edge is not None
    assert (edge.items, edge.paging.has_next, edge.paging.after) == ([], True, "MTAx")


def test_default_fields_of_messages_are_id_and_time() -> None:
    """Whoever asks for no fields gets these two: the message is there, with nothing to say."""
    listed = {"data": [{"id": "m_2", "created_time": AT}, {"id": "m_1", "created_time": 1_790_000_000}]}
    page = read_messages(PAGE, "t_1", ANNA, listed, SEEN)
    assert [(fact.message_id, fact.text) for fact in page.facts if isinstance(fact, Message)] == [
        ("m_2", None),
        ("m_1", None),
    ]
    assert page.drift == {}
