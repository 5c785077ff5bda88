"""The console: login and logout, its files, the overview, a Page and its syncs."""

from __future__ import annotations

import structlog
from aiohttp import web

from convsync.errors import AlreadyRunning
from convsync.facts import Json
from convsync.settings import find_key
from convsync.web import sse
from convsync.web.middlewares import KEYS
from convsync.web.routes.sync import visible_run
from convsync.web.routing import REQUEST_ID, allowed_page, refused, route, visible_pages, whole_number
from convsync.web.sessions import read_form
from convsync.web.state import RUNNER, SESSIONS, STORE
from convsync.web.views import FILES, LOGIN, local_path, page, page_path, see_other

MODES = ("incremental", "full", "reconcile")
_PAGES = 25
_HISTORY = 20
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_log = structlog.get_logger(__name__)
_ASSETS = {file.name: file for file in (FILES / "assets").iterdir() if file.suffix in _TYPES}


# Who is there


@route("GET", LOGIN, access="public")
async def login_form(request: web.Request) -> web.Response:
    return page(request, "login.html", {"next": local_path(request.query.get("next"))})


@route("POST", LOGIN, access="public")
async def login(request: web.Request) -> web.Response:
    """A session for who knows a key; the answer never repeats what was typed."""
    sessions = request.app[SESSIONS]
    sessions.refuse_other_sites(request)
    form = await read_form(request)
    wanted = local_path(form.get("next"))
    key = find_key(request.app[KEYS], form.get("key", "").strip())
    if key is None:
        _log.warning("login_refused")
        told = {"next": wanted, "alert": "This is not a key of this service."}
        return page(request, "login.html", told, status=401)
    answer = see_other(wanted)
    sessions.begin(request, answer, key)
    return answer


@route("POST", "/console/logout", access="read")
async def logout(request: web.Request) -> web.Response:
    answer = see_other(LOGIN)
    request.app[SESSIONS].end(request, answer)
    return answer


@route("GET", "/console/assets/{file}", access="public")
async def asset(request: web.Request) -> web.Response:
    """The console's style, scripts and icon; they hold no data."""
    file = _ASSETS.get(request.match_info["file"])
    if file is None:
        raise web.HTTPNotFound
    return web.Response(
        body=file.read_bytes(),
        content_type=_TYPES[file.suffix],
        charset="utf-8",
        headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"},
    )


# Pages and their syncs


@route("GET", "/", access="read")
async def overview(request: web.Request) -> web.Response:
    """The Pages, those with a problem first; `q` finds some by name or id, `after` goes on."""
    store, query, after = request.app[STORE], request.query.get("q", "").strip(), request.query.get("after")
    # One more than is shown tells whether that is all.
    found = await store.find_pages(query=query, pages=visible_pages(request), after=after, limit=_PAGES + 1)
    shown = found[:_PAGES]
    known = {one["page_id"]: one for one in await store.list_pages(pages=[one.page_id for one in shown])}
    context = {
        # Whoever was removed just now is not there any more.
        "pages": [known[one.page_id] for one in shown if one.page_id in known],
        "query": query,
        "next": shown[-1].place if len(found) > len(shown) else None,
        "after": after,
    }
    return page(request, "overview.html", context)


@route("GET", "/console/pages/{page_id}", access="read")
async def one_page(request: web.Request) -> web.Response:
    """How a Page stands, its runs (`before` goes on with older ones), and the form that begins one."""
    page_id = allowed_page(request, request.match_info["page_id"])
    before = request.query.get("before")
    return await _page(request, page_id, before=whole_number(before, "before") if before else None)


async def _page(
    request: web.Request,
    page_id: str,
    *,
    before: int | None = None,
    alert: str | None = None,
    running: int | None = None,
    status: int = 200,
) -> web.Response:
    store = request.app[STORE]
    found = await store.list_sync_runs(page_id=page_id, before=before, limit=_HISTORY)
    runs: list[Json] = found["runs"]
    active = [run for run in runs if run["status"] not in sse.ENDED or run["status"] == "paused"]
    context = {
        "page": await store.get_page(page_id=page_id),
        "problems": await store.list_problems(page_id=page_id),
        "modes": MODES,
        "active": active,
        # Without one at work, what the last one came to.
        "latest": runs[0] if runs and not active and before is None else None,
        "runs": runs,
        "older": found["next"],
        "before": before,
        "alert": alert,
        "running": running,
        "path": page_path(page_id),
        "address": request.path_qs if request.method == "GET" else page_path(page_id),
    }
    return page(request, "page.html", context, status=status)


@route("POST", "/console/pages/{page_id}/syncs", access="operate")
async def start(request: web.Request) -> web.Response:
    """Begin a sync; if one of its kind is at work, the Page says so (409) and where it is."""
    page_id = allowed_page(request, request.match_info["page_id"])
    form = await read_form(request)
    mode = form.get("mode", "")
    if mode not in MODES:
        raise refused("mode", f"must be one of {', '.join(MODES)}")
    try:
        begun = await request.app[RUNNER].start(
            page_id, mode, restart="restart" in form, request_id=request[REQUEST_ID]
        )
    except AlreadyRunning as conflict:
        told = f"This sync was not begun: run {conflict.run_id} is at work on this Page."
        return await _page(request, page_id, alert=told, running=conflict.run_id, status=409)
    return see_other(page_path(page_id), notice="resumed" if begun.resumed else "started")


def _run_id(request: web.Request) -> int:
    return whole_number(request.match_info["run_id"], "run_id")


@route("GET", "/console/sync-runs/{run_id}", access="read")
async def one_run(request: web.Request) -> web.Response:
    run = await visible_run(request, _run_id(request))
    return page(request, "run.html", {"run": run, "page": await named_page(request, run["page_id"])})


async def named_page(request: web.Request, page_id: str) -> Json:
    """The Page as the head of a page of the console shows it."""
    found = await request.app[STORE].find_pages(pages=[page_id], limit=1)
    return {"page_id": page_id, "name": found[0].name if found else None}


@route("POST", "/console/sync-runs/{run_id}/cancel", access="operate")
async def cancel(request: web.Request) -> web.Response:
    run = await visible_run(request, _run_id(request))
    now = await request.app[STORE].cancel_sync(page_id=run["page_id"], run_id=int(run["run_id"]))
    notice = "cancelled" if now == "cancelled" else "ended"
    return see_other(f"/console/sync-runs/{run['run_id']}", notice=notice)


@route("POST", "/console/sync-runs/{run_id}/retry", access="operate")
async def retry(request: web.Request) -> web.Response:
    run = await visible_run(request, _run_id(request))
    await request.app[RUNNER].retry(
        run["page_id"], int(run["run_id"]), run["mode"], request_id=request[REQUEST_ID]
    )
    return see_other(f"/console/sync-runs/{run['run_id']}", notice="retried")


@route("POST", "/console/sync-runs/{run_id}/allow-deletions", access="operate")
async def allow_deletions(request: web.Request) -> web.Response:
    run = await visible_run(request, _run_id(request))
    await request.app[STORE].allow_deletions_of_run(page_id=run["page_id"], run_id=int(run["run_id"]))
    return see_other(f"/console/sync-runs/{run['run_id']}", notice="allowed")
