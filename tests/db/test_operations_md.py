"""``docs/operations.md``: every recipe is in it, and what it shows is what comes out.

The examples run in order in one database in which something is wrong with most Pages (``planted``), at noon
of 2026-03-01. ``CONVSYNC_WRITE_DOCS=1`` writes what they give into the document instead of comparing.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from sessions import Connection
from test_functions_md import EXAMPLE, SESSION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "operations.md"
RECIPES = sorted(path.name for path in (ROOT / "sql" / "ops").glob("*.sql"))
# Sizes and statistics are each server's own.
VOLATILE = {"tables.sql"}


def at(owner: Connection, now: str) -> None:
    owner.execute("select set_config('convsync.now', %s, false)", [f"2026-03-01T{now}Z"])


def ingest(owner: Connection, source: str, facts: str) -> None:
    owner.execute("select convsync_api.ingest(%s::jsonb, %s)", [facts, source])


def messages(page_id: str, sender_id: str, *sent: str) -> str:
    told = [
        f"""{{"kind": "message", "page_id": "{page_id}", "sender_id": "{sender_id}", "direction": "in",
            "event_type": "message", "message_id": "m_{page_id}_{at}", "at": "2026-03-01T{at}Z",
            "text": "Hello"}}"""
        for at in sent
    ]
    return f"[{', '.join(told)}]"


def begin(owner: Connection, page_id: str, mode: str, lease: int = 60) -> tuple[int, int]:
    row = owner.execute(
        "select run_id, fence from convsync_api.begin_sync(%s, %s, 'host-a/4711', %s)", [page_id, mode, lease]
    ).fetchone()
    assert row is not None
    return row["run_id"], row["fence"]


def listed(
    owner: Connection,
    page_id: str,
    run: tuple[int, int],
    cursor: str | None,
    following: str | None,
    threads: str = "[]",
) -> None:
    owner.execute(
        """select from convsync_api.apply_sync_page(%s, %s, %s, 'list', null, %s, %s, convsync_api._now(),
           '[]', %s::jsonb, 0, 60)""",
        [page_id, *run, cursor, following, threads],
    )


def finish(owner: Connection, page_id: str, run: tuple[int, int]) -> None:
    owner.execute("select convsync_api.finish_sync(%s, %s, %s)", [page_id, *run])


@pytest.fixture
def planted(owner: Connection) -> None:
    at(owner, "10:00:00")
    for page_id, name in (
        ("1001", "Harbour Bicycles"),
        ("1002", "Corner Bakery"),
        ("1003", "Night Cinema"),
        ("1004", "Old Museum"),
    ):
        owner.execute(
            r"select convsync_api.add_page(%s, %s, p_token_sealed => '\x01', p_token_key_id => 'k')",
            [page_id, name],
        )
        owner.execute("select convsync_api.mark_token(%s, 'valid')", [page_id])
        owner.execute("select convsync_api.mark_subscribed(%s)", [page_id])
    ingest(owner, "webhook", messages("1001", "7001", "10:01:00", "10:02:00", "10:03:00"))
    ingest(owner, "webhook", messages("1002", "7002", "10:05:00"))

    # Harbour Bicycles: in order.
    at(owner, "11:50:00")
    run = begin(owner, "1001", "full")
    owner.execute("select convsync_api.acquire_call('1001', 'backfill', %s, %s)", run)
    at(owner, "11:50:30")
    for _ in range(2):
        listed(owner, "1001", run, None, None)
    finish(owner, "1001", run)
    ingest(owner, "webhook", messages("1001", "7003", "11:51:00"))

    # Corner Bakery: its sync died, half an hour ago; a delivery could not be understood.
    at(owner, "11:30:00")
    run = begin(owner, "1002", "full", 15)
    thread = '[{"thread_id": "t_1", "sender_id": "7002", "read": "more", "next_cursor": "n1"}]'
    listed(owner, "1002", run, None, "QVFIUlNhc2Jz", thread)
    ingest(
        owner,
        "webhook",
        """[{"kind": "dead_letter", "page_id": "1002", "raw": "e30=",
             "reason": "messaging[0].message: not an object"},
            {"kind": "dead_letter", "page_id": "1002", "raw": "W10=",
             "reason": "messaging[0].message: not an object"}]""",
    )

    # Night Cinema: its token has ended; a sync found what no webhook told.
    at(owner, "11:20:00")
    run = begin(owner, "1003", "full")
    for _ in range(2):
        listed(owner, "1003", run, None, None)
    finish(owner, "1003", run)
    ingest(owner, "webhook", messages("1003", "7004", "11:30:00"))
    at(owner, "11:40:00")
    ingest(owner, "sync", messages("1003", "7004", "10:20:00", "10:40:00", "11:10:00"))
    owner.execute(
        """select convsync_api.mark_token('1003', 'invalid',
           'The token has expired: make a new long-lived Page token.')"""
    )

    # Old Museum: part of its list could not be read, and Meta has told it to wait.
    at(owner, "11:45:00")
    run = begin(owner, "1004", "full")
    listed(owner, "1004", run, None, "QVFIUlNhc2Jz")
    owner.execute("select convsync_api.acquire_call('1004', 'backfill', %s, %s)", run)
    owner.execute(
        """select convsync_api.fail_sync_batch('1004', %s, %s, 'list', '', 'QVFIUlNhc2Jz', 5,
           '{"class": "transient", "code": 2, "message": "Service temporarily unavailable"}')""",
        run,
    )
    finish(owner, "1004", run)
    owner.execute(
        """select convsync_api.record_call('1004', 400, 120, p_error_code => 80006, p_block_scope => 'page',
           p_block_seconds => 3600, p_block_reason => 'There have been too many calls')"""
    )
    owner.execute("analyze convsync.contact_interaction_events, convsync.messenger_conversations")


def shown(server: Any, database: Any, text: str) -> str:
    """What psql prints from the repository's root, as the owner."""
    options = SESSION | {"convsync.now": "2026-03-01T12:00:00Z"}
    done = subprocess.run(  # noqa: S603 - our own arguments
        [server.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.owner_url],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in options.items())},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n") + "\n"


