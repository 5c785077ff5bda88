"""Four services, three Pages, one database: the rate of each Page is kept by all of them together (flaw 6).

Every grant, block and hold of a run is noted by triggers of this test, as the database makes it; the
simulator's log tells what came of it. What judges them is first shown to convict.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from psycopg.rows import dict_row

from convsync.simulator.checker import compare, fetch_truth
from convsync.simulator.config import DEFAULT_APP_SECRET, DEFAULT_VERIFY_TOKEN, default_pages
from convsync.tokens import TokenBox
from faults.processes import API_KEY, Process, commands, until
from sync.world import World, open_world

RATE = 2
PAGES = default_pages(3)

RECORDER = """
    create schema recorded;
    create table recorded.grants (n bigint generated always as identity, page_id text, at timestamptz);
    create table recorded.blocks (page_id text, at timestamptz, until timestamptz);
    create table recorded.holds (
      n bigint generated always as identity, run_id bigint, fence bigint, owner text, pages bigint,
      at timestamptz, taken_over boolean, lease_before timestamptz
    );
    create function recorded.note_budget() returns trigger language plpgsql security definer as $$
    begin
      if new.calls > old.calls then
        insert into recorded.grants (page_id, at) values (new.page_id, new.grants[cardinality(new.grants)]);
      end if;
      if new.blocked_until > coalesce(old.blocked_until, '-infinity') then
        insert into recorded.blocks values (new.page_id, new.updated_at, new.blocked_until);
      end if;
      return null;
    end $$;
    create function recorded.note_run() returns trigger language plpgsql security definer as $$
    begin
      insert into recorded.holds (run_id, fence, owner, pages, at, taken_over, lease_before)
      values (new.run_id, new.fence, new.owner, new.pages_applied, clock_timestamp(),
        old.status = 'running' and new.fence > old.fence, old.lease_expires_at);
      return null;
    end $$;
    create trigger note after update on convsync.call_budgets
      for each row execute function recorded.note_budget();
    create trigger note after update on convsync.sync_runs
      for each row execute function recorded.note_run();
"""


@dataclass(frozen=True, slots=True)
class Grant:
    page_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Block:
    page_id: str
    at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """A write to a run: by whom, under which fence, how many pages were applied by then."""

    run_id: int
    fence: int
    owner: str | None
    pages: int
    at: datetime
    taken_over: bool
    lease_before: datetime | None


def more_than(allowed: int, seconds: float, moments: Iterable[float]) -> list[str]:
    """Each time that more than `allowed` of the moments are within less than `seconds`."""
    ordered = sorted(moments)
    return [
        f"{allowed + 1} within {last - first:.3f} s, at {first:.3f}"
        for first, last in zip(ordered, ordered[allowed:], strict=False)
        if last - first < seconds
    ]


def of_grants(grants: list[Grant], blocks: list[Block]) -> list[str]:
    """What the database granted and had no right to."""
    found = []
    for page_id in {grant.page_id for grant in grants}:
        moments = [grant.at for grant in grants if grant.page_id == page_id]
        # Exact, as the database's own times are.
        found += [
            f"{page_id}: {RATE + 1} grants in {last - first}, at {first}"
            for first, last in zip(sorted(moments), sorted(moments)[RATE:], strict=False)
            if last - first < timedelta(seconds=1)
        ]
        found += [
            f"{page_id}: granted at {moment}, blocked from {block.at} to {block.until}"
            for block in blocks
            if block.page_id == page_id
            for moment in moments
            if block.at < moment < block.until
        ]
    return found


def of_arrivals(log: Iterable[tuple[str, float]]) -> list[str]:
    """What came too fast by the simulator's log, which is as generous as a network needs."""
    by_page: dict[str, list[float]] = {}
    for page_id, at in log:
        by_page.setdefault(page_id, []).append(at)
    return [
        f"{page_id}: {complaint}"
        for page_id, moments in by_page.items()
        for complaint in more_than(RATE, 0.8, moments) + more_than(21, 10.0, moments)
    ]


def of_holds(holds: list[Hold]) -> list[str]:
    """Runs that two processes carried at a time."""
    found = []
    for run_id in {hold.run_id for hold in holds}:
        own = [hold for hold in holds if hold.run_id == run_id]
        owners: dict[int, set[str]] = {}
        for hold in own:
            if hold.owner is not None:
                owners.setdefault(hold.fence, set()).add(hold.owner)
            if hold.taken_over and (hold.lease_before is None or hold.at < hold.lease_before):
                found.append(
                    f"run {run_id} was taken at {hold.at} from who held it until {hold.lease_before}"
                )
        found += [f"run {run_id}: fence {fence} is of {who}" for fence, who in owners.items() if len(who) > 1]
        found += [
            f"run {run_id}: fence {later.fence} wrote after {earlier.fence}"
            for earlier, later in pairwise(own)
            if later.fence < earlier.fence or later.pages < earlier.pages
        ]
    return found


