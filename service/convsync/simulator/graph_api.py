"""The simulated Graph API: addresses, tokens, limits and faults around the nodes of `nodes.py`."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
from aiohttp import web

from convsync.simulator import accounts, errors, nodes
from convsync.simulator.batch import answer_batch
from convsync.simulator.calling import GraphCall, check_token, is_conversations_call, parse_call
from convsync.simulator.errors import GraphError
from convsync.simulator.faults import ANSWER, BEFORE, REWRITE, Fault, Hit, NoAnswer
from convsync.simulator.lists import conversations
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation
from convsync.simulator.send import send_message
from convsync.simulator.state import STATE
from convsync.simulator.webhooks import SUBSCRIBABLE

_MOST_IDS = 50


async def graph(request: web.Request) -> web.StreamResponse:
    """Answer any call outside `/_sim/`. Never a 404: what does not exist is error 100/33 with status 400."""
    return await _respond(await parse_call(request, request.app[STATE]), request)


async def _respond(call: GraphCall, request: web.Request | None) -> web.StreamResponse:
    """Answer a call, or (no request) an item of a batch."""
    log = call.log
    call.state.calls.begin(log)
    started = time.monotonic()
    trace = errors.trace_id()
    try:
        try:
            answer = await _answer(call, request)
        except GraphError as error:
            log.code = error.code
            answer = _error_response(error, trace)
        log.status = answer.status
        if isinstance(answer, web.Response) and not answer.prepared:
            _add_headers(answer, call, trace)
        return answer
    finally:
        log.milliseconds = round((time.monotonic() - started) * 1000, 2)
        call.state.calls.end(log)


async def _answer(call: GraphCall, request: web.Request | None) -> web.StreamResponse:
    check_token(call)
    if not call.is_batch:
        _count(call)
    log = call.log
    fault = call.state.faults.consult(f"{log.method} {log.path}?{log.query}")
    hit = Hit(call, request)
    if fault is not None:
        log.fault = fault.fault_id
        answer = await _apply_before(fault, hit)
        if answer is not None:
            return answer
        if fault.action in REWRITE:
            REWRITE[fault.action](fault, hit)
    document = await answer_batch(call, _item) if call.is_batch else await _route(call)
    finished = web.Response(body=orjson.dumps(document), content_type="application/json", charset="UTF-8")
    if fault is not None and fault.action in ANSWER:
        return await ANSWER[fault.action](fault, hit, finished)
    return finished


async def _item(call: GraphCall) -> web.Response | None:
    """The answer to an item of a batch, None where there never is one."""
    try:
        answer = await _respond(call, None)
    except NoAnswer:
        return None
    assert isinstance(answer, web.Response)  # noqa: S101 - a stream needs a connection
    return answer


def _count(call: GraphCall) -> None:
    """Count a call where it is limited. Raises GraphError when it is refused."""
    state, log = call.state, call.log
    refusal = state.faults.blocks.check(log.page_id)
    log.blocked = refusal is not None
    if refusal is None:
        refusal = _over_the_limits(call)
        log.refused = refusal is not None
    if refusal is not None:
        raise refusal


def _over_the_limits(call: GraphCall) -> GraphError | None:
    state, ids = call.state, call.parameters.get("ids")
    several = [] if call.segments or ids is None else [one for one in ids.split(",") if one]
    if call.page is None:
        refusal = state.person_limits.check(max(1, len(several)), by_person=call.is_persons)
        pages = [state.limits[one] for one in (*call.segments[:1], *several) if one in state.limits]
        refusals = [page.check_page(by_person=True) for page in pages]
        return refusal or next((one for one in refusals if one is not None), None)
    limits = state.limits[call.page.page_id]
    if is_conversations_call(call):
        call.log.counted = True
        return limits.check(max(1, len(several)))
    # What is sent has limits of its own, far above what anybody needs here.
    return None if call.segments[1:] == ("messages",) else limits.check_page()


async def _apply_before(fault: Fault, hit: Hit) -> web.StreamResponse | None:
    act = BEFORE.get(fault.action)
    return None if act is None else await act(fault, hit)


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
    state, blocks = call.state, call.state.faults.blocks
    app_usage = blocks.app_usage()
    if call.page is not None:
        page_id = call.page.page_id
        kinds = {one["type"]: one for one in state.limits[page_id].usage()}
        block = blocks.usage(page_id)
        if block is not None:
            # In the place of the everyday percentages of its kind.
            kinds[block["type"]] = block
        if kinds:
            headers["X-Business-Use-Case-Usage"] = json.dumps({page_id: list(kinds.values())})
    else:
        app_usage = app_usage or state.person_limits.usage()
        limits = state.limits.get(call.segments[0]) if call.segments else None
        page_usage = limits.page_usage() if limits is not None else None
        if page_usage is not None:
            headers["X-Page-Usage"] = json.dumps(page_usage)
    if app_usage is not None:
        headers["X-App-Usage"] = json.dumps(app_usage)


async def _route(call: GraphCall) -> Any:
    segments = call.segments
    if segments == ("debug_token",):
        return accounts.debug_token(call)
    if not segments and call.method == "GET" and "ids" in call.parameters:
        return _several(call)
    if not segments or len(segments) > 2:
        raise call.unsupported()
    if call.page is None:
        return accounts.answer(call)
    target = call.page.page_id if segments[0] == "me" else segments[0]
    if segments[1:] == ("subscribed_apps",):
        accounts.check_page(call, target)
        return _subscribed_apps(call)
    if segments[1:] == ("messages",) and call.method == "POST":
        accounts.check_page(call, target)
        return await send_message(call)
    if call.method != "GET":
        raise call.unsupported()
    if len(segments) == 1:
        return _node(call, target)
    return _edge(call, target, segments[1])


def _several(call: GraphCall) -> dict[str, Any]:
    """`?ids=a,b`: an object keyed by id; one that does not exist fails them all. The most there may be and
    its text are from memory.
    """
    wanted = list(dict.fromkeys(one for one in call.parameters["ids"].split(",") if one))
    if not wanted:
        raise GraphError(100, "(#100) Param ids must be non-empty")
    if len(wanted) > _MOST_IDS:
        message = f"(#100) Too many IDs. Maximum: {_MOST_IDS}. Provided: {len(wanted)}."
        raise GraphError(100, message)
    if call.page is None:
        return {one: accounts.node(call, one) for one in wanted}
    return {one: _node(call, one) for one in wanted}


def _node(call: GraphCall, target: str) -> dict[str, Any]:
    population = call.population
    if target in call.state.pages:
        accounts.check_page(call, target)
        return accounts.page_node(call, call.state.pages[target])
    conversation = population.conversation(target)
    if conversation is not None:
        return nodes.render_conversations([conversation], call.fields, call.reader)[0]
    found = _visible(call, target)
    if found is not None:
        return nodes.render_messages([found[1]], found[0], call.fields, call.reader)[0]
    known = population.conversation_with(target)
    if known is not None:
        return _profile(call, known)
    raise errors.unsupported(target)


def _edge(call: GraphCall, target: str, edge: str) -> dict[str, Any]:
    if edge == "conversations":
        accounts.check_page(call, target)
        return conversations(call)
    conversation = call.population.conversation(target)
    if conversation is not None and edge == "messages":
        return nodes.messages_edge(conversation, call.fields, dict(call.parameters), call.reader)
    found = _visible(call, target)
    if found is not None and edge == "attachments":
        # All of them are on the message itself; the page after it is empty, as recorded.
        return {"data": [] if call.parameters.get("after") else list(found[1].attachments)}
    raise call.unsupported()


def _visible(call: GraphCall, message_id: str) -> tuple[Conversation, Message] | None:
    """A message that Graph shows, None for one that is not there. Raises GraphError when it is too old."""
    found = call.population.find_message(message_id)
    if found is None or found[1].deleted:
        return None
    oldest = nodes.oldest_readable(found[0], call.reader.readable)
    if oldest is not None and found[1].key < oldest:
        raise errors.message_deleted()
    return found


def _profile(call: GraphCall, conversation: Conversation) -> dict[str, Any]:
    """The User Profile API. Who signed up with a phone number has none, and where the app "is unable to
    access the person's profile, an empty object is returned".
    """
    if conversation.kind == "facebook_user":
        return {}
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
    assert page is not None  # noqa: S101 - check_page saw to it
    if call.method == "POST":
        text = call.parameters.get("subscribed_fields", "")
        wanted = {name.strip() for name in text.strip("[]").replace('"', "").split(",") if name.strip()}
        if not wanted:
            raise errors.required("subscribed_fields")
        for name in sorted(wanted - SUBSCRIBABLE):
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
