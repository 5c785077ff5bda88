"""Outgoing webhooks: changes of the feed as a signed POST, for callers that cannot hold a stream open.

Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp`, and
`webhook-signature`, the HMAC-SHA256 of `id.timestamp.body`. What is sent and how far each webhook has come
is decided in SQL (`sql/092_outgoing.sql`); here it is signed and sent. A batch that was not delivered comes
again under the same id, so a receiver may get one twice, and gets them in their order.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
import orjson
import structlog
from cryptography.hazmat.primitives import hashes, hmac

from convsync.errors import ConvsyncError, InvalidArgument, LeaseLost, NotFound
from convsync.store import Batch, Store
from convsync.tokens import TokenBox, TokenKeyError

ATTEMPTS: Final = 16
"""Spread over about half a day. Then the webhook is paused, and a person has to look."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 6 * 3600.0
# Longer than a POST may take: nobody else takes a batch up that is still on its way.
LEASE_SECONDS: Final = 30.0
POST_SECONDS: Final = 10.0
POLL_SECONDS: Final = 1.0
AT_ONCE: Final = 8
"""Webhooks that are served at the same time; one of them has one batch under way."""

_PREFIX: Final = "whsec_"
_GONE: Final = 410
_ONE_DAY: Final = 86_400.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """What the receiver answered; `retry_after` in seconds, if it said so."""

    status: int
    retry_after: float = 0.0


Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[Told]]


def new_secret() -> str:
    """A fresh secret, in the form of Standard Webhooks."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode("ascii")


def secret_bytes(secret: str) -> bytes:
    """The key in a secret. InvalidArgument if it is none; the text of it is in no error."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise InvalidArgument(
            "a secret is whsec_ and 24 to 64 bytes in base64, as `convsync outgoing new-secret` prints",
            detail={"field": "secret"},
        )
    return key


def sealed_for(name: str) -> str:
    """What a webhook's secret is sealed for: moved to another's row it does not open."""
    return f"outgoing:{name}"


def signed(secret: str, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a POST of this body."""
    mac = hmac.HMAC(secret_bytes(secret), hashes.SHA256())
    mac.update(f"{webhook_id}.{timestamp}.".encode() + body)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(mac.finalize()).decode("ascii"),
    }


def body_of(batch: Batch) -> bytes:
    """The same batch gives the same bytes, however often it is sent."""
    newest = batch.changes[-1]
    return orjson.dumps(
        {"type": "conversations.changed", "timestamp": newest["at"], "data": {"changes": batch.changes}}
    )


class Outgoing:
    """Delivers what is due, until it is cancelled. What is then on its way is tried again after its lease."""

    def __init__(
        self,
        store: Store,
        box: TokenBox,
        post: Post,
        *,
        attempts: int = ATTEMPTS,
        poll_seconds: float = POLL_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._box = box
        self._post = post
        self._attempts = attempts
        self._poll_seconds = poll_seconds
        self._sleep = sleep
        self._clock = clock
        self._random = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._claims_fail = False

    async def run(self) -> None:
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                # Room first: a lease that nobody can use yet would run out.
                await room.acquire()
                batch = await self._claim()
                if batch is None:
                    room.release()
                    await self._sleep(self._poll_seconds)
                    continue
                task = group.create_task(self._deliver(batch), name=f"outgoing webhook {batch.name}")
                task.add_done_callback(lambda _: room.release())

    async def _claim(self) -> Batch | None:
        try:
            batch = await self._store.claim_outgoing(lease_seconds=LEASE_SECONDS)
        except ConvsyncError as error:
            if not self._claims_fail:  # told once, not each second while a database is away
                _log.warning("outgoing_not_claimed", error=error.message)
            self._claims_fail = True
            return None
        self._claims_fail = False
        return batch

    async def _deliver(self, batch: Batch) -> None:
        """One attempt, and what became of it."""
        status: int | None = None
        error: str | None = None
        retry_after = 0.0
        try:
            secret = self._box.open(sealed_for(batch.name), batch.secret_sealed)
            body = body_of(batch)
            headers = signed(secret, batch.webhook_id, int(self._clock()), body)
            async with asyncio.timeout(POST_SECONDS):
                told = await self._post(batch.url, body, headers)
            status, retry_after = told.status, told.retry_after
        except TokenKeyError:
            error = "its secret was sealed with another TOKEN_KEY; add the webhook again"
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as failure:
            error = type(failure).__name__  # its text may hold what is in the address
        delivered = status is not None and 200 <= status < 300
        pause = self._random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (batch.attempt - 1)))
        try:
            state = await self._store.record_outgoing(
                name=batch.name,
                fence=batch.fence,
                delivered=delivered,
                status=status,
                error=error,
                retry_seconds=max(pause, min(retry_after, _ONE_DAY)),
                # Who answers that it is gone is not asked again.
                attempts=1 if status == _GONE else self._attempts,
            )
        except (LeaseLost, NotFound):
            # Somebody else has it by now, or it was removed.
            _log.warning("outgoing_lost", webhook=batch.name)
            return
        except ConvsyncError as trouble:
            # It is not known to be delivered, so it comes again.
            _log.warning("outgoing_not_recorded", webhook=batch.name, error=trouble.message)
            return
        attempt = {"webhook": batch.name, "webhook_id": batch.webhook_id, "attempt": batch.attempt}
        if state == "paused":
            _log.error("outgoing_paused", **attempt, status=status, error=error)
        elif not delivered:
            _log.warning("outgoing_not_delivered", **attempt, status=status, error=error)


@asynccontextmanager
async def poster() -> AsyncIterator[Post]:
    """Sends a POST and tells how it was answered. Not where a redirect says: only the operator says where."""
    timeout = aiohttp.ClientTimeout(total=POST_SECONDS, sock_connect=5.0)
    headers = {"Content-Type": "application/json", "User-Agent": "convsync"}
    async with aiohttp.ClientSession(
        timeout=timeout, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def post(url: str, body: bytes, signature: Mapping[str, str]) -> Told:
            async with session.post(url, data=body, headers=signature, allow_redirects=False) as answer:
                return Told(answer.status, _seconds(answer.headers.get("Retry-After", "")))

        yield post


def _seconds(retry_after: str) -> float:
    """A Retry-After in seconds; one that names a date, or is none, says nothing."""
    return (
        float(retry_after)
        if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 8
        else 0.0
    )
