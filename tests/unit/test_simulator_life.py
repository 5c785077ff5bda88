"""A living population: what happens is drawn from the seed, told by webhooks, and in the truth at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig, default_pages
from convsync.simulator.clock import SimulatedClock
from convsync.simulator.config import DEFAULT_NOW, LifePlan, Step
from convsync.simulator.life import check_plan
from unit.webhook_receiver import Receiver, listening, until

EVERYTHING = {
    "text": 4.0,
    "echo": 3.0,
    "new_person": 1.0,
    "edit": 2.0,
    "agent_edit": 2.0,
    "reaction": 2.0,
    "agent_reaction": 1.0,
    "unsend": 1.0,
    "silent_unsend": 1.0,
    "rename": 1.0,
}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening() as one:
        yield one


def living(plan: LifePlan | None, **more: Any) -> Simulator:
    given: dict[str, Any] = {
        "port": 0,
        "conversations": 20,
        "messages": 5,
        "calls_per_second": 0,
        "speed": 10_000.0,
        **more,
    }
    return Simulator(SimulatorConfig(life=plan, **given))


def inbox(simulator: Simulator, page_id: str | None = None) -> list[object]:
    population = simulator.population if page_id is None else simulator.populations[page_id]
    return [
        (
            conversation.name,
            conversation.updated_ms,
            conversation.message_count,
            [
                (m.message_id, m.created_ms, m.text, m.edits, m.deleted, tuple(m.reactions))
                for m in population.all_messages(conversation)
            ],
        )
        for conversation in population.conversations
    ]


async def test_the_same_seed_lives_the_same_life_to_the_millisecond() -> None:
    inboxes = []
    for speed, seed in ((10_000.0, 7), (50_000.0, 7), (10_000.0, 8)):
        plan = LifePlan(rate=1, seed=seed, kinds=EVERYTHING, silent=True, count=300)
        async with living(plan, speed=speed) as simulator:
            await simulator.life.finished()
            assert simulator.life.played[simulator.page.page_id].total() == 300
            inboxes.append(inbox(simulator))
    assert inboxes[0] == inboxes[1]
    assert inboxes[0] != inboxes[2]


async def test_customers_and_agents_write_edit_react_and_unsend() -> None:
    plan = LifePlan(rate=1, kinds=EVERYTHING, silent=True, count=400)
    async with living(plan) as simulator:
        generated = simulator.population.message_total()
        await simulator.life.finished()
        population = simulator.population
        messages = [m for c in population.conversations for m in population.all_messages(c)]
        written = [m for m in messages if m.created_ms > DEFAULT_NOW.timestamp() * 1000]
        assert {m.outbound for m in written} == {True, False}
        assert {m.outbound for m in messages if m.edits} == {True, False}
        assert {who for m in messages for who, _ in m.reactions} == {"page", "person"}
        assert any(m.deleted for m in messages)
        assert len(population.conversations) > 20
        assert len(messages) > generated


async def test_things_happen_at_the_rate_that_was_asked_for() -> None:
    async with living(LifePlan(rate=0.5, silent=True, count=400)) as simulator:
        await simulator.life.finished()
        newest = max(conversation.updated_ms for conversation in simulator.population.conversations)
        assert newest / 1000 - DEFAULT_NOW.timestamp() == pytest.approx(800, rel=0.25)


async def test_each_page_lives_its_own_life_and_tells_of_it(receiver: Receiver) -> None:
    pages = default_pages(3)
    plan = LifePlan(rate=1, kinds={"text": 1.0}, count=20)
    async with living(plan, pages=pages, webhooks_to=receiver.url, subscribed=True) as simulator:
        await simulator.life.finished()
        told = {event["message"]["mid"] for event in receiver.events}
        assert len(told) == 60
        for page in pages:
            assert simulator.life.played[page.page_id] == {"text": 20}
        texts = [
            [e["message"]["text"] for e in receiver.events if e["recipient"]["id"] == p.page_id]
            for p in pages
        ]
        assert texts[0] != texts[1] != texts[2]


async def test_life_goes_on_until_it_is_stopped(receiver: Receiver) -> None:
    async with living(None, webhooks_to=receiver.url, subscribed=True) as simulator:
        control = f"{simulator.url}/_sim/life"
        page_id = simulator.page.page_id
        async with aiohttp.ClientSession() as session:
            async with session.post(control, json={"rate": 5, "seed": 3, "kinds": {"echo": 1}}) as answer:
                told = (await answer.json())["pages"][page_id]
            assert told["plan"] == {
                "rate": 5,
                "seed": 3,
                "kinds": {"echo": 1.0},
                "silent": False,
                "count": None,
            }
            await until(lambda: len(receiver.bodies) >= 10)
            async with session.delete(control) as answer:
                state = await answer.json()
            assert state["pages"][page_id]["plan"] is None
            total = state["pages"][page_id]["total"]
            assert total == state["pages"][page_id]["played"]["echo"] >= 10
            async with session.get(control) as answer:
                assert (await answer.json())["pages"][page_id]["total"] == total
            for wrong in ({}, {"rate": 0}, {"rate": 1, "kinds": {"dance": 1}}, {"rate": 1, "page_id": "7"}):
                async with session.post(control, json=wrong) as answer:
                    assert answer.status == 400
                    assert (await answer.json())["error"]


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (LifePlan(rate=0), "rate"),
        (LifePlan(rate=1, count=0), "count"),
        (LifePlan(rate=1, kinds={"dance": 1}), "kinds"),
        (LifePlan(rate=1, kinds={"text": -1}), "kinds"),
        (LifePlan(rate=1, kinds={"text": 0}), "kinds"),
        (LifePlan(rate=1, seed="x"), "seed"),  # type: ignore[arg-type]
        (LifePlan(rate=1, silent="x"), "silent"),  # type: ignore[arg-type]
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_the_name_of_its_field(plan: LifePlan, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        check_plan(plan)


async def test_time_runs_as_fast_as_it_is_told_to() -> None:
    wall = [100.0]
    clock = SimulatedClock(60, 1_000_000, monotonic=lambda: wall[0])
    assert clock.now_ms() == 1_000_000
    wall[0] += 2
    assert clock.now_ms() == 1_120_000
    assert clock.elapsed() == 120
    with pytest.raises(ValueError, match="speed"):
        SimulatedClock(0)


async def test_calls_are_told_per_second_and_page() -> None:
    async with living(None, pages=default_pages(2)) as simulator, aiohttp.ClientSession() as session:
        first, second = simulator.config.pages
        for page, calls in ((first, 3), (second, 1)):
            for _ in range(calls):
                query = {"access_token": page.token}
                async with session.get(f"{simulator.url}/me/conversations", params=query) as answer:
                    assert answer.status == 200
        async with session.get(f"{simulator.url}/_sim/rates") as answer:
            pages = (await answer.json())["pages"]
        assert sum(calls for _, calls in pages[first.page_id]["seconds"]) == 3
        assert 1 <= pages[first.page_id]["most"] <= 3
        assert [calls for _, calls in pages[second.page_id]["seconds"]] == [1]


async def test_graph_faults_are_turned_on_and_off_one_by_one() -> None:
    async with living(None) as simulator, aiohttp.ClientSession() as session:
        control = f"{simulator.url}/_sim/faults"
        ids = []
        for code in (1, 2):
            async with session.post(control, json={"action": "error", "code": code}) as answer:
                ids.append((await answer.json())["id"])
        async with session.delete(f"{control}/{ids[0]}") as answer:
            assert [fault["id"] for fault in (await answer.json())["faults"]] == [ids[1]]
        async with session.delete(f"{control}/{ids[0]}") as answer:
            assert answer.status == 404


async def test_steps_come_at_their_time_and_what_they_planted_goes_again() -> None:
    steps = (
        Step("fault", {"action": "error", "code": 1}, at=100, until=300),
        Step("unsubscribe", {}, at=200, until=400),
        Step("traffic", {"count": 3, "kinds": ["text"], "silent": True}, at=150),
    )
    async with living(None, speed=1000.0, timeline=steps, subscribed=True) as simulator:
        before = simulator.population.message_total()
        await until(lambda: len(simulator.timeline.done) == 5)
        done = [one["do"] for one in simulator.timeline.done]
        assert done == ["fault", "traffic", "unsubscribe", "end of fault", "end of unsubscribe"]
        for one, at in zip(simulator.timeline.done, (100, 150, 200, 300, 400), strict=True):
            assert one["at"] >= at
        await until(lambda: simulator.page.page_id in simulator.webhooks.subscriptions)
        assert simulator.faults.list() == []
        assert simulator.population.message_total() == before + 3


async def test_a_step_that_fails_does_not_keep_the_others_from_coming(
    caplog: pytest.LogCaptureFixture,
) -> None:
    steps = (
        Step("traffic", {"kinds": ["dance"]}, at=0),
        Step("fault", {"action": "error"}, at=0),
    )
    async with living(None, timeline=steps) as simulator:
        await until(lambda: len(simulator.faults.list()) == 1)
    assert "a step of the timeline failed: traffic" in caplog.text
