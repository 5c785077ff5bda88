"""Conversations for people and programs: read them, edit them by version, see when a person writes."""

from __future__ import annotations

import re
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.errors import ConvsyncError
from convsync.web.routing import BadRequest, allowed_page, read_body, route, whole_number
from convsync.web.state import STORE

_VERSION = re.compile(r'(?:W/)?"(\d{1,18})"')
_LIMIT = 200


class PreconditionRequired(ConvsyncError):
    code, status, title = "precondition_required", 428, "The version is missing"


Tag = Annotated[str, Field(min_length=1, max_length=200)]


class Patch(BaseModel):
    """What a person may change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    conversation_status: Annotated[str, Field(min_length=1, max_length=64)] = "active"
    tags: list[Tag] = Field(default=[], max_length=200)
    assignee: Annotated[str, Field(max_length=500)] | None = None
    note: Annotated[str, Field(max_length=100_000)] | None = None
    timezone: Annotated[str, Field(max_length=100)] | None = None


def _page(request: web.Request) -> str:
    return allowed_page(request, request.match_info["page_id"])


def _limit(request: web.Request) -> int:
    return whole_number(request.query.get("limit") or "50", "limit", highest=_LIMIT)


def _conversation_id(request: web.Request) -> int:
    return whole_number(request.match_info["conversation_id"], "conversation_id")


@route("GET", "/api/pages/{page_id}/conversations", access="read")
async def list_conversations(request: web.Request) -> web.Response:
    """Newest first; `status`, `q` (name, last message or id), `before` (the last part's `next`), `limit`."""
    found = await request.app[STORE].list_conversations(
        page_id=_page(request),
        status=request.query.get("status"),
        query=request.query.get("q"),
        before=request.query.get("before"),
        limit=_limit(request),
    )
    return web.json_response(found)


@route("GET", "/api/pages/{page_id}/conversations/{conversation_id}", access="read")
async def get_conversation(request: web.Request) -> web.Response:
    """With `ETag: "<version>"`; 304 on a matching If-None-Match."""
    found = await request.app[STORE].get_conversation(
        page_id=_page(request), conversation_id=_conversation_id(request)
    )
    tag = f'"{found["version"]}"'
    known = {part.strip().removeprefix("W/") for part in request.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return web.Response(status=304, headers={"ETag": tag})
    return web.json_response(found, headers={"ETag": tag})


@route("PATCH", "/api/pages/{page_id}/conversations/{conversation_id}", access="operate")
async def change_conversation(request: web.Request) -> web.Response:
    """Only at the version that was read: `If-Match: "<version>"`; 428 without, 412 when it moved on."""
    page_id, conversation_id = _page(request), _conversation_id(request)
    condition = request.headers.get("If-Match")
    if condition is None:
        raise PreconditionRequired('send the version you read as If-Match: "<version>"')
    match = _VERSION.fullmatch(condition.strip())
    if match is None:
        raise BadRequest('If-Match must be one version: "<version>"')
    body = await read_body(request, Patch)
    store = request.app[STORE]
    await store.update_conversation(
        page_id=page_id,
        conversation_id=conversation_id,
        expected_version=int(match[1]),
        patch=body.model_dump(exclude_unset=True),
    )
    found = await store.get_conversation(page_id=page_id, conversation_id=conversation_id)
    # Somebody may have changed it again by now: then this is that version, and says so.
    return web.json_response(found, headers={"ETag": f'"{found["version"]}"'})


@route("GET", "/api/pages/{page_id}/conversations/{conversation_id}/events", access="read")
async def list_events(request: web.Request) -> web.Response:
    """The thread, newest first; `before` and `limit` as for conversations."""
    found = await request.app[STORE].list_events(
        page_id=_page(request),
        conversation_id=_conversation_id(request),
        before=request.query.get("before"),
        limit=_limit(request),
    )
    return web.json_response(found)


@route("GET", "/api/pages/{page_id}/events", access="read")
async def list_page_events(request: web.Request) -> web.Response:
    """What the platform told the Page of itself; `before` and `limit` as for conversations."""
    found = await request.app[STORE].list_page_events(
        page_id=_page(request), before=request.query.get("before"), limit=_limit(request)
    )
    return web.json_response(found)


@route("GET", "/api/pages/{page_id}/conversations/{conversation_id}/timing", access="read")
async def contact_timing(request: web.Request) -> web.Response:
    """When this person writes: 7 x 24 counts in the zone `tz`, else in the person's own, else in UTC."""
    timing = await request.app[STORE].contact_timing(
        page_id=_page(request),
        conversation_id=_conversation_id(request),
        timezone=request.query.get("tz") or None,
    )
    return web.json_response(timing)


@route("GET", "/api/pages/{page_id}/timing", access="read")
async def page_timing(request: web.Request) -> web.Response:
    """When everybody on the Page writes, in the zone `tz`, else in UTC."""
    timing = await request.app[STORE].contact_timing(
        page_id=_page(request), timezone=request.query.get("tz") or None
    )
    return web.json_response(timing)
