"""The limits of a Page: an honest client passes, one that is too fast is caught."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig
from convsync.simulator.errors import GraphError
from convsync.simulator.limits import PageLimits


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def drive(limits: PageLimits, clock: Clock, gaps: list[float]) -> list[GraphError | None]:
    answers = []
    for gap in gaps:
        clock.now += gap
        answers.append(limits.check())
    return answers


def test_two_calls_per_second_pass_for_an_hour() -> None:
    clock = Clock()
    limits = PageLimits(2, clock=clock)
    assert not any(drive(limits, clock, [0.5] * 7200))
    assert limits.violations == 0


def test_a_jittery_network_does_not_make_an_honest_client_guilty() -> None:
    clock = Clock()
    limits = PageLimits(2, clock=clock)
    random = Random(3)  # noqa: S311 - jitter
    arrivals = sorted(1000 + 0.5 * number + random.random() * 0.09 for number in range(2000))
    for arrival in arrivals:
        clock.now = arrival
        assert limits.check() is None


def test_a_client_at_four_calls_per_second_is_refused() -> None:
    clock = Clock()
    limits = PageLimits(2, clock=clock)
    answers = drive(limits, clock, [0.25] * 40)
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) >= 15
    assert {(error.code, error.http) for error in refused} == {(613, 400)}
    assert limits.violations == len(refused)


def test_a_little_too_fast_for_long_is_too_fast() -> None:
    clock = Clock()
    limits = PageLimits(2, clock=clock)
    assert any(drive(limits, clock, [0.42] * 60))


def test_a_pause_does_not_save_up_calls() -> None:
    clock = Clock()
    limits = PageLimits(2, clock=clock)
    assert [bool(error) for error in drive(limits, clock, [60, 0, 0])] == [False, False, True]


@pytest.mark.parametrize("rate", [0.1, 0.5, 1, 2.5, 10, 50])
def test_other_rates_scale(rate: float) -> None:
    clock = Clock()
    limits = PageLimits(rate, clock=clock)
    assert not any(drive(limits, clock, [1 / rate] * 300))
    assert any(drive(limits, clock, [1 / (2 * rate)] * 300))


def test_no_rate_is_no_limit() -> None:
    clock = Clock()
    limits = PageLimits(0, clock=clock)
    assert not any(drive(limits, clock, [0.0] * 1000))
    assert limits.usage() is None


def test_one_call_for_many_ids_counts_as_many() -> None:
    limits = PageLimits(2, clock=Clock())
    assert limits.check(2) is None
    assert limits.check() is not None


def test_usage_rises_and_ends_in_a_block_that_calls_prolong() -> None:
    clock = Clock()
    limits = PageLimits(0, 100, clock=clock)
    drive(limits, clock, [1.0] * 9)
    assert limits.usage() is None, "little use shows no header"
    drive(limits, clock, [1.0] * 41)
    half = limits.usage()
    assert half is not None
    assert (half["type"], half["call_count"], half["estimated_time_to_regain_access"]) == ("messenger", 50, 0)
    assert not any(drive(limits, clock, [1.0] * 50))
    refused = limits.check()
    assert refused is not None
    assert refused.code == 80006
    blocked = limits.usage()
    assert blocked is not None
    assert blocked["call_count"] >= 100
    first_wait = blocked["estimated_time_to_regain_access"]
    assert 50 <= first_wait <= 60
    drive(limits, clock, [30.0] * 60)
    later = limits.usage()
    assert later is not None
    assert later["estimated_time_to_regain_access"] > first_wait - 30, (
        "calls during the block push its end out"
    )
    clock.now += 3601
    assert limits.check() is None


async def test_a_fast_client_is_refused_over_http_and_recorded() -> None:
    config = SimulatorConfig(port=0, conversations=30, messages=3)
    async with Simulator(config) as simulator, aiohttp.ClientSession() as session:
        address = f"{simulator.url}/v26.0/{simulator.page.page_id}/conversations"
        query = {"access_token": simulator.page.token}
        outcomes = []
        usage: str | None = None
        started = time.monotonic()
        for number in range(8):
            await asyncio.sleep(max(0, started + number * 0.25 - time.monotonic()))
            async with session.get(address, params=query) as answer:
                body = await answer.json()
                outcomes.append((answer.status, body.get("error", {}).get("code")))
        assert outcomes[:2] == [(200, None), (200, None)]
        assert set(outcomes) == {(200, None), (400, 613)}
        refused = outcomes.count((400, 613))
        async with session.get(f"{simulator.url}/_sim/calls") as answer:
            log = await answer.json()
        assert log["violations"] == {simulator.page.page_id: refused}
        assert log["totals"][simulator.page.page_id]["refused"] == refused
        # The Page's own node is not of the Conversations API.
        for _ in range(5):
            async with session.get(f"{simulator.url}/me", params=query) as answer:
                assert answer.status == 200
        for _ in range(3):
            async with session.get(address, params=query) as answer:
                usage = answer.headers.get("X-Business-Use-Case-Usage")
        assert usage is not None
        assert json.loads(usage)[simulator.page.page_id][0]["type"] == "messenger"
