"""Secrets go in and never come out: not in logs, answers, errors, nor in the database."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from pydantic import SecretStr

from convsync.observe.logging import configure
from convsync.simulator.config import DEFAULT_PAGE_ID, SimulatedPage
from secrets_hunt import marked
from sync.application import API_KEY, ended, service
from sync.world import open_world

APP_SECRET, VERIFY_TOKEN = marked("marker-app-secret"), marked("marker-verify-token")
OTHER_KEY = marked("marker-api-key")
SMALL_ANSWERS = {"max_conversations_per_call": 4, "max_messages_per_call": 20}


@contextmanager
def service_logging() -> Iterator[None]:
    """Logging as the service has it, at its most talkative."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure("json", level=logging.DEBUG)
    structlog.configure(cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)


async def test_no_secret_reaches_logs_answers_errors_or_the_database(
    database: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Marker secrets go through syncs that work and that fail, webhooks and refusals; none comes out."""
    token = marked("EAAmarkertoken")
    markers = [token, APP_SECRET, VERIFY_TOKEN, OTHER_KEY, API_KEY]
    page = SimulatedPage(DEFAULT_PAGE_ID, "Harbour Bicycles", token)
    caplog.set_level(logging.DEBUG)
    config = {"pages": (page,), "app_secret": APP_SECRET, "verify_token": VERIFY_TOKEN}
    heard: list[str] = []
    async with (
        open_world(database, messages=10.0, **SMALL_ANSWERS, **config) as world,
        AsyncExitStack() as stack,
    ):
        stack.enter_context(service_logging())
        settings = {
            "app_secret": SecretStr(APP_SECRET),
            "verify_token": SecretStr(VERIFY_TOKEN),
            "api_keys": SecretStr(f"marker:operate:{OTHER_KEY}"),
        }
        async with service(world, tmp_path, **settings) as (address, runner):
            # Errors as Meta words them: with the token, and with the address that holds it.
            leaky = (
                f"Error validating access token {token}: https://graph.facebook.com/?access_token={token}&x=1"
            )
            world.simulator.faults.add("conversations", "error", code=2, times=2, after=2, message=leaky)
            longest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
            world.simulator.faults.add(f"{longest.thread_id}/messages", "error", code=10, message=leaky)
            first = await runner.start(world.page_id, "full")
            run = await ended(world, first.run_id)
            assert run["status"] == "partial"
            world.simulator.faults.clear()
            assert (await world.simulator.traffic(30, seed=3)).failed == 0
            world.simulator.faults.add("conversations", "error", code=190, subcode=463, message=leaky)
            second = await runner.start(world.page_id, "full")
            assert (await ended(world, second.run_id))["reason"] == "token_invalid"

            headers = {"Authorization": f"Bearer {OTHER_KEY}"}
            async with aiohttp.ClientSession(address) as client:
                for path in (
                    "/",
                    "/api/pages",
                    f"/api/pages/{world.page_id}",
                    f"/api/sync-runs/{first.run_id}",
                    f"/api/sync-runs/{second.run_id}",
                    "/api/webhook?hub.mode=subscribe&hub.challenge=1&hub.verify_token=wrong",
                    "/healthz",
                    "/readyz",
                    "/nowhere",
                ):
                    for sent in (headers, {"Authorization": f"Bearer {token}"}, {}):
                        async with client.get(path, headers=sent) as answer:
                            heard += [await answer.text(), str(answer.headers)]
                forged = {"X-Hub-Signature-256": "sha256=" + "0" * 64}
                async with client.post("/api/webhook", data=b"{}", headers=forged) as answer:
                    assert answer.status == 403
                    heard += [await answer.text(), str(answer.headers)]
        dumped = await world.rows(
            """
            select to_jsonb(t)::text as line from convsync.sync_runs t
            union all select to_jsonb(t)::text from convsync.sync_batches t
            union all select to_jsonb(t)::text from convsync.call_budgets t
            union all select (to_jsonb(t) - 'token_sealed')::text from convsync.pages t
            union all select encode(token_sealed, 'escape') from convsync.pages t
            union all select convert_from(raw, 'UTF8') from convsync.dead_letters t
            union all select to_jsonb(t)::text from convsync.contact_interaction_events t
            """
        )
        heard += [row["line"] for row in dumped]
    printed = capfd.readouterr()
    assert "graph_call_failed" in printed.err
    heard += [printed.out, printed.err, caplog.text]
    for marker in markers:
        assert not [text for text in heard if marker in text], marker
