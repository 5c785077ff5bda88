"""A browser for the console. Without one these tests are skipped, and say so; in CI they fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from browser_support import API_KEYS, TOKEN_KEY, Screen, Served, open_screen
from playwright.async_api import Browser, async_playwright, expect
from psycopg.rows import dict_row
from pydantic import SecretStr

from convsync.settings import Settings
from convsync.simulator import DEFAULT_APP_SECRET, Simulator, SimulatorConfig
from convsync.web import sse
from convsync.web.app import create_app, serve
from convsync.web.routes import changes
from convsync.web.state import STORE, TOKENS
from gate import Gate, gate_before

# A machine that is busy with the rest of the suite takes its time.
expect.set_options(timeout=30_000)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = (
            "no `chromium` here (Debian: apt-get install chromium): the console was not tried in a browser"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        one = await playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            yield one
        finally:
            await one.close()


@pytest.fixture
def owner(database: Any) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    config = SimulatorConfig(
        port=0, conversations=60, messages=30, calls_per_second=0, app_secret=DEFAULT_APP_SECRET
    )
    async with Simulator(config) as one:
        yield one


@pytest.fixture
def cors_origins() -> str:
    """Whose pages may call the API."""
    return ""


@pytest.fixture
async def served(
    database: Any, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, cors_origins: str
) -> AsyncIterator[Served]:
    """The service on a port of its own, with the simulator's Page, which was not synced yet."""
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.05)
    settings = Settings(
        _env_file=None,
        database_url=SecretStr(database.service_url),
        app_secret=SecretStr(DEFAULT_APP_SECRET),
        api_keys=SecretStr(API_KEYS),
        token_key=SecretStr(TOKEN_KEY),
        graph_url=simulator.url,
        calls_per_second=0,
        cors_origins=cors_origins,
    )
    app = create_app(settings, database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    try:
        host, port = runner.addresses[0][:2]
        page = simulator.page
        await app[STORE].add_page(
            page_id=page.page_id,
            name="Harbour Bicycles",
            token_sealed=app[TOKENS].seal(page.page_id, page.token),
            token_key_id=app[TOKENS].key_id,
        )
        yield Served(f"http://{host}:{port}", app, simulator)
    finally:
        await runner.cleanup()


@pytest.fixture
async def screen(browser: Browser, served: Served) -> AsyncIterator[Screen]:
    one = await open_screen(browser, served.url)
    yield one
    await one.context.close()
    assert one.complaints == []


@pytest.fixture
def gate(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with gate_before(simulator, monkeypatch) as one:
        yield one
