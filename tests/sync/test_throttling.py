"""Told to wait, nobody calls: the block is in the database, and ends when Meta said it would.

The hours that Meta asks for pass in seconds here: engine and database share a clock that runs fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from convsync.graph.errors import GraphError
from convsync.pages import TokenCheck, check_token
from convsync.simulator.catalogue import CATALOGUE
from convsync.simulator.limits import Blocks, PageLimits
from convsync.sync.contacts import ContactReader
from sync.fake_graph import conversation, fake_graph
from sync.world import LIST_CALL, FastTime, Ledger, World, open_world

SMALL_ANSWERS = {"max_conversations_per_call": 4, "max_messages_per_call": 20}


def quiet(world: World, clock: FastTime, code: int) -> list[tuple[float, float]]:
    """For each refusal: when it came, and when the next call came, by the simulator's own log."""
    calls = list(world.simulator.calls.calls)
    return [
        (clock.of_wall(refused.at), clock.of_wall(following.at))
        for refused, following in pairwise(calls)
        if refused.code == code
    ]


@pytest.mark.parametrize(("code", "seconds"), [(613, 10), (80006, 60)])
async def test_nobody_calls_during_a_block(
    database: Any, monkeypatch: pytest.MonkeyPatch, code: int, seconds: int
) -> None:
    clock = FastTime(100)
    ledger = Ledger(monkeypatch)
    async with open_world(database, clock=clock, messages=10.0, **SMALL_ANSWERS) as world:
        world.simulator.faults.add(LIST_CALL, "error", code=code, times=2, after=3, http=400)

        outcome = await world.sync(concurrency=1, lease_seconds=100_000)

        assert outcome.status == "succeeded"
        run = await world.run_of(outcome)
        assert run["failed_batches"] == []
        waits = [following - refused for refused, following in quiet(world, clock, code)]
        # Meta did not say how long: the second time longer than the first.
        assert len(waits) == 2
        assert waits[0] >= seconds
        assert waits[1] >= 2 * seconds
        assert len(ledger.blocks) == 2
        assert ledger.granted_while_blocked() == 0
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        *((name, 600) for name in ("messenger_limit", "pages_limit", "call_rate", "page_limit")),
        # Of these no header tells how long.
        *((name, 50) for name in ("app_limit", "user_limit")),
    ],
)
async def test_no_call_runs_into_a_block_of_the_simulators_own(
    database: Any, name: str, seconds: int
) -> None:
    """It refuses whatever comes before its end, and would last a minute longer for each such call."""
    clock = FastTime(300)
    async with open_world(database, clock=clock, messages=10.0, **SMALL_ANSWERS) as world:
        world.simulator.faults.blocks = Blocks(clock.now)
        world.simulator.faults.add(LIST_CALL, "block", name=name, after=3, times=1, seconds=seconds, grow=60)
        outcome = await world.sync(concurrency=1, lease_seconds=1_000_000)
        assert outcome.status == "succeeded"
        totals = world.simulator.calls.totals()[world.page_id]
        assert (totals["errors"], totals["blocked"]) == (1, 0)
        ((refused, following),) = quiet(world, clock, CATALOGUE[name].make().code)
        assert following - refused >= seconds
        assert (await world.verdict()).clean


