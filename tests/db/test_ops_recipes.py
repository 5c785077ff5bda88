"""The operators' recipes in ``sql/ops``: quiet on a healthy database, and each planted case is found."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

OPS = Path(__file__).resolve().parents[2] / "sql" / "ops"
RECIPES = sorted(path.name for path in OPS.glob("*.sql"))


def ask(server: Any, database: Any, recipe: str, *, now: str, **variables: str) -> list[dict[str, str]]:
    """What psql prints for a recipe, as an operator runs it, at a time of the test's choice."""
    chosen = [argument for name, value in variables.items() for argument in ("-v", f"{name}={value}")]
    said = subprocess.run(  # noqa: S603 - our own arguments
        [
            *(server.psql_path, "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", *chosen),
            *("-d", database.owner_url, "-f", OPS / recipe),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PGOPTIONS": f"-c convsync.now={now} -c timezone=UTC"},
    )
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    return list(csv.DictReader(io.StringIO(said.stdout)))


def at(connection: psycopg.Connection[Any], now: str) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [now])


def begin(connection: psycopg.Connection[Any], page_id: str, mode: str = "full") -> tuple[int, int]:
    row = connection.execute(
        "select run_id, fence from convsync_api.begin_sync(%s, %s, 'worker-1', 60)", [page_id, mode]
    ).fetchone()
    assert row is not None
    return row[0], row[1]


LISTED: LiteralString = """
    [{"thread_id": "t_1", "sender_id": "2001", "read": "more", "next_cursor": "n1"},
     {"thread_id": "t_2", "sender_id": "2002", "read": "more", "next_cursor": "n1"}]
"""


def apply(
    connection: psycopg.Connection[Any],
    page_id: str,
    run: tuple[int, int],
    cursor: str | None,
    following: str,
) -> None:
    connection.execute(
        """
        select from convsync_api.apply_sync_page(%s, %s, %s, 'list', null, %s, %s,
            convsync_api._now(), '[]', %s::jsonb, 0, 60)
        """,
        [page_id, *run, cursor, following, LISTED],
    )


@pytest.fixture
def owner(database: Any) -> Any:
    """A healthy mirror: messages, an edit, an unsend, a referral, two people, a run that succeeded."""
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        at(connection, "2026-03-01T12:00:00Z")
        for page_id in ("100", "101", "102"):
            connection.execute(
                r"select convsync_api.add_page(%s, p_token_sealed => '\x01', p_token_key_id => 'k1')",
                [page_id],
            )
        connection.execute(
            """
            select convsync_api.ingest(jsonb_agg(fact || '{"page_id": "100"}'), 'sync')
            from jsonb_array_elements('[
              {"kind": "thread", "sender_id": "2001", "thread_id": "t_1",
               "observed_at": "2026-03-01T12:00:00Z", "fields": {"name": "Ann"}},
              {"kind": "message", "sender_id": "2001", "message_id": "mid.1", "direction": "in",
               "event_type": "message", "at": "2026-03-01T10:00:00Z", "text": "one"},
              {"kind": "message", "sender_id": "2001", "message_id": "m_mid.2", "direction": "out",
               "event_type": "message", "at": "2026-03-01T10:00:00Z", "text": "two"},
              {"kind": "edit", "sender_id": "2001", "message_id": "m_mid.2", "num_edit": 1,
               "at": "2026-03-01T10:01:00Z", "text": "two!"},
              {"kind": "message", "sender_id": "2001", "message_id": "m_3", "direction": "in",
               "event_type": "message", "at": "2026-03-01T10:02:00Z", "text": "three"},
              {"kind": "unsend", "sender_id": "2001", "message_id": "m_3", "at": "2026-03-01T10:03:00Z"},
              {"kind": "message", "sender_id": "2001", "message_id": "evt_4", "direction": "in",
               "event_type": "referral", "at": "2026-03-01T10:04:00Z", "in_thread": false},
              {"kind": "reaction", "sender_id": "2001", "message_id": "m_later", "actor_id": "2001",
               "action": "react", "emoji": "❤", "at": "2026-03-01T10:04:00Z"},
              {"kind": "watermark", "sender_id": "2002", "what": "read", "at": "2026-03-01T10:00:00Z"}
            ]') fact
            """
        )
        run = begin(connection, "100")
        for _ in range(2):
            connection.execute(
                """
                select from convsync_api.apply_sync_page('100', %s, %s, 'list', null, null, null,
                    convsync_api._now(), '[]')
                """,
                run,
            )
        assert connection.execute("select convsync_api.finish_sync('100', %s, %s)", run).fetchone() == (
            "succeeded",
        )
        yield connection


