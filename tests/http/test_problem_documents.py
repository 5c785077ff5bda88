"""Whatever is wrong with a request, the answer is a problem document that says so, and no defect of ours."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from http_support import ELSEWHERE_KEY, OPERATOR, PAGE, Service, bearer, problem
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from convsync.facts import DeadLetter
from convsync.web import asked
from convsync.web.app import create_app, serve
from convsync.web.limits import RateLimit, TooManyRequests
from convsync.web.routing import ROUTES
from convsync.web.state import STORE, WRITE_PATH

JSON = {"Content-Type": "application/json"}
TAKE_JSON = [route for route in ROUTES if isinstance(route.body, type)]


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing", f"/api/pages/{PAGE}/nothing", "/api//pages"])
async def test_an_address_that_does_not_exist(service: Service, path: str) -> None:
    for headers in ({}, OPERATOR):
        async with service.client.get(path, headers=headers) as answer:
            assert answer.content_type == "application/problem+json"
            problem(await answer.json(), 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_a_method_that_an_address_does_not_answer(service: Service, method: str) -> None:
    async with service.client.request(method, f"/api/pages/{PAGE}/timing", headers=OPERATOR) as answer:
        problem(await answer.json(), 405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


@pytest.mark.parametrize("route", TAKE_JSON, ids=lambda route: f"{route.method} {route.path}")
async def test_a_body_that_is_no_json_says_so_on_every_route(
    service: Service, route: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.add_page()
    await service.app[STORE].ingest([DeadLetter(PAGE, "it is not understood", b"{}")], "webhook")
    here = {"page_id": PAGE, "conversation_id": "1", "consumer": "crm", "dead_letter_id": "1"}
    path = route.path.format(**here)
    headers = {**OPERATOR, "If-Match": '"1"'}

    async def told(body: bytes, **more: str) -> tuple[int, dict[str, Any]]:
        async with service.client.request(
            route.method, path, data=body, headers={**headers, **more}
        ) as answer:
            return answer.status, await answer.json()

    for body in (b"{", b"\xff", b"nothing", b"{} {}"):
        problem((await told(body, **JSON))[1], 400, "bad_request")
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/octet-stream"):
        problem((await told(b"{}", **{"Content-Type": media_type}))[1], 415, "unsupported_media_type")
    assert (await told(b'{"nobody": 1}', **{"Content-Type": "application/merge-patch+json"}))[0] == 422
    problem((await told(b'{"nobody": 1}', **JSON))[1], 422, "invalid_argument")
    monkeypatch.setattr(asked, "MAX_JSON_BYTES", 64)
    problem((await told(b" " * 65, **JSON))[1], 413, "request_entity_too_large")


FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/webhook", {}),
        ("/api/facebook/deauthorize", FORM),
        ("/console/login", FORM),
        ("/api/pages", {**OPERATOR, **JSON}),
    ],
)
async def test_a_body_that_cannot_be_unpacked_is_no_defect_of_ours(
    service: Service, path: str, headers: dict[str, str]
) -> None:
    """Anybody can send one: it is neither answered with 500 nor told to whoever watches the errors."""
    async with service.client.post(
        path, data=b"no gzip", headers={**headers, "Content-Encoding": "gzip"}
    ) as answer:
        problem(await answer.json(), 400, "bad_request")


BROKEN = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", False),
    "a header without end": (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 9000 + b"\r\n\r\n", False),
    "a chunk of no size": (
        b"POST /api/webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n",
        False,
    ),
    # Who is told to go on is being listened to.
    "cut short": (
        b"POST /api/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n{",
        True,
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_whoever_speaks_no_http_or_leaves_is_no_error_in_the_log(
    configure: Any, database: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Any scanner does it, and each would be a page of traceback, told to whoever watches the errors."""
    sent, leaves = BROKEN[kind]
    # As it is served: aiohttp's own server for tests ends the work of whoever left.
    app = create_app(configure(), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(sent)
        assert (b" 100 " if leaves else b" 400 ") in await reader.readline()
        writer.close()
        async with asyncio.timeout(30):
            while leaves and not app[WRITE_PATH].requests:  # noqa: ASYNC110 - it is heard a moment later
                await asyncio.sleep(0.01)
        await runner.cleanup()
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []
    assert [one for one in logs if one["log_level"] not in ("info", "debug")] == []


REFUSED_BY_THE_PARSER = {
    **{kind: (sent, 400, "bad_request") for kind, (sent, leaves) in BROKEN.items() if not leaves},
    "an unknown wish": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n",
        417,
        "expectation_failed",
    ),
    "an unknown wish of nowhere": (
        b"GET /nothing HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n",
        417,
        "expectation_failed",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_BY_THE_PARSER)
async def test_what_no_handler_ever_sees_is_refused_with_a_problem_document(
    configure: Any, database: Any, kind: str
) -> None:
    sent, status, code = REFUSED_BY_THE_PARSER[kind]
    runner = await serve(create_app(configure(), database.service_url), "127.0.0.1", 0)
    try:
        with capture_logs(processors=[merge_contextvars]) as logs:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(*runner.addresses[0])
                writer.write(sent)
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                headers = dict(line.split(": ", 1) for line in head.strip().split("\r\n")[1:])
                body = json.loads(await reader.readexactly(int(headers["Content-Length"])))
                writer.close()
    finally:
        await runner.cleanup()
    assert head.split()[1] == str(status)
    assert headers["Content-Type"].startswith("application/problem+json")
    problem(body, status, code)
    assert headers["X-Request-ID"] == body["request_id"] != ""
    # Who is asked about it finds it; what was sent may be a key, and is in no log.
    told = [one for one in logs if one["event"] == "request_unreadable"]
    assert all(one["request_id"] == body["request_id"] for one in told)
    assert "zz" not in str(told)
    assert "aaa" not in str(told)


async def test_a_body_of_unknown_length_is_limited_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "MAX_JSON_BYTES", 64)

    async def chunks() -> Any:
        for _ in range(10):
            yield b" " * 10

    async with service.client.post("/api/pages", data=chunks(), headers={**OPERATOR, **JSON}) as answer:
        problem(await answer.json(), 413, "request_entity_too_large")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"/api/pages/{PAGE}/conversations?limt=5", "limt"),
        ("/api/changes?after=&limit=5&before=1", "before"),
        ("/api/pages?page_id=1", "page_id"),
        ("/api/changes?limit=5&limit=6", "limit"),
    ],
)
async def test_a_parameter_that_is_not_known_is_no_parameter_that_is_passed_over(
    service: Service, path: str, field: str
) -> None:
    await service.add_page()
    status, document = await service.call("GET", path)
    assert problem(document, status, "invalid_argument")["field"] == field


