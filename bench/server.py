"""The bench's own PostgreSQL and the service processes on it; all of it is gone afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from convsync.database.bootstrap import SERVICE_LOGIN, open_database
from convsync.database.embedded import DATABASE, OWNER, SUPERUSER, EmbeddedPostgres
from convsync.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
CONNECTIONS = 128
_TEMPLATE = "bench_template"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PREFIX = "convsync-bench-"

Connection = psycopg.Connection[tuple[Any, ...]]


class NotDurable(Exception):
    """A figure without fsync is no figure."""


class Server:
    """A durable embedded PostgreSQL with convsync's schema in `convsync`, and empty clones of that."""

    def __init__(self, embedded: EmbeddedPostgres, directory: Path) -> None:
        self.embedded = embedded
        self.directory = directory
        self._clones = 0

    def connect(self, database: str = DATABASE, role: str = SERVICE_LOGIN) -> Connection:
        """As the service connects, unless `role` says otherwise."""
        return psycopg.connect(
            self.embedded.url(role, database),
            autocommit=True,
            prepare_threshold=None,
            application_name="convsync bench",
        )

    def superuser(self, database: str = DATABASE) -> Connection:
        return self.connect(database, SUPERUSER)

    @contextmanager
    def clone(self) -> Iterator[str]:
        """A database with the schema and no data."""
        self._clones += 1
        name = f"bench_{self._clones}"
        with self.superuser("postgres") as connection:
            connection.execute(
                sql.SQL("create database {} template {} owner {}").format(
                    sql.Identifier(name), sql.Identifier(_TEMPLATE), sql.Identifier(OWNER)
                )
            )
        try:
            yield name
        finally:
            with self.superuser("postgres") as connection:
                connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def environment(self) -> dict[str, Any]:
        """Where this was measured. Raises `NotDurable` unless everything that makes a commit one is on."""
        with self.connect() as connection:
            settings: dict[str, str] = dict(
                connection.execute(
                    """select name, setting from pg_settings where name = any (%s)""",
                    [[*DURABLE, "wal_sync_method", "shared_buffers", "max_wal_size", "wal_compression"]],
                ).fetchall()
            )
            version = connection.execute("show server_version").fetchone()
            overruled = connection.execute(
                """select p.proname from pg_proc p, unnest(p.proconfig) s
                   where split_part(s, '=', 1) = any (%s)""",
                [list(DURABLE)],
            ).fetchall()
        off = [name for name in DURABLE if settings[name] != "on"] + [name for (name,) in overruled]
        if off:
            raise NotDurable(f"not durable: {', '.join(off)}")
        return {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "postgresql": version[0] if version else None,
            "settings": settings,
            "commit_ms": self._commit_ms(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "cpu": _cpu(),
            "memory_mb": _memory_mb(),
            "load_average": os.getloadavg()[0],
        }

    def _commit_ms(self) -> float:
        """What one commit that waits for the disk costs here."""
        taken = []
        with self.superuser("postgres") as connection:
            connection.execute("create table bench_commit (n integer)")
            for number in range(60):
                began = time.perf_counter()
                connection.execute("insert into bench_commit values (%s)", [number])
                taken.append(time.perf_counter() - began)
            connection.execute("drop table bench_commit")
        return round(median(taken) * 1000, 3)


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


@contextmanager
def open_server() -> Iterator[Server]:
    """Start it in a directory of its own below /tmp; stop and remove it at the end."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        if os.geteuid() == 0:
            directory.chmod(0o711)  # PostgreSQL then runs as another user, who has to pass
        data_dir = directory / "data"
        embedded = stack.enter_context(
            EmbeddedPostgres(
                data_dir,
                durable=True,
                settings={
                    "shared_preload_libraries": "pg_stat_statements",
                    # A quarter of the memory is what PostgreSQL's manual advises (runtime-config-resource);
                    # its defaults are for a small machine.
                    "shared_buffers": f"{min(_memory_mb() // 4, 8192)}MB",
                    "max_wal_size": "8GB",
                },
            )
        )
        asyncio.run(_install(data_dir))
        server = Server(embedded, directory)
        with server.superuser("postgres") as connection:
            connection.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(_TEMPLATE), sql.Identifier(DATABASE)
                )
            )
        with server.superuser() as connection:
            connection.execute("create extension pg_stat_statements")
        yield server


async def _install(data_dir: Path) -> None:
    async with open_database(Settings(_env_file=None, data_dir=data_dir, database_url=None)):
        pass


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the service, and how to send it deliveries."""

    process: subprocess.Popen[str]
    host: str
    port: int
    secret: str

    def load(self, seed: str, seconds: float, *, prepared: int = 20_000) -> dict[str, Any]:
        """Full load from a process of its own; `prepared` requests a second are signed before it begins."""
        order = {
            "host": self.host,
            "port": self.port,
            "secret": self.secret,
            "seed": seed,
            "seconds": seconds,
            "connections": CONNECTIONS,
            "prepared": prepared,
        }
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=json.dumps(order),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=seconds * 5 + 60,
            env=_environment(),
        )
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def resident_mb(self) -> float:
        told = subprocess.run(  # noqa: S603 - our own process
            ["ps", "-o", "rss=", "-p", str(self.process.pid)],  # noqa: S607 - wherever ps is
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return int(told.stdout) / 1024


def _environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without the settings of an installation that may be on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVSYNC_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path} | dict(extra or {})


@contextmanager
def open_service(
    server: Server, variant: str = "serve", *, environment: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """`convsync serve` on the bench's database, or a variant of it (bench/service.py)."""
    secret = secrets.token_hex(16)
    options = ["--host", "127.0.0.1", "--port", "0"]
    command = ["-c", "from convsync.cli import main; main()", "serve"]
    if variant != "serve":
        command = ["-m", "bench.service", variant]
    log = server.directory / f"{variant}-{secrets.token_hex(3)}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, *command, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=server.directory,  # where no .env is
            env=_environment(
                {
                    "CONVSYNC_DATA_DIR": str(server.embedded.data_dir),
                    "CONVSYNC_APP_SECRET": secret,
                    "CONVSYNC_GRAPH_URL": "http://127.0.0.1:9",
                    "CONVSYNC_LOG_FORMAT": "json",
                    **(environment or {}),
                }
            ),
        )
    try:
        host, port = _address(process, log)
        yield Service(process, host, port, secret)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[str], log: Path) -> tuple[str, int]:
    """Where the process says it listens; it ends its output there or with the end of itself."""
    give_up = time.monotonic() + _START_SECONDS
    while process.stdout is not None and time.monotonic() < give_up:
        line = process.stdout.readline()
        if not line:
            break
        if "listens on" in line:
            where = urlsplit(line.split("listens on", 1)[1].strip())
            if where.hostname and where.port:
                return where.hostname, where.port
    raise RuntimeError("the service did not start: " + log.read_text(encoding="utf-8")[-2000:])
