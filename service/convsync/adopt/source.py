"""The old system's database: read only, in one snapshot.

This is the one module besides `store` that sends SQL of its own: what it reads is foreign, so no function of
ours is there. It never writes; PostgreSQL itself refuses (`read only`).

Two tables are read, `messenger_conversations` and `contact_interaction_events`, in whatever schema they are.
Rows come as the JSON that their database makes of them, so that a column of any type, or one that nobody here
has heard of, is no obstacle and is kept. Both are read in one order (Page, person), through cursors on the
server: however large the tables are, a few thousand rows are in memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, Final

import orjson
import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import set_json_loads

from convsync.errors import ConvsyncError, DatabaseUnavailable, from_database, why_unreachable
from convsync.facts import Json
from convsync.webhook.models import MAX_ID, MAX_MID

CONVERSATIONS: Final = "messenger_conversations"
EVENTS: Final = "contact_interaction_events"
# What programs write for an id that they do not have.
NO_IDS: Final = ("null", "undefined")
# In place of JSON that PostgreSQL's jsonb, or this program, cannot hold: its text.
UNREADABLE: Final = "unreadable_json"
_FETCHED: Final = 2000
_CONNECT_SECONDS: Final = 15

# What must be there, and of which types; any type where none is named.
_TIMES = ("timestamp with time zone", "timestamp without time zone")
_JSON = ("jsonb", "json")
# Type json takes them unread: U+0000, and half a surrogate pair (once escaped backslashes and pairs are out).
_ESCAPED_BACKSLASH, _PAIR, _UNREADABLE_ESCAPE = (
    "\\\\",
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}",
    r"\\u(0000|[dD][89a-fA-F])",
)
# And, outside of strings, a number beyond what numeric holds.
_STRING, _BEYOND = r'"([^"\\]|\\.)*"', "[eE][+-]?0*[1-9][0-9]{4}"
_NEEDED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    CONVERSATIONS: {"id": (), "page_id": (), "sender_id": ()},
    EVENTS: {"conversation_id": (), "event_type": (), "event_timestamp": _TIMES, "metadata": _JSON},
}


class OldDatabaseError(ConvsyncError):
    """The old database cannot be read; the message says why, and never where or as whom."""

    code, status, title = "old_database", 422, "The old database cannot be read"


@dataclass(slots=True)
class Person:
    """One person of one Page: every conversation row that the old system had of them, as JSON."""

    page_id: str
    sender_id: str
    rows: list[Json] = field(default_factory=list)


class OldDatabase:
    """A snapshot of the old tables. `open_old_database` makes one."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], as_of: datetime, schema: str) -> None:
        self.as_of = as_of
        self.schema = schema
        self.columns: dict[str, dict[str, str]] = {}
        self._connection = connection
        self._cursors = count()

    def has(self, table: str, column: str) -> bool:
        return column in self.columns[table]

    async def check(self) -> None:
        """Raise OldDatabaseError naming the table and column that is missing or of a wrong type."""
        for table, needed in _NEEDED.items():
            found = {
                name: kind
                async for name, kind in self._each(
                    sql.SQL(
                        """select a.attname::text, format_type(a.atttypid, null)
                           from pg_catalog.pg_attribute a
                           where a.attrelid = {}::text::regclass and a.attnum > 0 and not a.attisdropped
                           order by a.attnum"""
                    ).format(sql.Literal(sql.Identifier(self.schema, table).as_string(self._connection)))
                )
            }
            for column, kinds in needed.items():
                if column not in found:
                    raise OldDatabaseError(f"{self.schema}.{table} has no column {column}")
                if kinds and found[column] not in kinds:
                    raise OldDatabaseError(
                        f"{self.schema}.{table}.{column} is {found[column]}; it must be {' or '.join(kinds)}"
                    )
            self.columns[table] = found

    async def count(self) -> tuple[int, int]:
        """How many rows there are: conversations, events."""
        query = sql.SQL("select (select count(*) from {}), (select count(*) from {})")
        row = await self._row(query.format(self._table(CONVERSATIONS), self._table(EVENTS)))
        return row[0], row[1]

    async def shared_messages(self) -> int:
        """How many message ids stand in conversations with different people of one Page.

        Who is no person for `reading` is none here.
        """
        query = sql.SQL(
            """select count(*) from (
                 select from {events} e join {conversations} c on {joined}
                 where length({mid}) <= {longest_message_id} and {page_is_one}
                   and {sender} not in ('', {page}) and lower({sender}) <> all ({no_ids})
                   and length({sender}) <= {longest_id} and not starts_with({sender}, 'erased:')
                 group by {page}, {mid}
                 having count(distinct {sender}) > 1) s"""
        )
        return int((await self._row(self._named(query)))[0])

    async def owners(self) -> AsyncGenerator[tuple[str, str, int], None]:
        """(page_id, user_id, conversations), the user with the most conversations of a Page first."""
        if not self.has(CONVERSATIONS, "user_id"):
            return
        query = sql.SQL(
            """select {page}, c.user_id::text, count(*)
               from {conversations} c
               where c.user_id is not null and c.user_id::text <> '' and {page_is_one}
               group by 1, 2
               order by 1, 3 desc, 2"""
        )
        async for page_id, user_id, conversations in self._each(self._named(query)):
            yield page_id, user_id, conversations

    async def people(self) -> AsyncGenerator[Person, None]:
        """Everybody, by Page and person. A Page or person that is missing is an empty string; of these each
        row comes alone.
        """
        query = sql.SQL(
            """select {page}, {sender}, to_jsonb(c)
               from {conversations} c
               order by {page}, {sender}, c.id"""
        )
        person: Person | None = None
        async for page_id, sender_id, row in self._each(self._named(query)):
            known = page_id and sender_id
            if person is None or not known or (person.page_id, person.sender_id) != (page_id, sender_id):
                if person is not None:
                    yield person
                person = Person(page_id, sender_id)
            person.rows.append(row)
        if person is not None:
            yield person

    async def events(self) -> AsyncGenerator[tuple[str, str, str | None, Json], None]:
        """(page_id, sender_id, message_id or None, row) of all events of conversations, in the order of
        `people`; of one person those without a message id first, then by message id.
        """
        query = sql.SQL(
            """select {page}, {sender}, {mid}, to_jsonb(e)
               from {events} e join {conversations} c on {joined}
               order by {page}, {sender}, {mid} nulls first, e.event_timestamp, {tie}"""
        )
        async for found in self._each(self._named(query)):
            yield found

    async def orphans(self) -> AsyncGenerator[Json, None]:
        """Events of conversations that are not there."""
        query = sql.SQL(
            """select to_jsonb(e) from {events} e
               where not exists (select from {conversations} c where {joined})"""
        )
        async for (row,) in self._each(self._named(query)):
            yield row

    def _table(self, name: str) -> sql.Identifier:
        return sql.Identifier(self.schema, name)

    def _readable(self, table: str) -> sql.Composable:
        """The table, with text in the place of JSON that would end the reading of all."""
        columns = self.columns[table]
        if "json" not in columns.values():
            return self._table(table)
        made = [
            sql.SQL(
                """case
                   when regexp_replace(replace({column}::text, {backslash}, ''), {pair}, '', 'g') ~ {escape}
                     or {column}::text ~ {beyond}
                       and regexp_replace({column}::text, {string}, '', 'g') ~ {beyond}
                   then json_build_object({unreadable}, {column}::text) else {column} end as {column}"""
            ).format(
                column=sql.Identifier(name),
                backslash=sql.Literal(_ESCAPED_BACKSLASH),
                pair=sql.Literal(_PAIR),
                escape=sql.Literal(_UNREADABLE_ESCAPE),
                string=sql.Literal(_STRING),
                beyond=sql.Literal(_BEYOND),
                unreadable=sql.Literal(UNREADABLE),
            )
            if kind == "json"
            else sql.Identifier(name)
            for name, kind in columns.items()
        ]
        return sql.SQL("(select {} from {})").format(sql.SQL(", ").join(made), self._table(table))

    def _named(self, query: sql.SQL) -> sql.Composed:
        mid = sql.SQL("e.metadata ->> 'message_id'")
        if self.has(EVENTS, "message_id"):
            mid = sql.SQL("coalesce(e.metadata ->> 'message_id', e.message_id::text)")
        same = self.columns[CONVERSATIONS]["id"] == self.columns[EVENTS]["conversation_id"]
        page = sql.SQL("""(btrim(coalesce(c.page_id::text, '')) collate "C")""")
        no_ids, longest_id = sql.Literal(list(NO_IDS)), sql.Literal(MAX_ID)
        return query.format(
            conversations=self._readable(CONVERSATIONS),
            events=self._readable(EVENTS),
            page=page,
            page_is_one=sql.SQL(
                "({page} <> '' and lower({page}) <> all ({no_ids}) and length({page}) <= {longest_id})"
            ).format(page=page, no_ids=no_ids, longest_id=longest_id),
            no_ids=no_ids,
            longest_id=longest_id,
            longest_message_id=sql.Literal(MAX_MID),
            sender=sql.SQL("""(btrim(coalesce(c.sender_id::text, '')) collate "C")"""),
            mid=sql.SQL("""(nullif(btrim({}), '') collate "C")""").format(mid),
            joined=sql.SQL("c.id = e.conversation_id" if same else "c.id::text = e.conversation_id::text"),
            tie=sql.SQL("e.id" if self.has(EVENTS, "id") else "to_jsonb(e)::text"),
        )

    async def _row(self, query: sql.Composed) -> tuple[Any, ...]:
        try:
            async with self._connection.cursor(row_factory=tuple_row) as cursor:
                await cursor.execute(query)
                row = await cursor.fetchone()
        except psycopg.Error as error:
            raise _told(error) from error
        assert row is not None  # noqa: S101 - an aggregate without groups has a row
        return row

    async def _each(self, query: sql.Composed) -> AsyncIterator[tuple[Any, ...]]:
        name = f"adopt_{next(self._cursors)}"
        try:
            async with self._connection.cursor(name, row_factory=tuple_row) as cursor:
                cursor.itersize = _FETCHED
                await cursor.execute(query)
                async for row in cursor:
                    yield row
        except psycopg.Error as error:
            raise _told(error) from error


