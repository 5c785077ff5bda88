"""The commands. Each opens what it needs, does one thing, and says how it ended by its exit code.

0 ok, 1 a finding or a failure, 2 usage, 3 paused. `--json` prints one JSON document on stdout and nothing
else there; progress and log lines go to stderr.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

import click
import orjson
import psycopg
from click.core import ParameterSource
from psycopg import conninfo
from pydantic import ValidationError

from convsync import __version__
from convsync import status as status_command
from convsync.adopt.moving import adopt as adopt_database
from convsync.adopt.report import bar as adoption_bar
from convsync.console import (
    Table,
    escape_controls,
    progress,
    show_dead_letters,
    show_life,
    show_pages,
    show_run,
    show_token_error,
    stderr,
    stdout,
)
from convsync.database import installer
from convsync.database.bootstrap import BehindError, Urls, open_database
from convsync.database.embedded import EmbeddedError
from convsync.dead_letters import replay
from convsync.doctor import command as doctor_command
from convsync.doctor import examine
from convsync.erasing import horizon
from convsync.erasing import purge as purge_page
from convsync.errors import AlreadyRunning, ConvsyncError, from_database, is_poison, why_unreachable
from convsync.graph.client import GraphClient
from convsync.graph.errors import GraphError
from convsync.graph.versions import warn_of_version
from convsync.observe import sentry
from convsync.observe.drift import DriftRecorder
from convsync.observe.logging import configure
from convsync.pages import WEBHOOK_FIELDS, PageToken, check_token, subscribe
from convsync.settings import Settings, SettingsError
from convsync.store import Store, create_pool
from convsync.sync.runner import RunnerSettings, SyncRunner
from convsync.sync.verify import verify_page
from convsync.tasks import end
from convsync.tokens import TokenKeyError, new_key

P = ParamSpec("P")

OK, FAILURE, USAGE, PAUSED = 0, 1, 2, 3
_DRIFT_SECONDS = 2.0
# Secrets of a connection that can be given to psql on its command line only.
UNSEEN = frozenset(("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"))
EXIT_BY_STATUS = {"succeeded": OK, "paused": PAUSED}


class Failure(click.ClickException):
    """An error a person is told in one line."""

    exit_code = FAILURE


def command(work: Callable[P, Coroutine[Any, Any, int | None]]) -> Callable[P, None]:
    """Run an async command to its end and exit with what it returns; errors in one line, without secrets."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = asyncio.run(work(*args, **kwargs))
        except (KeyboardInterrupt, asyncio.CancelledError):
            sys.exit(130)
        except Exception as error:
            told = _told(error)
            if told is None:
                raise
            raise told from error
        sys.exit(code or OK)

    return run


