"""`convsync adopt`: an old database with known damage, moved in; then Facebook has the last word.

The old database is made from the truth of the simulator (tests/old_database.py), so that what a sync finds
afterwards can be judged.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from convsync.adopt import moving
from convsync.adopt.moving import adopt
from convsync.errors import TryAgain
from convsync.facts import Message
from convsync.simulator.checker import fetch_truth
from convsync.sync.ports import Time
from convsync.sync.verify import verify_page
from old_database import USERS, Planted, invent, plant
from sync.world import QUICK, World, open_world

STATE = """
select 'page', to_jsonb(p) from convsync.pages p
union all select 'conversation', to_jsonb(c) from convsync.messenger_conversations c
union all select 'event', to_jsonb(e) from convsync.contact_interaction_events e
union all select 'change', to_jsonb(h) from convsync.conversation_changes h
union all select 'letter', to_jsonb(d) from convsync.dead_letters d
"""
COUNTS = """
select c.sender_id, c.message_count, count(e.message_id) as events,
  max(e.event_timestamp) as newest, c.last_message_time
from convsync.messenger_conversations c
left join convsync.contact_interaction_events e
  on e.page_id = c.page_id and e.conversation_id = c.conversation_id and e.in_thread and e.deleted_at is null
group by c.page_id, c.conversation_id
"""


async def state(world: World) -> list[Any]:
    """Everything that is stored, for comparing."""
    return sorted(str(row) for row in await world.rows(STATE))


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, conversations=150, messages=8.0) as world:
        yield world


async def old(world: World, url: str, seed: int = 1) -> Planted:
    truth = [one async for one in fetch_truth(world.simulator.url, world.page_id)]
    planted = invent(world.page_id, truth, seed)
    await asyncio.to_thread(plant, url, planted)
    return planted


async def judged_clean(world: World, *, deep: bool = True, patience: float = 120) -> None:
    """A sync, and then both judges."""
    async with asyncio.timeout(patience):
        outcome = await world.runner().run(world.page_id, "full")
    assert outcome.status == "succeeded"
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    report = await verify_page(
        world.store,
        world.graph,
        world.page_id,
        world.token,
        deep=deep,
        calls_per_second=0,
        patience=0.01,
        backoff=QUICK,
    )
    assert report.clean, report.examples


def without(report: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in report.as_json().items() if name not in names}


def includes(document: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, values in expected.items():
        assert {key: document[name][key] for key in values} == values, name


async def test_an_old_database_is_moved_in_repaired_and_a_sync_then_verifies_clean(
    world: World, raw_database: Any
) -> None:
    planted = await old(world, raw_database.owner_url)
    expected = planted.expected
    assert all(
        expected["repaired"][name] for name in ("conversations_merged", "events_merged", "counts_corrected")
    )
    assert expected["repaired"]["events_without_message_id_known_by_another"]
    assert expected["not_repaired"]["events_without_message_id"]
    assert expected["not_repaired"]["last_messages_without_event"]

    empty = await state(world)
    dry = await adopt(world.store, raw_database.owner_url, dry_run=True)
    assert await state(world) == empty, "a dry run writes nothing"

    report = await adopt(world.store, raw_database.owner_url)
    assert without(dry, "dry_run", "as_of") == without(report, "dry_run", "as_of"), (
        "and says what the run will say"
    )
    document = report.as_json()
    includes(document, expected)
    kept = expected["not_repaired"]
    letters = kept["events_without_message_id"] + kept["last_messages_without_event"]
    assert document["new"] == {
        "conversations": expected["adopted"]["conversations"],
        "messages": expected["adopted"]["messages"],
        "statuses": len(planted.statuses),
        "dead_letters": letters,
        "owners": 1,
    }
    assert document["left_behind"]["messenger_conversations"] == ["created_at", "pipeline_stage"]

    # Exactly the messages that had an id, each once, under its person; counted, and the newest shown.
    found: dict[str, set[str]] = {}
    for row in await world.rows(
        """select c.sender_id, e.message_id
           from convsync.contact_interaction_events e
           join convsync.messenger_conversations c using (page_id, conversation_id)"""
    ):
        found.setdefault(row["sender_id"], set()).add(row["message_id"])
    assert found == {person: ids for person, ids in planted.messages().items() if ids}
    for row in await world.rows(COUNTS):
        assert row["message_count"] == row["events"]
        assert row["last_message_time"] == row["newest"]
    statuses = await world.rows(
        """select sender_id, conversation_status from convsync.messenger_conversations
           where conversation_status <> 'active'"""
    )
    assert {row["sender_id"]: row["conversation_status"] for row in statuses} == planted.statuses
    assert await world.value("select owner_ref from convsync.pages") == USERS[0]
    assert await world.value("select count(*) from convsync.dead_letters where source = 'import'") == letters

    before = await state(world)
    again = await adopt(world.store, raw_database.owner_url)
    assert await state(world) == before, "a second run changes nothing"
    assert not any(again.as_json()["new"].values())
    assert without(again, "new", "pages", "as_of") == without(report, "new", "pages", "as_of")

    await judged_clean(world)

    # What had no id has come under its own, so the letters have their answer.
    messages = await world.event_count()
    settled = (await adopt(world.store, raw_database.owner_url)).as_json()
    assert settled["not_repaired"]["answered_by_the_mirror"] > letters * 0.9
    waiting = "select count(*) from convsync.dead_letters where source = 'import' and resolved_at is null"
    assert await world.value(waiting) == letters - settled["not_repaired"]["answered_by_the_mirror"]
    assert not any(settled["new"].values())
    assert await world.event_count() == messages
    await judged_clean(world)


async def test_a_page_that_was_synced_before_learns_nothing_wrong(world: World, raw_database: Any) -> None:
    """What Graph told holds against every old row, times and texts included."""
    planted = await old(world, raw_database.owner_url)
    assert (await world.sync()).status == "succeeded"
    registers = """
        select to_jsonb(e) - 'metadata' from convsync.contact_interaction_events e order by message_id"""
    before = await world.rows(registers)
    report = (await adopt(world.store, raw_database.owner_url)).as_json()
    assert await world.rows(registers) == before
    assert report["new"]["messages"] == report["new"]["conversations"] == 0
    # Those that a sync has brought need no letter; what is left are copies with a time that never was.
    assert report["not_repaired"]["answered_by_the_mirror"] > 0
    includes(report, planted.expected)
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    await judged_clean(world)


async def test_wrong_times_directions_texts_and_owners_give_way_to_the_first_sync(
    world: World, raw_database: Any
) -> None:
    await old(world, raw_database.owner_url)
    with psycopg.connect(raw_database.owner_url) as connection:
        connection.execute(
            """with numbered as (
                 select id, row_number() over (order by id) as n from contact_interaction_events
               ), other as (select min(id::text)::uuid as id from messenger_conversations)
               update contact_interaction_events e
               set event_timestamp = event_timestamp + (n % 4 = 0)::integer * interval '3 days',
                 event_type = case when n % 4 = 1 then 'message_sent' else event_type end,
                 metadata = metadata
                   || case when n % 4 = 2 then '{"text": "zzz never said"}' else '{}' end::jsonb,
                 conversation_id = case when n % 4 = 3 then (select id from other) else conversation_id end
               from numbered where numbered.id = e.id"""
        )
    report = (await adopt(world.store, raw_database.owner_url)).as_json()
    assert report["repaired"]["messages_with_several_people"] > 0
    assert report["new"]["messages"] == report["adopted"]["messages"]
    await judged_clean(world)


async def test_messages_that_facebook_has_no_more_are_marked_by_the_sync(
    world: World, raw_database: Any
) -> None:
    planted = await old(world, raw_database.owner_url)
    person = max(planted.messages(), key=lambda one: len(planted.messages()[one]))
    conversation = next(row["id"] for row in planted.conversations if row["sender_id"] == person)
    with psycopg.connect(raw_database.owner_url) as connection:
        connection.execute(
            """insert into contact_interaction_events
                 (id, conversation_id, event_type, event_timestamp, metadata)
               select gen_random_uuid(), %(c)s, 'message_received',
                 min(event_timestamp) + interval '1 second', '{"message_id": "m_taken_back", "text": "No!"}'
               from contact_interaction_events where conversation_id = %(c)s""",
            {"c": conversation},
        )
    await adopt(world.store, raw_database.owner_url)
    await judged_clean(world)
    deleted = await world.rows(
        "select message_id from convsync.contact_interaction_events where deleted_at is not null"
    )
    assert deleted == [{"message_id": "m_taken_back"}]


async def test_an_adoption_that_was_interrupted_is_gone_on_with_and_ends_the_same(
    world: World, raw_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = await old(world, raw_database.owner_url)
    monkeypatch.setattr(moving, "BATCH", 300)
    tell, calls = world.store.adopt_conversations, itertools.count(1)

    async def dies(**arguments: Any) -> Any:
        if next(calls) == 5:
            raise asyncio.CancelledError
        return await tell(**arguments)

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "adopt_conversations", dies)
        with pytest.raises(asyncio.CancelledError):
            await adopt(world.store, raw_database.owner_url)
    part = await world.event_count()
    assert 0 < part < planted.expected["adopted"]["messages"]
    report = (await adopt(world.store, raw_database.owner_url)).as_json()
    includes(report, planted.expected)
    assert report["new"]["messages"] == planted.expected["adopted"]["messages"] - part
    assert await world.event_count() == planted.expected["adopted"]["messages"]
    assert not any((await adopt(world.store, raw_database.owner_url)).as_json()["new"].values())


async def test_a_batch_is_told_again_while_others_are_at_its_rows(
    world: World, raw_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = await old(world, raw_database.owner_url)
    tell, calls = world.store.adopt_conversations, itertools.count(1)

    async def busy(**arguments: Any) -> Any:
        if next(calls) % 2:
            raise TryAgain("busy")
        return await tell(**arguments)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(world.store, "adopt_conversations", busy)
    report = await adopt(world.store, raw_database.owner_url, backoff=QUICK, time=Time(sleep=sleep))
    includes(report.as_json(), planted.expected)
    assert report.as_json()["new"]["messages"] == planted.expected["adopted"]["messages"]


async def test_webhooks_that_come_meanwhile_are_neither_lost_nor_doubled(
    world: World, raw_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the old messages are delivered again while they are being adopted."""
    planted = await old(world, raw_database.owner_url)
    monkeypatch.setattr(moving, "BATCH", 200)
    people = planted.person_of()
    told = {}
    for event in planted.events:
        if mid := event["metadata"].get("message_id"):
            direction = "out" if event["event_type"] == "message_sent" else "in"
            conversation = people[event["conversation_id"]]
            told[mid] = Message(
                world.page_id,
                conversation,
                mid,
                direction,
                planted.times[mid],
                event["metadata"]["text"],
            )
    deliveries = [told[mid] for mid in sorted(told)[::2]]

    async def deliver() -> None:
        for start in range(0, len(deliveries), 50):
            batch = deliveries[start : start + 50]
            while True:
                try:
                    await world.store.ingest(batch, "webhook")
                    break
                except TryAgain:
                    await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(deliver())
        group.create_task(adopt(world.store, raw_database.owner_url))
    assert await world.event_count() == planted.expected["adopted"]["messages"]
    assert {
        row["source"]: row["n"]
        for row in await world.rows(
            "select source, count(*) as n from convsync.contact_interaction_events group by 1"
        )
    } == {"webhook": len(deliveries), "import": len(told) - len(deliveries)}
    await judged_clean(world)


