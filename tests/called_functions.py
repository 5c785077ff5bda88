"""A public SQL function that no test called fails the run.

PostgreSQL counts the calls (``track_functions``). ``tests/conftest.py`` registers this module as a plugin
and calls ``watch`` for each new test database, ``end_sessions`` and ``note`` before it is dropped. The
verdict is given at the end of a whole run only: one of chosen files or names, or one with a failure, cannot
know. With xdist the workers hand what they saw to the process that reports.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

_known: set[str] = set()
_called: set[str] = set()
_uncalled: list[str] = []


def watch(server: psycopg.Connection[Any], database: str) -> None:
    """Has the calls in a new database counted; ``server`` is a superuser's connection to another one."""
    server.execute(sql.SQL("alter database {} set track_functions = 'all'").format(sql.Identifier(database)))


def end_sessions(server: psycopg.Connection[Any], database: str) -> None:
    """Ends the other connections of a database that is about to be dropped: then they report their counts."""
    server.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", [database]
    )


def note(connection: psycopg.Connection[Any]) -> None:
    """Remembers what was called in a database whose other connections have ended."""
    rows = connection.execute(
        r"""
        select p.proname, coalesce(s.calls, 0) > 0
        from pg_proc as p
        left join pg_stat_user_functions as s on s.funcid = p.oid
        where p.pronamespace = to_regnamespace('convsync_api') and p.proname not like '\_%'
        """
    ).fetchall()
    _known.update(name for name, _ in rows)
    _called.update(name for name, called in rows if called)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    known, called = getattr(node, "workeroutput", {}).get("functions", ((), ()))
    _known.update(known)
    _called.update(called)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["functions"] = (sorted(_known), sorted(_called))
    elif exitstatus == 0 and _is_whole_run(config):
        _uncalled.extend(sorted(_known - _called))
        if _uncalled:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _uncalled:
        terminalreporter.section("SQL functions that no test called", red=True)
        terminalreporter.line("\n".join(_uncalled))


def _is_whole_run(config: pytest.Config) -> bool:
    chosen = config.getoption("keyword") or config.getoption("markexpr") not in ("", "not faults")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
