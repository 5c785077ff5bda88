"""What the rows of one person of the old system say, and which of them say it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from convsync.adopt import reading
from convsync.adopt.reading import HEARSAY, Damage, Letter, PersonReader, orphan
from convsync.adopt.source import Person
from convsync.facts import Fact, Message, Thread, dump

PAGE, ADA = "1001", "2001"
AS_OF = datetime(2026, 3, 1, tzinfo=UTC)
AT = "2026-02-01T10:00:00+00:00"
TIME = datetime(2026, 2, 1, 10, tzinfo=UTC)


def conversation(**more: Any) -> dict[str, Any]:
    return {"id": 1, "page_id": PAGE, "sender_id": ADA, **more}


def event(
    text: str | None = "hello", *, at: Any = AT, kind: Any = "message_received", **metadata: Any
) -> Any:
    return {"event_type": kind, "event_timestamp": at, "metadata": {"text": text, **metadata}}


def read(
    *events: tuple[str | None, Any], rows: list[Any] | None = None, sender: str = ADA, page: str = PAGE
) -> tuple[list[Fact], Damage]:
    damage = Damage()
    reader = PersonReader(Person(page, sender, rows or [conversation()]), damage, AS_OF)
    told = list(reader.begin())
    for message_id, row in events:
        told += reader.event(message_id, row)
    return [*told, *reader.end()], damage


def messages(facts: list[Fact]) -> list[Message]:
    return [fact for fact in facts if isinstance(fact, Message)]


def letters(facts: list[Fact]) -> list[Letter]:
    return [fact for fact in facts if isinstance(fact, Letter)]


def test_an_event_becomes_the_message_it_was() -> None:
    facts, damage = read(("m_1", event(channel="x")), ("m_2", event("ok", kind="message_sent")))
    assert messages(facts) == [
        Message(PAGE, ADA, "m_1", "in", TIME, "hello", metadata={"adopted": {"channel": "x"}}),
        Message(PAGE, ADA, "m_2", "out", TIME, "ok"),
    ]
    assert (damage.people, damage.events, damage.messages) == (1, 2, 2)


def test_the_name_is_that_of_the_row_touched_last_and_older_than_any_read() -> None:
    rows = [
        conversation(sender_name="Ada L.", updated_at="2026-01-01T00:00:00+00:00"),
        conversation(sender_name="Ada", updated_at="2026-02-01T00:00:00+00:00"),
        conversation(sender_name=" ", updated_at="2026-02-02T00:00:00+00:00"),
    ]
    (thread,), damage = read(rows=rows)
    assert isinstance(thread, Thread)
    assert (thread.fields, thread.observed_at) == ({"name": "Ada"}, HEARSAY)
    assert "thread_id" not in json.loads(dump([thread]))[0]
    assert (damage.people_doubled, damage.conversations_doubled) == (1, 2)


def test_a_person_without_a_name_is_still_a_conversation() -> None:
    (thread,), _ = read(rows=[conversation(sender_name=None)])
    assert isinstance(thread, Thread)
    assert thread.fields == {}


def test_a_copy_is_told_again_only_if_it_says_something_else() -> None:
    facts, damage = read(("m_1", event()), ("m_1", event()), ("m_1", event("other")), ("m_2", event()))
    assert [(one.message_id, one.text) for one in messages(facts)] == [
        ("m_1", "hello"),
        ("m_1", "other"),
        ("m_2", "hello"),
    ]
    assert (damage.messages, damage.events_doubled, damage.copies_disagree) == (2, 2, 1)
    assert damage.messages_doubled == 1


@pytest.mark.parametrize(
    "other",
    [event("hello!"), event(at="2026-02-01T10:00:01+00:00"), event(kind="message_sent")],
    ids=["text", "second", "direction"],
)
def test_an_event_without_an_id_is_known_only_by_the_same_words_at_the_same_second(other: Any) -> None:
    nameless = event(at="2026-02-01T10:00:00.250+00:00")
    facts, damage = read((None, nameless), ("m_1", event()))
    assert (damage.twins, damage.nameless, letters(facts)) == (1, 0, [])

    facts, damage = read((None, nameless), ("m_1", other))
    assert (damage.twins, damage.nameless) == (0, 1)
    (letter,) = letters(facts)
    assert json.loads(letter.raw) == {
        "page_id": PAGE,
        "sender_id": ADA,
        "table": "contact_interaction_events",
        "row": nameless,
    }
    assert (letter.sender_id, letter.direction, letter.text) == (ADA, "in", "hello")
    assert len(messages(facts)) == 1, "it never gets an id of ours"


def test_events_without_an_id_beyond_those_compared_are_kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "COMPARED", 2)
    facts, damage = read(*[(None, event())] * 3, ("m_1", event()))
    assert (damage.twins, damage.nameless, len(letters(facts))) == (2, 1, 1)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (event(kind="message_read"), "event_type message_read"),
        (event(kind=None), "event_type is missing"),
        (event(at=None), "event_timestamp is no time"),
        (event(at="infinity"), "event_timestamp is no time"),
        (event(at="2026-03-02T00:00:01+00:00"), "event_timestamp lies in the future"),
        (event(kind="message"), "nothing says who wrote it"),
    ],
)
def test_what_cannot_be_used_is_kept_with_the_reason(row: Any, why: str) -> None:
    facts, damage = read(("m_1", row), ("m_2", event()))
    assert dict(damage.unusable) == {why: 1}
    (letter,) = letters(facts)
    assert letter.reason.endswith(why)
    assert json.loads(letter.raw)["row"] == row
    assert [one.message_id for one in messages(facts)] == ["m_2"]


@pytest.mark.parametrize(
    ("row", "direction"),
    [
        (event(kind="message", direction="Inbound"), "in"),
        (event(kind="message") | {"direction": "out"}, "out"),
        (event(kind="message") | {"is_outbound": True}, "out"),
        (event(kind="message", is_echo=False), "in"),
        (event(kind="message", **{"from": {"id": PAGE}}), "out"),
        (event(kind="message", from_id=ADA), "in"),
        (event(kind="postback"), "in"),
        # The type is the old system's own word, and comes first.
        (event(kind="message_sent", direction="in"), "out"),
    ],
)
def test_who_wrote_it_is_read_from_wherever_it_stands(row: Any, direction: str) -> None:
    (message,) = messages(read(("m_1", row))[0])
    assert message.direction == direction


def test_a_time_without_a_zone_is_utc() -> None:
    (message,) = messages(read(("m_1", event(at="2026-02-01T10:00:00")))[0])
    assert message.at == TIME


@pytest.mark.parametrize(
    ("page", "sender"),
    [
        *((PAGE, sender) for sender in ("", PAGE, "null", "undefined", "erased:7", "7" * 129)),
        *((page, ADA) for page in ("", "null", "undefined", "1" * 129)),
    ],
)
def test_a_conversation_with_nobody_is_kept_row_by_row(page: str, sender: str) -> None:
    facts, damage = read(("m_1", event()), (None, event()), page=page, sender=sender)
    assert [type(fact) for fact in facts] == [Letter] * 3
    assert {fact.page_id for fact in facts} == {PAGE if page == PAGE else ""}, "of no Page that there is"
    assert all(letter.sender_id is None for letter in letters(facts)), "it seems to be no known message"
    assert (damage.conversations_unusable, damage.people, damage.unusable.total()) == (1, 0, 2)


def test_a_message_id_that_no_index_would_take_is_none() -> None:
    facts, damage = read(("m" * 512, event()), ("m" * 513, event("bye")))
    assert [type(fact) for fact in facts] == [reading._Name, Message, Letter]
    assert damage.unusable == {"message_id is longer than 512 characters": 1}


def test_last_words_that_became_no_event_are_kept() -> None:
    row = conversation(last_message="bye", last_message_time="2026-02-01T10:00:05.5+00:00")
    facts, damage = read(("m_1", event()), rows=[row])
    (letter,) = letters(facts)
    assert (letter.text, letter.direction, letter.at) == ("bye", None, TIME.replace(second=5))
    assert damage.last_messages_lost == 1
    for message_id in ("m_2", None):
        known = (message_id, event("bye", at="2026-02-01T10:00:05+00:00"))
        assert read(known, rows=[row])[1].last_messages_lost == 0


def test_a_count_is_wrong_if_it_is_not_the_number_of_messages() -> None:
    rows = [conversation(message_count=number) for number in (0, 2, None)]
    assert read(("m_1", event()), ("m_1", event()), ("m_2", event()), rows=rows)[1].counts_wrong == 1


def test_the_status_is_that_of_the_row_touched_last() -> None:
    rows = [
        conversation(conversation_status="closed", updated_at="2026-01-02T00:00:00+00:00"),
        conversation(conversation_status="active", updated_at="2026-01-01T00:00:00+00:00"),
    ]
    damage = Damage()
    reader = PersonReader(Person(PAGE, ADA, rows), damage, AS_OF)
    list(reader.begin())
    assert (reader.standing, damage.statuses_conflicting) == ("closed", 1)


def test_an_event_of_no_conversation_is_kept_under_no_page() -> None:
    damage = Damage()
    letter = orphan(event(), damage)
    assert (letter.page_id, damage.events, damage.unusable.total()) == ("", 1, 1)