async def test_a_large_old_database_is_adopted(database: Any, raw_database: Any) -> None:
    """5,000 conversations, 10 % doubled under the other constraint, 20 % of the events, 5 % without id."""
    async with open_world(database, conversations=5000, messages=5.0) as world:
        planted = await old(world, raw_database.owner_url, seed=2)
        includes((await adopt(world.store, raw_database.owner_url, dry_run=True)).as_json(), planted.expected)
        report = (await adopt(world.store, raw_database.owner_url)).as_json()
        includes(report, planted.expected)
        assert (
            report["new"]["messages"] == await world.event_count() == planted.expected["adopted"]["messages"]
        )
        assert [row for row in await world.rows(COUNTS) if row["message_count"] != row["events"]] == []
        before = await state(world)
        assert not any((await adopt(world.store, raw_database.owner_url)).as_json()["new"].values())
        assert await state(world) == before
        await judged_clean(world, deep=False, patience=600)


async def test_the_old_database_is_read_as_it_was_when_it_began(world: World, raw_database: Any) -> None:
    """It may still be in use. What is written meanwhile is for the next run; nothing is read by half."""
    planted = await old(world, raw_database.owner_url)
    with psycopg.connect(raw_database.owner_url, autocommit=True) as connection:

        def meanwhile(read: int, expected: int) -> None:
            assert expected == len(planted.events)
            connection.execute(
                """insert into contact_interaction_events
                 (id, conversation_id, event_type, event_timestamp, metadata)
                   select gen_random_uuid(), min(id::text)::uuid, 'message_received', now(),
                     jsonb_build_object('message_id', 'm_' || gen_random_uuid())
                   from messenger_conversations"""
            )

        report = await adopt(world.store, raw_database.owner_url, dry_run=True, progress=meanwhile)
        includes(report.as_json(), planted.expected)
        more = connection.execute("select count(*) from contact_interaction_events").fetchone()
        assert more is not None
        assert more[0] > len(planted.events)