def _told(error: Exception) -> click.ClickException | None:
    """An error as a person is told of it; None for a defect of ours, which shows its traceback."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    match error:
        case click.ClickException():
            return error
        case ConvsyncError():
            return Failure(error.message)
        case psycopg.Error():
            if why := why_unreachable(error):
                return Failure(f"the database cannot be reached: {why}")
            return Failure(f"the database: {from_database(error).message}")
        case SettingsError():
            return click.UsageError(str(error))
        case GraphError():
            return Failure(error.explained())
        case EmbeddedError() | TokenKeyError() | installer.InstallError() | BehindError():
            return Failure(str(error))
    return None


def load_settings() -> Settings:
    """The settings, and logging as they say; a wrong one is named, its value never shown."""
    try:
        settings = Settings()
    except ValidationError as error:
        lines = [
            f"CONVSYNC_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise click.UsageError("; ".join(lines)) from None
    if settings.token_key is not None:
        try:
            settings.token_box()
        except TokenKeyError as error:
            raise click.UsageError(f"CONVSYNC_{error}") from None
    configure(settings.log_format, report=sentry.reporter(settings.sentry_dsn))
    return settings


def asks_first(question: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Ask on stderr before anything is done; --yes is the answer where nobody can be asked."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        # Outside of the event loop, where Ctrl-C still ends a question.
        @click.option("--yes", is_flag=True, help="Do not ask.")
        @wraps(run)
        def ask(*args: Any, yes: bool, **kwargs: Any) -> None:
            if not yes:
                if not sys.stdin.isatty():
                    raise click.UsageError("nobody can be asked here: --yes says that it is meant")
                click.confirm(escape_controls(question.format(**kwargs)), abort=True, err=True)
            run(*args, **kwargs)

        return ask

    return decorate


class Horizon(click.ParamType[datetime]):
    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return horizon(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def print_json(document: object) -> None:
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


as_json: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "json_", is_flag=True, help="One JSON document on stdout, nothing else there."
)
calls_option = partial(
    click.option,
    "--calls-per-second",
    type=click.FloatRange(0, 1000),
    show_default=True,
    help="Per Page; 0: no limit.",
)
messages_option = click.option(
    "--messages",
    type=click.FloatRange(1, 10_000),
    default=30.0,
    show_default=True,
    help="Mean per conversation.",
)


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[tuple[Store, Urls]]:
    async with open_database(settings) as urls:
        pool = create_pool(urls.service, size=settings.pool_max, name="command")
        await pool.open(wait=True, timeout=10)
        try:
            yield Store(pool), urls
        finally:
            await pool.close()


@asynccontextmanager
async def drift_recorder(store: Store) -> AsyncIterator[DriftRecorder]:
    """Counts what this release does not know, and has written it when the command ends."""
    recorder = DriftRecorder(store.record_schema_drift, is_poison=is_poison)
    writing = asyncio.create_task(recorder.run(), name="schema drift")
    try:
        yield recorder
    finally:
        await end(writing)
        await recorder.close(_DRIFT_SECONDS)


def graph_client(settings: Settings) -> GraphClient:
    secret = settings.app_secret.get_secret_value() if settings.app_secret else None
    return GraphClient(settings.graph_url, settings.graph_version, secret)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="convsync")
def main() -> None:
    """An exact, provable mirror of a Facebook Page's Messenger conversations in PostgreSQL."""


@main.command()
@click.option("--once", is_flag=True, help="End after the sync and a burst of webhooks, with the verdict.")
@click.option("--conversations", type=click.IntRange(1, 1_000_000), default=200, show_default=True)
@messages_option
@click.option("--seed", type=int, default=1, show_default=True)
@calls_option(default=0.0)
@click.option(
    "--scenario",
    metavar="NAME|FILE",
    help="What goes wrong meanwhile, as `simulate --scenario` takes it; other options given change it.",
)
@as_json
@click.pass_context
@command
async def demo(context: click.Context, /, *, once: bool, json_: bool, **options: Any) -> int:
    """The whole story on this machine: a simulated Page, a full sync, live webhooks, the verdict."""
    from convsync.demo import Demo, Options
    from convsync.simulator.scenario import ScenarioError

    if options["scenario"] is not None:
        # Only what was asked for: the rest is the scenario's to say.
        options = {name: value for name, value in options.items() if is_given(context, name)}
    try:
        told = Demo(load_settings(), Options(once=once, **options), quiet=json_)
    except ScenarioError as error:
        raise click.BadParameter(str(error), param_hint="--scenario") from None
    verdict = await told.run()
    if json_:
        print_json(verdict)
    return OK if verdict["clean"] else FAILURE


def is_given(context: click.Context, name: str) -> bool:
    """Whether an option was asked for, and is not its default."""
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


@main.command()
@click.option("--host", help="Overrides CONVSYNC_HOST.")
@click.option("--port", type=click.IntRange(0, 65535), help="Overrides CONVSYNC_PORT; 0 asks for a free one.")
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    help="Serve with so many processes, kept by this one. Overrides CONVSYNC_PROCESSES.",
)
@click.option("--no-migrate", is_flag=True, help="Leave the database's schema as it is.")
@command
async def serve(host: str | None, port: int | None, processes: int | None, no_migrate: bool) -> None:
    """The service: webhook, HTTP API, console, and the syncs that are due.

    SIGTERM ends it, in less than ten seconds. With --processes, SIGHUP replaces one process after the other,
    without a pause in service, after an upgrade or a change of .env.
    """
    from convsync.processes import ServingError, serving
    from convsync.processes.notify import notify

    given = {"host": host, "port": port, "processes": processes}
    settings = load_settings().model_copy(update={k: v for k, v in given.items() if v is not None})
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_database(settings, "leave" if no_migrate else "upgrade") as urls:
        try:
            async with serving(settings, urls, upgrade=not no_migrate) as service:
                host, port = service.address
                where = f"[{host}]" if ":" in host else host
                stdout.print(f"convsync {__version__} listens on http://{where}:{port}/", highlight=False)
                if settings.api_keys is None:
                    stdout.print(f"API key: {settings.generated_key_path}", highlight=False, soft_wrap=True)
                for name in ("APP_SECRET", "VERIFY_TOKEN"):
                    if getattr(settings, name.lower()) is None:
                        stdout.print(f"CONVSYNC_{name} is not set: the webhook refuses every request")
                sys.stdout.flush()
                notify("READY=1")
                await stop.wait()
                notify("STOPPING=1")
        except ServingError as error:
            raise Failure(str(error)) from error
    if not service.clean:
        sys.stdout.flush()
        os._exit(FAILURE)  # what has not ended in time would keep the interpreter too


