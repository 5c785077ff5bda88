"""People first met by webhook, who wait for the call that names them: who has a name meanwhile costs none."""

from __future__ import annotations

import asyncio
from typing import Any

from convsync.sync.contacts import ContactReader
from sync.world import open_world


async def test_who_got_a_name_by_a_sync_or_was_erased_while_waiting_is_not_asked_for(database: Any) -> None:
    async with open_world(database, conversations=120, messages=3.0) as world:
        await world.sync()
        people = await world.rows(
            """
            select conversation_id, sender_id, sender_name from convsync.messenger_conversations
            where sender_id not like 'thread:%%' order by conversation_id
            """
        )
        nameless = {person["sender_id"] for person in people if person["sender_name"] is None}
        assert 1 < len(nameless) < len(people) / 2
        reader = ContactReader(world.store, world.graph, world.box.open, calls_per_second=0)
        for person in people:
            reader.want(world.page_id, person["sender_id"], person["conversation_id"])
        erased = min(nameless)
        await world.store.erase_contact(page_id=world.page_id, sender_id=erased)
        world.simulator.calls.reset()
        running = asyncio.create_task(reader.run())
        try:
            await asyncio.wait_for(reader.idle(), 30)
        finally:
            running.cancel()
            await asyncio.wait({running})
        asked = [call.query for call in world.simulator.calls.calls]
        assert len(asked) == len(nameless) - 1
        assert all(any(f"user_id={one}&" in query for query in asked) for one in nameless - {erased})
