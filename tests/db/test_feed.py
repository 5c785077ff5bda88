"""The change feed: nothing is skipped, whatever order transactions begin and commit in."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sessions import (
    ADA,
    BOB,
    OTHER_PAGE,
    PAGE,
    Connect,
    Connection,
    at,
    call,
    eventually,
    ingest,
    rows,
    told,
)

from convsync.facts import Edit, Fact, Json, Reaction, Thread, Unsend, Watermark


def changes(connection: Connection, after: str | None = None, **more: Any) -> list[Json]:
    return rows(
        connection,
        """select next_after as position, page_id, conversation_id, version, kinds, at
           from convsync_api.changes_after(p_after => %(after)s, p_limit => %(limit)s,
           p_pages => %(pages)s)""",
        **{"after": after, "limit": 1000, "pages": None, **more},
    )


def order(position: str) -> tuple[int, ...]:
    """What the tests, and nobody else, know of a position."""
    return tuple(int(part) for part in position.split("-"))


def all_changes(connection: Connection, number: int) -> list[Json]:
    """The feed from its beginning, once that many are to be had: autovacuum may hold it back for a moment."""
    return eventually(lambda: found if len(found := changes(connection)) >= number else [])


@pytest.fixture
def page(service: Connection) -> str:
    """A Page with a conversation each of two people, so that nobody waits for what is new."""
    ingest(service, told("m_a0"), told("m_b0", sender=BOB))
    all_changes(service, 2)
    return PAGE


# --- in which order transactions end


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("higher_first", [True, False])
def test_whoever_commits_first_nothing_is_skipped(
    connect: Connect, service: Connection, higher_first: bool
) -> None:
    lower, higher = connect("the lower"), connect("the higher")
    start = changes(service)[-1]["position"]
    lower.execute("begin")
    ingest(lower, told("m_a1", 1))
    higher.execute("begin")
    ingest(higher, told("m_b1", 1, sender=BOB))
    assert changes(service, start) == []

    first, second = (higher, lower) if higher_first else (lower, higher)
    first.execute("commit")
    if higher_first:
        # it is committed, and yet nobody may see it: the lower one would come before it
        assert changes(service, start) == []
        seen: list[Json] = []
    else:
        seen = eventually(lambda: changes(service, start))
        assert len(seen) == 1
    second.execute("commit")
    position = seen[-1]["position"] if seen else start
    seen += eventually(lambda: f if len(seen) + len(f := changes(service, position)) == 2 else [])
    assert [row["kinds"] for row in seen] == [["message"], ["message"]]
    assert [row["conversation_id"] for row in seen] == [
        row["conversation_id"] for row in changes(service)[:2]
    ]
    assert changes(service, seen[-1]["position"]) == []


@pytest.mark.usefixtures("page")
def test_the_lag_names_who_holds_the_feed_back(connect: Connect, service: Connection) -> None:
    def lag() -> Json:
        [row] = rows(service, "select * from convsync_api.feed_lag()")
        return row

    slow = connect("a slow report")
    slow.execute("begin")
    ingest(slow, told("m_a1", 1))
    eventually(lambda: lag()["held_back"] == 0)
    ingest(service, told("m_b1", 1, sender=BOB))
    ingest(service, told("m_b2", 2, sender=BOB))
    found = lag()
    assert found["held_back"] == 2
    assert (found["blocking_pid"], found["blocking_application"]) == (
        slow.info.backend_pid,
        "a slow report",
    )
    assert found["blocking_since"] is not None
    assert found["held_since"] is not None
    slow.execute("rollback")
    assert eventually(lambda: not (row := lag())["held_back"] and row) == {
        "held_back": 0,
        "held_since": None,
        "blocking_pid": None,
        "blocking_application": None,
        "blocking_since": None,
    }


def test_a_reader_among_writers_misses_nothing_and_never_goes_back(
    connect: Connect, service: Connection, owner: Connection
) -> None:
    """Writers whose transactions overlap in any way, and a reader that polls all the while."""
    writers, rounds = 5, 40
    ingest(service, *(told(f"m_{n}", sender=f"20{n:02}") for n in range(writers)))
    start = all_changes(service, writers)[-1]["position"]
    done = threading.Event()

    def write(number: int) -> None:
        chance = random.Random(number)  # noqa: S311
        connection = connect(f"writer {number}")
        for turn in range(rounds):
            connection.execute("begin")
            for part in range(chance.randint(1, 2)):
                ingest(connection, told(f"m_{number}_{turn}_{part}", turn, sender=f"20{number:02}"))
                connection.execute("select pg_sleep(%s)", [chance.choice([0, 0, 0.005, 0.02])])
            connection.execute("rollback" if chance.random() < 0.1 else "commit")

    def read() -> list[str]:
        connection, seen, last = connect("reader"), list[str](), start
        while True:
            over = done.is_set()
            found = [row["position"] for row in changes(connection, last, limit=3)]
            seen += found
            last = found[-1] if found else last
            if over and not found and len(seen) >= len(written()):
                return seen

    def written() -> list[Json]:
        return rows(
            owner,
            """select epoch, xid, change_id from convsync.conversation_changes
               where (epoch, xid, change_id) > (%(epoch)s, %(xid)s::xid8, %(id)s) order by 1, 2, 3""",
            **dict(zip(("epoch", "xid", "id"), map(str, order(start)), strict=True)),
        )

    with ThreadPoolExecutor(writers + 1) as threads:
        reading = threads.submit(read)
        try:
            list(threads.map(write, range(writers)))
        finally:
            done.set()
        seen = [order(position) for position in reading.result(timeout=60)]
    assert seen == sorted(set(seen))
    assert seen == [(row["epoch"], int(row["xid"]), row["change_id"]) for row in written()]


# --- what is in it


def test_a_transaction_of_several_calls_is_one_row_per_conversation(service: Connection) -> None:
    ingest(service, told("m_1"))
    start = all_changes(service, 1)[-1]
    with service.transaction():
        ingest(service, told("m_2", 1), told("m_b", sender=BOB))
        ingest(service, Edit(PAGE, ADA, "m_2", at(2), 1, "changed"))
        version = call(
            service,
            """select convsync_api.update_conversation('1001', %(id)s, %(version)s, '{"note": "call"}')""",
            id=start["conversation_id"],
            version=start["version"] + 1,
        )
    ada, bob = all_changes(service, 3)[1:]
    assert (ada["conversation_id"], ada["version"]) == (start["conversation_id"], version)
    assert version == start["version"] + 1
    assert ada["kinds"] == ["edit", "edit_by_person", "message"]
    assert (bob["page_id"], bob["version"], bob["kinds"]) == (PAGE, 1, ["message"])


@pytest.mark.parametrize(
    ("fact", "kinds"),
    [
        (told("m_2", 5), ["message"]),
        (Edit(PAGE, ADA, "m_1", at(5), 1, "changed"), ["edit"]),
        (Reaction(PAGE, ADA, "m_1", at(5), ADA, "react", "love"), ["reaction"]),
        (Unsend(PAGE, ADA, "m_1", at(5)), ["unsend"]),
        (Watermark(PAGE, ADA, "read", at(5)), ["receipt"]),
        (Thread(PAGE, ADA, "t_1", at(5), {"name": "Ada"}), ["thread"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_the_kinds_say_what_changed(service: Connection, fact: Fact, kinds: list[str]) -> None:
    ingest(service, told("m_1"))
    ingest(service, fact)
    assert [row["kinds"] for row in all_changes(service, 2)] == [["message"], kinds]
    ingest(service, fact)
    assert len(changes(service)) == 2, "a repetition changes nothing"


def test_erasing_and_purging_are_changes(service: Connection) -> None:
    ingest(service, told("m_1"), told("m_b", sender=BOB))
    call(service, "select convsync_api.erase_contact('1001', '2001')")
    call(service, "select convsync_api.purge_events('1001', '2025-06-01T00:00:00Z')")
    assert [row["kinds"] for row in all_changes(service, 4)[2:]] == [["erased"], ["purged"]]


def test_only_the_pages_that_were_asked_for(service: Connection) -> None:
    ingest(service, told("m_1"), told("m_2", page=OTHER_PAGE))
    ingest(service, told("m_3", 1))
    found = all_changes(service, 3)
    assert [row["page_id"] for row in changes(service, pages=[OTHER_PAGE])] == [OTHER_PAGE]
    assert changes(service, pages=["nobody's"]) == []
    assert changes(service, pages=[]) == []
    assert changes(service, pages=[PAGE, OTHER_PAGE]) == found


def test_it_is_read_in_parts(service: Connection) -> None:
    for number in range(7):
        ingest(service, told(f"m_{number}", number))
    whole = all_changes(service, 7)
    parts: list[Json] = []
    while part := changes(service, parts[-1]["position"] if parts else None, limit=3):
        parts += part
    assert parts == whole
    assert len(changes(service, limit=0)) == 1
    assert changes(service, "") == whole


# --- positions


@pytest.mark.parametrize(
    "position",
    ["x", "1", "1-2", "1-2-3-4", "-1-2-3", "1-2-3\n", " 1-2-3", "1-٣-4", "1-2-1234567890123456789",
     "1-99999999999999999999-1", "1234567890-1-1", "1-2-3'; --"],
)  # fmt: skip
def test_what_is_no_position_is_refused(service: Connection, position: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        changes(service, position)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "after")
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.set_feed_position('crm', %s)", [position])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "position")


def test_a_named_consumer_goes_on_where_it_said(service: Connection) -> None:
    def stands(consumer: str) -> Any:
        return call(service, "select convsync_api.feed_position(%(c)s)", c=consumer)

    for number in range(3):
        ingest(service, told(f"m_{number}", number))
    found = all_changes(service, 3)
    assert stands("crm") is None
    for row in found[:2]:
        service.execute("select convsync_api.set_feed_position('crm', %s)", [row["position"]])
    assert stands("crm") == found[1]["position"]
    assert stands("CRM") is None
    assert changes(service, stands("crm")) == found[2:]
    # it may go back, to do its work once more
    service.execute("select convsync_api.set_feed_position('crm', %s)", [found[0]["position"]])
    assert changes(service, stands("crm")) == found[1:]


@pytest.mark.parametrize("consumer", ["", None, "x" * 201])
def test_a_consumer_has_a_name(service: Connection, consumer: str | None) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.set_feed_position(%s, '1-2-3')", [consumer])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "consumer")


# --- another cluster


def wake_up_elsewhere(owner: Connection, ahead: int) -> None:
    """As after a restore from a dump: another cluster, whose transactions count from lower."""
    owner.execute("update convsync.feed_epochs set cluster = '1/1'")
    owner.execute(
        "update convsync.conversation_changes set xid = (xid::text::bigint + %s)::text::xid8", [ahead]
    )
    owner.execute(
        """update convsync.messenger_conversations
           set version_xid = (version_xid::text::bigint + %s)::text::xid8""",
        [ahead],
    )


def test_an_epoch_begins_once_in_another_cluster(service: Connection, owner: Connection) -> None:
    assert call(service, "select convsync_api.begin_feed_epoch()") == 1
    for number in range(3):
        ingest(service, told(f"m_{number}", number))
    old = [row["version"] for row in all_changes(service, 3)]
    wake_up_elsewhere(owner, 1_000_000)
    moved = call(service, "select count(*) from convsync_api.changes_after(null)")
    assert moved == 0, "the test has no xids of the future"
    assert call(service, "select convsync_api.begin_feed_epoch()") == 2
    assert call(service, "select convsync_api.begin_feed_epoch()") == 2

    ingest(service, told("m_new", 10))
    found = all_changes(service, 4)
    assert [row["version"] for row in found] == [*old, 4]
    positions = [order(row["position"]) for row in found]
    assert [position[0] for position in positions] == [1, 1, 1, 2]
    assert positions == sorted(positions)
    assert positions[3][1] < positions[2][1], "the new xid is lower, and yet it comes later"
    # a consumer goes on from a position of before
    assert changes(service, found[1]["position"]) == found[2:]
    assert changes(service, found[2]["position"]) == found[3:]
    [lag] = rows(service, "select * from convsync_api.feed_lag()")
    assert lag["held_back"] == 0


def test_a_transaction_number_that_comes_again_is_another_transaction(
    service: Connection, owner: Connection
) -> None:
    """The next transaction has the very number under which a restored change is written."""
    ingest(service, told("m_1"))
    wake_up_elsewhere(owner, 0)
    assert call(service, "select convsync_api.begin_feed_epoch()") == 2
    with service.transaction():
        xid = call(service, "select pg_current_xact_id()::text")
        owner.execute("update convsync.conversation_changes set xid = %s::xid8 where epoch = 1", [xid])
        ingest(service, told("m_2", 1))
    found = all_changes(service, 2)
    assert [(order(row["position"])[:2], row["version"]) for row in found] == [
        ((1, int(xid)), 1),
        ((2, int(xid)), 2),
    ]


def test_numbers_that_a_restore_brought_do_not_pass_for_the_present_one(
    service: Connection, owner: Connection
) -> None:
    ingest(service, told("m_1"))
    wake_up_elsewhere(owner, 1_000_000)
    call(service, "select convsync_api.begin_feed_epoch()")
    query = "select version_xid from convsync.messenger_conversations"
    assert rows(owner, query) == [{"version_xid": None}]
