"""What is asked of Graph about a Page itself: is its token good, is the app subscribed to its webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from convsync.errors import TryAgain
from convsync.graph.catalogue import ErrorClass
from convsync.graph.client import GraphAnswer, GraphClient
from convsync.graph.errors import GraphError
from convsync.store import Store

# The fields of a Page subscription that carry conversations. Messenger Platform, webhooks: subscribed_apps.
WEBHOOK_FIELDS = (
    "messages",
    "message_echoes",
    "message_edits",
    "message_reactions",
    "message_reads",
    "message_deliveries",
    "messaging_postbacks",
    "messaging_referrals",
    "messaging_optins",
    "messaging_handovers",
    "messaging_policy_enforcement",
    "messaging_account_linking",
    "standby",
)

PATIENCE_SECONDS = 15.0
"""How long a person (or a new contact) waits for a slot; a block lasts minutes to an hour."""


async def granted(
    store: Store, page_id: str, calls_per_second: float, call: Callable[[], Awaitable[GraphAnswer]]
) -> tuple[GraphAnswer, datetime]:
    """Make one call in the Page's budget, live lane, and record what came of it; with when it was granted.

    Raises `TryAgain` when no slot comes within `PATIENCE_SECONDS`.
    """
    waited = 0.0
    while True:
        grant = await store.acquire_call(page_id=page_id, lane="live", calls_per_second=calls_per_second)
        if grant.granted_at is not None:
            break
        pause = grant.wait_ms / 1000
        if waited + pause > PATIENCE_SECONDS:
            raise TryAgain(f"no Graph call is granted for Page {page_id} for another {pause:.0f} s")
        await asyncio.sleep(pause)
        waited += pause
    try:
        answer = await call()
    except GraphError as error:
        await store.record_call(
            page_id=page_id,
            status=error.http_status,
            response_ms=error.ms,
            usage=error.usage.as_json() if error.usage else None,
            error_code=error.code,
            error_subcode=error.subcode,
            block_scope=error.block_scope,
            block_seconds=error.block_seconds if error.block_scope else None,
            block_reason=error.message if error.block_scope else None,
        )
        raise
    usage = answer.usage
    # The call succeeded, but it was the last one for now.
    used_up = usage is not None and usage.percent >= 100 and usage.regain_seconds > 0
    await store.record_call(
        page_id=page_id,
        status=answer.status,
        response_ms=answer.ms,
        usage=usage.as_json() if usage else None,
        block_scope="page" if used_up else None,
        block_seconds=usage.regain_seconds if usage and used_up else None,
        block_reason="usage" if used_up else None,
    )
    return answer, grant.granted_at


async def check_token(
    store: Store, graph: GraphClient, page_id: str, token: str, calls_per_second: float
) -> str | None:
    """Ask Graph for the Page with its token and record what it says of it; why it is refused, or None.

    Anything but a verdict on the token (Graph away, throttled) leaves it unchecked.
    """
    try:
        answer, _ = await granted(
            store, page_id, calls_per_second, lambda: graph.get(page_id, {"fields": "id,name"}, token)
        )
    except GraphError as error:
        if error.error_class in (ErrorClass.TOKEN, ErrorClass.PERMISSION):
            await store.mark_token(page_id=page_id, state="invalid", error=error.explained())
        return error.explained()
    except TryAgain as error:
        return error.message
    await store.mark_token(page_id=page_id, state="valid")
    name = answer.data.get("name")
    if isinstance(name, str) and name:
        await store.add_page(page_id=page_id, name=name)
    return None


async def subscribe(
    store: Store, graph: GraphClient, page_id: str, token: str, calls_per_second: float
) -> list[str]:
    """Subscribe the app to the Page's webhooks; the fields Graph then lists for it."""
    path = f"{page_id}/subscribed_apps"
    await granted(
        store,
        page_id,
        calls_per_second,
        lambda: graph.post(path, {"subscribed_fields": ",".join(WEBHOOK_FIELDS)}, token),
    )
    answer, _ = await granted(store, page_id, calls_per_second, lambda: graph.get(path, {}, token))
    apps = answer.data.get("data")
    fields: list[str] = []
    for app in apps if isinstance(apps, list) else []:
        listed = app.get("subscribed_fields") if isinstance(app, dict) else None
        fields += [field for field in listed or [] if isinstance(field, str) and field not in fields]
    if fields:
        await store.mark_subscribed(page_id=page_id)
    return fields
