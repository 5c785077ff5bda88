"""Runs of the sync over several connections, and the call budget they share.

The state machine step by step, within one session, is in ``tests/sql/sync_runs.sql`` and
``call_budget.sql``; here is what needs more than one session, or the service's view of a whole run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeAlias

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from convsync.facts import Fact, Json, Message, Thread, dump

PAGE = "1001"
START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)

Connection: TypeAlias = psycopg.Connection[Any]
Connect: TypeAlias = Callable[[], Connection]


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


@pytest.fixture
def service(connect: Connect) -> Connection:
    connection = connect()
    call(connection, r"select convsync_api.add_page('1001', p_token_sealed => '\x01', p_token_key_id => 'k')")
    return connection


def call(connection: Connection, query: LiteralString, **values: Any) -> Json:
    row: Json | None = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def at(connection: Connection, seconds: float) -> datetime:
    """Set the clock of a session, in seconds after START."""
    now = START + timedelta(seconds=seconds)
    connection.execute("select set_config('convsync.now', %s, false)", [now.isoformat()])
    return now


class Run:
    """One run, carried by one connection."""

    def __init__(
        self, connection: Connection, *, mode: str = "full", lease: float = 15, restart: bool = False
    ) -> None:
        self.connection = connection
        row = call(
            connection,
            """select * from convsync_api.begin_sync('1001', %(mode)s, p_lease_seconds => %(lease)s,
                 p_restart => %(restart)s)""",
            mode=mode,
            lease=lease,
            restart=restart,
        )
        self.run_id, self.fence, self.resumed = row["run_id"], row["fence"], row["resumed"]

    @property
    def key(self) -> Json:
        return {"run": self.run_id, "fence": self.fence}

    def work(self) -> list[tuple[str, str, str | None]]:
        rows = self.connection.execute(
            "select * from convsync_api.next_sync_work('1001', %(run)s, %(fence)s, 100)", self.key
        ).fetchall()
        return [(row["kind"], row["thread_id"], row["last_cursor"]) for row in rows]

    def apply(
        self,
        cursor: str | None,
        following: str | None,
        *people: tuple[str, str],
        thread: str | None = None,
        facts: Sequence[Fact] = (),
        updated: datetime = START - timedelta(days=1),
        walk_pass: int | None = None,
    ) -> Json:
        """Apply a page of the list with these (sender, read) on it, or of a thread."""
        threads = [
            {
                "thread_id": f"t_{sender}",
                "sender_id": sender,
                "updated_time": updated.isoformat(),
                "message_count": 2,
                "newest_id": f"m_{sender}",
                "read": read,
                "next_cursor": "n_1" if read == "more" else None,
            }
            for sender, read in people
        ]
        told: list[Fact] = [
            Thread(PAGE, sender, f"t_{sender}", START, {"name": f"Person {sender}"}) for sender, _ in people
        ]
        told += [
            Message(PAGE, sender, f"m_{sender}", "in", updated, "hello", observed_at=START)
            for sender, read in people
            if read != "unread"
        ]
        return call(
            self.connection,
            """select * from convsync_api.apply_sync_page('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s,
                 %(cursor)s, %(following)s, now(), %(facts)s, %(threads)s,
                 p_walk_pass => %(walk_pass)s)""",
            **self.key,
            kind="list" if thread is None else "thread",
            thread=thread or "",
            cursor=cursor,
            following=following,
            facts=dump([*told, *facts]),
            threads=Jsonb(threads),
            walk_pass=walk_pass,
        )

    def fail(self, cursor: str | None, thread: str | None = None) -> None:
        call(
            self.connection,
            """select convsync_api.fail_sync_batch('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s,
                 %(cursor)s, 3, '{"class": "transient"}')""",
            **self.key,
            kind="list" if thread is None else "thread",
            thread=thread,
            cursor=cursor,
        )

    def finish(self) -> str:
        status: str = call(
            self.connection,
            "select convsync_api.finish_sync('1001', %(run)s, %(fence)s) as status",
            **self.key,
        )["status"]
        return status

    def document(self) -> Json:
        document: Json = call(
            self.connection, "select convsync_api.get_sync_run(%(run)s) as run", **self.key
        )["run"]
        return document


# --- carried by one process after the other


def test_another_process_goes_on_at_the_saved_cursors_once_the_lease_has_expired(
    connect: Connect, service: Connection
) -> None:
    at(service, 0)
    first = Run(service)
    first.apply(None, "c_1", ("2001", "complete"), ("2002", "more"))
    other = connect()
    at(other, 14)
    with pytest.raises(psycopg.DatabaseError) as raised:
        Run(other)
    assert raised.value.sqlstate == "ZC005"
    assert call(other, "select count(*) as n from convsync_api.resumable_syncs()") == {"n": 0}
    at(other, 15)
    assert call(other, "select * from convsync_api.resumable_syncs()") == {
        "page_id": PAGE,
        "mode": "full",
        "run_id": first.run_id,
    }
    second = Run(other)
    assert (second.run_id, second.resumed) == (first.run_id, True)
    assert second.fence > first.fence
    assert second.work() == [("thread", "t_2002", "n_1"), ("list", "", "c_1")]
    assert call(other, "select count(*) as n from convsync_api.resumable_syncs()") == {"n": 0}


def test_a_paused_run_goes_on_and_a_restart_begins_anew(connect: Connect, service: Connection) -> None:
    at(service, 0)
    first = Run(service)
    first.apply(None, "c_1", ("2001", "complete"))
    call(
        service,
        "select convsync_api.pause_sync('1001', %(run)s, %(fence)s, 'deadline', 60)",
        **first.key,
    )
    at(service, 59)
    assert call(service, "select count(*) as n from convsync_api.resumable_syncs()") == {"n": 0}
    at(service, 60)
    assert call(service, "select count(*) as n from convsync_api.resumable_syncs()") == {"n": 1}
    second = Run(connect())
    assert (second.run_id, second.work()) == (first.run_id, [("list", "", "c_1")])
    call(
        service,
        "select convsync_api.pause_sync('1001', %(run)s, %(fence)s, 'deadline')",
        **second.key,
    )
    third = Run(service, restart=True)
    assert (third.run_id != first.run_id, third.resumed, third.work()) == (True, False, [("list", "", None)])
    assert second.document()["status"] == "cancelled"


def test_a_page_applied_twice_by_two_connections_counts_once(connect: Connect, service: Connection) -> None:
    """The answer to the first commit was lost: the caller comes again, on another connection."""
    run = Run(service)
    assert run.apply(None, "c_1", ("2001", "more"))["applied"]
    document = run.document()
    run.connection = connect()
    assert run.apply(None, "c_1", ("2001", "more")) == {
        "applied": False,
        "conversations_changed": 0,
        "messages_added": 0,
        "open_work": 2,
    }
    assert run.document() == document


def test_the_only_page_of_a_list_applied_twice_is_not_its_second_pass(service: Connection) -> None:
    run = Run(service)
    assert run.apply(None, None, ("2001", "complete"), walk_pass=1)["applied"]
    assert not run.apply(None, None, ("2001", "complete"), walk_pass=1)["applied"]
    assert run.work() == [("list", "", None)]
    with pytest.raises(psycopg.DatabaseError, match="open work"):
        run.finish()


# --- what is read next


def test_only_threads_with_more_to_read_become_work(service: Connection) -> None:
    run = Run(service)
    run.apply(None, "c_1", ("2001", "complete"), ("2002", "more"), ("2003", "unread"))
    assert run.work() == [("thread", "t_2002", "n_1"), ("thread", "t_2003", None), ("list", "", "c_1")]
    run.apply("n_1", "n_2", thread="t_2002")
    run.apply(None, None, thread="t_2003")
    assert run.work() == [("thread", "t_2002", "n_2"), ("list", "", "c_1")]
    run.apply("n_2", None, thread="t_2002")
    assert run.work() == [("list", "", "c_1")]


def test_the_list_ends_after_a_second_pass_that_finds_nothing_new(service: Connection) -> None:
    run = Run(service)
    run.apply(None, "c_1", ("2001", "complete"))
    run.apply("c_1", None, ("2002", "complete"))
    assert run.work() == [("list", "", None)], "the front again"
    run.apply(None, "c_1", ("2001", "complete"))
    assert run.work() == [], "a whole page is older than the walk"
    assert run.finish() == "succeeded"


def test_a_conversation_that_jumped_ahead_of_the_cursor_is_found(service: Connection) -> None:
    at(service, 0)
    run = Run(service)
    run.apply(None, "c_1", ("2001", "complete"))
    # 2003 was to come on this page; a new message made it the first of the list
    run.apply("c_1", None, ("2002", "complete"))
    moved = START + timedelta(seconds=5)
    at(service, 10)
    old = Message(PAGE, "2003", "m_old", "in", START - timedelta(days=1), "long ago", observed_at=START)
    run.apply(None, "c_1", ("2003", "complete"), updated=moved, facts=[old])
    assert run.work() == [("list", "", "c_1")], "this page is newer than the walk: there may be more"
    run.apply("c_1", "c_2", ("2001", "complete"))
    assert run.work() == [("list", "", None)], "somebody had been missed: a third pass"
    run.apply(None, "c_1", ("2003", "complete"), updated=moved)
    run.apply("c_1", "c_2", ("2001", "complete"))
    assert run.work() == []
    assert run.finish() == "succeeded"
    document = run.document()
    assert (document["messages_added"], document["conversations_seen"]) == (4, 3)


def test_what_is_written_during_the_walk_is_no_reason_to_walk_on(service: Connection) -> None:
    at(service, 0)
    run = Run(service)
    run.apply(None, None, ("2001", "complete"))
    at(service, 10)
    run.apply(None, "c_1", ("2001", "complete"), ("2002", "complete"), updated=START + timedelta(seconds=5))
    run.apply("c_1", None, ("2003", "complete"))
    assert run.work() == [("list", "", None)], "2003 had been missed"
    run.apply(None, None, ("2004", "complete"), updated=START + timedelta(seconds=12))
    assert run.work() == [], "2004 is new"
    assert run.document()["messages_added"] == 4


# --- how a run ends


def test_a_run_with_a_failed_batch_is_partial_and_says_which(service: Connection) -> None:
    run = Run(service)
    run.apply(None, "c_1", ("2001", "more"), ("2002", "more"))
    run.fail("n_1", thread="t_2001")
    assert run.work() == [("thread", "t_2002", "n_1"), ("list", "", "c_1")]
    run.apply("n_1", None, thread="t_2002")
    run.apply("c_1", None)
    run.apply(None, None)
    assert run.finish() == "partial"
    document = run.document()
    assert (document["success"], document["partial"], document["reason"]) == (False, True, "failed_batches")
    assert [(batch["thread_id"], batch["cursor"]) for batch in document["failed_batches"]] == [
        ("t_2001", "n_1")
    ]


SUCCEED: LiteralString = """
    update convsync.sync_runs set status = 'succeeded', finished_at = now(), lease_expires_at = null
    where run_id = %s
