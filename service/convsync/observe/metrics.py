"""What /metrics serves: plain counters, made into Prometheus' text when somebody asks.

The write path serves thousands of deliveries a second, so it only adds to integers; a collector of the
application's own registry reads them at scrape time, beside what `measures` counts there and what the
database knows (`page_metrics`). `docs/metrics.md` describes each metric.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from convsync.errors import ConvsyncError
from convsync.facts import Json
from convsync.observe.alerts import CAUSES, Alerter
from convsync.observe.families import Family, to_families, to_metrics
from convsync.observe.measures import Measures
from convsync.observe.page_metrics import CertificateNumbers, certificate_metrics, page_metrics
from convsync.store import Metrics, Store

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FACTS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
_SOURCES: Final = ("webhook", "sync", "sql", "import")
_REASONS: Final = ("refused", "not_understood")
_REFUSALS: Final = ("erased", "purged")
_POOL: Final = {
    "pool_max": "convsync_pool_connections_max",
    "pool_size": "convsync_pool_connections",
    "pool_available": "convsync_pool_connections_available",
    "requests_waiting": "convsync_pool_waiting",
}

_log = structlog.get_logger(__name__)

# What all processes of this service have counted, this one among them.
AllProcesses = Callable[[], Awaitable[list[Family]]]


class WriteCounters(Protocol):
    """The counters of the group commit."""

    deliveries: int
    facts: int
    batches: int
    retries: int
    poison: int
    isolated: int
    refused_full: int
    refused_late: int
    refused_unavailable: int

    @property
    def waiting(self) -> int: ...


class Histogram:
    """How often a value fell into which bucket: a bound belongs to the bucket below it."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus counts from the left: each bucket holds those before it too."""
        names = [*(f"{float(bound)}" for bound in self._bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        return self._sum


class WritePath:
    """What the way from Meta's request to the commit is measured by, besides the group commit's counters."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.request_seconds = Histogram(_SECONDS)
        self.commit_facts = Histogram(_FACTS)
        self.call_seconds = {"committed": Histogram(_SECONDS), "failed": Histogram(_SECONDS)}
        # Of the last call that failed: the exception's name and SQLSTATE, never its text.
        self.last_failure: tuple[str, str | None] | None = None

    def answered(self, status: int, seconds: float) -> None:
        """A request of the webhook was answered."""
        self.requests[status] += 1
        self.request_seconds.observe(seconds)

    def call(self, facts: int) -> Call:
        """Measures one call of the database: `with path.call(len(facts)): ...`."""
        return Call(self, facts)


class Call:
    """One call of the database, measured from its begin to its end, and by how it ended."""

    __slots__ = ("_began", "_facts", "_path")

    def __init__(self, path: WritePath, facts: int) -> None:
        self._path = path
        self._facts = facts
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        if error is None:
            self._path.call_seconds["committed"].observe(seconds)
            self._path.commit_facts.observe(self._facts)
        else:
            self._path.call_seconds["failed"].observe(seconds)
            state = getattr(error, "sqlstate", None)
            self._path.last_failure = type(error).__name__, state if isinstance(state, str) else None


class DatabaseNumbers:
    """What the database knows, asked at most once in `keep` seconds, and given up after `patience`.

    None while the database is away: a scrape must not fail, nor wait long, because of it.
    """

    def __init__(self, store: Store, *, keep: float = 10.0, patience: float = 2.0) -> None:
        self._store = store
        self._keep = keep
        self._patience = patience
        self._asking = asyncio.Lock()
        self._asked: float | None = None
        self.known: Metrics | None = None
        self.pages: Json | None = None

    async def refresh(self) -> None:
        """Ask again, if what is known has become old."""
        async with self._asking:
            if self._asked is not None and time.monotonic() - self._asked < self._keep:
                return
            try:
                async with asyncio.timeout(self._patience):
                    self.known = await self._store.metrics()
            except (ConvsyncError, TimeoutError) as error:
                self.known = self.pages = None
                _log.warning("metrics_without_database", error=type(error).__name__)
            else:
                await self._refresh_pages()
            self._asked = time.monotonic()

    async def _refresh_pages(self) -> None:
        """Of very many Pages this takes longer, which says nothing of the database."""
        try:
            async with asyncio.timeout(2 * self._patience):
                self.pages = await self._store.page_metrics()
        except (ConvsyncError, TimeoutError) as error:
            self.pages = None
            _log.warning("metrics_without_pages", error=type(error).__name__)


class ServiceMetrics:
    """The metrics of one application; `served` is the answer to a scrape, `certificate` is run beside it.

    `all_processes` gathers what this and the others have counted, where one service is several processes.
    """

    def __init__(
        self,
        *,
        measures: Measures,
        build: Mapping[str, str],
        path: WritePath,
        commit: WriteCounters,
        store: Store,
        alerter: Alerter,
        open_streams: Callable[[], int],
        hidden_consumers: Collection[str] = (),
        all_processes: AllProcesses | None = None,
    ) -> None:
        self._numbers = DatabaseNumbers(store)
        self.certificate = CertificateNumbers(store)
        self._collector = _ServiceCollector(
            measures,
            build,
            path,
            commit,
            store,
            alerter,
            open_streams,
            self._numbers,
            self.certificate,
            tuple(hidden_consumers),
        )
        self._all_processes = all_processes

    def of_process(self) -> list[Family]:
        """What this process alone has counted."""
        return to_families(self._collector.of_process())

    async def served(self) -> bytes:
        """All metrics, in Prometheus' text format 0.0.4."""
        self.certificate.want()
        await self._numbers.refresh()
        counted: Iterable[Metric] = (
            self._collector.of_process()
            if self._all_processes is None
            else to_metrics(await self._all_processes())
        )
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Told([*counted, *self._collector.of_database()]))
        return generate_latest(registry)


class _Told(Collector):
    """Metrics that were read already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class _ServiceCollector:
    """Reads what is counted elsewhere, at scrape time.

    What a process knows of itself and what all of them read in the same database are told apart: with
    several processes the first is added up (observe/families.py), the second must not be.
    """

    def __init__(
        self,
        measures: Measures,
        build: Mapping[str, str],
        path: WritePath,
        commit: WriteCounters,
        store: Store,
        alerter: Alerter,
        open_streams: Callable[[], int],
        numbers: DatabaseNumbers,
        certificate: CertificateNumbers,
        hidden_consumers: tuple[str, ...],
    ) -> None:
        self._measures = measures
        self._build = dict(build)
        self._path = path
        self._commit = commit
        self._store = store
        self._alerter = alerter
        self._open_streams = open_streams
        self._numbers = numbers
        self._certificate = certificate
        self._hidden_consumers = hidden_consumers

    def of_process(self) -> Iterator[Metric]:
        yield _gauge("convsync_build_info", "Always 1; what runs, in its labels.", 1, self._build)
        yield _gauge("convsync_processes", "Processes that serve.", 1)
        # Counted by the parent of several processes, see convsync.processes.
        yield _counter("convsync_process_deaths", "Processes that ended without being asked to.", 0)
        yield from self._webhook()
        yield from self._commits()
        yield from self._pool()
        yield _gauge("convsync_event_streams", "Event streams that are open.", self._open_streams())
        yield from self._alerts()
        yield from self._measures.registry.collect()

    def of_database(self) -> Iterator[Metric]:
        yield from self._database()
        if self._numbers.pages is not None:
            yield from page_metrics(self._numbers.pages)
        if self._certificate.known is not None:
            yield from certificate_metrics(self._certificate.known)

    def _webhook(self) -> Iterator[Metric]:
        path = self._path
        yield _counters(
            "convsync_webhook_requests",
            "Deliveries answered, by HTTP status.",
            "status",
            {str(status): count for status, count in sorted(path.requests.items())},
        )
        family = HistogramMetricFamily(
            "convsync_webhook_request_duration_seconds", "From a delivery's arrival to its answer."
        )
        family.add_metric([], path.request_seconds.buckets(), path.request_seconds.sum)
        yield family

    def _commits(self) -> Iterator[Metric]:
        commit, path = self._commit, self._path
        yield _gauge("convsync_waiting_facts", "Facts accepted and not yet settled.", commit.waiting)
        yield _counter(
            "convsync_deliveries_committed", "Deliveries whose facts are committed.", commit.deliveries
        )
        yield _counter("convsync_facts_committed", "Facts committed, dead letters among them.", commit.facts)
        yield _counters(
            "convsync_deliveries_refused",
            "Deliveries answered with 503, by reason.",
            "reason",
            {
                "full": commit.refused_full,
                "late": commit.refused_late,
                "unavailable": commit.refused_unavailable,
            },
        )
        yield _counter("convsync_commits", "Calls of the database that committed.", commit.batches)
        yield _counter(
            "convsync_commit_retries", "Calls repeated after a failure that may pass.", commit.retries
        )
        yield _counter(
            "convsync_poison_facts", "Facts the database will never take: dead letters.", commit.poison
        )
        yield _counter(
            "convsync_isolated_batches",
            "Batches taken apart because of a locked conversation.",
            commit.isolated,
        )
        facts = HistogramMetricFamily("convsync_commit_facts", "Facts per commit.")
        facts.add_metric([], path.commit_facts.buckets(), path.commit_facts.sum)
        yield facts
        seconds = HistogramMetricFamily(
            "convsync_commit_call_duration_seconds",
            "Duration of a call of the database, by how it ended.",
            labels=["outcome"],
        )
        for outcome, histogram in path.call_seconds.items():
            seconds.add_metric([outcome], histogram.buckets(), histogram.sum)
        yield seconds

    def _pool(self) -> Iterator[Metric]:
        stats = self._store.pool_stats()
        told = {
            "pool_max": "Connections the pool may open.",
            "pool_size": "Connections the pool has.",
            "pool_available": "Connections that nobody uses.",
            "requests_waiting": "Requests that wait for a connection.",
        }
        for key, name in _POOL.items():
            yield _gauge(name, told[key], stats.get(key, 0))

    def _alerts(self) -> Iterator[Metric]:
        alerter = self._alerter
        firing = GaugeMetricFamily("convsync_alerts_firing", "Alerts that fire, by cause.", labels=["alert"])
        for cause in CAUSES:
            firing.add_metric([cause.name], alerter.firing(cause))
        yield firing
        yield _counters(
            "convsync_alert_notices",
            "Notices to the alert webhook, by what became of them.",
            "outcome",
            {"sent": alerter.sent, "failed": alerter.failed, "dropped": alerter.dropped},
        )

    def _database(self) -> Iterator[Metric]:
        known = self._numbers.known
        yield _gauge(
            "convsync_database_up", "1 if the database answered for this scrape.", 0 if known is None else 1
        )
        if known is None:
            return
        open_letters = GaugeMetricFamily(
            "convsync_dead_letters_open",
            "Dead letters that wait for a person, by source and reason.",
            labels=["source", "reason"],
        )
        oldest = GaugeMetricFamily(
            "convsync_dead_letters_oldest_seconds",
            "Age of the oldest of them; 0 where none waits.",
            labels=["source", "reason"],
        )
        letters = {(one["source"], one["reason"]): one for one in known.dead_letters}
        for source, reason in itertools.product(_SOURCES, _REASONS):
            one = letters.get((source, reason))
            open_letters.add_metric([source, reason], one["open"] if one else 0)
            oldest.add_metric([source, reason], one["oldest_seconds"] if one else 0)
        yield open_letters
        yield oldest
        refused = CounterMetricFamily(
            "convsync_refused_facts",
            "Facts not stored, because their person was erased or they are of before a horizon.",
            labels=["source", "reason"],
        )
        facts = {(one["source"], one["reason"]): one["facts"] for one in known.refused_facts}
        for source, reason in itertools.product(_SOURCES, _REFUSALS):
            refused.add_metric([source, reason], facts.get((source, reason), 0))
        yield refused
        yield _gauge(
            "convsync_feed_held_back_changes",
            "Committed changes that an older open transaction holds back.",
            known.held_back,
        )
        yield _gauge(
            "convsync_feed_held_back_seconds", "Age of the oldest of them; 0 for none.", known.held_seconds
        )
        behind = GaugeMetricFamily(
            "convsync_feed_consumer_behind_changes",
            "Changes a named consumer has not confirmed, counted up to 10000.",
            labels=["consumer"],
        )
        age = GaugeMetricFamily(
            "convsync_feed_consumer_behind_seconds",
            "Age of the oldest of them; 0 for none.",
            labels=["consumer"],
        )
        for one in known.consumers:
            # Changes of other Pages, which such a consumer never gets, would count against it.
            if not one["consumer"].startswith(self._hidden_consumers):
                behind.add_metric([one["consumer"]], one["behind"])
                age.add_metric([one["consumer"]], one["behind_seconds"])
        yield behind
        yield age
        lost = GaugeMetricFamily(
            "convsync_webhook_lost_messages",
            "Messages of the last day whose webhook never came; of the 100 Pages with the most.",
            labels=["page_id"],
        )
        for one in known.webhook_losses:
            lost.add_metric([one["page_id"]], one["last_day"])
        yield lost


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(name, told, value=value)


def _counters(name: str, told: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, told, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, told: str, value: float, labels: Mapping[str, Any] | None = None) -> Metric:
    family = GaugeMetricFamily(name, told, labels=list(labels or ()))
    family.add_metric([str(one) for one in (labels or {}).values()], value)
    return family
