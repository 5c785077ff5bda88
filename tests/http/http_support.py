"""What the HTTP tests share: the bytes Meta would send, the keys of the test service, reading a stream."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import psycopg
from aiohttp import web
from aiohttp.test_utils import TestClient
from psycopg import sql

from secrets_hunt import marked, marked_key

Json = dict[str, Any]
Owner = psycopg.Connection[Json]
T = TypeVar("T")

PAGE = "104000000000001"
OTHER_PAGE = "104000000000002"
PERSON = "7300000000000011"
OTHER_PERSON = "7300000000000012"
AT = 1_700_000_000_123

APP_SECRET = marked("test-app-secret")
VERIFY_TOKEN = marked("test-verify-token")
TOKEN_KEY = marked_key()
READ_KEY = marked("test-read-key")
OPERATE_KEY = marked("test-operate-key")
ELSEWHERE_KEY = marked("test-elsewhere-key")
PAGE_TOKEN = marked("EAAtestPageToken")
SECRETS = (APP_SECRET, VERIFY_TOKEN, TOKEN_KEY, READ_KEY, OPERATE_KEY, ELSEWHERE_KEY, PAGE_TOKEN)
API_KEYS = (
    f"reader:read:{READ_KEY},operator:operate:{OPERATE_KEY},elsewhere:operate:{ELSEWHERE_KEY}:{OTHER_PAGE}"
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


OPERATOR = bearer(OPERATE_KEY)


def wire(document: object) -> bytes:
    """The bytes on the wire: ASCII, lower-hex escapes with surrogate pairs, and `/` as `\\/`."""
    return json.dumps(document, ensure_ascii=True).replace("/", "\\/").encode("ascii")


def signature(body: bytes, secret: str = APP_SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def entry(*events: object, page_id: str = PAGE, channel: str = "messaging") -> Json:
    return {"id": page_id, "time": AT + 5000, channel: list(events)}


def delivery(*events: object, page_id: str = PAGE, channel: str = "messaging") -> Json:
    return {"object": "page", "entry": [entry(*events, page_id=page_id, channel=channel)]}


def from_person(*, page_id: str = PAGE, person: str = PERSON, at: int = AT, **parts: object) -> Json:
    return {"sender": {"id": person}, "recipient": {"id": page_id}, "timestamp": at, **parts}


def from_page(*, page_id: str = PAGE, person: str = PERSON, at: int = AT, **parts: object) -> Json:
    return {"sender": {"id": page_id}, "recipient": {"id": person}, "timestamp": at, **parts}


def said(mid: str, text: str, **where: Any) -> Json:
    """A customer's message."""
    return from_person(message={"mid": mid, "text": text}, **where)


@dataclass(frozen=True)
class Service:
    """A running service: `client` for HTTP, `app` to look inside."""

    client: TestClient[Any, Any]
    app: web.Application

    async def deliver(self, document: object, **headers: str) -> int:
        """Post a delivery as Meta does; the status."""
        status, _ = await self.deliver_bytes(wire(document), **headers)
        return status

    async def deliver_bytes(self, body: bytes, **headers: str) -> tuple[int, bytes]:
        given = headers or {"X-Hub-Signature-256": signature(body)}
        async with self.client.post(
            "/api/webhook", data=body, headers={"Content-Type": "application/json", **given}
        ) as answer:
            return answer.status, await answer.read()

    async def call(
        self, method: str, path: str, body: object = None, key: str = OPERATE_KEY, **query: str
    ) -> tuple[int, Json]:
        """Call the API with a key; the status and the JSON of the answer."""
        async with self.client.request(
            method, path, json=body, params=query, headers=bearer(key) if key else {}
        ) as answer:
            return answer.status, json.loads(await answer.read())

    async def add_page(self, page_id: str = PAGE, **more: str) -> Json:
        status, page = await self.call("POST", "/api/pages", {"page_id": page_id, **more})
        assert status == 201, page
        return page

    async def ended(self, run_id: str) -> Json:
        """The run, when it has ended."""

        async def read() -> Json | None:
            status, run = await self.call("GET", f"/api/sync-runs/{run_id}")
            assert status == 200, run
            return run if run["status"] not in ("queued", "running") else None

        return await eventually(read)


async def eventually(look: Callable[[], Awaitable[T | None]], patience: float = 30.0) -> T:
    """What `look` finds, as soon as it finds something."""
    async with asyncio.timeout(patience):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


def problem(document: Json, status: int, code: str) -> Json:
    """Check that an answer is a problem document."""
    assert {"type", "title", "status", "detail", "code", "request_id"} <= set(document)
    assert (document["status"], document["code"]) == (status, code)
    assert document["type"] == f"urn:convsync:problem:{code}"
    assert document["request_id"]
    return document


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    event: str
    id: int
    data: Json


async def sent_events(response: aiohttp.ClientResponse) -> AsyncIterator[Sent | str]:
    """The events of a stream as they come; a comment as its text."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith(":"):
            yield line[1:].strip()
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Sent(fields["event"], int(fields["id"]), json.loads(fields["data"]))
            fields = {}


async def all_events(response: aiohttp.ClientResponse) -> list[Sent]:
    """The events of a stream to its end, without comments."""
    return [one async for one in sent_events(response) if isinstance(one, Sent)]


MIRROR = (
    "pages",
    "messenger_conversations",
    "contact_interaction_events",
    "pending_amendments",
    "dead_letters",
)


def contents(owner: Owner, tables: Sequence[str] = MIRROR) -> dict[str, list[Json]]:
    """Every row of the tables, to be compared."""
    query = sql.SQL("select t::text from convsync.{} t order by 1")
    return {table: owner.execute(query.format(sql.Identifier(table))).fetchall() for table in tables}


def count(owner: Owner, table: str, where: str = "true") -> int:
    query = sql.SQL("select count(*) as n from convsync.{} where {}").format(
        sql.Identifier(table), sql.SQL(where)
    )
    row = owner.execute(query).fetchone()
    assert row is not None
    found: int = row["n"]
    return found


def inject(owner: Owner, sqlstate: str, *, when: str, times: int) -> None:
    """Let the next `times` inserts of events for which `when` holds fail with `sqlstate`."""
    owner.execute("create sequence public.injected")
    owner.execute(
        f"""create function public.inject() returns trigger language plpgsql as $$
            begin
              if {when} and nextval('public.injected') <= {times} then
                raise exception 'injected by the test' using errcode = '{sqlstate}';
              end if;
              return new;
            end $$"""
    )
    owner.execute(
        "create trigger inject before insert on convsync.contact_interaction_events"
        " for each row execute function public.inject()"
    )


def injections(owner: Owner) -> int:
    row = owner.execute("select last_value from public.injected").fetchone()
    assert row is not None
    number: int = row["last_value"]
    return number
