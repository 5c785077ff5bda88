"""Outgoing webhooks on the wire: who goes by Standard Webhooks gets every change, signed, in order."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from http_support import AT, PAGE, PERSON, Json, Service, delivery, eventually, said
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from convsync import outgoing
from convsync.errors import DatabaseUnavailable, InvalidArgument
from convsync.outgoing import Outgoing, Told, new_secret, poster, sealed_for, secret_bytes, signed
from convsync.store import Store
from convsync.tasks import end
from convsync.web.state import STORE, TOKENS
from secrets_hunt import MARKER

# 33 bytes, and what the hunt looks for is in them.
SECRET = "whsec_" + base64.b64encode(f"{MARKER}{'x' * 33}"[:33].encode()).decode()


@dataclass
class Receiver:
    """Verifies what comes, by an implementation that is not ours, and answers as it is told."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    got: list[Json] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.got.append(Webhook(SECRET).verify(body, dict(request.headers)))
        self.ids.append(request.headers["webhook-id"])
        self.bodies.append(body)
        assert request.content_type == "application/json"
        return web.Response(status=self.answers.pop(0) if self.answers else 204, headers=self.headers)

    def versions(self) -> list[int]:
        return [change["version"] for message in self.got for change in message["data"]["changes"]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_post("/hook", one.handle)
    async with TestServer(app) as server:
        one.url = str(server.make_url("/hook"))
        yield one


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own deliverer asks often, and does not wait long after a failure."""
    monkeypatch.setattr(outgoing, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Outgoing.__init__, "__kwdefaults__", {**_DEFAULTS, "poll_seconds": 0.02})


_DEFAULTS: dict[str, Any] = dict(Outgoing.__init__.__kwdefaults__ or {})


async def add(service: Service, url: str, name: str = "crm", **more: Any) -> Json:
    box = service.app[TOKENS]
    return await service.app[STORE].add_outgoing(
        name=name,
        url=url,
        secret_sealed=box.seal(sealed_for(name), SECRET),
        secret_key_id=box.key_id,
        **more,
    )


async def known(service: Service) -> Json:
    [one] = await service.app[STORE].list_outgoing()
    return one


def when(true: Callable[[], bool]) -> Callable[[], Any]:
    async def look() -> bool | None:
        return true() or None

    return look


@pytest.mark.usefixtures("quick")
async def test_what_a_customer_writes_is_told_signed_and_in_order(
    service: Service, receiver: Receiver
) -> None:
    await add(service, receiver.url)
    for number in range(4):
        assert await service.deliver(_message(number)) == 200
    await eventually(when(lambda: len(receiver.versions()) >= 4))
    assert receiver.versions() == [1, 2, 3, 4]
    first = receiver.got[0]
    assert first["type"] == "conversations.changed"
    change = first["data"]["changes"][0]
    assert (change["page_id"], change["kinds"]) == (PAGE, ["message"])
    # What was written, and by whom, is read with a key.
    everything = b"".join(receiver.bodies)
    assert PERSON.encode() not in everything
    assert b"hello" not in everything

    async def delivered() -> bool | None:  # is written when the answer has come
        return (await known(service))["delivered"] == 4 or None

    assert await eventually(delivered)


def _message(number: int) -> Json:
    return delivery(said(f"m_{number}", "hello", at=AT + number * 1000))


@pytest.mark.usefixtures("quick")
async def test_what_is_not_taken_comes_again_under_the_same_id(service: Service, receiver: Receiver) -> None:
    receiver.answers = [500, 302, 404]
    await add(service, receiver.url)
    await service.deliver(_message(1))
    await eventually(when(lambda: len(receiver.got) >= 4))
    assert len(set(receiver.ids[:4])) == 1
    assert len(set(receiver.bodies[:4])) == 1
    await service.deliver(_message(2))
    await eventually(when(lambda: receiver.versions()[-1:] == [2]))
    assert receiver.versions() == [1, 1, 1, 1, 2]

    async def told() -> Json | None:
        found = await known(service)
        return found if found["delivered"] == 2 else None

    found = await eventually(told)
    assert (found["state"], found["attempts"], found["last_error"]) == ("active", 0, None)


@pytest.mark.usefixtures("quick")
async def test_who_says_that_it_is_gone_is_not_asked_again(service: Service, receiver: Receiver) -> None:
    receiver.answers = [410]
    await add(service, receiver.url)
    with capture_logs() as logs:
        await service.deliver(_message(1))

        async def paused() -> Json | None:
            found = await known(service)
            return found if found["state"] == "paused" else None

        found = await eventually(paused)
    assert (found["pause_reason"], found["dead_letter"]["last_status"]) == ("not_delivered", 410)
    assert [line["log_level"] for line in logs if line["event"] == "outgoing_paused"] == ["error"]
    await service.app[STORE].resume_outgoing(name="crm")
    await eventually(when(lambda: len(receiver.got) == 2))
    assert receiver.ids[0] == receiver.ids[1]


# --- one attempt, without a network


@dataclass
class Sent:
    url: str
    body: bytes
    headers: dict[str, str]


@asynccontextmanager
async def delivering(
    service: Service, answer: Callable[[], Told], **more: Any
) -> AsyncIterator[tuple[list[Sent], list[float]]]:
    """A deliverer in place of the service's own: what it sends, and the pauses it asks for."""
    sent: list[Sent] = []
    pauses: list[float] = []
    store = service.app[STORE]

    async def post(url: str, body: bytes, headers: Any) -> Told:
        sent.append(Sent(url, body, dict(headers)))
        return answer()

    real = Store.record_outgoing

    async def record(**told: Any) -> str:
        pauses.append(told["retry_seconds"])
        return await real(store, **{**told, "retry_seconds": 0})

    class Mine(Store):
        record_outgoing = staticmethod(record)  # type: ignore[assignment]

    mine = Mine(store._pool)
    worker = Outgoing(mine, service.app[TOKENS], post, poll_seconds=0.01, **more)
    task = asyncio.create_task(worker.run())
    try:
        yield sent, pauses
    finally:
        await end(task)


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own deliverer does nothing."""

    async def run(self: Outgoing) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("convsync.web.app.Outgoing", type("Mute", (Outgoing,), {"run": run}))


@pytest.mark.usefixtures("mute")
async def test_pauses_grow_by_full_jitter_and_the_receivers_word_goes_before(service: Service) -> None:
    asked = iter([0.0] * 5 + [1234.0, 10.0**9])

    class Most(random.Random):
        def uniform(self, a: float, b: float) -> float:
            assert a == 0
            return b

    await add(service, "https://app.example.com/hook")
    async with delivering(service, lambda: Told(503, next(asked)), attempts=7, rng=Most()) as (sent, pauses):
        await service.deliver(_message(1))
        await eventually(when(lambda: len(pauses) == 7))
    assert pauses == [5, 10, 20, 40, 80, 1234, 86_400]
    assert len({one.headers["webhook-id"] for one in sent}) == 1
    assert (await known(service))["state"] == "paused"


@pytest.mark.usefixtures("mute")
@pytest.mark.parametrize(
    ("error", "told"), [(TimeoutError(), "TimeoutError"), (OSError("https://secret"), "OSError")]
)
async def test_a_receiver_that_cannot_be_reached_is_tried_again(
    service: Service, error: Exception, told: str
) -> None:
    def answer() -> Told:
        raise error

    await add(service, "https://app.example.com/hook")
    async with delivering(service, answer, attempts=2) as (sent, _):
        await service.deliver(_message(1))

        async def paused() -> Json | None:
            found = await known(service)
            return found if found["state"] == "paused" else None

        found = await eventually(paused)
    assert len(sent) == 2
    assert (found["last_status"], found["last_error"]) == (None, told)


@pytest.mark.usefixtures("mute")
async def test_a_secret_of_another_key_is_told_and_nothing_is_sent_unsigned(service: Service) -> None:
    box = service.app[TOKENS]
    await service.app[STORE].add_outgoing(
        name="crm",
        url="https://app.example.com/hook",
        # Moved from another webhook's row.
        secret_sealed=box.seal(sealed_for("other"), SECRET),
        secret_key_id=box.key_id,
    )
    async with delivering(service, lambda: Told(204), attempts=1) as (sent, _):
        await service.deliver(_message(1))

        async def paused() -> Json | None:
            found = await known(service)
            return found if found["state"] == "paused" else None

        found = await eventually(paused)
    assert sent == []
    assert "TOKEN_KEY" in found["last_error"]


@pytest.mark.usefixtures("mute")
async def test_a_database_that_is_away_is_waited_for_and_told_of_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = 5
    real = Store.claim_outgoing

    async def claim(self: Store, **more: Any) -> Any:
        nonlocal away
        if away:
            away -= 1
            raise DatabaseUnavailable("away")
        return await real(self, **more)

    monkeypatch.setattr(Store, "claim_outgoing", claim)
    await add(service, "https://app.example.com/hook")
    await service.deliver(_message(1))
    with capture_logs() as logs:
        async with delivering(service, lambda: Told(204)) as (sent, _):
            await eventually(when(lambda: len(sent) == 1))
    assert [line["event"] for line in logs if line["event"] == "outgoing_not_claimed"] == [
        "outgoing_not_claimed"
    ]


# --- signing


def test_a_signature_is_the_standards() -> None:
    secret, body = new_secret(), b'{"a": 1}'
    headers = signed(secret, "chg_1", int(time.time()), body)
    assert Webhook(secret).verify(body, headers) == {"a": 1}
    for changed in (
        {**headers, "webhook-id": "chg_2"},
        {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(b'{"a": 2}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)


def test_it_is_the_signature_that_the_standard_shows() -> None:
    headers = signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "wrong", ["", "whsec_", "whsec_AAAA", "x" * 44, "whsec_" + "A" * 100, "whsec_ä" + "A" * 40]
)
def test_what_is_no_secret_is_refused_without_a_word_of_it(wrong: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        secret_bytes(wrong)
    assert caught.value.detail == {"field": "secret"}
    assert wrong == "" or wrong not in caught.value.message.replace("whsec_ and", "")


def test_new_secrets_differ() -> None:
    assert len({new_secret() for _ in range(10)}) == 10
    assert len(secret_bytes(new_secret())) == 32


async def test_a_redirect_is_not_followed() -> None:
    followed = []

    async def elsewhere(_: web.Request) -> web.Response:
        followed.append(1)
        return web.Response()

    async def hook(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere", "Retry-After": "7"})

    app = web.Application()
    app.router.add_post("/hook", hook)
    app.router.add_post("/elsewhere", elsewhere)
    async with TestServer(app) as server, poster() as post:
        assert await post(str(server.make_url("/hook")), b"{}", {}) == Told(307, 7.0)
    assert followed == []
