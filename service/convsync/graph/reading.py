"""From the answers of the Graph API to facts.

One bad item never costs its siblings: it becomes a dead letter with its raw JSON and a reason that
names the field, and the rest of the page lands. Only a page that is no page at all (no list in it,
or a `next` that leads nowhere) raises, as a `GraphError` that is worth another try: taking it for
the end of the list would lose everything behind it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson
from pydantic import ValidationError

from convsync.facts import DeadLetter, Fact, Json, Message, Thread, clean, drift_name, thread_key
from convsync.graph.catalogue import UNREADABLE
from convsync.graph.drift import (
    ANSWER,
    ATTACHMENT,
    CONVERSATION,
    MESSAGE,
    PAGING,
    PERSON,
    SHARE,
    compare,
    compare_each,
)
from convsync.graph.errors import GraphError
from convsync.graph.models import ConversationNode, Edge, Mention, MessageNode, Participant, unwrap
from convsync.graph.redact import redact

# Of each list item, by the name Graph knows it; `messages` is added where it is asked for.
LIST_FIELDS: Final = (
    "id",
    "updated_time",
    "message_count",
    "unread_count",
    "snippet",
    "can_reply",
    "participants",
)
MESSAGE_FIELDS: Final = (
    "id",
    "created_time",
    "from",
    "to",
    "message",
    "attachments",
    "shares",
    "sticker",
    "tags",
    "reactions",
    "reply_to",
    "is_unsupported",
)
NODE_FIELDS: Final = "id,updated_time,message_count"  # of a thread read by itself, to see whether it is there
_SHARES: Final = "shares{id,link,name,description}"  # a share has no sub-field but those asked for

# Who somebody is called lives in the conversation, where it can be erased. The address is made up
# by Meta from the id.
_NAMES: Final = frozenset({"name", "email", "username"})


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of `/{page}/conversations`.

    `threads` is what the sync keeps its books with, one object per readable conversation:
    `thread_id`, `sender_id` (whose conversation it is), `updated_time`, `message_count`,
    `newest_id`, `newest` and `oldest` (times of messages; `oldest` is `None` if they did not come newest
    first), `next_cursor` (where the messages go on), `unreadable` (messages without id or time; those with
    an id are `unreadable_ids`, the others are counted as `nameless`) and `read`: `complete` (the messages
    ended within this page), `more` (they go on at `next_cursor`) or `unread` (none of them came; read the
    thread from its front).

    `next_cursor` is `None` at the end of the list. `unreadable` counts everything that Graph listed
    and did not return: conversations and messages, those in `threads` included. `drift` counts by name
    what this release does not know: fields, values of a new kind, items that do not fit.
    """

    facts: list[Fact]
    threads: list[Json]
    next_cursor: str | None
    newest_updated: datetime | None
    oldest_updated: datetime | None
    unreadable: int
    drift: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class MessagesPage:
    """One page of `/{thread}/messages`; `newest_id`, `newest` and `oldest` are those of this page.

    `oldest` is `None` if the messages did not come newest first: then it says nothing of what follows.
    `unreadable_ids` and `nameless` (how many have no id) are the unreadable ones.
    """

    facts: list[Fact]
    next_cursor: str | None
    unreadable: int
    unreadable_ids: list[str]
    nameless: int
    newest_id: str | None
    newest: datetime | None
    oldest: datetime | None
    drift: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class NodePage:
    """A thread read by itself: that there is an answer says that it is there."""

    updated_time: datetime | None
    message_count: int | None


def message_fields(without: Iterable[str] = ()) -> str:
    """The `fields` of a message, for a request."""
    refused = set(without)
    return ",".join(_SHARES if name == "shares" else name for name in MESSAGE_FIELDS if name not in refused)


def list_fields(nested: int, without: Iterable[str] = ()) -> str:
    """The `fields` of a conversation, with up to `nested` of its messages (0: none)."""
    refused = set(without)
    fields = [name for name in LIST_FIELDS if name not in refused]
    if nested > 0:
        fields.append(f"messages.limit({nested}){{{message_fields(refused)}}}")
    return ",".join(fields)


