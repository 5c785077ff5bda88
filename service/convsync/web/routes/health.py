"""Is the process up; can it do its work."""

from __future__ import annotations

from aiohttp import web

from convsync import __version__
from convsync.errors import ConvsyncError
from convsync.web import answered
from convsync.web.routing import Answer, route
from convsync.web.state import LIFECYCLE, SCHEMA, STORE


@route(
    "GET",
    "/healthz",
    access="public",
    answers={200: Answer(answered.Health)},
    needs_database=False,
)
async def healthz(_request: web.Request) -> web.Response:
    """The process answers; nothing more."""
    return web.json_response({"status": "ok", "release": __version__})


@route(
    "GET",
    "/readyz",
    access="public",
    answers={
        200: Answer(answered.Readiness),
        503: Answer(answered.Readiness, what="Not ready; `checks` says what is missing."),
    },
    needs_database=False,
)
async def readyz(request: web.Request) -> web.Response:
    """200 if the database is there, keeps what it commits and has this schema, and we are not leaving."""
    checks = {
        "database": False,
        "durable": False,
        "schema": False,
        "serving": not request.app[LIFECYCLE].stopping,
    }
    try:
        health = await request.app[STORE].health()
    except ConvsyncError:
        pass
    else:
        checks["database"] = bool(health["writable"])
        checks["durable"] = bool(health["durable"])
        checks["schema"] = health["schema_version"] == request.app[SCHEMA]
    ready = all(checks.values())
    body = {"status": "ready" if ready else "not_ready", "checks": checks}
    return web.json_response(body, status=200 if ready else 503)
