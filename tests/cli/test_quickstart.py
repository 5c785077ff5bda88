"""Every command of docs/quickstart.md, run as a new user would: in a fresh clone, in a venv of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "docs" / "quickstart.md"
# The virtual environment is installed anew, by the ordinary package client.
LIMIT = 600.0
READY = ("listens on http://", '"page_id"')


def blocks() -> list[tuple[bool, str]]:
    """The commands in their order; whether they are for a terminal of their own."""
    found = re.findall(
        r"^```sh( background)?\n(.*?)^```$", QUICKSTART.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [(bool(background), commands) for background, commands in found]


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="convsync-test-", dir="/tmp"))
    if os.geteuid() == 0:
        made.chmod(0o711)  # PostgreSQL then runs as another user, who has to pass
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def repository(directory: Path) -> Path:
    """What there is to clone: these files, committed."""
    source = directory / "repository"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", ".hypothesis", ".env"),
    )
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-C", str(source)]
    subprocess.run([*git, "init", "--quiet"], check=True)  # noqa: S603
    subprocess.run([*git, "add", "--all"], check=True)  # noqa: S603
    subprocess.run([*git, "commit", "--quiet", "--message", "as it is"], check=True)  # noqa: S603
    return source


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Terminals:
    """The shells of a new user: one to type in, others in which something goes on running."""

    def __init__(self, directory: Path, changed: dict[str, str]) -> None:
        self._directory = directory
        self._changed = changed
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("CONVSYNC_", "VIRTUAL_"))
            },
            "HOME": str(directory / "home"),
            "CONVSYNC_DATA_DIR": str(directory / "data"),
        }
        (directory / "home").mkdir()
        self._where = directory
        self._background: list[subprocess.Popen[bytes]] = []

    def _text(self, commands: str) -> str:
        for told, here in self._changed.items():
            commands = commands.replace(told, here)
        return commands

    def type(self, commands: str) -> str:
        """Run the commands in the directory where the last ones ended; what they printed."""
        activate = self._where / ".venv" / "bin" / "activate"
        script = [
            "set -euo pipefail",
            f"cd {shlex.quote(str(self._where))}",
            f". {shlex.quote(str(activate))}" if activate.exists() else "",
            self._text(commands),
            f"pwd > {shlex.quote(str(self._directory / 'where'))}",
        ]
        # From a file: what is typed into a terminal is on no command line.
        typed = self._directory / "typed"
        typed.write_text("\n".join(script), encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - the commands of our own document
            ["/bin/bash", str(typed)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        printed = done.stdout.decode()
        assert done.returncode == 0, f"{commands}\n{printed}"
        self._where = Path((self._directory / "where").read_text().strip())
        return printed

    def leave_running(self, command: str) -> None:
        """Run the command in another terminal; return when it says that it is there."""
        log = self._directory / f"terminal-{len(self._background)}"
        script = f"cd {shlex.quote(str(self._where))}; . .venv/bin/activate; exec {self._text(command)}"
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603
                ["/bin/bash", "-c", script],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._background.append(process)
        until = time.monotonic() + 120
        while not any(sign in log.read_text() for sign in READY):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)

    def end(self) -> list[int]:
        """Ctrl-C in each of the other terminals, the last one first; how each ended."""
        codes = []
        for process in reversed(self._background):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                codes.append(process.wait(60))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        self._background = []
        return codes


def test_every_command_of_the_quickstart_works_in_its_order(directory: Path, repository: Path) -> None:
    api, graph = free_ports(2)
    changed = {"<this repository>": str(repository), ":8080": f":{api}", "8089": str(graph)}
    terminals = Terminals(directory, changed)
    # Not told in the document, whose reader has these ports for themselves.
    terminals._environment["CONVSYNC_PORT"] = str(api)
    printed = ""
    try:
        for background, commands in blocks():
            if background:
                terminals.leave_running(commands)
            else:
                printed += terminals.type(commands)
    finally:
        codes = terminals.end()
    assert codes[0] == 0
    assert "The mirror is exact: compared with the truth, 0 missing, 0 extra, 0 differing" in printed
    # `verify` ended with 0, after the sync and after what came live: else the typing had ended there.
    assert '"next"' in printed
    assert "sender_name" in printed


def test_the_quickstart_hides_no_command_from_its_test() -> None:
    """A block that is not marked as commands is output, or a setting."""
    text = QUICKSTART.read_text("utf-8")
    every = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in every} == {"", "sh", "sh background"}
    unmarked = [block for kind, block in every if not kind]
    assert len(blocks()) == len(every) - len(unmarked) > 6
    for block in unmarked:
        assert not re.search(r"^(\$ |convsync |curl |git )", block, re.MULTILINE), block
