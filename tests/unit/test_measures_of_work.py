"""What a process counts of its own work: under few names, and whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from convsync.errors import TryAgain
from convsync.graph.client import GraphAnswer, GraphClient
from convsync.graph.errors import GraphError, read_error
from convsync.graph.usage import Usage
from convsync.observe.measures import DatabaseMeasures, GraphMeasures, Measures, endpoint_of, function_of
from convsync.sync.calls import Caller, Control
from convsync.sync.ports import Time

AT = datetime(2026, 11, 20, tzinfo=UTC)


@dataclass
class Grant:
    wait_ms: int
    granted_at: datetime | None


class Work:
    """A caller whose budget, Graph and clock the test decides."""

    def __init__(self, *answers: GraphAnswer | GraphError, waits: tuple[int, ...] = ()) -> None:
        self.seconds = 0.0
        self.measures = Measures()
        self._answers = list(answers)
        self._waits = list(waits)
        time = Time(now=lambda: self.seconds, sleep=self.sleep, random=lambda: 0.5)
        self.caller = Caller(
            store=self,  # type: ignore[arg-type]
            graph=self,
            page_id="1",
            run_id=None,
            fence=None,
            lane="repair",
            calls_per_second=2,
            token="a token",
            control=Control(time=time, lease_until=1e9),
            measures=self.measures.graph,
        )

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    async def acquire_call(self, **how: Any) -> Grant:
        return Grant(self._waits.pop(0), None) if self._waits else Grant(0, AT)

    async def record_call(self, **what: Any) -> None:
        pass

    async def get(self, path: str, params: Any, token: str) -> GraphAnswer:
        answer = self._answers.pop(0)
        if isinstance(answer, GraphError):
            raise answer
        return answer

    async def call(self, read: Callable[[GraphAnswer, datetime], Any] = lambda answer, at: answer) -> Any:
        return await self.caller.call("1/conversations", {}, read)

    def value(self, name: str, **labels: str) -> float:
        return self.measures.registry.get_sample_value(name, labels) or 0.0


def answer(usage: Usage | None = None) -> GraphAnswer:
    return GraphAnswer({"data": []}, usage, 200, 7, None, None)


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("104/conversations", "conversations"),
        ("t_1234/messages", "messages"),
        ("t_1234", "node"),
        ("104", "node"),
        ("104/subscribed_apps", "subscribed_apps"),
        ("debug_token", "debug_token"),
        ("", "batch"),
        ("104/whatever_comes", "other"),
    ],
)
def test_an_endpoint_is_named_without_whose_it_is(path: str, endpoint: str) -> None:
    assert endpoint_of(path) == endpoint


def test_a_call_of_the_database_is_named_by_its_function() -> None:
    assert function_of("select * from convsync_api.ingest(p_facts => %(facts)s)") == "ingest"
    assert function_of("select 1") == "other"


async def test_a_wait_for_a_slot_is_measured_from_the_first_question_to_the_grant() -> None:
    work = Work(answer(), answer(), waits=(400, 600))
    await work.call()
    await work.call()
    assert work.value("convsync_graph_call_wait_seconds_count", lane="repair") == 2
    assert work.value("convsync_graph_call_wait_seconds_sum", lane="repair") == pytest.approx(1.0)


async def test_each_block_is_counted_by_whom_it_holds() -> None:
    throttled = read_error({"error": {"code": 32, "message": "Page limit"}}, status=400)
    app = read_error({"error": {"code": 4, "message": "App limit"}}, status=400)
    used_up = Usage(100, 60)
    work = Work(throttled, app, answer(used_up), answer())
    for _ in range(2):
        with pytest.raises(GraphError):
            await work.call()
    await work.call()
    await work.call()
    blocks = {scope: work.value("convsync_graph_blocks_total", scope=scope) for scope in ("page", "app")}
    assert blocks == {"page": 2, "app": 1}


async def test_an_answer_that_cannot_be_read_is_counted_though_the_call_succeeded() -> None:
    work = Work(answer())

    def refuse(answer: GraphAnswer, at: datetime) -> None:
        raise GraphError("no list", type="unreadable")

    with pytest.raises(GraphError):
        await work.call(refuse)
    assert work.value("convsync_graph_unreadable_answers_total", endpoint="conversations") == 1


async def test_a_call_without_an_answer_is_counted_with_its_class() -> None:
    measures = Measures()
    async with GraphClient("http://127.0.0.1:1", measures=measures.graph) as graph:
        with pytest.raises(GraphError):
            await graph.get("104/conversations", {}, "a token")
    labels = {"endpoint": "conversations", "status": "none", "error_class": "transient"}
    assert measures.registry.get_sample_value("convsync_graph_calls_total", labels) == 1


async def test_a_call_of_the_database_that_fails_is_counted_by_the_kind_of_its_error_alone() -> None:
    measures = Measures()
    with pytest.raises(TryAgain), measures.database.call("select convsync_api.ingest()"):
        raise TryAgain("with text that is nobody's business")
    with measures.database.call("select convsync_api.ingest()"):
        pass
    value = measures.registry.get_sample_value
    assert value("convsync_database_call_duration_seconds_count", {"function": "ingest"}) == 2
    assert value("convsync_database_call_errors_total", {"function": "ingest", "error": "TryAgain"}) == 1


def test_what_is_rare_begins_at_nothing_so_that_the_first_is_an_increase() -> None:
    value = Measures().registry.get_sample_value
    for mode in ("full", "incremental", "reconcile"):
        for status in ("succeeded", "partial", "failed", "paused", "lease_lost", "interrupted"):
            assert value("convsync_sync_runs_total", {"mode": mode, "status": status}) == 0
    assert value("convsync_graph_blocks_total", {"scope": "app"}) == 0


def test_measures_that_nobody_reads_get_in_nobodys_way() -> None:
    for _ in range(2):
        GraphMeasures().blocked("page")
        DatabaseMeasures()
