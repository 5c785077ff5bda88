"""A secret that comes out of the service fails the test in which it does.

Every secret that the tests invent has ``MARKER`` in it (``marked``, ``marked_key``); the simulator's own are
recognised too. They are told to the service in every way there is, and this plugin, which
``tests/conftest.py`` registers, looks for them in all that comes out of it, during the whole suite:

- what is printed and logged, in this process, by commands run in it, and by the processes that tests start;
- every answer of the service, headers and bodies, errors and ``/metrics`` as well;
- every row of every test database before it is dropped (``look_into``), and the log of the server;
- the arguments of every process that is started, and of what those start.

What a test itself sends, sets or keeps is no finding; nor is what the simulator says, which is Meta here and
puts tokens where Meta does. A sealed token, a digest and a signature do not have the marker in them.
"""

from __future__ import annotations

import asyncio.subprocess as asyncio_subprocess
import base64
import contextlib
import os
import subprocess
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import pytest
from aiohttp import client_proto
from click.testing import CliRunner
from psycopg import sql

MARKER = "Hush5ecret"
MARKS = (MARKER, "sim-page-token", "sim-app-secret", "sim-verify-token", "sim-user-token")
_PROC = Path("/proc/self/stat").exists()
_SAMPLED_EVERY = 0.25
_SHOWN = 60


def marked(name: str) -> str:
    """A secret for a test; of letters and digits if the name is."""
    return f"{name}{MARKER}0123456789"


def marked_key(number: int = 0) -> str:
    """A TOKEN_KEY: 32 bytes in base64url."""
    return base64.urlsafe_b64encode(base64.urlsafe_b64decode(f"{MARKER}{number:033}=")).decode()


def _forms(mark: str) -> Iterable[bytes]:
    """A mark as it is, in hexadecimal, and in base64 wherever it begins in what was encoded."""
    raw = mark.encode()
    yield raw
    yield raw.hex().encode()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).rstrip(b"=")
        # Without the digits that have a part of what stands before or after it.
        yield encoded[(0, 2, 3)[before] : len(encoded) - (1 if (before + len(raw)) % 3 else 0)]


FORMS = tuple(form for mark in MARKS for form in _forms(mark))
_LONGEST = max(map(len, FORMS))
_IN_ROWS = [f"%{text}%" for mark in MARKS for text in (mark, mark.encode().hex())]

findings: list[str] = []


def look(where: str, told: str | bytes) -> None:
    """Takes down that `told`, which came out at `where`, has a secret in it."""
    data = told.encode("utf-8", "replace") if isinstance(told, str) else told
    for form in FORMS:
        at = data.find(form)
        if at >= 0:
            around = data[max(0, at - _SHOWN) : at + len(form) + _SHOWN]
            findings.append(f"{where}: ..{around.decode('utf-8', 'replace')}..")
            return


def look_into(connection: psycopg.Connection[Any]) -> None:
    """Looks into every row of a database."""
    tables = connection.execute(
        """
        select n.nspname, c.relname
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname !~ '^(pg_|information_schema$)' and pg_relation_size(c.oid) > 0
        """
    ).fetchall()
    if not tables:
        return
    each = [
        sql.SQL("(select {name}, t::text from {table} t where t::text like any (%(marks)s) limit 1)").format(
            name=sql.Literal(f"{schema}.{table}"), table=sql.Identifier(schema, table)
        )
        for schema, table in tables
    ]
    for table, row in connection.execute(sql.SQL(" union all ").join(each), {"marks": _IN_ROWS}).fetchall():
        findings.append(f"a row of {table}: {row[:300]}")


def look_into_files(directory: Path) -> None:
    """Looks into the logs in a directory."""
    for path in directory.rglob("*"):
        if (path.suffix == ".log" or path.name.startswith("stderr")) and path.is_file():
            look(f"the file {path.name}", path.read_bytes())


# --- what comes out, at the places where all of it passes


_connections: WeakKeyDictionary[client_proto.ResponseHandler, bytes] = WeakKeyDictionary()
_received = client_proto.ResponseHandler.data_received


def _data_received(self: client_proto.ResponseHandler, data: bytes) -> None:
    """Of the answers that this process gets, those of the service: each of its answers has this header."""
    before = _connections.get(self)
    if before is not None or b"\r\nx-request-id:" in data.lower():
        told = (before or b"") + data
        look("an answer of the service", told)
        _connections[self] = told[-_LONGEST:]  # a secret may come in two parts
    _received(self, data)


