"""What is proved of a Page: its certificate and checksum, the webhooks that never came, a message's life."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aiohttp import web

from convsync.web.routing import allowed_page, flag, refused, route, whole_number
from convsync.web.state import STORE

_LIMIT = 1000


def _page(request: web.Request) -> str:
    return allowed_page(request, request.match_info["page_id"])


def _moment(request: web.Request, name: str) -> datetime | None:
    """A time given as ISO 8601 with its zone."""
    given = request.query.get(name)
    if not given:
        return None
    wrong = refused(name, "must be a time with its zone, like 2026-03-01T12:00:00Z")
    try:
        moment = datetime.fromisoformat(given)
        if moment.tzinfo is None:
            raise wrong
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong from None


@route("GET", "/api/pages/{page_id}/certificate", access="read")
async def certificate(request: web.Request) -> web.Response:
    return web.json_response(await request.app[STORE].certificate(page_id=_page(request)))


@route("GET", "/api/pages/{page_id}/certificate/conversations", access="read")
async def certificate_conversations(request: web.Request) -> web.Response:
    """By conversation_id: `after` (the last part's `next`), `limit`; `incomplete=true` those not complete."""
    limit = whole_number(request.query.get("limit") or "100", "limit", highest=_LIMIT)
    found = await request.app[STORE].certificate_conversations(
        page_id=_page(request),
        after=whole_number(request.query.get("after") or "0", "after", lowest=0),
        limit=limit,
        incomplete_only=flag(request, "incomplete"),
    )
    more = str(found[-1].conversation_id) if len(found) == limit else None
    return web.json_response({"conversations": [one.as_json() for one in found], "next": more})


@route("GET", "/api/pages/{page_id}/checksum", access="read")
async def checksum(request: web.Request) -> web.Response:
    """Of all that is held of the Page, or of messages since `from`. Reads them all."""
    summed = await request.app[STORE].mirror_checksum(page_id=_page(request), since=_moment(request, "from"))
    return web.json_response(summed)


@route("GET", "/api/pages/{page_id}/webhook-losses", access="read")
async def webhook_losses(request: web.Request) -> web.Response:
    """Messages whose webhook never came, by hour, sent between `from` (a day ago) and `to` (now)."""
    hours = await request.app[STORE].webhook_losses(
        page_id=_page(request),
        since=_moment(request, "from") or datetime.now(UTC) - timedelta(days=1),
        until=_moment(request, "to"),
    )
    return web.json_response({"hours": [hour.as_json() for hour in hours]})


@route("GET", "/api/pages/{page_id}/messages/{message_id}", access="read")
async def explain_message(request: web.Request) -> web.Response:
    """The life of one message; 404 if nothing was ever heard of it, 410 if it was erased."""
    life = await request.app[STORE].explain_message(
        page_id=_page(request), message_id=request.match_info["message_id"]
    )
    return web.json_response(life)
