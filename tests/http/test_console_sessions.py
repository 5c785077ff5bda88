"""Logging in to the console: the cookie, how long it lasts, and that no other site can act with it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from console_support import BROWSER, Person
from http_support import (
    ELSEWHERE_KEY,
    OPERATE_KEY,
    OTHER_PAGE,
    PAGE,
    READ_KEY,
    SECRETS,
    TOKEN_KEY,
    Service,
    problem,
)
from pydantic import SecretStr
from structlog.testing import capture_logs

from convsync.settings import ApiKey
from convsync.tokens import TokenBox
from convsync.web.app import create_app
from convsync.web.middlewares import KEYS
from convsync.web.sessions import LIFETIME_SECONDS, PLAIN_COOKIE, SECURE_COOKIE, Sessions
from convsync.web.state import SESSIONS
from secrets_hunt import marked, marked_key


@pytest.fixture
def person(service: Service) -> Person:
    return Person(service)


def cookie_of(headers: Any) -> dict[str, str]:
    """The one cookie that was set: its name and value, and its attributes in lower case."""
    (told,) = headers.getall("Set-Cookie")
    first, *rest = (part.strip() for part in told.split(";"))
    name, _, value = first.partition("=")
    attributes = {key.lower(): of.lower() for key, _, of in (part.partition("=") for part in rest)}
    return {"name": name, "value": value, **attributes}


async def test_who_has_no_session_is_shown_the_login_and_then_where_they_wanted_to_go(
    service: Service, person: Person
) -> None:
    await service.add_page()
    wanted = f"/console/pages/{PAGE}/conversations?q=blue%20one"
    login = await person.see(wanted)
    assert login.path.startswith("/console/login?next=")
    assert 'type="password"' in login.text
    shown = await person.log_in(next=wanted)
    assert shown.path == wanted
    assert 'value="blue one"' in shown.text


async def test_a_wrong_key_opens_nothing_and_is_not_repeated(service: Service, person: Person) -> None:
    wrong = marked("not-a-key")
    with capture_logs() as logs:
        shown = await person.log_in(wrong, 401)
    # Whoever watches the log sees that somebody guesses.
    assert [(one["event"], one["log_level"]) for one in logs] == [("login_refused", "warning")]
    assert wrong not in str(logs)
    assert "not a key" in shown.words
    assert "Set-Cookie" not in shown.headers
    assert wrong not in shown.text
    assert (await person.see("/")).path == "/console/login"
    for nothing in ("", " ", PLAIN_COOKIE):
        await person.log_in(nothing, 401)


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_has_no_secret_in_it(
    service: Service,
) -> None:
    async with service.client.post(
        "/console/login", data={"key": OPERATE_KEY}, headers=BROWSER, allow_redirects=False
    ) as answer:
        assert answer.status == 303
        cookie = cookie_of(answer.headers)
    assert cookie["name"] == PLAIN_COOKIE
    assert {"httponly", "samesite", "path", "max-age"} <= set(cookie)
    assert (cookie["samesite"], cookie["path"]) == ("lax", "/")
    assert "domain" not in cookie
    assert "secure" not in cookie  # this is http
    assert int(cookie["max-age"]) == LIFETIME_SECONDS
    assert not any(secret in json.dumps(cookie) for secret in SECRETS)


@pytest.mark.parametrize(
    ("headers", "public_url"),
    [
        ({"X-Forwarded-Proto": "https"}, None),
        ({"X-Forwarded-Proto": "https, http"}, None),
        ({"Host": "mirror.example.org"}, "https://mirror.example.org/"),
    ],
)
async def test_behind_https_the_cookie_is_sent_by_https_only(
    configure: Any, database: Any, aiohttp_client: Any, headers: dict[str, str], public_url: str | None
) -> None:
    app = create_app(configure(public_url=public_url), database.service_url)
    client: TestClient[Any, Any] = await aiohttp_client(app)
    async with client.post(
        "/console/login", data={"key": READ_KEY}, headers=BROWSER | headers, allow_redirects=False
    ) as answer:
        cookie = cookie_of(answer.headers)
    assert cookie["name"] == SECURE_COOKIE
    assert "secure" in cookie
    sent = headers | {"Cookie": f"{SECURE_COOKIE}={cookie['value']}"}
    async with client.get("/api/pages", headers=sent) as answer:
        assert answer.status == 200
    # One that a page without TLS could have set in the browser is no session there.
    async with client.get(
        "/api/pages", headers=headers | {"Cookie": f"{PLAIN_COOKIE}={cookie['value']}"}
    ) as answer:
        assert answer.status == 401


async def test_a_session_expires_and_cannot_be_made_longer(service: Service) -> None:
    sessions, key = service.app[SESSIONS], service.app[KEYS][0]
    now = time.time()
    cookie = sessions.issue(key, now=now)
    assert sessions.open(cookie, now=now + LIFETIME_SECONDS - 2) is not None
    assert sessions.open(cookie, now=now + LIFETIME_SECONDS) is None
    name, expires, nonce, signature = cookie.split(".")
    longer = ".".join((name, str(int(expires) + 1), nonce, signature))
    assert sessions.open(longer, now=now) is None


async def test_a_cookie_that_somebody_made_up_is_no_session(service: Service) -> None:
    sessions = service.app[SESSIONS]
    reader, operator, _ = service.app[KEYS]
    good = sessions.issue(reader)
    assert sessions.open(good) is not None
    name, expires, nonce, signature = good.split(".")
    other = sessions.issue(operator).split(".")[0]
    for bad in (
        "",
        "....",
        good[:-1],
        good + "0",
        f"{other}.{expires}.{nonce}.{signature}",
        f"{name}.{expires}.{nonce[:-1]}0.{signature}x",
        f"{name}.{expires}.{nonce}.",
        f"!!.{expires}.{nonce}.{signature}",
        f"{name}.-1.{nonce}.{signature}",
        f"{name}.{'9' * 5000}.{nonce}.{signature}",
        f"{name}.²{expires}.{nonce}.{signature}",
        "ä.1.1.1",
    ):
        assert sessions.open(bad) is None, bad


async def test_the_key_is_asked_for_again_once_it_or_the_servers_own_key_has_changed(
    service: Service,
) -> None:
    key = service.app[KEYS][0]
    server_key = TokenBox(TOKEN_KEY).derived_key("console session")
    cookie = Sessions([key], server_key).issue(key)
    assert service.app[SESSIONS].open(cookie) is not None, "another process knows it"
    changed = ApiKey(key.name, key.role, SecretStr(marked("another-key-of-that-name")), key.pages)
    assert Sessions([changed], server_key).open(cookie) is None
    assert Sessions([], server_key).open(cookie) is None
    other = TokenBox(marked_key(100)).derived_key("console session")
    assert Sessions([key], other).open(cookie) is None


async def test_logging_out_takes_the_cookie_away(service: Service, person: Person) -> None:
    await person.log_in()
    assert (await person.see("/")).path == "/"
    shown = await person.send("/console/logout")
    assert shown.path == "/console/login"
    assert (await person.see("/")).path == "/console/login"


@pytest.mark.parametrize(
    "cookie",
    [
        f"{PLAIN_COOKIE}=",
        f"{PLAIN_COOKIE}={'.' * 5000}",
        PLAIN_COOKIE,
        "=;;,",
        f'{PLAIN_COOKIE}="\\"',
        "a=b; ü=1",
    ],
)
async def test_a_cookie_nobody_understands_is_no_session(service: Service, cookie: str) -> None:
    async with service.client.get("/api/pages", headers={"Cookie": cookie}) as answer:
        assert answer.status in (400, 401), await answer.text()


# Other sites


async def test_a_form_without_its_sessions_token_does_nothing(service: Service, person: Person) -> None:
    await service.add_page()
    await person.log_in()
    token = await person.token()
    assert token
    stranger = service.app[SESSIONS].open(service.app[SESSIONS].issue(service.app[KEYS][1]))
    assert stranger is not None
    assert stranger.csrf != token
    for wrong in ("", token[:-1], token.upper(), stranger.csrf, "ü"):
        shown = await person.send(f"/console/pages/{PAGE}/syncs", 403, token=wrong, mode="full")
        assert "not of your session" in shown.words
    assert (await service.call("GET", f"/api/pages/{PAGE}"))[1]["last_run"] is None
    assert "begun" in (await person.send(f"/console/pages/{PAGE}/syncs", mode="full")).words


@pytest.mark.parametrize(
    "sent_by",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "https://other.example.org"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {},
    ],
)
async def test_a_form_that_another_site_sends_does_nothing_even_with_the_token(
    service: Service, person: Person, sent_by: dict[str, str]
) -> None:
    await service.add_page()
    await person.log_in()
    token = await person.token()
    person.headers = {"Accept": "text/html", **sent_by}
    shown = await person.send(f"/console/pages/{PAGE}/syncs", 403, token=token, mode="full")
    assert "another site" in shown.words
    await person.send("/console/logout", 403, token=token)
    await person.log_in(READ_KEY, 403)
    assert (await service.call("GET", f"/api/pages/{PAGE}"))[1]["last_run"] is None


async def test_an_old_browser_is_known_by_its_origin(service: Service, person: Person) -> None:
    await service.add_page()
    own = str(service.client.make_url("/")).rstrip("/")
    person.headers = {"Accept": "text/html", "Origin": own}
    await person.log_in()
    assert "begun" in (await person.send(f"/console/pages/{PAGE}/syncs", mode="full")).words


async def test_a_link_from_elsewhere_leads_into_the_console_and_a_frame_or_script_does_not(
    service: Service, person: Person
) -> None:
    await person.log_in()
    link = {"Sec-Fetch-Site": "cross-site"}
    assert (await person.see("/", **link)).path == "/"
    for other in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}):
        assert (await person.see("/", **(link | other))).path == "/console/login"
        await person.see("/api/pages", 401, **(link | other))


async def test_a_session_changes_nothing_through_the_api(service: Service, person: Person) -> None:
    await service.add_page()
    await person.log_in()
    for method, path, body in [
        ("POST", "/api/pages", {"page_id": OTHER_PAGE}),
        ("DELETE", f"/api/pages/{PAGE}", None),
        ("POST", "/api/conversations/sync", {"page_id": PAGE}),
    ]:
        async with service.client.request(method, path, json=body, headers=BROWSER) as answer:
            assert answer.status == 401
            problem(await answer.json(), 401, "unauthorized")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("//evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/\\evil.example", "/"),
        ("/console/\\evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/api/pages", "/"),
        ("/console/changes\r\nX-Evil: 1", "/"),
        ("", "/"),
        ("/console/changes", "/console/changes"),
    ],
)
async def test_the_login_leads_to_this_console_and_nowhere_else(
    person: Person, given: str, path: str
) -> None:
    shown = await person.log_in(next=given)
    assert shown.path == path


# What a key may do


async def test_a_read_key_sees_no_form_and_may_send_none(service: Service, person: Person) -> None:
    await service.add_page()
    await person.log_in(READ_KEY)
    shown = await person.see(f"/console/pages/{PAGE}")
    assert "Begin a sync" not in shown.words
    shown = await person.send(f"/console/pages/{PAGE}/syncs", 403, mode="full")
    assert "may not do this" in shown.words
    assert (await service.call("GET", f"/api/pages/{PAGE}"))[1]["last_run"] is None


async def test_what_is_not_of_a_keys_pages_is_not_there(service: Service, person: Person) -> None:
    await service.add_page(name="Harbour")
    await service.call("POST", "/api/pages", {"page_id": OTHER_PAGE, "name": "Hill"}, key=ELSEWHERE_KEY)
    _, run = await service.call("POST", "/api/conversations/sync", {"page_id": PAGE}, wait="30")
    shown = await person.log_in(ELSEWHERE_KEY)
    assert "Hill" in shown.words
    assert "Harbour" not in shown.text
    assert PAGE not in shown.text
    for path in ("", "/conversations", "/conversations/1", "/timing", "/messages/m_1"):
        missing = await person.see(f"/console/pages/{PAGE}{path}", 404)
        assert "Harbour" not in missing.text
    await person.see(f"/console/sync-runs/{run['run_id']}", 404)
    await person.see(f"/console/dead-letters?page_id={PAGE}", 404)
    for path in (
        f"pages/{PAGE}/syncs",
        f"sync-runs/{run['run_id']}/cancel",
        f"sync-runs/{run['run_id']}/retry",
    ):
        await person.send(f"/console/{path}", 404, mode="full")
    letters = await person.see("/console/dead-letters")
    assert "Harbour" not in letters.text
    await person.see(f"/console/pages/{OTHER_PAGE}")
