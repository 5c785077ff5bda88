"""The console: one read-only page with the Pages and the live progress of the running sync."""

from __future__ import annotations

from pathlib import Path

import aiohttp_jinja2
from aiohttp import web

from convsync import __version__
from convsync.web.routing import route, sees_page
from convsync.web.state import STORE

_FILES = Path(__file__).resolve().parents[1] / "console"
_TYPES = {"console.css": "text/css", "console.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@route("GET", "/", access="read")
async def console(request: web.Request) -> web.Response:
    pages = [page for page in await request.app[STORE].list_pages() if sees_page(request, page["page_id"])]
    context = {"pages": pages, "release": __version__}
    response = aiohttp_jinja2.render_template("console.html", request, context)
    response.headers.update(_HEADERS)
    return response


@route("GET", "/console/{file}", access="public")
async def asset(request: web.Request) -> web.Response:
    """The console's style and script; they hold no data."""
    name = request.match_info["file"]
    if name not in _TYPES:
        raise web.HTTPNotFound
    return web.Response(
        body=(_FILES / name).read_bytes(),
        content_type=_TYPES[name],
        charset="utf-8",
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"},
    )
