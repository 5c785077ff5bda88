"""The limits of a Page: an honest client passes, one that is too fast is caught."""

from __future__ import annotations

import asyncio
import json
import time
from random import Random

import aiohttp
import pytest
from graph_reader import reading

from convsync.simulator import Simulator, SimulatorConfig, default_pages
from convsync.simulator.catalogue import named
from convsync.simulator.errors import GraphError
from convsync.simulator.limits import Blocks, PageLimits
from convsync.simulator.rules import GraphRules


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
    assert limits.usage() == []


def test_one_call_for_many_ids_counts_as_many() -> None:
    limits = PageLimits(2, clock=Clock())
    assert limits.check(2) is None
    assert limits.check() is not None


def test_usage_rises_and_ends_in_a_block_that_calls_prolong() -> None:
    clock = Clock()
    limits = PageLimits(0, 100, clock=clock)
    drive(limits, clock, [1.0] * 9)
    assert limits.usage() == [], "little use shows no header"
    drive(limits, clock, [1.0] * 41)
    (half,) = limits.usage()
    assert (half["type"], half["call_count"], half["estimated_time_to_regain_access"]) == ("messenger", 50, 0)
    assert not any(drive(limits, clock, [1.0] * 50))
    refused = limits.check()
    assert refused is not None
    assert refused.code == 80006
    (blocked,) = limits.usage()
    assert blocked["call_count"] >= 100
    first_wait = blocked["estimated_time_to_regain_access"]
    assert 50 <= first_wait <= 60
    drive(limits, clock, [30.0] * 60)
    (later,) = limits.usage()
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


def test_a_block_ends_and_grows_with_each_call_made_into_it() -> None:
    clock = Clock()
    blocks = Blocks(clock)
    blocks.begin("1", named("messenger_limit"), 60, 10)
    assert blocks.check("2") is None
    clock.now += 59
    refused = blocks.check("1")
    assert refused is not None
    assert refused.code == 80006
    clock.now += 2
    assert blocks.check("1") is not None, "the call before has moved the end"
    clock.now += 20
    assert blocks.check("1") is None


def test_a_block_tells_the_minutes_that_are_left() -> None:
    clock = Clock()
    blocks = Blocks(clock)
    blocks.begin("1", named("messenger_limit"), 600, 90)
    told = blocks.usage("1")
    assert told is not None
    assert (told["type"], told["call_count"], told["estimated_time_to_regain_access"]) == (
        "messenger",
        100,
        10,
    )
    blocks.check("1")
    longer = blocks.usage("1")
    assert longer is not None
    assert (longer["call_count"], longer["estimated_time_to_regain_access"]) == (101, 12)
    clock.now += 690
    assert blocks.usage("1") is None


@pytest.mark.parametrize(
    ("name", "code", "status", "header"),
    [
        ("app_limit", 4, 403, "X-App-Usage"),
        ("user_limit", 17, 400, "X-App-Usage"),
        ("page_limit", 32, 400, "pages"),
        ("call_rate", 613, 400, "messenger"),
        ("pages_limit", 80001, 400, "pages"),
        ("messenger_limit", 80006, 400, "messenger"),
    ],
)
async def test_a_blocked_page_is_refused_and_told_with_every_answer(
    name: str, code: int, status: int, header: str
) -> None:
    async with reading(pages=default_pages(2)) as reader:
        other = reader.simulator.config.pages[1]
        reader.simulator.faults.add("/conversations", "block", times=1, name=name, seconds=600, grow=60)
        answers = [await reader.call(reader.list), await reader.call("me")]
        for got, document, headers in answers:
            assert (got, document["error"]["code"]) == (status, code)
            if header == "X-App-Usage":
                assert json.loads(headers["X-App-Usage"])["call_count"] >= 100
                assert "X-Business-Use-Case-Usage" not in headers
            else:
                (usage,) = json.loads(headers["X-Business-Use-Case-Usage"])[reader.page_id]
                assert usage["type"] == header
                assert usage["call_count"] >= 100
                assert 10 <= usage["estimated_time_to_regain_access"] <= 11
        log = list(reader.simulator.calls.calls)
        assert [one.blocked for one in log] == [False, True]
        # The codes of the app hold for all its Pages, the others for one.
        elsewhere = (await reader.call(f"{other.page_id}/conversations", access_token=other.token))[0]
        assert elsewhere == (status if code in (4, 17) else 200)
        reader.simulator.faults.clear()
        assert (await reader.call(reader.list))[0] == 200


