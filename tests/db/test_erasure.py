"""Erasure and retention: nothing of an erased person is left, and nothing brings them back.

What is left is looked for in a dump of every table: each thing that is told of the person carries a marker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from itertools import permutations
from typing import Any, LiteralString

import orjson
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb
from sessions import (
    OTHER_PAGE,
    PAGE,
    Connect,
    Connection,
    at,
    call,
    eventually,
    ingest,
    one_behind_the_other,
    rows,
    told,
)

from convsync import errors
from convsync.dead_letters import read_again
from convsync.erasing import purge_again
from convsync.facts import (
    DeadLetter,
    Edit,
    Fact,
    Json,
    Message,
    PageEvent,
    Reaction,
    Thread,
    Unsend,
    Watermark,
    dump,
)
from convsync.store import Store, create_pool
from convsync.webhook.group_commit import GroupCommit, dead_letter
from convsync.webhook.payload import Delivery, parse

ADA, BOB = "7300000000000011", "7300000000000012"
THREAD, BOBS_THREAD = "t_900800700", "t_900800701"
NAME = 'Zoë "Z" Quuxmarker'
# As they are, and as JSON may write them.
MARKERS = (ADA, THREAD, NAME, "Quuxmarker", "MARKER", "m_ada")
ERASED = at(3600)


@pytest.fixture(autouse=True)
def clock(service: Connection) -> None:
    """The service's session lives an hour after START, and knows the Page."""
    service.execute("select set_config('convsync.now', %s, false)", [ERASED.isoformat()])
    call(service, "select convsync_api.add_page('1001')")


def dumped(owner: Connection) -> str:
    """Every row of every table that is not PostgreSQL's own, as COPY writes it; bytes as text."""
    owner.execute("set bytea_output = 'escape'")
    tables = rows(
        owner,
        """select n.nspname as schema, c.relname as name from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           where c.relkind in ('r', 'm') and n.nspname !~ '^(pg_|information_schema)' order by 1, 2""",
    )
    assert len(tables) > 15
    whole = []
    for table in tables:
        query = sql.SQL("copy {} to stdout").format(sql.Identifier(table["schema"], table["name"]))
        with owner.cursor().copy(query) as copy:
            whole += [f"{table['name']}: {bytes(row).decode()}" for row in copy]
    return "".join(whole)


def traces(owner: Connection) -> list[str]:
    """The lines of the dump that have a marker in them."""
    return [line for line in dumped(owner).splitlines() if any(marker in line for marker in MARKERS)]


def history(sender: str = ADA, name: str = "ada", start: float = 0) -> list[Fact]:
    """All that webhooks and reads told of a person until now."""

    def when(seconds: float) -> datetime:
        return at(start + seconds)

    mid = f"m_{name}"
    return [
        Message(PAGE, sender, f"{mid}1", "in", when(1.25), "MARKER first", metadata={"webhook": {}}),
        Message(PAGE, sender, f"{mid}2", "out", when(2), "MARKER answer"),
        Message(
            PAGE,
            sender,
            f"{mid}1",
            "in",
            when(1),
            "MARKER first",
            metadata={"graph": {"attachments": [{"id": "MARKER"}]}},
            observed_at=when(60),
        ),
        Message(
            PAGE,
            sender,
            f"{mid}_evt",
            "in",
            when(3),
            event_type="unknown",
            metadata={"webhook": {"new_kind": {"secret": "MARKER", "who": sender}}},
            in_thread=False,
        ),
        Edit(PAGE, sender, f"{mid}1", when(4), 1, "MARKER edited"),
        Reaction(PAGE, sender, f"{mid}2", when(5), sender, "react", "love", "❤"),
        Unsend(PAGE, sender, f"{mid}2", when(6)),
        # these wait for their message
        Edit(PAGE, sender, f"{mid}_later", when(7), 2, "MARKER waits"),
        Reaction(PAGE, sender, f"{mid}_later", when(8), sender, "react", "MARKER"),
        Unsend(PAGE, sender, f"{mid}_later2", when(8)),
        Watermark(PAGE, sender, "read", when(9)),
        Watermark(PAGE, sender, "delivered", when(9)),
    ]


def snapshot(
    sender: str = ADA, thread: str = THREAD, updated: float = 9, seen: float = 60, name: str = NAME
) -> Thread:
    fields = {
        "name": name,
        "snippet": "MARKER snippet",
        "unread_count": 1,
        "can_reply": True,
        "reported_count": 9,
        "updated_time": at(updated).isoformat(),
    }
    return Thread(PAGE, sender, thread, at(seen), fields)


BOBS: list[Fact] = [
    Message(PAGE, BOB, "m_bob1", "in", at(1), "good morning"),
    Edit(PAGE, BOB, "m_bob1", at(2), 1, "good evening"),
    Edit(PAGE, BOB, "m_bob_later", at(2), 1, "waits"),
    replace(snapshot(BOB, BOBS_THREAD, name="Bob"), fields={"name": "Bob", "snippet": "good"}),
]


def erase(connection: Connection, sender: str = ADA) -> Json:
    done: Json = call(
        connection, "select convsync_api.erase_contact(%(page)s, %(sender)s)", page=PAGE, sender=sender
    )
    return done


def number(owner: Connection, sender: str) -> int:
    found: int = call(
        owner,
        "select conversation_id from convsync.messenger_conversations where sender_id = %(sender)s",
        sender=sender,
    )
    return found


def update(connection: Connection, conversation_id: int, version: int, patch: Json) -> int:
    done: int = call(
        connection,
        "select convsync_api.update_conversation(%(page)s, %(id)s, %(version)s, %(patch)s)",
        page=PAGE,
        id=conversation_id,
        version=version,
        patch=Jsonb(patch),
    )
    return done


# --- a sync that meets the person


def begin(connection: Connection) -> Json:
    [run] = rows(connection, "select * from convsync_api.begin_sync('1001', 'full')")
    return run


def apply(
    connection: Connection, run: Json, facts: Iterable[Fact], threads: Sequence[Json] = (), **more: Any
) -> Json:
    values = {"kind": "list", "thread": "", "cursor": None, "next": "c_1", **more}
    [done] = rows(
        connection,
        """select * from convsync_api.apply_sync_page(
             p_page_id => '1001', p_run_id => %(run_id)s, p_fence => %(fence)s, p_kind => %(kind)s,
             p_thread_id => %(thread)s, p_cursor => %(cursor)s, p_next_cursor => %(next)s,
             p_observed_at => %(observed)s, p_facts => %(facts)s, p_threads => %(threads)s)""",
        **run,
        **values,
        observed=at(100),
        facts=dump(facts),
        threads=Jsonb(list(threads)),
    )
    return done


def listed(thread: str, sender: str | None, updated: float = 9, **more: Any) -> Json:
    return {
        "thread_id": thread,
        "sender_id": sender,
        "updated_time": at(updated).isoformat(),
        "message_count": 9,
        "newest_id": "m_ada2" if sender == ADA else "m_bob1",
        "read": "more",
        "next_cursor": "c_t",
        "unreadable": 0,
        **more,
    }


@pytest.fixture
def everything(service: Connection, owner: Connection) -> Json:
    """The person has been met everywhere; so has a bystander. Gives the run that is under way."""
    call(service, "select convsync_api.add_page('1001')")
    ingest(service, *history(), *BOBS)
    ingest(service, snapshot(), source="sync")
    mine = number(owner, ADA)
    version = call(
        owner, "select version from convsync.messenger_conversations where conversation_id = %(id)s", id=mine
    )
    update(
        service,
        mine,
        version,
        {"note": "MARKER note", "assignee": "MARKER", "tags": ["MARKER"], "conversation_status": "MARKER"},
    )
    ascii_name = orjson.dumps(NAME).decode().encode("ascii", "backslashreplace").replace(b"\\xeb", b"\\u00eb")
    for page, raw in (
        (PAGE, orjson.dumps({"sender": {"id": ADA}, "what": "is this MARKER"})),
        ("", b'{"id": %b, "what": "a number, MARKER"}' % ADA.encode()),
        (PAGE, orjson.dumps({"thread": THREAD, "text": "MARKER"})),
        (PAGE, orjson.dumps({"message": {"mid": "m_ada1", "text": 'MARKER "quoted"'}})),
        (PAGE, orjson.dumps({"message": {"mid": "m_ada_later", "text": "MARKER"}})),
        (PAGE, orjson.dumps({"name": NAME, "text": "MARKER"})),
        (PAGE, b'{"name":%b,"text":"MARKER"}' % ascii_name),
        (PAGE, b"\x00\xff not JSON \xff" + ADA.encode() + b" MARKER"),
    ):
        ingest(service, DeadLetter(page, "not understood", raw))
    for page, raw in (
        (PAGE, b'{"sender":{"id":"%b"}}' % BOB.encode()),
        (PAGE, b'{"sender":{"id":"9%b"}}' % b"5300000000000011"),
        (OTHER_PAGE, b'{"sender":{"id":"5300000000000099"}}'),
    ):
        ingest(service, DeadLetter(page, "of others", raw))
    run = begin(service)
    done = apply(service, run, [], [listed(BOBS_THREAD, BOB), listed(THREAD, ADA)])
    assert done["open_work"] == 3
    return run


def others(owner: Connection) -> dict[str, list[Json]]:
    """What is not the person's: it must not change."""
    queries: dict[str, LiteralString] = {
        "conversation": "select * from convsync.messenger_conversations where sender_id = %(bob)s",
        "events": """select e.* from convsync.contact_interaction_events e
            join convsync.messenger_conversations c using (page_id, conversation_id)
            where c.sender_id = %(bob)s order by message_id""",
        "pending": "select * from convsync.pending_amendments where sender_id = %(bob)s",
        "letters": "select * from convsync.dead_letters where reason = 'of others' order by dead_letter_id",
        "cursors": "select * from convsync.sync_cursors where thread_id = %(thread)s",
    }
    return {name: rows(owner, query, bob=BOB, thread=BOBS_THREAD) for name, query in queries.items()}


# --- nothing is left


def test_nothing_of_an_erased_person_is_left_and_nothing_of_others_is_gone(
    service: Connection, owner: Connection, everything: Json
) -> None:
    assert len(traces(owner)) > 10, "the markers are there to be found"
    before, mine = others(owner), number(owner, ADA)
    assert all(before.values())
    done = erase(service)
    assert traces(owner) == []
    assert others(owner) == before
    assert (done["conversation_id"], done["events"]) == (str(mine), 3)
    assert (done["waiting_amendments"], done["dead_letters"]) == (2, 8)
    assert datetime.fromisoformat(done["erased_at"]) == ERASED
    [row] = rows(
        owner, "select * from convsync.messenger_conversations where conversation_id = %(id)s", id=mine
    )
    assert (row["sender_id"], row["conversation_status"], row["tags"]) == (f"erased:{mine}", "active", [])
    assert row["deleted_at"] == ERASED


