"""The demo: the whole story on one machine, with nothing prepared.

An embedded PostgreSQL, the simulated Graph API in a process of its own, and the service with its console.
A Page is added and subscribed, its first full sync runs, live webhooks arrive; then the mirror is compared
with the simulator's ground truth, row by row, and with a second reading of the Graph API (`verify`).

Its database is made anew for each demo, in DATA_DIR/demo, and stays there afterwards to be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psycopg
from pydantic import SecretStr

from convsync.console import progress, stdout
from convsync.database.bootstrap import open_database
from convsync.database.embedded import EmbeddedPostgres, prepare_data_dir
from convsync.facts import Json
from convsync.pages import check_token, subscribe
from convsync.settings import Settings
from convsync.simulator.checker import compare, fetch_truth
from convsync.simulator.config import DEFAULT_APP_SECRET, DEFAULT_VERIFY_TOKEN
from convsync.sync.verify import verify_page
from convsync.web.app import create_app
from convsync.web.app import serve as listen
from convsync.web.state import CONTACTS, GRAPH, RUNNER, STORE, TOKENS

_BURST = 60
_LIVE_RATE = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `convsync demo` was asked for; `messages` is the mean per conversation, 0 calls is no limit."""

    once: bool
    conversations: int
    messages: float
    seed: int
    calls_per_second: float


