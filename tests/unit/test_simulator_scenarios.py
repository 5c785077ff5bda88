"""Scenario files: each that is shipped does what its line says, and a wrong one is refused by its field."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from convsync.simulator import Simulator
from convsync.simulator.__main__ import parse_arguments
from convsync.simulator.scenario import (
    LIBRARY,
    Scenario,
    ScenarioError,
    library,
    load_scenario,
    parse_scenario,
)
from unit.webhook_receiver import Receiver, listening, until

NAMES = sorted(path.stem for path in LIBRARY.glob("*.toml"))
DOCUMENTED = Path(__file__).parents[2] / "docs" / "simulator-scenarios.md"
LIST = {"fields": "id,messages.limit(25){id}"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening() as one:
        yield one


@asynccontextmanager
async def started(name: str, receiver: Receiver | None = None, **more: Any) -> AsyncIterator[Simulator]:
    """The scenario on a free port, in a hurry where nothing is about time."""
    config = load_scenario(name).config
    life = config.life
    if life is not None:
        life = dataclasses.replace(life, rate=max(life.rate, 1.0))
    given: dict[str, Any] = {
        "port": 0,
        "speed": 500.0,
        "life": life,
        "webhooks_to": None if receiver is None else receiver.url,
        **more,
    }
    async with Simulator(dataclasses.replace(config, **given)) as simulator:
        yield simulator


class Client:
    """The plainest of clients: one call after the other, its status and document."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self._simulator = simulator
        self._session = session

    async def call(self, path: str = "me/conversations", **query: Any) -> tuple[int, Any]:
        parameters = {"access_token": self._simulator.page.token, **LIST, **query}
        async with self._session.get(f"{self._simulator.url}/{path}", params=parameters) as answer:
            body = await answer.read()
            return answer.status, json.loads(body)

    async def walk(self) -> list[list[str]]:
        """The ids of each page of the list, until there is no next."""
        pages: list[list[str]] = []
        query: dict[str, str] = {}
        while True:
            status, body = await self.call(**query)
            assert status == 200
            pages.append([one["id"] for one in body["data"]])
            if "next" not in body.get("paging", {}):
                return pages
            query = {"after": body["paging"]["cursors"]["after"]}


@asynccontextmanager
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(simulator, session)


def told(receiver: Receiver) -> list[str]:
    """The ids of the messages that webhooks told, standby included."""
    return [
        event["message"]["mid"]
        for entry in receiver.entries
        for event in (*entry.get("messaging", ()), *entry.get("standby", ()))
        if "mid" in event.get("message", {})
    ]


# -- the library


def test_every_scenario_is_read_and_says_why() -> None:
    scenarios = library()
    assert [one.name for one in scenarios] == NAMES
    assert len(NAMES) >= 15
    assert all(20 < len(one.why) <= 110 for one in scenarios)
    assert len({one.why for one in scenarios}) == len(scenarios)


def test_every_scenario_is_documented_and_has_a_test_here() -> None:
    documented = DOCUMENTED.read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for scenario in library():
        assert f"`{scenario.name}`" in documented
        assert scenario.why in documented
        assert f'started("{scenario.name}"' in here


def test_the_documented_example_is_a_scenario() -> None:
    example = DOCUMENTED.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    assert len(parse_scenario(example, "example").config.timeline) == 3


async def test_calm_nothing_goes_wrong(receiver: Receiver) -> None:
    async with started("calm", receiver) as simulator, client(simulator) as reader:
        status, body = await reader.call()
        assert (status, len(body["data"])) == (200, 25)
        await until(lambda: simulator.webhooks.outcomes["delivered"] >= 20)
        outcomes = simulator.webhooks.outcomes
        assert outcomes["failed"] == outcomes["lost"] == outcomes["late"] == outcomes["not_subscribed"] == 0


