"""Each shape Graph was seen, or is documented, to answer in: what lands of it, and what of it is drift."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from convsync.facts import DeadLetter, Message, Thread
from convsync.graph.account import (
    Account,
    GranularScope,
    PageNode,
    Profile,
    SentMessage,
    SubscribedApp,
    TokenInfo,
    read_list,
    read_node,
)
from convsync.graph.client import GraphAnswer, read_batch
from convsync.graph.errors import GraphError
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

VIDEO_WITH_IMAGE = {
    "id": "94700000000001",
    "mime_type": "video/mp4",
    "name": "2.mp4",
    "size": None,
    "image_data": {"width": 640, "height": 360},
    "video_data": {"width": 640, "height": 360, "length": 7, "video_type": 1, "rotation": 0,
                   "url": "https://cdn.example/2.mp4", "preview_url": "https://cdn.example/2.jpg"},
}  # fmt: skip
OF_INSTAGRAM = {
    "id": "1",
    "name": "3",
    "image_data": {"url": "https://cdn.example/3"},
    "video_data": {"url": "https://cdn.example/3"},
    "file_url": "https://cdn.example/3",
}

# A message beside its id, time and author; what is kept of it as it came.
MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text with tags": ({"message": "Test", "tags": {"data": [{"name": "inbox"}]}}, {"tags": ["inbox"]}),
    "gif": ({"attachments": {"data": [GIF]}}, {"attachments": [GIF]}),
    "file": ({"attachments": {"data": [FILE]}}, {"attachments": [FILE]}),
    "video with an image": (
        {"attachments": {"data": [VIDEO_WITH_IMAGE]}},
        {"attachments": [VIDEO_WITH_IMAGE]},
    ),
    "attachment of Instagram": ({"attachments": {"data": [OF_INSTAGRAM]}}, {"attachments": [OF_INSTAGRAM]}),
    "placeholder of the EU": ({"attachments": {"data": [PLACEHOLDER]}}, {"attachments": [PLACEHOLDER]}),
    "sticker": ({"message": "", "sticker": "https://x/s"}, {"sticker": "https://x/s"}),
    "not supported, as text": ({"is_unsupported": "true"}, {"is_unsupported": "true"}),
    "not supported": ({"is_unsupported": True}, {"is_unsupported": True}),
    "reply": (
        {"reply_to": {"mid": "m_0", "is_self_reply": False}},
        {"reply_to": {"mid": "m_0", "is_self_reply": False}},
    ),
    "reply on Instagram": (
        {"from": {"username": "anna.paints", "id": ANNA, "user_id": "1784"},
         "to": {"data": [{"username": "the.page", "id": PAGE}]},
         "reply_to": {"mid": "m_0", "is_self_reply": True}},
        {"from": {"id": ANNA, "user_id": "1784"}, "reply_to": {"mid": "m_0", "is_self_reply": True}},
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


def test_one_conversation_with_its_messages_is_read_like_one_of_a_list() -> None:
    """`/{conversation}?fields=messages`, as the documentation shows it: nobody is named, no time either."""
    one = {"messages": {"data": [{"id": "m_2", "created_time": AT}, {"id": "m_1"}]}, "id": "t_1"}
    page = read_conversations(PAGE, {"data": [one]}, SEEN)
    thread, message, letter = page.facts
    assert isinstance(thread, Thread)
    assert (thread.sender_id, thread.thread_id) == ("thread:t_1", "t_1")
    assert isinstance(message, Message)
    assert (message.sender_id, message.message_id) == ("thread:t_1", "m_2")
    # The documentation leaves the time out of its samples; a message without one has no place.
    assert isinstance(letter, DeadLetter)
    assert (letter.reason, page.threads[0]["unreadable"]) == ("message.created_time: missing (t_1)", 1)


def test_messages_by_several_ids_are_no_list_either() -> None:
    """`?ids=`: an object by id. Whoever reads it as a page of a list is told so."""
    with pytest.raises(GraphError, match="has no list"):
        read_messages(PAGE, "t_1", ANNA, {"m_1": a_message(), "m_2": a_message(id="m_2")}, SEEN)


# Pages, tokens and people


def test_page_tells_its_name() -> None:
    page = read_node({"id": 700100, "name": "Harbour", "fan_count": 3}, PageNode)
    assert (page.id, page.name, page.model_extra) == ("700100", "Harbour", {"fan_count": 3})


def test_accounts_of_a_person_with_their_tokens_and_tasks() -> None:
    drift: Counter[str] = Counter()
    listed = {
        "data": [
            {"access_token": "EAAaccountstoken01", "category": "Shop", "category_list": [],
             "name": "Harbour", "id": "700100", "tasks": ["MESSAGING", "MODERATE"]},
            {"name": "without an id"},
            "odd",
            {"id": 700200, "access_token": None, "tasks": None},
        ],
        "paging": {"cursors": {"after": "A"}, "next": "https://graph.example/?after=A"},
    }  # fmt: skip
    first, last = read_list(listed, Account, drift)
    assert (first.id, first.name, first.tasks) == ("700100", "Harbour", ["MESSAGING", "MODERATE"])
    assert first.access_token is not None
    assert first.access_token.get_secret_value() == "EAAaccountstoken01"
    assert "EAAaccountstoken01" not in repr(first) + str(first)
    assert (last.id, last.access_token, last.tasks) == ("700200", None, [])
    assert drift == {"account.id: missing": 1, "account.not an object": 1}
    assert Edge.of(listed).paging.after == "A"  # type: ignore[union-attr]
    with pytest.raises(GraphError, match="has no list"):
        read_list({"id": "1"}, Account)


def test_apps_that_are_subscribed_to_a_page() -> None:
    listed = {
        "data": [
            {"category": "Business", "link": "https://example.org/app", "name": "An app", "id": "4711",
             "subscribed_fields": ["messages", "message_echoes"]},
            {"id": 4712, "subscribed_fields": {"data": ["messages"]}},
            {"name": "an app that gets nothing"},
        ]
    }  # fmt: skip
    apps = read_list(listed, SubscribedApp)
    assert [(app.id, app.subscribed_fields) for app in apps] == [
        ("4711", ["messages", "message_echoes"]),
        ("4712", ["messages"]),
        (None, []),
    ]


SCOPES = ["pages_show_list", "pages_messaging"]
TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of a user, ids as numbers": (
        {"app_id": 100000000001, "application": "Social", "expires_at": 1_790_000_000, "is_valid": True,
         "issued_at": 1_780_000_000, "metadata": {"sso": "phone"}, "scopes": ["email"], "user_id": 1207},
        {"app_id": "100000000001", "user_id": "1207", "is_valid": True, "scopes": ["email"],
         "expires_at": datetime.fromtimestamp(1_790_000_000, UTC), "profile_id": None},
    ),
    "of a user, with the end of data access": (
        {"app_id": "1234567890", "type": "USER", "application": "Example", "user_id": "98765",
         "data_access_expires_at": 1_795_000_000, "expires_at": "1790000000", "is_valid": "true",
         "scopes": SCOPES},
        {"type": "USER", "scopes": SCOPES, "is_valid": True,
         "data_access_expires_at": datetime.fromtimestamp(1_795_000_000, UTC)},
    ),
    "of a Page, that never ends": (
        {"app_id": 1, "type": "PAGE", "expires_at": 0, "data_access_expires_at": 0, "is_valid": True,
         "profile_id": 700100, "user_id": 1207, "scopes": SCOPES},
        {"type": "PAGE", "profile_id": "700100", "expires_at": None, "data_access_expires_at": None},
    ),
    "with granular permissions": (
        {"is_valid": True, "granular_scopes": [{"scope": "pages_show_list"},
                                               {"scope": "pages_messaging", "target_ids": ["700100"]},
                                               None]},
        {"granular_scopes": [GranularScope(scope="pages_show_list"),
                             GranularScope(scope="pages_messaging", target_ids=["700100"])]},
    ),
    "that is not valid": (
        {"is_valid": False, "scopes": [],
         "error": {"code": 190, "subcode": 463, "message": "Malformed access token EAAsecrettoken0001"}},
        {"is_valid": False, "problem": "Malformed access token [redacted]"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", TOKENS)
@pytest.mark.parametrize("enveloped", [True, False], ids=["in its envelope", ""])
def test_what_debug_token_says_of_a_token(shape: str, enveloped: bool) -> None:
    answer, expected = TOKENS[shape]
    found = read_node({"data": answer} if enveloped else answer, TokenInfo)
    assert {name: getattr(found, name) for name in expected} == expected


def test_profile_has_what_the_person_shows_and_may_be_empty() -> None:
    shown = {"first_name": "Anna", "last_name": "Berg", "profile_pic": "https://cdn.example/1.jpg",
             "locale": "en_US", "timezone": -7, "gender": "female"}  # fmt: skip
    anna = read_node(shown, Profile)
    assert (anna.first_name, anna.last_name, anna.timezone, anna.id) == ("Anna", "Berg", -7, None)
    nobody = read_node({}, Profile)
    assert not any(value for _, value in nobody)
    assert read_node({"id": int(ANNA), "timezone": "west"}, Profile).timezone is None


def test_answer_to_a_send_names_the_message_of_its_echo() -> None:
    sent = read_node({"recipient_id": 810001, "message_id": "m_AG5Hz2"}, SentMessage)
    assert (sent.recipient_id, sent.message_id) == (ANNA, "m_AG5Hz2")
    with pytest.raises(GraphError, match="message_id: missing"):
        read_node({"recipient_id": ANNA}, SentMessage)


def test_answers_of_a_batch_have_their_own_status_usage_and_error() -> None:
    items = [
        {
            "code": 400,
            "headers": [
                {"name": "WWW-Authenticate", "value": 'OAuth "Facebook Platform" "invalid_request" "x"'},
                {"name": "facebook-api-version", "value": "v26.0"},
                {"name": "x-app-usage", "value": '{"call_count":2,"total_cputime":2,"total_time":7}'},
                {"name": "X-FB-Trace-ID", "value": "Header1"},
                {"name": "Expires"},
            ],
            "body": '{"error":{"message":"Unsupported get request. Object with ID \'2\' does not exist",'
            '"type":"GraphMethodException","code":100,"fbtrace_id":"Body1"}}',
        },
        {"code": 200, "headers": [{"name": "Facebook-API-Version", "value": "v25.0"}],
         "body": '{"id":"700100","name":"Harbour"}'},
        None,
        {"code": 200, "body": "<html>"},
        {"code": 503, "headers": None, "body": None},
        {"code": 200, "body": '{"error":{"code":190,"message":"expired"}}'},
        "odd",
    ]  # fmt: skip
    refused, page, late, web, down, dead, odd = read_batch(items)
    assert isinstance(refused, GraphError)
    assert (refused.rule.name, refused.http_status, refused.trace_id) == ("unsupported_get", 400, "Body1")
    assert refused.usage is not None
    assert refused.usage.app_percent == 7
    assert isinstance(page, GraphAnswer)
    assert (page.data["name"], page.version, page.status) == ("Harbour", "v25.0", 200)
    others = [one.rule.name for one in (late, web, down, dead, odd) if isinstance(one, GraphError)]
    assert others == ["timeout", "unreadable_answer", "server_error", "token_refused", "unreadable_answer"]