class Demo:
    """One demo; `run` returns the verdict once it stands, or after Ctrl-C."""

    def __init__(self, settings: Settings, options: Options, *, quiet: bool) -> None:
        self._settings = settings
        self._options = options
        self._quiet = quiet

    async def run(self) -> Json:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            story = asyncio.create_task(self._story(stack, stop))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({story, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not story.done() and not self._told:
                    story.cancel()
                return await story
            except asyncio.CancelledError:
                if not stop.is_set():
                    raise
                return {"clean": False, "interrupted": True}
            finally:
                for task in (story, stopped):
                    task.cancel()
                await asyncio.gather(story, stopped, return_exceptions=True)

    _told = False

    async def _story(self, stack: AsyncExitStack, stop: asyncio.Event) -> Json:
        directory = stack.enter_context(_fresh_directory(self._settings.data_dir / "demo"))
        with contextlib.closing(_listening_socket(self._settings.host, self._settings.port)) as reserved:
            host, port = reserved.getsockname()[:2]
        address = f"http://{host}:{port}"
        simulator = await stack.enter_async_context(_simulator(self._options, f"{address}/api/webhook"))
        page_id, token = simulator["pages"][0]["page_id"], simulator["pages"][0]["token"]
        settings = self._settings.model_copy(
            update={
                "database_url": None,
                "migrate_database_url": None,
                "data_dir": directory,
                "host": host,
                "port": port,
                "graph_url": simulator["url"],
                "app_secret": SecretStr(DEFAULT_APP_SECRET),
                "verify_token": SecretStr(DEFAULT_VERIFY_TOKEN),
                "calls_per_second": self._options.calls_per_second,
                "token_key": None,
            }
        )
        urls = await stack.enter_async_context(open_database(settings))
        app = create_app(settings, urls.service)
        runner = await listen(app, host, port)
        stack.push_async_callback(runner.cleanup)

        store, graph, box = app[STORE], app[GRAPH], app[TOKENS]
        rate = settings.calls_per_second
        await store.add_page(page_id=page_id, token_sealed=box.seal(page_id, token), token_key_id=box.key_id)
        await check_token(store, graph, page_id, token, rate)
        # Subscribed before the walk begins: what happens from here on comes by webhook.
        await subscribe(store, graph, page_id, token, rate)
        begun = await app[RUNNER].start(page_id, "full")
        if not self._quiet:
            self._say(
                f"Console: {address}/  (any user name; the password is in {settings.generated_key_path})"
            )
        async with progress(quiet=self._quiet) as bar:
            run = await bar.follow(
                lambda: store.get_sync_run(run_id=begun.run_id), expected=self._options.conversations
            )
        async with aiohttp.ClientSession(simulator["url"]) as control:
            traffic = await _traffic(control, _BURST)
            await app[CONTACTS].idle()
            verdict = await self._verdict(urls.owner, simulator["url"], page_id)
            report = await verify_page(store, graph, page_id, token, deep=False, calls_per_second=rate)
            document = {
                **verdict,
                "calls": run["calls"],
                "clean": verdict["clean"]
                and report.clean
                and run["status"] == "succeeded"
                and not traffic["failed"],
                "run": run,
                "webhooks": traffic,
                "verify": report.as_json(),
            }
            if not self._quiet:
                self._tell(document)
            if not self._options.once and not stop.is_set():
                self._told = True
                await self._live(control, stop)
        return document

    async def _verdict(self, owner_url: str, simulator_url: str, page_id: str) -> Json:
        """The mirror against the ground truth, by code that shares nothing with what filled it."""
        async with await psycopg.AsyncConnection.connect(owner_url) as connection:
            verdict = await compare(connection, fetch_truth(simulator_url, page_id), page_id)
        return {**asdict(verdict), "clean": verdict.clean}

    async def _live(self, control: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        self._say("Customers go on writing, about one message a second. Ctrl-C ends the demo.")
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1 / _LIVE_RATE)
                return
            await _traffic(control, 1)

    def _tell(self, document: Json) -> None:
        run, verify = document["run"], document["verify"]
        self._say(
            f"Sync {run['status']}: {run['conversations_seen']:,} conversations, "
            f"{run['messages_added']:,} messages, "
            f"{run['calls']:,} Graph calls. Then {document['webhooks']['delivered']} webhooks."
        )
        mark = "[green]The mirror is exact[/]" if document["clean"] else "[red]The mirror differs[/]"
        self._say(
            f"{mark}: compared with the truth, {document['missing']} missing, {document['extra']} extra, "
            f"{document['differing']} differing of {document['messages']:,} messages in "
            f"{document['conversations']:,} conversations; verify: {verify['missing']} missing, "
            f"{verify['extra']} extra, {verify['differing']} differing."
        )
        for example in document["examples"]:
            self._say(f"  {example}")

    def _say(self, line: str) -> None:
        stdout.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _fresh_directory(wanted: Path) -> Iterator[Path]:
    """An empty directory for this demo's data: `wanted`, or a temporary one while another demo uses that."""
    prepare_data_dir(wanted.parent)
    lock = os.open(wanted.with_name("demo.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with _temporary_directory() as directory:
                yield directory
            return
        EmbeddedPostgres(wanted).stop()  # left running by a demo that was killed
        if wanted.exists():
            shutil.rmtree(wanted)
        prepare_data_dir(wanted)
        yield wanted
    finally:
        os.close(lock)


@contextmanager
def _temporary_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="convsync-demo-"))
    if os.geteuid() == 0:
        directory.chmod(0o711)  # PostgreSQL runs as another user, who has to pass
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _listening_socket(host: str, port: int) -> socket.socket:
    """A socket on the wanted port, or on a free one if somebody else has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (port, 0):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, wanted))
        except OSError:
            candidate.close()
            if wanted == 0:
                raise
        else:
            return candidate
    raise AssertionError("unreachable")


@asynccontextmanager
async def _simulator(options: Options, webhooks_to: str) -> AsyncIterator[dict[str, Any]]:
    """The simulated Graph API in a process of its own; what it announced of itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "convsync.simulator", "--port", "0", "--webhooks-to", webhooks_to),
        *("--seed", str(options.seed), "--conversations", str(options.conversations)),
        *("--messages", str(options.messages), "--calls-per-second", str(options.calls_per_second)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # the terminal's Ctrl-C is for us; we end it
    )
    try:
        assert process.stdout is not None  # noqa: S101 - asked for above
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the simulator did not start")
        yield orjson.loads(line)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _traffic(control: aiohttp.ClientSession, count: int) -> Json:
    """Let `count` things happen; the simulator answers when their webhooks are delivered or given up."""
    async with control.post("/_sim/traffic", json={"count": count}) as answer:
        answer.raise_for_status()
        report: Json = await answer.json()
        return report
