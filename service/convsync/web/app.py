"""The application: settings in, a service out. Everything it owns is opened and closed here, in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import aiohttp_jinja2
import jinja2
import structlog
from aiohttp import web

from convsync import __version__, errors
from convsync.database.installer import schema_version
from convsync.erasing import purge_again
from convsync.facts import Fact
from convsync.graph.client import GraphClient
from convsync.graph.versions import warn_of_version
from convsync.observe.alerts import DELETIONS_HELD_BACK, Alerter, webhook_post
from convsync.observe.drift import DriftRecorder
from convsync.observe.metrics import ServiceMetrics, WritePath
from convsync.observe.watch import WriteWatch
from convsync.settings import Settings, limited_consumers
from convsync.store import Store, create_pool
from convsync.sync.contacts import ContactReader
from convsync.sync.runner import Outcome, RunnerSettings, Schedule, SyncRunner
from convsync.tasks import end
from convsync.web import middlewares
from convsync.web.routes import (
    changes,
    compliance,
    console,
    conversations,
    dead_letters,
    erasing,
    health,
    metrics,
    pages,
    proof,
    schema_drift,
    sync,
    webhook,
)
from convsync.web.routing import ROUTES
from convsync.web.state import (
    ALERTER,
    ALL_PROCESSES,
    COMMIT,
    CONTACTS,
    DRIFT,
    GRAPH,
    LIFECYCLE,
    METRICS,
    RUNNER,
    SCHEMA,
    SETTINGS,
    STORE,
    TOKENS,
    WRITE_PATH,
    Lifecycle,
)
from convsync.webhook.group_commit import GroupCommit

# Meta batches up to 1000 updates; its own samples stay far below a kilobyte each.
MAX_BODY_BYTES = 4 * 1024 * 1024
# From the request to stop to the end, whatever was going on. A delivery is answered within four.
STOP_SECONDS = 8.0
_REQUESTS_SECONDS = 4.5
_CONNECTIONS_SECONDS = 0.5
_LAST_SECONDS = 2.0
_TIDY_AGAIN_SECONDS = 30.0
_DAY_SECONDS = 86_400.0

_MODULES = (
    changes,
    compliance,
    console,
    conversations,
    dead_letters,
    erasing,
    health,
    metrics,
    pages,
    proof,
    schema_drift,
    sync,
    webhook,
)
_log = structlog.get_logger(__name__)


def create_app(settings: Settings, service_url: str) -> web.Application:
    """The service on the database at `service_url`, whose login needs no more than convsync_service."""
    path = WritePath()
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[
            middlewares.deliveries_measured(path),
            middlewares.request_id,
            middlewares.problems,
            middlewares.access,
            middlewares.parameters,
        ],
    )
    app[WRITE_PATH] = path
    app[SETTINGS] = settings
    app[SCHEMA] = schema_version()
    app[LIFECYCLE] = Lifecycle()
    app[TOKENS] = settings.token_box()
    app[middlewares.KEYS] = settings.keys()
    app[middlewares.ACCESS] = {(route.method, route.path): route.access for route in ROUTES}
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    aiohttp_jinja2.setup(
        app,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    app.cleanup_ctx.append(_database(service_url))
    app.cleanup_ctx.append(_graph)
    app.cleanup_ctx.append(_alerts)
    app.cleanup_ctx.append(_workers)
    app.on_response_prepare.append(_close_when_stopping)
    app.on_shutdown.append(_stop_taking)
    return app


def _database(url: str) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(app: web.Application) -> AsyncIterator[None]:
        pool = create_pool(url, size=app[SETTINGS].pool_max, name="serve")
        # Not waited for: the service answers (not ready, 503) while its database is away.
        await pool.open(wait=False)
        app[STORE] = Store(pool)
        yield
        await pool.close()

    return context


async def _graph(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    secret = settings.app_secret.get_secret_value() if settings.app_secret else None
    async with GraphClient(settings.graph_url, settings.graph_version, secret) as client:
        app[GRAPH] = client
        yield


async def _alerts(app: web.Application) -> AsyncIterator[None]:
    async with webhook_post(app[SETTINGS].alert_webhook_url) as post:
        app[ALERTER] = Alerter(post)
        yield


def _sync_ended(alerter: Alerter, page_id: str, mode: str, outcome: Outcome) -> None:
    """Only a walk of the whole list says what is missing from it, and only the next one that it is not."""
    if outcome.reason == "deletion_breaker":
        alerter.fire(DELETIONS_HELD_BACK, {"run_id": str(outcome.run_id)}, page_id=page_id)
    elif mode != "incremental" and outcome.status in ("succeeded", "partial"):
        alerter.clear(DELETIONS_HELD_BACK, page_id=page_id)


async def _workers(app: web.Application) -> AsyncIterator[None]:
    store, settings, path, alerter = app[STORE], app[SETTINGS], app[WRITE_PATH], app[ALERTER]

    drift = DriftRecorder(store.record_schema_drift, is_poison=errors.is_poison)
    read_drift = partial(drift.saw, "sync")
    contacts = ContactReader(
        store,
        app[GRAPH],
        app[TOKENS].open,
        calls_per_second=settings.calls_per_second,
        saw_drift=read_drift,
    )

    async def ingest(facts: Sequence[Fact]) -> None:
        with path.call(len(facts)):
            touched = await store.ingest(facts, "webhook")
        for conversation in touched:
            if conversation.created:
                contacts.want(conversation.page_id, conversation.sender_id, conversation.conversation_id)

    commit = GroupCommit(ingest, is_poison=errors.is_poison, is_transient=errors.is_transient)
    runner = SyncRunner(
        store,
        app[GRAPH],
        app[TOKENS].open,
        RunnerSettings.of(settings),
        saw_drift=read_drift,
        ended=partial(_sync_ended, alerter),
    )
    app[COMMIT], app[RUNNER], app[CONTACTS], app[DRIFT] = commit, runner, contacts, drift
    app[METRICS] = ServiceMetrics(
        build={"version": __version__, "schema": app[SCHEMA]},
        path=path,
        commit=commit,
        store=store,
        alerter=alerter,
        hidden_consumers=limited_consumers(app[middlewares.KEYS]),
        all_processes=app.get(ALL_PROCESSES),
    )
    watch = WriteWatch(alerter, commit, path, store.metrics)
    async with asyncio.TaskGroup() as group:
        committing = group.create_task(commit.run(), name="group commit")
        schedule = Schedule(settings.sync_interval, settings.reconcile_interval)
        supervising = group.create_task(runner.supervise(schedule=schedule), name="sync supervisor")
        reading = group.create_task(contacts.run(), name="live contacts")
        counting = group.create_task(drift.run(), name="schema drift")
        tidying = group.create_task(_tidy(store, settings), name="janitor")
        watching = group.create_task(watch.run(), name="write watch")
        telling = group.create_task(alerter.run(), name="alerts")
        yield
        # What is refused from here on is refused because we end, which needs nobody.
        await end(watching)
        # Requests have ended or were refused; what was accepted is committed, runs are paused at a page.
        left = app[LIFECYCLE].seconds_left
        await asyncio.gather(commit.close(left(_LAST_SECONDS)), runner.drain(left(_LAST_SECONDS)))
        # Who sees drift ends before it is written for the last time.
        for task in (tidying, reading, supervising, counting):
            await end(task)
        await committing
        await drift.close(min(_LAST_SECONDS, left()))
        await alerter.drain(min(_LAST_SECONDS, left()))
        await end(telling)


async def _tidy(store: Store, settings: Settings) -> None:
    """Once at the start and then daily: the feed's epoch, the loss meter's grace, what is past its time, and
    what soon will be."""
    warn_of_version(settings.graph_version)
    while True:
        try:
            await store.begin_feed_epoch()
            await store.set_loss_grace(seconds=settings.loss_grace)
            gone = {
                "dead_letters": await store.expire_dead_letters(days=settings.dead_letter_days),
                "pending_amendments": await store.expire_pending_amendments(days=settings.dead_letter_days),
                "schema_drift": await store.expire_schema_drift(days=settings.dead_letter_days),
                "changes": await _expire_changes(store, settings.changes_days),
                "events_below_a_horizon": await purge_again(store),
            }
        except errors.ConvsyncError as error:
            _log.warning("not_tidied", error=error.message)
            await asyncio.sleep(_TIDY_AGAIN_SECONDS)
        else:
            for what, count in gone.items():
                if count:
                    _log.info(f"{what}_expired", count=count)
            await asyncio.sleep(_DAY_SECONDS)
            warn_of_version(settings.graph_version)


async def _expire_changes(store: Store, days: int) -> int:
    gone = 0
    while batch := await store.expire_changes(days=days):
        gone += batch
    return gone


async def _close_when_stopping(request: web.Request, response: web.StreamResponse) -> None:
    """Who has more to ask connects again, to whoever serves then."""
    if request.app[LIFECYCLE].stopping:
        response.force_close()
        response.headers["Connection"] = "close"


async def _stop_taking(app: web.Application) -> None:
    app[LIFECYCLE].stop(STOP_SECONDS)


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Start listening; the caller stops the returned runner. `runner.addresses` has the port."""
    return await _serve(app, lambda runner: [web.TCPSite(runner, host, port)])


