"""What Prometheus reads: that it parses, that it tells the truth, and that nothing makes it fail."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from http_support import (
    ELSEWHERE_KEY,
    OPERATE_KEY,
    OTHER_PAGE,
    OTHER_PERSON,
    PAGE,
    PERSON,
    READ_KEY,
    SECRETS,
    Owner,
    Service,
    bearer,
    delivery,
    eventually,
    inject,
    problem,
    said,
)
from prometheus_client.parser import text_string_to_metric_families

import promtool
from convsync import __version__
from convsync.observe import metrics
from convsync.web.app import create_app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's numbers are as fresh as the scrape."""
    ask = metrics.DatabaseNumbers.__init__

    def fresh(self: Any, store: Any) -> None:
        ask(self, store, keep=0.0)

    monkeypatch.setattr(metrics.DatabaseNumbers, "__init__", fresh)


async def scraped(service: Service, key: str = READ_KEY) -> str:
    async with service.client.get("/metrics", headers=bearer(key)) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        for secret in SECRETS:
            assert secret not in text
        return text


async def samples(service: Service) -> Samples:
    """Each sample by its name and labels; none is there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(await scraped(service)):
        for one in family.samples:
            key = one.name, frozenset(one.labels.items())
            assert key not in found
            found[key] = one.value
    return found


def at(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def told(text: str) -> dict[str, str]:
    """Metric and type, as Prometheus is told."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


async def test_version_conflicts_of_callers_are_counted(service: Service) -> None:
    await service.add_page()
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    _, known = await service.call("GET", f"/api/pages/{PAGE}/conversations")
    (one,) = known["conversations"]
    path = f"/api/pages/{PAGE}/conversations/{one['conversation_id']}"
    for version, expected in (("0", 412), (str(one["version"]), 200), (str(one["version"]), 412)):
        async with service.client.patch(
            path, json={"tags": [version]}, headers=bearer(OPERATE_KEY) | {"If-Match": f'"{version}"'}
        ) as answer:
            assert answer.status == expected, await answer.text()
    refused = at(
        await samples(service),
        "convsync_database_call_errors_total",
        function="update_conversation",
        error="VersionConflict",
    )
    assert refused == 2