@main.command(hidden=True)
@command
async def worker() -> None:
    """One of the processes of `serve --processes`, which starts it."""
    from convsync.processes.worker import work

    await work(load_settings())


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when behind.")
@as_json
@command
async def migrate(check: bool, json_: bool) -> int:
    """Install or upgrade the database's schema and functions."""
    settings = load_settings()
    async with open_database(settings, "leave") as urls:
        if check:
            todo = await installer.behind(urls.owner)
            if json_:
                print_json({"current": not todo, "todo": todo})
            else:
                stdout.print("current" if not todo else "behind: " + ", ".join(todo))
            return FAILURE if todo else OK
        done = await installer.migrate(urls.owner)
    if json_:
        print_json(
            {
                "changed": done.changed,
                "migrations": done.migrations,
                "functions": done.functions,
                "schema_version": done.schema_version,
            }
        )
    else:
        what = [*done.migrations, *(["functions"] if done.functions else [])]
        stdout.print(f"{done.schema_version}: " + (", ".join(what) if what else "nothing to do"))
    return OK


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8089, show_default=True, help="0 asks for a free one."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--conversations", type=click.IntRange(0), default=1000, show_default=True)
@messages_option
@calls_option(default=2.0)
@click.option("--pages", type=click.IntRange(1, 999), help="How many there are.  [default: 1]")
@click.option("--hourly-calls", type=click.IntRange(0), help="Per Page; then they are refused with 80006.")
@click.option("--require-appsecret-proof", is_flag=True, help="Refuse calls without one.")
@click.option("--faults", type=click.Path(exists=True, dir_okay=False), help="A JSON list of faults.")
@click.option("--subscribed", is_flag=True, help="The app has the Pages' webhooks from the start.")
@click.option("--webhooks-to", metavar="URL", help="Where signed webhooks go.")
@click.option(
    "--traffic", type=click.FloatRange(0), default=0.0, help="Live things per simulated second and Page."
)
@click.option("--speed", type=click.FloatRange(0, min_open=True), help="Simulated time against the wall's.")
@click.option(
    "--scenario",
    metavar="NAME|FILE",
    help="Population, life and faults from a TOML file; other options given change it.",
)
@click.option("--list-scenarios", is_flag=True, help="The scenarios that come with it, and why.")
@click.pass_context
def simulate(context: click.Context, /, **options: Any) -> None:
    """A simulated Graph API and webhook sender; control and ground truth under /_sim/."""
    arguments = [sys.executable, "-m", "convsync.simulator"]
    for name, value in options.items():
        # Only what was asked for: the rest is the scenario's to say.
        given = is_given(context, name)
        if isinstance(value, bool):
            arguments += [f"--{name.replace('_', '-')}"] if value else []
        elif value is not None and (given or name in ("host", "port")):
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    os.execv(sys.executable, arguments)  # noqa: S606 - our own module, no shell


@main.group()
def page() -> None:
    """Pages and their tokens."""


