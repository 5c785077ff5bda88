"""The change feed: what changed since a position, by request or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.errors import DatabaseUnavailable, Erased, TryAgain
from convsync.facts import Json
from convsync.store import Change, Store
from convsync.web.routing import KEY, REQUEST_ID, read_body, route, whole_number
from convsync.web.sessions import SESSION
from convsync.web.sse import HEARTBEAT_SECONDS, stream
from convsync.web.state import LIFECYCLE, STORE

_LIMIT = 1000
POLL_SECONDS = 1.0


class NewPosition(BaseModel):
    """The body of POST /api/changes/{consumer}/position."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    position: Annotated[str, Field(min_length=1, max_length=64)]


def visible_pages(request: web.Request) -> list[str] | None:
    """The Pages the caller's key may see; None for all."""
    return sorted(request[KEY].pages) or None


def _consumer(request: web.Request, name: str) -> str:
    """The consumer as it is stored."""
    return f"{request[KEY].consumer_prefix}{name}" if name else name


@route("GET", "/api/changes", access="read")
async def list_changes(request: web.Request) -> web.Response:
    """`after` (or where the named `consumer` stands), at most `limit`; `position` is where to go on from.

    410 when changes after that position have expired, with the `position` to go on from after a fresh read.
    """
    limit = whole_number(request.query.get("limit") or "100", "limit", highest=_LIMIT)
    store = request.app[STORE]
    after, consumer = request.query.get("after"), request.query.get("consumer")
    if after is None and consumer is not None:
        after = await store.feed_position(consumer=_consumer(request, consumer))
    changes = await store.changes_after(after=after, limit=limit, pages=visible_pages(request))
    return web.json_response(
        {
            "changes": [change.as_json() for change in changes],
            "position": changes[-1].position if changes else after,
            "more": len(changes) == limit,
        }
    )


@route("GET", "/api/changes/end", access="read")
async def feed_end(request: web.Request) -> web.Response:
    """The `position` to go on from after a read of the mirror that begins now."""
    return web.json_response({"position": await request.app[STORE].feed_end()})


@route("POST", "/api/changes/{consumer}/position", access="operate")
async def set_position(request: web.Request) -> web.Response:
    """Remember how far a consumer has come, once its work is done: what it has not confirmed comes again."""
    body = await read_body(request, NewPosition)
    consumer = request.match_info["consumer"]
    await request.app[STORE].set_feed_position(consumer=_consumer(request, consumer), position=body.position)
    return web.json_response({"consumer": consumer, "position": body.position})


@route("GET", "/api/changes/stream", access="read")
async def stream_changes(request: web.Request) -> web.StreamResponse:
    """Server-sent events `change`; the id is the position: Last-Event-ID (or `after`) resumes."""
    store, lifecycle, pages = request.app[STORE], request.app[LIFECYCLE], visible_pages(request)
    after = request.headers.get("Last-Event-ID") or request.query.get("after")
    # An error of the first read is still an ordinary answer.
    first = await store.changes_after(after=after, limit=_LIMIT, pages=pages)
    session = request.get(SESSION)

    def stopping() -> bool:
        return lifecycle.stopping or (session is not None and session.expired)

    events = _change_events(store, first, after, pages, stopping=stopping)
    return await stream(request, events, request[REQUEST_ID])


async def _change_events(
    store: Store,
    changes: list[Change],
    after: str | None,
    pages: list[str] | None,
    *,
    stopping: Callable[[], bool],
) -> AsyncGenerator[tuple[str, str, Json] | None, None]:
    """(event, id, data) of each change, until the service ends; None after a quiet while."""
    quiet = 0.0
    while not stopping():
        for change in changes:
            after = change.position
            yield "change", change.position, change.as_json()
        if changes:
            quiet = 0.0
        elif quiet >= HEARTBEAT_SECONDS:
            quiet = 0.0
            yield None
        if len(changes) < _LIMIT:
            await asyncio.sleep(POLL_SECONDS)
            quiet += POLL_SECONDS
        try:
            changes = await store.changes_after(after=after, limit=_LIMIT, pages=pages)
        except (TryAgain, DatabaseUnavailable):
            changes = []  # a database that is away is waited for
        except Erased:
            return  # so far behind that changes have expired: who comes back with this position is told
