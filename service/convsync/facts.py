"""Facts: the one vocabulary that webhook deliveries and Graph reads both become.

A fact says what somebody stated about the Page's conversations; it never says what to do. Facts of
one kind commute and may repeat: the SQL function `convsync_api.ingest` merges them so that any order,
any repetition and any split into batches of the same facts gives the same mirror. `docs/functions.md`
has the JSON of each kind; `as_json()` here is its only producer in the service.

Every fact carries `page_id` and, but for a dead letter and an event of the Page itself, `sender_id`: the
Page-scoped id of the customer whose conversation it belongs to (never the Page itself), or
`thread_key(thread_id)` where the platform names no customer.

Times are timezone-aware `datetime`s. PostgreSQL's text cannot hold U+0000 and JSON text cannot hold
lone surrogates; `clean()` replaces both by U+FFFD, and every string of a fact passes through it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import orjson

Json: TypeAlias = dict[str, Any]
Direction: TypeAlias = Literal["in", "out"]

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LONG_NUMBER = re.compile(r"[0-9]{5,}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def clean(value: Any) -> Any:
    """Replace what PostgreSQL's text or JSON cannot hold (U+0000, lone surrogates), at any depth."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    return value


def drift_name(*path: str) -> str:
    """A name for something unheard of that is safe to log and to keep: printable, short, nobody's id."""
    name = _LONG_NUMBER.sub("#", ".".join(path))[:100]
    return (name if name.isprintable() else ascii(name)[1:-1]) or "(empty)"