@page.command("add")
@click.argument("page_id")
@click.option("--name")
@click.option("--owner", metavar="REF", help="Your own reference to whom the Page belongs to.")
@click.option("--token-stdin", is_flag=True, help="Read the Page's access token from standard input.")
@as_json
@command
async def page_add(page_id: str, name: str | None, owner: str | None, token_stdin: bool, json_: bool) -> int:
    """Add a Page, or change what is given of it. The token is sealed before it is stored."""
    settings = load_settings()
    token = None
    if token_stdin:
        token = sys.stdin.readline().strip()
        if not token:
            raise click.UsageError("no token on standard input")
    box = settings.token_box()
    kept = PageToken(token, box.seal(page_id, token)) if token else None
    async with open_store(settings) as (store, _), graph_client(settings) as graph:
        document = await store.add_page(
            page_id=page_id,
            name=name,
            owner_ref=owner,
            token_sealed=kept.sealed if kept else None,
            token_key_id=box.key_id if kept else None,
        )
        check = None
        if kept:
            check = await check_token(store, graph, page_id, kept, settings.calls_per_second)
            document = await store.get_page(page_id=page_id)
    if json_:
        print_json(document)
    else:
        stdout.print(f"Page {page_id} is there; its token is {document['token']}.")
    if check is None or check.told is None:
        return OK
    said = {
        "invalid": "the token was not accepted",
        "refused": "the token is stored, but Meta refuses calls with it for another reason",
        "unchecked": "the token is stored, and could not be checked",
    }
    click.echo(f"{said[check.state]}: {check.told}", err=True)
    return OK if check.state == "unchecked" else FAILURE


@page.command("list")
@as_json
@command
async def page_list(json_: bool) -> None:
    """Every Page."""
    async with open_store(load_settings()) as (store, _):
        pages = await store.list_pages()
    if json_:
        print_json(pages)
    else:
        show_pages(pages)


@page.command("remove")
@click.argument("page_id")
@as_json
@command
async def page_remove(page_id: str, json_: bool) -> None:
    """Forget a Page's token and stop its syncs; what was mirrored stays."""
    async with open_store(load_settings()) as (store, _):
        document = await store.remove_page(page_id=page_id)
    if json_:
        print_json(document)
    else:
        stdout.print(f"Page {page_id}: the token is forgotten, its conversations stay.")


@page.command("subscribe")
@click.argument("page_id")
@as_json
@command
async def page_subscribe(page_id: str, json_: bool) -> int:
    """Subscribe the app to the Page's webhooks, and read back that it is."""
    settings = load_settings()
    async with open_store(settings) as (store, _), graph_client(settings) as graph:
        token = await open_token(store, settings, page_id)
        fields = await subscribe(store, graph, page_id, token, settings.calls_per_second)
    missing = sorted(set(WEBHOOK_FIELDS) - set(fields))
    if json_:
        print_json({"page_id": page_id, "subscribed_fields": sorted(fields), "missing": missing})
    elif missing:
        stdout.print(f"Page {page_id} is subscribed, but not to: {', '.join(missing)}")
    else:
        stdout.print(f"Page {page_id} is subscribed to {len(fields)} fields.")
    return FAILURE if missing else OK


@page.command("new-key")
def page_new_key() -> None:
    """Print a fresh CONVSYNC_TOKEN_KEY."""
    sys.stdout.write(new_key() + "\n")


async def open_token(store: Store, settings: Settings, page_id: str) -> PageToken:
    """The Page's token, unless there is none or Meta has called it dead: nobody calls with it again."""
    kept = await store.page_token(page_id=page_id)
    if kept.sealed is None:
        raise Failure(f"Page {page_id} has no token: convsync page add {page_id} --token-stdin")
    if kept.state == "invalid":
        page = await store.get_page(page_id=page_id)
        why = page["token_error"] or f"Store another one: convsync page add {page_id} --token-stdin"
        raise Failure(f"no call was made with the token of Page {page_id}, which Meta has refused. {why}")
    return PageToken(settings.token_box().open(page_id, kept.sealed), kept.sealed)


