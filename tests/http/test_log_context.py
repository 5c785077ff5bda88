"""Whose line of the log it is: the request's id, and the Page and the run that its address names."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from http_support import OPERATOR, PAGE, Service
from structlog.testing import capture_logs

from convsync.store import Store


async def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a defect")


@pytest.mark.parametrize(
    ("path", "method", "named"),
    [
        (f"/api/pages/{PAGE}", "get_page", {"page_id": PAGE}),
        (f"/api/pages/{PAGE}/conversations", "list_conversations", {"page_id": PAGE}),
        ("/api/sync-runs/4711", "get_sync_run", {"run_id": "4711"}),
        ("/api/pages", "list_pages", {}),
    ],
)
async def test_a_line_has_the_requests_id_and_what_its_address_names(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str, method: str, named: dict[str, str]
) -> None:
    monkeypatch.setattr(Store, method, broken)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with service.client.get(path, headers={**OPERATOR, "X-Request-ID": "r-42"}) as answer:
            assert (answer.status, answer.headers["X-Request-ID"]) == (500, "r-42")
    (line,) = [line for line in lines if line["event"] == "request_broken"]
    assert {name: line[name] for name in ("request_id", "page_id", "run_id") if name in line} == {
        "request_id": "r-42",
        **named,
    }


async def test_what_one_request_named_is_not_in_the_lines_of_the_next(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come by one connection."""
    await service.add_page()
    async with service.client.get(f"/api/pages/{PAGE}", headers=OPERATOR) as answer:
        assert answer.status == 200
    monkeypatch.setattr(Store, "list_pages", broken)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        async with service.client.get("/api/pages", headers=OPERATOR) as answer:
            assert answer.status == 500
    (line,) = [line for line in lines if line["event"] == "request_broken"]
    assert "page_id" not in line
