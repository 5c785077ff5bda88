"""What becomes of conversations that a list did not show: proposals, their direct reads, and the control."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import PAGE, Connection, call, ingest, rows

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

    def tick(self) -> datetime:
        self.second += 1
        moment = at(self.second)
        self.connection.execute("select set_config('convsync.now', %s, false)", [moment.isoformat()])
        return moment

    def list(self, *threads: str) -> None:
        """Walk the list, twice as it has to be: these are all."""
        for walk_pass in (1, 2):
            moment = self.tick()
            facts = [Thread(PAGE, f"2{thread[2:]}", thread, moment, {}) for thread in threads]
            listed = [
                {
                    "thread_id": thread,
                    "sender_id": f"2{thread[2:]}",
                    "updated_time": BEFORE.isoformat(),
                    "message_count": 0,
                    "read": "complete",
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

    def read(self, kind: str, thread: str, found: bool, *, token: int = 0) -> bool:
        moment = self.tick()
        self.tick()
        applied: bool = call(
            self.connection,
            """select convsync_api.apply_confirmation('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s,
               %(at)s, %(found)s, %(updated)s, 7, %(token)s)""",
            run=self.run_id,
            fence=self.fence,
            kind=kind,
            thread=thread,
            at=moment,
            found=found,
            updated=BEFORE if found else None,
            token=token,
        )
        return applied

    def fail(self, kind: str, thread: str, error_class: str) -> None:
        self.tick()
        call(
            self.connection,
            """select convsync_api.fail_sync_batch('1001', %(run)s, %(fence)s, %(kind)s, %(thread)s, null, 1,
               %(error)s)""",
            run=self.run_id,
            fence=self.fence,
            kind=kind,
            thread=thread,
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