def notice(event_id: str, of: str, seconds: float, **more: Any) -> PageEvent:
    event = {
        "recipient": {"id": PAGE},
        "timestamp": milliseconds(seconds),
        "policy_enforcement": {"reason": of},
    }
    return PageEvent(PAGE, event_id, at(seconds), "policy_enforcement", {"webhook": event | more})


@pytest.mark.parametrize("erased_first", [False, True])
def test_a_notice_of_the_platform_that_names_them_loses_its_words(
    service: Connection, owner: Connection, everything: Json, erased_first: bool
) -> None:
    """It is kept that it came, when and of which kind; no redelivery brings the words back."""
    theirs = [
        notice("e_person", f"MARKER: spam to {ADA}", 1),
        notice("e_message", "MARKER", 2, mids=["m_ada1"]),
        notice("e_waiting", "MARKER", 3, text='{"mid":"m_ada_later"}'),
    ]
    others = [notice("e_other", f"spam to {BOB}", 4), notice("e_nobody", "spam", 5)]
    if erased_first:
        erase(service)
    ingest(service, *theirs, *others)
    if not erased_first:
        assert any("MARKER" in line for line in traces(owner))
        erase(service)
    for _ in range(2):
        assert traces(owner) == []
        stored = rows(
            owner,
            "select event_id, event_type, event_timestamp, metadata from convsync.page_events order by 3",
        )
        assert stored == [
            {
                "event_id": fact.event_id,
                "event_type": fact.event_type,
                "event_timestamp": fact.at,
                "metadata": {"erased": True} if fact in theirs else fact.metadata,
            }
            for fact in theirs + others
        ]
        ingest(service, *theirs, *others)


def test_a_notice_that_names_them_by_name_stays_without_its_words(
    service: Connection, owner: Connection, everything: Json
) -> None:
    """The name is forgotten with the person: that the event is known tells what must not be stored."""
    by_name = notice("e_name", f"MARKER {NAME}", 1)
    ingest(service, by_name)
    erase(service)
    ingest(service, by_name)
    assert traces(owner) == []


def test_a_notice_of_what_the_person_did_later_keeps_its_words(
    service: Connection, owner: Connection, everything: Json
) -> None:
    erase(service)
    later = notice("e_later", f"spam to {ADA}", 3601)
    ingest(service, later)
    assert rows(owner, "select metadata from convsync.page_events") == [{"metadata": later.metadata}]


def test_a_letter_that_names_a_message_by_a_number_goes_too(service: Connection, owner: Connection) -> None:
    """Ids come as numbers: then no quotes are around them."""
    ingest(service, told("7712345", 1, "MARKER", ADA), told("7712346", 1, "x", BOB))
    ingest(service, DeadLetter(PAGE, "not understood", b'{"message":{"mid":7712345,"text":"MARKER"}}'))
    ingest(service, DeadLetter(PAGE, "not understood", b'{"message":{"mid":7712346}}'))
    assert erase(service)["dead_letters"] == 1
    assert traces(owner) == []
    assert len(rows(owner, "select from convsync.dead_letters")) == 1


def test_what_a_sync_could_not_read_of_the_person_is_scrubbed_too(
    service: Connection, owner: Connection, everything: Json
) -> None:
    service.execute(
        """select convsync_api.fail_sync_batch('1001', %s, %s, 'thread', %s, 'c_t', 3,
             '{"class": "gone", "code": 100, "message": "no t_900800700 of Quuxmarker"}')""",
        [everything["run_id"], everything["fence"], THREAD],
    )
    erase(service)
    assert traces(owner) == []
    run = call(service, "select convsync_api.get_sync_run(%(id)s)", id=everything["run_id"])
    assert run["failed_batches"] == []
    assert run["open_threads"] == 1


def test_who_erases_waits_for_the_page_that_is_being_applied(
    connect: Connect, owner: Connection, everything: Json
) -> None:
    first, second = connect(), connect()
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: apply(
            first, everything, history(), [listed(THREAD, ADA, updated=20)], cursor="c_1", next="c_2"
        ),
        second,
        lambda: erase(second),
    )
    late.result()
    assert traces(owner) == []


def test_what_asked_whether_their_thread_is_gone_goes_too(
    service: Connection, owner: Connection, everything: Json
) -> None:
    values = {"page": PAGE, "run": everything["run_id"], "thread": THREAD}
    owner.execute(
        """update convsync.sync_cursors set share_before = now(), share_thread = %(thread)s
           where kind = 'list'""",
        values,
    )
    for kind in ("confirm", "control"):
        owner.execute(
            """insert into convsync.sync_cursors (page_id, run_id, kind, thread_id, failed)
               values (%(page)s, %(run)s, %(kind)s, %(thread)s, %(failed)s)""",
            {**values, "kind": kind, "failed": kind == "control"},
        )
    owner.execute(
        """insert into convsync.sync_batches
             (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
           values (%(page)s, %(run)s, 1, 'control', %(thread)s, 'failed', 1, '{"message": "MARKER"}', 1)""",
        values,
    )
    erase(service)
    assert traces(owner) == []


def test_the_same_person_on_another_page_is_another_contact(service: Connection, owner: Connection) -> None:
    ingest(service, told("m_1", sender=ADA), told("m_1", sender=ADA, page=OTHER_PAGE))
    erase(service)
    assert [row["page_id"] for row in rows(owner, "select * from convsync.contact_interaction_events")] == [
        OTHER_PAGE
    ]


def test_a_thread_of_two_people_stays_the_others(service: Connection, owner: Connection) -> None:
    call(service, "select convsync_api.add_page('1001')")
    ingest(service, *history(), *BOBS)
    ingest(service, snapshot(), snapshot(BOB, seen=90, name="Bob"))
    run = begin(service)
    apply(service, run, [], [listed(THREAD, ADA)])
    erase(service)
    query: LiteralString = (
        "select thread_id, sender_id, completed from convsync.sync_cursors where kind = 'thread'"
    )
    work = [{"thread_id": THREAD, "sender_id": None, "completed": False}]
    assert rows(owner, query) == work
    apply(service, run, [], [listed(THREAD, ADA)], cursor="c_1", next="c_2")
    assert rows(owner, query) == work
    nobody = replace(told("m_x", sender=f"thread:{THREAD}"), observed_at=at(50))
    assert ingest(service, nobody)[0]["events_added"] == 1


# --- nothing comes back


def delivered(event: Json, page: str = PAGE, received: float = 7200, **entry: Any) -> list[Fact]:
    """The facts of a webhook delivery with that one event, received after the erasure."""
    body = {"object": "page", "entry": [{"id": page, **entry, "messaging": [event]}]}
    return parse(orjson.dumps(body), at(received)).facts


def milliseconds(seconds: float) -> int:
    return round(at(seconds).timestamp() * 1000)


# Events that nobody can read, as they were told before the erasure.
UNREADABLE: dict[str, Json] = {
    "a mid with NUL": {"sender": {"id": ADA}, "message": {"mid": "m_ada9\0", "text": "MARKER"}},
    "no sender": {"recipient": {"id": PAGE}, "message": {"mid": "m_ada1", "text": "MARKER"}},
    "a text that is none": {"sender": {"id": ADA}, "message": {"mid": "m_ada9", "text": ["MARKER"]}},
    "a number for an id": {"sender": {"id": int(ADA)}, "message": {"mid": "m_ada9", "text": ["MARKER"]}},
    "two people": {
        "sender": {"id": BOB},
        "recipient": {"id": ADA},
        "message": {"mid": 'm_ada9"', "text": ["MARKER"]},
    },
}


def unreadable_copies() -> list[Fact]:
    """Dead letters of before, in each form that they come in."""
    facts: list[Fact] = []
    for event in UNREADABLE.values():
        facts += delivered({"timestamp": milliseconds(9), **event})
        facts += delivered(event)
        # when it was delivered is not when it was said
        facts += delivered(event, time=milliseconds(7100))
        facts += delivered({**event, "timestamp": "soon"})
    letters = [fact for fact in facts if isinstance(fact, DeadLetter)]
    assert len(letters) == len(facts) == 4 * len(UNREADABLE)
    facts += [replace(letter, page_id="") for letter in letters]
    facts += [
        dead_letter(fact, ValueError("22003"), orjson.dumps(fact.as_json()))
        for fact in [*history(), snapshot()]
    ]
    late = orjson.dumps({"entry": [{"messaging": [*UNREADABLE.values(), {"timestamp": milliseconds(7200)}]}]})
    facts += [
        DeadLetter("", "object: neither page nor instagram", late),
        DeadLetter(PAGE, "not JSON", b"\x00\xff not JSON \xff" + ADA.encode() + b" MARKER"),
        DeadLetter(
            PAGE, "a string in a string", orjson.dumps({"x": orjson.dumps({"mid": "m_ada1"}).decode()})
        ),
    ]
    return facts


def unreadable_reads() -> list[Fact]:
    return [
        DeadLetter(PAGE, f"participants[0].id: missing ({THREAD})", orjson.dumps({"name": NAME})),
        DeadLetter(
            PAGE,
            f"message.id: missing ({THREAD})",
            orjson.dumps({"created_time": "2025-03-01T12:00:01+0000", "message": "MARKER"}),
        ),
    ]


def old_copies() -> list[Callable[[Connection], object]]:
    """Everything of before that may still come, each on its own."""
    nobody = f"thread:{THREAD}"
    graph = [fact for fact in history() if isinstance(fact, Message) and fact.observed_at]
    return [
        lambda c: ingest(c, *history()),
        lambda c: ingest(c, *reversed(history())),
        lambda c: [ingest(c, fact) for fact in history()],
        lambda c: ingest(c, *graph, snapshot(seen=7200), source="sync"),
        lambda c: ingest(c, told("m_ada_ancient", -9_999_999, "MARKER never walked", ADA), source="sync"),
        # Graph names nobody any more
        lambda c: ingest(c, *history(nobody), snapshot(nobody, seen=7200), source="sync"),
        lambda c: ingest(c, *history(), *BOBS, told("m_bob_new", 4000, "new", BOB)),
        # without any time it seems to be of the moment it is received
        lambda c: ingest(
            c, *delivered({"sender": {"id": ADA}, "message": {"mid": "m_ada1", "text": "MARKER"}})
        ),
        lambda c: ingest(c, *unreadable_copies()),
        lambda c: [ingest(c, fact) for fact in unreadable_copies()],
        lambda c: ingest(c, *unreadable_reads(), source="sync"),
    ]


