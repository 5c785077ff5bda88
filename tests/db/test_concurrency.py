"""Two and more sessions at once, on real connections.

Nobody sleeps and hopes: a session that has to wait is seen waiting in ``pg_stat_activity`` before the one
it waits for goes on.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeAlias, TypeVar

import psycopg
import pytest
from old_algorithm import OldSystem
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from convsync.errors import TryAgain, from_database
from convsync.facts import Edit, Fact, Json, Message, Reaction, Thread, Unsend, dump
from convsync.graph.reading import read_conversations

PAGE, ADA = "1001", "2001"
NOBODY = "thread:t_1"
START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
SECONDS = float(os.environ.get("CONVSYNC_CROWD_SECONDS", "20" if os.environ.get("CONVSYNC_LONG") else "3"))
CROWD = 16

Connection: TypeAlias = psycopg.Connection[Any]
Connect: TypeAlias = Callable[[], Connection]
First = TypeVar("First")
Second = TypeVar("Second")


@pytest.fixture
def connect(database: Any) -> Iterator[Connect]:
    """Makes connections of the service's own role."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            psycopg.connect(database.service_url, autocommit=True, row_factory=dict_row)
        )


@pytest.fixture
def owner(database: Any) -> Iterator[Connection]:
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def one_behind_the_other(
    observer: Connection,
    first: Connection,
    do_first: Callable[[], First],
    second: Connection,
    do_second: Callable[[], Second],
) -> tuple[First, Future[Second]]:
    """Do the first in a transaction that commits only when the second is seen waiting for it."""
    first.execute("begin")
    done = do_first()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(do_second)
        deadline = time.monotonic() + 30
        while not future.done():
            row = observer.execute(
                "select wait_event_type from pg_stat_activity where pid = %s", [second.info.backend_pid]
            ).fetchone()
            if row == {"wait_event_type": "Lock"}:
                break
            assert time.monotonic() < deadline, "the second neither ended nor waited"
            time.sleep(0.002)
        waited = not future.done()
        first.execute("commit")
    assert waited, "the second did not wait for the first"
    return done, future


def ingest(connection: Connection, *batch: Fact, source: str = "webhook") -> list[Json]:
    return connection.execute("select * from convsync_api.ingest(%s, %s)", [dump(batch), source]).fetchall()


def call(connection: Connection, query: LiteralString, **values: Any) -> Json:
    row: Json | None = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def told(text: str, seconds: float, mid: str, sender: str = ADA) -> Message:
    return Message(PAGE, sender, mid, "in", START + timedelta(seconds=seconds), text)


def conversation(owner: Connection, sender: str = ADA) -> Json:
    return call(
        owner, "select * from convsync.messenger_conversations where sender_id = %(sender)s", sender=sender
    )


def events(owner: Connection) -> list[Json]:
    return owner.execute("select * from convsync.contact_interaction_events order by message_id").fetchall()


# --- the lost message of the old system: a sync writes what it read before a webhook came


