"""`/_sim/`: what a test or demo may ask of the simulator that no real Facebook would answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from convsync.simulator.config import LifePlan
from convsync.simulator.faults import FaultError
from convsync.simulator.lists import is_listed
from convsync.simulator.messages import Message
from convsync.simulator.nodes import oldest_readable
from convsync.simulator.population import Conversation, Population
from convsync.simulator.rules import DEFAULT_RULES, GraphRules
from convsync.simulator.state import STATE, SimulatorState
from convsync.simulator.timeline import TIMELINE
from convsync.simulator.traffic import UnknownKindError, live_traffic
from convsync.simulator.webhook_faults import WebhookFaultError

_TRUTH_CHUNK = 200


def truth_message(message: Message, readable: bool = True) -> dict[str, Any]:
    """What a mirror must hold of a message. `created_time` is Unix milliseconds; `deleted` ones must not be
    live in a mirror; `readable` false means that Graph shows it to nobody.
    """
    return {
        "id": message.message_id,
        "direction": "out" if message.outbound else "in",
        "text": message.text,
        "created_time": message.created_ms,
        "attachment_ids": [attachment["id"] for attachment in message.attachments],
        "sticker": message.sticker,
        "postback": message.postback_payload is not None,
        "edits": message.edits,
        "deleted": message.deleted,
        "readable": readable,
    }


def truth_conversation(
    population: Population, conversation: Conversation, rules: GraphRules = DEFAULT_RULES
) -> dict[str, Any]:
    """What a mirror must hold of a thread, messages oldest first. `customer_id` and `name` are null where
    Graph has none; `updated_time` is Unix milliseconds; `listed` false means that no walk sees it; `position`
    is where the truth is read on from.
    """
    customer_id = conversation.customer_id
    listed = is_listed(conversation, rules.requests)
    oldest = oldest_readable(conversation, rules.readable("messenger"))
    messages = []
    for message in population.all_messages(conversation):
        row = truth_message(message, listed and (oldest is None or message.key >= oldest))
        row["from_id"] = population.page_id if message.outbound else customer_id
        messages.append(row)
    return {
        "position": str(conversation.index),
        "thread_id": conversation.thread_id,
        "customer_id": customer_id,
        "name": conversation.name,
        "kind": conversation.kind,
        "listed": listed,
        "updated_time": conversation.updated_ms,
        "message_count": conversation.message_count,
        "unread_count": population.unread_count(conversation),
        "messages": messages,
    }


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")


def _bad(message: str) -> web.Response:
    return _json({"error": message}, 400)


def _state(request: web.Request) -> SimulatorState:
    return request.app[STATE]


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} must be a number") from None


async def truth(request: web.Request) -> web.StreamResponse:
    """The ground truth of a Page. With `limit` one part of it, and `next` (null at the end) to pass as
    `after`; without, all of it as one streamed document.
    """
    population = _state(request).populations.get(request.match_info["page_id"])
    if population is None:
        return _json({"error": "no such Page"}, 404)
    start = _number(request, "after", -1) + 1
    limit = _number(request, "limit", 0)
    if limit > 0:
        rules = _state(request).config.graph
        part = list(population.iterate(start, limit))
        rows = [truth_conversation(population, one, rules) for one in part if not one.removed]
        following = str(part[-1].index) if len(part) == limit else None
        return _json({"page_id": population.page_id, "conversations": rows, "next": following})
    return await _stream_truth(request, population, population.iterate(start))


async def _stream_truth(
    request: web.Request, population: Population, conversations: Iterable[Conversation]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    head = orjson.dumps({"page_id": population.page_id, "name": population.page_name})
    await response.write(head[:-1] + b',"conversations":[')
    chunk: list[bytes] = []
    first = True
    rules = _state(request).config.graph
    for conversation in conversations:
        if conversation.removed:
            continue
        chunk.append(orjson.dumps(truth_conversation(population, conversation, rules)))
        if len(chunk) == _TRUTH_CHUNK:
            await response.write((b"" if first else b",") + b",".join(chunk))
            chunk, first = [], False
    tail = (b"" if first or not chunk else b",") + b",".join(chunk)
    await response.write(tail + b'],"next":null}')
    await response.write_eof()
    return response


async def list_calls(request: web.Request) -> web.Response:
    """The call log: totals per Page, limit violations, and the last `limit` (1,000) calls, of `page_id` if
    given.
    """
    state = _state(request)
    rows = state.calls.rows(_number(request, "limit", 1000), request.query.get("page_id"))
    violations = {page_id: limits.violations for page_id, limits in state.limits.items()}
    return _json({"totals": state.calls.totals(), "violations": violations, "calls": rows})


async def reset_calls(request: web.Request) -> web.Response:
    """Forget the calls and the violations; the limits go on."""
    state = _state(request)
    state.calls.reset()
    for limits in state.limits.values():
        limits.violations = 0
    return _json({"reset": True})


async def call_rates(request: web.Request) -> web.Response:
    """Calls per second and Page over the last `seconds` (60): per Page the seconds (Unix) with calls in them,
    oldest first, as `[second, calls]`, and the `most` in one.
    """
    state = _state(request)
    begin = time.time() - _number(request, "seconds", 60)
    counts: dict[str, Counter[int]] = {page_id: Counter() for page_id in state.pages}
    for call in reversed(state.calls.calls):
        if call.at < begin:
            break
        if call.page_id is not None:
            counts[call.page_id][int(call.at)] += 1
    pages = {
        page_id: {"seconds": sorted(count.items()), "most": max(count.values(), default=0)}
        for page_id, count in counts.items()
    }
    return _json({"pages": pages})


async def list_faults(request: web.Request) -> web.Response:
    return _json({"faults": _state(request).faults.list()})


async def add_fault(request: web.Request) -> web.Response:
    """Plant a fault: `{"match", "action", "times"?, "after"?, ..}`, see `faults.py`."""
    body = await _body(request)
    if body is None:
        return _bad("a JSON object is wanted")
    try:
        fault = _state(request).faults.plant(body)
    except FaultError as error:
        return _bad(str(error))
    return _json(fault.describe(), 201)


async def remove_fault(request: web.Request) -> web.Response:
    """Take one fault back."""
    faults = _state(request).faults
    if not faults.remove(int(request.match_info["fault_id"])):
        return _json({"error": "no such fault"}, 404)
    return _json({"faults": faults.list()})


async def clear_faults(request: web.Request) -> web.Response:
    _state(request).faults.clear()
    return _json({"faults": []})


async def list_pages(request: web.Request) -> web.Response:
    """The Pages with their (simulated) tokens, and what belongs to the app."""
    state = _state(request)
    pages = [
        {
            "page_id": page.page_id,
            "name": page.name,
            "token": page.token,
            "conversations": len(state.populations[page.page_id].conversations),
            "messages": state.populations[page.page_id].message_total(),
            "subscribed_fields": sorted(state.webhooks.subscriptions.get(page.page_id, ())),
        }
        for page in state.pages.values()
    ]
    app = {
        "app_id": state.config.app_id,
        "app_secret": state.config.app_secret,
        "verify_token": state.config.verify_token,
    }
    return _json({"pages": pages, "app": app})


async def traffic(request: web.Request) -> web.Response:
    """Live traffic: `{"page_id"?, "count"?, "seconds"?, "rate"?, "seed"?, "kinds"?, "silent"?}`. Answers when
    the last webhook is delivered or given up.
    """
    body = await _body(request)
    if body is None:
        return _bad("a JSON object is wanted")
    state = _state(request)
    population = state.populations.get(str(body.get("page_id", next(iter(state.pages)))))
    if population is None:
        return _bad("no such Page")
    count, seconds = body.get("count"), body.get("seconds")
    if count is None and seconds is None:
        count = 1
    try:
        report = await live_traffic(
            population,
            state.webhooks,
            rate=float(body.get("rate", 0)),
            count=None if count is None else int(count),
            seconds=None if seconds is None else float(seconds),
            # Without a seed each call plays something else, but the same calls in the same order play the
            # same.
            seed=int(body.get("seed", population.live_changes)),
            kinds=body.get("kinds"),
            silent=bool(body.get("silent", False)),
        )
    except (UnknownKindError, TypeError, ValueError) as error:
        return _bad(str(error))
    return _json(asdict(report))


async def life_state(request: web.Request) -> web.Response:
    """What happens on each Page, what was played so far, and the steps of the timeline."""
    state = _state(request)
    return _json({**state.life.describe(), "timeline": request.app[TIMELINE].describe()})


async def begin_life(request: web.Request) -> web.Response:
    """Let things happen: `{"rate", "seed"?, "kinds"?, "silent"?, "count"?, "page_id"?}`, on all Pages if
    none is named, instead of what happened there so far.
    """
    body = await _body(request)
    if body is None:
        return _bad("a JSON object is wanted")
    state = _state(request)
    page_id = body.pop("page_id", None)
    if page_id is not None and page_id not in state.pages:
        return _bad("page_id: no such Page")
    try:
        state.life.begin(LifePlan(**body), None if page_id is None else [page_id])
    except (TypeError, ValueError) as error:
        return _bad(str(error))
    return await life_state(request)


async def stop_life(request: web.Request) -> web.Response:
    """Nothing happens any more, on `page_id` if given."""
    page_id = request.query.get("page_id")
    _state(request).life.stop(None if page_id is None else [page_id])
    return await life_state(request)


async def remove_conversation(request: web.Request) -> web.Response:
    """Delete a thread, as the Page's people may: `{"page_id", "thread_id"}`. No webhook tells."""
    body = await _body(request) or {}
    population = _state(request).populations.get(str(body.get("page_id")))
    conversation = population.conversation(str(body.get("thread_id"))) if population is not None else None
    if population is None or conversation is None:
        return _json({"error": "no such thread"}, 404)
    population.remove(conversation)
    return _json({"removed": conversation.thread_id})


