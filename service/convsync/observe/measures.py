"""What one process counts of its Graph calls, its syncs and its database calls.

Ordinary metrics of prometheus_client in the registry of one application; `metrics` serves them beside what is
read from elsewhere. Each label has few values: endpoints, classes of errors and names of functions, never an
id or a text. `docs/metrics.md` describes each.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

# When a series began is of no use here, and would double their number.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CALL_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WAIT_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_RUN_SECONDS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
MODES: Final = ("full", "incremental", "reconcile")
STATUSES: Final = ("succeeded", "partial", "failed", "paused", "lease_lost", "interrupted")
_EDGES: Final = frozenset({"conversations", "messages", "subscribed_apps", "accounts", "permissions"})
_FUNCTION: Final = re.compile(r"\bconvsync_api\.([a-z]\w*)")


def endpoint_of(path: str) -> str:
    """What is called, without whose it is: an edge by its name, `node` for a Page, a thread or a person."""
    first, _, edge = path.strip("/").partition("/")
    if first == "debug_token":
        return first
    if not edge:
        return "node" if first else "batch"
    return edge if edge in _EDGES else "other"


@lru_cache(maxsize=512)  # a query is a literal of `store`, so they are few
def function_of(query: str) -> str:
    """The function of `convsync_api` that a query calls."""
    found = _FUNCTION.search(query)
    return found[1] if found else "other"


class GraphMeasures:
    """Calls of the Graph API, each when it has ended, and what was waited for before one."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._calls = Counter(
            "convsync_graph_calls",
            "Graph calls made, by endpoint, HTTP status and class of error.",
            ["endpoint", "status", "error_class"],
            registry=registry,
        )
        self._seconds = Histogram(
            "convsync_graph_call_duration_seconds",
            "From a Graph call's request to the last byte of its answer.",
            ["endpoint"],
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self._unreadable = Counter(
            "convsync_graph_unreadable_answers",
            "Answers that came whole and were none, by endpoint.",
            ["endpoint"],
            registry=registry,
        )
        self._waits = Histogram(
            "convsync_graph_call_wait_seconds",
            "Wait for a slot of the Page's call budget, by lane.",
            ["lane"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._blocks = Counter(
            "convsync_graph_blocks",
            "Times Graph told to stop calling, by whom it told: the Page or the app.",
            ["scope"],
            registry=registry,
        )
        for scope in ("page", "app"):
            self._blocks.labels(scope)

    def called(self, path: str, status: int | None, error_class: str, seconds: float) -> None:
        """A call has ended; `status` is None without an answer, `error_class` is empty for a success."""
        endpoint = endpoint_of(path)
        self._calls.labels(endpoint, "none" if status is None else str(status), error_class or "none").inc()
        self._seconds.labels(endpoint).observe(seconds)

    def unreadable(self, path: str) -> None:
        """An answer of HTTP 200 was no page of what was asked for."""
        self._unreadable.labels(endpoint_of(path)).inc()

    def waited(self, lane: str, seconds: float) -> None:
        """A slot was granted after so long."""
        self._waits.labels(lane).observe(seconds)

    def blocked(self, scope: str) -> None:
        """Graph refused to be called for a while."""
        self._blocks.labels(scope).inc()


class SyncMeasures:
    """Syncs that this process carries: pages applied, batches given up, attempts that ended."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._runs = Counter(
            "convsync_sync_runs",
            "Attempts at a run that ended in this process, by mode and how.",
            ["mode", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "convsync_sync_run_duration_seconds",
            "How long an attempt took from being begun or resumed to its end.",
            ["mode", "status"],
            buckets=_RUN_SECONDS,
            registry=registry,
        )
        self._batches = Counter(
            "convsync_sync_batches_failed",
            "Pages given up after all retries, by what was read and the class of the error.",
            ["kind", "error_class"],
            registry=registry,
        )
        self._conversations = Counter(
            "convsync_sync_conversations",
            "Conversations in the pages of a list that were applied.",
            ["mode"],
            registry=registry,
        )
        self._messages = Counter(
            "convsync_sync_messages",
            "Messages in the pages that were applied, whether they were known or not.",
            ["mode"],
            registry=registry,
        )
        self._added = Counter(
            "convsync_sync_messages_added",
            "Messages that syncs brought and nobody had told before.",
            ["mode"],
            registry=registry,
        )
        # From 0, or the first failure of a process would be no increase.
        for mode in MODES:
            for status in STATUSES:
                self._runs.labels(mode, status)
            for counter in (self._conversations, self._messages, self._added):
                counter.labels(mode)

    def applied(self, mode: str, *, conversations: int, messages: int, added: int) -> None:
        """A page was applied."""
        self._conversations.labels(mode).inc(conversations)
        self._messages.labels(mode).inc(messages)
        self._added.labels(mode).inc(added)

    def batch_failed(self, kind: str, error_class: str) -> None:
        """A page was given up."""
        self._batches.labels(kind, error_class).inc()

    def ended(self, mode: str, status: str, seconds: float) -> None:
        """An attempt at a run ended."""
        self._runs.labels(mode, status).inc()
        self._seconds.labels(mode, status).observe(seconds)


class DatabaseMeasures:
    """Calls of the database, by the function that is called."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self._seconds = Histogram(
            "convsync_database_call_duration_seconds",
            "Duration of a call of the database with its wait for a connection, by function.",
            ["function"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "convsync_database_call_errors",
            "Calls of the database that failed, by function and kind of error.",
            ["function", "error"],
            registry=registry,
        )

    @contextmanager
    def call(self, query: str) -> Iterator[None]:
        """Measure one call; an error goes through, counted by its kind."""
        function = function_of(query)
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._errors.labels(function, type(error).__name__).inc()
            raise
        finally:
            self._seconds.labels(function).observe(time.perf_counter() - began)


class Measures:
    """All that one application counts of its own work, in one registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.graph = GraphMeasures(self.registry)
        self.sync = SyncMeasures(self.registry)
        self.database = DatabaseMeasures(self.registry)
