"""Whose tokens there are and what they open: Pages, the person who has them, `/debug_token`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convsync.simulator import errors
from convsync.simulator.calling import GraphCall
from convsync.simulator.config import SimulatedPage
from convsync.simulator.fields import Field, parse_fields
from convsync.simulator.lists import conversations
from convsync.simulator.paging import paging, requested_slice
from convsync.simulator.shape import window

_SCOPES = (
    "pages_manage_metadata",
    "pages_messaging",
    "pages_read_engagement",
    "pages_show_list",
    "public_profile",
)
_TASKS = ["ADVERTISE", "ANALYZE", "CREATE_CONTENT", "MESSAGING", "MODERATE", "MANAGE"]
_CATEGORY = {"id": "186004504854452", "name": "Sports & Recreation"}
_PAGE_DEFAULTS = parse_fields("id,name")
_ACCOUNT_DEFAULTS = parse_fields("access_token,category,category_list,name,id,tasks")
_USER_DEFAULTS = parse_fields("id,name")
_CAP = 100

PageField = Callable[[SimulatedPage], Any]

_PAGE_FIELDS: dict[str, PageField] = {
    "id": lambda page: page.page_id,
    "name": lambda page: page.name,
    "category": lambda page: _CATEGORY["name"],
    "category_list": lambda page: [_CATEGORY],
    "link": lambda page: f"https://www.facebook.com/{page.page_id}",
    "username": lambda page: f"page{page.page_id}",
    "access_token": lambda page: page.token,
    "tasks": lambda page: _TASKS,
}


def check_page(call: GraphCall, target: str) -> None:
    """The token must be the Page's own."""
    if target not in call.state.pages:
        raise call.unsupported()
    if call.page is None or call.page.page_id != target:
        raise errors.no_permission()


def page_node(call: GraphCall, page: SimulatedPage) -> dict[str, Any]:
    """A Page; to a Page's own token its conversations too, by field expansion."""
    return _page(call, page, (call.fields or _PAGE_DEFAULTS).fields)


def _page(call: GraphCall, page: SimulatedPage, fields: tuple[Field, ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for field in fields:
        if field.name == "conversations":
            if call.page is None:
                raise errors.page_token_required()
            shown[field.name] = _nested_conversations(call, field)
        elif field.name in _PAGE_FIELDS:
            shown[field.name] = _PAGE_FIELDS[field.name](page)
        else:
            raise errors.unknown_field(field.name, "Page")
    return {**shown, "id": page.page_id}


def _nested_conversations(call: GraphCall, field: Field) -> dict[str, Any]:
    parameters = dict(field.modifiers)
    if field.fields is not None:
        parameters["fields"] = field.fields.source
    outer, call.parameters = call.parameters, parameters
    try:
        return conversations(call)
    finally:
        call.parameters = outer


def answer(call: GraphCall) -> dict[str, Any]:
    """What the token of the person (or the app) opens: the person, their Pages, and no conversations."""
    if call.method != "GET":
        raise call.unsupported()
    user_id = call.state.config.graph.user_id
    target = user_id if call.segments[0] == "me" and call.is_persons else call.segments[0]
    if len(call.segments) == 1:
        return node(call, target)
    if call.segments[1] == "accounts" and target == user_id and call.is_persons:
        return _accounts(call)
    if target in call.state.pages and call.segments[1] in ("conversations", "subscribed_apps", "messages"):
        raise errors.page_token_required()
    raise call.unsupported()


def node(call: GraphCall, target: str) -> dict[str, Any]:
    """A person or a Page by id."""
    rules = call.state.config.graph
    page = call.state.pages.get(target)
    if page is not None and call.is_persons:
        return page_node(call, page)
    if target != rules.user_id or not call.is_persons:
        raise errors.unsupported(target)
    person = {"id": rules.user_id, "name": rules.user_name}
    shown: dict[str, Any] = {}
    for field in (call.fields or _USER_DEFAULTS).fields:
        if field.name not in person:
            raise errors.unknown_field(field.name, "User")
        shown[field.name] = person[field.name]
    return {**shown, "id": rules.user_id}


def _accounts(call: GraphCall) -> dict[str, Any]:
    """`/me/accounts`: the Pages the person has a task on, with their tokens. Paged like any list."""
    user_id = call.state.config.graph.user_id
    part = requested_slice(f"{user_id}/accounts", call.parameters, _CAP)
    # The first Page has the highest place: lists are cut from their high end.
    places = [(0, number) for number in range(len(call.state.pages))]
    start, stop = window(places, lambda place: place, part.limit, part.after, part.before)
    pages = list(call.state.pages.values())[::-1][start:stop][::-1]
    fields = call.fields or _ACCOUNT_DEFAULTS
    data = [_page(call, page, fields.fields) for page in pages]
    if not data:
        return {"data": []}
    forwarded = {"limit": str(part.limit)}
    if call.fields is not None:
        forwarded["fields"] = fields.source
    cursors = part.cursors(places[stop - 1], places[start], len(data))
    link = paging(call.link, f"{user_id}/accounts", forwarded, cursors, stop < len(places), start > 0)
    return {"data": data, "paging": link}


def debug_token(call: GraphCall) -> dict[str, Any]:
    """`/debug_token`: what a token is good for. A dead one says why."""
    config = call.state.config
    asked = call.parameters.get("input_token", "")
    if not asked:
        raise errors.required("input_token")
    told: dict[str, Any] = {"app_id": config.app_id}
    page = call.state.tokens.get(asked)
    if page is not None:
        told |= {"type": "PAGE", "profile_id": page.page_id}
    elif asked == config.graph.user_token:
        told |= {"type": "USER"}
    elif asked == config.app_token:
        return {
            "data": told | {"type": "APP", "application": "Simulated app", "is_valid": True, "scopes": []}
        }
    else:
        problem = {"code": 190, "message": "Malformed access token"}
        return {"data": {"error": problem, "is_valid": False, "scopes": []}}
    targets = [page.page_id] if page is not None else list(call.state.pages)
    told |= {
        "application": "Simulated app",
        "data_access_expires_at": 0,
        # "Long-lived Page access tokens do not have an expiration date."
        "expires_at": 0,
        "is_valid": True,
        "issued_at": int(config.now.timestamp()) - 86_400,
        "scopes": list(_SCOPES),
        "granular_scopes": [{"scope": scope, "target_ids": targets} for scope in _SCOPES[:3]],
        "user_id": config.graph.user_id,
    }
    dead = call.state.faults.revoked.get(asked)
    if dead is not None:
        problem = {"code": dead.code, "message": dead.message}
        told |= {"is_valid": False, "error": problem | ({"subcode": dead.subcode} if dead.subcode else {})}
    return {"data": told}
