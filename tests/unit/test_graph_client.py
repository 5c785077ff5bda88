"""The HTTP client, against a small server that answers as Meta does, well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import socket
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from convsync.graph import client
from convsync.graph.catalogue import ErrorClass, Retry
from convsync.graph.client import GraphClient, node_path, parse_json
from convsync.graph.errors import GraphError
from secrets_hunt import marked

TOKEN = marked("EAAtestToken")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers every path with one handler and remembers the requests."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[web.Request] = []
        self._handler = handler
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await self._handler(request)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/")).rstrip("/")

    async def __aenter__(self) -> Server:
        await self.server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()


def answers(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=raw, status=status, headers=headers, content_type="application/json")

    return handler


async def failure(handler: Handler, **options: object) -> GraphError:
    async with Server(handler) as server, GraphClient(server.url, **options) as graph:  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            with pytest.raises(GraphError) as caught:
                await graph.get("1/conversations", {}, TOKEN)
    return caught.value


async def test_an_answer_comes_with_everything_the_headers_say() -> None:
    headers = {
        "X-App-Usage": '{"call_count":12}',
        "x-fb-trace-id": "AbC",
        "facebook-api-version": "v25.0",
    }
    async with Server(answers({"data": []}, headers=headers)) as server, GraphClient(server.url) as graph:
        answer = await graph.get(node_path("1", "conversations"), {"limit": 25, "after": "Q=="}, TOKEN)
    assert answer.data == {"data": []}
    assert answer.usage is not None
    assert answer.usage.app_percent == 12
    assert (answer.status, answer.trace_id, answer.version) == (200, "AbC", "v25.0")
    assert answer.ms >= 0
    request = server.requests[0]
    assert request.path == "/v26.0/1/conversations"
    assert dict(request.query) == {"limit": "25", "after": "Q=="}


async def test_the_token_travels_in_a_header_and_never_in_the_address() -> None:
    async with Server(answers({})) as server, GraphClient(server.url) as graph:
        await graph.get("1", {}, TOKEN)
    assert server.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in str(server.requests[0].url)


async def test_a_token_among_the_parameters_is_refused() -> None:
    async with GraphClient("http://127.0.0.1:1") as graph:
        with pytest.raises(ValueError, match="not parameters"):
            await graph.get("1", {"access_token": TOKEN}, TOKEN)


async def test_with_an_app_secret_each_call_carries_a_proof_that_expires() -> None:
    async with (
        Server(answers({})) as server,
        GraphClient(server.url, app_secret="s3cret", now=lambda: 1_700_000_000.9) as graph,
    ):
        await graph.get("1", {}, TOKEN)
    query = server.requests[0].query
    expected = hmac.new(b"s3cret", f"{TOKEN}|1700000000".encode(), hashlib.sha256).hexdigest()
    assert query["appsecret_proof"] == expected
    assert query["appsecret_time"] == "1700000000"


async def test_fields_with_braces_arrive_as_they_were_meant() -> None:
    fields = "id,messages.limit(25){id,from,shares{link}}"
    async with Server(answers({})) as server, GraphClient(server.url) as graph:
        await graph.get("1", {"fields": fields}, TOKEN)
    assert server.requests[0].query["fields"] == fields


async def test_a_post_is_a_call_like_any_other_with_its_parameters_in_the_body() -> None:
    forms: list[dict[str, object]] = []

    async def handler(request: web.Request) -> web.Response:
        forms.append(dict(await request.post()))
        return web.json_response({"success": "true"})

    async with (
        Server(handler) as server,
        GraphClient(server.url, app_secret="secret", now=lambda: 1767225600.9) as graph,
    ):
        answer = await graph.post("1/subscribed_apps", {"subscribed_fields": "messages"}, TOKEN)
    assert answer.data == {"success": "true"}
    (request,) = server.requests
    assert (request.method, request.path_qs) == ("POST", "/v26.0/1/subscribed_apps")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert forms[0]["subscribed_fields"] == "messages"
    assert forms[0].keys() == {"subscribed_fields", "appsecret_proof", "appsecret_time"}


async def test_an_id_from_outside_cannot_reach_another_path() -> None:
    assert node_path("t_1:2", "messages") == "t_1:2/messages"
    assert node_path("../me?x=1#y", "messages") == "..%2Fme%3Fx%3D1%23y/messages"
    for bad in ("", ".", ".."):
        with pytest.raises(ValueError, match="id"):
            node_path(bad)


async def test_usage_is_read_from_an_error_too() -> None:
    header = '{"1":[{"type":"messenger","call_count":100,"estimated_time_to_regain_access":3}]}'
    body = {"error": {"code": 80006, "message": "too many messenger api calls", "fbtrace_id": "T"}}
    error = await failure(answers(body, status=400, headers={"X-Business-Use-Case-Usage": header}))
    assert error.error_class is ErrorClass.THROTTLED
    assert (error.block_seconds, error.trace_id, error.http_status) == (180, "T", 400)
    assert error.usage is not None


async def test_an_error_inside_a_200_is_an_error() -> None:
    error = await failure(answers({"error": {"code": 190, "message": "expired"}}))
    assert error.error_class is ErrorClass.TOKEN


@pytest.mark.parametrize(
    ("body", "status", "entry"),
    [
        (b"", 200, "empty_answer"),
        (b" \r\n", 200, "empty_answer"),
        (b"", 500, "empty_answer"),
        (b"<html>502 Bad Gateway</html>", 502, "html_answer"),
        (b"<!DOCTYPE html><html>Sorry</html>", 200, "html_answer"),
        (b"\n<html>log in</html>", 403, "html_answer"),
        (b'{"data": [', 200, "truncated_answer"),
        (b"[" * 100_000, 200, "truncated_answer"),
        (b'{"a": NaN}', 200, "truncated_answer"),
        (b"upstream connect error", 503, "unreadable_answer"),
        (b"[]", 200, "unreadable_answer"),
        (b"null", 200, "unreadable_answer"),
        (b"Too many requests", 429, "too_many_requests"),
    ],
)
async def test_a_body_that_is_no_json_object_has_its_row_of_the_catalogue(
    body: bytes, status: int, entry: str
) -> None:
    headers = {"X-App-Usage": '{"call_count":7}', "x-fb-trace-id": "T1", "x-fb-request-id": "R1"}
    error = await failure(answers(body, status=status, headers=headers))
    assert error.rule.name == entry
    assert (error.http_status, error.trace_id, error.request_id) == (status, "T1", "R1")
    assert error.usage is not None
    assert error.usage.app_percent == 7


async def test_a_truncated_answer_is_transient_and_what_its_headers_said_is_kept() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-App-Usage": '{"call_count":98}', "x-fb-trace-id": "T2"})
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"data": [')
        assert request.transport is not None
        request.transport.close()
        return response

    error = await failure(handler)
    assert (error.rule.name, error.http_status, error.trace_id) == ("truncated_answer", 200, "T2")
    assert error.usage is not None
    assert error.usage.app_percent == 98


async def test_a_connection_cut_before_the_answer_is_one_attempt_and_transient() -> None:
    async def first_answer_then_cut(request: web.Request) -> web.StreamResponse:
        if len(server.requests) > 1:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({})

    async with Server(first_answer_then_cut) as server, GraphClient(server.url) as graph:
        await graph.get("1", {}, TOKEN)
        with pytest.raises(GraphError) as caught:
            await graph.get("1", {}, TOKEN)
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert len(server.requests) == 2


async def test_nobody_there_is_transient_and_names_no_secret() -> None:
    async with GraphClient("http://127.0.0.1:9", app_secret="s3cret") as graph:
        with pytest.raises(GraphError) as caught:
            await graph.get("1", {}, TOKEN)
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert caught.value.http_status is None
    assert TOKEN not in str(caught.value)
    assert "proof" not in str(caught.value)


async def test_an_answer_that_never_comes_is_given_up() -> None:
    release = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await release.wait()
        return web.json_response({})

    async with Server(handler) as server, GraphClient(server.url, read_timeout=0.05) as graph:
        try:
            async with asyncio.timeout(20):
                with pytest.raises(GraphError) as caught:
                    await graph.get("1", {}, TOKEN)
        finally:
            release.set()
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert "in time" in caught.value.message


async def test_an_answer_larger_than_the_limit_asks_for_less() -> None:
    error = await failure(answers({"data": ["x" * 5000]}), max_bytes=1000)
    assert error.error_class is ErrorClass.SHRINK


async def test_an_answer_that_unpacks_to_more_than_the_limit_asks_for_less_too() -> None:
    """A few kilobytes on the wire; what counts is what they become."""

    async def handler(_: web.Request) -> web.Response:
        response = web.json_response({"data": ["x" * 5_000_000]})
        response.enable_compression(web.ContentCoding.gzip)
        return response

    error = await failure(handler, max_bytes=1_000_000)
    assert error.error_class is ErrorClass.SHRINK


@pytest.mark.parametrize(("items", "beside"), [(3, False), (300, True)], ids=["small", "large"])
async def test_a_large_answer_is_parsed_beside_the_loop_and_a_small_one_at_once(
    monkeypatch: pytest.MonkeyPatch, items: int, beside: bool
) -> None:
    body = {"data": [{"message": "wörd " * 1000}] * items}
    threads: list[int] = []

    def parse(raw: bytes) -> object:
        threads.append(threading.get_ident())
        return parse_json(raw)

    monkeypatch.setattr(client, "parse_json", parse)
    async with Server(answers(body)) as server, GraphClient(server.url) as graph:
        answer = await graph.get("1", {}, TOKEN)
    assert answer.data == body
    assert (answer.size > client.PARSED_IN_A_THREAD) is beside
    assert [thread != threading.get_ident() for thread in threads] == [beside]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_neither_followed_nor_tried_again(status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": f"{server.url}/elsewhere"})

    async with Server(handler) as server, GraphClient(server.url) as graph:
        with pytest.raises(GraphError) as caught:
            await graph.get("1", {}, TOKEN)
    assert (caught.value.rule.name, caught.value.http_status) == ("redirect", status)
    assert caught.value.retry is Retry.NEVER
    assert [request.path for request in server.requests] == ["/v26.0/1"]


async def test_an_answer_that_trickles_is_given_up_when_its_whole_time_is_over() -> None:
    """Each byte comes in time, the answer never does."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-App-Usage": '{"call_count":3}'})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.01)
        return response

    error = await failure(handler, read_timeout=5.0, total_timeout=0.15)
    assert (error.rule.name, error.http_status) == ("timeout", 200)
    assert error.usage is not None


