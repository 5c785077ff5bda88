"""The views for applications, and the recipes of docs/read-views.md: an owner sees rows of the own Pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import orjson
import psycopg
import pytest
from sessions import ADA, BOB, OTHER_PAGE, PAGE, Connection, at, call, ingest, rows, told

from convsync.database import installer
from convsync.facts import Gone, Unsend

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "read-views.md"
RECIPES = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
VIEWS = ("conversations", "events", "page_events", "pages")
# Roles of the recipes are the whole server's: their names become this test's own.
ROLES = ("reporting", "shop_views", "shop_front", "shop_api_views", "authenticated")


@pytest.fixture
def filled(service: Connection) -> None:
    for page, owner_ref in ((PAGE, "acme"), (OTHER_PAGE, "brown"), ("1003", None)):
        call(service, "select convsync_api.add_page(%(p)s, p_owner_ref => %(o)s)", p=page, o=owner_ref)
    ingest(service, told("m_1", text="for acme"), told("m_2", 1, sender=BOB), Unsend(PAGE, BOB, "m_2", at(9)))
    ingest(service, told("m_3", text="SECRET of brown", page=OTHER_PAGE), told("m_4", page="1003"))


@pytest.fixture
def recipes(owner: Connection, database: Any) -> Iterator[dict[str, str]]:
    """The statements of the document, done; gives each role's name here."""
    names = {role: f"{database.name}_{role}" for role in ROLES}

    def here(text: str) -> str:
        return re.sub(rf"\b({'|'.join(ROLES)})\b", lambda found: names[found[1]], text)

    owner.execute(here("create role authenticated nologin").encode())
    for recipe in RECIPES:
        owner.execute(here(recipe).encode())
    yield names
    owner.execute(here(f"drop owned by {', '.join(ROLES)} cascade").encode())
    owner.execute(here(f"drop role {', '.join(ROLES)}").encode())


@contextmanager
def acting(connection: Connection, role: str, **settings: str) -> Iterator[None]:
    """As this role, in a transaction with these settings."""
    with connection.transaction(force_rollback=True):
        for name, value in settings.items():
            connection.execute("select set_config(%s, %s, true)", [name.replace("__", "."), value])
        connection.execute("select set_config('role', %s, true)", [role])
        yield


def ids(connection: Connection, query: LiteralString) -> list[Any]:
    return sorted(next(iter(row.values())) for row in rows(connection, query))


# --- the views themselves


@pytest.mark.usefixtures("filled")
def test_an_application_may_select_from_the_views(owner: Connection) -> None:
    with acting(owner, "convsync_app"):
        assert ids(owner, "select page_id from convsync_read.pages") == [PAGE, OTHER_PAGE, "1003"]
        assert len(ids(owner, "select conversation_id from convsync_read.conversations")) == 4
        assert ids(owner, "select message_id from convsync_read.events") == ["m_1", "m_2", "m_3", "m_4"]
        taken_back = "select message_id from convsync_read.events where deleted_at is not null"
        assert ids(owner, taken_back) == ["m_2"]