async def test_several_ids_count_as_several_calls() -> None:
    async with reading(calls_per_second=2.0) as reader:
        ids = ",".join(one.thread_id for one in reader.simulator.population.conversations[:2])
        assert (await reader.call("", ids=ids))[0] == 200
        assert (await reader.call("", ids=ids))[1]["error"]["code"] == 613
    async with reading() as reader:
        error = await reader.error("", ids=",".join(str(number) for number in range(51)))
        assert "Maximum: 50" in error["message"]


async def test_tokens_of_people_and_apps_have_an_allowance_of_their_own() -> None:
    async with reading(graph=GraphRules(app_hourly_calls=20)) as reader:
        token = reader.simulator.config.graph.user_token
        percents = []
        for _ in range(20):
            status, _, headers = await reader.call("me", access_token=token)
            assert status == 200
            percents.append(json.loads(headers.get("X-App-Usage", "{}")).get("call_count"))
        assert percents == [None] * 9 + list(range(50, 101, 5))
        status, document, headers = await reader.call("me", access_token=token)
        assert (status, document["error"]["code"]) == (403, 4)
        assert json.loads(headers["X-App-Usage"])["call_count"] > 100
        assert (await reader.call(reader.list))[0] == 200, "a Page's token is not under it"


async def test_a_person_has_an_allowance_of_their_own() -> None:
    async with reading(graph=GraphRules(user_hourly_calls=3)) as reader:
        config = reader.simulator.config
        for _ in range(3):
            assert (await reader.call("me/accounts", access_token=config.graph.user_token))[0] == 200
        error = await reader.error("me/accounts", access_token=config.graph.user_token)
        assert (error["http"], error["code"]) == (400, 17)
        assert (await reader.call("debug_token", input_token="x", access_token=config.app_token))[0] == 200
        assert (await reader.call("me"))[0] == 200, "the Page's token is not the person's"


async def test_calls_about_a_page_have_an_allowance_and_its_end_depends_on_the_token() -> None:
    async with reading(pages=default_pages(2), graph=GraphRules(pages_hourly_calls=20)) as reader:
        simulator = reader.simulator
        user_token = simulator.config.graph.user_token
        psid = next(one.psid for one in simulator.population.conversations if one.kind == "normal")
        paths = ("me", psid, "me/subscribed_apps", reader.page_id)
        percents = []
        for number in range(12):
            status, _, headers = await reader.call(paths[number % 4])
            assert status == 200
            usage = json.loads(headers.get("X-Business-Use-Case-Usage", "{}")).get(reader.page_id)
            percents.append(usage and usage[0]["call_count"])
            assert not usage or usage[0]["type"] == "pages"
        assert percents == [None] * 9 + [50, 55, 60]
        # The person's calls about the Page count as well, singly, and those of Messenger do not.
        ids = ",".join(page.page_id for page in simulator.config.pages)
        for _ in range(8):
            assert (await reader.call("", ids=ids, access_token=user_token))[0] == 200
            assert (await reader.call(reader.list))[0] == 200

        status, document, headers = await reader.call(reader.page_id, access_token=user_token)
        assert (status, document["error"]["code"]) == (400, 32)
        assert json.loads(headers["X-Page-Usage"])["call_count"] > 100
        for path in paths:
            status, document, headers = await reader.call(path)
            assert (status, document["error"]["code"]) == (400, 80001)
        kinds = {one["type"]: one for one in json.loads(headers["X-Business-Use-Case-Usage"])[reader.page_id]}
        assert kinds["pages"]["call_count"] == 125, "refused calls count too"
        assert 59 <= kinds["pages"]["estimated_time_to_regain_access"] <= 60
        assert (await reader.call(reader.list))[0] == 200, "Messenger has an allowance of its own"
        assert (await reader.call("me", access_token=simulator.config.pages[1].token))[0] == 200
        assert [one.refused for one in simulator.calls.calls][-7:] == [*[True] * 5, False, False]
