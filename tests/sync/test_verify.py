"""`verify`: a second reading of Graph, compared with the mirror.

A right mirror is acquitted, whatever happens meanwhile; each planted fault is convicted, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from convsync.facts import Gone
from convsync.graph.errors import GraphError
from convsync.sync.verify import Report, verify_page
from convsync.webhook.payload import parse
from sync.world import LIST_CALL, QUICK, FastTime, World, open_world

CONVERSATIONS = 40
FINDINGS = ("missing", "extra", "differing", "unreadable")
# Small answers, so that the list has a middle and the longer threads go beyond their nested slice.
CONFIG: dict[str, Any] = {
    "conversations": CONVERSATIONS,
    "messages": 15.0,
    "max_conversations_per_call": 10,
    "max_messages_per_call": 25,
}


async def verify(world: World, *, deep: bool = False, patience: float = 0.01, **settings: Any) -> Report:
    async with asyncio.timeout(120):
        return await verify_page(
            world.store,
            world.graph,
            world.page_id,
            world.token,
            deep=deep,
            calls_per_second=0,
            patience=patience,
            backoff=QUICK,
            **settings,
        )


def found(report: Report) -> dict[str, int]:
    return {name: value for name in FINDINGS if (value := getattr(report, name))}


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    """A Page of 40 conversations, mirrored by a full sync."""
    async with open_world(database, **CONFIG) as world:
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        world.simulator.calls.reset()
        yield world


def threads(world: World) -> list[Any]:
    """The conversations of ordinary people with at least three messages, longest first."""
    ordinary = [
        one
        for one in world.simulator.population.conversations
        if one.kind == "normal" and one.message_count > 2
    ]
    return sorted(ordinary, key=lambda one: -one.message_count)


def newest(world: World, conversation: Any) -> Any:
    """The newest message with a text."""
    messages = world.simulator.population.visible_messages(conversation)
    return next(message for message in reversed(messages) if message.text)


async def snapshot(world: World) -> dict[str, Any]:
    """Every row of every table, but for the call budget."""
    tables = await world.rows(
        """
        select c.relname as name from pg_class c
        where c.relnamespace = 'convsync'::regnamespace and c.relkind = 'r' and c.relname <> 'call_budgets'
        """
    )
    return {
        table["name"]: await world.value(
            f"select jsonb_agg(to_jsonb(t) order by to_jsonb(t)) from convsync.{table['name']} t"  # noqa: S608
        )
        for table in tables
    }


async def alter(world: World, table: str, change: str, **key: str) -> None:
    """Plant a fault, by plain SQL."""
    ((column, value),) = key.items()
    query = f"update convsync.{table} set {change} where {column} = %s"  # noqa: S608 - a test's own words
    await world.owner.execute(query, [value])  # type: ignore[arg-type]


async def plant_conversation(world: World, sender_id: str) -> None:
    await world.owner.execute(
        """
        insert into convsync.messenger_conversations (page_id, sender_id, thread_id) values (%s, %s, 't_7000')
        """,
        [world.page_id, sender_id],
    )


@pytest.mark.parametrize("deep", [False, True])
async def test_mirror_made_by_a_full_sync_is_clean(world: World, deep: bool) -> None:
    report = await verify(world, deep=deep)

    assert found(report) == {}
    assert report.clean
    assert report.complete
    assert report.examples == []
    assert report.calls == world.calls()
    total = world.simulator.population.message_total()
    assert report.messages == total if deep else 0 < report.messages < total
    assert report.as_json() == {
        "page_id": world.page_id,
        "conversations": CONVERSATIONS,
        "messages": report.messages,
        "missing": 0,
        "extra": 0,
        "differing": 0,
        "unreadable": 0,
        "complete": True,
        "calls": report.calls,
    }


async def test_verify_writes_nothing_but_the_call_budget(world: World) -> None:
    conversation = threads(world)[3]
    await world.owner.execute(
        "delete from convsync.contact_interaction_events where message_id = %s",
        [newest(world, conversation).message_id],
    )
    before = await snapshot(world)
    calls = await world.value("select calls from convsync.call_budgets")

    report = await verify(world, deep=True)

    assert not report.clean
    assert await snapshot(world) == before
    assert await world.value("select calls from convsync.call_budgets") == calls + report.calls


CHANGES = {
    "text": "text_graph = 'never written by anybody'",
    "direction": "direction = case direction when 'in' then 'out' else 'in' end",
    "second": "event_timestamp = event_timestamp - interval '1 second'",
    "unsent": "unsent_at = now()",
    "absent": "absent_at = graph_at + interval '1 second'",
    "not of the thread": "in_thread = false",
    "attachments": """metadata = jsonb_set(metadata, '{graph,attachments}', '[{"id": "1"}]')""",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_message_that_was_altered_is_the_one_difference(world: World, change: str) -> None:
    message = newest(world, threads(world)[2])
    await alter(world, "contact_interaction_events", change, message_id=message.message_id)
    report = await verify(world)
    assert found(report) == {"differing": 1}, report.examples
    assert message.message_id in report.examples[0]


async def test_text_that_only_a_webhook_told_may_be_altered_and_is_found(world: World) -> None:
    message = newest(world, threads(world)[2])
    await world.owner.execute(
        """
        update convsync.contact_interaction_events
        set text_original = 'never written', text_graph = null, text_graph_at = null where message_id = %s
        """,
        [message.message_id],
    )
    assert found(await verify(world)) == {"differing": 1}


async def test_message_that_was_deleted_is_missing(world: World) -> None:
    for conversation in threads(world)[1], threads(world)[-1]:
        message = world.simulator.population.visible_messages(conversation)[0]
        await world.owner.execute(
            "delete from convsync.contact_interaction_events where message_id = %s", [message.message_id]
        )
        report = await verify(world)
        assert found(report) == {"missing": 1}, report.examples
        assert report.examples == [f"missing message {message.message_id} in {conversation.thread_id}"]
        await world.sync(restart=True)


async def test_message_that_graph_does_not_have_is_extra(world: World) -> None:
    conversation = threads(world)[2]
    await plant_message(world, conversation.thread_id, "m_planted")
    report = await verify(world)
    assert found(report) == {"extra": 1}
    assert report.examples == [f"extra message m_planted in {conversation.thread_id}"]


async def plant_message(world: World, thread_id: str, message_id: str) -> None:
    await world.owner.execute(
        """
        insert into convsync.contact_interaction_events
          (page_id, message_id, conversation_id, event_type, direction, event_timestamp, source)
        select page_id, %s, conversation_id, 'message', 'in', now() - interval '30 days', 'sql'
        from convsync.messenger_conversations where thread_id = %s
        """,
        [message_id, thread_id],
    )


@pytest.mark.parametrize("thread_id", [None, "t_7000"])
@pytest.mark.parametrize("sender_id", ["4711", "thread:t_7000"])
async def test_conversation_that_graph_does_not_have_is_extra(
    world: World, sender_id: str, thread_id: str | None
) -> None:
    await plant_conversation(world, sender_id)
    # without a live message it is nothing that a list would have to show
    assert found(await verify(world)) == {}
    await plant_message(world, "t_7000", "m_planted")
    await world.owner.execute(
        "update convsync.messenger_conversations set thread_id = %s where sender_id = %s",
        [thread_id, sender_id],
    )

    report = await verify(world)

    assert found(report) == {"extra": 1}, report.examples
    assert sender_id in report.examples[0]
    assert not report.complete


async def test_a_conversation_that_is_gone_is_deleted_here_or_it_differs(world: World) -> None:
    """Whatever of the two is behind, the mirror or Graph."""
    removed, alive = threads(world)[2:4]
    world.simulator.population.remove(removed)
    report = await verify(world)
    assert found(report) == {"extra": 1}, report.examples

    seen = datetime.now(UTC)
    gone = [Gone(world.page_id, one.psid, seen) for one in (removed, alive)]
    await world.store.ingest(gone[:1], "sync")
    report = await verify(world)
    assert found(report) == {}, report.examples
    assert report.complete

    await world.store.ingest(gone[1:], "sync")
    report = await verify(world)
    assert found(report) == {"differing": 1}, report.examples
    assert "deleted" in report.examples[0]


async def test_second_conversation_for_one_thread_is_found_by_its_messages(world: World) -> None:
    conversation = threads(world)[2]
    await plant_conversation(world, "4711")
    await plant_message(world, "t_7000", "m_planted")
    await world.owner.execute(
        "update convsync.messenger_conversations set thread_id = %s where sender_id = '4711'",
        [conversation.thread_id],
    )
    assert found(await verify(world)) == {"extra": 1}


async def test_conversation_that_was_deleted_is_missing_with_each_of_its_messages(world: World) -> None:
    conversation = threads(world)[2]
    await world.owner.execute(
        """
        with gone as (
          select page_id, conversation_id from convsync.messenger_conversations where thread_id = %(thread)s
        ), events as (
          delete from convsync.contact_interaction_events
          where (page_id, conversation_id) in (select * from gone)
        )
        select 1
        """,
        {"thread": conversation.thread_id},
    )
    await world.owner.execute(
        "delete from convsync.messenger_conversations where thread_id = %s", [conversation.thread_id]
    )
    report = await verify(world)
    assert found(report) == {"missing": 1 + conversation.message_count}
    assert report.examples[0] == f"missing conversation {conversation.psid} in {conversation.thread_id}"
    assert len(report.examples) <= 20


@pytest.mark.parametrize("place", ["in the slice", "beyond the slice"])
async def test_message_under_another_person_is_one_difference_and_not_extra_as_well(
    world: World, place: str
) -> None:
    conversation, other = threads(world)[0], threads(world)[4]
    messages = world.simulator.population.visible_messages(conversation)
    message = messages[-1 if place == "in the slice" else 0]
    await world.owner.execute(
        """
        update convsync.contact_interaction_events set conversation_id = (
          select conversation_id from convsync.messenger_conversations where thread_id = %s
        ) where message_id = %s
        """,
        [other.thread_id, message.message_id],
    )
    report = await verify(world)
    assert found(report) == {"differing": 1}, report.examples
    assert report.examples[0].endswith(": owner")


@pytest.mark.parametrize(
    "change",
    ["sender_name = 'Somebody Else'", "thread_id = 't_1'", "deleted_at = now()", "sender_name = null"],
)
async def test_conversation_that_was_altered_is_the_one_difference(world: World, change: str) -> None:
    conversation = threads(world)[5]
    await alter(world, "messenger_conversations", change, thread_id=conversation.thread_id)
    report = await verify(world)
    assert found(report) == {"differing": 1}, report.examples
    assert conversation.psid in report.examples[0]


async def test_conversation_whose_history_was_never_read_is_not_complete(world: World) -> None:
    await world.owner.execute(
        "update convsync.messenger_conversations set history_complete_at = null where thread_id = %s",
        [threads(world)[0].thread_id],
    )
    report = await verify(world)
    assert report.clean
    assert not report.complete


async def test_deep_finds_an_old_message_altered_in_a_long_thread_that_a_shallow_look_passes(
    world: World,
) -> None:
    conversation = threads(world)[0]
    assert conversation.message_count > 2 * CONFIG["max_messages_per_call"]
    oldest = world.simulator.population.visible_messages(conversation)[0]
    await world.owner.execute(
        "update convsync.contact_interaction_events set direction = %s where message_id = %s",
        ["in" if oldest.outbound else "out", oldest.message_id],
    )
    shallow, deep = await verify(world), await verify(world, deep=True)
    assert found(shallow) == {}
    assert found(deep) == {"differing": 1}
    assert deep.examples == [f"differing message {oldest.message_id} in {conversation.thread_id}: direction"]


async def test_person_who_lost_their_id_in_graph_is_still_the_same_person(world: World) -> None:
    conversation = threads(world)[2]
    conversation.kind = "no_id"
    assert found(await verify(world, deep=True)) == {}


@contextlib.asynccontextmanager
async def webhooks(world: World) -> AsyncIterator[None]:
    """The simulator's webhooks go into the mirror."""

    async def take(request: web.Request) -> web.Response:
        delivery = parse(await request.read(), datetime.now(UTC))
        await world.store.ingest(delivery.facts, "webhook")
        return web.Response(text="EVENT_RECEIVED")

    app = web.Application()
    app.router.add_post("/", take)
    async with TestServer(app) as server:
        sender = world.simulator.webhooks
        sender.url = str(server.make_url("/"))
        sender.subscribe(world.page_id)
        yield


