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
# Those that list what there is; the others find what should not be.
LISTS = {
    "budgets.sql",
    "largest_threads.sql",
    "page_health.sql",
    "slowest_pages.sql",
    "tables.sql",
}


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


def test_the_recipes_are_there() -> None:
    found = {"dead_letters", "duplicates", "failed_batches", "indexes", "orphans", "problems", "stuck_syncs"}
    assert set(RECIPES) == LISTS | {f"{name}.sql" for name in found | {"webhook_losses"}}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_shows_when_to_worry_and_what_to_do(recipe: str) -> None:
    header = (OPS / recipe).read_text(encoding="utf-8").partition("\n\n")[0]
    assert rf"\i sql/ops/{recipe}" in header
    for part in ("What it shows:", "When to worry:", "What to do"):
        assert part in header


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - LISTS))
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


def test_page_health_shows_who_needs_somebody_first(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("select convsync_api.mark_token('102', 'invalid', 'session expired')")
    rows = ask(server, database, "page_health.sql", now="2026-03-01T12:10:00Z")
    assert [(row["page_id"], row["freshness"], row["why"], row["problems"]) for row in rows] == [
        ("102", "broken", "token_invalid", "token_invalid"),
        ("101", "stale", "first_sync", ""),
        ("100", "fresh", "", ""),
    ]
    assert (rows[2]["last_sync"], rows[2]["conversations"], rows[2]["dead_letters"]) == (
        "full succeeded",
        "2",
        "0",
    )


def test_budgets_shows_what_holds_calls_back(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("select convsync_api.acquire_call('101', 'live')")
    owner.execute(
        """select convsync_api.record_call('102', 400, 80, p_error_code => 80006, p_block_scope => 'page',
               p_block_seconds => 3600, p_block_reason => 'too many')"""
    )
    rows = ask(server, database, "budgets.sql", now="2026-03-01T12:30:00Z")
    blocked, free = (next(row for row in rows if row["page_id"] == page) for page in ("102", "101"))
    assert rows[0] == blocked
    assert (blocked["blocked_until"], blocked["block_reason"], blocked["last_error"]) == (
        "2026-03-01 13:00:00+00",
        "too many",
        "80006",
    )
    assert (free["calls"], free["blocked_until"], free["pace"]) == ("1", "", "1")
    assert ask(server, database, "budgets.sql", now="2026-03-01T13:30:00Z")[0]["blocked_until"] == ""


def test_dead_letters_are_counted_by_reason(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    for page_id, reason, raw in (("100", "odd", "YQ=="), ("100", "odd", "Yg=="), ("", "no page", "Yw==")):
        owner.execute(
            """select convsync_api.ingest(jsonb_build_array(jsonb_build_object('kind', 'dead_letter',
               'page_id', %s::text, 'reason', %s::text, 'raw', %s::text)), 'webhook')""",
            [page_id, reason, raw],
        )
    rows = ask(server, database, "dead_letters.sql", now="2026-03-01T12:30:00Z")
    assert [(row["page_id"], row["source"], row["reason"], row["open"]) for row in rows] == [
        ("100", "webhook", "odd", "2"),
        ("", "webhook", "no page", "1"),
    ]
    owner.execute("select convsync_api.discard_dead_letter(%s, 'seen')", [rows[1]["newest_id"]])
    assert len(ask(server, database, "dead_letters.sql", now="2026-03-01T12:30:00Z")) == 1


def test_webhook_losses_are_shown_by_hour_once_the_grace_is_over(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    at(owner, "2026-03-01T09:00:00Z")
    owner.execute("select convsync_api.mark_subscribed('100')")
    at(owner, "2026-03-01T12:00:00Z")
    owner.execute(
        """
        select convsync_api.ingest('[{"kind": "message", "page_id": "100", "sender_id": "2001",
          "message_id": "m_lost", "direction": "in", "event_type": "message",
          "at": "2026-03-01T11:50:00Z"}]', 'sync')
        """
    )
    assert ask(server, database, "webhook_losses.sql", now="2026-03-01T12:01:00Z") == []
    assert ask(server, database, "webhook_losses.sql", now="2026-03-01T12:06:00Z") == [
        {"page_id": "100", "hour": "2026-03-01 11:00:00+00", "received": "1", "sent": "0"}
    ]
    assert ask(server, database, "webhook_losses.sql", now="2026-03-09T12:06:00Z") == []


def test_slowest_pages_are_those_whose_syncs_took_longest(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    run = begin(owner, "101")
    at(owner, "2026-03-01T12:20:00Z")
    owner.execute("select convsync_api.renew_sync_lease('101', %s, %s, 60)", run)
    for _ in range(2):
        owner.execute(
            """select from convsync_api.apply_sync_page('101', %s, %s, 'list', null, null, null,
               convsync_api._now(), '[]')""",
            run,
        )
    owner.execute("select convsync_api.finish_sync('101', %s, %s)", run)
    rows = ask(server, database, "slowest_pages.sql", now="2026-03-01T12:30:00Z")
    assert [(row["page_id"], row["mode"], row["runs"], row["succeeded"], row["longest"]) for row in rows] == [
        ("101", "full", "1", "1", "00:20:00"),
        ("100", "full", "1", "1", "00:00:00"),
    ]


def test_the_largest_thread_comes_first_without_a_name(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    rows = ask(server, database, "largest_threads.sql", now="2026-03-01T12:30:00Z")
    assert [(row["page_id"], row["thread_id"], row["stored"]) for row in rows] == [
        ("100", "t_1", "2"),
        ("100", "", "0"),
    ]
    assert "Ann" not in str(rows)


def test_tables_shows_size_and_vacuum(server: Any, database: Any, owner: psycopg.Connection[Any]) -> None:
    owner.execute("analyze convsync.contact_interaction_events")
    rows = ask(server, database, "tables.sql", now="2026-03-01T12:30:00Z")
    (events,) = [row for row in rows if row["table_name"] == "contact_interaction_events"]
    assert events["rows"] == "4"
    assert events["analyzed_at"]
    assert events["table_size"].endswith(("kB", "bytes"))


def test_indexes_finds_one_that_is_there_twice_and_one_whose_build_broke_off(
    server: Any, database: Any, owner: psycopg.Connection[Any]
) -> None:
    owner.execute("create index mine on convsync.sync_runs (run_id)")
    owner.execute("insert into convsync.schema_drift values ('1', 'sync', 'a', now(), now(), 1)")
    owner.execute("insert into convsync.schema_drift values ('1', 'sync', 'b', now(), now(), 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        owner.execute("create unique index concurrently broken on convsync.schema_drift (page_id)")
    rows = ask(server, database, "indexes.sql", now="2026-03-01T12:30:00Z")
    assert {(row["index_name"], row["state"]) for row in rows} == {
        ("broken", "invalid"),
        ("mine", "double"),
        ("sync_runs_by_id", "double"),
    }


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
    "success beside open work": (
        "update convsync.sync_cursors set completed = false",
        "run ",
    ),
}


ORPHANED: dict[str, tuple[LiteralString, str]] = {
    "event without conversation": (
        """
        delete from convsync.conversation_changes;
        delete from convsync.messenger_conversations where sender_id = '2001'
        """,
        "evt_4",
    ),
    "conversation without Page": ("delete from convsync.pages where page_id = '100'", "2001"),
    "change without conversation": (
        """
        insert into convsync.conversation_changes (page_id, epoch, xid, conversation_id, version, kinds)
        values ('100', 1, '9', 4711, 1, '{message}')
        """,
        "change ",
    ),
    "amendment left behind": (
        """
        insert into convsync.pending_amendments (page_id, message_id, sender_id, unsent_at)
        values ('100', 'mid.1', '2001', now())
        """,
        "mid.1",
    ),
    "loss without message": (
        "insert into convsync.webhook_losses values ('100', 'm_gone', '2026-03-01', '2026-03-01')",
        "m_gone",
    ),
    "cursor without run": ("delete from convsync.sync_runs", "run "),
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


@pytest.mark.parametrize("finding", ORPHANED)
def test_orphans_finds_what_was_planted(
    server: Any, database: Any, owner: psycopg.Connection[Any], finding: str
) -> None:
    plant, detail = ORPHANED[finding]
    with owner.transaction():
        owner.execute("set local session_replication_role = replica")
        owner.execute(plant)
    rows = ask(server, database, "orphans.sql", now="2026-03-01T12:30:00Z")
    assert {row["finding"] for row in rows} == {finding}
    assert rows[0]["page_id"] == "100"
    assert rows[0]["detail"].startswith(detail)
