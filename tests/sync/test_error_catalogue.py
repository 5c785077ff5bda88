"""Each row of the error catalogue, given by the simulator: what the client then does, by its call log.

The hours that Meta asks for pass in seconds: engine and database share a clock that runs fast.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from convsync.graph.catalogue import CATALOGUE, UNLISTED, ErrorClass
from convsync.graph.client import GraphClient
from convsync.graph.errors import GraphError
from convsync.simulator.config import DEFAULT_APP_SECRET
from convsync.sync.contacts import ContactReader
from graph_answers import EXAMPLES, Example
from sync.world import LIST_CALL, FastTime, Ledger, World, open_world

SMALL_ANSWERS = {"max_conversations_per_call": 4, "max_messages_per_call": 20}
BY_ENTRY = {example.entry: example for example in EXAMPLES}
CAN_BE_THREAD = (ErrorClass.GONE, ErrorClass.BAD_REQUEST, ErrorClass.PERMISSION)
# Failures that no code of Meta's names: what the simulator does, and the row it is.
WITHOUT_CODE: dict[str, dict[str, Any]] = {
    "no_connection": {"action": "reset"},
    "timeout": {"action": "hang"},
    "truncated_answer": {"action": "truncate"},
    "html_answer": {"action": "html"},
    "empty_answer": {"action": "empty"},
    "unreadable_answer": {"action": "status", "http": 503, "body": "upstream connect error"},
}


def fault(example: Example) -> dict[str, Any]:
    """The answer of an example, as the simulator takes it."""
    error = example.error
    if "code" not in error:
        return {"action": "status", "http": example.http, "body": orjson.dumps({"error": error}).decode()}
    names = {"error_subcode": "subcode", "error_user_title": "user_title", "error_user_msg": "user_message"}
    return {"action": "error", "http": example.http} | {names.get(key, key): error[key] for key in error}


def of(*classes: ErrorClass) -> list[Any]:
    return [
        pytest.param(fault(example), example, id=example.entry)
        for example in EXAMPLES
        if example.error_class in classes
    ]


@asynccontextmanager
async def inbox(database: Any, **options: Any) -> AsyncIterator[World]:
    """Twelve conversations that take many calls, one thread longer than an answer."""
    async with open_world(database, conversations=12, messages=25.0, **SMALL_ANSWERS, **options) as world:
        yield world


def asked(world: World, kept: Callable[[Any], bool] = lambda call: True) -> list[tuple[str, str]]:
    """What was asked, without the proof of the app secret, which is another each second."""
    return [(call.path, call.query) for call in world.simulator.calls.calls if kept(call)]


def calls_after_the_first_refusal(world: World) -> int:
    calls = list(world.simulator.calls.calls)
    return len(calls) - 1 - next(place for place, call in enumerate(calls) if call.fault is not None)


@pytest.mark.parametrize(("planted", "example"), of(ErrorClass.THROTTLED))
async def test_no_call_is_granted_during_a_block(
    database: Any, monkeypatch: pytest.MonkeyPatch, planted: dict[str, Any], example: Example
) -> None:
    clock = FastTime(2 * example.block)
    ledger = Ledger(monkeypatch)
    async with inbox(database, clock=clock) as world:
        world.simulator.faults.plant({"match": LIST_CALL, "after": 1, "times": 1, **planted})
        outcome = await world.sync(concurrency=3, lease_seconds=1_000_000)
        assert outcome.status == "succeeded"
        assert (await world.run_of(outcome))["failed_batches"] == []
        assert ledger.granted_while_blocked() == 0
        ((began, ends),) = ledger.blocks
        assert example.block * 0.9 < (ends - began).total_seconds() <= example.block
        calls = list(world.simulator.calls.calls)
        refused = next(call for call in calls if call.fault is not None)
        later = [call for call in calls if call.at > refused.at + refused.milliseconds / 1000]
        # Those under way beside it had been granted before; nobody else calls until the block is over.
        quiet = [call for call in later if clock.of_wall(call.at) - clock.of_wall(refused.at) < example.block]
        assert len(quiet) <= 2
        assert len(later) > len(quiet)
        # A Page's block goes with the next grant; the app's row stays, and tells that all Pages heeded it.
        rows = await world.rows("select page_id from convsync.call_budgets where block_reason is not null")
        assert [row["page_id"] for row in rows] == ([""] if example.scope == "app" else [])
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


@pytest.mark.parametrize(
    "planted",
    [
        *(pytest.param(*row.values[:1], id=row.id) for row in of(ErrorClass.TRANSIENT, ErrorClass.UNKNOWN)),
        *(pytest.param(planted, id=entry) for entry, planted in WITHOUT_CODE.items()),
    ],
)
async def test_what_passes_is_asked_for_again_and_nothing_is_lost(
    database: Any, planted: dict[str, Any]
) -> None:
    async with inbox(database) as world, GraphClient(world.simulator.url, read_timeout=0.2) as graph:
        world.graph = graph
        world.simulator.faults.plant({"match": LIST_CALL, "after": 1, "times": 1, **planted})
        outcome = await world.sync(concurrency=1)
        assert outcome.status == "succeeded"
        ((path, query),) = asked(world, lambda call: call.fault is not None)
        assert asked(world).count((path, query)) == 2
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


@pytest.mark.parametrize("size", [200, 50, 12, 3, 1])
async def test_the_same_oversized_request_is_never_made_twice(database: Any, size: int) -> None:
    """Refused down to `size` conversations at once, and at 1 with any messages at all."""
    example = BY_ENTRY["too_much_data"]
    refused_sizes = [one for one in (200, 100, 50, 25, 12, 6, 3, 1) if one >= size]
    match = rf"{LIST_CALL}.*limit=({'|'.join(map(str, refused_sizes))})&.*messages"
    async with inbox(database) as world:
        world.simulator.faults.plant({"match": match, **fault(example)})
        outcome = await world.sync()
        assert outcome.status == "succeeded"
        refused = Counter(asked(world, lambda call: call.fault is not None))
        assert len(refused) >= len(refused_sizes)
        assert max(refused.values()) == 1
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


async def test_answer_larger_than_the_client_takes_is_asked_for_smaller_and_never_again(
    database: Any,
) -> None:
    async with (
        open_world(database, conversations=12, messages=25.0) as world,
        GraphClient(world.simulator.url, max_bytes=40_000) as graph,
    ):
        world.graph = graph
        outcome = await world.sync(concurrency=1)
        assert outcome.status == "succeeded"
        assert max(Counter(asked(world, lambda call: LIST_CALL in call.path)).values()) <= 2  # its two passes
        limits = [query for path, query in asked(world) if LIST_CALL in path]
        assert "limit=200&" in limits[0]
        assert "limit=200&" not in limits[1]
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


@pytest.mark.parametrize(("planted", "example"), of(ErrorClass.BAD_CURSOR))
async def test_dead_cursor_is_not_asked_for_again_and_its_list_starts_from_the_front(
    database: Any, planted: dict[str, Any], example: Example
) -> None:
    async with inbox(database) as world:
        world.simulator.faults.plant({"match": f"{LIST_CALL}.*after=", "after": 1, "times": 1, **planted})
        outcome = await world.sync(concurrency=1)
        assert outcome.status == "succeeded"
        calls = [call for call in world.simulator.calls.calls if LIST_CALL in call.path]
        place = next(number for number, call in enumerate(calls) if call.fault is not None)
        assert "after=" not in calls[place + 1].query
        verdict = await world.verdict()
        assert verdict.clean, verdict.examples


@pytest.mark.parametrize(("planted", "example"), of(ErrorClass.TOKEN))
async def test_dead_token_is_never_used_again(
    database: Any, planted: dict[str, Any], example: Example
) -> None:
    async with inbox(database) as world:
        world.simulator.faults.plant({"match": "", "after": 2, **planted})
        outcome = await world.sync(concurrency=1)
        assert (outcome.status, outcome.reason) == ("failed", "token_invalid")
        assert calls_after_the_first_refusal(world) == 0
        page = await world.store.get_page(page_id=world.page_id)
        assert page["token"] == "invalid"
        assert "convsync page add" in page["token_error"]
        # Nor by whoever begins another sync without a new token.
        again = await world.sync(concurrency=1)
        assert (again.status, again.reason) == ("failed", "token_invalid")
        assert calls_after_the_first_refusal(world) == 0


async def test_live_read_learns_that_a_token_is_dead_for_all_who_come_after_it(database: Any) -> None:
    async with inbox(database) as world:
        world.simulator.faults.plant(fault(BY_ENTRY["token_expired"]))
        reader = ContactReader(world.store, world.graph, world.box.open, calls_per_second=0)
        with pytest.raises(GraphError):
            await reader._read_person(world.page_id, "1001")
        page = await world.store.get_page(page_id=world.page_id)
        assert (page["token"], "convsync page add" in page["token_error"]) == ("invalid", True)
        await reader._read_person(world.page_id, "1002")
        await reader._read_thread(world.page_id, "t_1")
        assert world.calls() == 1


@pytest.mark.parametrize(("planted", "example"), of(ErrorClass.PERMISSION))
async def test_what_a_person_has_to_grant_ends_the_run_with_a_word_to_them(
    database: Any, planted: dict[str, Any], example: Example
) -> None:
    async with inbox(database) as world:
        world.simulator.faults.plant({"match": LIST_CALL, "after": 1, **planted})
        outcome = await world.sync(concurrency=1)
        assert (outcome.status, outcome.reason) == ("failed", "permission_denied")
        assert calls_after_the_first_refusal(world) == 0
        ((batch),) = (await world.run_of(outcome))["failed_batches"]
        assert batch["error"]["entry"] == example.entry
        assert batch["error"]["told"]
        assert batch["error"]["trace_id"]


@pytest.mark.parametrize(
    ("secret", "late", "entry"),
    [
        (DEFAULT_APP_SECRET, 0, None),
        (DEFAULT_APP_SECRET, 360, "proof_invalid"),
        ("the secret of another app", 0, "proof_invalid"),
        (None, 0, "proof_required"),
    ],
    ids=["good", "six minutes old", "by another secret", "none"],
)
async def test_app_that_requires_proofs_of_its_secret_gets_them_with_every_call(
    database: Any, secret: str | None, late: int, entry: str | None
) -> None:
    """Its token is as good as before, whatever becomes of the proof."""
    async with (
        inbox(database, require_appsecret_proof=True) as world,
        GraphClient(world.simulator.url, app_secret=secret, now=lambda: time.time() - late) as graph,
    ):
        world.graph = graph
        outcome = await world.sync()
        if entry is None:
            assert outcome.status == "succeeded"
            assert (await world.verdict()).clean
            return
        assert (outcome.status, outcome.reason) == ("failed", "permission_denied")
        (batch,) = (await world.run_of(outcome))["failed_batches"]
        assert batch["error"]["entry"] == entry
        assert "CONVSYNC_APP_SECRET" in batch["error"]["told"]
        assert world.calls() == 1
        assert (await world.store.get_page(page_id=world.page_id))["token"] == "unchecked"


@pytest.mark.parametrize(
    ("planted", "entry"),
    [
        *(
            pytest.param(row.values[0], row.id, id=row.id)
            for row in of(*CAN_BE_THREAD)
            if row.id != "no_such_field"
        ),
        pytest.param({"action": "status", "http": 302}, "redirect", id="redirect"),
    ],
)
async def test_what_never_succeeds_costs_its_thread_one_call_and_the_others_nothing(
    database: Any, planted: dict[str, Any], entry: str
) -> None:
    async with inbox(database) as world:
        longest = max(world.simulator.population.conversations, key=lambda one: one.message_count)
        assert longest.message_count > 20
        world.simulator.faults.plant({"match": f"/{longest.thread_id}/messages", **planted})
        outcome = await world.sync()
        assert outcome.status == "partial"
        (batch,) = (await world.run_of(outcome))["failed_batches"]
        assert (batch["thread_id"], batch["attempts"]) == (longest.thread_id, 1)
        assert batch["error"]["entry"] == entry
        assert len(asked(world, lambda call: call.fault is not None)) == 1
        incomplete = await world.rows(
            "select thread_id from convsync.messenger_conversations where history_complete_at is null"
        )
        assert incomplete == [{"thread_id": longest.thread_id}]


@pytest.mark.parametrize("name", ["unknown", "reduce_data"])
@pytest.mark.parametrize("after", [0, 2], ids=["from the front", "in the middle"])
async def test_refused_listing_is_told_from_a_bad_moment_and_never_called_whole(
    database: Any, after: int, name: str
) -> None:
    """A very busy Page. With which error its list fails Meta does not say; the Page itself still answers."""
    async with inbox(database) as world:
        world.simulator.faults.add("", "refuse_listing", after=after, name=name)
        outcome = await world.sync(concurrency=1)
        run = await world.run_of(outcome)
        assert (run["status"], run["reason"], run["success"]) == ("partial", "listing_refused", False)
        (batch,) = run["failed_batches"]
        assert (batch["kind"], batch["error"]["entry"]) == ("list", "listing_refused")
        assert (batch["error"]["class"], batch["error"]["code"]) == ("listing", 1)
        assert "does not list this Page's conversations" in batch["error"]["told"]
        calls = asked(world)
        *_, last_list, probe = [path for path, _ in calls]
        assert LIST_CALL in last_list
        assert probe.endswith(f"/{world.page_id}")
        assert (await world.verdict()).missing > 0
        # The threads that the list told of before are read to their ends all the same.
        assert (
            await world.rows("select from convsync.sync_cursors where kind = 'thread' and not completed")
            == []
        )
        world.simulator.faults.clear()
        assert (await world.sync()).status == "succeeded"
        assert (await world.verdict()).clean


@pytest.mark.parametrize(
    ("match", "name"),
    [(f"{LIST_CALL}.*after=", "unknown"), ("", "unknown"), (LIST_CALL, "service")],
    ids=["one place of the list", "all of Graph", "a trouble that Meta calls passing"],
)
async def test_list_that_fails_for_another_reason_is_no_refused_listing(
    database: Any, match: str, name: str
) -> None:
    async with inbox(database) as world:
        world.simulator.faults.add(match, "error", name=name, after=1)
        outcome = await world.sync(concurrency=1)
        run = await world.run_of(outcome)
        assert (run["status"], run["reason"]) == ("partial", "failed_batches")
        assert "listing_refused" not in {batch["error"]["entry"] for batch in run["failed_batches"]}


async def test_field_that_graph_does_not_have_is_asked_for_once(database: Any) -> None:
    async with inbox(database) as world:
        planted = fault(BY_ENTRY["no_such_field"])
        world.simulator.faults.plant({"match": "reply_to", **planted})
        outcome = await world.sync(concurrency=1)
        assert outcome.status == "succeeded"
        assert len(asked(world, lambda call: call.fault is not None)) == 1


def test_every_row_of_the_catalogue_is_tried_here() -> None:
    tried = {example.entry for example in EXAMPLES} | WITHOUT_CODE.keys()
    tried |= {"answer_too_large", "redirect", "listing_refused"}
    assert tried == {rule.name for rule in CATALOGUE} | {UNLISTED.name}
