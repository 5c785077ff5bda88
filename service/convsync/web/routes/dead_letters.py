"""Dead letters: see what waits, replay it once, or discard it with a reason."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field

from convsync.dead_letters import replay
from convsync.errors import Erased, NotFound
from convsync.facts import Json
from convsync.web import answered
from convsync.web.asked import Asked, Flag, Id, NoParameters, Parameters, Whole, read_body
from convsync.web.routing import KEY, Answer, allowed_page, path_id, query, route, visible_pages
from convsync.web.state import STORE

_LIMIT = 500


class ListLetters(Parameters):
    page_id: Annotated[str | None, Field(description="Of this Page, else of all the key may see.")] = None
    resolved: Annotated[Flag, Field(description="Those that were settled, not those that wait.")] = False
    before: Annotated[Id | None, Field(description="The `next` of the part before.")] = None
    limit: Annotated[int, Whole(1, _LIMIT)] = 50


class Discard(Asked):
    """Why it is not wanted."""

    reason: Annotated[str, Field(min_length=1, max_length=500)]


async def visible_letter(request: web.Request) -> Json:
    """The letter, if the caller's key may see its Page; one without a Page is for keys that see all."""
    number = path_id(request, "dead_letter_id")
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    pages = request[KEY].pages
    if pages and letter["page_id"] not in pages:
        raise NotFound(f"there is no dead letter {letter['dead_letter_id']}")
    return letter


@route(
    "GET",
    "/api/dead-letters",
    access="read",
    query=ListLetters,
    answers={200: Answer(answered.DeadLetters)},
    errors=(NotFound,),
)
async def list_letters(request: web.Request) -> web.Response:
    """Waiting ones, newest first; `page_id`, `resolved=true`, `before` (an id), `limit`."""
    asked = query(request, ListLetters)
    if asked.page_id is not None:
        allowed_page(request, asked.page_id)
    # One more than asked for tells whether that is all.
    found = await request.app[STORE].list_dead_letters(
        page_id=asked.page_id,
        resolved=asked.resolved,
        before=asked.before,
        limit=asked.limit + 1,
        pages=visible_pages(request),
    )
    letters = found[: asked.limit]
    return web.json_response(
        {
            "dead_letters": letters,
            "next": letters[-1]["dead_letter_id"] if len(found) > len(letters) else None,
        }
    )


@route(
    "GET",
    "/api/dead-letters/{dead_letter_id}",
    access="read",
    query=NoParameters,
    answers={200: Answer(answered.WholeDeadLetter)},
    errors=(NotFound,),
)
async def get_letter(request: web.Request) -> web.Response:
    """One, with its raw bytes in base64."""
    return web.json_response(await visible_letter(request))


@route(
    "POST",
    "/api/dead-letters/{dead_letter_id}/replay",
    access="operate",
    query=NoParameters,
    answers={200: Answer(answered.Replayed)},
    errors=(NotFound, Erased),
)
async def replay_letter(request: web.Request) -> web.Response:
    """Read it again and land what it says, once: `replayed` is false if it was settled before."""
    letter = await visible_letter(request)
    number = int(letter["dead_letter_id"])
    replayed = await replay(request.app[STORE], number)
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    return web.json_response({"replayed": replayed, "resolution": letter["resolution"]})


@route(
    "POST",
    "/api/dead-letters/{dead_letter_id}/discard",
    access="operate",
    query=NoParameters,
    body=Discard,
    answers={200: Answer(answered.Discarded)},
    errors=(NotFound,),
)
async def discard_letter(request: web.Request) -> web.Response:
    """Settle it without landing it, with a reason; its bytes stay until it expires."""
    letter = await visible_letter(request)
    body = await read_body(request, Discard)
    number = int(letter["dead_letter_id"])
    discarded = await request.app[STORE].discard_dead_letter(dead_letter_id=number, reason=body.reason)
    letter = await request.app[STORE].get_dead_letter(dead_letter_id=number)
    return web.json_response({"discarded": discarded, "resolution": letter["resolution"]})
