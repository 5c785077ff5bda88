"""Faults planted on calls: which calls, how often, and what happens to them.

A fault is looked up after token and limits were checked and acts in one of three places: on the call, before
it (it answers itself, waits, or cuts the connection), or on the finished answer. A new kind is a function in
`REWRITE`, `BEFORE` or `ANSWER`. Some leave something behind that stands: a block, a dead token, dead cursors.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from convsync.simulator.catalogue import CATALOGUE, named
from convsync.simulator.drift import KINDS, NO_ID, drifted
from convsync.simulator.errors import GraphError
from convsync.simulator.fields import Fields, FieldSyntaxError, parse_fields
from convsync.simulator.limits import Blocks
from convsync.simulator.paging import DEFAULT_LIMIT, cursor_just_before, read_cursor

if TYPE_CHECKING:
    from convsync.simulator.calling import GraphCall

_TRANSIENT_STATUS = {1: 500, 2: 503, 200: 403}
_TRICKLED_PIECES = 20
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


@dataclass(frozen=True, slots=True)
class Hit:
    """A call that a fault hits. `request` is None for an item of a batch: it has no connection of its own."""

    call: GraphCall
    request: web.Request | None

    @property
    def faults(self) -> Faults:
        return self.call.state.faults

    @property
    def page_id(self) -> str:
        return self.call.page.page_id if self.call.page is not None else ""


class NoAnswer(Exception):
    """The call never gets an answer: in a batch its place is null."""


Rewrite = Callable[[Fault, Hit], None]
Before = Callable[[Fault, Hit], Awaitable[web.StreamResponse | None]]
Answer = Callable[[Fault, Hit, web.Response], Awaitable[web.StreamResponse]]


# -- errors


def _error_of(fault: Fault, default: str | None = None) -> GraphError:
    """The error a fault names or spells out. What it says itself goes before what the catalogue says."""
    params = fault.params
    name = params.get("name", default)
    if name is None:
        code = int(params.get("code", 1))
        error = GraphError(code, "An unknown error occurred", http=_TRANSIENT_STATUS.get(code, 400))
    else:
        error = named(str(name))
        error.code = int(params.get("code", error.code))
    error.message = str(params.get("message", error.message))
    error.http = int(params.get("http", error.http))
    error.subcode = params.get("subcode", error.subcode)
    error.kind = str(params.get("type", error.kind))
    error.user_title = params.get("user_title", error.user_title)
    error.user_message = params.get("user_message", error.user_message)
    error.is_transient = params.get("is_transient", error.is_transient)
    return error


async def _error(fault: Fault, hit: Hit) -> None:
    raise _error_of(fault)


async def _block(fault: Fault, hit: Hit) -> None:
    """Refuse this call and, for `seconds` (60), every other of the Page, or of the app with codes 4 and 17. A
    call made into the block adds `grow` seconds (10) to it.
    """
    error = _error_of(fault, "messenger_limit")
    seconds, grow = float(fault.params.get("seconds", 60)), float(fault.params.get("grow", 10))
    hit.faults.blocks.begin(hit.page_id, error, seconds, grow)
    raise error


async def _revoke_token(fault: Fault, hit: Hit) -> None:
    """The token dies here and stays dead: an owner changed the password, or removed the app."""
    error = _error_of(fault, "password_changed")
    hit.faults.revoked[hit.call.token] = error
    raise error


async def _reduce_data(fault: Fault, hit: Hit) -> None:
    """Refuse what asks for more than `nodes` objects: the same call fails for ever, a smaller one passes."""
    parameters = hit.call.parameters
    try:
        fields = parse_fields(parameters.get("fields") or "id")
    except FieldSyntaxError:
        return
    ids = parameters.get("ids")
    if ids is not None:
        asked = ids.count(",") + 1
    else:
        asked = _whole(parameters.get("limit"), DEFAULT_LIMIT) if len(hit.call.segments) == 2 else 1
    if asked * (1 + _nested(fields)) <= int(fault.params.get("nodes", 500)):
        return
    # Seen in both places: as the message, and only in the text for users.
    raise named("reduce_data_in_user_message" if fault.params.get("hidden") else "reduce_data")


def _nested(fields: Fields) -> int:
    """How many nodes the expanded lists of one node may bring."""
    count = 0
    for field_ in fields.fields:
        if field_.name in ("messages", "conversations"):
            inside = _nested(field_.fields) if field_.fields is not None else 0
            count += _whole(field_.modifier("limit"), DEFAULT_LIMIT) * (1 + inside)
    return count


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else default


async def _refuse_listing(fault: Fault, hit: Hit) -> None:
    """A very busy Page: "API calls to get all conversations fail. You can still call a single conversation."
    (Messenger Platform, rate limiting). Which error they fail with is not told; code 1 is invented.
    """
    if hit.call.segments[1:] == ("conversations",) and "user_id" not in hit.call.parameters:
        raise _error_of(fault, "unknown")


# -- cursors


def _walks_on(call: GraphCall) -> bool:
    return bool(call.parameters.get("after") or call.parameters.get("before"))


async def _dead_cursor(fault: Fault, hit: Hit) -> None:
    """The cursor of this call is dead; the same call without one is answered."""
    if _walks_on(hit.call):
        raise _error_of(fault, "cursor_dead")


async def _expire_cursors(fault: Fault, hit: Hit) -> None:
    """Every cursor given out so far is dead from here on. "Cursors can quickly become invalid"."""
    hit.faults.cursor_generation += 1


async def _too_deep(fault: Fault, hit: Hit) -> None:
    """Nobody gets further than `items` (100) into a list."""
    after = hit.call.parameters.get("after")
    if after and read_cursor(after).depth >= int(fault.params.get("items", 100)):
        raise _error_of(fault, "cursor_too_deep")


# -- what is no answer of Graph's


async def _status(fault: Fault, hit: Hit) -> web.Response:
    return web.Response(status=int(fault.params.get("http", 500)), text=str(fault.params.get("body", "")))


async def _html(fault: Fault, hit: Hit) -> web.Response:
    body = str(fault.params.get("body", HTML))
    return web.Response(status=int(fault.params.get("http", 502)), text=body, content_type="text/html")


async def _empty(fault: Fault, hit: Hit) -> web.Response:
    return web.Response(status=int(fault.params.get("http", 200)), content_type="application/json")


async def _hang(fault: Fault, hit: Hit) -> web.Response:
    if hit.request is None:
        raise NoAnswer
    await asyncio.sleep(float(fault.params.get("seconds", 3600)))
    return web.Response(status=504)


async def _delay(fault: Fault, hit: Hit) -> None:
    await asyncio.sleep(float(fault.params.get("seconds", 1)))


async def _reset(fault: Fault, hit: Hit) -> web.Response:
    if hit.request is None:
        raise NoAnswer
    if hit.request.transport is not None:
        hit.request.transport.abort()
    return web.Response(status=500)


def _bytes(answer: web.Response) -> bytes:
    return bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""


async def _truncate(fault: Fault, hit: Hit, answer: web.Response) -> web.StreamResponse:
    """Promise the whole answer, send half of it, cut the connection."""
    if hit.request is None:
        raise NoAnswer
    body = _bytes(answer)
    cut = web.StreamResponse(status=answer.status, headers=answer.headers)
    cut.content_length = len(body)
    await cut.prepare(hit.request)
    await cut.write(body[: len(body) // 2])
    if hit.request.transport is not None:
        # close() sends what is buffered first, abort() might drop it.
        hit.request.transport.close()
    return cut


async def _trickle(fault: Fault, hit: Hit, answer: web.Response) -> web.StreamResponse:
    """Send the answer bit by bit, so that it takes `seconds` (10): never silent for long, never done."""
    seconds = float(fault.params.get("seconds", 10))
    if hit.request is None:
        await asyncio.sleep(seconds)
        return answer
    body = _bytes(answer)
    slow = web.StreamResponse(status=answer.status, headers=answer.headers)
    slow.content_length = len(body)
    await slow.prepare(hit.request)
    size = max(1, -(-len(body) // _TRICKLED_PIECES))
    for start in range(0, len(body), size):
        await slow.write(body[start : start + size])
        await asyncio.sleep(seconds / _TRICKLED_PIECES)
    await slow.write_eof()
    return slow


# -- lists


async def _empty_page(fault: Fault, hit: Hit, answer: web.Response) -> web.StreamResponse:
    """A page without items but with a `next` that leads to them, which Meta says to expect."""
    body = orjson.loads(_bytes(answer))
    cursors = body.get("paging", {}).get("cursors") if isinstance(body, dict) else None
    if cursors is None:
        return answer
    call = hit.call
    place = cursor_just_before(cursors["before"])
    parameters = {**call.parameters, "access_token": call.token, "after": place}
    parameters.pop("before", None)
    following = f"{call.base}/{'/'.join((call.version, *call.segments))}?{urlencode(parameters)}"
    page = {"data": [], "paging": {"cursors": {"before": place, "after": place}, "next": following}}
    return web.Response(body=orjson.dumps(page), content_type="application/json", charset="UTF-8")


async def _drift(fault: Fault, hit: Hit, answer: web.Response) -> web.StreamResponse:
    """Another schema than yesterday's, see `drift.py`."""
    kinds = fault.params.get("kinds", [*KINDS, NO_ID])
    document = drifted(orjson.loads(_bytes(answer)), kinds, int(fault.params.get("item", 0)))
    return web.Response(body=orjson.dumps(document), content_type="application/json", charset="UTF-8")


