"""From the rows of the old system to facts: what they say, what was wrong with them, what cannot be used.

No I/O. A row is JSON as its database made it. Whatever is not understood becomes a dead letter with the row
in it, so nothing is dropped; what merely repeats something is counted.

A message is known by its id alone. An event without one is never given an id of ours: the next sync brings
the same message under its own, and it would be there twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from convsync.adopt.source import (
    CONVERSATIONS,
    EVENTS,
    NO_IDS,
    UNREADABLE,
    Person,
)
from convsync.facts import DeadLetter, Direction, Fact, Json, Message, Thread, drift_name
from convsync.webhook.models import MAX_ID, MAX_MID

# Before every read of Graph: a name that only the old system tells gives way to the first that Graph does.
HEARSAY: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Of one person so many events without an id are compared with those that have one; more are not.
COMPARED: Final = 20_000

_DIRECTIONS: Final[dict[str, Direction]] = {"message_received": "in", "message_sent": "out"}
_TYPES: Final = frozenset((*_DIRECTIONS, "message", "postback"))
_WORDS: Final[dict[str, Direction]] = {
    "in": "in",
    "inbound": "in",
    "incoming": "in",
    "received": "in",
    "out": "out",
    "outbound": "out",
    "outgoing": "out",
    "sent": "out",
}
_TEXTS: Final = ("text", "message", "message_text", "body")
_STATUS_LENGTH: Final = 64


class UnusableError(Exception):
    """A row that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Letter(DeadLetter):
    """A dead letter that says which message it seems to be; without `sender_id` it seems to be none."""

    sender_id: str | None = None
    at: datetime | None = None
    direction: Direction | None = None
    text: str | None = None

    def as_json(self) -> Json:
        document = DeadLetter.as_json(self)
        if self.sender_id is not None and self.at is not None:
            document |= {
                "sender_id": self.sender_id,
                "at": self.at,
                "direction": self.direction,
                "text": self.text,
            }
        return document


@dataclass(slots=True)
class Damage:
    """What the old rows are and what was wrong with them. Counts are of rows unless they say otherwise.

    Every event is exactly one of: a message (`messages`), a copy of one (`events_doubled`), one without an
    id whose message is there under its id (`twins`), one without an id that stays unexplained (`nameless`),
    unusable (`unusable`, by reason).
    """

    conversations: int = 0
    events: int = 0
    people: int = 0
    messages: int = 0
    people_doubled: int = 0
    conversations_doubled: int = 0
    messages_doubled: int = 0
    events_doubled: int = 0
    copies_disagree: int = 0
    twins: int = 0
    nameless: int = 0
    counts_wrong: int = 0
    last_messages_lost: int = 0
    statuses_conflicting: int = 0
    conversations_unusable: int = 0
    unusable: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Nameless:
    """An event without a message id that waits for one with the same words at the same second."""

    letter: Letter
    twin: bool = False


