"""The watch tells what the database gives it, says so only of what was told, and nothing ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from convsync.errors import DatabaseUnavailable
from convsync.observe.alerts import PROBLEMS, Alerter
from convsync.observe.problems import ProblemWatch
from convsync.store import Alert

SINCE = datetime(2026, 11, 20, 12, tzinfo=UTC)


def alert(page_id: str, problem: str = "sync_failed", state: Any = "firing") -> Alert:
    return Alert(page_id, problem, state, SINCE, {"run_id": "7"})


class Database:
    """Gives what it was made with, a few at a time, and writes down what was told."""

    def __init__(self, *given: Sequence[Alert] | Exception) -> None:
        self.given = list(given)
        self.told: list[tuple[str, str, str]] = []

    async def take_alerts(self, **how: Any) -> Sequence[Alert]:
        assert how == {"again_seconds": 86_400.0, "hold_seconds": 600.0, "limit": 1000, "look_seconds": 8.0}
        taken = self.given.pop(0) if self.given else []
        if isinstance(taken, Exception):
            raise taken
        return taken

    async def alert_told(self, *, page_ids: Sequence[str], problem: str, state: str) -> None:
        self.told += [(page_id, problem, state) for page_id in page_ids]


async def test_what_was_told_is_said_to_be_and_what_was_not_is_not() -> None:
    statuses = [204, 400, 204]

    async def post(body: bytes) -> int:
        return statuses.pop(0)

    database = Database([alert("1"), alert("2")], [alert("3", state="resolved")])
    await ProblemWatch(database, Alerter(post)).look()
    assert database.told == [("1", "sync_failed", "firing"), ("3", "sync_failed", "resolved")]


async def test_what_befell_many_pages_is_one_notice_that_names_some() -> None:
    pages = [str(number) for number in range(312)]
    bodies: list[Any] = []

    async def post(body: bytes) -> int:
        bodies.append(orjson.loads(body))
        return 204

    database = Database([alert(page_id, "token_invalid") for page_id in pages], [alert(one) for one in "123"])
    await ProblemWatch(database, Alerter(post)).look()
    assert len(database.told) == 315
    together, *each = bodies
    assert together["details"] == {"pages": 312, "page_ids": pages[:20]}
    assert together["text"].startswith("convsync: token_invalid of 312 Pages: 0, 1, 2,")
    assert together["text"].splitlines()[0].endswith(", 19, ..")
    assert [one["details"]["page_id"] for one in each] == ["1", "2", "3"]


async def test_without_an_address_the_log_is_told_and_that_is_enough() -> None:
    database = Database([alert("1")])
    with capture_logs() as logs:
        await ProblemWatch(database, Alerter(None)).look()
    assert database.told == [("1", "sync_failed", "firing")]
    (line,) = logs
    assert (line["log_level"], line["alert"], line["since"]) == ("error", "sync_failed", SINCE.isoformat())
    assert line["details"] == {"page_id": "1", "run_id": "7"}


async def test_a_problem_that_this_release_does_not_know_is_told_all_the_same() -> None:
    database = Database([alert("1", "of_a_newer_release")])
    with capture_logs() as logs:
        await ProblemWatch(database, Alerter(None)).look()
    assert database.told == [("1", "of_a_newer_release", "firing")]
    assert "convsync status" in logs[0]["remedy"]


async def test_neither_a_database_that_is_away_nor_a_defect_ends_the_watch() -> None:
    looks = 0

    async def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise asyncio.CancelledError

    database = Database(DatabaseUnavailable("away"), RuntimeError("a defect"), [alert("1")])
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await ProblemWatch(database, Alerter(None), sleep=sleep).run()
    assert [line["event"] for line in logs] == ["problems_unknown", "problems.defect", "alert"]
    assert database.told == [("1", "sync_failed", "firing")]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=lambda problem: problem.name)
def test_each_problem_says_what_it_is_and_what_to_do(problem: Any) -> None:
    assert problem.summary.endswith(".")
    assert problem.remedy.endswith(".")
    assert "convsync" in problem.remedy or "allow_deletions" in problem.remedy
