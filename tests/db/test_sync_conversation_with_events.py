"""One conversation with its events in one call, as documented, by the service's own role."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

Json: TypeAlias = dict[str, Any]
Connection: TypeAlias = psycopg.Connection[Any]

CONVERSATION: Json = {"page_id": "1001", "sender_id": "2001", "sender_name": "Ada", "unread_count": 2}
EVENTS: list[Json] = [
    {"message_id": "m_1", "direction": "in", "event_timestamp": "2025-03-01T12:00:00.123Z", "body": "Hello"},
    {
        "message_id": "m_2",
        "direction": "out",
        "event_timestamp": "2025-03-01T12:01:00Z",
        "body": "Hi Ada",
        "metadata": {"by": "kim"},
    },
]


@pytest.fixture
def service(database: Any) -> Iterator[Connection]:
    with psycopg.connect(database.service_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
def owner(database: Any) -> Iterator[Connection]:
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def write(connection: Connection, conversation: Any, events: Any, expected: int | None = None) -> Json:
    row: Json | None = connection.execute(
        """select * from convsync_api.sync_conversation_with_events(
             p_conversation => %s, p_events => %s, p_expected_version => %s)""",
        [Jsonb(conversation), None if events is None else Jsonb(events), expected],
    ).fetchone()
    assert row is not None
    return row


def rows(owner: Connection, table: str) -> list[Json]:
    return owner.execute(f"select * from convsync.{table} order by 1, 2").fetchall()  # noqa: S608


def nothing_is_there(owner: Connection) -> bool:
    tables = ("pages", "messenger_conversations", "contact_interaction_events", "conversation_changes")
    return all(rows(owner, table) == [] for table in tables)


def test_created_then_unchanged_then_updated(service: Connection, owner: Connection) -> None:
    created = write(service, CONVERSATION, EVENTS)
    assert (created["outcome"], created["version"], created["events_added"]) == ("created", 1, 2)
    again = write(service, CONVERSATION, EVENTS)
    assert again == {**created, "outcome": "unchanged", "events_added": 0}
    more = write(service, CONVERSATION, [*EVENTS, {**EVENTS[0], "message_id": "m_3", "body": "?"}])
    assert more == {**created, "outcome": "updated", "version": 2, "events_added": 1}
    renamed = write(service, {**CONVERSATION, "sender_name": "Ada L."}, [])
    assert renamed == {**created, "outcome": "updated", "version": 3, "events_added": 0}

    [row] = rows(owner, "messenger_conversations")
    assert (row["sender_name"], row["unread_count"], row["message_count"]) == ("Ada L.", 2, 3)
    assert (row["last_message"], row["last_message_id"]) == ("Hi Ada", "m_2")
    stored = {event["message_id"]: event for event in rows(owner, "contact_interaction_events")}
    assert stored["m_1"]["event_timestamp"] == datetime(2025, 3, 1, 12, 0, 0, 123000, tzinfo=UTC)
    assert {event["source"] for event in stored.values()} == {"sql"}
    assert stored["m_2"]["metadata"] == {"by": "kim"}
    assert stored["m_2"]["event_type"] == "message"


def test_a_conversation_without_events_and_events_as_null(service: Connection) -> None:
    assert write(service, CONVERSATION, [])["outcome"] == "created"
    assert write(service, CONVERSATION, None)["outcome"] == "unchanged"


def test_the_expected_version_is_checked(service: Connection, owner: Connection) -> None:
    assert write(service, CONVERSATION, EVENTS[:1], expected=0)["version"] == 1
    assert write(service, CONVERSATION, EVENTS, expected=1)["version"] == 2
    before = rows(owner, "messenger_conversations")
    for stale in (0, 1, 3):
        with pytest.raises(psycopg.DatabaseError) as raised:
            write(
                service,
                {**CONVERSATION, "sender_name": "Z"},
                [{**EVENTS[0], "message_id": "m_9"}],
                expected=stale,
            )
        assert raised.value.sqlstate == "ZC002"
        detail = json.loads(raised.value.diag.message_detail or "")
        assert detail == {"expected": stale, "actual": 2}
    assert rows(owner, "messenger_conversations") == before
    assert len(rows(owner, "contact_interaction_events")) == 2


def test_of_many_who_expect_no_conversation_one_creates_it(database: Any, owner: Connection) -> None:
    def create(number: int) -> str | None:
        with psycopg.connect(database.service_url, autocommit=True, row_factory=dict_row) as connection:
            try:
                event = {**EVENTS[0], "message_id": f"m_{number}"}
                outcome: str = write(connection, CONVERSATION, [event], expected=0)["outcome"]
            except psycopg.DatabaseError as error:
                return error.sqlstate
            return outcome

    with ThreadPoolExecutor(6) as threads:
        outcomes = sorted(str(outcome) for outcome in threads.map(create, range(6)))
    assert outcomes == ["ZC002"] * 5 + ["created"]
    assert len(rows(owner, "contact_interaction_events")) == 1


WRONG: dict[str, tuple[Any, Any]] = {
    "p_conversation": ([], EVENTS),
    "p_conversation.page_id": ({**CONVERSATION, "page_id": ""}, EVENTS),
    "p_conversation.sender_id": ({**CONVERSATION, "sender_id": "1001"}, EVENTS),
    "p_conversation.nickname": ({**CONVERSATION, "nickname": "A"}, EVENTS),
    "p_events": (CONVERSATION, {}),
    "p_events[1]": (CONVERSATION, [EVENTS[0], None]),
    "p_events[0].message_id": (CONVERSATION, [{**EVENTS[0], "message_id": None}]),
    "p_events[1].direction": (CONVERSATION, [EVENTS[0], {**EVENTS[1], "direction": "up"}]),
    "p_events[0].metadata": (CONVERSATION, [{**EVENTS[0], "metadata": []}]),
    "p_events[1].event_timestamp": (CONVERSATION, [EVENTS[0], {**EVENTS[1], "event_timestamp": ""}]),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named_and_nothing_remains(
    service: Connection, owner: Connection, field: str
) -> None:
    with pytest.raises(psycopg.DatabaseError) as raised:
        write(service, *WRONG[field])
    assert (raised.value.sqlstate, raised.value.diag.message_hint) == ("ZC003", field)
    assert nothing_is_there(owner)


@pytest.mark.parametrize(
    ("conversation", "event", "sqlstate"),
    [
        ({}, {"event_timestamp": "yesterday noon"}, "22007"),
        ({}, {"event_timestamp": "2025-02-30T12:00:00Z"}, "22008"),
        ({}, {"in_thread": "perhaps"}, "22P02"),
        ({"unread_count": "many"}, {}, "22P02"),
        ({"unread_count": -1}, {}, "23514"),
    ],
)
def test_a_value_that_postgresql_refuses_leaves_nothing(
    service: Connection, owner: Connection, conversation: Json, event: Json, sqlstate: str
) -> None:
    with pytest.raises(psycopg.DatabaseError) as raised:
        write(service, {**CONVERSATION, **conversation}, [EVENTS[1], {**EVENTS[0], **event}])
    assert raised.value.sqlstate == sqlstate
    assert nothing_is_there(owner)


def test_an_event_that_violates_a_constraint_takes_the_conversation_with_it(
    service: Connection, owner: Connection
) -> None:
    owner.execute(
        """alter table convsync.contact_interaction_events
           add constraint planted check (text_original <> 'Hello')"""
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        write(service, CONVERSATION, EVENTS)
    assert nothing_is_there(owner)

    # and where the conversation was there before, it is as it was
    write(service, CONVERSATION, EVENTS[1:])
    before = rows(owner, "messenger_conversations")
    with pytest.raises(psycopg.errors.CheckViolation):
        write(service, {**CONVERSATION, "sender_name": "Z"}, EVENTS)
    assert rows(owner, "messenger_conversations") == before


def test_a_message_of_a_webhook_and_one_written_here_are_one(service: Connection, owner: Connection) -> None:
    fact = {
        "kind": "message",
        "page_id": "1001",
        "sender_id": "2001",
        "message_id": "m_1",
        "direction": "in",
        "at": "2025-03-01T12:00:00.123Z",
        "text": "Hello",
        "event_type": "message",
    }
    service.execute("select convsync_api.ingest(%s, 'webhook')", [Jsonb([fact])])
    written = write(service, CONVERSATION, EVENTS)
    assert (written["outcome"], written["version"], written["events_added"]) == ("updated", 2, 1)
    assert [event["source"] for event in rows(owner, "contact_interaction_events")] == ["webhook", "sql"]


def test_the_outcome_is_what_this_call_did_also_within_one_transaction(database: Any) -> None:
    """The version rises once per transaction, so it cannot tell what the second call of one did."""
    call = """select outcome, version, events_added from convsync_api.sync_conversation_with_events(
        '{"page_id": "1", "sender_id": "7"}', %s)"""
    first = (
        '[{"message_id": "m_1", "direction": "in", "event_timestamp": "2026-01-01T00:00:00Z", "body": "a"}]'
    )
    second = (
        '[{"message_id": "m_2", "direction": "in", "event_timestamp": "2026-01-01T00:00:01Z", "body": "b"}]'
    )
    with psycopg.connect(database.service_url) as connection:
        told = [connection.execute(call, [events]).fetchone() for events in (first, second, second)]
    assert told == [("created", 1, 1), ("updated", 1, 1), ("unchanged", 1, 0)]
