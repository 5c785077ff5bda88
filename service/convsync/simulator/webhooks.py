"""The webhook sender: bodies, signatures and deliveries as Meta makes them.

The body is ASCII with lower-hex `\\uXXXX` escapes (surrogate pairs beyond the first plane) and `\\/`; exactly
those bytes are signed and sent. The receiver has five seconds and must answer 200; otherwise Meta "will
immediately try a few more times". What is still not taken is tried again ever more rarely (how often is
invented); after 15 minutes of that an alert goes to the developer, after an hour the app is unsubscribed from
the Page and everything that waited for it is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import aiohttp

from convsync.simulator.clock import SimulatedClock
from convsync.simulator.events import Event
from convsync.simulator.webhook_faults import WebhookFault, WebhookFaults

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
# Meta's enum has these too (facebook-business 26, `Page.SubscribedFields`): an app may subscribe to them, and
# nothing of them ever comes from here.
_NEVER_SENT = """
    affiliation agent_messages agent_questions attire awards bio birthday business_integrity
    call_permission_reply call_settings_update calls category checkins comment_poll_response
    company_overview culinary_team current_location description email feature_access_list feed follow
    founded general_info general_manager group_feed hometown hours invalid_topic_placeholder
    invoice_access_bank_slip_events invoice_access_invoice_change invoice_access_invoice_draft_change
    invoice_access_onboarding_status_active leadgen leadgen_fat leadgen_update live_videos
    local_delivery location marketing_message_clicks marketing_message_deliveries
    marketing_message_delivery_failed marketing_message_echoes marketing_message_reads
    marketing_messages_subscriber_upload_status mcom_invoice_change members mention merchant_review
    message_template_status_update messaging_appointments messaging_checkout_updates
    messaging_direct_sends messaging_fblogin_account_linking messaging_game_plays
    messaging_in_thread_lead_form_submit messaging_integrity messaging_payments messaging_pre_checkouts
    mission name page_about_story page_change_proposal page_upcoming_change parking payment_options
    payment_request_update personal_info personal_interests phone picture price_range product_review
    products public_transit publisher_subscriptions ratings registration story_poll_response story_share
    user_action video_text_question_responses videos website
"""
SUBSCRIBABLE = WEBHOOK_FIELDS | frozenset(_NEVER_SENT.split())
_KEPT = 20_000
_AT_ONCE = 100
_LONGEST_GAP_MS = 900_000
_GUESSED_SECRET = "not-the-app-secret"  # noqa: S105 - what a forger has instead
_TIMES = ("timestamp", "watermark")


def escaped_json(document: Any) -> bytes:
    """A document in the bytes Meta sends: ASCII, lower-hex escapes, `/` as `\\/`."""
    # A slash only ever stands inside a string in JSON, so it may be replaced in the finished text.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/").encode("ascii")


def plain_json(document: Any) -> bytes:
    """A document in UTF-8 with nothing escaped that need not be."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def signatures(app_secret: str, body: bytes, kind: str = "both") -> dict[str, str]:
    """The signature headers over exactly these bytes: `both`, only `sha256` or `sha1`, `wrong` or `none`."""
    key = (_GUESSED_SECRET if kind == "wrong" else app_secret).encode()
    headers: dict[str, str] = {}
    if kind in ("both", "sha1", "wrong"):
        headers["X-Hub-Signature"] = "sha1=" + hmac.new(key, body, hashlib.sha1).hexdigest()
    if kind in ("both", "sha256", "wrong"):
        headers["X-Hub-Signature-256"] = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    return headers


@dataclass(frozen=True, slots=True)
class Part:
    """One event as it stands in a document."""

    page_id: str
    channel: str
    field: str
    mid: str | None
    body: dict[str, Any]
    time: int | str
    entry_id: int | str


def envelope(parts: Sequence[Part], *, one_entry: bool = True) -> dict[str, Any]:
    """One webhook document; neighbours of the same Page and channel share an entry if `one_entry`."""
    entries = []
    if one_entry:
        groups = [list(group) for _, group in groupby(parts, lambda part: (part.page_id, part.channel))]
    else:
        groups = [[part] for part in parts]
    for group in groups:
        first = group[0]
        entries.append(
            {"id": first.entry_id, "time": first.time, first.channel: [part.body for part in group]}
        )
    return {"object": "page", "entry": entries}


