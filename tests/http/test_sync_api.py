"""Syncs over HTTP: begun, waited for, refused, paused, cancelled, watched; the Graph API is the simulator."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import structlog
from http_support import (
    OPERATOR,
    OTHER_PAGE,
    PAGE,
    READ_KEY,
    Json,
    Owner,
    Sent,
    Service,
    all_events,
    bearer,
    count,
    eventually,
    problem,
    sent_events,
)
from pydantic import SecretStr
from structlog.testing import capture_logs
from yarl import URL

from convsync.errors import DatabaseUnavailable
from convsync.simulator import DEFAULT_APP_SECRET, Simulator, SimulatorConfig
from convsync.simulator.config import default_pages
from convsync.web import sse, tickets
from convsync.web.app import create_app, serve
from convsync.web.routes import changes
from convsync.web.state import RUNNER, STORE, STREAMS

SYNC = "/api/conversations/sync"
STREAM = "/api/conversations/sync-stream"
RUN_FIELDS = {
    "run_id",
    "page_id",
    "mode",
    "status",
    "reason",
    "success",
    "partial",
    "failed_batches",
    "conversations_seen",
    "conversations_changed",
    "messages_added",
    "unreadable",
    "calls",
    "eta_seconds",
    "calls_left",
    "calls_per_second",
    "started_at",
    "finished_at",
    "request_id",
}


@pytest.fixture
def page_id(simulator: Simulator) -> str:
    return simulator.page.page_id


async def begin(service: Service, page_id: str, status: int = 202, **more: Any) -> Json:
    """Begin a sync that does not end at once."""
    found, run = await service.call("POST", SYNC, {"page_id": page_id, **more})
    assert found == status, run
    return run


@asynccontextmanager
async def watching(
    service: Service, run_id: str, **headers: str
) -> AsyncIterator[tuple[aiohttp.ClientResponse, AsyncIterator[Sent | str]]]:
    async with service.client.get(
        STREAM, params={"run_id": run_id}, headers={**OPERATOR, **headers}
    ) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Request-ID"]
        yield answer, sent_events(answer)


async def of_kind(events: AsyncIterator[Sent | str], kind: str) -> Sent:
    """The next event of a kind."""
    async with asyncio.timeout(30):
        async for sent in events:
            if isinstance(sent, Sent) and sent.event == kind:
                return sent
    raise AssertionError(f"the stream ended without {kind}")


def a_deep_thread(simulator: Simulator) -> str:
    """A thread that does not fit into its part of a page of the list."""
    deepest = max(simulator.population.conversations, key=lambda one: one.message_count)
    assert deepest.message_count > 100
    return deepest.thread_id


# Begin, and how it ends


async def test_a_sync_is_accepted_and_runs_to_its_end(
    syncing: Service, simulator: Simulator, page_id: str, owner: Owner
) -> None:
    run = await begin(syncing, page_id)
    assert run["page_id"] == page_id
    assert run["mode"] == "full"
    assert run["resumed"] is False
    ended = await syncing.ended(run["run_id"])
    assert (ended["status"], ended["success"], ended["partial"]) == ("succeeded", True, False)
    assert (
        count(owner, "contact_interaction_events", "deleted_at is null")
        == simulator.population.message_total()
    )
    assert count(owner, "messenger_conversations") == len(simulator.population.conversations)
    page = (await syncing.call("GET", f"/api/pages/{page_id}"))[1]
    assert page["token"] == "valid"
    assert page["last_run"]["run_id"] == run["run_id"]


async def test_waiting_answers_with_the_ended_run_and_every_field_of_the_contract(
    syncing: Service, simulator: Simulator, page_id: str
) -> None:
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id, "mode": "full"}, wait="60")
    assert status == 200
    assert set(run) >= RUN_FIELDS
    assert (run["status"], run["reason"], run["success"], run["partial"]) == ("succeeded", None, True, False)
    assert (run["failed_batches"], run["unreadable"]) == ([], 0)
    # A thread deeper than one call changes with each of its pages.
    assert (
        run["conversations_changed"] >= run["conversations_seen"] == len(simulator.population.conversations)
    )
    assert run["messages_added"] == simulator.population.message_total()
    assert run["calls"] == simulator.calls.totals()[page_id]["calls"]
    assert run["started_at"] < run["finished_at"]
    assert run["started_at"].endswith("+00:00")
    assert isinstance(run["run_id"], str)
    shown = (await syncing.call("GET", f"/api/sync-runs/{run['run_id']}"))[1]
    assert {**shown, "resumed": False} == run


async def test_waiting_no_longer_than_asked_answers_with_the_running_run(
    syncing: Service, page_id: str, gate: Any
) -> None:
    gate.shut()
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="0.1")
    assert (status, run["status"], run["finished_at"]) == (202, "running", None)
    gate.open()
    assert (await syncing.ended(run["run_id"]))["status"] == "succeeded"


@pytest.mark.parametrize("wait", ["-1", "3601", "soon", "nan", "inf"])
async def test_a_wait_that_makes_no_sense_begins_nothing(service: Service, owner: Owner, wait: str) -> None:
    await service.add_page()
    status, document = await service.call("POST", SYNC, {"page_id": PAGE}, wait=wait)
    problem(document, 422, "invalid_argument")
    assert (status, document["field"]) == (422, "wait")
    assert count(owner, "sync_runs") == 0


async def test_a_second_sync_of_the_page_is_refused_while_one_runs(
    syncing: Service, page_id: str, gate: Any
) -> None:
    gate.shut()
    run = await begin(syncing, page_id)
    await gate.reached.wait()
    for restart in (False, True):
        status, document = await syncing.call("POST", SYNC, {"page_id": page_id, "restart": restart})
        problem(document, 409, "sync_running")
        assert (status, document["run_id"]) == (409, run["run_id"])
    status, document = await syncing.call("POST", STREAM, {"page_id": page_id})
    assert (status, document["run_id"]) == (409, run["run_id"])
    gate.open()
    assert (await syncing.ended(run["run_id"]))["status"] == "succeeded"
    status, again = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert (status, again["status"], again["messages_added"]) == (200, "succeeded", 0)
    assert int(again["run_id"]) > int(run["run_id"])


async def test_many_who_begin_at_once_begin_one_sync(syncing: Service, page_id: str, gate: Any) -> None:
    gate.shut()
    answers = await asyncio.gather(*(syncing.call("POST", SYNC, {"page_id": page_id}) for _ in range(8)))
    assert sorted(status for status, _ in answers) == [202] + [409] * 7
    assert len({document["run_id"] for _, document in answers}) == 1
    gate.open()


@pytest.mark.parametrize(("mode", "hindered"), [("incremental", False), ("reconcile", True)])
async def test_every_mode_can_be_asked_for_and_only_an_incremental_runs_beside_a_full_one(
    syncing: Service, page_id: str, gate: Any, mode: str, hindered: bool
) -> None:
    asked = {"page_id": page_id, "mode": mode}
    gate.shut()
    full = await begin(syncing, page_id)
    status, document = await syncing.call("POST", SYNC, asked)
    assert status == (409 if hindered else 202)
    assert (document["run_id"] == full["run_id"]) is hindered
    gate.open()
    assert (await syncing.ended(full["run_id"]))["status"] == "succeeded"
    if hindered:
        status, document = await syncing.call("POST", SYNC, asked)
        assert status == 202
    ended = await syncing.ended(document["run_id"])
    assert (ended["status"], ended["mode"]) == ("succeeded", mode)


async def test_an_unknown_page_has_no_sync(service: Service) -> None:
    for path in (SYNC, STREAM):
        status, document = await service.call("POST", path, {"page_id": "999"})
        problem(document, 404, "not_found")
        assert status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "page_id"),
        ({"page_id": 7}, "page_id"),
        ({"page_id": PAGE, "mode": "everything"}, "mode"),
        ({"page_id": PAGE, "deadline_seconds": 0}, "deadline_seconds"),
        ({"page_id": PAGE, "deadline_seconds": "soon"}, "deadline_seconds"),
        ({"page_id": PAGE, "restart": "perhaps"}, "restart"),
        ({"page_id": PAGE, "since": "yesterday"}, "since"),
    ],
)
async def test_a_bad_body_is_refused_by_the_name_of_its_field(
    service: Service, body: Json, field: str
) -> None:
    await service.add_page()
    status, document = await service.call("POST", SYNC, body)
    problem(document, 422, "invalid_argument")
    assert (status, document["field"]) == (422, field)


async def test_a_deadline_pauses_the_run_and_the_next_post_resumes_it(
    syncing: Service, simulator: Simulator, page_id: str
) -> None:
    simulator.faults.add("/conversations", "delay", seconds=0.3)
    status, paused = await syncing.call(
        "POST", SYNC, {"page_id": page_id, "deadline_seconds": 0.1}, wait="30"
    )
    assert (status, paused["status"], paused["reason"]) == (200, "paused", "deadline")
    assert paused["success"] is False
    assert paused["finished_at"] is None
    assert 0 < paused["conversations_seen"] < len(simulator.population.conversations)
    simulator.faults.clear()
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert (status, run["run_id"], run["resumed"]) == (200, paused["run_id"], True)
    assert (run["status"], run["conversations_seen"]) == (
        "succeeded",
        len(simulator.population.conversations),
    )


async def test_a_restart_leaves_the_paused_run_behind(
    syncing: Service, simulator: Simulator, page_id: str
) -> None:
    simulator.faults.add("/conversations", "delay", times=1, seconds=0.3)
    _, paused = await syncing.call("POST", SYNC, {"page_id": page_id, "deadline_seconds": 0.1}, wait="30")
    assert paused["status"] == "paused"
    _, run = await syncing.call("POST", SYNC, {"page_id": page_id, "restart": True}, wait="60")
    assert (run["status"], run["resumed"]) == ("succeeded", False)
    assert run["run_id"] != paused["run_id"]
    old = await syncing.ended(paused["run_id"])
    assert (old["status"], old["reason"]) == ("cancelled", "restarted")


async def test_a_cancelled_run_stays_cancelled_and_writes_nothing_more(
    syncing: Service, page_id: str, gate: Any, owner: Owner
) -> None:
    gate.shut()
    run = await begin(syncing, page_id)
    await gate.reached.wait()
    path = f"/api/sync-runs/{run['run_id']}"
    status, cancelled = await syncing.call("POST", f"{path}/cancel")
    assert (status, cancelled["status"], cancelled["reason"]) == (200, "cancelled", "cancelled")
    gate.open()
    await syncing.app[RUNNER].drain(30)
    assert await syncing.call("GET", path) == (200, cancelled)
    assert await syncing.call("POST", f"{path}/cancel") == (200, cancelled)
    assert count(owner, "contact_interaction_events") == 0


async def test_cancelling_a_run_that_has_ended_changes_nothing(syncing: Service, page_id: str) -> None:
    _, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    status, after = await syncing.call("POST", f"/api/sync-runs/{run['run_id']}/cancel")
    assert (status, after["status"], after["finished_at"]) == (200, "succeeded", run["finished_at"])


async def test_the_runs_of_a_page_are_listed_newest_first_part_by_part(
    syncing: Service, page_id: str
) -> None:
    await syncing.add_page(OTHER_PAGE)
    known = []
    for mode in ("full", "incremental", "reconcile"):
        _, run = await syncing.call("POST", SYNC, {"page_id": page_id, "mode": mode}, wait="60")
        known.insert(0, (await syncing.call("GET", f"/api/sync-runs/{run['run_id']}"))[1])
    runs = f"/api/pages/{page_id}/sync-runs"
    assert await syncing.call("GET", runs) == (200, {"runs": known, "next": None})
    status, first = await syncing.call("GET", runs, limit="2")
    assert (status, first) == (200, {"runs": known[:2], "next": known[1]["run_id"]})
    rest = await syncing.call("GET", runs, limit="2", before=first["next"])
    assert rest == (200, {"runs": known[2:], "next": None})
    assert await syncing.call("GET", f"/api/pages/{OTHER_PAGE}/sync-runs") == (
        200,
        {"runs": [], "next": None},
    )
    status, document = await syncing.call("GET", "/api/pages/nobody/sync-runs")
    problem(document, 404, "not_found")
    for wrong in ({"limit": "0"}, {"limit": "201"}, {"before": "one"}):
        status, document = await syncing.call("GET", runs, **wrong)
        problem(document, 422, "invalid_argument")
        assert document["field"] in wrong


@pytest.mark.parametrize(
    ("run_id", "status", "code"),
    [
        ("999", 404, "not_found"),
        ("one", 422, "invalid_argument"),
        ("-1", 422, "invalid_argument"),
        ("9" * 30, 422, "invalid_argument"),
    ],
)
async def test_a_run_that_does_not_exist_is_a_problem(
    service: Service, run_id: str, status: int, code: str
) -> None:
    for method, path in (
        ("GET", f"/api/sync-runs/{run_id}"),
        ("POST", f"/api/sync-runs/{run_id}/cancel"),
        ("POST", f"/api/sync-runs/{run_id}/retry"),
        ("GET", f"{STREAM}?run_id={run_id}"),
    ):
        found, document = await service.call(method, path)
        problem(document, status, code)
        assert found == status


async def test_a_page_that_cannot_be_read_makes_the_run_partial_and_says_where(
    syncing: Service, simulator: Simulator, page_id: str, owner: Owner
) -> None:
    thread_id = a_deep_thread(simulator)
    simulator.faults.add(f"/{thread_id}/messages", "error", code=99999, http=400, message="No reason given")
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert status == 200
    assert (run["status"], run["reason"]) == ("partial", "failed_batches")
    assert (run["success"], run["partial"]) == (False, True)
    (batch,) = run["failed_batches"]
    assert (batch["batch"], batch["kind"], batch["thread_id"], batch["attempts"]) == (
        1,
        "thread",
        thread_id,
        3,
    )
    assert batch["cursor"]
    assert (batch["error"]["class"], batch["error"]["code"]) == ("unknown", 99999)
    assert batch["error"]["http_status"] == 400
    assert batch["error"]["message"] == "No reason given"
    # Everything else was read.
    stored = count(owner, "contact_interaction_events")
    deepest = max(one.message_count for one in simulator.population.conversations)
    assert stored == simulator.population.message_total() - deepest + 100

    # Its stream, from the beginning and from where a reader was.
    async with watching(syncing, run["run_id"]) as (answer, _):
        events = await all_events(answer)
    assert [sent.event for sent in events] == ["batch_failed", "done"]
    assert events[0].id <= events[1].id
    assert {key: events[0].data[key] for key in batch} == batch
    assert {key: events[1].data[key] for key in run if key != "resumed"} == {
        key: value for key, value in run.items() if key != "resumed"
    }
    for last, rest in ((events[0].id, ["done"]), (events[1].id, ["done"]), (0, ["batch_failed", "done"])):
        async with watching(syncing, run["run_id"], **{"Last-Event-ID": str(last)}) as (answer, _):
            assert [sent.event for sent in await all_events(answer)] == rest


# Retry


async def a_partial_run(service: Service, simulator: Simulator, page_id: str) -> Json:
    simulator.faults.add(f"/{a_deep_thread(simulator)}/messages", "error", code=100, subcode=33)
    _, run = await service.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert run["status"] == "partial"
    simulator.faults.clear()
    return run


async def test_a_retry_reads_what_was_left_and_the_run_is_whole(
    syncing: Service, simulator: Simulator, page_id: str, owner: Owner
) -> None:
    partial = await a_partial_run(syncing, simulator, page_id)
    made = simulator.calls.totals()[page_id]["calls"]
    status, run = await syncing.call("POST", f"/api/sync-runs/{partial['run_id']}/retry", wait="60")
    assert (status, run["run_id"], run["resumed"]) == (200, partial["run_id"], True)
    assert (run["status"], run["reason"], run["success"], run["partial"]) == ("succeeded", None, True, False)
    assert run["failed_batches"] == []
    assert run["request_id"] != partial["request_id"]
    assert count(owner, "contact_interaction_events") == simulator.population.message_total()
    # The failed thread, from where it failed, and nothing else.
    deepest = max(one.message_count for one in simulator.population.conversations)
    assert simulator.calls.totals()[page_id]["calls"] - made == -(-(deepest - 100) // 100)


async def test_a_retry_that_is_not_waited_for_is_accepted_and_can_be_watched(
    syncing: Service, simulator: Simulator, page_id: str, gate: Any
) -> None:
    partial = await a_partial_run(syncing, simulator, page_id)
    gate.shut(f"/{a_deep_thread(simulator)}/messages")
    status, run = await syncing.call("POST", f"/api/sync-runs/{partial['run_id']}/retry")
    assert (status, run["status"], run["finished_at"]) == (202, "running", None)
    assert len(run["failed_batches"]) == 1, "until it has been read"
    last = {"Last-Event-ID": partial["progress"]}
    async with watching(syncing, run["run_id"], **last) as (_, events):
        await gate.reached.wait()
        assert (await of_kind(events, "progress")).data["status"] == "running"
        gate.open()
        assert (await of_kind(events, "done")).data["status"] == "succeeded"


async def test_a_retry_is_refused_while_a_sync_runs_and_of_a_run_that_is_whole(
    syncing: Service, simulator: Simulator, page_id: str, gate: Any
) -> None:
    partial = await a_partial_run(syncing, simulator, page_id)
    gate.shut()
    other = await begin(syncing, page_id)
    status, document = await syncing.call("POST", f"/api/sync-runs/{partial['run_id']}/retry")
    problem(document, 409, "sync_running")
    assert (status, document["run_id"]) == (409, other["run_id"])
    gate.open()
    assert (await syncing.ended(other["run_id"]))["status"] == "succeeded"
    status, document = await syncing.call("POST", f"/api/sync-runs/{other['run_id']}/retry")
    problem(document, 422, "invalid_argument")
    assert (status, document["field"]) == (422, "run_id")
    status, document = await syncing.call("POST", f"/api/sync-runs/{partial['run_id']}/retry", wait="soon")
    assert (status, document["field"]) == (422, "wait")
    status, run = await syncing.call("POST", f"/api/sync-runs/{partial['run_id']}/retry", wait="60")
    assert (status, run["status"]) == (200, "succeeded")


async def test_an_invalid_token_fails_the_run_and_is_told_at_the_page(
    syncing: Service, simulator: Simulator, page_id: str
) -> None:
    message = f"Error validating access token {simulator.page.token}: session has expired"
    simulator.faults.add("/conversations", "error", code=190, subcode=463, message=message)
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert (status, run["status"], run["reason"]) == (200, "failed", "token_invalid")
    assert (run["success"], run["partial"]) == (False, False)
    page = (await syncing.call("GET", f"/api/pages/{page_id}"))[1]
    assert page["token"] == "invalid"
    assert "session has expired" in page["token_error"]
    # A new token puts it right.
    simulator.faults.clear()
    page = await syncing.add_page(page_id, token=simulator.page.token)
    assert (page["token"], page["token_error"]) == ("unchecked", None)
    status, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    assert run["status"] == "succeeded"


# The stream


async def test_a_stream_tells_the_progress_to_the_end(
    syncing: Service, simulator: Simulator, page_id: str, gate: Any
) -> None:
    gate.shut(after=1)
    run = await begin(syncing, page_id)
    await gate.reached.wait()
    async with watching(syncing, run["run_id"]) as (_, events):
        first = await of_kind(events, "progress")
        assert first.data["status"] == "running"
        assert first.data["run_id"] == run["run_id"]
        assert 0 < first.data["conversations_seen"] < len(simulator.population.conversations)
        gate.open()
        rest = [sent async for sent in events if isinstance(sent, Sent)]
    assert {sent.event for sent in rest[:-1]} <= {"progress"}
    assert rest[-1].event == "done"
    assert rest[-1].data["status"] == "succeeded"
    ids = [first.id, *(sent.id for sent in rest)]
    assert ids == sorted(set(ids))


async def test_a_failed_batch_is_told_while_the_run_goes_on_and_not_again(
    syncing: Service, simulator: Simulator, page_id: str, gate: Any
) -> None:
    thread_id = a_deep_thread(simulator)
    simulator.faults.add(
        f"/{thread_id}/messages", "error", code=100, subcode=33, message="Unsupported get request"
    )
    gate.shut(after=1)
    run = await begin(syncing, page_id)
    async with watching(syncing, run["run_id"]) as (_, events):
        failed = await of_kind(events, "batch_failed")
        assert failed.data["thread_id"] == thread_id
        assert failed.data["run_id"] == run["run_id"]
        assert failed.data["error"]["class"] == "gone"
    async with watching(syncing, run["run_id"], **{"Last-Event-ID": str(failed.id)}) as (_, events):
        gate.open()
        rest = [sent async for sent in events if isinstance(sent, Sent)]
    assert {sent.event for sent in rest[:-1]} <= {"progress"}
    assert (rest[-1].event, rest[-1].data["status"]) == ("done", "partial")
    assert all(sent.id > failed.id for sent in rest)


@pytest.mark.parametrize("last", ["", "-5", "soon", "9" * 40, "9" * 17, "\N{FULLWIDTH DIGIT ONE}"])
async def test_a_strange_last_event_id_still_gets_the_end(syncing: Service, page_id: str, last: str) -> None:
    _, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    async with watching(syncing, run["run_id"], **{"Last-Event-ID": last}) as (answer, _):
        assert [sent.event for sent in await all_events(answer)] == ["done"]


async def test_a_quiet_stream_has_heartbeats(
    syncing: Service, page_id: str, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.02)
    gate.shut()
    run = await begin(syncing, page_id)
    async with watching(syncing, run["run_id"]) as (_, events):
        await of_kind(events, "progress")
        beats = 0
        async with asyncio.timeout(30):
            async for sent in events:
                beats += isinstance(sent, str)
                if beats == 3:
                    break
    gate.open()


async def test_several_watch_and_one_who_leaves_does_not_stop_the_run(
    syncing: Service, page_id: str, gate: Any
) -> None:
    gate.shut()
    run = await begin(syncing, page_id)
    await gate.reached.wait()
    async with watching(syncing, run["run_id"]) as (first, events):
        await of_kind(events, "progress")
        async with (
            watching(syncing, run["run_id"]) as (_, second),
            watching(syncing, run["run_id"]) as (_, third),
        ):
            first.close()
            gate.open()
            for stays in (second, third):
                done = await of_kind(stays, "done")
                assert done.data["status"] == "succeeded"


async def open_streams(service: Service) -> int:
    async with service.client.get("/metrics", headers=OPERATOR) as answer:
        found = re.search(r"^convsync_event_streams (\d+)", await answer.text(), re.MULTILINE)
    assert found
    return int(found[1])


async def test_of_event_streams_a_process_has_a_bounded_number(
    syncing: Service, page_id: str, gate: Any
) -> None:
    """Each asks the database, so whoever opens one after the other would keep everybody else waiting."""
    syncing.app[STREAMS].most = 2
    gate.shut()
    run = await begin(syncing, page_id)
    async with watching(syncing, run["run_id"]) as (_, events):
        await of_kind(events, "progress")
        async with syncing.client.get("/api/changes/stream", headers=OPERATOR) as feed:
            assert feed.status == 200
            assert await open_streams(syncing) == 2
            for path, query in ((STREAM, {"run_id": run["run_id"]}), ("/api/changes/stream", {})):
                async with syncing.client.get(path, params=query, headers=OPERATOR) as answer:
                    assert answer.status == 503
                    problem(await answer.json(), 503, "too_many_streams")
                    assert int(answer.headers["Retry-After"]) > 1
            # Nothing is begun that is not answered with its stream.
            async with syncing.client.post(STREAM, json={"page_id": page_id}, headers=OPERATOR) as answer:
                assert answer.status == 503
                problem(await answer.json(), 503, "too_many_streams")
            feed.close()

            async def one_open() -> bool | None:
                return await open_streams(syncing) == 1 or None

            await eventually(one_open)
        # There is a place again.
        async with watching(syncing, run["run_id"]) as (_, second):
            gate.open()
            await of_kind(second, "done")


async def test_who_leaves_a_quiet_stream_gives_up_its_place(
    configure: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "HEARTBEAT_SECONDS", 3600.0)
    # As it is served: aiohttp's own server for tests ends the work of whoever left.
    app = create_app(configure(), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    host, port = runner.addresses[0][:2]
    try:
        async with (
            aiohttp.ClientSession(URL.build(scheme="http", host=host, port=port)) as client,
            client.get("/api/changes/stream", headers=OPERATOR) as feed,
        ):
            assert app[STREAMS].open == 1
            feed.close()

            async def none_open() -> bool | None:
                return not app[STREAMS].open or None

            await eventually(none_open)
    finally:
        await runner.cleanup()


async def test_two_streams_at_once_can_be_told_apart_by_their_request_ids(
    configure: Any, database: Any, aiohttp_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Pages, two runs with a failure each, four watchers: every event and log line says whose it is."""
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.02)
    pages = default_pages(2)
    config = SimulatorConfig(
        port=0,
        conversations=6,
        messages=8,
        calls_per_second=0,
        max_conversations_per_call=2,
        max_messages_per_call=5,
        app_secret=DEFAULT_APP_SECRET,
        pages=pages,
    )
    async with Simulator(config) as simulator:
        settings = configure(graph_url=simulator.url, app_secret=SecretStr(DEFAULT_APP_SECRET))
        app = create_app(settings, database.service_url)
        service = Service(await aiohttp_client(app), app)
        for page in pages:
            await service.add_page(page.page_id, token=page.token)
        # The deep threads of each fail; and the database is away for a moment, which is logged far below.
        simulator.faults.add("/messages", "error", code=99999)
        applying = app[STORE].apply_sync_page
        away = {page.page_id for page in pages}

        async def apply(**call: Any) -> Any:
            if call["page_id"] in away:
                away.remove(call["page_id"])
                raise DatabaseUnavailable("for a moment")
            return await applying(**call)

        monkeypatch.setattr(app[STORE], "apply_sync_page", apply)

        async def begun(page_id: str, name: str) -> list[Sent]:
            async with service.client.post(
                STREAM, json={"page_id": page_id}, headers={**OPERATOR, "X-Request-ID": name}
            ) as answer:
                assert answer.headers["X-Request-ID"] == name
                return await all_events(answer)

        async def watched(page_id: str, name: str) -> list[Sent]:
            async def last_run() -> str | None:
                page = (await service.call("GET", f"/api/pages/{page_id}"))[1]
                return page["last_run"] and str(page["last_run"]["run_id"])

            run_id = await eventually(last_run)
            async with watching(service, run_id, **{"X-Request-ID": name}) as (answer, _):
                assert answer.headers["X-Request-ID"] == name
                return await all_events(answer)

        one, other = (page.page_id for page in pages)
        with capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            streams = await asyncio.gather(
                begun(one, "begins-one"),
                begun(other, "begins-other"),
                watched(one, "watches-one"),
                watched(other, "watches-other"),
            )

    for page_id, beginner, watcher, of_beginner, of_watcher in (
        (one, "begins-one", "watches-one", streams[0], streams[2]),
        (other, "begins-other", "watches-other", streams[1], streams[3]),
    ):
        for name, events in ((beginner, of_beginner), (watcher, of_watcher)):
            assert {"batch_failed", "done"} <= {sent.event for sent in events}
            assert {sent.data["request_id"] for sent in events} == {beginner}
            assert {sent.data["stream_request_id"] for sent in events} == {name}
        run_id = int(of_beginner[-1].data["run_id"])
        lines = [line for line in logs if line.get("run_id") == run_id]
        assert {line["request_id"] for line in lines} == {beginner}
        assert {line["page_id"] for line in lines} == {page_id}
        told = {line["event"] for line in lines}
        assert {
            "sync_begun",
            "database_retry",
            "graph_call_failed",
            "sync_batch_failed",
            "sync_ended",
        } <= told
    # And none that could be of either.
    assert [line for line in logs if "run_id" not in line] == []