async def webhook_state(request: web.Request) -> web.Response:
    """Where webhooks go, who is subscribed, the alerts, and the last `limit` (100) deliveries."""
    sender = _state(request).webhooks
    last = list(sender.deliveries)[-max(1, _number(request, "limit", 100)) :]
    return _json(
        {
            "url": sender.url,
            "subscriptions": {page_id: sorted(fields) for page_id, fields in sender.subscriptions.items()},
            "outcomes": dict(sender.outcomes),
            "failing": sender.failing,
            "alerts": [asdict(alert) for alert in sender.alerts],
            "deliveries": [delivery.describe() for delivery in last],
        }
    )


async def set_webhook(request: web.Request) -> web.Response:
    """Set the callback: `{"url"}`. Verified as Meta does; 400 when it does not send the challenge back."""
    body = await _body(request)
    if body is None or not isinstance(body.get("url"), str):
        return _bad("url is wanted")
    sender = _state(request).webhooks
    previous, sender.url = sender.url, body["url"]
    if not await sender.verify():
        sender.url = previous
        return _bad("the callback did not send the challenge back")
    return _json({"url": sender.url, "verified": True})


async def redeliver(request: web.Request) -> web.Response:
    """Send once more what was never taken."""
    return _json({"redelivered": await _state(request).webhooks.redeliver_failed()})


