"""One service process under full load: deliveries answered 200, against three other ways to answer them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from bench.report import Line
from bench.server import CONNECTIONS, Server, open_service
from convsync.database.bootstrap import SERVICE_LOGIN
from convsync.database.embedded import DATABASE

Tell = Callable[[str], None]

_VARIANTS = ("serve", "parse_only", "one_per_commit", "parallel")
_MEMORY_MB = 200.0


class Lost(Exception):
    """A delivery was answered 200 and is not in the database: then no rate counts."""


def rates(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """webhook_durable, group_commit, group_commit_parallel, statements_per_webhook."""
    repetitions, seconds = (5, 0.5) if quick else (7, 4.0)
    seen: dict[str, list[dict[str, Any]]] = {variant: [] for variant in _VARIANTS}
    statements: list[float] = []
    with ExitStack() as stack:
        trivial = stack.enter_context(open_service(server, "trivial"))
        ceiling = median(trivial.load(f"trivial{turn}", seconds / 2)["per_second"] for turn in range(3))
        services = {variant: stack.enter_context(open_service(server, variant)) for variant in _VARIANTS}
        for variant, service in services.items():
            service.load(f"warm {variant}", seconds / 2, prepared=0)
        for repetition in range(repetitions):
            # Nobody always comes first, or after the same other.
            order = _VARIANTS[repetition % 4 :] + _VARIANTS[: repetition % 4]
            for variant in order:
                with _checked(server, variant) as note:
                    before = _statements(server)
                    report = services[variant].load(f"{variant} {repetition}", seconds)
                    note(report)
                if variant == "serve":
                    statements.append((_statements(server) - before) / report["statuses"]["200"])
                seen[variant].append(report)
    tell(f"the load generator alone: {ceiling:,.0f} requests/s")
    rate = {variant: [report["per_second"] for report in reports] for variant, reports in seen.items()}
    detail = {
        "connections": CONNECTIONS,
        "seconds": seconds,
        "generator_ceiling": round(ceiling),
        "p50_ms": round(median(report["p50_ms"] for report in seen["serve"]), 1),
        "p99_ms": round(median(report["p99_ms"] for report in seen["serve"]), 1),
        "not_200": sum(_refused(report) for report in seen["serve"]),
    }
    return [
        Line(
            "webhook_durable",
            "deliveries/s",
            "the same process that only verifies and parses",
            rate["serve"],
            rate["parse_only"],
            goal=0.35,
            aim=0.6,
            goal_value=3000,
            detail=detail,
        ),
        Line(
            "group_commit",
            "deliveries/s",
            "one commit per delivery, one after the other",
            rate["serve"],
            rate["one_per_commit"],
            goal=4,
            aim=6,
        ),
        Line(
            "group_commit_parallel",
            "deliveries/s",
            "one commit per delivery, as many at once as the pool has connections (10)",
            rate["serve"],
            rate["parallel"],
        ),
        Line(
            "statements_per_webhook",
            "statements",
            "one statement per delivery",
            statements,
            [1.0] * len(statements),
            goal=0.2,
            aim=0.1,
            better="lower",
        ),
    ]


def memory(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """rss: resident memory of the service while it is at its limit."""
    seconds = 5.0 if quick else 60.0
    samples: list[float] = []
    with ThreadPoolExecutor(1) as thread, open_service(server) as service:
        idle = service.resident_mb()
        service.load("memory warm", 1.0, prepared=0)
        before = _transactions(server)
        with _checked(server, "serve") as note:
            # Signed as it goes: a minute of requests would not fit into a small machine's memory.
            loading = thread.submit(service.load, "memory", seconds, prepared=0)
            while not loading.done():
                samples.append(service.resident_mb())
                time.sleep(seconds / 100)
            report = loading.result()
            note(report)
        transactions = _transactions(server) - before
    tenth = max(5, len(samples) // 10)
    early, late = samples[:tenth], samples[-tenth:]
    tell(f"resident: idle {idle:.0f} MB, at last {samples[-1]:.0f} MB, at most {max(samples):.0f} MB")
    return [
        Line(
            "rss",
            f"MB in the last tenth of {seconds:g} s of full load",
            f"in the first tenth, after a second of load; at most {_MEMORY_MB:g} MB at any time",
            late,
            [median(early)] * len(late),
            goal=1.1,
            aim=1.05,
            goal_value=_MEMORY_MB,
            also=max(samples) < _MEMORY_MB,
            better="lower",
            detail={
                "idle_mb": round(idle, 1),
                "start_mb": round(samples[0], 1),
                "end_mb": round(samples[-1], 1),
                "peak_mb": round(max(samples), 1),
                "deliveries": report["statuses"].get("200", 0),
                "deliveries_per_second": round(report["per_second"]),
                # Of all in that database: the pool's probe before each statement, autovacuum, the bench.
                "transactions_per_delivery": round(transactions / report["statuses"]["200"], 3),
            },
        )
    ]


def _refused(report: dict[str, Any]) -> int:
    refused: int = sum(count for status, count in report["statuses"].items() if status != "200")
    return refused + int(report["unanswered"])


@contextmanager
def _checked(server: Server, variant: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Afterwards every delivery answered 200 is in the database once, and nothing is a dead letter."""
    reports: list[dict[str, Any]] = []
    before, _ = _stored(server)
    yield reports.append
    after, dead = _stored(server)
    promised = 0 if variant == "parse_only" else reports[0]["statuses"].get("200", 0)
    allowed = 0 if variant == "parse_only" else _refused(reports[0])  # a commit may follow a 503
    if not promised <= after - before <= promised + allowed or dead:
        raise Lost(f"{variant}: {promised} answered 200, {after - before} stored, {dead} dead letters")


def _stored(server: Server) -> tuple[int, int]:
    with server.superuser() as connection:
        row = connection.execute(
            """select (select count(*) from convsync.contact_interaction_events),
                 (select count(*) from convsync.dead_letters)"""
        ).fetchone()
    assert row is not None  # noqa: S101 - for the type checker
    return row[0], row[1]


def _statements(server: Server) -> int:
    """Statements the service's login has sent so far. (The pool's empty probe is none to PostgreSQL.)"""
    with server.superuser() as connection:
        row = connection.execute(
            """select coalesce(sum(s.calls), 0)::bigint
               from pg_stat_statements s join pg_roles r on r.oid = s.userid
               where r.rolname = %s and s.toplevel""",
            [SERVICE_LOGIN],
        ).fetchone()
    assert row is not None  # noqa: S101 - for the type checker
    count: int = row[0]
    return count


def _transactions(server: Server) -> int:
    with server.superuser() as connection:
        row = connection.execute(
            "select xact_commit from pg_stat_database where datname = %s", [DATABASE]
        ).fetchone()
    assert row is not None  # noqa: S101 - for the type checker
    count: int = row[0]
    return count
