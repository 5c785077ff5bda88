"""What is asked of Graph about a Page itself: is its token good, is the app subscribed to its webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from convsync.errors import TryAgain
from convsync.graph.account import PageNode, SubscribedApp, read_list
from convsync.graph.catalogue import ErrorClass, Retry
from convsync.graph.client import GraphAnswer, GraphClient
from convsync.graph.errors import GraphError
from convsync.observe.measures import GraphMeasures
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


@dataclass(frozen=True, slots=True)
class PageToken:
    """A Page's token, opened, and as it is kept: what Graph says of it is not said of its successor."""

    token: str = field(repr=False)
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """`state` is `valid`; `invalid`; `refused`: Meta refuses the call, for another reason than the token; or
    `unchecked`: nothing was learnt. `told` is why, with what to do, `None` for a valid one; `error` is what
    Meta answered, if it did.
    """

    state: str
    told: str | None = None
    error: GraphError | None = None


async def granted(
    store: Store,
    page_id: str,
    calls_per_second: float,
    sealed: bytes,
    call: Callable[[], Awaitable[GraphAnswer]],
    *,
    marks: bool = True,
    measures: GraphMeasures | None = None,
) -> tuple[GraphAnswer, datetime]:
    """Make one call in the Page's budget, live lane, and record what came of it; with when it was granted.

    A token (kept as `sealed`) that Graph calls dead is marked, so that nobody calls with it again; not if
    `marks` is false, of a call that may be refused with a good one.
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
    if measures is not None:
        measures.waited("live", waited)
    try:
        answer = await call()
    except GraphError as error:
        if measures is not None and error.block_scope is not None:
            measures.blocked(error.block_scope)
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
        if marks and error.error_class is ErrorClass.TOKEN:
            await store.mark_token(
                page_id=page_id, state="invalid", error=error.explained(), token_sealed=sealed
            )
        raise
    usage = answer.usage
    used_up = usage.used_up_seconds if usage else 0
    if measures is not None and used_up:
        measures.blocked("page")
    await store.record_call(
        page_id=page_id,
        status=answer.status,
        response_ms=answer.ms,
        usage=usage.as_json() if usage else None,
        block_scope="page" if used_up else None,
        block_seconds=used_up or None,
        block_reason="usage" if used_up else None,
    )
    return answer, grant.granted_at


async def check_token(
    store: Store, graph: GraphClient, page_id: str, token: PageToken, calls_per_second: float
) -> TokenCheck:
    """Ask Graph for the Page with its token, and record what it says of the token."""
    try:
        answer, _ = await granted(
            store,
            page_id,
            calls_per_second,
            token.sealed,
            lambda: graph.get(page_id, {"fields": "id,name"}, token.token),
        )
    except GraphError as error:
        if error.error_class is ErrorClass.TOKEN:
            return TokenCheck("invalid", error.explained(), error)
        # The proof of the app secret, a permission, the Page's id: another token would not help.
        return TokenCheck("refused" if error.retry is Retry.NEVER else "unchecked", error.explained(), error)
    except TryAgain as error:
        return TokenCheck("unchecked", error.message)
    await store.mark_token(page_id=page_id, state="valid", token_sealed=token.sealed)
    name = PageNode.model_validate(answer.data).name
    if name:
        await store.add_page(page_id=page_id, name=name)
    return TokenCheck("valid")


async def subscribe(
    store: Store, graph: GraphClient, page_id: str, token: PageToken, calls_per_second: float
) -> list[str]:
    """Subscribe the app to the Page's webhooks; the fields Graph then lists for it."""
    path = f"{page_id}/subscribed_apps"
    wanted = {"subscribed_fields": ",".join(WEBHOOK_FIELDS)}
    await granted(
        store, page_id, calls_per_second, token.sealed, lambda: graph.post(path, wanted, token.token)
    )
    answer, _ = await granted(
        store, page_id, calls_per_second, token.sealed, lambda: graph.get(path, {}, token.token)
    )
    apps = read_list(answer.data, SubscribedApp)
    fields = list(dict.fromkeys(field for app in apps for field in app.subscribed_fields))
    if fields:
        await store.mark_subscribed(page_id=page_id)
    return fields
