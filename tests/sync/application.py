"""The whole application, in this process, on a world's database and simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from convsync.settings import Settings
from convsync.simulator.config import DEFAULT_APP_SECRET, DEFAULT_VERIFY_TOKEN
from convsync.sync.runner import SyncRunner
from convsync.tasks import end
from convsync.web.app import create_app, serve
from convsync.web.state import RUNNER
from secrets_hunt import marked, marked_key
from sync.world import World

API_KEY = marked("operate-key")


@asynccontextmanager
async def service(world: World, data_dir: Path, **more: Any) -> AsyncIterator[tuple[str, SyncRunner]]:
    """The whole application on the world's database and simulator: its address and its runner."""
    key = marked_key()
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]
        **{
            "database_url": SecretStr(world.database.service_url),
            "data_dir": data_dir,
            "app_secret": SecretStr(DEFAULT_APP_SECRET),
            "verify_token": SecretStr(DEFAULT_VERIFY_TOKEN),
            "api_keys": SecretStr(f"test:operate:{API_KEY}"),
            "graph_url": world.simulator.url,
            "token_key": SecretStr(key),
            "calls_per_second": 0,
            "pool_max": 6,
            **more,
        },
    )
    box = settings.token_box()
    page = world.simulator.page
    await world.store.add_page(
        page_id=page.page_id, token_sealed=box.seal(page.page_id, page.token), token_key_id=box.key_id
    )
    app = create_app(settings, world.database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    try:
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        world.simulator.webhooks.url = f"{address}/api/webhook"
        world.simulator.webhooks.subscribe(page.page_id)
        yield address, app[RUNNER]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def supervised(runner: SyncRunner, **how: Any) -> AsyncIterator[None]:
    """The runner carries what it is given; of what is paused, abandoned or due only what `how` says."""
    task = asyncio.create_task(runner.supervise(**({"resume": False} | how)))
    try:
        yield
    finally:
        await end(task)


async def ended(world: World, run_id: int) -> dict[str, Any]:
    """The run, once it has ended."""
    async with asyncio.timeout(60):
        while True:
            run = await world.store.get_sync_run(run_id=run_id)
            if run["status"] not in ("queued", "running"):
                return run
            await asyncio.sleep(0.02)
