"""Who may call what: the route table against every kind of key, and what no answer ever shows."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from aiohttp import web
from http_support import (
    API_KEYS,
    ELSEWHERE_KEY,
    OPERATE_KEY,
    OPERATOR,
    OTHER_PAGE,
    PAGE,
    PAGE_TOKEN,
    READ_KEY,
    SECRETS,
    TOKEN_KEY,
    Json,
    Service,
    all_events,
    bearer,
    problem,
)
from pydantic import SecretStr

from convsync.settings import ApiKey, parse_api_keys
from convsync.tokens import TokenBox
from convsync.web import routing
from convsync.web.app import create_app
from convsync.web.routing import ROUTES, Route
from convsync.web.sessions import LIFETIME_SECONDS, PLAIN_COOKIE, Sessions
from secrets_hunt import marked


@dataclass(frozen=True)
class Call:
    """How a route is called, what it then answers, and whether what it touches belongs to a Page or all.

    `status` 0: it depends on the server that the tests run on.
    """

    status: int
    path: str = ""
    body: Callable[[str], Json] | None = None
    of_a_page: bool = False
    of_all_pages: bool = False
    query: Callable[[str], dict[str, str]] | None = None
    headers: dict[str, str] = field(default_factory=dict)


# Every route is here: one that is missing fails the test of its access.
CALLS: dict[tuple[str, str], Call] = {
    ("GET", "/"): Call(200),
    ("GET", "/console/login"): Call(200),
    ("POST", "/console/login"): Call(0),  # 403 without an origin, 401 without a key
    ("POST", "/console/logout"): Call(303),
    ("GET", "/console/assets/{file}"): Call(200, "/console/assets/console.css"),
    ("GET", "/console/pages/{page_id}"): Call(200, f"/console/pages/{PAGE}", of_a_page=True),
    ("POST", "/console/pages/{page_id}/syncs"): Call(422, f"/console/pages/{PAGE}/syncs", of_a_page=True),
    ("GET", "/console/sync-runs/{run_id}"): Call(200, "/console/sync-runs/RUN", of_a_page=True),
    ("POST", "/console/sync-runs/{run_id}/cancel"): Call(
        303, "/console/sync-runs/RUN/cancel", of_a_page=True
    ),
    ("POST", "/console/sync-runs/{run_id}/retry"): Call(303, "/console/sync-runs/RUN/retry", of_a_page=True),
    ("POST", "/console/sync-runs/{run_id}/allow-deletions"): Call(
        422, "/console/sync-runs/RUN/allow-deletions", of_a_page=True
    ),
    ("GET", "/console/pages/{page_id}/conversations"): Call(
        200, f"/console/pages/{PAGE}/conversations", of_a_page=True
    ),
    ("GET", "/console/pages/{page_id}/conversations/{conversation_id}"): Call(
        404, f"/console/pages/{PAGE}/conversations/1", of_a_page=True
    ),
    ("GET", "/console/pages/{page_id}/conversations/{conversation_id}/timing"): Call(
        404, f"/console/pages/{PAGE}/conversations/1/timing", of_a_page=True
    ),
    ("GET", "/console/pages/{page_id}/messages/{message_id}"): Call(
        404, f"/console/pages/{PAGE}/messages/m_1", of_a_page=True
    ),
    ("GET", "/console/pages/{page_id}/timing"): Call(200, f"/console/pages/{PAGE}/timing", of_a_page=True),
    ("GET", "/console/dead-letters"): Call(200),
    ("GET", "/console/dead-letters/{dead_letter_id}"): Call(404, "/console/dead-letters/1"),
    ("POST", "/console/dead-letters/{dead_letter_id}/replay"): Call(404, "/console/dead-letters/1/replay"),
    ("POST", "/console/dead-letters/{dead_letter_id}/discard"): Call(404, "/console/dead-letters/1/discard"),
    ("GET", "/console/changes"): Call(200),
    ("GET", "/healthz"): Call(200),
    ("GET", "/readyz"): Call(0),  # 200 or 503: this test's server may not be durable
    ("GET", "/metrics"): Call(200, of_all_pages=True),
    ("GET", "/openapi.json"): Call(200),
    ("GET", "/api/pages"): Call(200),
    ("POST", "/api/pages"): Call(201, body=lambda _: {"page_id": PAGE, "name": "Again"}, of_a_page=True),
    ("GET", "/api/pages/{page_id}"): Call(200, f"/api/pages/{PAGE}", of_a_page=True),
    ("DELETE", "/api/pages/{page_id}"): Call(200, f"/api/pages/{PAGE}", of_a_page=True),
    ("POST", "/api/conversations/sync"): Call(202, body=lambda _: {"page_id": PAGE}, of_a_page=True),
    ("POST", "/api/conversations/sync-stream"): Call(200, body=lambda _: {"page_id": PAGE}, of_a_page=True),
    ("GET", "/api/conversations/sync-stream"): Call(200, of_a_page=True, query=lambda run: {"run_id": run}),
    ("POST", "/api/stream-tickets"): Call(201, body=lambda run: {"run_id": int(run)}, of_a_page=True),
    ("GET", "/api/pages/{page_id}/sync-runs"): Call(200, f"/api/pages/{PAGE}/sync-runs", of_a_page=True),
    ("GET", "/api/sync-runs/{run_id}"): Call(200, "/api/sync-runs/RUN", of_a_page=True),
    ("POST", "/api/sync-runs/{run_id}/cancel"): Call(200, "/api/sync-runs/RUN/cancel", of_a_page=True),
    ("POST", "/api/sync-runs/{run_id}/retry"): Call(202, "/api/sync-runs/RUN/retry", of_a_page=True),
    ("POST", "/api/sync-runs/{run_id}/allow-deletions"): Call(
        422, "/api/sync-runs/RUN/allow-deletions", of_a_page=True
    ),
    # A conversation, a dead letter, a deletion request nobody has: whom the route lets through is told so.
    ("GET", "/api/pages/{page_id}/conversations"): Call(
        200, f"/api/pages/{PAGE}/conversations", of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/conversations/{conversation_id}"): Call(
        404, f"/api/pages/{PAGE}/conversations/1", of_a_page=True
    ),
    ("PATCH", "/api/pages/{page_id}/conversations/{conversation_id}"): Call(
        428, f"/api/pages/{PAGE}/conversations/1", body=lambda _: {"note": "mine"}, of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/conversations/{conversation_id}/events"): Call(
        404, f"/api/pages/{PAGE}/conversations/1/events", of_a_page=True
    ),
    ("POST", "/api/pages/{page_id}/erasures"): Call(
        200, f"/api/pages/{PAGE}/erasures", body=lambda _: {"sender_id": "7"}, of_a_page=True
    ),
    ("POST", "/api/pages/{page_id}/purges"): Call(
        200, f"/api/pages/{PAGE}/purges", body=lambda _: {"before": "2020-01-01"}, of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/certificate"): Call(200, f"/api/pages/{PAGE}/certificate", of_a_page=True),
    ("GET", "/api/pages/{page_id}/certificate/conversations"): Call(
        200, f"/api/pages/{PAGE}/certificate/conversations", of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/checksum"): Call(200, f"/api/pages/{PAGE}/checksum", of_a_page=True),
    ("GET", "/api/pages/{page_id}/webhook-losses"): Call(
        200, f"/api/pages/{PAGE}/webhook-losses", of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/messages/{message_id}"): Call(
        404, f"/api/pages/{PAGE}/messages/m_1", of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/events"): Call(200, f"/api/pages/{PAGE}/events", of_a_page=True),
    ("GET", "/api/pages/{page_id}/conversations/{conversation_id}/timing"): Call(
        404, f"/api/pages/{PAGE}/conversations/1/timing", of_a_page=True
    ),
    ("GET", "/api/pages/{page_id}/timing"): Call(200, f"/api/pages/{PAGE}/timing", of_a_page=True),
    ("GET", "/api/changes"): Call(200),
    ("GET", "/api/changes/end"): Call(200),
    ("POST", "/api/changes/{consumer}/position"): Call(
        200, "/api/changes/mine/position", body=lambda _: {"position": "1-1-1"}
    ),
    # A stream that began would not end; a position that is none is told before it begins.
    ("GET", "/api/changes/stream"): Call(422, query=lambda _: {"after": "none"}),
    ("GET", "/api/dead-letters"): Call(200),
    ("GET", "/api/schema-drift"): Call(200),
    ("GET", "/api/dead-letters/{dead_letter_id}"): Call(404, "/api/dead-letters/1"),
    ("POST", "/api/dead-letters/{dead_letter_id}/replay"): Call(404, "/api/dead-letters/1/replay"),
    ("POST", "/api/dead-letters/{dead_letter_id}/discard"): Call(
        404, "/api/dead-letters/1/discard", body=lambda _: {"reason": "known"}
    ),
    ("POST", "/api/facebook/data-deletion"): Call(400),
    ("GET", "/api/facebook/deletion-status/{code}"): Call(404, "/api/facebook/deletion-status/none"),
    ("POST", "/api/facebook/deauthorize"): Call(400),
    ("GET", "/api/webhook"): Call(403),
    ("POST", "/api/webhook"): Call(403, body=lambda _: {"object": "page", "entry": []}),
}


@dataclass(frozen=True)
class Caller:
    """A column of the matrix: what a caller sends, and whom of the table's accesses that makes it.

    A new kind of credentials is a new column here: valid, expired, and sent along with a request that
    another site's page made.
    """

    headers: dict[str, str]
    role: Literal["nobody", "read", "operate"]
    elsewhere: bool = False
    """Limited to another Page than the one of the calls."""
    session: bool = False
    """Of the console: it reads, and acts by the console's forms alone; these calls lack their token."""
    cross_site: bool = False
    """Another site's page made the browser send it."""

    def may(self, route: Route) -> bool:
        return route.access == "read" or self.role == "operate"


