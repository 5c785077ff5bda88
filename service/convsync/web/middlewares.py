"""What surrounds every handler: the request's id, problem documents, who may call, how long it took."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from convsync.errors import ConvsyncError
from convsync.observe.metrics import WritePath
from convsync.settings import ApiKey, find_key
from convsync.web import tickets
from convsync.web.asked import once_each, read_parameters, refuse_unstorable
from convsync.web.limits import RateLimit, TooManyRequests, TooManyStreams
from convsync.web.routing import (
    KEY,
    PATH,
    QUERY,
    REQUEST_ID,
    Forbidden,
    Route,
    Unauthorized,
    new_request_id,
)
from convsync.web.sessions import SESSION
from convsync.web.state import SESSIONS

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SQL_NAME = re.compile(r"^p_(patch\.)?")
_LOGGED = "the error was logged under this request id"
_log = structlog.get_logger(__name__)

TABLE: web.AppKey[Mapping[tuple[str, str], Route]] = web.AppKey("table", Mapping)
KEYS: web.AppKey[list[ApiKey]] = web.AppKey("keys", list)
LIMIT: web.AppKey[RateLimit] = web.AppKey("limit", RateLimit)


def problem(
    request: web.Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    extra: Mapping[str, object] | None = None,
) -> web.Response:
    """An error as `application/problem+json` (RFC 9457)."""
    body = {
        **(extra or {}),
        "type": f"urn:convsync:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request.get(REQUEST_ID, ""),
    }
    response = web.Response(
        status=status, body=orjson.dumps(body, default=str), content_type="application/problem+json"
    )
    if status == 503:
        response.headers["Retry-After"] = "1"
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="convsync"'
    return response


def refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refused."""
    code = re.sub(r"[^a-z0-9]+", "_", error.reason.lower())
    answer = problem(request, error.status, code, error.reason, error.reason)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


def broken(request: web.Request) -> web.Response:
    """A defect of ours, which was logged."""
    return problem(request, 500, "internal_error", "Internal error", _LOGGED)


def deliveries_measured(path: WritePath) -> Middleware:
    """Count and time the webhook's deliveries; to be the outermost, so that it sees the very answer."""
    clock = time.perf_counter

    @web.middleware
    async def measure(request: web.Request, handler: Next) -> web.StreamResponse:
        if request.path != "/api/webhook" or request.method != "POST":
            return await handler(request)
        began = clock()
        response = await handler(request)
        path.answered(response.status, clock() - began)
        return response

    return measure


def identify(request: web.Request) -> str:
    """The request's id from here on, and that of each log line about it."""
    given = request.headers.get("X-Request-ID", "")
    identity = given if _REQUEST_ID.fullmatch(given) else new_request_id()
    request[REQUEST_ID] = identity
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=identity)
    return identity


@web.middleware
async def request_id(request: web.Request, handler: Next) -> web.StreamResponse:
    """Give every request an id (the caller's own, if it is sensible), every log line and answer too."""
    identity = identify(request)
    # What the address names, as far as anybody would call it an id.
    named = {key: request.match_info[key][:128] for key in ("page_id", "run_id") if key in request.match_info}
    structlog.contextvars.bind_contextvars(**named)
    response = await handler(request)
    if not response.prepared:
        response.headers["X-Request-ID"] = identity
    return response


@web.middleware
async def problems(request: web.Request, handler: Next) -> web.StreamResponse:
    """Every error becomes a problem document; one of ours is logged and told without its insides."""
    try:
        return await handler(request)
    except ConvsyncError as error:
        if error.status >= 500:
            _log.warning("request_failed", path=request.path, code=error.code, error=error.message)
        detail = error.message if error.status != 500 else _LOGGED
        extra, field = error.detail, error.detail.get("field")
        if field and (known := _SQL_NAME.sub("", field)) != field:
            # A function speaks of its own parameter; the caller wrote what is left of that name.
            extra, detail = {**extra, "field": known}, detail.replace(field, known)
        answer = problem(request, error.status, error.code, error.title, detail, extra)
        if isinstance(error, (TooManyRequests, TooManyStreams)):
            answer.headers["Retry-After"] = str(error.retry_after)
        return answer
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return refusal(request, error)
    except (web.RequestPayloadError, ConnectionResetError):
        # Not of the encoding that it names; or whoever sent it left, and nobody reads this.
        return problem(request, 400, "bad_request", "Bad request", "the body cannot be read")
    except TimeoutError:
        _log.warning("request_timed_out", path=request.path)
        return problem(request, 503, "timed_out", "Timed out", "this took too long; try again")
    except Exception:
        _log.exception("request_broken", path=request.path)
        return broken(request)


def known_route(request: web.Request) -> Route | None:
    """The route that this request is for, if the table has it. HEAD is asked of what answers GET."""
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return request.config_dict[TABLE].get((method, resource.canonical))


@web.middleware
async def access(request: web.Request, handler: Next) -> web.StreamResponse:
    """Let through whom the route table lets through; a route it does not know is nobody's."""
    if request.match_info.http_exception is not None or request.match_info.route.resource is None:
        return await handler(request)
    route = known_route(request)
    if route is not None and route.access == "public":
        return await handler(request)
    key = await _caller(request, route)
    if key is None:
        either = ", or a stream ticket" if route is not None and route.ticket else ""
        raise Unauthorized(f"send an API key as `Authorization: Bearer KEY`{either}")
    request.config_dict[LIMIT].take(key.name)
    if route is None or (route.access == "operate" and key.role != "operate"):
        raise Forbidden(f"the key {key.name} may not do this")
    request[KEY] = key
    return await handler(request)


async def _caller(request: web.Request, route: Route | None) -> ApiKey | None:
    """Whose request it is: by a stream ticket where there is one and the route takes them, else by the key
    in its Authorization header, or else by its console session.
    """
    keys = request.config_dict[KEYS]
    if route is not None and route.ticket and (ticket := request.query.get("ticket")):
        return tickets.redeem(keys, ticket, route.ticket(request))
    if "Authorization" in request.headers:
        return find_key(keys, _presented_key(request))
    session = await request.config_dict[SESSIONS].of(request)
    if session is None:
        return None
    request[SESSION] = session
    return session.key


@web.middleware
async def parameters(request: web.Request, handler: Next) -> web.StreamResponse:
    """Read what stands in path and query; what is wrong is refused before anything is asked for by it.

    Not of the webhook, whose answers are Meta's: 200 or 403.
    """
    route = known_route(request)
    if request.path == "/api/webhook" or request.match_info.http_exception is not None or route is None:
        return await handler(request)
    refuse_unstorable(request)
    request[PATH] = read_parameters(route.path_model, request.match_info)
    if route.query is not None:
        request[QUERY] = read_parameters(route.query, once_each(request.query))
    return await handler(request)


def _presented_key(request: web.Request) -> str:
    scheme, _, value = request.headers["Authorization"].partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