async def test_busy_somebody_writes_all_the_time_on_three_pages(receiver: Receiver) -> None:
    async with started("busy", receiver) as simulator:
        await until(lambda: all(played.total() >= 10 for played in simulator.life.played.values()))
        assert len(simulator.life.played) == 3
        await until(lambda: {entry["id"] for entry in receiver.entries} == set(simulator.populations))
    assert load_scenario("busy").config.speed == 60


async def test_lossy_webhooks_a_fifth_never_comes_and_some_come_an_hour_late(receiver: Receiver) -> None:
    async with started("lossy-webhooks", receiver) as simulator:
        outcomes = simulator.webhooks.outcomes
        await until(lambda: outcomes["lost"] >= 10 and outcomes["late"] >= 2)
        simulator.life.stop()
        played = simulator.life.played[simulator.page.page_id].total()
        assert 0.05 < outcomes["lost"] / played < 0.5
        before = len(receiver.bodies)
        await simulator.webhooks.settle()
        assert len(receiver.bodies) >= before
        config = load_scenario("lossy-webhooks").config
        assert [step.what.get("seconds") for step in config.timeline] == [None, 3600]


async def test_noisy_webhooks_tell_the_same_in_other_forms(receiver: Receiver) -> None:
    async with started("noisy-webhooks", receiver, speed=50.0) as simulator:
        await until(lambda: len(receiver.bodies) >= 60)
        counted = Counter(receiver.bodies)
        assert set(counted.values()) == {1, 3}
        assert any(isinstance(entry["time"], str) for entry in receiver.entries)
        assert any(isinstance(entry["id"], int) for entry in receiver.entries)
        assert any("sim_future_field" in event for event in receiver.events)
        times = [int(event["timestamp"]) for event in receiver.events if "timestamp" in event]
        assert times != sorted(times)
        assert all(simulator.population.find_message(mid) for mid in told(receiver))


async def test_batches_hold_updates_of_several_pages(receiver: Receiver) -> None:
    async with started("batches", receiver, speed=1.0) as simulator:
        await until(lambda: len(receiver.bodies) >= 1)
        entries = json.loads(receiver.bodies[0])["entry"]
        assert 20 < len(entries) <= 1000
        assert {entry["id"] for entry in entries} == set(simulator.populations)


async def test_standby_half_of_the_messages_come_in_standby(receiver: Receiver) -> None:
    async with started("standby", receiver) as simulator:
        await until(lambda: len(receiver.bodies) >= 60)
        channels = Counter(
            name for entry in receiver.entries for name in ("messaging", "standby") if name in entry
        )
        assert 0.2 < channels["standby"] / channels.total() < 0.8
        assert all(simulator.population.find_message(mid) for mid in told(receiver))


async def test_forger_tells_what_nobody_wrote(receiver: Receiver) -> None:
    async with started("forger", receiver) as simulator:
        outcomes = simulator.webhooks.outcomes
        await until(lambda: outcomes["forged"] >= 5 and outcomes["delivered"] >= 20)
        made_up = [mid for mid in told(receiver) if simulator.population.find_message(mid) is None]
        assert len(made_up) >= 5
        assert all("X-Hub-Signature" in headers for headers in receiver.headers)
        assert any("X-Hub-Signature-256" not in headers for headers in receiver.headers)


async def test_overtaking_edits_come_first(receiver: Receiver) -> None:
    async with started("overtaking", receiver) as simulator:
        await until(lambda: len(receiver.bodies) >= 60)
        simulator.life.stop()
        place: dict[str, int] = {}
        for number, event in enumerate(receiver.events):
            if "message" in event:
                place.setdefault(event["message"]["mid"], number)
        early = [
            number < place[event["message_edit"]["mid"]]
            for number, event in enumerate(receiver.events)
            if "message_edit" in event and event["message_edit"]["mid"] in place
        ]
        assert len(early) >= 5
        assert all(early)


