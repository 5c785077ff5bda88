"""The route table: each handler says where it is, who may call it, and what it takes and answers.

`access` is one of: `public` (a signature or nothing guards it), `read` and `operate` (an API key of that
role, `operate` includes `read`). A key limited to Pages gets 404 outside them: `allowed_page` sees to it.

The table is also the API's description: `web/openapi.py` makes the OpenAPI document of it, from the models
that validate. A route outside of the API (a page of the console) need not be described.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel

from convsync.errors import ConvsyncError, NotFound
from convsync.settings import ApiKey
from convsync.web.asked import BadRequest as BadRequest
from convsync.web.asked import flag as flag
from convsync.web.asked import path_model
from convsync.web.asked import refused as refused
from convsync.web.asked import whole_number as whole_number

Access = Literal["public", "read", "operate"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)

KEY: web.RequestKey[ApiKey] = web.RequestKey("api_key", ApiKey)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
PATH: web.RequestKey[BaseModel] = web.RequestKey("path", BaseModel)
QUERY: web.RequestKey[BaseModel] = web.RequestKey("query", BaseModel)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answers: a document of the model `of`, or bytes of another `media_type`."""

    of: Any = None
    what: str = ""
    media_type: str = "application/json"
    headers: Sequence[str] = ()
    events: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    """Of a stream: the model of each event's data."""

    @property
    def is_stream(self) -> bool:
        return bool(self.events)


EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Body:
    """A body that is not JSON of the API's own: how it is described, and as what it comes."""

    of: type[BaseModel]
    media_types: Sequence[str] = ("application/json",)


@dataclass(frozen=True, slots=True)
class Header:
    """A request header that means something to the route."""

    name: str
    what: str
    required: bool = False
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route. `query` None: whatever stands in the query is passed over."""

    method: str
    path: str
    access: Access
    handler: Handler
    query: type[BaseModel] | None = None
    body: type[BaseModel] | Body | None = None
    headers: Sequence[Header] = ()
    answers: Mapping[int, Answer] = field(default_factory=dict)
    errors: Sequence[type[ConvsyncError]] = ()
    ticket: Callable[[web.Request], str] | None = None
    """A route that a stream ticket opens too says what the ticket must be for."""
    signed: bool = False
    """A signature of Meta's guards it."""
    needs_database: bool = True
    path_model: type[BaseModel] = BaseModel

    @property
    def described(self) -> bool:
        """Whether it belongs to the API; other routes are pages for people."""
        return self.path.startswith(("/api/", "/openapi.json", "/healthz", "/readyz", "/metrics"))

    @property
    def is_stream(self) -> bool:
        return any(answer.is_stream for answer in self.answers.values())


ROUTES: list[Route] = []


def route(method: str, path: str, *, access: Access, **described: Any) -> Callable[[Handler], Handler]:
    """Register a handler. `described` are the other fields of `Route`."""

    def register(handler: Handler) -> Handler:
        ROUTES.append(
            Route(
                method=method,
                path=path,
                access=access,
                handler=handler,
                path_model=path_model(path),
                **described,
            )
        )
        return handler

    return register


class Unauthorized(ConvsyncError):
    """There is no valid API key with the request."""

    code, status, title = "unauthorized", 401, "An API key is needed"


class Forbidden(ConvsyncError):
    """The key, or the signature, does not allow this."""

    code, status, title = "forbidden", 403, "Forbidden"


def query(request: web.Request, model: type[Model]) -> Model:
    """The request's query, as the model that its route was registered with."""
    found = request[QUERY]
    if not isinstance(found, model):
        raise TypeError(f"{request.path} was not registered with {model.__name__}")
    return found


def path_id(request: web.Request, name: str) -> int:
    """An id in the request's path."""
    found: int = getattr(request[PATH], name)
    return found


def allowed_page(request: web.Request, page_id: str) -> str:
    """The Page's id, if the caller's key may see it; otherwise the Page does not exist for it."""
    if not sees_page(request, page_id):
        raise NotFound(f"there is no Page {page_id}")
    return page_id


def visible_pages(request: web.Request) -> list[str] | None:
    """The Pages the caller's key may see; None for all."""
    return sorted(request[KEY].pages) or None


def page_in_path(request: web.Request) -> str:
    """The Page that the path names, if the caller's key may see it."""
    return allowed_page(request, request.match_info["page_id"])


def sees_page(request: web.Request, page_id: str) -> bool:
    key = request.get(KEY)
    return key is None or not key.pages or page_id in key.pages


def new_request_id() -> str:
    return secrets.token_hex(16)
