"""The field expansion grammar of Graph: `id,messages.limit(25).after(x){id,from{name}}`.

fields    = field ("," field)*
field     = name modifier* ["{" fields "}"] modifier*
modifier  = "." name "(" value ")"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_NAME = re.compile(r"\s*([a-z][a-z0-9_]*)\s*")
_MODIFIER = re.compile(r"\.([a-z_]+)\(([^()]*)\)\s*")
_MAX_DEPTH = 8


class FieldSyntaxError(ValueError):
    """The text is no field list; `message` is worded as Graph words its code 2500."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Field:
    """One requested field with its modifiers and, when braces were given, its own fields."""

    name: str
    modifiers: tuple[tuple[str, str], ...] = ()
    fields: Fields | None = None

    def modifier(self, name: str) -> str | None:
        """The value of a modifier such as `limit`, None when it was not given."""
        for given, value in self.modifiers:
            if given == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Fields:
    """A field list. `source` is its text without blanks, fit for a `fields` parameter."""

    fields: tuple[Field, ...]
    source: str


@lru_cache(maxsize=512)
def parse_fields(text: str) -> Fields:
    """The tree of a `fields` parameter. Raises FieldSyntaxError; a name that is given twice counts once,
    merged by taking the last.
    """
    fields, position = _fields(text, 0, 0)
    if position != len(text):
        raise _unexpected(text, position)
    return fields


def _fields(text: str, position: int, depth: int) -> tuple[Fields, int]:
    if depth > _MAX_DEPTH:
        raise FieldSyntaxError('Syntax error "Field expansion is nested too deeply"')
    found: dict[str, Field] = {}
    start = position
    while True:
        field, position = _field(text, position, depth)
        found[field.name] = field
        if position >= len(text) or text[position] != ",":
            source = "".join(text[start:position].split())
            return Fields(tuple(found.values()), source), position
        position += 1


def _field(text: str, position: int, depth: int) -> tuple[Field, int]:
    match = _NAME.match(text, position)
    if match is None:
        raise _unexpected(text, position)
    position = match.end()
    modifiers, position = _modifiers(text, position)
    nested: Fields | None = None
    if position < len(text) and text[position] == "{":
        nested, position = _fields(text, position + 1, depth + 1)
        if position >= len(text) or text[position] != "}":
            raise _unexpected(text, position)
        position += 1
        while position < len(text) and text[position].isspace():
            position += 1
        late, position = _modifiers(text, position)
        modifiers += late
    return Field(match.group(1), modifiers, nested), position


def _modifiers(text: str, position: int) -> tuple[tuple[tuple[str, str], ...], int]:
    found: list[tuple[str, str]] = []
    while (match := _MODIFIER.match(text, position)) is not None:
        found.append((match.group(1), match.group(2).strip()))
        position = match.end()
    return tuple(found), position


def _unexpected(text: str, position: int) -> FieldSyntaxError:
    where = "end of string" if position >= len(text) else f'"{text[position]}"'
    return FieldSyntaxError(
        f'Syntax error "Expected name, got {where}." at character {position}: {text[:200]}'
    )