async def test_unheard_of_kinds_come_among_the_known(receiver: Receiver) -> None:
    async with started("unheard-of", receiver) as simulator:
        await until(lambda: len(receiver.bodies) >= 150)
        assert simulator.webhooks.outcomes["not_subscribed"] == 0
        keys = {key for event in receiver.events for key in event}
        assert {"message", "message_mood", "optin", "order", "policy_enforcement"} <= keys
        assert {change["field"] for entry in receiver.entries for change in entry.get("changes", ())} == {
            "conversations",
            "inbox_labels",
        }


async def test_silent_changes_are_in_graph_and_in_no_webhook(receiver: Receiver) -> None:
    async with started("silent-changes", receiver) as simulator:
        played = simulator.life.played[simulator.page.page_id]
        await until(lambda: min(played[kind] for kind in ("agent_edit", "silent_unsend", "rename")) >= 3)
        assert all("message" in event for event in receiver.events)
        population = simulator.population
        messages = [m for c in population.conversations for m in population.all_messages(c)]
        assert sum(m.deleted for m in messages) >= 3
        assert sum(m.edits for m in messages) >= 3
        assert not any(event["message"].get("is_deleted") for event in receiver.events)


async def test_unsubscribed_for_half_an_hour(receiver: Receiver) -> None:
    async with started("unsubscribed", receiver, speed=5000.0) as simulator:
        timeline, webhooks = simulator.timeline, simulator.webhooks
        await until(lambda: len(timeline.done) == 2)
        assert [one["do"] for one in timeline.done] == ["unsubscribe", "end of unsubscribe"]
        assert timeline.done[0]["at"] >= 600
        assert timeline.done[1]["at"] >= 2400
        await until(lambda: simulator.page.page_id in webhooks.subscriptions)
        assert webhooks.outcomes["not_subscribed"] > 0


async def test_throttled_the_allowance_ends_in_mid_walk() -> None:
    async with started("throttled", calls_per_second=0.0) as simulator, client(simulator) as reader:
        answers = [await reader.call() for _ in range(31)]
        assert [status for status, _ in answers[:30]] == [200] * 30
        assert answers[30][1]["error"]["code"] == 80006
        assert simulator.calls.totals()[simulator.page.page_id]["refused"] == 1
    assert load_scenario("throttled").config.calls_per_second == 2
    assert load_scenario("throttled").config.conversations / 25 > 30


async def test_too_much_data_fails_until_less_is_asked_for() -> None:
    async with started("too-much-data") as simulator, client(simulator) as reader:
        for _ in range(2):
            status, body = await reader.call(limit="25")
            assert (status, body["error"]["code"]) == (500, 1)
            assert "reduce the amount of data" in body["error"]["error_user_msg"]
        status, body = await reader.call(limit="11")
        assert (status, len(body["data"])) == (200, 11)


async def test_flaky_graph_answers_after_a_few_tries() -> None:
    async with started("flaky-graph") as simulator, client(simulator) as reader:
        thread = f"{simulator.population.conversations[0].thread_id}/messages"
        seen: list[object] = []
        for path in (*("me/conversations",) * 16, *(thread,) * 3):
            try:
                status, body = await reader.call(path, fields="id")
            except (aiohttp.ClientError, json.JSONDecodeError) as error:
                seen.append(type(error).__name__)
            else:
                seen.append(status if status == 200 else body["error"]["code"])
        assert seen[:5] == [200, 200, 2, 2, 200]
        assert {"JSONDecodeError", "ClientPayloadError"} <= set(seen)
        # A cut connection may not be among them: this client tries again by itself.
        assert [fault["hits"] for fault in simulator.faults.list()] == [2, 1, 1, 1, 1]
        assert (seen[15], seen[16], seen[18]) == (200, 200, 200)


