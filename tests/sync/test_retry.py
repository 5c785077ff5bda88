"""Retry: what a run could not read, the same run reads later, and then says `succeeded` and is right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from convsync.errors import AlreadyRunning
from convsync.store import Store
from convsync.sync.runner import SyncRunner
from sync.application import ended, supervised
from sync.world import LIST_CALL, World, open_world


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, max_conversations_per_call=5, max_messages_per_call=10) as world:
        yield world


async def retried(world: World, runner: SyncRunner, run_id: int) -> dict[str, Any]:
    async with supervised(runner):
        await runner.retry(world.page_id, run_id, "full")
        return await ended(world, run_id)


async def test_threads_that_failed_are_read_by_the_retry(world: World) -> None:
    """Each fails at a cursor of its own; the batches name exactly these, the retry reads exactly these."""
    by_depth = sorted(world.simulator.population.conversations, key=lambda one: -one.message_count)
    broken = {one.thread_id for one in by_depth[:3]}
    for number, thread_id in enumerate(sorted(broken)):
        world.simulator.faults.add(f"/{thread_id}/messages", "error", code=2, after=number)
    partial = await world.run_of(await world.sync())
    assert (partial["status"], partial["reason"]) == ("partial", "failed_batches")
    assert {batch["thread_id"] for batch in partial["failed_batches"]} == broken
    missing = (await world.verdict()).missing
    assert missing > 0

    world.simulator.faults.clear()
    made, before = world.calls(), await world.event_count()
    run = await retried(world, world.runner(), int(partial["run_id"]))

    assert (run["status"], run["success"], run["failed_batches"]) == ("succeeded", True, [])
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    assert await world.event_count() - before == missing
    again = list(world.simulator.calls.calls)[made:]
    assert {call.path.split("/")[-2] for call in again} == broken
    assert await world.value("select count(*) from convsync.messenger_conversations") == 60
    assert not await world.rows(
        "select from convsync.messenger_conversations where history_complete_at is null"
    )


async def test_a_list_that_failed_goes_on_where_it_did(world: World) -> None:
    world.simulator.faults.add(LIST_CALL, "error", after=3, code=2)
    partial = await world.run_of(await world.sync())
    assert partial["status"] == "partial"
    (batch,) = partial["failed_batches"]
    assert batch["kind"] == "list"
    assert (await world.verdict()).missing > 0

    world.simulator.faults.clear()
    made = world.calls()
    run = await retried(world, world.runner(), int(partial["run_id"]))

    assert run["status"] == "succeeded"
    assert (await world.verdict()).clean
    first = list(world.simulator.calls.calls)[made]
    assert f"after={batch['cursor']}" in first.query


async def test_a_retry_that_fails_again_is_partial_again_and_never_more(world: World) -> None:
    deepest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{deepest.thread_id}/messages", "error", code=2)
    partial = await world.run_of(await world.sync())
    run = await retried(world, world.runner(), int(partial["run_id"]))
    assert (run["status"], run["success"]) == ("partial", False)
    (before,), (after,) = partial["failed_batches"], run["failed_batches"]
    assert (after["batch"], after["cursor"]) == (before["batch"], before["cursor"])
    assert after["attempts"] == 2 * before["attempts"]
    assert not (await world.verdict()).clean


async def test_a_token_that_died_on_the_way_is_replaced_and_the_run_goes_on(world: World) -> None:
    tokens = world.simulator.state.tokens
    kept = dict(tokens)

    def revoke(number: int, call: Any) -> None:
        if number == 4:
            tokens.clear()

    world.on_call(revoke)
    failed = await world.run_of(await world.sync(concurrency=1))
    assert (failed["status"], failed["reason"]) == ("failed", "token_invalid")
    tokens.update(kept)
    page = world.simulator.page
    await world.store.add_page(
        page_id=page.page_id,
        token_sealed=world.box.seal(page.page_id, page.token),
        token_key_id=world.box.key_id,
    )
    run = await retried(world, world.runner(), int(failed["run_id"]))
    assert run["status"] == "succeeded"
    assert (await world.verdict()).clean


@pytest.mark.parametrize("state", ["valid", "invalid"])
async def test_nothing_is_said_of_a_token_that_was_stored_in_that_moment(
    world: World, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Between an answer to the old token and the note of it."""
    mark = Store.mark_token

    async def stored_before(store: Store, **arguments: Any) -> None:
        if arguments["state"] == state:
            page = world.simulator.page
            await store.add_page(
                page_id=page.page_id,
                token_sealed=world.box.seal(page.page_id, page.token),
                token_key_id=world.box.key_id,
            )
        await mark(store, **arguments)

    monkeypatch.setattr(Store, "mark_token", stored_before)
    if state == "invalid":
        world.on_call(lambda number, call: world.simulator.state.tokens.clear() if number == 4 else None)
    outcome = await world.sync(concurrency=1)
    assert (outcome.status == "succeeded") is (state == "valid")
    assert (await world.store.get_page(page_id=world.page_id))["token"] == "unchecked"


async def test_of_two_who_retry_at_once_one_is_told_of_the_other(world: World) -> None:
    deepest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
    world.simulator.faults.add(f"/{deepest.thread_id}/messages", "error", code=2)
    run_id = (await world.sync()).run_id
    world.simulator.faults.clear()
    one, other = world.runner(), world.runner()
    async with supervised(one), supervised(other):
        await one.retry(world.page_id, run_id, "full")
        with pytest.raises(AlreadyRunning) as refused:
            await other.retry(world.page_id, run_id, "full")
        assert refused.value.run_id == run_id
        assert (await ended(world, run_id))["status"] == "succeeded"
    assert (await world.verdict()).clean
