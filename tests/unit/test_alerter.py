"""Alerts: told once while a cause lasts, again after long, once when it is over; and in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr
from structlog.testing import capture_logs

from convsync.errors import DatabaseUnavailable
from convsync.facts import Json
from convsync.observe.alerts import (
    CAUSES,
    EVENT_WRITES_FAILING,
    EVENTS_REFUSED_BY_DATABASE,
    Alerter,
    Cause,
    webhook_post,
)
from convsync.observe.metrics import WritePath
from convsync.observe.watch import WriteWatch
from convsync.store import Metrics
from secrets_hunt import marked

START = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
SECRET = marked("hook-token")
CAUSE = Cause("a_cause", "Something is wrong.", "Put it right.", quiet=60.0, again=3600.0)


class Clock:
    """Time that moves when a test says so, or when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)


class Receiver:
    """Gets what is posted; `answers` are given in turn, the last one for ever: a status or an exception."""

    def __init__(self, *answers: int | BaseException) -> None:
        self.answers = list(answers) or [200]
        self.notices: list[Json] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def post(self, body: bytes) -> int:
        self.reached.set()
        await self.gate.wait()
        self.notices.append(json.loads(body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def told(self) -> list[tuple[str, str]]:
        return [(notice["alert"], notice["state"]) for notice in self.notices]


@contextlib.asynccontextmanager
async def alerting(receiver: Receiver, clock: Clock, **options: Any) -> AsyncIterator[Alerter]:
    options = {"now": clock.now, "wall": clock.wall, "sleep": clock.sleep, **options}
    alerter = Alerter(receiver.post, rng=random.Random(1), **options)  # noqa: S311 - to be repeatable
    task = asyncio.create_task(alerter.run())
    try:
        yield alerter
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_another_process_tells_is_logged_and_not_sent() -> None:
    receiver, clock = Receiver(), Clock()
    asked: list[tuple[str, str]] = []

    async def tells(alert: str, state: str) -> bool:
        asked.append((alert, state))
        return state == "resolved"

    with capture_logs() as logs:
        async with alerting(receiver, clock, tells=tells) as alerter:
            alerter.fire(CAUSE)
            clock.seconds += 100
            alerter.clear(CAUSE)
            await alerter.drain(1)
            assert (alerter.sent, alerter.failed, alerter.dropped) == (1, 0, 0)
    assert asked == [("a_cause", "firing"), ("a_cause", "resolved")]
    assert receiver.told() == [("a_cause", "resolved")]
    assert [line["state"] for line in logs if line["event"] == "alert"] == ["firing", "resolved"]


async def test_a_cause_is_told_once_however_often_it_is_seen() -> None:
    receiver, clock = Receiver(), Clock()
    async with alerting(receiver, clock) as alerter:
        for number in range(1000):
            clock.seconds += 1
            alerter.fire(CAUSE, {"failures": number})
            alerter.remind()
        await alerter.drain(1)
        assert receiver.notices == [
            {
                "alert": "a_cause",
                "state": "firing",
                "since": "2026-11-03T12:00:01+00:00",
                "summary": "Something is wrong.",
                "remedy": "Put it right.",
                "details": {"failures": 0},
                "text": "convsync: a_cause\nSomething is wrong.\nPut it right.",
            }
        ]
        assert (alerter.firing(CAUSE), alerter.sent, alerter.failed, alerter.dropped) == (1, 1, 0, 0)


async def test_a_cause_that_lasts_is_told_again_after_long_with_what_is_known_by_then() -> None:
    receiver, clock = Receiver(), Clock()
    async with alerting(receiver, clock) as alerter:
        alerter.fire(CAUSE, {"failures": 1})
        for _ in range(2 * 3600):
            clock.seconds += 1
            alerter.fire(CAUSE, {"failures": int(clock.seconds)})
            alerter.remind()
        await alerter.drain(1)
        assert [notice["details"]["failures"] for notice in receiver.notices] == [1, 3600, 7200]
        assert {notice["since"] for notice in receiver.notices} == {"2026-11-03T12:00:00+00:00"}


async def test_it_is_over_once_and_only_when_it_was_quiet_for_a_while() -> None:
    receiver, clock = Receiver(), Clock()
    async with alerting(receiver, clock) as alerter:
        alerter.clear(CAUSE)  # nothing fires
        alerter.fire(CAUSE)
        clock.seconds = 50.0
        alerter.clear(CAUSE)
        alerter.fire(CAUSE)
        clock.seconds = 109.0
        alerter.clear(CAUSE)
        await alerter.drain(1)
        assert receiver.told() == [("a_cause", "firing")]
        clock.seconds = 110.0
        alerter.clear(CAUSE)
        alerter.clear(CAUSE)
        clock.seconds = 10_000.0
        alerter.remind()
        await alerter.drain(1)
        assert receiver.told() == [("a_cause", "firing"), ("a_cause", "resolved")]
        assert receiver.notices[1]["since"] == "2026-11-03T12:00:00+00:00"
        assert alerter.firing(CAUSE) == 0
        alerter.fire(CAUSE)
        await alerter.drain(1)
        assert receiver.told()[2:] == [("a_cause", "firing")]
        assert receiver.notices[2]["since"] == "2026-11-03T14:46:40+00:00"


async def test_two_pages_have_an_alert_each() -> None:
    receiver, clock = Receiver(), Clock()
    async with alerting(receiver, clock) as alerter:
        for _ in range(3):
            alerter.fire(CAUSE, {"code": 190}, page_id="104")
            alerter.fire(CAUSE, page_id="105")
        assert alerter.firing(CAUSE) == 2
        clock.seconds = 60.0
        alerter.clear(CAUSE, page_id="105")
        assert alerter.firing(CAUSE) == 1
        await alerter.drain(1)
        assert [(notice["state"], notice["details"]) for notice in receiver.notices] == [
            ("firing", {"page_id": "104", "code": 190}),
            ("firing", {"page_id": "105"}),
            ("resolved", {"page_id": "105"}),
        ]


@pytest.mark.parametrize(
    "failure",
    [500, 503, 429, aiohttp.ClientConnectionError(), OSError(), TimeoutError()],
    ids=lambda one: str(one) or type(one).__name__,
)
async def test_a_sending_that_fails_is_repeated_with_full_jitter(failure: int | BaseException) -> None:
    receiver, clock = Receiver(failure, failure, failure, 204), Clock()
    async with alerting(receiver, clock) as alerter:
        alerter.fire(CAUSE)
        await alerter.drain(1)
        assert receiver.told() == [("a_cause", "firing")] * 4
        assert (alerter.sent, alerter.failed) == (1, 0)
    assert all(0 <= pause <= bound for pause, bound in zip(clock.slept, (2, 4, 8), strict=True))
    assert len(set(clock.slept)) == 3


async def test_a_sending_that_never_succeeds_is_given_up_counted_and_logged_and_the_next_is_sent() -> None:
    receiver, clock = Receiver(*[503] * 5, 200), Clock()
    with capture_logs() as logs:
        async with alerting(receiver, clock) as alerter:
            alerter.fire(CAUSE)
            alerter.fire(EVENT_WRITES_FAILING)
            await alerter.drain(1)
            assert receiver.told() == [("a_cause", "firing")] * 5 + [("event_writes_failing", "firing")]
            assert (alerter.sent, alerter.failed) == (1, 1)
            assert max(clock.slept) <= 30
    (given_up,) = [line for line in logs if line["event"] == "alert_not_sent"]
    assert (given_up["log_level"], given_up["attempts"], given_up["status"]) == ("error", 5, 503)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
async def test_an_answer_that_will_not_change_is_not_asked_for_again(status: int) -> None:
    receiver, clock = Receiver(status), Clock()
    async with alerting(receiver, clock) as alerter:
        alerter.fire(CAUSE)
        await alerter.drain(1)
        assert (len(receiver.notices), alerter.sent, alerter.failed) == (1, 0, 1)


async def test_a_receiver_that_hangs_blocks_nobody_and_is_left_after_its_time() -> None:
    receiver, clock = Receiver(), Clock()
    receiver.gate.clear()
    async with alerting(receiver, clock, post_seconds=0.01) as alerter:
        alerter.fire(CAUSE)  # an ordinary function: whoever calls it does not wait
        await receiver.reached.wait()
        alerter.fire(EVENT_WRITES_FAILING)
        assert alerter.sent == 0
        await alerter.drain(5)
        assert (alerter.sent, alerter.failed) == (0, 2)
        receiver.gate.set()
        clock.seconds += 3600
        alerter.remind()
        await alerter.drain(1)
        assert alerter.sent == 2


async def test_what_waits_to_be_sent_is_bounded_and_what_is_dropped_is_counted_and_logged() -> None:
    receiver, clock = Receiver(), Clock()
    receiver.gate.clear()
    with capture_logs() as logs:
        async with alerting(receiver, clock, max_waiting=3) as alerter:
            alerter.fire(CAUSE, page_id="first")
            await receiver.reached.wait()
            for number in range(10):
                alerter.fire(CAUSE, page_id=str(number))
            assert alerter.dropped == 7
            receiver.gate.set()
            await alerter.drain(1)
            assert [notice["details"]["page_id"] for notice in receiver.notices] == ["first", "0", "1", "2"]
            # What fires is not forgotten with it.
            clock.seconds = 3600.0
            assert alerter.firing(CAUSE) == 11
    dropped = [line for line in logs if line["event"] == "alert_dropped"]
    assert [line["log_level"] for line in dropped] == ["error"] * 7


async def test_a_defect_of_the_sender_costs_one_notice() -> None:
    receiver, clock = Receiver(RuntimeError(f"https://hooks.example/{SECRET}"), 200), Clock()
    with capture_logs() as logs:
        async with alerting(receiver, clock) as alerter:
            alerter.fire(CAUSE)
            alerter.fire(EVENT_WRITES_FAILING)
            await alerter.drain(1)
            assert (alerter.sent, alerter.failed) == (1, 1)
    assert "RuntimeError" in str(logs)
    assert SECRET not in str(logs)


async def test_without_a_url_an_alert_is_still_a_line_in_the_log() -> None:
    clock = Clock()
    with capture_logs() as logs:
        async with webhook_post(None) as post:
            alerter = Alerter(post, now=clock.now, wall=clock.wall)
            for _ in range(500):
                alerter.fire(CAUSE, {"failures": 3})
            clock.seconds = 60.0
            alerter.clear(CAUSE)
            await alerter.drain(0)
    assert [(line["event"], line["log_level"], line["state"]) for line in logs] == [
        ("alert", "error", "firing"),
        ("alert", "info", "resolved"),
    ]
    assert (logs[0]["alert"], logs[0]["remedy"], logs[0]["details"]) == (
        "a_cause",
        "Put it right.",
        {"failures": 3},
    )
    assert alerter.dropped == 0


async def test_the_url_is_shown_nowhere_whatever_becomes_of_it() -> None:
    async def refuse(request: web.Request) -> web.Response:
        assert request.path == f"/{SECRET}"
        return web.Response(status=302, headers={"Location": "/elsewhere"}, text=str(request.url))

    async def elsewhere(_request: web.Request) -> web.Response:
        return web.Response()  # it would take the notice; but only the operator says where alerts go

    app = web.Application()
    app.router.add_get("/elsewhere", elsewhere)
    app.router.add_post("/{token}", refuse)
    with capture_logs() as logs:
        async with TestServer(app) as server:
            gone = SecretStr(f"http://127.0.0.1:1/{SECRET}")
            refused = SecretStr(str(server.make_url(f"/{SECRET}")))
            unreadable = SecretStr(f"https://no host {SECRET}/")
            for url in (gone, refused, unreadable):
                clock = Clock()
                async with webhook_post(url) as post:
                    alerter = Alerter(post, sleep=clock.sleep, now=clock.now, wall=clock.wall)
                    alerter.fire(CAUSE)
                    task = asyncio.create_task(alerter.run())
                    await alerter.drain(10)
                    task.cancel()
                    assert (alerter.sent, alerter.failed) == (0, 1)
                    assert SECRET not in repr(vars(alerter))
    assert len([line for line in logs if line["event"] == "alert_not_sent"]) == 3
    assert SECRET not in str(logs)
    assert "127.0.0.1" not in str(logs)


def test_every_cause_says_what_it_is_and_what_to_do() -> None:
    assert len({cause.name for cause in CAUSES}) == len(CAUSES)
    for cause in CAUSES:
        assert cause.summary.endswith(".")
        assert cause.remedy.endswith(".")
        assert cause.quiet > 0
        assert cause.again >= 3600


# The watch


class Commit:
    """The counters of a group commit."""

    def __init__(self) -> None:
        self.deliveries = self.facts = self.batches = self.retries = self.poison = self.isolated = 0
        self.refused_full = self.refused_late = self.refused_unavailable = self.waiting = 0


class Watched:
    """A watch over counters that a test moves; `refused` is how many refused letters the database has."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.commit = Commit()
        self.path = WritePath()
        self.alerter = Alerter(None, now=self.clock.now, wall=self.clock.wall)
        self.refused: int | Exception = 0
        self.watch = WriteWatch(self.alerter, self.commit, self.path, self.ask, sleep=self.clock.sleep)

    async def ask(self) -> Metrics:
        if isinstance(self.refused, Exception):
            raise self.refused
        letters = [{"source": "webhook", "reason": "refused", "open": self.refused, "oldest_seconds": 1}]
        other = {"source": "webhook", "reason": "not_understood", "open": 1, "oldest_seconds": 1}
        return Metrics([other, *(letters if self.refused else [])], 0, 0.0, [])

    async def look(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.clock.seconds += 1
            await self.watch.look()

    def details(self, logs: list[Any]) -> list[Json]:
        return [line["details"] for line in logs if line["event"] == "alert"]


@pytest.mark.parametrize("why", ["full", "late", "unavailable"])
async def test_refused_deliveries_are_an_alert_until_commits_have_gone_well_for_a_minute(why: str) -> None:
    watched = Watched()
    commit, firing = watched.commit, lambda: watched.alerter.firing(EVENT_WRITES_FAILING)
    with capture_logs() as logs:
        commit.batches = 5
        await watched.look()
        assert not firing()
        with contextlib.suppress(DatabaseUnavailable), watched.path.call(7):
            raise DatabaseUnavailable("not for anybody's eyes", sqlstate="57P03")
        setattr(commit, f"refused_{why}", 3)
        await watched.look()
        assert firing()
        await watched.look(600)
        assert firing(), "that nobody sends anything shows nothing"
        setattr(commit, f"refused_{why}", 4)
        commit.batches += 1
        await watched.look(59)
        assert firing()
        await watched.look(600)
        assert firing(), "that commit came before the refusal, for all the watch knows"
        commit.batches += 1
        await watched.look()
        assert not firing()
    refused = {"full": 0, "late": 0, "unavailable": 0}
    failure = {"last_error": "DatabaseUnavailable", "sqlstate": "57P03"}
    assert watched.details(logs) == [
        {"refused_deliveries": {**refused, why: 3}, **failure},
        {"refused_deliveries": {**refused, why: 4}, **failure},
    ]
    assert "anybody" not in str(logs)


async def test_a_refusal_among_commits_keeps_the_alert_and_it_is_told_once() -> None:
    watched = Watched()
    with capture_logs() as logs:
        for _ in range(300):
            watched.commit.batches += 10
            watched.commit.refused_late += 1
            await watched.look()
    assert watched.alerter.firing(EVENT_WRITES_FAILING)
    assert len(watched.details(logs)) == 1


async def test_poison_is_an_alert_until_no_refused_dead_letter_waits() -> None:
    watched = Watched()
    with capture_logs() as logs:
        watched.commit.poison = 2
        await watched.look()
        assert watched.alerter.firing(EVENTS_REFUSED_BY_DATABASE)
        assert not watched.alerter.firing(EVENT_WRITES_FAILING)
        for state in (2, DatabaseUnavailable("away"), 1):
            watched.refused = state
            watched.commit.batches += 1
            await watched.look(200)
            assert watched.alerter.firing(EVENTS_REFUSED_BY_DATABASE), state
        watched.refused = 0  # what was not understood still waits; that is another matter
        await watched.look(60)
        assert not watched.alerter.firing(EVENTS_REFUSED_BY_DATABASE)
    assert watched.details(logs) == [{"events": 2}, {"events": 2}]


async def test_a_dead_letter_that_is_still_on_its_way_is_not_taken_for_settled() -> None:
    watched = Watched()
    watched.commit.poison = 1
    await watched.look(59)
    assert watched.alerter.firing(EVENTS_REFUSED_BY_DATABASE)


async def test_what_was_counted_before_the_watch_began_is_no_alert() -> None:
    watched = Watched()
    watched.commit.poison = watched.commit.refused_full = 5
    watched.watch = WriteWatch(watched.alerter, watched.commit, watched.path, watched.ask)
    await watched.look(5)
    assert not any(watched.alerter.firing(cause) for cause in CAUSES)


async def test_a_defect_of_the_watch_is_logged_and_it_goes_on() -> None:
    watched = Watched()
    seen: list[int] = []

    async def broken() -> None:
        seen.append(len(seen))
        if len(seen) == 1:
            raise RuntimeError("a defect")
        if len(seen) == 3:
            raise asyncio.CancelledError

    look: Callable[[], Awaitable[None]] = broken
    watched.watch.look = look  # type: ignore[method-assign]
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await watched.watch.run()
    assert len(seen) == 3
    assert [line["event"] for line in logs] == ["watch.defect"]
