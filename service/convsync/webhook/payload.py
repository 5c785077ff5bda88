"""A webhook delivery: raw bytes -> facts, without I/O.

    {"object": "page", "entry": [{"id": ID, "time": T, "messaging": [..], "standby": [..], "changes": [..]}]}

One delivery may hold up to a thousand updates of several Pages. What cannot be understood becomes a dead
letter of its own and its siblings pass; only a body that is no envelope at all is refused. The raw bytes
of a dead letter are those of the delivery without the other items: the item is in it byte for byte, and
`parse(letter.raw, ..)` replays it.
https://developers.facebook.com/docs/messenger-platform/webhooks
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from convsync.facts import DeadLetter, Fact, Json, Message, clean, digest_id, drift_name
from convsync.webhook.events import (
    NO_PERSON,
    NotUnderstoodError,
    person_of,
    read_event,
    validated,
)
from convsync.webhook.models import Id, Instant, LabelChange, ThreadChange
from convsync.webhook.source import CHANNELS, ENTRY_KEYS, Source

_OBJECTS = frozenset(("page", "instagram"))
_CHANGE_KEYS = frozenset(("field", "value"))
# What writes the facts out again nests at most 254 deep; fewer brackets than this cannot be too many.
_SURELY_SHALLOW = 200
_ROOM_AROUND = 8

# orjson rounds an integer beyond 64 bits to a double; it has at least so many digits.
_ALL_ZERO = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS = b"0" * 19

_id = TypeAdapter[str](Id).validate_python
_instant = TypeAdapter[datetime](Instant).validate_python


class UnreadableError(ValueError):
    """The body as a whole is refused (HTTP 400): it is no webhook delivery."""


class NotJson(UnreadableError):
    """The body is not JSON (or nested deeper than any delivery is)."""


class NotAnEnvelope(UnreadableError):
    """The body is JSON, but neither `{"object", "entry": []}` nor a dashboard test `{"field", "value"}`."""


@dataclass(slots=True)
class Delivery:
    """What one delivery says.

    `unknown` are (page_id, name) of what nobody here has heard of (kinds of event, fields, channels), once
    per occurrence: schema drift, to be counted. The page_id is empty where no Page is named.
    `threads_to_read` are (page_id, thread_id) of `conversations` changes, which tell that a thread changed
    but not how.
    """

    facts: list[Fact] = field(default_factory=list)
    pages: set[str] = field(default_factory=set)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    threads_to_read: list[tuple[str, str]] = field(default_factory=list)
    source: Source = field(default_factory=lambda: Source(b"", alone=True), repr=False, compare=False)

    @property
    def size(self) -> int:
        """About how many bytes it keeps: as it came, and its dead letters."""
        return len(self.source) + sum(len(fact.raw) for fact in self.facts if isinstance(fact, DeadLetter))

    def bytes_of(self, fact: Fact) -> bytes:
        """The delivery as it came, without the items that this fact (of `facts`, the object) is not from."""
        return self.source.of(next(place for place, one in enumerate(self.facts) if one is fact))


def parse(raw: bytes, received_at: datetime) -> Delivery:
    """The facts of a delivery whose signature was verified. Raises NotJson or NotAnEnvelope only.

    `received_at` (timezone-aware) stands in for the time of an event where neither it nor its entry has one.
    """
    body, exact = _load(raw)
    if not isinstance(body, dict):
        raise NotAnEnvelope("the body is not an object")
    kind, entries = body.get("object"), body.get("entry")
    if isinstance(kind, str) and isinstance(entries, list):
        reader = _Reader(Source(raw, alone=_holds_one(entries)), kind, received_at, exact)
        for key, value in body.items():
            if key not in ("object", "entry"):
                reader.drift("", key)
                reader.around[key] = value
        for number, entry in enumerate(entries):
            reader.entry(number, entry)
        return reader.delivery
    if isinstance(body.get("field"), str) and "value" in body and "entry" not in body:
        reader = _Reader(Source(raw, alone=True), "page", received_at, exact)
        reader.bare(body)
        return reader.delivery
    raise NotAnEnvelope("the body has no `object` and list `entry`")


def _holds_one(entries: list[Any]) -> bool:
    """Whether a delivery has a single item, so that its bytes are the bytes of that."""
    if len(entries) != 1 or not isinstance(entries[0], dict):
        return len(entries) == 1
    return sum(len(value) for value in entries[0].values() if isinstance(value, list)) <= 1


def _load(raw: bytes) -> tuple[Any, bool]:
    """The body, and whether all of it can be stored as it is."""
    if _MANY_DIGITS not in raw.translate(_ALL_ZERO):
        try:
            return orjson.loads(raw), raw.count(b"[") + raw.count(b"{") < _SURELY_SHALLOW
        except ValueError:
            pass
    # orjson refuses lone surrogates, which people do manage to type, and numbers beyond a double.
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse, parse_float=_number), False
    except (ValueError, RecursionError):
        raise NotJson("the body is not JSON") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity are Python's, not JSON's


def _number(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits


class _Reader:
    """Walks one delivery. Not `exact`: each item is checked, and cleaned, before it is read."""

    def __init__(self, source: Source, kind: str, received_at: datetime, exact: bool) -> None:
        self.source = source
        self.kind = kind
        self.received_at = received_at
        self.exact = exact
        self.around: Json = {}  # fields of the delivery that nobody has heard of
        self.delivery = Delivery(source=source)

    def drift(self, page_id: str, *path: str) -> None:
        self.delivery.unknown.append((page_id, drift_name(*path)))

    def dead(self, page_id: str, reason: str, *part: Any) -> None:
        """Keep a part of the delivery: see Source.part."""
        self.delivery.facts.append(DeadLetter(page_id, reason, self.source.part(*part)))

    def entry(self, number: int, entry: object) -> None:
        if self.kind not in _OBJECTS:
            self.drift("", "object", self.kind)
            self.dead("", "object: neither page nor instagram", number)
            return
        if not isinstance(entry, dict):
            self.dead("", "entry: not an object", number)
            return
        try:
            page_id = _id(entry.get("id"))
        except ValidationError as error:
            self.dead("", f"entry.id: {error.errors()[0]['msg']}", number)
            return
        self.delivery.pages.add(page_id)
        entry_time = self._time(page_id, entry.get("time"))
        around = {key: v for key, v in entry.items() if key not in ENTRY_KEYS and not isinstance(v, list)}
        unheard = self._storable({**self.around, **({"entry": around} if around else {})})
        understood = False
        for channel in CHANNELS:
            items = entry.get(channel)
            if items is None:
                continue
            understood = True
            if not isinstance(items, list):
                self.dead(page_id, f"entry.{channel}: not a list", number, channel)
                continue
            for place, item in enumerate(items):
                if channel == "changed_fields":
                    named = item if isinstance(item, str) else type(item).__name__
                    self.drift(page_id, "changed_fields", named)
                    continue
                self.source.told(len(self.delivery.facts), number, channel, place)
                problems = self._item(page_id, channel, item, entry_time, unheard)
                if problems:
                    self.dead(page_id, "; ".join(problems), number, channel, place)
        for key, value in entry.items():
            if key not in ENTRY_KEYS:
                self.drift(page_id, "entry", key)
                if isinstance(value, list) and value:  # it may be a new channel: nothing is dropped
                    understood = True
                    self.dead(page_id, f"{drift_name('entry', key)}: not a known list", number, key)
        if not understood:
            self.dead(page_id, "entry: none of messaging, standby, changes", number)

    def bare(self, change: Json) -> None:
        """`{"field", "value"}`: what the App Dashboard's test button sends. It names no entry."""
        value = change["value"]
        page_id = _page_of(value) if isinstance(value, dict) else None
        if page_id is None:
            self.dead("", "value: names no Page", 0)
            return
        self.delivery.pages.add(page_id)
        problems = self._item(page_id, "changes", change, None, {})
        if problems:
            self.dead(page_id, "; ".join(problems), 0)

    def _time(self, page_id: str, value: object) -> datetime | None:
        if value is None:
            return None
        try:
            return _instant(value)
        except ValidationError:
            self.drift(page_id, "entry", "time")
            return None

    def _storable(self, around: Json) -> Json:
        """`around`, without what cannot be stored."""
        if self.exact or not around:
            return around
        kept = {}
        for key, value in clean(around).items():
            try:
                orjson.dumps(_wrapped(value))
            except (TypeError, RecursionError):
                continue
            kept[key] = value
        return kept

    def _item(
        self, page_id: str, channel: str, item: object, entry_time: datetime | None, around: Json
    ) -> list[str]:
        """Add the item's facts; answers why it, or a part of it, was not understood."""
        if not isinstance(item, dict):
            return [f"{channel}: not an object"]
        if not self.exact:
            try:
                storable: Json = clean(item)
                orjson.dumps(_wrapped(storable))
            except (TypeError, RecursionError):
                return [f"{channel}: nested too deeply"]
            item = storable
        if channel == "changes":
            return self._change(page_id, item, entry_time, around)
        return self._event(page_id, item, channel == "standby", entry_time, around)

    def _event(
        self, page_id: str, event: Json, standby: bool, entry_time: datetime | None, around: Json
    ) -> list[str]:
        names: list[str] = []
        outcome = read_event(
            page_id,
            event,
            standby=standby,
            entry_time=entry_time,
            received_at=self.received_at,
            around=around,
            drift=names,
        )
        self.delivery.unknown += [(page_id, name) for name in names]
        self.delivery.facts += outcome.facts
        return outcome.problems

    def _change(self, page_id: str, change: Json, entry_time: datetime | None, around: Json) -> list[str]:
        name, value = change.get("field"), change.get("value")
        if not isinstance(name, str) or not name:
            return ["changes.field: must be a string"]
        if not isinstance(value, dict):
            return [f"changes.{drift_name(name)}: the value is not an object"]
        for key in change:
            if key not in _CHANGE_KEYS:
                self.drift(page_id, "changes", key)
        try:
            if name == "conversations":
                thread = validated(ThreadChange, value, "changes.conversations")
                for key in thread.model_extra or ():
                    self.drift(page_id, name, key)
                self.delivery.threads_to_read.append((page_id, thread.thread_id))
                return []
            if name == "inbox_labels":
                return self._label(page_id, {**change, **around}, value, entry_time)
        except NotUnderstoodError as problem:
            return [str(problem)]
        if "sender" in value or "recipient" in value:
            # Messaging fields come like this from the dashboard, and on some Instagram subscriptions.
            return self._event(page_id, value, False, entry_time, around)
        self.drift(page_id, "changes", name)
        return [f"{NO_PERSON}: {drift_name('changes', name)}"]

    def _label(self, page_id: str, change: Json, value: Json, entry_time: datetime | None) -> list[str]:
        told = validated(LabelChange, value, "changes.inbox_labels")
        for key in told.model_extra or ():
            self.drift(page_id, "inbox_labels", key)
        person = person_of(told.user)
        if person is None or person == page_id:
            return [f"{NO_PERSON}: inbox_labels"]
        stamp = entry_time or datetime.fromtimestamp(0, self.received_at.tzinfo)
        self.delivery.facts.append(
            Message(
                page_id=page_id,
                sender_id=person,
                message_id=digest_id(page_id, person, stamp, "inbox_labels", value),
                direction="in",
                at=entry_time or self.received_at,
                event_type="inbox_labels",
                metadata={"webhook": change},
                in_thread=False,
            )
        )
        return []


def _wrapped(item: Json) -> Any:
    """The item as deep as it will be inside the JSON of its fact."""
    nested: Any = item
    for _ in range(_ROOM_AROUND):
        nested = [nested]
    return nested


def _page_of(value: Json) -> str | None:
    """The Page of a bare change: who received the event, or who sent an echo, or as `page_id` says."""
    message = value.get("message")
    echo = isinstance(message, dict) and message.get("is_echo") is True
    party = value.get("sender" if echo else "recipient")
    candidate = party.get("id") if isinstance(party, dict) else value.get("page_id")
    try:
        return _id(candidate)
    except ValidationError:
        return None