async def test_odd_pages_are_short_or_empty_and_nothing_is_missing() -> None:
    async with started("odd-pages") as simulator, client(simulator) as reader:
        pages = await reader.walk()
        assert 0 in map(len, pages)
        assert 1 in map(len, pages[:-1])
        seen = [thread for page in pages for thread in page]
        assert sorted(seen) == sorted(one.thread_id for one in simulator.population.conversations)


async def test_moving_list_threads_jump_past_the_reader() -> None:
    async with started("moving-list") as simulator, client(simulator) as reader:
        seen = [thread for page in await reader.walk() for thread in page]
        there = {one.thread_id for one in simulator.population.conversations}
        assert [one["calls"] for one in simulator.timeline.done] == [3, 5]
        assert there - set(seen)
        again = [thread for page in await reader.walk() for thread in page]
        assert sorted(again) == sorted(there)


async def test_dead_token_is_refused_and_good_again() -> None:
    async with started("dead-token") as simulator, client(simulator) as reader:
        statuses = [(await reader.call())[0] for _ in range(32)]
        assert statuses == [200] * 10 + [400] * 20 + [200] * 2
        _, body = await reader.call(access_token="nonsense")
        assert body["error"]["code"] == 190


async def test_big_page_starts_at_once_and_has_no_limit() -> None:
    async with started("big-page") as simulator, client(simulator) as reader:
        for _ in range(5):
            status, body = await reader.call()
            assert (status, len(body["data"])) == (200, 25)
        assert len(simulator.population.conversations) == 100_000


async def test_out_of_reach_some_threads_are_unlisted_and_old_messages_have_no_details() -> None:
    async with started("out-of-reach") as simulator, client(simulator) as reader:
        seen = {thread for page in await reader.walk() for thread in page}
        unlisted = {one.thread_id for one in simulator.population.conversations} - seen
        assert 0 < len(unlisted) <= 10
        thread = max(simulator.population.conversations, key=lambda one: one.message_count)
        fields = {"fields": "message", "limit": "30"}
        _, body = await reader.call(f"{thread.thread_id}/messages", **fields)
        assert [len(one) for one in body["data"]] == [2] * 20 + [1] * 10


async def test_too_busy_to_list_single_threads_can_be_read() -> None:
    async with started("too-busy-to-list") as simulator, client(simulator) as reader:
        status, body = await reader.call()
        assert (status, body["error"]["code"]) == (500, 1)
        thread = next(one for one in simulator.population.conversations if one.customer_id)
        assert (await reader.call(thread.thread_id))[0] == 200
        _, body = await reader.call(user_id=str(thread.customer_id))
        assert [one["id"] for one in body["data"]] == [thread.thread_id]


async def test_dying_cursors_die_twice_and_the_front_is_always_there() -> None:
    async with started("dying-cursors") as simulator, client(simulator) as reader:
        codes, seen = [], set()
        for _ in range(3):
            query: dict[str, str] = {}
            while True:
                status, body = await reader.call(**query)
                if status != 200:
                    codes.append(body["error"]["code"])
                    break
                seen |= {one["id"] for one in body["data"]}
                if "next" not in body["paging"]:
                    break
                query = {"after": body["paging"]["cursors"]["after"]}
        assert codes == [100, 2642]
        assert len(seen) == len(simulator.population.conversations)


async def test_new_shapes_come_once_and_all_but_one_item_has_its_id() -> None:
    async with started("new-shapes") as simulator, client(simulator) as reader:
        fields = {"fields": "id,participants,updated_time"}
        _, usual = await reader.call(limit="100", **fields)
        _, other = await reader.call(limit="100", **fields)
        assert {type(one["participants"]) for one in usual["data"] if "participants" in one} == {dict}
        assert {type(one.get("participants")) for one in other["data"]} != {dict}
        assert [one["id"] for one in usual["data"]].count("") == 0
        assert sum("id" not in one for one in other["data"]) == 1


