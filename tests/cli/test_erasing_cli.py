"""`convsync erase` and `convsync purge`: asked first, and told what is gone."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.rows import dict_row

from convsync import erasing
from convsync.cli import main
from convsync.facts import DeadLetter, Message, dump

Run = Callable[..., Result]
PAGE, ADA, BOB = "1001", "7300000000000011", "7300000000000012"
CONVSYNC = str(Path(sys.executable).with_name("convsync"))


@pytest.fixture
def run(database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.fixture
def owner(database: Any) -> Any:
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        facts = [
            Message(PAGE, sender, f"m_{sender}_{year}", "in", datetime(year, 6, 1, tzinfo=UTC), "hello")
            for sender in (ADA, BOB)
            for year in (2023, 2024, 2025)
        ]
        facts.append(DeadLetter(PAGE, "why", json.dumps({"from": ADA}).encode()))
        connection.execute("select convsync_api.ingest(%s, 'webhook')", [dump(facts)])
        yield connection


def left(owner: Any) -> list[str]:
    found = owner.execute("select message_id from convsync.contact_interaction_events order by 1")
    return [row["message_id"] for row in found]


ALL = [f"m_{sender}_{year}" for sender in (ADA, BOB) for year in (2023, 2024, 2025)]


def test_a_person_is_erased_and_what_is_gone_is_counted(run: Run, owner: Any) -> None:
    done = run("erase", PAGE, ADA, "--yes", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document.pop("erased_at").endswith("+00:00")
    assert document == {"conversation_id": "1", "events": 3, "waiting_amendments": 0, "dead_letters": 1}
    assert left(owner) == ALL[3:]
    done = run("erase", PAGE, BOB, "--yes")
    assert (done.exit_code, left(owner)) == (0, [])
    assert f"Page {PAGE}: erased; 3 events, 0 waiting edits, 0 dead letters are gone." in done.stdout


def test_nobody_found_is_said(run: Run, owner: Any) -> None:
    """The erasure is in force all the same; but a slip of the pen must not look like success."""
    done = run("erase", PAGE, "7399", "--yes")
    assert (done.exit_code, "nobody was found under 7399" in done.stdout) == (0, True)
    assert json.loads(run("erase", PAGE, "7399", "--yes", "--json").stdout)["conversation_id"] is None
    for arguments in (("erase", "1002", ADA), ("purge", "1002", "--before", "2024-01-01")):
        done = run(*arguments, "--yes")
        assert (done.exit_code, "there is no Page 1002" in done.output) == (1, True)
        assert "Traceback" not in done.output
    assert left(owner) == ALL


@pytest.mark.parametrize(
    "before", ["2024-06-01T00:00:01", "2024-06-01T00:00:01Z", "2024-06-01T02:00:01+02:00", "2024-06-02"]
)
def test_what_is_older_is_deleted(run: Run, owner: Any, before: str) -> None:
    done = run("purge", PAGE, "--before", before, "--yes", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert datetime.fromisoformat(document.pop("purged_before")) <= datetime(2024, 6, 2, tzinfo=UTC)
    assert document == {"events": 4, "conversations": 2, "more": False}
    assert left(owner) == [ALL[2], ALL[5]]
    done = run("purge", PAGE, "--before", "2024-01-01", "--yes")
    assert "0 events of 0 conversations are gone. Whatever of before 2024-06-0" in done.stdout


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process lives in New York."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("elsewhere")
def test_a_day_begins_in_utc(run: Run, owner: Any) -> None:
    assert run("purge", PAGE, "--before", "2024-06-01", "--yes").exit_code == 0
    assert left(owner) == [ALL[1], ALL[2], ALL[4], ALL[5]]


def test_it_is_deleted_in_parts(run: Run, owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "PART", 1)
    document = json.loads(run("purge", PAGE, "--before", "2025-01-01", "--yes", "--json").stdout)
    assert (document["events"], document["conversations"], document["more"]) == (4, 2, False)
    assert left(owner) == [ALL[2], ALL[5]]


@pytest.mark.parametrize("before", ["soon", "", "2024-13-01", "1700000000"])
def test_what_is_no_time_is_wrong_usage(run: Run, before: str) -> None:
    done = run("purge", PAGE, "--before", before, "--yes")
    assert (done.exit_code, "--before" in done.output) == (2, True)


def test_a_time_to_come_is_refused(run: Run, owner: Any) -> None:
    done = run("purge", PAGE, "--before", "2999-01-01", "--yes")
    assert (done.exit_code, "must be in the past" in done.output) == (1, True)
    assert left(owner) == ALL


COMMANDS = [("erase", PAGE, ADA), ("purge", PAGE, "--before", "2025-01-01")]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_where_nobody_can_be_asked_yes_must_be_said(run: Run, owner: Any, arguments: Sequence[str]) -> None:
    done = run(*arguments)
    assert (done.exit_code, "--yes" in done.output) == (2, True)
    assert left(owner) == ALL


def at_a_terminal(arguments: Sequence[str], answer: bytes) -> tuple[int, str, str]:
    """(exit code, what was asked, stdout) of a command whose question is answered at its terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(  # noqa: S603 - our own command
        [CONVSYNC, *arguments, "--json"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            asked = b""
            while b"[y/N]" not in asked:
                ready, _, _ = select.select([ours], [], [], 60)
                assert ready, asked
                asked += os.read(ours, 4096)
            os.write(ours, answer)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            os.close(ours)
    return process.returncode, asked.decode(), out.decode()


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_person_at_a_terminal_is_asked(owner: Any, arguments: Sequence[str]) -> None:
    for answer in (b"n\n", b"\n", b"\x04"):  # the last one is Ctrl-D
        code, asked, out = at_a_terminal(arguments, answer)
        assert (code, out) == (1, "")
        assert f"Page {PAGE}" in asked
        assert arguments[-1] in asked
        assert left(owner) == ALL
    code, _, out = at_a_terminal(arguments, b"y\n")
    assert code == 0
    assert json.loads(out)["events"] == len(ALL) - len(left(owner)) > 0
