"""Schemathesis calls every route with what the OpenAPI document allows, and with what it does not.

All its checks hold: no 5xx, no status, media type or field that is not documented, nothing accepted that
the document forbids, nothing refused that it allows, no route open without a key. Bounded, and the same each
time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
import schemathesis
from http_support import (
    API_KEYS,
    APP_SECRET,
    OPERATE_KEY,
    OTHER_PAGE,
    PAGE,
    PERSON,
    TOKEN_KEY,
    VERIFY_TOKEN,
    signature,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from requests import PreparedRequest
from requests.auth import AuthBase
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from convsync.facts import DeadLetter, Message
from convsync.settings import Settings
from convsync.store import Store
from convsync.web import app as web_app
from convsync.web import openapi
from convsync.web.routes import changes
from convsync.web.routing import ROUTES
from convsync.web.state import STORE

EXAMPLES = 15
GONE_PAGE = "104000000000009"
"""One that may be removed: the others would have nothing to read any more."""
AT = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
ACCEPTED = ["2xx", "304", "401", "403", "404", "409", "410", "412"]
# A well-formed text that is no time zone, or a position nobody was given, is refused by what it means.
BY_MEANING = [
    "GET /api/pages/{page_id}/timing",
    "GET /api/pages/{page_id}/conversations/{conversation_id}/timing",
    "GET /api/pages/{page_id}/conversations",
    "GET /api/pages/{page_id}/conversations/{conversation_id}/events",
    "GET /api/pages/{page_id}/events",
    "GET /api/changes",
    "GET /api/changes/stream",
    "POST /api/changes/{consumer}/position",
    "POST /api/pages",
    "POST /api/pages/{page_id}/purges",
    "POST /api/pages/{page_id}/erasures",
    "POST /api/stream-tickets",
    "POST /api/sync-runs/{run_id}/retry",
    "PATCH /api/pages/{page_id}/conversations/{conversation_id}",
    "POST /api/dead-letters/{dead_letter_id}/replay",
    "POST /api/dead-letters/{dead_letter_id}/discard",
    "POST /api/facebook/data-deletion",
    "POST /api/facebook/deauthorize",
    "POST /api/webhook",
]
CONFIG: dict[str, Any] = {
    "seed": 1,
    "cache": {"enabled": False},
    "generation": {"allow-x00": False},
    "auth": {"openapi": {"key": {"bearer": OPERATE_KEY}}},
    "dictionaries": {
        "pages": {"values": [PAGE, OTHER_PAGE]},
        "numbers": {"values": ["1", "2"]},
        "versions": {"values": ['"1"', '"2"']},
    },
    "parameters": {
        "path.page_id": {"dictionary": "pages", "probability": 0.7},
        "path.conversation_id": {"dictionary": "numbers", "probability": 0.7},
        "path.run_id": {"dictionary": "numbers", "probability": 0.7},
        "path.dead_letter_id": {"dictionary": "numbers", "probability": 0.7},
        "query.run_id": {"dictionary": "numbers", "probability": 0.7},
    },
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ACCEPTED},
        "negative_data_rejection": {
            "expected-statuses": ["400", "401", "403", "404", "405", "410", "412", "413", "415", "422", "428"]
        },
        "missing_required_header": {"expected-statuses": ["401", "403", "404", "422", "428"]},
    },
    "operations": [
        {
            "include-name": name,
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "422"]}},
        }
        for name in BY_MEANING
    ]
    + [
        {"include-name": "DELETE /api/pages/{page_id}", "parameters": {"path.page_id": GONE_PAGE}},
        # Meta is answered 403, not 401.
        {"include-name": "POST /api/webhook", "checks": {"ignored_auth": {"enabled": False}}},
    ],
}

DOCUMENT = openapi.document(ROUTES)
known = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(CONFIG))
nobody = schemathesis.openapi.from_dict(
    DOCUMENT, config=schemathesis.Config.from_dict({name: CONFIG[name] for name in CONFIG if name != "auth"})
)
bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

moments = st.datetimes(datetime(2000, 1, 1), datetime(2029, 1, 1), timezones=st.just(UTC))
schemathesis.openapi.format("date-time", moments.map(datetime.isoformat))
schemathesis.openapi.format("date", moments.map(lambda at: at.date().isoformat()))


@dataclass(frozen=True)
class Running:
    url: str
    session: requests.Session


@pytest.fixture(scope="module")
def running(server: Any, template: str) -> Iterator[Running]:
    """The service in a thread of its own, on a database with something of everything in it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(Store, "health", _durable(Store.health))
    patch.setattr(changes, "_change_events", _until_quiet)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="the service")
    thread.start()

    def run(work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, loop)
        return done.result(60)

    with server.fresh_database(template) as database:
        values = Settings(
            _env_file=None,
            database_url=SecretStr(database.service_url),
            app_secret=SecretStr(APP_SECRET),
            verify_token=SecretStr(VERIFY_TOKEN),
            api_keys=SecretStr(API_KEYS),
            token_key=SecretStr(TOKEN_KEY),
            graph_url="http://127.0.0.1:1",
            calls_per_second=0,
            requests_per_minute=0,
            sync_interval=0,
            reconcile_interval=0,
        )

        async def start() -> tuple[Any, Any]:
            application = web_app.create_app(values, database.service_url)
            runner = await web_app.serve(application, "127.0.0.1", 0)
            await _fill(application[STORE])
            return runner, runner.addresses[0][1]

        runner, port = run(start())
        session = requests.Session()
        session.auth = Signed()
        try:
            yield Running(f"http://127.0.0.1:{port}", session)
        finally:
            run(runner.cleanup())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
            patch.undo()


