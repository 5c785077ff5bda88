"""PgBouncer between the service and its database: a call may meet another server connection each time.

Set ``CONVSYNC_TEST_POOLER=1`` and every ``database.service_url`` of the tests goes through one, in
transaction pooling; owners go past it, as migrations do. What depends on a session (its settings, prepared
statements, advisory locks, LISTEN) then fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg

_START_SECONDS = 20.0
# Several, taken in turn: nobody can count on meeting the same one again.
_SERVER_CONNECTIONS = 4


class Pooler:
    """Where the pooler listens."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{quote(user)}:{quote(password)}@127.0.0.1:{self.port}/{quote(database)}"


def changes_connections(url: str) -> bool:
    """What a pooler is there for: one client's statements meet more than one server connection."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(psycopg.connect(url, autocommit=True, prepare_threshold=None))
            for _ in range(_SERVER_CONNECTIONS)
        ]
        for client in clients:
            client.execute("begin")
        for client in clients:
            client.execute("commit")
        met = {clients[0].execute("select pg_backend_pid()").fetchone() for _ in range(_SERVER_CONNECTIONS)}
    return len(met) > 1


@contextlib.contextmanager
def pgbouncer(info: psycopg.ConnectionInfo, users: dict[str, str]) -> Iterator[Pooler]:
    """A PgBouncer of its own before the server of `info`, for `users` with passwords; gone afterwards."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise RuntimeError("CONVSYNC_TEST_POOLER is set and there is no pgbouncer; Debian's package has it")
    directory = Path(tempfile.mkdtemp(prefix="convsync-pooler-", dir="/tmp"))
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (directory / "users.txt").write_text("".join(f'"{name}" "{word}"\n' for name, word in users.items()))
        (directory / "pgbouncer.ini").write_text(
            f"""[databases]
* = host={info.host} port={info.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {directory}/users.txt
pool_mode = transaction
default_pool_size = {_SERVER_CONNECTIONS}
max_client_conn = 500
server_round_robin = 1
"""
        )
        command = [program, str(directory / "pgbouncer.ini")]
        if os.geteuid() == 0:
            # It refuses to be root, and the embedded server's socket lets only that server's user in.
            user = Path(info.host).owner() if info.host.startswith("/") else "nobody"
            command[1:1] = ["--user", user]
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, user)
        with (directory / "log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        try:
            _wait(port, process, directory / "log")
            yield Pooler(port)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"pgbouncer did not start: {log.read_text()[-2000:]}")
