"""Cursors, limits and the `paging` object of Graph lists.

A cursor is opaque to the client. Inside it is the place of an item (time and number) and the list it belongs
to, so that a cursor of another list is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from convsync.simulator.errors import bad_cursor, bad_parameter

DEFAULT_LIMIT = 25

Key = tuple[int, int]


def encode_cursor(owner: str, key: Key) -> str:
    """The cursor of an item in the list of `owner`."""
    return (
        base64.urlsafe_b64encode(f"{owner}:{key[0]:x}:{key[1]:x}".encode()).decode("ascii").rstrip("=") + "ZD"
    )


def decode_cursor(owner: str, cursor: str) -> Key:
    """The place a cursor stands for. Raises GraphError 100 for anything `encode_cursor` did not make for
    `owner`.
    """
    try:
        raw = cursor.removesuffix("ZD")
        given, moment, number = (
            base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode("ascii").split(":")
        )
        key = (int(moment, 16), int(number, 16))
    except ValueError:
        raise bad_cursor() from None
    if given != owner or encode_cursor(owner, key) != cursor:
        raise bad_cursor()
    return key


def cursor_just_before(cursor: str) -> str:
    """The cursor after which the item of `cursor` is the first to come."""
    raw = cursor.removesuffix("ZD")
    owner, moment, number = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode("ascii").split(":")
    return encode_cursor(owner, (int(moment, 16), int(number, 16) + 1))


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of a list was asked for."""

    limit: int
    after: Key | None
    before: Key | None


def requested_slice(owner: str, parameters: Mapping[str, str], cap: int) -> Slice:
    """The slice that `limit`, `after` and `before` ask for. More than `cap` is cut without a word."""
    limit = DEFAULT_LIMIT
    text = parameters.get("limit")
    if text:
        try:
            limit = int(text)
        except ValueError:
            raise bad_parameter("limit", "an integer") from None
        if limit <= 0:
            limit = DEFAULT_LIMIT
    after, before = parameters.get("after"), parameters.get("before")
    return Slice(
        min(limit, cap),
        decode_cursor(owner, after) if after else None,
        decode_cursor(owner, before) if before else None,
    )


@dataclass(frozen=True, slots=True)
class Link:
    """How the addresses in `paging` are built: `base` is scheme, host and version without a slash at the end.

    The token is part of the address, as Meta makes it. A client must not log or store these.
    """

    base: str
    token: str

    def to(self, path: str, parameters: Mapping[str, str]) -> str:
        query = {"access_token": self.token, "pretty": "0", **parameters}
        return f"{self.base}/{path}?{urlencode(query, quote_via=quote)}"


def paging(
    link: Link,
    path: str,
    parameters: Mapping[str, str],
    cursors: tuple[str, str],
    has_newer: bool,
    has_older: bool,
) -> dict[str, Any]:
    """The `paging` object: `next` is absent at the end and `previous` on the first page."""
    first, last = cursors
    answer: dict[str, Any] = {"cursors": {"before": first, "after": last}}
    if has_newer:
        answer["previous"] = link.to(path, {**parameters, "before": first})
    if has_older:
        answer["next"] = link.to(path, {**parameters, "after": last})
    return answer
