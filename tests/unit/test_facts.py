"""The vocabulary of facts: cleaned of what PostgreSQL cannot hold, named stably, taken by its jsonb."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convsync.facts import (
    DeadLetter,
    Edit,
    Message,
    Reaction,
    Thread,
    Unsend,
    Watermark,
    clean,
    digest_id,
    dump,
    instant,
    thread_key,
)

PAGE, PERSON = "104000000000001", "7300000000000011"
AT = instant(1_700_000_000_123)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
any_text = st.text(st.characters(codec=None, categories=None), max_size=20) | st.sampled_from(
    ["\x00", "\ud83d", "\udeb2\ud83d", "🚲", "\ufffd", "\u2028"]
)


@pytest.mark.parametrize(
    ("given_", "cleaned"),
    [
        ("a\x00b", "a\ufffdb"),
        ("\ud83d", "\ufffd"),
        ("\udeb2\ud83d", "\ufffd\ufffd"),
        ("🚲 ü \u2028", "🚲 ü \u2028"),
        ({"a\x00": ["\ud83d", {"b": ("\x00",)}]}, {"a\ufffd": ["\ufffd", {"b": ["\ufffd"]}]}),
        (2**63 - 1, 2**63 - 1),
        (2**63, "9223372036854775808"),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, "-9223372036854775809"),
        (True, True),
        (None, None),
        (1.5, 1.5),
    ],
)
def test_what_postgresql_cannot_hold_is_replaced_at_any_depth(given_: object, cleaned: object) -> None:
    assert clean(given_) == cleaned
    assert type(clean(given_)) is type(cleaned)


@given(json_values)
def test_what_is_clean_stays_as_it_is(value: Any) -> None:
    once = clean(value)
    assert clean(once) == once


def test_an_instant_is_exact_to_the_millisecond() -> None:
    assert instant(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert instant(1_700_000_000_123).isoformat() == "2023-11-14T22:13:20.123000+00:00"
    assert instant(253_402_300_799_999).isoformat() == "9999-12-31T23:59:59.999000+00:00"
    assert thread_key("t_1") == "thread:t_1"


# Names for what the platform gives none


def test_a_digest_is_the_same_wherever_and_however_often_it_is_made() -> None:
    payload = {"b": 1, "a": ["🚲", "\ud83d", {"y": None, "x": 2**70}]}
    name = digest_id(PAGE, PERSON, AT, "postback", payload)
    assert name == digest_id(PAGE, PERSON, AT, "postback", dict(reversed(payload.items())))
    assert name.startswith("evt_")
    assert len(name) == 44
    script = (
        "from convsync.facts import digest_id, instant\n"
        f"print(digest_id({PAGE!r}, {PERSON!r}, instant(1700000000123), 'postback', {payload!r}))"
    )
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert there.stdout.strip() == name
    # It stands in databases: another name for the same event would double it.
    pinned = "evt_e411eaee98e0266302f48a54574456a3d29804cb"
    assert digest_id("1", "2", instant(3), "kind", {"k": "v"}) == pinned


def test_digests_of_different_events_differ() -> None:
    events: list[tuple[str, str, datetime, str, object]] = [
        (PAGE, PERSON, AT, "postback", {"payload": "A"}),
        (PAGE, PERSON, AT, "postback", {"payload": "B"}),
        (PAGE, PERSON, AT, "referral", {"payload": "A"}),
        (PAGE, PERSON, AT + timedelta(milliseconds=1), "postback", {"payload": "A"}),
        (PAGE, PERSON + "1", AT, "postback", {"payload": "A"}),
        (PAGE + "1", PERSON, AT, "postback", {"payload": "A"}),
        (PAGE, PERSON, AT, "postback", {"payload": ["A"]}),
        (PAGE, PERSON, AT, "postback", None),
        (PAGE, PERSON, AT, "postback", {"payload": 1}),
        (PAGE, PERSON, AT, "postback", {"payload": "1"}),
        (PAGE[:-1], PAGE[-1] + PERSON, AT, "postback", {"payload": "A"}),
    ]
    assert len({digest_id(*event) for event in events}) == len(events)


# The JSON


def every_kind(text: str, payload: Any) -> list[Any]:
    told = {"webhook": payload}
    return [
        Message(PAGE, PERSON, "m_1", "in", AT, text, metadata=told),
        Message(PAGE, PERSON, "m_2", "out", AT, None, "postback", told, observed_at=AT, in_thread=False),
        Edit(PAGE, PERSON, "m_1", AT, 1, text),
        Reaction(PAGE, PERSON, "m_1", AT, PERSON, "react", "love", text),
        Unsend(PAGE, PERSON, "m_1", AT),
        Watermark(PAGE, PERSON, "read", AT),
        Thread(PAGE, PERSON, "t_1", AT, {"name": text, "unread_count": 2, "updated_time": AT}),
        DeadLetter(PAGE, text, b"\x00\xff" + text.encode("utf-8", "surrogatepass")),
    ]


def test_every_kind_says_what_it_is_and_whose() -> None:
    found = json.loads(dump(every_kind("hello", {})))
    assert [fact["kind"] for fact in found] == [
        "message",
        "message",
        "edit",
        "reaction",
        "unsend",
        "watermark",
        "thread",
        "dead_letter",
    ]
    assert {fact["page_id"] for fact in found} == {PAGE}
    assert {fact.get("sender_id") for fact in found[:-1]} == {PERSON}
    assert found[0]["at"] == "2023-11-14T22:13:20.123000Z"
    assert found[6]["fields"]["updated_time"] == "2023-11-14T22:13:20.123000Z"


def test_a_time_of_another_zone_is_the_same_instant() -> None:
    there = AT.astimezone(timezone(timedelta(hours=-7)))
    (fact,) = json.loads(dump([Unsend(PAGE, PERSON, "m_1", there)]))
    assert datetime.fromisoformat(fact["at"]) == AT


@settings(max_examples=150, deadline=None)
@given(text=any_text, payload=json_values)
def test_postgresql_takes_whatever_is_dumped(server: Any, text: str, payload: Any) -> None:
    dumped = dump(every_kind(text, payload))
    row = server.connection.execute(
        "select jsonb_array_length(%s::jsonb), %s::jsonb -> 0 ->> 'text'", [dumped, dumped]
    ).fetchone()
    assert row == (8, clean(text))
