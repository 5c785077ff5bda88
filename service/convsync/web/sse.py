"""Server-sent events: the framing, and a run's life as events.

The id of an event is the run's `progress`, a number that rises with every change of its row; so any
process can go on with a stream where `Last-Event-ID` says the reader is. Progress says where the run
stands, so only the newest is sent; each failed batch is sent once, and again if a retry fails on it.
Each event has the `request_id` its run was begun (or gone on with) for, and the `stream_request_id` of
who watches.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import orjson
import structlog
from aiohttp import web

from convsync.errors import DatabaseUnavailable, TryAgain
from convsync.facts import Json

HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = 0.5
# Before the first position, so that who comes anew is told at once where the run stands.
FROM_THE_START = -1
ENDED = frozenset(("succeeded", "partial", "failed", "cancelled", "paused"))

_log = structlog.get_logger(__name__)


async def run_events(
    read: Callable[[], Awaitable[Json]], after: int, *, stopping: Callable[[], bool]
) -> AsyncGenerator[tuple[str, str, Json] | None, None]:
    """(event, id, data) of a run from `after` on, to its end or the service's; None after a quiet while.

    A database that is away is waited for: the run waits for it too.
    """
    quiet = 0.0
    while not stopping():
        try:
            run = await read()
        except (TryAgain, DatabaseUnavailable):
            yield None
            await asyncio.sleep(POLL_SECONDS)
            continue
        position = int(run["progress"])
        ended = run["status"] in ENDED
        if position > after or ended:
            quiet = 0.0
            for batch in run["failed_batches"]:
                if int(batch["progress"]) > after:
                    whose = {"run_id": run["run_id"], "request_id": run["request_id"]}
                    yield "batch_failed", batch["progress"], {**whose, **batch}
            if ended:
                yield "done", run["progress"], run
                return
            yield "progress", run["progress"], run
            after = position
        elif quiet >= HEARTBEAT_SECONDS:
            quiet = 0.0
            yield None
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS


def left(request: web.Request) -> bool:
    """Whether the reader has left; a write tells that too, but a quiet stream writes seldom."""
    return request.transport is None


async def stream(
    request: web.Request,
    events: AsyncGenerator[tuple[str, str, Json] | None, None],
    request_id: str,
) -> web.StreamResponse:
    """Send the events until they end or the reader leaves; the run goes on alone.

    The answer has begun, so an error can only end it: an EventSource then comes back by itself.
    """
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-ID": request_id,
        }
    )
    await response.prepare(request)
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if event is None:
                    await response.write(b": still here\n\n")
                else:
                    name, identity, data = event
                    body = orjson.dumps({**data, "stream_request_id": request_id}, default=str)
                    await response.write(
                        b"id: %b\nevent: %b\ndata: %b\n\n" % (identity.encode(), name.encode(), body)
                    )
        await response.write_eof()
    except ConnectionResetError:
        pass  # the reader left
    except Exception:
        _log.exception("stream_broken", path=request.path)
    return response
