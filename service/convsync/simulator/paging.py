"""Cursors, limits and the `paging` object of Graph lists.

A cursor is opaque to the client. Inside it are the list it belongs to, so that a cursor of another list is
refused, the place of an item in it (time and number), and how many items lie before it on this walk.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode

from convsync.simulator.errors import bad_cursor, bad_parameter

DEFAULT_LIMIT = 25

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cursor:
    """What is inside a cursor. `depth` counts the items a walk has passed when it goes on from here."""

    owner: str
    key: Key
    depth: int = 0

    @property
    def text(self) -> str:
        plain = f"{self.owner}:{self.key[0]:x}:{self.key[1]:x}:{self.depth:x}"
        return base64.urlsafe_b64encode(plain.encode()).decode("ascii").rstrip("=") + "ZD"


def encode_cursor(owner: str, key: Key, depth: int = 0) -> str:
    """The cursor of an item in the list of `owner`."""
    return Cursor(owner, key, depth).text


def read_cursor(text: str) -> Cursor:
    """What a cursor holds, of whatever list. Raises GraphError 100 for what `encode_cursor` did not make."""
    try:
        raw = text.removesuffix("ZD")
        plain = base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode("ascii")
        owner, moment, number, depth = plain.split(":")
        cursor = Cursor(owner, (int(moment, 16), int(number, 16)), int(depth, 16))
    except ValueError:
        raise bad_cursor() from None
    if cursor.text != text:
        raise bad_cursor()
    return cursor


def decode_cursor(owner: str, text: str) -> Cursor:
    """What a cursor holds. Raises GraphError 100 for one of another list."""
    cursor = read_cursor(text)
    if cursor.owner != owner:
        raise bad_cursor()
    return cursor


def cursor_just_before(text: str) -> str:
    """The cursor after which the item of `text` is the first to come."""
    cursor = read_cursor(text)
    return encode_cursor(cursor.owner, (cursor.key[0], cursor.key[1] + 1), cursor.depth)


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of the list of `owner` was asked for. `depth` items were passed on the way here."""

    owner: str
    limit: int
    after: Key | None
    before: Key | None
    depth: int = 0

    def cursors(self, first: Key, last: Key, count: int) -> tuple[str, str]:
        """The cursors of a page of `count` items from `first` to `last`."""
        return encode_cursor(self.owner, first, self.depth), encode_cursor(
            self.owner, last, self.depth + count
        )


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
    forward = decode_cursor(owner, after) if after else None
    backward = decode_cursor(owner, before) if before else None
    return Slice(
        owner,
        min(limit, cap),
        forward.key if forward else None,
        backward.key if backward else None,
        forward.depth if forward else 0,
    )


@dataclass(frozen=True, slots=True)
class Link:
    """How the addresses in `paging` are built: `base` is scheme, host and version without a slash at the end.

    The token is part of the address, as Meta makes it. A client must not log or store these.
    """

    base: str
    token: str

    def to(self, path: str, parameters: Mapping[str, str]) -> str:
        """The address of a list; a cursor is added at its end."""
        return f"{self.base}/{path}?{_query(self.token, tuple(parameters.items()))}"


@lru_cache(maxsize=256)
def _query(token: str, parameters: tuple[tuple[str, str], ...]) -> str:
    query = {"access_token": token, "pretty": "0"} | dict(parameters)
    return urlencode(query, quote_via=quote)


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
    address = link.to(path, parameters) if has_newer or has_older else ""
    # Nothing in a cursor needs to be quoted.
    if has_newer:
        answer["previous"] = f"{address}&before={first}"
    if has_older:
        answer["next"] = f"{address}&after={last}"
    return answer
