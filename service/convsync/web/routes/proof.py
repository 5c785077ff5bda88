"""What is proved of a Page: its certificate and checksum, the webhooks that never came, a message's life."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from aiohttp import web
from pydantic import Field

from convsync.errors import Erased
from convsync.web import answered
from convsync.web.asked import LAST_ID, Flag, Moment, NoParameters, Parameters, Whole
from convsync.web.routing import Answer, page_in_path, query, route
from convsync.web.state import STORE

_LIMIT = 1000


class ListCertified(Parameters):
    after: Annotated[int, Whole(0, LAST_ID), Field(description="The `next` of the part before.")] = 0
    limit: Annotated[int, Whole(1, _LIMIT)] = 100
    incomplete: Annotated[Flag, Field(description="Only those that are not complete.")] = False


class Since(Parameters):
    since: Annotated[Moment | None, Field(alias="from", description="Of messages sent since.")] = None


class Between(Since):
    until: Annotated[Moment | None, Field(alias="to", description="Of messages sent before.")] = None


@route(
    "GET",
    "/api/pages/{page_id}/certificate",
    access="read",
    query=NoParameters,
    answers={200: Answer(answered.Certificate)},
)
async def certificate(request: web.Request) -> web.Response:
    """How much of the Page is proved, and on which ground."""
    return web.json_response(await request.app[STORE].certificate(page_id=page_in_path(request)))


@route(
    "GET",
    "/api/pages/{page_id}/certificate/conversations",
    access="read",
    query=ListCertified,
    answers={200: Answer(answered.CertifiedConversations)},
)
async def certificate_conversations(request: web.Request) -> web.Response:
    """By conversation_id: `after` (the last part's `next`), `limit`; `incomplete=true` those not complete."""
    asked = query(request, ListCertified)
    found = await request.app[STORE].certificate_conversations(
        page_id=page_in_path(request),
        after=asked.after,
        limit=asked.limit,
        incomplete_only=asked.incomplete,
    )
    more = str(found[-1].conversation_id) if len(found) == asked.limit else None
    return web.json_response({"conversations": [one.as_json() for one in found], "next": more})


@route(
    "GET",
    "/api/pages/{page_id}/checksum",
    access="read",
    query=Since,
    answers={200: Answer(answered.Checksum)},
)
async def checksum(request: web.Request) -> web.Response:
    """Of all that is held of the Page, or of messages since `from`. Reads them all."""
    summed = await request.app[STORE].mirror_checksum(
        page_id=page_in_path(request), since=query(request, Since).since
    )
    return web.json_response(summed)


@route(
    "GET",
    "/api/pages/{page_id}/webhook-losses",
    access="read",
    query=Between,
    answers={200: Answer(answered.LostHours)},
)
async def webhook_losses(request: web.Request) -> web.Response:
    """Messages whose webhook never came, by hour, sent between `from` (a day ago) and `to` (now)."""
    asked = query(request, Between)
    hours = await request.app[STORE].webhook_losses(
        page_id=page_in_path(request),
        since=asked.since or datetime.now(UTC) - timedelta(days=1),
        until=asked.until,
    )
    return web.json_response({"hours": [hour.as_json() for hour in hours]})


@route(
    "GET",
    "/api/pages/{page_id}/messages/{message_id}",
    access="read",
    query=NoParameters,
    answers={200: Answer(answered.MessageLife)},
    errors=(Erased,),
)
async def explain_message(request: web.Request) -> web.Response:
    """The life of one message; 404 if nothing was ever heard of it, 410 if it was erased."""
    life = await request.app[STORE].explain_message(
        page_id=page_in_path(request), message_id=request.match_info["message_id"]
    )
    return web.json_response(life)
