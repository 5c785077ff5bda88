"""Schema drift: what Meta sends that this release does not know, by name and how often."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field

from convsync.errors import NotFound
from convsync.web import answered
from convsync.web.asked import Parameters, Whole
from convsync.web.routing import Answer, allowed_page, query, route, visible_pages
from convsync.web.state import STORE

_LIMIT = 1000


class ListDrift(Parameters):
    page_id: Annotated[str | None, Field(description="Only what came for this Page.")] = None
    limit: Annotated[int, Whole(1, _LIMIT)] = 100


@route(
    "GET",
    "/api/schema-drift",
    access="read",
    query=ListDrift,
    answers={200: Answer(answered.SchemaDrift)},
    errors=(NotFound,),
)
async def list_drift(request: web.Request) -> web.Response:
    """The newest names first; `page_id`, `limit`. What names no Page is for keys that see all."""
    asked = query(request, ListDrift)
    pages = [allowed_page(request, asked.page_id)] if asked.page_id else visible_pages(request)
    drift = await request.app[STORE].list_schema_drift(pages=pages, limit=asked.limit)
    return web.json_response({"schema_drift": drift})