_pipe_received = asyncio_subprocess.SubprocessStreamProtocol.pipe_data_received


def _pipe_data_received(self: Any, fd: int, data: bytes) -> None:
    process = self._transport.get_extra_info("subprocess")
    if process is not None:
        _look_at_output(process, data)
    _pipe_received(self, fd, data)


_communicate = subprocess.Popen.communicate


def _communicated(self: subprocess.Popen[Any], *args: Any, **more: Any) -> Any:
    told = _communicate(self, *args, **more)
    for output in told:
        if output:
            _look_at_output(self, output)
    return told


def _look_at_output(process: subprocess.Popen[Any], output: str | bytes) -> None:
    command = " ".join(_arguments(process.args))
    # The simulator tells whoever started it which tokens it takes; a browser's driver, what a test typed.
    if "simulat" not in command and "playwright" not in command:
        look(f"printed by {command[:100]}", output)


_start = subprocess.Popen.__init__


def _started(self: subprocess.Popen[Any], args: Any, *rest: Any, **more: Any) -> None:
    look("the arguments of a process", " ".join(_arguments(args)))
    _start(self, args, *rest, **more)
    _children.add(self.pid)


def _arguments(args: Any) -> list[str]:
    several = args if isinstance(args, (list, tuple)) else [args]
    return [os.fsdecode(one) for one in several]


class _Children:
    """Looks at the command lines of what was started here, and of what that has started, while it lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: set[int] = set()
        self._parents: dict[str, str] = {}  # of every process there is, read once
        self._thread: threading.Thread | None = None

    def add(self, pid: int) -> None:
        with self._lock:
            self._started.add(pid)
            if self._thread is None and _PROC:
                self._thread = threading.Thread(target=self._watch, daemon=True, name="secrets hunt")
                self._thread.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._look()
            with self._lock:
                self._started = {pid for pid in self._started if Path("/proc", str(pid)).exists()}
                if not self._started:
                    self._thread = None
                    return
            pause.wait(_SAMPLED_EVERY)

    def _look(self) -> None:
        here = {name for name in os.listdir("/proc") if name.isdigit()}
        self._parents = {pid: parent for pid, parent in self._parents.items() if pid in here}
        for pid in here - self._parents.keys():
            with contextlib.suppress(OSError):  # it has ended
                self._parents[pid] = _read(pid, "stat").rpartition(b")")[2].split()[1].decode()
        ours = {str(os.getpid())}
        while more := {pid for pid, parent in self._parents.items() if parent in ours} - ours:
            ours |= more
        for pid in ours - {str(os.getpid())}:
            with contextlib.suppress(OSError):
                look("the process list", _read(pid, "cmdline"))


def _read(pid: str, name: str) -> bytes:
    return Path("/proc", pid, name).read_bytes()


_children = _Children()


_invoke = CliRunner.invoke


def _invoked(self: CliRunner, *args: Any, **more: Any) -> Any:
    result = _invoke(self, *args, **more)
    look("printed by a command", result.output)
    look("the error of a command", repr(result.exception))
    return result


_readouterr = pytest.CaptureFixture.readouterr


def _captured(self: pytest.CaptureFixture[Any]) -> Any:
    told = _readouterr(self)
    look("stdout", told.out)
    look("stderr", told.err)
    return told


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # tests run in the workers of xdist, not here
    client_proto.ResponseHandler.data_received = _data_received  # type: ignore[method-assign]
    asyncio_subprocess.SubprocessStreamProtocol.pipe_data_received = _pipe_data_received  # type: ignore[method-assign]
    subprocess.Popen.communicate = _communicated  # type: ignore[method-assign]
    subprocess.Popen.__init__ = _started  # type: ignore[method-assign]
    CliRunner.invoke = _invoked  # type: ignore[method-assign]
    pytest.CaptureFixture.readouterr = _captured  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when != "teardown":
        return report
    for title, told in report.sections:
        look(title.lower(), told)
    directory = getattr(item, "funcargs", {}).get("tmp_path")
    if directory is not None:
        look_into_files(directory)
    if findings:
        told = "\n".join(["a secret came out:", *dict.fromkeys(findings)])
        findings.clear()
        if report.failed:
            report.sections.append(("secrets", told))
        else:
            report.outcome = "failed"
            report.longrepr = told
    return report
