"""The service as the tests of its API run it: as the service role, on a database of its own, no Graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from api_support import API_KEYS, APP_SECRET, TOKEN_KEY, Api, Owner
from psycopg.rows import dict_row
from pydantic import SecretStr

from convsync.settings import Settings
from convsync.web.app import create_app
from convsync.web.routes import changes


@pytest.fixture
def settings(database: Any) -> Settings:
    return Settings(
        _env_file=None,
        database_url=SecretStr(database.service_url),
        app_secret=SecretStr(APP_SECRET),
        api_keys=SecretStr(API_KEYS),
        token_key=SecretStr(TOKEN_KEY),
        graph_url="http://127.0.0.1:1",
        calls_per_second=0,
    )


@pytest.fixture
async def api(settings: Settings, database: Any, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr(changes, "POLL_SECONDS", 0.02)
    app = create_app(settings, database.service_url)
    return Api(await aiohttp_client(app), app)


@pytest.fixture
def owner(database: Any) -> Iterator[Owner]:
    """The owner's connection, to look into the tables."""
    with psycopg.connect(database.owner_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection
