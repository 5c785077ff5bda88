"""Erasing a person, and deleting what is older than an instant: each for ever."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from convsync.erasing import PART, horizon
from convsync.web.routing import allowed_page, read_body, route
from convsync.web.state import STORE


class Erasure(BaseModel):
    """The body of POST /api/pages/{page_id}/erasures: whom, by the id the Page knows them by."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    sender_id: Annotated[str, Field(min_length=1, max_length=1000)]


class Purge(BaseModel):
    """The body of POST /api/pages/{page_id}/purges."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    before: Annotated[datetime, BeforeValidator(horizon)]


@route("POST", "/api/pages/{page_id}/erasures", access="operate")
async def erase_contact(request: web.Request) -> web.Response:
    """Counts what was erased; `conversation_id` is null if the Page knew nobody by that id."""
    page_id = allowed_page(request, request.match_info["page_id"])
    body = await read_body(request, Erasure)
    return web.json_response(
        await request.app[STORE].erase_contact(page_id=page_id, sender_id=body.sender_id)
    )


@route("POST", "/api/pages/{page_id}/purges", access="operate")
async def purge_events(request: web.Request) -> web.Response:
    """One part, and its counts: to be called again while `more` is true. The first only sets the horizon."""
    page_id = allowed_page(request, request.match_info["page_id"])
    body = await read_body(request, Purge)
    return web.json_response(
        await request.app[STORE].purge_events(page_id=page_id, before=body.before, limit=PART)
    )
