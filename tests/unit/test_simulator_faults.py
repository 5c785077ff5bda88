"""Planted faults: each hits the calls it was planted for, and only as often."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig
from convsync.simulator.faults import FaultError, Faults


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    config = SimulatorConfig(port=0, conversations=30, messages=3, calls_per_second=0)
    async with Simulator(config) as one:
        yield one


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


async def plant(simulator: Simulator, session: aiohttp.ClientSession, **fault: Any) -> tuple[int, Any]:
    async with session.post(f"{simulator.url}/_sim/faults", json=fault) as answer:
        return answer.status, await answer.json()


async def call(
    simulator: Simulator, session: aiohttp.ClientSession, path: str | None = None
) -> tuple[int, bytes]:
    target = path if path is not None else f"{simulator.page.page_id}/conversations"
    query = {"access_token": simulator.page.token}
    async with session.get(f"{simulator.url}/v26.0/{target}", params=query) as answer:
        return answer.status, await answer.read()


async def test_an_error_hits_the_calls_after_the_spared_ones(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    status, planted = await plant(
        simulator,
        session,
        match="/conversations",
        action="error",
        after=1,
        times=2,
        code=2,
        message="(#2) Service temporarily unavailable",
        is_transient=True,
    )
    assert status == 201
    assert planted["id"] == 1
    answers = [await call(simulator, session) for _ in range(5)]
    assert [status for status, _ in answers] == [200, 503, 503, 200, 200]
    error = json.loads(answers[1][1])["error"]
    assert (error["code"], error["is_transient"]) == (2, True)
    assert (await call(simulator, session, "me"))[0] == 200
    async with session.get(f"{simulator.url}/_sim/faults") as answer:
        assert (await answer.json())["faults"][0]["hits"] == 2
    assert [one.fault for one in simulator.calls.calls] == [None, 1, 1, None, None, None]


async def test_a_fault_can_be_aimed_at_one_page_of_a_walk(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    simulator.faults.add(r"GET .*/conversations\?.*after=", "error", code=190, subcode=460)
    _, first = await call(simulator, session)
    async with session.get(json.loads(first)["paging"]["next"]) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["error_subcode"] == 460


@pytest.mark.parametrize(
    ("action", "params", "status", "body"),
    [
        ("status", {"http": 500, "body": "oops"}, 500, b"oops"),
        ("html", {}, 502, b"<!DOCTYPE html>"),
        ("html", {"http": 200}, 200, b"<!DOCTYPE html>"),
        ("empty", {}, 200, b""),
    ],
)
async def test_answers_that_are_not_graphs(
    simulator: Simulator,
    session: aiohttp.ClientSession,
    action: str,
    params: dict[str, Any],
    status: int,
    body: bytes,
) -> None:
    await plant(simulator, session, match=".*", action=action, **params)
    got = await call(simulator, session)
    assert got[0] == status
    assert got[1].startswith(body)
    assert bool(got[1]) == bool(body)


async def test_a_reset_connection_and_a_truncated_answer_break_the_client(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    # The client library repeats a GET once on its own when the connection breaks before any answer.
    await plant(simulator, session, match=".*", action="reset", times=2)
    with pytest.raises(aiohttp.ClientError):
        await call(simulator, session)
    await plant(simulator, session, match=".*", action="truncate", times=1)
    with pytest.raises(aiohttp.ClientPayloadError):
        await call(simulator, session)
    assert (await call(simulator, session))[0] == 200


async def test_a_trickled_answer_never_pauses_for_long_and_takes_its_time(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    whole = (await call(simulator, session))[1]
    simulator.faults.add("/conversations", "trickle", times=1, seconds=0.4)
    started = time.monotonic()
    url = f"{simulator.url}/v26.0/{simulator.page.page_id}/conversations"
    pieces: list[bytes] = []
    async with session.get(url, params={"access_token": simulator.page.token}) as answer:
        assert answer.status == 200
        begun = time.monotonic() - started
        pieces = [piece async for piece in answer.content.iter_any()]
    assert b"".join(pieces) == whole
    assert len(pieces) > 5
    assert begun < 0.3 < time.monotonic() - started


async def test_a_delay_answers_late_and_a_hang_does_not_hold_up_the_end() -> None:
    config = SimulatorConfig(port=0, conversations=3, calls_per_second=0)
    simulator = await Simulator(config).start()
    async with aiohttp.ClientSession() as session:
        simulator.faults.add(".*", "delay", times=1, seconds=0.2)
        started = time.monotonic()
        assert (await call(simulator, session))[0] == 200
        assert time.monotonic() - started >= 0.2
        simulator.faults.add(".*", "hang")
        hanging = asyncio.create_task(call(simulator, session))
        await asyncio.sleep(0.05)
        assert not hanging.done()
        started = time.monotonic()
        await simulator.stop()
        assert time.monotonic() - started < 3
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_too_much_data_fails_until_less_is_asked_for(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    simulator.faults.add("/conversations", "reduce_data", nodes=100)
    path = f"{simulator.page.page_id}/conversations"
    for limit, status in (("50", 500), ("50", 500), ("25", 500), ("12", 200)):
        query = {"access_token": simulator.page.token, "fields": "id,messages.limit(5){id}", "limit": limit}
        async with session.get(f"{simulator.url}/{path}", params=query) as answer:
            assert answer.status == status
            body = await answer.json()
        if status == 500:
            assert body["error"]["code"] == 1
            assert "reduce the amount of data" in body["error"]["message"]


@pytest.mark.parametrize("hidden", [False, True])
async def test_too_much_data_is_told_in_one_text_or_the_other(
    simulator: Simulator, session: aiohttp.ClientSession, hidden: bool
) -> None:
    simulator.faults.add("", "reduce_data", nodes=100, hidden=hidden)
    token = simulator.page.token
    thread_id = simulator.population.conversations[0].thread_id
    page_id = simulator.page.page_id
    for path, query, status in (
        (f"{page_id}/conversations", {"fields": "messages.limit(3)"}, 200),
        (f"{page_id}/conversations", {"fields": "messages.limit(4)"}, 500),
        (f"{page_id}/conversations", {"fields": "messages.limit(4)", "limit": "20"}, 200),
        (f"{thread_id}/messages", {"limit": "101"}, 500),
        (thread_id, {"fields": "messages.limit(100)"}, 500),
        (thread_id, {"fields": "messages.limit(99)"}, 200),
        ("me", {"fields": "conversations.limit(10){messages.limit(10)}"}, 500),
        ("", {"ids": f"{thread_id},{thread_id}", "fields": "messages.limit(50)"}, 500),
    ):
        async with session.get(f"{simulator.url}/{path}", params={"access_token": token, **query}) as answer:
            assert answer.status == status, query
            if status == 500:
                error = (await answer.json())["error"]
                assert ("reduce" in error["message"]) != hidden
                assert ("reduce" in error.get("error_user_msg", "")) == hidden


async def test_empty_and_short_pages_lose_nothing_for_a_client_that_follows_next(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    simulator.faults.add("/conversations", "empty_page", times=2)
    simulator.faults.add("/conversations", "short_page", after=1, times=2, limit=3)
    sizes, ids = [], []
    status, body = await call(simulator, session)
    assert status == 200
    page = json.loads(body)
    while True:
        sizes.append(len(page["data"]))
        ids += [one["id"] for one in page["data"]]
        if "next" not in page.get("paging", {}):
            break
        async with session.get(page["paging"]["next"]) as answer:
            page = await answer.json()
    assert sizes == [0, 0, 25, 3, 2]
    assert sorted(ids) == sorted(one.thread_id for one in simulator.population.conversations)


async def test_faults_may_be_planted_by_the_config() -> None:
    planted = ({"match": "/conversations", "action": "status", "http": 500, "times": 1},)
    config = SimulatorConfig(port=0, conversations=3, calls_per_second=0, faults=planted)
    async with Simulator(config) as simulator, aiohttp.ClientSession() as session:
        assert [(await call(simulator, session))[0] for _ in range(2)] == [500, 200]


async def test_faults_are_cleared(simulator: Simulator, session: aiohttp.ClientSession) -> None:
    await plant(simulator, session, match=".*", action="error")
    assert (await call(simulator, session))[0] == 500
    async with session.delete(f"{simulator.url}/_sim/faults") as answer:
        assert await answer.json() == {"faults": []}
    assert (await call(simulator, session))[0] == 200


async def test_a_fault_that_cannot_be_planted_is_refused(
    simulator: Simulator, session: aiohttp.ClientSession
) -> None:
    for bad in (
        {"match": ".*", "action": "explode"},
        {"match": "(", "action": "error"},
        {"match": ".*"},
        {"match": ".*", "action": "error", "times": "many"},
        {"match": ".*", "action": "error", "fault_id": 1, "code": "x", "after": None},
        {"action": "error", "code": "x"},
        {"action": "error", "times": -1},
        {"action": "error", "after": -1},
        {"action": "delay", "secnds": 3},
        {"action": "delay", "seconds": "abc"},
        {"action": "trickle", "seconds": -1},
        {"action": "too_deep", "items": "x"},
        {"action": "html", "http": 502.5},
        {"action": "reduce_data", "hidden": "yes"},
        {"action": "reset", "seconds": 1},
    ):
        assert (await plant(simulator, session, **bad))[0] == 400, bad
    with pytest.raises(FaultError):
        Faults().add("(", "error")
