"""The demo: the whole story on one machine, with nothing prepared.

An embedded PostgreSQL, the simulated Graph API in a process of its own, and the service with its console.
A Page is added and subscribed, its first full sync runs, live webhooks arrive; then the mirror is compared
with the simulator's ground truth, row by row, and with a second reading of the Graph API (`verify`).

With a scenario things go wrong meanwhile: its Pages, its life and its faults. Once its steps are done life
stops, a second sync fetches what the webhooks did not tell, and then comes the verdict. Where a mirror cannot
be complete the demo ends with that, and says why.

Its database is made anew for each demo, in DATA_DIR/demo, and stays there afterwards to be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psycopg
from aiohttp import web
from pydantic import SecretStr

from convsync.console import Bar, progress, stdout
from convsync.database.bootstrap import open_database
from convsync.database.embedded import EmbeddedPostgres, prepare_data_dir
from convsync.errors import TryAgain
from convsync.facts import Json
from convsync.graph.errors import GraphError
from convsync.pages import PageToken, check_token, subscribe
from convsync.settings import Settings
from convsync.simulator.checker import compare, fetch_truth
from convsync.simulator.config import DEFAULT_APP_SECRET, DEFAULT_VERIFY_TOKEN, SimulatorConfig
from convsync.simulator.scenario import load_scenario
from convsync.simulator.verdict import Verdict
from convsync.sync.verify import verify_page
from convsync.web.app import create_app
from convsync.web.app import serve as listen
from convsync.web.state import CONTACTS, GRAPH, RUNNER, STORE, TOKENS

_BURST = 60
_LIVE_RATE = 1.0
# What a scenario's life gets after the first sync, and the longest its steps are waited for.
_LIFE_SECONDS = 5.0
_STEPS_SECONDS = 180.0
_FINDINGS = ("missing", "extra", "differing")
# Nobody watches a demo that was told to wait for longer.
_PATIENCE = timedelta(seconds=90)


@dataclass(frozen=True, slots=True)
class Options:
    """What `convsync demo` was asked for; `messages` is the mean per conversation, 0 calls is no limit. None
    leaves it to the scenario.
    """

    once: bool
    conversations: int | None = None
    messages: float | None = None
    seed: int | None = None
    calls_per_second: float | None = None
    scenario: str | None = None

    def world(self) -> SimulatorConfig:
        """What the simulator is told to be. Raises ScenarioError."""
        config = SimulatorConfig() if self.scenario is None else load_scenario(self.scenario).config
        given: dict[str, Any] = {
            "conversations": self.conversations,
            "messages": self.messages,
            "seed": self.seed,
            "calls_per_second": self.calls_per_second,
        }
        return dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})


@dataclass(slots=True)
class _Mirrored:
    """One Page and what became of it. `stuck` is why its sync did not end, or could not begin."""

    page_id: str
    token: PageToken
    run: Json | None = None
    calls: int = 0
    stuck: str | None = None
    report: Json = field(default_factory=dict)

    @property
    def synced(self) -> bool:
        """Whether a sync came to its end."""
        return self.stuck is None and self.run is not None and self.run["status"] in ("succeeded", "partial")


class Demo:
    """One demo; `run` returns the verdict once it stands, or after Ctrl-C."""

    def __init__(self, settings: Settings, options: Options, *, quiet: bool) -> None:
        self._settings = settings
        self._options = options
        self._world = options.world()
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
        began = time.monotonic()
        rate = self._world.calls_per_second
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
                "calls_per_second": rate,
                "token_key": None,
            }
        )
        urls = await stack.enter_async_context(open_database(settings))
        app = create_app(settings, urls.service)
        runner = await listen(app, host, port)
        stack.push_async_callback(runner.cleanup)
        if not self._quiet:
            self._say(f"Console: {address}/  (log in with the key in {settings.generated_key_path})")
        seal = app[TOKENS].seal
        pages = [
            _Mirrored(page_id, PageToken(token, seal(page_id, token)))
            for page_id, token in ((page["page_id"], page["token"]) for page in simulator["pages"])
        ]
        for page in pages:
            await self._add(app, page)
        await self._sync_all(app, pages)
        async with aiohttp.ClientSession(simulator["url"]) as control:
            if self._options.scenario is None:
                webhooks = await _traffic(control, _BURST)
            else:
                webhooks = await self._let_it_happen(control, began)
            if not self._quiet:
                self._say(f"Then {webhooks.get('delivered', 0)} webhooks.")
            if self._options.scenario is not None:
                await self._sync_all(app, [page for page in pages if page.synced])
            await app[CONTACTS].idle()
            verdict = await self._verdict(urls.owner, simulator["url"], pages)
            for page in pages:
                await self._verify(app, page)
            document = _document(pages, verdict, webhooks)
            if self._options.scenario is None and webhooks["failed"]:
                document["why"].append(f"{webhooks['failed']} webhooks were not taken")
                document["clean"] = False
            if not self._quiet:
                self._tell(document)
            if not self._options.once and not stop.is_set():
                self._told = True
                await self._live(control, stop)
        return document

    async def _add(self, app: web.Application, page: _Mirrored) -> None:
        """Add a Page and subscribe to it, before the walk begins: from here on webhooks tell."""
        store, graph = app[STORE], app[GRAPH]
        rate = self._world.calls_per_second
        await store.add_page(
            page_id=page.page_id, token_sealed=page.token.sealed, token_key_id=app[TOKENS].key_id
        )
        check = await check_token(store, graph, page.page_id, page.token, rate)
        if check.state == "invalid":
            page.stuck = f"its token is not accepted: {check.told}"
            return
        try:
            await subscribe(store, graph, page.page_id, page.token, rate)
        except (GraphError, TryAgain) as error:
            page.stuck = f"it cannot be subscribed to: {_explained(error)}"

    async def _sync_all(self, app: web.Application, pages: list[_Mirrored]) -> None:
        async with progress(quiet=self._quiet) as bar:
            await asyncio.gather(*(self._sync(app, page, bar) for page in pages))
        self._tell_syncs(pages)

    async def _sync(self, app: web.Application, page: _Mirrored, bar: Bar) -> None:
        """A full sync to its end, or until it is told to wait for longer than anybody watches."""
        if page.stuck is not None:
            return
        store = app[STORE]
        begun = await app[RUNNER].start(page.page_id, "full")
        blocked = asyncio.Event()

        async def read() -> Json:
            budget = (await store.get_page(page_id=page.page_id))["budget"] or {}
            until = budget.get("blocked_until")
            left = datetime.fromisoformat(until) - datetime.now(UTC) if until is not None else timedelta()
            if left > _PATIENCE:
                minutes = round(left / timedelta(minutes=1))
                page.stuck = f"Graph says to wait for {minutes} minutes ({budget['block_reason']})"
                blocked.set()
            return await store.get_sync_run(run_id=begun.run_id)

        page.run = await bar.follow(read, expected=self._world.conversations, stop=blocked)
        page.calls += page.run["calls"]
        if page.run["status"] in ("succeeded", "partial"):
            page.stuck = None  # the block came after its last page

    async def _let_it_happen(self, control: aiohttp.ClientSession, began: float) -> Json:
        """Wait for the scenario's steps, let it live for a while; then stop it and send what is held back."""
        world = self._world
        timed = [step for step in world.timeline if step.at_calls is None]
        last = max((max(step.at, step.until or 0.0) for step in timed), default=0.0)
        wait = began + min(last / world.speed, _STEPS_SECONDS) - time.monotonic()
        if world.life is not None:
            wait = max(wait, _LIFE_SECONDS)
        await asyncio.sleep(max(0.0, wait))
        if world.life is None:
            for page in world.pages:
                await _traffic(control, _BURST // len(world.pages), page.page_id)
        async with control.delete("/_sim/life") as answer:
            answer.raise_for_status()
        async with control.post("/_sim/webhooks/settle") as answer:
            answer.raise_for_status()
            outcomes: Json = (await answer.json())["outcomes"]
        return outcomes

    async def _verdict(self, owner_url: str, simulator_url: str, pages: list[_Mirrored]) -> Verdict:
        """The mirror against the ground truth, by code that shares nothing with what filled it."""
        found = Verdict()
        async with await psycopg.AsyncConnection.connect(owner_url) as connection:
            for page in pages:
                found += await compare(connection, fetch_truth(simulator_url, page.page_id), page.page_id)
        return found

    async def _verify(self, app: web.Application, page: _Mirrored) -> None:
        """A second reading of the Graph API, where there was a first."""
        if not page.synced:
            return
        rate = self._world.calls_per_second
        try:
            report = await verify_page(
                app[STORE], app[GRAPH], page.page_id, page.token, deep=False, calls_per_second=rate
            )
        except GraphError as error:
            page.stuck = f"it cannot be read again: {_explained(error)}"
        else:
            page.report = report.as_json()

    async def _live(self, control: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        self._say("Customers go on writing, about one message a second. Ctrl-C ends the demo.")
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1 / _LIVE_RATE)
                return
            await _traffic(control, 1)

    def _tell_syncs(self, pages: list[_Mirrored]) -> None:
        for page in pages:
            run = page.run
            if run is not None and not self._quiet:
                self._say(
                    f"Sync {run['status']}: {run['conversations_seen']:,} conversations, "
                    f"{run['messages_added']:,} messages, {run['calls']:,} Graph calls."
                )

    def _tell(self, document: Json) -> None:
        mark = "[green]The mirror is exact[/]"
        if not document["clean"]:
            mark = (
                "[red]The mirror cannot be called complete[/]"
                if document["exact"]
                else "[red]The mirror differs[/]"
            )
        verify = document["verify"]
        again = ", ".join(f"{verify[name]} {name}" for name in _FINDINGS) if verify else "not possible"
        self._say(
            f"{mark}: compared with the truth, {document['missing']} missing, {document['extra']} extra, "
            f"{document['differing']} differing of {document['messages']:,} messages in "
            f"{document['conversations']:,} conversations; verify: {again}."
        )
        for line in (*document["why"], *document["examples"]):
            self._say(f"  {line}", markup=False)

    def _say(self, line: str, *, markup: bool = True) -> None:
        stdout.print(line, highlight=False, soft_wrap=True, markup=markup)


def _document(pages: list[_Mirrored], verdict: Verdict, webhooks: Json) -> Json:
    """The verdict as JSON. `exact`: nothing that can be read is missing or wrong; `clean`: and the mirror has
    all there is; `why` it has not. `run` and `verify` are those of the first Page, `pages` has all.
    """
    why = []
    for page in pages:
        if page.stuck is not None:
            why.append(f"Page {page.page_id}: {page.stuck}")
        if page.run is not None and not (page.stuck and page.run["status"] == "running"):
            status, reason = page.run["status"], page.run["reason"]
            if status != "succeeded":
                why.append(f"Page {page.page_id}: the sync is {status}" + (f", {reason}" if reason else ""))
        if any(page.report.get(name) for name in _FINDINGS):
            told = ", ".join(f"{page.report[name]} {name}" for name in _FINDINGS)
            why.append(f"Page {page.page_id}: read again, Graph and the mirror differ: {told}")
    if not verdict.clean:
        why.append("the mirror is not what the truth is")
    if verdict.unreadable:
        why.append(f"{verdict.unreadable} messages are there that Graph shows to nobody")
    if verdict.hidden:
        why.append(f"{verdict.hidden} conversations are there that Graph lists to nobody")
    if webhooks.get("forged_taken"):
        why.append(f"{webhooks['forged_taken']} forged webhooks were taken")
    first = pages[0]
    return {
        **asdict(verdict),
        "clean": not why,
        "exact": verdict.clean,
        "why": why,
        "calls": sum(page.calls for page in pages),
        "run": first.run,
        "verify": first.report,
        "webhooks": webhooks,
        "pages": [
            {"page_id": page.page_id, "run": page.run, "verify": page.report, "stuck": page.stuck}
            for page in pages
        ],
    }


def _explained(error: GraphError | TryAgain) -> str:
    return error.explained() if isinstance(error, GraphError) else error.message


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
    given = {
        "scenario": options.scenario,
        "seed": options.seed,
        "conversations": options.conversations,
        "messages": options.messages,
        "calls-per-second": options.calls_per_second,
    }
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "convsync.simulator", "--port", "0", "--webhooks-to", webhooks_to, *arguments),
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


async def _traffic(control: aiohttp.ClientSession, count: int, page_id: str | None = None) -> Json:
    """Let `count` things happen on a Page (the first if none is named); the simulator answers when their
    webhooks are delivered or given up.
    """
    body: Json = {"count": count} if page_id is None else {"count": count, "page_id": page_id}
    async with control.post("/_sim/traffic", json=body) as answer:
        answer.raise_for_status()
        report: Json = await answer.json()
        return report
