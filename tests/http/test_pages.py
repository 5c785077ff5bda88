"""Pages over HTTP, and what surrounds every answer: request ids, problems, readiness, the console."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from http_support import (
    ELSEWHERE_KEY,
    OPERATE_KEY,
    OPERATOR,
    OTHER_PAGE,
    PAGE,
    PAGE_TOKEN,
    TOKEN_KEY,
    Owner,
    Service,
    contents,
    delivery,
    problem,
    said,
)

from convsync.database import installer
from convsync.settings import Settings
from convsync.tokens import TokenBox, TokenKeyError
from convsync.web.app import create_app
from convsync.web.state import LIFECYCLE

PAGE_FIELDS = {
    "page_id",
    "name",
    "owner_ref",
    "token",
    "token_error",
    "added_at",
    "subscribed_at",
    "last_webhook_at",
    "conversations",
    "messages",
    "dead_letters",
    "budget",
    "last_run",
    "last_success_at",
    "freshness",
    "freshness_reason",
    "synced_at",
    "certificate",
    "webhook_losses",
    "webhooks_last_hour",
    "next_sync",
}


async def test_a_page_is_added_shown_and_listed(service: Service) -> None:
    page = await service.add_page(name="Harbour Bicycles", owner_ref="customer 7", token=PAGE_TOKEN)
    assert set(page) == PAGE_FIELDS
    assert (page["page_id"], page["name"], page["owner_ref"]) == (PAGE, "Harbour Bicycles", "customer 7")
    assert (page["token"], page["conversations"], page["messages"]) == ("unchecked", 0, 0)
    assert await service.call("GET", f"/api/pages/{PAGE}") == (200, page)
    assert await service.call("GET", "/api/pages") == (200, {"pages": [page], "next": None})


async def test_pages_are_listed_part_by_part_and_only_those_of_the_key(service: Service) -> None:
    for page_id in (OTHER_PAGE, "1", PAGE, "2"):
        await service.add_page(page_id)
    every = sorted(["1", "2", PAGE, OTHER_PAGE])

    async def listed(key: str = OPERATE_KEY, **asked: str) -> tuple[list[str], str | None]:
        status, found = await service.call("GET", "/api/pages", key=key, **asked)
        assert status == 200, found
        return [page["page_id"] for page in found["pages"]], found["next"]

    assert await listed() == (every, None)
    assert await listed(limit="4") == (every, None)
    assert await listed(limit="3") == (every[:3], every[2])
    assert await listed(limit="3", after=every[2]) == (every[3:], None)
    assert await listed(limit="1", key=ELSEWHERE_KEY) == ([OTHER_PAGE], None)
    assert await listed(limit="1", after=OTHER_PAGE, key=ELSEWHERE_KEY) == ([], None)
    for wrong in ({"limit": "0"}, {"limit": "201"}, {"limit": "many"}, {"before": "1"}):
        _, document = await service.call("GET", "/api/pages", **wrong)
        problem(document, 422, "invalid_argument")
        assert document["field"] in wrong


async def test_what_is_not_given_again_stays(service: Service) -> None:
    first = await service.add_page(name="Harbour", owner_ref="7", token=PAGE_TOKEN)
    again = await service.add_page()
    assert again == first
    renamed = await service.add_page(name="Hafen")
    assert (renamed["name"], renamed["owner_ref"], renamed["token"]) == ("Hafen", "7", "unchecked")


async def test_a_token_goes_in_sealed_and_never_comes_out(service: Service, owner: Owner) -> None:
    await service.add_page(token=f"  {PAGE_TOKEN}\n")
    (row,) = owner.execute("select * from convsync.pages").fetchall()
    dump = json.dumps(contents(owner)) + repr(
        {key: bytes(v) if key == "token_sealed" else v for key, v in row.items()}
    )
    assert PAGE_TOKEN not in dump
    assert PAGE_TOKEN.encode().hex() not in dump
    box = TokenBox(TOKEN_KEY)
    assert row["token_key_id"] == box.key_id
    assert box.open(PAGE, bytes(row["token_sealed"])) == PAGE_TOKEN
    with pytest.raises(TokenKeyError):
        box.open(OTHER_PAGE, bytes(row["token_sealed"]))
    for path in (f"/api/pages/{PAGE}", "/api/pages", "/"):
        async with service.client.get(path, headers=OPERATOR) as answer:
            text = await answer.text()
            assert PAGE_TOKEN not in text
            assert "sealed" not in text


async def test_delete_forgets_the_token_and_keeps_the_mirror(service: Service, owner: Owner) -> None:
    await service.add_page(name="Harbour", token=PAGE_TOKEN)
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200
    status, page = await service.call("DELETE", f"/api/pages/{PAGE}")
    assert (status, page["token"], page["messages"]) == (200, "none", 1)
    row = owner.execute("select token_sealed, token_key_id, token_state from convsync.pages").fetchone()
    assert row == {"token_sealed": None, "token_key_id": None, "token_state": "none"}
    for method in ("GET", "DELETE"):
        status, document = await service.call(method, f"/api/pages/{PAGE}")
        problem(document, 404, "not_found")
    assert await service.call("GET", "/api/pages") == (200, {"pages": [], "next": None})
    status, document = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE})
    problem(document, 404, "not_found")
    assert await service.deliver(delivery(said("m_2", "still there?"))) == 200
    page = await service.add_page()
    assert (page["token"], page["messages"], page["name"]) == ("none", 2, "Harbour")


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"{", 400, "bad_request", None),
        (b"\xff", 400, "bad_request", None),
        (b"", 422, "invalid_argument", "page_id"),
        (b"{}", 422, "invalid_argument", "page_id"),
        (b"[]", 422, "invalid_argument", ""),
        (b'{"page_id": ""}', 422, "invalid_argument", "page_id"),
        (b'{"page_id": 7}', 422, "invalid_argument", "page_id"),
        (b'{"page_id": "a/b"}', 422, "invalid_argument", "page_id"),
        (b'{"page_id": "7", "nmae": "x"}', 422, "invalid_argument", "nmae"),
        (b'{"page_id": "7", "name": 7}', 422, "invalid_argument", "name"),
        (b'{"page_id": "7", "token": ""}', 422, "invalid_argument", "token"),
        (b'{"page_id": "7", "token": "two words"}', 422, "invalid_argument", "token"),
        (b'{"page_id": "7", "token": "sch\xc3\xbcssel"}', 422, "invalid_argument", "token"),
        (b'{"page_id": "7", "name": "a\\u0000b"}', 422, "invalid_argument", "name"),
    ],
)
async def test_a_bad_page_is_refused_by_the_name_of_its_field(
    service: Service, owner: Owner, body: bytes, status: int, code: str, field: str | None
) -> None:
    headers = {**OPERATOR, "Content-Type": "application/json"}
    async with service.client.post("/api/pages", data=body, headers=headers) as answer:
        document = problem(await answer.json(), status, code)
    assert answer.status == status
    assert document.get("field") == field
    if field:
        assert document["detail"].startswith(f"{field}: ")
    assert contents(owner)["pages"] == []


@pytest.mark.parametrize("page_id", ["999", "%00", "a%2Fb", "%F0%9F%9A%B2", "%ED%A0%80", "x" * 3000])
async def test_a_page_that_does_not_exist_is_a_problem_and_no_defect(service: Service, page_id: str) -> None:
    from yarl import URL

    url = service.client.make_url("/").join(URL(f"/api/pages/{page_id}", encoded=True))
    async with service.client.session.get(url, headers=OPERATOR) as answer:
        assert answer.status in (404, 422)
        problem(
            await answer.json(), answer.status, "not_found" if answer.status == 404 else "invalid_argument"
        )


# Request ids and problem documents


@pytest.mark.parametrize("given", ["a", "trace-7/8:9", "~" * 128, "!"])
async def test_the_callers_request_id_comes_back(service: Service, given: str) -> None:
    for path in ("/healthz", "/api/pages", "/nowhere"):
        async with service.client.get(path, headers={"X-Request-ID": given}) as answer:
            assert answer.headers.getall("X-Request-ID") == [given]
            if answer.status >= 400:
                assert (await answer.json())["request_id"] == given


@pytest.mark.parametrize("given", ["", "~" * 129, "two words", "ümlaut", "tab\there"])
async def test_a_request_id_that_is_not_sensible_is_replaced(service: Service, given: str) -> None:
    seen = set()
    for _ in range(2):
        async with service.client.get("/nowhere", headers={"X-Request-ID": given}) as answer:
            (identity,) = answer.headers.getall("X-Request-ID")
            assert identity != given
            assert len(identity) == 32
            assert (await answer.json())["request_id"] == identity
            seen.add(identity)
    assert len(seen) == 2


async def test_the_request_id_of_a_sync_is_kept_in_its_run(service: Service) -> None:
    await service.add_page()
    async with service.client.post(
        "/api/conversations/sync",
        json={"page_id": PAGE},
        headers={**OPERATOR, "X-Request-ID": "who-asked"},
    ) as answer:
        assert (await answer.json())["request_id"] == "who-asked"


async def test_what_is_not_there_is_a_problem_document(service: Service) -> None:
    for method, path, status, code in [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/console/assets/secrets.txt", 404, "not_found"),
        ("GET", "/console/assets/..%2Ftemplates%2Fbase.html", 404, "not_found"),
        ("PUT", "/api/pages", 405, "method_not_allowed"),
        ("GET", "/api/conversations/sync", 405, "method_not_allowed"),
    ]:
        async with service.client.request(method, path, headers=OPERATOR) as answer:
            assert answer.status == status, path
            assert answer.content_type == "application/problem+json"
            problem(await answer.json(), status, code)
            assert answer.headers["X-Request-ID"]
            assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(RuntimeError("the secret inside"), 500, "internal_error"), (TimeoutError("inside"), 503, "timed_out")],
)
async def test_a_defect_is_a_problem_document_that_tells_nothing_of_its_inside(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    from convsync.store import Store

    async def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Store, "get_page", broken)
    async with service.client.get(f"/api/pages/{PAGE}", headers=OPERATOR) as answer:
        assert answer.status == status
        text = await answer.text()
        problem(json.loads(text), status, code)
        assert "inside" not in text


async def test_a_function_that_is_missing_is_a_defect_without_details(service: Service, owner: Owner) -> None:
    owner.execute("drop function convsync_api.get_page(text)")
    _, document = await service.call("GET", f"/api/pages/{PAGE}")
    problem(document, 500, "database_error")
    assert "get_page" not in json.dumps(document)


# Health


async def test_health_is_the_process_and_readiness_the_schema(service: Service, owner: Owner) -> None:
    async def checks() -> tuple[int, dict[str, bool]]:
        status, document = await service.call("GET", "/readyz", key="")
        assert document["status"] == ("ready" if status == 200 else "not_ready")
        return status, document["checks"]

    _, found = await checks()
    assert (found["database"], found["schema"], found["serving"]) == (True, True, True)
    owner.execute("update convsync.installation set functions_hash = 'of an older release'")
    status, found = await checks()
    assert (status, found["database"], found["schema"]) == (503, True, False)
    owner.execute("drop schema convsync_api cascade")
    status, found = await checks()
    assert (status, found["database"], found["schema"]) == (503, False, False)
    async with service.client.get("/healthz") as answer:
        assert answer.status == 200
        assert (await answer.json())["status"] == "ok"


async def test_a_release_put_on_disk_under_a_running_service_does_not_make_it_unready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "functions_hash", lambda: "of a newer release")
    _, document = await service.call("GET", "/readyz", key="")
    assert document["checks"]["schema"] is True


async def test_a_service_that_is_leaving_is_not_ready_but_answers(service: Service) -> None:
    service.app[LIFECYCLE].stopping = True
    status, document = await service.call("GET", "/readyz", key="")
    assert (status, document["checks"]["serving"]) == (503, False)
    assert (await service.call("GET", "/healthz", key=""))[0] == 200
    assert await service.deliver(delivery(said("m_1", "hello"))) == 200


async def test_the_service_runs_as_a_role_that_cannot_touch_a_table(service: Service, database: Any) -> None:
    import psycopg

    with psycopg.connect(database.service_url, autocommit=True) as connection:
        for statement in (
            "select from convsync.pages",
            "select from convsync.contact_interaction_events",
            "delete from convsync.dead_letters",
            "create table public.x ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


# Its keys


def test_without_keys_the_service_listens_on_loopback_only(
    configure: Any, database: Any, tmp_path: Any
) -> None:
    from convsync.settings import SettingsError

    settings: Settings = configure(api_keys=None, host="0.0.0.0", data_dir=tmp_path)  # noqa: S104
    with pytest.raises(SettingsError, match="CONVSYNC_API_KEYS"):
        create_app(settings, database.service_url)
    app = create_app(configure(api_keys=None, data_dir=tmp_path), database.service_url)
    assert isinstance(app, web.Application)
    assert (tmp_path / "api_key").stat().st_mode & 0o777 == 0o600