def _short_page(fault: Fault, hit: Hit) -> None:
    """Fewer items than asked for, though there are more."""
    hit.call.parameters = {**hit.call.parameters, "limit": str(fault.params.get("limit", 1))}


def _unordered(fault: Fault, hit: Hit) -> None:
    """The list of conversations is not newest first: one in five comes after all others. No page of Meta's
    documentation promises an order.
    """
    hit.call.unordered = True


REWRITE: dict[str, Rewrite] = {"short_page": _short_page, "unordered": _unordered}
BEFORE: dict[str, Before] = {
    "error": _error,
    "block": _block,
    "revoke_token": _revoke_token,
    "reduce_data": _reduce_data,
    "refuse_listing": _refuse_listing,
    "dead_cursor": _dead_cursor,
    "expire_cursors": _expire_cursors,
    "too_deep": _too_deep,
    "status": _status,
    "html": _html,
    "empty": _empty,
    "hang": _hang,
    "delay": _delay,
    "reset": _reset,
}
ANSWER: dict[str, Answer] = {
    "truncate": _truncate,
    "trickle": _trickle,
    "empty_page": _empty_page,
    "drift": _drift,
}
ACTIONS = frozenset({*REWRITE, *BEFORE, *ANSWER})

_ERROR = frozenset(
    {"name", "code", "subcode", "http", "message", "type", "user_title", "user_message", "is_transient"}
)
_TAKES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("error", "revoke_token", "refuse_listing", "dead_cursor"), _ERROR),
    "block": _ERROR | {"seconds", "grow"},
    "too_deep": _ERROR | {"items"},
    "reduce_data": frozenset({"nodes", "hidden"}),
    "short_page": frozenset({"limit"}),
    "drift": frozenset({"kinds", "item"}),
    **dict.fromkeys(("html", "status"), frozenset({"http", "body"})),
    "empty": frozenset({"http"}),
    **dict.fromkeys(("trickle", "delay", "hang"), frozenset({"seconds"})),
}
_WHOLE = frozenset({"code", "subcode", "http", "nodes", "items", "limit", "item"})
_FLAGS = frozenset({"hidden", "is_transient"})


