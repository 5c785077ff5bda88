"""The HTTP client, against a small server that answers as Meta does, well or badly."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from convsync.graph.client import GraphClient, node_path, parse_json
from convsync.graph.errors import ErrorClass, GraphError

TOKEN = "EAAtestToken0123456789abcdef"
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
    assert answer.usage.percent == 12
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
    ("body", "status"),
    [
        (b"", 200),
        (b"<html>502 Bad Gateway</html>", 502),
        (b"<html>Sorry</html>", 200),
        (b'{"data": [', 200),
        (b"[]", 200),
        (b"null", 200),
        (b'{"a": NaN}', 200),
        (b"[" * 100_000, 200),
    ],
)
async def test_a_body_that_is_no_json_object_is_transient(body: bytes, status: int) -> None:
    error = await failure(answers(body, status=status))
    assert error.error_class is ErrorClass.TRANSIENT
    assert error.http_status == status


async def test_a_truncated_answer_is_transient() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        await response.write(b'{"data": [')
        assert request.transport is not None
        request.transport.close()
        return response

    error = await failure(handler)
    assert error.error_class is ErrorClass.TRANSIENT


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
        with pytest.raises(GraphError) as caught:
            await graph.get("1", {}, TOKEN)
        release.set()
    assert caught.value.error_class is ErrorClass.TRANSIENT
    assert "in time" in caught.value.message


async def test_an_answer_larger_than_the_limit_asks_for_less() -> None:
    error = await failure(answers({"data": ["x" * 5000]}), max_bytes=1000)
    assert error.error_class is ErrorClass.SHRINK


async def test_an_answer_of_several_megabytes_is_parsed_like_any_other() -> None:
    body = {"data": [{"message": "wörd " * 1000}] * 300}
    async with Server(answers(body)) as server, GraphClient(server.url) as graph:
        answer = await graph.get("1", {}, TOKEN)
    assert answer.data == body


async def test_a_redirect_is_not_followed() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "https://elsewhere.example/"})

    error = await failure(handler)
    assert error.http_status == 302


def test_lone_surrogates_and_broken_utf8_are_decoded_rather_than_lost() -> None:
    assert parse_json(b'{"message": "\\ud83d"}') == {"message": "\ud83d"}
    assert parse_json(b'{"message": "caf\xe9"}') == {"message": "caf\ufffd"}


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        await GraphClient().get("1", {}, TOKEN)
