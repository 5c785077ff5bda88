"""A thread as a person expects to read a chat: oldest first, by day, with what became of each message.

From the events as `list_events` gives them. What the platform said lies in `metadata`, in its own words and
never checked by anybody: whatever shape it has, this makes something of it that can be shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from types import MappingProxyType
from typing import Any

from convsync.facts import Json
from convsync.web.views import web_address

_EMOJI = {
    "love": "❤️",
    "smile": "😆",
    "wow": "😮",
    "sad": "😢",
    "angry": "😠",
    "like": "👍",
    "dislike": "👎",
}
_QUOTED = 120


@dataclass(frozen=True, slots=True)
class Attachment:
    """`link` only if it is an address of the web; `octets` if its size is known."""

    kind: str
    name: str
    octets: int | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Reaction:
    emoji: str
    name: str
    by_page: bool


@dataclass(slots=True)
class Entry:
    """One event. `note` says what kind it is, if it is no message; `gone` that it was taken back."""

    message_id: str
    by_page: bool
    at: str
    text: str | None
    edited_at: str | None
    gone: bool
    note: str | None
    in_thread: bool
    attachments: list[Attachment] = field(default_factory=list)
    reactions: list[Reaction] = field(default_factory=list)
    answers: str | None = None
    receipt: str | None = None


def answered_elsewhere(events: Sequence[Json]) -> set[str]:
    """The ids of messages that some of these reply to, and that are not among them."""
    shown = {event["message_id"] for event in events}
    return {_answered(event) for event in events if event["deleted_at"] is None} - shown - {""}


def read_thread(
    conversation: Json,
    events: Sequence[Json],
    *,
    newest: bool = True,
    elsewhere: Mapping[str, str | None] = MappingProxyType({}),
) -> list[tuple[str, list[Entry]]]:
    """(time of the first, entries) of each day. `newest`: this is the thread's end; it has the receipts.

    `elsewhere`: the texts of messages that these reply to, if not among them.
    """
    texts = dict(elsewhere) | {
        event["message_id"]: event["body"] if event["deleted_at"] is None else None for event in events
    }
    entries = [_entry(event, conversation["page_id"], texts) for event in reversed(events)]
    if newest:
        _mark_receipts(entries, conversation)
    days = groupby(entries, key=lambda entry: entry.at[:10])
    return [(found[0].at, found) for found in (list(group) for _, group in days)]


def _entry(event: Json, page_id: str, texts: Mapping[str, str | None]) -> Entry:
    told = event["metadata"]
    entry = Entry(
        message_id=event["message_id"],
        by_page=event["direction"] == "out",
        at=event["event_timestamp"],
        text=event["body"],
        edited_at=event["edited_at"],
        gone=event["deleted_at"] is not None,
        note=None if event["event_type"] == "message" else event["event_type"],
        in_thread=event["in_thread"],
    )
    if entry.gone:
        entry.text = None  # whoever took it back did not want it to be read
        return entry
    entry.attachments = list(_attachments(_part(told, "webhook"), _part(told, "graph")))
    entry.reactions = [
        Reaction(
            _text(one.get("emoji")) or _EMOJI.get(_text(one.get("reaction")), "•"),
            _text(one.get("reaction")) or "reaction",
            one.get("actor") == page_id,
        )
        for one in _list(told.get("reactions"))
    ]
    answered = _answered(event)
    if answered in texts:
        entry.answers = (texts[answered] or "a message")[:_QUOTED]
    return entry


def _answered(event: Json) -> str:
    """The id of the message that it replies to; empty without one."""
    told = event["metadata"]
    answered = _part(_part(told, "webhook"), "reply_to") or _part(_part(told, "graph"), "reply_to")
    return _text(answered.get("mid") or answered.get("id"))


def _mark_receipts(entries: Sequence[Entry], conversation: Json) -> None:
    """`Delivered` and `Read` stand at the newest message of the Page that they reach."""
    for name, label in (("delivered_watermark", "Delivered"), ("read_watermark", "Read")):
        if conversation[name] is None:
            continue
        until = datetime.fromisoformat(conversation[name])
        for entry in reversed(entries):
            if entry.by_page and entry.in_thread and datetime.fromisoformat(entry.at) <= until:
                entry.receipt = label  # what was read was delivered
                break


def _attachments(webhook: Json, graph: Json) -> Iterator[Attachment]:
    """Those that Graph told, which say more; else those of the webhook."""
    told = _list(graph.get("attachments"))
    for one in told:
        picture, film = _part(one, "image_data"), _part(one, "video_data")
        kind = "image" if picture else "video" if film else _text(one.get("mime_type")).partition("/")[0]
        link = one.get("file_url") or film.get("url") or picture.get("url")
        yield Attachment(
            kind or "file", _text(one.get("name")) or kind or "file", _octets(one), web_address(link)
        )
    if not told:
        for one in _list(webhook.get("attachments")):
            kind, payload = _text(one.get("type")) or "file", _part(one, "payload")
            name = _text(payload.get("title")) or _text(one.get("title")) or kind
            yield Attachment(kind, name, None, web_address(payload.get("url")) or web_address(one.get("url")))
    for one in _list(graph.get("shares")):
        name = _text(one.get("name")) or _text(one.get("description")) or _text(one.get("link"))
        yield Attachment("link", name or "link", None, web_address(one.get("link")))
    if isinstance(graph.get("sticker"), str):
        yield Attachment("sticker", "sticker", None, web_address(graph["sticker"]))


def _octets(one: Json) -> int | None:
    size = one.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _part(value: Json, name: str) -> Json:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _list(value: Any) -> list[Json]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