def instant(milliseconds: int) -> datetime:
    """The instant `milliseconds` after the Unix epoch; exact, unlike `datetime.fromtimestamp`."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def thread_key(thread_id: str) -> str:
    """The `sender_id` of a thread whose customer has no id (a deleted account)."""
    return f"thread:{thread_id}"


def digest_id(page_id: str, sender_id: str, at: datetime, kind: str, payload: object) -> str:
    """A stable `message_id` for an event the platform gives none.

    The same delivery, repeated, gives the same id; a different one of the same kind does not.
    """
    body = orjson.dumps(
        [page_id, sender_id, at.isoformat(), kind, clean(payload)], option=orjson.OPT_SORT_KEYS
    )
    return "evt_" + hashlib.sha256(body).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Message:
    """One message (or an event with a message id of its own), as one source told it.

    `observed_at` is set for a Graph read: the database's clock when the call was granted; `thread_id` is
    the thread that listed it. A message without them was told by a webhook. `in_thread` is false for events
    that are no message of the thread (a referral, a hand-over): they are kept, but neither counted nor
    shown as the last message. `metadata` has one key per source (`webhook`, `graph`); what Graph said of
    reactions is in `metadata["graph"]["reactions"]`, a list of `{"actor", "reaction", "emoji"}`.
    """

    page_id: str
    sender_id: str
    message_id: str
    direction: Direction
    at: datetime
    text: str | None = None
    event_type: str = "message"
    metadata: Json = field(default_factory=dict)
    observed_at: datetime | None = None
    in_thread: bool = True
    thread_id: str | None = None

    def as_json(self) -> Json:
        """Without what has its default: most messages are plain, and PostgreSQL reads each key it is sent."""
        document: Json = {
            "kind": "message",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "message_id": self.message_id,
            "direction": self.direction,
            "at": self.at,
        }
        if self.text is not None:
            document["text"] = self.text
        if self.event_type != "message":
            document["event_type"] = self.event_type
        if self.metadata:
            document["metadata"] = self.metadata
        if self.observed_at is not None:
            document["observed_at"] = self.observed_at
        if not self.in_thread:
            document["in_thread"] = False
        if self.thread_id is not None:
            document["thread_id"] = self.thread_id
        return document


@dataclass(frozen=True, slots=True)
class Edit:
    """A message was edited; may arrive before the message. `num_edit` counts its edits from 1."""

    page_id: str
    sender_id: str
    message_id: str
    at: datetime
    num_edit: int
    text: str

    def as_json(self) -> Json:
        return {
            "kind": "edit",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "message_id": self.message_id,
            "at": self.at,
            "num_edit": self.num_edit,
            "text": self.text,
        }


@dataclass(frozen=True, slots=True)
class Reaction:
    """`actor_id` reacted to a message, or took the reaction back; may arrive before the message."""

    page_id: str
    sender_id: str
    message_id: str
    at: datetime
    actor_id: str
    action: Literal["react", "unreact"]
    reaction: str | None = None
    emoji: str | None = None

    def as_json(self) -> Json:
        return {
            "kind": "reaction",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "message_id": self.message_id,
            "at": self.at,
            "actor_id": self.actor_id,
            "action": self.action,
            "reaction": self.reaction,
            "emoji": self.emoji,
        }


@dataclass(frozen=True, slots=True)
class Unsend:
    """A message was taken back. Final; may arrive before the message."""

    page_id: str
    sender_id: str
    message_id: str
    at: datetime

    def as_json(self) -> Json:
        return {
            "kind": "unsend",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "message_id": self.message_id,
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class Absence:
    """Graph listed the part of the thread where this message was, and not the message, at `observed_at`.

    A read that shows it later brings it back. May be told before the message.
    """

    page_id: str
    sender_id: str
    message_id: str
    observed_at: datetime

    def as_json(self) -> Json:
        return {
            "kind": "absence",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "message_id": self.message_id,
            "observed_at": self.observed_at,
        }


@dataclass(frozen=True, slots=True)
class Watermark:
    """The customer has read (or was delivered) every message of the Page up to `at`."""

    page_id: str
    sender_id: str
    what: Literal["read", "delivered"]
    at: datetime

    def as_json(self) -> Json:
        return {
            "kind": "watermark",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "what": self.what,
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class Thread:
    """A snapshot of a conversation as Graph listed it at `observed_at`.

    `fields` holds the requested fields only, of `name`, `unread_count`, `snippet`, `can_reply`,
    `reported_count` (Graph's `message_count`) and `updated_time`; requested but absent is `None`.
    """

    page_id: str
    sender_id: str
    thread_id: str
    observed_at: datetime
    fields: Json

    def as_json(self) -> Json:
        return {
            "kind": "thread",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "thread_id": self.thread_id,
            "observed_at": self.observed_at,
            "fields": self.fields,
        }


@dataclass(frozen=True, slots=True)
class Gone:
    """Graph confirmed to a direct read, granted at `observed_at`, that it has no such conversation.

    A later message or snapshot brings the conversation back.
    """

    page_id: str
    sender_id: str
    observed_at: datetime

    def as_json(self) -> Json:
        return {
            "kind": "gone",
            "page_id": self.page_id,
            "sender_id": self.sender_id,
            "observed_at": self.observed_at,
        }


@dataclass(frozen=True, slots=True)
class PageEvent:
    """Something the platform told the Page about itself: a policy notice, the roles of its apps."""

    page_id: str
    event_id: str
    at: datetime
    event_type: str
    metadata: Json = field(default_factory=dict)

    def as_json(self) -> Json:
        return {
            "kind": "page_event",
            "page_id": self.page_id,
            "message_id": self.event_id,
            "at": self.at,
            "event_type": self.event_type,
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What could not be understood, with its raw bytes and the reason. `page_id` is empty if unknown."""

    page_id: str
    reason: str
    raw: bytes

    def as_json(self) -> Json:
        return {
            "kind": "dead_letter",
            "page_id": self.page_id,
            "reason": self.reason,
            "raw": base64.b64encode(self.raw).decode("ascii"),
        }


Fact: TypeAlias = (
    Message | Edit | Reaction | Unsend | Absence | Watermark | Thread | Gone | PageEvent | DeadLetter
)


def dump(facts: Iterable[Fact]) -> str:
    """The JSON array that `convsync_api.ingest` takes."""
    return (b"[" + b",".join(map(_dump_one, facts)) + b"]").decode("utf-8")


def _dump_one(fact: Fact) -> bytes:
    """One fact; `clean` walks through all of it, so only one that needs it is cleaned."""
    document = fact.as_json()
    try:
        raw = orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except TypeError:
        raw = b""  # a lone surrogate, or a number beyond 64 bits
    if raw and b"\\u0000" not in raw:
        return raw
    return orjson.dumps(clean(document), option=orjson.OPT_UTC_Z)
