"""Meta's compliance callbacks, as Meta calls them: a form with a signed_request, and no key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from api_support import APP_SECRET, OTHER_PAGE, OTHER_PERSON, PAGE, PERSON, Answer, Api, Owner, said

from convsync.web.app import create_app
from secrets_hunt import marked

DELETION, DEAUTHORIZE = "/api/facebook/data-deletion", "/api/facebook/deauthorize"


def signed(secret: str = APP_SECRET, padding: bool = False, **payload: Any) -> str:
    raw = json.dumps({"algorithm": "HMAC-SHA256", "issued_at": 1_700_000_000, **payload}).encode()
    parts = [base64.urlsafe_b64encode(raw).decode()]
    if not padding:
        parts[0] = parts[0].rstrip("=")
    digest = hmac.new(secret.encode(), parts[0].encode(), hashlib.sha256).digest()
    parts.insert(0, base64.urlsafe_b64encode(digest).decode())
    return ".".join(part if padding else part.rstrip("=") for part in parts)


async def post(api: Api, path: str, text: str) -> Answer:
    async with api.client.post(path, data={"signed_request": text}) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


def senders(owner: Owner) -> list[str]:
    rows = owner.execute(
        "select sender_id from convsync.messenger_conversations where deleted_at is null order by 1"
    )
    return [row["sender_id"] for row in rows]


@pytest.mark.parametrize("padding", [False, True])
async def test_a_request_erases_the_person_and_leads_to_a_page_that_says_so(
    api: Api, owner: Owner, padding: bool
) -> None:
    await api.tell(said("m_1"), said("m_2", page=OTHER_PAGE), said("m_3", person=OTHER_PERSON))
    answer = await post(api, DELETION, signed(user_id=PERSON, padding=padding))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert set(answer.json) == {"url", "confirmation_code"}
    assert senders(owner) == [OTHER_PERSON]
    code = answer.json["confirmation_code"]
    assert len(code) >= 16
    assert code.isalnum()
    url = urlsplit(answer.json["url"])
    assert (url.netloc, url.path) == (
        f"{api.client.host}:{api.client.port}",
        f"/api/facebook/deletion-status/{code}",
    )
    page = await api("GET", url.path, key="")
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/plain")
    assert page.headers["Cache-Control"] == "no-store"
    text = page.body.decode()
    assert code in text
    assert "completed 20" in text
    assert PERSON not in text


async def test_the_page_has_the_address_that_the_operator_set(
    settings: Any, database: Any, aiohttp_client: Any
) -> None:
    own = settings.model_copy(update={"public_url": "https://chat.example"})
    app = create_app(own, database.service_url)
    answer = await post(Api(await aiohttp_client(app), app), DELETION, signed(user_id=PERSON))
    assert answer.json["url"].startswith("https://chat.example/api/facebook/deletion-status/")


async def test_a_request_of_somebody_unknown_or_again_is_answered_too(api: Api, owner: Owner) -> None:
    codes = set()
    for _ in range(2):
        answer = await post(api, DELETION, signed(user_id=PERSON))
        assert answer.status == 200
        codes.add(answer.json["confirmation_code"])
        page = await api("GET", urlsplit(answer.json["url"]).path, key="")
        assert "nothing was found" in page.body.decode()
        assert "completed" not in page.body.decode()
    assert len(codes) == 2
    rows = owner.execute("select contacts, person_digest from convsync.deletion_requests").fetchall()
    assert [row["contacts"] for row in rows] == [0, 0]
    assert PERSON.encode() not in bytes(rows[0]["person_digest"])


@pytest.mark.parametrize("path", [DELETION, DEAUTHORIZE])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "a.b",
        "\0.🚲",
        signed("another-secret-0123456789", user_id=PERSON, profile_id=PAGE),
        signed(user_id=PERSON, profile_id=PAGE).replace(".", ""),
        signed(user_id=PERSON, profile_id=PAGE)[1:],
    ],
)
async def test_what_is_not_signed_by_meta_changes_nothing(
    api: Api, owner: Owner, path: str, text: str
) -> None:
    await api.store.add_page(page_id=PAGE)
    await api.tell(said("m_1"))
    (await post(api, path, text)).is_problem(403, "forbidden")
    assert senders(owner) == [PERSON]
    await api.get(f"/api/pages/{PAGE}")


@pytest.mark.parametrize("path", [DELETION, DEAUTHORIZE])
@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", "application/x-www-form-urlencoded"),
        (b"other=1", "application/x-www-form-urlencoded"),
        (b'{"signed_request": "x"}', "application/json"),
        (b"signed_request=\xff\xfe", "application/x-www-form-urlencoded"),
        (b"signed_request=%ff", "application/x-www-form-urlencoded"),
        (b"signed_request=x", "application/x-www-form-urlencoded; charset=nonsense"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b\r\n[]--b--\r\n", "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="\x01"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="signed_request"; filename="f"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b"),
    ],
)  # fmt: skip
async def test_what_is_no_form_is_the_callers_mistake(
    api: Api, path: str, data: bytes, content_type: str
) -> None:
    answer = await api("POST", path, data=data, key="", headers={"Content-Type": content_type})
    assert answer.status in (400, 403), answer.body


@pytest.mark.parametrize("who", [{}, {"user_id": ""}, {"user_id": "0"}, {"user_id": None}])
async def test_a_deletion_names_somebody(api: Api, who: Any) -> None:
    (await post(api, DELETION, signed(**who))).is_problem(400, "bad_request")


async def test_an_id_that_cannot_be_stored(api: Api) -> None:
    assert (await post(api, DELETION, signed(user_id="a\0b"))).status == 422
    assert (await post(api, DELETION, signed(user_id="'; drop table x; --" + "x" * 5000))).status == 200


@pytest.mark.parametrize("code", ["nope", "0" * 32, "'", "%00", "x" * 3000])
async def test_the_page_of_a_request_that_is_not_there(api: Api, code: str) -> None:
    async with api.client.get(f"/api/facebook/deletion-status/{code}") as answer:
        assert answer.status in (404, 422)


async def test_without_an_app_secret_nobody_is_believed(
    settings: Any, database: Any, aiohttp_client: Any
) -> None:
    app = create_app(settings.model_copy(update={"app_secret": None}), database.service_url)
    api = Api(await aiohttp_client(app), app)
    for secret in ("", APP_SECRET):
        (await post(api, DELETION, signed(secret, user_id=PERSON))).is_problem(403, "forbidden")


async def test_a_page_that_removed_the_app_loses_its_token_and_keeps_its_mirror(
    api: Api, owner: Owner
) -> None:
    await api("POST", "/api/pages", {"page_id": PAGE, "token": marked("EAAtestPageToken")})
    await api.tell(said("m_1"))
    answer = await post(api, DEAUTHORIZE, signed(user_id=0, profile_id=int(PAGE)))
    assert (answer.status, answer.json) == (200, {"success": True})
    row = owner.execute("select token_sealed, token_state, removed_at from convsync.pages").fetchone()
    assert row is not None
    assert (row["token_sealed"], row["token_state"], row["removed_at"] is not None) == (None, "none", True)
    (await api("GET", f"/api/pages/{PAGE}")).is_problem(404, "not_found")
    assert senders(owner) == [PERSON]
    # told twice, or of a Page we never had
    for page_id in (PAGE, OTHER_PAGE):
        assert (await post(api, DEAUTHORIZE, signed(user_id="0", profile_id=page_id))).status == 200


async def test_a_person_who_took_the_app_away_is_not_erased_by_that(api: Api, owner: Owner) -> None:
    await api("POST", "/api/pages", {"page_id": PAGE, "token": marked("EAAtestPageToken")})
    await api.tell(said("m_1"))
    assert (await post(api, DEAUTHORIZE, signed(user_id=PERSON))).status == 200
    assert senders(owner) == [PERSON]
    assert (await api.get(f"/api/pages/{PAGE}"))["token"] == "unchecked"