@main.command()
@click.argument("page_id")
@click.option(
    "--mode", type=click.Choice(["full", "incremental", "reconcile"]), default="full", show_default=True
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Pause after this long.",
)
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with a paused run.")
@click.option("--wait", is_flag=True, help="If a sync of this kind runs already, watch that one to its end.")
@click.option(
    "--retry",
    type=click.IntRange(1, 2**63 - 1),
    metavar="RUN_ID",
    help="Go on with what this run could not read, in its mode.",
)
@as_json
@command
async def sync(
    page_id: str,
    mode: str,
    deadline: float | None,
    restart: bool,
    wait: bool,
    retry: int | None,
    json_: bool,
) -> int:
    """Sync a Page. Goes on with a paused run; exits 3 when it is paused, 1 when it is not whole."""
    if retry is not None and restart:
        raise click.UsageError("--retry goes on with a run, --restart begins a new one")
    settings = load_settings()
    warn_of_version(settings.graph_version)
    box = settings.token_box()
    async with (
        open_store(settings) as (store, _),
        graph_client(settings) as graph,
        drift_recorder(store) as drift,
    ):
        runner = SyncRunner(
            store,
            graph,
            box.open,
            RunnerSettings.of(settings),
            saw_drift=partial(drift.saw, "sync"),
        )
        known = (await store.get_page(page_id=page_id))["conversations"]
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with asyncio.TaskGroup() as group:
            supervising = group.create_task(runner.supervise(resume=False), name="syncs of this command")
            try:
                try:
                    if retry is None:
                        begun = await runner.start(page_id, mode, deadline_seconds=deadline, restart=restart)
                    else:
                        mode = (await store.get_sync_run(run_id=retry))["mode"]
                        begun = await runner.retry(page_id, retry, mode, deadline_seconds=deadline)
                    run_id = begun.run_id
                except AlreadyRunning as error:
                    if not wait:
                        raise Failure(f"{error.message}; --wait watches it") from error
                    run_id = error.run_id
                async with progress(quiet=json_) as bar:
                    run = await bar.follow(
                        lambda: store.get_sync_run(run_id=run_id), expected=known or None, stop=stop
                    )
                if stop.is_set():
                    await runner.drain(10, "interrupted")
                    run = await store.get_sync_run(run_id=run_id)
                page = await store.get_page(page_id=page_id) if run["reason"] == "token_invalid" else None
            finally:
                supervising.cancel()
    if json_:
        print_json(run)
    else:
        show_run(run)
        if page is not None:
            show_token_error(page)
    return EXIT_BY_STATUS.get(run["status"], FAILURE)


@main.command()
@click.argument("page_id", required=False)
@click.option(
    "--checksum",
    is_flag=True,
    help="Of every message that is held of the Page, to compare mirrors by.",
)
@as_json
@command
async def status(page_id: str | None, checksum: bool, json_: bool) -> None:
    """What is mirrored and what of it is proved, how the syncs stand, how far the feed's readers are.

    Of each problem: what is wrong, why it matters, and the command that mends it. `convsync doctor` asks the
    settings and Graph as well.
    """
    if checksum and page_id is None:
        raise click.UsageError("--checksum is of one Page: name it")
    settings = load_settings()
    async with open_store(settings) as (store, _):
        found = await status_command.ask(store, settings, page_id, checksum=checksum)
    if json_:
        print_json(found.as_json())
    else:
        status_command.show(found)


@main.command()
@click.argument("page_id", required=False)
@click.option("--test-alert", is_flag=True, help="Send a test notice to CONVSYNC_ALERT_WEBHOOK_URL.")
@as_json
@command
async def doctor(page_id: str | None, test_alert: bool, json_: bool) -> int:
    """Whether everything is there: settings, database, clocks, tokens, permissions, subscriptions.

    Of each problem: what is wrong, why it matters, and the command that mends it. Exits 1 if there is one.
    """
    with stderr.status("looking at everything: with many Pages it takes a while"):
        checks = await examine(load_settings(), page_id, test_alert=test_alert)
    if json_:
        print_json(doctor_command.as_json(checks))
    else:
        doctor_command.show(checks)
    return OK if doctor_command.healthy(checks) else FAILURE


@main.command()
@click.argument("page_id")
@click.argument("message_id")
@as_json
@command
async def explain(page_id: str, message_id: str, json_: bool) -> None:
    """The life of one message, what is known of it and from where; exits 1 if it was never heard of."""
    async with open_store(load_settings()) as (store, _):
        life = await store.explain_message(page_id=page_id, message_id=message_id)
    if json_:
        print_json(life)
    else:
        show_life(life)


