"""Conversations and messages as Graph shows them.

A field list is compiled once into a list of functions; each message is then one dict built by them. A
function that gives None leaves its field out: "If a field has no data, it will not be returned". What all
messages of a thread share (the two people, the tags) is in it as JSON that is written already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from time import gmtime, strftime
from typing import Any

import orjson

from convsync.simulator.errors import unknown_field
from convsync.simulator.fields import Field, Fields, parse_fields
from convsync.simulator.messages import Message
from convsync.simulator.paging import Key, Link, paging, requested_slice
from convsync.simulator.population import Conversation, Population

MESSAGE_DEFAULTS = parse_fields("id,created_time")
CONVERSATION_DEFAULTS = parse_fields("id,updated_time")
_SHARE_DEFAULTS = frozenset({"id"})


_CLOCK = tuple(f"{second // 60:02}:{second % 60:02}+0000" for second in range(3600))


@lru_cache(maxsize=16_384)
def _hour(hour: int) -> str:
    return strftime("%Y-%m-%dT%H:", gmtime(hour * 3600))


def graph_time(ms: int) -> str:
    """Graph's form of a moment: `2026-11-20T11:59:58+0000`, whole seconds, cut and not rounded."""
    hour, second = divmod(ms // 1000, 3600)
    return _hour(hour) + _CLOCK[second]


@dataclass(slots=True)
class Reader:
    """Who is reading: the inbox, how links are built, and the caps.

    `readable` is of how many newest messages of a thread there are details, None for all.
    """

    population: Population
    link: Link
    max_messages: int
    cursor_generation: int = 0
    readable: int | None = None
    requests: float = 0.0

    def list_of(self, owner: str) -> str:
        """What the cursors of a list are bound to; another thing when all cursors given out have died."""
        return f"{owner}~{self.cursor_generation}" if self.cursor_generation else owner


class _Thread:
    """What all messages of one thread share while they are rendered."""

    __slots__ = ("_written", "page", "person", "reader")

    def __init__(self, reader: Reader, conversation: Conversation) -> None:
        self.reader = reader
        self.person = person(conversation)
        self.page = page_person(reader.population)
        self._written: dict[tuple[bool, bool, frozenset[str] | None], orjson.Fragment | None] = {}

    def author(
        self, from_page: bool, names: frozenset[str] | None, *, listed: bool
    ) -> orjson.Fragment | None:
        """The Page or the person with these fields, as JSON, in a list of one if `listed`."""
        key = (from_page, listed, names)
        try:
            return self._written[key]
        except KeyError:
            who = self.page if from_page else self.person
            written = None
            if who:
                shown = _only(names, who)
                written = orjson.Fragment(orjson.dumps({"data": [shown]} if listed else shown))
            self._written[key] = written
            return written


MessageField = Callable[[Message, _Thread], Any]
ConversationField = Callable[[Conversation, Reader], Any]


def oldest_readable(conversation: Conversation, readable: int | None) -> Key | None:
    """The place of the oldest message with details, if the `readable` newest have any; None: all have."""
    if readable is None:
        return None
    newest = conversation.population.messages_newest_first(conversation, readable)[0]
    return newest[-1].key if newest else None


def folder(conversation: Conversation, requests: float) -> str:
    """Where a thread lies: `requests` of all in `pending`, chosen by their number, the rest in `inbox`."""
    return "pending" if conversation.index * 61 % 100 < requests * 100 else "inbox"


# -- people


def page_person(population: Population) -> dict[str, Any]:
    """The Page as a participant."""
    page_id = population.page_id
    return {"name": population.page_name, "email": f"{page_id}@facebook.com", "id": page_id}


def person(conversation: Conversation) -> dict[str, Any] | None:
    """The customer as a participant, without id or name where Graph has none; None: the account is gone."""
    if conversation.kind == "gone":
        return None
    shown: dict[str, Any] = {}
    if conversation.name is not None:
        shown["name"] = conversation.name
    elif conversation.index % 2:
        # No name is a missing key for one, an empty text for another (both shapes are inferred).
        shown["name"] = ""
    if conversation.customer_id is not None:
        shown["email"] = f"{conversation.customer_id}@facebook.com"
        shown["id"] = conversation.customer_id
    return shown


def _participants(conversation: Conversation, reader: Reader) -> list[dict[str, Any]]:
    people = [page_person(reader.population)]
    customer = person(conversation)
    if customer is not None:
        # Mostly the customer comes first; nobody promised it.
        people.insert(1 if conversation.index % 7 == 3 else 0, customer)
    return people


def _only(names: frozenset[str] | None, node: dict[str, Any]) -> dict[str, Any]:
    return node if names is None else {key: value for key, value in node.items() if key in names}


def _wrap(names: frozenset[str] | None, nodes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {"data": [_only(names, node) for node in nodes]}


def _names(field: Field) -> frozenset[str] | None:
    return None if field.fields is None else frozenset(nested.name for nested in field.fields.fields)


# -- messages


def _attachments(message: Message, thread: _Thread, names: frozenset[str] | None) -> dict[str, Any] | None:
    if not message.attachments:
        return None
    answer = _wrap(names, message.attachments)
    # Recorded answers give a next page here even when there is nothing more.
    path = f"{message.message_id}/attachments"
    answer["paging"] = paging(thread.reader.link, path, {"limit": "25"}, ("MAZDZD", "MAZDZD"), False, True)
    return answer


@lru_cache(maxsize=64)
def _tags(outbound: bool, source: str) -> orjson.Fragment:
    names = ["inbox", "sent", "read"] if outbound else ["inbox"]
    return orjson.Fragment(orjson.dumps({"data": [{"name": name} for name in (*names, source)]}))


def _reactions(message: Message, thread: _Thread) -> dict[str, Any] | None:
    if not message.reactions:
        return None
    data = []
    for who, reaction in message.reactions:
        user = thread.page if who == "page" else thread.person
        shown = _only(frozenset({"id", "name"}), user) if user else {}
        data.append({"reaction": reaction, "users": [shown] if shown else []})
    return {"data": data}


def _message_field(field: Field) -> MessageField:
    names = _names(field)
    match field.name:
        case "id":
            return lambda message, thread: message.message_id
        case "created_time":
            return lambda message, thread: graph_time(message.created_ms)
        case "message":
            return lambda message, thread: message.text
        case "from":
            return lambda message, thread: thread.author(message.outbound, names, listed=False)
        case "to":
            return lambda message, thread: thread.author(not message.outbound, names, listed=True)
        case "attachments":
            return lambda message, thread: _attachments(message, thread, names)
        case "sticker":
            return lambda message, thread: message.sticker
        case "shares":
            # "Sub-fields must be requested": without them there is only an id.
            wanted = names if names is not None else _SHARE_DEFAULTS
            return lambda message, thread: _wrap(wanted, [message.share]) if message.share else None
        case "reactions":
            return lambda message, thread: _reactions(message, thread)
        case "tags":
            return lambda message, thread: _tags(message.outbound, message.source)
        case "reply_to":

            def replied(message: Message, thread: _Thread) -> dict[str, Any] | None:
                if message.reply_to is None:
                    return None
                found = thread.reader.population.find_message(message.reply_to)
                own = found is not None and found[1].outbound == message.outbound
                return {"mid": message.reply_to, "is_self_reply": own}

            return replied
        case "is_unsupported":

            def unsupported(message: Message, thread: _Thread) -> bool | str | None:
                if not message.unsupported:
                    return None
                # A boolean in the documentation, the string "true" in a recorded answer.
                return True if message.number % 2 else "true"

            return unsupported
        case "story" | "thread_id":
            return lambda message, thread: None
    raise unknown_field(field.name, "UnifiedMessage")


@lru_cache(maxsize=256)
def _message_view(fields: Fields) -> tuple[tuple[str, MessageField], ...]:
    return tuple((field.name, _message_field(field)) for field in _with_id(fields))


def _with_id(fields: Fields) -> tuple[Field, ...]:
    """The id comes with every node, asked for or not."""
    if any(field.name == "id" for field in fields.fields):
        return fields.fields
    return (*fields.fields, Field("id"))


def render_messages(
    messages: Iterable[Message], conversation: Conversation, fields: Fields | None, reader: Reader
) -> list[dict[str, Any]]:
    """Messages of one thread as Graph nodes. Raises GraphError for a field that messages do not have."""
    view = _message_view(fields or MESSAGE_DEFAULTS)
    thread = _Thread(reader, conversation)
    nodes = []
    # "You can only get details about the 20 most recent": older ones "come back without fields".
    oldest = oldest_readable(conversation, reader.readable) if fields is not None else None
    for message in messages:
        if oldest is not None and message.key < oldest:
            nodes.append({"id": message.message_id})
            continue
        node = {}
        for name, value_of in view:
            value = value_of(message, thread)
            if value is not None:
                node[name] = value
        nodes.append(node)
    return nodes


def messages_edge(
    conversation: Conversation, fields: Fields | None, parameters: dict[str, str], reader: Reader
) -> dict[str, Any]:
    """A page of a thread, newest first: the answer of `/{conversation}/messages` and of the nested field."""
    owner = conversation.thread_id
    part = requested_slice(reader.list_of(owner), parameters, reader.max_messages)
    found, newer, older = reader.population.messages_newest_first(
        conversation, part.limit, part.after, part.before
    )
    data = render_messages(found, conversation, fields, reader)
    if not found:
        return {"data": data}
    forwarded = {"limit": str(part.limit)}
    if fields is not None:
        forwarded["fields"] = fields.source
    cursors = part.cursors(found[0].key, found[-1].key, len(found))
    return {
        "data": data,
        "paging": paging(reader.link, f"{owner}/messages", forwarded, cursors, newer, older),
    }


# -- conversations


def _snippet(conversation: Conversation, reader: Reader) -> str | None:
    messages = reader.population.visible_messages(conversation)
    if not messages:
        return None
    last = messages[-1]
    if last.text:
        return last.text[:120]
    if last.outbound:
        return "You sent an attachment."
    return f"{conversation.name} sent an attachment." if conversation.name else None


def _unread(conversation: Conversation, reader: Reader) -> int | None:
    count = reader.population.unread_count(conversation)
    # Some threads leave a zero out, some show it; both were recorded.
    return None if count == 0 and conversation.index % 3 == 0 else count


def _nested_messages(field: Field) -> ConversationField:
    parameters = dict(field.modifiers)

    def edge(conversation: Conversation, reader: Reader) -> dict[str, Any] | None:
        answer = messages_edge(conversation, field.fields, parameters, reader)
        return answer if answer["data"] else None

    if field.fields is not None:
        _message_view(field.fields)  # an unknown field fails the call even when no thread is shown
    return edge


def _conversation_field(field: Field) -> ConversationField:
    names = _names(field)
    match field.name:
        case "id" | "scoped_thread_key":
            return lambda conversation, reader: conversation.thread_id
        case "updated_time":
            return lambda conversation, reader: graph_time(conversation.updated_ms)
        case "message_count":
            return lambda conversation, reader: conversation.message_count
        case "unread_count":
            return _unread
        case "snippet":
            return _snippet
        case "link":
            return lambda conversation, reader: (
                f"/{reader.population.page_id}/inbox/{reader.population.scramble(conversation.index, 2)}/"
            )
        case "participants" | "senders":

            def people(conversation: Conversation, reader: Reader) -> dict[str, Any] | None:
                if conversation.kind == "gone" and conversation.index % 2:
                    return None
                return _wrap(names, _participants(conversation, reader))

            return people
        case "former_participants":
            return lambda conversation, reader: {"data": []}
        case "can_reply":
            return lambda conversation, reader: conversation.kind != "gone"
        case "is_subscribed":
            return lambda conversation, reader: True
        case "folder":
            return lambda conversation, reader: folder(conversation, reader.requests)
        case "messages":
            return _nested_messages(field)
        case "name" | "wallpaper" | "linked_group" | "is_owner" | "tags":
            return lambda conversation, reader: None
    raise unknown_field(field.name, "UnifiedThread")


@lru_cache(maxsize=256)
def _conversation_view(fields: Fields) -> tuple[tuple[str, ConversationField], ...]:
    return tuple((field.name, _conversation_field(field)) for field in _with_id(fields))


def render_conversations(
    conversations: Iterable[Conversation], fields: Fields | None, reader: Reader
) -> list[dict[str, Any]]:
    """Threads as Graph nodes. Raises GraphError for a field that threads do not have."""
    view = _conversation_view(fields or CONVERSATION_DEFAULTS)
    nodes = []
    for conversation in conversations:
        node = {}
        for name, value_of in view:
            value = value_of(conversation, reader)
            if value is not None:
                node[name] = value
        nodes.append(node)
    return nodes
