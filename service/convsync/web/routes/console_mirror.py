"""The console: conversations, a thread as a chat, the life of a message, when people write."""

from __future__ import annotations

from aiohttp import web

from convsync.web.chat import answered_elsewhere, read_thread
from convsync.web.routes.console import named_page
from convsync.web.routing import allowed_page, route, whole_number
from convsync.web.state import STORE
from convsync.web.views import page

_CONVERSATIONS = 50
_EVENTS = 100
# The busiest hour has the strongest of these colours.
_SHADES = 8


def _page_id(request: web.Request) -> str:
    return allowed_page(request, request.match_info["page_id"])


@route("GET", "/console/pages/{page_id}/conversations", access="read")
async def conversations(request: web.Request) -> web.Response:
    """Newest first; `q` and `status` narrow it down, `before` goes on."""
    query = {name: request.query.get(name, "").strip() for name in ("q", "status")}
    found = await request.app[STORE].list_conversations(
        page_id=_page_id(request),
        status=query["status"] or None,
        query=query["q"] or None,
        before=request.query.get("before"),
        limit=_CONVERSATIONS,
    )
    context = {
        "page": await named_page(request, _page_id(request)),
        "conversations": found["conversations"],
        "query": query,
        "next": found["next"],
        "before": request.query.get("before"),
    }
    return page(request, "conversations.html", context)


@route("GET", "/console/pages/{page_id}/conversations/{conversation_id}", access="read")
async def conversation(request: web.Request) -> web.Response:
    """The thread, oldest at the top; `before` shows what is older."""
    page_id = _page_id(request)
    conversation_id = whole_number(request.match_info["conversation_id"], "conversation_id")
    store, before = request.app[STORE], request.query.get("before")
    one = await store.get_conversation(page_id=page_id, conversation_id=conversation_id)
    found = await store.list_events(
        page_id=page_id, conversation_id=conversation_id, before=before, limit=_EVENTS
    )
    answered = answered_elsewhere(found["events"])
    elsewhere = (
        await store.message_texts(page_id=page_id, conversation_id=conversation_id, message_ids=answered)
        if answered
        else {}
    )
    context = {
        "page": await named_page(request, page_id),
        "conversation": one,
        "days": read_thread(one, found["events"], newest=before is None, elsewhere=elsewhere),
        "older": found["next"],
        "before": before,
    }
    return page(request, "conversation.html", context)


@route("GET", "/console/pages/{page_id}/messages/{message_id}", access="read")
async def message(request: web.Request) -> web.Response:
    life = await request.app[STORE].explain_message(
        page_id=_page_id(request), message_id=request.match_info["message_id"]
    )
    named = await named_page(request, life["page_id"])
    return page(request, "message.html", {"page": named, "life": life})


@route("GET", "/console/pages/{page_id}/timing", access="read")
async def page_timing(request: web.Request) -> web.Response:
    return await _timing(request, None)


@route("GET", "/console/pages/{page_id}/conversations/{conversation_id}/timing", access="read")
async def conversation_timing(request: web.Request) -> web.Response:
    return await _timing(request, whole_number(request.match_info["conversation_id"], "conversation_id"))


async def _timing(request: web.Request, conversation_id: int | None) -> web.Response:
    page_id, store = _page_id(request), request.app[STORE]
    found = await store.contact_timing(
        page_id=page_id,
        conversation_id=conversation_id,
        timezone=request.query.get("tz", "").strip() or None,
    )
    one = None
    if conversation_id is not None:
        one = await store.get_conversation(page_id=page_id, conversation_id=conversation_id)
    busiest = max(max(hours) for hours in found["counts"])
    shades = [[-(-count * _SHADES // busiest) if busiest else 0 for count in row] for row in found["counts"]]
    named = await named_page(request, page_id)
    context = {"page": named, "conversation": one, "timing": found, "shades": shades}
    return page(request, "timing.html", context)
