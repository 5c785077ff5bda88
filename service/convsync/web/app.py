"""The application: settings in, a service out. Everything it owns is opened and closed here, in order."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial

import structlog
from aiohttp import web

from convsync import __version__, errors
from convsync.database.installer import schema_version
from convsync.erasing import purge_again
from convsync.facts import Fact
from convsync.graph.client import GraphClient
from convsync.graph.versions import warn_of_version
from convsync.observe.alerts import Alerter, webhook_post
from convsync.observe.drift import DriftRecorder
from convsync.observe.measures import Measures
from convsync.observe.metrics import ServiceMetrics, WritePath
from convsync.observe.problems import ProblemWatch
from convsync.observe.watch import WriteWatch
from convsync.outgoing import Outgoing, poster
from convsync.settings import Settings, limited_consumers
from convsync.store import Store, create_pool
from convsync.sync.contacts import ContactReader
from convsync.sync.runner import RunnerSettings, Schedule, SyncRunner
from convsync.tasks import end
from convsync.web import cors, middlewares, views
from convsync.web.limits import RateLimit, Streams
from convsync.web.routes import (
    changes,
    compliance,
    console,
    console_letters,
    console_mirror,
    conversations,
    dead_letters,
    description,
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
from convsync.web.server import NOT_OURS, Runner
from convsync.web.sessions import Sessions
from convsync.web.state import (
    ALERTER,
    ALL_PROCESSES,
    COMMIT,
    CONTACTS,
    DRIFT,
    GRAPH,
    LIFECYCLE,
    MEASURES,
    METRICS,
    RUNNER,
    SCHEMA,
    SESSIONS,
    SETTINGS,
    STORE,
    STREAMS,
    TELLS,
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
    console_letters,
    console_mirror,
    conversations,
    dead_letters,
    description,
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
    logging.getLogger("aiohttp.server").addFilter(NOT_OURS)
    path = WritePath()
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[
            middlewares.deliveries_measured(path),
            middlewares.request_id,
            cors.preflights(settings.allowed_origins),
            views.errors_as_pages,
            middlewares.problems,
            middlewares.access,
            middlewares.parameters,
        ],
    )
    app[WRITE_PATH] = path
    app[MEASURES] = Measures()
    app[SETTINGS] = settings
    app[SCHEMA] = schema_version()
    app[LIFECYCLE] = Lifecycle()
    app[TOKENS] = settings.token_box()
    keys = settings.keys()
    app[middlewares.KEYS] = keys
    app[SESSIONS] = Sessions(keys, app[TOKENS].derived_key("console session"), settings.public_url)
    app[middlewares.TABLE] = {(route.method, route.path): route for route in ROUTES}
    app[STREAMS] = Streams(settings.streams_max)
    app[middlewares.LIMIT] = RateLimit(settings.requests_per_minute)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
        if route.method == "GET" and not route.is_stream:
            app.router.add_route("HEAD", route.path, route.handler)
    app.on_response_prepare.append(cors.headers(settings.allowed_origins))
    views.set_up(app)
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
        app[STORE] = Store(pool, app[MEASURES].database)
        yield
        await pool.close()

    return context


async def _graph(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    secret = settings.app_secret.get_secret_value() if settings.app_secret else None
    measures = app[MEASURES].graph
    async with GraphClient(settings.graph_url, settings.graph_version, secret, measures=measures) as client:
        app[GRAPH] = client
        yield


async def _alerts(app: web.Application) -> AsyncIterator[None]:
    async with webhook_post(app[SETTINGS].alert_webhook_url) as post:
        app[ALERTER] = Alerter(post, tells=app.get(TELLS))
        yield


async def _workers(app: web.Application) -> AsyncIterator[None]:
    store, settings, path, alerter = app[STORE], app[SETTINGS], app[WRITE_PATH], app[ALERTER]
    measures = app[MEASURES]

    drift = DriftRecorder(store.record_schema_drift, is_poison=errors.is_poison)
    read_drift = partial(drift.saw, "sync")
    contacts = ContactReader(
        store,
        app[GRAPH],
        app[TOKENS].open,
        calls_per_second=settings.calls_per_second,
        saw_drift=read_drift,
        measures=measures.graph,
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
        measures=measures,
    )
    app[COMMIT], app[RUNNER], app[CONTACTS], app[DRIFT] = commit, runner, contacts, drift
    app[METRICS] = ServiceMetrics(
        measures=measures,
        build={"version": __version__, "schema": app[SCHEMA]},
        path=path,
        commit=commit,
        store=store,
        alerter=alerter,
        open_streams=lambda: app[STREAMS].open,
        hidden_consumers=limited_consumers(app[middlewares.KEYS]),
        all_processes=app.get(ALL_PROCESSES),
    )
    watch = WriteWatch(alerter, commit, path, store.metrics)
    problems = ProblemWatch(store, alerter)
    async with poster() as post, asyncio.TaskGroup() as group:
        committing = group.create_task(commit.run(), name="group commit")
        schedule = Schedule(settings.sync_interval, settings.reconcile_interval)
        supervising = group.create_task(runner.supervise(schedule=schedule), name="sync supervisor")
        reading = group.create_task(contacts.run(), name="live contacts")
        counting = group.create_task(drift.run(), name="schema drift")
        tidying = group.create_task(_tidy(store, settings), name="janitor")
        watching = group.create_task(watch.run(), name="write watch")
        finding = group.create_task(problems.run(), name="problem watch")
        certifying = group.create_task(app[METRICS].certificate.run(), name="certificate metrics")
        telling = group.create_task(alerter.run(), name="alerts")
        delivering = group.create_task(Outgoing(store, app[TOKENS], post).run(), name="outgoing webhooks")
        yield
        # What is refused from here on is refused because we end, which needs nobody.
        await end(watching)
        await end(certifying)
        # Requests have ended or were refused; what was accepted is committed, runs are paused at a page.
        left = app[LIFECYCLE].seconds_left
        await asyncio.gather(commit.close(left(_LAST_SECONDS)), runner.drain(left(_LAST_SECONDS)))
        # Who sees drift ends before it is written for the last time.
        for task in (tidying, reading, supervising, counting, finding, delivering):
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
                "changes": await _until_none(partial(store.expire_changes, days=settings.changes_days)),
                "sync_records": await _until_none(
                    partial(store.expire_sync_runs, days=settings.sync_run_days)
                ),
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


async def _until_none(expire: Callable[[], Awaitable[int]]) -> int:
    gone = 0
    while batch := await expire():
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
    runner = Runner(app, access_log=None, shutdown_timeout=_REQUESTS_SECONDS, handle_signals=False)
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