def graph_page(*messages: tuple[str, str, int]) -> Json:
    """What Graph lists of a Page with one conversation: messages as (id, text, seconds), newest first."""

    def item(mid: str, text: str, seconds: int) -> Json:
        created = (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S+0000")
        return {
            "id": mid,
            "message": text,
            "created_time": created,
            "from": {"id": ADA, "name": "Ada"},
            "to": {"data": [{"id": PAGE}]},
        }

    items = [item(*message) for message in messages]
    return {
        "data": [
            {
                "id": "t_1",
                "updated_time": items[0]["created_time"],
                "message_count": len(items),
                "participants": {"data": [{"id": ADA, "name": "Ada"}, {"id": PAGE, "name": "Shop"}]},
                "messages": {"data": items},
            }
        ],
        "paging": {},
    }


def test_a_stale_sync_page_loses_no_message(connect: Connect, owner: Connection) -> None:
    webhook, sync = connect(), connect()
    call(sync, "select convsync_api.add_page('1001')")
    # T1
    ingest(webhook, told("one", 1.1, "m_1"))
    versions = [conversation(owner)["version"]]
    # T2: the call is granted and Graph answers; of the second message it knows nothing yet
    run = call(sync, "select * from convsync_api.begin_sync('1001', 'full')")
    grant = call(sync, "select * from convsync_api.acquire_call('1001', 'backfill')")
    stale = read_conversations(PAGE, graph_page(("m_1", "one", 1)), grant["granted_at"])
    # T3
    ingest(webhook, told("two", 2.2, "m_2"))
    versions.append(conversation(owner)["version"])
    # T4
    applied = call(
        sync,
        """select * from convsync_api.apply_sync_page(
             p_page_id => '1001', p_run_id => %(run)s, p_fence => %(fence)s,
             p_kind => 'list', p_thread_id => '', p_cursor => null, p_next_cursor => null,
             p_observed_at => %(at)s, p_facts => %(facts)s, p_threads => %(threads)s)""",
        run=run["run_id"],
        fence=run["fence"],
        at=grant["granted_at"],
        facts=dump(stale.facts),
        threads=Jsonb(stale.threads),
    )
    assert applied["applied"]
    # T5
    now = conversation(owner)
    versions.append(now["version"])
    assert [(event["message_id"], event["body"]) for event in events(owner)] == [
        ("m_1", "one"),
        ("m_2", "two"),
    ]
    assert (now["last_message"], now["last_message_id"]) == ("two", "m_2")
    assert now["last_message_time"] == START + timedelta(seconds=2.2)
    assert now["message_count"] == 2
    assert now["sender_name"] == "Ada"
    assert versions == sorted(set(versions))


def test_the_old_algorithm_loses_that_message(database: Any) -> None:
    """The control: the same five steps."""
    old = OldSystem(database.owner_url)
    try:
        old.webhook(PAGE, ADA, "one", START + timedelta(seconds=1.1))

        def fetch(_cursor: str | None) -> Json:
            answer = graph_page(("m_1", "one", 1))
            old.webhook(PAGE, ADA, "two", START + timedelta(seconds=2.2))  # while the answer is on its way
            return answer

        assert old.sync(PAGE, fetch).success
        assert old.conversations(PAGE)[ADA]["last_message"] == "one"
        assert "m_2" not in old.message_ids(PAGE)
        # nor the one that was fetched: to the old system the conversation is not new
        assert old.message_ids(PAGE) == []
    finally:
        old.close()


# --- one thing, told twice at once


def test_the_same_message_twice_at_once_is_one_event(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    message = told("one", 1, "m_1")
    early, late = one_behind_the_other(
        owner, first, lambda: ingest(first, message), second, lambda: ingest(second, message)
    )
    assert [(row["created"], row["events_added"], row["version"]) for row in early] == [(True, 1, 1)]
    assert [(row["created"], row["events_added"], row["version"]) for row in late.result()] == [(False, 0, 1)]
    assert late.result()[0]["conversation_id"] == early[0]["conversation_id"]
    assert [event["message_id"] for event in events(owner)] == ["m_1"]
    assert conversation(owner)["message_count"] == 1


def test_who_waits_for_a_conversation_sees_what_it_became(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    ingest(first, told("zero", 0, "m_0"))
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: ingest(first, told("two", 2, "m_2")),
        second,
        lambda: ingest(second, told("one", 1, "m_1")),
    )
    assert [row["version"] for row in late.result()] == [3]
    now = conversation(owner)
    assert (now["message_count"], now["last_message"]) == (3, "two")


@pytest.mark.parametrize(
    "amendment",
    [
        Unsend(PAGE, ADA, "m_1", START + timedelta(seconds=5)),
        Edit(PAGE, ADA, "m_1", START + timedelta(seconds=5), 1, "edited"),
        Reaction(PAGE, ADA, "m_1", START + timedelta(seconds=5), ADA, "react", "love"),
    ],
    ids=lambda fact: type(fact).__name__,
)
@pytest.mark.parametrize("message_first", [True, False])
@pytest.mark.parametrize("sender", [ADA, NOBODY])
def test_an_amendment_and_its_message_at_once(
    connect: Connect, owner: Connection, amendment: Fact, message_first: bool, sender: str
) -> None:
    """Also where they take each other for another person's: their conversations' locks do not meet then."""
    first, second = connect(), connect()
    # else it is the new Page that the second waits for
    call(first, "select convsync_api.add_page('1001')")
    message = told("one", 1, "m_1", sender)
    facts = [message, amendment] if message_first else [amendment, message]
    _, late = one_behind_the_other(
        owner, first, lambda: ingest(first, facts[0]), second, lambda: ingest(second, facts[1])
    )
    assert late.exception() is None
    [event] = events(owner)
    told_of = (event["unsent_at"] is not None, event["edited_text"], event["metadata"].get("reactions"))
    assert (
        told_of
        == {
            Unsend: (True, None, None),
            Edit: (False, "edited", None),
            Reaction: (False, None, [{"actor": ADA, "reaction": "love"}]),
        }[type(amendment)]
    )
    assert owner.execute("select from convsync.pending_amendments").fetchone() is None


def test_a_message_that_two_take_for_different_peoples(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: ingest(first, told("one", 1, "m_1", NOBODY)),
        second,
        lambda: ingest(second, told("one", 1, "m_1", ADA)),
    )
    assert late.exception() is None
    assert (conversation(owner, ADA)["message_count"], conversation(owner, NOBODY)["message_count"]) == (1, 0)


# --- a crowd


def population() -> dict[str, list[Fact]]:
    """Everything that is told of each message, by message: copies, edits, reactions, an unsend for some."""
    facts: dict[str, list[Fact]] = {}
    for number in range(400):
        sender, mid, seconds = f"20{number % 40:02}", f"m_{number:03}", 100 + number / 8
        at = START + timedelta(seconds=seconds)
        told_of: list[Fact] = [
            Message(PAGE, sender, mid, "in", at, f"text {number}", metadata={"webhook": {"n": number}}),
            Message(
                PAGE,
                sender,
                mid,
                "in",
                at.replace(microsecond=0),
                f"text {number}",
                metadata={"graph": {}},
                observed_at=at + timedelta(hours=1),
            ),
        ]
        if number % 3 == 0:
            told_of.append(Edit(PAGE, sender, mid, at + timedelta(hours=2), 1, f"edited {number}"))
        if number % 5 == 0:
            told_of.append(Reaction(PAGE, sender, mid, at + timedelta(hours=3), sender, "react", "love"))
        if number % 7 == 0:
            told_of.append(Unsend(PAGE, sender, mid, at + timedelta(seconds=30)))
        if number % 11 == 0:
            told_of.append(Thread(PAGE, sender, f"t_{sender}", at, {"name": f"Person {sender}"}))
        facts[mid] = told_of
    return facts


def test_a_crowd_telling_the_same_things_gets_in_nobodys_way(connect: Connect, owner: Connection) -> None:
    everything = [fact for told_of in population().values() for fact in told_of]
    connections = [connect() for _ in range(CROWD)]
    together = threading.Barrier(CROWD)

    def tell(number: int) -> list[Json]:
        chance = random.Random(number)  # noqa: S311
        mine = everything[number::CROWD]  # so that nothing is left untold, however short the time
        chance.shuffle(mine)
        connection, touched = connections[number], []
        together.wait(timeout=30)
        ends = time.monotonic() + SECONDS
        while mine or time.monotonic() < ends:
            batch = [mine.pop() for _ in range(min(2, len(mine)))]
            batch += chance.sample(everything, chance.randint(1, 8))
            chance.shuffle(batch)
            touched += ingest(connection, *batch, source=chance.choice(["webhook", "sync"]))
        return touched

    with ThreadPoolExecutor(CROWD) as threads:
        touched = [row for rows in threads.map(tell, range(CROWD)) for row in rows]

    assert all(row["conversation_id"] is not None for row in touched)
    created = Counter(row["sender_id"] for row in touched if row["created"])
    assert created == {f"20{number:02}": 1 for number in range(40)}
    assert len({(row["sender_id"], row["conversation_id"]) for row in touched}) == 40
    added = sum(row["events_added"] for row in touched)
    assert added == 400

    stored = {event["message_id"]: event for event in events(owner)}
    assert len(stored) == 400
    for number, event in enumerate(stored.values()):
        assert (event["deleted_at"] is not None) == (number % 7 == 0)
        assert event["body"] == (f"edited {number}" if number % 3 == 0 else f"text {number}")
        assert event["event_timestamp"] == START + timedelta(seconds=100 + number / 8)
        assert ("reactions" in event["metadata"]) == (number % 5 == 0)
    for number in range(40):
        mine = [n for n in range(number, 400, 40) if n % 7]
        row = conversation(owner, f"20{number:02}")
        assert (row["message_count"], row["last_message_id"]) == (len(mine), f"m_{mine[-1]:03}")
        # one entry of the feed for each version, so none was given twice and none left out
        versions = owner.execute(
            """select version from convsync.conversation_changes
               where conversation_id = %s order by version""",
            [row["conversation_id"]],
        ).fetchall()
        assert [each["version"] for each in versions] == list(range(1, row["version"] + 1))
    assert owner.execute("select from convsync.pending_amendments").fetchone() is None
    for connection in connections:
        connection.close()  # a session reports what it saw when it ends
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    assert call(owner, deadlocks) == {"deadlocks": 0}


# --- the retry of a delivery


def test_a_serialization_failure_rolls_back_all_and_the_retry_stores_all_once(
    connect: Connect, owner: Connection
) -> None:
    # A sequence is not rolled back: it remembers that the first attempt was made.
    owner.execute(
        """
        create schema fault;
        create sequence fault.attempts;
        grant usage on schema fault to public;
        grant usage on sequence fault.attempts to public;
        create function fault.once() returns trigger language plpgsql as $$
        begin
          if nextval('fault.attempts') = 1 then
            raise exception 'could not serialize access' using errcode = '40001';
          end if;
          return new;
        end
        $$;
        create trigger once before insert on convsync.contact_interaction_events
        for each row execute function fault.once();
        """
    )
    webhook = connect()
    delivery = [told("one", 1, "m_1"), Reaction(PAGE, "2002", "m_9", START, "2002", "react", "love")]
    with pytest.raises(psycopg.errors.SerializationFailure) as raised:
        ingest(webhook, *delivery)
    assert isinstance(from_database(raised.value), TryAgain)
    for table in ("messenger_conversations", "contact_interaction_events", "pending_amendments", "pages"):
        assert call(owner, f"select count(*) as n from convsync.{table}") == {"n": 0}, table  # noqa: S608

    assert [row["created"] for row in ingest(webhook, *delivery)] == [True, True]
    assert [event["message_id"] for event in events(owner)] == ["m_1"]
    assert conversation(owner)["message_count"] == 1
    assert [row["created"] for row in ingest(webhook, *delivery)] == [False, False]
    assert len(events(owner)) == 1


# --- people who edit a conversation


def patch(connection: Connection, conversation_id: int, version: int, change: Json) -> int:
    new: int = call(
        connection,
        "select convsync_api.update_conversation('1001', %(id)s, %(version)s, %(change)s) as version",
        id=conversation_id,
        version=version,
        change=Jsonb(change),
    )["version"]
    return new


def test_of_two_edits_of_one_version_exactly_one_is_refused(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    [row] = ingest(first, told("one", 1, "m_1"))
    number = row["conversation_id"]
    version, late = one_behind_the_other(
        owner,
        first,
        lambda: patch(first, number, 1, {"assignee": "kim"}),
        second,
        lambda: patch(second, number, 1, {"note": "call back"}),
    )
    assert version == 2
    error = late.exception()
    assert isinstance(error, psycopg.DatabaseError)
    assert (error.sqlstate, error.diag.message_detail) == ("ZC002", '{"actual": 2, "expected": 1}')
    now = conversation(owner)
    assert (now["assignee"], now["note"], now["version"]) == ("kim", None, 2)
    assert patch(second, number, 2, {"note": "call back"}) == 3


def test_an_edit_of_a_version_that_a_message_overtakes_is_refused(
    connect: Connect, owner: Connection
) -> None:
    first, second = connect(), connect()
    [row] = ingest(first, told("one", 1, "m_1"))
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: ingest(first, told("two", 2, "m_2")),
        second,
        lambda: patch(second, row["conversation_id"], 1, {"note": "no answer since"}),
    )
    assert getattr(late.exception(), "sqlstate", None) == "ZC002"


def test_many_editors_who_read_again_lose_no_edit(connect: Connect, owner: Connection) -> None:
    [row] = ingest(owner, told("one", 1, "m_1"))
    editors = [connect() for _ in range(4)]

    def add_tags(number: int) -> None:
        for count in range(5):
            done = False
            while not done:
                # what a caller of the function does: read, change, write by version, else again
                known = call(readers[number], "select version, tags from convsync.messenger_conversations")
                tags = [*known["tags"], f"{number}.{count}"]
                try:
                    patch(editors[number], row["conversation_id"], known["version"], {"tags": tags})
                    done = True
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "ZC002":
                        raise

    with ExitStack() as stack:
        readers = [
            stack.enter_context(
                psycopg.connect(
                    owner.info.dsn, password=owner.info.password, autocommit=True, row_factory=dict_row
                )
            )
            for _ in editors
        ]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(add_tags, range(4)))
    now = conversation(owner)
    assert now["tags"] == sorted(f"{number}.{count}" for number in range(4) for count in range(5))
    assert now["version"] == 21


# --- one run, one carrier

BEGIN: LiteralString = "select * from convsync_api.begin_sync('1001', 'full', p_lease_seconds => %(lease)s)"


def test_of_two_who_begin_a_sync_one_is_told_of_the_others(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    run, late = one_behind_the_other(
        owner, first, lambda: call(first, BEGIN, lease=15), second, lambda: call(second, BEGIN, lease=15)
    )
    error = late.exception()
    assert isinstance(error, psycopg.DatabaseError)
    assert (error.sqlstate, error.diag.message_detail) == ("ZC005", f'{{"run_id": "{run["run_id"]}"}}')
    assert call(owner, "select count(*) as n from convsync.sync_runs") == {"n": 1}


def test_a_lease_renewed_at_the_last_moment_is_not_taken_over(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    run = call(first, BEGIN, lease=0)
    renew: LiteralString = """
        select convsync_api.renew_sync_lease('1001', %(run_id)s, %(fence)s, 60)
    """
    _, late = one_behind_the_other(
        owner,
        first,
        lambda: call(first, renew, run_id=run["run_id"], fence=run["fence"]),
        second,
        lambda: call(second, BEGIN, lease=15),
    )
    assert getattr(late.exception(), "sqlstate", None) == "ZC005"


STATE = (
    "pages",
    "messenger_conversations",
    "contact_interaction_events",
    "pending_amendments",
    "conversation_changes",
    "dead_letters",
    "sync_runs",
    "sync_cursors",
    "sync_batches",
    "thread_proofs",
    "call_budgets",
)
FENCED: dict[str, LiteralString] = {
    "next_sync_work": "select * from convsync_api.next_sync_work('1001', %(run)s, %(fence)s)",
    "apply_sync_page": """
        select * from convsync_api.apply_sync_page('1001', %(run)s, %(fence)s, 'list', '', null, 'c_2', now(),
          %(facts)s, '[{"thread_id": "t_9", "sender_id": "2009", "read": "unread"}]')
    """,
    "apply_confirmation": """
        select convsync_api.apply_confirmation('1001', %(run)s, %(fence)s, 'confirm', 't_1', now(), true)""",
    "restart_sync_list": "select convsync_api.restart_sync_list('1001', %(run)s, %(fence)s, 'c_1')",
    "fail_sync_batch": """
        select convsync_api.fail_sync_batch('1001', %(run)s, %(fence)s, 'list', '', null, 3, '{}')
    """,
    "renew_sync_lease": "select convsync_api.renew_sync_lease('1001', %(run)s, %(fence)s)",
    "pause_sync": "select convsync_api.pause_sync('1001', %(run)s, %(fence)s, 'deadline')",
    "finish_sync": "select convsync_api.finish_sync('1001', %(run)s, %(fence)s)",
    "finish_sync as failed": "select convsync_api.finish_sync('1001', %(run)s, %(fence)s, 'token_invalid')",
    "cancel_sync": "select convsync_api.cancel_sync('1001', %(run)s, %(fence)s)",
    "acquire_call": "select * from convsync_api.acquire_call('1001', 'backfill', %(run)s, %(fence)s)",
}


def whole_state(owner: Connection) -> dict[str, list[Json]]:
    return {
        table: [row["row"] for row in owner.execute(f"select to_jsonb(t) as row from convsync.{table} as t")]  # noqa: S608
        for table in STATE
    }


@pytest.mark.parametrize("function", FENCED)
def test_who_lost_the_lease_changes_nothing(connect: Connect, owner: Connection, function: str) -> None:
    old, new = connect(), connect()
    call(old, "select convsync_api.add_page('1001')")
    ingest(old, told("one", 1, "m_1"))
    run = call(old, BEGIN, lease=0)
    values = {"run": run["run_id"], "fence": run["fence"], "facts": dump([told("two", 2, "m_2")])}
    taken = call(new, BEGIN, lease=60)
    assert (taken["run_id"], taken["resumed"], taken["fence"] > run["fence"]) == (run["run_id"], True, True)

    before = whole_state(owner)
    with pytest.raises(psycopg.DatabaseError) as raised:
        old.execute(FENCED[function], values)
    assert raised.value.sqlstate == "ZC004"
    assert whole_state(owner) == before
    # and who carries it now may
    new.execute("begin")
    if function == "finish_sync":
        with pytest.raises(psycopg.DatabaseError, match="open work"):
            new.execute(FENCED[function], {**values, "fence": taken["fence"]})
    else:
        new.execute(FENCED[function], {**values, "fence": taken["fence"]})
    new.execute("rollback")


def test_every_function_that_takes_a_fence_is_in_that_test(owner: Connection) -> None:
    rows = owner.execute(
        r"""select proname from pg_proc
            where pronamespace = 'convsync_api'::regnamespace and proname not like '\_%%'
              and 'p_fence' = any (proargnames) and 'p_run_id' = any (proargnames)"""
    ).fetchall()
    assert {row["proname"] for row in rows} == {name.partition(" ")[0] for name in FENCED}


def test_a_page_under_way_ends_before_its_run_is_taken_over(connect: Connect, owner: Connection) -> None:
    """The fence is checked with the run's row locked: no write slips in behind a take-over."""
    first, second = connect(), connect()
    call(first, "select convsync_api.add_page('1001')")
    run = call(first, BEGIN, lease=0)
    apply: LiteralString = """
        select * from convsync_api.apply_sync_page('1001', %(run)s, %(fence)s, 'list', '', null, 'c_2', now(),
          %(facts)s, p_lease_seconds => 0)
    """
    facts = dump([told("one", 1, "m_1")])
    applied, late = one_behind_the_other(
        owner,
        first,
        lambda: call(first, apply, run=run["run_id"], fence=run["fence"], facts=facts),
        second,
        lambda: call(second, BEGIN, lease=15),
    )
    assert applied["applied"]
    taken = late.result()
    assert (taken["run_id"], taken["resumed"]) == (run["run_id"], True)
    work = call(
        second,
        "select * from convsync_api.next_sync_work('1001', %(run)s, %(fence)s)",
        run=taken["run_id"],
        fence=taken["fence"],
    )
    assert work["last_cursor"] == "c_2"