class PersonReader:
    """Reads one person's rows: `event` for each of their events in order, then `end`. Both give facts."""

    def __init__(self, person: Person, damage: Damage, as_of: datetime) -> None:
        self._person = person
        self._damage = damage
        self._latest = as_of + timedelta(days=1)
        # Empty if it is none: what is said of it belongs to no Page.
        self.page_id = person.page_id if _is_id(person.page_id) else ""
        self._usable = bool(self.page_id and _is_id(person.sender_id)) and not (
            person.sender_id == person.page_id or person.sender_id.startswith("erased:")
        )
        self._nameless: dict[tuple[datetime, Direction, str | None], list[_Nameless]] = {}
        self._compared = 0
        self._last: Message | None = None
        self._doubled: str | None = None
        self._messages = 0
        # The seconds at which a conversation says that its last message was, and which no event has.
        self._lost: dict[datetime, Json] = {}
        damage.conversations += len(person.rows)

    @property
    def standing(self) -> str | None:
        """The status that the old system had of this person; None if it had none."""
        statuses = [_text(row.get("conversation_status")) for row in _newest_first(self._person.rows)]
        told = [one for one in statuses if one and len(one) <= _STATUS_LENGTH]
        return told[0] if told and self._usable else None

    def begin(self) -> Iterator[Fact]:
        """The person themselves, with their name."""
        person, damage = self._person, self._damage
        if not self._usable:
            damage.conversations_unusable += len(person.rows)
            for row in person.rows:
                yield self._letter("a conversation with nobody", CONVERSATIONS, row)
            return
        damage.people += 1
        damage.conversations_doubled += len(person.rows) - 1
        damage.people_doubled += len(person.rows) > 1
        rows = _newest_first(person.rows)
        statuses = {_text(row.get("conversation_status")) for row in rows} - {None}
        damage.statuses_conflicting += len(statuses) > 1
        names = [_text(row.get("sender_name")) for row in rows]
        name = next((one for one in names if one), None)
        fields: Json = {} if name is None else {"name": name}
        yield _Name(person.page_id, person.sender_id, "", HEARSAY, fields)
        for row in rows:
            at = _time(row.get("last_message_time"))
            if at is not None and at <= self._latest:
                self._lost.setdefault(at.replace(microsecond=0), row)

    def event(self, message_id: str | None, row: Json) -> Iterator[Fact]:
        """What one event tells."""
        damage = self._damage
        damage.events += 1
        try:
            if not self._usable:
                raise UnusableError("its conversation names no person")
            if len(message_id or "") > MAX_MID:
                raise UnusableError(f"message_id is longer than {MAX_MID} characters")
            message = self._message(message_id or "", row)
        except UnusableError as error:
            damage.unusable[str(error)] += 1
            yield self._letter(f"an event that cannot be used: {error}", EVENTS, row)
            return
        second = message.at.replace(microsecond=0)
        self._lost.pop(second, None)
        key = (second, message.direction, message.text)
        if message_id is None:
            letter = self._letter("an event without message id", EVENTS, row, message)
            if self._compared >= COMPARED:
                damage.nameless += 1
                yield letter
                return
            self._compared += 1
            self._nameless.setdefault(key, []).append(_Nameless(letter))
            return
        for waiting in self._nameless.get(key, ()):
            waiting.twin = True
        if self._last is None or self._last.message_id != message_id:
            damage.messages += 1
            self._messages += 1
        else:
            damage.events_doubled += 1
            if self._doubled != message_id:
                self._doubled = message_id
                damage.messages_doubled += 1
            if message == self._last:
                return
            damage.copies_disagree += 1
        self._last = message
        yield message

    def end(self) -> Iterator[Fact]:
        """What is left when all events were told: those without an id, lost last words."""
        damage = self._damage
        for waiting in [one for group in self._nameless.values() for one in group]:
            if waiting.twin:
                damage.twins += 1
            else:
                damage.nameless += 1
                yield waiting.letter
        if not self._usable:
            return
        for row in self._person.rows:
            told = row.get("message_count")
            damage.counts_wrong += told is not None and told != self._messages
        for second, row in self._lost.items():
            damage.last_messages_lost += 1
            yield Letter(
                page_id=self._person.page_id,
                reason="the last message of a conversation that has no event",
                raw=_raw(CONVERSATIONS, row, self._person),
                sender_id=self._person.sender_id,
                at=second,
                text=_text(row.get("last_message")),
            )

    def _message(self, message_id: str, row: Json) -> Message:
        metadata = row.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        if UNREADABLE in row or UNREADABLE in metadata:
            raise UnusableError("its JSON cannot be read")
        event_type = _text(row.get("event_type")) or ""
        if event_type not in _TYPES:
            raise UnusableError(
                f"event_type {drift_name(event_type)}" if event_type else "event_type is missing"
            )
        at = _time(row.get("event_timestamp"))
        if at is None:
            raise UnusableError("event_timestamp is no time")
        if at > self._latest:
            raise UnusableError("event_timestamp lies in the future")
        text_key = next((key for key in _TEXTS if _text(metadata.get(key))), None)
        rest = {key: value for key, value in metadata.items() if key not in ("message_id", text_key)}
        return Message(
            page_id=self._person.page_id,
            sender_id=self._person.sender_id,
            message_id=message_id,
            direction=self._direction(event_type, row, metadata),
            at=at,
            text=None if text_key is None else metadata[text_key],
            event_type="postback" if event_type == "postback" else "message",
            metadata={"adopted": rest} if _says_something(rest) else {},
        )

    def _direction(self, event_type: str, row: Json, metadata: Json) -> Direction:
        if event_type in _DIRECTIONS:
            return _DIRECTIONS[event_type]
        for value in (row.get("direction"), metadata.get("direction")):
            if isinstance(value, str) and value.lower() in _WORDS:
                return _WORDS[value.lower()]
        for value in (row.get("is_outbound"), metadata.get("is_outbound"), metadata.get("is_echo")):
            if isinstance(value, bool):
                return "out" if value else "in"
        author = metadata.get("from")
        author = author.get("id") if isinstance(author, dict) else metadata.get("from_id")
        if author is not None and str(author) in (self._person.page_id, self._person.sender_id):
            return "out" if str(author) == self._person.page_id else "in"
        if event_type == "postback":
            return "in"
        raise UnusableError("nothing says who wrote it")

    def _letter(self, reason: str, table: str, row: Json, seems: Message | None = None) -> Letter:
        return Letter(
            page_id=self.page_id,
            reason=reason,
            raw=_raw(table, row, self._person),
            sender_id=seems.sender_id if seems else None,
            at=seems.at if seems else None,
            direction=seems.direction if seems else None,
            text=seems.text if seems else None,
        )


@dataclass(frozen=True, slots=True)
class _Name(Thread):
    """A snapshot that knows of no thread: whose thread it was, the old system did not keep."""

    def as_json(self) -> Json:
        document = Thread.as_json(self)
        del document["thread_id"]
        return document


def orphan(row: Json, damage: Damage) -> Letter:
    """An event of a conversation that is not there."""
    damage.events += 1
    damage.unusable["its conversation is not there"] += 1
    reason = "an event that cannot be used: its conversation is not there"
    return Letter(page_id="", reason=reason, raw=_raw(EVENTS, row))


def _raw(table: str, row: Json, person: Person | None = None) -> bytes:
    """The row, and whose it is: an erasure looks for people by their ids."""
    document: Json = {"table": table, "row": row}
    if person is not None:
        document |= {"page_id": person.page_id, "sender_id": person.sender_id}
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def _is_id(value: str) -> bool:
    return 0 < len(value) <= MAX_ID and value.lower() not in NO_IDS


def _newest_first(rows: list[Json]) -> list[Json]:
    """Of several conversations with one person the one that was touched last counts first."""

    def touched(row: Json) -> tuple[datetime, datetime, str]:
        updated, last = _time(row.get("updated_at")), _time(row.get("last_message_time"))
        return updated or HEARSAY, last or HEARSAY, str(row.get("id"))

    return sorted(rows, key=touched, reverse=True)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _time(value: Any) -> datetime | None:
    """A time as PostgreSQL writes it into JSON; in UTC where it names no zone."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _says_something(rest: Json) -> bool:
    return any(value not in (None, "", [], {}) for value in rest.values())
