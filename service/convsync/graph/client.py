"""The HTTP client of the Graph API: one call is one attempt, and says everything there is to know.

It neither waits nor retries: each attempt needs a slot of the Page's call budget of its own, and the
budget is kept by whoever calls. Usage headers come back with every answer, errors included.

Tokens travel in the `Authorization` header and never in an address, so no address that is logged,
raised or kept by a proxy can hold one. Lists are continued with the `after` cursor, never by
following `next`: that link embeds a token, and leaves out the proof of the app secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson
import structlog
from multidict import CIMultiDict
from yarl import URL

from convsync.graph.catalogue import (
    EMPTY,
    HTML,
    NO_CONNECTION,
    REDIRECT,
    TIMEOUT,
    TOO_LARGE,
    TRUNCATED,
    UNREADABLE,
)
from convsync.graph.errors import GraphError, read_error, readable_id
from convsync.graph.usage import Usage, read_usage
from convsync.observe.measures import GraphMeasures

_log = structlog.get_logger(__name__)

_MIB: Final = 1024 * 1024
PARSED_IN_A_THREAD: Final = _MIB
"""Answers larger than this are parsed and read beside the event loop, which goes on serving webhooks."""
_STRANGE_VERSIONS: Final = 20
_NEVER_IN_ADDRESS: Final = frozenset({"access_token", "appsecret_proof", "appsecret_time"})


@dataclass(frozen=True, slots=True)
class GraphAnswer:
    """A successful answer: its JSON object, and what the headers said.

    `ms` is the time from the request to the last byte. `version` is the version that answered: Meta
    serves calls of a dead version with the next one, without an error; `asked_version` was asked for.
    `size` is the number of bytes of the answer.
    """

    data: dict[str, Any]
    usage: Usage | None
    status: int
    ms: int
    trace_id: str | None
    version: str | None
    request_id: str | None = None
    asked_version: str | None = None
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Head:
    """What an answer says before its body, and a body that breaks off cannot take away."""

    status: int | None = None
    usage: Usage | None = None
    trace_id: str | None = None
    request_id: str | None = None
    version: str | None = None
    html: bool = False

    @classmethod
    def of(cls, status: int | None, headers: Mapping[str, str]) -> _Head:
        return cls(
            status,
            read_usage(headers),
            readable_id(headers.get("x-fb-trace-id")),
            readable_id(headers.get("x-fb-request-id")),
            readable_id(headers.get("facebook-api-version")),
            headers.get("content-type", "").lower().startswith("text/html"),
        )


def node_path(node_id: str, edge: str = "") -> str:
    """The path of a node or one of its edges; an id from outside cannot reach another path."""
    if not node_id or node_id in {".", ".."}:
        raise ValueError("a node needs an id")
    path = quote(node_id, safe=":")
    return f"{path}/{edge}" if edge else path


class GraphClient:
    """A pooled connection to the Graph API, for any number of Pages.

    Use as an async context manager. Times are in seconds. `app_secret` makes each call carry the
    proof that its sender knows the secret, in the form that expires after five minutes
    (developers.facebook.com/documentation/facebook-login/security).
    """

    def __init__(
        self,
        url: str = "https://graph.facebook.com",
        version: str = "v26.0",
        app_secret: str | None = None,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        total_timeout: float = 60.0,
        max_bytes: int = 32 * _MIB,
        connections: int = 32,
        now: Callable[[], float] = time.time,
        measures: GraphMeasures | None = None,
    ) -> None:
        self.version = version.strip("/")
        self._base = f"{url.rstrip('/')}/{self.version}"
        self._strange_versions: set[str] = set()
        self._app_secret = app_secret.encode() if app_secret else None
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout, sock_connect=connect_timeout, sock_read=read_timeout
        )
        self._max_bytes = max_bytes
        self._connections = connections
        self._now = now
        self._measures = measures if measures is not None else GraphMeasures()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> GraphClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=self._timeout,
            headers={"Accept": "application/json", "User-Agent": "convsync"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )
        # aiohttp repeats a GET by itself when a pooled connection turns out to be closed. That
        # second call would have no slot in the budget; the caller's retry has one.
        self._session._retry_connection = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, params: Mapping[str, str | int], token: str) -> GraphAnswer:
        """Make one GET of `path` (see `node_path`); raise `GraphError` for whatever goes wrong.

        Cancelling closes the connection. A secret among `params` is refused with `ValueError`.
        """
        return await self._send("GET", path, params, token)

    async def post(self, path: str, params: Mapping[str, str | int], token: str) -> GraphAnswer:
        """Make one POST with `params` as a form in its body, otherwise as `get`.

        What Graph did before an error without an answer is unknown.
        """
        return await self._send("POST", path, params, token)

    async def _send(self, method: str, path: str, params: Mapping[str, str | int], token: str) -> GraphAnswer:
        try:
            answer = await self._attempt(method, path, params, token)
        except GraphError as error:
            self._measures.called(path, error.http_status, error.error_class.value, error.ms / 1000)
            raise
        self._measures.called(path, answer.status, "", answer.ms / 1000)
        return answer

    async def _attempt(
        self, method: str, path: str, params: Mapping[str, str | int], token: str
    ) -> GraphAnswer:
        if self._session is None:
            raise RuntimeError("GraphClient is not open")
        if not _NEVER_IN_ADDRESS.isdisjoint(params):
            raise ValueError("tokens and proofs are not parameters")
        sent = {name: str(value) for name, value in params.items()}
        if self._app_secret is not None:
            sent |= self._proof(token)
        url = URL(f"{self._base}/{path}", encoded=True)
        form = None
        if method == "GET":
            url = url.with_query(sent)
        else:
            form = sent
        secrets = {token, quote(token, safe="")} | ({sent["appsecret_proof"]} if self._app_secret else set())
        head = _Head()
        started = time.monotonic()

        def failed(what: str, kind: str) -> GraphError:
            return GraphError(
                what,
                type=kind,
                http_status=head.status,
                trace_id=head.trace_id,
                request_id=head.request_id,
                usage=head.usage,
                ms=_milliseconds_since(started),
                secrets=secrets,
            )

        try:
            async with self._session.request(
                method,
                url,
                data=form,
                headers={"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as response:
                head = _Head.of(response.status, response.headers)
                body = await self._read(response)
        except _AnswerTooLargeError as error:
            raise failed(str(error), TOO_LARGE) from None
        except TimeoutError as error:
            raise failed(f"no answer in time: {str(error) or 'timed out'}", TIMEOUT) from None
        except aiohttp.ClientPayloadError as error:
            raise failed(f"the answer broke off: {error}", TRUNCATED) from None
        except (aiohttp.ClientError, OSError) as error:
            raise failed(f"{type(error).__name__}: {error}", NO_CONNECTION) from None
        ms = _milliseconds_since(started)
        self._compare_version(head)
        data, problem = await self._decode(body, head)
        if problem is not None:
            raise failed(*problem)
        if head.status != 200 or "error" in data:
            raise read_error(
                data,
                status=response.status,
                ms=ms,
                trace_id=head.trace_id,
                request_id=head.request_id,
                usage=head.usage,
                secrets=secrets,
            )
        return GraphAnswer(
            data,
            head.usage,
            response.status,
            ms,
            head.trace_id,
            head.version,
            head.request_id,
            self.version,
            len(body),
        )

    def _proof(self, token: str) -> dict[str, str]:
        at = str(int(self._now()))
        assert self._app_secret is not None  # noqa: S101 - for the type checker; the caller has looked
        proof = hmac.new(self._app_secret, f"{token}|{at}".encode(), hashlib.sha256).hexdigest()
        return {"appsecret_proof": proof, "appsecret_time": at}

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_bytes:
                response.close()
                raise _AnswerTooLargeError(f"the answer has more than {self._max_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def _decode(self, body: bytes, head: _Head) -> tuple[dict[str, Any], tuple[str, str] | None]:
        """The JSON object of a body; else what came instead, and its name in the catalogue."""
        what = f"HTTP {head.status} with"
        if head.status is not None and 300 <= head.status < 400:
            return {}, (f"{what} a redirect", REDIRECT)
        if not body.strip():
            return {}, (f"{what} an empty body", EMPTY)
        try:
            parsing = len(body) > PARSED_IN_A_THREAD
            data = await asyncio.to_thread(parse_json, body) if parsing else parse_json(body)
        except ValueError:
            start = body.lstrip()[:1]
            if head.html or start == b"<":
                return {}, (f"{what} a web page of {len(body)} bytes", HTML)
            if start in (b"{", b"["):
                return {}, (f"{what} {len(body)} bytes of JSON that breaks off", TRUNCATED)
            return {}, (f"{what} {len(body)} bytes that are no JSON", UNREADABLE)
        if not isinstance(data, dict):
            return {}, (f"{what} JSON that is no object", UNREADABLE)
        return data, None

    def _compare_version(self, head: _Head) -> None:
        """Warn, once, that another version answers than the one asked for."""
        if head.version is None or head.version == self.version or head.version in self._strange_versions:
            return
        if len(self._strange_versions) < _STRANGE_VERSIONS:
            self._strange_versions.add(head.version)
            _log.warning(
                "graph_version_differs",
                asked=self.version,
                answered=head.version,
                trace_id=head.trace_id,
                graph_request_id=head.request_id,  # Meta's; request_id is of whom the run was begun for
            )


def read_batch(items: list[Any]) -> list[GraphAnswer | GraphError]:
    """Read the answers of a batch request: an array of `{"code", "headers", "body"}`, the body as JSON text.

    Each has its own status, usage and error. One that is `null` was not answered in Meta's time.
    """
    return [_read_batch_item(item) for item in items]


def _read_batch_item(item: Any) -> GraphAnswer | GraphError:
    if item is None:
        return GraphError("the item of a batch was not answered in time", type=TIMEOUT)
    code = item.get("code") if isinstance(item, dict) else None
    if isinstance(code, bool) or not isinstance(code, int):
        return GraphError("the item of a batch has no status", type=UNREADABLE)
    listed = item.get("headers")
    pairs = [
        (header["name"], header["value"])
        for header in (listed if isinstance(listed, list) else [])
        if isinstance(header, dict)
        and isinstance(header.get("name"), str)
        and isinstance(header.get("value"), str)
    ]
    head = _Head.of(code, CIMultiDict(pairs))
    body = item.get("body")
    data: Any = None
    if isinstance(body, str):
        with suppress(ValueError):
            data = parse_json(body.encode("utf-8", "surrogatepass"))
    if code == 200 and isinstance(data, dict) and "error" not in data:
        size = len(body) if isinstance(body, str) else 0
        return GraphAnswer(data, head.usage, code, 0, head.trace_id, head.version, head.request_id, size=size)
    if code == 200 and not isinstance(data, dict):
        return GraphError("the item of a batch is no JSON object", type=UNREADABLE, http_status=code)
    return read_error(data, status=code, trace_id=head.trace_id, request_id=head.request_id, usage=head.usage)


class _AnswerTooLargeError(Exception):
    pass


def parse_json(body: bytes) -> Any:
    """Decode JSON; raise `ValueError` if it is none.

    orjson is quick but refuses lone surrogates and broken UTF-8, which people do write and Meta
    does pass on; such a body is decoded by the slow parser rather than lost.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return json.loads(body.decode("utf-8", errors="replace"), parse_constant=_refuse)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _milliseconds_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
