"""The simulated Graph API: addresses, tokens, limits and faults around the nodes of `nodes.py`."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
from aiohttp import web

from convsync.simulator import errors, nodes
from convsync.simulator.calling import GraphCall, check_token, is_conversations_call, parse_call
from convsync.simulator.calls import Call
from convsync.simulator.errors import GraphError
from convsync.simulator.faults import ANSWER, BEFORE, REWRITE, Fault
from convsync.simulator.messages import Message
from convsync.simulator.paging import encode_cursor, paging, requested_slice
from convsync.simulator.population import Conversation, Population
from convsync.simulator.state import STATE
from convsync.simulator.webhooks import WEBHOOK_FIELDS

_FOLDERS = frozenset({"inbox", "page_done", "other", "pending", "spam"})
_SCOPES = (
    "pages_manage_metadata",
    "pages_messaging",
    "pages_read_engagement",
    "pages_show_list",
    "public_profile",
)


async def graph(request: web.Request) -> web.StreamResponse:
    """Answer any call outside `/_sim/`. Never a 404: what does not exist is error 100/33 with status 400."""
    state = request.app[STATE]
    call, log = await parse_call(request, state)
    state.calls.begin(log)
    started = time.monotonic()
    trace = errors.trace_id()
    try:
        try:
            answer = await _answer(call, request, log)
        except GraphError as error:
            log.code = error.code
            answer = _error_response(error, trace)
        log.status = answer.status
        if isinstance(answer, web.Response) and not answer.prepared:
            _add_headers(answer, call, trace)
        return answer
    finally:
        log.milliseconds = round((time.monotonic() - started) * 1000, 2)
        state.calls.end(log)


async def _answer(call: GraphCall, request: web.Request, log: Call) -> web.StreamResponse:
    check_token(call)
    if call.page is not None and is_conversations_call(call):
        ids = call.parameters.get("ids", "")
        log.counted = True
        refusal = call.state.limits[call.page.page_id].check(ids.count(",") + 1)
        if refusal is not None:
            log.refused = True
            raise refusal
    fault = call.state.faults.consult(f"{log.method} {log.path}?{log.query}")
    if fault is not None:
        log.fault = fault.fault_id
        answer = await _apply_before(fault, request)
        if answer is not None:
            return answer
        if fault.action in REWRITE:
            call.parameters = REWRITE[fault.action](fault, call.parameters)
    body = orjson.dumps(_route(call))
    finished = web.Response(body=body, content_type="application/json", charset="UTF-8")
    if fault is not None and fault.action in ANSWER:
        return await ANSWER[fault.action](fault, request, finished)
    return finished


async def _apply_before(fault: Fault, request: web.Request) -> web.StreamResponse | None:
    act = BEFORE.get(fault.action)
    return None if act is None else await act(fault, request)


def _error_response(error: GraphError, trace: str) -> web.Response:
    response = web.Response(
        status=error.http,
        body=orjson.dumps(error.body(trace)),
        content_type="application/json",
        charset="UTF-8",
    )
    reason = "invalid_token" if error.code == 190 else "invalid_request"
    told = json.dumps(error.message)[1:-1]
    response.headers["WWW-Authenticate"] = f'OAuth "Facebook Platform" "{reason}" "{told}"'
    return response


def _add_headers(response: web.Response, call: GraphCall, trace: str) -> None:
    headers = response.headers
    headers["Facebook-API-Version"] = call.version
    headers["x-fb-trace-id"] = trace
    headers["x-fb-rev"] = "1030000000"
    headers["Cache-Control"] = "private, no-cache, no-store, must-revalidate"
    if call.page is not None:
        usage = call.state.limits[call.page.page_id].usage()
        if usage is not None:
            headers["X-Business-Use-Case-Usage"] = json.dumps({call.page.page_id: [usage]})


def _route(call: GraphCall) -> Any:
    segments = call.segments
    if segments == ("debug_token",):
        return _debug_token(call)
    if call.page is None:
        raise errors.bad_token()
    if segments == () and call.method == "GET" and "ids" in call.parameters:
        wanted = [one for one in call.parameters["ids"].split(",") if one]
        return {one: _node(call, one) for one in wanted}
    if not segments or len(segments) > 2:
        raise call.unsupported()
    target = call.page.page_id if segments[0] == "me" else segments[0]
    if segments[1:] == ("subscribed_apps",):
        _check_page(call, target)
        return _subscribed_apps(call)
    if call.method != "GET":
        raise call.unsupported()
    if len(segments) == 1:
        return _node(call, target)
    return _edge(call, target, segments[1])


def _check_page(call: GraphCall, target: str) -> None:
    """The token must be the Page's own."""
    if target not in call.state.pages:
        raise call.unsupported()
    if call.page is None or call.page.page_id != target:
        raise errors.no_permission()


def _node(call: GraphCall, target: str) -> dict[str, Any]:
    population = call.population
    if target in call.state.pages:
        _check_page(call, target)
        return _page_node(call)
    conversation = population.conversation(target)
    if conversation is not None:
        return nodes.render_conversations([conversation], call.fields, call.reader)[0]
    found = _visible(population, target)
    if found is not None:
        return nodes.render_messages([found[1]], found[0], call.fields, call.reader)[0]
    known = population.conversation_with(target)
    if known is not None:
        return _profile(call, known)
    raise errors.unsupported(target)


