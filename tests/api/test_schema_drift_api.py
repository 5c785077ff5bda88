"""What Meta sends that this release does not know: kept with its event, counted, and seen by the operator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from api_support import (
    LIMITED,
    LIMITED_TWICE,
    OTHER_PAGE,
    PAGE,
    PERSON,
    READ,
    Api,
    Json,
    Owner,
    eventually,
)
from click.testing import CliRunner

from convsync.cli import main
from convsync.errors import DatabaseUnavailable
from convsync.observe.drift import Drift
from convsync.store import Store
from convsync.web.app import create_app, serve
from convsync.web.state import COMMIT, DRIFT
from convsync.webhook.group_commit import Unavailable

PATH = "/api/schema-drift"
AT = 1_700_000_000_123


def envelope(*events: Json, page: str = PAGE, **body: Any) -> bytes:
    whole = [
        {"sender": {"id": PERSON}, "recipient": {"id": page}, "timestamp": AT, **event} for event in events
    ]
    return orjson.dumps({"object": "page", "entry": [{"id": page, "time": AT, "messaging": whole}], **body})


def moody(mid: str) -> Json:
    return {"message": {"mid": mid, "text": "hello", "mood": "sunny"}}


async def counted(api: Api, number: int, **query: Any) -> dict[tuple[str | None, str], int]:
    """(page_id, name) -> occurrences, once that many names are there: they are written beside the webhook."""

    async def look() -> list[Json] | None:
        found: list[Json] = (await api.get(PATH, **query))["schema_drift"]
        return found if len(found) >= number else None

    return {(one["page_id"], one["name"]): one["occurrences"] for one in await eventually(look)}


async def test_a_new_field_and_an_unknown_kind_are_kept_and_counted(
    api: Api, owner: Owner, database: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await api.get(PATH) == {"schema_drift": []}
    body = envelope(moody("m_1"), moody("m_2"), {"message_pinned": {"mid": "m_1"}})
    assert (await api.deliver(body)).status == 200

    assert await counted(api, 2, key=READ) == {(PAGE, "message.mood"): 2, (PAGE, "event.message_pinned"): 1}
    [one, _] = (await api.get(PATH))["schema_drift"]
    assert (one["source"], one["first_seen_at"], one["last_seen_at"]) == (
        "webhook",
        one["last_seen_at"],
        one["first_seen_at"],
    )
    kept = owner.execute(
        """select message_id, event_type, metadata from convsync.contact_interaction_events
           order by event_type, message_id"""
    ).fetchall()
    assert [row["event_type"] for row in kept] == ["message", "message", "unknown"]
    assert [row["metadata"] for row in kept[:2]] == [{"webhook": {"mood": "sunny"}}] * 2
    assert kept[2]["metadata"]["webhook"]["message_pinned"] == {"mid": "m_1"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    async def status(*arguments: str) -> str:
        # in a thread of its own: the command has an event loop of its own
        done = await asyncio.to_thread(CliRunner().invoke, main, ["status", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    for arguments in (("--json",), (PAGE, "--json")):
        document = json.loads(await status(*arguments))
        assert {one["name"]: one["occurrences"] for one in document["schema_drift"]} == {
            "message.mood": 2,
            "event.message_pinned": 1,
        }
    assert "message.mood" in await status()
    assert "event.message_pinned" in await status(PAGE)


async def test_status_says_nothing_where_there_is_nothing(
    database: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    done = await asyncio.to_thread(CliRunner().invoke, main, ["status"])
    assert (done.exit_code, "nknown" in done.stdout, "not stored" in done.stdout) == (0, False, False)


async def test_status_counts_what_was_refused(
    database: Any, owner: Owner, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = {
        "kind": "message",
        "sender_id": PERSON,
        "message_id": "m_1",
        "direction": "in",
        "at": "2025-03-01T12:00:00Z",
    }
    for page, times in ((PAGE, 17), (OTHER_PAGE, 23)):
        owner.execute("select convsync_api.add_page(%s)", [page])
        owner.execute("select convsync_api.erase_contact(%s, %s)", [page, PERSON])
        owner.execute(
            "select from convsync_api.ingest(%s, 'sync')",
            [json.dumps([fact | {"page_id": page}] * times)],
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVSYNC_DATABASE_URL", database.owner_url)
    monkeypatch.setenv("CONVSYNC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    async def status(*arguments: str) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, main, ["status", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    for arguments, counts in ((("--json",), {PAGE: 17, OTHER_PAGE: 23}), ((PAGE, "--json"), {PAGE: 17})):
        refused = json.loads(await status(*arguments))["refused_facts"]
        assert {one["page_id"]: one["facts"] for one in refused} == counts
        assert {(one["source"], one["reason"]) for one in refused} == {("sync", "erased")}
    shown = await status(PAGE)
    assert "Told and not stored" in shown
    assert "17" in shown


async def test_a_key_limited_to_pages_sees_what_came_for_these(api: Api) -> None:
    for page in (PAGE, OTHER_PAGE, "104000000000003"):
        assert (await api.deliver(envelope(moody("m_1"), page=page))).status == 200
    # names no Page: for keys that see all
    assert (await api.deliver(envelope(novel=1))).status == 200
    everything = await counted(api, 4)
    assert set(everything) == {
        (None, "novel"),
        *((page, "message.mood") for page in (PAGE, OTHER_PAGE, "104000000000003")),
    }
    assert set(await counted(api, 1, key=LIMITED)) == {(OTHER_PAGE, "message.mood")}
    assert len(await counted(api, 2, key=LIMITED_TWICE)) == 2
    assert set(await counted(api, 1, page_id=PAGE)) == {(PAGE, "message.mood")}
    assert set(await counted(api, 1, key=LIMITED_TWICE, page_id=OTHER_PAGE)) == {(OTHER_PAGE, "message.mood")}
    (await api("GET", PATH, key=LIMITED, page_id=PAGE)).is_problem(404, "not_found")
    (await api("GET", PATH, key="")).is_problem(401, "unauthorized")
    assert len(await counted(api, 1, limit="1")) == 1
    for limit in ("0", "1001", "x"):
        (await api("GET", PATH, limit=limit)).is_problem(422, "invalid_argument")


async def test_a_delivery_that_is_not_kept_is_not_counted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta sends it again: counted then."""

    async def refuse(_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(api.app[COMMIT], "submit", refuse)
        assert (await api.deliver(envelope(moody("m_1")))).status == 503
    assert (await api.deliver(envelope(moody("m_1")))).status == 200
    assert await counted(api, 1) == {(PAGE, "message.mood"): 1}


async def test_a_webhook_neither_waits_nor_fails_when_drift_cannot_be_written(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, calls = asyncio.Event(), 0

    async def record(self: Store, drift: Sequence[Drift]) -> int:
        nonlocal calls
        calls += 1
        stuck.set()
        await asyncio.Event().wait()
        return 0

    monkeypatch.setattr(api.app[DRIFT], "_write", record.__get__(api.store))
    async with asyncio.timeout(30):
        assert (await api.deliver(envelope(moody("m_0")))).status == 200
        await stuck.wait()
        for number in range(20):
            assert (await api.deliver(envelope(moody(f"m_{number}")))).status == 200
    assert calls == 1


async def test_what_was_seen_last_is_written_when_the_service_ends(
    settings: Any, database: Any, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.record_schema_drift
    away, tried = True, asyncio.Event()

    async def record(self: Store, drift: Sequence[Drift]) -> int:
        tried.set()
        if away:
            raise DatabaseUnavailable("away")
        return await real(self, drift)

    monkeypatch.setattr(Store, "record_schema_drift", record)
    app = create_app(settings, database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    app[DRIFT].saw("webhook", [(PAGE, "message.mood")] * 3)
    # The next try is the last one: a write that the end cuts off may be there twice.
    async with asyncio.timeout(30):
        await tried.wait()
    away = False
    await runner.cleanup()
    rows = owner.execute("select name, occurrences from convsync.schema_drift").fetchall()
    assert rows == [{"name": "message.mood", "occurrences": 3}]
