"""Meta's compliance callbacks: a person asks for deletion, or a person or a Page takes the app away."""

from __future__ import annotations

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, Field

from convsync.errors import InvalidArgument, NotFound
from convsync.web import answered
from convsync.web.asked import BadRequest, BodyTooLarge
from convsync.web.routing import Answer, Body, Forbidden, route
from convsync.web.state import SETTINGS, STORE
from convsync.webhook.compliance import BadSignedRequest, read_signed_request

_log = structlog.get_logger(__name__)


class Signed(BaseModel):
    """A form of Meta's."""

    signed_request: str = Field(description="base64url(signature) + '.' + base64url(payload)")


_FORM = Body(Signed, ("application/x-www-form-urlencoded", "multipart/form-data"))


async def _signed(request: web.Request) -> dict[str, str]:
    try:
        form = await request.post()
    # What aiohttp makes of a form that is none.
    except (AssertionError, LookupError, ValueError, HttpProcessingError):
        raise BadRequest("the body is not a form") from None
    text = form.get("signed_request")
    if not isinstance(text, str):
        raise BadRequest("the form field signed_request is missing")
    secret = request.app[SETTINGS].app_secret
    try:
        return read_signed_request(text, [secret.get_secret_value()] if secret else [])
    except BadSignedRequest as error:
        raise Forbidden(str(error)) from None


@route(
    "POST",
    "/api/facebook/data-deletion",
    access="public",
    body=_FORM,
    answers={200: Answer(answered.DeletionRequested)},
    errors=(BadRequest, Forbidden, BodyTooLarge, InvalidArgument),
)
async def delete_data(request: web.Request) -> web.Response:
    """Erases the person where a Page knows them by this id; answers with the status page and its code."""
    payload = await _signed(request)
    if "user_id" not in payload:
        raise BadRequest("the request names no user_id")
    done = await request.app[STORE].request_deletion(app_user_id=payload["user_id"])
    code, contacts = done["confirmation_code"], done["contacts"]
    # Meta names people by an id of the app's, Pages know them by another: then somebody has to look.
    (_log.info if contacts else _log.warning)("deletion_requested", code=code, contacts=contacts)
    origin = request.app[SETTINGS].public_url or f"{request.scheme}://{request.host}"
    url = f"{origin}/api/facebook/deletion-status/{code}"
    return web.json_response({"url": url, "confirmation_code": code})


@route(
    "GET",
    "/api/facebook/deletion-status/{code}",
    access="public",
    answers={200: Answer(what="What became of the request, in words.", media_type="text/plain")},
    errors=(NotFound,),
)
async def deletion_status(request: web.Request) -> web.Response:
    """A page a person can read, by the code they were given."""
    done = await request.app[STORE].deletion_status(confirmation_code=request.match_info["code"])
    text = f"Deletion request {done['confirmation_code']}\nreceived {done['requested_at']}\n"
    if not done["completed_at"]:
        text += "in progress\n"
    elif done["contacts"]:
        text += f"completed {done['completed_at']}\n"
    else:
        text += (
            "nothing was found under the id that the request names\n"
            "A Page knows the people who write to it by another id than the app does. If you wrote to one\n"
            "of this business, ask it to delete your conversation, and name the Page and yourself.\n"
        )
    return web.Response(text=text, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


@route(
    "POST",
    "/api/facebook/deauthorize",
    access="public",
    body=_FORM,
    answers={200: Answer(answered.Deauthorized)},
    errors=(BadRequest, Forbidden, BodyTooLarge, InvalidArgument),
)
async def deauthorize(request: web.Request) -> web.Response:
    """A Page that removed the app (user_id 0, profile_id) loses its token here; its mirror stays."""
    payload = await _signed(request)
    page_id = payload.get("profile_id")
    if page_id is not None:
        try:
            await request.app[STORE].remove_page(page_id=page_id)
        except NotFound:
            page_id = None
    _log.info("deauthorized", page_id=page_id)
    return web.json_response({"success": True})
