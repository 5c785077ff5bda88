"""The console: dead letters with their bytes, replayed or discarded; the change feed as it happens."""

from __future__ import annotations

import base64
import contextlib

import orjson
from aiohttp import web

from convsync.dead_letters import replay
from convsync.errors import BadData, InvalidArgument
from convsync.facts import Json
from convsync.web.routes.dead_letters import visible_letter
from convsync.web.routing import allowed_page, flag, route, visible_pages, whole_number
from convsync.web.sessions import read_form
from convsync.web.state import SETTINGS, STORE
from convsync.web.views import page, see_other

_LETTERS = 50
_CHANGES = 100
# Of so many Pages one is chosen from a list; of more, by its id.
_OPTIONS = 100
_SHOWN = 100_000


@route("GET", "/console/dead-letters", access="read")
async def letters(request: web.Request) -> web.Response:
    """Waiting ones, newest first; `page_id` (else of all the key may see), `resolved=true`, `before`."""
    store, mine = request.app[STORE], visible_pages(request)
    wanted = request.query.get("page_id") or None
    if wanted is not None:
        allowed_page(request, wanted)
    resolved, before = flag(request, "resolved"), request.query.get("before")
    found = await store.list_dead_letters(
        page_id=wanted,
        resolved=resolved,
        before=whole_number(before, "before") if before else None,
        limit=_LETTERS,
        pages=mine,
    )
    pages = await store.find_pages(pages=mine, limit=_OPTIONS + 1)
    context = {
        "pages": sorted(pages, key=lambda one: one.page_id) if len(pages) <= _OPTIONS else None,
        "wanted": wanted,
        "resolved": resolved,
        "letters": found,
        "next": found[-1]["dead_letter_id"] if len(found) == _LETTERS else None,
        "before": before,
        "days": request.app[SETTINGS].dead_letter_days,
    }
    return page(request, "dead_letters.html", context)


@route("GET", "/console/dead-letters/{dead_letter_id}", access="read")
async def letter(request: web.Request) -> web.Response:
    return _letter(request, await visible_letter(request))


def _letter(request: web.Request, one: Json, *, alert: str | None = None, status: int = 200) -> web.Response:
    raw = base64.b64decode(one["raw_base64"])
    text = raw.decode("utf-8", "replace")
    with contextlib.suppress(orjson.JSONDecodeError):  # that may be why it is here
        text = orjson.dumps(orjson.loads(raw), option=orjson.OPT_INDENT_2).decode("utf-8")
    context = {"letter": one, "raw": text[:_SHOWN], "cut": len(text) > _SHOWN, "alert": alert}
    return page(request, "dead_letter.html", context, status=status)


@route("POST", "/console/dead-letters/{dead_letter_id}/replay", access="operate")
async def replay_letter(request: web.Request) -> web.Response:
    one = await visible_letter(request)
    number = int(one["dead_letter_id"])
    try:
        replayed = await replay(request.app[STORE], number)
    except (InvalidArgument, BadData) as error:
        told = f"Not replayed: {error.message}"
        return _letter(request, one, alert=told, status=error.status)
    return see_other(f"/console/dead-letters/{number}", notice="replayed" if replayed else "settled")


@route("POST", "/console/dead-letters/{dead_letter_id}/discard", access="operate")
async def discard_letter(request: web.Request) -> web.Response:
    one = await visible_letter(request)
    number = int(one["dead_letter_id"])
    reason = (await read_form(request)).get("reason", "").strip()[:500]
    try:
        discarded = await request.app[STORE].discard_dead_letter(dead_letter_id=number, reason=reason)
    except (InvalidArgument, BadData) as error:
        return _letter(request, one, alert=f"Not discarded: {error.message}", status=error.status)
    return see_other(f"/console/dead-letters/{number}", notice="discarded" if discarded else "settled")


@route("GET", "/console/changes", access="read")
async def changes(request: web.Request) -> web.Response:
    """What changed after a position (`after`; without one, from now on), and then as it happens."""
    store, after = request.app[STORE], request.query.get("after")
    if after is None:
        after = await store.feed_end()
    found = await store.changes_after(after=after, limit=_CHANGES, pages=visible_pages(request))
    position = found[-1].position if found else after
    return page(request, "changes.html", {"changes": found[::-1], "position": position})
