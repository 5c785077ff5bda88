"""Web pages of other origins: those that CORS_ORIGINS names may call the API from a browser, no others.

Only with a key that the page sends itself: nothing says `Access-Control-Allow-Credentials`, so a browser
keeps cookies and typed passwords to itself, and the answer to a request that has them from the page.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_METHODS = "GET, HEAD, POST, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-ID"
_ANSWER_HEADERS = "ETag, Retry-After, X-Request-ID"
_PREFLIGHT_SECONDS = "600"


def _shared(path: str) -> bool:
    """The API, but not the console nor what Prometheus reads."""
    return path.startswith("/api/") or path == "/openapi.json"


def preflights(origins: frozenset[str]) -> Middleware:
    """Answer a browser that asks for leave before it sends a page's request."""

    @web.middleware
    async def preflight(request: web.Request, handler: Next) -> web.StreamResponse:
        if (
            request.method != hdrs.METH_OPTIONS
            or request.headers.get(hdrs.ORIGIN) not in origins
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in request.headers
            or not _shared(request.path)
        ):
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: _PREFLIGHT_SECONDS,
            },
        )

    return preflight


def headers(origins: frozenset[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """To be called as each answer begins, a stream's too: let pages of these origins read it."""

    async def let_read(request: web.Request, response: web.StreamResponse) -> None:
        if not origins or not _shared(request.path):
            return
        # Also to those who may not: a cache must not give them an answer for others.
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in origins:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _ANSWER_HEADERS

    return let_read