"""


def test_postgresql_itself_refuses_success_beside_open_work(owner: Connection, service: Connection) -> None:
    run = Run(service)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="sync_cursors_open_run"):
        owner.execute(SUCCEED, [run.run_id])
    run.apply(None, None)
    run.apply(None, None)
    assert run.work() == []
    owner.execute(SUCCEED, [run.run_id])


def test_postgresql_itself_refuses_success_beside_a_failed_batch(
    owner: Connection, service: Connection
) -> None:
    run = Run(service)
    run.apply(None, None, ("2001", "more"))
    run.fail("n_1", thread="t_2001")
    run.apply(None, None)
    owner.execute("update convsync.sync_cursors set completed = true, failed = false")
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="sync_batches_open_run"):
        owner.execute(SUCCEED, [run.run_id])
    owner.execute("update convsync.sync_batches set status = 'resolved', resolved_at = now()")
    owner.execute(SUCCEED, [run.run_id])


@pytest.mark.parametrize(
    "afterthought",
    [
        """insert into convsync.sync_batches
             (page_id, run_id, batch, kind, thread_id, status, attempts, error, progress)
           values ('1001', %s, 9, 'list', '', 'failed', 1, '{}', 1)""",
        """insert into convsync.sync_cursors (page_id, run_id, kind, thread_id)
           values ('1001', %s, 'thread', 't_9')""",
        "update convsync.sync_cursors set completed = false where run_id = %s",
    ],
    ids=["a failed batch", "an open thread", "the list opened again"],
)
def test_postgresql_itself_refuses_open_work_of_a_run_that_succeeded(
    owner: Connection, service: Connection, afterthought: LiteralString
) -> None:
    run = Run(service)
    run.apply(None, None)
    run.apply(None, None)
    assert run.finish() == "succeeded"
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        owner.execute(afterthought, [run.run_id])


def test_a_cancelled_run_stops_its_carrier(connect: Connect, service: Connection) -> None:
    run = Run(service)
    operator = connect()
    assert call(operator, "select convsync_api.cancel_sync('1001', %(run)s) as status", **run.key) == {
        "status": "cancelled"
    }
    with pytest.raises(psycopg.DatabaseError) as raised:
        run.apply(None, "c_1", ("2001", "complete"))
    assert raised.value.sqlstate == "ZC004"
    assert not Run(operator).resumed


def test_removing_a_page_stops_its_runs_and_keeps_what_was_mirrored(
    connect: Connect, owner: Connection, service: Connection
) -> None:
    run = Run(service)
    run.apply(None, "c_1", ("2001", "complete"))
    call(connect(), "select convsync_api.remove_page('1001')")
    with pytest.raises(psycopg.DatabaseError) as raised:
        run.apply("c_1", None, ("2002", "complete"))
    assert raised.value.sqlstate == "ZC004"
    with pytest.raises(psycopg.DatabaseError) as raised:
        Run(service)
    assert raised.value.sqlstate == "ZC001"
    assert call(owner, "select count(*) as n from convsync.contact_interaction_events") == {"n": 1}
    assert call(owner, "select count(*) as n from convsync_api.resumable_syncs()") == {"n": 0}


# --- the call budget

ACQUIRE: LiteralString = """
    select * from convsync_api.acquire_call('1001', %(lane)s, p_calls_per_second => %(rate)s::numeric)
