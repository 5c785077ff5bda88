"""The service as the tests of its HTTP face run it: as the service role, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from http_support import API_KEYS, APP_SECRET, TOKEN_KEY, VERIFY_TOKEN, Owner, Service
from psycopg.rows import dict_row
from pydantic import SecretStr

from convsync.settings import Settings
from convsync.simulator import DEFAULT_APP_SECRET, Simulator, SimulatorConfig
from convsync.web import sse
from convsync.web.app import create_app
from gate import Gate, gate_before

Configure = Callable[..., Settings]


@pytest.fixture
def configure(database: Any) -> Configure:
    """Settings of a test service; nobody listens at its Graph API unless a test says where."""

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "database_url": SecretStr(database.service_url),
            "app_secret": SecretStr(APP_SECRET),
            "verify_token": SecretStr(VERIFY_TOKEN),
            "api_keys": SecretStr(API_KEYS),
            "token_key": SecretStr(TOKEN_KEY),
            "graph_url": "http://127.0.0.1:1",
            "calls_per_second": 0,
            **changes,
        }
        return Settings(_env_file=None, **values)

    return make


@pytest.fixture
def owner(database: Any) -> Iterator[Owner]:
    """The owner's connection, to look into the tables."""
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
async def service(configure: Configure, database: Any, aiohttp_client: Any) -> Service:
    app = create_app(configure(), database.service_url)
    return Service(await aiohttp_client(app), app)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """A simulated Graph API with a small inbox; some threads are deeper than one call."""
    config = SimulatorConfig(
        port=0,
        conversations=40,
        messages=30,
        calls_per_second=0,
        app_secret=DEFAULT_APP_SECRET,
        max_conversations_per_call=25,
    )
    async with Simulator(config) as one:
        yield one


@pytest.fixture
async def syncing(
    configure: Configure,
    database: Any,
    simulator: Simulator,
    aiohttp_client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Service:
    """A service whose Graph API is the simulator, with the simulator's Page added."""
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.02)
    settings = configure(graph_url=simulator.url, app_secret=SecretStr(DEFAULT_APP_SECRET))
    app = create_app(settings, database.service_url)
    service = Service(await aiohttp_client(app), app)
    await service.add_page(simulator.page.page_id, token=simulator.page.token)
    return service


@pytest.fixture
def gate(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    with gate_before(simulator, monkeypatch) as one:
        yield one
