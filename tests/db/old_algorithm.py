"""The control: the algorithm that convsync replaces, small and faithful, with all its flaws.

A checker that finds nothing wrong with this one checks nothing. ``OldSystem`` mirrors a Page as the old
routes did: the webhook upserts a conversation with what it got; a sync is always a full one and upserts
every conversation with what it fetched, without versions or locks; then, in a statement of its own, it
inserts the events of conversations it takes for new. Each flaw is marked where it is, by its number in
``docs/flaws.md``.

It has tables of its own (schema ``old``) and needs only what any Graph client can give it: a callable that
fetches one page of ``/{page}/conversations`` as JSON, by cursor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

Json: TypeAlias = dict[str, Any]
Fetch: TypeAlias = Callable[[str | None], Json]

USER = "the-operator"
CHUNK = 100

TABLES: LiteralString = """
create schema old;
create table old.messenger_conversations (
  id bigint generated always as identity primary key,
  user_id text not null,
  page_id text not null,
  sender_id text not null,
  sender_name text,
  last_message text,
  last_message_time timestamptz,
  conversation_status text not null default 'active',
  message_count integer not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create table old.contact_interaction_events (
  id bigint generated always as identity primary key,
  conversation_id bigint not null references old.messenger_conversations,
  event_type text not null,
  event_timestamp timestamptz not null,
  metadata jsonb not null  -- 10: the message's id is in here, and nothing is unique
);
create function old.touch() returns trigger language plpgsql as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;
create trigger touch before update on old.messenger_conversations for each row execute function old.touch();
"""
CONSTRAINTS: dict[str, LiteralString] = {
    "page_id, sender_id": "alter table old.messenger_conversations add unique (page_id, sender_id)",
    "user_id, page_id, sender_id": (
        "alter table old.messenger_conversations add unique (user_id, page_id, sender_id)"
    ),
}
UPSERT: LiteralString = """
insert into old.messenger_conversations
  (user_id, page_id, sender_id, sender_name, last_message, last_message_time)
values (%(user)s, %(page)s, %(sender)s, %(name)s, %(text)s, %(at)s)
on conflict ({conflict}) do update
set sender_name = excluded.sender_name, last_message = excluded.last_message,
  last_message_time = excluded.last_message_time
returning id, created_at = updated_at as is_new
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What a sync says of itself."""

    success: bool
    conversations: int
    events: int


class OldSystem:
    """The old system in a database that has none yet; `conflict` is the unique constraint it was given."""

    def __init__(
        self, url: str, *, conflict: str = "page_id, sender_id", max_seconds: float = 270, pause: float = 0
    ) -> None:
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self._max_seconds = max_seconds
        self._pause = pause
        self._connection.execute(TABLES)
        self._connection.execute(CONSTRAINTS[conflict])

    def close(self) -> None:
        self._connection.close()

    def webhook(
        self, page_id: str, sender_id: str, text: str | None, at: datetime, name: str | None = None
    ) -> None:
        """A message came: the conversation shows it. 16: it becomes no event; 19: nobody counts."""
        self._upsert(page_id, sender_id, name, text or "", at)

    def sync(self, page_id: str, fetch: Fetch) -> Report:
        """2: always all of it, from the front; 12: whether or not another one is at work."""
        started = time.monotonic()
        conversations = events = 0
        cursor: str | None = None
        while True:
            if time.monotonic() - started > self._max_seconds:
                break  # 11: where it stopped is written down nowhere
            try:
                body = fetch(cursor)
            except Exception:
                time.sleep(self._pause)
                break  # 13: what comes after the failed page is not read, and nobody is told
            for participant, messages in self._people(page_id, body):
                newest = messages[0] if messages else {}
                found = self._upsert(
                    page_id,
                    participant["id"],
                    participant.get("name"),
                    newest.get("message", ""),
                    _time(newest.get("created_time")),
                )
                conversations += 1
                if found["is_new"]:  # 5: by two clocks; one that a webhook made first is never new
                    events += self._insert_events(page_id, found["id"], messages[:25])  # 8
            cursor = body.get("paging", {}).get("cursors", {}).get("after")
            if cursor is None or "next" not in body["paging"]:
                break
        return Report(success=True, conversations=conversations, events=events)

    def conversations(self, page_id: str) -> dict[str, Json]:
        """What the mirror holds, by sender."""
        rows = self._connection.execute(
            "select * from old.messenger_conversations where page_id = %s order by id", [page_id]
        ).fetchall()
        return {row["sender_id"]: row for row in rows}

    def message_ids(self, page_id: str) -> list[str]:
        """The message of each event, with repetitions."""
        rows = self._connection.execute(
            """select e.metadata ->> 'message_id' as mid from old.contact_interaction_events as e
               join old.messenger_conversations as c on c.id = e.conversation_id
               where c.page_id = %s order by e.id""",
            [page_id],
        ).fetchall()
        return [row["mid"] for row in rows]

    def _people(self, page_id: str, body: Json) -> Iterator[tuple[Json, list[Json]]]:
        for item in body["data"]:
            messages = item.get("messages", {}).get("data", [])
            for participant in item["participants"]["data"]:  # 7, 9: no look at what came
                if participant["id"] != page_id:
                    yield participant, messages

    def _upsert(self, page_id: str, sender_id: str, name: str | None, text: str, at: datetime | None) -> Json:
        """1: the last writer wins, whatever it had read, and however long ago."""
        values = {"user": USER, "page": page_id, "sender": sender_id, "name": name, "text": text, "at": at}
        row: Json | None
        try:
            row = self._connection.execute(
                UPSERT.replace("{conflict}", "page_id, sender_id"), values
            ).fetchone()
        except psycopg.errors.InvalidColumnReference:  # 42P10; 14: another constraint, another row
            row = self._connection.execute(
                UPSERT.replace("{conflict}", "user_id, page_id, sender_id"), values
            ).fetchone()
        assert row is not None
        return row

    def _insert_events(self, page_id: str, conversation_id: int, messages: list[Json]) -> int:
        """3: in no transaction with the conversation; 4: "events are optional"."""
        inserted = 0
        for start in range(0, len(messages), CHUNK):
            chunk = messages[start : start + CHUNK]
            rows = [
                (
                    conversation_id,
                    "message_sent" if message["from"]["id"] == page_id else "message_received",
                    _time(message["created_time"]),
                    Jsonb({"message_id": message["id"], "text": message.get("message")}),
                )
                for message in chunk
            ]
            try:
                self._connection.cursor().executemany(
                    """insert into old.contact_interaction_events
                         (conversation_id, event_type, event_timestamp, metadata)
                       values (%s, %s, %s, %s)""",
                    rows,
                )
            except psycopg.Error:
                continue
            inserted += len(rows)
        return inserted


def _time(value: str | None) -> datetime | None:
    return None if value is None else datetime.strptime(value, "%Y-%m-%dT%H:%M:%S%z").astimezone(UTC)