@pytest.mark.parametrize("which", range(11))
def test_nothing_of_before_comes_back(
    service: Connection, owner: Connection, everything: Json, which: int
) -> None:
    erase(service)
    old_copies()[which](service)
    assert traces(owner) == []
    assert rows(owner, "select from convsync.messenger_conversations where sender_id like 'thread:%%'") == []


@pytest.mark.parametrize("sender", [ADA, f"thread:{THREAD}"])
def test_a_sync_brings_nothing_back(
    service: Connection, owner: Connection, everything: Json, sender: str
) -> None:
    """Its next pages, another run's, and the page of a thread that was asked for before."""
    erase(service)
    facts = [*history(sender), snapshot(sender, seen=7200)]
    late = apply(service, everything, facts, kind="thread", thread=THREAD, cursor="c_t", next=None)
    assert late["applied"] is False
    done = apply(
        service,
        everything,
        [*facts, *BOBS],
        [listed(BOBS_THREAD, BOB), listed(THREAD, sender)],
        cursor="c_1",
        next="c_2",
    )
    assert done["applied"]
    assert traces(owner) == []
    for query in (
        "select convsync_api.cancel_sync('1001', %(run_id)s, %(fence)s)",
        "select convsync_api.begin_sync('1001', 'full')",
    ):
        call(service, query, **everything)
    [run] = rows(owner, "select run_id, fence from convsync.sync_runs where status = 'running'")
    apply(service, run, facts, [listed(THREAD, sender)])
    assert traces(owner) == []


def test_what_is_done_later_to_an_erased_message_brings_nothing_of_it_back(
    service: Connection, owner: Connection, everything: Json
) -> None:
    erase(service)
    ingest(
        service,
        Edit(PAGE, ADA, "m_x1", at(4000), 2, "written after the erasure"),
        Reaction(PAGE, ADA, "m_x1", at(4001), ADA, "react", "love"),
        Unsend(PAGE, ADA, "m_x2", at(4002)),
        Watermark(PAGE, ADA, "read", at(4003)),
    )
    ingest(service, *history())
    [contact] = rows(
        owner, "select * from convsync.messenger_conversations where sender_id = %(ada)s", ada=ADA
    )
    assert (contact["message_count"], contact["sender_name"], contact["thread_id"]) == (0, None, None)
    assert "MARKER" not in dumped(owner)


@pytest.mark.parametrize("event", UNREADABLE)
def test_a_redelivered_event_that_nobody_can_read_is_counted_without_its_bytes(
    service: Connection, owner: Connection, everything: Json, event: str
) -> None:
    """It is there to be seen, once, and says why there is nothing in it."""
    erase(service)
    kept = call(owner, "select max(dead_letter_id) from convsync.dead_letters")
    for _ in range(2):
        [letter] = delivered({"timestamp": milliseconds(9), **UNREADABLE[event]})
        ingest(service, letter)
    [row] = rows(owner, "select * from convsync.dead_letters where dead_letter_id > %(kept)s", kept=kept)
    assert (row["page_id"], row["source"], row["raw"], row["attempts"]) == (PAGE, "webhook", b"", 2)
    assert isinstance(letter, DeadLetter)
    assert row["reason"] == f"{letter.reason} (bytes not kept: they name somebody who was erased)"
    # another one is another letter
    ingest(service, *delivered({"timestamp": milliseconds(10), **UNREADABLE[event]}))
    assert call(owner, "select count(*) from convsync.dead_letters where raw = ''") == 2
    # nothing in it tells whose it was
    assert row["digest"] != sha256(letter.reason.encode() + b"\0" + letter.raw).digest()


@pytest.mark.parametrize("event", ["a mid with NUL", "a text that is none", "a number for an id"])
@pytest.mark.parametrize("page", [PAGE, ""])
def test_what_the_person_says_later_and_nobody_can_read_keeps_its_bytes(
    service: Connection, owner: Connection, everything: Json, event: str, page: str
) -> None:
    erase(service)
    [letter] = delivered({"timestamp": milliseconds(3600.001), **UNREADABLE[event]})
    assert isinstance(letter, DeadLetter)
    ingest(service, replace(letter, page_id=page))
    [row] = rows(owner, "select * from convsync.dead_letters where raw = %(raw)s", raw=letter.raw)
    assert row["reason"] == letter.reason
    # until they are erased in their turn
    service.execute("select set_config('convsync.now', %s, false)", [at(9000).isoformat()])
    assert erase(service)["dead_letters"] == 1
    ingest(service, replace(letter, page_id=page))
    assert traces(owner) == []


def test_what_is_said_later_of_a_message_that_was_erased_and_nobody_can_read_keeps_no_bytes(
    service: Connection, owner: Connection, everything: Json
) -> None:
    erase(service)
    edit = {"sender": {"id": ADA}, "message_edit": {"mid": "m_ada1", "text": ["MARKER"]}}
    ingest(service, *delivered({"timestamp": milliseconds(4000), **edit}))
    assert traces(owner) == []
    assert rows(owner, "select from convsync.dead_letters where raw = ''") != []


def escaped(text: str) -> str:
    """As JSON may write each letter of it."""
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


# Ids with what JSON's writers escape, in letters that have them in no other form.
SLASHED, PLAIN = "m_ada/9+x==", "m_ada9"
ESCAPED: dict[str, bytes] = {
    "a slash": b'{"message":{"mid":"m_ada\\/9+x==","text":["SECRET"]}}',
    "every letter of a message": b'{"mid":"%b","text":["SECRET"]}' % escaped(PLAIN).encode(),
    "every letter of the person": b'{"sender":{"id":"%b"},"text":["SECRET"]}'
    % escaped(ADA).upper().replace("\\U", "\\u").encode(),
    "in a string": orjson.dumps({"x": '{"mid":"m_ada\\/9+x==","text":"SECRET"}'}),
    "in a string in a string": orjson.dumps(
        {"x": orjson.dumps({"y": '{"mid":"m_ada\\/9+x=="}'}).decode(), "z": "SECRET"}
    ),
    "beside other bytes": b'\x00\xff {"mid":"m_ada\\/9+x==","text":["SECRET"]} \\',
    "the name": b'{"name":"%b","text":["SECRET"]}' % escaped(NAME).encode(),
    "beside a pair and half of one": b'{"t":"\\ud83d\\ude00 \\ud83d SECRET","id":"%b"}'
    % escaped(ADA).encode(),
}


@pytest.mark.parametrize("form", ESCAPED)
@pytest.mark.parametrize("erased_first", [False, True])
def test_a_letter_that_names_them_in_escapes_keeps_no_bytes(
    service: Connection, owner: Connection, form: str, erased_first: bool
) -> None:
    """Told before the erasure or again after it: neither its bytes nor what they mean are there."""
    if erased_first and form == "the name":
        pytest.skip("a name is told to nobody who does not know it any more")
    ingest(service, told(SLASHED, 1, "x", ADA), told(PLAIN, 2, "x", ADA), snapshot())
    letter = DeadLetter(
        PAGE, f"not understood: {ESCAPED[form].decode('latin-1')}".replace("\0", ""), ESCAPED[form]
    )
    of_others = DeadLetter(
        PAGE, "of others", b'{"mid":"m_ada\\/9+y==","id":"' + escaped(BOB).encode() + b'"}'
    )
    ingest(service, of_others)
    if erased_first:
        erase(service)
        ingest(service, letter, replace(letter, reason="not understood"), of_others)
    else:
        ingest(service, letter, replace(letter, reason="not understood"))
        assert erase(service)["dead_letters"] == 2
    kept = rows(owner, "select raw, reason from convsync.dead_letters where reason <> 'of others'")
    assert [row["raw"] for row in kept] == [b""] * (2 * erased_first)
    whole = dumped(owner)
    for text in (whole, whole.replace("\\\\", "\\")):
        for again in (text, call(owner, "select convsync_api._letter_forms(%(text)s)", text=text)):
            assert not any(marker in again for marker in (SLASHED, PLAIN, ADA, NAME))
    others = rows(owner, "select raw from convsync.dead_letters where reason = 'of others'")
    assert others == [{"raw": of_others.raw}]


def test_a_letter_is_of_after_only_if_each_of_its_events_tells_such_a_time(
    service: Connection, owner: Connection, everything: Json
) -> None:
    """Some time in it is not enough: it may be another event's."""
    erase(service)
    late, later = milliseconds(4000), milliseconds(5000)

    def letter(*times: int | None) -> DeadLetter:
        events = [
            {"sender": {"id": ADA}, "message": {"mid": f"m_x{n}", "text": ["x"]}}
            | ({} if time is None else {"timestamp": time})
            for n, time in enumerate(times)
        ]
        return DeadLetter(PAGE, f"times: {times}", orjson.dumps({"messaging": events}))

    def is_kept(one: DeadLetter) -> bool:
        ingest(service, one)
        return rows(owner, "select from convsync.dead_letters where raw = %(raw)s", raw=one.raw) != []

    assert is_kept(letter(late))
    assert is_kept(letter(late, later))
    assert not is_kept(letter(late, None))
    assert not is_kept(letter(None, late))
    assert not is_kept(letter(late, None, later))
    assert not is_kept(letter(late, milliseconds(9)))
    # a person may write what looks like a time
    fake = letter(late, None)
    text = f'\\"timestamp\\":{later}'.encode()
    assert not is_kept(replace(fake, raw=fake.raw.replace(b'["x"]', b'"' + text + b'"')))


def test_letters_of_others_keep_their_bytes(service: Connection, owner: Connection, everything: Json) -> None:
    """Also those that name nobody's id, one like the person's, or the person on another Page."""
    erase(service)
    for number, (page, raw) in enumerate(
        (
            (PAGE, b'{"sender":{"id":"%b"},"message":{"mid":"m_bob9"}}' % BOB.encode()),
            (PAGE, b'{"sender":{"id":"9%b1"}}' % ADA.encode()),
            (PAGE, b""),
            (PAGE, b"\x00\xff" * 40),
            (OTHER_PAGE, b'{"sender":{"id":"%b"}}' % ADA.encode()),
            ("", b'{"sender":{"id":"%b"}}' % BOB.encode()),
        )
    ):
        reason = f"of somebody else {number}"
        ingest(service, DeadLetter(page, reason, raw))
        [row] = rows(owner, "select raw, digest from convsync.dead_letters where reason = %(r)s", r=reason)
        assert row == {"raw": raw, "digest": sha256(reason.encode() + b"\0" + raw).digest()}