def test_the_three_recipes_are_there() -> None:
    assert RECIPES == ["duplicates.sql", "failed_batches.sql", "stuck_syncs.sql"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_shows_when_to_worry_and_what_to_do(recipe: str) -> None:
    header = (OPS / recipe).read_text(encoding="utf-8").partition("\n\n")[0]
    assert rf"\i sql/ops/{recipe}" in header
    for part in ("What it shows:", "When to worry:", "What to do"):
        assert part in header


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_quiet_on_a_healthy_database(
    server: Any, database: Any, owner: psycopg.Connection[Any], recipe: str
) -> None:
    assert ask(server, database, recipe, now="2026-03-01T12:00:30Z") == []


def test_run_at_work_is_not_stuck(server: Any, database: Any, owner: psycopg.Connection[Any]) -> None:
    apply(owner, "101", begin(owner, "101"), None, "c1")
    assert ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:00:59Z") == []


def test_stuck_syncs_shows_a_run_whose_process_died(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    run = begin(owner, "101")
    apply(owner, "101", run, None, "c1")
    assert ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:06:00Z") == [
        {
            "page_id": "101",
            "run_id": str(run[0]),
            "mode": "full",
            "status": "running",
            "why": "lease expired",
            "age": "00:05:00",
            "owner": "worker-1",
            "cursor": "c1",
            "open_threads": "2",
            "what_to_do": "is convsync serve running? by hand: convsync sync 101 --mode full",
        }
    ]


def test_stuck_syncs_shows_a_run_that_is_paused_past_its_time(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    owner.execute(
        "select convsync_api.pause_sync('101', %s, %s, 'deadline', 60)", begin(owner, "101", "incremental")
    )
    assert ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:00:59Z") == []
    (row,) = ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:03:00Z")
    assert (row["status"], row["why"], row["age"], row["cursor"]) == (
        "paused",
        "paused past its time",
        "00:02:00",
        "(front)",
    )
    assert row["what_to_do"].endswith("convsync sync 101 --mode incremental")


def test_stuck_syncs_shows_a_run_that_lives_without_progress(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    run = begin(owner, "101")
    at(owner, "2026-03-01T12:12:00Z")
    owner.execute("select convsync_api.renew_sync_lease('101', %s, %s, 60)", run)
    (row,) = ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:12:30Z")
    assert (row["why"], row["age"]) == ("no progress", "00:12:30")
    assert row["what_to_do"].startswith("its process lives")
    assert ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:12:30Z", minutes="20") == []


def test_stuck_syncs_names_an_invalid_token_and_a_block_as_the_cause(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    begin(owner, "101")
    begin(owner, "102")
    owner.execute("select convsync_api.mark_token('101', 'invalid', 'session expired')")
    owner.execute(
        "select convsync_api.record_call('102', 400, 80, p_block_scope => 'page', p_block_seconds => 3600)"
    )
    rows = ask(server, database, "stuck_syncs.sql", now="2026-03-01T12:30:00Z")
    assert [row["what_to_do"] for row in rows] == [
        "no valid token (session expired): convsync page add 101 --token-stdin",
        "Graph said to wait until 2026-03-01 13:00:00 UTC: wait",
    ]


def test_failed_batches_shows_what_could_not_be_read_until_a_later_walk_succeeds(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    run = begin(owner, "101")
    apply(owner, "101", run, None, "c1")
    error = '{"class": "transient", "code": 2, "subcode": 99, "message": "try later"}'
    for kind, thread, cursor in (("thread", "t_2", "n1"), ("thread", "t_1", "n1"), ("list", "", "c1")):
        owner.execute(
            "select convsync_api.fail_sync_batch('101', %s, %s, %s, %s, %s, 5, %s)",
            [*run, kind, thread, cursor, error],
        )
    owner.execute("select convsync_api.finish_sync('101', %s, %s)", run)

    rows = ask(server, database, "failed_batches.sql", now="2026-03-01T12:30:00Z")
    assert [(row["batch"], row["kind"], row["thread_id"], row["cursor"]) for row in rows] == [
        ("1", "thread", "t_2", "n1"),
        ("2", "thread", "t_1", "n1"),
        ("3", "list", "", "c1"),
    ]
    assert rows[0] == {
        "page_id": "101",
        "run_id": str(run[0]),
        "mode": "full",
        "status": "partial",
        "batch": "1",
        "kind": "thread",
        "thread_id": "t_2",
        "cursor": "n1",
        "attempts": "5",
        "class": "transient",
        "code": "2/99",
        "message": "try later",
        "since": "2026-03-01 12:00:00+00",
        "read_since_by": "",
    }

    at(owner, "2026-03-01T13:00:00Z")
    later = begin(owner, "101")
    for _ in range(2):
        owner.execute(
            "select from convsync_api.apply_sync_page('101', %s, %s, 'list', null, null, null, now(), '[]')",
            later,
        )
    owner.execute("select convsync_api.finish_sync('101', %s, %s)", later)
    rows = ask(server, database, "failed_batches.sql", now="2026-03-01T13:30:00Z")
    assert [row["read_since_by"] for row in rows] == [str(later[0])] * 3


# Each finding, and how it is planted past the functions; `replica` passes the foreign keys.
PLANTED: dict[str, tuple[LiteralString, str]] = {
    "message stored twice": (
        """
        insert into convsync.contact_interaction_events
            (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source,
             text_original)
        select page_id, 'm_mid.1', conversation_id, 'message', direction, event_timestamp, 'import', 'one'
        from convsync.contact_interaction_events where message_id = 'mid.1';
        update convsync.messenger_conversations set message_count = message_count + 1 where sender_id = '2001'
        """,
        "m_mid.1, mid.1",
    ),
    "thread of several people": (
        """
        with other as (
          insert into convsync.messenger_conversations (page_id, sender_id, thread_id, message_count,
              last_message_id, last_message_time)
          values ('100', '2003', 't_1', 1, 'm_9', '2026-03-01T10:00:00Z') returning page_id, conversation_id
        )
        insert into convsync.contact_interaction_events
            (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
        select page_id, 'm_9', conversation_id, 'message', 'in', '2026-03-01T10:00:00Z', 'import' from other
        """,
        "thread t_1 of 2001, 2003",
    ),
    "message_count is wrong": (
        "update convsync.messenger_conversations set message_count = 3 where sender_id = '2001'",
        "says 3, stored are 2",
    ),
    "last message is wrong": (
        """
        update convsync.messenger_conversations set last_message_id = 'm_3', last_message = 'three'
        where sender_id = '2001'
        """,
        "says m_3, the newest is mid.1",
    ),
    "event without conversation": (
        "delete from convsync.messenger_conversations where sender_id = '2001'",
        "evt_4",
    ),
    "amendment left behind": (
        """
        insert into convsync.pending_amendments (page_id, message_id, sender_id, unsent_at)
        values ('100', 'mid.1', '2001', now())
        """,
        "mid.1",
    ),
    "success beside open work": (
        "update convsync.sync_cursors set completed = false",
        "run ",
    ),
}


@pytest.mark.parametrize("finding", PLANTED)
def test_duplicates_finds_what_was_planted(
    server: Any, database: Any, owner: psycopg.Connection[Any], finding: str
) -> None:
    plant, detail = PLANTED[finding]
    with owner.transaction():
        owner.execute("set local session_replication_role = replica")
        owner.execute(plant)
    rows = ask(server, database, "duplicates.sql", now="2026-03-01T12:30:00Z")
    assert {row["finding"] for row in rows} == {finding}
    assert rows[0]["page_id"] == "100"
    assert rows[0]["detail"].startswith(detail)