async def test_slow_graph_is_late_then_slower_then_silent() -> None:
    steps = load_scenario("slow-graph").config.timeline
    assert [(step.what["action"], step.what.get("seconds")) for step in steps] == [
        ("delay", 2),
        ("trickle", 5),
        ("hang", None),
    ]
    # The same in no time; a hang that ends is a 504.
    quick = tuple(dataclasses.replace(step, what={**step.what, "seconds": 0}) for step in steps)
    async with started("slow-graph", timeline=quick) as simulator, client(simulator) as reader:
        for _ in range(8):
            with suppress(json.JSONDecodeError):
                await reader.call()
        calls = list(simulator.calls.calls)
        assert [one.fault for one in calls if one.fault] == [1, 2, 3]
        assert [one.status for one in calls if one.fault] == [200, 200, 504]
        assert [one.status for one in calls if not one.fault] == [200] * 5


# -- the format


WHY = 'why = "to be tested"\n'


def parsed(text: str) -> Scenario:
    return parse_scenario(WHY + text, "mine")


def test_a_scenario_says_population_rate_faults_and_times() -> None:
    config = parsed(
        """
        [population]
        pages = 2
        conversations = 7
        messages = 3
        seed = 9
        [graph]
        calls_per_second = 0.5
        hourly_calls = 100
        require_appsecret_proof = true
        max_messages_per_call = 20
        [webhooks]
        subscribed = true
        timeout = 2
        unsubscribe_after = 7200
        [time]
        speed = 10
        [life]
        rate = 3
        kinds = { text = 1 }
        [[faults]]
        at = 5
        until = 9
        match = "/messages"
        action = "error"
        code = 2
        [[webhook_faults]]
        at_calls = 3
        action = "lose"
        [[steps]]
        do = "revoke_token"
        page = 2
        at_calls = 4
        until_calls = 6
        """
    ).config
    assert [page.page_id for page in config.pages] == ["100000000000001", "100000000000002"]
    assert (config.conversations, config.messages, config.seed, config.speed) == (7, 3.0, 9, 10.0)
    assert (config.calls_per_second, config.hourly_calls, config.max_messages_per_call) == (0.5, 100, 20)
    assert config.require_appsecret_proof
    assert (config.webhook_timeout, config.webhook_unsubscribe_after, config.subscribed) == (2, 7200, True)
    assert config.life is not None
    assert (config.life.rate, config.life.kinds) == (3, {"text": 1})
    fault, webhook_fault, step = config.timeline
    assert (fault.do, fault.at, fault.until) == ("fault", 5, 9)
    assert fault.what == {"match": "/messages", "action": "error", "code": 2}
    assert (webhook_fault.do, webhook_fault.at_calls) == ("webhook_fault", 3)
    assert (step.do, step.what, step.at_calls, step.until_calls) == ("revoke_token", {"page": 2}, 4, 6)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[population]\nconversation = 3", "population.conversation"),
        ("[population]\nconversations = -3", "population.conversations"),
        ("[population]\npages = 0", "population.pages"),
        ("[population]\nmessages = 'many'", "population.messages"),
        ("[graph]\ncalls_per_second = true", "graph.calls_per_second"),
        ("[graph]\nport = 1", "graph.port"),
        ("[webhooks]\nsubscribed = 1", "webhooks.subscribed"),
        ("[webhooks]\npatience = 1", "webhooks.patience"),
        ("[time]\nspeed = 0", "time.speed"),
        ("[life]\nkinds = { text = 1 }", "life.rate"),
        ("[life]\nrate = 1\npace = 2", "life.pace"),
        ("[life]\nrate = 1\nkinds = { dance = 1 }", "life.kinds"),
        ("[[faults]]\naction = 'explode'", r"faults\[1\]"),
        ("[[faults]]\naction = 'empty'\nat = 'noon'", r"faults\[1\].at"),
        ("[[faults]]\naction = 'empty'\nat = 1\nat_calls = 1", r"faults\[1\].at_calls"),
        ("[[steps]]\ndo = 'settle'\n[[steps]]\ndo = 'settle'\nx = 1", r"steps\[2\].x"),
        ("[[webhook_faults]]\naction = 'lose'\nshare = 7", r"webhook_faults\[1\].share"),
        ("[[steps]]\ndo = 'nothing'", r"steps\[1\].do"),
        ("[[steps]]\nat = 3", r"steps\[1\].do"),
        ("[[steps]]\ndo = 'traffic'\nmany = 3", r"steps\[1\].many"),
        ("[[steps]]\ndo = 'traffic'\ncount = 0", r"steps\[1\].count"),
        ("[[steps]]\ndo = 'traffic'\nkinds = ['dance']", r"steps\[1\].kinds"),
        ("[[steps]]\ndo = 'revoke_token'\npage = 2", r"steps\[1\].page"),
        ("[[steps]]\ndo = 'life'", r"steps\[1\].rate"),
        ("[steps]\ndo = 'life'", "steps"),
        ("[weather]\nrain = true", "weather"),
        ("life = 3", "life"),
        ("[", "not TOML"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_the_name_of_its_place(text: str, place: str) -> None:
    with pytest.raises(ScenarioError, match=f"^{place}(: |\\.)"):
        parsed(text)


@pytest.mark.parametrize("text", ["", "why = ''", "why = 3", 'why = """a\nb"""'])
def test_a_scenario_without_one_line_of_why_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"^why: one line is wanted"):
        parse_scenario(text, "mine")