# -- the checker convicts

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seconds(moment: float) -> datetime:
    return NOON + timedelta(seconds=moment)


def test_a_double_grant_a_block_not_kept_and_a_hasty_log_are_convicted() -> None:
    honest = [Grant("1", seconds(moment)) for moment in (0, 0.5, 1, 1.5, 2)]
    others = [Grant("2", seconds(moment)) for moment in (0, 0.1, 1.2)]
    block = Block("1", seconds(2.5), seconds(9))
    assert of_grants([*honest, *others, Grant("2", seconds(5)), Grant("1", seconds(9))], [block]) == []
    assert len(of_grants([*honest, Grant("1", seconds(1.7))], [block])) == 2
    assert len(of_grants([*honest, Grant("1", seconds(8.9))], [block])) == 1
    assert of_arrivals([("1", 0.0), ("2", 0.1), ("1", 0.2), ("1", 0.8)]) == []
    assert len(of_arrivals([("1", 0.0), ("1", 0.2), ("1", 0.79)])) == 1
    evenly = [("1", number * 0.48) for number in range(21)]
    assert of_arrivals(evenly) == []
    assert len(of_arrivals([*evenly, ("1", 9.99)])) == 1


def test_two_processes_at_one_run_are_convicted() -> None:
    first = Hold(1, 1, "a", 1, seconds(1), False, seconds(4))
    second = Hold(1, 2, "b", 1, seconds(5), True, seconds(4))
    assert of_holds([first, second]) == []
    assert of_holds([first, Hold(1, 1, "b", 2, seconds(2), False, seconds(4))])
    assert of_holds([first, Hold(1, 2, "b", 1, seconds(3), True, seconds(4))])
    assert of_holds([first, second, Hold(1, 1, "a", 2, seconds(6), False, seconds(8))])


async def test_a_grant_that_was_forgotten_is_seen_all_the_same(database: Any) -> None:
    """A budget that forgets what it granted, as one per process would: a third call is noted."""
    async with await psycopg.AsyncConnection.connect(
        database.owner_url, autocommit=True, row_factory=dict_row
    ) as owner:
        await owner.execute(RECORDER)
        await owner.execute("select set_config('convsync.now', '2026-03-01T12:00:00Z', false)")
        acquire = "select * from convsync_api.acquire_call('1', 'live')"
        for _ in range(3):
            await owner.execute(acquire)
        assert of_grants(*await recorded(owner)) == []
        await owner.execute("update convsync.call_budgets set grants = '{}'")
        await owner.execute(acquire)
        assert len(of_grants(*await recorded(owner))) == 1


async def recorded(owner: psycopg.AsyncConnection[Any]) -> tuple[list[Grant], list[Block]]:
    """Every grant and block of a Page there was."""
    grants = await (await owner.execute("select page_id, at from recorded.grants order by n")).fetchall()
    blocks = await (await owner.execute("select page_id, at, until from recorded.blocks")).fetchall()
    return [Grant(**row) for row in grants], [Block(**row) for row in blocks]


# -- four services


async def begin(service: str, page_id: str) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        answer = await session.post(f"{service}api/conversations/sync", json={"page_id": page_id})
        assert answer.status == 202, await answer.text()


async def owner_of(world: World, page_id: str) -> str:
    return str(
        await world.value("select owner from convsync.sync_runs where page_id = %(page)s", page=page_id)
    )


def calls_of(world: World, page_id: str) -> int:
    return sum(call.page_id == page_id for call in world.simulator.calls.calls)


async def until_calls(world: World, page_id: str, count: int) -> None:
    async def more() -> bool:
        return calls_of(world, page_id) >= count

    await until(more, f"call {count} of {page_id}")