def read_conversations(
    page_id: str, body: Json, observed_at: datetime, requested: Iterable[str] = LIST_FIELDS
) -> ListPage:
    """Read a page of the list of conversations.

    `observed_at` is the database's clock when the call was granted. A field that was not
    `requested` says nothing about a thread; one that was requested and is absent says `None`.
    """
    edge = _edge(body, "conversations")
    asked = frozenset(requested)
    facts: list[Fact] = []
    drift = _drift_of(body)
    threads: list[Json] = []
    updated: list[datetime] = []
    unreadable = 0
    for item in edge.items:
        try:
            node = ConversationNode.model_validate(_object(item))
        except (ValidationError, _NotAnObjectError) as error:
            facts.append(_dead_letter(page_id, f"conversation{_reason(error)}", item))
            drift[drift_name(f"conversation{_reason(error)}")] += 1
            unreadable += 1
            continue
        compare(item, CONVERSATION, "conversation", drift)
        owner = _read_people(page_id, node, observed_at, asked, facts, drift)
        thread = _read_thread(page_id, node, owner, observed_at, facts, drift)
        threads.append(thread)
        unreadable += thread["unreadable"]
        if node.updated_time is not None:
            updated.append(node.updated_time)
    return ListPage(
        facts=facts,
        threads=threads,
        next_cursor=edge.paging.after,
        newest_updated=max(updated, default=None),
        oldest_updated=min(updated, default=None),
        unreadable=unreadable,
        drift=drift,
    )


def read_messages(
    page_id: str, thread_id: str, sender_id: str, body: Json, observed_at: datetime
) -> MessagesPage:
    """Read a page of the messages of a thread whose customer is `sender_id`."""
    edge = _edge(body, f"messages of {thread_id}")
    facts: list[Fact] = []
    drift = _drift_of(body)
    read = _read_items(page_id, thread_id, sender_id, edge.items, observed_at, facts, drift)
    return MessagesPage(
        facts=facts,
        next_cursor=edge.paging.after,
        unreadable=read.unreadable,
        unreadable_ids=read.unreadable_ids,
        nameless=read.nameless,
        newest_id=read.newest_id,
        newest=read.newest,
        oldest=read.oldest,
        drift=drift,
    )


def read_node(thread_id: str, body: Json) -> NodePage:
    """Read a thread that was asked for by its id. Raises a GraphError if the answer is of no thread."""
    try:
        node = ConversationNode.model_validate(body)
    except ValidationError as error:
        raise GraphError(
            f"the answer is no thread{_reason(error)}", type=UNREADABLE, http_status=200
        ) from None
    if node.id != thread_id:
        raise GraphError("the answer is of another thread", type=UNREADABLE, http_status=200)
    return NodePage(node.updated_time, node.message_count)


class _NotAnObjectError(Exception):
    """An item of a list is `null` or a bare value."""


