"""The change feed: what changed since a position, by request or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Annotated

from aiohttp import web
from pydantic import Field

from convsync.errors import DatabaseUnavailable, Erased, TryAgain
from convsync.facts import Json
from convsync.store import Change, Store
from convsync.web import answered, tickets
from convsync.web.asked import Asked, NoParameters, Parameters, Position, Whole, read_body, refused
from convsync.web.limits import TooManyStreams
from convsync.web.routing import EVENT_STREAM, KEY, REQUEST_ID, Answer, Header, query, route, visible_pages
from convsync.web.sessions import SESSION
from convsync.web.sse import HEARTBEAT_SECONDS, left, stream
from convsync.web.state import LIFECYCLE, STORE, STREAMS

_LIMIT = 1000
POLL_SECONDS = 1.0

After = Annotated[
    str | None, Field(description="A position of this feed; without one, the beginning of what is kept.")
]


class ListChanges(Parameters):
    after: After = None
    consumer: Annotated[
        str | None, Field(description="Without `after`: go on where this named consumer stands.")
    ] = None
    limit: Annotated[int, Whole(1, _LIMIT)] = 100


class StreamChanges(Parameters):
    after: After = None
    ticket: Annotated[str | None, Field(description="A stream ticket, instead of a key.")] = None


class NewPosition(Asked):
    """How far a consumer has come: the position of the last change it is done with."""

    position: Position


# As `_outgoing_consumer` in SQL names them.
_OUTGOING = "outgoing:"


def _consumer(request: web.Request, name: str) -> str:
    """The consumer as it is stored."""
    return f"{request[KEY].consumer_prefix}{name}" if name else name


@route(
    "GET",
    "/api/changes",
    access="read",
    query=ListChanges,
    answers={200: Answer(answered.Changes)},
    errors=(Erased,),
)
async def list_changes(request: web.Request) -> web.Response:
    """`after` (or where the named `consumer` stands), at most `limit`; `position` is where to go on from.

    410 when changes after that position have expired, with the `position` to go on from after a fresh read.
    """
    asked = query(request, ListChanges)
    store, after = request.app[STORE], asked.after
    if after is None and asked.consumer is not None:
        after = await store.feed_position(consumer=_consumer(request, asked.consumer))
    changes = await store.changes_after(after=after, limit=asked.limit, pages=visible_pages(request))
    return web.json_response(
        {
            "changes": [change.as_json() for change in changes],
            "position": changes[-1].position if changes else after,
            "more": len(changes) == asked.limit,
        }
    )


@route("GET", "/api/changes/end", access="read", query=NoParameters, answers={200: Answer(answered.FeedEnd)})
async def feed_end(request: web.Request) -> web.Response:
    """The `position` to go on from after a read of the mirror that begins now."""
    return web.json_response({"position": await request.app[STORE].feed_end()})


@route(
    "POST",
    "/api/changes/{consumer}/position",
    access="operate",
    query=NoParameters,
    body=NewPosition,
    answers={200: Answer(answered.ConsumerPosition)},
)
async def set_position(request: web.Request) -> web.Response:
    """Remember how far a consumer has come, once its work is done: what it has not confirmed comes again."""
    body = await read_body(request, NewPosition)
    consumer = request.match_info["consumer"]
    if consumer.startswith(_OUTGOING):
        raise refused("consumer", "is an outgoing webhook: what it was told of, nobody else can say")
    await request.app[STORE].set_feed_position(consumer=_consumer(request, consumer), position=body.position)
    return web.json_response({"consumer": consumer, "position": body.position})


@route(
    "GET",
    "/api/changes/stream",
    access="read",
    query=StreamChanges,
    headers=[Header("Last-Event-ID", "The position to go on from; goes before `after`.")],
    answers={
        200: Answer(
            what="Events `change`, whose id is the position.",
            media_type=EVENT_STREAM,
            events={"change": answered.StreamedChange},
        )
    },
    errors=(Erased, TooManyStreams),
    ticket=lambda _: tickets.CHANGES,
)
async def stream_changes(request: web.Request) -> web.StreamResponse:
    """Server-sent events `change`; the id is the position: Last-Event-ID (or `after`) resumes."""
    store, lifecycle, pages = request.app[STORE], request.app[LIFECYCLE], visible_pages(request)
    after = request.headers.get("Last-Event-ID") or query(request, StreamChanges).after
    session = request.get(SESSION)

    def stopping() -> bool:
        return lifecycle.stopping or left(request) or (session is not None and session.expired)

    with request.app[STREAMS].place():
        # An error of the first read is still an ordinary answer.
        first = await store.changes_after(after=after, limit=_LIMIT, pages=pages)
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
