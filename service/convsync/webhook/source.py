"""The bytes that told a fact of a delivery: as they came, not as one would write them again."""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Iterable, Mapping

CHANNELS = ("messaging", "standby", "changes", "changed_fields")
ENTRY_KEYS = frozenset(("id", "time", "uid", "hop_context", *CHANNELS))

# A string, a mark, or a number or literal.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},:]|[^][{},:"\s]+', re.DOTALL)


class Source:
    """The bytes of a delivery, and which of its items told which facts.

    `alone` says that there is a single item. An item is told by the number of its entry, its channel and its
    number in that; a channel that is no list of items, and an entry, by less.
    """

    def __init__(self, raw: bytes, *, alone: bool) -> None:
        self._raw = raw
        self._alone = alone
        self._slices: Slices | None = None  # hardly ever needed
        self._first_facts: list[int] = []
        self._items: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        """How many bytes it keeps."""
        return len(self._raw)

    def told(self, first_fact: int, entry: int, channel: str, item: int) -> None:
        """The facts from there on are of this item."""
        self._first_facts.append(first_fact)
        self._items.append((entry, channel, item))

    def of(self, fact: int) -> bytes:
        """The delivery with only the item that told the fact with this number."""
        return self._raw if self._alone else self.part(*self._items[bisect(self._first_facts, fact) - 1])

    def part(self, entry: int, channel: str | None = None, item: int | None = None) -> bytes:
        """The delivery with only that in it."""
        if self._alone:
            return self._raw
        if self._slices is None:
            self._slices = Slices(self._raw)
        cut = self._slices
        if channel is None:
            inside = cut.at("entry", entry)
        else:
            told = cut.at("entry", entry, channel, *(() if item is None else (item,)))
            around = {}
            for name in cut.names("entry", entry):
                value = cut.at("entry", entry, name)
                # An unknown list is perhaps a channel of a new kind: it has a dead letter of its own.
                if name not in CHANNELS and (name in ENTRY_KEYS or not value.startswith(b"[")):
                    around[name] = value
            inside = _object({**around, channel: told if item is None else b"[" + told + b"]"})
        return _object(
            {name: b"[" + inside + b"]" if name == "entry" else cut.at(name) for name in cut.names()}
        )


def _object(members: Mapping[str | int, bytes]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (json.dumps(name).encode(), told) for name, told in members.items())


class Slices:
    """Where the parts of `raw` are. A JSON parser has taken it: here brackets are found, nothing is judged.

    No depth is too deep and no string is decoded but the names of members. What was looked through is
    remembered, so that all the items of a large delivery cost no more than one, nearly.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._known: dict[tuple[str | int, ...], dict[str | int, slice]] = {}

    def at(self, *path: str | int) -> bytes:
        """The part to which names and list indices lead. Raises KeyError."""
        return self._raw[self._slice(path)]

    def names(self, *path: str | int) -> Iterable[str | int]:
        """Of the members of the object there. Of one that is told twice the last counts, as for parsers."""
        return self._members(path)

    def _slice(self, path: tuple[str | int, ...]) -> slice:
        return self._members(path[:-1])[path[-1]] if path else slice(0, len(self._raw))

    def _members(self, path: tuple[str | int, ...]) -> dict[str | int, slice]:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self._look_through(self._slice(path))
        return known

    def _look_through(self, part: slice) -> dict[str | int, slice]:
        found: dict[str | int, slice] = {}
        depth = 0
        name: str | None = None
        start: int | None = None  # of the name or value that is being read
        end = 0
        for token in _TOKEN.finditer(self._raw, part.start, part.stop):
            mark = token[0]
            if mark in (b"]", b"}"):
                depth -= 1
            if depth == 1 and mark == b":":
                name = json.loads(self._raw[start:end])
                start = None
                continue
            if (depth == 1 and mark == b",") or depth == 0:
                if start is not None:
                    found[len(found) if name is None else name] = slice(start, end)
                name = start = None
            elif start is None:
                start = token.start()
            if mark in (b"[", b"{"):
                depth += 1
            end = token.end()
        return found
