"""What is removed at Graph and told by nobody: found by the next read of it, and never found by mistake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from psycopg.errors import CheckViolation
from structlog.testing import capture_logs

from convsync import facts
from convsync.observe import problems
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation
from sync.application import API_KEY, service
from sync.world import FastTime, World, open_world

HOUR_AGO = timedelta(hours=1)
SMALL_ANSWERS = {"max_conversations_per_call": 10, "max_messages_per_call": 20}


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    """40 conversations that a full sync has read. The newest message is an hour old."""
    past = {"now": datetime.now(UTC) - HOUR_AGO}
    async with open_world(
        database, clock=FastTime(1), conversations=40, messages=30.0, **SMALL_ANSWERS, **past
    ) as world:
        assert (await world.sync()).status == "succeeded"
        yield world


def threads(world: World) -> list[Conversation]:
    """The conversations of ordinary people, longest first."""
    ordinary = [one for one in world.simulator.population.conversations if one.kind == "normal"]
    return sorted(ordinary, key=lambda one: -one.message_count)


def messages(world: World, conversation: Conversation) -> list[Message]:
    """What Graph shows of a thread, newest first."""
    return world.simulator.population.visible_messages(conversation)[::-1]


def at(message: Message) -> datetime:
    return datetime.fromtimestamp(message.created_ms / 1000, UTC)


async def deleted(world: World) -> set[str]:
    found = await world.rows(
        "select message_id from convsync.contact_interaction_events where deleted_at is not null"
    )
    return {row["message_id"] for row in found}


async def assert_exact(world: World) -> None:
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


# --- messages


@pytest.mark.parametrize("mode", ["full", "reconcile"])
async def test_a_message_that_was_taken_back_without_a_webhook_is_found(world: World, mode: str) -> None:
    """Anywhere in a thread: first, last, at the edges of the pages, several of one thread, all of one."""
    population, long = world.simulator.population, threads(world)[0]
    assert long.message_count > 60
    listed = messages(world, long)
    removed = {listed[n].message_id for n in (0, 7, 19, 20, 21, 39, 40, len(listed) - 1)}
    short = threads(world)[-1]
    removed |= {message.message_id for message in messages(world, short)}
    for message_id in removed:
        population.unsend(message_id)
    before = await world.versions()
    if mode == "reconcile":
        # Its rolling share comes to every thread in time; here all are due at once.
        await world.owner.execute(
            "update convsync.thread_proofs set full_read_at = full_read_at - interval '31 days'"
        )

    outcome = await world.sync(mode)

    assert outcome.status == "succeeded"
    assert await deleted(world) == removed
    await assert_exact(world)
    changed = {key for key, version in (await world.versions()).items() if version != before[key]}
    feed = await world.rows(
        """select conversation_id, kinds from convsync.conversation_changes
           where version > 1 and conversation_id = any (%(changed)s) and kinds && '{absence}'""",
        changed=list(changed),
    )
    assert {row["conversation_id"] for row in feed} == changed
    assert len(changed) == 2
    await world.sync(mode)
    assert await deleted(world) == removed


async def test_an_incremental_sync_finds_those_among_the_newest_of_a_thread(world: World) -> None:
    population = world.simulator.population
    newest = max(threads(world), key=lambda one: one.key)
    listed = messages(world, newest)
    assert len(listed) > 2
    population.unsend(listed[1].message_id)

    outcome = await world.sync("incremental")

    assert outcome.status == "succeeded"
    assert await deleted(world) == {listed[1].message_id}
    await assert_exact(world)


async def test_a_message_that_is_there_again_comes_back(world: World) -> None:
    population = world.simulator.population
    conversation = threads(world)[3]
    message = messages(world, conversation)[1]
    population.unsend(message.message_id)
    await world.sync()
    assert await deleted(world) == {message.message_id}

    message.deleted = False
    conversation.message_count += 1
    await world.sync()

    assert await deleted(world) == set()
    await assert_exact(world)


async def test_the_last_minutes_of_a_thread_are_left_to_the_next_sync(world: World) -> None:
    """A list may be a little behind: what was told a moment ago and is not in it yet is not gone."""
    population = world.simulator.population
    conversation = threads(world)[3]
    written = population.new_message(conversation, "in", "Is anybody there?")[1]
    await world.sync("incremental")
    population.unsend(written.message_id)

    await world.sync()
    assert await deleted(world) == set()

    assert world.clock is not None
    world.clock.skip(minutes=10)
    await world.sync()
    assert await deleted(world) == {written.message_id}
    await assert_exact(world)


FAULTS: dict[str, list[dict[str, Any]]] = {
    "short pages of threads": [{"match": "/messages", "action": "short_page", "limit": 3}],
    "short pages of everything": [{"match": "/conversations|/messages", "action": "short_page", "limit": 2}],
    "empty pages": [{"match": "/messages", "action": "empty_page", "times": 3}],
    "an empty list": [{"match": "/conversations", "action": "empty_page", "times": 2}],
    "items without id": [{"match": "/messages", "action": "drift", "kinds": ["no_id"], "item": 4}],
    "values of another kind": [{"match": "/messages|/conversations", "action": "drift", "kinds": ["nulls"]}],
    "unwrapped lists": [{"match": "/messages|/conversations", "action": "drift", "kinds": ["unwrapped"]}],
    "dead cursors": [{"match": "after=", "action": "dead_cursor", "times": 2}],
    "no list beyond an item": [{"match": "/messages", "action": "too_deep", "items": 40}],
    "a list in no order": [{"match": "/conversations", "action": "unordered"}],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("mode", ["full", "incremental"])
async def test_no_fault_of_graph_deletes_a_message(world: World, mode: str, fault: str) -> None:
    for planted in FAULTS[fault]:
        world.simulator.faults.plant(planted)
    await world.sync(mode)
    assert await deleted(world) == set()
    world.simulator.faults.clear()
    await world.sync()
    assert await deleted(world) == set()
    await assert_exact(world)


# --- conversations


@pytest.fixture
async def many(database: Any) -> AsyncIterator[World]:
    """100 conversations that a full sync has read."""
    past = {"now": datetime.now(UTC) - HOUR_AGO}
    async with open_world(database, clock=FastTime(1), conversations=100, messages=4.0, **past) as world:
        assert (await world.sync()).status == "succeeded"
        world.simulator.calls.reset()
        yield world


def remove(world: World, share: int) -> list[Conversation]:
    """Remove so many in a hundred upstream, spread over the inbox."""
    population = world.simulator.population
    chosen = (
        population.conversations[:: 100 // share][:share] if share <= 50 else population.conversations[:share]
    )
    for conversation in chosen:
        population.remove(conversation)
    return list(chosen)


async def gone(world: World) -> set[str]:
    found = await world.rows(
        """select thread_id from convsync.messenger_conversations
           where deleted_at is not null and deleted_at = gone_confirmed_at"""
    )
    return {row["thread_id"] for row in found}


def direct_reads(world: World) -> list[str]:
    """The threads that were read by themselves, one by one."""
    paths = [call.path.rsplit("/", 1)[-1] for call in world.simulator.calls.calls]
    return [path for path in paths if path.startswith("t_")]


@pytest.mark.parametrize("mode", ["full", "reconcile"])
async def test_removed_conversations_are_marked_each_confirmed_by_a_read_of_its_own(
    many: World, mode: str
) -> None:
    removed = {one.thread_id for one in remove(many, 3)}
    before = await many.versions()

    outcome = await many.sync(mode)

    assert outcome.status == "succeeded"
    assert await gone(many) == removed
    await assert_exact(many)
    run = await many.run_of(outcome)
    assert (run["deletions_proposed"], run["deletions_confirmed"]) == (3, 3)
    read = direct_reads(many)
    assert sorted(read[:3]) == sorted(removed)
    assert len(read) == 4, "and one that is alive, after them"
    changed = {key: version for key, version in (await many.versions()).items() if version != before[key]}
    assert sorted(changed.values()) == sorted(before[key] + 1 for key in changed)
    feed = await many.rows(
        "select conversation_id from convsync.conversation_changes where kinds = '{gone}' order by 1"
    )
    assert [row["conversation_id"] for row in feed] == sorted(changed)
    listed = await many.store.list_conversations(page_id=many.page_id, limit=200)
    assert {one["thread_id"] for one in listed["conversations"]}.isdisjoint(removed)

    # It is said once.
    many.simulator.calls.reset()
    outcome = await many.sync(mode)
    assert outcome.status == "succeeded"
    assert direct_reads(many) == []
    assert await gone(many) == removed


async def test_an_incremental_sync_proposes_nothing(many: World) -> None:
    remove(many, 3)
    assert (await many.sync("incremental")).status == "succeeded"
    assert await gone(many) == set()
    assert direct_reads(many) == []


async def test_too_many_are_no_credible_news(many: World) -> None:
    removed = {one.thread_id for one in remove(many, 60)}

    outcome = await many.sync()

    assert outcome.status == "partial"
    run = await many.run_of(outcome)
    assert (run["reason"], run["deletions_proposed"], run["deletions_confirmed"]) == (
        "deletion_breaker",
        60,
        0,
    )
    assert await gone(many) == set()
    assert removed.isdisjoint(direct_reads(many))
    with pytest.raises(CheckViolation):
        await many.owner.execute(
            "update convsync.sync_runs set status = 'succeeded' where status = 'partial'"
        )


async def test_the_operator_is_told_of_too_many_and_of_the_end_of_it(
    many: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "LOOK_SECONDS", 0.02)
    removed = remove(many, 60)
    async with service(many, tmp_path) as (_, runner):
        with capture_logs() as logs:

            async def told(number: int) -> list[tuple[str, str, set[str]]]:
                """What was, once it is that much and the database knows of it."""
                async with asyncio.timeout(30):
                    while True:
                        alerts = [one for one in logs if one["event"] == "alert"]
                        waiting = "select count(*) from convsync.alerts where told_at is null"
                        if len(alerts) >= number and await many.value(waiting) == 0:
                            return [(one["alert"], one["state"], set(one["details"])) for one in alerts]
                        await asyncio.sleep(0.02)

            assert (await runner.run(many.page_id, "full")).reason == "deletion_breaker"
            firing = ("deletions_held_back", "firing", {"page_id", "run_id", "mode"})
            assert await told(1) == [firing]
            assert (await runner.run(many.page_id, "incremental")).status == "succeeded"
            for conversation in removed:
                many.simulator.population.new_message(conversation, "in", "Here I am again")
            assert (await runner.run(many.page_id, "full")).status == "succeeded"
            resolved = ("deletions_held_back", "resolved", {"page_id", "run_id", "mode"})
            assert await told(2) == [firing, resolved]


async def test_what_a_person_has_allowed_the_retry_of_the_run_asks_for(many: World, tmp_path: Path) -> None:
    removed = {one.thread_id for one in remove(many, 60)}
    async with (
        service(many, tmp_path) as (address, runner),
        ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as client,
    ):
        run_id = (await runner.run(many.page_id, "full")).run_id

        async def post(what: str) -> tuple[int, dict[str, Any]]:
            async with client.post(f"{address}/api/sync-runs/{run_id}/{what}") as answer:
                return answer.status, await answer.json(content_type=None)

        status, problem = await post("retry")
        assert (status, "holds back the deletion of 60 conversations" in str(problem)) == (422, True)
        assert await post("allow-deletions") == (
            200,
            {"page_id": many.page_id, "run_id": str(run_id), "conversations": 60},
        )
        status, run = await post("retry?wait=60")
        assert (status, run["status"], run["deletions_confirmed"]) == (200, "succeeded", 60)
        status, problem = await post("allow-deletions")
        assert (status, "it holds no deletions back" in str(problem)) == (422, True)
    assert await gone(many) == removed


async def test_permission_lost_while_confirming_marks_nothing(many: World) -> None:
    """Graph says of what it will not show that it does not exist."""
    remove(many, 15)
    many.simulator.faults.plant(
        {"match": "GET /[^?]*t_\\d+\\?", "action": "error", "name": "unsupported", "after": 4}
    )

    outcome = await many.sync()

    run = await many.run_of(outcome)
    assert (run["status"], run["reason"]) == ("partial", "failed_batches")
    (batch,) = run["failed_batches"]
    assert (batch["kind"], batch["error"]["class"]) == ("control", "gone")
    assert await gone(many) == set()

    many.simulator.faults.clear()
    assert (await many.sync()).status == "succeeded"
    assert len(await gone(many)) == 15
    await assert_exact(many)


async def test_permission_refused_while_confirming_marks_nothing(many: World) -> None:
    remove(many, 15)
    many.simulator.faults.plant(
        {"match": "GET /[^?]*t_\\d+\\?", "action": "error", "name": "permission", "after": 6}
    )

    outcome = await many.sync()

    run = await many.run_of(outcome)
    assert (run["status"], run["reason"]) == ("partial", "failed_batches")
    assert {batch["error"]["class"] for batch in run["failed_batches"]} == {"permission"}
    assert await gone(many) == set()


async def test_a_token_that_dies_while_confirming_marks_nothing(many: World) -> None:
    remove(many, 15)
    many.simulator.faults.plant({"match": "GET /[^?]*t_\\d+\\?", "action": "revoke_token", "after": 6})
    outcome = await many.sync()
    assert (outcome.status, outcome.reason) == ("failed", "token_invalid")
    assert await gone(many) == set()


async def test_a_removed_conversation_that_writes_again_is_back(many: World) -> None:
    population = many.simulator.population
    (one, other, _) = remove(many, 3)
    old = {each.thread_id: population.all_messages(each)[0] for each in (one, other)}
    await many.sync()
    assert {one.thread_id, other.thread_id} <= await gone(many)

    # Meta delivers old messages again, hours late: one that is known, and one that never came here.
    late = [
        facts.Message(many.page_id, each.psid, message_id, "in", at(old[each.thread_id]), "Hello?")
        for each in (one, other)
        for message_id in (old[each.thread_id].message_id, f"m_late_{each.psid}")
    ]
    await many.store.ingest(late, "webhook")
    assert {one.thread_id, other.thread_id} <= await gone(many)

    population.new_message(one, "in", "Here I am again")
    assert (await many.sync("incremental")).status == "succeeded"

    assert one.thread_id not in await gone(many)
    assert other.thread_id in await gone(many)
    await assert_exact(many)


async def test_what_answers_is_hidden_and_not_asked_for_again_for_a_while(many: World) -> None:
    """Threads in the Requests folder are not listed after 30 days; they are there all the same."""
    population = many.simulator.population
    hidden = population.conversations[50]
    population._unlist(hidden)
    population.unsend(population.visible_messages(hidden)[0].message_id)

    assert (await many.sync()).status == "succeeded"
    assert await gone(many) == set()
    assert direct_reads(many) == [hidden.thread_id]
    await assert_exact(many)

    many.simulator.calls.reset()
    assert (await many.sync()).status == "succeeded"
    assert direct_reads(many) == []
    assert many.clock is not None
    many.clock.skip(days=31)
    await many.sync()
    assert direct_reads(many) == [hidden.thread_id]
