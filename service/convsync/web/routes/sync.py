"""Syncs: begin one, watch it, read it, cancel it, retry what it could not read."""

from __future__ import annotations

import asyncio
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.errors import NotFound
from convsync.facts import Json
from convsync.settings import find_key
from convsync.sync.ports import Begun
from convsync.web import sse, tickets
from convsync.web.middlewares import KEYS, presented_key
from convsync.web.routes.pages import PageId
from convsync.web.routing import (
    KEY,
    REQUEST_ID,
    Unauthorized,
    allowed_page,
    read_body,
    refused,
    route,
    whole_number,
)
from convsync.web.state import LIFECYCLE, RUNNER, STORE

_LONGEST_WAIT = 3600.0


class NewSync(BaseModel):
    """The body that begins a sync."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    page_id: PageId
    mode: Literal["full", "incremental", "reconcile"] = "full"
    deadline_seconds: float | None = Field(default=None, gt=0, le=30 * 86400)
    restart: bool = False


class NewTicket(BaseModel):
    """The body of POST /api/stream-tickets."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    run_id: int = Field(gt=0, lt=2**63)


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


async def _visible_run(request: web.Request, run_id: int) -> Json:
    run = await request.app[STORE].get_sync_run(run_id=run_id)
    key = request.get(KEY)
    if key is not None and key.pages and run["page_id"] not in key.pages:
        raise NotFound(f"there is no run {run_id}")
    return run


@route("POST", "/api/conversations/sync", access="operate")
async def begin(request: web.Request) -> web.Response:
    """202 with the run; with ?wait=SECONDS, 200 with the ended run if it ends in that time."""
    seconds = _seconds_to_wait(request)
    return await _awaited(request, await _begin(request), seconds)


@route("POST", "/api/sync-runs/{run_id}/retry", access="operate")
async def retry(request: web.Request) -> web.Response:
    """Go on with what a run that has ended could not read; answers as its beginning does."""
    seconds = _seconds_to_wait(request)
    run = await _visible_run(request, whole_number(request.match_info["run_id"], "run_id"))
    begun = await request.app[RUNNER].retry(
        run["page_id"], int(run["run_id"]), run["mode"], request_id=request[REQUEST_ID]
    )
    return await _awaited(request, begun, seconds)


@route("POST", "/api/sync-runs/{run_id}/allow-deletions", access="operate")
async def allow_deletions(request: web.Request) -> web.Response:
    """What a run holds back is really gone: a retry of it, or the next whole sync, asks for each of them."""
    run = await _visible_run(request, whole_number(request.match_info["run_id"], "run_id"))
    allowed = await request.app[STORE].allow_deletions_of_run(
        page_id=run["page_id"], run_id=int(run["run_id"])
    )
    return web.json_response({"page_id": run["page_id"], "run_id": run["run_id"], "conversations": allowed})


def _seconds_to_wait(request: web.Request) -> float | None:
    wait = request.query.get("wait")
    if wait is None:
        return None
    try:
        seconds = float(wait)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_WAIT:
        raise refused("wait", f"must be between 0 and {_LONGEST_WAIT:.0f} seconds")
    return seconds


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


@route("POST", "/api/conversations/sync-stream", access="operate")
async def begin_and_watch(request: web.Request) -> web.StreamResponse:
    """Begin a sync and stream it."""
    begun = await _begin(request)
    return await _watch(request, begun.run_id, sse.FROM_THE_START)


@route("GET", "/api/conversations/sync-stream", access="public")
async def watch(request: web.Request) -> web.StreamResponse:
    """Stream a run, from Last-Event-ID on. An API key, or a ticket for this run, opens it."""
    run_id = whole_number(request.query.get("run_id", ""), "run_id")
    keys = request.app[KEYS]
    ticket = request.query.get("ticket")
    key = tickets.redeem(keys, ticket, run_id) if ticket else find_key(keys, presented_key(request))
    if key is None:
        raise Unauthorized("send an API key as `Authorization: Bearer KEY`, or a stream ticket")
    request[KEY] = key
    last = request.headers.get("Last-Event-ID", "")
    after = int(last) if last.isascii() and last.isdigit() and len(last) < 19 else sse.FROM_THE_START
    await _visible_run(request, run_id)
    return await _watch(request, run_id, after)


async def _watch(request: web.Request, run_id: int, after: int) -> web.StreamResponse:
    store, lifecycle = request.app[STORE], request.app[LIFECYCLE]
    events = sse.run_events(
        lambda: store.get_sync_run(run_id=run_id), after, stopping=lambda: lifecycle.stopping
    )
    return await sse.stream(request, events, request[REQUEST_ID])


@route("POST", "/api/stream-tickets", access="read")
async def ticket(request: web.Request) -> web.Response:
    """A 60-second ticket for one stream."""
    body = await read_body(request, NewTicket)
    await _visible_run(request, body.run_id)
    issued = tickets.issue(request[KEY], body.run_id)
    return web.json_response({"ticket": issued, "expires_in": tickets.LIFETIME_SECONDS}, status=201)


@route("GET", "/api/sync-runs/{run_id}", access="read")
async def get_run(request: web.Request) -> web.Response:
    run_id = whole_number(request.match_info["run_id"], "run_id")
    return web.json_response(await _visible_run(request, run_id))


@route("POST", "/api/sync-runs/{run_id}/cancel", access="operate")
async def cancel(request: web.Request) -> web.Response:
    run = await _visible_run(request, whole_number(request.match_info["run_id"], "run_id"))
    await request.app[STORE].cancel_sync(page_id=run["page_id"], run_id=int(run["run_id"]))
    return web.json_response(await _visible_run(request, int(run["run_id"])))
