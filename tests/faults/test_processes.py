"""`serve --processes N`, with real processes: it is one service, and whoever ends keeps what was promised."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bench.shapes import deliveries
from prometheus_client.parser import text_string_to_metric_families

from convsync.database.bootstrap import Urls
from convsync.database.installer import schema_version
from convsync.facts import Message
from convsync.processes import serving, supervisor
from convsync.settings import Settings
from convsync.store import Store, create_pool
from faults.processes import API_KEY, CONVSYNC, until
from faults.promises import APP_SECRET, Running, complaints, running
from secrets_hunt import marked, marked_key

TWO = ("--processes", "2")
FOUR = ("--processes", "4")
SETTINGS = {"CONVSYNC_POOL_MAX": "3", "CONVSYNC_API_KEYS": f"test:operate:{API_KEY}"}
PEOPLE = 200
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
async def four(database: Any, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(database.service_url, tmp_path, *FOUR, **SETTINGS) as run:
        yield run


@pytest.fixture
async def two(database: Any, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(database.service_url, tmp_path, *TWO, **SETTINGS) as run:
        yield run


def workers(parent: int) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


def inodes(port: int) -> dict[str, int]:
    """The established connections to a local port: inode of the server's end, port of the client's."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port:
            found[f"socket:[{fields[9]}]"] = int(fields[2].rpartition(":")[2], 16)
    return found


def connections(pids: Iterable[int], port: int) -> dict[int, set[int]]:
    """By process, the clients' ports of the connections that it has accepted."""
    known = inodes(port)
    found: dict[int, set[int]] = {}
    for pid in pids:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        found[pid] = {known[one] for one in opened if one in known}
    return found


def port_of(run: Running) -> int:
    port = urlsplit(run.address).port
    assert port is not None
    return port