def test_a_letter_too_long_to_be_looked_through_keeps_no_bytes(
    service: Connection, owner: Connection, everything: Json
) -> None:
    """Without a tombstone it keeps them."""
    raw = orjson.dumps([str(number) for number in range(20_001)])
    ingest(service, DeadLetter(PAGE, "before", raw))
    erase(service)
    ingest(service, DeadLetter(PAGE, "after, few words", b"x" * 300_000))
    ingest(
        service,
        DeadLetter(PAGE, "after", raw),
        DeadLetter("", "after", raw),
        DeadLetter("1003", "after", raw),
    )
    found = rows(
        owner,
        """select page_id, reason, raw = '' as empty from convsync.dead_letters
           where reason ~ '^(before|after)' order by 2, 1""",
    )
    many = "after (bytes not kept: too long to look for somebody who was erased)"
    assert [(row["page_id"], row["reason"], row["empty"]) for row in found] == [
        ("1003", "after", False),
        ("", many, True),
        (PAGE, many, True),
        (PAGE, many.replace("after", "after, few words"), True),
        (PAGE, "before", False),
    ]


def test_a_letter_whose_bytes_are_not_kept_cannot_be_replayed(
    service: Connection, owner: Connection, everything: Json
) -> None:
    erase(service)
    ingest(service, *delivered({"timestamp": milliseconds(9), **UNREADABLE["no sender"]}))
    letter = call(
        service,
        "select d from convsync_api.list_dead_letters(%(page)s, p_limit => 1) d",
        page=PAGE,
    )
    shown = call(service, "select convsync_api.get_dead_letter(%(id)s::bigint)", id=letter["dead_letter_id"])
    assert (shown["bytes"], shown["raw_base64"]) == (0, "")
    with pytest.raises(errors.InvalidArgument, match="its bytes were not kept"):
        read_again(shown)


def test_a_message_of_before_that_comes_without_its_time_is_known_by_its_id(
    service: Connection, owner: Connection, everything: Json
) -> None:
    erase(service)
    late = {"sender": {"id": ADA}, "message": {"mid": "m_ada2", "text": "MARKER"}}
    echo = {
        "sender": {"id": PAGE},
        "recipient": {"id": ADA},
        "message": {"mid": "m_ada2", "text": "MARKER", "is_echo": True},
    }
    for event in (late, echo, {**late, "sender": {"id": BOB}}):
        for entry in ({}, {"time": milliseconds(7100)}):
            ingest(service, *delivered(event, **entry), told("m_bob2", 5000, "x", BOB))
    assert traces(owner) == []
    # what is new comes through, with a time or without
    new = {"sender": {"id": ADA}, "message": {"mid": "m_new", "text": "new"}}
    assert ingest(service, *delivered(new))[0]["created"]


def test_a_new_message_starts_a_new_contact(service: Connection, owner: Connection, everything: Json) -> None:
    old = erase(service)["conversation_id"]
    [touched] = ingest(service, told("m_new", 3600.001, "hello again", ADA), *history())
    assert (touched["created"], touched["version"], touched["events_added"]) == (True, 1, 1)
    assert str(touched["conversation_id"]) != old
    ingest(service, snapshot(updated=3601, seen=3700, name="Zoë"), *history(), source="sync")
    [contact] = rows(
        owner, "select * from convsync.messenger_conversations where sender_id = %(ada)s", ada=ADA
    )
    assert (contact["message_count"], contact["last_message"], contact["sender_name"]) == (
        1,
        "hello again",
        "Zoë",
    )
    assert contact["note"] is None
    # and is erased in its turn
    service.execute("select set_config('convsync.now', %s, false)", [at(9000).isoformat()])
    assert erase(service)["events"] == 1
    assert ingest(service, told("m_new", 3600.001, "hello again", ADA)) == []


def test_of_two_copies_the_later_one_may_be_admitted_alone(service: Connection, owner: Connection) -> None:
    """Graph's whole second is before the erasure, the webhook's millisecond after it; both in one call."""
    service.execute("select set_config('convsync.now', %s, false)", [at(100.5).isoformat()])
    ingest(service, told("m_1", 1, sender=ADA))
    erase(service)
    graph = Message(PAGE, ADA, "m_2", "in", at(100), "new", observed_at=at(200))
    webhook = Message(PAGE, ADA, "m_2", "in", at(100.9), "new")
    [touched] = ingest(service, graph, webhook)
    assert touched["events_added"] == 1
    assert [
        row["message_id"] for row in rows(owner, "select * from convsync.contact_interaction_events")
    ] == ["m_2"]


def test_a_clock_ahead_of_ours_makes_nothing_later(service: Connection, owner: Connection) -> None:
    ahead = told("m_ada1", 3610, "MARKER", ADA)
    ingest(service, ahead)
    assert datetime.fromisoformat(erase(service)["erased_at"]) == at(3610)
    assert ingest(service, ahead) == []
    # but one that is far from any clock does not shut the person out
    ingest(service, told("m_1", 99_999_999, sender=ADA))
    assert datetime.fromisoformat(erase(service)["erased_at"]) == at(3600 + 86400)


def test_erasing_twice(service: Connection, owner: Connection, everything: Json) -> None:
    erase(service)
    before = rows(owner, "select * from convsync.messenger_conversations order by 1, 2")
    changes = call(owner, "select count(*) from convsync.conversation_changes")
    again = erase(service)
    assert (again["conversation_id"], again["events"], again["dead_letters"]) == (None, 0, 0)
    assert rows(owner, "select * from convsync.messenger_conversations order by 1, 2") == before
    assert call(owner, "select count(*) from convsync.conversation_changes") == changes
    with pytest.raises(psycopg.DatabaseError) as caught:
        erase(service, before[0]["sender_id"] if before[0]["sender_id"] != BOB else before[1]["sender_id"])
    assert caught.value.sqlstate == "ZC006"


def test_erasing_somebody_never_seen_refuses_what_comes_of_before(
    service: Connection, owner: Connection
) -> None:
    done = erase(service)
    assert done == {
        "conversation_id": None,
        "events": 0,
        "waiting_amendments": 0,
        "dead_letters": 0,
        "erased_at": ERASED.isoformat(),
    }
    assert rows(owner, "select from convsync.messenger_conversations") == []
    assert ingest(service, *history(), snapshot()) == []
    assert ingest(service, told("m_new", 3601, "new", ADA))[0]["created"]
    assert traces(owner) != []


