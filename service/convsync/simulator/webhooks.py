"""The webhook sender: bodies, signatures and deliveries as Meta makes them.

The body is ASCII with lower-hex `\\uXXXX` escapes (surrogate pairs beyond the first plane) and `\\/`; exactly
those bytes are signed and sent. The receiver has five seconds and must answer 200; otherwise Meta "will
immediately try a few more times".
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp

from convsync.simulator.events import Event

WEBHOOK_FIELDS = frozenset(
    {
        "message_deliveries",
        "message_echoes",
        "message_edits",
        "message_reactions",
        "message_reads",
        "messages",
        "messaging_account_linking",
        "messaging_handovers",
        "messaging_optins",
        "messaging_optouts",
        "messaging_policy_enforcement",
        "messaging_postbacks",
        "messaging_referrals",
        "message_context",
        "message_mention",
        "messaging_customer_information",
        "messaging_feedback",
        "response_feedback",
        "send_cart",
        "standby",
        "inbox_labels",
        "conversations",
    }
)
_KEPT = 20_000


def escaped_json(document: Any) -> bytes:
    """A document in the bytes Meta sends: ASCII, lower-hex escapes, `/` as `\\/`."""
    # A slash only ever stands inside a string in JSON, so it may be replaced in the finished text.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/").encode("ascii")


def signatures(app_secret: str, body: bytes) -> dict[str, str]:
    """The two signature headers over exactly these bytes."""
    key = app_secret.encode()
    return {
        "X-Hub-Signature": "sha1=" + hmac.new(key, body, hashlib.sha1).hexdigest(),
        "X-Hub-Signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest(),
    }


def envelope(page_id: str, events: Sequence[dict[str, Any]], time_ms: int) -> dict[str, Any]:
    """One webhook document for one Page."""
    return {"object": "page", "entry": [{"id": page_id, "time": time_ms, "messaging": list(events)}]}


@dataclass(slots=True)
class Attempt:
    """One POST: the status of the answer or the name of what went wrong instead."""

    at: float
    status: int | None
    error: str | None
    milliseconds: float


@dataclass(slots=True)
class Delivery:
    """One webhook document and what became of it."""

    page_id: str
    fields: list[str]
    mids: list[str]
    body: bytes
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].status == 200

    def describe(self) -> dict[str, Any]:
        return {
            "page_id": self.page_id,
            "fields": self.fields,
            "mids": self.mids,
            "delivered": self.delivered,
            "attempts": [asdict(attempt) for attempt in self.attempts],
        }


class WebhookSender:
    """Sends events of subscribed Pages to one callback address and remembers how that went.

    `timeout` and `retry_delay` are seconds; `retries` more attempts follow a failed one at once. `open` and
    `close` frame its use.
    """

    def __init__(
        self,
        app_secret: str,
        url: str | None,
        *,
        verify_token: str = "",
        timeout: float = 5.0,
        retries: int = 3,
        retry_delay: float = 0.2,
    ) -> None:
        self.app_secret = app_secret
        self.url = url
        self.verify_token = verify_token
        self.timeout = timeout
        self.retries = retries
        self.retry_delay = retry_delay
        self.subscriptions: dict[str, frozenset[str]] = {}
        self.deliveries: deque[Delivery] = deque(maxlen=_KEPT)
        self.outcomes: Counter[str] = Counter()
        """`delivered`, `failed`, `retried` (attempts after the first), `not_subscribed` (events)."""
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.timeout))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def subscribe(self, page_id: str, fields: Iterable[str] = WEBHOOK_FIELDS) -> None:
        self.subscriptions[page_id] = frozenset(fields)

    def unsubscribe(self, page_id: str) -> None:
        self.subscriptions.pop(page_id, None)

    async def verify(self) -> bool:
        """Ask the callback to prove itself, as the App Dashboard does, by sending the bare challenge back."""
        challenge = str(secrets.randbelow(10**10))
        query = {"hub.mode": "subscribe", "hub.verify_token": self.verify_token, "hub.challenge": challenge}
        session, url = self._ready()
        try:
            async with session.get(url, params=query) as answer:
                return answer.status == 200 and await answer.text() == challenge
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def send(self, page_id: str, events: Sequence[Event]) -> Delivery | None:
        """Deliver events in one document, with retries. None when the Page is not subscribed to any of them
        or no callback address is set.
        """
        subscribed = self.subscriptions.get(page_id, frozenset())
        wanted = [event for event in events if event.field in subscribed]
        self.outcomes["not_subscribed"] += len(events) - len(wanted)
        if not wanted or self.url is None:
            return None
        document = envelope(page_id, [event.body for event in wanted], int(time.time() * 1000))
        mids = [event.mid for event in wanted if event.mid is not None]
        return await self.deliver(
            Delivery(page_id, [event.field for event in wanted], mids, escaped_json(document))
        )

    async def deliver(self, delivery: Delivery) -> Delivery:
        """Post a document until it is taken or the retries are used up."""
        self.deliveries.append(delivery)
        for number in range(1 + self.retries):
            if number:
                self.outcomes["retried"] += 1
                await asyncio.sleep(self.retry_delay)
            delivery.attempts.append(await self._post(delivery.body))
            if delivery.delivered:
                break
        self.outcomes["delivered" if delivery.delivered else "failed"] += 1
        return delivery

    async def redeliver_failed(self) -> int:
        """Post what was never taken once more; how many were taken now."""
        failed = [delivery for delivery in self.deliveries if delivery.attempts and not delivery.delivered]
        taken = 0
        for delivery in failed:
            delivery.attempts.append(await self._post(delivery.body))
            taken += delivery.delivered
        self.outcomes["redelivered"] += taken
        return taken

    async def _post(self, body: bytes) -> Attempt:
        session, url = self._ready()
        headers = {"Content-Type": "application/json", **signatures(self.app_secret, body)}
        started = time.monotonic()
        status: int | None = None
        error: str | None = None
        try:
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError) as problem:
            error = type(problem).__name__
        return Attempt(time.time(), status, error, round((time.monotonic() - started) * 1000, 2))

    def _ready(self) -> tuple[aiohttp.ClientSession, str]:
        if self._session is None or self.url is None:
            raise RuntimeError("the webhook sender is not open, or has no address to send to")
        return self._session, self.url
