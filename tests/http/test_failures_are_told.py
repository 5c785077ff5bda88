"""Whatever goes wrong with a Page, somebody hears of it: once, from however many processes, with what to do.

The old sync told its console. Here nobody looks at a log: what is read is what came to the operator's
address, and what Prometheus would have read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from http_support import (
    PERSON,
    READ_KEY,
    SECRETS,
    Json,
    Owner,
    Service,
    bearer,
    delivery,
    eventually,
    said,
    signature,
    wire,
)
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from convsync.errors import DatabaseUnavailable
from convsync.observe import metrics, problems
from convsync.simulator import DEFAULT_APP_SECRET, Simulator
from convsync.web.app import create_app
from convsync.web.state import STORE
from secrets_hunt import marked

HOOK = marked("hook-of-failures")
SYNC = "/api/conversations/sync"


class Operator:
    """Somebody with an address for alerts; `refuses` says how often it answers 503 first."""

    def __init__(self) -> None:
        self.notices: list[Json] = []
        self.refuses = 0

    async def take(self, request: web.Request) -> web.Response:
        assert request.path == f"/{HOOK}"
        if self.refuses:
            self.refuses -= 1
            return web.Response(status=400)
        self.notices.append(await request.json())
        return web.Response(status=204)

    def heard(self) -> list[tuple[str, str]]:
        return [(one["alert"], one["state"]) for one in self.notices]

    async def hears(self, *expected: tuple[str, str]) -> list[Json]:
        """The notices, once there are as many."""

        async def look() -> bool | None:
            return True if len(self.notices) >= len(expected) else None

        await eventually(look)
        assert self.heard() == list(expected)
        return self.notices


class Installation:
    """Several services on one database and one simulated Facebook, and the operator they tell."""

    def __init__(
        self, start: Callable[[], Awaitable[Service]], simulator: Simulator, operator: Operator
    ) -> None:
        self._start = start
        self.simulator = simulator
        self.operator = operator
        self.services: list[Service] = []

    @property
    def page_id(self) -> str:
        return self.simulator.page.page_id

    async def start(self) -> Service:
        self.services.append(await self._start())
        return self.services[-1]

    async def sync(self, mode: str = "full") -> Json:
        """A sync, to its end."""
        first = self.services[0]
        status, run = await first.call("POST", SYNC, {"page_id": self.page_id, "mode": mode})
        assert status == 202, run
        return await first.ended(run["run_id"])

    async def looked(self) -> None:
        """Every process has looked again, to the end of what there was to tell."""
        for service in self.services:
            store = service.app[STORE]
            take, empty = store.take_alerts, asyncio.Semaphore(0)

            async def counted(*, take: Any = take, empty: Any = empty, **how: Any) -> Any:
                taken = await take(**how)
                if not taken:
                    empty.release()
                return taken

            store.take_alerts = counted  # type: ignore[method-assign]
            async with asyncio.timeout(30):
                await empty.acquire()
                await empty.acquire()
            del store.take_alerts  # the class's own again

    async def samples(self) -> dict[str, float]:
        """What the first service shows."""
        async with self.services[0].client.get("/metrics", headers=bearer(READ_KEY)) as answer:
            assert answer.status == 200
            text = await answer.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(one.labels.items()))
                found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
        return found


@pytest.fixture
async def installation(
    configure: Any,
    database: Any,
    simulator: Simulator,
    aiohttp_client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Installation]:
    """Two services, with the simulator's Page added."""
    monkeypatch.setattr(problems, "LOOK_SECONDS", 0.02)
    ask = metrics.DatabaseNumbers.__init__
    monkeypatch.setattr(metrics.DatabaseNumbers, "__init__", lambda self, store: ask(self, store, keep=0.0))
    operator = Operator()
    receiver = web.Application()
    receiver.router.add_post("/{token}", operator.take)
    async with TestServer(receiver) as server:
        settings = configure(
            graph_url=simulator.url,
            app_secret=SecretStr(DEFAULT_APP_SECRET),
            alert_webhook_url=SecretStr(str(server.make_url(f"/{HOOK}"))),
            # Nothing begins by itself.
            sync_interval=0,
            reconcile_interval=0,
        )

        async def start() -> Service:
            app = create_app(settings, database.service_url)
            return Service(await aiohttp_client(app), app)

        made = Installation(start, simulator, operator)
        first = await made.start()
        await made.start()
        await first.add_page(simulator.page.page_id, token=simulator.page.token)
        yield made
        for service in made.services:
            await service.client.close()


