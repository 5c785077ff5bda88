"""What Prometheus scrapes."""

from __future__ import annotations

from aiohttp import web

from convsync.observe.metrics import CONTENT_TYPE
from convsync.web.routing import KEY, Answer, Forbidden, route
from convsync.web.state import METRICS


@route(
    "GET",
    "/metrics",
    access="read",
    answers={200: Answer(what="Prometheus text.", media_type="text/plain")},
    errors=(Forbidden,),
)
async def metrics(request: web.Request) -> web.Response:
    """The metrics of this process, and of the database all processes share: of all Pages together."""
    key = request[KEY]
    if key.pages:
        raise Forbidden(f"the key {key.name} is limited to Pages; these numbers are of all of them")
    return web.Response(
        body=await request.app[METRICS].served(),
        headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"},
    )