@dataclass(slots=True)
class Attempt:
    """One POST: the status of the answer or the name of what went wrong instead. `at` is Unix seconds of the
    simulated clock.
    """

    at: float
    status: int | None
    error: str | None
    milliseconds: float


@dataclass(slots=True)
class Delivery:
    """One webhook document and what became of it. `late` ones are held back and were not sent yet."""

    page_ids: list[str]
    fields: list[str]
    mids: list[str]
    body: bytes
    attempts: list[Attempt] = field(default_factory=list)
    late: bool = False

    @property
    def page_id(self) -> str:
        """The Page of its first event."""
        return self.page_ids[0]

    @property
    def delivered(self) -> bool:
        return any(attempt.status == 200 for attempt in self.attempts)

    def describe(self) -> dict[str, Any]:
        return {
            "page_id": self.page_id,
            "page_ids": self.page_ids,
            "fields": self.fields,
            "mids": self.mids,
            "delivered": self.delivered,
            "late": self.late,
            "attempts": [asdict(attempt) for attempt in self.attempts],
        }


@dataclass(slots=True)
class Alert:
    """What Meta tells the developer: `failing` after 15 minutes, `disabled` after an hour. `at` is Unix
    milliseconds.
    """

    at: int
    page_id: str
    kind: str
    text: str


@dataclass(slots=True, eq=False)
class _Failing:
    """A delivery that the immediate tries did not bring over."""

    delivery: Delivery
    since_ms: int
    due_ms: int
    gap_ms: int


@dataclass(slots=True)
class _Gathering:
    """Events that wait for others, to be sent in one delivery or in another order."""

    fault: WebhookFault
    waiting: list[tuple[list[Part], asyncio.Future[Delivery]]] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def enough(self) -> bool:
        wanted = self.fault.params["window" if self.fault.action == "reorder" else "size"]
        return sum(len(parts) for parts, _ in self.waiting) >= int(wanted)


