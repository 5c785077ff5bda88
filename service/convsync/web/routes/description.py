"""The API's own description."""

from __future__ import annotations

from aiohttp import web

from convsync.web.asked import NoParameters
from convsync.web.openapi import description
from convsync.web.routing import Answer, Header, route


@route(
    "GET",
    "/openapi.json",
    access="read",
    query=NoParameters,
    headers=[Header("If-None-Match", "The ETag that is known: 304 if the document is still that.")],
    answers={
        200: Answer(dict, what="The document.", headers=("ETag",)),
        304: Answer(what="It is still the one that If-None-Match names.", headers=("ETag",)),
    },
    needs_database=False,
)
async def openapi(request: web.Request) -> web.Response:
    """This document: OpenAPI 3.1."""
    described = description()
    headers = {"ETag": described.tag, "Cache-Control": "private, no-cache"}
    if described.tag in {part.strip() for part in request.headers.get("If-None-Match", "").split(",")}:
        return web.Response(status=304, headers=headers)
    return web.Response(body=described.body, content_type="application/json", headers=headers)
