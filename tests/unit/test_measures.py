"""What the metrics are made of: histograms, measured calls, and what is asked of the database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from convsync.errors import BadData, DatabaseUnavailable
from convsync.facts import Json
from convsync.observe.metrics import DatabaseNumbers, Histogram, WritePath
from convsync.observe.page_metrics import CertificateNumbers
from convsync.store import Metrics
from convsync.tasks import end


def test_a_histogram_counts_from_the_left_and_a_bound_belongs_below_itself() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0.5, 1, 1.5, 5, 5.1, 100):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("5.0", 4), ("+Inf", 6)]
    assert histogram.sum == pytest.approx(113.1)


def test_a_call_is_measured_by_how_it_ended_and_its_error_keeps_its_text() -> None:
    path = WritePath()
    with path.call(40):
        pass
    with pytest.raises(BadData), path.call(3):
        raise BadData("Failing row contains (a secret)", sqlstate="22003")
    with pytest.raises(asyncio.CancelledError), path.call(3):
        raise asyncio.CancelledError
    assert path.call_seconds["committed"].buckets()[-1] == ("+Inf", 1)
    assert path.call_seconds["failed"].buckets()[-1] == ("+Inf", 2)
    assert (path.commit_facts.buckets()[-1], path.commit_facts.sum) == (("+Inf", 1), 40)
    assert path.last_failure == ("CancelledError", None)


class Store:
    def __init__(self) -> None:
        self.asked = 0
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def metrics(self) -> Metrics:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Metrics([], self.asked, 0.0, [])

    async def page_metrics(self) -> Json:
        return {"tokens": {}}

    async def certificate_metrics(self) -> Json:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {"conversations": self.asked}


def numbers(store: Any, **options: Any) -> DatabaseNumbers:
    return DatabaseNumbers(store, **options)


async def test_the_database_is_asked_once_for_scrapes_that_come_together_or_soon_after() -> None:
    store = Store()
    store.gate.clear()
    known = numbers(store)
    scrapes = [asyncio.ensure_future(known.refresh()) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*scrapes)
    await known.refresh()
    assert store.asked == 1
    assert known.known == Metrics([], 1, 0.0, [])


async def test_what_has_become_old_is_asked_again() -> None:
    store = Store()
    known = numbers(store, keep=0.0)
    await known.refresh()
    await known.refresh()
    assert known.known == Metrics([], 2, 0.0, [])


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), TimeoutError()])
async def test_a_database_that_is_away_is_said_to_be_and_old_numbers_are_not_shown_for_new(
    error: Exception,
) -> None:
    store = Store()
    known = numbers(store, keep=0.0)
    await known.refresh()
    assert known.known is not None
    store.error = error
    with capture_logs() as logs:
        await known.refresh()
    assert known.known is None
    assert known.pages is None
    assert [line["event"] for line in logs] == ["metrics_without_database"]
    store.error = None
    await known.refresh()
    assert known.known is not None


async def test_a_database_that_does_not_answer_is_not_waited_for() -> None:
    store = Store()
    store.gate.clear()
    known = numbers(store, patience=0.01)
    async with asyncio.timeout(5):
        await known.refresh()
        await known.refresh()
    assert known.known is None
    assert store.asked == 1, "an answer that does not come is not asked for by every scrape"


class Pause:
    """Between two questions: the test sees it begin, and ends it."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.over = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        assert seconds == 300
        self.begun.release()
        await self.over.acquire()


async def test_the_certificate_is_asked_for_beside_the_scrapes_and_by_nobody_who_is_not_scraped() -> None:
    store, pause = Store(), Pause()
    known = CertificateNumbers(store, sleep=pause.sleep)
    asking = asyncio.create_task(known.run())
    try:
        await asyncio.sleep(0)
        assert store.asked == 0
        async with asyncio.timeout(10):
            for _ in range(3):
                known.want()
            await pause.begun.acquire()
            assert known.known == {"conversations": 1}
            known.want()
            await asyncio.sleep(0)
            assert store.asked == 1, "not so soon again"

            store.error = DatabaseUnavailable("away")
            with capture_logs() as logs:
                pause.over.release()
                await pause.begun.acquire()
            assert known.known is None, "old numbers are not shown for new"
            assert [line["event"] for line in logs] == ["metrics_without_certificate"]

            store.error = None
            pause.over.release()
            await asyncio.sleep(0)
            assert store.asked == 2, "nobody has scraped since"
            known.want()
            await pause.begun.acquire()
            assert known.known == {"conversations": 3}
    finally:
        await end(asking)


async def test_that_the_numbers_of_pages_take_too_long_does_not_say_that_the_database_is_away() -> None:
    store = Store()
    known = numbers(store, keep=0.0, patience=0.01)
    await known.refresh()
    assert known.pages == {"tokens": {}}

    async def never() -> Json:
        await asyncio.Event().wait()
        raise AssertionError

    store.page_metrics = never  # type: ignore[method-assign]
    with capture_logs() as logs:
        async with asyncio.timeout(10):
            await known.refresh()
    assert known.known is not None
    assert known.pages is None
    assert [line["event"] for line in logs] == ["metrics_without_pages"]
