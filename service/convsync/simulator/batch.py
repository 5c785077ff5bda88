"""Batch requests: many calls in one.

Source: developers.facebook.com/docs/graph-api/batch-requests. At most 50 items, each counts as one call; the
answers come in the order of the items, each with its own status, headers and a body that is a *string*;
an item that got no answer is `null`. Items may be named and wait for each other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson
from aiohttp import web

from convsync.simulator import errors
from convsync.simulator.calling import GraphCall, make_call

MAX_ITEMS = 50
_REFERENCE = re.compile(r"\{result=([A-Za-z0-9_-]+):(\$[^{}]*)\}")
_STEP = re.compile(r"\.(\*|[A-Za-z_][A-Za-z0-9_]*)|\[(\*|\d+)\]")

Respond = Callable[[GraphCall], Coroutine[Any, Any, web.Response | None]]


async def answer_batch(call: GraphCall, respond: Respond) -> list[dict[str, Any] | None]:
    """The answers to the items. `respond` answers one of them, None where no answer ever came.

    Raises GraphError for a batch that is none or too long.
    """
    items = _items(call.parameters["batch"])
    with_headers = call.parameters.get("include_headers", "true").lower() not in ("false", "0")
    if not any("name" in item or "depends_on" in item for item in items):
        # "Operations within a batch that are independent of each other may be processed in parallel."
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(respond(_item_call(call, item))) for item in items]
        return [_shown(task.result(), with_headers) for task in tasks]
    return await _one_after_the_other(call, items, respond, with_headers)


async def _one_after_the_other(
    call: GraphCall, items: list[dict[str, Any]], respond: Respond, with_headers: bool
) -> list[dict[str, Any] | None]:
    results: dict[str, Any] = {}
    answers: list[dict[str, Any] | None] = []
    for item in items:
        needed = {*_REFERENCE.findall(_text(item))}
        waits_for = {name for name, _ in needed} | set(str(item.get("depends_on", "")).split(",")) - {""}
        if not waits_for <= results.keys():
            # What it waits for failed or does not exist. That this is a null is an inference.
            answers.append(None)
            continue
        answer = await respond(_item_call(call, _filled(item, results)))
        shown = _shown(answer, with_headers)
        if answer is not None and answer.status == 200 and "name" in item:
            results[str(item["name"])] = orjson.loads(_body(answer))
            # "By default the answer of a named operation is left out if it succeeded."
            if item.get("omit_response_on_success", True):
                shown = None
        answers.append(shown)
    return answers


def _items(text: str) -> list[dict[str, Any]]:
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise errors.bad_parameter("batch", "an array of calls")
    if len(items) > MAX_ITEMS:
        raise errors.batch_too_long(MAX_ITEMS)
    return items


def _item_call(outer: GraphCall, item: Mapping[str, Any]) -> GraphCall:
    """An item as a call. It has the token and proof of the batch, unless it brings a token: then it needs a
    proof of its own.
    """
    method = str(item.get("method", "GET")).upper()
    path, _, query = str(item.get("relative_url", "")).partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    if method != "GET":
        parameters |= parse_qsl(str(item.get("body", "")), keep_blank_values=True)
    token = parameters.pop("access_token", "")
    if not token:
        token = outer.token
        for name in ("appsecret_proof", "appsecret_time"):
            if name in outer.parameters:
                parameters.setdefault(name, outer.parameters[name])
    path = "/" + path.strip("/")
    if not re.match(r"/v\d+\.\d+(/|$)", path):
        path = f"/{outer.version}{path}"
    call = make_call(outer.state, method, path, parameters, token, outer.base)
    call.log.batch = True
    return call


def _body(answer: web.Response) -> bytes:
    return bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""


def _shown(answer: web.Response | None, with_headers: bool) -> dict[str, Any] | None:
    if answer is None:
        return None
    # Bodies are written as Meta writes them, with `\/`.
    shown: dict[str, Any] = {"code": answer.status, "body": _body(answer).decode().replace("/", "\\/")}
    if with_headers:
        kind = "text/javascript; charset=UTF-8"
        headers = {**answer.headers, "Content-Type": kind}
        shown["headers"] = [{"name": name, "value": value} for name, value in headers.items()]
    return shown


def _text(item: Mapping[str, Any]) -> str:
    return f"{item.get('relative_url', '')} {item.get('body', '')}"


def _filled(item: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """The item with `{result=name:$.path}` replaced by what the named answer holds there, commas between."""

    def value(match: re.Match[str]) -> str:
        return quote(",".join(_found(results[match.group(1)], match.group(2))), safe=",")

    filled = dict(item)
    for part in ("relative_url", "body"):
        if part in filled:
            filled[part] = _REFERENCE.sub(value, str(filled[part]))
    return filled


def _found(document: Any, path: str) -> list[str]:
    """What a JSONPath of names, numbers and `*` finds: `$.data.*.id`, `$.data[0].id`."""
    found = [document]
    for name, number in _STEP.findall(path[1:]):
        step = name or number
        following: list[Any] = []
        for node in found:
            if step == "*":
                following += (
                    node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
                )
            elif isinstance(node, dict) and step in node:
                following.append(node[step])
            elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
                following.append(node[int(step)])
        found = following
    return [one if isinstance(one, str) else orjson.dumps(one).decode() for one in found]