@pytest.mark.parametrize("deep", [False, True])
async def test_live_traffic_during_verify_is_no_finding(world: World, deep: bool) -> None:
    async with webhooks(world):
        traffic = asyncio.create_task(world.simulator.traffic(rate=60, seconds=60))
        try:
            before = world.simulator.population.live_changes
            while not traffic.done() and world.simulator.population.live_changes < before + 20:
                report = await verify(world, deep=deep, patience=1.0)
                assert report.clean, report.examples
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)
    assert world.simulator.population.live_changes >= before + 20


async def test_fault_is_found_among_live_traffic(world: World) -> None:
    conversation = threads(world)[1]
    oldest = world.simulator.population.visible_messages(conversation)[0]
    await world.owner.execute(
        "delete from convsync.contact_interaction_events where message_id = %s", [oldest.message_id]
    )
    async with webhooks(world):
        traffic = asyncio.create_task(world.simulator.traffic(rate=60, seconds=60))
        try:
            report = await verify(world, patience=1.0)
        finally:
            traffic.cancel()
            await asyncio.gather(traffic, return_exceptions=True)
    assert found(report) == {"missing": 1}, report.examples


async def test_message_whose_webhook_is_on_its_way_is_not_missing_but_a_lost_one_is(world: World) -> None:
    conversation = threads(world)[2]
    population = world.simulator.population
    _, message = population.new_message(conversation, "in", "whose webhook was lost")
    await asyncio.sleep(1.1)  # Graph has whole seconds, and what is not older than the read is not judged
    report = await verify(world)
    assert found(report) == {"missing": 1}, report.examples
    assert message.message_id in report.examples[0]

    async def arrive() -> None:
        await asyncio.sleep(0.3)
        await world.sync()

    late = asyncio.create_task(arrive())
    assert found(await verify(world, patience=3.0)) == {}
    await late