class WebhookSender:
    """Sends events of subscribed Pages to one callback address and remembers how that went.

    `timeout` is what the receiver has, in seconds of the wall. In simulated time: `retries` more attempts
    follow a failed one every `retry_delay` seconds; then one after `backoff` seconds (0: no more), and each
    next one after twice as long; `alert_after` and `unsubscribe_after` seconds of failing have their
    consequences. `echo_before_answer` sends the echo of a message of the Send API before that call is
    answered. `open` and `close` frame its use.
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
        backoff: float = 30.0,
        alert_after: float = 900.0,
        unsubscribe_after: float = 3600.0,
        echo_before_answer: bool = True,
        clock: SimulatedClock | None = None,
        seed: int = 1,
    ) -> None:
        self.app_secret = app_secret
        self.url = url
        self.verify_token = verify_token
        self.timeout = timeout
        self.retries = retries
        self.retry_delay = retry_delay
        self.backoff = backoff
        self.alert_after = alert_after
        self.unsubscribe_after = unsubscribe_after
        self.echo_before_answer = echo_before_answer
        self.clock = clock if clock is not None else SimulatedClock()
        self.faults = WebhookFaults(seed)
        self.subscriptions: dict[str, frozenset[str]] = {}
        self.deliveries: deque[Delivery] = deque(maxlen=_KEPT)
        self.alerts: list[Alert] = []
        self.outcomes: Counter[str] = Counter()
        """`delivered`, `failed` (by the immediate tries), `retried` (attempts after the first), `recovered`
        (taken later), `dropped` (given up), `redelivered`, `duplicated`, `forged`, `forged_taken`; of
        events: `not_subscribed`, `lost`, `late`.
        """
        self._session: aiohttp.ClientSession | None = None
        self._posting = asyncio.Semaphore(_AT_ONCE)
        self._gatherings: dict[int, _Gathering] = {}
        self._failing: list[_Failing] = []
        self._more_failing = asyncio.Event()
        self._release = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._retrying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_AT_ONCE))
        self._retrying = asyncio.create_task(self._retry_failing())

    async def close(self) -> None:
        """Stop sending. What was held back or failing is forgotten."""
        tasks = [*self._tasks, *([self._retrying] if self._retrying else [])]
        self._retrying = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._gatherings.clear()
        self._failing.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def subscribe(self, page_id: str, fields: Iterable[str] = WEBHOOK_FIELDS) -> None:
        self.subscriptions[page_id] = frozenset(fields)

    def unsubscribe(self, page_id: str) -> None:
        """No webhooks of this Page from now on; what failed so far is given up."""
        self.subscriptions.pop(page_id, None)
        left = [one for one in self._failing if page_id not in one.delivery.page_ids]
        self.outcomes["dropped"] += len(self._failing) - len(left)
        self._failing = left

    async def verify(self) -> bool:
        """Ask the callback to prove itself, as the App Dashboard does, by sending the bare challenge back."""
        challenge = str(secrets.randbelow(10**10))
        query = {"hub.mode": "subscribe", "hub.verify_token": self.verify_token, "hub.challenge": challenge}
        session, url = self._ready()
        try:
            async with session.get(url, params=query, timeout=self._timeout()) as answer:
                text = await answer.text()
                return bool(answer.status == 200 and text == challenge)
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def send(self, page_id: str, events: Sequence[Event]) -> Delivery | None:
        """Deliver events in one document, with the immediate retries. None when the Page is not subscribed to
        any of them, no callback address is set, or a fault loses them. A delivery that is held back comes
        back as `late`, at once.
        """
        subscribed = self.subscriptions.get(page_id, frozenset())
        wanted = [event for event in events if event.field in subscribed]
        self.outcomes["not_subscribed"] += len(events) - len(wanted)
        if self.url is None:
            return None
        told = [event for event in wanted if self.faults.hit("lose", page_id, event.field) is None]
        self.outcomes["lost"] += len(wanted) - len(told)
        parts = [part for part in (self._part(page_id, event) for event in told) if part is not None]
        if not parts:
            return None
        delays = [self.faults.hit("delay", page_id, part.field) for part in parts]
        seconds = max((fault.params["seconds"] for fault in delays if fault is not None), default=None)
        if seconds is not None:
            delivery = self._delivery(parts)
            delivery.late = True
            self.outcomes["late"] += len(parts)
            self._spawn(self._deliver_late(delivery, seconds))
            return delivery
        gathering = self.faults.gathering(page_id, parts[0].field)
        if gathering is not None:
            return await self._gather(gathering, parts)
        return await self.deliver(self._delivery(parts))

    async def send_echo(self, page_id: str, event: Event) -> None:
        """Tell of a message of the Send API: before this returns or, not `echo_before_answer`, after it."""
        if self.echo_before_answer:
            await self.send(page_id, [event])
        else:
            self._spawn(self._send_later(page_id, event))

    async def deliver(self, delivery: Delivery) -> Delivery:
        """Post a document until it is taken or the immediate retries are used up."""
        self.deliveries.append(delivery)
        page_id, first = delivery.page_id, delivery.fields[0]
        if self.faults.hit("forge", page_id, first) is not None:
            await self._forge(delivery)
        duplicate = self.faults.hit("duplicate", page_id, first)
        since = self.clock.now_ms()
        for number in range(1 + self.retries):
            if number:
                self.outcomes["retried"] += 1
                await self.clock.sleep(self.retry_delay)
            copies = 0
            if duplicate is not None and not number:
                copies = int(duplicate.params["copies"])
                self.outcomes["duplicated"] += copies
            delivery.attempts += await asyncio.gather(*(self._post(delivery) for _ in range(1 + copies)))
            if delivery.delivered:
                break
        self.outcomes["delivered" if delivery.delivered else "failed"] += 1
        if not delivery.delivered and self.backoff > 0:
            gap = int(self.backoff * 1000)
            self._failing.append(_Failing(delivery, since, self.clock.now_ms() + gap, gap))
            self._more_failing.set()
        return delivery

    async def redeliver_failed(self) -> int:
        """Post what was never taken once more; how many were taken now."""
        failed = [delivery for delivery in self.deliveries if delivery.attempts and not delivery.delivered]
        taken = 0
        for delivery in failed:
            delivery.attempts.append(await self._post(delivery))
            taken += delivery.delivered
        self.outcomes["redelivered"] += taken
        return taken

    async def settle(self) -> None:
        """Send everything that is held back now, and wait until it is delivered or failed."""
        self._release.set()
        try:
            while self._tasks:
                for gathering in self._gatherings.values():
                    gathering.full.set()
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._release.clear()

    @property
    def failing(self) -> int:
        """Deliveries that are tried again from time to time."""
        return len(self._failing)

    # -- what a document says

    def _part(self, page_id: str, event: Event) -> Part | None:
        """The event as the faults leave it. None: it would come in `standby`, to which nobody subscribed."""
        body: dict[str, Any] = event.body
        channel = event.channel
        entry_id: int | str = page_id
        now: int | str = self.clock.now_ms()
        if channel == "changes":
            now = int(now) // 1000
        elif self.faults.hit("standby", page_id, event.field) is not None:
            channel = "standby"
            if "standby" not in self.subscriptions[page_id]:
                self.outcomes["not_subscribed"] += 1
                return None
        if self.faults.hit("string_seconds", page_id, event.field) is not None:
            body = _altered(body, _TIMES, lambda value: str(value // 1000))
            now = str(int(now) if channel == "changes" else int(now) // 1000)
        if self.faults.hit("numeric_ids", page_id, event.field) is not None:
            body, entry_id = _altered(body, ("id",), int), int(page_id)
        if self.faults.hit("extra_field", page_id, event.field) is not None:
            body = {**body, "sim_future_field": {"since": "v99.0", "values": [1, None, "\u00e9"]}}
        return Part(page_id, channel, event.field, event.mid, body, now, entry_id)

    def _delivery(self, parts: Sequence[Part], *, one_entry: bool = True) -> Delivery:
        document = envelope(parts, one_entry=one_entry)
        unescaped = self.faults.hit("unescaped", parts[0].page_id, parts[0].field)
        return Delivery(
            list(dict.fromkeys(part.page_id for part in parts)),
            [part.field for part in parts],
            [part.mid for part in parts if part.mid is not None],
            escaped_json(document) if unescaped is None else plain_json(document),
        )

    # -- holding back

    async def _gather(self, fault: WebhookFault, parts: list[Part]) -> Delivery:
        future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        gathering = self._gatherings.get(fault.fault_id)
        if gathering is None:
            gathering = self._gatherings[fault.fault_id] = _Gathering(fault)
            self._spawn(self._send_gathered(gathering))
        gathering.waiting.append((parts, future))
        if gathering.enough:
            # What comes from now on waits anew.
            self._gatherings.pop(fault.fault_id, None)
            gathering.full.set()
        return await future

    async def _send_gathered(self, gathering: _Gathering) -> None:
        fault = gathering.fault
        with suppress(TimeoutError):
            async with asyncio.timeout(fault.params["seconds"]):
                await gathering.full.wait()
        if self._gatherings.get(fault.fault_id) is gathering:
            del self._gatherings[fault.fault_id]
        try:
            if fault.action == "reorder":
                fault.random.shuffle(gathering.waiting)
                for parts, future in gathering.waiting:
                    _tell(future, await self.deliver(self._delivery(parts)))
            else:
                together = [part for parts, _ in gathering.waiting for part in parts]
                delivery = self._delivery(together, one_entry=fault.params["one_entry"])
                await self.deliver(delivery)
                for _, future in gathering.waiting:
                    _tell(future, delivery)
        finally:
            for _, future in gathering.waiting:
                future.cancel()

    async def _deliver_late(self, delivery: Delivery, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds / self.clock.speed):
                await self._release.wait()
        delivery.late = False
        await self.deliver(delivery)

    async def _send_later(self, page_id: str, event: Event) -> None:
        await self.send(page_id, [event])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logging.getLogger(__name__).error("a webhook was not sent", exc_info=task.exception())

    # -- failing

    async def _retry_failing(self) -> None:
        while True:
            self._more_failing.clear()
            now = self.clock.now_ms()
            due = [one for one in self._failing if one.due_ms <= now]
            if due:
                await asyncio.gather(*(self._try_again(one) for one in due))
                continue
            nearest = min((one.due_ms for one in self._failing), default=None)
            wait = None if nearest is None else (nearest - now) / 1000 / self.clock.speed
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._more_failing.wait()

    async def _try_again(self, failing: _Failing) -> None:
        delivery = failing.delivery
        if not delivery.delivered:
            delivery.attempts.append(await self._post(delivery))
            if delivery.delivered:
                self.outcomes["recovered"] += 1
        if failing not in self._failing:
            return  # the Page was unsubscribed meanwhile
        if delivery.delivered:
            self._failing.remove(failing)
            return
        now = self.clock.now_ms()
        age = (now - failing.since_ms) / 1000
        if age >= self.alert_after:
            for page_id in delivery.page_ids:
                self._alert(page_id, "failing", "Webhooks cannot be delivered")
        if age >= self.unsubscribe_after:
            for page_id in delivery.page_ids:
                if page_id in self.subscriptions:
                    self._alert(page_id, "disabled", "Webhooks Disabled: the app was unsubscribed")
                self.unsubscribe(page_id)
            return
        failing.gap_ms = min(2 * failing.gap_ms, _LONGEST_GAP_MS)
        failing.due_ms = now + failing.gap_ms

    def _alert(self, page_id: str, kind: str, text: str) -> None:
        """Tell the developer, but not the same of each delivery that fails."""
        last = next((alert for alert in reversed(self.alerts) if alert.page_id == page_id), None)
        now = self.clock.now_ms()
        if last is None or last.kind != kind or now - last.at >= self.unsubscribe_after * 1000:
            self.alerts.append(Alert(now, page_id, kind, text))

    # -- the wire

    async def _forge(self, delivery: Delivery) -> None:
        """Somebody without the secret tells of a message that nobody wrote."""
        message = {"mid": f"m_forged_{len(self.deliveries)}_{delivery.page_id}", "text": "forged"}
        now = self.clock.now_ms()
        people = {"sender": {"id": "3" + "0" * 15}, "recipient": {"id": delivery.page_id}}
        body = {**people, "timestamp": now, "message": message}
        part = Part(delivery.page_id, "messaging", "messages", message["mid"], body, now, delivery.page_id)
        self.outcomes["forged"] += 1
        attempt = await self._post(Delivery([delivery.page_id], ["messages"], [], _forged(part)), "wrong")
        self.outcomes["forged_taken"] += attempt.status == 200

    async def _post(self, delivery: Delivery, signature: str | None = None) -> Attempt:
        session, url = self._ready()
        if signature is None:
            fault = self.faults.hit("signature", delivery.page_id, delivery.fields[0])
            signature = "both" if fault is None else str(fault.params["kind"])
        signed = signatures(self.app_secret, delivery.body, signature)
        headers = {"Content-Type": "application/json", **signed}
        status: int | None = None
        error: str | None = None
        # Waiting for a free connection is not the receiver's fault.
        async with self._posting:
            started = time.monotonic()
            try:
                async with session.post(
                    url, data=delivery.body, headers=headers, timeout=self._timeout()
                ) as answer:
                    await answer.read()
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError) as problem:
                error = type(problem).__name__
        took = round((time.monotonic() - started) * 1000, 2)
        return Attempt(self.clock.now_ms() / 1000, status, error, took)

    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self.timeout)

    def _ready(self) -> tuple[aiohttp.ClientSession, str]:
        if self._session is None or self.url is None:
            raise RuntimeError("the webhook sender is not open, or has no address to send to")
        return self._session, self.url


def _forged(part: Part) -> bytes:
    return escaped_json(envelope([part]))


def _tell(future: asyncio.Future[Delivery], delivery: Delivery) -> None:
    if not future.done():
        future.set_result(delivery)


def _altered(value: Any, names: Sequence[str], change: Any) -> Any:
    """A copy in which the values under these names are changed, at any depth."""
    if isinstance(value, dict):
        return {
            name: change(int(inner))
            if name in names and isinstance(inner, int | str) and str(inner).isdecimal()
            else _altered(inner, names, change)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_altered(inner, names, change) for inner in value]
    return value
