"""Server-sent events: the framing, and a run's life as events.

The id of an event is the run's `progress`, a number that rises with every change of its row; so any
process can go on with a stream where `Last-Event-ID` says the reader is. Progress says where the run
stands, so only the newest is sent; each failed batch is sent once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
from aiohttp import web

from convsync.facts import Json

HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = 0.5
ENDED = frozenset(("succeeded", "partial", "failed", "cancelled", "paused"))


async def run_events(
    read: Callable[[], Awaitable[Json]], after: int, *, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[tuple[str, str, Json] | None]:
    """(event, id, data) of a run from `after` on, to its end; None when nothing happened for a while."""
    quiet = 0.0
    while True:
        run = await read()
        position = int(run["progress"])
        ended = run["status"] in ENDED
        if position > after or ended:
            quiet = 0.0
            for batch in run["failed_batches"]:
                if int(batch["progress"]) > after:
                    yield "batch_failed", batch["progress"], {"run_id": run["run_id"], **batch}
            if ended:
                yield "done", run["progress"], run
                return
            yield "progress", run["progress"], run
            after = position
        elif quiet >= HEARTBEAT_SECONDS:
            quiet = 0.0
            yield None
        await asyncio.sleep(poll_seconds)
        quiet += poll_seconds


async def stream(
    request: web.Request,
    events: AsyncIterator[tuple[str, str, Json] | None],
    request_id: str,
    *,
    stopping: Callable[[], bool],
) -> web.StreamResponse:
    """Send the events until they end, the reader leaves or the service stops; the run goes on alone."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-ID": request_id,
        }
    )
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        async for event in events:
            if event is None:
                await response.write(b": still here\n\n")
            else:
                name, identity, data = event
                body = orjson.dumps({**data, "stream_request_id": request_id}, default=str)
                await response.write(
                    b"id: %b\nevent: %b\ndata: %b\n\n" % (identity.encode(), name.encode(), body)
                )
            if stopping():
                break
        await response.write_eof()
    return response
