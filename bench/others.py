"""One connection, each call waited for: ingest beside message-db and the old algorithm."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import LiteralString

import orjson
from psycopg import sql

from bench.ingest import INGEST
from bench.report import Line
from bench.server import Connection, Server
from bench.shapes import PAGES, PEOPLE, live
from convsync.facts import Message, dump

Tell = Callable[[str], None]
Contender = Callable[[Sequence[Message]], None]

_SECONDS = 1.5
_QUICK_SECONDS = 0.2
_BATCH = 100
_UPSERT: LiteralString = """
insert into bench_old.messenger_conversations as c (page_id, sender_id, last_message, last_message_time)
values (%s, %s, %s, %s)
on conflict (page_id, sender_id) do update
set last_message = excluded.last_message, last_message_time = excluded.last_message_time, updated_at = now()
returning c.id"""
_INSERT: LiteralString = """
insert into bench_old.contact_interaction_events (conversation_id, event_type, event_timestamp, metadata)
values (%s, %s, %s, %s::jsonb)"""
_WRITE: LiteralString = "select bench_message_db.write_message(%s, %s, %s, %s::jsonb)"


def compare(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """ingest_single_* (a message per call, like theirs) and ingest_grouped_* (100, as the service does)."""
    repetitions, seconds = (5, _QUICK_SECONDS) if quick else (7, _SECONDS)
    people = [(PAGES[n % len(PAGES)], str(6_000_000_000_000_000 + n)) for n in range(PEOPLE)]
    with ExitStack() as stack:
        database = stack.enter_context(server.clone())
        with server.superuser(database) as connection:
            script = Path(__file__).with_name("others.sql").read_text(encoding="utf-8")
            connection.execute(sql.SQL(script))
        service = stack.enter_context(server.connect(database))
        other = stack.enter_context(server.superuser(database))
        contenders: dict[str, tuple[Contender, int]] = {
            "single": (_ingest(service), 1),
            "grouped": (_ingest(service), _BATCH),
            "message_db": (_message_db(other), 1),
            "old": (_old(other), 1),
        }
        names = list(contenders)
        numbers = {name: count() for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(-1, repetitions):  # the first is not counted
            for name in names[repetition % 4 :] + names[: repetition % 4]:
                work, size = contenders[name]
                done, spent = 0, 0.0
                while spent < seconds:
                    facts = live(name, next(numbers[name]), size, people, datetime(2026, 6, 1, tzinfo=UTC))
                    messages = [fact for fact in facts if isinstance(fact, Message)]
                    began = time.perf_counter()
                    work(messages)
                    spent += time.perf_counter() - began
                    done += size
                if repetition >= 0:
                    rates[name].append(done / spent)
    against = {
        "message_db": "message-db's write_message, one message per call",
        "old": "the old algorithm: upsert, then insert, two commits per message",
    }
    return [
        Line(
            f"ingest_{name}_vs_{other}",
            "messages/s, " + ("one per call" if name == "single" else f"{_BATCH} per call"),
            text,
            rates[name],
            rates[other],
        )
        for name in ("single", "grouped")
        for other, text in against.items()
    ]


def _ingest(connection: Connection) -> Contender:
    def work(messages: Sequence[Message]) -> None:
        connection.execute(INGEST, [dump(messages), "webhook"]).fetchall()

    return work


def _message_db(connection: Connection) -> Contender:
    def work(messages: Sequence[Message]) -> None:
        for message in messages:
            stream = f"conversation-{message.page_id}+{message.sender_id}"
            data = {"mid": message.message_id, "text": message.text, "at": message.at}
            connection.execute(
                _WRITE, [uuid.uuid4(), stream, message.event_type, orjson.dumps(data).decode()]
            ).fetchone()

    return work


def _old(connection: Connection) -> Contender:
    def work(messages: Sequence[Message]) -> None:
        for message in messages:
            row = connection.execute(
                _UPSERT, [message.page_id, message.sender_id, message.text, message.at]
            ).fetchone()
            data = {"message_id": message.message_id, "text": message.text}
            connection.execute(
                _INSERT,
                [row[0] if row else None, "message_received", message.at, orjson.dumps(data).decode()],
            )

    return work