def test_a_file_is_read_and_its_name_is_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(WHY + "[population]\nconversations = 3\n", encoding="utf-8")
    assert load_scenario(str(path)).config.conversations == 3
    path.write_text(WHY + "[population]\nconversations = 'x'\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.toml: population\.conversations: "):
        load_scenario(str(path))
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(str(tmp_path / "other.toml"))
    for name in ("no-such", "../config", "a/b"):
        with pytest.raises(ScenarioError, match="no scenario is named"):
            load_scenario(name)


def test_options_beside_a_scenario_change_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = parse_arguments(["--scenario", "dead-token", "--conversations", "5", "--port", "0"])
    assert (config.conversations, config.port, config.calls_per_second) == (5, 0, 0)
    assert config.timeline == load_scenario("dead-token").config.timeline
    quiet = parse_arguments(["--scenario", "calm", "--traffic", "0"])
    assert quiet.life is None
    with pytest.raises(SystemExit):
        parse_arguments(["--scenario", "no-such"])
    assert "no scenario is named 'no-such'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--list-scenarios"])
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)


async def test_the_command_starts_a_scenario() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "convsync", "simulate", "--scenario", "standby", "--port", "0"),
        *("--conversations", "3"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        announced = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{announced['url']}/_sim/webhooks/faults") as answer,
        ):
            assert [fault["action"] for fault in (await answer.json())["faults"]] == ["standby"]
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0


def test_a_scenario_sets_the_standing_rules_of_graph() -> None:
    text = 'why = "x"\n[graph]\ntwenty_messages = ["messenger"]\nrequests = 0.25\napp_hourly_calls = 9\n'
    rules = parse_scenario(text, "rules").config.graph
    assert rules.twenty_messages == frozenset({"messenger"})
    assert (rules.requests, rules.app_hourly_calls) == (0.25, 9)


@pytest.mark.parametrize(
    "line",
    [
        "twenty_messages = 3",
        'twenty_messages = "messenger"',
        'twenty_messages = ["pigeon"]',
        "requests = 2",
        "app_hourly_calls = -1",
    ],
)
def test_a_rule_of_graph_that_makes_no_sense_is_refused_by_its_place(line: str) -> None:
    with pytest.raises(ScenarioError, match=r"^graph\." + line.split()[0]):
        parse_scenario(f'why = "x"\n[graph]\n{line}\n', "rules")