async def test_the_webhook_takes_what_else_meta_puts_into_its_address(service: Service) -> None:
    async with service.client.get("/api/webhook", params={"hub.mode": "subscribe", "new": "1"}) as answer:
        assert answer.status == 403


# --- how often


async def test_who_calls_too_often_is_told_when_to_come_back(
    configure: Any, database: Any, aiohttp_client: Any
) -> None:
    app = create_app(configure(requests_per_minute=3), database.service_url)
    service = Service(await aiohttp_client(app), app)
    for _ in range(3):
        assert (await service.call("GET", "/api/pages"))[0] == 200
    async with service.client.get("/api/pages", headers=OPERATOR) as answer:
        problem(await answer.json(), 429, "too_many_requests")
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
    # Others, and what needs no key, are not kept waiting.
    assert (await service.call("GET", "/api/pages", key=ELSEWHERE_KEY))[0] == 200
    for _ in range(5):
        async with service.client.get("/healthz") as answer:
            assert answer.status == 200
        async with service.client.get("/api/pages", headers=bearer("x" * 30)) as answer:
            assert answer.status == 401


async def test_without_a_limit_nobody_is_kept_waiting(
    configure: Any, database: Any, aiohttp_client: Any
) -> None:
    app = create_app(configure(requests_per_minute=0), database.service_url)
    service = Service(await aiohttp_client(app), app)
    for _ in range(20):
        assert (await service.call("GET", "/api/changes/end"))[0] == 200


def refused(limit: RateLimit, key: str = "a") -> int | None:
    """Seconds to wait, or None if the request was taken."""
    try:
        limit.take(key)
    except TooManyRequests as error:
        return error.retry_after
    return None


def test_requests_come_back_evenly_and_never_more_than_a_minutes_worth() -> None:
    now = 1000.0
    limit = RateLimit(6, now=lambda: now)
    assert [refused(limit) for _ in range(8)] == [None] * 6 + [10, 10]
    assert refused(limit, "b") is None
    now += 9
    assert refused(limit) == 1
    now += 1
    assert [refused(limit) for _ in range(2)] == [None, 10]
    now += 20
    assert [refused(limit) for _ in range(3)] == [None, None, 10]
    now += 86_400
    assert [refused(limit) for _ in range(7)] == [None] * 6 + [10]


# --- the old addresses


