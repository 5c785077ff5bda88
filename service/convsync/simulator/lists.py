"""The list of conversations: folders, filters by time, and a list that keeps no order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convsync.simulator import errors, nodes
from convsync.simulator.calling import GraphCall
from convsync.simulator.paging import Key, Slice, encode_cursor, paging, read_cursor, requested_slice
from convsync.simulator.population import Conversation, Population

# No source lists them.
_FOLDERS = frozenset({"inbox", "page_done", "other", "pending", "spam"})
_HIDDEN_AFTER_MS = 30 * 86_400_000
_FRONT: Key = (1 << 62, 0)
_FORWARDED = ("platform", "folder", "fields", "updated_after_ms", "updated_before_ms")

Keep = Callable[[Conversation], bool]
Page = tuple[list[Conversation], bool, bool]


def conversations(call: GraphCall) -> dict[str, Any]:
    """`/{page}/conversations`.

    `updated_after_ms` and `updated_before_ms` are not in the documentation, which says that "time-based
    pagination is not available for the conversations endpoint"; Meta's own SDK has them since 26.0
    (facebook-business: Page.get_conversations). That both ends are excluded is invented.
    """
    parameters, population, reader = call.parameters, call.population, call.reader
    platform = parameters.get("platform", "messenger").lower()
    if platform not in ("messenger", "instagram"):
        raise errors.bad_parameter("platform", "one of {INSTAGRAM, MESSENGER}")
    page_id = population.page_id
    own, late = reader.list_of(page_id), reader.list_of(f"{page_id}/late")
    after = parameters.get("after")
    second = call.unordered and after is not None and read_cursor(after).owner == late
    part = requested_slice(late if second else own, parameters, call.state.config.max_conversations_per_call)
    keep = _filter(call)
    turns: tuple[str, str] | None = None
    if platform == "instagram":
        found, newer, older = [], False, False
    elif "user_id" in parameters:
        known = population.conversation_with(parameters["user_id"])
        found, newer, older = ([known] if known is not None else []), False, False
    elif call.unordered:
        found, newer, older = _select(
            population, part, lambda one: _is_late(one) == second and (keep is None or keep(one))
        )
        if found and not second and not older:
            cursors = part.cursors(found[0].key, found[-1].key, len(found))
            turns, older = (cursors[0], encode_cursor(late, _FRONT, part.depth + len(found))), True
    else:
        found, newer, older = _select(population, part, keep)
    data = nodes.render_conversations(found, call.fields, reader)
    if not found:
        return {"data": data}
    forwarded = {name: parameters[name] for name in _FORWARDED if name in parameters}
    forwarded["limit"] = str(part.limit)
    cursors = turns or part.cursors(found[0].key, found[-1].key, len(found))
    link = paging(reader.link, f"{page_id}/conversations", forwarded, cursors, newer, older)
    return {"data": data, "paging": link}


def _is_late(conversation: Conversation) -> bool:
    return conversation.index % 5 == 2


def is_listed(conversation: Conversation, requests: float) -> bool:
    """Whether a walk of the whole inbox can see a thread: "conversations in the Requests folder inactive for
    30 days are not returned". The days are counted back from the newest thing that happened in the inbox.
    """
    if nodes.folder(conversation, requests) == "inbox":
        return True
    newest = conversation.population.newest_first(1)[0][0]
    return conversation.updated_ms > newest.updated_ms - _HIDDEN_AFTER_MS


def _filter(call: GraphCall) -> Keep | None:
    """Which conversations the parameters and the rules let through, None for all."""
    parameters, requests = call.parameters, call.state.config.graph.requests
    tests: list[Keep] = []
    folder = parameters.get("folder")
    if folder is not None:
        name = folder.lower() if folder.lower() in _FOLDERS else "inbox"
        tests.append(lambda one: nodes.folder(one, requests) == name)
    if requests:
        tests.append(lambda one: is_listed(one, requests))
    newest, oldest = _moment(parameters.get("updated_before_ms")), _moment(parameters.get("updated_after_ms"))
    if newest is not None:
        before = newest
        tests.append(lambda one: one.updated_ms < before)
    if oldest is not None:
        since = oldest
        tests.append(lambda one: one.updated_ms > since)
    return (lambda one: all(test(one) for test in tests)) if tests else None


def _moment(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not text.isdecimal():
        raise errors.bad_parameter("updated_after_ms", "an integer")
    return int(text)


def _select(population: Population, part: Slice, keep: Keep | None) -> Page:
    """A page of those that `keep` lets through: walked to until it is full or the list ends."""
    if keep is None:
        return population.newest_first(part.limit, part.after, part.before)
    if part.before is not None:
        found, newer, older = population.newest_first(part.limit, None, part.before)
        return [one for one in found if keep(one)], newer, older
    kept: list[Conversation] = []
    after, newer, older = part.after, part.after is not None, True
    while older:
        found, _, older = population.newest_first(200, after)
        for one in found:
            if not keep(one):
                continue
            if len(kept) == part.limit:
                return kept, newer, True
            kept.append(one)
        if found:
            after = found[-1].key
    return kept, newer, False