@pytest.mark.faults
async def test_four_services_keep_the_rate_of_three_pages_and_survive_two_kills(
    database: Any, tmp_path: Path
) -> None:
    """New people write all the while, each to another service, so that all four call for each Page."""
    inbox: dict[str, Any] = {
        "pages": PAGES,
        "conversations": 60,
        "messages": 8.0,
        "max_conversations_per_call": 3,
        "max_messages_per_call": 10,
        "calls_per_second": float(RATE),
    }
    first, second, third = (page.page_id for page in PAGES)
    async with open_world(database, **inbox) as world:
        await world.owner.execute(RECORDER)
        # Graph refuses one call of the second Page without saying how long: ten seconds.
        world.simulator.faults.add(f"{second}/conversations", "error", code=613, http=403, after=9, times=1)
        async with commands(
            world,
            tmp_path,
            CONVSYNC_CALLS_PER_SECOND=str(RATE),
            CONVSYNC_LEASE_SECONDS="3",
            CONVSYNC_APP_SECRET=DEFAULT_APP_SECRET,
            CONVSYNC_VERIFY_TOKEN=DEFAULT_VERIFY_TOKEN,
            CONVSYNC_SYNC_INTERVAL="0",
            CONVSYNC_RECONCILE_INTERVAL="0",
        ) as running:
            box = TokenBox(running.environment["CONVSYNC_TOKEN_KEY"])
            for page in PAGES:
                world.simulator.webhooks.subscribe(page.page_id)
                sealed = box.seal(page.page_id, page.token)
                await world.store.add_page(page_id=page.page_id, token_sealed=sealed, token_key_id=box.key_id)
            services: dict[str, Process] = {}
            for _ in range(4):
                process = await running.serve()
                services[(await process.line("convsync ")).split()[-1]] = process
            addresses = list(services)

            async def people_write(seed: int) -> None:
                """A new person to each Page, told to the next service that lives."""
                for number, page in enumerate(PAGES):
                    address = addresses[(seed + number) % len(addresses)]
                    world.simulator.webhooks.url = f"{address}api/webhook"
                    report = await world.simulator.traffic(
                        1, seed=seed, kinds=["new_person"], page_id=page.page_id
                    )
                    assert report.delivered == 1

            async def carrier(page_id: str) -> str:
                """The address of the service that carries the Page's run."""
                owner = await owner_of(world, page_id)
                (found,) = [where for where in addresses if f":{services[where].pid}:" in owner]
                return found

            async def killed(page_id: str) -> None:
                dead = await carrier(page_id)
                await services[dead].kill()
                addresses.remove(dead)

                async def taken_over() -> bool:
                    return f":{services[dead].pid}:" not in await owner_of(world, page_id)

                await until(taken_over, f"another service to carry the run of {page_id}")

            for address, page in zip(addresses, PAGES, strict=False):
                await begin(address, page.page_id)
            for seed in range(1, 4):
                await until_calls(world, first, 4 * seed)
                await people_write(seed)
            await killed(first)
            for seed in range(4, 7):
                await until_calls(world, third, 4 * seed)
                await people_write(seed)
            await killed(second)
            await people_write(7)

            async def ended() -> bool:
                open_runs = "select count(*) from convsync.sync_runs where status in ('running', 'paused')"
                return not await world.value(open_runs)

            await until(ended, "the end of all runs")
            for address in addresses:
                services[address].signal(signal.SIGTERM)
                assert await services[address].wait() == 0, services[address].errors()

        runs = await world.rows("select page_id, status, fence from convsync.sync_runs order by page_id")
        assert [(run["page_id"], run["status"]) for run in runs] == [
            (page_id, "succeeded") for page_id in (first, second, third)
        ]
        assert runs[0]["fence"] > 1 < runs[1]["fence"]
        for page_id in (first, second, third):
            verdict = await compare(world.owner, fetch_truth(world.simulator.url, page_id), page_id)
            assert verdict.clean, verdict.examples

        grants, blocks = await recorded(world.owner)
        holds = [Hold(**row) for row in await world.rows(HOLDS)]
        log = list(world.simulator.calls.calls)
        assert of_grants(grants, blocks) == []
        assert of_holds(holds) == []
        assert of_arrivals((str(call.page_id), call.at) for call in log) == []
        assert not any(call.refused or call.blocked for call in log)
        # Nobody called without a grant, and only the killed ones did not make a call that was granted.
        assert len(grants) == await world.value("select sum(calls) from convsync.call_budgets")
        assert 0 <= len(grants) - len(log) <= 2 * 3
        assert [block.page_id for block in blocks] == [second]
        assert len({hold.owner for hold in holds}) >= 3
        used = {page_id: rate_used(grants, page_id) for page_id in (first, third)}
        print(f"{len(grants)} grants, {len(log)} calls, calls a second {used}, fences {runs}")  # noqa: T201


HOLDS = "select run_id, fence, owner, pages, at, taken_over, lease_before from recorded.holds order by n"


def rate_used(grants: list[Grant], page_id: str) -> float:
    moments = [grant.at for grant in grants if grant.page_id == page_id]
    return round((len(moments) - 1) / (max(moments) - min(moments)).total_seconds(), 2)