def _durable(real: Any) -> Any:
    async def health(self: Store) -> Any:
        # The tests' server forgets what it is told when it falls over, for speed.
        return {**await real(self), "durable": True}

    return health


async def _until_quiet(
    _store: Any, found: Any, *_: Any, **__: Any
) -> AsyncGenerator[tuple[str, str, Any], None]:
    """The stream of the feed, but it ends where it would wait."""
    for change in found:
        yield "change", change.position, change.as_json()


async def _fill(store: Store) -> None:
    for page_id in (PAGE, OTHER_PAGE, GONE_PAGE):
        await store.add_page(page_id=page_id, name="Harbour")
    for page_id in (PAGE, OTHER_PAGE):
        told = [
            Message(page_id, PERSON, f"m_{page_id}_{number}", "in", AT + timedelta(minutes=number), "hello")
            for number in range(3)
        ]
        await store.ingest(told, "webhook")
    await store.ingest([DeadLetter(PAGE, "it is not understood", b"{}")], "webhook")


class Signed(AuthBase):
    """Signs what is sent to the webhook, as Meta does."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        if "X-Hub-Signature-256" in request.headers:
            body = request.body.encode() if isinstance(request.body, str) else request.body or b""
            request.headers["X-Hub-Signature-256"] = signature(body)
        return request


@known.parametrize()
@bounded
def test_every_route_keeps_to_the_document(case: Any, running: Running) -> None:
    # An empty parameter is none (allowEmptyValue), whatever its kind: Schemathesis takes it for a wrong one.
    empty = "" in (case.query or {}).values()
    case.call_and_validate(
        base_url=running.url,
        session=running.session,
        timeout=30,
        excluded_checks=[negative_data_rejection] if empty else [],
    )


@nobody.parametrize()
@bounded
def test_without_a_key_every_route_says_so_or_needs_none(case: Any, running: Running) -> None:
    answer = case.call(base_url=running.url, timeout=30)
    case.validate_response(
        answer,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
    wanted = case.operation.definition.raw["security"]
    if any("key" in one for one in wanted):
        assert answer.status_code in (401, 405)