@asynccontextmanager
async def open_old_database(url: str) -> AsyncIterator[OldDatabase]:
    """The old database as it is at this moment, checked. Raises OldDatabaseError."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, prepare_threshold=None, application_name="convsync adopt", connect_timeout=_CONNECT_SECONDS
        )
    except psycopg.Error as error:
        raise _told(error) from error
    try:
        set_json_loads(_loads, connection)
        try:
            as_of, schema = await _begin(connection)
        except psycopg.Error as error:
            raise _told(error) from error
        old = OldDatabase(connection, as_of, schema)
        await old.check()
        yield old
    finally:
        await connection.close()


async def _begin(connection: psycopg.AsyncConnection[Any]) -> tuple[datetime, str]:
    """Begin the transaction that everything is read in; when it is, and in which schema the tables are."""
    await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    await connection.set_read_only(True)
    # Long reads are the point. Row security that would hide rows has to fail, not to hide them.
    await connection.execute(
        """select set_config(name, value, true)
           from (values ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
             ('row_security', 'off'), ('timezone', 'UTC'), ('datestyle', 'ISO'),
             ('cursor_tuple_fraction', '1')) s (name, value)"""
    )
    cursor = await connection.execute(
        """select n.nspname::text, now(),
             to_regclass(quote_ident(%(conversations)s)) = c.oid as first
           from pg_catalog.pg_class c
           join pg_catalog.pg_namespace n on n.oid = c.relnamespace
           where c.relname = %(conversations)s and c.relkind in ('r', 'p', 'v', 'm', 'f')
             and n.nspname not in ('convsync', 'information_schema') and n.nspname !~ '^pg_'
             and exists (select from pg_catalog.pg_class e
               where e.relnamespace = c.relnamespace and e.relname = %(events)s
                 and e.relkind in ('r', 'p', 'v', 'm', 'f'))
           order by coalesce(to_regclass(quote_ident(%(conversations)s)) = c.oid, false) desc, 1""",
        {"conversations": CONVERSATIONS, "events": EVENTS},
    )
    found = await cursor.fetchall()
    if not found:
        raise OldDatabaseError(f"no schema of it has both tables, {CONVERSATIONS} and {EVENTS}")
    if len(found) > 1 and not found[0][2]:
        names = ", ".join(row[0] for row in found)
        raise OldDatabaseError(
            f"several schemas have both tables: {names}; choose one by the search_path of the login"
        )
    return found[0][1], found[0][0]


def _loads(text: str | bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # nested without end, or a number beyond all
        return {UNREADABLE: text if isinstance(text, str) else bytes(text).decode()}


def _told(error: psycopg.Error) -> OldDatabaseError:
    """Without what names host and login."""
    found = from_database(error)
    if why := why_unreachable(error):
        return OldDatabaseError(f"the old database cannot be reached: {why}")
    if isinstance(found, DatabaseUnavailable):
        return OldDatabaseError("the old database cannot be reached, or has ended the connection")
    return OldDatabaseError(f"the old database: {found.message}", sqlstate=found.sqlstate)