async def test_the_old_addresses_take_camel_case(service: Service) -> None:
    await service.add_page()
    body = {"pageId": PAGE, "deadlineSeconds": 60, "mode": "full", "restart": True}
    status, run = await service.call("POST", "/api/conversations/sync", body, wait="30")
    assert (status, run["page_id"], run["reason"]) == (200, PAGE, "token_missing")
    async with service.client.post("/api/conversations/sync-stream", json=body, headers=OPERATOR) as answer:
        assert answer.status == 200
        assert PAGE in await answer.text()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"pageId": ""}, "page_id"),
        ({"pageId": PAGE, "page_id": PAGE}, ""),
        ({"pageId": PAGE, "deadlineSeconds": -1}, "deadline_seconds"),
        ({"pageID": PAGE}, "page_id"),
        ({"page_id": PAGE, "deadlineseconds": 1}, "deadlineseconds"),
        ([PAGE], ""),
    ],
)
async def test_a_wrong_field_of_the_old_addresses_is_named(service: Service, body: Any, field: str) -> None:
    status, document = await service.call("POST", "/api/conversations/sync", body)
    assert problem(document, status, "invalid_argument")["field"] == field


async def test_other_addresses_have_one_name_for_each_field(service: Service) -> None:
    status, document = await service.call("POST", "/api/pages", {"pageId": PAGE})
    assert status == 422
    assert problem(document, 422, "invalid_argument")["field"] in ("page_id", "pageId")


# --- CORS

FRIEND, STRANGER = "https://app.example.com", "https://app.example.com.evil.example"


@pytest.fixture
async def shared(configure: Any, database: Any, aiohttp_client: Any) -> Service:
    app = create_app(configure(cors_origins=f"{FRIEND}, http://localhost:3000"), database.service_url)
    return Service(await aiohttp_client(app), app)


def asking(origin: str, method: str = "PATCH") -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,if-match",
    }


async def test_a_page_of_an_allowed_origin_may_ask_and_read(shared: Service) -> None:
    for origin in (FRIEND, "http://localhost:3000"):
        async with shared.client.options(f"/api/pages/{PAGE}", headers=asking(origin)) as answer:
            assert (answer.status, await answer.read()) == (204, b"")
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
            allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
            assert {"authorization", "content-type", "if-match", "last-event-id"} <= set(allowed)
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert "*" not in str(answer.headers)
        async with shared.client.get("/api/pages", headers={"Origin": origin, **OPERATOR}) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
            assert answer.headers["Vary"] == "Origin"
        # It also has to know what went wrong.
        async with shared.client.get("/api/pages", headers={"Origin": origin}) as answer:
            assert answer.status == 401
            assert answer.headers["Access-Control-Allow-Origin"] == origin


async def test_a_stream_may_be_read_by_a_page_of_an_allowed_origin(shared: Service) -> None:
    await shared.add_page()
    _, run = await shared.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    _, issued = await shared.call("POST", "/api/stream-tickets", {"run_id": run["run_id"]})
    async with shared.client.get(
        "/api/conversations/sync-stream",
        params={"run_id": run["run_id"], "ticket": issued["ticket"]},
        headers={"Origin": FRIEND},
    ) as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == FRIEND


@pytest.mark.parametrize(
    "origin",
    [STRANGER, "https://APP.example.com", "http://app.example.com", f"{FRIEND}:444", "null", "*", ""],
)
async def test_a_page_of_another_origin_learns_nothing(shared: Service, origin: str) -> None:
    async with shared.client.options(f"/api/pages/{PAGE}", headers=asking(origin)) as answer:
        problem(await answer.json(), 405, "method_not_allowed")
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with shared.client.get("/api/pages", headers={"Origin": origin, **OPERATOR}) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/", "/metrics", "/console/assets/console.css"])
async def test_the_console_is_shared_with_nobody(shared: Service, path: str) -> None:
    async with shared.client.get(path, headers={"Origin": FRIEND, **OPERATOR}) as answer:
        assert answer.status == 200
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_without_the_setting_nothing_is_shared(service: Service) -> None:
    async with service.client.options("/api/pages", headers=asking(FRIEND, "GET")) as answer:
        assert answer.status == 405
    async with service.client.get("/api/pages", headers={"Origin": FRIEND, **OPERATOR}) as answer:
        assert not [name for name in answer.headers if name.startswith("Access-Control")]
        assert "Vary" not in answer.headers


@pytest.mark.parametrize(
    "wrong",
    [
        "*",
        "null",
        "app.example.com",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://App.example.com",
        "https://me@app.example.com",
        "ftp://app.example.com",
        "https://[",
        f"{FRIEND},*",
    ],
)
def test_only_exact_origins_can_be_set(configure: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        configure(cors_origins=wrong)
