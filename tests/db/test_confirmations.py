"""What becomes of conversations that a list did not show: proposals, their direct reads, and the control."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import PAGE, Connect, Connection, call, eventually, ingest, rows

from convsync.facts import Json, Message, Thread, dump

NOW = datetime.now(UTC) + timedelta(days=1)
BEFORE = NOW - timedelta(hours=2)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


class Run:
    """A full sync that reads what a test says, second by second."""

    def __init__(self, connection: Connection, second: float = 0) -> None:
        self.connection = connection
        self.second = second
        self.resume()

    def resume(self) -> None:
        self.tick()
        (begun,) = rows(self.connection, "select * from convsync_api.begin_sync('1001', 'full')")
        self.run_id, self.fence = begun["run_id"], begun["fence"]

    def retry(self) -> None:
        self.tick()
        (begun,) = rows(
            self.connection, "select * from convsync_api.retry_sync('1001', %(run)s)", run=self.run_id
        )
        self.fence = begun["fence"]

    def tick(self) -> datetime:
        self.second += 1
        moment = at(self.second)
        self.connection.execute("select set_config('convsync.now', %s, false)", [moment.isoformat()])
        return moment

    def list(self, *threads: str, more: str | None = None) -> None:
        """Walk the list, twice as it has to be: these are all. Of `more` not every message is on it."""
        for walk_pass in (1, 2):
            moment = self.tick()
            facts = [Thread(PAGE, f"2{thread[2:]}", thread, moment, {}) for thread in threads]
            listed = [
                {
                    "thread_id": thread,
                    "sender_id": f"2{thread[2:]}",
                    "updated_time": BEFORE.isoformat(),
                    "message_count": 0,
                    "read": "more" if thread == more and walk_pass == 1 else "complete",
                    "next_cursor": "n1" if thread == more else None,
                }
                for thread in threads
            ]
            (applied,) = rows(
                self.connection,
                """select * from convsync_api.apply_sync_page('1001', %(run)s, %(fence)s, 'list', null, null,
                   null, %(at)s, %(facts)s, %(threads)s, p_walk_pass => %(pass)s)""",
                run=self.run_id,
                fence=self.fence,
                at=moment,
                facts=dump(facts),
                threads=Jsonb(listed),
                **{"pass": walk_pass},
            )
            assert applied["applied"]

    def work(self) -> list[tuple[str, str]]:
        found = rows(
            self.connection,
            "select * from convsync_api.next_sync_work('1001', %(run)s, %(fence)s, 50)",
            run=self.run_id,
            fence=self.fence,
        )
        return [(row["kind"], row["thread_id"]) for row in found]

    def read(self, kind: str, thread: str, found: bool, *, token: int = 0, count: int = 7) -> bool:
        moment = self.tick()
        self.tick()
        applied: bool = call(
            self.connection,
            """select convsync_api.apply_confirmation('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s,
               %(at)s, %(found)s, %(updated)s, %(count)s, %(token)s)""",
            run=self.run_id,
            fence=self.fence,
            kind=kind,
            thread=thread,
            at=moment,
            found=found,
            updated=BEFORE if found else None,
            count=count,
            token=token,
        )
        return applied

    def fail(self, kind: str, thread: str, error_class: str, cursor: str | None = None) -> None:
        self.tick()
        call(
            self.connection,
            """select convsync_api.fail_sync_batch('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s,
               %(cursor)s, 1, %(error)s)""",
            run=self.run_id,
            fence=self.fence,
            kind=kind,
            thread=thread,
            cursor=cursor,
            error=Jsonb({"class": error_class}),
        )

    def end(self) -> Json:
        self.tick()
        call(
            self.connection,
            "select convsync_api.finish_sync('1001', %(run)s, %(fence)s)",
            run=self.run_id,
            fence=self.fence,
        )
        document: Json = call(self.connection, "select convsync_api.get_sync_run(%(run)s)", run=self.run_id)
        return document


def known(connection: Connection, count: int) -> None:
    """Conversations t_0, t_1, .. of 20, 21, .., heard of two hours ago."""
    connection.execute("select set_config('convsync.now', %s, false)", [BEFORE.isoformat()])
    facts: list[Any] = []
    for number in range(count):
        facts.append(Message(PAGE, f"2{number}", f"m_{number}", "in", BEFORE, "hello"))
        facts.append(Thread(PAGE, f"2{number}", f"t_{number}", BEFORE, {}))
    ingest(connection, *facts, source="sync")
    connection.execute("select convsync_api.add_page('1001')")


@pytest.fixture
def run(service: Connection) -> Run:
    """Thirty conversations are known; a sync has begun."""
    known(service, 30)
    return Run(service)


def all_but(*missing: int) -> list[str]:
    return [f"t_{number}" for number in range(30) if number not in missing]


def gone(connection: Connection) -> set[str]:
    """The threads that are not among the conversations any more."""
    listed = call(connection, "select convsync_api.list_conversations('1001', p_limit => 200)")[
        "conversations"
    ]
    return {f"t_{number}" for number in range(30)} - {one["thread_id"] for one in listed}


def test_all_that_is_listed_leaves_nothing_to_ask(run: Run) -> None:
    run.list(*all_but())
    assert run.work() == []
    assert run.end()["status"] == "succeeded"
    assert gone(run.connection) == set()


def test_what_is_not_listed_is_asked_for_and_gone_after_a_control(run: Run) -> None:
    run.list(*all_but(3, 7))
    assert run.work() == [("confirm", "t_3"), ("confirm", "t_7")]
    assert run.read("confirm", "t_3", found=False)
    assert not run.read("confirm", "t_3", found=False), "told already"
    assert run.work() == [("confirm", "t_7")]
    assert run.read("confirm", "t_7", found=False)
    assert gone(run.connection) == set(), "Graph's word alone is not enough"
    ((kind, control),) = run.work()
    assert kind == "control"
    assert control in all_but(3, 7)
    assert run.read("control", control, found=True)
    assert gone(run.connection) == {"t_3", "t_7"}
    assert run.work() == []
    document = run.end()
    assert (document["status"], document["deletions_proposed"], document["deletions_confirmed"]) == (
        "succeeded",
        2,
        2,
    )


def test_a_control_comes_after_each_ten(run: Run) -> None:
    missing = range(12)
    run.list(*all_but(*missing))
    asked = [thread for _, thread in run.work()]
    for thread in asked[:9]:
        run.read("confirm", thread, found=False)
    assert [kind for kind, _ in run.work()] == ["confirm"] * 3
    run.read("confirm", asked[9], found=False)
    (kind, control), *rest = run.work()
    assert (kind, [one for one, _ in rest]) == ("control", ["confirm"] * 2)
    # What is told while that control is under way may be of before or after it: it needs one of its own.
    run.read("confirm", asked[10], found=False)
    run.read("control", control, found=True)
    assert gone(run.connection) == set(asked[:10])
    run.read("confirm", asked[11], found=False)
    ((_, control),) = run.work()
    run.read("control", control, found=True)
    assert len(gone(run.connection)) == 12
    assert run.end()["status"] == "succeeded"


def test_what_another_process_was_told_is_asked_again(run: Run) -> None:
    run.list(*all_but(3, 7))
    run.read("confirm", "t_3", found=False)
    call(
        run.connection,
        "select convsync_api.pause_sync('1001', %(run)s, %(fence)s, 'deadline', 0)",
        run=run.run_id,
        fence=run.fence,
    )
    run.resume()
    assert set(run.work()) == {("confirm", "t_3"), ("confirm", "t_7")}
    run.read("confirm", "t_7", found=False)
    control = next(thread for kind, thread in run.work() if kind == "control")
    run.read("control", control, found=True)
    assert gone(run.connection) == {"t_7"}
    assert run.work() == [("confirm", "t_3")]
    run.read("confirm", "t_3", found=False)
    run.read("control", control, found=True)
    assert gone(run.connection) == {"t_3", "t_7"}


def test_a_control_of_another_token_proves_nothing(run: Run) -> None:
    run.list(*all_but(3))
    run.read("confirm", "t_3", found=False, token=0)
    ((_, control),) = run.work()
    run.read("control", control, found=True, token=1)
    assert gone(run.connection) == set()
    assert run.work() == [("confirm", "t_3")]


def test_a_control_that_is_gone_itself_is_followed_by_another(run: Run) -> None:
    run.list(*all_but(3))
    run.read("confirm", "t_3", found=False)
    ((_, control),) = run.work()
    run.read("control", control, found=False)
    ((kind, other),) = run.work()
    assert (kind, other != control) == ("control", True)
    run.read("control", other, found=True)
    assert gone(run.connection) == {"t_3"}
    assert run.end()["status"] == "succeeded"


def test_three_controls_that_are_gone_mark_nothing(run: Run) -> None:
    run.list(*all_but(3, 7))
    for thread in ("t_3", "t_7"):
        run.read("confirm", thread, found=False)
    for _ in range(3):
        ((kind, control),) = run.work()
        assert kind == "control"
        run.read("control", control, found=False)
    assert run.work() == []
    document = run.end()
    assert (document["status"], document["reason"]) == ("partial", "failed_batches")
    assert [batch["kind"] for batch in document["failed_batches"]] == ["control"]
    assert gone(run.connection) == set()


def test_controls_that_are_gone_count_only_in_a_row(run: Run) -> None:
    run.list(*all_but(*range(12)))
    asked = [thread for _, thread in run.work()]

    def control(found: bool) -> None:
        (thread,) = [one for kind, one in run.work() if kind == "control"]
        run.read("control", thread, found)

    for thread in asked[:10]:
        run.read("confirm", thread, found=False)
    for found in (False, False, True):
        control(found)
    assert len(gone(run.connection)) == 10
    for thread in asked[10:]:
        run.read("confirm", thread, found=False)
    for found in (False, False, True):
        control(found)
    assert len(gone(run.connection)) == 12
    assert run.end()["status"] == "succeeded"


def test_a_retry_counts_its_controls_anew(run: Run) -> None:
    run.list(*all_but(3))
    run.read("confirm", "t_3", found=False)
    for _ in range(3):
        ((_, control),) = run.work()
        run.read("control", control, found=False)
    assert run.end()["status"] == "partial"

    run.retry()
    run.read("confirm", "t_3", found=False)
    for found in (False, False, True):
        (control,) = [one for kind, one in run.work() if kind == "control"]
        run.read("control", control, found)
    assert gone(run.connection) == {"t_3"}
    assert run.end()["status"] == "succeeded"


@pytest.mark.parametrize("kind", ["confirm", "control"])
def test_a_permission_refused_on_the_way_marks_nothing(run: Run, kind: str) -> None:
    run.list(*all_but(3, 7))
    run.read("confirm", "t_3", found=False)
    if kind == "control":
        run.read("confirm", "t_7", found=False)
    ((_, thread),) = run.work()
    run.fail(kind, thread, "permission")
    assert run.work() == []
    document = run.end()
    assert (document["status"], len(document["failed_batches"])) == ("partial", 1)
    assert gone(run.connection) == set()


def test_one_that_cannot_be_read_does_not_hold_up_the_others(run: Run) -> None:
    run.list(*all_but(3, 7))
    run.read("confirm", "t_3", found=False)
    run.fail("confirm", "t_7", "transient")
    ((kind, control),) = run.work()
    assert kind == "control"
    run.read("control", control, found=True)
    assert gone(run.connection) == {"t_3"}
    assert run.end()["status"] == "partial"


def test_without_anything_listed_nothing_is_believed(service: Connection) -> None:
    known(service, 3)
    run = Run(service)
    run.list()
    for kind, thread in run.work():
        run.read(kind, thread, found=False)
    assert run.work() == []
    document = run.end()
    assert document["status"] == "partial"
    assert [batch["error"]["class"] for batch in document["failed_batches"]] == ["no_control"]


def test_what_answers_is_hidden_and_read_to_its_end(run: Run) -> None:
    run.list(*all_but(3))
    run.read("confirm", "t_3", found=True)
    assert run.work() == [("thread", "t_3")]
    assert gone(run.connection) == set()


def test_the_time_left_knows_how_long_a_hidden_thread_is(run: Run) -> None:
    """`read` says that it has seven messages; here it is a thousand."""
    run.list(*all_but(3))
    for _ in range(20):
        run.tick()
        call(
            run.connection,
            "select wait_ms from convsync_api.acquire_call('1001', 'backfill', %(run)s, %(fence)s)",
            run=run.run_id,
            fence=run.fence,
        )
    run.read("confirm", "t_3", found=True, count=1000)
    document = call(run.connection, "select convsync_api.get_sync_run(%(run)s)", run=run.run_id)
    assert 9 <= document["eta_seconds"] <= 12, "ten pages of a hundred, at a call a second"


NOT_PROPOSED = {
    "heard of since the run began": lambda run: ingest(
        run.connection, Message(PAGE, "23", "m_new", "in", at(run.second))
    ),
    "without a message, seen by a read since": lambda run: ingest(
        run.connection, Thread(PAGE, "23", "t_3", run.tick(), {}), source="sync"
    ),
}


@pytest.mark.parametrize("why", NOT_PROPOSED)
def test_what_is_known_to_be_there_is_not_proposed(run: Run, why: str) -> None:
    NOT_PROPOSED[why](run)
    run.list(*all_but(3))
    assert run.work() == []


def test_more_than_a_tenth_and_more_than_twenty_are_held_back(run: Run) -> None:
    run.list(*all_but(*range(21)))
    assert run.work() == []
    document = run.end()
    assert (document["status"], document["reason"]) == ("partial", "deletion_breaker")
    assert document["deletions_proposed"] == 21

    # twenty are not
    again = Run(run.connection, run.second)
    again.list(*all_but(*range(20)))
    assert len(again.work()) == 20


def test_a_person_may_let_them_pass_once(service: Connection) -> None:
    known(service, 60)
    call(service, "select convsync_api.allow_deletions('1001', 21)")
    run = Run(service)
    run.list(*(f"t_{number}" for number in range(21, 60)))
    while work := run.work():
        for kind, thread in work:
            run.read(kind, thread, found=kind == "control")
    document = run.end()
    assert (document["status"], document["deletions_confirmed"]) == ("succeeded", 21)
    again = Run(service, run.second)
    again.list(*(f"t_{number}" for number in range(42, 60)))
    assert again.end()["reason"] == "deletion_breaker"


def held_back(service: Connection) -> tuple[Run, Json]:
    """Sixty are known, and a sync has found 21 of them missing."""
    known(service, 60)
    run = Run(service)
    run.list(*(f"t_{number}" for number in range(21, 60)))
    return run, run.end()


def allow(connection: Connection, run_id: int, page: str = "1001") -> int:
    allowed: int = call(
        connection,
        "select convsync_api.allow_deletions_of_run(%(page)s, %(run)s)",
        page=page,
        run=run_id,
    )
    return allowed


def test_a_retry_asks_for_what_its_run_held_back_once_a_person_has_allowed_it(service: Connection) -> None:
    run, document = held_back(service)
    assert document["reason"] == "deletion_breaker"
    with pytest.raises(psycopg.DatabaseError, match="holds back the deletion of 21 conversations") as refused:
        run.retry()
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("ZC003", "run_id")
    assert call(service, "select convsync_api.get_sync_run(%(run)s)", run=run.run_id)["status"] == "partial"

    assert allow(service, run.run_id) == 21
    # One of them has written since: it is not asked for.
    ingest(service, Message(PAGE, "20", "m_new", "in", run.tick()))
    run.retry()
    while work := run.work():
        for kind, thread in work:
            run.read(kind, thread, found=kind == "control")
    document = run.end()
    assert (document["status"], document["reason"]) == ("succeeded", None)
    assert (document["deletions_proposed"], document["deletions_confirmed"]) == (20, 20)
    # It was for that sync.
    again = Run(service, run.second)
    again.list("t_0")
    assert again.end()["reason"] == "deletion_breaker"


def test_a_retry_goes_on_with_what_failed_beside_what_is_held_back(service: Connection) -> None:
    known(service, 60)
    run = Run(service)
    run.list(*(f"t_{number}" for number in range(21, 60)), more="t_59")
    run.fail("thread", "t_59", "transient", "n1")
    assert run.end()["reason"] == "deletion_breaker"
    run.retry()
    assert run.work() == [("thread", "t_59")]
    run.fail("thread", "t_59", "transient", "n1")
    assert run.end()["reason"] == "deletion_breaker"


def test_only_the_last_walk_is_allowed_what_it_holds_back(service: Connection) -> None:
    run, _ = held_back(service)
    later = Run(service, run.second)
    later.list(*(f"t_{number}" for number in range(22, 60)))
    assert later.end()["reason"] == "deletion_breaker"
    for run_id, told in [
        (run.run_id, f"run {later.run_id} has walked the list"),
        (later.run_id + 1, "has no run"),
    ]:
        with pytest.raises(psycopg.DatabaseError, match=told):
            allow(service, run_id)
    with pytest.raises(psycopg.DatabaseError) as refused:
        allow(service, later.run_id, page="9")
    assert refused.value.sqlstate == "ZC001"
    assert allow(service, later.run_id) == 22


def test_a_run_that_holds_nothing_back_is_not_allowed_anything(run: Run) -> None:
    run.list(*all_but())
    run.end()
    with pytest.raises(psycopg.DatabaseError, match="it holds no deletions back") as refused:
        allow(run.connection, run.run_id)
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("ZC003", "run_id")


@pytest.mark.parametrize("kind", ["confirm", "control"])
def test_nothing_is_written_of_threads_before_their_conversations_are_locked(
    run: Run, connect: Connect, owner: Connection, kind: str
) -> None:
    """Whoever erases a person holds the conversation and waits for what is written of its thread."""
    observer = connect()
    run.list(*all_but(3, 7))
    if kind == "control":
        # What another token was told is set back by this one.
        run.read("confirm", "t_3", found=False, token=1)
        run.read("confirm", "t_7", found=False, token=0)
    thread = next(thread for one, thread in run.work() if one == kind)
    proof = "insert into convsync.thread_proofs (page_id, thread_id) values ('1001', 't_3')"
    owner.execute(proof + " on conflict do nothing")
    owner.execute("begin")
    owner.execute("select from convsync.messenger_conversations for update")
    with ThreadPoolExecutor(1) as pool:
        applied = pool.submit(run.read, kind, thread, found=True)
        try:
            eventually(
                lambda: rows(
                    observer,
                    "select from pg_stat_activity where pid = %(pid)s and wait_event_type = 'Lock'",
                    pid=run.connection.info.backend_pid,
                )
            )
            owner.execute("select from convsync.thread_proofs for update nowait")
            owner.execute("select from convsync.sync_cursors for update nowait")
        finally:
            owner.execute("rollback")
        assert applied.result(timeout=30)


def test_no_page_is_written_under_the_locks_of_conversations(service: Connection, owner: Connection) -> None:
    """Whoever purges a Page holds it and waits for its conversations."""
    known(service, 60)
    call(service, "select convsync_api.allow_deletions('1001', 21)")
    run = Run(service)
    with service.transaction():
        run.list(*(f"t_{number}" for number in range(21, 60)))
        assert len(run.work()) == 21
        owner.execute("select from convsync.pages for no key update nowait")


@pytest.mark.parametrize(("page", "number", "sqlstate"), [("1001", 0, "ZC003"), ("9", 5, "ZC001")])
def test_letting_them_pass_is_for_a_page_and_a_number(
    run: Run, page: str, number: int, sqlstate: str
) -> None:
    with pytest.raises(psycopg.DatabaseError) as raised:
        run.connection.execute("select convsync_api.allow_deletions(%s, %s)", [page, number])
    assert raised.value.sqlstate == sqlstate


@pytest.mark.parametrize(
    ("kind", "moment", "hint"), [("thread", NOW, "p_kind"), ("confirm", None, "p_observed_at")]
)
def test_wrong_arguments_are_named(run: Run, kind: str, moment: datetime | None, hint: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as raised:
        run.connection.execute(
            "select convsync_api.apply_confirmation('1001', %s, %s, %s, 't_3', %s, true)",
            [run.run_id, run.fence, kind, moment],
        )
    assert (raised.value.sqlstate, raised.value.diag.message_hint) == ("ZC003", hint)