async def test_a_post_begins_the_run_and_streams_it(
    syncing: Service, simulator: Simulator, page_id: str
) -> None:
    async with syncing.client.post(STREAM, json={"page_id": page_id}, headers=OPERATOR) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        events = await all_events(answer)
    assert events[-1].event == "done"
    assert events[-1].data["status"] == "succeeded"
    assert events[-1].data["messages_added"] == simulator.population.message_total()
    assert len({sent.data["run_id"] for sent in events}) == 1


async def test_a_caller_who_leaves_after_beginning_does_not_stop_the_run(
    syncing: Service, page_id: str, gate: Any
) -> None:
    gate.shut()
    async with syncing.client.post(STREAM, json={"page_id": page_id}, headers=OPERATOR) as answer:
        first = await of_kind(sent_events(answer), "progress")
        answer.close()
    gate.open()
    assert (await syncing.ended(first.data["run_id"]))["status"] == "succeeded"


async def test_a_watched_run_that_is_cancelled_ends_the_stream(
    syncing: Service, page_id: str, gate: Any
) -> None:
    gate.shut()
    run = await begin(syncing, page_id)
    async with watching(syncing, run["run_id"]) as (_, events):
        await of_kind(events, "progress")
        await syncing.call("POST", f"/api/sync-runs/{run['run_id']}/cancel")
        assert (await of_kind(events, "done")).data["status"] == "cancelled"
    gate.open()


