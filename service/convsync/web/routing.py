"""The route table: each handler says where it is and who may call it, or it is not a route.

`access` is one of: `public` (a signature or nothing guards it), `read` and `operate` (an API key of that
role, `operate` includes `read`). A key limited to Pages gets 404 outside them: `allowed_page` sees to it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from convsync.errors import ConvsyncError, InvalidArgument, NotFound
from convsync.settings import ApiKey

Access = Literal["public", "read", "operate"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)

# Bytes of a header that are not UTF-8 arrive as lone surrogates.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

KEY: web.RequestKey[ApiKey] = web.RequestKey("api_key", ApiKey)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    access: Access
    handler: Handler


ROUTES: list[Route] = []


def route(method: str, path: str, *, access: Access) -> Callable[[Handler], Handler]:
    """Register a handler."""

    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, path, access, handler))
        return handler

    return register


class Unauthorized(ConvsyncError):
    code, status, title = "unauthorized", 401, "An API key is needed"


class Forbidden(ConvsyncError):
    code, status, title = "forbidden", 403, "Forbidden"


class BadRequest(ConvsyncError):
    code, status, title = "bad_request", 400, "Bad request"


def allowed_page(request: web.Request, page_id: str) -> str:
    """The Page's id, if the caller's key may see it; otherwise the Page does not exist for it."""
    key = request.get(KEY)
    if key is not None and key.pages and page_id not in key.pages:
        raise NotFound(f"there is no Page {page_id}")
    return page_id


def refused(name: str, what: str) -> InvalidArgument:
    """The answer to a parameter or field that is wrong: it is named, whatever is wrong with it."""
    return InvalidArgument(f"{name}: {what}", detail={"field": name})


def refuse_unstorable(request: web.Request) -> None:
    """Refuse a parameter, in the path or the query, that no text of PostgreSQL can be equal to."""
    position = ("Last-Event-ID", request.headers.get("Last-Event-ID", ""))
    for name, value in (*request.match_info.items(), *request.query.items(), position):
        if _UNSTORABLE.search(value):
            raise refused(name, "must be text without U+0000")


def sees_page(request: web.Request, page_id: str) -> bool:
    key = request.get(KEY)
    return key is None or not key.pages or page_id in key.pages


async def read_body(request: web.Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`; an error names the field and says what is wrong with it."""
    raw = await request.read()
    try:
        body = model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        if problems and problems[0]["type"] == "json_invalid":
            raise BadRequest("the body is not JSON") from None
        field = ".".join(str(part) for part in problems[0]["loc"])
        what = problems[0]["msg"]
        raise (refused(field, what) if field else InvalidArgument(what, detail={"field": ""})) from None
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


def whole_number(text: str, name: str, *, lowest: int = 1, highest: int = 2**63 - 1) -> int:
    """A number in an address, within its bounds."""
    # int() refuses text of thousands of digits with an error of its own
    if text.isascii() and text.isdigit() and len(text) <= 19 and lowest <= int(text) <= highest:
        return int(text)
    raise refused(name, f"must be a number from {lowest} to {highest}")


def flag(request: web.Request, name: str) -> bool:
    """A parameter that is `true` or `false`; without it, false."""
    text = request.query.get(name) or "false"
    if text not in ("true", "false"):
        raise refused(name, "must be true or false")
    return text == "true"


def new_request_id() -> str:
    return secrets.token_hex(16)
