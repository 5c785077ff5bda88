"""Deliveries -> facts: every documented kind, what varies, what is broken."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsync.facts import (
    DeadLetter,
    Edit,
    Fact,
    Message,
    PageEvent,
    Reaction,
    Unsend,
    Watermark,
    dump,
    instant,
)
from convsync.webhook.payload import Delivery, NotAnEnvelope, NotJson, parse

Event = dict[str, Any]

PAGE = "104000000000001"
PERSON = "7300000000000011"
AT = 1_700_000_000_123
MID = "m_Qx7-aB_1"
RECEIVED = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
FROM_PERSON = {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "timestamp": AT}
FROM_PAGE = {"sender": {"id": PAGE}, "recipient": {"id": PERSON}, "timestamp": AT}


def envelope(*events: Any, channel: str = "messaging", **entry: Any) -> Event:
    return {"object": "page", "entry": [{"id": PAGE, "time": AT + 5000, channel: list(events), **entry}]}


def read(body: Any) -> Delivery:
    delivery = parse(json.dumps(body).encode(), RECEIVED)
    dump(delivery.facts)  # whatever comes out can be sent to the database
    return delivery


def only(event: Event, channel: str = "messaging") -> Any:
    (fact,) = read(envelope(event, channel=channel)).facts
    return fact


def message(
    direction: str = "in", text: str | None = None, told: Event | None = None, **more: Any
) -> Message:
    return Message(
        PAGE,
        PERSON,
        MID,
        "in" if direction == "in" else "out",
        instant(AT),
        text,
        metadata={"webhook": told or {}},
        **more,
    )


def kept(fact: Any, event_type: str, event: Event, direction: str = "in") -> None:
    assert isinstance(fact, Message)
    assert (fact.event_type, fact.direction, fact.in_thread) == (event_type, direction, False)
    assert (fact.page_id, fact.sender_id, fact.at, fact.text) == (PAGE, PERSON, instant(AT), None)
    assert fact.message_id.startswith("evt_")
    assert fact.metadata == {"webhook": event}


@pytest.mark.parametrize(
    "part",
    [
        {"attachments": [{"type": kind, "payload": {"url": "https://cdn.example/x"}}]}
        for kind in (
            "image",
            "audio",
            "video",
            "file",
            "sticker",
            "reel",
            "post",
            "story_mention",
            "new_kind",
        )
    ]
    + [
        {"attachments": [{"type": "fallback", "title": "t", "url": "https://x.example", "payload": None}]},
        {"attachments": [{"type": "fallback"}]},
        {"attachments": None},
        {"quick_reply": {"payload": "SIZE_L"}},
        {"reply_to": {"mid": "m_other", "is_self_reply": False}},
        {
            "referral": {
                "ref": "r",
                "source": "ADS",
                "type": "OPEN_THREAD",
                "ads_context_data": {"ad_title": "t"},
            }
        },
        {"commands": [{"name": "flights"}]},
        {"sticker_id": 369239263222822, "seq": 73, "nlp": {"entities": {}}},
        {"is_unsupported": True},
        {"is_unsupported": "true"},
    ],
)
def test_what_a_message_has_beside_its_text_is_kept_in_metadata(part: Event) -> None:
    event = {**FROM_PERSON, "message": {"mid": MID, **part}}
    assert only(event) == message(told=part)
    assert read(envelope(event)).unknown == []


TOLD_APP = {"app_id": 26390203743090, "metadata": "ref-7"}
EVENTS: dict[str, tuple[Event, Any]] = {
    "text": ({**FROM_PERSON, "message": {"mid": MID, "text": "hëllo 👋"}}, message(text="hëllo 👋")),
    "empty text": ({**FROM_PERSON, "message": {"mid": MID, "text": ""}}, message(text="")),
    "echo": (
        {**FROM_PAGE, "message": {"mid": MID, "text": "hi", "is_echo": True, **TOLD_APP}},
        message("out", "hi", TOLD_APP),
    ),
    "echo that says so as a string": (
        {**FROM_PAGE, "message": {"mid": MID, "text": "hi", "is_echo": "true"}},
        message("out", "hi"),
    ),
    "sent by the Page without is_echo": (
        {**FROM_PAGE, "message": {"mid": MID, "text": "hi"}},
        message("out", "hi"),
    ),
    "echo from another id of the account": (
        {**FROM_PAGE, "sender": {"id": "178414"}, "message": {"mid": MID, "text": "hi", "is_echo": True}},
        message("out", "hi"),
    ),
    "prior message": (
        {**FROM_PERSON, "message": {"mid": MID, "text": "a"}, "prior_message": {"source": "checkbox_plugin"}},
        message(text="a", told={"prior_message": {"source": "checkbox_plugin"}}),
    ),
    "unsend": (
        {**FROM_PERSON, "message": {"mid": MID, "is_deleted": True}},
        Unsend(PAGE, PERSON, MID, instant(AT)),
    ),
    "unsend of an echo": (
        {**FROM_PAGE, "message": {"mid": MID, "is_deleted": True, "is_echo": True}},
        Unsend(PAGE, PERSON, MID, instant(AT)),
    ),
    "edit": (
        {**FROM_PERSON, "message_edit": {"mid": MID, "text": "new", "num_edit": 2}},
        Edit(PAGE, PERSON, MID, instant(AT), 2, "new"),
    ),
    "edit counted in a string": (
        {**FROM_PERSON, "message_edit": {"mid": MID, "text": "new", "num_edit": "37"}},
        Edit(PAGE, PERSON, MID, instant(AT), 37, "new"),
    ),
    "edit by the Page": (
        {**FROM_PAGE, "message_edit": {"mid": MID, "text": "new", "num_edit": 1}},
        Edit(PAGE, PERSON, MID, instant(AT), 1, "new"),
    ),
    "reaction": (
        {**FROM_PERSON, "reaction": {"mid": MID, "action": "react", "reaction": "love", "emoji": "❤️"}},
        Reaction(PAGE, PERSON, MID, instant(AT), PERSON, "react", "love", "❤️"),
    ),
    "reaction taken back": (
        {**FROM_PERSON, "reaction": {"mid": MID, "action": "unreact"}},
        Reaction(PAGE, PERSON, MID, instant(AT), PERSON, "unreact"),
    ),
    "reaction of the Page": (
        {**FROM_PAGE, "reaction": {"mid": MID, "action": "react", "reaction": "like", "emoji": "👍"}},
        Reaction(PAGE, PERSON, MID, instant(AT), PAGE, "react", "like", "👍"),
    ),
    "read": (
        {**FROM_PERSON, "read": {"watermark": AT - 7, "seq": 3}},
        Watermark(PAGE, PERSON, "read", instant(AT - 7)),
    ),
    "delivery without a time of its own": (
        {
            "sender": {"id": PERSON},
            "recipient": {"id": PAGE},
            "delivery": {"mids": [MID], "watermark": str(AT)},
        },
        Watermark(PAGE, PERSON, "delivered", instant(AT)),
    ),
    "postback with a mid": (
        {
            **FROM_PERSON,
            "postback": {"mid": MID, "title": "Get started", "payload": "P", "referral": {"ref": "r"}},
        },
        message(text="Get started", told={"payload": "P", "referral": {"ref": "r"}}, event_type="postback"),
    ),
}


@pytest.mark.parametrize("name", EVENTS)
def test_each_kind_becomes_its_fact(name: str) -> None:
    event, fact = EVENTS[name]
    assert only(event) == fact
    assert read(envelope(event)).unknown == []


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_on_standby_becomes_the_same_fact(name: str) -> None:
    event, fact = EVENTS[name]
    found = only(event, "standby")
    if isinstance(found, Message):
        assert found.metadata["webhook"].pop("standby") is True
    assert found == fact


OTHER_KINDS: dict[str, Any] = {
    "referral": {"ref": "r", "source": "SHORTLINK", "type": "OPEN_THREAD"},
    "optin": {"type": "notification_messages", "payload": "x", "notification_messages_token": "t"},
    "pass_thread_control": {"previous_owner_app_id": None, "new_owner_app_id": "123", "metadata": "m"},
    "take_thread_control": {"previous_owner_app_id": "123", "new_owner_app_id": 456},
    "request_thread_control": {"requested_owner_app_id": 123},
    "app_roles": {"123": ["primary_receiver"]},
    "policy_enforcement": {"action": "warning", "reason": "r"},
    "account_linking": {"status": "unlinked"},
    "response_feedback": {"feedback": "Good response", "mid": MID},
    "order": {"products": [{"id": 1, "unit_price": 11.5, "currency": "THB"}], "note": "n"},
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_the_other_kinds_are_kept_whole_outside_the_thread(kind: str) -> None:
    event = {**FROM_PERSON, kind: OTHER_KINDS[kind]}
    kept(only(event), kind, event)
    assert read(envelope(event)).unknown == []


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_an_event_without_a_sender_belongs_to_its_recipient(kind: str) -> None:
    event = {"recipient": {"id": PERSON}, "timestamp": AT, kind: OTHER_KINDS[kind]}
    kept(only(event), kind, event)


@pytest.mark.parametrize("kind", ["app_roles", "policy_enforcement", "policy-enforcement"])
def test_a_notice_that_names_no_person_is_an_event_of_the_page(kind: str) -> None:
    event = {"recipient": {"id": PAGE}, "timestamp": AT, kind: {"action": "block"}, "novel": 1}
    first, again = (read(envelope(event, nearby={"a": 1})).facts[0] for _ in range(2))
    assert first == again
    assert isinstance(first, PageEvent)
    assert (first.page_id, first.event_type, first.at) == (PAGE, kind.replace("-", "_"), instant(AT))
    assert first.metadata == {"webhook": {**event, "around": {"entry": {"nearby": {"a": 1}}}}}
    other = only({**event, "timestamp": AT + 1})
    assert other.event_id != first.event_id


@pytest.mark.parametrize("kind", sorted(set(OTHER_KINDS) - {"app_roles", "policy_enforcement"}))
def test_another_event_without_a_person_is_kept_as_a_dead_letter(kind: str) -> None:
    fact = only({"recipient": {"id": PAGE}, "timestamp": AT, kind: OTHER_KINDS[kind]})
    assert isinstance(fact, DeadLetter)
    assert (fact.page_id, fact.reason) == (PAGE, f"event without a person: {kind}")


@pytest.mark.parametrize(
    ("event", "event_type", "direction"),
    [
        ({**FROM_PERSON, "postback": {"title": "t", "payload": "P"}}, "postback", "in"),
        ({**FROM_PERSON, "read": {"mid": MID}}, "read", "in"),
        ({**FROM_PERSON, "delivery": {"mids": [MID]}}, "delivery", "in"),
        ({**FROM_PAGE, "read": {"watermark": AT}}, "read", "out"),
        ({**FROM_PERSON, "message_edit": {"mid": MID, "num_edit": 0}}, "message_edit", "in"),
        ({**FROM_PERSON, "policy-enforcement": {"action": "block"}}, "policy_enforcement", "in"),
        ({**FROM_PERSON, "referral": None}, "referral", "in"),
        (FROM_PERSON, "unknown", "in"),
    ],
)
def test_an_event_that_asserts_nothing_more_is_kept_under_a_digest(
    event: Event, event_type: str, direction: str
) -> None:
    fact = only(event)
    assert isinstance(fact, Message)
    assert (fact.event_type, fact.direction, fact.in_thread) == (event_type, direction, False)
    assert fact.message_id.startswith("evt_")
    assert only(event) == fact
    assert only({**event, "timestamp": AT + 1}).message_id != fact.message_id


def test_an_unknown_kind_is_kept_whole_and_reported() -> None:
    event = {**FROM_PERSON, "message_pinned": {"mid": MID, "deep": [1, {"a": None}]}}
    kept(only(event), "unknown", event)
    assert read(envelope(event)).unknown == [(PAGE, "event.message_pinned")]


def test_unknown_fields_are_kept_and_reported() -> None:
    event = {
        "sender": {"id": PERSON, "username": "u"},
        "recipient": {"id": PAGE},
        "timestamp": AT,
        "message": {"mid": MID, "text": "a", "mood": "good"},
        "surface": "web",
    }
    told = {"mood": "good", "event": {"sender": {"username": "u"}, "surface": "web"}}
    assert only(event) == message(text="a", told=told)
    assert sorted(read(envelope(event)).unknown) == [
        (PAGE, "event.surface"),
        (PAGE, "message.mood"),
        (PAGE, "sender.username"),
    ]


def test_an_unknown_part_beside_a_kind_that_cannot_keep_it_is_an_event_of_its_own() -> None:
    event = {**FROM_PERSON, "read": {"watermark": AT}, "new_part": {"a": 1}}
    watermark, event_kept = read(envelope(event)).facts
    assert isinstance(watermark, Watermark)
    kept(event_kept, "unknown", event)


def test_an_event_of_two_kinds_gives_the_facts_of_both() -> None:
    event = {**FROM_PERSON, "message": {"mid": MID, "text": "a"}, "referral": {"ref": "r"}}
    first, second = read(envelope(event)).facts
    assert first == message(text="a")
    kept(second, "referral", event)


def test_a_standby_event_kept_whole_says_so() -> None:
    event = {**FROM_PERSON, "referral": {"ref": "r"}}
    kept(only(event, "standby"), "referral", {**event, "standby": True})
    assert only(event, "standby").message_id == only(event).message_id


@pytest.mark.parametrize("bad", [None, {}, {"text": "no mid"}, {"mid": None}, {"mid": ""}, {"mid": "  "}])
@pytest.mark.parametrize("kind", ["message", "message_edit", "reaction"])
def test_without_a_message_id_it_is_a_dead_letter(kind: str, bad: Any) -> None:
    fact = only({**FROM_PERSON, kind: bad})
    assert isinstance(fact, DeadLetter)
    assert fact.reason.startswith(kind)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"timestamp": "soon"}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": AT * 1000}, "timestamp"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": "1" * 500}, "timestamp"),
        ({"timestamp": {}}, "timestamp"),
        ({"sender": PERSON}, "sender"),
        ({"sender": {"id": ""}}, "sender.id"),
        ({"sender": {"id": ["x"]}}, "sender.id"),
        ({"sender": {"id": True}}, "sender.id"),
        ({"sender": {"id": 7.3e15}}, "sender.id"),
        ({"sender": {"id": "7" * 129}}, "sender.id"),
        ({"sender": {"id": "7\x00"}}, "sender.id"),
        ({"sender": {"id": "7\ud800"}}, "sender.id"),
        ({"sender": None}, "sender.id"),
        ({"sender": {}}, "sender.id"),
        ({"message": {"mid": "m" * 513}}, "message.mid"),
        ({"message": {"mid": MID, "text": 5}}, "message.text"),
        ({"message": {"mid": MID, "is_echo": "maybe"}}, "message.is_echo"),
        ({"message": {"mid": MID, "is_echo": True}}, "recipient.id"),
        ({"message": {"mid": MID, "is_echo": True}, "recipient": None}, "recipient.id"),
        ({"message": "text"}, "message"),
        ({"message": ["text"]}, "message"),
    ],
)
def test_what_cannot_be_understood_is_a_dead_letter_that_names_the_field(change: Event, named: str) -> None:
    good = {**FROM_PERSON, "message": {"mid": "m_sibling", "text": "b"}}
    delivery = read(envelope({**FROM_PERSON, "message": {"mid": MID, "text": "a"}, **change}, good))
    letter, sibling = delivery.facts
    assert isinstance(letter, DeadLetter)
    assert letter.page_id == PAGE
    assert letter.reason.startswith(f"{named}:")
    assert isinstance(sibling, Message)
    assert sibling.message_id == "m_sibling"


@pytest.mark.parametrize(
    ("event", "named"),
    [
        ({**FROM_PERSON, "reaction": {"mid": MID, "action": "stare"}}, "reaction.action"),
        (
            {**FROM_PERSON, "message_edit": {"mid": MID, "text": "t", "num_edit": "<INT>"}},
            "message_edit.num_edit",
        ),
        (
            {**FROM_PERSON, "message_edit": {"mid": MID, "text": "t", "num_edit": 2**31}},
            "message_edit.num_edit",
        ),
        ({**FROM_PERSON, "read": {"watermark": "yesterday"}}, "read.watermark"),
        ({**FROM_PERSON, "delivery": [1]}, "delivery"),
        ({**FROM_PERSON, "postback": {"title": 3}}, "postback.title"),
        ({"recipient": {"id": PERSON}, "reaction": {"mid": MID, "action": "unreact"}}, "sender.id"),
    ],
)
def test_a_broken_part_is_named(event: Event, named: str) -> None:
    fact = only(event)
    assert isinstance(fact, DeadLetter)
    assert fact.reason.startswith(f"{named}:")


def test_a_reason_never_quotes_what_somebody_wrote() -> None:
    fact = only({**FROM_PERSON, "message": {"mid": MID, "text": {"secret": "my card is 4111"}}})
    assert isinstance(fact, DeadLetter)
    assert "4111" not in fact.reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [(AT, AT), (str(AT), AT), (1527459824, 1527459824000), ("1527459824", 1527459824000), (float(AT), AT)],
)
def test_times_come_as_milliseconds_or_seconds_as_numbers_or_digits(given: Any, expected: int) -> None:
    event = {**FROM_PERSON, "timestamp": given, "message": {"mid": MID}}
    assert only(event).at == instant(expected)


def test_without_a_time_of_its_own_an_event_has_that_of_its_entry_else_of_receipt() -> None:
    event = {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "message": {"mid": MID}}
    assert only(event).at == instant(AT + 5000)
    (fact,) = read(envelope(event, time=None)).facts
    assert isinstance(fact, Message)
    assert fact.at == RECEIVED


def test_an_unreadable_time_of_the_entry_is_only_reported() -> None:
    delivery = read(envelope({**FROM_PERSON, "message": {"mid": MID}}, time="noon"))
    assert delivery.unknown == [(PAGE, "entry.time")]
    assert delivery.facts == [message()]


def test_the_digest_of_a_repeated_event_does_not_depend_on_when_it_was_received() -> None:
    event = {"sender": {"id": PERSON}, "recipient": {"id": PAGE}, "referral": {"ref": "r"}}
    raw = orjson.dumps({"object": "page", "entry": [{"id": PAGE, "messaging": [event]}]})
    (one,) = parse(raw, RECEIVED).facts
    (two,) = parse(raw, datetime(2027, 1, 1, tzinfo=UTC)).facts
    assert isinstance(one, Message)
    assert isinstance(two, Message)
    assert one.message_id == two.message_id


def test_ids_come_as_numbers_too() -> None:
    event = {"sender": {"id": int(PERSON)}, "recipient": {"id": int(PAGE)}, "timestamp": AT}
    (fact,) = read(envelope({**event, "message": {"mid": MID}}, id=int(PAGE))).facts
    assert fact == message()


def test_a_plugin_user_is_known_by_reference() -> None:
    sender = {"sender": {"user_ref": "u-1"}, "recipient": {"id": PAGE}, "timestamp": AT}
    assert only({**sender, "postback": {"mid": MID, "title": "t"}}).sender_id == "user_ref:u-1"
    optin = {"recipient": {"id": PAGE}, "timestamp": AT, "optin": {"ref": "r", "user_ref": "u-2"}}
    assert only(optin).sender_id == "user_ref:u-2"


def test_the_page_of_an_event_is_that_of_its_entry() -> None:
    event = {"sender": {"id": "12334"}, "recipient": {"id": "23245"}, "timestamp": "1527459824"}
    (fact,) = read(envelope({**event, "message": {"mid": "random_mid", "text": "t"}}, id="0")).facts
    assert isinstance(fact, Message)
    assert (fact.page_id, fact.sender_id, fact.direction) == ("0", "12334", "in")


def test_instagram_is_read_the_same_way() -> None:
    body = envelope({**FROM_PERSON, "message": {"mid": MID, "text": "a"}})
    assert read({**body, "object": "instagram"}).facts == [message(text="a")]


def test_several_entries_and_channels_are_all_read() -> None:
    def entry(page: str, channel: str, count: int) -> Event:
        events = [
            {
                "sender": {"id": PERSON},
                "recipient": {"id": page},
                "timestamp": AT + number,
                "message": {"mid": f"{channel}-{page}-{number}", "text": "x"},
            }
            for number in range(count)
        ]
        return {"id": page, "time": AT, channel: events}

    body = {"object": "page", "entry": [entry("11", "messaging", 500), entry("12", "standby", 500)]}
    body["entry"].append({**entry("11", "messaging", 2), **entry("11", "standby", 3)})  # type: ignore[attr-defined]
    delivery = read(body)
    assert len(delivery.facts) == 1005
    assert delivery.pages == {"11", "12"}
    assert delivery.unknown == []
    assert all(isinstance(fact, Message) for fact in delivery.facts)


def test_a_conversations_change_asks_for_a_read_and_states_nothing() -> None:
    change = {"field": "conversations", "value": {"thread_id": "t_100", "page_id": PAGE}}
    delivery = read(envelope(change, channel="changes", time=1476077449))
    assert delivery.facts == []
    assert delivery.threads_to_read == [(PAGE, "t_100")]
    assert delivery.unknown == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversations", {"thread_id": "t_100", "page_id": PAGE}),
        ("inbox_labels", {"user": {"id": PERSON}, "action": "add", "label": {"id": "5"}}),
    ],
)
def test_a_new_field_of_a_change_is_reported(field: str, value: Event) -> None:
    for more, unknown in (({}, []), ({"novel": 1}, [(PAGE, f"{field}.novel")])):
        change = {"field": field, "value": {**value, **more}}
        assert read(envelope(change, channel="changes")).unknown == unknown


def test_an_inbox_label_is_an_event_of_its_person() -> None:
    value = {"user": {"id": PERSON}, "action": "add", "label": {"id": "5", "page_label_name": "VIP"}}
    change = {"field": "inbox_labels", "value": value}
    (fact,) = read(envelope(change, channel="changes", time=AT // 1000)).facts
    assert isinstance(fact, Message)
    assert (fact.sender_id, fact.event_type, fact.in_thread) == (PERSON, "inbox_labels", False)
    assert fact.at == instant(AT // 1000 * 1000)
    assert fact.metadata == {"webhook": change}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"field": "feed", "value": {"verb": "add"}}, "event without a person: changes.feed"),
        ({"field": "inbox_labels", "value": {"user": {"id": PAGE}}}, "event without a person: inbox_labels"),
        ({"field": "inbox_labels", "value": {}}, "changes.inbox_labels.user: Field required"),
        ({"field": "conversations", "value": {}}, "changes.conversations.thread_id: Field required"),
        ({"field": "conversations", "value": None}, "changes.conversations: the value is not an object"),
        ({"value": {}}, "changes.field: must be a string"),
        ("feed", "changes: not an object"),
    ],
)
def test_a_change_that_concerns_no_conversation_is_a_dead_letter(change: Any, reason: str) -> None:
    (fact,) = read(envelope(change, channel="changes")).facts
    assert isinstance(fact, DeadLetter)
    assert (fact.page_id, fact.reason) == (PAGE, reason)


def test_a_change_with_an_event_inside_is_read_as_the_event() -> None:
    change = {"field": "messages", "value": {**FROM_PERSON, "message": {"mid": MID, "text": "a"}}}
    assert read(envelope(change, channel="changes")).facts == [message(text="a")]


def test_changed_fields_without_values_are_reported() -> None:
    delivery = read(
        {"object": "page", "entry": [{"id": PAGE, "time": 1, "changed_fields": ["messages", "x", {"a": 1}]}]}
    )
    assert delivery.facts == []
    assert delivery.unknown == [
        (PAGE, "changed_fields.messages"),
        (PAGE, "changed_fields.x"),
        (PAGE, "changed_fields.dict"),
    ]


def test_the_bare_form_of_a_dashboard_test_is_understood() -> None:
    value = {**FROM_PERSON, "timestamp": "1527459824", "postback": {"mid": MID, "title": "T"}}
    delivery = read({"field": "messaging_postbacks", "value": value})
    (fact,) = delivery.facts
    assert isinstance(fact, Message)
    assert (fact.page_id, fact.message_id, fact.event_type) == (PAGE, MID, "postback")
    assert delivery.pages == {PAGE}
    echo = {**FROM_PAGE, "message": {"mid": MID, "is_echo": True}}
    assert read({"field": "message_echoes", "value": echo}).facts == [message("out")]


@pytest.mark.parametrize("value", [None, {}, "x", {"recipient": {}}, {"user": {"id": PERSON}}])
def test_a_bare_change_that_names_no_page_is_a_dead_letter(value: Any) -> None:
    (fact,) = read({"field": "inbox_labels", "value": value}).facts
    assert isinstance(fact, DeadLetter)
    assert fact.page_id == ""


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"object=page",
        b'{"object":"page","entry":[',
        b'{"object":"page","entry":[NaN]}',
        b'{"object":"\xff","entry":[]}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"object":"page","entry":[' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"]}",
        b'{"object":"\\ud800","entry":[' + b"9" * 5000 + b"]}",
    ],
)
def test_a_body_that_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(NotJson):
        parse(raw, RECEIVED)


@pytest.mark.parametrize(
    "body",
    [
        *(None, 1, "x", [], {}, {"object": "page"}, {"entry": []}, {"object": "page", "entry": {}}),
        *({"object": 1, "entry": []}, {"field": 1, "value": {}}, {"field": "messages"}),
    ],
)
def test_json_that_is_no_envelope_is_refused(body: Any) -> None:
    with pytest.raises(NotAnEnvelope):
        read(body)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "entry: not an object"),
        ({"messaging": []}, "entry.id: must be a string or an integer"),
        ({"id": "", "messaging": []}, "entry.id: must not be empty"),
        ({"id": PAGE, "messaging": {}}, "entry.messaging: not a list"),
        ({"id": PAGE, "time": 5}, "entry: none of messaging, standby, changes"),
        ({"id": PAGE, "messaging": [], "calls": [{"a": 1}]}, "entry.calls: not a known list"),
        ({"id": PAGE, "messaging": [7]}, "messaging: not an object"),
        ({"id": PAGE, "standby": [None]}, "standby: not an object"),
    ],
)
def test_a_broken_entry_is_a_dead_letter_and_its_siblings_pass(entry: Any, reason: str) -> None:
    body = envelope({**FROM_PERSON, "message": {"mid": MID}})
    body["entry"].insert(0, entry)
    letter, sibling = read(body).facts
    assert isinstance(letter, DeadLetter)
    assert letter.reason == reason
    assert sibling == message()


def test_an_object_of_another_kind_is_a_dead_letter_of_no_page() -> None:
    body = {
        "object": "user",
        "entry": [{"id": "1021", "time": 5, "changes": [{"field": "photos", "value": {}}]}],
    }
    delivery = read(body)
    (fact,) = delivery.facts
    assert isinstance(fact, DeadLetter)
    assert fact.page_id == ""
    assert orjson.loads(fact.raw) == body
    assert delivery.pages == set()
    assert delivery.unknown == [("", "object.user")]


def test_a_dead_letter_is_an_envelope_that_can_be_read_again() -> None:
    broken = {**FROM_PERSON, "timestamp": "soon", "message": {"mid": MID, "text": "ä👋"}}
    letter, _ = read(envelope(broken, {**FROM_PERSON, "message": {"mid": "m_sibling"}})).facts
    assert isinstance(letter, DeadLetter)
    assert orjson.loads(letter.raw) == envelope(broken)
    assert parse(letter.raw, RECEIVED).facts == [letter]
    mended = letter.raw.replace(b'"soon"', str(AT).encode())
    assert parse(mended, RECEIVED).facts == [message(text="ä👋")]


def test_lone_surrogates_and_nul_are_read_and_can_be_stored() -> None:
    event = {
        **FROM_PERSON,
        "message": {"mid": MID, "text": "a\ud800\x00b", "quick_reply": {"payload": "\udfff"}},
    }
    fact = only(event)
    assert fact.text == "a\ufffd\ufffdb"
    assert fact.metadata == {"webhook": {"quick_reply": {"payload": "\ufffd"}}}
    unknown = only({**FROM_PERSON, "new\ud800kind": {"a": "\ud800"}})
    assert unknown.event_type == "unknown"


def test_the_raw_bytes_of_a_dead_letter_keep_a_lone_surrogate() -> None:
    letter = only({**FROM_PERSON, "message": {"text": "a\ud800"}})
    assert rb"a\ud800" in letter.raw


def test_numbers_beyond_any_type_are_kept() -> None:
    raw = json.dumps(envelope({**FROM_PERSON, "message": {"mid": MID, "nlp": "HERE"}})).encode()
    for digits in (
        b"1e999",
        b"-1e999",
        b"18446744073709551615",
        b"123456789012345678901234567890",
        b"-9223372036854775809",
    ):
        (fact,) = parse(raw.replace(b'"HERE"', digits), RECEIVED).facts
        assert isinstance(fact, Message)
        assert digits.decode() in dump([fact])


@pytest.mark.parametrize("depth", [100, 230, 260, 400, 900])
@pytest.mark.parametrize("surrogate", ["", "\ud800"])
def test_deep_nesting_costs_its_own_event_at_most(depth: int, surrogate: str) -> None:
    deep: Any = surrogate
    for _ in range(depth):
        deep = [deep]
    good = {**FROM_PERSON, "message": {"mid": MID}}
    broken = {**FROM_PERSON, "message": {"mid": "m_deep", "attachments": deep}}
    try:
        first, second = read(envelope(broken, good)).facts
    except NotJson:
        assert depth == 900  # deeper than the reader of lone surrogates goes
        return
    assert second == message()
    if depth > 250:
        assert isinstance(first, DeadLetter)
        assert first.reason == "messaging: nested too deeply"
    elif depth < 240:
        assert isinstance(first, Message)


def test_an_id_of_any_number_of_digits_is_kept_exactly() -> None:
    sender = {"id": 123456789012345678901234567890}
    assert only({**FROM_PERSON, "sender": sender, "message": {"mid": MID}}).sender_id == str(sender["id"])


def test_names_in_drift_are_printable_and_short() -> None:
    delivery = read(envelope({**FROM_PERSON, "a\nb\ud800" + "x" * 500: 1}))
    ((page_id, name),) = delivery.unknown
    assert page_id == PAGE
    assert name.isprintable()
    assert len(name) < 200
    assert read({"object": "page", "entry": [], "": 1}).unknown == [("", "(empty)")]


def test_a_name_in_drift_is_nobodys_id() -> None:
    event = {**FROM_PERSON, "message": {"mid": MID, f"seen_by_{PAGE}_v12": True}}
    assert read(envelope(event)).unknown == [(PAGE, "message.seen_by_#_v12")]


KEYS = st.sampled_from(
    [
        "sender",
        "recipient",
        "timestamp",
        "message",
        "message_edit",
        "reaction",
        "read",
        "delivery",
        "postback",
        "optin",
        "referral",
        "id",
        "mid",
        "text",
        "watermark",
        "user_ref",
        "is_echo",
        "action",
        "field",
        "value",
        "user",
        "thread_id",
        "novel",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([PAGE, PERSON, MID, AT, "react", "true", "conversations", "inbox_labels"])
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5)
    ),
)
LIKELY = st.fixed_dictionaries(
    {"sender": st.just({"id": PERSON}) | ANY_JSON, "recipient": st.just({"id": PAGE}) | ANY_JSON},
    optional={
        "timestamp": st.just(AT) | ANY_JSON,
        "message": st.fixed_dictionaries({"mid": st.just(MID)}) | ANY_JSON,
        "reaction": ANY_JSON,
        "read": ANY_JSON,
        "postback": ANY_JSON,
        "field": st.just("messages"),
        "value": ANY_JSON,
        "novel": ANY_JSON,
    },
)


def meaning(fact: Fact) -> Any:
    """A fact, without how the bytes of a dead letter are written."""
    if isinstance(fact, DeadLetter):
        return fact.page_id, fact.reason, json.loads(fact.raw)
    return json.loads(dump([fact]))


@settings(max_examples=250, deadline=None)
@given(st.lists(ANY_JSON | LIKELY, max_size=4), st.sampled_from(["messaging", "standby", "changes"]))
def test_whatever_is_in_an_envelope_nothing_raises_and_each_item_is_accounted_for(
    items: list[Any], channel: str
) -> None:
    for item in items:
        delivery = read(envelope(item, channel=channel))
        assert delivery.facts or delivery.threads_to_read
        for fact in delivery.facts:
            assert fact.page_id == PAGE
            if isinstance(fact, DeadLetter):
                assert isinstance(orjson.loads(fact.raw.replace(rb"\ud", b"d")), dict)
            elif not isinstance(fact, PageEvent):
                assert fact.sender_id not in ("", PAGE)
    together = read(envelope(*items, channel=channel))
    apart = [read(envelope(item, channel=channel)) for item in items]
    assert list(map(meaning, together.facts)) == [
        meaning(fact) for delivery in apart for fact in delivery.facts
    ]
    assert together.threads_to_read == [thread for delivery in apart for thread in delivery.threads_to_read]


@settings(max_examples=200, deadline=None)
@given(ANY_JSON)
def test_whatever_an_entry_is_nothing_raises_and_it_is_accounted_for(entry: Any) -> None:
    delivery = read({"object": "page", "entry": [entry]})
    assert delivery.facts


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_body_is_only_the_two_refusals_are_raised(raw: bytes) -> None:
    with contextlib.suppress(NotJson, NotAnEnvelope):
        parse(raw, RECEIVED)


# --- nothing that is said is lost


SOMETHING_NEW = {
    "reaction": {"mid": MID, "action": "react", "reaction": "love", "weight": "KEPT"},
    "message_edit": {"mid": MID, "text": "new", "num_edit": 1, "why": "KEPT"},
    "read": {"watermark": AT, "device": "KEPT"},
    "delivery": {"watermark": AT, "mids": [MID], "carrier": "KEPT"},
    "message": {"mid": MID, "is_deleted": True, "deleted_by": "KEPT"},
    "postback": {"title": "t", "payload": "P", "novel": "KEPT"},
    "referral": {"ref": "r", "novel": "KEPT"},
}


@pytest.mark.parametrize("kind", SOMETHING_NEW)
def test_a_new_field_of_any_kind_is_kept(kind: str) -> None:
    delivery = read(envelope({**FROM_PERSON, kind: SOMETHING_NEW[kind]}))
    assert "KEPT" in dump(delivery.facts)
    plain = {key: value for key, value in SOMETHING_NEW[kind].items() if value != "KEPT"}
    usual = read(envelope({**FROM_PERSON, kind: plain}))
    # What it means is told as ever; what is new stands beside it.
    assert [fact for fact in usual.facts if not isinstance(fact, Message)] == [
        fact for fact in delivery.facts if not isinstance(fact, Message)
    ]
    assert all(not fact.in_thread for fact in delivery.facts[1:] if isinstance(fact, Message))


@pytest.mark.parametrize("kind", SOMETHING_NEW)
@pytest.mark.parametrize("where", ["party", "event", "entry", "delivery"])
def test_a_new_field_around_any_kind_is_kept(kind: str, where: str) -> None:
    plain = {key: value for key, value in SOMETHING_NEW[kind].items() if value != "KEPT"}
    event: Event = {**FROM_PERSON, kind: plain}
    if where == "party":
        event["sender"] = {**event["sender"], "novel": "KEPT"}
    if where == "event":
        event["novel"] = "KEPT"
    body = envelope(event, **({"novel": "KEPT"} if where == "entry" else {}))
    if where == "delivery":
        body["novel"] = "KEPT"
    delivery = read(body)
    assert "KEPT" in dump(delivery.facts)
    assert any("novel" in name for _, name in delivery.unknown)


def test_the_bytes_of_an_item_that_was_alone_are_those_that_came() -> None:
    raw = (
        b'{ "object":"page",\t"entry":[{"id":"%s","time":1.0e3,"messaging":[{"sender":{"id":"7"},'
        b'"message":{"mid":"","mid":"\\u0041\\/\\u0000"}}]}]}' % PAGE.encode()
    )
    delivery = parse(raw, RECEIVED)
    (letter,) = delivery.facts
    assert isinstance(letter, DeadLetter)
    assert letter.raw == raw
    assert delivery.size == 2 * len(raw), "as it came, and as a dead letter"


# --- the bytes of one item among several


ODD = {
    "escapes": rb'{ "sender":{"id":"7"} ,"message":{"mid":"","mid":"\u0041\/\u0000\\"}, "x":"]}\"[{," }',
    "numbers": rb'{"message":{"text":"\ud83d\udeb2 \ud800"}, "n":1.0e3,"big":1234567890123456789012 }',
    "a string": b'"not an object: \\"],[ \xc3\xa4"',
    "a list": b"[ 1 , [ ] , { } ]",
    "nothing": b"null",
    "deep": b'{"message":' + b"[" * 900 + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    ("channel", "kept"),
    [
        ("messaging", b'"messaging":[%b]'),
        ("standby", b'"standby":[%b]'),
        ("changes", b'"changes":[%b]'),
        ("novel", b'"novel":[\t%b ,7]'),
    ],
)
def test_the_bytes_of_an_item_among_others_are_those_that_came(odd: str, channel: str, kept: bytes) -> None:
    good = json.dumps({**FROM_PERSON, "message": {"mid": MID}}).encode()
    rest = b"7" if channel == "novel" else good
    raw = (
        b'{"entry":[3] , "object":"p\\u0061ge","more":{"a":[1]},"entry" : [ {"id":"9","standby":[%b]},'
        b'{"%b":[7,7,7],"id" :%b, "time":1.70e9,"uid":"u","changed_fields":[],\n"%b" : [\t%b ,%b]}]}'
    ) % (good, channel.encode(), PAGE.encode(), channel.encode().replace(b"e", b"\\u0065"), ODD[odd], rest)
    letter = next(fact for fact in parse(raw, RECEIVED).facts if isinstance(fact, DeadLetter))
    assert letter.raw == (
        b'{"entry":[{"id":%b,"time":1.70e9,"uid":"u",%b}],"object":"p\\u0061ge","more":{"a":[1]}}'
        % (PAGE.encode(), kept % ODD[odd])
    )
    assert parse(letter.raw, RECEIVED).facts == [letter]


@st.composite
def written(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """A JSON text, as odd as the grammar allows."""
    chance = Random(draw(st.integers(0, 2**32)))  # noqa: S311 - to be repeatable, not secret

    def space() -> bytes:
        return chance.choice([b"", b"", b" ", b"\r\n\t"])

    def text(one: str) -> bytes:
        plain = json.dumps(one, ensure_ascii=chance.random() < 0.5)
        try:
            escaped = plain.encode()
        except UnicodeEncodeError:  # a lone surrogate can only be escaped
            escaped = json.dumps(one).encode()
        return escaped.replace(b"/", chance.choice([b"/", b"\\/", b"\\u002F"]))

    def write(one: Any) -> bytes:
        if isinstance(one, dict):
            pairs = [text(name) + space() + b":" + write(told) for name, told in one.items()]
            if pairs and chance.random() < 0.3:
                pairs.insert(0, text(next(iter(one))) + b':["told twice",{"a":"\\\\"}]')
            core = b"{" + b",".join(pairs) + space() + b"}"
        elif isinstance(one, list):
            core = b"[" + b",".join(map(write, one)) + space() + b"]"
        else:
            core = text(one) if isinstance(one, str) else json.dumps(one).encode()
        return space() + core + space()

    return write(draw(values))


def assembled(around: Event, entries: list[tuple[Event, dict[str, list[bytes]]]]) -> bytes:
    def members(told: Event) -> list[bytes]:
        return [json.dumps(name).encode() + b":" + json.dumps(value).encode() for name, value in told.items()]

    whole = [
        members(entry)
        + [b'"%b":[%b]' % (name.encode(), b",".join(items)) for name, items in channels.items()]
        for entry, channels in entries
    ]
    inside = b",".join(b"{" + b",".join(entry) + b"}" for entry in whole)
    return b"{" + b",".join([*members({"object": "page", **around}), b'"entry":[%b]' % inside]) + b"}"


@settings(max_examples=250, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["new", 'ne"w']), ANY_JSON),
    st.lists(
        st.tuples(
            st.fixed_dictionaries(
                {"id": st.sampled_from([PAGE, 12])},
                optional={"time": ANY_JSON, "uid": SCALARS, "new": SCALARS},
            ),
            st.dictionaries(
                st.sampled_from(["messaging", "standby", "changes"]),
                st.lists(written(ANY_JSON | LIKELY), min_size=1, max_size=3),
            ),
        ),
        max_size=3,
    ),
)
def test_every_fact_has_the_bytes_of_its_item_and_of_no_other(
    around: Event, entries: list[tuple[Event, dict[str, list[bytes]]]]
) -> None:
    delivery = parse(assembled(around, entries), RECEIVED)
    facts = iter(delivery.facts)
    for entry, channels in entries:
        for channel in ("messaging", "standby", "changes"):
            for item in channels.get(channel, ()):
                alone = assembled(around, [(entry, {channel: [item]})])
                for same in parse(alone, RECEIVED).facts:
                    fact = next(facts)
                    assert meaning(fact) == meaning(same)
                    raw = fact.raw if isinstance(fact, DeadLetter) else delivery.bytes_of(fact)
                    assert item.strip() in raw
                    assert json.loads(raw) == json.loads(alone)
        if not channels:
            assert isinstance(next(facts), DeadLetter)  # the entry as a whole
    assert next(facts, None) is None
