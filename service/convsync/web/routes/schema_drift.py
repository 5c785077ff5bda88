"""Schema drift: what Meta sends that this release does not know, by name and how often."""

from __future__ import annotations

from aiohttp import web

from convsync.web.routing import KEY, allowed_page, route, whole_number
from convsync.web.state import STORE

_LIMIT = 1000


@route("GET", "/api/schema-drift", access="read")
async def list_drift(request: web.Request) -> web.Response:
    """The newest names first; `page_id`, `limit`. What names no Page is for keys that see all."""
    wanted = request.query.get("page_id") or None
    pages = [allowed_page(request, wanted)] if wanted else sorted(request[KEY].pages) or None
    drift = await request.app[STORE].list_schema_drift(
        pages=pages, limit=whole_number(request.query.get("limit") or "100", "limit", highest=_LIMIT)
    )
    return web.json_response({"schema_drift": drift})
