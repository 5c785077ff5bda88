"""Each answer is as the OpenAPI document says, with no field more or less."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from http_support import AT, OPERATOR, PAGE, PERSON, Json, Owner, Service, delivery, said, sent_events
from pydantic import BaseModel

from convsync.facts import DeadLetter, PageEvent
from convsync.observe.drift import Drift
from convsync.web.routing import ROUTES, Route
from convsync.web.state import STORE

SENT = datetime.fromtimestamp(AT / 1000, UTC)
ONE = f"/api/pages/{PAGE}/conversations/1"
# Read first, then change, and last what leaves nothing to be read. `RUN` is a run's id.
CALLS: list[tuple[str, str, Json | None]] = [
    ("GET", "/healthz", None),
    ("GET", "/readyz", None),
    ("GET", "/api/pages", None),
    ("POST", "/api/pages", {"page_id": PAGE, "name": "Harbour"}),
    ("GET", f"/api/pages/{PAGE}", None),
    ("GET", f"/api/pages/{PAGE}/certificate", None),
    ("GET", f"/api/pages/{PAGE}/certificate/conversations", None),
    ("GET", f"/api/pages/{PAGE}/checksum", None),
    ("GET", f"/api/pages/{PAGE}/webhook-losses?from=2020-01-01T00:00:00Z", None),
    ("GET", f"/api/pages/{PAGE}/messages/m_1", None),
    ("GET", f"/api/pages/{PAGE}/events", None),
    ("GET", f"/api/pages/{PAGE}/timing", None),
    ("GET", f"/api/pages/{PAGE}/conversations", None),
    ("GET", ONE, None),
    ("GET", f"{ONE}/events", None),
    ("GET", f"{ONE}/timing", None),
    ("PATCH", ONE, {"note": "a good customer", "tags": ["blue"]}),
    ("GET", "/api/changes", None),
    ("GET", "/api/changes/end", None),
    ("POST", "/api/changes/crm/position", {"position": "0-0-0"}),
    ("GET", f"/api/pages/{PAGE}/sync-runs", None),
    ("GET", "/api/sync-runs/RUN", None),
    ("POST", "/api/sync-runs/RUN/cancel", None),
    ("POST", "/api/sync-runs/RUN/retry?wait=30", None),
    ("POST", "/api/conversations/sync", {"page_id": PAGE}),
    ("POST", "/api/stream-tickets", {"stream": "changes"}),
    ("GET", "/api/schema-drift", None),
    ("GET", "/api/dead-letters", None),
    ("GET", "/api/dead-letters/1", None),
    ("POST", "/api/dead-letters/1/discard", {"reason": "known"}),
    ("POST", "/api/dead-letters/1/replay", None),
    ("POST", f"/api/pages/{PAGE}/purges", {"before": "2020-01-01"}),
    ("POST", f"/api/pages/{PAGE}/erasures", {"sender_id": PERSON}),
    ("DELETE", f"/api/pages/{PAGE}", None),
]
# Signed requests of Meta's: `tests/api/test_compliance_api.py` has their answers whole.
OF_META = {"DeletionRequested", "Deauthorized"}


def route_of(method: str, path: str) -> Route:
    """The route of a path: the one with the fewest names in it."""
    parts = path.partition("?")[0].split("/")
    fitting = [
        (route.path.count("{"), route.path, route)
        for route in ROUTES
        if route.method == method
        and len(route.path.split("/")) == len(parts)
        and all(
            one == other or one.startswith("{")
            for one, other in zip(route.path.split("/"), parts, strict=True)
        )
    ]
    return min(fitting, key=lambda found: found[:2])[2]


@pytest.fixture
async def filled(service: Service, owner: Owner) -> str:
    """Some of everything; the id of a run that has ended."""
    await service.add_page(name="Harbour")
    for number in range(3):
        assert await service.deliver(delivery(said(f"m_{number}", "hello", at=AT + number))) == 200
    store = service.app[STORE]
    await store.ingest(
        [
            DeadLetter(PAGE, "it is not understood", b"{}"),
            PageEvent(PAGE, "notice_1", SENT + timedelta(days=1), "policy_enforcement", {"webhook": {}}),
        ],
        "webhook",
    )
    await store.record_schema_drift([Drift(PAGE, "webhook", "message.new", 2)])
    owner.execute(
        """insert into convsync.webhook_losses (page_id, message_id, event_timestamp, learnt_at)
           select page_id, message_id, event_timestamp, now() from convsync.contact_interaction_events"""
    )
    status, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    assert (status, run["status"]) == (200, "failed")
    found: str = run["run_id"]
    owner.execute(
        """insert into convsync.sync_batches
             (page_id, run_id, batch, kind, thread_id, cursor, status, attempts, error, progress)
           values (%s, %s, 1, 'thread', 't_1', 'c', 'failed', 3, '{"code": 1}', 1)""",
        [PAGE, found],
    )
    return found


def models(found: object) -> set[str]:
    """The models that a document of this model is made of, as far as there was something of each."""
    if isinstance(found, BaseModel):
        inside = [models(value) for _, value in found]
        return {type(found).__name__}.union(*inside)
    if isinstance(found, list):
        return set[str]().union(*(models(one) for one in found))
    return set()


async def test_each_answer_has_the_fields_of_its_model_and_no_others(service: Service, filled: str) -> None:
    seen: set[str] = set()
    async with service.client.get(
        "/api/conversations/sync-stream", params={"run_id": filled}, headers=OPERATOR
    ) as answer:
        events = route_of("GET", "/api/conversations/sync-stream").answers[200].events
        async for sent in sent_events(answer):
            assert not isinstance(sent, str)
            seen |= models(events[sent.event].model_validate(sent.data, extra="forbid"))
    for method, path, body in CALLS:
        path = path.replace("RUN", filled)
        headers = {**OPERATOR, "If-Match": '"3"'}
        async with service.client.request(method, path, json=body, headers=headers) as answer:
            text = await answer.text()
            described = route_of(method, path).answers
            assert answer.status in described, (method, path, text)
            model = described[answer.status].of
            assert issubclass(model, BaseModel)
            seen |= models(model.model_validate_json(text, extra="forbid"))
    seen.add("StreamedChange" if await _streamed_change(service) else "")
    wanted = {
        model.__name__
        for route in ROUTES
        for answer in route.answers.values()
        for model in (answer.of, *answer.events.values())
        if isinstance(model, type) and issubclass(model, BaseModel)
    }
    # Only a run that holds deletions back has this: tests/sync/test_deletions.py holds it to its model.
    assert wanted - seen == OF_META | {"AllowedDeletions"}


async def _streamed_change(service: Service) -> bool:
    async with service.client.get("/api/changes/stream", headers=OPERATOR) as answer:
        model = route_of("GET", "/api/changes/stream").answers[200].events["change"]
        fields: dict[str, Any] = {}
        async for raw in answer.content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            fields[name] = value
            if name == "data":
                model.model_validate_json(value, extra="forbid")
                return fields["event"] == "change"
    return False
