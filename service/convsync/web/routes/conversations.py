"""Conversations for people and programs: read them, edit them by version, see when a person writes."""

from __future__ import annotations

import re
from typing import Annotated

from aiohttp import web
from pydantic import Field

from convsync.errors import ConvsyncError, Erased, VersionConflict
from convsync.web import answered
from convsync.web.asked import Asked, BadRequest, NoParameters, Parameters, Whole, read_body
from convsync.web.routing import Answer, Header, page_in_path, path_id, query, route
from convsync.web.state import STORE

_VERSION = re.compile(r'(?:W/)?"(\d{1,18})"')
_LIMIT = 200


class PreconditionRequired(ConvsyncError):
    """There is no `If-Match` with the version that was read."""

    code, status, title = "precondition_required", 428, "The version is missing"


Tag = Annotated[str, Field(min_length=1, max_length=200)]
Before = Annotated[str | None, Field(description="The `next` of the part before.")]
Limit = Annotated[int, Whole(1, _LIMIT)]
Zone = Annotated[str | None, Field(description="An IANA time zone, like Europe/Berlin.")]


class Part(Parameters):
    before: Before = None
    limit: Limit = 50


class ListConversations(Part):
    status: Annotated[str | None, Field(description="Only those with this conversation_status.")] = None
    q: Annotated[str | None, Field(description="In the name or the last message, or the person's id.")] = None


class AskTiming(Parameters):
    tz: Zone = None


class Patch(Asked):
    """What a person may change; what is left out stays."""

    conversation_status: Annotated[str, Field(min_length=1, max_length=64)] = "active"
    tags: list[Tag] = Field(default=[], max_length=200)
    assignee: Annotated[str, Field(max_length=500)] | None = None
    note: Annotated[str, Field(max_length=100_000)] | None = None
    timezone: Annotated[str, Field(max_length=100)] | None = None


def _conversation_id(request: web.Request) -> int:
    return path_id(request, "conversation_id")


@route(
    "GET",
    "/api/pages/{page_id}/conversations",
    access="read",
    query=ListConversations,
    answers={200: Answer(answered.Conversations)},
)
async def list_conversations(request: web.Request) -> web.Response:
    """Newest first; `status`, `q` (name, last message or id), `before` (the last part's `next`), `limit`."""
    asked = query(request, ListConversations)
    found = await request.app[STORE].list_conversations(
        page_id=page_in_path(request),
        status=asked.status,
        query=asked.q,
        before=asked.before,
        limit=asked.limit,
    )
    return web.json_response(found)


@route(
    "GET",
    "/api/pages/{page_id}/conversations/{conversation_id}",
    access="read",
    query=NoParameters,
    headers=[Header("If-None-Match", "The ETag that is known: 304 if it is still that version.")],
    answers={
        200: Answer(answered.Conversation, headers=("ETag",)),
        304: Answer(what="It is still the version that If-None-Match names.", headers=("ETag",)),
    },
    errors=(Erased,),
)
async def get_conversation(request: web.Request) -> web.Response:
    """With `ETag: "<version>"`; 304 on a matching If-None-Match."""
    found = await request.app[STORE].get_conversation(
        page_id=page_in_path(request), conversation_id=_conversation_id(request)
    )
    tag = f'"{found["version"]}"'
    known = {part.strip().removeprefix("W/") for part in request.headers.get("If-None-Match", "").split(",")}
    if tag in known or "*" in known:
        return web.Response(status=304, headers={"ETag": tag})
    return web.json_response(found, headers={"ETag": tag})


@route(
    "PATCH",
    "/api/pages/{page_id}/conversations/{conversation_id}",
    access="operate",
    query=NoParameters,
    body=Patch,
    headers=[
        Header(
            "If-Match",
            "The version that was read.",
            required=True,
            schema={"type": "string", "pattern": '^"[0-9]{1,18}"$', "examples": ['"3"']},
        )
    ],
    answers={200: Answer(answered.Conversation, headers=("ETag",))},
    errors=(Erased, VersionConflict, PreconditionRequired),
)
async def change_conversation(request: web.Request) -> web.Response:
    """Only at the version that was read: `If-Match: "<version>"`; 428 without, 412 when it moved on."""
    page_id, conversation_id = page_in_path(request), _conversation_id(request)
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


@route(
    "GET",
    "/api/pages/{page_id}/conversations/{conversation_id}/events",
    access="read",
    query=Part,
    answers={200: Answer(answered.Events)},
    errors=(Erased,),
)
async def list_events(request: web.Request) -> web.Response:
    """The thread, newest first; `before` and `limit` as for conversations."""
    asked = query(request, Part)
    found = await request.app[STORE].list_events(
        page_id=page_in_path(request),
        conversation_id=_conversation_id(request),
        before=asked.before,
        limit=asked.limit,
    )
    return web.json_response(found)


@route(
    "GET",
    "/api/pages/{page_id}/events",
    access="read",
    query=Part,
    answers={200: Answer(answered.PageEvents)},
)
async def list_page_events(request: web.Request) -> web.Response:
    """What the platform told the Page of itself; `before` and `limit` as for conversations."""
    asked = query(request, Part)
    found = await request.app[STORE].list_page_events(
        page_id=page_in_path(request), before=asked.before, limit=asked.limit
    )
    return web.json_response(found)


@route(
    "GET",
    "/api/pages/{page_id}/conversations/{conversation_id}/timing",
    access="read",
    query=AskTiming,
    answers={200: Answer(answered.Timing)},
    errors=(Erased,),
)
async def contact_timing(request: web.Request) -> web.Response:
    """When this person writes: 7 x 24 counts in the zone `tz`, else in the person's own, else in UTC."""
    timing = await request.app[STORE].contact_timing(
        page_id=page_in_path(request),
        conversation_id=_conversation_id(request),
        timezone=query(request, AskTiming).tz,
    )
    return web.json_response(timing)


@route(
    "GET",
    "/api/pages/{page_id}/timing",
    access="read",
    query=AskTiming,
    answers={200: Answer(answered.Timing)},
)
async def page_timing(request: web.Request) -> web.Response:
    """When everybody on the Page writes, in the zone `tz`, else in UTC."""
    timing = await request.app[STORE].contact_timing(
        page_id=page_in_path(request), timezone=query(request, AskTiming).tz
    )
    return web.json_response(timing)