async def test_three_at_once_all_heed_the_block(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FastTime(100)
    ledger = Ledger(monkeypatch)
    async with open_world(database, clock=clock, messages=20.0, **SMALL_ANSWERS) as world:
        world.simulator.faults.add("", "error", code=613, times=3, after=6, http=403)
        outcome = await world.sync(concurrency=3, lease_seconds=100_000)
        assert outcome.status == "succeeded"
        assert ledger.blocks
        assert ledger.granted_while_blocked() == 0
        assert (await world.verdict()).clean


async def test_header_of_a_refusal_says_how_long(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """80006 with three minutes in X-Business-Use-Case-Usage: three minutes, not the catalogue's guess."""
    clock = FastTime(300)
    ledger = Ledger(monkeypatch)
    usage = (
        '{"100000000000001": [{"type": "messenger", "call_count": 100, "total_cputime": 10, "total_time": 10,'
        ' "estimated_time_to_regain_access": 3}]}'
    )
    asked: list[float] = []

    def answer(path: str, query: Mapping[str, str]) -> Any:
        asked.append(clock.now())
        if len(asked) == 1:
            error = {"message": "(#80006) There have been too many calls", "code": 80006}
            return 400, {"error": error}, {"X-Business-Use-Case-Usage": usage}
        return {"data": [conversation(1, {"data": [{"id": "1001"}]})]}

    async with (
        fake_graph(answer) as graph,
        open_world(database, clock=clock, graph_url=graph.url) as world,
    ):
        outcome = await world.sync(lease_seconds=100_000)
        assert outcome.status == "succeeded"
        assert asked[1] - asked[0] >= 180
        ((began, ends),) = ledger.blocks
        assert (ends - began).total_seconds() < 3600
        assert ledger.granted_while_blocked() == 0


async def test_calls_beside_a_sync_draw_on_the_same_allowance_and_say_when_it_is_used_up(
    database: Any,
) -> None:
    """The check of a token, the name of a new person: the last one for now blocks whoever comes next."""
    usage = '{"1": [{"type": "messenger", "call_count": 100, "estimated_time_to_regain_access": 2}]}'

    def answer(path: str, query: Mapping[str, str]) -> Any:
        return 200, {"id": "1", "name": "One"}, {"X-Business-Use-Case-Usage": usage}

    async with fake_graph(answer) as graph, open_world(database, graph_url=graph.url) as world:
        check = await check_token(world.store, world.graph, world.page_id, world.token, 0)
        assert check == TokenCheck("valid")
        budget = (await world.store.get_page(page_id=world.page_id))["budget"]
        assert (budget["usage_percent"], budget["block_reason"]) == (100, "usage")
        grant = await world.store.acquire_call(page_id=world.page_id, lane="live", calls_per_second=0)
        assert 0 < grant.wait_ms <= 120_000
        assert grant.granted_at is None
        # Nobody sits before a terminal until a block ends: it is said instead, and the token stays as it was.
        check = await check_token(world.store, world.graph, world.page_id, world.token, 0)
        assert check.state == "unchecked"
        assert "no Graph call is granted" in str(check.told)
        assert (await world.store.get_page(page_id=world.page_id))["token"] == "valid"


@pytest.mark.parametrize(("name", "seconds"), [("call_rate", 10), ("page_limit", 60), ("app_limit", 60)])
async def test_refused_live_read_blocks_whoever_comes_next(database: Any, name: str, seconds: int) -> None:
    async with open_world(database, conversations=3) as world:
        world.simulator.faults.add(LIST_CALL, "error", name=name, times=1)
        reader = ContactReader(world.store, world.graph, world.box.open, calls_per_second=0)
        with pytest.raises(GraphError):
            await reader._read_person(world.page_id, "1001")
        for lane in ("live", "backfill"):
            grant = await world.store.acquire_call(page_id=world.page_id, lane=lane, calls_per_second=0)
            assert (seconds - 8) * 1000 < grant.wait_ms <= seconds * 1000
        assert world.calls() == 1


async def test_used_up_allowance_is_read_from_successes_so_that_no_call_is_ever_refused(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve calls an hour, and twenty to make: the header of the twelfth answer says to wait an hour."""
    clock = FastTime(3000)
    ledger = Ledger(monkeypatch)
    async with open_world(database, clock=clock, messages=10.0, **SMALL_ANSWERS) as world:
        limits = PageLimits(0, 12, clock=clock.now)
        world.simulator.state.limits[world.page_id] = limits
        outcome = await world.sync(concurrency=1, lease_seconds=1_000_000)
        assert outcome.status == "succeeded"
        assert world.calls() > 12
        assert limits.violations == 0
        assert ledger.blocks
        assert ledger.granted_while_blocked() == 0
        assert (await world.verdict()).clean