async def settle(request: web.Request) -> web.Response:
    """Send what faults hold back (late, gathered) now; answers when all of it is delivered or failed."""
    sender = _state(request).webhooks
    await sender.settle()
    return _json({"outcomes": dict(sender.outcomes), "failing": sender.failing})


async def list_webhook_faults(request: web.Request) -> web.Response:
    return _json({"faults": _state(request).webhooks.faults.list()})


async def add_webhook_fault(request: web.Request) -> web.Response:
    """Plant a fault on webhooks: `{"action", "share"?, "page_id"?, "fields"?, "after"?, "times"?, ..}`, see
    `webhook_faults.py`.
    """
    body = await _body(request)
    if body is None:
        return _bad("a JSON object is wanted")
    try:
        fault = _state(request).webhooks.faults.plant(body)
    except WebhookFaultError as error:
        return _bad(str(error))
    return _json(fault.describe(), 201)


async def remove_webhook_fault(request: web.Request) -> web.Response:
    """Take one fault back."""
    faults = _state(request).webhooks.faults
    if not faults.remove(int(request.match_info["fault_id"])):
        return _json({"error": "no such fault"}, 404)
    return _json({"faults": faults.list()})


async def clear_webhook_faults(request: web.Request) -> web.Response:
    _state(request).webhooks.faults.clear()
    return _json({"faults": []})


async def _body(request: web.Request) -> dict[str, Any] | None:
    try:
        body = orjson.loads(await request.read() or b"{}")
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def add_control_routes(app: web.Application) -> None:
    app.router.add_get("/_sim/truth/{page_id}", truth)
    app.router.add_get("/_sim/calls", list_calls)
    app.router.add_delete("/_sim/calls", reset_calls)
    app.router.add_get("/_sim/faults", list_faults)
    app.router.add_post("/_sim/faults", add_fault)
    app.router.add_delete("/_sim/faults", clear_faults)
    app.router.add_delete(r"/_sim/faults/{fault_id:\d+}", remove_fault)
    app.router.add_get("/_sim/rates", call_rates)
    app.router.add_get("/_sim/life", life_state)
    app.router.add_post("/_sim/life", begin_life)
    app.router.add_delete("/_sim/life", stop_life)
    app.router.add_get("/_sim/pages", list_pages)
    app.router.add_post("/_sim/traffic", traffic)
    app.router.add_post("/_sim/remove", remove_conversation)
    app.router.add_get("/_sim/webhooks", webhook_state)
    app.router.add_post("/_sim/webhooks", set_webhook)
    app.router.add_post("/_sim/webhooks/redeliver", redeliver)
    app.router.add_post("/_sim/webhooks/settle", settle)
    app.router.add_get("/_sim/webhooks/faults", list_webhook_faults)
    app.router.add_post("/_sim/webhooks/faults", add_webhook_fault)
    app.router.add_delete("/_sim/webhooks/faults", clear_webhook_faults)
    app.router.add_delete(r"/_sim/webhooks/faults/{fault_id:\d+}", remove_webhook_fault)
