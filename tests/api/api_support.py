"""What the API tests share: the keys of the test service, calls, facts put in directly, reading a stream."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import aiohttp
import psycopg
from aiohttp import web
from aiohttp.test_utils import TestClient

from convsync.facts import Fact, Message
from convsync.store import Store
from convsync.web.state import STORE
from secrets_hunt import marked, marked_key

Json = dict[str, Any]
Owner = psycopg.Connection[Json]
T = TypeVar("T")

PAGE, OTHER_PAGE = "104000000000001", "104000000000002"
PERSON, OTHER_PERSON = "7300000000000011", "7300000000000012"
START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)

APP_SECRET = marked("test-app-secret")
TOKEN_KEY = marked_key()
READ, OPERATE = marked("test-read-key"), marked("test-operate-key")
LIMITED, LIMITED_TWICE = marked("test-limited-key"), marked("test-limited-twice")
API_KEYS = (
    f"reader:read:{READ},operator:operate:{OPERATE},limited:operate:{LIMITED}:{OTHER_PAGE},"
    f"twice:operate:{LIMITED_TWICE}:{OTHER_PAGE}+104000000000003"
)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def is_problem(self, status: int, code: str) -> Json:
        """Check that this is a problem document of that kind."""
        assert (self.status, self.headers["Content-Type"]) == (status, "application/problem+json"), self.body
        document: Json = self.json
        assert (document["status"], document["code"]) == (status, code)
        assert document["request_id"] == self.headers["X-Request-ID"]
        return document


@dataclass(frozen=True)
class Api:
    """A running service: `client` for HTTP, `app` to look inside."""

    client: TestClient[Any, Any]
    app: web.Application

    @property
    def store(self) -> Store:
        return self.app[STORE]

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str = OPERATE,
        headers: dict[str, str] | None = None,
        data: bytes | None = None,
        **query: str,
    ) -> Answer:
        given = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.client.request(
            method, path, json=body, data=data, params=query, headers=given | (headers or {})
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **more: Any) -> Json:
        """A GET that is answered 200."""
        answer = await self("GET", path, **more)
        assert answer.status == 200, answer.body
        document: Json = answer.json
        return document

    async def tell(self, *facts: Fact, source: str = "webhook") -> int:
        """Put facts in as the service does; the first conversation they touched."""
        touched = await self.store.ingest(facts, source)
        return touched[0].conversation_id if touched else 0

    async def deliver(self, body: bytes) -> Answer:
        """Post these bytes as Meta does."""
        signed = "sha256=" + hmac.new(APP_SECRET.encode(), body, hashlib.sha256).hexdigest()
        return await self(
            "POST",
            "/api/webhook",
            data=body,
            key="",
            headers={"Content-Type": "application/json", "X-Hub-Signature-256": signed},
        )


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def said(
    mid: str, seconds: float = 0, text: str = "hello", person: str = PERSON, page: str = PAGE
) -> Message:
    return Message(page, person, mid, "in", at(seconds), text)


async def eventually(look: Callable[[], Awaitable[T | None]], patience: float = 30.0) -> T:
    """What `look` finds, as soon as it finds something."""
    async with asyncio.timeout(patience):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    event: str
    id: str
    data: Json


async def sent_events(response: aiohttp.ClientResponse) -> AsyncIterator[Sent]:
    """The events of a stream as they come, without comments."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Sent(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}
