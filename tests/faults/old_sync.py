"""The old algorithm beside convsync, on the same simulated Facebook: one face for both, one judge for both.

`OldSystem` (tests/db/old_algorithm.py) is given what it had: a way to fetch a page of the list over HTTP,
and webhooks. The judge is the checker's own comparison, fed from the tables of whichever is on trial.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Protocol

import aiohttp
import psycopg
import pytest

from convsync.errors import AlreadyRunning
from convsync.facts import Message
from convsync.simulator.checker import fetch_truth
from convsync.simulator.messages import Message as SimulatedMessage
from convsync.simulator.population import Conversation
from convsync.simulator.verdict import (
    Comparison,
    MirrorConversation,
    MirrorMessage,
    Verdict,
    truth_from_json,
)
from convsync.sync.ports import Time
from db import old_algorithm
from sync.world import World

FIELDS = "id,updated_time,participants,messages.limit(100){id,message,created_time,from}"
# As a full disk, a wrong type or a missing partition would.
REFUSES = """
create function {schema}.refuses() returns trigger language plpgsql as $$
begin
  raise exception 'no room for events' using errcode = '23514';
end
$$;
create trigger refuses before insert on {schema}.contact_interaction_events
for each row execute function {schema}.refuses();
"""
Between = Callable[[], Awaitable[None]]


class EventsEachTime(old_algorithm.OldSystem):
    """10 as its report tells it: a sync makes events of what it fetched, whether or not it did so before.

    The condition of 5 is wrong in both directions: where it takes an old conversation for new, or is
    repaired without a unique message, every sync adds the same events once more.
    """

    def _upsert(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return {**super()._upsert(*arguments, **named), "is_new": True}


class System(Protocol):
    """What can be asked of a mirror, old or new."""

    async def sync(self, between: Between | None = None) -> bool:
        """One sync; whether it says that it succeeded. `between`: after the first answer was given, before
        what it says is written.
        """
        ...

    async def sync_for_two_pages(self) -> None:
        """A sync whose time is over when two pages of the list have been read."""
        ...

    async def sync_what_is_new(self) -> bool:
        """One sync of the kind that comes every quarter of an hour; whether it says that it succeeded."""
        ...

    async def sync_for_a_moment(self) -> None:
        """A sync that has a second."""
        ...

    async def two_syncs_at_once(self) -> int:
        """How many of two that were asked for at once were done."""
        ...

    async def refuse_events(self) -> None:
        """From now on its database stores no events."""
        ...

    async def mirrored(self) -> dict[str, tuple[int, list[str]]]:
        """By person: how many messages are counted, and the ids of those that are stored."""
        ...

    async def webhook(self, conversation: Conversation, message: SimulatedMessage, user: str = "a") -> None:
        """A delivery, as the named operator's subscription takes it."""
        ...

    async def verdict(self) -> Verdict: ...


