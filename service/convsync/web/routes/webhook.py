"""Meta's webhook: 200 only when every event of the delivery is committed, or kept as a dead letter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from convsync.errors import DatabaseUnavailable
from convsync.web.asked import BadRequest, BodyTooLarge
from convsync.web.routing import Answer, Body, Forbidden, route
from convsync.web.state import COMMIT, CONTACTS, DRIFT, SETTINGS
from convsync.webhook.group_commit import RefusedError
from convsync.webhook.payload import UnreadableError, parse
from convsync.webhook.signature import verification_challenge, verify


class Verification(BaseModel):
    """What Meta asks when the address is entered in the app's settings. Other parameters are passed over."""

    model_config = ConfigDict(extra="ignore")

    mode: str = Field(default="", alias="hub.mode", description="`subscribe`.")
    verify_token: str = Field(default="", alias="hub.verify_token", description="As in VERIFY_TOKEN.")
    challenge: str = Field(default="", alias="hub.challenge", description="What to answer.")


class Delivery(BaseModel):
    """A delivery of Meta's. What is in an entry, and cannot be understood, is kept as a dead letter."""

    object: str = Field(description="`page`.", examples=["page"])
    entry: list[Any]


@route(
    "GET",
    "/api/webhook",
    access="public",
    query=Verification,
    answers={200: Answer(what="The bare challenge.", media_type="text/plain")},
    errors=(Forbidden,),
    needs_database=False,
)
async def verify_webhook(request: web.Request) -> web.Response:
    """Meta asks whether this address is meant: the bare challenge, or 403."""
    expected = request.app[SETTINGS].verify_token
    challenge = verification_challenge(request.query, expected.get_secret_value() if expected else "")
    if challenge is None:
        raise Forbidden("the verify token is not the one that was configured")
    return web.Response(text=challenge, headers={"X-Content-Type-Options": "nosniff"})


@route(
    "POST",
    "/api/webhook",
    access="public",
    signed=True,
    body=Body(Delivery),
    answers={200: Answer(what="All of it is committed, or kept as a dead letter.", media_type="text/plain")},
    errors=(Forbidden, BadRequest, BodyTooLarge),
)
async def deliver_webhook(request: web.Request) -> web.Response:
    """One delivery: verified on its raw bytes, committed, then answered."""
    received_at = datetime.now(UTC)
    raw = await request.read()
    secret = request.app[SETTINGS].app_secret
    secrets = [secret.get_secret_value()] if secret else []
    if not verify(raw, request.headers.get("X-Hub-Signature-256"), secrets):
        raise Forbidden("X-Hub-Signature-256 is missing or wrong")
    try:
        delivery = parse(raw, received_at)
    except UnreadableError as error:
        raise BadRequest(str(error)) from None
    try:
        await request.app[COMMIT].submit(delivery)
    except RefusedError as error:
        raise DatabaseUnavailable(f"the delivery is not stored yet: {error}") from error
    # Once it is kept: one that Meta has to send again is not counted twice.
    request.app[DRIFT].saw("webhook", delivery.unknown)
    for page_id, thread_id in delivery.threads_to_read:
        request.app[CONTACTS].want_thread(page_id, thread_id)
    return web.Response(text="EVENT_RECEIVED")