async def scraped(run: Running) -> tuple[int, Samples]:
    """The metrics, and the pid of the process that was asked for them."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        async with client.get(f"{run.address}metrics") as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert answer.connection is None or answer.connection.transport is not None
        # The connection is still open, for it is kept.
        (idle,) = (one for each in client.connector._conns.values() for one, _ in each)  # type: ignore[union-attr]
        mine = idle.transport.get_extra_info("sockname")[1]
        asked = connections(workers(run.service.pid), port_of(run))
        (pid,) = (pid for pid, clients in asked.items() if mine in clients)
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found[one.name, frozenset(one.labels.items())] = one.value
    return pid, found


def at(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def rising(found: Samples) -> Samples:
    """What never falls: counters, and what histograms count."""
    return {
        key: value for key, value in found.items() if key[0].endswith(("_total", "_count", "_sum", "_bucket"))
    }


async def test_four_processes_share_the_load_and_their_numbers_add_up_whichever_is_asked(
    four: Running,
) -> None:
    pids = workers(four.service.pid)
    assert len(pids) == 4
    load = await four.load(rate=None, people=PEOPLE, seconds=60.0, connections=64)
    await load.until_more(200, 400)
    shared = connections(pids, port_of(four))
    assert sum(len(clients) for clients in shared.values()) == 64
    assert all(shared.values()), shared
    await load.end()
    promised = len(load.promised)
    assert set(load.statuses) == {200}

    answers: dict[int, Samples] = {}
    for _ in range(200):
        pid, answers_of = await scraped(four)
        answers[pid] = answers_of
        if set(answers) == pids:
            break
    assert set(answers) == pids
    for found in answers.values():
        assert at(found, "convsync_processes") == 4
        assert at(found, "convsync_process_deaths_total") == 0
        assert at(found, "convsync_webhook_requests_total", status="200") == promised
        assert at(found, "convsync_webhook_request_duration_seconds_count") == promised
        assert at(found, "convsync_webhook_request_duration_seconds_bucket", le="+Inf") == promised
        assert at(found, "convsync_deliveries_committed_total") == promised
        assert at(found, "convsync_facts_committed_total") == promised
        assert at(found, "convsync_commit_facts_sum") == promised
        # One pool each; one database for all.
        assert at(found, "convsync_pool_connections_max") == 4 * 3
        assert at(found, "convsync_database_up") == 1
        (build,) = [value for (name, _), value in found.items() if name == "convsync_build_info"]
        assert build == 1


async def test_what_every_process_sees_is_told_once(database: Any, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    async def take(request: web.Request) -> web.Response:
        notice = await request.json()
        told.append((notice["alert"], notice["state"]))
        return web.Response(status=204)

    receiver = web.Application()
    receiver.router.add_post("/hook", take)
    ingest = "convsync_api.ingest(jsonb, text)"
    async with TestServer(receiver) as server:
        hook = {"CONVSYNC_ALERT_WEBHOOK_URL": str(server.make_url("/hook"))}
        async with running(database.service_url, tmp_path, *TWO, **SETTINGS, **hook) as run:
            with psycopg.connect(database.owner_url, autocommit=True) as owner:
                owner.execute(f"alter function {ingest} rename to _ingest_is_gone")  # type: ignore[arg-type]
                await run.load(rate=None, people=PEOPLE, seconds=120.0, connections=16)

                async def both_fire() -> bool:
                    _, found = await scraped(run)
                    return at(found, "convsync_alerts_firing", alert="event_writes_failing") == 2

                await until(both_fire, "the alert of each process")
                # Whoever still had something to tell does so at its end.
                run.service.signal(signal.SIGTERM)
                assert await run.service.wait() == 0, run.service.errors()
    assert told == [("event_writes_failing", "firing")]


async def test_a_killed_process_is_replaced_and_no_answered_delivery_is_lost(
    two: Running, database: Any
) -> None:
    load = await two.load(rate=None, people=PEOPLE, seconds=120.0, connections=64)
    await load.until_more(200, 200)
    await killed_and_replaced(two)
    await load.until_more(200, 200)
    await load.end()
    assert set(load.statuses) <= {200, 0}
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        assert complaints(owner, load.promised) == []
        row = owner.execute("select count(*) from convsync.contact_interaction_events").fetchone()
    assert row == (len(set(load.promised)),)

    # Nothing that was told is taken back: to Prometheus that would be a restart of all.
    _, before = await scraped(two)
    for deaths in (2, 3):
        await killed_and_replaced(two)
        _, found = await scraped(two)
        after = rising(found)
        fallen = {key: (was, after[key]) for key, was in rising(before).items() if after[key] < was}
        assert fallen == {}
        assert at(found, "convsync_process_deaths_total") == deaths
        assert at(found, "convsync_processes") == 2


async def killed_and_replaced(run: Running) -> None:
    """The process that has served longest is killed; return when another serves in its place."""
    before = [int(json.loads(line)["pid"]) for line in served(run)]
    victim = next(pid for pid in before if alive(pid))
    os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        return len(served(run)) == len(before) + 1

    await until(replaced, "a new process")
    now = workers(run.service.pid)
    assert victim not in now
    assert len(now) == 2


def served(run: Running) -> list[str]:
    """The lines of the log that say that a process serves."""
    return [line for line in run.service.errors().splitlines() if '"process_serves"' in line]


async def test_sighup_replaces_every_process_while_everybody_is_served(two: Running, database: Any) -> None:
    before = workers(two.service.pid)
    load = await two.load(rate=50, people=PEOPLE, seconds=120.0, connections=16)
    statuses: Counter[int] = Counter()
    done = asyncio.Event()

    async def newcomers() -> None:
        """Each on a connection of its own."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client:
            while not done.is_set():
                async with client.get(f"{two.address}healthz") as answer:
                    statuses[answer.status] += 1
                await asyncio.sleep(0.01)  # leave the machine something for those that begin

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(newcomers())
        await load.until_more(200, 50)
        _, scraped_before = await scraped(two)
        two.service.signal(signal.SIGHUP)

        async def replaced() -> bool:
            return not workers(two.service.pid) & before and '"restart_ends"' in two.service.errors()

        await until(replaced, "two new processes")
        done.set()
    await load.end()
    _, scraped_after = await scraped(two)
    assert len(workers(two.service.pid)) == 2
    assert set(statuses) == {200}
    assert set(load.statuses) <= {200, 0}
    after = rising(scraped_after)
    fallen = {key: (value, after[key]) for key, value in rising(scraped_before).items() if after[key] < value}
    assert fallen == {}
    assert at(scraped_after, "convsync_deliveries_committed_total") >= len(load.promised)
    assert at(scraped_after, "convsync_process_deaths_total") == 0
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        assert complaints(owner, load.promised) == []