def typed(key: str) -> dict[str, str]:
    """A key that a person typed: the browser then sends it by itself."""
    return {"Authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


# What a browser says of a request that another site's page made it send.
CROSS_SITE = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
KEYS = parse_api_keys(SecretStr(API_KEYS))
OPERATOR_KEY = next(key for key in KEYS if key.name == "operator")
NAMESAKE = ApiKey("operator", "operate", SecretStr(marked("of-another-service")), frozenset())
SESSIONS = Sessions(KEYS, TokenBox(TOKEN_KEY).derived_key("console session"))


def cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"{PLAIN_COOKIE}={value}"}


OWN_PAGE = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
SESSION = cookie(SESSIONS.issue(OPERATOR_KEY))
CALLERS = {
    "no key": Caller({}, "nobody"),
    "wrong key": Caller(bearer(OPERATE_KEY[:-1]), "nobody"),
    "key of another Page": Caller(bearer(ELSEWHERE_KEY), "operate", elsewhere=True),
    "read key": Caller(bearer(READ_KEY), "read"),
    "operate key": Caller(bearer(OPERATE_KEY), "operate"),
    "typed key": Caller(typed(OPERATE_KEY), "nobody"),
    "cross-site, without a key": Caller(CROSS_SITE, "nobody"),
    "cross-site, with the typed key": Caller(CROSS_SITE | typed(OPERATE_KEY), "nobody"),
    "session": Caller(OWN_PAGE | SESSION, "operate", session=True),
    "session, of an old browser": Caller(SESSION, "operate", session=True),
    "session, cross-site": Caller(CROSS_SITE | SESSION, "operate", session=True, cross_site=True),
    "expired session": Caller(
        OWN_PAGE | cookie(SESSIONS.issue(OPERATOR_KEY, now=time.time() - LIFETIME_SECONDS)), "nobody"
    ),
    "session of another key of that name": Caller(OWN_PAGE | cookie(SESSIONS.issue(NAMESAKE)), "nobody"),
    "key as a session": Caller(OWN_PAGE | cookie(OPERATE_KEY), "nobody"),
}