async def test_nobody_waits_longer_for_a_connection_than_the_connect_timeout() -> None:
    """A server whose queue of connections is full answers nothing at all, not even a refusal."""
    with socket.socket() as busy, contextlib.ExitStack() as stack:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.getsockname())
        url = f"http://127.0.0.1:{busy.getsockname()[1]}"
        async with GraphClient(url, connect_timeout=0.05, read_timeout=60, total_timeout=60) as graph:
            async with asyncio.timeout(10):
                with pytest.raises(GraphError) as caught:
                    await graph.get("1", {}, TOKEN)
    assert (caught.value.rule.name, caught.value.http_status) == ("timeout", None)


async def test_an_error_names_the_trace_and_the_request_for_metas_support() -> None:
    headers = {"x-fb-trace-id": "Header1", "x-fb-request-id": "Req1"}
    body = {"error": {"code": 190, "error_subcode": 463, "message": "expired", "fbtrace_id": "Body1"}}
    error = await failure(answers(body, status=400, headers=headers))
    assert (error.trace_id, error.request_id) == ("Body1", "Req1")
    assert str(error) == "token (HTTP 400, code 190/463, trace Body1): expired"
    assert {"trace_id": "Body1", "request_id": "Req1"}.items() <= error.as_json().items()
    without = {"error": {"code": 190, "message": "expired", "fbtrace_id": "not an id\x00\n"}}
    assert (await failure(answers(without, status=400, headers=headers))).trace_id == "Header1"


