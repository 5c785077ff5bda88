"""Each merge rule alone: a few facts, every order of them, one expected outcome.

``docs/merge-rules.md`` has the rules in one table. Every case runs in all orders of its facts, each fact in
a transaction of its own, and once more all in one call and once with everything told twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row

from convsync.facts import (
    Absence,
    DeadLetter,
    Edit,
    Fact,
    Gone,
    Json,
    Message,
    Reaction,
    Thread,
    Unsend,
    Watermark,
    dump,
)

PAGE, ADA, BO = "1001", "2001", "2002"
NOBODY = "thread:t_1"
START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def told(
    text: str | None = None,
    seconds: float = 10,
    *,
    mid: str = "m_1",
    sender: str = ADA,
    direction: Any = "in",
    kind: str = "message",
    metadata: Json | None = None,
    in_thread: bool = True,
) -> Message:
    """A message as a webhook tells it."""
    return Message(PAGE, sender, mid, direction, at(seconds), text, kind, metadata or {}, in_thread=in_thread)


def read(
    text: str | None = None,
    observed: float = 60,
    *,
    seconds: int = 10,
    mid: str = "m_1",
    sender: str = ADA,
    direction: Any = "in",
    graph: Json | None = None,
) -> Message:
    """A message as Graph tells it, in whole seconds."""
    metadata = {"graph": graph or {}}
    return Message(
        PAGE, sender, mid, direction, at(seconds), text, "message", metadata, observed_at=at(observed)
    )


def edit(text: str, seconds: float, number: int = 1, *, mid: str = "m_1", sender: str = ADA) -> Edit:
    return Edit(PAGE, sender, mid, at(seconds), number, text)


def react(seconds: float, value: str | None = "love", actor: str = ADA) -> Reaction:
    if value is None:
        return Reaction(PAGE, ADA, "m_1", at(seconds), actor, "unreact")
    return Reaction(PAGE, ADA, "m_1", at(seconds), actor, "react", value)


def listed(*reactions: tuple[str, str], observed: float) -> Message:
    """A Graph read of a message with its list of reactions."""
    items = [{"actor": actor, "reaction": value} for actor, value in reactions]
    return read(observed=observed, graph={"reactions": items})


def unsend(seconds: float = 20, *, mid: str = "m_1", sender: str = ADA) -> Unsend:
    return Unsend(PAGE, sender, mid, at(seconds))


def absent(observed: float = 60, *, mid: str = "m_1", sender: str = ADA) -> Absence:
    return Absence(PAGE, sender, mid, at(observed))


def gone(observed: float = 100, *, sender: str = ADA) -> Gone:
    return Gone(PAGE, sender, at(observed))


def snapshot(observed: float = 60, *, sender: str = ADA, thread: str = "t_1", **fields: Any) -> Thread:
    return Thread(PAGE, sender, thread, at(observed), fields)


@pytest.fixture(scope="module")
def connection(server: Any, template: str) -> Iterator[psycopg.Connection[Any]]:
    """One database for all cases: there are many, and they are small."""
    with (
        server.fresh_database(template) as made,
        psycopg.connect(made.owner_url, autocommit=True, row_factory=dict_row) as connected,
    ):
        yield connected


@pytest.fixture
def owner(connection: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    for query in EMPTY:
        connection.execute(query)
    return connection


def ingest(connection: psycopg.Connection[Any], *batch: Fact, source: str = "webhook") -> list[Json]:
    return connection.execute("select * from convsync_api.ingest(%s, %s)", [dump(batch), source]).fetchall()


EMPTY: tuple[LiteralString, ...] = (
    "delete from convsync.contact_interaction_events",
    "delete from convsync.pending_amendments",
    "delete from convsync.conversation_changes",
    "delete from convsync.dead_letters",
    "delete from convsync.messenger_conversations",
    "delete from convsync.pages",
)
EVENT: LiteralString = """
    select e.*, c.sender_id from convsync.contact_interaction_events as e
    join convsync.messenger_conversations as c using (page_id, conversation_id) where e.message_id = %s