def _object(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    raise _NotAnObjectError("null" if item is None else "not an object")


def _edge(body: Json, what: str) -> Edge:
    edge = Edge.of(body)
    if edge is None:
        raise GraphError(f"the answer has no list of {what}", type=UNREADABLE, http_status=200)
    if edge.paging.has_next and edge.paging.after is None:
        raise GraphError(f"the list of {what} goes on without a cursor", type=UNREADABLE, http_status=200)
    return edge


def _drift_of(body: Json) -> Counter[str]:
    drift: Counter[str] = Counter()
    compare(body, ANSWER, "answer", drift)
    if isinstance(body.get("paging"), dict):
        compare(body["paging"], PAGING, "paging", drift)
    return drift


def _read_people(
    page_id: str,
    node: ConversationNode,
    observed_at: datetime,
    asked: frozenset[str],
    facts: list[Fact],
    drift: Counter[str],
) -> str:
    """Add a snapshot of the thread for each customer in it; return the owner's id."""
    fields: Json = {}
    if "unread_count" in asked:
        fields["unread_count"] = node.unread_count or 0
    if "snippet" in asked:
        fields["snippet"] = node.snippet
    if "can_reply" in asked:
        fields["can_reply"] = node.can_reply
    if "message_count" in asked:
        fields["reported_count"] = node.message_count
    if "updated_time" in asked:
        fields["updated_time"] = _iso(node.updated_time)
    names: dict[str, str | None] = {}
    without_id: list[str | None] = []
    for position, item in enumerate(node.participants):
        try:
            person = Participant.model_validate(_object(item))
        except (ValidationError, _NotAnObjectError) as error:
            reason = f"participants[{position}]{_reason(error)} ({node.id})"
            facts.append(_dead_letter(page_id, reason, item))
            drift[drift_name(f"participants{_reason(error)}")] += 1
            if isinstance(item, dict):
                without_id.append(_name(item.get("name")))
            continue
        compare(item, PERSON, "participants", drift)
        if person.id != page_id:
            names[person.id] = names.get(person.id) or _name(person.name)
    if not names:
        # A deleted account may keep its name; of several it is not said whose thread this is.
        names[thread_key(node.id)] = without_id[0] if len(without_id) == 1 else None
    for sender_id, name in names.items():
        own = {"name": name, **fields} if "participants" in asked else dict(fields)
        facts.append(Thread(page_id, sender_id, node.id, observed_at, own))
    return min(names)


def _name(name: Any) -> str | None:
    return (name.strip() or None) if isinstance(name, str) else None


def _read_thread(
    page_id: str,
    node: ConversationNode,
    owner: str,
    observed_at: datetime,
    facts: list[Fact],
    drift: Counter[str],
) -> Json:
    """Add the messages that came with a thread; return what the sync keeps of it."""
    edge = Edge.of(node.messages) if node.messages is not None else None
    next_cursor: str | None = None
    items = _Items()
    if edge is None:
        read = "complete" if node.message_count == 0 else "unread"
    else:
        items = _read_items(page_id, node.id, owner, edge.items, observed_at, facts, drift)
        next_cursor = edge.paging.after
        # a `next` without a cursor cannot be followed from here, only from the front of the thread
        goes_on = "more" if next_cursor is not None else "unread"
        read = goes_on if edge.paging.has_next else "complete"
    return {
        "thread_id": node.id,
        "sender_id": owner,
        "updated_time": _iso(node.updated_time),
        "message_count": node.message_count,
        "newest_id": items.newest_id,
        "newest": _iso(items.newest),
        "oldest": _iso(items.oldest),
        "next_cursor": next_cursor,
        "read": read,
        "unreadable": items.unreadable,
        "unreadable_ids": items.unreadable_ids,
        "nameless": items.nameless,
    }


@dataclass(frozen=True, slots=True)
class _Items:
    """What a page of messages came to; see `MessagesPage`."""

    unreadable_ids: list[str] = field(default_factory=list)
    nameless: int = 0
    newest_id: str | None = None
    newest: datetime | None = None
    oldest: datetime | None = None

    @property
    def unreadable(self) -> int:
        return len(self.unreadable_ids) + self.nameless


def _read_items(
    page_id: str,
    thread_id: str,
    owner: str,
    items: list[Any],
    observed_at: datetime,
    facts: list[Fact],
    drift: Counter[str],
) -> _Items:
    """Add a fact per message."""
    unreadable_ids: list[str] = []
    nameless = 0
    newest: tuple[datetime, str] | None = None
    oldest: datetime | None = None
    in_order = True
    for item in items:
        try:
            raw = _object(item)
            node = MessageNode.model_validate(raw)
        except (ValidationError, _NotAnObjectError) as error:
            facts.append(_dead_letter(page_id, f"message{_reason(error)} ({thread_id})", item))
            drift[drift_name(f"message{_reason(error)}")] += 1
            name = item.get("id") if isinstance(item, dict) else None
            if isinstance(name, str | int) and name:
                unreadable_ids.append(clean(str(name)))
            else:
                nameless += 1
            continue
        _compare_message(raw, drift)
        facts.append(_message(page_id, thread_id, owner, node, raw, observed_at))
        # of several within one second the first listed is the newest: lists come newest first
        if newest is None or node.created_time > newest[0]:
            newest = (node.created_time, node.id)
        in_order = in_order and (oldest is None or node.created_time <= oldest)
        if oldest is None or node.created_time < oldest:
            oldest = node.created_time
    time, newest_id = newest or (None, None)
    return _Items(unreadable_ids, nameless, newest_id, time, oldest if in_order else None)


def _compare_message(raw: Json, drift: Counter[str]) -> None:
    compare(raw, MESSAGE, "message", drift)
    author = raw.get("from")
    if isinstance(author, dict):
        compare(author, PERSON, "from", drift)
    for name, shape in (("to", PERSON), ("attachments", ATTACHMENT), ("shares", SHARE)):
        if name in raw:
            compare_each(unwrap(raw[name]), shape, name, drift)


def _message(
    page_id: str, thread_id: str, owner: str, node: MessageNode, raw: Json, observed_at: datetime
) -> Message:
    author = node.sender.id if node.sender else None
    customer = owner
    if author is not None and author != page_id:
        customer = author
    elif author == page_id:
        customer = next((person.id for person in node.to if person.id and person.id != page_id), owner)
    return Message(
        page_id=page_id,
        sender_id=customer,
        message_id=node.id,
        direction="out" if author == page_id else "in",
        at=node.created_time,
        text=node.message if isinstance(node.message, str) and node.message else None,
        metadata={"graph": _details(node, raw, known={page_id, customer})},
        observed_at=observed_at,
        thread_id=thread_id,
    )


def _details(node: MessageNode, raw: Json, known: set[str]) -> Json:
    """Everything else Graph said of a message: lists without their wrappers, and no paging."""
    details: Json = {}
    for name, value in raw.items():
        match name:
            case "id" | "created_time" | "paging":
                pass
            case "message":
                if value is not None and not isinstance(value, str):
                    details["message"] = _plain(value)
            case "from":
                if node.sender is None:
                    if value is not None:
                        details["from"] = _plain(value)
                elif person := _person(node.sender, known):
                    details["from"] = person
            case "to":
                people = [_person(person, known) for person in node.to]
                if any(people):
                    details["to"] = [
                        person or {"id": mention.id} for person, mention in zip(people, node.to, strict=True)
                    ]
            case "attachments" | "shares":
                details[name] = [_plain(item) for item in unwrap(value)]
            case "tags":
                details["tags"] = [_tag(item) for item in unwrap(value)]
            case "reactions":
                details["reactions"], unclear = _reactions(value)
                if unclear:
                    details["unclear_reactions"] = unclear
            case _:
                details[name] = _plain(value)
    return details


def _person(mention: Mention, known: set[str]) -> Json | None:
    """What is worth keeping of somebody in `from` or `to`: nothing, if it is only whom we know."""
    extra = {name: _plain(value) for name, value in (mention.model_extra or {}).items() if name not in _NAMES}
    if mention.id in known and not extra:
        return None
    return {"id": mention.id, **extra}


def _tag(item: Any) -> Any:
    name = item.get("name") if isinstance(item, dict) else item
    return name if isinstance(name, str) else _plain(item)


def _reactions(value: Any) -> tuple[list[Json], list[Any]]:
    """The reactions as `{"actor", "reaction", "emoji"}`, and those that name nobody, as they came."""
    reactions: list[Json] = []
    unclear: list[Any] = []
    for item in unwrap(value):
        people = []
        if isinstance(item, dict):
            people = unwrap(item.get("users") or item.get("user") or item.get("from") or item.get("actor"))
        actors = [
            mention.id
            for person in people
            if isinstance(person, dict) and (mention := Mention.model_validate(person)).id
        ]
        if not actors:
            unclear.append(_plain(item))
        reactions += [
            {"actor": actor, "reaction": item.get("reaction"), "emoji": item.get("emoji")} for actor in actors
        ]
    return reactions, unclear


def _plain(value: Any) -> Any:
    """A value without list wrappers, without `paging` (its links embed tokens) and without secrets."""
    if isinstance(value, dict):
        if isinstance(value.get("data"), list) and not value.keys() - {"data", "paging"}:
            return [_plain(item) for item in value["data"]]
        return {
            key: _plain(item)
            for key, item in value.items()
            if not (key == "paging" and isinstance(item, dict))
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return redact(value)
    return value


def _without_paging(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_paging(item)
            for key, item in value.items()
            if not (key == "paging" and isinstance(item, dict))
        }
    if isinstance(value, list):
        return [_without_paging(item) for item in value]
    return value


def _dead_letter(page_id: str, reason: str, item: Any) -> DeadLetter:
    item = _without_paging(item)
    try:
        raw = orjson.dumps(item).decode()
    except (orjson.JSONEncodeError, TypeError):
        raw = json.dumps(clean(item), ensure_ascii=False)
    return DeadLetter(page_id, reason, redact(raw).encode())


def _reason(error: ValidationError | _NotAnObjectError) -> str:
    """`: null` for an item that is no object, else `.field: what is wrong with it`."""
    if isinstance(error, _NotAnObjectError):
        return f": {error}"
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f".{field}: {'missing' if first['type'] == 'missing' else first['msg']}"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