"""


def acquire(connection: Connection, lane: str = "backfill", rate: float = 2) -> int:
    wait: int = call(connection, ACQUIRE, lane=lane, rate=rate)["wait_ms"]
    return wait


def grants(connection: Connection, rate: float, seconds: float, step: float = 0.05) -> list[float]:
    """When calls are granted to somebody who asks all the time."""
    granted = []
    for tick in range(round(seconds / step)):
        at(connection, tick * step)
        if acquire(connection, rate=rate) == 0:
            granted.append(round(tick * step, 3))
    return granted


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (2, [0, 0.05, 1, 1.05, 2, 2.05]),
        (1, [0, 1, 2]),
        (0.5, [0, 2]),
        (4, [0, 0.05, 0.1, 0.15, 1, 1.05, 1.1, 1.15, 2, 2.05, 2.1, 2.15]),
    ],
)
def test_a_rate_is_kept_in_every_window(service: Connection, rate: float, expected: list[float]) -> None:
    assert grants(service, rate, 3) == expected


def test_a_wait_is_as_long_as_it_says(service: Connection) -> None:
    at(service, 0)
    assert [acquire(service), acquire(service)] == [0, 0]
    at(service, 0.4)
    assert acquire(service) == 600
    at(service, 0.999)
    assert acquire(service) == 1
    at(service, 1)
    assert acquire(service) == 0


def test_no_limit_grants_every_call_but_in_a_block(service: Connection) -> None:
    at(service, 0)
    assert [acquire(service, rate=0) for _ in range(20)] == [0] * 20
    call(service, BLOCK, scope="page", seconds=5)
    assert acquire(service, rate=0) == 5000


def test_several_processes_together_never_exceed_the_rate(connect: Connect) -> None:
    """In real time: four sessions ask as fast as they can; the instants are the database's."""
    asking = [connect() for _ in range(4)]
    ends = time.monotonic() + 2.3

    def ask(connection: Connection) -> list[datetime]:
        granted = []
        while time.monotonic() < ends:
            row = call(connection, ACQUIRE, lane="backfill", rate=2)
            if row["wait_ms"] == 0:
                granted.append(row["granted_at"])
            else:
                time.sleep(min(row["wait_ms"] / 1000, 0.05))
        return granted

    with ThreadPoolExecutor(len(asking)) as threads:
        granted = sorted(instant for some in threads.map(ask, asking) for instant in some)
    assert len(granted) >= 4, "and the rate is used"
    for earlier, later in zip(granted, granted[2:], strict=False):
        assert later - earlier >= timedelta(seconds=1)


