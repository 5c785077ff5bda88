"""Erasing a person, and deleting what is older than an instant: each for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from aiohttp import web
from pydantic import BeforeValidator, Field, WithJsonSchema

from convsync.erasing import PART, horizon
from convsync.errors import Erased
from convsync.web import answered
from convsync.web.asked import Asked, NoParameters, read_body
from convsync.web.routing import Answer, page_in_path, route
from convsync.web.state import STORE

_DAY_OR_TIME = {
    "type": "string",
    "anyOf": [{"format": "date"}, {"format": "date-time"}],
    "description": "A day or a time that is past; in UTC where it names no zone.",
    "examples": ["2025-01-31", "2025-01-31T12:00:00Z"],
}


class Erasure(Asked):
    """Whom to erase, by the id the Page knows them by."""

    sender_id: Annotated[str, Field(min_length=1, max_length=1000)]


class Purge(Asked):
    """What to delete: everything from before this."""

    before: Annotated[datetime, BeforeValidator(horizon), WithJsonSchema(_DAY_OR_TIME)]


@route(
    "POST",
    "/api/pages/{page_id}/erasures",
    access="operate",
    query=NoParameters,
    body=Erasure,
    answers={200: Answer(answered.Erased)},
    errors=(Erased,),
)
async def erase_contact(request: web.Request) -> web.Response:
    """Counts what was erased; `conversation_id` is null if the Page knew nobody by that id."""
    page_id = page_in_path(request)
    body = await read_body(request, Erasure)
    return web.json_response(
        await request.app[STORE].erase_contact(page_id=page_id, sender_id=body.sender_id)
    )


@route(
    "POST",
    "/api/pages/{page_id}/purges",
    access="operate",
    query=NoParameters,
    body=Purge,
    answers={200: Answer(answered.Purged)},
)
async def purge_events(request: web.Request) -> web.Response:
    """One part, and its counts: to be called again while `more` is true. The first only sets the horizon."""
    page_id = page_in_path(request)
    body = await read_body(request, Purge)
    return web.json_response(
        await request.app[STORE].purge_events(page_id=page_id, before=body.before, limit=PART)
    )
