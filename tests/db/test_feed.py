"""The change feed: nothing is skipped, whatever order transactions begin and commit in."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
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

from convsync.facts import Absence, Edit, Fact, Gone, Json, Reaction, Thread, Unsend, Watermark


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
    # Another test's transaction on the same server may be older, for a moment.
    found = eventually(lambda: (row := lag())["blocking_pid"] == slow.info.backend_pid and row)
    assert (found["held_back"], found["blocking_application"]) == (2, "a slow report")
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
        (Absence(PAGE, ADA, "m_1", at(5)), ["absence"]),
        (Gone(PAGE, ADA, at(5)), ["gone"]),
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
    for _ in range(2):
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


def refused_position(service: Connection, position: str) -> None:
    """Nobody may read from there, and no consumer can stand there."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        changes(service, position)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "after")
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.set_feed_position('crm', %s)", [position])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "position")


def taken_position(service: Connection, position: str) -> list[Json]:
    """What is read from there, by request and by a consumer that stands there."""
    service.execute("select convsync_api.set_feed_position('crm', %s)", [position])
    assert call(service, "select convsync_api.feed_position('crm')") == position
    return changes(service, position)


def test_a_place_that_the_feed_has_not_reached_is_refused(service: Connection) -> None:
    """It would be answered with nothing, for ever, and pass for a reader that has read everything."""
    ingest(service, told("m_1"))
    [known] = all_changes(service, 1)
    epoch, xid, change = order(known["position"])
    next_xid = int(call(service, "select pg_snapshot_xmax(pg_current_snapshot())::text"))
    beyond = f"{epoch}-{next_xid + 1000}-1"
    for position in ("999999999-1-1", f"{epoch + 1}-1-1", beyond, f"{epoch}-{2**63}-1"):
        refused_position(service, position)
    assert call(service, "select convsync_api.feed_position('crm')") is None
    # what was there once, or could have been
    for position in (f"{epoch}-{xid}-{change}", f"{epoch}-{next_xid - 1}-999999999"):
        assert taken_position(service, position) == []
    for position in ("0-0-0", f"{epoch}-1-1", f"{epoch}-{xid}-0"):
        assert taken_position(service, position) == [known]


def test_every_place_that_was_told_is_taken_at_once(connect: Connect, service: Connection) -> None:
    """Also while transactions are open that have the numbers about it."""
    open_one = connect("an open one")
    ingest(service, told("m_1"))
    open_one.execute("begin")
    open_one.execute("select pg_current_xact_id()")
    [known] = all_changes(service, 1)
    assert taken_position(service, known["position"]) == []
    open_one.execute("commit")
    for number in range(20):
        ingest(service, told(f"m_more_{number}", number))
        newest = changes(service)[-1]["position"]
        # A transaction in another database of the server may have held some back until now.
        assert all(order(row["position"]) > order(newest) for row in changes(service, newest))


def test_places_of_an_older_epoch_stay_good_and_those_of_a_later_one_are_none(
    service: Connection, owner: Connection
) -> None:
    ingest(service, told("m_1"))
    all_changes(service, 1)
    wake_up_elsewhere(owner, 1_000_000)
    [row] = rows(owner, "select epoch, xid::text, change_id from convsync.conversation_changes")
    position = f"{row['epoch']}-{row['xid']}-{row['change_id']}"
    # between the restore and the start of the service, and after it
    assert taken_position(service, position) == []
    refused_position(service, f"{row['epoch'] + 1}-1-1")
    assert call(service, "select convsync_api.begin_feed_epoch()") == 2
    ingest(service, told("m_2", 1))
    assert eventually(lambda: taken_position(service, position))
    refused_position(service, "3-1-1")
    refused_position(service, f"2-{row['xid']}-1")


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


# --- retention

DAY = 86_400


def stand_at(connection: Connection, days: float) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [at(days * DAY).isoformat()])


def expire(connection: Connection, days: int | None = 30, **more: int | None) -> int:
    gone: int = call(
        connection,
        """select convsync_api.expire_changes(p_days => %(days)s, p_unread_days => %(unread)s,
           p_limit => %(limit)s)""",
        **{"days": days, "unread": None, "limit": 10_000, **more},
    )
    return gone


def refusal(connection: Connection, after: str, **more: Any) -> Json:
    """The detail of the ZC006 with which a position is refused."""
    with pytest.raises(psycopg.DatabaseError) as caught:
        changes(connection, after, **more)
    assert caught.value.sqlstate == "ZC006"
    assert "Read the mirror again" in (caught.value.diag.message_hint or "")
    detail: Json = orjson.loads(caught.value.diag.message_detail or "")
    assert set(detail) == {"position"}
    return detail


