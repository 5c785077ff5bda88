"""Faults planted on calls: which calls, how often, and what happens to them.

A fault is looked up after token and limits were checked and acts in one of three places: on the parameters of
the call, before it (it answers itself, waits, or cuts the connection), or on the finished answer. A new kind
is a function in `REWRITE`, `BEFORE` or `ANSWER`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson
from aiohttp import web

from convsync.simulator.errors import GraphError
from convsync.simulator.fields import FieldSyntaxError, parse_fields
from convsync.simulator.paging import cursor_just_before

_TRANSIENT_STATUS = {1: 500, 2: 503, 200: 403}
HTML = (
    "<!DOCTYPE html><html><head><title>Error</title></head><body>Sorry, something went wrong.</body></html>"
)


class FaultError(ValueError):
    """A fault that cannot be planted; the text says why."""


@dataclass(slots=True)
class Fault:
    """Calls whose `METHOD /path?query` (without token) contains the regular expression `match` get `action`.

    The first `after` matching calls are spared, the next `times` (None: all) are hit.
    """

    fault_id: int
    match: re.Pattern[str]
    action: str
    after: int = 0
    times: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    seen: int = 0
    hits: int = 0

    def wants(self, call: str) -> bool:
        """Whether this call is hit; counts it."""
        if self.match.search(call) is None or (self.times is not None and self.hits >= self.times):
            return False
        self.seen += 1
        if self.seen <= self.after:
            return False
        self.hits += 1
        return True

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.fault_id,
            "match": self.match.pattern,
            "action": self.action,
            "after": self.after,
            "times": self.times,
            "seen": self.seen,
            "hits": self.hits,
            **self.params,
        }


Rewrite = Callable[[Fault, Mapping[str, str]], Mapping[str, str]]
Before = Callable[[Fault, web.Request], Awaitable[web.StreamResponse | None]]
Answer = Callable[[Fault, web.Request, web.Response], Awaitable[web.StreamResponse]]


async def _error(fault: Fault, request: web.Request) -> None:
    params = fault.params
    code = int(params.get("code", 1))
    raise GraphError(
        code,
        str(params.get("message", "An unknown error occurred")),
        http=int(params.get("http", _TRANSIENT_STATUS.get(code, 400))),
        subcode=params.get("subcode"),
        kind=str(params.get("type", "OAuthException")),
        user_title=params.get("user_title"),
        user_message=params.get("user_message"),
        is_transient=params.get("is_transient"),
    )


async def _status(fault: Fault, request: web.Request) -> web.Response:
    return web.Response(status=int(fault.params.get("http", 500)), text=str(fault.params.get("body", "")))


async def _html(fault: Fault, request: web.Request) -> web.Response:
    body = str(fault.params.get("body", HTML))
    return web.Response(status=int(fault.params.get("http", 502)), text=body, content_type="text/html")


async def _empty(fault: Fault, request: web.Request) -> web.Response:
    return web.Response(status=int(fault.params.get("http", 200)), content_type="application/json")


async def _hang(fault: Fault, request: web.Request) -> web.Response:
    await asyncio.sleep(float(fault.params.get("seconds", 3600)))
    return web.Response(status=504)


async def _delay(fault: Fault, request: web.Request) -> None:
    await asyncio.sleep(float(fault.params.get("seconds", 1)))


async def _reduce_data(fault: Fault, request: web.Request) -> None:
    """Refuse what asks for more than `nodes` objects: the same call fails for ever, a smaller one passes."""
    limit = _whole(request.query.get("limit"), 25)
    nested = 0
    try:
        for field_ in parse_fields(request.query.get("fields", "id")).fields:
            if field_.name == "messages":
                nested = _whole(field_.modifier("limit"), 25)
    except FieldSyntaxError:
        return
    if limit * (1 + nested) <= int(fault.params.get("nodes", 500)):
        return
    phrase = "Please reduce the amount of data you're asking for, then retry your request"
    if fault.params.get("hidden"):
        # Seen too: the telling phrase only in the text for users.
        raise GraphError(1, "An unknown error occurred", http=500, subcode=99, user_message=phrase)
    raise GraphError(1, phrase, http=500)


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


async def _reset(fault: Fault, request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _truncate(fault: Fault, request: web.Request, answer: web.Response) -> web.StreamResponse:
    """Promise the whole answer, send half of it, cut the connection."""
    body = bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""
    cut = web.StreamResponse(status=answer.status, headers=answer.headers)
    cut.content_length = len(body)
    await cut.prepare(request)
    await cut.write(body[: len(body) // 2])
    if request.transport is not None:
        # close() sends what is buffered first, abort() might drop it.
        request.transport.close()
    return cut


async def _empty_page(fault: Fault, request: web.Request, answer: web.Response) -> web.StreamResponse:
    """A page without items but with a `next` that leads to them, which Meta says to expect."""
    body = orjson.loads(bytes(answer.body)) if isinstance(answer.body, bytes | bytearray) else {}
    cursors = body.get("paging", {}).get("cursors") if isinstance(body, dict) else None
    if cursors is None:
        return answer
    place = cursor_just_before(cursors["before"])
    path, _, query = str(request.rel_url).partition("?")
    parameters = dict(parse_qsl(query)) | {"after": place}
    parameters.pop("before", None)
    following = f"{request.scheme}://{request.host}{path}?{urlencode(parameters)}"
    page = {"data": [], "paging": {"cursors": {"before": place, "after": place}, "next": following}}
    return web.Response(body=orjson.dumps(page), content_type="application/json", charset="UTF-8")


def _short_page(fault: Fault, parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Fewer items than asked for, though there are more."""
    return {**parameters, "limit": str(fault.params.get("limit", 1))}