async def test_the_document_lists_exactly_the_metrics_that_are_served(service: Service) -> None:
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    listed = dict(re.findall(r"^\| `(convsync_\w+)` \| (\w+) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE))
    assert len(listed) > 50

    async def with_the_certificate() -> str | None:
        text = await scraped(service)
        return text if "convsync_certificate_conversations" in text else None

    assert told(await eventually(with_the_certificate)) == listed


async def test_names_follow_the_conventions_of_prometheus(service: Service) -> None:
    text = await scraped(service)
    for name, kind in told(text).items():
        assert name.startswith("convsync_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|milliseconds|minutes|kb)\b", name), name
        assert re.search(rf"^# HELP {name} \S", text, re.MULTILINE), name


async def test_promtool_finds_no_fault_with_what_is_served(service: Service) -> None:
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    code, found = promtool.run("check", "metrics", text=await scraped(service))
    assert (code, found) == (0, "")


async def test_the_numbers_of_the_write_path_rise_as_deliveries_come(service: Service) -> None:
    before = await samples(service)
    assert at(before, "convsync_deliveries_committed_total") == 0
    assert at(before, "convsync_commit_facts_count") == 0

    three = delivery(said("m_1", "a"), said("m_2", "b"), said("m_3", "c"))
    assert await service.deliver(three) == 200
    assert await service.deliver(delivery(said("m_4", "d"))) == 200
    assert (await service.deliver_bytes(b"{}", **{"X-Hub-Signature-256": "sha256=0"}))[0] == 403
    assert (await service.deliver_bytes(b"{"))[0] == 400
    async with service.client.get("/api/webhook") as answer:
        assert answer.status == 403  # a question of Meta's, not a delivery

    after = await samples(service)
    for status, count in (("200", 2), ("403", 1), ("400", 1)):
        assert at(after, "convsync_webhook_requests_total", status=status) == count
    assert at(after, "convsync_webhook_request_duration_seconds_count") == 4
    assert 0 < at(after, "convsync_webhook_request_duration_seconds_sum") < 60
    assert at(after, "convsync_webhook_request_duration_seconds_bucket", le="+Inf") == 4
    assert at(after, "convsync_deliveries_committed_total") == 2
    assert at(after, "convsync_facts_committed_total") == 4
    assert at(after, "convsync_commits_total") == 2
    assert at(after, "convsync_commit_facts_count") == 2
    assert at(after, "convsync_commit_facts_sum") == 4
    assert at(after, "convsync_commit_facts_bucket", le="1.0") == 1
    assert at(after, "convsync_commit_facts_bucket", le="5.0") == 2
    assert at(after, "convsync_commit_call_duration_seconds_count", outcome="committed") == 2
    assert at(after, "convsync_commit_call_duration_seconds_count", outcome="failed") == 0
    assert at(after, "convsync_waiting_facts") == 0
    for reason in ("full", "late", "unavailable"):
        assert at(after, "convsync_deliveries_refused_total", reason=reason) == 0
    assert at(after, "convsync_database_up") == 1
    assert at(after, "convsync_pool_connections_max") == 10
    assert 1 <= at(after, "convsync_pool_connections") <= 10
    (build,) = [dict(labels) for name, labels in after if name == "convsync_build_info"]
    assert build["version"] == __version__


async def test_what_waits_is_told_while_it_waits(service: Service, database: Any) -> None:
    assert await service.deliver(delivery(said("m_0", "hello"))) == 200
    with psycopg.connect(database.owner_url) as locker:
        locker.execute("select 1 from convsync.messenger_conversations for update")
        waiting = asyncio.create_task(service.deliver(delivery(said("m_1", "a"), said("m_2", "b"))))

        async def two() -> bool | None:
            return at(await samples(service), "convsync_waiting_facts") == 2 or None

        await eventually(two)
    assert await waiting == 200
    assert at(await samples(service), "convsync_waiting_facts") == 0


async def test_poison_and_dead_letters_are_told_by_their_reason(service: Service, owner: Owner) -> None:
    before = await samples(service)
    assert at(before, "convsync_dead_letters_open", source="webhook", reason="refused") == 0
    inject(owner, "22003", when="new.message_id = 'm_poison'", times=1_000_000)
    document = delivery(said("m_1", "fine"), said("m_poison", "x", person=OTHER_PERSON), "not an object")
    assert await service.deliver(document) == 200
    after = await samples(service)
    assert at(after, "convsync_poison_facts_total") == 1
    assert at(after, "convsync_dead_letters_open", source="webhook", reason="refused") == 1
    assert at(after, "convsync_dead_letters_open", source="webhook", reason="not_understood") == 1
    assert at(after, "convsync_dead_letters_open", source="sync", reason="not_understood") == 0
    assert at(after, "convsync_dead_letters_oldest_seconds", source="webhook", reason="refused") >= 0
    assert at(after, "convsync_commit_call_duration_seconds_count", outcome="failed") >= 1


async def test_refused_facts_are_counted_by_source_and_reason(service: Service, owner: Owner) -> None:
    owner.execute("select convsync_api.add_page(%s)", [PAGE])
    owner.execute("select convsync_api.erase_contact(%s, %s)", [PAGE, PERSON])
    before = await samples(service)
    for source in ("webhook", "sync", "sql", "import"):
        for reason in ("erased", "purged"):
            assert at(before, "convsync_refused_facts_total", source=source, reason=reason) == 0
    for _ in range(2):
        assert await service.deliver(delivery(said("m_1", "of before"))) == 200
    after = await samples(service)
    assert at(after, "convsync_refused_facts_total", source="webhook", reason="erased") == 2
    assert at(after, "convsync_refused_facts_total", source="webhook", reason="purged") == 0


async def test_the_lag_of_each_named_consumer_is_told_but_of_a_limited_key(service: Service) -> None:
    for number, page_id in enumerate((PAGE, PAGE, OTHER_PAGE)):
        document = delivery(said(f"m_{number}", "x", page_id=page_id), page_id=page_id)
        assert await service.deliver(document) == 200

    async def all_three() -> list[Any] | None:
        _, found = await service.call("GET", "/api/changes")
        return found["changes"] if len(found["changes"]) == 3 else None

    changes = await eventually(all_three)
    for consumer, key in (("crm", OPERATE_KEY), ("mine", ELSEWHERE_KEY)):
        path = f"/api/changes/{consumer}/position"
        status, _ = await service.call("POST", path, {"position": changes[0]["position"]}, key=key)
        assert status == 200
    found = await samples(service)
    assert at(found, "convsync_feed_consumer_behind_changes", consumer="crm") == 2
    assert at(found, "convsync_feed_consumer_behind_seconds", consumer="crm") > 0
    named = {dict(labels)["consumer"] for name, labels in found if name.startswith("convsync_feed_consumer")}
    assert named == {"crm"}
    assert at(found, "convsync_feed_held_back_changes") == 0


async def test_two_applications_in_one_process_count_for_themselves(
    service: Service, configure: Any, database: Any, aiohttp_client: Any
) -> None:
    app = create_app(configure(), database.service_url)
    other = Service(await aiohttp_client(app), app)
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    assert at(await samples(service), "convsync_deliveries_committed_total") == 1
    assert at(await samples(other), "convsync_deliveries_committed_total") == 0


async def test_while_the_database_is_away_the_scrape_goes_on_without_its_numbers(
    configure: Any, aiohttp_client: Any
) -> None:
    app = create_app(configure(), "postgresql://nobody@127.0.0.1:1/nothing")
    service = Service(await aiohttp_client(app), app)
    assert await service.deliver(delivery(said("m_1", "hello"))) == 503
    async with asyncio.timeout(10):
        found = await samples(service)
    assert at(found, "convsync_database_up") == 0
    refused = [
        at(found, "convsync_deliveries_refused_total", reason=why) for why in ("full", "late", "unavailable")
    ]
    assert sum(refused) == 1
    assert at(found, "convsync_webhook_requests_total", status="503") == 1
    assert not any(name.startswith(("convsync_dead_letters", "convsync_feed")) for name, _ in found)


async def test_a_database_of_another_release_does_not_fail_the_scrape(service: Service, owner: Owner) -> None:
    owner.execute("drop function convsync_api.metrics()")
    assert at(await samples(service), "convsync_database_up") == 0


async def test_a_key_limited_to_pages_is_told_why_it_may_not(service: Service) -> None:
    status, document = await service.call("GET", "/metrics", key=ELSEWHERE_KEY)
    problem(document, 403, "forbidden")
    assert status == 403
    assert "limited to Pages" in document["detail"]
    status, document = await service.call("GET", "/metrics", key="")
    assert status == 401
    problem(document, 401, "unauthorized")
