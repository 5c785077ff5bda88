"""The schema moves: answers in shapes that Graph once had, has elsewhere, or may have tomorrow.

`{"action": "drift", "kinds": ["unwrapped", "new_field"]}`; without `kinds` all of them. Every item of the
answer drifts, but for `no_id`: that is one item of the page, number `item` (0).
"""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Callable, Mapping
from typing import Any

_WRAPPED = ("participants", "senders", "to", "attachments", "shares", "tags", "reactions")
_TIMES = ("updated_time", "created_time")
_COUNTS = ("message_count", "unread_count")

Node = dict[str, Any]


def _unwrapped(node: Node) -> None:
    """Lists that come bare, without `{"data": ..}` around them."""
    for name in _WRAPPED:
        if isinstance(node.get(name), dict) and "data" in node[name]:
            node[name] = node[name]["data"]


def _new_field(node: Node) -> None:
    """A field that nobody asked for or knows (invented; new ones come several times a year)."""
    node["mood"] = {"kind": "curious", "levels": [1, 2, None]}


def _new_type(node: Node) -> None:
    """A field of another type: an object where a number or text was (invented)."""
    for name in ("unread_count", "snippet", "sticker"):
        if name in node:
            node[name] = {"value": node[name]}


def _unix_time(node: Node) -> None:
    """Unix seconds, as the documentation prints them, where real answers have ISO 8601."""
    for name in _TIMES:
        if isinstance(node.get(name), str):
            node[name] = timegm(time.strptime(node[name], "%Y-%m-%dT%H:%M:%S%z"))


def _text_counts(node: Node) -> None:
    """Numbers as text, as in recordings of older versions."""
    for name in _COUNTS:
        if isinstance(node.get(name), int):
            node[name] = str(node[name])


def _number_ids(node: Node) -> None:
    """Ids of people as numbers, as in old recordings."""
    people = [node.get("from")]
    for name in ("participants", "senders", "to"):
        held = node.get(name)
        people += held.get("data", []) if isinstance(held, dict) else held or []
    for person in people:
        if isinstance(person, dict) and str(person.get("id", "")).isdecimal():
            person["id"] = int(person["id"])


def _nulls(node: Node) -> None:
    """Fields without data as null, where Graph leaves them out."""
    for name in ("snippet", "sticker", "attachments", "shares", "reply_to"):
        node.setdefault(name, None)


KINDS: Mapping[str, Callable[[Node], None]] = {
    "number_ids": _number_ids,
    "unwrapped": _unwrapped,
    "new_field": _new_field,
    "new_type": _new_type,
    "unix_time": _unix_time,
    "text_counts": _text_counts,
    "nulls": _nulls,
}
NO_ID = "no_id"


def drifted(document: Any, kinds: list[str], item: int) -> Any:
    """The answer with its threads and messages in other shapes. Changes `document`."""
    if not isinstance(document, dict):
        return document
    items = document.get("data")
    nodes = [one for one in items if isinstance(one, dict)] if isinstance(items, list) else [document]
    for node in nodes:
        nested = node.get("messages")
        messages = nested["data"] if isinstance(nested, dict) else []
        for one in (node, *messages):
            for name, change in KINDS.items():
                if name in kinds:
                    change(one)
    if NO_ID in kinds and isinstance(items, list) and item < len(nodes):
        nodes[item].pop("id", None)
    return document