"""
CONVERSATION: LiteralString = "select * from convsync.messenger_conversations where sender_id = %s"


def one(connection: psycopg.Connection[Any], query: LiteralString, key: str) -> Json:
    row: Json | None = connection.execute(query, [key]).fetchone()
    assert row is not None, key
    return row


def every_way(connection: psycopg.Connection[Any], facts: Sequence[Fact]) -> Iterator[str]:
    """Yield after the facts were told in one way after the other: a name for it."""
    for order in permutations(facts):
        for query in EMPTY:
            connection.execute(query)
        for fact in order:
            ingest(connection, fact)
        yield f"one by one: {order}"
    for name, batch in {
        "in one call": [facts],
        "in one call, reversed": [facts[::-1]],
        "twice": [facts, facts[::-1]],
        "twice in one call": [[*facts, *facts]],
    }.items():
        for query in EMPTY:
            connection.execute(query)
        for some in batch:
            ingest(connection, *some)
        yield name


def expect(
    connection: psycopg.Connection[Any], facts: Sequence[Fact], query: LiteralString, key: str, **columns: Any
) -> None:
    for way in every_way(connection, facts):
        row = one(connection, query, key)
        assert {name: row[name] for name in columns} == columns, way


# --- a message

MESSAGES: dict[str, tuple[list[Fact], Json]] = {
    "the exact time wins over Graph's whole second": (
        [told(seconds=10.123), read(seconds=10)],
        {"event_timestamp": at(10.123)},
    ),
    "the later of two times wins": ([told(seconds=11), told(seconds=10)], {"event_timestamp": at(11)}),
    "a postback stays one though Graph lists it as a message": (
        [told("Yes", kind="postback"), read("Yes")],
        {"event_type": "postback"},
    ),
    "message is more than unknown": (
        [told(kind="unknown"), told(kind="message")],
        {"event_type": "message"},
    ),
    "postback is more than unknown and message": (
        [told(kind="unknown"), told(kind="postback"), told(kind="message")],
        {"event_type": "postback"},
    ),
    "of two kinds more specific than message the greater name wins": (
        [told(kind="referral"), told(kind="postback")],
        {"event_type": "referral"},
    ),
    "out wins over in": ([told(direction="in"), read(direction="out")], {"direction": "out"}),
    "once in the thread, in the thread": (
        [told(in_thread=False), told(in_thread=True)],
        {"in_thread": True},
    ),
    "what the webhook and Graph said is kept apart": (
        [told(metadata={"webhook": {"is_echo": True}}), read(graph={"tags": ["inbox"]})],
        {"metadata": {"webhook": {"is_echo": True}, "graph": {"tags": ["inbox"]}}},
    ),
    "what Graph observed last stands": (
        [read(observed=60, graph={"tags": ["a"]}), read(observed=61, graph={"sticker": "s"})],
        {"metadata": {"graph": {"sticker": "s"}}, "graph_at": at(61)},
    ),
    "of two reads of one instant the greater stands": (
        [read(graph={"tags": ["a"]}), read(graph={"tags": ["b"]})],
        {"metadata": {"graph": {"tags": ["b"]}}},
    ),
    "only Graph's own reads count as Graph's": (
        [told(metadata={"graph": {"tags": ["z"]}}), read(graph={"tags": ["a"]})],
        {"metadata": {"graph": {"tags": ["a"]}}},
    ),
    "nobody but the fold writes metadata.reactions": (
        [told(metadata={"reactions": [{"actor": ADA}], "webhook": {}})],
        {"metadata": {"webhook": {}}},
    ),
}


@pytest.mark.parametrize("rule", MESSAGES)
def test_copies_of_a_message_become_one(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected = MESSAGES[rule]
    expect(owner, facts, EVENT, "m_1", **expected)


# --- its text

TEXTS: dict[str, tuple[list[Fact], str | None]] = {
    "nothing was written": ([told(None), read("")], None),
    "an empty text asserts nothing": ([told("a"), told("")], "a"),
    "of two originals the greater stands": ([told("a"), told("b")], "b"),
    "Graph alone": ([read("g")], "g"),
    "Graph, observed after the message, over the original": ([told("a", 10), read("g", 60)], "g"),
    "the original over what Graph said before the message's exact time": (
        [told("a", 10.5), read("g", 10.4)],
        "a",
    ),
    "the later of two reads": ([read("y", 60), read("x", 61)], "x"),
    "of two reads of one instant the greater": ([read("x", 60), read("y", 60)], "y"),
    "a later read without text asserts nothing": ([read("x", 60), read("", 61)], "x"),
    "an edit over the original": ([told("a", 10), edit("b", 20)], "b"),
    "an edit over an older read": ([told("a", 10), edit("b", 20), read("a", 15)], "b"),
    "a read after the edit over the edit": ([told("a", 10), edit("b", 20), read("c", 30)], "c"),
    "a read of the edit's own instant does not know it": ([read("a", 20), edit("b", 20)], "b"),
    "the higher numbered edit, though its time is earlier": (
        [told("a"), edit("b", 30, 1), edit("c", 20, 2)],
        "c",
    ),
    "of two edits of one number the later": ([told("a"), edit("c", 20), edit("b", 30)], "b"),
    "of two edits of one number and instant the greater": ([told("a"), edit("b", 20), edit("c", 20)], "c"),
    "an edit to nothing": ([told("a"), edit("", 20)], ""),
}


@pytest.mark.parametrize("rule", TEXTS)
def test_the_body_is_the_fold_of_original_edit_and_read(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, body = TEXTS[rule]
    expect(owner, facts, EVENT, "m_1", body=body)
    expect(owner, facts, CONVERSATION, ADA, last_message=body)


def test_the_three_texts_are_kept_beside_the_body(owner: psycopg.Connection[Any]) -> None:
    facts = [told("a", 10), edit("b", 20, 2), read("c", 30)]
    expect(
        owner,
        facts,
        EVENT,
        "m_1",
        text_original="a",
        edited_text="b",
        num_edit=2,
        edited_at=at(20),
        text_graph="c",
        text_graph_at=at(30),
    )


# --- reactions

LOVED: Json = {"actor": ADA, "reaction": "love"}
LIKED: Json = {"actor": ADA, "reaction": "like"}
ALSO: Json = {"actor": PAGE, "reaction": "like"}
REACTIONS: dict[str, tuple[list[Fact], list[Json] | None]] = {
    "one": ([told(), react(20)], [LOVED]),
    "one for each actor": ([told(), react(20), react(21, "like", PAGE)], [ALSO, LOVED]),
    "the later of one actor": ([told(), react(20, "love"), react(21, "like")], [LIKED]),
    "taken back": ([told(), react(20), react(21, None)], None),
    "taken back and given again": ([told(), react(20), react(21, None), react(22, "like")], [LIKED]),
    "taken back in the same instant": ([told(), react(20), react(20, None)], None),
    "of one instant the greater": ([told(), react(20, "like"), react(20, "love")], [LOVED]),
    "what Graph lists": ([listed((ADA, "love"), observed=60)], [LOVED]),
    "a list overrides what is older": ([told(), react(20), listed((ADA, "like"), observed=60)], [LIKED]),
    "a list overrides actors it does not name": (
        [told(), react(20), listed((PAGE, "like"), observed=60)],
        [ALSO],
    ),
    "an empty list overrides all of them": ([told(), react(20), listed(observed=60)], None),
    "a list does not override what is newer": (
        [told(), react(70), listed((PAGE, "like"), observed=60)],
        [ALSO, LOVED],
    ),
    "taken back after the list": ([react(70, None), listed((ADA, "love"), observed=60)], None),
    "a list of the reaction's own instant knows it": (
        [react(60), listed((ADA, "like"), observed=60)],
        [LIKED],
    ),
    "the later of two lists": (
        [listed((ADA, "love"), observed=60), listed((ADA, "like"), observed=61), react(20)],
        [LIKED],
    ),
}


@pytest.mark.parametrize("rule", REACTIONS)
def test_reactions_are_what_stands_now(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected = REACTIONS[rule]
    for way in every_way(owner, facts):
        assert one(owner, EVENT, "m_1")["metadata"].get("reactions") == expected, way


# --- unsent

UNSENT: dict[str, list[Fact]] = {
    "after the message": [told("a"), unsend()],
    "a later copy of the webhook does not revive it": [told("a"), unsend(), told("a", 30)],
    "a later read does not revive it": [told("a"), unsend(), read("a", 90)],
    "an edit does not revive it": [told("a"), unsend(), edit("b", 30)],
}


@pytest.mark.parametrize("rule", UNSENT)
def test_an_unsent_message_stays_unsent(owner: psycopg.Connection[Any], rule: str) -> None:
    facts = UNSENT[rule]
    expect(owner, facts, EVENT, "m_1", unsent_at=at(20), deleted_at=at(20))
    expect(owner, facts, CONVERSATION, ADA, message_count=0, last_message=None, last_message_id=None)


def test_the_first_of_two_unsends_counts(owner: psycopg.Connection[Any]) -> None:
    expect(owner, [told("a"), unsend(21), unsend(20)], EVENT, "m_1", deleted_at=at(20))


# --- not listed where it was

ABSENT: dict[str, tuple[list[Fact], datetime | None]] = {
    "after the read that showed it": ([read("a", 60), absent(70)], at(70)),
    "a message that only a webhook told": ([told("a"), absent(60)], at(60)),
    "the last of several reads": ([read("a", 60), absent(70), absent(80)], at(80)),
    "a read that shows it again brings it back": ([told("a"), absent(70), read("a", 80)], None),
    "and the next one that does not takes it away": ([absent(70), read("a", 80), absent(90)], at(90)),
    "a read of the same instant keeps it": ([read("a", 70), absent(70)], None),
    "a late delivery does not revive it": ([read("a", 60), absent(70), told("a")], at(70)),
    "nor does an edit": ([read("a", 60), absent(70), edit("b", 80)], at(70)),
    "a read before it was sent says nothing": ([told("a", 80), absent(70)], None),
    "an unsend tells when": ([read("a", 60), absent(70), unsend(65)], at(65)),
    "an unsend is final": ([unsend(65), absent(70), read("a", 80)], at(65)),
}


@pytest.mark.parametrize("rule", ABSENT)
def test_a_message_that_its_thread_does_not_list_is_deleted_until_it_does(
    owner: psycopg.Connection[Any], rule: str
) -> None:
    facts, deleted_at = ABSENT[rule]
    expect(owner, facts, EVENT, "m_1", deleted_at=deleted_at)
    live = deleted_at is None
    expect(owner, facts, CONVERSATION, ADA, message_count=int(live), last_message_id="m_1" if live else None)


# --- gone

GONE: dict[str, tuple[list[Fact], datetime | None]] = {
    "after all that was heard of it": ([told("a"), snapshot(60), gone(100)], at(100)),
    "confirmed before it was ever heard of": ([gone(100)], at(100)),
    "the last of several confirmations": ([told("a"), gone(100), gone(110)], at(110)),
    "a new message brings it back": ([told("a"), gone(100), told("b", 101, mid="m_2")], None),
    "so does a new one that was taken back": (
        [gone(100), told("b", 101, mid="m_2"), unsend(102, mid="m_2")],
        None,
    ),
    "a late delivery of an old message revives nothing": (
        [told("a"), gone(100), told("b", 99, mid="m_2")],
        at(100),
    ),
    "what is outside the thread revives nothing": (
        [gone(100), told(None, 101, kind="referral", in_thread=False)],
        at(100),
    ),
    "a receipt revives nothing": ([gone(100), Watermark(PAGE, ADA, "read", at(101))], at(100)),
    "a later snapshot brings it back": ([told("a"), gone(100), snapshot(101)], None),
    "an older one does not": ([told("a"), gone(100), snapshot(99)], at(100)),
    "one of the same instant does": ([told("a"), gone(100), snapshot(100)], None),
    "and it can go again": ([snapshot(60), gone(100), snapshot(110), gone(120)], at(120)),
    "somebody else's message revives nothing": (
        [told("a"), gone(100), told("b", 101, mid="m_2", sender=BO)],
        at(100),
    ),
}


@pytest.mark.parametrize("rule", GONE)
def test_a_conversation_that_is_gone_is_deleted_until_something_is_later(
    owner: psycopg.Connection[Any], rule: str
) -> None:
    facts, deleted_at = GONE[rule]
    expect(owner, facts, CONVERSATION, ADA, deleted_at=deleted_at)


def test_going_and_coming_back_are_changes(owner: psycopg.Connection[Any]) -> None:
    ingest(owner, told("a"))
    ingest(owner, gone(100))
    ingest(owner, gone(99), told("a"))
    ingest(owner, told("b", 101, mid="m_2"))
    ingest(owner, gone(110))
    ingest(owner, snapshot(120))
    feed = owner.execute(
        "select version, kinds from convsync.conversation_changes order by change_id"
    ).fetchall()
    assert [(row["version"], row["kinds"]) for row in feed] == [
        (1, ["message"]),
        (2, ["gone"]),
        (3, ["back", "message"]),
        (4, ["gone"]),
        (5, ["back", "thread"]),
    ]


# --- what arrives before its message

WAITING: dict[str, tuple[list[Fact], Json]] = {
    "the highest edit": (
        [edit("b", 20, 1), edit("c", 21, 2)],
        {"num_edit": 2, "edited_at": at(21), "edited_text": "c", "unsent_at": None, "reaction_marks": None},
    ),
    "the earliest unsend": ([unsend(21), unsend(20)], {"unsent_at": at(20), "num_edit": None}),
    "the last absence": ([absent(20), absent(21)], {"absent_at": at(21), "unsent_at": None}),
    "an edit and an unsend": (
        [edit("b", 20), unsend(30)],
        {"edited_text": "b", "unsent_at": at(30)},
    ),
    "whose it is, when two say it": ([unsend(20, sender=ADA), unsend(20, sender=BO)], {"sender_id": BO}),
}


@pytest.mark.parametrize("rule", WAITING)
def test_amendments_wait_for_their_message(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected = WAITING[rule]
    pending: LiteralString = "select * from convsync.pending_amendments where message_id = %s"
    expect(owner, facts, pending, "m_1", **expected)
    assert owner.execute("select from convsync.contact_interaction_events").fetchone() is None
    # and are taken over by it
    ingest(owner, told("a"))
    assert owner.execute("select from convsync.pending_amendments").fetchone() is None


# --- the conversation

THREADS: dict[str, tuple[list[Fact], Json]] = {
    "the later value stands": (
        [
            snapshot(60, name="Ada", unread_count=3, snippet="b", can_reply=True, reported_count=9),
            snapshot(61, name="A. L.", unread_count=1, snippet="a", can_reply=False, reported_count=8),
        ],
        {
            "sender_name": "A. L.",
            "unread_count": 1,
            "snippet": "a",
            "can_reply": False,
            "reported_count": 8,
        },
    ),
    "of one instant the greater value stands": (
        [
            snapshot(60, name="Ada", unread_count=3, snippet="b", can_reply=True, reported_count=9),
            snapshot(60, name="A. L.", unread_count=1, snippet="a", can_reply=False, reported_count=8),
        ],
        {"sender_name": "Ada", "unread_count": 3, "snippet": "b", "can_reply": True, "reported_count": 9},
    ),
    "requested and absent is nothing": (
        [
            snapshot(60, unread_count=3, snippet="b", can_reply=True),
            snapshot(61, unread_count=None, snippet=None, can_reply=None),
        ],
        {"unread_count": 0, "snippet": None, "can_reply": None, "snippet_at": at(61)},
    ),
    "an absent value loses to one of the same instant": (
        [snapshot(60, snippet="b", can_reply=False), snapshot(60, snippet=None, can_reply=None)],
        {"snippet": "b", "can_reply": False},
    ),
    "not requested asserts nothing": (
        [snapshot(60, unread_count=3, snippet="b", can_reply=True), snapshot(61)],
        {"unread_count": 3, "snippet": "b", "can_reply": True, "snippet_at": at(60)},
    ),
    "a name never becomes empty": (
        [snapshot(60, name="Ada"), snapshot(61, name=None), snapshot(62, name="")],
        {"sender_name": "Ada", "sender_name_at": at(60)},
    ),
    "what Graph counted and when it changed never become unknown": (
        [
            snapshot(60, reported_count=9, updated_time="2025-03-01T12:00:00Z"),
            snapshot(61, reported_count=None, updated_time=None),
        ],
        {"reported_count": 9, "updated_time": START},
    ),
    "the thread seen last": (
        [snapshot(60, thread="t_2"), snapshot(61, thread="t_1")],
        {"thread_id": "t_1", "thread_id_at": at(61)},
    ),
    "receipts only rise": (
        [
            Watermark(PAGE, ADA, "read", at(5)),
            Watermark(PAGE, ADA, "read", at(7)),
            Watermark(PAGE, ADA, "delivered", at(8)),
            Watermark(PAGE, ADA, "delivered", at(6)),
        ],
        {"read_watermark": at(7), "delivered_watermark": at(8)},
    ),
}


@pytest.mark.parametrize("rule", THREADS)
def test_registers_of_a_conversation(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected = THREADS[rule]
    expect(owner, facts, CONVERSATION, ADA, **expected)


FOLDS: dict[str, tuple[list[Fact], Json]] = {
    "copies count once": ([told("a"), read("a"), told("a", 10.5)], {"message_count": 1}),
    "unsent ones do not count": (
        [told("a"), told("b", 11, mid="m_2"), unsend(20)],
        {"message_count": 1, "last_message_id": "m_2"},
    ),
    "what is outside the thread does not count": (
        [told("a"), told(None, 30, mid="e_1", kind="referral", in_thread=False)],
        {"message_count": 1, "last_message_id": "m_1"},
    ),
    "the last message is the latest": (
        [told("a", 10), told("b", 12, mid="m_0")],
        {"last_message": "b", "last_message_id": "m_0", "last_message_time": at(12)},
    ),
    "of one instant the greater id": (
        [told("a", 10), told("b", 10, mid="m_2")],
        {"last_message": "b", "last_message_id": "m_2"},
    ),
    "an unsent last message gives way to the one before": (
        [told("a", 10), told("b", 12, mid="m_2"), unsend(mid="m_2")],
        {"last_message": "a", "last_message_id": "m_1", "last_message_time": at(10)},
    ),
    "an edit of the last message shows": ([told("a", 10), edit("b", 20)], {"last_message": "b"}),
    "the last inbound message, not the echo": (
        [told("a", 10), told("b", 20, mid="m_2", direction="out")],
        {"last_inbound_time": at(10), "last_message_time": at(20)},
    ),
}


@pytest.mark.parametrize("rule", FOLDS)
def test_counts_and_last_message_follow_the_events(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected = FOLDS[rule]
    expect(owner, facts, CONVERSATION, ADA, **expected)


# --- whose message it is

OWNERS: dict[str, tuple[list[Fact], str, dict[str, int]]] = {
    "a person before a thread without one": (
        [told("a", sender=ADA), read("a", sender=NOBODY)],
        ADA,
        {ADA: 1, NOBODY: 0},
    ),
    "of two people the greater id": ([told("a", sender=ADA), told("a", sender=BO)], BO, {ADA: 0, BO: 1}),
    "a person before a thread before a smaller id": (
        [told("a", sender=BO), told("a", sender=ADA), read("a", sender=NOBODY)],
        BO,
        {ADA: 0, BO: 1, NOBODY: 0},
    ),
    "an unsent one counts for nobody": (
        [told("a", sender=ADA), read("a", sender=NOBODY), unsend(sender=NOBODY)],
        ADA,
        {ADA: 0, NOBODY: 0},
    ),
    "its other messages stay where they are": (
        [told("a", sender=ADA), read("a", sender=NOBODY), read("b", mid="m_2", sender=NOBODY)],
        ADA,
        {ADA: 1, NOBODY: 1},
    ),
}


@pytest.mark.parametrize("rule", OWNERS)
def test_the_owner_of_a_message_when_its_copies_disagree(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, expected, counts = OWNERS[rule]
    for way in every_way(owner, facts):
        assert one(owner, EVENT, "m_1")["sender_id"] == expected, way
        rows = {sender: one(owner, CONVERSATION, sender) for sender in counts}
        assert {sender: row["message_count"] for sender, row in rows.items()} == counts, way
        for sender, row in rows.items():
            assert (row["last_message_id"] is None) == (counts[sender] == 0), way


# --- versions

SILENT: dict[str, tuple[list[Fact], list[Fact]]] = {
    "the same delivery again": ([told("a")], [told("a")]),
    "a read of what is known": ([read("a", 60)], [read("a", 61)]),
    "an older snapshot": ([snapshot(60, snippet="b")], [snapshot(59, snippet="a")]),
    "a snapshot that says the same later": ([snapshot(60, snippet="b")], [snapshot(61, snippet="b")]),
    "an older receipt": ([Watermark(PAGE, ADA, "read", at(7))], [Watermark(PAGE, ADA, "read", at(5))]),
    "a renewed signature of a link": (
        [read(observed=60, graph={"attachments": [{"url": "https://cdn.example/1?sig=a"}]})],
        [read(observed=61, graph={"attachments": [{"url": "https://cdn.example/1?sig=b"}]})],
    ),
    "an older edit": ([told("a"), edit("b", 20, 2)], [edit("c", 19, 1)]),
    "the same unsend": ([told("a"), unsend()], [unsend(30)]),
    "an older absence": ([read("a", 60)], [absent(59)]),
    "the same absence": ([told("a"), absent(60)], [absent(60)]),
    "an older confirmation that it is gone": ([snapshot(60)], [gone(59)]),
}


@pytest.mark.parametrize("rule", SILENT)
def test_what_changes_nothing_that_is_seen_leaves_the_version(
    owner: psycopg.Connection[Any], rule: str
) -> None:
    before, then = SILENT[rule]
    ingest(owner, *before)
    version = one(owner, CONVERSATION, ADA)["version"]
    touched = ingest(owner, *then)
    assert [(row["version"], row["created"], row["events_added"]) for row in touched] == [(version, False, 0)]
    assert [row["events_changed"] for row in touched] == [0]
    feed = owner.execute("select count(*) as n from convsync.conversation_changes").fetchone()
    assert feed == {"n": 1}


LOUD: dict[str, tuple[list[Fact], list[str]]] = {
    "another message": ([told("b", 11, mid="m_2")], ["message"]),
    "an edit of an old message": ([edit("b", 20)], ["edit"]),
    "a reaction to an old message": ([react(20)], ["reaction"]),
    "an unsend": ([unsend()], ["unsend"]),
    "an absence": ([absent()], ["absence"]),
    "a receipt": ([Watermark(PAGE, ADA, "read", at(7))], ["receipt"]),
    "a name": ([snapshot(60, name="Ada")], ["thread"]),
    "all of it in one call": (
        [told("b", 11, mid="m_2"), edit("b", 20), react(20), snapshot(60, name="Ada")],
        ["edit", "message", "reaction", "thread"],
    ),
}


@pytest.mark.parametrize("rule", LOUD)
def test_a_visible_change_raises_the_version_by_one(owner: psycopg.Connection[Any], rule: str) -> None:
    facts, kinds = LOUD[rule]
    ingest(owner, told("a"), told("z", 50, mid="m_9"))
    before = one(owner, CONVERSATION, ADA)["version"]
    assert [row["version"] for row in ingest(owner, *facts)] == [before + 1]
    feed = owner.execute("select * from convsync.conversation_changes order by change_id").fetchall()
    assert [(row["version"], row["kinds"]) for row in feed] == [(before, ["message"]), (before + 1, kinds)]


def test_the_version_rises_once_however_many_calls_a_transaction_makes(
    owner: psycopg.Connection[Any],
) -> None:
    with owner.transaction():
        for number in range(3):
            ingest(owner, told("a", number, mid=f"m_{number}"))
    assert one(owner, CONVERSATION, ADA)["version"] == 1
    feed = owner.execute("select version, kinds from convsync.conversation_changes").fetchall()
    assert feed == [{"version": 1, "kinds": ["message"]}]


def test_a_sync_page_leaves_the_version_it_saw(owner: psycopg.Connection[Any]) -> None:
    ingest(owner, told("a"))
    assert one(owner, CONVERSATION, ADA)["last_synced_version"] is None
    ingest(owner, read("a"), source="sync")
    row = one(owner, CONVERSATION, ADA)
    assert (row["version"], row["last_synced_version"]) == (2, 2)  # metadata.graph is new
    ingest(owner, read("a"), source="sync")
    assert one(owner, CONVERSATION, ADA)["version"] == 2
    ingest(owner, told("b", 11, mid="m_2"))
    row = one(owner, CONVERSATION, ADA)
    assert (row["version"], row["last_synced_version"]) == (3, 2)


# --- dead letters


def test_a_dead_letter_told_again_is_counted_not_repeated(owner: psycopg.Connection[Any]) -> None:
    letters = [
        DeadLetter(PAGE, "no id", b"{}"),
        DeadLetter(PAGE, "not an object", b"{}"),
        DeadLetter("", "no id", b"\x00"),
    ]
    ingest(owner, *letters)
    ingest(owner, letters[0], letters[0])
    ingest(owner, letters[0], source="sync")
    rows = owner.execute(
        "select page_id, source, reason, raw, attempts from convsync.dead_letters order by 1, 2, 3"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        ("", "webhook", "no id", b"\x00", 1),
        (PAGE, "sync", "no id", b"{}", 1),
        (PAGE, "webhook", "no id", b"{}", 2),
        (PAGE, "webhook", "not an object", b"{}", 1),
    ]


def test_a_dead_letter_beside_a_message_costs_it_nothing(owner: psycopg.Connection[Any]) -> None:
    touched = ingest(owner, DeadLetter(PAGE, "no id", b"{}"), told("a"))
    assert [(row["sender_id"], row["events_added"]) for row in touched] == [(ADA, 1)]


# --- what is refused

WRONG: dict[str, tuple[Json, str]] = {
    "kind": ({"kind": "gossip"}, "facts[1].kind"),
    "page": ({"page_id": ""}, "facts[1].page_id"),
    "no sender": ({"sender_id": None}, "facts[1].sender_id"),
    "the Page as its own customer": ({"sender_id": PAGE}, "facts[1].sender_id"),
    "no message id": ({"message_id": ""}, "facts[1].message_id"),
    "no time": ({"at": None}, "facts[1].at"),
    "no end of time": ({"at": "infinity"}, "facts[1].at"),
    "direction": ({"direction": "up"}, "facts[1].direction"),
    "no type": ({"event_type": ""}, "facts[1].event_type"),
    "metadata that is no object": ({"metadata": []}, "facts[1].metadata"),
    "an edit without number": ({"kind": "edit"}, "facts[1].num_edit"),
    "a reaction without actor": ({"kind": "reaction"}, "facts[1].actor_id"),
    "a receipt of nothing": ({"kind": "watermark"}, "facts[1].what"),
    "a snapshot of no instant": ({"kind": "thread"}, "facts[1].observed_at"),
    "an absence of no instant": ({"kind": "absence"}, "facts[1].observed_at"),
    "an absence of no message": ({"kind": "absence", "message_id": ""}, "facts[1].message_id"),
    "gone at no instant": ({"kind": "gone"}, "facts[1].observed_at"),
    "a dead letter without its bytes": ({"kind": "dead_letter", "reason": "r"}, "facts[1].raw"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_fact_is_named_and_nothing_of_its_call_remains(
    owner: psycopg.Connection[Any], what: str
) -> None:
    change, hint = WRONG[what]
    good, bad = told("a").as_json(), {**told("b", mid="m_2").as_json(), **change}
    facts = [{**fact, "at": str(fact["at"]) if fact["at"] else None} for fact in (good, bad)]
    with pytest.raises(psycopg.DatabaseError) as raised:
        owner.execute("select convsync_api.ingest(%s, 'webhook')", [psycopg.types.json.Jsonb(facts)])
    assert (raised.value.sqlstate, raised.value.diag.message_hint) == ("ZC003", hint)
    assert owner.execute("select from convsync.messenger_conversations").fetchone() is None


def test_facts_must_be_an_array_and_a_source_known(owner: psycopg.Connection[Any]) -> None:
    ingest(owner, told("a"))
    for facts, source, hint in (
        ('{"kind": "message"}', "sync", "facts"),
        ('{"kind": "message"}', "webhook", "facts"),
        ("null", "webhook", "facts"),
        (dump([told("a")]), "gossip", "source"),
    ):
        with pytest.raises(psycopg.DatabaseError) as raised:
            owner.execute("select convsync_api.ingest(%s, %s)", [facts, source])
        assert (raised.value.sqlstate, raised.value.diag.message_hint) == ("ZC003", hint)


def test_no_facts_are_no_work(owner: psycopg.Connection[Any]) -> None:
    assert ingest(owner) == []