REWRITE: dict[str, Rewrite] = {"short_page": _short_page}
BEFORE: dict[str, Before] = {
    "error": _error,
    "status": _status,
    "html": _html,
    "empty": _empty,
    "hang": _hang,
    "delay": _delay,
    "reduce_data": _reduce_data,
    "reset": _reset,
}
ANSWER: dict[str, Answer] = {"truncate": _truncate, "empty_page": _empty_page}
ACTIONS = frozenset({*REWRITE, *BEFORE, *ANSWER})


class Faults:
    """The planted faults. The first that wants a call gets it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._ids = count(1)

    def add(
        self,
        match: str,
        action: str,
        *,
        times: int | None = None,
        after: int = 0,
        params: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Fault:
        """Plant a fault. Raises FaultError for an unknown action or a bad expression."""
        if action not in ACTIONS:
            raise FaultError(f"unknown action {action!r}; known: {', '.join(sorted(ACTIONS))}")
        try:
            pattern = re.compile(match)
        except re.error as error:
            raise FaultError(f"match is no regular expression: {error}") from error
        fault = Fault(next(self._ids), pattern, action, after, times, {**(params or {}), **more})
        self._faults.append(fault)
        return fault

    def plant(self, description: Mapping[str, Any]) -> Fault:
        """Plant a fault given as JSON: `{"match"?, "action", "times"?, "after"?, ..}`. Raises FaultError."""
        params = dict(description)
        match, action = params.pop("match", ".*"), params.pop("action", None)
        times, after = params.pop("times", None), params.pop("after", 0)
        if not isinstance(match, str) or not isinstance(action, str) or not isinstance(after, int):
            raise FaultError("match and action are strings, after is a number")
        if times is not None and not isinstance(times, int):
            raise FaultError("times is a number or null")
        return self.add(match, action, times=times, after=after, params=params)

    def remove(self, fault_id: int) -> bool:
        """Take a fault back; whether it was there."""
        left = [fault for fault in self._faults if fault.fault_id != fault_id]
        found = len(left) < len(self._faults)
        self._faults = left
        return found

    def clear(self) -> None:
        self._faults.clear()

    def list(self) -> list[dict[str, Any]]:
        return [fault.describe() for fault in self._faults]

    def consult(self, call: str) -> Fault | None:
        """The fault that hits this call (`METHOD /path?query`), if any."""
        return next((fault for fault in self._faults if fault.wants(call)), None)