def _edge(call: GraphCall, target: str, edge: str) -> dict[str, Any]:
    if edge == "conversations":
        _check_page(call, target)
        return _conversations(call)
    conversation = call.population.conversation(target)
    if conversation is not None and edge == "messages":
        return nodes.messages_edge(conversation, call.fields, dict(call.parameters), call.reader)
    found = _visible(call.population, target)
    if found is not None and edge == "attachments":
        # All of them are on the message itself; the page after it is empty, as recorded.
        return {"data": [] if call.parameters.get("after") else list(found[1].attachments)}
    raise call.unsupported()


def _visible(population: Population, message_id: str) -> tuple[Conversation, Message] | None:
    found = population.find_message(message_id)
    return found if found is not None and not found[1].deleted else None


def _conversations(call: GraphCall) -> dict[str, Any]:
    parameters, population = call.parameters, call.population
    platform = parameters.get("platform", "messenger").lower()
    if platform not in ("messenger", "instagram"):
        raise errors.bad_parameter("platform", "one of {INSTAGRAM, MESSENGER}")
    part = requested_slice(population.page_id, parameters, call.state.config.max_conversations_per_call)
    fields = call.fields
    found: list[Conversation]
    if platform == "instagram" or parameters.get("folder", "inbox").lower() in _FOLDERS - {"inbox"}:
        found, newer, older = [], False, False
    elif "user_id" in parameters:
        known = population.conversation_with(parameters["user_id"])
        found, newer, older = ([known] if known is not None else []), False, False
    else:
        found, newer, older = population.newest_first(part.limit, part.after, part.before)
    data = nodes.render_conversations(found, fields, call.reader)
    if not found:
        return {"data": data}
    forwarded = {name: parameters[name] for name in ("platform", "folder", "fields") if name in parameters}
    forwarded["limit"] = str(part.limit)
    owner = population.page_id
    cursors = (encode_cursor(owner, found[0].key), encode_cursor(owner, found[-1].key))
    link = paging(call.reader.link, f"{owner}/conversations", forwarded, cursors, newer, older)
    return {"data": data, "paging": link}


def _page_node(call: GraphCall) -> dict[str, Any]:
    page = call.page
    assert page is not None  # noqa: S101 - _check_page saw to it
    node = {
        "id": page.page_id,
        "name": page.name,
        "category": "Sports & Recreation",
        "link": f"https://www.facebook.com/{page.page_id}",
        "username": f"page{page.page_id}",
    }
    shown: dict[str, Any] = {}
    for field in (call.fields or nodes.PAGE_DEFAULTS).fields:
        if field.name not in node:
            raise errors.unknown_field(field.name, "Page")
        shown[field.name] = node[field.name]
    return {**shown, "id": page.page_id}


def _profile(call: GraphCall, conversation: Conversation) -> dict[str, Any]:
    """The User Profile API; some people have none."""
    name = conversation.name
    if name is None:
        raise errors.no_profile()
    first, _, last = name.partition(" ")
    node = {
        "first_name": first,
        "last_name": last,
        "name": name,
        "profile_pic": f"https://platform-lookaside.sim.example/platform/profilepic/?psid={conversation.psid}",
        "id": conversation.psid,
    }
    fields = call.fields
    if fields is None:
        return node
    return {field.name: node[field.name] for field in fields.fields if field.name in node} | {
        "id": node["id"]
    }


def _subscribed_apps(call: GraphCall) -> dict[str, Any]:
    state, page = call.state, call.page
    assert page is not None  # noqa: S101 - _check_page saw to it
    if call.method == "POST":
        text = call.parameters.get("subscribed_fields", "")
        wanted = {name.strip() for name in text.strip("[]").replace('"', "").split(",") if name.strip()}
        if not wanted:
            raise GraphError(100, "(#100) The parameter subscribed_fields is required.")
        for name in sorted(wanted - WEBHOOK_FIELDS):
            raise GraphError(100, f"(#100) Param subscribed_fields[0] must be one of {{..}} - got {name!r}.")
        state.webhooks.subscribe(page.page_id, wanted)
        return {"success": True}
    if call.method == "DELETE":
        state.webhooks.unsubscribe(page.page_id)
        return {"success": True}
    if call.method != "GET":
        raise call.unsupported()
    subscribed = state.webhooks.subscriptions.get(page.page_id)
    if subscribed is None:
        return {"data": []}
    app = {
        "category": "Business",
        "link": "https://example.org/",
        "name": "Simulated app",
        "id": state.config.app_id,
        "subscribed_fields": sorted(subscribed),
    }
    return {"data": [app]}


def _debug_token(call: GraphCall) -> dict[str, Any]:
    config = call.state.config
    asked = call.parameters.get("input_token", "")
    page = call.state.tokens.get(asked)
    if page is None:
        problem = {"code": 190, "message": "Malformed access token"}
        return {"data": {"error": problem, "is_valid": False, "scopes": []}}
    return {
        "data": {
            "app_id": config.app_id,
            "type": "PAGE",
            "application": "Simulated app",
            "data_access_expires_at": 0,
            "expires_at": 0,
            "is_valid": True,
            "issued_at": int(config.now.timestamp()) - 86_400,
            "profile_id": page.page_id,
            "scopes": list(_SCOPES),
            "granular_scopes": [{"scope": scope, "target_ids": [page.page_id]} for scope in _SCOPES[:3]],
            "user_id": "300000000000001",
        }
    }
