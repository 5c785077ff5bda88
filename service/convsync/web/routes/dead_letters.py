"""Dead letters: see what waits, replay it once, or discard it with a reason."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.dead_letters import replay
from convsync.errors import NotFound
from convsync.facts import Json
from convsync.web.routing import KEY, flag, read_body, refused, route, whole_number
from convsync.web.state import STORE

_LIMIT = 500


class Discard(BaseModel):
    """The body of POST /api/dead-letters/{id}/discard."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    reason: Annotated[str, Field(min_length=1, max_length=500)]


async def visible_letter(request: web.Request) -> Json:
    """The letter, if the caller's key may see its Page; one without a Page is for keys that see all."""
    number = whole_number(request.match_info["dead_letter_id"], "dead_letter_id")
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    pages = request[KEY].pages
    if pages and letter["page_id"] not in pages:
        raise NotFound(f"there is no dead letter {letter['dead_letter_id']}")
    return letter


@route("GET", "/api/dead-letters", access="read")
async def list_letters(request: web.Request) -> web.Response:
    """Waiting ones, newest first; `page_id`, `resolved=true`, `before` (an id), `limit`."""
    key, wanted = request[KEY], request.query.get("page_id") or None
    if key.pages and wanted is None:
        if len(key.pages) > 1:
            raise refused("page_id", "must be one of your Pages")
        wanted = next(iter(key.pages))
    if key.pages and wanted not in key.pages:
        raise NotFound(f"there is no Page {wanted}")
    before = request.query.get("before")
    letters = await request.app[STORE].list_dead_letters(
        page_id=wanted,
        resolved=flag(request, "resolved"),
        before=whole_number(before, "before") if before else None,
        limit=whole_number(request.query.get("limit") or "50", "limit", highest=_LIMIT),
    )
    return web.json_response({"dead_letters": letters})


@route("GET", "/api/dead-letters/{dead_letter_id}", access="read")
async def get_letter(request: web.Request) -> web.Response:
    """One, with its raw bytes in base64."""
    return web.json_response(await visible_letter(request))


@route("POST", "/api/dead-letters/{dead_letter_id}/replay", access="operate")
async def replay_letter(request: web.Request) -> web.Response:
    """Read it again and land what it says, once: `replayed` is false if it was settled before."""
    letter = await visible_letter(request)
    number = int(letter["dead_letter_id"])
    replayed = await replay(request.app[STORE], number)
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    return web.json_response({"replayed": replayed, "resolution": letter["resolution"]})


@route("POST", "/api/dead-letters/{dead_letter_id}/discard", access="operate")
async def discard_letter(request: web.Request) -> web.Response:
    letter = await visible_letter(request)
    body = await read_body(request, Discard)
    number = int(letter["dead_letter_id"])
    discarded = await request.app[STORE].discard_dead_letter(dead_letter_id=number, reason=body.reason)
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    return web.json_response({"discarded": discarded, "resolution": letter["resolution"]})
