"""The OpenAPI 3.1 document: made of the route table and of the models that validate, by nobody's hand.

What every route of a kind answers (401 without a key, 429, 503 while the database is away, ..) is said
here once; a route adds what is its own (`answers`, `errors`).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from convsync import __version__
from convsync.errors import (
    BadData,
    ConvsyncError,
    DatabaseError,
    DatabaseUnavailable,
    InvalidArgument,
    NotFound,
    TryAgain,
)
from convsync.facts import Json
from convsync.web.answered import Problem
from convsync.web.asked import BadRequest, BodyTooLarge, Parameters, UnsupportedMediaType
from convsync.web.limits import TooManyRequests
from convsync.web.routing import ROUTES, Answer, Body, Forbidden, Route, Unauthorized
from convsync.web.sessions import PLAIN_COOKIE

_REF: Final = "#/components/schemas/{model}"
_PROBLEM: Final = "application/problem+json"
_JSON: Final = "application/json"

_ABOUT: Final = """\
A mirror of Facebook Pages' Messenger conversations. Everything is JSON with `snake_case` keys; times are
ISO 8601 in UTC; ids and positions are text. An error is a problem document (RFC 9457): programs go by its
`code`, and a wrong parameter or field is named by `field`. A parameter or field that is not listed is
refused. Lists are read part by part: the `next` of one part is the `before` (or `after`) of the next, and no
row is skipped or repeated however many arrive meanwhile. Every answer has an `X-Request-ID`. A key may make a
limited number of requests a minute; beyond it the answer is 429 with `Retry-After`. What answers GET answers
HEAD too, but for streams.
"""
_SCHEMES: Final[Json] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, of the role read or operate."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": PLAIN_COOKIE,
        "description": "For reading: who is logged in to the console. Behind https it is `__Host-convsync`.",
    },
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "For an EventSource: a stream ticket, good for one stream and a minute.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Hub-Signature-256",
        "description": "`sha256=` and the HMAC-SHA256 of the raw body under the app's secret, in hex.",
    },
}
_HEADERS: Final[Json] = {
    "X-Request-ID": {
        "description": "The caller's own, if it sent one of up to 128 visible characters.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "The version, in quotes.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}},
    "WWW-Authenticate": {"description": "Bearer.", "schema": {"type": "string"}},
}
_PROBLEM_HEADERS: Final = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}
_WRONG: Final = {
    400: "The request is not what it says it is: a body that is no JSON, a version that is none.",
    401: "There is no valid key.",
    403: "The key, or the signature, does not allow this.",
    404: "There is no such thing, or the key may not see it.",
    409: "A sync of this kind is at work on the Page: `run_id` is its run.",
    410: "The person was erased; or changes have expired: read again, then go on from `position`.",
    412: "It was changed since it was read: `actual` is the version it has.",
    413: "The body is too large.",
    415: "Send the body as the documented media type.",
    422: "A parameter or field is wrong, or not known here: `field` is its name.",
    428: "The version that was read is missing.",
    429: "The key has made its requests of this minute; `Retry-After` says when there is one again.",
    500: "A defect. The log has it under the request id.",
    503: "The database is away or busy, too many streams are open, or it took too long. It may be repeated.",
}
_TAGS: Final = (
    ("/api/conversations/sync", "Syncs"),
    ("/api/sync-runs", "Syncs"),
    ("/api/stream-tickets", "Syncs"),
    ("/api/pages/{page_id}/conversations", "Conversations"),
    ("/api/pages", "Pages"),
    ("/api/changes", "Change feed"),
    ("/api/dead-letters", "What was not understood"),
    ("/api/schema-drift", "What was not understood"),
    ("/api/webhook", "Meta"),
    ("/api/facebook", "Meta"),
    ("/", "Service"),
)


@dataclass(frozen=True, slots=True)
class Description:
    """The document as it is sent, and its ETag."""

    body: bytes
    tag: str


@cache
def description() -> Description:
    """Of the whole route table; made when it is first asked for."""
    body = orjson.dumps(document(ROUTES))
    return Description(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def document(routes: Iterable[Route]) -> Json:
    """The document of those routes that belong to the API."""
    described = [route for route in routes if route.described]
    schemas, refs = _schemas(described)
    paths: dict[str, Json] = {}
    problems: Json = {}
    for route in described:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs, problems)
    used = {_tag(route.path) for route in described}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "convsync",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in dict.fromkeys(name for _, name in _TAGS) if name in used],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": dict(sorted(problems.items())),
            "headers": _HEADERS,
            "securitySchemes": _SCHEMES,
        },
    }


# --- the models


def _schemas(routes: Sequence[Route]) -> tuple[Json, Mapping[Any, Json]]:
    """The component schemas, and by model where each is."""
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Problem, "serialization")]
    for route in routes:
        if body := _body_model(route):
            wanted.append((body, "validation"))
        for answer in route.answers.values():
            told = [answer.of, *answer.events.values()]
            wanted += [(one, "serialization") for one in told if one not in (None, dict)]
    refs, definitions = models_json_schema(list(dict.fromkeys(wanted)), ref_template=_REF)
    schemas = definitions.get("$defs", {})
    # An error has those of these that tell something.
    for name in ("field", "run_id", "expected", "actual", "position"):
        schemas["Problem"]["required"] = [one for one in schemas["Problem"]["required"] if one != name]
        schemas["Problem"]["properties"][name].pop("default", None)
    return schemas, {model: schema for (model, _), schema in refs.items()}


def _body_model(route: Route) -> type[BaseModel] | None:
    return route.body.of if isinstance(route.body, Body) else route.body


# --- one operation


def _operation(route: Route, refs: Mapping[Any, Json], problems: Json) -> Json:
    summary, _, more = inspect.cleandoc(route.handler.__doc__ or "").partition("\n\n")
    operation: Json = {
        "operationId": route.handler.__name__,
        "tags": [_tag(route.path)],
        "summary": " ".join(summary.split()),
        **({"description": " ".join(more.split())} if more else {}),
        "security": _security(route),
        "parameters": _parameters(route),
        "responses": _responses(route, refs, problems),
    }
    if route.body is not None:
        media_types = route.body.media_types if isinstance(route.body, Body) else (_JSON,)
        schema = refs[_body_model(route)]
        operation["requestBody"] = {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type in media_types},
        }
    return operation


def _tag(path: str) -> str:
    return next(name for beginning, name in _TAGS if path.startswith(beginning))


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.access == "public":
        return [{"signature": []}] if route.signed else []
    schemes = ["key"]
    if route.method == "GET":
        schemes.append("session")
    if route.ticket:
        schemes.append("ticket")
    return [{scheme: []} for scheme in schemes]


def _parameters(route: Route) -> list[Json]:
    found = [
        # An empty one would be another address.
        {"name": name, "in": "path", "required": True, **_described({"minLength": 1, **schema})}
        for name, schema in _properties(route.path_model)
    ]
    if route.query is not None:
        required = route.query.model_json_schema().get("required", [])
        found += [
            {
                "name": name,
                "in": "query",
                "required": name in required,
                # Like one that is not there.
                **({"allowEmptyValue": True} if name not in required else {}),
                **_described(schema),
            }
            for name, schema in _properties(route.query)
            if not (route.ticket and name == "ticket")  # that is a way to be let in
        ]
    found += [
        {
            "name": header.name,
            "in": "header",
            "required": header.required,
            "description": header.what,
            "schema": dict(header.schema),
        }
        for header in route.headers
    ]
    return found


def _properties(model: type[BaseModel]) -> list[tuple[str, Json]]:
    return list(model.model_json_schema().get("properties", {}).items())


def _described(schema: Json) -> Json:
    """A parameter's schema, with what is said about it beside it. A parameter is there or not, never null."""
    plain = {name: value for name, value in schema.items() if name not in ("title", "description")}
    kinds = [kind for kind in plain.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        plain = {**{name: value for name, value in plain.items() if name != "anyOf"}, **kinds[0]}
    if plain.get("default", 0) is None:
        del plain["default"]
    about = schema.get("description")
    return {**({"description": about} if about else {}), "schema": plain}


# --- its answers


def _errors(route: Route) -> list[type[ConvsyncError]]:
    """What can go wrong, of this route's own and as with every route of its kind."""
    found: list[type[ConvsyncError]] = list(route.errors)
    if route.access != "public":
        found += [Unauthorized, TooManyRequests]
    if route.access == "operate":
        found.append(Forbidden)
    if "{page_id}" in route.path:
        found.append(NotFound)
    if route.body is not None and not isinstance(route.body, Body):
        found += [BadRequest, BodyTooLarge, UnsupportedMediaType, InvalidArgument]
    if "{" in route.path or (route.query is not None and issubclass(route.query, Parameters)):
        found.append(InvalidArgument)
    if route.needs_database:
        found += [DatabaseUnavailable, TryAgain]
        if InvalidArgument in found:
            found.append(BadData)
    return [*sorted(dict.fromkeys(found), key=lambda error: (error.status, error.code)), DatabaseError]


def _responses(route: Route, refs: Mapping[Any, Json], problems: Json) -> Json:
    responses = {str(status): _answer(answer, refs) for status, answer in route.answers.items()}
    by_status: dict[int, list[str]] = {}
    for error in _errors(route):
        by_status.setdefault(error.status, []).append(error.code)
    by_status[500].append("internal_error")
    by_status.get(503, []).append("timed_out")
    for status, codes in by_status.items():
        if str(status) not in responses:
            name = "".join(part.title() for code in codes for part in code.split("_"))
            problems.setdefault(name, _problem(status, codes))
            responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    return dict(sorted(responses.items()))


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _answer(answer: Answer, refs: Mapping[Any, Json]) -> Json:
    about = answer.what or inspect.cleandoc(getattr(answer.of, "__doc__", None) or "Done.").split("\n\n")[0]
    found: Json = {"description": " ".join(about.split()), "headers": _headers(answer.headers)}
    if answer.of is dict:
        found["content"] = {answer.media_type: {"schema": {"type": "object"}}}
    elif answer.of is not None:
        found["content"] = {answer.media_type: {"schema": refs[answer.of]}}
    elif answer.events:
        kinds = [_event(kind, refs[model]) for kind, model in answer.events.items()]
        found["content"] = {answer.media_type: {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}}
    elif answer.media_type != _JSON:
        found["content"] = {answer.media_type: {"schema": {"type": "string"}}}
    return found


def _event(kind: str, data: Json) -> Json:
    """Of each event of a stream."""
    return {
        "type": "object",
        "properties": {
            "event": {"const": kind},
            "id": {"type": "string"},
            "data": {"type": "string", "contentMediaType": _JSON, "contentSchema": data},
        },
        "required": ["event", "id", "data"],
    }


def _problem(status: int, codes: Sequence[str]) -> Json:
    return {
        "description": _WRONG[status],
        "headers": _headers(_PROBLEM_HEADERS.get(status, ())),
        "content": {
            _PROBLEM: {
                "schema": {
                    "allOf": [
                        {"$ref": _REF.format(model="Problem")},
                        {"properties": {"status": {"const": status}, "code": {"enum": list(codes)}}},
                    ]
                }
            }
        },
    }
