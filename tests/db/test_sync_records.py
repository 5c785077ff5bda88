"""What syncs leave behind has an end, and what something still refers to does not go with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import PAGE, Connect, Connection, at, call, rows

from convsync.facts import Json, Message, Thread, dump

DAYS = 90


@pytest.fixture
def page(service: Connection) -> Connection:
    day(service, 0)
    call(service, r"select convsync_api.add_page('1001', p_token_sealed => '\x01', p_token_key_id => 'k')")
    return service


def day(connection: Connection, days: float) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [at(days * 86400).isoformat()])


class Sync:
    """A run of the Page at a time; `walk` reads the whole list at once."""

    def __init__(self, connection: Connection, mode: str = "incremental") -> None:
        self.connection = connection
        (begun,) = rows(
            connection, "select * from convsync_api.begin_sync(%(page)s, %(mode)s)", page=PAGE, mode=mode
        )
        self.run_id: int = begun["run_id"]
        self.carried = {"page": PAGE, "run": self.run_id, "fence": begun["fence"]}

    def work(self) -> list[Json]:
        return rows(
            self.connection,
            "select * from convsync_api.next_sync_work(%(page)s, %(run)s, %(fence)s, 10)",
            **self.carried,
        )

    def walk(self, *threads: Json) -> None:
        for facts, listed in ([self._facts(*threads), list(threads)], [[], []]):
            call(
                self.connection,
                """select applied from convsync_api.apply_sync_page(%(page)s, %(run)s, %(fence)s, 'list',
                   null, null, null, current_setting('convsync.now')::timestamptz, %(facts)s, %(threads)s)""",
                facts=dump(facts),
                threads=Jsonb(listed),
                **self.carried,
            )

    def _facts(self, *threads: Json) -> list[Any]:
        facts: list[Any] = []
        for one in threads:
            facts.append(Thread(PAGE, one["sender_id"], one["thread_id"], at(0), {}))
            facts.append(Message(PAGE, one["sender_id"], one["newest_id"], "in", at(0), observed_at=at(0)))
        return facts

    def read(self, thread: str, next_cursor: str | None = None) -> None:
        (work,) = [one for one in self.work() if one["thread_id"] == thread]
        call(
            self.connection,
            """select applied from convsync_api.apply_sync_page(%(page)s, %(run)s, %(fence)s, 'thread',
               %(thread)s, %(cursor)s, %(next)s, current_setting('convsync.now')::timestamptz, '[]')""",
            thread=thread,
            cursor=work["last_cursor"],
            next=next_cursor,
            **self.carried,
        )

    def fail(self, thread: str | None = None) -> None:
        (work,) = [one for one in self.work() if one["thread_id"] == (thread or "")]
        call(
            self.connection,
            """select convsync_api.fail_sync_batch(%(page)s, %(run)s, %(fence)s, %(kind)s, %(thread)s,
               %(cursor)s, 3, '{"class": "transient"}')""",
            kind=work["kind"],
            thread=thread,
            cursor=work["last_cursor"],
            **self.carried,
        )

    def end(self, failure: str | None = None) -> str:
        ended: str = call(
            self.connection,
            "select convsync_api.finish_sync(%(page)s, %(run)s, %(fence)s, %(failure)s)",
            failure=failure,
            **self.carried,
        )
        return ended

    def whole(self, *threads: Json) -> int:
        self.walk(*threads)
        assert self.end() == "succeeded"
        return self.run_id


def listed(number: int, read: str = "complete", count: int = 1) -> Json:
    return {
        "thread_id": f"t_{number}",
        "sender_id": f"200{number}",
        "updated_time": (at(0) + timedelta(seconds=count)).isoformat(),
        "message_count": count,
        "newest_id": f"m_{number}",
        "newest": at(0).isoformat(),
        "oldest": at(0).isoformat(),
        "read": read,
        "next_cursor": "n1" if read == "more" else None,
    }


def expire(connection: Connection, days: float, limit: int = 10_000) -> int:
    day(connection, days)
    gone: int = call(
        connection,
        "select convsync_api.expire_sync_runs(%(days)s, %(limit)s)",
        days=DAYS,
        limit=limit,
    )
    return gone


def runs(owner: Connection) -> set[int]:
    return {one["run_id"] for one in rows(owner, "select run_id from convsync.sync_runs")}


def cursors(owner: Connection) -> set[tuple[int, str, str]]:
    found = rows(owner, "select run_id, kind, thread_id from convsync.sync_cursors")
    return {(one["run_id"], one["kind"], one["thread_id"]) for one in found}


def test_old_runs_go_and_the_last_of_each_mode_and_end_stay(page: Connection, owner: Connection) -> None:
    kept, old = set(), set()
    walked = Sync(page, "full").whole()
    kept.add(walked)
    for mode in ("incremental", "reconcile"):
        for failure, them in [
            ("token_invalid", old),
            (None, old),
            ("token_invalid", kept),
            (None, old),
            (None, kept),  # the last two are what the schedule goes by
            (None, kept),
        ]:
            run = Sync(page, mode)
            run.walk()
            run.end(failure)
            them.add(run.run_id)
    expire(page, 1.5)
    assert expire(page, DAYS - 0.1) == 0
    assert runs(owner) == kept | old

    assert expire(page, DAYS + 0.1) > 0
    assert runs(owner) == kept
    assert expire(page, DAYS * 10) == 0
    # Nothing else has changed by that: the list is known, and the next syncs are those that were next.
    certificate = call(page, "select convsync_api.certificate('1001')")
    assert certificate["list_run"]["run_id"] in {str(one) for one in kept}
    due = rows(page, "select mode from convsync_api.due_syncs()")
    assert {one["mode"] for one in due} == {"incremental", "reconcile"}


def test_the_last_that_walked_the_list_stays_though_later_ones_ended_as_it_did(
    page: Connection, owner: Connection
) -> None:
    walked = Sync(page, "full")
    walked.walk()
    assert walked.end("internal_error") == "failed"
    for _ in range(3):
        short = Sync(page, "full")
        assert short.end("token_invalid") == "failed"
    expire(page, 2 * DAYS)
    assert walked.run_id in runs(owner)
    assert short.run_id in runs(owner)
    assert len(runs(owner)) == 3, "and the one before the last, by which the schedule goes"
    certificate = call(page, "select convsync_api.certificate('1001')")
    assert certificate["list_run"]["run_id"] == str(walked.run_id)


def test_cursors_go_a_day_after_the_end_but_not_what_a_retry_goes_by(
    page: Connection, owner: Connection
) -> None:
    well, badly = Sync(page, "full"), Sync(page)
    well.walk(listed(1, "more", 9))
    well.read("t_1", None)
    assert well.end() == "succeeded"
    badly.walk(listed(2, "more", 9), listed(3, "more", 9))
    badly.read("t_3")
    badly.fail("t_2")
    assert badly.end() == "partial"
    before = cursors(owner)
    assert expire(page, 0.9) == 0
    assert cursors(owner) == before

    assert expire(page, 1.1) > 0
    assert cursors(owner) == {(badly.run_id, "list", ""), (badly.run_id, "thread", "t_2")}
    (again,) = rows(page, "select * from convsync_api.retry_sync('1001', %(run)s)", run=badly.run_id)
    badly.carried["fence"] = again["fence"]
    badly.read("t_2")
    assert badly.end() == "succeeded"
    assert {
        one["complete"] for one in rows(page, "select * from convsync_api.certificate_conversations('1001')")
    } == {True}


def test_a_run_at_work_or_paused_loses_nothing(page: Connection, owner: Connection) -> None:
    run = Sync(page, "full")
    run.walk(listed(1, "more", 9), listed(2, "more", 9))
    run.read("t_1")
    before = cursors(owner)
    assert expire(page, 2 * DAYS) == 0
    call(
        page,
        "select convsync_api.pause_sync(%(page)s, %(run)s, %(fence)s, 'deadline')",
        **run.carried,
    )
    assert expire(page, 4 * DAYS) == 0
    assert cursors(owner) == before


def test_a_run_by_which_a_thread_is_verified_stays_until_another_has(
    page: Connection, owner: Connection
) -> None:
    verified = Sync(page).whole(listed(1))
    for _ in range(3):
        Sync(page).whole()
    expire(page, 2 * DAYS)
    assert verified in runs(owner)
    (one,) = rows(page, "select * from convsync_api.certificate_conversations('1001')")
    assert one["verified_run_id"] == verified

    again = Sync(page).whole(listed(1, count=2))
    for _ in range(2):
        Sync(page).whole()
    expire(page, 4 * DAYS)
    assert verified not in runs(owner)
    assert again in runs(owner)


def test_a_thread_that_nobody_could_read_since_is_not_complete_however_long_ago_that_was(
    page: Connection, owner: Connection
) -> None:
    Sync(page, "full").whole(listed(1))
    day(page, 1)
    failed = Sync(page, "full")
    failed.walk(listed(1, "more", 9))
    failed.fail("t_1")
    assert failed.end() == "partial"
    for _ in range(3):
        later = Sync(page, "full")
        later.walk(listed(2, "more", 9))
        later.fail("t_2")
        assert later.end() == "partial"
    expire(page, 2 * DAYS)
    assert failed.run_id in runs(owner)
    states = {
        one["thread_id"]: one["complete"]
        for one in rows(page, "select * from convsync_api.certificate_conversations('1001')")
    }
    assert states == {"t_1": False, "t_2": False}
    # The next one takes it up, as ever; and once that failed too, the first has nothing to say.
    taken = Sync(page)
    assert {
        one["thread_id"]
        for one in rows(
            owner,
            "select thread_id from convsync.sync_cursors where run_id = %(r)s and kind = 'thread'",
            r=taken.run_id,
        )
    } == {"t_1", "t_2"}


def test_no_more_goes_at_once_than_is_asked_for(page: Connection, owner: Connection) -> None:
    for _ in range(8):
        Sync(page).whole()
    assert [expire(page, 2 * DAYS, limit=3) for _ in range(6)] == [3, 3, 2 + 3, 3, 0, 0]
    assert len(runs(owner)) == 2


def test_whom_graph_showed_in_two_threads_an_erasure_still_finds_there(
    page: Connection, owner: Connection
) -> None:
    run = Sync(page, "full")
    other = listed(1, "more", 9) | {"thread_id": "t_9"}
    run.walk(listed(1, "more", 9), other)
    run.read("t_1")
    run.read("t_9")
    assert run.end() == "succeeded"
    (person,) = rows(owner, "select in_several_threads from convsync.messenger_conversations")
    assert person["in_several_threads"]
    expire(page, 30)
    call(page, "select convsync_api.erase_contact('1001', '2001')")
    assert rows(owner, "select from convsync.thread_proofs") == []


def test_of_two_janitors_at_once_one_finds_nothing_to_do(page: Connection, connect: Connect) -> None:
    for _ in range(4):
        Sync(page).whole()
    first, second = connect(), connect()
    first.execute("begin")
    assert expire(first, 2 * DAYS) > 0
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(expire, second, 2 * DAYS).result(timeout=30) == 0
    first.execute("commit")
    assert expire(second, 2 * DAYS) == 0


def test_a_run_that_is_being_retried_does_not_go(
    page: Connection, connect: Connect, owner: Connection
) -> None:
    old: list[Sync] = []
    for _ in range(4):
        run = Sync(page, "full")
        run.fail()
        assert run.end() == "partial"
        old.append(run)
    day(page, 2 * DAYS)
    retrying, janitor = connect(), connect()
    janitor.execute("set lock_timeout = '10s'")
    day(retrying, 2 * DAYS)
    retrying.execute("begin")
    call(retrying, "select run_id from convsync_api.retry_sync('1001', %(run)s)", run=old[0].run_id)
    expire(janitor, 2 * DAYS)
    retrying.execute("commit")
    assert old[0].run_id in runs(owner)
    assert old[1].run_id not in runs(owner)


@pytest.mark.parametrize("days", [None, 0, -1])
def test_an_expiry_of_runs_has_days(page: Connection, days: int | None) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        page.execute("select convsync_api.expire_sync_runs(%s)", [days])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_days")