def test_a_waiting_higher_lane_goes_first(connect: Connect, service: Connection) -> None:
    live, repair = connect(), connect()
    for connection in (service, live, repair):
        at(connection, 0)
    assert [acquire(service), acquire(service)] == [0, 0]
    assert acquire(repair, "repair") == 1000
    assert acquire(live, "live") == 1000
    for connection in (service, live, repair):
        at(connection, 1)
    assert acquire(service) > 0
    assert acquire(repair, "repair") > 0
    assert acquire(live, "live") == 0
    assert acquire(repair, "repair") == 0, "after the live one, though before the backfill"
    # nobody higher waits any more
    at(service, 2)
    assert acquire(service) == 0


def test_a_higher_lane_that_stopped_waiting_holds_nobody_up_for_long(
    connect: Connect, service: Connection
) -> None:
    live = connect()
    at(service, 0)
    at(live, 0)
    assert [acquire(service), acquire(service)] == [0, 0]
    assert acquire(live, "live") == 1000
    at(service, 1.2)
    assert acquire(service) == 50
    at(service, 1.25)
    assert acquire(service) == 0


BLOCK: LiteralString = """
    select convsync_api.record_call('1001', 400, 120, p_error_code => 32, p_block_scope => %(scope)s,
      p_block_seconds => %(seconds)s, p_block_reason => 'throttled') as until
"""


