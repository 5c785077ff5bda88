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
from convsync.web.routing import (
    KEY,
    REQUEST_ID,
    Access,
    Forbidden,
    Unauthorized,
    new_request_id,
    refuse_unstorable,
)
from convsync.web.sessions import SESSION
from convsync.web.state import SESSIONS

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SQL_NAME = re.compile(r"^p_(patch\.)?")
_LOGGED = "the error was logged under this request id"
_log = structlog.get_logger(__name__)

ACCESS: web.AppKey[Mapping[tuple[str, str], Access]] = web.AppKey("access", Mapping)
KEYS: web.AppKey[list[ApiKey]] = web.AppKey("keys", list)


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


@web.middleware
async def request_id(request: web.Request, handler: Next) -> web.StreamResponse:
    """Give every request an id (the caller's own, if it is sensible), every log line and answer too."""
    given = request.headers.get("X-Request-ID", "")
    identity = given if _REQUEST_ID.fullmatch(given) else new_request_id()
    request[REQUEST_ID] = identity
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=identity)
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
        return problem(request, error.status, error.code, error.title, detail, extra)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = re.sub(r"[^a-z0-9]+", "_", error.reason.lower())
        answer = problem(request, error.status, code, error.reason, error.reason)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ConnectionResetError:
        raise
    except TimeoutError:
        _log.warning("request_timed_out", path=request.path)
        return problem(request, 503, "timed_out", "Timed out", "this took too long; try again")
    except Exception:
        _log.exception("request_broken", path=request.path)
        return problem(request, 500, "internal_error", "Internal error", _LOGGED)


@web.middleware
async def access(request: web.Request, handler: Next) -> web.StreamResponse:
    """Let through whom the route table lets through; a route it does not know is nobody's."""
    resource = request.match_info.route.resource
    if request.match_info.http_exception is not None or resource is None:
        return await handler(request)
    method = "GET" if request.method == "HEAD" else request.method
    needed = request.config_dict[ACCESS].get((method, resource.canonical))
    if needed == "public":
        return await handler(request)
    key = await identified(request)
    if key is None:
        raise Unauthorized("send an API key as `Authorization: Bearer KEY`")
    if needed is None or (needed == "operate" and key.role != "operate"):
        raise Forbidden(f"the key {key.name} may not do this")
    request[KEY] = key
    return await handler(request)


@web.middleware
async def parameters(request: web.Request, handler: Next) -> web.StreamResponse:
    """What no row can be named by is refused before anything is asked for by it.

    Not of the webhook, whose answers are Meta's: 200 or 403.
    """
    if request.path != "/api/webhook":
        refuse_unstorable(request)
    return await handler(request)


async def identified(request: web.Request) -> ApiKey | None:
    """Whose request this is: by the key in its Authorization header, or else by its console session."""
    if "Authorization" in request.headers:
        return find_key(request.config_dict[KEYS], _presented_key(request))
    session = await request.config_dict[SESSIONS].of(request)
    if session is None:
        return None
    request[SESSION] = session
    return session.key


def _presented_key(request: web.Request) -> str:
    scheme, _, value = request.headers["Authorization"].partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