async def test_conversation_that_jumps_over_the_reader_is_looked_at_all_the_same(world: World) -> None:
    population = world.simulator.population
    oldest = min(threads(world), key=lambda one: one.key)
    lost: list[Any] = []

    def jump(number: int, call: Any) -> None:
        if number == 2:
            lost.append(population.new_message(oldest, "in", "over your head, and the webhook is lost")[1])

    world.on_call(jump)
    report = await verify(world)
    assert report.conversations == CONVERSATIONS
    assert found(report) == {"missing": 1}, report.examples
    assert lost[0].message_id in report.examples[0]


async def test_person_who_writes_during_the_walk_and_whose_webhook_is_lost_is_missing(world: World) -> None:
    """Only a second look at the front of the list shows them: the mirror has nothing to ask for."""
    population = world.simulator.population

    def write(number: int, call: Any) -> None:
        if number == 2:
            population.new_message(None, "in", "is anybody there?")

    world.on_call(write)
    report = await verify(world)
    assert report.conversations == CONVERSATIONS + 1
    assert found(report) == {"missing": 2}, report.examples


async def test_dead_cursors_start_the_list_again_and_count_nothing_twice(world: World) -> None:
    clean = await verify(world, deep=True)
    world.simulator.faults.add(
        "after=", "error", code=100, message="Invalid cursors values", after=2, times=1
    )
    report = await verify(world, deep=True)
    assert (report.conversations, report.messages) == (clean.conversations, clean.messages)
    assert found(report) == {}


