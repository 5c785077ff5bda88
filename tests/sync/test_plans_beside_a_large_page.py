"""A new Page beside a large one: no statement looks at more rows than it has to do with.

The planner knows the large Page from its statistics and of the new one that it has nothing. A plan made on
that belief goes through all of the new Page's messages for each one that was told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from convsync.facts import Message
from convsync.store import Store
from sync.world import World, open_world

# A page lists 200 conversations; 200 x 200 are nothing. The Page has 300, and some 2,000 messages.
MOST_ROWS = 50_000


class Plans:
    """The plans of all statements that connections run, functions' own among them, with the rows they saw."""

    def __init__(self) -> None:
        self.nodes: list[tuple[float, str, str]] = []

    async def watch(self, connection: psycopg.AsyncConnection[Any]) -> None:
        connection.add_notice_handler(self._note)
        await connection.execute("load 'auto_explain'")
        settings = {
            "log_min_duration": "0",
            "log_nested_statements": "on",
            "log_analyze": "on",
            "log_timing": "off",
            "log_format": "json",
            "log_level": "notice",
        }
        for name, value in settings.items():
            await connection.execute("select set_config(%s, %s, false)", [f"auto_explain.{name}", value])

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        _, found, plan = (notice.message_primary or "").partition("plan:\n")
        if found:
            document = json.loads(plan)
            for node in _nodes(document["Plan"]):
                own = sum(
                    node.get(part, 0)
                    for part in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
                )
                self.nodes.append(
                    (own * node.get("Actual Loops", 0), node["Node Type"], document["Query Text"])
                )


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


async def large_page(world: World) -> None:
    """Another Page with many conversations, and statistics from when there was nothing else."""
    page_id, began = "100000000000099", datetime(2026, 1, 1, tzinfo=UTC)
    await world.store.add_page(page_id=page_id)
    facts = [
        Message(
            page_id,
            f"80{number % 1500}",
            f"m_large_{number}",
            "in",
            began + timedelta(minutes=number),
            "hello",
        )
        for number in range(6000)
    ]
    await world.store.ingest(facts, "webhook")
    await world.owner.execute("analyze")


async def test_no_statement_goes_through_the_page_for_each_thing_it_was_told(database: Any) -> None:
    async with open_world(database, conversations=300, messages=6.0) as world:
        await large_page(world)
        plans = Plans()
        async with AsyncConnectionPool(
            database.owner_url,
            min_size=1,
            max_size=4,
            configure=plans.watch,
            open=False,
            kwargs={"autocommit": True, "prepare_threshold": None},
        ) as pool:
            world.store = Store(pool)
            for mode in ("full", "incremental", "reconcile"):
                assert (await world.sync(mode)).status == "succeeded"
                for conversation in world.simulator.population.conversations[::3]:
                    world.simulator.population.new_message(conversation, "in", "Is it ready?")
            page_id, now = world.page_id, datetime.now(UTC)
            assert (await world.store.get_page(page_id=page_id))["certificate"]["conversations"] == 300
            assert await world.store.list_pages()
            assert await world.store.certificate_conversations(page_id=page_id, incomplete_only=True) == []
            assert await world.store.history_complete(page_id=page_id)
            assert await world.store.conversations_to_find(page_id=page_id, before=now)
            assert await world.store.mirror_checksum(page_id=page_id)
            assert await world.store.page_metrics()
            assert await world.store.certificate_metrics()
            await world.store.list_problems()
        assert len(plans.nodes) > 100
        most = max(plans.nodes)
        assert most[0] < MOST_ROWS, most
