"""Real service processes for the fault tests: started, watched, stopped and killed, each by its own pid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from convsync.tokens import TokenBox
from secrets_hunt import marked, marked_key
from sync.world import World

API_KEY = marked("operate-key")
CONVSYNC = str(Path(sys.executable).with_name("convsync"))
_LIMIT = 60.0


class Process:
    """One `convsync` command."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def line(self, beginning: str) -> str:
        """The rest of the line of its stdout that begins so."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_LIMIT):
            while line := await self._process.stdout.readline():
                text = line.decode()
                if text.startswith(beginning):
                    return text.removeprefix(beginning).strip()
        raise AssertionError(f"it ended without saying {beginning!r}:\n{self.errors()}")

    def tell(self, line: bytes) -> None:
        """Write to its stdin, which stays open."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    async def wait(self) -> int:
        async with asyncio.timeout(_LIMIT):
            return await self._process.wait()

    async def output(self, told: bytes = b"") -> tuple[int, bytes]:
        """Its exit code and everything it wrote to stdout, after `told` came in on its stdin."""
        async with asyncio.timeout(_LIMIT):
            out, _ = await self._process.communicate(told)
        assert self._process.returncode is not None
        return self._process.returncode, out

    async def kill(self) -> None:
        """As if the power went out for it alone."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.wait()


class Processes:
    """Starts `convsync` commands that share an environment, and ends them."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._directory = directory
        self._started: list[Process] = []

    async def start(self, *arguments: str, **environment: str | None) -> Process:
        """Start `convsync ARGUMENTS`; `environment` changes what it is told, None takes a name away."""
        return await self.program(CONVSYNC, *arguments, **environment)

    async def program(self, *command: str, **environment: str | None) -> Process:
        """Start any other program in the same way."""
        told = {**self.environment, **environment}
        log = self._directory / f"stderr-{len(self._started)}"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={name: value for name, value in told.items() if value is not None},
                cwd=self._directory,  # no .env of the developer's
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        started = Process(process, log)
        self._started.append(started)
        return started

    async def run(
        self, *arguments: str, told: bytes = b"", **environment: str | None
    ) -> tuple[int, str, str]:
        """A command from its beginning to its end: exit code, stdout, stderr."""
        process = await self.start(*arguments, **environment)
        code, out = await process.output(told)
        return code, out.decode(), process.errors()

    async def serve(self, *arguments: str, port: int = 0) -> Process:
        return await self.start("serve", "--port", str(port), "--no-migrate", *arguments)

    async def end(self) -> None:
        for process in self._started:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.signal(signal.SIGCONT)
                await process.kill()


class Commands(Processes):
    """Those that belong to one database and one simulator."""

    def __init__(self, world: World, directory: Path, environment: Mapping[str, str]) -> None:
        super().__init__(directory, environment)
        self.world = world

    async def sync(self, *arguments: str) -> Process:
        return await self.start("sync", self.world.page_id, "--json", *arguments)

    async def verify(self) -> dict[str, Any]:
        """The report of `convsync verify`, which has to be clean for it to exit 0."""
        process = await self.start("verify", self.world.page_id, "--json")
        code, out = await process.output()
        report: dict[str, Any] = orjson.loads(out)
        assert code == 0, (report, process.errors())
        return report


def inherited() -> dict[str, str]:
    """Our environment without the settings of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CONVSYNC_")}


@asynccontextmanager
async def commands(world: World, directory: Path, **more: str) -> AsyncIterator[Commands]:
    """Commands on the world's database, with its Page's token sealed for them."""
    key = marked_key()
    box, page = TokenBox(key), world.simulator.page
    await world.store.add_page(
        page_id=page.page_id, token_sealed=box.seal(page.page_id, page.token), token_key_id=box.key_id
    )
    environment = {
        **inherited(),
        "CONVSYNC_DATABASE_URL": world.database.service_url,
        "CONVSYNC_MIGRATE_DATABASE_URL": world.database.owner_url,
        "CONVSYNC_DATA_DIR": str(directory / "data"),
        "CONVSYNC_GRAPH_URL": world.simulator.url,
        "CONVSYNC_TOKEN_KEY": key,
        "CONVSYNC_API_KEYS": f"test:operate:{API_KEY}",
        "CONVSYNC_CALLS_PER_SECOND": "0",
        "CONVSYNC_LEASE_SECONDS": "1",
        "CONVSYNC_POOL_MAX": "4",
        **more,
    }
    running = Commands(world, directory, environment)
    try:
        yield running
    finally:
        await running.end()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return when it is so; fail, saying what was waited for, when it never is."""
    try:
        async with asyncio.timeout(_LIMIT):
            while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what}") from None