async def test_a_service_that_stops_ends_its_streams_and_waits_in_order(
    configure: Any,
    database: Any,
    simulator: Simulator,
    page_id: str,
    gate: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody is cut off: the stream ends as a stream ends, who waits for a run is told how it stands."""
    monkeypatch.setattr(sse, "POLL_SECONDS", 0.02)
    app = create_app(configure(graph_url=simulator.url), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)
    host, port = runner.addresses[0][:2]
    gate.shut()
    async with aiohttp.ClientSession(
        URL.build(scheme="http", host=host, port=port), headers=OPERATOR
    ) as client:
        body = {"page_id": page_id, "token": simulator.page.token}
        assert (await client.post("/api/pages", json=body)).status == 201

        async def waited() -> tuple[int, Json]:
            async with client.post(SYNC, params={"wait": "600"}, json={"page_id": page_id}) as answer:
                return answer.status, await answer.json()

        waiting = asyncio.create_task(waited())
        await gate.reached.wait()

        async def begun() -> str | None:
            async with client.get(f"/api/pages/{page_id}") as answer:
                last = (await answer.json())["last_run"]
                return last and str(last["run_id"])

        run_id = await eventually(begun)
        async with client.get(STREAM, params={"run_id": run_id}) as stream:
            await of_kind(sent_events(stream), "progress")
            leaving = asyncio.create_task(runner.cleanup())
            assert [sent.event for sent in await all_events(stream)] == []
            status, run = await waiting
            assert (status, run["run_id"], run["status"]) == (202, run_id, "running")
            gate.open()
            await leaving


# Tickets


async def test_a_ticket_opens_the_stream_of_its_run_only(syncing: Service, page_id: str) -> None:
    _, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    _, other = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    status, issued = await syncing.call(
        "POST", "/api/stream-tickets", {"run_id": int(run["run_id"])}, key=READ_KEY
    )
    assert (status, issued["expires_in"]) == (201, 60)
    assert READ_KEY not in issued["ticket"]
    query = {"run_id": run["run_id"], "ticket": issued["ticket"]}
    async with syncing.client.get(STREAM, params=query) as answer:
        assert answer.status == 200
        assert [sent.event for sent in await all_events(answer)] == ["done"]
    for wrong in (
        {**query, "run_id": other["run_id"]},
        {**query, "ticket": issued["ticket"][:-1] + ("0" if issued["ticket"][-1] != "0" else "1")},
        {**query, "ticket": issued["ticket"].replace("reader.", "operator.")},
        {**query, "ticket": issued["ticket"][:-1] + "é"},
        {**query, "ticket": f"reader.{run['run_id']}.{'9' * 5000}.00"},
        {**query, "ticket": f"reader.{run['run_id']}.99999999999.00"},
        {**query, "ticket": "rubbish"},
        {"run_id": run["run_id"], "ticket": ""},
        {"run_id": run["run_id"]},
    ):
        async with syncing.client.get(STREAM, params=wrong) as answer:
            assert answer.status == 401, wrong
            problem(await answer.json(), 401, "unauthorized")
    # A ticket is for a stream, for nothing else.
    async with syncing.client.get("/api/pages", headers=bearer(issued["ticket"])) as answer:
        assert answer.status == 401


async def test_a_ticket_expires(syncing: Service, page_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = await syncing.call("POST", SYNC, {"page_id": page_id}, wait="60")
    monkeypatch.setattr(tickets, "LIFETIME_SECONDS", -1)
    _, issued = await syncing.call("POST", "/api/stream-tickets", {"run_id": int(run["run_id"])})
    query = {"run_id": run["run_id"], "ticket": issued["ticket"]}
    async with syncing.client.get(STREAM, params=query) as answer:
        assert answer.status == 401


async def test_there_is_no_ticket_for_a_run_that_does_not_exist(service: Service) -> None:
    for run_id, status in ((999, 404), (0, 422), (2**63, 422), ("x", 422)):
        found, _ = await service.call("POST", "/api/stream-tickets", {"run_id": run_id})
        assert found == status
