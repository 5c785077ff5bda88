"""What the console's pages are made with: templates, their filters and headers, errors as pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import aiohttp_jinja2
import jinja2
import orjson
from aiohttp import web
from markupsafe import Markup

from convsync import __version__
from convsync.facts import Json
from convsync.web.routing import KEY
from convsync.web.sessions import CSRF_FIELD, SESSION

FILES = Path(__file__).resolve().parent / "console"
LOGIN = "/console/login"
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it a browser tells `Origin: null` of our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# What a page says after a form did something; the address only has the name.
NOTICES = {
    "started": "The sync has begun.",
    "resumed": "The sync goes on where it was.",
    "cancelled": "The sync was cancelled.",
    "ended": "It had ended before.",
    "retried": "The sync goes on with what could not be read.",
    "allowed": "Allowed: a retry asks for each of them.",
    "replayed": "Replayed: what it says is in the mirror now.",
    "discarded": "Discarded.",
    "settled": "It had been settled before.",
}

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def set_up(app: web.Application) -> None:
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.FileSystemLoader(FILES / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=moment, clock=clock, day=day, number=number, duration=duration, size=size, words=words
    )


def page(
    request: web.Request, template: str, context: Mapping[str, object], *, status: int = 200
) -> web.Response:
    """A page of the console for whoever asks."""
    session = request.get(SESSION)
    # Of a refusal for its role, only the session knows the key.
    key = request.get(KEY) or (session.key if session else None)
    response = aiohttp_jinja2.render_template(
        template,
        request,
        {
            "release": __version__,
            "key": key,
            "session": session,
            # Forms carry a session's token: who shows a bare key uses the API.
            "may_operate": session is not None and session.key.role == "operate",
            "csrf_field": CSRF_FIELD,
            "path": request.path,
            # Where a script asks for this page again; what a form was answered with has no such place.
            "address": request.path_qs if request.method == "GET" else None,
            "notice": NOTICES.get(request.query.get("notice", "")),
            "alert": None,
            **context,
        },
        status=status,
    )
    response.headers.update(_HEADERS)
    return response


def see_other(path: str, **query: str) -> web.Response:
    """On to another page, after a form was sent."""
    address = f"{path}?{urlencode(query)}" if query else path
    return web.Response(status=303, headers={"Location": address, "Cache-Control": "no-store"})


def page_path(page_id: str) -> str:
    return f"/console/pages/{quote(page_id, safe='')}"


def local_path(given: object) -> str:
    """A path of the console to go on to after the login; whatever else was given, the overview."""
    path = given if isinstance(given, str) else ""
    own = path == "/" or path.startswith(("/?", "/console/"))
    return path if own and "\\" not in path and path.isprintable() and path.isascii() else "/"


@web.middleware
async def errors_as_pages(request: web.Request, handler: Next) -> web.StreamResponse:
    """Of the console's own addresses, and for browsers: a problem document becomes a page that people can
    read; where a key is missing, the login.
    """
    response = await handler(request)
    ours = request.path == "/" or request.path.startswith("/console/")
    if (
        not ours
        or not isinstance(response, web.Response)
        or response.content_type != "application/problem+json"
        or "text/html" not in request.headers.get("Accept", "")
    ):
        return response
    if response.status == 401:
        if request.method in ("GET", "HEAD") and request.path_qs != "/":
            return see_other(LOGIN, next=local_path(request.path_qs))
        return see_other(LOGIN)
    assert isinstance(response.body, bytes)  # noqa: S101 - a problem document always is
    problem: Json = orjson.loads(response.body)
    told = page(request, "error.html", {"problem": problem}, status=response.status)
    for name in ("Allow", "Retry-After"):
        if name in response.headers:
            told.headers[name] = response.headers[name]
    return told


# Filters


def _read(value: str | datetime) -> datetime:
    at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return at.astimezone(UTC)


def moment(value: str | datetime | None, none: str = "never") -> Markup | str:
    """A time; the script shows it in the reader's zone."""
    if value is None:
        return none
    at = _read(value)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), f"{at:%Y-%m-%d %H:%M} UTC"
    )


def clock(value: str) -> Markup:
    """The time of a message, whose day stands above it."""
    at = _read(value)
    return Markup('<time datetime="{}" data-style="clock">{}</time>').format(
        at.isoformat(timespec="milliseconds"), f"{at:%H:%M} UTC"
    )


def day(value: str) -> str:
    at = _read(value)
    return f"{at:%A}, {at.day} {at:%B %Y}"


def number(value: float) -> str:
    return f"{value:,}"


def duration(seconds: float | None) -> str:
    """About how long, in words."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"


def size(octets: float) -> str:
    if octets < 1000:
        return f"{octets:.0f} bytes"
    if octets < 1_000_000:
        return f"{octets / 1000:.0f} kB"
    return f"{octets / 1_000_000:.1f} MB"


def words(code: str) -> str:
    """A code such as `token_missing`, for people."""
    return code.replace("_", " ")


def web_address(value: object) -> str | None:
    """An address that may become a link: of the web, and nothing that a browser would run."""
    if not isinstance(value, str):
        return None
    try:
        parts = urlsplit(value)
    except ValueError:
        return None
    return value if parts.scheme in ("http", "https") and parts.netloc else None
