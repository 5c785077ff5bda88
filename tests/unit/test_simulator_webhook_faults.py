"""What may go wrong with webhooks: each fault does what it says, to as many as it says, and to no others."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from convsync.simulator import Simulator, SimulatorConfig, default_pages, events
from convsync.simulator.acts import ODD_KINDS
from convsync.simulator.webhook_faults import WebhookFaultError, WebhookFaults
from unit.webhook_receiver import Receiver, listening, until

APP_SECRET = b"sim-app-secret"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening() as one:
        yield one


@asynccontextmanager
async def simulated(receiver: Receiver, **more: Any) -> AsyncIterator[Simulator]:
    given: dict[str, Any] = {
        "port": 0,
        "conversations": 20,
        "messages": 5,
        "calls_per_second": 0,
        "webhooks_to": receiver.url,
        "subscribed": True,
        "webhook_retry_delay": 0.01,
        **more,
    }
    async with Simulator(SimulatorConfig(**given)) as one:
        yield one


@pytest.fixture
async def simulator(receiver: Receiver) -> AsyncIterator[Simulator]:
    async with simulated(receiver) as one:
        yield one


def right_signature(body: bytes, headers: Any) -> bool:
    return headers.get("X-Hub-Signature-256") == f"sha256={hmac.digest(APP_SECRET, body, 'sha256').hex()}"


def mids(receiver: Receiver) -> list[str]:
    return [event["message"]["mid"] for event in receiver.events if "message" in event]


async def test_a_lost_webhook_happened_and_is_never_told(simulator: Simulator, receiver: Receiver) -> None:
    before = simulator.population.message_total()
    simulator.webhooks.faults.add("lose", times=2)
    report = await simulator.traffic(5, kinds=["text"])
    assert (report.delivered, report.not_sent) == (3, 2)
    assert len(receiver.bodies) == 3
    assert simulator.population.message_total() == before + 5
    assert simulator.webhooks.outcomes["lost"] == 2


async def test_a_share_of_the_webhooks_is_lost_and_the_same_seed_loses_the_same() -> None:
    lost = []
    for _ in range(2):
        faults = WebhookFaults(seed=4)
        fault = faults.add("lose", share=0.3)
        lost.append([faults.hit("lose", "1", "messages") is not None for _ in range(1000)])
        assert 250 < fault.hits < 350
    assert lost[0] == lost[1]


async def test_a_fault_hits_only_the_page_and_fields_it_names(
    simulator: Simulator, receiver: Receiver
) -> None:
    faults = simulator.webhooks.faults
    faults.add("lose", page_id="7")
    faults.add("lose", fields=["message_echoes"])
    assert (await simulator.traffic(2, kinds=["text"])).delivered == 2
    assert (await simulator.traffic(2, kinds=["echo"])).not_sent == 2


async def test_duplicates_are_the_same_bytes_at_once(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("duplicate", copies=2, times=1)
    await simulator.traffic(2, kinds=["text"])
    assert sorted(Counter(receiver.bodies).values()) == [1, 3]
    assert simulator.webhooks.outcomes["duplicated"] == 2


async def test_a_late_webhook_comes_after_what_happened_later(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.faults.add("delay", seconds=3600, times=1)
    report = await simulator.traffic(3, kinds=["text"])
    assert (report.delivered, report.late) == (2, 1)
    assert simulator.webhooks.outcomes["late"] == 1
    await simulator.webhooks.settle()
    told = [event["timestamp"] for event in receiver.events]
    assert len(told) == 3
    assert told[2] == min(told)


async def test_a_delay_ends_by_itself_in_simulated_time(receiver: Receiver) -> None:
    async with simulated(receiver, speed=100_000.0) as simulator:
        simulator.webhooks.faults.add("delay", seconds=3600)
        assert (await simulator.traffic(2, kinds=["text"])).late == 2
        await until(lambda: len(receiver.bodies) == 2)


async def test_reordered_webhooks_all_come_in_another_order(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("reorder", window=12, seconds=5)
    assert (await simulator.traffic(12, kinds=["text", "echo"])).delivered == 12
    told = [event["timestamp"] for event in receiver.events]
    assert len(told) == 12
    assert told != sorted(told)


async def test_a_batch_holds_a_thousand_updates_of_several_pages(receiver: Receiver) -> None:
    async with simulated(receiver, pages=default_pages(3)) as simulator:
        simulator.webhooks.faults.add("batch", size=1000, seconds=20)
        playing = [
            simulator.traffic(count, kinds=["text"], page_id=page.page_id)
            for count, page in zip((400, 300, 300), simulator.config.pages, strict=True)
        ]
        reports = await asyncio.gather(*playing)
        assert sum(report.delivered for report in reports) == 1000
        assert len(receiver.bodies) == 1
        assert Counter(entry["id"] for entry in receiver.entries) == {
            page.page_id: count for count, page in zip((400, 300, 300), simulator.config.pages, strict=True)
        }
        assert all(len(entry["messaging"]) == 1 for entry in receiver.entries)
        assert len(set(mids(receiver))) == 1000
        assert simulator.webhooks.deliveries[0].page_ids == [page.page_id for page in simulator.config.pages]


async def test_a_batch_that_does_not_fill_goes_out_after_a_while_in_one_entry(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.faults.add("batch", size=50, seconds=0.05, one_entry=True)
    assert (await simulator.traffic(7, kinds=["text"])).delivered == 7
    assert [len(entry["messaging"]) for entry in receiver.entries] == [7]


async def test_events_come_in_standby_while_another_app_owns_the_thread(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.faults.add("standby", times=1)
    await simulator.traffic(2, kinds=["text"])
    assert sorted("standby" in entry for entry in receiver.entries) == [False, True]
    simulator.webhooks.subscribe(simulator.page.page_id, ["messages"])
    simulator.webhooks.faults.add("standby", times=1)
    assert (await simulator.traffic(1, kinds=["text"])).not_sent == 1


async def test_times_come_as_strings_of_seconds(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("string_seconds")
    await simulator.traffic(1, kinds=["text"])
    await simulator.traffic(1, kinds=["read"])
    entry = receiver.entries[0]
    message = simulator.population.find_message(entry["messaging"][0]["message"]["mid"])
    assert message is not None
    assert entry["messaging"][0]["timestamp"] == str(message[1].created_ms // 1000)
    assert isinstance(entry["time"], str)
    assert len(entry["time"]) == 10
    assert len(receiver.events[1]["read"]["watermark"]) == 10


async def test_ids_come_as_numbers(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("numeric_ids")
    await simulator.traffic(1, kinds=["text"])
    entry = receiver.entries[0]
    assert entry["id"] == int(simulator.page.page_id)
    assert entry["messaging"][0]["recipient"]["id"] == int(simulator.page.page_id)
    assert isinstance(entry["messaging"][0]["message"]["mid"], str)


async def test_a_field_that_nobody_knows_comes_along(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("extra_field", times=1)
    await simulator.traffic(2, kinds=["text"])
    assert sum("sim_future_field" in event for event in receiver.events) == 1
    assert all("message" in event for event in receiver.events)


@pytest.mark.parametrize(
    ("kind", "sha1", "sha256"),
    [("both", True, True), ("sha1", True, False), ("sha256", False, True), ("none", False, False)],
)
async def test_signatures_may_be_missing(
    simulator: Simulator, receiver: Receiver, kind: str, sha1: bool, sha256: bool
) -> None:
    simulator.webhooks.faults.add("signature", kind=kind)
    await simulator.traffic(1, kinds=["text"])
    headers = receiver.headers[0]
    assert (headers.get("X-Hub-Signature") is not None) == sha1
    assert (headers.get("X-Hub-Signature-256") is not None) == sha256
    digest = hmac.new(APP_SECRET, receiver.bodies[0], hashlib.sha1).hexdigest()
    assert not sha1 or headers["X-Hub-Signature"] == f"sha1={digest}"
    assert not sha256 or right_signature(receiver.bodies[0], headers)


async def test_a_wrong_signature_is_made_with_a_wrong_secret_and_the_retry_has_the_right_one(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.faults.add("signature", kind="wrong", times=1)
    receiver.status = lambda number: (
        200 if right_signature(receiver.bodies[number - 1], receiver.headers[number - 1]) else 403
    )
    assert (await simulator.traffic(1, kinds=["text"])).delivered == 1
    assert [attempt.status for attempt in simulator.webhooks.deliveries[0].attempts] == [403, 200]


async def test_a_forger_tells_of_what_nobody_wrote_without_the_secret(
    simulator: Simulator, receiver: Receiver
) -> None:
    simulator.webhooks.faults.add("forge")
    await simulator.traffic(1, kinds=["text"])
    right = [
        right_signature(body, headers)
        for body, headers in zip(receiver.bodies, receiver.headers, strict=True)
    ]
    assert right == [False, True]
    assert simulator.population.find_message(mids(receiver)[0]) is None
    assert (simulator.webhooks.outcomes["forged"], simulator.webhooks.outcomes["forged_taken"]) == (1, 1)


async def test_an_unescaped_body_is_signed_as_it_is(simulator: Simulator, receiver: Receiver) -> None:
    simulator.webhooks.faults.add("unescaped")
    await simulator.traffic(30, kinds=["text"])
    assert any(not body.isascii() for body in receiver.bodies)
    assert all(map(right_signature, receiver.bodies, receiver.headers))


async def test_surrogate_pairs_and_slashes_are_escaped_in_what_is_sent(
    simulator: Simulator, receiver: Receiver
) -> None:
    await simulator.traffic(300, kinds=["text"])
    assert all(body.isascii() for body in receiver.bodies)
    assert any(b"\\ud83d\\ude" in body for body in receiver.bodies)
    assert any(b"https:\\/\\/" in body for body in receiver.bodies)
    assert not any(b"//" in body for body in receiver.bodies)


async def test_what_fails_is_tried_again_ever_more_rarely_until_it_is_taken(receiver: Receiver) -> None:
    async with simulated(receiver, speed=2000.0) as simulator:
        receiver.status = lambda number: 503 if number <= 6 else 200
        assert (await simulator.traffic(1, kinds=["text"])).failed == 1
        delivery = simulator.webhooks.deliveries[0]
        await until(lambda: delivery.delivered)
        moments = [attempt.at for attempt in delivery.attempts]
        assert len(moments) == 7
        assert moments[4] - moments[3] >= 30
        assert moments[5] - moments[4] >= 60
        assert moments[6] - moments[5] >= 120
        await until(lambda: simulator.webhooks.failing == 0)
        assert simulator.webhooks.outcomes["recovered"] == 1
        assert simulator.webhooks.alerts == []


async def test_after_a_quarter_of_an_hour_comes_an_alert_and_after_an_hour_the_app_is_unsubscribed(
    receiver: Receiver,
) -> None:
    async with simulated(receiver, speed=20_000.0) as simulator:
        page_id = simulator.page.page_id
        receiver.status = lambda number: 500
        began = simulator.state.clock.now_ms()
        await simulator.traffic(2, kinds=["text"])
        await until(lambda: page_id not in simulator.webhooks.subscriptions)
        alerts = simulator.webhooks.alerts
        assert [alert.kind for alert in alerts] == ["failing", "disabled"]
        assert alerts[0].at - began >= 900_000
        assert alerts[1].at - began >= 3_600_000
        assert simulator.webhooks.failing == 0
        assert simulator.webhooks.outcomes["dropped"] == 2
        # Nothing is told any more, also of what a receiver that is back would take.
        receiver.status = lambda number: 200
        assert (await simulator.traffic(1, kinds=["text"])).not_sent == 1
        simulator.webhooks.subscribe(page_id)
        assert (await simulator.traffic(1, kinds=["text"])).delivered == 1


async def test_the_edit_comes_before_the_message_and_the_message_has_the_first_text(
    simulator: Simulator, receiver: Receiver
) -> None:
    await simulator.traffic(1, kinds=["edit_before_message"])
    edit, message = receiver.events
    assert edit["message_edit"]["mid"] == message["message"]["mid"]
    assert edit["message_edit"]["text"] != message["message"]["text"]
    found = simulator.population.find_message(message["message"]["mid"])
    assert found is not None
    assert found[1].text == edit["message_edit"]["text"]


async def test_an_echo_is_told_before_the_send_call_returns_or_after_it(
    simulator: Simulator, receiver: Receiver
) -> None:
    page_id = simulator.page.page_id
    for before in (True, False):
        simulator.webhooks.echo_before_answer = before
        written = simulator.population.new_message(None, "out", "sent")
        seen = len(receiver.bodies)
        await simulator.webhooks.send_echo(page_id, events.echo_event(*written))
        assert (len(receiver.bodies) > seen) is before
        await simulator.webhooks.settle()
        assert len(receiver.bodies) == seen + 1


_WITHOUT_WEBHOOK = {"agent_edit", "agent_reaction", "agent_read", "silent_unsend", "rename"}


@pytest.mark.parametrize("kind", sorted(ODD_KINDS))
async def test_odd_kinds_are_told_in_their_form_or_not_at_all(
    simulator: Simulator, receiver: Receiver, kind: str
) -> None:
    changes = simulator.population.live_changes
    report = await simulator.traffic(4, kinds=[kind])
    assert report.played == 4
    assert report.failed == report.not_sent == 0
    if kind in _WITHOUT_WEBHOOK:
        assert receiver.bodies == []
        assert kind == "rename" or simulator.population.live_changes > changes
        return
    assert report.delivered >= 4
    forms = {
        "app_roles": "app_roles",
        "policy": "policy_enforcement",
        "optin": "optin",
        "account_linking": "account_linking",
        "feedback": "response_feedback",
        "order": "order",
        "unknown": "message_mood",
    }
    if kind in forms:
        assert all(forms[kind] in event for event in receiver.events)
    assert all(("sender" in event) is (kind not in ("app_roles", "policy")) for event in receiver.events)
    if kind in ("label", "thread_change"):
        changed = [entry for entry in receiver.entries if "changes" in entry]
        assert len(changed) == 4
        assert all(entry["time"] < 10**10 for entry in changed)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"action": "vanish"}, "action"),
        ({"action": "lose", "share": 2}, "share"),
        ({"action": "lose", "times": 0}, "times"),
        ({"action": "lose", "after": "x"}, "after"),
        ({"action": "lose", "seconds": 3}, "seconds"),
        ({"action": "delay", "seconds": -1}, "seconds"),
        ({"action": "batch", "size": 1001}, "size"),
        ({"action": "signature", "kind": "md5"}, "kind"),
        ({"action": "lose", "fields": "messages"}, "fields"),
        ({"action": "lose", "page_id": 7}, "page_id"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_by_the_name_of_its_field(
    fault: dict[str, Any], field: str
) -> None:
    with pytest.raises(WebhookFaultError, match=f"^{field}: "):
        WebhookFaults().plant(fault)


async def test_control_turns_webhook_faults_on_and_off(simulator: Simulator, receiver: Receiver) -> None:
    control = f"{simulator.url}/_sim/webhooks"
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{control}/faults", json={"action": "delay", "seconds": 900}) as answer:
            assert answer.status == 201
            planted = await answer.json()
        async with session.post(f"{control}/faults", json={"action": "delay", "size": 900}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"].startswith("size: ")
        assert (await simulator.traffic(1, kinds=["text"])).late == 1
        async with session.get(f"{control}/faults") as answer:
            assert [fault["hits"] for fault in (await answer.json())["faults"]] == [1]
        async with session.delete(f"{control}/faults/{planted['id']}") as answer:
            assert (await answer.json())["faults"] == []
        async with session.delete(f"{control}/faults/{planted['id']}") as answer:
            assert answer.status == 404
        async with session.post(f"{control}/settle") as answer:
            assert (await answer.json())["outcomes"]["delivered"] == 1
        async with session.get(control) as answer:
            state = await answer.json()
        assert (state["failing"], state["alerts"]) == (0, [])
        async with session.delete(f"{control}/faults") as answer:
            assert answer.status == 200
    assert len(receiver.bodies) == 1
    assert json.loads(receiver.bodies[0])["object"] == "page"
