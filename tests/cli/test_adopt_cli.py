"""`convsync adopt`: what it says, what it refuses and how, and which old databases it can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from convsync.cli import main
from secrets_hunt import marked

Run = Callable[..., Result]

# No more than what is needed, of the plainest types, in a schema of its own.
PLAIN: LiteralString = """
create schema crm;
create table crm.messenger_conversations (id bigint, page_id bigint, sender_id text);
create table crm.contact_interaction_events
  (conversation_id integer, event_type text, event_timestamp timestamp, metadata json);
insert into crm.messenger_conversations values
  (1, 1001, ' 2001 '), (2, 1001, '2001'), (3, null, '2002'), (4, 1001, null);
insert into crm.contact_interaction_events values
  (1, 'message_received', '2026-02-01 10:00:00', '{"message_id": "m_1", "text": "hello"}'),
  (2, 'message_received', '2026-02-01 10:00:00', '{"message_id": "m_1", "text": "hello"}'),
  (2, 'message_sent', 'infinity', '{"message_id": "m_2", "text": "bye"}'),
  (2, 'message_sent', '2026-02-01 10:00:09', 'null'),
  (4, 'message_received', '2026-02-01 10:00:00', '{"message_id": "m_1", "text": "hello"}'),
  (3, 'message_sent', '2026-02-01 10:00:10', '{"message_id": "m_3", "text": "bye"}'),
  (9, 'message_sent', '2026-02-01 10:00:11', '{"message_id": "m_4"}');