async def test_a_sync_that_fails_is_told_once_by_however_many_processes_and_again_when_one_succeeds(
    installation: Installation,
) -> None:
    operator, page_id = installation.operator, installation.page_id
    fault = installation.simulator.faults.add("/conversations", "error", name="permission")
    run = await installation.sync()
    assert (run["status"], run["reason"]) == ("failed", "permission_denied")
    (notice,) = await operator.hears(("sync_failed", "firing"))
    assert notice["details"] == {
        "page_id": page_id,
        "run_id": run["run_id"],
        "mode": "full",
        "reason": "permission_denied",
    }
    assert f"convsync sync {page_id} --retry {run['run_id']}" in notice["remedy"]
    assert (
        notice["text"] == f"convsync: sync_failed of Page {page_id}\n{notice['summary']}\n{notice['remedy']}"
    )
    assert notice["since"].endswith("+00:00")

    # It fails again, everybody looks again, one more process starts: it is the same cause.
    assert (await installation.sync())["status"] == "failed"
    await installation.start()
    await installation.looked()
    assert operator.heard() == [("sync_failed", "firing")]

    shown = await installation.samples()
    assert shown["convsync_sync_runs_total{mode=full,status=failed}"] == 2
    assert shown["convsync_sync_run_duration_seconds_count{mode=full,status=failed}"] == 2
    assert shown["convsync_page_problems{problem=sync_failed}"] == 1
    assert shown[f"convsync_page_problem{{page_id={page_id},problem=sync_failed}}"] == 1
    assert shown["convsync_sync_batches_failed_total{error_class=permission,kind=list}"] == 2

    installation.simulator.faults.remove(fault.fault_id)
    assert (await installation.sync())["status"] == "succeeded"
    await operator.hears(("sync_failed", "firing"), ("sync_failed", "resolved"))
    await installation.looked()
    assert len(operator.notices) == 2
    assert operator.notices[1]["text"] == f"convsync: sync_failed of Page {page_id} is over."
    shown = await installation.samples()
    assert shown["convsync_page_problems{problem=sync_failed}"] == 0
    assert f"convsync_page_problem{{page_id={page_id},problem=sync_failed}}" not in shown
    for secret in (*SECRETS, HOOK, installation.simulator.page.token):
        assert secret not in str(operator.notices) + str(shown)


async def test_a_sync_that_could_not_read_everything_is_told_until_a_retry_has_read_it(
    installation: Installation,
) -> None:
    simulator, operator = installation.simulator, installation.operator
    deepest = max(simulator.population.conversations, key=lambda one: one.message_count)
    fault = simulator.faults.add(rf"/{deepest.thread_id}/messages", "error", name="permission")
    run = await installation.sync()
    assert (run["status"], run["reason"]) == ("partial", "failed_batches")
    (notice,) = await operator.hears(("sync_partial", "firing"))
    assert notice["details"]["run_id"] == run["run_id"]
    await installation.looked()

    simulator.faults.remove(fault.fault_id)
    first = installation.services[0]
    status, _ = await first.call("POST", f"/api/sync-runs/{run['run_id']}/retry")
    assert status == 202
    assert (await first.ended(run["run_id"]))["status"] == "succeeded"
    await operator.hears(("sync_partial", "firing"), ("sync_partial", "resolved"))


async def test_a_token_that_meta_refuses_is_told_as_such_and_not_as_a_failed_sync_too(
    installation: Installation,
) -> None:
    simulator, operator, page_id = installation.simulator, installation.operator, installation.page_id
    assert (await installation.sync())["status"] == "succeeded"
    fault = simulator.faults.add(".", "error", name="session_expired")
    run = await installation.sync("incremental")
    assert (run["status"], run["reason"]) == ("failed", "token_invalid")
    (notice,) = await operator.hears(("token_invalid", "firing"))
    assert notice["details"]["page_id"] == page_id
    assert f"convsync page add {page_id} --token-stdin" in notice["remedy"]
    await installation.looked()
    shown = await installation.samples()
    assert shown["convsync_page_tokens{state=invalid}"] == 1
    assert shown["convsync_page_freshness{freshness=broken,reason=token_invalid}"] == 1
    refused = "convsync_graph_calls_total{endpoint=conversations,error_class=token,status=400}"
    assert shown[refused] >= 1

    simulator.faults.remove(fault.fault_id)
    await installation.services[1].add_page(page_id, token=simulator.page.token)
    await operator.hears(("token_invalid", "firing"), ("token_invalid", "resolved"))


async def delivered(service: Service, event: Json, page_id: str) -> int:
    """A delivery signed by the simulator's app."""
    body = wire(delivery(event, page_id=page_id))
    signed = {"X-Hub-Signature-256": signature(body, DEFAULT_APP_SECRET)}
    return (await service.deliver_bytes(body, **signed))[0]