class Convsync:
    """The real engine."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def sync(self, between: Between | None = None) -> bool:
        get = self._world.graph.get

        async def and_then(*arguments: Any) -> Any:
            nonlocal between
            answer = await get(*arguments)
            if between is not None:
                happening, between = between, None
                await happening()
            return answer

        self._world.graph.get = and_then  # type: ignore[method-assign]
        try:
            return (await self._world.sync()).status == "succeeded"
        finally:
            self._world.graph.get = get  # type: ignore[method-assign]

    async def sync_for_two_pages(self) -> None:
        begin, late, read = self._world.simulator.calls.begin, 0.0, 0

        def hook(call: Any) -> None:
            nonlocal late, read
            begin(call)
            read += call.path.endswith("/conversations")
            late = 3600.0 * (read >= 2)

        self._world.simulator.calls.begin = hook  # type: ignore[method-assign]
        runner = self._world.runner(
            lease_seconds=100_000, concurrency=1, time=Time(now=lambda: time.monotonic() + late)
        )
        try:
            await runner.run(self._world.page_id, "full", deadline_seconds=1800)
        finally:
            self._world.simulator.calls.begin = begin  # type: ignore[method-assign]

    async def sync_what_is_new(self) -> bool:
        return (await self._world.sync("incremental")).status == "succeeded"

    async def sync_for_a_moment(self) -> None:
        assert (await self._world.sync(deadline_seconds=1)).status == "paused"

    async def refuse_events(self) -> None:
        await self._world.owner.execute(REFUSES.format(schema="convsync"))  # type: ignore[arg-type]

    async def mirrored(self) -> dict[str, tuple[int, list[str]]]:
        rows = await self._world.rows(
            """select c.sender_id, c.message_count,
                 array_agg(e.message_id) filter (where e.message_id is not null) as ids
               from convsync.messenger_conversations c
               left join convsync.contact_interaction_events e using (page_id, conversation_id)
               group by c.page_id, c.conversation_id"""
        )
        return {row["sender_id"]: (row["message_count"], row["ids"] or []) for row in rows}

    async def two_syncs_at_once(self) -> int:
        outcomes = await asyncio.gather(self._world.sync(), self._world.sync(), return_exceptions=True)
        assert all(isinstance(one, AlreadyRunning) or one.status == "succeeded" for one in outcomes)  # type: ignore[union-attr]
        return sum(not isinstance(one, AlreadyRunning) for one in outcomes)

    async def webhook(self, conversation: Conversation, message: SimulatedMessage, user: str = "a") -> None:
        fact = Message(
            page_id=self._world.page_id,
            sender_id=conversation.psid,
            message_id=message.message_id,
            direction="out" if message.outbound else "in",
            at=datetime.fromtimestamp(message.created_ms / 1000, UTC),
            text=message.text,
        )
        await self._world.store.ingest([fact], "webhook")

    async def verdict(self) -> Verdict:
        return await self._world.verdict()


class Control:
    """The old algorithm; `close` it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, old: old_algorithm.OldSystem) -> None:
        self._world = world
        self._monkeypatch = monkeypatch
        self._old = old

    async def sync(self, between: Between | None = None) -> bool:
        async with AsyncExitStack() as stack:
            headers = {"Authorization": f"Bearer {self._world.simulator.page.token}"}
            session = await stack.enter_async_context(
                aiohttp.ClientSession(self._world.simulator.url, headers=headers, raise_for_status=True)
            )
            loop = asyncio.get_running_loop()

            async def get(cursor: str | None) -> dict[str, Any]:
                nonlocal between
                parameters = {"platform": "messenger", "fields": FIELDS, "limit": "25"}
                if cursor is not None:
                    parameters["after"] = cursor
                path = f"/v26.0/{self._world.page_id}/conversations"
                async with session.get(path, params=parameters) as answer:
                    document: dict[str, Any] = await answer.json()
                if between is not None:
                    happening, between = between, None
                    await happening()
                return document

            def fetch(cursor: str | None) -> dict[str, Any]:
                return asyncio.run_coroutine_threadsafe(get(cursor), loop).result(30)

            report = await asyncio.to_thread(self._old.sync, self._world.page_id, fetch)
        return report.success

    async def sync_for_two_pages(self) -> None:
        """Its 270 seconds pass while the second page is read."""
        seconds = iter((0.0, 0.0, 1.0, *[1000.0] * 100))
        clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None)
        with self._monkeypatch.context() as patched:
            patched.setattr(old_algorithm, "time", clock)
            assert await self.sync()

    async def sync_what_is_new(self) -> bool:
        return await self.sync()

    async def sync_for_a_moment(self) -> None:
        await self.sync()

    async def refuse_events(self) -> None:
        self._old._connection.execute(REFUSES.format(schema="old").encode())

    async def mirrored(self) -> dict[str, tuple[int, list[str]]]:
        rows: list[dict[str, Any]] = self._old._connection.execute(
            """select c.sender_id, c.message_count,
                 array_agg(e.metadata ->> 'message_id') filter (where e.id is not null) as ids
               from old.messenger_conversations c
               left join old.contact_interaction_events e on e.conversation_id = c.id
               group by c.id"""
        ).fetchall()
        return {row["sender_id"]: (row["message_count"], row["ids"] or []) for row in rows}

    async def two_syncs_at_once(self) -> int:
        return sum(await asyncio.gather(self.sync(), self.sync()))

    async def webhook(self, conversation: Conversation, message: SimulatedMessage, user: str = "a") -> None:
        at = datetime.fromtimestamp(message.created_ms / 1000, UTC)
        with self._monkeypatch.context() as patched:
            patched.setattr(old_algorithm, "USER", user)
            await asyncio.to_thread(
                self._old.webhook, self._world.page_id, conversation.psid, message.text, at, conversation.name
            )

    async def verdict(self) -> Verdict:
        """The checker's comparison, on the old tables. What they have no column for is not held against
        them: they count nothing (19), and know no thread ids.
        """
        connection: psycopg.Connection[dict[str, Any]] = self._old._connection
        people = connection.execute("select * from old.messenger_conversations order by id").fetchall()
        events = connection.execute("select * from old.contact_interaction_events order by id").fetchall()
        comparison = Comparison()
        left = {row["id"] for row in people}
        async for document in fetch_truth(self._world.simulator.url, self._world.page_id):
            truth = truth_from_json(document)
            mine = [row for row in people if row["sender_id"] == truth.sender_id]
            left -= {row["id"] for row in mine}
            comparison.conversation(
                truth,
                [
                    MirrorConversation(
                        row["id"],
                        row["sender_id"],
                        row["sender_name"],
                        None,
                        row["last_message"],
                        truth.message_count,
                    )
                    for row in mine
                ],
                [
                    MirrorMessage(
                        event["metadata"]["message_id"],
                        event["conversation_id"],
                        "out" if event["event_type"] == "message_sent" else "in",
                        event["metadata"]["text"],
                        int(event["event_timestamp"].timestamp()),
                    )
                    for event in events
                    if event["conversation_id"] in {row["id"] for row in mine}
                ],
            )
        comparison.besides([str(one) for one in sorted(left)], [])
        return comparison.finish()

    def close(self) -> None:
        self._old.close()
