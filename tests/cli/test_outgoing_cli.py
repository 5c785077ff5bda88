"""`convsync outgoing`: new-secret, add, list, remove, resume."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from convsync.cli import main
from convsync.outgoing import secret_bytes
from secrets_hunt import MARKER, marked_key

Run = Callable[..., Result]
URL = "https://app.example.com/hook"


@pytest.fixture
def run(database: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CONVSYNC_TOKEN_KEY", marked_key())
    return lambda *arguments, **more: CliRunner().invoke(main, ["outgoing", *arguments], **more)


def secret() -> str:
    return "whsec_" + base64.b64encode(f"{MARKER}{'y' * 33}"[:33].encode()).decode()


def test_one_is_added_listed_resumed_and_removed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("add", "crm", URL, "--secret-stdin", "--page", "7", "--json", input=secret() + "\n")
    assert done.exit_code == 0, done.output
    added = json.loads(done.stdout)
    assert (added["name"], added["url"], added["pages"], added["state"]) == ("crm", URL, ["7"], "active")
    assert json.loads(run("list", "--json").stdout) == [added]
    shown = run("list")
    assert "crm" in shown.stdout
    assert URL in shown.stdout
    for command in (["resume", "crm"], ["resume", "crm", "--json"], ["remove", "crm"]):
        assert run(*command).exit_code == 0
    assert json.loads(run("list", "--json").stdout) == []
    for command in (["resume", "crm"], ["remove", "crm"]):
        done = run(*command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "there is no outgoing webhook crm" in done.stderr


def test_the_secret_is_made_here_and_comes_by_standard_input_only(run: Run) -> None:
    made = run("new-secret").stdout.strip()
    assert len(secret_bytes(made)) == 32
    assert run("add", "crm", URL).exit_code == 2
    for wrong in ("", "none\n", "whsec_short\n"):
        done = run("add", "crm", URL, "--secret-stdin", input=wrong)
        assert done.exit_code == 1
        assert "whsec_" in done.stderr
    assert json.loads(run("list", "--json").stdout) == []


@pytest.mark.parametrize(
    "url", ["http://app.example.com/hook", "ftp://127.0.0.1/", "app.example.com", "http://127.0.0.1.evil/"]
)
def test_an_address_that_others_could_read_on_the_way_is_refused(run: Run, url: str) -> None:
    done = run("add", "crm", url, "--secret-stdin", input=secret() + "\n")
    assert done.exit_code == 2
    assert "https" in done.stderr


def test_an_address_on_this_machine_may_be_http(run: Run) -> None:
    done = run("add", "crm", "http://127.0.0.1:3000/hook", "--secret-stdin", input=secret() + "\n")
    assert done.exit_code == 0, done.output


def test_what_the_database_refuses_is_told(run: Run) -> None:
    done = run("add", "a b", URL, "--secret-stdin", input=secret() + "\n")
    assert (done.exit_code, "letters" in done.stderr) == (1, True)
    run("add", "crm", URL, "--secret-stdin", input=secret() + "\n")
    done = run("resume", "crm", "--skip")
    assert (done.exit_code, "not paused" in done.stderr) == (1, True)
