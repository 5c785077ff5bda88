"""What Graph answers beyond what this release knows: fields nobody here has heard of, values of a new kind.

Nothing here changes what is read. Reading is tolerant, so a schema that moves would go unnoticed until
somebody misses what it moved; the names found here are counted and shown instead. Known is what the
documentation, Meta's own SDK and recorded answers name, whether it is asked for or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from convsync.facts import drift_name

Kinds: TypeAlias = frozenset[str]
Shape: TypeAlias = Mapping[str, Kinds]

_TEXT: Final[Kinds] = frozenset({"text", "digits", "flag as text"})
_ID: Final[Kinds] = _TEXT | {"number"}
_TIME: Final = _ID
_COUNT: Final[Kinds] = frozenset({"number", "digits"})
_FLAG: Final[Kinds] = frozenset({"flag", "flag as text"})
_LIST: Final[Kinds] = frozenset({"data"})
_OBJECT: Final[Kinds] = frozenset({"object"})
_ANYTHING: Final[Kinds] = _ID | _FLAG | _LIST | _OBJECT | {"list"}

CONVERSATION: Final[Shape] = {
    "id": _ID,
    "updated_time": _TIME,
    "message_count": _COUNT,
    "unread_count": _COUNT,
    "snippet": _TEXT,
    "can_reply": _FLAG,
    "participants": _LIST,
    "messages": _LIST,
    # never asked for
    "folder": _TEXT,
    "former_participants": _LIST,
    "is_owner": _FLAG,
    "is_subscribed": _FLAG,
    "link": _TEXT,
    "linked_group": _ANYTHING,
    "name": _TEXT,
    "scoped_thread_key": _ID,
    "senders": _LIST,
    "subject": _TEXT,
    "tags": _LIST,
    "to": _LIST,
    "wallpaper": _TEXT,
}
PERSON: Final[Shape] = {"id": _ID, "name": _TEXT, "email": _TEXT, "username": _TEXT, "user_id": _ID}
MESSAGE: Final[Shape] = {
    "id": _ID,
    "created_time": _TIME,
    "from": _OBJECT,
    "to": _LIST,
    "message": _TEXT,
    "attachments": _LIST,
    "shares": _LIST,
    "sticker": _TEXT,
    "tags": _LIST,
    "reactions": _LIST | _OBJECT,  # the documentation prints a bare object
    "reply_to": _OBJECT,
    "is_unsupported": _FLAG,
    "story": _OBJECT,
}
ATTACHMENT: Final[Shape] = {
    "id": _ID,
    "mime_type": _TEXT,
    "name": _TEXT,
    "size": _COUNT,
    "file_url": _TEXT,
    "image_data": _OBJECT,
    "video_data": _OBJECT,
    "generic_template": _OBJECT,
    "appointment_booking": _OBJECT,
    "type": _TEXT,
    "url": _TEXT,
    "title": _TEXT,
}
SHARE: Final[Shape] = {
    "id": _ID,
    "link": _TEXT,
    "name": _TEXT,
    "description": _TEXT,
    "picture": _TEXT,
    "template": _OBJECT,
    "type": _TEXT,
    "url": _TEXT,
    "title": _TEXT,
}
ANSWER: Final[Shape] = {"data": _ANYTHING, "paging": _OBJECT, "summary": _OBJECT}
PAGING: Final[Shape] = {"cursors": _OBJECT, "next": _TEXT, "previous": _TEXT}


def compare(value: Mapping[str, Any], shape: Shape, path: str, drift: Counter[str]) -> None:
    """Count in `drift` what of an object is not in its shape: `path.field`, or `path.field (new kind)`."""
    for name, item in value.items():
        kinds = shape.get(name)
        if kinds is None:
            drift[drift_name(path, name)] += 1
        elif (kind := _kind(item)) not in kinds and kind != "nothing":
            drift[drift_name(path, f"{name} ({kind})")] += 1


def compare_each(items: Iterable[Any], shape: Shape, path: str, drift: Counter[str]) -> None:
    """`compare` for each item of a list; one that is no object is drift itself."""
    for item in items:
        if isinstance(item, dict):
            compare(item, shape, path, drift)
        else:
            drift[drift_name(f"{path} ({_kind(item)})")] += 1


def _kind(value: Any) -> str:
    if isinstance(value, str):
        if value.isdecimal():
            return "digits"
        return "flag as text" if value in ("true", "false") else "text"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, list):
        return "list"
    if value is None or value == {}:
        return "nothing"
    return "data" if isinstance(value.get("data", ""), (list, type(None))) else "object"
