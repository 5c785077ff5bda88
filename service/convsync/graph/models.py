"""Pydantic models of what the Graph API answers: tolerant where Meta varies, strict on ids.

Recorded answers differ from the documentation and from each other: lists come with and without
their `{"data": [..]}` wrapper, ids as strings or numbers, times as ISO 8601 with `+0000` or as Unix
seconds, and "if a field has no data, it will not be returned". What is not an id or the time of a
message becomes absent when it cannot be read; nothing here turns down a whole item for a detail.
Unknown fields are preserved (`model_extra`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from convsync.facts import instant

# The longest id seen has 116 characters; an index row of PostgreSQL ends at about 2700 bytes.
_MAX_ID: Final = 512
# Larger numbers are milliseconds: as seconds they would lie in the year 5138.
_FIRST_MILLISECONDS: Final = 100_000_000_000


def _problem(what: str) -> PydanticCustomError:
    return PydanticCustomError("graph", "{what}", {"what": what})


def _read_id(value: Any) -> str:
    if value is None:
        raise _problem("null")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _problem("not an id")
    text = value.strip()
    if not text:
        raise _problem("empty")
    if len(text) > _MAX_ID:
        raise _problem(f"longer than {_MAX_ID} characters")
    return text


def _read_time(value: Any) -> datetime:
    if value is None:
        raise _problem("null")
    try:
        if isinstance(value, str):
            value = value.strip()
            if not value.lstrip("-").isdecimal():
                at = datetime.fromisoformat(value)
                return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _problem("not a time")
        return instant(int(value if abs(value) >= _FIRST_MILLISECONDS else value * 1000))
    except (ValueError, OverflowError):
        raise _problem("not a time") from None


def _read_count(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value[:19])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        return None
    return value


def _read_flag(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _read_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a strict reader lenient: what it refuses is absent."""

    def lenient(value: Any) -> Any:
        try:
            return read(value)
        except PydanticCustomError:
            return None

    return lenient


def unwrap(value: Any) -> list[Any]:
    """The items of a list, with or without its `{"data": [..]}` wrapper; a bare object is one item."""
    if isinstance(value, dict):
        if "data" not in value:
            return [value] if value.keys() - {"paging", "summary"} else []
        value = value["data"]
        if isinstance(value, dict):
            return [value]
    return value if isinstance(value, list) else []


GraphId: TypeAlias = Annotated[str, BeforeValidator(_read_id)]
GraphTime: TypeAlias = Annotated[datetime, BeforeValidator(_read_time)]
OptionalId: TypeAlias = Annotated[str | None, BeforeValidator(_or_none(_read_id))]
OptionalTime: TypeAlias = Annotated[datetime | None, BeforeValidator(_or_none(_read_time))]
OptionalCount: TypeAlias = Annotated[int | None, BeforeValidator(_read_count)]
OptionalFlag: TypeAlias = Annotated[bool | None, BeforeValidator(_read_flag)]
OptionalText: TypeAlias = Annotated[str | None, BeforeValidator(_read_text)]
Items: TypeAlias = Annotated[list[Any], BeforeValidator(unwrap)]


class Node(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True)


class Participant(Node):
    """Somebody who takes part in a thread; of the Page's own kind or a customer."""

    id: GraphId
    name: OptionalText = None


class Mention(Node):
    """Somebody named in `from` or `to`; the id may be missing (a deleted account)."""

    id: OptionalId = None
    name: OptionalText = None


def _read_mention(value: Any) -> Any:
    return value if isinstance(value, dict) else None


def _read_mentions(value: Any) -> list[Any]:
    return [item for item in unwrap(value) if isinstance(item, dict)]


class MessageNode(Node):
    """One message. Its attachments, shares and so on stay as they came, in `model_extra`."""

    id: GraphId
    created_time: GraphTime
    sender: Annotated[Mention | None, BeforeValidator(_read_mention)] = Field(default=None, alias="from")
    to: Annotated[list[Mention], BeforeValidator(_read_mentions)] = []
    message: Any = None


class ConversationNode(Node):
    """One thread of the list. Participants and messages are read one by one, elsewhere."""

    id: GraphId
    updated_time: OptionalTime = None
    message_count: OptionalCount = None
    unread_count: OptionalCount = None
    snippet: OptionalText = None
    can_reply: OptionalFlag = None
    participants: Items = []
    messages: Any = None


class Cursors(BaseModel):
    after: OptionalText = None


def _read_cursors(value: Any) -> Any:
    return value if isinstance(value, dict) else {}


class Paging(BaseModel):
    """Where a list goes on. Only the absence of `next` ends it: not a short page, not an empty one.

    Source: developers.facebook.com/docs/graph-api/results
    """

    next: OptionalText = None
    cursors: Annotated[Cursors, BeforeValidator(_read_cursors)] = Cursors()

    @property
    def has_next(self) -> bool:
        return bool(self.next)

    @property
    def after(self) -> str | None:
        """The cursor of the next page; `None` at the end, or if `next` is there but holds no cursor."""
        if not self.next:
            return None
        if self.cursors.after:
            return self.cursors.after
        try:
            return parse_qs(urlsplit(self.next).query).get("after", [None])[0]
        except ValueError:
            return None


class Edge(BaseModel):
    """A list of a node: its raw items and its paging, with or without the `data` wrapper."""

    items: list[Any]
    paging: Paging

    @classmethod
    def of(cls, value: Any) -> Edge | None:
        """Read a list; `None` if this is no list at all (`{"data": null}` is an empty one)."""
        paging = None
        if isinstance(value, dict):
            if "data" not in value:
                return None
            paging = value.get("paging")
            value = value["data"] if value["data"] is not None else []
        if not isinstance(value, list):
            return None
        return cls(items=value, paging=Paging.model_validate(paging if isinstance(paging, dict) else {}))
