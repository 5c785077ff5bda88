"""A database of an earlier release becomes one of this release, with all that was in it.

`upgrade/0.1.0.sql.gz` is the dump of a database that release 0.1.0 installed and filled (`pg_dump --inserts
--no-owner --no-privileges --schema='convsync*'`, without psql's own commands): the full sync of the
simulator's inbox of `SEED_PAGE`, and of the Page `BY_HAND` what is named below; one person of it is erased.
"""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row
from sessions import eventually

from convsync.database import installer
from convsync.facts import Edit, Fact, Message, Unsend
from convsync.store import Store, create_pool
from db.test_installer import in_thread
from sync.world import open_world

DUMP = Path(__file__).with_name("upgrade") / "0.1.0.sql.gz"
SEED_PAGE: dict[str, Any] = {"conversations": 12, "messages": 6.0}
BY_HAND = "199"
AT = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
# What makes up a schema, without the oids and the times of its making.
SCHEMA: tuple[LiteralString, ...] = (
    """select c.oid::regclass::text, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull,
              a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid), c.relkind::text, c.reloptions
       from pg_class c
       join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
       left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
       where c.relnamespace::regnamespace::text like 'convsync%' and c.relname not like '%yoyo%'
       order by 1, 3""",
    """select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
       where connamespace::regnamespace::text like 'convsync%' and conrelid::regclass::text not like '%yoyo%'
       order by 1, 2""",
    """select schemaname, tablename, indexname, indexdef from pg_indexes
       where schemaname like 'convsync%' and tablename not like '%yoyo%' order by 1, 2, 3""",
    """select oid::regprocedure::text, pg_get_functiondef(oid), proacl::text, obj_description(oid)
       from pg_proc where pronamespace::regnamespace::text like 'convsync%' and prokind = 'f' order by 1""",
    """select schemaname, viewname, definition from pg_views where schemaname like 'convsync%'
       order by 1, 2""",
    """select c.relnamespace::regnamespace::text, c.relname, c.relacl::text from pg_class c
       where c.relnamespace::regnamespace::text like 'convsync%' and c.relkind in ('r', 'v')
         and c.relname not like '%yoyo%'
       order by 1, 2""",
)


@pytest.fixture
def old(raw_database: Any, template: str) -> Any:
    """A database of release 0.1.0. The template comes with the service's login."""
    with psycopg.connect(raw_database.owner_url, autocommit=True) as owner:
        owner.execute(gzip.decompress(DUMP.read_bytes()))
    return raw_database


def rows(url: str, query: LiteralString) -> list[dict[str, Any]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as owner:
        return owner.execute(query).fetchall()


def schema(url: str) -> list[list[Any]]:
    with psycopg.connect(url, autocommit=True) as owner:
        # So that names come out with their schemas wherever it is asked.
        owner.execute("set search_path = pg_catalog")
        return [owner.execute(query).fetchall() for query in SCHEMA]


CONVERSATIONS: LiteralString = (
    "select to_jsonb(t) as row from convsync.messenger_conversations t order by page_id, conversation_id"
)
EVENTS: LiteralString = (
    "select to_jsonb(t) as row from convsync.contact_interaction_events t order by page_id, message_id"
)
RUNS: LiteralString = "select to_jsonb(t) as row from convsync.sync_runs t order by page_id, run_id"
CHANGES: LiteralString = "select to_jsonb(t) as row from convsync.conversation_changes t order by change_id"


def test_the_schema_of_an_upgraded_database_is_that_of_a_new_one(old: Any, database: Any) -> None:
    done = in_thread(old.owner_url)
    assert done.migrations == installer.migration_ids()[3:]
    assert done.functions
    assert done.schema_version == installer.schema_version()
    for upgraded, new in zip(schema(old.owner_url), schema(database.owner_url), strict=True):
        assert upgraded == new
        assert new
    assert not in_thread(old.owner_url).changed


@pytest.mark.parametrize("query", [CONVERSATIONS, EVENTS, RUNS, CHANGES])
def test_what_was_stored_is_there_after_the_upgrade_as_it_was(old: Any, query: LiteralString) -> None:
    before = [one["row"] for one in rows(old.owner_url, query)]
    in_thread(old.owner_url)
    after = [one["row"] for one in rows(old.owner_url, query)]
    assert len(before) > 0
    # Columns may have come. The number of a transaction means nothing in another cluster.
    kept = [
        {key: row.get(key) for key in was if key != "version_xid"}
        for was, row in zip(before, after, strict=True)
    ]
    assert kept == [{key: was[key] for key in was if key != "version_xid"} for was in before]


async def test_an_upgraded_mirror_verifies_clean_and_the_next_sync_doubles_nothing(old: Any) -> None:
    in_thread(old.owner_url)
    async with open_world(old, **SEED_PAGE) as world:
        events, versions = await world.event_count(), await world.versions()
        assert (await world.verdict()).clean
        assert (await world.sync()).status == "succeeded"
        assert (await world.verdict()).clean
        assert (await world.event_count(), await world.versions()) == (events, versions)
        certificate = await world.store.certificate(page_id=world.page_id)
        assert certificate["complete"] == certificate["conversations"] == SEED_PAGE["conversations"]
        # What is known now is not read again.
        assert (await world.sync("incremental")).status == "succeeded"
        assert (await world.event_count(), await world.versions()) == (events, versions)


async def test_facts_go_on_where_the_old_release_was(old: Any) -> None:
    in_thread(old.owner_url)
    known: list[Fact] = [
        Message(BY_HAND, "73000", "m_old_0_3", "in", AT.replace(minute=3), text="text 3 of 0"),
        Edit(BY_HAND, "73000", "m_old_0_1", AT.replace(hour=10), 1, "edited"),
        Unsend(BY_HAND, "73001", "m_old_1_1", AT.replace(hour=11)),
        Message(BY_HAND, "73002", "m_old_2_1", "in", AT.replace(minute=1), text="of a person who was erased"),
    ]
    late = Message(BY_HAND, "73001", "m_old_not_yet", "in", AT.replace(minute=9), text="as it was first")
    async with create_pool(old.service_url, size=1, name="test") as pool:
        store = Store(pool)
        position = await store.feed_position(consumer="crm")
        again = await store.ingest(known, "webhook")
        assert not any(one.events_added or one.events_changed for one in again)
        (touched,) = await store.ingest([late], "webhook")
        assert (touched.events_added, touched.conversation_id) != (0, None)
    (body,) = rows(
        old.owner_url,
        "select body from convsync.contact_interaction_events where message_id = 'm_old_not_yet'",
    )
    assert body["body"] == "an edit before its message"
    (person,) = rows(
        old.owner_url,
        """select conversation_status, tags, assignee, note from convsync.messenger_conversations
           where page_id = '199' and sender_id = '73000'""",
    )
    assert person == {"conversation_status": "closed", "tags": ["vip"], "assignee": "ann", "note": "a note"}
    with psycopg.connect(old.owner_url, autocommit=True, row_factory=dict_row) as owner:
        kept = owner.execute("select count(*) as n from convsync.conversation_changes").fetchone()
        assert kept is not None

        def told_whole() -> list[dict[str, Any]] | None:
            query = "select * from convsync_api.changes_after(%s, 10000)"
            told = owner.execute(query, [position]).fetchall()
            return told if len(told) == kept["n"] - 3 else None

        # On a shared server another test's transaction may hold the feed back for a while.
        told = eventually(told_whole)
    assert told[-1]["conversation_id"] == touched.conversation_id
