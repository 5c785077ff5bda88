"""The SQL function alone, on one connection: against COPY, from empty, and among ten million events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, LiteralString

import orjson
from psycopg import sql

from bench.report import Line
from bench.server import Connection, Server
from bench.shapes import PAGES, history, live
from convsync.facts import Fact, Message, dump

Tell = Callable[[str], None]

INGEST: LiteralString = "select * from convsync_api.ingest(p_facts => %s::jsonb, p_source => %s)"
_COPIED = (
    "page_id",
    "message_id",
    "conversation_id",
    "event_type",
    "direction",
    "in_thread",
    "event_timestamp",
    "received_at",
    "source",
    "text_graph",
    "text_graph_at",
    "graph_at",
    "metadata",
)
_EVENTS_PER_CONVERSATION = 100
_SMALL = 100_000
_LARGE = 10_000_000


def ingest_history(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """Batches of 2,500 messages in 100 conversations that nobody knew, against COPY of the same messages."""
    repetitions, batches = (5, 1) if quick else (9, 4)
    ours: list[float] = []
    copied: list[float] = []
    with (
        server.clone() as database,
        server.connect(database) as connection,
        server.superuser(database) as copy,
    ):
        # Everything but the foreign key comes along: keys, index, constraints, generated columns, fillfactor.
        copy.execute(
            """create table bench_copy (like convsync.contact_interaction_events including all);
               alter table bench_copy set (fillfactor = 90)"""
        )
        for repetition in range(-1, repetitions):  # the first is not counted
            facts = [
                history(PAGES[0], "history", (repetition + 1) * batches + batch) for batch in range(batches)
            ]
            documents = [dump(batch) for batch in facts]
            blocks = [_copy_block(batch) for batch in facts]
            rows = sum(isinstance(fact, Message) for batch in facts for fact in batch)

            if repetition % 2:
                took = _timed(_ingest, connection, documents, "sync")
                copy_took = _timed(_copy, copy, blocks)
            else:
                copy_took = _timed(_copy, copy, blocks)
                took = _timed(_ingest, connection, documents, "sync")
            if repetition >= 0:
                ours.append(rows / took)
                copied.append(rows / copy_took)
        _same_count(copy)
    return [
        Line(
            "ingest_history",
            "messages/s",
            "COPY into an identically indexed table",
            ours,
            copied,
            goal=0.3,
            aim=0.5,
            detail={"messages_per_call": 2500, "conversations_per_call": 100, "calls": batches * repetitions},
        )
    ]


def ingest_first(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """The first 10,000 messages of an empty database against 10,000 later ones, on the same connection."""
    repetitions, between = (5, 1) if quick else (7, 8)
    first: list[float] = []
    warm: list[float] = []
    batches = [dump(history(PAGES[0], "first", batch)) for batch in range(8 + between)]
    for _ in range(repetitions):
        with server.clone() as database, server.connect(database) as connection:
            first.append(10_000 / _timed(_ingest, connection, batches[:4], "sync"))
            _ingest(connection, batches[4:-4], "sync")
            with server.superuser(database) as other:
                other.execute("analyze")
            warm.append(10_000 / _timed(_ingest, connection, batches[-4:], "sync"))
    return [
        Line(
            "ingest_first",
            "messages/s",
            f"10,000 messages after {10_000 + 2500 * between:,} others and an ANALYZE",
            first,
            warm,
            goal=0.5,
            aim=0.8,
        )
    ]


def ingest_growth(server: Server, quick: bool, tell: Tell) -> list[Line]:
    """p50 of ingesting 100 live messages among many events, against the same among 100 thousand."""
    repetitions, calls = (5, 8) if quick else (7, 40)
    wanted, seconds = (200_000, 10.0) if quick else (_LARGE, 170.0)
    with ExitStack() as stack:
        small, large = (stack.enter_context(server.clone()) for _ in range(2))
        load(server, small, _SMALL, seconds)
        began = time.perf_counter()
        events = load(server, large, wanted, seconds)
        tell(f"{events:,} events loaded in {time.perf_counter() - began:.0f} s")
        both = []
        for database, size in ((large, events), (small, _SMALL)):
            connection = stack.enter_context(server.connect(database))
            watcher = stack.enter_context(server.superuser(database))
            both.append((connection, watcher, list(_people(size)), count()))
        after = datetime(2026, 6, 1, tzinfo=UTC)
        p50s: list[list[float]] = [[], []]
        written: list[list[float]] = [[], []]
        for repetition in range(-1, repetitions):  # the first is not counted
            taken: list[list[float]] = [[], []]
            for _ in range(calls):
                for place, (connection, watcher, people, numbers) in enumerate(both):
                    document = dump(live("growth", next(numbers), 100, people, after))
                    wal = _wal(watcher)
                    taken[place].append(_timed(_ingest, connection, [document], "webhook"))
                    written[place].append(_wal(watcher) - wal)
            if repetition >= 0:
                for place in range(2):
                    p50s[place].append(median(taken[place]) * 1000)
    return [
        Line(
            "ingest_p50_growth" if events == _LARGE else f"ingest_p50_growth_{_short(events)}",
            f"ms for 100 messages among {events:,} events",
            f"among {_SMALL:,} events",
            p50s[0],
            p50s[1],
            goal=1.3,
            aim=1.1,
            also=events == wanted,
            better="lower",
            detail={
                "events": events,
                "calls": calls * repetitions,
                "wal_kb_per_call": round(median(written[0]) / 1024),
                "baseline_wal_kb_per_call": round(median(written[1]) / 1024),
            },
        )
    ]


def load(server: Server, database: str, wanted: int, seconds: float) -> int:
    """Fill a clone with `wanted` events, 100 a conversation; fewer, if the time is over. How many it became.

    By rounds of one event for every conversation, in the order of time, as webhooks bring them. Without keys
    and indexes while it runs: they are built from their own definitions afterwards.
    """
    conversations = wanted // _EVENTS_PER_CONVERSATION
    rounds = 0
    lock = threading.Lock()
    until = time.perf_counter() + seconds

    def work() -> None:
        nonlocal rounds
        with server.superuser(database) as connection:
            connection.execute("set session_replication_role = replica")  # no foreign key is looked up
            while True:
                with lock:
                    if rounds == _EVENTS_PER_CONVERSATION or (rounds and time.perf_counter() > until):
                        return
                    mine = rounds
                    rounds += 1
                connection.execute(
                    "select bench_filler.add_round(%s, %s, %s)", [mine, conversations, list(PAGES)]
                )

    with server.superuser(database) as connection:
        script = Path(__file__).with_name("filler.sql").read_text(encoding="utf-8")
        connection.execute(_text(script))
        rebuild = _drop_keys(connection)
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "select bench_filler.add_conversations(%s, %s, %s)", [rounds, conversations, list(PAGES)]
        )
        connection.execute("set maintenance_work_mem = '1GB'")
        for statement in rebuild:
            connection.execute(statement)
        # The index builds have set the hint bits; autovacuum's rest would fall into the measurement.
        connection.execute("alter table convsync.contact_interaction_events set (autovacuum_enabled = off)")
        connection.execute("analyze")
        connection.execute("checkpoint")
    return rounds * conversations


def load_conversations(server: Server, database: str, wanted: int) -> None:
    """Fill a clone with `wanted` conversations of one event each."""
    with server.superuser(database) as connection:
        script = Path(__file__).with_name("filler.sql").read_text(encoding="utf-8")
        connection.execute(_text(script))
        connection.execute("set session_replication_role = replica")
        connection.execute("select bench_filler.add_round(0, %s, %s)", [wanted, list(PAGES)])
        connection.execute("select bench_filler.add_conversations(1, %s, %s)", [wanted, list(PAGES)])
        connection.execute("analyze")
        connection.execute("checkpoint")


def _people(events: int) -> Iterator[tuple[str, str]]:
    for number in range(events // _EVENTS_PER_CONVERSATION):
        yield PAGES[number % len(PAGES)], str(6_000_000_000_000_000 + number)


def _drop_keys(connection: Connection) -> list[sql.SQL]:
    """Drop the primary key and the indexes of the events; the statements that make them again."""
    table = "convsync.contact_interaction_events"
    keys = connection.execute(
        """select conname, pg_get_constraintdef(oid) from pg_constraint
           where conrelid = %s::regclass and contype in ('p', 'u')""",
        [table],
    ).fetchall()
    indexes = connection.execute(
        """select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
           where i.indrelid = %s::regclass
             and not exists (select from pg_constraint c where c.conindid = i.indexrelid)""",
        [table],
    ).fetchall()
    again = []
    for name, definition in keys:
        connection.execute(_text(f"alter table {table} drop constraint {name}"))
        again.append(_text(f"alter table {table} add constraint {name} {definition}"))
    for name, definition in indexes:
        connection.execute(_text(f"drop index {name}"))
        again.append(_text(definition))
    return again


def _text(statement: str) -> sql.SQL:
    return sql.SQL(statement)


def _copy_block(facts: Sequence[Fact]) -> bytes:
    """The messages in COPY's text format, as `ingest` would store them."""
    lines = []
    for fact in facts:
        if not isinstance(fact, Message):
            continue
        observed = fact.observed_at.isoformat() if fact.observed_at else None
        row = (
            fact.page_id,
            fact.message_id,
            fact.sender_id[-9:],
            fact.event_type,
            fact.direction,
            "t",
            fact.at.isoformat(),
            observed,
            "sync",
            fact.text,
            observed if fact.text else None,
            observed,
            orjson.dumps(fact.metadata).decode(),
        )
        lines.append("\t".join(r"\N" if value is None else value.replace("\\", r"\\") for value in row))
    return ("\n".join(lines) + "\n").encode()


def _copy(connection: Connection, blocks: Iterable[bytes]) -> None:
    statement = sql.SQL("copy bench_copy ({}) from stdin").format(
        sql.SQL(", ").join(map(sql.Identifier, _COPIED))
    )
    for block in blocks:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(block)


def _ingest(connection: Connection, documents: Iterable[str], source: str) -> None:
    for document in documents:
        connection.execute(INGEST, [document, source]).fetchall()


def _same_count(connection: Connection) -> None:
    row = connection.execute(
        """select (select count(*) from convsync.contact_interaction_events),
             (select count(*) from bench_copy)"""
    ).fetchone()
    if row is None or row[0] != row[1]:
        raise RuntimeError(f"ingest and COPY do not hold the same messages: {row}")


def _timed(work: Callable[..., object], *arguments: Any) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _wal(connection: Connection) -> int:
    row = connection.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(row[0]) if row else 0


def _short(events: int) -> str:
    return f"{events / 1_000_000:g}m" if events >= 1_000_000 else f"{events // 1000}k"