def _check_parameter(action: str, name: str, value: Any) -> None:
    takes = _TAKES.get(action, frozenset())
    if name not in takes:
        raise FaultError(
            f"{name}: {action} does not know it; it takes {', '.join(sorted(takes)) or 'nothing'}"
        )
    if name in _FLAGS:
        fits, wanted = isinstance(value, bool), "true or false"
    elif name in _WHOLE:
        fits, wanted = type(value) is int, "a whole number"
    elif name in ("seconds", "grow"):
        fits, wanted = type(value) in (int, float) and 0 <= value <= 10**9, "a number from 0 on"
    else:
        fits, wanted = name == "kinds" or isinstance(value, str), "a text"
    if not fits:
        raise FaultError(f"{name}: {wanted} is wanted")


class Faults:
    """The planted faults, and what they left behind. The first that wants a call gets it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._ids = count(1)
        self.blocks = Blocks()
        self.revoked: dict[str, GraphError] = {}
        """Tokens that died, with the error they are refused with."""
        self.cursor_generation = 0
        """Rises when every cursor given out so far dies."""

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
        """Plant a fault. Raises FaultError for an unknown action or error, or a bad expression."""
        if action not in ACTIONS:
            raise FaultError(f"unknown action {action!r}; known: {', '.join(sorted(ACTIONS))}")
        given = {**(params or {}), **more}
        for key, value in given.items():
            if value is not None:
                _check_parameter(action, key, value)
        name = given.get("name")
        if name is not None and name not in CATALOGUE:
            raise FaultError(f"unknown error {name!r}; known: {', '.join(sorted(CATALOGUE))}")
        kinds = given.get("kinds", [])
        known = {*KINDS, NO_ID}
        if not isinstance(kinds, list) or not known.issuperset(kinds):
            raise FaultError(f"kinds is a list of {', '.join(sorted(known))}")
        try:
            pattern = re.compile(match)
        except re.error as error:
            raise FaultError(f"match is no regular expression: {error}") from error
        fault = Fault(next(self._ids), pattern, action, after, times, given)
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
        if after < 0 or (times is not None and times < 1):
            raise FaultError("after counts from 0, times from 1")
        return self.add(match, action, times=times, after=after, params=params)

    def remove(self, fault_id: int) -> bool:
        """Take a fault back; whether it was there."""
        left = [fault for fault in self._faults if fault.fault_id != fault_id]
        found = len(left) < len(self._faults)
        self._faults = left
        return found

    def clear(self) -> None:
        """Forget all faults, lift blocks and revive tokens. Cursors that died stay dead."""
        self._faults.clear()
        self.blocks.clear()
        self.revoked.clear()

    def list(self) -> list[dict[str, Any]]:
        return [fault.describe() for fault in self._faults]

    def consult(self, call: str) -> Fault | None:
        """The fault that hits this call (`METHOD /path?query`), if any."""
        return next((fault for fault in self._faults if fault.wants(call)), None)
