"""kill -9 of real service processes in the middle of a sync, two processes on one database, and zombies.

The simulator runs in the test, so what each process asked of it is seen here and survives the process.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest

from faults.processes import API_KEY, Commands, Process, commands, until
from sync.world import World, open_world

# Many small answers, none of them at once: so there is a middle to be killed in.
INBOX: dict[str, Any] = {
    "conversations": 80,
    "messages": 12.0,
    "max_conversations_per_call": 2,
    "max_messages_per_call": 10,
}
DELAY = 0.01


async def undisturbed_calls(server: Any, template: str) -> int:
    """The Graph calls of one sync of the same inbox that nobody disturbs."""
    with server.fresh_database(template) as another:
        async with open_world(another, **INBOX) as world:
            outcome = await world.sync()
            assert outcome.status == "succeeded"
            assert (await world.verdict()).clean
            return world.calls()


@pytest.fixture
async def world(database: Any) -> AsyncIterator[World]:
    async with open_world(database, **INBOX) as world:
        world.simulator.faults.add("", "delay", seconds=DELAY)
        yield world


async def lease_is_over(world: World) -> bool:
    return bool(
        await world.value(
            "select bool_and(coalesce(lease_expires_at < clock_timestamp(), true)) from convsync.sync_runs"
        )
    )


async def cursors(world: World) -> dict[tuple[str, str], str | None]:
    """Where each open list and thread would go on."""
    found = await world.rows(
        "select kind, thread_id, last_cursor from convsync.sync_cursors where not completed and not failed"
    )
    return {(row["kind"], row["thread_id"]): row["last_cursor"] for row in found}


def place(call: Any) -> tuple[tuple[str, str], str | None]:
    """The cursor a logged call asked to go on at."""
    after = parse_qs(call.query).get("after", [None])[0]
    if call.path.endswith("/conversations"):
        return ("list", ""), after
    return ("thread", call.path.split("/")[-2]), after


async def killed_and_resumed(
    world: World, running: Commands, kills: int, seed: int, undisturbed: int, *, serve: bool
) -> None:
    """Kill at seeded moments, each time start again; then everything is there, at little extra cost."""
    chance = random.Random(seed)  # noqa: S311 - made to be predictable
    log = world.simulator.calls.calls
    moments = sorted(chance.sample(range(2, undisturbed - 4), kills))
    process = await begin(world, running, first=True, serve=serve)
    await until_longer(log, 0, process)
    (begun,) = await world.rows("select run_id from convsync.sync_runs")
    for moment in moments:
        await until_longer(log, moment - 1, process)
        # Anywhere between two calls: before the answer, in the transaction, after it.
        await asyncio.sleep(chance.random() * DELAY)
        await process.kill()
        await until(lambda: lease_is_over(world), "the end of the dead process's lease")
        (row,) = await world.rows("select run_id, status from convsync.sync_runs")
        assert row == {**begun, "status": "running"}
        saved, made = await cursors(world), len(log)

        process = await begin(world, running, first=False, serve=serve)
        await until_longer(log, made, process)
        resumed_at, cursor = place(log[made])
        assert saved[resumed_at] == cursor

    async def ended() -> bool:
        return await world.value("select status from convsync.sync_runs") != "running"

    await until(ended, "the end of the run")
    if serve:
        process.signal(signal.SIGTERM)
    assert await process.wait() == 0, process.errors()
    total = len(log)
    assert await world.rows("select run_id, status from convsync.sync_runs") == [
        {**begun, "status": "succeeded"}
    ]
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples
    print(f"{kills} kills at calls {moments}: {total} calls, undisturbed {undisturbed}")  # noqa: T201
    assert total <= 1.10 * undisturbed + 3 * kills
    await running.verify()


async def until_longer(log: Any, made: int, process: Process) -> None:
    """Return when the simulator has got more than `made` calls; the process has to live to see it."""

    async def more() -> bool:
        assert process.returncode is None, process.errors()
        return len(log) > made

    await until(more, f"call {made + 1}")


async def begin(world: World, running: Commands, *, first: bool, serve: bool) -> Process:
    """A new process that carries the run: `convsync sync`, or a service that resumes it by itself."""
    if not serve:
        return await running.sync()
    process = await running.serve()
    if first:
        address = (await process.line("convsync ")).split()[-1]
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with aiohttp.ClientSession(headers=headers) as client:
            answer = await client.post(f"{address}api/conversations/sync", json={"page_id": world.page_id})
            assert answer.status == 202, await answer.text()
    return process


async def test_killed_sync_goes_on_at_its_saved_cursors(
    world: World, tmp_path: Path, server: Any, template: str
) -> None:
    """`convsync sync`, killed three times and called again each time."""
    undisturbed = await undisturbed_calls(server, template)
    async with commands(world, tmp_path) as running:
        await killed_and_resumed(world, running, 3, 7, undisturbed, serve=False)


async def test_killed_service_is_resumed_by_the_next_one(
    world: World, tmp_path: Path, server: Any, template: str
) -> None:
    """`convsync serve`: nobody asks for the sync again, the next process finds it."""
    undisturbed = await undisturbed_calls(server, template)
    async with commands(world, tmp_path) as running:
        await killed_and_resumed(world, running, 2, 11, undisturbed, serve=True)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [1, 2])
async def test_ten_kills_at_random_moments(
    world: World, tmp_path: Path, server: Any, template: str, seed: int
) -> None:
    undisturbed = await undisturbed_calls(server, template)
    async with commands(world, tmp_path) as running:
        await killed_and_resumed(world, running, 10, seed, undisturbed, serve=seed == 2)


async def test_two_processes_carry_one_run_one_at_a_time(world: World, tmp_path: Path) -> None:
    """One does it; the other is told which run is at work and exits 1, having called nobody."""
    async with commands(world, tmp_path) as running:
        first = await running.sync()
        await until_longer(world.simulator.calls.calls, 2, first)
        # Answers come a second late until the second command has ended, however long that takes to start.
        world.simulator.faults.clear()
        world.simulator.faults.add("", "delay", seconds=1.0)
        second = await running.sync()
        code, out = await second.output()
        world.simulator.faults.clear()
        assert (code, out) == (1, b"")
        (run,) = await world.rows("select run_id, status, fence from convsync.sync_runs")
        assert (run["status"], run["fence"]) == ("running", 1)
        assert f"run {run['run_id']}" in second.errors()
        assert "Traceback" not in second.errors()
        code, out = await first.output()
        assert code == 0, first.errors()
    assert await world.value("select calls from convsync.sync_runs") == world.calls()
    assert (await world.verdict()).clean


async def test_two_services_on_one_database_share_a_run_by_turns(world: World, tmp_path: Path) -> None:
    """Killed under one, the run is carried on by the other that was there all the time."""
    log = world.simulator.calls.calls
    async with commands(world, tmp_path) as running:
        standby = await running.serve()
        await standby.line("convsync ")
        carrier = await begin(world, running, first=True, serve=True)
        await until_longer(log, 10, carrier)
        (before,) = await world.rows("select owner, fence from convsync.sync_runs")
        assert f":{carrier.pid}:" in before["owner"]
        await carrier.kill()

        async def taken_over() -> bool:
            (now,) = await world.rows("select owner, status from convsync.sync_runs")
            return f":{standby.pid}:" in (now["owner"] or "") or now["status"] == "succeeded"

        await until(taken_over, "the other service to take over")

        async def ended() -> bool:
            return await world.value("select status from convsync.sync_runs") == "succeeded"

        await until(ended, "the end of the run")
        standby.signal(signal.SIGTERM)
        assert await standby.wait() == 0, standby.errors()
    assert await world.value("select fence from convsync.sync_runs") == before["fence"] + 1 + 1
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_zombie_that_wakes_after_it_was_replaced_changes_nothing_and_stops(
    world: World, tmp_path: Path
) -> None:
    """SIGSTOP, the lease expires, another process finishes the run, SIGCONT: the fence refuses the first."""
    log = world.simulator.calls.calls
    async with commands(world, tmp_path) as running:
        zombie = await begin(world, running, first=True, serve=True)
        await until_longer(log, 8, zombie)
        zombie.signal(signal.SIGSTOP)
        await until(lambda: lease_is_over(world), "the end of the zombie's lease")
        heir = await running.sync()
        code, _ = await heir.output()
        assert code == 0, heir.errors()
        events, versions = await world.event_count(), await world.versions()
        (run,) = await world.rows("select * from convsync.sync_runs")
        assert run["status"] == "succeeded"
        budget = await world.value("select calls from convsync.call_budgets")
        made = len(log)

        zombie.signal(signal.SIGCONT)

        async def refused() -> bool:
            return "lease_lost" in zombie.errors()

        # A service: a command looks at its run, and may end before it hears of its lease.
        await until(refused, "the fence to refuse the zombie")
        zombie.signal(signal.SIGTERM)
        assert await zombie.wait() == 0, zombie.errors()
        assert len(log) == made
        assert await world.value("select calls from convsync.call_budgets") == budget
        assert await world.rows("select * from convsync.sync_runs") == [run]
        assert await world.event_count() == events
        assert await world.versions() == versions
    verdict = await world.verdict()
    assert verdict.clean, verdict.examples


async def test_terminated_service_pauses_its_run_and_the_next_one_goes_on_at_once(
    world: World, tmp_path: Path
) -> None:
    """SIGTERM is no crash: no lease has to expire, and no call is lost."""
    log = world.simulator.calls.calls
    async with commands(world, tmp_path, CONVSYNC_LEASE_SECONDS="60") as running:
        service = await begin(world, running, first=True, serve=True)
        await until_longer(log, 10, service)
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0, service.errors()
        (run,) = await world.rows("select run_id, status, reason, calls from convsync.sync_runs")
        assert (run["status"], run["reason"]) == ("paused", "shutdown")
        assert run["calls"] == len(log)
        again = await running.sync()
        code, _ = await again.output()
        assert code == 0, again.errors()
        assert await world.value("select calls from convsync.sync_runs") == len(log)
    assert (await world.verdict()).clean