@pytest.fixture
async def run_id(service: Service) -> str:
    """A Page with a token that opens nothing, and a run of it that has ended."""
    await service.add_page(token=PAGE_TOKEN)
    await service.call("DELETE", f"/api/pages/{PAGE}")
    await service.add_page(name="Harbour")
    status, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    assert (status, run["status"], run["reason"]) == (200, "failed", "token_missing")
    found: str = run["run_id"]
    return found


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def expected(route: Route, caller: Caller) -> int:
    call = CALLS[route.method, route.path]
    if route.access == "public":
        return call.status
    if caller.role == "nobody":
        return 401
    if caller.session and route.method != "GET":
        return 403 if route.path.startswith("/console/") else 401
    if caller.cross_site and caller.session:
        return 401
    if not caller.may(route):
        return 403
    if caller.elsewhere and call.of_a_page:
        return 404
    if caller.elsewhere and call.of_all_pages:
        return 403
    return call.status


@pytest.mark.parametrize("route", ROUTES, ids=name)
async def test_every_route_lets_through_exactly_whom_its_access_names(
    service: Service, run_id: str, route: Route
) -> None:
    call = CALLS[route.method, route.path]
    path = (call.path or route.path).replace("RUN", run_id)
    assert "{" not in path
    for kind, caller in CALLERS.items():
        async with service.client.request(
            route.method,
            path,
            params=call.query(run_id) if call.query else None,
            json=call.body(run_id) if call.body else None,
            headers=caller.headers,
            allow_redirects=False,
        ) as answer:
            text = await answer.text()
            headers = str(answer.headers)
            wanted = expected(route, caller)
            if wanted:
                assert answer.status == wanted, (kind, text)
            if wanted == 401:
                problem(json.loads(text), 401, "unauthorized")
                # A scheme that browsers know would make them ask a person by themselves.
                assert answer.headers.getall("WWW-Authenticate") == ['Bearer realm="convsync"']
            elif wanted == 403 and route.access != "public":
                problem(json.loads(text), 403, "forbidden")
            elif wanted == 404:
                problem(json.loads(text), 404, "not_found")
            assert answer.headers["X-Request-ID"]
            # A page of another site cannot read it, whatever it is.
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Access-Control-Allow-Credentials" not in answer.headers
            for secret in SECRETS:
                assert secret not in text, kind
                assert secret not in headers, kind


