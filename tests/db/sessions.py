"""What the tests with several sessions share: connections, calls, and seeing one wait for another."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeAlias, TypeVar

import psycopg

from convsync.facts import Fact, Json, Message, dump

PAGE, OTHER_PAGE, ADA, BOB = "1001", "1002", "2001", "2002"
START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)

Connection: TypeAlias = psycopg.Connection[Any]
Connect: TypeAlias = Callable[..., Connection]
First = TypeVar("First")
Second = TypeVar("Second")
Found = TypeVar("Found")


def rows(connection: Connection, query: LiteralString, **values: Any) -> list[Json]:
    return connection.execute(query, values).fetchall()


def call(connection: Connection, query: LiteralString, **values: Any) -> Any:
    """The first column of the one row."""
    row = connection.execute(query, values).fetchone()
    assert row is not None
    return next(iter(row.values()))


def ingest(connection: Connection, *batch: Fact, source: str = "webhook") -> list[Json]:
    return connection.execute("select * from convsync_api.ingest(%s, %s)", [dump(batch), source]).fetchall()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def told(mid: str, seconds: float = 0, text: str = "hello", sender: str = ADA, page: str = PAGE) -> Message:
    return Message(page, sender, mid, "in", at(seconds), text)


def eventually(look: Callable[[], Found], patience: float = 30.0) -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
    return found


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
        seen = eventually(
            lambda: (
                future.done()
                or rows(
                    observer,
                    "select from pg_stat_activity where pid = %(pid)s and wait_event_type = 'Lock'",
                    pid=second.info.backend_pid,
                )
            )
        )
        first.execute("commit")
    assert seen is not True, "the second did not wait for the first"
    return done, future
