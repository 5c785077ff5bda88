"""The whole examination, from what needs nobody to what asks Graph. It goes as far as it can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import date
from email.utils import parsedate_to_datetime

import aiohttp
import psycopg

from convsync.database.bootstrap import Urls, open_database
from convsync.database.embedded import EmbeddedError
from convsync.database.installer import InstallError
from convsync.database.probe import Probe, probe
from convsync.doctor.alerting import check_alerting
from convsync.doctor.check import Check, ok, problem, skipped
from convsync.doctor.installation import (
    check_clocks,
    check_database,
    check_embedded,
    check_settings,
    unreachable,
)
from convsync.doctor.page import PageDoctor
from convsync.errors import ConvsyncError, from_database, why_unreachable
from convsync.facts import Json
from convsync.graph.client import GraphClient
from convsync.settings import Settings, SettingsError
from convsync.store import Store, create_pool
from convsync.tokens import TokenBox

_DATE_SECONDS = 10.0
_POOL_SECONDS = 10.0
_PAGES_AT_ONCE = 4


async def examine(
    settings: Settings,
    page_id: str | None = None,
    *,
    test_alert: bool = False,
    now: Callable[[], float] = time.time,
    today: date | None = None,
) -> list[Check]:
    """Look at everything, with this Page or every Page. Raises NotFound for a Page that is not there.

    `now` is this machine's clock, in seconds since the epoch. `test_alert` sends a notice to whoever is told.
    """
    checks = list(check_settings(settings, today))
    if test_alert:
        checks.append(await check_alerting(settings))
    graph_clock, graph_check = await _graph_clock(settings.graph_url, now)
    checks.append(graph_check)
    try:
        # The embedded database is ours to bring up to date; a configured one is left as it is.
        async with open_database(settings, "check" if settings.embedded else "leave") as urls:
            probed = await probe(urls.service, now)
            checks += check_database(probed, own_login=not settings.embedded)
            checks.append(check_clocks((probed.ahead, probed.within), graph_clock))
            checks += await _pages(settings, urls, probed, page_id, graph_check.state == "ok")
    except psycopg.Error as error:
        told = why_unreachable(error) or from_database(error).message
        checks += [unreachable(told), check_clocks(None, graph_clock)]
        checks.append(check_embedded(settings, real_pages=False))
    except (EmbeddedError, InstallError) as error:
        checks += [unreachable(str(error).rstrip(".")), check_clocks(None, graph_clock)]
        checks.append(check_embedded(settings, real_pages=False))
    return checks


async def _pages(
    settings: Settings, urls: Urls, probed: Probe, page_id: str | None, graph_answers: bool
) -> list[Check]:
    if probed.schema_version is None or probed.found.refused:
        return [
            check_embedded(settings, real_pages=False),
            skipped("pages", "the database cannot be asked for them"),
        ]
    pool = create_pool(urls.service, size=_PAGES_AT_ONCE, name="doctor")
    await pool.open(wait=True, timeout=_POOL_SECONDS)
    try:
        store = Store(pool)
        try:
            pages = [await store.get_page(page_id=page_id)] if page_id else await store.list_pages()
            kept = any(page["token"] != "none" for page in pages)  # noqa: S105 - a state
            embedded = check_embedded(settings, real_pages=kept)
            return [
                embedded,
                *await _each(settings, store, pages, graph_answers),
                *await _rest(store, page_id),
            ]
        except ConvsyncError as error:
            if error.status == 404:
                raise
            # Of a schema that is behind, some functions may not be there.
            return [skipped("pages", f"the database cannot be asked for them: {error.message}")]
    finally:
        await pool.close()


async def _each(settings: Settings, store: Store, pages: list[Json], graph_answers: bool) -> list[Check]:
    if not pages:
        return [skipped("pages", "there are none: convsync page add PAGE_ID --token-stdin")]
    secret = settings.app_secret.get_secret_value() if settings.app_secret else None
    # Each Page has a budget of its own, so one does not wait for another.
    limit = asyncio.Semaphore(_PAGES_AT_ONCE)
    async with GraphClient(settings.graph_url, settings.graph_version, secret) as graph:
        doctor = PageDoctor(store, graph, _box(settings), settings.calls_per_second, settings.public_url)

        async def examined(page: Json) -> list[Check]:
            async with limit:
                try:
                    return await doctor.examine(page, ask=graph_answers)
                except ConvsyncError as error:
                    told = f"the database cannot be asked: {error.message}"
                    return [skipped("mirror", told, page_id=page["page_id"])]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(examined(page)) for page in pages]
    return [check for task in tasks for check in task.result()]


async def _rest(store: Store, page_id: str | None) -> list[Check]:
    """Problems of no Page in particular; not where one Page was asked for."""
    if page_id is not None:
        return []
    return [
        problem("mirror", one.problem, one.what, one.why, one.mend)
        for one in await store.list_problems()
        if one.page_id is None
    ]


def _box(settings: Settings) -> TokenBox | None:
    try:
        return settings.token_box()
    except SettingsError:
        return None


async def _graph_clock(url: str, now: Callable[[], float]) -> tuple[tuple[float, float] | None, Check]:
    """By how much Meta's clock is ahead of this machine's, give or take how much; is Graph there at all.

    Asked without a token, so it is no call of any Page's. A `Date` header has whole seconds.
    """
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DATE_SECONDS)) as session:
            before = now()
            async with session.head(url, allow_redirects=False) as answer:
                after = now()
                told = answer.headers.get("Date")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return None, problem(
            "graph",
            "graph_unreachable",
            f"The Graph API ({url}) cannot be reached: {type(error).__name__}.",
            "No sync can read anything; webhooks go on.",
            f"see the network, name service and proxy of this machine: curl -sI {url}",
        )
    try:
        there = parsedate_to_datetime(told or "").timestamp() + 0.5
    except ValueError:
        return None, ok("graph", f"{url} answers")
    return (there - (before + after) / 2, (after - before) / 2 + 0.5), ok("graph", f"{url} answers")