async def serve_on(app: web.Application, sockets: Sequence[socket.socket]) -> web.AppRunner:
    """Serve on sockets that listen already; the caller stops the returned runner."""
    return await _serve(app, lambda runner: [web.SockSite(runner, one) for one in sockets])


async def _serve(
    app: web.Application, sites: Callable[[web.AppRunner], Iterable[web.BaseSite]]
) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_REQUESTS_SECONDS, handle_signals=False)
    await runner.setup()
    try:
        for site in sites(runner):
            await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def stop(runner: web.AppRunner) -> bool:
    """End what the runner serves: what it accepted is committed or refused, syncs are paused.

    False if that has not ended in time: it was left as it is, and the process should exit. Nothing is lost by
    that; what was not committed was not answered with 200.
    """
    stopping = asyncio.create_task(_stop(runner), name="stop")
    done, _ = await asyncio.wait({stopping}, timeout=STOP_SECONDS)
    if not done:
        _log.error("not_stopped_in_time", seconds=STOP_SECONDS)
        return False
    stopping.result()
    return True


async def _stop(runner: web.AppRunner) -> None:
    runner.app[LIFECYCLE].stop(STOP_SECONDS)
    for site in list(runner.sites):
        await site.stop()
    # Who was let in has a moment for the request they came with: closed at once, it would be lost unheard.
    until = asyncio.get_running_loop().time() + _CONNECTIONS_SECONDS
    while runner.server is not None and runner.server.connections:
        if asyncio.get_running_loop().time() >= until:
            break
        await asyncio.sleep(0.02)
    await runner.cleanup()