@main.command()
@click.argument("page_id")
@click.option("--deep", is_flag=True, help="Read every message of every thread again.")
@as_json
@command
async def verify(page_id: str, deep: bool, json_: bool) -> int:
    """Read the Page again and compare it with the mirror; exits 1 on any difference."""
    settings = load_settings()
    async with open_store(settings) as (store, _), graph_client(settings) as graph:
        token = await open_token(store, settings, page_id)
        report = await verify_page(
            store, graph, page_id, token, deep=deep, calls_per_second=settings.calls_per_second
        )
    if json_:
        print_json(report.as_json())
    else:
        table = Table(*report.as_json())
        table.add_row(*(str(value) for value in report.as_json().values()))
        table.show()
        for finding in report.examples:
            stdout.print(f"  {finding}", highlight=False)
    return OK if report.clean else FAILURE


@main.group()
def deletions() -> None:
    """Deletions that a sync held back, because more conversations were missing than is credible."""


@deletions.command("allow")
@click.argument("page_id")
@click.argument("run_id", type=click.IntRange(1, 2**63 - 1))
@as_json
@command
async def deletions_allow(page_id: str, run_id: int, json_: bool) -> None:
    """They are really gone: a retry of that run, or the next whole sync, asks for each of them."""
    async with open_store(load_settings()) as (store, _):
        allowed = await store.allow_deletions_of_run(page_id=page_id, run_id=run_id)
    if json_:
        print_json({"page_id": page_id, "run_id": str(run_id), "conversations": allowed})
    else:
        stdout.print(
            f"Page {page_id}: up to {allowed} conversations may be gone. The next full or reconciling sync"
            f" asks for them, or now: convsync sync {page_id} --retry {run_id}",
            highlight=False,
            soft_wrap=True,
        )


@main.group("dead-letters")
def dead_letters() -> None:
    """What could not be understood: look at it, replay it, discard it."""


