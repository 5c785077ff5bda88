"""A Page is called whole only if nothing of its list was left out, whatever the run ended as."""

from __future__ import annotations

from typing import Any

from sync.claims import judge
from sync.world import LIST_CALL, open_world


async def test_page_is_not_whole_while_its_list_has_a_conversation_without_an_id(database: Any) -> None:
    """Nobody can say which conversation that was; the next walk that sees them all makes it whole again."""
    async with open_world(database, max_conversations_per_call=5) as world:
        world.simulator.faults.add(LIST_CALL, "drift", kinds=["no_id"], after=2, times=1)
        outcome = await world.sync()
        told = await judge(world, world.page_id, outcome.run_id)
        assert (told.run["unreadable"], len(told.lacking), told.complaints) == (1, 1, [])
        proof = await world.store.certificate(page_id=world.page_id)
        assert (proof["whole"], proof["list_known"]) == (False, False)

        outcome = await world.sync("incremental")
        told = await judge(world, world.page_id, outcome.run_id)
        assert (told.run["status"], told.lacking, told.complaints) == ("succeeded", set(), [])
        assert told.verdict.clean, told.verdict.examples
        proof = await world.store.certificate(page_id=world.page_id)
        assert (proof["whole"], proof["list_known"]) == (True, True)