READS = [route for route in ROUTES if route.method == "GET"]


@pytest.mark.parametrize("route", READS, ids=name)
async def test_head_is_answered_as_get_without_its_body(service: Service, run_id: str, route: Route) -> None:
    call = CALLS[route.method, route.path]
    path = (call.path or route.path).replace("RUN", run_id)
    for caller in (CALLERS["no key"], CALLERS["operate key"]):
        async with service.client.head(
            path, params=call.query(run_id) if call.query else None, headers=caller.headers
        ) as answer:
            wanted = 405 if route.is_stream else expected(route, caller)
            assert answer.status == wanted or not wanted
            assert await answer.read() == b""
            assert answer.headers["X-Request-ID"]


async def test_the_application_has_exactly_the_routes_of_the_table(service: Service) -> None:
    served = {
        (one.method, one.resource.canonical)
        for one in service.app.router.routes()
        if one.resource is not None and one.method != "HEAD"
    }
    listed = [(route.method, route.path) for route in ROUTES]
    assert served == set(listed) == set(CALLS)
    assert len(listed) == len(set(listed))
    assert {route.access for route in ROUTES} <= {"public", "read", "operate"}


async def test_a_route_that_is_not_in_the_table_is_nobodys(
    configure: Any, database: Any, aiohttp_client: Any
) -> None:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text="never")

    app = create_app(configure(), database.service_url)
    app.router.add_get("/forgotten", handler)
    client = await aiohttp_client(app)
    async with client.get("/forgotten") as answer:
        assert answer.status == 401
    async with client.get("/forgotten", headers=OPERATOR) as answer:
        assert answer.status == 403
        assert "never" not in await answer.text()


def test_a_route_cannot_be_registered_without_an_access() -> None:
    with pytest.raises(TypeError, match="access"):
        routing.route("GET", "/forgotten")  # type: ignore[call-arg]


async def test_every_access_of_the_table_has_a_rule_here() -> None:
    """A column decides by role: an access that is none of these would be let through by none of them."""
    assert {route.access for route in ROUTES} == {"public", "read", "operate"}
    assert {caller.role for caller in CALLERS.values()} == {"nobody", "read", "operate"}


# What nobody has to log in for, and what changes nothing for others. The matrix takes each route's access
# from the table, so that a wrong one there would be right in the matrix too: this says what it may be.
WITHOUT_A_KEY = {
    ("GET", "/console/login"),
    ("POST", "/console/login"),
    ("GET", "/console/assets/{file}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/api/webhook"),
    ("POST", "/api/webhook"),
    ("POST", "/api/facebook/data-deletion"),
    ("GET", "/api/facebook/deletion-status/{code}"),
    ("POST", "/api/facebook/deauthorize"),
}
BY_READERS = {("POST", "/console/logout"), ("POST", "/api/stream-tickets")}


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_whatever_changes_something_needs_a_key_that_operates(route: Route) -> None:
    named = (route.method, route.path)
    if named in WITHOUT_A_KEY:
        assert route.access == "public"
    else:
        assert route.access == ("read" if route.method == "GET" or named in BY_READERS else "operate")


