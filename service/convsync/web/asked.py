"""What a caller asks for: models that validate bodies and parameters, and that the OpenAPI document shows.

A wrong one is refused by its name (422 `invalid_argument` with `field`), an unknown one too: a slip of the
pen is told, not passed over. No error repeats what was sent: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from aiohttp import web
from multidict import MultiMapping
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from convsync.errors import ConvsyncError, InvalidArgument

MAX_JSON_BYTES = 1024 * 1024
"""Of a body of the API. The webhook's limit is the application's, which is higher."""
LAST_ID = 2**63 - 1

# Bytes of a header that are not UTF-8 arrive as lone surrogates.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_ID = re.compile("[1-9][0-9]{0,18}")
_BRACES = re.compile(r"\{(\w+)\}")

Model = TypeVar("Model", bound=BaseModel)


class BadRequest(ConvsyncError):
    """The request is not what it says it is: a body that is no JSON, a version that is none."""

    code, status, title = "bad_request", 400, "Bad request"


class BodyTooLarge(ConvsyncError):
    """The body is larger than this route takes."""

    code, status, title = "request_entity_too_large", 413, "Request Entity Too Large"


class UnsupportedMediaType(ConvsyncError):
    """The Content-Type of the body is not the one this route takes."""

    code, status, title = "unsupported_media_type", 415, "Unsupported Media Type"


def refused(name: str, what: str) -> InvalidArgument:
    """The answer to a parameter or field that is wrong: it is named, whatever is wrong with it."""
    return InvalidArgument(f"{name}: {what}", detail={"field": name})


# --- the models


class Asked(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class OldNames(Asked):
    """A body at an address of the system before this one: its fields may also be named in camelCase."""

    @model_validator(mode="before")
    @classmethod
    def _one_name_each(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {to_camel(name): name for name in cls.model_fields}
        both = [old for old, name in known.items() if old != name and old in given and name in given]
        if both:
            raise PydanticCustomError(
                "twice", "{name} is given twice, under both its names", {"name": both[0]}
            )
        return {known.get(name, name): value for name, value in given.items()}


class Parameters(Asked):
    """The parameters in a query. An empty one is as good as absent: a form sends what nobody filled in."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in given.items() if value != ""}


class NoParameters(Parameters):
    """A route that takes none."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A number in an address: digits, within its bounds."""

    lowest: int
    highest: int

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}

    def _read(self, text: object) -> int:
        number = _number(text, self.lowest, self.highest)
        if number is not None:
            return number
        raise PydanticCustomError(
            "whole_number",
            "must be a number from {lowest} to {highest}",
            {"lowest": self.lowest, "highest": self.highest},
        )


def _number(text: object, lowest: int, highest: int) -> int | None:
    # int() refuses text of thousands of digits with an error of its own
    if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 19:
        number = int(text)
        return number if lowest <= number <= highest else None
    return None


def _read_id(given: object) -> int:
    text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if isinstance(text, str) and _ID.fullmatch(text) and int(text) <= LAST_ID:
        return int(text)
    raise PydanticCustomError("id", "must be an id, a number from 1 to {last}", {"last": LAST_ID})


def _read_flag(text: object) -> bool:
    if text not in ("true", "false"):
        raise PydanticCustomError("flag", "must be true or false")
    return text == "true"


def _read_moment(text: object) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise PydanticCustomError(
            "moment", "must be a time with its zone, like 2026-03-01T12:00:00Z"
        ) from None


# Documented shorter than 2**63 needs, so that no text of the pattern is too great.
_ID_SCHEMA = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$", "examples": ["17"]}

Id = Annotated[int, BeforeValidator(_read_id), WithJsonSchema(_ID_SCHEMA)]
"""An id that the database gave. It is text in JSON and in addresses; in a body a number will do."""
BodyId = Annotated[
    int,
    BeforeValidator(_read_id),
    WithJsonSchema({"anyOf": [_ID_SCHEMA, {"type": "integer", "minimum": 1, "maximum": 2**53 - 1}]}),
]
Flag = Annotated[bool, BeforeValidator(_read_flag)]
Moment = Annotated[datetime, BeforeValidator(_read_moment)]
PageId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Za-z_.-]+$")]
"""A Page's id where a Page is added: what a path can hold."""
Position = Annotated[str, Field(min_length=1, max_length=64)]


