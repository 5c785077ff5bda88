"""What must hold for every function, table and privilege, read from the catalog of an installed database.

A new function or table is covered the moment it exists. What a rule does not hold for is listed here with
its reason, and an entry that is no longer needed fails too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest

SEARCH_PATH = "search_path=pg_catalog, pg_temp"

# Tables whose primary key does not begin with page_id, and why.
NOT_BY_PAGE = {
    "installation": "one row for the whole database",
    "installation_secrets": "one row for the whole database",
    "sync_schedule": "one row for the whole database",
    "loss_meter": "one row for the whole database",
    "alert_looks": "one row for the whole database",
    "feed_epochs": "where the whole database has lived",
    "feed_consumers": "a consumer reads the changes of any number of Pages",
    "outgoing_webhooks": "a webhook is told of any number of Pages",
    "outgoing_dead_letters": "a webhook is told of any number of Pages",
    "deletion_requests": "a person asks, not a Page; it is found by its code alone",
}
# Tables where the planner chooses among indexes that begin with the Page as it likes, and why.
PLANNED_FREELY = {
    "conversation_changes": "ingest only adds to it, by the name of its key",
    "dead_letters": "ingest only adds to it, by the name of its key",
    "page_events": "ingest only adds to it, by the name of its key",
    "sync_runs": "a Page has a few rows in it",
    "sync_cursors": "each of its indexes goes on with the run",
}
# yoyo's own tables: made by it, not by our migrations
YOYO = ("_yoyo_log", "_yoyo_migration", "_yoyo_version", "yoyo_lock")

FUNCTIONS: LiteralString = """
select p.oid::regprocedure::text
from pg_proc as p
where p.pronamespace = 'convsync_api'::regnamespace and ({condition})
order by 1
"""


@pytest.fixture
def owner(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def service(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.service_url, autocommit=True) as connection:
        yield connection


def column(connection: psycopg.Connection[Any], query: LiteralString, *arguments: object) -> list[str]:
    return [row[0] for row in connection.execute(query, arguments or None)]


def functions(connection: psycopg.Connection[Any], condition: LiteralString) -> list[str]:
    return column(connection, FUNCTIONS.replace("{condition}", condition))


def test_there_are_public_and_private_functions(owner: psycopg.Connection[Any]) -> None:
    # else every test below would hold of nothing
    assert functions(owner, r"p.proname not like '\_%'")
    assert functions(owner, r"p.proname like '\_%'")


def test_every_public_function_has_a_comment(owner: psycopg.Connection[Any]) -> None:
    without = r"p.proname not like '\_%' and coalesce(obj_description(p.oid, 'pg_proc'), '') = ''"
    assert functions(owner, without) == []


def test_every_function_is_security_definer(owner: psycopg.Connection[Any]) -> None:
    assert functions(owner, "not p.prosecdef") == []


def test_every_function_has_the_fixed_search_path(owner: psycopg.Connection[Any]) -> None:
    found = owner.execute(
        """
        select p.oid::regprocedure::text, s.setting
        from pg_proc as p
        left join lateral unnest(p.proconfig) as s(setting) on s.setting like 'search_path=%%'
        where p.pronamespace = 'convsync_api'::regnamespace and s.setting is distinct from %s
        """,
        [SEARCH_PATH],
    ).fetchall()
    assert found == []


def test_no_trigger_and_no_overloaded_public_function(owner: psycopg.Connection[Any]) -> None:
    # Callers use named notation: with two functions of one name a new parameter could make a call ambiguous.
    assert functions(owner, "p.prorettype = 'trigger'::regtype") == []
    overloaded = column(
        owner,
        r"""
        select p.proname from pg_proc as p
        where p.pronamespace = 'convsync_api'::regnamespace and p.proname not like '\_%'
        group by 1 having count(*) > 1
        """,
    )
    assert overloaded == []


def test_every_parameter_is_named(owner: psycopg.Connection[Any]) -> None:
    unnamed = (
        r"p.proname not like '\_%' and exists (select from unnest(p.proargnames) as a(n) where a.n = '')"
    )
    assert functions(owner, unnamed) == []
    assert functions(owner, "p.pronargs > 0 and p.proargnames is null") == []


def test_public_may_execute_nothing(owner: psycopg.Connection[Any]) -> None:
    # grantee 0 is PUBLIC; a null acl is the default, which grants EXECUTE to PUBLIC
    granted: LiteralString = """
        exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
                where a.grantee = 0)
    """
    assert functions(owner, granted) == []


def test_the_service_may_execute_every_public_function_and_no_private_one(
    service: psycopg.Connection[Any],
) -> None:
    assert (
        functions(service, r"p.proname not like '\_%' and not has_function_privilege(p.oid, 'execute')") == []
    )
    assert functions(service, r"p.proname like '\_%' and has_function_privilege(p.oid, 'execute')") == []


def test_the_service_is_a_plain_member_of_its_role(service: psycopg.Connection[Any]) -> None:
    row = service.execute(
        """
        select pg_has_role(current_user, 'convsync_service', 'member'),
               rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls
        from pg_roles where rolname = current_user
        """
    ).fetchone()
    assert row == (True, False)


@pytest.mark.parametrize("schema", ["convsync", "convsync_read", "convsync_ops"])
def test_the_service_has_no_right_on_any_table(service: psycopg.Connection[Any], schema: str) -> None:
    query: LiteralString = """
        select c.relname
        from pg_class as c
        where c.relnamespace = %s::regnamespace
          and case when c.relkind = 'S' then has_sequence_privilege(c.oid, 'usage, select, update')
                   when c.relkind in ('r', 'p', 'v', 'm', 'f')
                     then has_table_privilege(c.oid, 'select, insert, update, delete, truncate')
                          or has_table_privilege(c.oid, 'references, trigger')
                          or has_any_column_privilege(c.oid, 'select, insert, update, references')
                   else false end
    """
    assert column(service, query, schema) == []


def test_the_service_may_create_nothing(service: psycopg.Connection[Any]) -> None:
    query: LiteralString = r"""
        select nspname from pg_namespace
        where has_schema_privilege(oid, 'create') and nspname not like 'pg\_temp%' and nspname <> 'public'
    """
    assert column(service, query) == []
    state = "select has_schema_privilege('convsync', 'usage')"
    assert service.execute(state).fetchone() == (False,)


def test_reading_a_table_as_the_service_is_refused(service: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        service.execute("select from convsync.messenger_conversations")


TABLES: LiteralString = """
select c.oid, c.relname
from pg_class as c
where c.relnamespace = 'convsync'::regnamespace and c.relkind in ('r', 'p') and c.relname <> all (%s)
order by 2
"""


def test_every_primary_key_begins_with_the_page(owner: psycopg.Connection[Any]) -> None:
    tables = owner.execute(TABLES, [list(YOYO)]).fetchall()
    assert tables
    first = {
        name: owner.execute(
            """
            select a.attname
            from pg_index as i
            join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
            where i.indrelid = %s and i.indisprimary
            """,
            [oid],
        ).fetchone()
        for oid, name in tables
    }
    assert {name for name, key in first.items() if key != ("page_id",)} == set(NOT_BY_PAGE)


def test_every_unique_and_foreign_key_contains_the_page(owner: psycopg.Connection[Any]) -> None:
    query: LiteralString = """
        select con.conname
        from pg_constraint as con
        join pg_class as c on c.oid = con.conrelid
        where c.relnamespace = 'convsync'::regnamespace and c.relname <> all (%s)
          and con.contype in ('u', 'f')
          and not exists (select from pg_attribute as a
                          where a.attrelid = c.oid and a.attname = 'page_id' and a.attnum = any (con.conkey))
    """
    assert column(owner, query, [*YOYO, *NOT_BY_PAGE]) == []


def test_the_planner_takes_no_page_for_one_row(owner: psycopg.Connection[Any]) -> None:
    """Where it chooses among indexes that begin with the Page, it is told of ten Pages (docs/decisions/0007).

    With thousands of small ones beside a large one, any of these indexes would look as good as the key.
    """
    told = dict(
        owner.execute(
            """
            select c.relname, coalesce(a.attoptions, '{}')
            from pg_class as c
            join pg_attribute as a on a.attrelid = c.oid and a.attname = 'page_id'
            where c.relnamespace = 'convsync'::regnamespace and c.relkind in ('r', 'p')
              and 1 < (select count(*) from pg_index as i where i.indrelid = c.oid and i.indkey[0] = a.attnum)
            """
        ).fetchall()
    )
    assert {"messenger_conversations", "contact_interaction_events"} <= set(told)
    untold = {name for name, options in told.items() if options != ["n_distinct=10"]}
    assert untold == set(PLANNED_FREELY)


def test_every_table_has_a_comment(owner: psycopg.Connection[Any]) -> None:
    tables = owner.execute(TABLES, [list(YOYO)]).fetchall()
    without = [
        name
        for oid, name in tables
        if owner.execute("select obj_description(%s, 'pg_class')", [oid]).fetchone() == (None,)
    ]
    assert without == []


def test_every_identity_column_is_bigint(owner: psycopg.Connection[Any]) -> None:
    query: LiteralString = """
        select a.attrelid::regclass::text || '.' || a.attname
        from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid
        where c.relnamespace = 'convsync'::regnamespace
          and a.attidentity <> '' and a.atttypid <> 'bigint'::regtype
    """
    assert column(owner, query) == []


def test_every_time_has_a_time_zone(owner: psycopg.Connection[Any]) -> None:
    query: LiteralString = """
        select c.relname || '.' || a.attname
        from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid
        where c.relnamespace = 'convsync'::regnamespace and c.relname <> all (%s)
          and a.atttypid = 'timestamp'::regtype
    """
    assert column(owner, query, list(YOYO)) == []


def test_the_state_depends_on_nothing_of_the_logic(owner: psycopg.Connection[Any]) -> None:
    """No trigger, default, check, index or generated column of ``convsync`` calls a re-applied function."""
    query: LiteralString = """
        select distinct pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_depend as d
        join pg_proc as p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
        where p.pronamespace = 'convsync_api'::regnamespace and d.classid <> 'pg_proc'::regclass
          and pg_describe_object(d.classid, d.objid, d.objsubid) !~ ' (convsync_read|convsync_ops)[.]'
    """
    assert column(owner, query) == []
    triggers: LiteralString = """
        select t.tgname from pg_trigger as t join pg_class as c on c.oid = t.tgrelid
        where c.relnamespace = 'convsync'::regnamespace and not t.tgisinternal
    """
    assert column(owner, triggers) == []


def test_nothing_of_the_product_lives_in_public(owner: psycopg.Connection[Any]) -> None:
    assert column(owner, "select proname from pg_proc where pronamespace = 'public'::regnamespace") == []
    assert column(owner, "select relname from pg_class where relnamespace = 'public'::regnamespace") == []
