"""What Meta puts into a webhook delivery, as far as convsync relies on it (pydantic).

Tolerant where the platform varies: numbers come as digit strings too, parts may be missing or null, new
fields arrive several times a year (they are in `model_extra`). Strict where the mirror depends on it:
ids are non-empty, printable and of bounded length, instants are instants.

Fields of type `Any` are only kept, never looked into. They are listed so that schema drift, a field that
nobody here has heard of, can be told from the documented.
https://developers.facebook.com/docs/messenger-platform/reference/webhook-events
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from convsync.facts import instant

# PostgreSQL refuses an index entry beyond 2704 bytes, and not with an error that marks poison.
# Real ids are far shorter: Page-scoped ids have 16 or 17 digits, message ids under 200 characters.
MAX_ID = 128
MAX_MID = 512
_SECONDS_BELOW = 10**11
_LAST_MILLISECOND = 253_402_300_799_999  # the end of the year 9999


def _identifier(value: object, longest: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if value >= 0 else ""
    if not isinstance(value, str):
        raise PydanticCustomError("id", "must be a string or an integer")
    if not value or value.isspace():
        raise PydanticCustomError("id", "must not be empty")
    if not value.isprintable() or "\ufffd" in value:
        raise PydanticCustomError("id", "must be printable")
    if len(value) > longest:
        raise PydanticCustomError("id", f"must not be longer than {longest} characters")
    return value


def _id(value: object) -> str:
    return _identifier(value, MAX_ID)


def _mid(value: object) -> str:
    return _identifier(value, MAX_MID)


def _instant(value: object) -> datetime:
    """Unix milliseconds, or seconds if below 1e11 (1973 in milliseconds): as a number or as digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise PydanticCustomError("instant", "must be a Unix time in milliseconds or seconds")
    milliseconds = value * 1000 if value < _SECONDS_BELOW else value
    if not 0 <= milliseconds <= _LAST_MILLISECOND:
        raise PydanticCustomError("instant", "must be a Unix time between 1970 and 9999")
    return instant(milliseconds)


Id = Annotated[str, PlainValidator(_id)]
Mid = Annotated[str, PlainValidator(_mid)]
Instant = Annotated[datetime, PlainValidator(_instant)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class Party(_Part):
    """Who sent or got an event: the Page, or a person by Page-scoped id or (plugins) by `user_ref`."""

    id: Id | None = None
    user_ref: Id | None = None


class Head(BaseModel):
    """What all events share. All three parts are missing somewhere in the platform's own samples."""

    sender: Party | None = None
    recipient: Party | None = None
    timestamp: Instant | None = None


class MessageBody(_Part):
    mid: Mid
    text: str | None = None
    is_echo: bool | None = None
    is_deleted: bool | None = None
    is_unsupported: Any = None
    attachments: Any = None
    quick_reply: Any = None
    reply_to: Any = None
    referral: Any = None
    commands: Any = None
    app_id: Any = None
    metadata: Any = None
    sticker_id: Any = None
    nlp: Any = None
    seq: Any = None


class EditBody(_Part):
    """Instagram also sends edits number 0, without text, for messages it tells nothing else of."""

    mid: Mid
    text: str | None = None
    num_edit: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class ReactionBody(_Part):
    """`unreact` has neither reaction nor emoji."""

    mid: Mid
    action: Literal["react", "unreact"]
    reaction: str | None = None
    emoji: str | None = None


class WatermarkBody(_Part):
    """Of `read` and `delivery`. Instagram's `read` has a mid in place of the watermark."""

    watermark: Instant | None = None
    mid: Any = None
    mids: Any = None
    seq: Any = None


class PostbackBody(_Part):
    mid: Mid | None = None
    title: str | None = None
    payload: Any = None
    referral: Any = None


class OptinParty(_Part):
    """The checkbox plugin names its user inside `optin`."""

    user_ref: Id | None = None


class LabelChange(_Part):
    """The value of an `inbox_labels` change."""

    user: Party
    action: Any = None
    label: Any = None


class ThreadChange(_Part):
    """The value of a `conversations` change: it says "go and read the thread", nothing else."""

    thread_id: Mid
    page_id: Id | None = None