@pytest.mark.parametrize("token", ["token-of-no-known-form", "4711|with/odd+characters=="])
async def test_the_token_of_the_call_is_in_no_text_of_its_error_whatever_it_looks_like(token: str) -> None:
    quoted = quote(token, safe="")
    texts = {
        "message": f"Malformed access token {token}",
        "error_user_title": f"see https://graph.facebook.com/me?t={quoted}",
        "error_user_msg": f"'{token}'",
    }
    handler = answers({"error": {"code": 190, **texts}}, status=400)
    async with Server(handler) as server, GraphClient(server.url, app_secret="s3cret") as graph:
        with pytest.raises(GraphError) as caught:
            await graph.get("1", {}, token)
    shown = [str(caught.value), repr(caught.value), str(caught.value.args), str(caught.value.as_json())]
    assert not [text for text in shown if token in text or quoted in text]


async def test_another_version_than_the_one_asked_for_is_warned_of_once() -> None:
    async def handler(_: web.Request) -> web.Response:
        status = 200 if len(server.requests) % 2 else 400
        body = {} if status == 200 else {"error": {"code": 2, "message": "down"}}
        return web.json_response(body, status=status, headers={"Facebook-API-Version": "v23.0"})

    with capture_logs() as logs:
        async with Server(handler) as server, GraphClient(server.url, "v20.0") as graph:
            answer = await graph.get("1", {}, TOKEN)
            with pytest.raises(GraphError):
                await graph.get("1", {}, TOKEN)
            await graph.get("1", {}, TOKEN)
    assert (answer.asked_version, answer.version) == ("v20.0", "v23.0")
    differing = [entry for entry in logs if entry["event"] == "graph_version_differs"]
    assert [(entry["asked"], entry["answered"]) for entry in differing] == [("v20.0", "v23.0")]


async def test_the_version_that_was_asked_for_is_no_warning() -> None:
    with capture_logs() as logs:
        async with (
            Server(answers({}, headers={"facebook-api-version": "v26.0"})) as server,
            GraphClient(server.url) as graph,
        ):
            await graph.get("1", {}, TOKEN)
    assert logs == []


async def test_a_header_that_the_database_could_not_keep_does_not_fail_the_call() -> None:
    header = '{"call_count":12,"note":"\\u0000","big":123456789012345678901234567890}'
    async with (
        Server(answers({}, headers={"X-App-Usage": header, "X-Page-Usage": "\xff{"})) as server,
        GraphClient(server.url) as graph,
    ):
        answer = await graph.get("1", {}, TOKEN)
    assert answer.usage is not None
    assert answer.usage.app_percent == 12
    assert "\x00" not in str(answer.usage.as_json())


def test_lone_surrogates_and_broken_utf8_are_decoded_rather_than_lost() -> None:
    assert parse_json(b'{"message": "\\ud83d"}') == {"message": "\ud83d"}
    assert parse_json(b'{"message": "caf\xe9"}') == {"message": "caf\ufffd"}


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await GraphClient().get("1", {}, TOKEN)