async def test_answers_that_fail_or_are_too_large_are_asked_for_again(world: World) -> None:
    world.simulator.faults.add(LIST_CALL, "error", code=2, message="try later", after=1, times=2)
    world.simulator.faults.add(LIST_CALL, "reduce_data", nodes=300)
    report = await verify(world)
    assert found(report) == {}
    assert report.conversations == CONVERSATIONS
    assert report.calls == world.calls()


async def test_throttled_answer_is_waited_for(database: Any) -> None:
    clock = FastTime(60)
    async with open_world(database, clock=clock, **CONFIG) as world:
        await world.sync()
        world.simulator.faults.add(
            LIST_CALL, "error", code=613, message="(#613) Rate limit", after=1, times=1
        )
        world.simulator.calls.reset()
        report = await verify(world, time=clock.time)
        assert found(report) == {}
        at = [clock.of_wall(call.at) for call in world.simulator.calls.calls]
        pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert pauses[1] > 8  # after the second call: 10 seconds, less what the measuring costs


async def test_list_that_meta_refuses_as_such_is_named(world: World) -> None:
    world.simulator.faults.add("", "refuse_listing")
    with pytest.raises(GraphError) as refused:
        await verify(world)
    assert refused.value.rule.name == "listing_refused"
    assert "does not list this Page's conversations" in refused.value.explained()


async def test_list_that_cannot_be_read_is_an_error_and_no_verdict(world: World) -> None:
    world.simulator.faults.add(LIST_CALL, "error", code=190, message="Session has expired", http=401)
    with pytest.raises(GraphError, match="token"):
        await verify(world)


async def test_thread_that_graph_lists_and_does_not_return_is_unreadable_and_nothing_of_it_is_extra(
    world: World,
) -> None:
    conversation = threads(world)[0]
    world.simulator.faults.add(
        f"{conversation.thread_id}/messages",
        "error",
        code=100,
        subcode=33,
        message="Unsupported get request.",
    )
    report = await verify(world, deep=True)
    assert found(report) == {"unreadable": 1}