async def test_basic_opens_nothing(service: Service, run_id: str) -> None:
    """Browsers send it by themselves, also where another site makes them ask."""
    for method, path in [("GET", "/"), ("GET", "/api/pages"), ("POST", f"/api/sync-runs/{run_id}/cancel")]:
        async with service.client.request(method, path, headers=typed(OPERATE_KEY)) as answer:
            assert answer.status == 401, path


async def test_a_wrong_header_is_not_made_good_by_a_session(service: Service) -> None:
    async with service.client.get("/api/pages", headers=SESSION) as answer:
        assert answer.status == 200
    async with service.client.get("/api/pages", headers=SESSION | bearer("wrong")) as answer:
        assert answer.status == 401


def odd_headers() -> Iterator[bytes]:
    yield b""
    yield b"Bearer"
    yield b"Bearer "
    yield b"Bearer " + b"\xff" * 20
    yield "Bearer schlüssel".encode()
    yield b"Basic \xff\xfe"
    yield b"Basic ====="
    yield b"Basic " + base64.b64encode(b"\xff:\xff")
    yield b"Basic " + base64.b64encode("ä:schlüssel".encode())
    yield OPERATE_KEY.encode()
    yield b"Token " + OPERATE_KEY.encode()
    yield b"Bearer " + READ_KEY.encode() + b"," + OPERATE_KEY.encode()


@pytest.mark.parametrize("header", list(odd_headers()))
async def test_a_header_nobody_understands_is_no_key(service: Service, header: bytes) -> None:
    async with service.client.get(
        "/api/pages", headers={"Authorization": header.decode("utf-8", "surrogateescape")}
    ) as answer:
        assert answer.status == 401, await answer.text()
        problem(await answer.json(), 401, "unauthorized")


async def test_a_key_limited_to_a_page_sees_and_does_its_own_only(service: Service, run_id: str) -> None:
    status, _ = await service.call("POST", "/api/pages", {"page_id": OTHER_PAGE}, key=ELSEWHERE_KEY)
    assert status == 201
    status, listed = await service.call("GET", "/api/pages", key=ELSEWHERE_KEY)
    assert [page["page_id"] for page in listed["pages"]] == [OTHER_PAGE]
    status, run = await service.call(
        "POST", "/api/conversations/sync", {"page_id": OTHER_PAGE}, key=ELSEWHERE_KEY, wait="30"
    )
    assert (status, run["page_id"]) == (200, OTHER_PAGE)
    assert (await service.call("GET", f"/api/sync-runs/{run['run_id']}", key=ELSEWHERE_KEY))[0] == 200
    async with service.client.get(
        "/api/conversations/sync-stream", params={"run_id": run["run_id"]}, headers=bearer(ELSEWHERE_KEY)
    ) as answer:
        assert [sent.event for sent in await all_events(answer)] == ["done"]
    async with service.client.get("/", headers=bearer(ELSEWHERE_KEY)) as answer:
        text = await answer.text()
        assert OTHER_PAGE in text
        assert PAGE not in text

    # What is not its own looks exactly like what does not exist.
    for there, nowhere in [
        (f"/api/pages/{PAGE}", "/api/pages/999"),
        (f"/api/sync-runs/{run_id}", "/api/sync-runs/999999"),
    ]:
        answers = []
        for path in (there, nowhere):
            status, document = await service.call("GET", path, key=ELSEWHERE_KEY)
            document.pop("request_id")
            shown = document.pop("detail").replace(path.rpartition("/")[2], "ID")
            answers.append((status, shown, document))
        assert answers[0] == answers[1]


async def test_no_error_repeats_the_secret_it_was_sent(service: Service) -> None:
    for body in (
        {"page_id": PAGE, "token": [PAGE_TOKEN]},
        {"page_id": PAGE, "token": PAGE_TOKEN + "\nX"},
        {"page_id": PAGE, "token": PAGE_TOKEN, "unknown": PAGE_TOKEN},
        {"page_id": PAGE_TOKEN + "/", "token": PAGE_TOKEN},
        {"token": PAGE_TOKEN},
        [PAGE_TOKEN],
    ):
        async with service.client.post("/api/pages", json=body, headers=OPERATOR) as answer:
            assert answer.status == 422
            assert PAGE_TOKEN not in await answer.text()
    async with service.client.post(
        "/api/pages",
        data='{"token": "' + PAGE_TOKEN + '", ',
        headers={**OPERATOR, "Content-Type": "application/json"},
    ) as answer:
        assert answer.status == 400
        assert PAGE_TOKEN not in await answer.text()
