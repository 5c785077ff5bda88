"""A load on a real service, what it was answered, and whether the database keeps what was promised."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
from psycopg import sql

from faults.processes import Process, Processes, inherited, until
from secrets_hunt import marked, marked_key

APP_SECRET = marked("fault-app-secret")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the log of faults/meta.py."""

    status: int
    message_id: str
    page_id: str
    sender_id: str
    due: float
    taken: float

    @property
    def at(self) -> float:
        return self.due + self.taken


class Load:
    """The process of faults/meta.py, and its answers so far."""

    def __init__(self, process: Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._read = 0
        self.answers: list[Answer] = []
        self.statuses: Counter[int] = Counter()

    def look(self) -> None:
        """Read what has come to the log."""
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in text.decode("ascii").splitlines():
            status, message_id, page_id, sender_id, due, taken = line.split()
            answer = Answer(
                int(status), message_id, sys.intern(page_id), sys.intern(sender_id), float(due), float(taken)
            )
            self.answers.append(answer)
            self.statuses[answer.status] += 1

    async def until_more(self, status: int, count: int, *, seconds: float = 0.0) -> None:
        """Return after so many more answers of that status, and so many seconds after the first of them."""
        self.look()
        looked = len(self.answers)
        began: list[float] = []
        enough = self.statuses[status] + count

        async def reached() -> bool:
            nonlocal looked
            assert self._process.returncode is None, self._process.errors()
            self.look()
            if not began:
                began.extend(answer.at for answer in self.answers[looked:] if answer.status == status)
                looked = len(self.answers)
            return self.statuses[status] >= enough and self.answers[-1].at >= began[0] + seconds

        await until(reached, f"{count} more answers {status}, and {seconds:g} s")

    async def end(self) -> None:
        """Nothing new any more; return when all that was refused has been taken."""
        code, _ = await self._process.output()
        self.look()
        assert code == 0, self._process.errors()

    @property
    def promised(self) -> list[str]:
        """The message ids that were answered 200."""
        return [answer.message_id for answer in self.answers if answer.status == 200]


class Running(Processes):
    """A service that anybody may deliver to, and loads on it."""

    service: Process
    address: str

    async def serves(self, *arguments: str, port: int = 0) -> None:
        """Start the service, and return when it serves."""
        self.service = await self.serve(*arguments, port=port)
        self.address = (await self.service.line("convsync ")).split()[-1]

    async def load(
        self, *, rate: float | None, people: int, seconds: float, seed: str = "load", connections: int = 128
    ) -> Load:
        """Begin a load of `rate` deliveries a second, or of as many as are taken; `seconds` at the most."""
        where = urlsplit(self.address)
        log = self._directory / f"answers to {seed}"
        order = {
            "host": where.hostname,
            "port": where.port,
            "secret": APP_SECRET,
            "seed": seed,
            "people": people,
            "connections": connections,
            "rate": rate,
            "seconds": seconds,
            "log": str(log),
        }
        path = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
        process = await self.program(sys.executable, "-m", "faults.meta", PYTHONPATH=path)
        process.tell(json.dumps(order).encode() + b"\n")
        return Load(process, log)


@asynccontextmanager
async def running(
    service_url: str, directory: Path, *arguments: str, **environment: str
) -> AsyncIterator[Running]:
    """`convsync serve` on a database that is there already."""
    told = {
        **inherited(),
        "CONVSYNC_DATABASE_URL": service_url,
        "CONVSYNC_DATA_DIR": str(directory / "data"),
        "CONVSYNC_APP_SECRET": APP_SECRET,
        "CONVSYNC_TOKEN_KEY": marked_key(),
        "CONVSYNC_GRAPH_URL": "http://127.0.0.1:1",
        "CONVSYNC_LOG_FORMAT": "json",
        **environment,
    }
    one = Running(directory, told)
    try:
        await one.serves(*arguments)
        yield one
    finally:
        await one.end()


def complaints(
    owner: psycopg.Connection[Any], promised: Iterable[str], events: str = "contact_interaction_events"
) -> list[str]:
    """What the database does not keep of what was answered 200, or keeps twice, or counts wrongly."""
    found = []
    table = sql.Identifier("convsync", events)
    stored = dict(
        owner.execute(
            sql.SQL("select message_id, count(*) from {} group by message_id").format(table)
        ).fetchall()
    )
    lost = [message_id for message_id in promised if message_id not in stored]
    if lost:
        found.append(f"{len(lost)} answered 200 and not stored: {lost[:3]}")
    doubled = [message_id for message_id, times in stored.items() if times != 1]
    if doubled:
        found.append(f"{len(doubled)} stored more than once: {doubled[:3]}")
    miscounted = owner.execute(
        sql.SQL(
            """select c.page_id, c.sender_id, c.message_count, count(e.message_id)
               from convsync.messenger_conversations c
               left join {} e on e.page_id = c.page_id and e.conversation_id = c.conversation_id
                 and e.in_thread and e.deleted_at is null
               group by c.page_id, c.conversation_id
               having c.message_count <> count(e.message_id)"""
        ).format(table)
    ).fetchall()
    if miscounted:
        found.append(f"{len(miscounted)} conversations with a wrong message_count: {miscounted[:3]}")
    letters = owner.execute("select reason from convsync.dead_letters").fetchall()
    if letters:
        found.append(f"{len(letters)} dead letters: {letters[:3]}")
    return found


async def ready(address: str) -> bool:
    """Whether the service says that it is."""
    async with aiohttp.ClientSession() as client, client.get(f"{address}readyz") as answer:
        return answer.status == 200
