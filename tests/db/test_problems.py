"""What needs a person is found in what is stored, told once by whoever looks, and told when it is over."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sessions import ADA, OTHER_PAGE, PAGE, Connect, Connection, at, call, ingest, rows, told

from convsync.facts import Json

MINUTE, HOUR, DAY = 60, 3600, 86_400
HOLD = 600


class Mirror:
    """A database with one Page, whose clock the test moves; `owner` for what no function does."""

    def __init__(self, service: Connection, owner: Connection) -> None:
        self.service = service
        self.owner = owner
        self.clock(0)
        self.add_page(PAGE)

    def clock(self, seconds: float) -> None:
        for connection in (self.service, self.owner):
            connection.execute("select set_config('convsync.now', %s, false)", [at(seconds).isoformat()])

    def add_page(self, page_id: str) -> None:
        call(
            self.service,
            r"""select convsync_api.add_page(p_page_id => %(page_id)s, p_token_sealed => '\x01',
                p_token_key_id => 'k')""",
            page_id=page_id,
        )

    def begin(self, mode: str, page_id: str = PAGE) -> tuple[int, int]:
        (run,) = rows(
            self.service,
            "select run_id, fence from convsync_api.begin_sync(%(page_id)s, %(mode)s, 'a', 1000000)",
            page_id=page_id,
            mode=mode,
        )
        return run["run_id"], run["fence"]

    def read_list(self, run: tuple[int, int], page_id: str = PAGE) -> None:
        """To its end, and its front once more."""
        for _ in range(2):
            rows(
                self.service,
                """select convsync_api.apply_sync_page(%(page_id)s, %(run_id)s, %(fence)s, 'list', null, null,
                   null, %(at)s::timestamptz, '[]', '[]')""",
                page_id=page_id,
                run_id=run[0],
                fence=run[1],
                at=call(self.service, "select current_setting('convsync.now')"),
            )

    def finish(self, run: tuple[int, int], failure: str | None = None, page_id: str = PAGE) -> str:
        status: str = call(
            self.service,
            "select convsync_api.finish_sync(%(page_id)s, %(run_id)s, %(fence)s, %(failure)s)",
            page_id=page_id,
            run_id=run[0],
            fence=run[1],
            failure=failure,
        )
        return status

    def succeed(self, mode: str = "incremental", page_id: str = PAGE) -> int:
        run = self.begin(mode, page_id)
        self.read_list(run, page_id)
        assert self.finish(run, page_id=page_id) == "succeeded"
        return run[0]

    def fail(self, mode: str = "incremental", reason: str = "internal_error", page_id: str = PAGE) -> int:
        run = self.begin(mode, page_id)
        assert self.finish(run, reason, page_id) == "failed"
        return run[0]

    def break_off(self, mode: str = "incremental") -> int:
        """A run whose list cannot be read."""
        run = self.begin(mode)
        call(
            self.service,
            """select convsync_api.fail_sync_batch(%(page_id)s, %(run_id)s, %(fence)s, 'list', null, null, 3,
               '{"class": "transient"}')""",
            page_id=PAGE,
            run_id=run[0],
            fence=run[1],
        )
        assert self.finish(run) == "partial"
        return run[0]

    def hold_deletions_back(self) -> int:
        run = self.begin("reconcile")
        self.read_list(run)
        self.owner.execute(
            "update convsync.sync_runs set deletions_held_back = true where run_id = %s", [run[0]]
        )
        assert self.finish(run) == "partial"
        return run[0]

    def token(self, state: str) -> None:
        call(self.service, "select convsync_api.mark_token(%(p)s, %(s)s, 'expired')", p=PAGE, s=state)

    def take(self, connection: Connection | None = None, *, limit: int = 3, look: float = 0) -> list[Json]:
        return rows(
            connection or self.service,
            "select * from convsync_api.take_alerts(86400, %(hold)s, %(limit)s, %(look)s::numeric)",
            hold=HOLD,
            limit=limit,
            look=look,
        )

    def tell(self) -> list[tuple[str, str]]:
        """Take all there is, kind by kind, and say that it was told."""
        told: list[tuple[str, str]] = []
        while taken := self.take():
            kinds = {(one["problem"], one["state"]) for one in taken}
            ((problem, state),) = kinds
            rows(
                self.service,
                "select convsync_api.alert_told(%(page_ids)s, %(problem)s, %(state)s)",
                page_ids=[one["page_id"] for one in taken],
                problem=problem,
                state=state,
            )
            told += [(problem, state)] * len(taken)
        return told

    def metrics(self) -> Json:
        found: Json = call(self.service, "select convsync_api.page_metrics()")
        return found

    def problems(self) -> dict[str, list[str]]:
        return {one["problem"]: one["page_ids"] for one in self.metrics()["problems"]}


@pytest.fixture
def mirror(service: Connection, owner: Connection) -> Mirror:
    return Mirror(service, owner)


def test_a_page_that_is_in_step_needs_nobody(mirror: Mirror) -> None:
    mirror.succeed("full")
    assert mirror.take() == []
    assert mirror.problems() == {}


def test_a_page_that_is_new_needs_nobody_yet(mirror: Mirror) -> None:
    mirror.clock(25 * MINUTE)
    assert mirror.take() == []
    mirror.begin("full")
    mirror.clock(31 * MINUTE)
    assert mirror.take() == []


def token_invalid(mirror: Mirror) -> Json:
    mirror.token("invalid")
    return {"checked_at": "2025-03-01T12:00:00+00:00"}


def sync_failed(mirror: Mirror) -> Json:
    run_id = mirror.fail("reconcile", "permission_denied")
    return {"run_id": str(run_id), "mode": "reconcile", "reason": "permission_denied"}


def sync_partial(mirror: Mirror) -> Json:
    run_id = mirror.break_off()
    return {"run_id": str(run_id), "mode": "incremental", "reason": "failed_batches"}


def deletions_held_back(mirror: Mirror) -> Json:
    return {"run_id": str(mirror.hold_deletions_back()), "mode": "reconcile"}


def webhooks_silent(mirror: Mirror) -> Json:
    ingest(mirror.service, told("m_1", 0))
    ingest(mirror.service, told("m_2", 16 * MINUTE), source="sync")
    return {"last_webhook_at": "2025-03-01T12:00:00+00:00"}


def sync_overdue(mirror: Mirror) -> Json:
    mirror.clock(61 * MINUTE)
    return {"reason": "sync_overdue", "synced_at": "2025-03-01T12:00:00+00:00"}


def mend(mirror: Mirror) -> None:
    mirror.clock(3 * DAY)
    mirror.token("valid")
    ingest(mirror.service, told("m_3", 3 * DAY))
    mirror.succeed("reconcile")
    mirror.succeed()


PROBLEMS = [token_invalid, sync_failed, sync_partial, deletions_held_back, webhooks_silent, sync_overdue]


@pytest.mark.parametrize("happens", PROBLEMS, ids=lambda happens: happens.__name__)
def test_each_problem_is_told_once_with_what_is_known_of_it_and_again_when_it_is_over(
    mirror: Mirror, happens: Any
) -> None:
    problem = happens.__name__
    mirror.succeed("full")
    details = happens(mirror)
    assert mirror.problems() == {problem: [PAGE]}
    (taken,) = mirror.take()
    since = call(mirror.service, "select current_setting('convsync.now')::timestamptz")
    assert taken == {
        "page_id": PAGE,
        "problem": problem,
        "state": "firing",
        "since": since,
        "details": details,
    }
    mirror.clock(DAY)  # nobody said that it was told
    assert (problem, "firing") in mirror.tell()
    for _ in range(3):
        assert problem not in dict(mirror.tell()), "it was told"
    mirror.clock(2 * DAY + 1)
    assert (problem, "firing") in mirror.tell(), "it still stands a day later"

    mend(mirror)
    assert mirror.problems() == {}
    assert (problem, "resolved") in mirror.tell()
    assert mirror.tell() == []
    assert mirror.owner.execute("select from convsync.alerts").fetchall() == []


def test_what_goes_on_failing_the_same_way_is_one_alert(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.fail()
    assert mirror.tell() == [("sync_failed", "firing")]
    for number in range(1, 4):
        mirror.clock(number * MINUTE)
        run_id = mirror.fail()
        assert mirror.tell() == []
    # It is the latest that is shown with it.
    row = mirror.owner.execute("select details ->> 'run_id' as run_id from convsync.alerts").fetchone()
    assert row == {"run_id": str(run_id)}
    mirror.succeed()
    assert mirror.tell() == [("sync_failed", "resolved")]


def test_of_a_dead_token_nobody_hears_twice(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.token("invalid")
    mirror.fail(reason="token_invalid")
    assert mirror.tell() == [("token_invalid", "firing")]


def test_a_run_that_is_tried_again_is_not_well_before_it_has_ended_well(mirror: Mirror) -> None:
    mirror.succeed("full")
    run_id = mirror.break_off()
    assert mirror.tell() == [("sync_partial", "firing")]
    (again,) = rows(
        mirror.service,
        "select * from convsync_api.retry_sync(%(page_id)s, %(run_id)s, 'a', 1000000)",
        page_id=PAGE,
        run_id=run_id,
    )
    assert mirror.tell() == []
    mirror.read_list((run_id, again["fence"]))
    assert mirror.finish((run_id, again["fence"])) == "succeeded"
    assert mirror.tell() == [("sync_partial", "resolved")]


def test_that_a_later_walk_failed_does_not_say_that_nothing_is_missing(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.hold_deletions_back()
    assert mirror.tell() == [("deletions_held_back", "firing")]
    mirror.fail("reconcile")
    assert mirror.tell() == [("sync_failed", "firing")]
    mirror.succeed("reconcile")
    assert sorted(mirror.tell()) == [("deletions_held_back", "resolved"), ("sync_failed", "resolved")]


def test_what_is_over_before_anybody_was_told_is_told_to_nobody(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.fail()
    assert len(mirror.take()) == 1  # by a process that dies now
    mirror.succeed()
    assert mirror.tell() == []
    mirror.clock(HOLD)
    assert mirror.tell() == []
    assert mirror.owner.execute("select from convsync.alerts").fetchall() == []


def test_nor_by_whoever_does_not_look_because_another_has(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.fail()
    assert len(mirror.take()) == 1  # by a process that cannot reach anybody
    mirror.clock(HOLD - 1)
    mirror.succeed()
    assert mirror.take(look=8) == [], "it is over, and still held"
    mirror.clock(HOLD)
    assert mirror.take(look=8) == [], "nobody was told of it"


def test_what_comes_back_while_its_end_is_told_is_told_anew(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.fail()
    assert mirror.tell() == [("sync_failed", "firing")]
    mirror.succeed()
    (taken,) = mirror.take()
    assert taken["state"] == "resolved"
    mirror.clock(MINUTE)
    mirror.fail()
    assert mirror.take() == [], "its end is being told"
    call(mirror.service, "select convsync_api.alert_told(array[%(p)s], 'sync_failed', 'resolved')", p=PAGE)
    (taken,) = mirror.take()
    assert (taken["state"], taken["since"]) == ("firing", at(MINUTE))


def test_what_nobody_says_was_told_is_offered_again_and_to_one_at_a_time(
    mirror: Mirror, connect: Connect
) -> None:
    other = connect("another process")
    other.execute("select set_config('convsync.now', %s, false)", [at(0).isoformat()])
    mirror.succeed("full")
    mirror.fail()
    assert len(mirror.take()) == 1
    assert mirror.take(other) == []
    for connection in (other, mirror.service):
        connection.execute("select set_config('convsync.now', %s, false)", [at(HOLD).isoformat()])
    assert len(mirror.take(other)) == 1
    assert mirror.take() == []


def test_of_two_processes_that_look_at_once_one_is_given_it(mirror: Mirror, connect: Connect) -> None:
    other = connect("another process")
    other.execute("select set_config('convsync.now', %s, false)", [at(0).isoformat()])
    mirror.succeed("full")
    mirror.fail()
    other.execute("begin")
    assert len(mirror.take(other)) == 1
    assert mirror.take() == [], "it neither waits nor takes the same"
    other.execute("commit")
    assert mirror.take() == []


def test_however_many_pages_have_it_few_are_taken_at_once_and_each_is_told(mirror: Mirror) -> None:
    pages = [f"9{number:03}" for number in range(7)]
    mirror.succeed("full")
    for page_id in pages:
        mirror.add_page(page_id)
        mirror.fail(page_id=page_id)
    found = []
    while taken := mirror.take():
        assert len(taken) <= 3
        found += [one["page_id"] for one in taken]
    assert sorted(found) == pages


def test_what_many_pages_have_is_taken_together_and_nothing_else_with_it(mirror: Mirror) -> None:
    pages = [f"9{number:03}" for number in range(7)]
    mirror.succeed("full")
    mirror.token("invalid")
    for page_id in pages:
        mirror.add_page(page_id)
        mirror.fail(page_id=page_id)
    taken = [mirror.take(limit=100) for _ in range(3)]
    assert [{one["problem"] for one in each} for each in taken] == [{"sync_failed"}, {"token_invalid"}, set()]
    assert sorted(one["page_id"] for one in taken[0]) == pages


def test_one_look_serves_all_who_ask_within_its_time(mirror: Mirror, connect: Connect) -> None:
    mirror.succeed("full")
    assert mirror.take(look=8) == []
    mirror.fail()
    mirror.clock(8)
    assert mirror.take(look=8) == [], "somebody has looked"
    mirror.clock(8.5)
    assert [one["problem"] for one in mirror.take(look=8)] == ["sync_failed"]
    # What is offered again is, whoever looked.
    mirror.clock(8.5 + HOLD)
    mirror.take(look=8)
    mirror.owner.execute("update convsync.alerts set taken_until = null")
    assert [one["problem"] for one in mirror.take(look=8)] == ["sync_failed"]
    # A clock that was ahead keeps nobody from looking.
    mirror.owner.execute("update convsync.alert_looks set looked_at = looked_at + interval '1 year'")
    mirror.succeed()
    mirror.owner.execute("update convsync.alerts set told_at = since, taken_until = null")
    assert [one["state"] for one in mirror.take(look=8)] == ["resolved"]


def test_a_page_that_is_removed_needs_nobody_any_more(mirror: Mirror) -> None:
    mirror.succeed("full")
    mirror.fail()
    assert mirror.tell() == [("sync_failed", "firing")]
    call(mirror.service, "select convsync_api.remove_page(%(p)s)", p=PAGE)
    assert mirror.tell() == [("sync_failed", "resolved")]
    assert mirror.metrics()["freshness"] == []


def test_a_page_that_is_never_synced_or_whose_first_sync_stands_still_is_overdue(mirror: Mirror) -> None:
    mirror.clock(31 * MINUTE)
    (taken,) = mirror.take()
    assert (taken["problem"], taken["details"]["reason"]) == ("sync_overdue", "never_synced")
    run = mirror.begin("full")
    assert mirror.problems() == {}
    mirror.clock(31 * MINUTE + HOUR)
    assert mirror.problems() == {}
    mirror.clock(31 * MINUTE + HOUR + 1)
    assert mirror.problems() == {"sync_overdue": [PAGE]}
    mirror.read_list(run)
    assert mirror.problems() == {}, "it goes on"


def test_where_no_sync_begins_by_itself_none_is_overdue(mirror: Mirror) -> None:
    call(mirror.service, "select convsync_api.set_sync_schedule(0, 0)")
    mirror.clock(30 * DAY)
    assert mirror.problems() == {}


def test_webhooks_of_a_page_that_never_had_any_are_not_silent(mirror: Mirror) -> None:
    mirror.succeed("full")
    ingest(mirror.service, told("m_2", 16 * MINUTE), source="sync")
    assert mirror.problems() == {}
    call(mirror.service, "select convsync_api.mark_subscribed(%(p)s)", p=PAGE)
    assert mirror.problems() == {"webhooks_silent": [PAGE]}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [("0, 600, 3", "p_again_seconds"), ("86400, null, 3", "p_hold_seconds")],
)
def test_times_that_make_no_sense_are_refused(service: Connection, arguments: str, hint: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as refused:
        service.execute(f"select convsync_api.take_alerts({arguments})")  # type: ignore[arg-type]
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("ZC003", hint)
    with pytest.raises(psycopg.DatabaseError) as refused:
        service.execute("select convsync_api.alert_told('{1}', 'sync_failed', 'told')")
    assert (refused.value.sqlstate, refused.value.diag.message_hint) == ("ZC003", "p_state")


# What monitoring reads of Pages


def test_the_numbers_of_pages_add_up(mirror: Mirror) -> None:
    mirror.add_page(OTHER_PAGE)
    mirror.succeed("full")
    mirror.token("valid")
    mirror.begin("reconcile")
    mirror.clock(20 * MINUTE)
    mirror.begin("full", OTHER_PAGE)
    mirror.clock(29 * MINUTE)
    assert mirror.metrics() == {
        "tokens": {"valid": 1, "unchecked": 1},
        "freshness": [
            {"freshness": "fresh", "reason": "", "pages": 1},
            {"freshness": "stale", "reason": "first_sync", "pages": 1},
        ],
        "ages": [{"page_id": PAGE, "seconds": 29 * 60}, {"page_id": OTHER_PAGE, "seconds": 29 * 60}],
        "problems": [],
        "budgets": [],
        "runs": [
            {"mode": "full", "status": "running", "runs": 1},
            {"mode": "reconcile", "status": "running", "runs": 1},
        ],
    }


def test_usage_and_blocks_are_told_as_long_as_they_hold(mirror: Mirror) -> None:
    record = """select convsync_api.record_call(%(page_id)s, 400, 5, %(usage)s::jsonb, null, null, %(scope)s,
        %(seconds)s::numeric, 'a block')"""
    for page_id, usage, scope, seconds in (
        (PAGE, '{"percent": 40}', None, None),
        (OTHER_PAGE, None, "page", 600),
        (PAGE, '{"percent": 80, "app_percent": 20}', "app", 60),
    ):
        call(mirror.service, record, page_id=page_id, usage=usage, scope=scope, seconds=seconds)
    mirror.clock(30)
    assert mirror.metrics()["budgets"] == [
        {"page_id": "", "blocked_seconds": 30, "usage_percent": 20},
        {"page_id": PAGE, "blocked_seconds": None, "usage_percent": 80},
        {"page_id": OTHER_PAGE, "blocked_seconds": 570, "usage_percent": None},
    ]
    mirror.clock(HOUR)
    assert mirror.metrics()["budgets"] == []


def test_however_many_pages_there_are_the_answer_stays_short(mirror: Mirror) -> None:
    mirror.succeed("full")
    for number in range(120):
        mirror.add_page(f"9{number:03}")
        mirror.fail(page_id=f"9{number:03}")
    found = mirror.metrics()
    (failed,) = found["problems"]
    assert (failed["problem"], failed["pages"], len(failed["page_ids"])) == ("sync_failed", 120, 100)
    assert len(found["ages"]) == 100
    certificate = call(mirror.service, "select convsync_api.certificate_metrics()")
    assert len(certificate["pages"]) == 100


def test_the_certificate_of_all_pages_is_the_sum_of_theirs(mirror: Mirror) -> None:
    thread = {
        "thread_id": "t_1", "sender_id": ADA, "next_cursor": None, "updated_time": at(0).isoformat(),
        "message_count": 1, "newest_id": "m_1", "newest": at(0).isoformat(), "oldest": at(0).isoformat(),
        "read": "complete", "unreadable": 0,
    }  # fmt: skip
    ingest(mirror.service, told("m_1"), told("m_2", sender="2002"))
    mirror.owner.execute(
        "update convsync.messenger_conversations set thread_id = 't_1' where sender_id = %s", [ADA]
    )
    run = mirror.begin("full")
    rows(
        mirror.service,
        """select convsync_api.apply_sync_page(%(page_id)s, %(run_id)s, %(fence)s, 'list', null, null, null,
           %(at)s::timestamptz, '[]', %(threads)s)""",
        page_id=PAGE,
        run_id=run[0],
        fence=run[1],
        at=at(0),
        threads=psycopg.types.json.Jsonb([thread]),
    )

    def told_by(name: str) -> Any:
        return call(mirror.service, "select convsync_api.certificate(%(p)s)", p=PAGE)[name]

    assert (told_by("conversations"), told_by("complete")) == (2, 1)
    assert call(mirror.service, "select convsync_api.certificate_metrics()") == {
        "conversations": 2,
        "complete": 1,
        "pages": [{"page_id": PAGE, "conversations": 2, "complete": 1}],
    }


def test_an_empty_database_has_no_pages_to_tell_of(service: Connection) -> None:
    assert call(service, "select convsync_api.page_metrics()") == {
        "tokens": {}, "freshness": [], "ages": [], "problems": [], "budgets": [], "runs": [],
    }  # fmt: skip
    assert call(service, "select convsync_api.certificate_metrics()") == {
        "conversations": 0, "complete": 0, "pages": [],
    }  # fmt: skip
