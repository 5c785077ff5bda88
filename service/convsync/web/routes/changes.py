"""The change feed: what changed since a position, by request or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.web.routing import KEY, REQUEST_ID, BadRequest, read_body, route
from convsync.web.sse import HEARTBEAT_SECONDS
from convsync.web.state import LIFECYCLE, STORE

_LIMIT = 1000
POLL_SECONDS = 1.0


class NewPosition(BaseModel):
    """The body of POST /api/changes/{consumer}/position."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    position: Annotated[str, Field(min_length=1, max_length=64)]


def _pages(request: web.Request) -> list[str] | None:
    """The Pages the caller's key may see; None for all."""
    return sorted(request[KEY].pages) or None


@route("GET", "/api/changes", access="read")
async def list_changes(request: web.Request) -> web.Response:
    """`after` (or where the named `consumer` stands), at most `limit`; `position` is where to go on from."""
    text = request.query.get("limit", "100")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LIMIT:
        raise BadRequest(f"limit must be a number from 1 to {_LIMIT}")
    store = request.app[STORE]
    after, consumer = request.query.get("after"), request.query.get("consumer")
    if after is None and consumer is not None:
        after = await store.feed_position(consumer=consumer)
    changes = await store.changes_after(after=after, limit=int(text), pages=_pages(request))
    return web.json_response(
        {
            "changes": [change.as_json() for change in changes],
            "position": changes[-1].position if changes else after,
            "more": len(changes) == int(text),
        }
    )


@route("POST", "/api/changes/{consumer}/position", access="operate")
async def set_position(request: web.Request) -> web.Response:
    """Remember how far a consumer has come, once its work is done: what it has not confirmed comes again."""
    body = await read_body(request, NewPosition)
    consumer = request.match_info["consumer"]
    await request.app[STORE].set_feed_position(consumer=consumer, position=body.position)
    return web.json_response({"consumer": consumer, "position": body.position})


@route("GET", "/api/changes/stream", access="read")
async def stream_changes(request: web.Request) -> web.StreamResponse:
    """Server-sent events `change`; the id is the position: Last-Event-ID (or `after`) resumes."""
    store, lifecycle, pages = request.app[STORE], request.app[LIFECYCLE], _pages(request)
    after = request.headers.get("Last-Event-ID") or request.query.get("after")
    # An error of the first read is still an ordinary answer.
    changes = await store.changes_after(after=after, limit=_LIMIT, pages=pages)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-ID": request[REQUEST_ID],
        }
    )
    await response.prepare(request)
    quiet = 0.0
    with contextlib.suppress(ConnectionResetError):
        while not lifecycle.stopping:
            for change in changes:
                after = change.position
                data = orjson.dumps(change.as_json())
                await response.write(b"id: %b\nevent: change\ndata: %b\n\n" % (after.encode(), data))
            if changes:
                quiet = 0.0
            elif quiet >= HEARTBEAT_SECONDS:
                quiet = 0.0
                await response.write(b": still here\n\n")
            if len(changes) < _LIMIT:
                await asyncio.sleep(POLL_SECONDS)
                quiet += POLL_SECONDS
            changes = await store.changes_after(after=after, limit=_LIMIT, pages=pages)
        await response.write_eof()
    return response