async def test_webhooks_that_fell_silent_are_told_while_messages_arrive_by_sync(
    installation: Installation, owner: Owner
) -> None:
    simulator, operator, page_id = installation.simulator, installation.operator, installation.page_id
    first = installation.services[0]
    assert await delivered(first, said("m_hello", "hello", page_id=page_id), page_id) == 200
    owner.execute("update convsync.pages set last_webhook_at = now() - interval '1 hour'")
    simulator.population.new_message(simulator.population.conversations[0], "in", "Is anybody there?")
    assert (await installation.sync())["status"] == "succeeded"
    (notice,) = await operator.hears(("webhooks_silent", "firing"))
    assert f"convsync page subscribe {page_id}" in notice["remedy"]
    await installation.looked()

    assert await delivered(first, said("m_again", "hello again", page_id=page_id), page_id) == 200
    await operator.hears(("webhooks_silent", "firing"), ("webhooks_silent", "resolved"))


async def test_what_could_not_be_told_is_told_later_and_what_process_tells_it_is_all_the_same(
    installation: Installation, owner: Owner
) -> None:
    operator = installation.operator
    operator.refuses = 1
    installation.simulator.faults.add("/conversations", "error", name="permission")
    assert (await installation.sync())["status"] == "failed"

    async def refused() -> bool | None:
        return operator.refuses == 0 or None

    await eventually(refused)
    await installation.looked()
    assert operator.notices == [], "it was taken, and is not offered again at once"
    await installation.services[0].client.close()  # who took it dies
    installation.services.pop(0)
    owner.execute("update convsync.alerts set taken_until = now()")
    await operator.hears(("sync_failed", "firing"))


async def test_while_the_database_is_away_the_watch_goes_on_looking(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [service.app[STORE] for service in installation.services]
    asked = asyncio.Semaphore(0)

    async def away(**how: Any) -> Any:
        asked.release()
        raise DatabaseUnavailable("away")

    for store in stores:
        store.take_alerts = away  # type: ignore[method-assign]
    async with asyncio.timeout(30):
        for _ in range(6):
            await asked.acquire()
    for store in stores:
        del store.take_alerts
    installation.simulator.faults.add("/conversations", "error", name="permission")
    assert (await installation.sync())["status"] == "failed"
    await installation.operator.hears(("sync_failed", "firing"))


async def test_what_syncs_do_and_how_long_they_wait_is_in_the_metrics(installation: Installation) -> None:
    simulator = installation.simulator
    simulator.faults.add("/messages", "error", name="service", times=1)
    simulator.faults.add("/conversations", "status", http=200, body="{}", times=1)
    assert (await installation.sync())["status"] == "succeeded"
    shown = await installation.samples()

    def total(name: str, **labels: str) -> float:
        wanted = [f"{key}={value}" for key, value in labels.items()]
        return sum(
            value
            for sample, value in shown.items()
            if sample.partition("{")[0] == name and all(one in sample for one in wanted)
        )

    assert total("convsync_graph_calls_total") == len(simulator.calls.calls)
    assert total("convsync_graph_call_duration_seconds_count") == len(simulator.calls.calls)
    assert total("convsync_graph_calls_total", endpoint="conversations", error_class="none") >= 2
    refused = {"endpoint": "messages", "error_class": "transient", "status": "503"}
    assert total("convsync_graph_calls_total", **refused) == 1
    assert total("convsync_graph_unreadable_answers_total", endpoint="conversations") == 1
    assert total("convsync_graph_blocks_total", scope="page") == 0
    assert total("convsync_graph_call_wait_seconds_count", lane="backfill") >= 3
    assert total("convsync_sync_messages_total", mode="full") >= simulator.population.message_total()
    assert total("convsync_sync_messages_added_total", mode="full") == simulator.population.message_total()
    assert total("convsync_sync_conversations_total", mode="full") >= len(simulator.population.conversations)
    assert total("convsync_sync_runs_total", mode="full", status="succeeded") == 1
    assert total("convsync_database_call_duration_seconds_count", function="apply_sync_page") >= 2
    assert total("convsync_database_call_errors_total") == 0


async def test_the_certificate_comes_to_whoever_scrapes(installation: Installation) -> None:
    page_id = installation.page_id
    assert (await installation.sync())["status"] == "succeeded"

    async def known() -> dict[str, float] | None:
        shown = await installation.samples()
        return shown if "convsync_certificate_conversations" in shown else None

    shown = await eventually(known)
    everybody = len(installation.simulator.population.conversations)
    assert shown["convsync_certificate_conversations"] == everybody
    complete = shown["convsync_certificate_complete_conversations"]
    assert 0 < complete <= everybody
    ratio = shown[f"convsync_page_certificate_ratio{{page_id={page_id}}}"]
    assert ratio == pytest.approx(complete / everybody)
    assert PERSON not in str(shown)
