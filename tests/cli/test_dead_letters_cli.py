"""`convsync dead-letters`: list, show, replay, discard."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result

from convsync.cli import main
from convsync.facts import DeadLetter, dump

Run = Callable[..., Result]
EVENT = {
    "sender": {"id": "7300000000000011"},
    "recipient": {"id": "1001"},
    "timestamp": 1_700_000_000_123,
    "message": {"mid": "m_1", "text": "hello"},
}
MESSAGE = orjson.dumps({"object": "page", "entry": [{"id": "1001", "messaging": [EVENT]}]})


@pytest.fixture
def run(database: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(main, ["dead-letters", *arguments])


@pytest.fixture
def keep(database: Any) -> Callable[..., str]:
    def one(raw: bytes, page_id: str = "1001", reason: str = "why") -> str:
        with psycopg.connect(database.service_url, autocommit=True) as connection:
            connection.execute(
                "select convsync_api.ingest(%s, 'webhook')", [dump([DeadLetter(page_id, reason, raw)])]
            )
            row = connection.execute("select convsync_api.list_dead_letters(p_limit => 1)").fetchone()
        assert row is not None
        return str(row[0]["dead_letter_id"])

    return one


def test_they_are_listed_and_shown(run: Run, keep: Callable[..., str]) -> None:
    assert run("list").exit_code == 0
    first = keep(b"\xff\x1b[31m raw", reason="not \x1b[31m JSON")
    second = keep(b"2", page_id="")
    done = run("list", "--json")
    assert (done.exit_code, [one["dead_letter_id"] for one in json.loads(done.stdout)]) == (
        0,
        [second, first],
    )
    assert [one["dead_letter_id"] for one in json.loads(run("list", "1001", "--json").stdout)] == [first]
    assert [one["dead_letter_id"] for one in json.loads(run("list", "--limit", "1", "--json").stdout)] == [
        second
    ]
    for arguments in (("list",), ("show", first)):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        assert "\x1b[31m" not in done.stdout, "nobody else's colours reach the terminal"
    assert "\\xff\\x1b[31m raw" in run("show", first).stdout
    assert json.loads(run("show", first, "--json").stdout)["bytes"] == 10


def test_one_is_replayed_once(run: Run, keep: Callable[..., str], database: Any) -> None:
    number = keep(MESSAGE)
    assert json.loads(run("replay", number, "--json").stdout) == {"dead_letter_id": number, "replayed": True}
    done = run("replay", number)
    assert (done.exit_code, done.stdout.strip()) == (0, "it was settled before")
    with psycopg.connect(database.owner_url) as connection:
        found = connection.execute("select message_id from convsync.contact_interaction_events").fetchall()
    assert found == [("m_1",)]


def test_one_that_is_still_not_understood_fails_and_says_why(run: Run, keep: Callable[..., str]) -> None:
    number = keep(b"{")
    done = run("replay", number)
    assert done.exit_code == 1
    assert "still not understood" in done.output
    assert len(json.loads(run("list", "--json").stdout)) == 1


def test_one_is_discarded_for_a_reason(run: Run, keep: Callable[..., str]) -> None:
    number = keep(b"{")
    assert run("discard", number).exit_code == 2
    assert run("discard", number, "--reason", " ").exit_code == 1
    done = run("discard", number, "--reason", "a probe of ours", "--json")
    assert json.loads(done.stdout) == {"dead_letter_id": number, "discarded": True}
    assert run("list", "--json").stdout.strip() == "[]"
    [settled] = json.loads(run("list", "--resolved", "--json").stdout)
    assert settled["resolution"] == "discarded: a probe of ours"


@pytest.mark.parametrize("arguments", [("show", "77"), ("replay", "77"), ("discard", "77", "--reason", "x")])
def test_one_that_is_not_there(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "no dead letter 77" in done.output
    assert "Traceback" not in done.output
