"""The commands with nothing prepared: their own PostgreSQL, their own directory, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

CONVSYNC = str(Path(sys.executable).with_name("convsync"))
PREFIX = "convsync-test-"
LIMIT = 120.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory the server's user can pass through, for DATA_DIR and as the place commands run in."""
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    if os.geteuid() == 0:
        made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def started(directory: Path) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """What a test started; ended, by its pid, if the test did not get there."""
    processes: list[asyncio.subprocess.Process] = []
    yield processes
    for process in processes:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


async def start(
    directory: Path, processes: list[asyncio.subprocess.Process], *arguments: str
) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVSYNC_")}
    process = await asyncio.create_subprocess_exec(
        CONVSYNC,
        *arguments,
        env={**environment, "CONVSYNC_DATA_DIR": str(directory / "data"), "CONVSYNC_PORT": "0"},
        cwd=directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    processes.append(process)
    return process


async def run(
    directory: Path, processes: list[asyncio.subprocess.Process], *arguments: str
) -> tuple[int, str, str]:
    process = await start(directory, processes, *arguments)
    async with asyncio.timeout(LIMIT):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def listening(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT):
        line = await process.stdout.readline()
    assert b"listens on http://127.0.0.1:" in line


def left_behind(directory: Path) -> list[str]:
    """Processes that work in the directory, or have it on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((process / "cwd").readlink())
            if str(directory) in line or where.startswith(str(directory)):
                found.append(f"{process.name}: {line} in {where}")
    return found


def postmasters(directory: Path) -> set[str]:
    """The servers of the directory, by pid.

    A backend bears its postmaster's command line until it has set its own title: by its parent it is known.
    """
    parents = {}
    for line in left_behind(directory):
        pid = line.partition(":")[0]
        if " -D " in line and "postgres" in line:
            with suppress(OSError):
                status = Path("/proc", pid, "status").read_text()
                parents[pid] = next(row.split()[1] for row in status.splitlines() if row.startswith("PPid:"))
    return {pid for pid, parent in parents.items() if parent not in parents}


async def test_who_has_not_the_settings_of_a_service_is_told_what_was_looked_at(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """An empty answer from a database that was made for the question is no news of the service's."""
    code, out, err = await run(directory, started, "status")
    assert code == 0, err
    told = f"This is the embedded PostgreSQL in {directory / 'data'}: CONVSYNC_DATABASE_URL is not set here."
    assert told in out


async def test_demo_once_is_exact_and_leaves_no_process(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    code, out, err = await run(
        directory, started, "demo", "--once", "--conversations", "30", "--messages", "12", "--json"
    )
    assert code == 0, err
    verdict = json.loads(out)
    assert (verdict["missing"], verdict["extra"], verdict["differing"]) == (0, 0, 0)
    assert verdict["clean"] is True
    assert verdict["conversations"] >= 30
    assert verdict["messages"] > 300
    assert verdict["calls"] > 0
    assert (verdict["verify"]["missing"], verdict["verify"]["extra"], verdict["verify"]["differing"]) == (
        0,
        0,
        0,
    )
    assert verdict["webhooks"]["failed"] == 0
    assert left_behind(directory) == []


async def test_several_processes_serve_on_the_embedded_database_and_leave_nothing_behind(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    service = await start(directory, started, "serve", "--processes", "2")
    assert service.stdout is not None
    async with asyncio.timeout(LIMIT):
        address = (await service.stdout.readline()).decode().split()[-1]
    served = f"import urllib.request; print(urllib.request.urlopen('{address}readyz').status)"
    ready = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", served), stdout=asyncio.subprocess.PIPE, cwd="/"
    )
    started.append(ready)
    assert await ready.communicate() == (b"200\n", None)
    service.send_signal(signal.SIGINT)
    async with asyncio.timeout(LIMIT):
        await service.communicate()
    assert service.returncode == 0
    assert left_behind(directory) == []


async def scenario(
    directory: Path, started: list[asyncio.subprocess.Process], text: str
) -> tuple[int, dict[str, Any]]:
    """The exit code and verdict of a demo of a scenario."""
    file = directory / "mine.toml"
    file.write_text(f'why = "to be tested"\n{text}')
    code, out, err = await run(directory, started, "demo", "--once", "--scenario", str(file), "--json")
    assert out, err
    assert left_behind(directory) == []
    return code, json.loads(out)


SMALL = """
[population]
pages = 2
conversations = 20
messages = 12
[graph]
calls_per_second = 0
"""


async def test_demo_of_a_scenario_fetches_what_no_webhook_told(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """Half of the webhooks are lost, on both Pages: the second sync finds what is missing."""
    lossy = '[[webhook_faults]]\naction = "lose"\nshare = 0.5\n'
    code, verdict = await scenario(directory, started, SMALL + lossy)
    assert (verdict["why"], verdict["clean"], code) == ([], True, 0)
    assert verdict["webhooks"]["lost"] > 10
    assert [page["run"]["status"] for page in verdict["pages"]] == ["succeeded"] * 2
    assert verdict["conversations"] >= 40
    assert sum(page["run"]["messages_added"] for page in verdict["pages"]) > 5


async def test_demo_of_what_nobody_can_read_is_exact_and_not_complete(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    code, verdict = await scenario(
        directory, started, SMALL + 'twenty_messages = ["messenger"]\nrequests = 0.2\n'
    )
    assert code == 1
    assert (verdict["exact"], verdict["clean"]) == (True, False)
    assert verdict["unreadable"] > 0 < verdict["hidden"]
    assert verdict["why"] == [
        f"{verdict['unreadable']} messages are there that Graph shows to nobody",
        f"{verdict['hidden']} conversations are there that Graph lists to nobody",
    ]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("action = 'revoke_token'", "the sync is failed, token_invalid"),
        ("action = 'block'\nseconds = 3000", "Graph says to wait for"),
    ],
    ids=["dead token", "block"],
)
async def test_demo_whose_sync_cannot_end_says_why(
    directory: Path, started: list[asyncio.subprocess.Process], what: str, reason: str
) -> None:
    """At the second page of its list; what was read until then is counted against the truth all the same."""
    text = SMALL.replace("pages = 2", "").replace("conversations = 20", "conversations = 420")
    fault = f"[[faults]]\nmatch = 'conversations.*after='\n{what}\n"
    code, verdict = await scenario(directory, started, text + fault)
    assert (code, verdict["exact"], verdict["clean"]) == (1, False, False)
    assert reason in verdict["why"][0]
    assert verdict["missing"] > 50
    assert verdict["run"]["conversations_seen"] >= 200
    assert verdict["verify"] == {}


async def test_demo_of_no_scenario_is_refused(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    code, _, err = await run(directory, started, "demo", "--once", "--scenario", "nonsense")
    assert code == 2
    assert "no scenario is named 'nonsense'" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_interrupted_demo_stops_everything_it_started(
    directory: Path, started: list[asyncio.subprocess.Process], number: signal.Signals
) -> None:
    """Ctrl-C in the middle of it, or the terminal closed: database, simulator and service end with it."""
    process = await start(directory, started, "demo", "--conversations", "400", "--calls-per-second", "1")
    assert process.stdout is not None
    async with asyncio.timeout(LIMIT):
        line = await process.stdout.readline()
    assert line.startswith(b"Console: http://127.0.0.1:")
    assert len(left_behind(directory)) > 2
    process.send_signal(number)
    async with asyncio.timeout(LIMIT):
        _, err = await process.communicate()
    assert process.returncode in (1, 130)
    assert b"Traceback" not in err, err.decode()
    assert left_behind(directory) == []


async def test_services_and_psql_share_one_embedded_server_and_the_last_one_stops_it(
    directory: Path, started: list[asyncio.subprocess.Process]
) -> None:
    first = await start(directory, started, "serve")
    await listening(first)
    second = await start(directory, started, "serve")
    await listening(second)
    assert len(postmasters(directory)) == 1, left_behind(directory)

    code, out, err = await run(directory, started, "psql", "-XAtc", "select 1")
    assert (code, out.strip()) == (0, "1"), err
    clients = (
        "select count(distinct application_name) || ' ' || count(distinct usename) from pg_stat_activity"
        " where application_name = 'convsync serve'"
    )
    code, out, _ = await run(directory, started, "psql", "-XAtc", clients)
    assert (code, out.strip()) == (0, "1 1")

    first.terminate()
    async with asyncio.timeout(LIMIT):
        _, err_bytes = await first.communicate()
    assert first.returncode == 0, err_bytes.decode()
    code, out, _ = await run(directory, started, "psql", "-XAtc", "select 2")
    assert (code, out.strip()) == (0, "2")
    second.terminate()
    async with asyncio.timeout(LIMIT):
        _, err_bytes = await second.communicate()
    assert second.returncode == 0, err_bytes.decode()
    assert left_behind(directory) == []

    for name in ("api_key", "token_key"):
        assert (directory / "data" / name).stat().st_mode & 0o777 == 0o600
