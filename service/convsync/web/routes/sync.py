"""Syncs: begin one, watch it, read it, cancel it, retry what it could not read."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from convsync.errors import AlreadyRunning, NotFound
from convsync.facts import Json
from convsync.sync.ports import Begun
from convsync.web import answered, sse, tickets
from convsync.web.asked import Asked, BodyId, Id, NoParameters, OldNames, PageId, Parameters, Whole, read_body
from convsync.web.limits import TooManyStreams
from convsync.web.routing import (
    EVENT_STREAM,
    KEY,
    REQUEST_ID,
    Answer,
    Header,
    allowed_page,
    page_in_path,
    path_id,
    query,
    route,
)
from convsync.web.state import LIFECYCLE, RUNNER, STORE, STREAMS

_LONGEST_WAIT = 3600

_RUN_EVENTS = Answer(
    what="Where it stands now, and with each change; each batch it could not read; last, `done`.",
    media_type=EVENT_STREAM,
    events={
        "progress": answered.WatchedRun,
        "batch_failed": answered.WatchedBatch,
        "done": answered.WatchedRun,
    },
)


class NewSync(OldNames):
    """The sync to begin. Its fields may also be named in camelCase, as in `pageId`."""

    page_id: PageId
    mode: Literal["full", "incremental", "reconcile"] = "full"
    deadline_seconds: Annotated[
        float | None, Field(gt=0, le=30 * 86400, description="It pauses then, to be gone on with.")
    ] = None
    restart: Annotated[bool, Field(description="Not to go on with a paused run of this mode.")] = False


class ListRuns(Parameters):
    before: Annotated[Id | None, Field(description="The `next` of the part before.")] = None
    limit: Annotated[int, Whole(1, 200)] = 20


class Wait(Parameters):
    wait: Annotated[
        float | None,
        Field(ge=0, le=_LONGEST_WAIT, description="Seconds to wait for its end: then the answer is 200."),
    ] = None


class WatchRun(Parameters):
    run_id: Id
    ticket: Annotated[str | None, Field(description="A stream ticket, instead of a key.")] = None


class NewTicket(Asked):
    """The stream that a ticket is for: of this run, or of the change feed."""

    run_id: Annotated[BodyId | None, Field(description="The run whose stream it opens.")] = None
    stream: Annotated[Literal["changes"] | None, Field(description="Or the stream of the change feed.")] = (
        None
    )

    @model_validator(mode="after")
    def _one(self) -> NewTicket:
        if (self.run_id is None) == (self.stream is None):
            raise PydanticCustomError("one_stream", "name one stream: run_id, or stream")
        return self


async def _begin(request: web.Request) -> Begun:
    body = await read_body(request, NewSync)
    page_id = allowed_page(request, body.page_id)
    return await request.app[RUNNER].start(
        page_id,
        body.mode,
        deadline_seconds=body.deadline_seconds,
        restart=body.restart,
        request_id=request[REQUEST_ID],
    )


async def visible_run(request: web.Request, run_id: int) -> Json:
    run = await request.app[STORE].get_sync_run(run_id=run_id)
    key = request.get(KEY)
    if key is not None and key.pages and run["page_id"] not in key.pages:
        raise NotFound(f"there is no run {run_id}")
    return run


_BEGUN = {
    200: Answer(answered.BegunRun, what="With `wait`: the run, which has ended."),
    202: Answer(answered.BegunRun, what="It was begun."),
}


@route(
    "POST",
    "/api/conversations/sync",
    access="operate",
    query=Wait,
    body=NewSync,
    answers=_BEGUN,
    errors=(NotFound, AlreadyRunning),
)
async def begin_sync(request: web.Request) -> web.Response:
    """Begin a sync, or go on with a paused one: 202 with the run.

    With ?wait=SECONDS, 200 with the ended run if it ends in that time.
    """
    seconds = query(request, Wait).wait
    return await _awaited(request, await _begin(request), seconds)


@route(
    "POST",
    "/api/sync-runs/{run_id}/retry",
    access="operate",
    query=Wait,
    answers=_BEGUN,
    errors=(NotFound, AlreadyRunning),
)
async def retry_run(request: web.Request) -> web.Response:
    """Go on with what a run that has ended could not read; answers as its beginning does."""
    seconds = query(request, Wait).wait
    run = await visible_run(request, path_id(request, "run_id"))
    begun = await request.app[RUNNER].retry(
        run["page_id"], int(run["run_id"]), run["mode"], request_id=request[REQUEST_ID]
    )
    return await _awaited(request, begun, seconds)


@route(
    "POST",
    "/api/sync-runs/{run_id}/allow-deletions",
    access="operate",
    query=NoParameters,
    answers={200: Answer(answered.AllowedDeletions)},
    errors=(NotFound,),
)
async def allow_deletions(request: web.Request) -> web.Response:
    """What a run holds back is really gone: a retry of it, or the next whole sync, asks for each of them."""
    run = await visible_run(request, path_id(request, "run_id"))
    allowed = await request.app[STORE].allow_deletions_of_run(
        page_id=run["page_id"], run_id=int(run["run_id"])
    )
    return web.json_response({"page_id": run["page_id"], "run_id": run["run_id"], "conversations": allowed})


async def _awaited(request: web.Request, begun: Begun, seconds: float | None) -> web.Response:
    run = await request.app[STORE].get_sync_run(run_id=begun.run_id)
    loop = asyncio.get_running_loop()
    until = loop.time() + (seconds or 0.0)
    lifecycle = request.app[LIFECYCLE]
    while run["status"] not in sse.ENDED and loop.time() < until and not lifecycle.stopping:
        await asyncio.sleep(min(sse.POLL_SECONDS, max(until - loop.time(), 0)))
        run = await request.app[STORE].get_sync_run(run_id=begun.run_id)
    waited_for = seconds is not None and run["status"] in sse.ENDED
    return web.json_response({**run, "resumed": begun.resumed}, status=200 if waited_for else 202)


@route(
    "POST",
    "/api/conversations/sync-stream",
    access="operate",
    query=NoParameters,
    body=NewSync,
    answers={200: _RUN_EVENTS},
    errors=(NotFound, AlreadyRunning, TooManyStreams),
)
async def begin_and_watch_sync(request: web.Request) -> web.StreamResponse:
    """Begin a sync and stream it."""
    # Its place first: a run that was begun is not refused.
    with request.app[STREAMS].place():
        begun = await _begin(request)
        return await _watch(request, begun.run_id, sse.FROM_THE_START)


@route(
    "GET",
    "/api/conversations/sync-stream",
    access="read",
    query=WatchRun,
    headers=[Header("Last-Event-ID", "The id of the last event that was seen.")],
    answers={200: _RUN_EVENTS},
    errors=(NotFound, TooManyStreams),
    ticket=lambda request: request.query.get("run_id", ""),
)
async def watch_run(request: web.Request) -> web.StreamResponse:
    """Stream a run, from Last-Event-ID on. An API key, or a ticket for this run, opens it."""
    run_id = query(request, WatchRun).run_id
    last = request.headers.get("Last-Event-ID", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else sse.FROM_THE_START
    with request.app[STREAMS].place():
        await visible_run(request, run_id)
        return await _watch(request, run_id, after)


async def _watch(request: web.Request, run_id: int, after: int) -> web.StreamResponse:
    store, lifecycle = request.app[STORE], request.app[LIFECYCLE]
    events = sse.run_events(
        lambda: store.get_sync_run(run_id=run_id),
        after,
        stopping=lambda: lifecycle.stopping or sse.left(request),
    )
    return await sse.stream(request, events, request[REQUEST_ID])


@route(
    "POST",
    "/api/stream-tickets",
    access="read",
    query=NoParameters,
    body=NewTicket,
    answers={201: Answer(answered.Ticket)},
    errors=(NotFound,),
)
async def issue_stream_ticket(request: web.Request) -> web.Response:
    """A 60-second ticket for one stream, to be shown as `?ticket=` by what cannot send a header."""
    body = await read_body(request, NewTicket)
    if body.run_id is not None:
        await visible_run(request, body.run_id)
    issued = tickets.issue(request[KEY], tickets.CHANGES if body.run_id is None else str(body.run_id))
    return web.json_response({"ticket": issued, "expires_in": tickets.LIFETIME_SECONDS}, status=201)


@route(
    "GET",
    "/api/pages/{page_id}/sync-runs",
    access="read",
    query=ListRuns,
    answers={200: Answer(answered.Runs)},
)
async def list_runs(request: web.Request) -> web.Response:
    """The syncs of a Page, newest first, each as its own address gives it."""
    asked = query(request, ListRuns)
    found = await request.app[STORE].list_sync_runs(
        page_id=page_in_path(request), before=asked.before, limit=asked.limit
    )
    return web.json_response(found)


@route(
    "GET",
    "/api/sync-runs/{run_id}",
    access="read",
    query=NoParameters,
    answers={200: Answer(answered.Run)},
    errors=(NotFound,),
)
async def get_run(request: web.Request) -> web.Response:
    """One run: how it stands, what it counted, and what it could not read."""
    return web.json_response(await visible_run(request, path_id(request, "run_id")))


@route(
    "POST",
    "/api/sync-runs/{run_id}/cancel",
    access="operate",
    query=NoParameters,
    answers={200: Answer(answered.Run)},
    errors=(NotFound,),
)
async def cancel_run(request: web.Request) -> web.Response:
    """End a run for good. One that has ended already stays as it is."""
    run = await visible_run(request, path_id(request, "run_id"))
    await request.app[STORE].cancel_sync(page_id=run["page_id"], run_id=int(run["run_id"]))
    return web.json_response(await visible_run(request, int(run["run_id"])))