# What stands in a path, by its name. A name that is not here is any text.
PATH_PARAMETERS: Mapping[str, Any] = {
    "page_id": Annotated[
        str, Field(description="The Page's id, as Facebook gives it.", examples=["104000000000001"])
    ],
    "conversation_id": Annotated[Id, Field(description="The conversation's id here.")],
    "run_id": Annotated[Id, Field(description="The run's id.")],
    "dead_letter_id": Annotated[Id, Field(description="The dead letter's id.")],
    "message_id": Annotated[str, Field(description="The message's id, as Facebook gives it.")],
    "consumer": Annotated[str, Field(description="The consumer's name, of your choice.", max_length=200)],
    "code": Annotated[str, Field(description="The code the person was given.")],
}


def path_model(path: str) -> type[BaseModel]:
    """The model of the parameters in a path like `/api/pages/{page_id}`."""
    names = _BRACES.findall(path)
    fields: dict[str, Any] = {name: (PATH_PARAMETERS.get(name, str), ...) for name in names}
    return create_model("Path", __base__=Asked, **fields)


# --- reading them, where a route has no model: a page of the console


def whole_number(text: str, name: str, *, lowest: int = 1, highest: int = LAST_ID) -> int:
    """A number in an address, within its bounds."""
    number = _number(text, lowest, highest)
    if number is None:
        raise refused(name, f"must be a number from {lowest} to {highest}")
    return number


def flag(request: web.Request, name: str) -> bool:
    """A parameter that is `true` or `false`; without it, false."""
    text = request.query.get(name) or "false"
    if text not in ("true", "false"):
        raise refused(name, "must be true or false")
    return text == "true"


# --- reading them by their models


def _told(error: ValidationError) -> InvalidArgument:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field, what = ".".join(str(part) for part in problem["loc"]), problem["msg"]
    if problem["type"] == "extra_forbidden":
        what = "is not known here"
    return refused(field, what) if field else InvalidArgument(what, detail={"field": ""})


def read_parameters(model: type[Model], given: Mapping[str, str]) -> Model:
    """Parameters as their model."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _told(error) from None


def once_each(given: MultiMapping[str]) -> dict[str, str]:
    """A query's parameters, of which none may stand there twice."""
    found: dict[str, str] = {}
    for name, value in given.items():
        if name in found:
            raise refused(name, "is given twice")
        found[name] = value
    return found


def refuse_unstorable(request: web.Request) -> None:
    """Refuse a parameter, in the path or the query, that no text of PostgreSQL can be equal to."""
    position = ("Last-Event-ID", request.headers.get("Last-Event-ID", ""))
    for name, value in (*request.match_info.items(), *request.query.items(), position):
        if _UNSTORABLE.search(value):
            raise refused(name, "must be text without U+0000")


async def read_body(request: web.Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`; an error names the field and says what is wrong with it."""
    if (request.content_length or 0) > MAX_JSON_BYTES:
        raise BodyTooLarge(f"the body is longer than {MAX_JSON_BYTES} bytes")
    raw = await request.read()
    if len(raw) > MAX_JSON_BYTES:
        raise BodyTooLarge(f"the body is longer than {MAX_JSON_BYTES} bytes")
    # Anything else is what another site's page may send without being asked for leave first (CORS).
    if raw and request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    try:
        # Strictly: 0 is no false and "5" no number, here as in the document.
        body = model.model_validate_json(raw or b"{}", strict=True)
    except ValidationError as error:
        if (
            error.errors(include_url=False, include_context=False, include_input=False)[0]["type"]
            == "json_invalid"
        ):
            raise BadRequest("the body is not JSON") from None
        raise _told(error) from None
    for field, text in _texts(body.model_dump(exclude_unset=True)):
        if _UNSTORABLE.search(text):
            raise refused(field, "must be text without U+0000")
    return body


def _texts(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a body, with the path to it."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, (dict, list)):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(part, f"{field}.{name}" if field else str(name))