def ten_days(connection: Connection) -> list[str]:
    """A change a day, of two Pages in turn; the positions. The clock then stands an hour before day 35."""
    for day in range(10):
        stand_at(connection, day)
        ingest(connection, told(f"m_{day}", day, page=(PAGE, OTHER_PAGE)[day % 2]))
    found = [row["position"] for row in all_changes(connection, 10)]
    stand_at(connection, 35 - 1 / 24)
    return found


@pytest.mark.parametrize("expired", range(11))
def test_a_reader_is_told_if_and_only_if_it_has_missed_something(service: Connection, expired: int) -> None:
    """Whatever position of whichever reader: it gets all that came after it, or it is refused."""
    whole = ten_days(service)
    readers = (None, [PAGE], [OTHER_PAGE], [PAGE, OTHER_PAGE], ["nobody's"], [])
    known = [changes(service, pages=pages) for pages in readers]
    stand_at(service, 365)
    if expired:
        assert expire(service, limit=expired) == expired
    gone = set(whole[:expired])
    for pages, feed in zip(readers, known, strict=True):
        assert changes(service, pages=pages) == [row for row in feed if row["position"] not in gone]
        for position in ["0-0-0", *whole]:
            after = [row for row in feed if order(row["position"]) > order(position)]
            if any(row["position"] in gone for row in after):
                assert refusal(service, position, pages=pages) == {"position": whole[-1]}
            else:
                assert changes(service, position, pages=pages) == after


def test_what_is_old_enough_goes_and_where_it_ended_is_a_good_position(service: Connection) -> None:
    whole = ten_days(service)
    assert expire(service, 30) == 5, "those of the days 0 to 4 are older than 30 days"
    assert expire(service, 30) == 0
    assert [row["position"] for row in changes(service)] == whole[5:]
    assert [row["position"] for row in changes(service, whole[4])] == whole[5:]
    refusal(service, whole[3])
    stand_at(service, 100)
    assert expire(service, 30) == 5
    # one who had read everything has missed nothing
    assert changes(service, whole[-1]) == changes(service) == []
    assert refusal(service, whole[-2]) == {"position": whole[-1]}


def test_who_was_told_goes_on_without_a_gap(connect: Connect, service: Connection) -> None:
    """The position is of before the mirror is read: what commits in between comes again."""
    [first, *_] = ten_days(service)
    expire(service, 30)
    slow = connect("a slow writer")
    slow.execute("begin")
    ingest(slow, told("m_slow", 1))
    ingest(service, told("m_b", 1, sender=BOB))
    position = refusal(service, first)["position"]
    assert changes(service, position) == [], "held back behind the slow writer"
    slow.execute("commit")
    found = eventually(lambda: f if len(f := changes(service, position)) == 2 else [])
    assert [row["version"] for row in found] == [6, 1]


def test_it_goes_in_parts_and_in_the_order_in_which_it_is_read(service: Connection) -> None:
    whole = ten_days(service)
    stand_at(service, 365)
    for left in (7, 4, 1, 0):
        assert expire(service, limit=3) == min(3, left + 3 if left else 1)
        assert [row["position"] for row in changes(service)] == whole[10 - left :]
    assert expire(service, limit=3) == 0


def test_a_young_change_keeps_the_older_ones_that_come_after_it(service: Connection) -> None:
    """Clocks and transaction numbers need not agree, and the feed has no holes."""
    for days, mid in ((0, "m_1"), (34, "m_young"), (1, "m_old")):
        stand_at(service, days)
        ingest(service, told(mid))
    whole = [row["position"] for row in all_changes(service, 3)]
    stand_at(service, 35)
    assert expire(service, 30) == 1
    assert [row["position"] for row in changes(service)] == whole[1:]
    stand_at(service, 70)
    assert expire(service, 30) == 2


def test_what_a_named_consumer_has_not_read_stays_for_a_while(service: Connection) -> None:
    whole = ten_days(service)
    for consumer, position in (("ahead", whole[8]), ("behind", whole[2])):
        service.execute("select convsync_api.set_feed_position(%s, %s)", [consumer, position])
    assert expire(service, 30) == 3, "up to where the one that is behind has come"
    assert [row["position"] for row in changes(service, whole[2])] == whole[3:]
    assert expire(service, 30) == 0
    service.execute("select convsync_api.set_feed_position('behind', %s)", [whole[3]])
    assert expire(service, 30) == 1
    # but not for ever: it will be told
    stand_at(service, 95)
    assert expire(service, 30, unread=96) == 0
    assert expire(service, 30) == 1, "those up to day 4 are older than 90 days"
    assert expire(service, 30, unread=30) == 5
    refusal(service, call(service, "select convsync_api.feed_position('behind')"))