def listeners(port: int) -> int:
    """How many sockets listen on the local port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(one[3] == "0A" and int(one[1].rpartition(":")[2], 16) == port for one in lines)


async def test_a_process_that_dies_again_and_again_leaves_its_connections_to_the_others(two: Running) -> None:
    steady, *_ = sorted(workers(two.service.pid))
    for deaths in range(1, 5):

        async def there() -> bool:
            return two.service.errors().count('"process_serves"') == 1 + deaths  # noqa: B023 - awaited here

        await until(there, "the next process")
        (victim,) = workers(two.service.pid) - {steady}
        os.kill(victim, signal.SIGKILL)

    async def closed() -> bool:
        return listeners(port_of(two)) == 1

    await until(closed, "its sockets are closed while it rests")
    assert workers(two.service.pid) == {steady}

    async def back() -> bool:
        return listeners(port_of(two)) == 2 and len(workers(two.service.pid)) == 2

    await until(back, "it is tried again")


async def test_a_restart_that_fails_changes_nothing_and_the_next_one_takes_what_was_mended(
    two: Running, tmp_path: Path
) -> None:
    before = workers(two.service.pid)
    wrong = tmp_path / ".env"
    wrong.write_text("CONVSYNC_GRAPH_VERSION=latest\n", encoding="utf-8")
    two.service.signal(signal.SIGHUP)

    async def refused() -> bool:
        return "a new process did not come up" in two.service.errors()

    await until(refused, "the restart fails")
    assert "CONVSYNC_GRAPH_VERSION" in two.service.errors()
    assert workers(two.service.pid) == before
    assert listeners(port_of(two)) == 2
    wrong.write_text("CONVSYNC_GRAPH_VERSION=v25.0\n", encoding="utf-8")
    two.service.signal(signal.SIGHUP)

    async def replaced() -> bool:
        now = workers(two.service.pid)
        return len(now) == 2 and not now & before

    await until(replaced, "two new processes")
    assert two.service.returncode is None


async def test_a_restart_brings_the_database_up_to_date_first_and_systemd_is_told(
    database: Any, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0convsync test " + tmp_path.name + str(os.getpid()))
        systemd.settimeout(60)
        await restarted(database, tmp_path, systemd)


async def restarted(database: Any, directory: Path, systemd: socket.socket) -> None:
    async with running(database.service_url, directory, **SETTINGS) as run:
        service = await run.start(
            *("serve", "--port", "0", "--processes", "1"),
            CONVSYNC_MIGRATE_DATABASE_URL=database.owner_url,
            NOTIFY_SOCKET="@" + systemd.getsockname()[1:].decode(),
        )
        await service.line("convsync ")
        assert await asyncio.to_thread(systemd.recv, 100) == b"READY=1"
        (before,) = workers(service.pid)
        with psycopg.connect(database.owner_url, autocommit=True) as owner:
            owner.execute("update convsync.installation set functions_hash = 'of an older release'")
            service.signal(signal.SIGHUP)

            async def ended() -> bool:
                return '"restart_ends"' in service.errors()

            await until(ended, "the restart")
            row = owner.execute("select convsync_api.schema_version()").fetchone()
        assert row == (schema_version(),)
        assert workers(service.pid) & {before} == set()
        service.signal(signal.SIGTERM)
        assert await service.wait() == 0
        assert await asyncio.to_thread(systemd.recv, 100) == b"STOPPING=1"


async def test_a_process_that_hangs_is_killed_and_replaced(
    database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_SILENT_REPORTS", 5)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.service_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CONVSYNC_TOKEN_KEY", marked_key())
    for name, value in {**SETTINGS, "CONVSYNC_PORT": "0", "CONVSYNC_PROCESSES": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    urls = Urls(database.service_url, database.owner_url)
    async with (
        serving(Settings(), urls, upgrade=False) as service,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {API_KEY}"}) as client,
    ):
        before = {pid for pid in workers(os.getpid()) if serves(pid)}
        assert len(before) == 2
        os.kill(min(before), signal.SIGSTOP)

        async def replaced() -> bool:
            # Who hangs must not keep the one that is asked from answering, whichever it is by then.
            if {pid for pid in workers(os.getpid()) if serves(pid)} & before != {max(before)}:
                return False
            async with client.get("http://{}:{}/metrics".format(*service.address)) as answer:
                text = await answer.text()
            return "convsync_process_deaths_total 1.0" in text and "convsync_processes 2.0" in text

        await until(replaced, "another process")
    assert service.clean


def serves(pid: int) -> bool:
    try:
        return b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


@pytest.mark.parametrize("arguments", [(), TWO], ids=["one process", "two"])
async def test_sigterm_under_load_commits_or_refuses_what_was_accepted_and_the_next_start_takes_the_rest(
    arguments: tuple[str, ...], database: Any, tmp_path: Path
) -> None:
    async with running(database.service_url, tmp_path, *arguments, **SETTINGS) as run:
        load = await run.load(rate=None, people=PEOPLE, seconds=120.0, connections=64)
        await load.until_more(200, 300)
        run.service.signal(signal.SIGTERM)
        # Whoever has to be killed, or to be left as they are, after their time makes this 1.
        assert await run.service.wait() == 0, run.service.errors()
        ended = time.monotonic()
        with psycopg.connect(database.owner_url, autocommit=True) as owner:
            rows = owner.execute("select message_id from convsync.contact_interaction_events").fetchall()
            stored = {row[0] for row in rows}

            await run.serves(*arguments, port=port_of(run))
            await load.until_more(200, 100)
            await load.end()
            assert complaints(owner, load.promised) == []
            row = owner.execute("select count(*) from convsync.contact_interaction_events").fetchone()
        assert row == (len(set(load.promised)),)
        assert set(load.statuses) <= {200, 503, 0}
        taken = [answer for answer in load.answers if answer.status == 200]
        promised = {answer.message_id for answer in taken if answer.at < ended}
        unheard = {answer.message_id for answer in load.answers if answer.status == 0}
        assert len(promised) >= 300
        assert promised <= stored
        assert stored - promised <= unheard


@pytest.mark.parametrize("arguments", [(), TWO], ids=["one process", "two"])
async def test_sigterm_is_obeyed_while_deliveries_wait_for_a_locked_conversation(
    arguments: tuple[str, ...], database: Any, tmp_path: Path
) -> None:
    (delivery,) = [one for one, _ in zip(deliveries(APP_SECRET, "locked", "here"), range(1), strict=False)]
    async with running(database.service_url, tmp_path, *arguments, **SETTINGS) as run:
        await first_message(database, delivery.page_id, delivery.sender_id)
        with psycopg.connect(database.owner_url) as locker:
            locker.execute("select 1 from convsync.messenger_conversations for update")
            where = urlsplit(run.address)
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            writer.write(delivery.request)

            async def waits() -> bool:
                with psycopg.connect(database.owner_url, autocommit=True) as owner:
                    row = owner.execute(
                        "select count(*) from pg_stat_activity"
                        " where datname = current_database() and wait_event_type = 'Lock'"
                    ).fetchone()
                return row is not None and row[0] > 0

            await until(waits, "the delivery waits")
            run.service.signal(signal.SIGTERM)
            assert await run.service.wait() == 0, run.service.errors()
            assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
            writer.close()
            await writer.wait_closed()


async def first_message(database: Any, page_id: str, sender_id: str) -> None:
    at = datetime(2025, 12, 1, tzinfo=UTC)
    async with create_pool(database.service_url, size=1, name="test") as pool:
        await Store(pool).ingest([Message(page_id, sender_id, "m_first", "in", at, text="hi")], "webhook")


async def test_processes_whose_parent_is_killed_end_by_themselves(two: Running) -> None:
    pids = workers(two.service.pid)
    await two.service.kill()

    async def gone() -> bool:
        return not any(alive(pid) for pid in pids)

    await until(gone, "the end of the processes")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_a_port_that_another_service_shares_is_refused(two: Running) -> None:
    second = await two.serve("--processes", "2", port=port_of(two))
    code, _ = await second.output()
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port_of(two)}: " in second.errors()


async def test_a_wrong_setting_is_told_once_and_before_there_are_processes(
    database: Any, tmp_path: Path
) -> None:
    async with running(database.service_url, tmp_path, **SETTINGS) as run:
        told = await run.start("serve", "--port", "0", "--processes", "2", CONVSYNC_TOKEN_KEY=marked("short"))
        code, _ = await told.output()
        assert code == 2
        assert told.errors().count("TOKEN_KEY must be 32 bytes") == 1


async def test_the_command_of_a_process_is_for_its_parent_alone(database: Any, tmp_path: Path) -> None:
    async with running(database.service_url, tmp_path, **SETTINGS) as run:
        told = await run.program(CONVSYNC, "worker")
        code, _ = await told.output()
        assert code == 2
        assert "serve --processes" in told.errors()