def undisturbed(server: Any, database: Any, example: re.Match[str]) -> str:
    """Its output once no other test's transaction holds the feed of a shared server back."""
    until = time.monotonic() + 60
    while True:
        output = shown(server, database, example["sql"])
        if ("feed_held_back" in output) == ("feed_held_back" in example["text"]) or time.monotonic() > until:
            return output
        time.sleep(0.05)


def steady(text: str) -> list[str]:
    """The header, and the names in the first column, whatever their order."""
    header, _, *lines = text.splitlines()
    names = {line.split("|")[0].strip() for line in lines if "|" in line}
    named = {"contact_interaction_events", "messenger_conversations"}
    assert named <= names
    return header.replace(" ", "").split("|")


def columns(text: str) -> list[list[str]]:
    """The rows, without the last two columns: sizes and scans are each server's own."""
    return [[cell.strip() for cell in line.split("|")[:-2]] for line in text.splitlines() if "|" in line]


@pytest.mark.usefixtures("planted")
def test_every_recipe_gives_what_the_document_shows(server: Any, database: Any) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    examples = list(EXAMPLE.finditer(document))
    outputs = [undisturbed(server, database, example) for example in examples]

    if os.environ.get("CONVSYNC_WRITE_DOCS"):
        given = iter(outputs)
        DOCUMENT.write_text(
            EXAMPLE.sub(lambda e: f"```sql\n{e['sql']}```\n```text\n{next(given)}```\n", document),
            encoding="utf-8",
        )
        pytest.skip("written, not compared")

    for example, output in zip(examples, outputs, strict=True):
        line = document.count("\n", 0, example.start()) + 1
        if any(name in example["sql"] for name in VOLATILE):
            assert steady(output) == steady(example["text"]), f"the example in line {line}"
        elif "indexes.sql" in example["sql"]:
            assert columns(output) == columns(example["text"]), f"the example in line {line}"
        else:
            assert output == example["text"], f"the example in line {line}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_explained_with_its_output(recipe: str) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    shown = [example["sql"] for example in EXAMPLE.finditer(document)]
    assert any(rf"\i sql/ops/{recipe}" in text for text in shown)


def test_every_view_for_operators_is_explained(owner: Connection) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    views = owner.execute("select viewname from pg_views where schemaname = 'convsync_ops'").fetchall()
    assert views
    missing = [row["viewname"] for row in views if f"`convsync_ops.{row['viewname']}`" not in document]
    assert missing == []


def test_every_setting_and_command_that_the_document_names_is_there() -> None:
    from convsync.cli import main
    from convsync.settings import Settings

    document = DOCUMENT.read_text(encoding="utf-8")
    settings = {name.lower() for name in re.findall(r"CONVSYNC_([A-Z_]+)", document)}
    assert settings - set(Settings.model_fields) == set()
    commands = set(re.findall(r"`convsync ([a-z-]+)", document))
    assert commands
    assert commands - set(main.commands) == set()