def test_it_may_do_nothing_else(owner: Connection) -> None:
    allowed = rows(
        owner,
        """select c.oid::regclass::text as name from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           where n.nspname like 'convsync%%' and c.relkind in ('r', 'p', 'v', 'm', 'f')
             and has_schema_privilege('convsync_app', n.oid, 'usage')
             and has_table_privilege('convsync_app', c.oid, 'select') order by 1""",
    )
    assert [row["name"] for row in allowed] == [f"convsync_read.{view}" for view in VIEWS]
    more = rows(
        owner,
        """select c.oid::regclass::text from pg_class c
           where c.relnamespace = 'convsync_read'::regnamespace
             and has_table_privilege('convsync_app', c.oid,
               'insert, update, delete, truncate, references, trigger')""",
    )
    assert more == []
    for statement in (
        "select from convsync.messenger_conversations",
        "select convsync_api.list_pages()",
        "select convsync_api.erase_contact('1001', '2001')",
        "select from convsync_ops.runs",
        "update convsync_read.pages set owner_ref = 'me'",
        "delete from convsync_read.pages",
        "create table convsync_read.mine (n int)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(owner, "convsync_app"):
            owner.execute(statement.encode())


@pytest.mark.usefixtures("filled")
def test_who_was_erased_and_a_page_that_was_removed_are_in_none(
    service: Connection, owner: Connection
) -> None:
    call(service, "select convsync_api.erase_contact('1001', '2001')")
    call(service, "select convsync_api.remove_page('1002')")
    assert ids(owner, "select page_id from convsync_read.pages") == [PAGE, "1003"]
    assert ids(owner, "select sender_id from convsync_read.conversations") == [ADA, BOB]
    assert ids(owner, "select message_id from convsync_read.events") == ["m_2", "m_4"]


def test_what_is_gone_at_graph_is_deleted_with_its_conversation(
    service: Connection, owner: Connection, filled: None
) -> None:
    (before,) = call(service, "select convsync_api.list_conversations('1001', p_query => '2001')")[
        "conversations"
    ]
    ingest(service, Gone(PAGE, ADA, at(100)), source="sync")
    with acting(owner, "convsync_app"):
        assert ids(owner, "select sender_id from convsync_read.conversations where page_id = '1001'") == [BOB]
        assert ids(owner, "select deleted_at from convsync_read.events where message_id = 'm_1'") == [at(100)]
        assert ids(owner, "select deleted_at from convsync_read.events where message_id = 'm_2'") == [at(9)]
    key = int(before["conversation_id"])
    document = call(service, "select convsync_api.get_conversation('1001', %(key)s)", key=key)
    assert document["deleted_at"] == "2025-03-01T12:01:40+00:00"
    (event,) = call(service, "select convsync_api.list_events('1001', %(key)s)", key=key)["events"]
    assert event["deleted_at"] == "2025-03-01T12:01:40+00:00"
    quoted = "select body from convsync_api.message_texts('1001', %(key)s, '{m_1}')"
    assert call(service, quoted, key=key) is None
    ingest(service, told("m_5", 101))
    with acting(owner, "convsync_app"):
        assert ids(owner, "select deleted_at from convsync_read.events where message_id = 'm_1'") == [None]
    assert call(service, quoted, key=key) == "for acme"


def test_every_view_has_a_comment_and_is_a_barrier(owner: Connection) -> None:
    found = rows(
        owner,
        """select relname, reloptions, obj_description(oid, 'pg_class') as said from pg_class
           where relnamespace = 'convsync_read'::regnamespace order by 1""",
    )
    assert [row["relname"] for row in found] == list(VIEWS)
    assert all(row["reloptions"] == ["security_barrier=true"] and row["said"] for row in found)


# --- the recipes


def claims(owner_ref: object) -> str:
    return orjson.dumps({"sub": "u_1", "app_metadata": {"owner_ref": owner_ref}}).decode()


def asking(way: str, owner_ref: str) -> tuple[str, str, dict[str, str]]:
    """(schema, role, settings) of somebody who is logged in."""
    if way == "setting":
        return "shop", "shop_front", {"app__owner_ref": owner_ref}
    return "shop_api", "authenticated", {"request__jwt__claims": claims(owner_ref)}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("way", ["setting", "token"])
@pytest.mark.parametrize(
    ("owner_ref", "pages", "events"),
    [("acme", [PAGE], ["m_1", "m_2"]), ("brown", [OTHER_PAGE], ["m_3"]), ("nobody", [], []), ("", [], [])],
)
def test_an_owner_sees_the_own_rows_only(
    owner: Connection,
    recipes: dict[str, str],
    way: str,
    owner_ref: str,
    pages: list[str],
    events: list[str],
) -> None:
    schema, role, settings = asking(way, owner_ref)
    with acting(owner, recipes[role], **settings):
        owner.execute("select set_config('search_path', %s, true)", [schema])
        assert ids(owner, "select page_id from pages") == pages
        assert ids(owner, "select distinct page_id from conversations") == pages
        assert ids(owner, "select message_id from events") == events
        assert ids(owner, "select message_id from events where page_id = '1002'") == (
            events if OTHER_PAGE in pages else []
        )


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("schema", "role", "settings"),
    [
        ("shop", "shop_front", {}),
        ("shop", "shop_front", {"request__jwt__claims": claims("acme")}),
        ("shop_api", "authenticated", {}),
        ("shop_api", "authenticated", {"request__jwt__claims": ""}),
        ("shop_api", "authenticated", {"request__jwt__claims": '{"owner_ref": "acme"}'}),
        ("shop_api", "authenticated", {"request__jwt__claims": '{"user_metadata": {"owner_ref": "acme"}}'}),
        ("shop_api", "authenticated", {"request__jwt__claims": claims(None)}),
        ("shop_api", "authenticated", {"app__owner_ref": "acme"}),
    ],
)
def test_who_says_nothing_sees_nothing(
    owner: Connection, recipes: dict[str, str], schema: str, role: str, settings: dict[str, str]
) -> None:
    with acting(owner, recipes[role], **settings):
        owner.execute("select set_config('search_path', %s, true)", [schema])
        for query in ("select from pages", "select from conversations", "select from events"):
            assert rows(owner, query) == []


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("role", ["shop_front", "authenticated"])
def test_there_is_no_way_around_the_views(owner: Connection, recipes: dict[str, str], role: str) -> None:
    for statement in (
        "select from convsync_read.events",
        "select from convsync.contact_interaction_events",
        "select convsync_api.list_pages()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(owner, recipes[role]):
            owner.execute(statement.encode())
    [row] = rows(
        owner,
        """select count(*) filter (where pg_has_role(%(role)s, r.oid, 'member')) as n from pg_roles r
           where r.rolname <> %(role)s and not r.rolsuper""",
        role=recipes[role],
    )
    assert row["n"] == 0, "it can become nobody else"


LEAKY: LiteralString = """
create function pg_temp.leaky(text) returns boolean language plpgsql cost 0.0000001 as
$$ begin raise notice '%', $1; return true; end $$
"""


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("way", ["setting", "token"])
def test_a_function_that_tells_is_never_called_with_the_rows_of_others(
    owner: Connection, recipes: dict[str, str], way: str
) -> None:
    schema, role, settings = asking(way, "acme")
    told_of: list[str | None] = []
    owner.add_notice_handler(lambda notice: told_of.append(notice.message_primary))
    with acting(owner, recipes[role], **settings):
        owner.execute(LEAKY)
        owner.execute("select set_config('search_path', %s, true)", [schema])
        rows(owner, "select from events where pg_temp.leaky(body)")
        rows(owner, "select from conversations where pg_temp.leaky(last_message)")
        rows(owner, "select from pages where pg_temp.leaky(page_id)")
    assert {"for acme", PAGE} <= set(told_of)
    assert not any("SECRET" in str(told) or told == OTHER_PAGE for told in told_of)


@pytest.mark.usefixtures("filled")
def test_without_the_barrier_it_would_tell(owner: Connection) -> None:
    """The control: a view of the same kind that is no barrier."""
    told_of: list[str | None] = []
    owner.add_notice_handler(lambda notice: told_of.append(notice.message_primary))
    with owner.transaction(force_rollback=True):
        owner.execute(
            """create view pg_temp.pages as select * from convsync.pages
               where owner_ref = nullif(current_setting('app.owner_ref', true), '')"""
        )
        owner.execute(LEAKY)
        owner.execute("select set_config('app.owner_ref', 'acme', true)")
        rows(owner, "select from pg_temp.pages where pg_temp.leaky(page_id)")
    assert OTHER_PAGE in told_of


@pytest.mark.usefixtures("filled")
async def test_an_upgrade_leaves_the_views_of_an_application_alone(
    owner: Connection, recipes: dict[str, str], database: Any
) -> None:
    owner.execute("update convsync.installation set functions_hash = 'of an older release'")
    assert (await installer.migrate(database.owner_url)).functions
    schema, role, settings = asking("setting", "acme")
    with acting(owner, recipes[role], **settings):
        owner.execute("select set_config('search_path', %s, true)", [schema])
        assert ids(owner, "select message_id from events") == ["m_1", "m_2"]
