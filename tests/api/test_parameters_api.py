"""A parameter that is wrong is refused by its name, in one way: 422 `invalid_argument` with `field`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_support import PAGE, READ, Api, said

PAGES = f"/api/pages/{PAGE}"
NUL = "a\x00b"


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/api/pages/a%00b", "page_id"),
        ("DELETE", "/api/pages/%00", "page_id"),
        ("GET", "/api/pages/a%00b/conversations", "page_id"),
        ("GET", "/api/pages/a%00b/timing", "page_id"),
        ("GET", f"{PAGES}/conversations/1%00", "conversation_id"),
        ("PATCH", f"{PAGES}/conversations/%00", "conversation_id"),
        ("GET", f"{PAGES}/conversations?q=a%00b", "q"),
        ("GET", f"{PAGES}/conversations?status=%00", "status"),
        ("GET", f"{PAGES}/conversations?before=%00", "before"),
        ("GET", f"{PAGES}/conversations/1/events?before=1.m%00", "before"),
        ("GET", f"{PAGES}/conversations/1/timing?tz=UTC%00", "tz"),
        ("GET", f"{PAGES}/timing?tz=%00", "tz"),
        ("GET", "/api/changes?after=%00", "after"),
        ("GET", "/api/changes?consumer=a%00b", "consumer"),
        ("GET", "/api/changes/stream?after=1-1-1%00", "after"),
        ("POST", "/api/changes/a%00b/position", "consumer"),
        ("GET", "/api/dead-letters?page_id=%00", "page_id"),
        ("GET", "/api/dead-letters/%00", "dead_letter_id"),
        ("GET", "/api/schema-drift?page_id=%00", "page_id"),
        ("GET", "/api/sync-runs/%00", "run_id"),
        ("GET", "/api/facebook/deletion-status/a%00b", "code"),
        ("GET", "/console/assets/a%00b", "file"),
        ("GET", "/console/pages/a%00b", "page_id"),
        ("GET", f"/console/pages/{PAGE}/timing?tz=%00", "tz"),
    ],
)
async def test_a_nul_is_refused_by_the_name_of_its_parameter(
    api: Api, method: str, path: str, field: str
) -> None:
    answer = await api(method, path, {} if method in ("POST", "PATCH") else None)
    assert answer.is_problem(422, "invalid_argument")["field"] == field


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{PAGES}/conversations?limit=x", "limit"),
        (f"{PAGES}/conversations?limit=201", "limit"),
        (f"{PAGES}/conversations?before=x", "before"),
        (f"{PAGES}/conversations/x", "conversation_id"),
        (f"{PAGES}/conversations/0", "conversation_id"),
        (f"{PAGES}/conversations/x/events", "conversation_id"),
        (f"{PAGES}/conversations/1/events?limit=0", "limit"),
        (f"{PAGES}/timing?tz=Mars/Phobos", "tz"),
        ("/api/changes?limit=0", "limit"),
        ("/api/changes?after=x", "after"),
        ("/api/dead-letters?limit=501", "limit"),
        ("/api/dead-letters?before=x", "before"),
        ("/api/dead-letters/x", "dead_letter_id"),
        ("/api/schema-drift?limit=x", "limit"),
        ("/api/sync-runs/one", "run_id"),
        ("/api/conversations/sync-stream", "run_id"),
        ("/api/conversations/sync-stream?run_id=-1", "run_id"),
    ],
)
async def test_a_wrong_parameter_is_named(api: Api, path: str, field: str) -> None:
    await api.tell(said("m_1"))
    document = (await api("GET", path, key=READ)).is_problem(422, "invalid_argument")
    assert document["field"] == field


@pytest.mark.parametrize("value", ["banana", "1", "TRUE", "yes", "tru", "null"])
async def test_what_is_neither_true_nor_false_is_refused(api: Api, value: str) -> None:
    answer = await api("GET", "/api/dead-letters", resolved=value)
    assert answer.is_problem(422, "invalid_argument")["field"] == "resolved"
    for known in ("true", "false", ""):
        assert (await api.get("/api/dead-letters", resolved=known))["dead_letters"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"note": NUL}, "note"),
        ({"assignee": NUL}, "assignee"),
        ({"conversation_status": NUL}, "conversation_status"),
        ({"tags": ["a", NUL]}, "tags.1"),
        ({"tags": None}, "tags"),
        ({"conversation_status": None}, "conversation_status"),
    ],
)
async def test_a_wrong_field_of_a_patch_is_named(api: Api, body: Any, field: str) -> None:
    one = await api.tell(said("m_1"))
    answer = await api("PATCH", f"{PAGES}/conversations/{one}", body, headers={"If-Match": '"1"'})
    document = answer.is_problem(422, "invalid_argument")
    assert document["field"] == field
    assert document["detail"].startswith(f"{field}: ")


async def test_a_nul_in_any_body_is_refused_by_the_name_of_its_field(api: Api) -> None:
    for path, body, field in (
        ("/api/pages", {"page_id": "7", "name": NUL}, "name"),
        ("/api/pages", {"page_id": "7", "owner_ref": NUL}, "owner_ref"),
        ("/api/changes/crm/position", {"position": NUL}, "position"),
    ):
        answer = await api("POST", path, body)
        assert answer.is_problem(422, "invalid_argument")["field"] == field


async def test_sql_names_stay_in_sql(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the function refuses is told by the name that the caller used."""
    one = await api.tell(said("m_1"))

    async def whole(**given: Any) -> int:
        return await type(api.store).update_conversation(api.store, **{**given, "patch": {"tags": "x"}})

    monkeypatch.setattr(api.store, "update_conversation", whole)
    answer = await api("PATCH", f"{PAGES}/conversations/{one}", {}, headers={"If-Match": '"1"'})
    document = answer.is_problem(422, "invalid_argument")
    assert (document["field"], document["detail"]) == ("tags", "tags is unknown or wrong")


async def test_bytes_that_are_no_text_are_no_defect_of_ours(api: Api) -> None:
    for path in (
        "/api/pages/%ff",
        "/api/pages/%ed%a0%80",
        f"{PAGES}/timing?tz=%ff",
        "/api/changes?after=%ff",
    ):
        answer = await api("GET", path)
        assert 400 <= answer.status < 500, (path, answer.body)
    for line in (b"GET /api/changes/stream?after=\xff HTTP/1.1", b"GET /api/pages/\xff HTTP/1.1"):
        assert 400 <= await raw_status(api, line) < 500, line
    resumed = b"GET /api/changes/stream HTTP/1.1\r\nLast-Event-ID: \xff"
    assert 400 <= await raw_status(api, resumed) < 500


async def raw_status(api: Api, beginning: bytes) -> int:
    """The status of a request that no client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.client.port)
    writer.write(beginning + f"\r\nHost: here\r\nAuthorization: Bearer {READ}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.close()
    return int(line.split()[1])