def test_what_is_held_back_from_its_readers_stays(connect: Connect, service: Connection) -> None:
    whole = ten_days(service)
    slow = connect("a slow report")
    slow.execute("begin")
    slow.execute("select pg_current_xact_id()")
    stand_at(service, 0)
    ingest(service, told("m_late", 1, sender=BOB))
    stand_at(service, 365)
    assert expire(service) == len(whole)
    assert changes(service, whole[-1]) == []
    slow.execute("rollback")
    assert len(eventually(lambda: changes(service, whole[-1]))) == 1
    assert expire(service) == 1


def test_what_another_cluster_left_goes_first(service: Connection, owner: Connection) -> None:
    whole = ten_days(service)
    wake_up_elsewhere(owner, 1_000_000)
    call(service, "select convsync_api.begin_feed_epoch()")
    ingest(service, told("m_new", 10))
    [*old, new] = [row["position"] for row in all_changes(service, 11)]
    assert len(old) == len(whole)
    assert expire(service, 30) == 5
    assert refusal(service, old[3]) == {"position": new}
    assert [row["position"] for row in changes(service, old[4])] == [*old[5:], new]
    stand_at(service, 365)
    assert expire(service) == 6
    assert changes(service, new) == []
    refusal(service, old[-1])


def test_two_who_expire_at_once(connect: Connect, service: Connection) -> None:
    ten_days(service)
    busy = connect()
    stand_at(busy, 35)
    busy.execute("begin")
    assert expire(busy) == 5
    assert expire(service) == 0
    busy.execute("commit")


@pytest.mark.parametrize(
    ("days", "unread", "hint"),
    [(0, None, "p_days"), (None, None, "p_days"), (40_000, None, "p_days"), (30, 29, "p_unread_days")],
)
def test_a_retention_is_a_number_of_days(
    service: Connection, days: int | None, unread: int | None, hint: str
) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        expire(service, days, unread=unread)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", hint)


def test_a_reader_among_writers_and_a_janitor_misses_nothing_unless_it_is_told(
    connect: Connect, service: Connection
) -> None:
    """Changes go as soon as they can be read; a reader that is told begins anew from where it is told to."""
    writers, rounds = 3, 30
    ingest(service, *(told(f"m_{n}", sender=f"20{n:02}") for n in range(writers)))
    newest: dict[int, int] = {}
    done = threading.Event()

    def write(number: int) -> None:
        chance, connection = random.Random(number), connect(f"writer {number}")  # noqa: S311
        for turn in range(rounds):
            connection.execute("begin")
            ingest(connection, told(f"m_{number}_{turn}", turn, sender=f"20{number:02}"))
            connection.execute("select pg_sleep(%s)", [chance.choice([0, 0.005, 0.02])])
            connection.execute("commit")

    def tidy() -> None:
        chance, connection = random.Random(99), connect("janitor")  # noqa: S311
        stand_at(connection, 100_000)
        while not done.is_set():
            expire(connection, limit=chance.randint(1, 5))

    def read() -> int:
        connection, last, times_told = connect("reader"), "0-0-0", 0
        while True:
            over = done.is_set()
            try:
                found = changes(connection, last, limit=2)
            except psycopg.DatabaseError as error:
                assert error.sqlstate == "ZC006"  # noqa: PT017
                times_told += 1
                further = orjson.loads(error.diag.message_detail or "")["position"]
                assert order(further) > order(last)
                last = further
                mirror = rows(connection, "select convsync_api.list_conversations('1001') d")[0]["d"]
                found = [
                    {"conversation_id": int(one["conversation_id"]), "version": one["version"]}
                    for one in mirror["conversations"]
                ]
            else:
                last = found[-1]["position"] if found else last
            for row in found:
                known = newest.get(row["conversation_id"], 0)
                newest[row["conversation_id"]] = max(known, row["version"])
            if over and not found:
                return times_told

    with ThreadPoolExecutor(writers + 2) as threads:
        reading, tidying = threads.submit(read), threads.submit(tidy)
        try:
            list(threads.map(write, range(writers)))
        finally:
            # the last changes can be read once nobody holds them back
            eventually(lambda: not rows(service, "select * from convsync_api.feed_lag()")[0]["held_back"])
            done.set()
        tidying.result(timeout=60)
        assert reading.result(timeout=60) > 0
    assert list(newest.values()) == [rounds + 1] * writers