@pytest.mark.parametrize("scope", ["page", "app"])
def test_a_block_holds_for_every_process_until_it_ends(
    connect: Connect, service: Connection, scope: str
) -> None:
    other = connect()
    at(service, 0)
    assert call(service, BLOCK, scope=scope, seconds=60)["until"] == START + timedelta(seconds=60)
    at(other, 59.5)
    assert acquire(other, "live") == 500
    assert all(acquire(other, lane) > 0 for lane in ("repair", "backfill"))
    at(other, 61)
    assert acquire(other, "live") == 0


@pytest.mark.parametrize("scope", ["page", "app"])
def test_of_two_blocks_the_longer_holds(connect: Connect, service: Connection, scope: str) -> None:
    other = connect()
    at(service, 0)
    at(other, 1)
    call(service, BLOCK, scope=scope, seconds=60)
    assert call(other, BLOCK, scope=scope, seconds=5)["until"] == START + timedelta(seconds=60)
    assert acquire(other, "live") == 59_000
    assert call(other, BLOCK, scope=scope, seconds=600)["until"] == START + timedelta(seconds=601)


def test_a_block_of_one_page_is_none_of_another_but_the_apps_is(service: Connection) -> None:
    at(service, 0)
    call(service, BLOCK, scope="page", seconds=60)
    other_page: LiteralString = "select * from convsync_api.acquire_call('1002', 'live')"
    assert call(service, other_page)["wait_ms"] == 0
    call(service, BLOCK, scope="app", seconds=30)
    assert call(service, other_page)["wait_ms"] == 30_000


TOLD: LiteralString = """
    select convsync_api.record_call(%(page)s, 200, 100,
      jsonb_build_object('app_percent', %(percent)s::integer))
"""


def test_nobody_waits_for_what_another_page_tells_of_the_app(connect: Connect, service: Connection) -> None:
    """The row of the app is the one that all Pages have in common."""
    other = connect()
    other.execute("set lock_timeout = '1s'")
    at(service, 0)
    at(other, 0)
    call(service, TOLD, page="1001", percent=40)
    service.execute("begin")
    call(service, TOLD, page="1001", percent=60)
    granted: LiteralString = "select * from convsync_api.acquire_call('1002', 'live')"
    assert call(other, granted)["wait_ms"] == 0
    # What is known of the app already is not written again.
    call(other, TOLD, page="1002", percent=40)
    service.execute("commit")
    budget: LiteralString = "select convsync_api.add_page('1002') -> 'budget' as budget"
    assert call(other, budget)["budget"]["app_usage_percent"] == 60


def test_answers_of_many_pages_that_tell_of_the_app_never_deadlock(connect: Connect) -> None:
    told: LiteralString = """
        select convsync_api.record_call(%(page)s, 200, 100,
          jsonb_build_object('percent', 3, 'app_percent', %(percent)s::integer), p_block_scope => %(scope)s,
          p_block_seconds => 0)
    """
    granted: LiteralString = (
        "select * from convsync_api.acquire_call(%(page)s, 'live', p_calls_per_second => 0)"
    )

    def calls(number: int, connection: Connection) -> None:
        for turn in range(40):
            page = str(1001 + (turn * (number + 1)) % 3)
            call(connection, granted, page=page)
            scope = ("page", "app", None)[(turn + number) % 3]
            call(connection, told, page=page, percent=turn % 70, scope=scope)

    sessions = [connect() for _ in range(4)]
    with ThreadPoolExecutor(len(sessions)) as threads:
        for done in [threads.submit(calls, number, one) for number, one in enumerate(sessions)]:
            done.result()


def test_a_run_that_is_not_ours_takes_nothing_of_the_budget(owner: Connection, service: Connection) -> None:
    run = Run(service)
    with pytest.raises(psycopg.DatabaseError) as raised:
        call(service, "select * from convsync_api.acquire_call('1001', 'live', %(run)s, 99)", run=run.run_id)
    assert raised.value.sqlstate == "ZC004"
    assert call(owner, "select count(*) as n from convsync.call_budgets") == {"n": 0}
    own: LiteralString = "select * from convsync_api.acquire_call('1001', 'live', %(run)s, %(fence)s)"
    assert call(service, own, **run.key)["wait_ms"] == 0
    assert run.document()["calls"] == 1