@dead_letters.command("list")
@click.argument("page_id", required=False)
@click.option("--resolved", is_flag=True, help="Those that were settled.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@as_json
@command
async def dead_letters_list(page_id: str | None, resolved: bool, limit: int, json_: bool) -> None:
    """The newest dead letters that wait."""
    async with open_store(load_settings()) as (store, _):
        letters = await store.list_dead_letters(page_id=page_id, resolved=resolved, limit=limit)
    if json_:
        print_json(letters)
    else:
        show_dead_letters(letters)


@dead_letters.command("show")
@click.argument("dead_letter_id", type=int)
@as_json
@command
async def dead_letters_show(dead_letter_id: int, json_: bool) -> None:
    """One dead letter with all that is kept of it."""
    async with open_store(load_settings()) as (store, _):
        letter = await store.get_dead_letter(dead_letter_id=dead_letter_id)
    if json_:
        print_json(letter)
        return
    show_dead_letters([letter])
    raw = base64.b64decode(letter["raw_base64"]).decode("utf-8", "backslashreplace")
    stdout.print(escape_controls(raw), highlight=False, markup=False, soft_wrap=True)


@dead_letters.command("replay")
@click.argument("dead_letter_id", type=int)
@as_json
@command
async def dead_letters_replay(dead_letter_id: int, json_: bool) -> None:
    """Read it again and land what it says, once."""
    async with open_store(load_settings()) as (store, _):
        replayed = await replay(store, dead_letter_id)
    if json_:
        print_json({"dead_letter_id": str(dead_letter_id), "replayed": replayed})
    else:
        stdout.print("replayed" if replayed else "it was settled before")


@dead_letters.command("discard")
@click.argument("dead_letter_id", type=int)
@click.option("--reason", required=True, help="Why nothing is lost with it.")
@as_json
@command
async def dead_letters_discard(dead_letter_id: int, reason: str, json_: bool) -> None:
    """Settle it with a reason."""
    async with open_store(load_settings()) as (store, _):
        discarded = await store.discard_dead_letter(dead_letter_id=dead_letter_id, reason=reason)
    if json_:
        print_json({"dead_letter_id": str(dead_letter_id), "discarded": discarded})
    else:
        stdout.print("discarded" if discarded else "it was settled before")


@main.command()
@click.argument("page_id")
@click.argument("sender_id")
@asks_first("Erase {sender_id} from Page {page_id} for ever: every message, the name, notes and tags?")
@as_json
@command
async def erase(page_id: str, sender_id: str, json_: bool) -> None:
    """Erase a person from a Page, by the id that it knows them by. What of them comes again stays out."""
    async with open_store(load_settings()) as (store, _):
        done = await store.erase_contact(page_id=page_id, sender_id=sender_id)
    if json_:
        print_json(done)
        return
    what = f"nobody was found under {sender_id}" if done["conversation_id"] is None else "erased"
    stdout.print(
        escape_controls(
            f"Page {page_id}: {what}; {done['events']} events, {done['waiting_amendments']} waiting edits, "
            f"{done['dead_letters']} dead letters are gone. "
            f"Whatever of before {done['erased_at']} comes again is refused."
        ),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@main.command()
@click.argument("page_id")
@click.option(
    "--before", type=Horizon(), required=True, help="A day or a time, ISO 8601; UTC if it names no zone."
)
@asks_first("Delete all that Page {page_id} has of before {before} for ever?")
@as_json
@command
async def purge(page_id: str, before: datetime, json_: bool) -> None:
    """Delete what a Page has of before an instant. What of before comes again stays out."""
    async with open_store(load_settings()) as (store, _):
        done = await purge_page(store, page_id, before)
    if json_:
        print_json(done)
        return
    stdout.print(
        escape_controls(
            f"Page {page_id}: {done['events']} events of {done['conversations']} conversations are gone. "
            f"Whatever of before {done['purged_before']} comes again is not stored."
        ),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@main.command()
@click.option("--dry-run", is_flag=True, help="Write nothing; the same report.")
@as_json
@command
async def adopt(dry_run: bool, json_: bool) -> None:
    """Move the old system's database in, repaired. It is the one at CONVSYNC_ADOPT_URL, and is only read."""
    settings = load_settings()
    if settings.adopt_url is None:
        raise click.UsageError("CONVSYNC_ADOPT_URL is needed: the database of the old system")
    url = settings.adopt_url.get_secret_value()
    async with open_store(settings) as (store, _):
        with adoption_bar(quiet=json_) as progress_of_events:
            report = await adopt_database(store, url, dry_run=dry_run, progress=progress_of_events)
    if json_:
        print_json(report.as_json())
    else:
        report.show()


_RECIPE = re.compile(r"(-f|--file=|)(sql/ops/\w+\.sql)")


def _recipes(arguments: Sequence[str]) -> Iterator[str]:
    """psql's arguments. A recipe that is not below here is the one that came with convsync: `status` and the
    manual name them as they are called in the repository, and most people have not got that.
    """
    before = ""
    for argument in arguments:
        named = _RECIPE.fullmatch(argument)
        if named and not Path(named[2]).exists() and (named[1] or re.fullmatch("-[a-zA-Z]*f|--file", before)):
            packaged = installer.source("sql") / "ops" / Path(named[2]).name
            yield f"{named[1]}{packaged}" if packaged.is_file() else argument
        else:
            yield argument
        before = argument


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@command
async def psql(arguments: tuple[str, ...]) -> int:
    """psql on the configured (or embedded) database, as its owner. Arguments are psql's own."""
    async with open_database(load_settings(), "leave") as urls:
        parts = conninfo.conninfo_to_dict(urls.owner)
        password = parts.pop("password", None)
        for name in UNSEEN.intersection(parts):
            raise Failure(f"psql would show the {name} of the database's URL to everybody on this machine")
        target = conninfo.make_conninfo("", **parts)
        # A command line can be read by everybody on the machine; an environment by its owner only.
        environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
        program = str(urls.psql) if urls.psql else "psql"
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is psql's
        try:
            done = subprocess.run(  # noqa: ASYNC221, S603 - nothing else runs here; psql's own arguments
                [program, target, *_recipes(arguments)], env=environment, check=False
            )
        except FileNotFoundError:
            raise Failure("psql is not installed here (Debian: postgresql-client)") from None
        finally:
            signal.signal(signal.SIGINT, ignored)
        return done.returncode


# Last, because it uses what stands above.
from convsync.outgoing_cli import outgoing  # noqa: E402

main.add_command(outgoing)


if __name__ == "__main__":
    main()