def test_a_page_that_nobody_knows_has_nobody_to_erase(service: Connection, owner: Connection) -> None:
    """It is a slip of the pen. A Page that was removed is known: what was mirrored of it is still there."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        call(service, "select convsync_api.erase_contact('9', %(sender)s)", sender=ADA)
    assert caught.value.sqlstate == "ZC001"
    assert call(owner, "select count(*) from convsync.pages") == 1
    ingest(service, *history())
    call(service, "select convsync_api.remove_page('1001')")
    assert erase(service)["events"] == 3
    assert traces(owner) == []


@pytest.mark.parametrize("sender", ["", PAGE, None])
def test_an_erasure_names_a_person(service: Connection, sender: Any) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        erase(service, sender)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_sender_id")


def test_the_row_that_stays_is_nobodys(service: Connection, owner: Connection) -> None:
    """Nothing can be written into it: no fact in its name, no edit, no read."""
    ingest(service, told("m_1", sender=ADA))
    row = int(erase(service)["conversation_id"])
    name = f"erased:{row}"
    with pytest.raises(psycopg.DatabaseError) as caught:
        ingest(service, told("m_2", 9000, sender=name))
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "facts[0].sender_id")
    with pytest.raises(psycopg.DatabaseError) as caught:
        update(service, row, 2, {"note": "who was this"})
    assert caught.value.sqlstate == "ZC006"
    for query in (
        "select convsync_api.get_conversation('1001', %s)",
        "select convsync_api.list_events('1001', %s)",
        "select convsync_api.contact_timing('1001', %s)",
    ):
        with pytest.raises(psycopg.DatabaseError) as caught:
            service.execute(query, [row])
        assert caught.value.sqlstate == "ZC006"
    assert call(service, "select convsync_api.list_conversations('1001')")["conversations"] == []


def test_a_program_that_writes_an_erased_person_is_told(service: Connection, owner: Connection) -> None:
    def write(seconds: float, mid: str = "m_1") -> Json:
        [done] = rows(
            service,
            "select * from convsync_api.sync_conversation_with_events(%(conversation)s, %(events)s)",
            conversation=Jsonb({"page_id": PAGE, "sender_id": ADA, "sender_name": NAME}),
            events=Jsonb(
                [{"message_id": mid, "direction": "in", "event_timestamp": at(seconds).isoformat()}]
            ),
        )
        return done

    write(1)
    erase(service)
    # the message is the same, whenever it is said to be of
    for seconds in (1, 3601):
        with pytest.raises(psycopg.DatabaseError) as caught:
            write(seconds)
        assert caught.value.sqlstate == "ZC006"
    assert traces(owner) == []
    assert write(3601, "m_2")["outcome"] == "created"


# --- at the same time


@pytest.mark.parametrize("known", [True, False])
def test_a_message_that_is_being_ingested_when_its_person_is_erased(
    connect: Connect, owner: Connection, known: bool
) -> None:
    """The message is first: the erasure waits for it, and takes it along."""
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    if known:
        ingest(first, told("m_0", sender=ADA))
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: ingest(first, *history(), snapshot()),
        second,
        lambda: erase(second),
    )
    assert late.result()["events"] == 3 + known
    assert traces(owner) == []


@pytest.mark.parametrize("known", [True, False])
def test_an_erasure_during_which_a_message_comes(connect: Connect, owner: Connection, known: bool) -> None:
    """The erasure is first: the message waits, then is asked to come again, and is refused."""
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    if known:
        ingest(first, *history(), snapshot())
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: erase(first),
        second,
        lambda: ingest(second, *history()),
    )
    error = late.exception()
    assert isinstance(error, psycopg.errors.SerializationFailure)
    assert ingest(second, *history()) == []
    assert traces(owner) == []


@pytest.mark.parametrize("letter_first", [True, False])
def test_an_erasure_during_which_something_unreadable_comes(
    connect: Connect, owner: Connection, letter_first: bool
) -> None:
    """A dead letter has no conversation; still one of the two waits for the other."""
    first, second = connect(), connect()
    for session in (first, second):
        session.execute("select set_config('convsync.now', %s, false)", [ERASED.isoformat()])
    [letter] = delivered({"timestamp": milliseconds(9), **UNREADABLE["no sender"]})
    ingest(first, told("m_ada1", 9, "MARKER", ADA))

    def keep(session: Connection) -> object:
        return ingest(session, letter, told("m_bob", 1, "x", BOB))

    do_first, do_second = (keep, erase) if letter_first else (erase, keep)
    _, late = one_behind_the_other(owner, first, lambda: do_first(first), second, lambda: do_second(second))
    late.result()
    assert traces(owner) == []


def test_letters_are_looked_through_before_anybody_is_kept_waiting(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    """What is done to a letter while the erasure still waits for its lock comes too late to save it."""
    ingest(service, told("m_ada1", 9, "MARKER", ADA), DeadLetter(PAGE, "not understood", ADA.encode()))
    keeping, erasing = connect(), connect()
    keeping.execute("begin")
    ingest(keeping, DeadLetter(PAGE, "not understood", b"MARKER of " + ADA.encode()), source="sync")
    waiting: LiteralString = (
        "select from pg_locks where pid = %(pid)s and locktype = 'advisory' and not granted"
    )
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(erase, erasing)
        eventually(lambda: late.done() or rows(owner, waiting, pid=erasing.info.backend_pid))
        owner.execute("update convsync.dead_letters set raw = 'of nobody'")
        keeping.execute("commit")
    assert late.result()["dead_letters"] == 2
    assert traces(owner) == []


@pytest.mark.parametrize("notice_first", [True, False])
def test_an_erasure_during_which_a_notice_of_the_platform_comes(
    connect: Connect, owner: Connection, notice_first: bool
) -> None:
    first, second = connect(), connect()
    for session in (first, second):
        session.execute("select set_config('convsync.now', %s, false)", [ERASED.isoformat()])
    ingest(first, told("m_ada1", 9, "MARKER", ADA))

    def tell(session: Connection) -> object:
        return ingest(session, notice("e_1", f"MARKER {ADA}", 9))

    do_first, do_second = (tell, erase) if notice_first else (erase, tell)
    _, late = one_behind_the_other(owner, first, lambda: do_first(first), second, lambda: do_second(second))
    late.result()
    assert traces(owner) == []


async def test_the_service_repeats_what_met_an_erasure(
    database: Any, connect: Connect, owner: Connection
) -> None:
    """By group commit: the delivery is answered, what is others' is kept, the person stays away."""
    erasing = connect()
    call(erasing, "select convsync_api.add_page('1001')")
    ingest(erasing, *history(), snapshot(), *BOBS)
    pool = create_pool(database.service_url, size=4, name="serve")
    async with pool:
        store = Store(pool)

        async def commit(facts: Sequence[Fact]) -> None:
            await store.ingest(facts, "webhook")

        group = GroupCommit(commit, is_poison=errors.is_poison, is_transient=errors.is_transient)
        running = asyncio.create_task(group.run())
        erasing.execute("begin")
        erase(erasing)
        delivery = Delivery(facts=[*history(), told("m_bob2", 3000, "and me", BOB)], pages={PAGE})
        submitted = asyncio.create_task(group.submit(delivery))
        waiting: LiteralString = (
            "select from pg_stat_activity where application_name = 'convsync serve'"
            " and wait_event_type = 'Lock'"
        )
        await asyncio.to_thread(eventually, lambda: rows(owner, waiting))
        erasing.execute("commit")
        async with asyncio.timeout(20):
            await submitted
        await group.close(1)
        await running
    assert traces(owner) == []
    assert rows(owner, "select from convsync.contact_interaction_events where message_id = 'm_bob2'")
    assert rows(owner, "select from convsync.dead_letters") == []


