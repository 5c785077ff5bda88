"""What the database knows of Pages and their syncs, as metrics: the same from every process.

A metric with `page_id` shows 100 Pages at most, the worst of them; beside it there is one that counts all.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from convsync.errors import ConvsyncError
from convsync.facts import Json
from convsync.observe.alerts import PROBLEMS
from convsync.observe.measures import MODES

_TOKENS: Final = ("none", "unchecked", "valid", "invalid")
_FRESHNESS: Final = ("fresh", "late", "stale", "broken")
_OPEN: Final = ("queued", "running", "paused")
_CERTIFICATE_SECONDS: Final = 300.0
_CERTIFICATE_PATIENCE: Final = 60.0

_log = structlog.get_logger(__name__)


class CertificateStore(Protocol):
    async def certificate_metrics(self) -> Json: ...


class CertificateNumbers:
    """The certificate of all Pages. It reads a row of each conversation, so `run` asks beside the scrapes;
    who is never scraped never asks.
    """

    def __init__(
        self,
        store: CertificateStore,
        *,
        every: float = _CERTIFICATE_SECONDS,
        patience: float = _CERTIFICATE_PATIENCE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._every = every
        self._patience = patience
        self._sleep = sleep
        self._wanted = asyncio.Event()
        self.known: Json | None = None

    def want(self) -> None:
        """Somebody scrapes."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask when somebody scrapes, at most every few minutes, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                async with asyncio.timeout(self._patience):
                    self.known = await self._store.certificate_metrics()
            except (ConvsyncError, TimeoutError) as error:
                self.known = None
                _log.warning("metrics_without_certificate", error=type(error).__name__)
            await self._sleep(self._every)


def page_metrics(known: Json) -> Iterator[Metric]:
    """What `Store.page_metrics` says."""
    yield _pages(
        "convsync_page_tokens",
        "Pages by the state of their token.",
        "state",
        {state: known["tokens"].get(state, 0) for state in _TOKENS},
    )
    freshness = GaugeMetricFamily(
        "convsync_page_freshness", "Pages by their freshness and why.", labels=["freshness", "reason"]
    )
    counted = {(one["freshness"], one["reason"]): one["pages"] for one in known["freshness"]}
    for level in _FRESHNESS:
        if not any(level == known_level for known_level, _ in counted):
            counted[level, ""] = 0
    for (level, reason), pages in sorted(counted.items()):
        freshness.add_metric([level, reason], pages)
    yield freshness
    yield _pages(
        "convsync_page_freshness_age_seconds",
        "Seconds since the last sync that succeeded began; of the 100 Pages where it is longest.",
        "page_id",
        {one["page_id"]: one["seconds"] for one in known["ages"]},
    )
    problems = {one["problem"]: one for one in known["problems"]}
    yield _pages(
        "convsync_page_problems",
        "Pages with something that needs a person, by what it is.",
        "problem",
        {name: problems[name]["pages"] if name in problems else 0 for name in PROBLEMS},
    )
    problem = GaugeMetricFamily(
        "convsync_page_problem",
        "1 for each Page with such a problem; 100 Pages of each.",
        labels=["page_id", "problem"],
    )
    for one in known["problems"]:
        for page_id in one["page_ids"]:
            problem.add_metric([page_id, one["problem"]], 1)
    yield problem
    yield from _budgets(known["budgets"])
    runs = GaugeMetricFamily(
        "convsync_sync_runs_open", "Runs that have not ended, by mode and status.", labels=["mode", "status"]
    )
    open_runs = {(one["mode"], one["status"]): one["runs"] for one in known["runs"]}
    for mode, status in itertools.product(MODES, _OPEN):
        runs.add_metric([mode, status], open_runs.get((mode, status), 0))
    yield runs


def _budgets(budgets: list[Json]) -> Iterator[Metric]:
    app = next((one for one in budgets if one["page_id"] == ""), {})
    yield GaugeMetricFamily(
        "convsync_graph_app_usage_percent",
        "How much of its allowance the app has used, as Graph told last.",
        value=app.get("usage_percent") or 0,
    )
    yield GaugeMetricFamily(
        "convsync_graph_app_blocked_seconds",
        "Seconds until the app may call again; 0 if it may.",
        value=app.get("blocked_seconds") or 0,
    )
    pages = [one for one in budgets if one["page_id"] != ""]
    yield _pages(
        "convsync_graph_page_usage_percent",
        "How much of its allowance a Page has used, as Graph told last.",
        "page_id",
        {one["page_id"]: one["usage_percent"] for one in pages if one["usage_percent"] is not None},
    )
    yield _pages(
        "convsync_graph_page_blocked_seconds",
        "Seconds until a Page may be called again; only Pages that may not.",
        "page_id",
        {one["page_id"]: one["blocked_seconds"] for one in pages if one["blocked_seconds"] is not None},
    )


def certificate_metrics(known: Json) -> Iterator[Metric]:
    """What `Store.certificate_metrics` says."""
    yield GaugeMetricFamily(
        "convsync_certificate_conversations",
        "Conversations of all Pages that were added.",
        value=known["conversations"],
    )
    yield GaugeMetricFamily(
        "convsync_certificate_complete_conversations",
        "Those of them whose history was verified to its end.",
        value=known["complete"],
    )
    yield _pages(
        "convsync_page_certificate_ratio",
        "The verified part of a Page's conversations; of the 100 Pages where it is smallest.",
        "page_id",
        {
            one["page_id"]: one["complete"] / one["conversations"]
            for one in known["pages"]
            if one["conversations"]
        },
    )


def _pages(name: str, told: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, told, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