"""


@pytest.fixture
def run(database: Any, raw_database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, on a database of its own, with the raw one as the old one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.service_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CONVSYNC_ADOPT_URL", raw_database.owner_url)
    return lambda *arguments: CliRunner().invoke(main, ["adopt", *arguments])


@pytest.fixture
def old(raw_database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(raw_database.owner_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def mirror(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        yield connection


def events(mirror: psycopg.Connection[Any]) -> list[Any]:
    return mirror.execute(
        "select message_id, body, source from convsync.contact_interaction_events order by 1"
    ).fetchall()


def test_the_plainest_old_database_is_read_in_whatever_schema(
    run: Run, old: psycopg.Connection[Any], mirror: psycopg.Connection[Any]
) -> None:
    old.execute(PLAIN)
    dry = run("--dry-run", "--json")
    assert dry.exit_code == 0, dry.output
    assert events(mirror) == []
    done = run("--json")
    assert done.exit_code == 0, done.output
    document, before = json.loads(done.stdout), json.loads(dry.stdout)
    assert (before.pop("dry_run"), document.pop("dry_run")) == (True, False)
    assert before.pop("as_of") <= document.pop("as_of")
    assert before == document
    assert document == {
        "schema": "crm",
        "read": {"conversations": 4, "events": 7},
        "adopted": {"conversations": 1, "messages": 1},
        "new": {"conversations": 1, "messages": 1, "statuses": 0, "dead_letters": 7, "owners": 0},
        "repaired": {
            "people_with_several_conversations": 1,
            "conversations_merged": 1,
            "messages_with_several_events": 1,
            "events_merged": 1,
            "events_merged_that_disagreed": 0,
            "messages_with_several_people": 0,
            "events_without_message_id_known_by_another": 0,
            "counts_corrected": 0,
            "people_with_several_statuses": 0,
        },
        "not_repaired": {
            "events_without_message_id": 1,
            "last_messages_without_event": 0,
            "conversations_without_person": 2,
            "unusable_events": {
                "event_timestamp is no time": 1,
                "its conversation is not there": 1,
                "its conversation names no person": 2,
            },
            "answered_by_the_mirror": 0,
            "refused_messages": 0,
        },
        "pages": [],
        "left_behind": {},
    }
    assert events(mirror) == [("m_1", "hello", "import")]
    kept = mirror.execute(
        "select page_id, convert_from(raw, 'UTF8')::jsonb from convsync.dead_letters order by 1, 2"
    ).fetchall()
    assert len(kept) == 7
    assert {
        "table": "contact_interaction_events",
        "row": {
            "conversation_id": 9,
            "event_type": "message_sent",
            "event_timestamp": "2026-02-01T10:00:11",
            "metadata": {"message_id": "m_4"},
        },
    } in [raw for page_id, raw in kept if page_id == ""]

    again = json.loads(run("--json").stdout)
    assert not any(again["new"].values())
    assert mirror.execute("select sum(attempts) from convsync.dead_letters").fetchone() == (7,)


def test_ids_that_are_none_make_no_page_and_keep_nobody_else_out(
    run: Run, old: psycopg.Connection[Any], mirror: psycopg.Connection[Any]
) -> None:
    """What a program writes for a Page that it does not know, and what PostgreSQL has no index for."""
    old.execute(PLAIN)
    old.execute("alter table crm.messenger_conversations add user_id text default 'u1'")
    old.execute("alter table crm.messenger_conversations alter page_id type text")
    old.execute(
        """insert into crm.messenger_conversations values (5, 'undefined', '2001'), (6, 'undefined', '2002'),
             (7, repeat(md5('x') || md5('y'), 100), '2001'), (8, '1001', repeat(md5('x') || md5('y'), 100));
           insert into crm.contact_interaction_events
           select c, 'message_received', '2026-02-01 10:01:00',
             json_build_object('message_id', m, 'text', 'hello')
           from (values (5, 'm_5'), (6, 'm_5'), (7, 'm_7'), (8, 'm_8'), (2, repeat('z', 3000))) s (c, m)"""
    )
    dry = run("--dry-run", "--json")
    done = run("--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["new"] == json.loads(dry.stdout)["new"]
    assert document["new"] == {
        "conversations": 1,
        "messages": 1,
        "statuses": 0,
        "dead_letters": 7 + 4 + 5,
        "owners": 1,
    }
    assert document["not_repaired"]["conversations_without_person"] == 2 + 4
    assert document["repaired"]["messages_with_several_people"] == 0
    assert [page["page_id"] for page in document["pages"]] == ["1001"]
    assert mirror.execute("select page_id from convsync.pages").fetchall() == [("1001",)]
    assert not any(json.loads(run("--json").stdout)["new"].values())


def test_it_tells_a_person_what_it_did(run: Run, old: psycopg.Connection[Any]) -> None:
    old.execute(PLAIN)
    old.execute("alter table crm.messenger_conversations add user_id text, add lead_score integer")
    old.execute("update crm.messenger_conversations set user_id = case id when 2 then 'u2' else 'u1' end")
    done = run()
    assert done.exit_code == 0, done.output
    for line in (
        "Read: 4 conversations and 7 events of schema crm",
        "They are 1 conversations with 1 messages.",
        "New here: 1 conversations, 1 messages, 0 statuses, 7 dead letters, 1 owners.",
        "Page 1001: user_id u1 as owner_ref; conversations of it had also: u2",
        "Left behind, columns of messenger_conversations: lead_score",
        "convsync dead-letters list",
    ):
        assert line in done.stdout
    dry = run("--dry-run")
    assert "Read (nothing is written): 4 conversations" in dry.stdout
    assert "(somebody is named here already, and stays)" in dry.stdout


def test_a_letter_of_an_old_row_is_not_replayed_as_a_delivery(
    run: Run, old: psycopg.Connection[Any], mirror: psycopg.Connection[Any]
) -> None:
    old.execute(PLAIN)
    assert run().exit_code == 0
    (number,) = mirror.execute("select min(dead_letter_id) from convsync.dead_letters").fetchone() or (None,)
    done = CliRunner().invoke(main, ["dead-letters", "replay", str(number)])
    assert (done.exit_code, "its message comes with a sync under its own id" in done.output) == (1, True)


def test_without_an_old_database_it_names_the_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVSYNC_ADOPT_URL")
    done = run()
    assert (done.exit_code, "CONVSYNC_ADOPT_URL is needed" in done.output) == (2, True)


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("postgresql://u:{}@127.0.0.1:1/old", 1, "the old database cannot be reached: nobody listens at"),
        ("postgresql://u:{}@[/old", 2, "CONVSYNC_ADOPT_URL: Value error, must be like postgresql://"),
    ],
    ids=["nobody there", "no address"],
)
def test_an_address_that_leads_nowhere_is_told_without_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str, code: int, told: str
) -> None:
    # tests/secrets_hunt.py looks for the password in all that is printed.
    monkeypatch.setenv("CONVSYNC_ADOPT_URL", url.format(marked("password")))
    done = run()
    assert (done.exit_code, told in done.output, "Traceback" in done.output) == (code, True, False), (
        done.output
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "drop table crm.contact_interaction_events",
            "no schema of it has both tables, messenger_conversations and",
        ),
        (
            "alter table crm.messenger_conversations drop sender_id",
            "crm.messenger_conversations has no column sender_id",
        ),
        (
            "alter table crm.contact_interaction_events drop metadata",
            "crm.contact_interaction_events has no column metadata",
        ),
        (
            "alter table crm.contact_interaction_events alter event_timestamp type text",
            "crm.contact_interaction_events.event_timestamp is text; it must be timestamp",
        ),
        (
            """create schema other; create table other.messenger_conversations ();
               create table other.contact_interaction_events ()""",
            "several schemas have both tables: crm, other",
        ),
    ],
)
def test_what_is_not_the_old_schema_is_told_by_table_and_column(
    run: Run, old: psycopg.Connection[Any], change: LiteralString, told: str
) -> None:
    old.execute(PLAIN)
    old.execute(change)
    done = run()
    assert (done.exit_code, told in done.output.replace("\n", " ")) == (1, True), done.output


@pytest.mark.parametrize(
    ("kind", "unreadable", "kept"),
    [
        ("json", r'{"message_id": "m_5", "text": "a\u0000b"}', r"a\u0000b"),
        ("json", r'{"message_id": "m_5", "text": "half a pair: \ud83d."}', r"\ud83d."),
        ("json", r'{"message_id": "m_5", "text": "the other half: \\\ude00"}', r"\\\ude00"),
        ("json", '{"n": 1e400}', "0" * 400),
        ("jsonb", '{"n": 1e400}', "0" * 400),
        ("json", '{"n": 1e200000}', "1e200000"),
        ("jsonb", '{"n": ' + "[" * 1500 + "]" * 1500 + "}", "[" * 1500 + "]" * 1500),
    ],
)
def test_json_that_nobody_can_read_is_a_dead_letter_and_stops_nobody_else(
    run: Run,
    old: psycopg.Connection[Any],
    mirror: psycopg.Connection[Any],
    kind: str,
    unreadable: str,
    kept: str,
) -> None:
    old.execute(PLAIN)
    readable = [
        r'{"message_id": "m_6", "text": "\ud83d\ude00"}',
        r'{"message_id": "m_7", "text": "C:\\u0000"}',
        r'{"message_id": "m_1e99999", "text": "\"e12345\\"}',
    ]
    for metadata in (unreadable, *readable):
        old.execute(
            """insert into crm.contact_interaction_events
               values (2, 'message_received', '2026-02-01 11:00:00', %s)""",
            [metadata],
        )
    change = sql.SQL("alter table crm.contact_interaction_events alter metadata type {}").format(
        sql.SQL(kind)
    )
    old.execute(change)
    done = run("--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["not_repaired"]["unusable_events"]["its JSON cannot be read"] == 1
    assert {
        ("m_6", "\U0001f600", "import"),
        ("m_7", "C:\\u0000", "import"),
        ("m_1e99999", '"e12345\\', "import"),
    } <= set(events(mirror))
    (raw,) = [
        row[0]
        for row in mirror.execute(
            "select convert_from(raw, 'UTF8') from convsync.dead_letters where reason like %s",
            ["%its JSON cannot be read"],
        )
    ]
    row = json.loads(raw)["row"]
    assert kept in row.get("metadata", row)["unreadable_json"]


def test_rows_that_security_hides_are_an_error_and_not_a_smaller_database(
    run: Run,
    old: psycopg.Connection[Any],
    server: Any,
    database: Any,
    raw_database: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    login = conninfo_to_dict(database.service_url)
    user, password = str(login["user"]), str(login["password"])
    old.execute(PLAIN)
    for grant in ("usage on schema crm", "select on all tables in schema crm"):
        old.execute(sql.SQL("grant {} to {}").format(sql.SQL(grant), sql.Identifier(user)))
    monkeypatch.setenv("CONVSYNC_ADOPT_URL", server.url(raw_database.name, user, password))
    assert run("--dry-run").exit_code == 0, "it may read"
    old.execute("alter table crm.contact_interaction_events enable row level security")
    done = run()
    assert (done.exit_code, "row-level security" in done.output) == (1, True), done.output