def test_two_who_erase_at_once(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    ingest(first, *history(), snapshot())
    early, late = one_behind_the_other(owner, first, lambda: erase(first), second, lambda: erase(second))
    assert (early["events"], late.result()["events"]) == (3, 0)
    assert late.result()["conversation_id"] is None
    assert traces(owner) == []


def test_a_crowd_that_writes_while_the_person_is_erased(connect: Connect, owner: Connection) -> None:
    """Whatever meets: afterwards nothing of before is there, and everything of the bystander."""
    seeding = connect()
    ingest(seeding, *history(), snapshot(), *BOBS)

    def write(seed: int) -> None:
        chance, connection = random.Random(seed), connect()  # noqa: S311
        for turn in range(30):
            batch = [*chance.sample(history(), 4), told(f"m_bob_{seed}_{turn}", turn, "x", BOB)]
            chance.shuffle(batch)
            while True:
                try:
                    ingest(connection, *batch)
                except psycopg.OperationalError as error:
                    assert isinstance(errors.from_database(error), errors.TryAgain)  # noqa: PT017
                else:
                    break

    def wipe() -> None:
        connection = connect()
        for _ in range(10):
            while True:
                try:
                    erase(connection)
                except psycopg.OperationalError as error:
                    assert isinstance(errors.from_database(error), errors.TryAgain)  # noqa: PT017
                else:
                    break

    with ThreadPoolExecutor(4) as threads:
        wiping = threads.submit(wipe)
        list(threads.map(write, range(3)))
        wiping.result()
    assert traces(owner) == []
    kept = call(
        owner, "select count(*) from convsync.contact_interaction_events where message_id ~ '^m_bob_[0-9]'"
    )
    assert kept == 90


# --- in any order


TABLES: dict[str, LiteralString] = {
    "conversations": """
        select to_jsonb(c)
          - '{conversation_id,version,version_xid,last_synced_version,created_at,updated_at}'::text[] as row
        from convsync.messenger_conversations c
        where sender_id not like 'erased:%%' order by page_id, sender_id
    """,
    "events": """
        select to_jsonb(e) - '{conversation_id,source,received_at}'::text[]
          || jsonb_build_object('owner', c.sender_id) as row
        from convsync.contact_interaction_events e
        join convsync.messenger_conversations c using (page_id, conversation_id) order by message_id
    """,
    "pending": """
        select to_jsonb(a) - 'first_seen_at' as row from convsync.pending_amendments a order by message_id
    """,
}
EMPTY: tuple[LiteralString, ...] = (
    "delete from convsync.contact_interaction_events",
    "delete from convsync.pending_amendments",
    "delete from convsync.conversation_changes",
    "delete from convsync.dead_letters",
    "delete from convsync.messenger_conversations",
    "delete from convsync.erased_contacts",
    "delete from convsync.erased_messages",
    "delete from convsync.pages",
    "insert into convsync.pages (page_id) values ('1001')",
)


def mirror(owner: Connection) -> dict[str, list[Json]]:
    return {name: rows(owner, query) for name, query in TABLES.items()}


def emptied(owner: Connection) -> None:
    for query in EMPTY:
        owner.execute(query)


def in_batches(connection: Connection, facts: list[Fact], chance: random.Random) -> None:
    while facts:
        size = chance.randint(1, 6)
        ingest(connection, *facts[:size], source=chance.choice(["webhook", "sync"]))
        facts = facts[size:]


@pytest.mark.parametrize("seed", range(25))
def test_erasing_before_or_after_or_amid_the_old_facts_gives_the_same_mirror(
    service: Connection, owner: Connection, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    old = [*history(), snapshot(), *BOBS]
    new = [
        *history(name="anew", start=5000),
        snapshot(updated=5009, seen=9000, name="Anew"),
        told("m_bob2", 5000, "x", BOB),
    ]

    def run(amid: bool) -> dict[str, list[Json]]:
        emptied(owner)
        known = old if amid else BOBS
        before = chance.sample(known, len(known))
        cut = chance.randint(0, len(before)) if amid else len(before)
        if cut:
            in_batches(service, before[:cut], chance)
        erase(service)
        late = before[cut:] + [*new, *new] + (old if amid else [])
        in_batches(service, chance.sample(late, len(late)), chance)
        return mirror(owner)

    expected = run(amid=False)
    assert expected["events"]
    assert run(amid=True) == expected


LATER: list[Fact] = [
    Edit(PAGE, ADA, "m_ada1", at(4000), 2, "MARKER, edited after the erasure"),
    Reaction(PAGE, ADA, "m_ada1", at(4001), ADA, "react", "love"),
    Unsend(PAGE, ADA, "m_ada1", at(4002)),
]
# The message as a webhook told it, as Graph tells it, and as a thread without a customer has it.
OLD_COPIES: dict[str, Fact] = {
    "webhook": Message(PAGE, ADA, "m_ada1", "in", at(1.25), "MARKER"),
    "graph": Message(PAGE, ADA, "m_ada1", "in", at(1), "MARKER", observed_at=at(7200)),
    "nobody": Message(PAGE, f"thread:{THREAD}", "m_ada1", "in", at(1), "MARKER", observed_at=at(7200)),
    "an older edit": Edit(PAGE, ADA, "m_ada1", at(4), 1, "MARKER"),
}


def prepare(service: Connection, owner: Connection, known: str) -> None:
    """The person is erased: with the message, with an amendment that waited for it, or with neither."""
    emptied(owner)
    call(service, "select convsync_api.add_page('1001')")
    if known == "message":
        ingest(service, OLD_COPIES["webhook"], snapshot())
    elif known == "amendment":
        ingest(service, OLD_COPIES["an older edit"], snapshot())
    else:
        ingest(service, snapshot())
    erase(service)


@pytest.mark.parametrize("known", ["nothing", "message", "amendment"])
@pytest.mark.parametrize("copy", OLD_COPIES)
def test_what_is_done_later_to_a_message_of_before_does_not_stay_in_any_order(
    service: Connection, owner: Connection, known: str, copy: str
) -> None:
    """Its message is refused before, between or after them, or in the same call."""
    facts = [*LATER, OLD_COPIES[copy]]
    for order in permutations(facts):
        for calls in ([[fact] for fact in order], [order], [order, order]):
            prepare(service, owner, known)
            for batch in calls:
                ingest(service, *batch)
            assert traces(owner) == []
            assert mirror(owner) == {"conversations": [], "events": [], "pending": []}


@pytest.mark.parametrize("known", ["message", "amendment"])
def test_what_is_done_later_to_a_message_that_was_erased_is_not_kept(
    service: Connection, owner: Connection, known: str
) -> None:
    """Nobody tells the message again: it was here, or something that was done to it."""
    for order in permutations(LATER):
        prepare(service, owner, known)
        ingest(service, *order)
        assert traces(owner) == []
        assert mirror(owner) == {"conversations": [], "events": [], "pending": []}


def test_what_is_done_to_a_new_message_waits_for_it_in_any_order(
    service: Connection, owner: Connection
) -> None:
    """Only messages of before are known as such: nothing of the new contact is lost."""
    new: list[Fact] = [
        Message(PAGE, ADA, "m_new", "in", at(4000), "new"),
        Edit(PAGE, ADA, "m_new", at(4010), 1, "new, edited"),
        Reaction(PAGE, ADA, "m_new", at(4011), ADA, "react", "love"),
    ]
    mirrors = []
    for order in permutations([*new, OLD_COPIES["webhook"], LATER[0]]):
        prepare(service, owner, "nothing")
        for fact in order:
            ingest(service, fact)
        mirrors.append(mirror(owner))
    [event] = mirrors[0]["events"]
    assert (event["row"]["body"], mirrors[0]["pending"]) == ("new, edited", [])
    assert all(each == mirrors[0] for each in mirrors)


def test_a_message_of_the_very_second_of_the_erasure_keeps_what_waits_for_it(
    service: Connection, owner: Connection
) -> None:
    """Graph's whole second is refused, the webhook's millisecond is not: the message itself is of after."""
    facts: list[Fact] = [
        Message(PAGE, ADA, "m_2", "in", at(3600), "new", observed_at=at(7200)),
        Message(PAGE, ADA, "m_2", "in", at(3600.9), "new"),
        Edit(PAGE, ADA, "m_2", at(3700), 1, "new, edited"),
    ]
    mirrors = []
    for order in permutations(facts):
        prepare(service, owner, "nothing")
        service.execute("select set_config('convsync.now', %s, false)", [at(3600.5).isoformat()])
        erase(service)
        for fact in order:
            ingest(service, fact)
        [event] = mirror(owner)["events"]
        mirrors.append((event["row"]["body"], mirror(owner)["pending"]))
        service.execute("select set_config('convsync.now', %s, false)", [ERASED.isoformat()])
    assert mirrors == [("new, edited", [])] * 6


def test_others_who_say_something_of_that_message_id_on_another_page_are_heard(
    service: Connection, owner: Connection
) -> None:
    prepare(service, owner, "message")
    ingest(service, Edit(OTHER_PAGE, ADA, "m_ada1", at(4000), 1, "elsewhere"))
    assert [row["row"]["page_id"] for row in mirror(owner)["pending"]] == [OTHER_PAGE]


@pytest.mark.parametrize("refusal_first", [True, False])
def test_a_message_is_refused_while_something_is_said_of_it(
    connect: Connect, service: Connection, owner: Connection, refusal_first: bool
) -> None:
    """One waits for the other and then knows of it."""
    prepare(service, owner, "nothing")
    ingest(service, told("m_new", 4000, "the contact is there already", ADA))
    first, second = connect(), connect()
    for session in (first, second):
        session.execute("select set_config('convsync.now', %s, false)", [at(5000).isoformat()])

    def refuse(session: Connection) -> list[Json]:
        return ingest(session, OLD_COPIES["webhook"])

    def amend(session: Connection) -> list[Json]:
        return ingest(session, LATER[0])

    do_first, do_second = (refuse, amend) if refusal_first else (amend, refuse)
    _, late = one_behind_the_other(owner, first, lambda: do_first(first), second, lambda: do_second(second))
    if refusal_first:
        assert isinstance(late.exception(), psycopg.errors.SerializationFailure)
        assert amend(second) == []
    else:
        late.result()
    assert mirror(owner)["pending"] == []
    # the contact is one of after, and is there with their id
    assert [line for line in traces(owner) if not line.startswith("messenger_conversations: ")] == []


# What may be told of messages of before: with a time that proves it or without one, under any name.
UNTIMED = at(7200)
COPIES: list[Fact] = [
    copy
    for mid in ("m_ada1", "m_ada2")
    for copy in (
        Message(PAGE, ADA, mid, "in", at(1.25), "MARKER"),
        Message(PAGE, ADA, mid, "in", at(1), "MARKER", observed_at=at(7300)),
        Message(PAGE, f"thread:{THREAD}", mid, "in", at(1), "MARKER", observed_at=at(7300)),
        Message(PAGE, "thread:t_unknown", mid, "in", at(1), "MARKER", observed_at=at(7300)),
        Message(PAGE, ADA, mid, "in", UNTIMED, "MARKER"),
        Message(PAGE, f"thread:{THREAD}", mid, "out", UNTIMED, "MARKER"),
        Message(PAGE, BOB, mid, "in", UNTIMED, "MARKER"),
        Edit(PAGE, ADA, mid, at(4), 1, "MARKER"),
        Edit(PAGE, ADA, mid, at(4000), 2, "MARKER"),
        Reaction(PAGE, ADA, mid, at(4001), ADA, "react", "love"),
        Unsend(PAGE, ADA, mid, at(4002)),
    )
]
OF_AFTER: list[Fact] = [
    Message(PAGE, ADA, "m_new", "in", at(4000), "new"),
    Edit(PAGE, ADA, "m_new", at(4010), 1, "new, edited"),
    Message(PAGE, BOB, "m_bob", "in", at(2), "of a bystander"),
    Watermark(PAGE, ADA, "read", at(4003)),
    snapshot(updated=4004, seen=7300, name="anew"),
]


def but_for_empty_contacts(found: dict[str, list[Json]]) -> dict[str, list[Json]]:
    """Without the rows of people of whom nothing is kept, and without when somebody was last heard."""
    contacts = [dict(each["row"]) for each in found["conversations"]]
    for row in contacts:
        del row["last_inbound_time"]
    kept = [row for row in contacts if row["message_count"] or row["sender_name"] or row["read_watermark"]]
    return {**found, "conversations": kept}


@pytest.mark.parametrize("names", ["one name", "any name"])
@pytest.mark.parametrize("seed", range(30))
def test_copies_of_a_message_of_before_with_its_time_or_without_give_the_same_in_any_order(
    service: Connection, owner: Connection, seed: int, names: str
) -> None:
    """What is kept; and if all of them name one person, also whether there is a row of somebody."""
    chance = random.Random(seed)  # noqa: S311
    one_name = names == "one name"
    pool = [copy for copy in COPIES if not one_name or getattr(copy, "sender_id", "") == ADA]
    facts = chance.sample(pool, chance.randint(2, 6)) + chance.sample(OF_AFTER, chance.randint(0, 2))
    known = chance.choice(["nothing", "nothing", "message", "amendment"])
    mirrors = []
    for again in range(4):
        prepare(service, owner, known)
        told_now = chance.sample(facts, len(facts)) + (chance.sample(facts, 2) if again else [])
        if again:
            in_batches(service, told_now, chance)
        else:
            for fact in told_now:
                ingest(service, fact)
        found = mirror(owner)
        mirrors.append(found if one_name else but_for_empty_contacts(found))
    assert all(each == mirrors[0] for each in mirrors), facts


def test_what_came_without_its_time_goes_when_a_copy_tells_it(service: Connection, owner: Connection) -> None:
    """With all that was made of it: the contact too, if nothing else was told of them."""
    prepare(service, owner, "nothing")
    untimed, proof = replace(OLD_COPIES["webhook"], at=UNTIMED), OLD_COPIES["graph"]
    [made] = ingest(service, untimed, LATER[0])
    assert (made["created"], made["events_added"]) == (True, 1)
    assert ingest(service, proof) == []
    assert traces(owner) == []
    assert mirror(owner) == {"conversations": [], "events": [], "pending": []}
    [row] = rows(
        owner,
        """select sender_id, version, message_count from convsync.messenger_conversations
           where conversation_id = %(id)s""",
        id=made["conversation_id"],
    )
    assert row == {"sender_id": f"erased:{made['conversation_id']}", "version": 2, "message_count": 0}
    kinds = rows(
        owner,
        "select kinds from convsync.conversation_changes where conversation_id = %(id)s order by change_id",
        id=made["conversation_id"],
    )
    assert [row["kinds"] for row in kinds] == [["edit", "message"], ["erased"]]
    # Who has more than that stays, without it
    [made] = ingest(service, told("m_new", 4000, "new", ADA), replace(untimed, message_id="m_ada3"))
    [left] = ingest(service, replace(proof, message_id="m_ada3"))
    assert (left["conversation_id"], left["version"], left["events_changed"]) == (
        made["conversation_id"],
        2,
        1,
    )
    [contact] = mirror(owner)["conversations"]
    assert (contact["row"]["message_count"], contact["row"]["last_message_id"]) == (1, "m_new")
    assert datetime.fromisoformat(contact["row"]["last_inbound_time"]) == at(4000)
    assert ingest(service, replace(untimed, message_id="m_ada3"), replace(proof, message_id="m_ada3")) == []


@pytest.mark.parametrize("proof_first", [True, False])
@pytest.mark.parametrize("sender", [ADA, BOB])
def test_a_copy_without_its_time_comes_while_another_tells_it(
    connect: Connect, service: Connection, owner: Connection, sender: str, proof_first: bool
) -> None:
    """Also under another name, and so under another lock: one waits, and then sees what the other did."""
    prepare(service, owner, "nothing")
    first, second = connect(), connect()

    def prove(session: Connection) -> list[Json]:
        return ingest(session, OLD_COPIES["webhook"])

    def tell(session: Connection) -> list[Json]:
        return ingest(session, replace(OLD_COPIES["webhook"], sender_id=sender, at=UNTIMED))

    do_first, do_second = (prove, tell) if proof_first else (tell, prove)
    _, late = one_behind_the_other(owner, first, lambda: do_first(first), second, lambda: do_second(second))
    if error := late.exception():
        assert isinstance(error, psycopg.OperationalError)
        assert isinstance(errors.from_database(error), errors.TryAgain)
        do_second(second)
    assert traces(owner) == []
    assert mirror(owner) == {"conversations": [], "events": [], "pending": []}


def test_two_calls_with_something_of_before_and_of_after_of_the_same_two_people(
    database: Any, service: Connection, owner: Connection
) -> None:
    """Each refuses a message of the one and amends one of the other: only one waits for the other."""
    people = (ADA, BOB)
    for person in people:
        erase(service, person)
    ingest(service, DeadLetter(PAGE, "not understood", b"[]"))

    def call_of(session: Connection, amends: str, refuses: str) -> None:
        facts = [
            Reaction(PAGE, amends, f"m_new{amends}", at(4000), amends, "react", "love"),
            DeadLetter(PAGE, "not understood", b"[]"),
            told(f"m_old{refuses}", 1, "MARKER", refuses),
        ]
        session.execute("select from convsync_api._ingest(%s, 'webhook')", [dump(facts)])

    # Past ingest, which gives up after a second: what waits for ever must be seen.
    with (
        ThreadPoolExecutor(2) as threads,
        psycopg.connect(database.owner_url, autocommit=True) as first,
        psycopg.connect(database.owner_url, autocommit=True) as second,
        psycopg.connect(database.owner_url) as holding,
    ):
        holding.execute("select from convsync.dead_letters for update")
        done = [
            threads.submit(call_of, first, ADA, BOB),
            threads.submit(call_of, second, BOB, ADA),
        ]
        waiting: LiteralString = (
            "select from pg_stat_activity where pid = any (%(pids)s) and wait_event_type = 'Lock'"
        )
        pids = [first.info.backend_pid, second.info.backend_pid]
        eventually(lambda: len(rows(owner, waiting, pids=pids)) == 2)
        holding.commit()
        for each in done:
            each.result()
    assert [row["row"]["message_id"] for row in mirror(owner)["pending"]] == [f"m_new{ADA}", f"m_new{BOB}"]


def test_what_waits_for_a_message_that_never_comes_goes_after_its_time(
    service: Connection, owner: Connection
) -> None:
    def expire(days: int | None) -> int:
        gone: int = call(service, "select convsync_api.expire_pending_amendments(%(days)s)", days=days)
        return gone

    ingest(service, Edit(PAGE, ADA, "m_w1", at(1), 1, "waits"), Unsend(PAGE, ADA, "m_w1", at(2)))
    service.execute("select set_config('convsync.now', %s, false)", [at(20 * 86400).isoformat()])
    ingest(service, Edit(PAGE, BOB, "m_w2", at(1), 1, "waits"), Edit(PAGE, ADA, "m_w1", at(3), 2, "waits"))
    service.execute("select set_config('convsync.now', %s, false)", [at(31 * 86400).isoformat()])
    assert expire(31) == 0
    assert expire(30) == 1
    assert [row["row"]["message_id"] for row in mirror(owner)["pending"]] == ["m_w2"]
    for days in (0, None):
        with pytest.raises(psycopg.DatabaseError) as caught:
            expire(days)
        assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_days")


def test_two_who_expire_what_waits_at_once(connect: Connect, service: Connection) -> None:
    busy = connect()
    busy.execute("begin")
    for session, expected in ((busy, 1), (service, 0)):
        if session is busy:
            ingest(service, Edit(PAGE, ADA, "m_w1", at(1), 1, "waits"))
        session.execute("select set_config('convsync.now', %s, false)", [at(99 * 86400).isoformat()])
        assert call(session, "select convsync_api.expire_pending_amendments(30)") == expected
    busy.execute("commit")


# --- retention


def purge(connection: Connection, before: float, limit: int | None = None) -> Json:
    """The first part; where that has to be, after the call that sets the horizon."""
    done = purge_once(connection, before, limit)
    return purge_once(connection, before, limit) if done["more"] and not done["conversations"] else done


def purge_once(connection: Connection, before: float, limit: int | None = None) -> Json:
    done: Json = call(
        connection,
        "select convsync_api.purge_events(p_page_id => '1001', p_before => %(before)s, p_limit => %(limit)s)",
        before=at(before),
        limit=limit,
    )
    return done


def folds(owner: Connection, sender: str = ADA) -> tuple[Any, ...]:
    [row] = rows(
        owner,
        """select message_count, last_message_id, last_message, last_message_time, version
           from convsync.messenger_conversations where sender_id = %(sender)s""",
        sender=sender,
    )
    return tuple(row.values())


def test_events_of_before_the_horizon_go_and_the_folds_are_right(
    service: Connection, owner: Connection
) -> None:
    ingest(service, *(told(f"m_{n}", n, f"text {n}", ADA) for n in range(5)), told("m_b", 0, "x", BOB))
    ingest(service, Unsend(PAGE, ADA, "m_4", at(9)))
    assert purge(service, 3) == {
        "events": 4,
        "conversations": 2,
        "purged_before": at(3).isoformat(),
        "more": False,
    }
    assert folds(owner) == (1, "m_3", "text 3", at(3), 3)
    assert folds(owner, BOB) == (0, None, None, None, 2)
    assert purge(service, 3)["events"] == 0
    assert folds(owner) == (1, "m_3", "text 3", at(3), 3)
    # the horizon never goes back
    assert purge(service, 1)["purged_before"] == at(3).isoformat()


def test_what_is_older_than_the_horizon_is_not_stored_again(service: Connection, owner: Connection) -> None:
    facts: list[Fact] = [*(told(f"m_{n}", n * 10, f"text {n}", ADA) for n in range(5)), *history()]
    ingest(service, *facts)
    purge(service, 20)
    after = mirror(owner)
    for source in ("webhook", "sync"):
        ingest(service, *facts, source=source)
        assert mirror(owner) == after
    emptied(owner)
    call(service, "select convsync_api.add_page('1001')")
    purge(service, 20)
    ingest(service, *facts)
    ever_received = "last_inbound_time"
    for conversation in after["conversations"]:
        conversation["row"].pop(ever_received)
    again = mirror(owner)
    for conversation in again["conversations"]:
        conversation["row"].pop(ever_received)
    assert again == after


def test_edits_that_wait_and_the_snippet_obey_the_horizon(service: Connection, owner: Connection) -> None:
    ingest(
        service,
        told("m_1", 1, "MARKER", ADA),
        Edit(PAGE, ADA, "m_w", at(1), 1, "MARKER"),
        Reaction(PAGE, ADA, "m_w", at(50), ADA, "react", "love"),
        Unsend(PAGE, ADA, "m_v", at(1)),
        Thread(PAGE, ADA, "t_1", at(60), {"snippet": "MARKER", "updated_time": at(1).isoformat()}),
    )
    purge(service, 10)
    assert "MARKER" not in dumped(owner)
    [waiting] = rows(owner, "select * from convsync.pending_amendments")
    assert (waiting["message_id"], waiting["num_edit"], list(waiting["reaction_marks"])) == (
        "m_w",
        None,
        [ADA],
    )
    snippet = {"snippet": "MARKER", "unread_count": 3, "updated_time": at(1).isoformat()}
    ingest(service, Thread(PAGE, ADA, "t_1", at(70), snippet))
    assert "MARKER" not in dumped(owner)
    assert rows(owner, "select unread_count from convsync.messenger_conversations") == [{"unread_count": 3}]


def test_who_erases_purges_or_edits_does_not_wait_for_an_idle_session_for_ever(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    """Each would keep what it holds: the Page's runs, other conversations, a connection of the service."""
    ingest(service, told("m_1", 1, "x", ADA))
    mine = number(owner, ADA)
    calls: list[Callable[[Connection], Any]] = [
        erase,
        lambda connection: purge(connection, 50),
        lambda connection: update(connection, mine, 1, {"note": "x"}),
    ]

    def refusal(do: Callable[[Connection], Any]) -> str | None:
        connection = connect()
        connection.execute("set statement_timeout = '20s'")
        with pytest.raises(psycopg.OperationalError) as caught:
            do(connection)
        assert isinstance(errors.from_database(caught.value), errors.TryAgain)
        return caught.value.sqlstate

    owner.execute("begin")
    owner.execute("select from convsync.messenger_conversations for update")
    with ThreadPoolExecutor(len(calls)) as threads:
        assert list(threads.map(refusal, calls)) == ["55P03"] * 3
    owner.execute("rollback")
    assert (update(service, mine, 1, {"note": "x"}), erase(service)["events"]) == (2, 1)


def test_a_snippet_of_before_goes_also_where_no_event_was_ever_stored(
    service: Connection, owner: Connection
) -> None:
    """Its messages could not be read, say. In parts too; what is of after, or of no known time, stays."""
    ingest(service, told("m_1", 1, "MARKER", "2001"))
    for n, updated in enumerate([1, 2, 3, 60, None]):
        fields = {"snippet": f"{'MARKER' if updated and updated < 10 else 'kept'} {n}"}
        if updated:
            fields["updated_time"] = at(updated).isoformat()
        ingest(service, Thread(PAGE, f"300{n}", f"t_{n}", at(60), fields))
    parts = [purge(service, 10, limit=2) for _ in range(3)]
    assert [(part["conversations"], part["more"]) for part in parts] == [(2, True), (2, False), (0, False)]
    assert "MARKER" not in dumped(owner)
    kept = rows(
        owner, "select snippet from convsync.messenger_conversations where snippet is not null order by 1"
    )
    assert [row["snippet"] for row in kept] == ["kept 3", "kept 4"]
    told_of: LiteralString = "select * from convsync_api.changes_after(null, 1000) where kinds = %(kinds)s"
    # Another test's transaction on the same server may hold the feed back for a moment.
    assert eventually(lambda: len(rows(service, told_of, kinds=["purged"])) == 4)


def test_what_is_done_later_to_a_purged_message_is_judged_by_its_own_time_in_any_order(
    service: Connection, owner: Connection
) -> None:
    """It is newer than the horizon, and waits like any other: until the horizon or its time comes."""
    facts: list[Fact] = [
        told("m_1", 1, "MARKER", ADA),
        Edit(PAGE, ADA, "m_1", at(5), 1, "MARKER"),
        Edit(PAGE, ADA, "m_1", at(50), 2, "after the horizon"),
    ]
    for order in permutations(facts):
        emptied(owner)
        call(service, "select convsync_api.add_page('1001')")
        purge(service, 10)
        for fact in order:
            ingest(service, fact)
        assert "MARKER" not in dumped(owner)
        [waiting] = rows(owner, "select message_id, edited_text from convsync.pending_amendments")
        assert waiting == {"message_id": "m_1", "edited_text": "after the horizon"}
        purge(service, 60)
        assert rows(owner, "select from convsync.pending_amendments") == []


def test_a_purge_in_parts_is_repeated_while_there_is_more(service: Connection, owner: Connection) -> None:
    ingest(service, *(told(f"m_{n}", n, sender=f"20{n % 5}") for n in range(20)))
    parts = []
    while True:
        parts.append(purge(service, 15, limit=2))
        if not parts[-1]["more"]:
            break
    assert [part["conversations"] for part in parts] == [2, 2, 1]
    assert sum(part["events"] for part in parts) == 15
    assert call(owner, "select count(*) from convsync.contact_interaction_events") == 5
    assert call(owner, "select sum(message_count) from convsync.messenger_conversations") == 5


def test_the_call_that_moves_a_horizon_deletes_nothing_yet(service: Connection, owner: Connection) -> None:
    """Nor does it wait for anybody: what an ingest under way stores meanwhile is seen by the next call."""
    ingest(service, told("m_1", 1, "MARKER", ADA))
    owner.execute("begin")
    owner.execute("select from convsync.messenger_conversations for update")
    moved = {"events": 0, "conversations": 0, "purged_before": at(10).isoformat(), "more": True}
    assert purge_once(service, 10) == moved
    owner.execute("rollback")
    assert rows(service, "select * from convsync_api.list_horizons()") == [
        {"page_id": PAGE, "purged_before": at(10)}
    ]
    assert purge_once(service, 10)["events"] == 1
    assert purge_once(service, 20)["more"]
    assert purge_once(service, 5) == moved | {"purged_before": at(20).isoformat(), "more": False}


def test_what_was_being_ingested_when_a_purge_began_goes_with_it(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    """It commits between two calls of the purge, which still says that there is more."""
    ingest(service, told("m_after", 50, "x", ADA))
    session = connect()
    session.execute("begin")
    ingest(session, told("m_1", 1, "MARKER", ADA), told("m_2", 2, "MARKER", BOB), source="sync")
    assert purge_once(service, 10)["more"]
    session.execute("commit")
    done = purge_once(service, 10)
    assert (done["events"], done["conversations"], done["more"]) == (2, 2, False)
    assert "MARKER" not in dumped(owner)
    assert folds(owner)[:2] == (1, "m_after")


def test_a_purge_waits_for_what_is_being_ingested_into_a_conversation_it_empties(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    ingest(service, told("m_0", 0, "MARKER", ADA))
    first, purging = connect(), connect()

    def ingest_then_move() -> None:
        ingest(first, told("m_1", 1, "MARKER", ADA), source="sync")
        assert purge_once(service, 10)["more"]

    _, late = one_behind_the_other(owner, first, ingest_then_move, purging, lambda: purge_once(purging, 10))
    assert (late.result()["events"], late.result()["more"]) == (2, False)
    assert "MARKER" not in dumped(owner)


async def test_what_an_ingest_stores_after_the_purge_is_over_goes_within_a_day(
    database: Any, connect: Connect, service: Connection, owner: Connection
) -> None:
    """Of somebody of whom nothing of before was known, so that no call of the purge met it."""
    session = connect()
    session.execute("begin")
    ingest(
        session,
        told("m_1", 1, "MARKER", ADA),
        Edit(PAGE, BOB, "m_w", at(1), 1, "MARKER"),
        PageEvent(PAGE, "e_1", at(1), "policy_enforcement", {"text": "MARKER"}),
        source="sync",
    )
    assert not purge(service, 10)["more"]
    session.execute("commit")
    assert "MARKER" in dumped(owner)
    async with create_pool(database.service_url, size=1, name="serve") as pool:
        assert await purge_again(Store(pool)) == 1
        assert "MARKER" not in dumped(owner)
        assert await purge_again(Store(pool)) == 0


@pytest.mark.parametrize("before", ["infinity", "-infinity", None, "2999-01-01T00:00:00Z"])
def test_a_horizon_is_in_the_past(service: Connection, before: str | None) -> None:
    call(service, "select convsync_api.add_page('1001')")
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.purge_events('1001', %s)", [before])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_before")


def test_a_purge_of_a_page_that_is_not_there(service: Connection) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        call(service, "select convsync_api.purge_events('9', %(before)s)", before=at(1))
    assert caught.value.sqlstate == "ZC001"


# --- counted


def refused(connection: Connection, *pages: str) -> list[tuple[str, str, str, int]]:
    found = rows(
        connection,
        "select convsync_api.list_refused_facts(%(pages)s) as one",
        pages=list(pages) or None,
    )
    ones = [row["one"] for row in found]
    return sorted((one["page_id"], one["source"], one["reason"], one["facts"]) for one in ones)


def test_what_is_refused_is_counted_by_page_source_and_reason(service: Connection, owner: Connection) -> None:
    """As often as it is refused, and nothing that is stored."""
    call(service, "select convsync_api.add_page('1001')")
    assert refused(service) == []
    purge(service, 10)
    erase(service)
    old = told("m_b0", 1, sender=BOB)
    new = told("m_b1", 20, sender=BOB)
    late = Edit(PAGE, ADA, "m_ada1", at(4000), 1, "of a message of before")
    for _ in range(2):
        ingest(service, *history(), late, old, new, replace(old, page_id=OTHER_PAGE))
    ingest(service, snapshot(), old, source="sync")
    ingest(service, OLD_COPIES["webhook"], replace(OLD_COPIES["webhook"], at=at(9000)))
    everything = [
        (PAGE, "sync", "erased", 1),
        (PAGE, "sync", "purged", 1),
        (PAGE, "webhook", "erased", 2 * (len(history()) + 1) + 2),
        (PAGE, "webhook", "purged", 2),
    ]
    assert refused(service) == refused(service, PAGE) == everything
    assert refused(service, OTHER_PAGE) == []
    counted: list[Json] = call(service, "select convsync_api.metrics()")["refused_facts"]
    assert counted == [
        {"source": source, "reason": reason, "facts": facts} for _, source, reason, facts in everything
    ]
    # what fails counts nothing
    with pytest.raises(psycopg.DatabaseError):
        ingest(service, *history(), replace(new, direction="up"))  # type: ignore[arg-type]
    assert refused(service) == everything


def test_when_something_was_refused_first_and_last(service: Connection) -> None:
    erase(service)
    for seconds in (4000, 5000, 4500):
        service.execute("select set_config('convsync.now', %s, false)", [at(seconds).isoformat()])
        ingest(service, *history())
    one = call(service, "select convsync_api.list_refused_facts()")
    assert datetime.fromisoformat(one["first_refused_at"]) == at(4000)
    assert datetime.fromisoformat(one["last_refused_at"]) == at(5000)


def test_a_refusal_that_stays_open_holds_up_nobody(connect: Connect, service: Connection) -> None:
    """The next ones are counted beside it, and no more parts are made than were written at once."""
    erase(service)
    erase(service, BOB)
    ingest(service, told("m_1", 1, "MARKER", ADA))
    first, second = connect(), connect()
    first.execute("begin")
    ingest(first, told("m_1", 1, "MARKER", ADA))
    second.execute("begin")
    ingest(second, told("m_1", 1, "MARKER", ADA), told("m_2", 1, "MARKER", BOB))
    ingest(service, told("m_1", 1, "MARKER", ADA))
    assert refused(service) == [(PAGE, "webhook", "erased", 2)]
    second.execute("commit")
    first.execute("rollback")
    for _ in range(3):
        ingest(service, told("m_1", 1, "MARKER", ADA))
    assert refused(service) == [(PAGE, "webhook", "erased", 7)]


def test_refusals_that_are_counted_at_once_are_all_counted(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    pages = (PAGE, OTHER_PAGE)
    call(service, "select convsync_api.add_page(%(page)s)", page=OTHER_PAGE)
    for page in pages:
        call(service, "select convsync_api.erase_contact(%(page)s, %(ada)s)", page=page, ada=ADA)

    def refuse(seed: int) -> None:
        connection = connect()
        for turn in range(25):
            order = pages if (seed + turn) % 2 else pages[::-1]
            ingest(connection, *(told("m_1", 1, "MARKER", ADA, page) for page in order))

    for page in pages:
        ingest(service, told("m_1", 1, "MARKER", ADA, page))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(refuse, range(4)))
    assert refused(service) == [(page, "webhook", "erased", 101) for page in pages]
    assert call(owner, "select count(*) from convsync.refused_facts") <= 8


# --- verifying


def findings(connection: Connection, *facts: Fact) -> list[tuple[str, str]]:
    found = rows(connection, "select * from convsync_api.compare_facts('1001', %(facts)s)", facts=dump(facts))
    return [(row["finding"], row["id"]) for row in found]


def test_verify_does_not_miss_what_was_erased_or_purged(service: Connection, owner: Connection) -> None:
    def graph(mid: str, seconds: float, sender: str) -> Message:
        return Message(PAGE, sender, mid, "in", at(seconds), "x", observed_at=at(7200))

    read = [
        replace(snapshot(seen=7200), fields={"name": NAME, "updated_time": at(9).isoformat()}),
        graph("m_ada1", 1, ADA),
        graph("m_bob0", 0, BOB),
        graph("m_bob1", 20, BOB),
        graph("m_bob2", 30, BOB),
    ]
    ingest(service, *read, source="sync")
    erase(service)
    purge(service, 10)
    assert findings(service, *read) == []
    # what is really missing still is
    owner.execute("delete from convsync.contact_interaction_events where message_id = 'm_bob2'")
    assert findings(service, *read) == [("missing", "m_bob2")]
    extra = rows(
        service,
        "select * from convsync_api.compare_thread('1001', %(thread)s, '{}', %(at)s, %(ada)s)",
        thread=THREAD,
        at=at(99999999),
        ada=ADA,
    )
    assert extra == []
    found = rows(service, "select sender_id from convsync_api.conversations_to_find('1001', 'infinity')")
    assert found == [{"sender_id": BOB}]


# --- Meta's request


def test_a_deletion_request_erases_wherever_the_person_is_known(
    service: Connection, owner: Connection
) -> None:
    ingest(service, *history(), told("m_ada1", page=OTHER_PAGE, sender=ADA), *BOBS)
    request = call(service, "select convsync_api.request_deletion(%(ada)s)", ada=ADA)
    assert request["contacts"] == 2
    assert traces(owner) == []
    status = call(service, "select convsync_api.deletion_status(%(code)s)", code=request["confirmation_code"])
    assert status == request
    again = call(service, "select convsync_api.request_deletion(%(ada)s)", ada=ADA)
    assert (again["contacts"], again["confirmation_code"] != request["confirmation_code"]) == (0, True)
    for query, state in (
        ("select convsync_api.request_deletion('')", "ZC003"),
        ("select convsync_api.deletion_status('nope')", "ZC001"),
    ):
        with pytest.raises(psycopg.DatabaseError) as caught:
            service.execute(query)
        assert caught.value.sqlstate == state
