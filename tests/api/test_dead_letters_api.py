"""Dead letters by HTTP: look at them, replay them once, discard them for a reason."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import orjson
import pytest
from api_support import (
    LIMITED,
    LIMITED_TWICE,
    OTHER_PAGE,
    PAGE,
    PERSON,
    READ,
    Api,
    Json,
    Owner,
    said,
)

from convsync.facts import DeadLetter

PATH = "/api/dead-letters"
MESSAGE = {
    "sender": {"id": PERSON},
    "recipient": {"id": PAGE},
    "timestamp": 1_700_000_000_123,
    "message": {"mid": "m_1", "text": "hello"},
}


def envelope(*events: Json, page: str = PAGE) -> bytes:
    return orjson.dumps({"object": "page", "entry": [{"id": page, "messaging": list(events)}]})


async def keep(
    api: Api, raw: bytes = b"?", page: str = PAGE, source: str = "webhook", reason: str = "why"
) -> str:
    """Keep a letter; its id."""
    await api.tell(DeadLetter(page, reason, raw), source=source)
    [newest] = await api.store.list_dead_letters(limit=1)
    number: str = newest["dead_letter_id"]
    return number


async def listed(api: Api, **query: Any) -> list[str]:
    return [letter["dead_letter_id"] for letter in (await api.get(PATH, **query))["dead_letters"]]


async def test_they_are_listed_without_their_bytes_newest_first(api: Api) -> None:
    assert await listed(api) == []
    known = [await keep(api, b"%d" % n, ("", PAGE, OTHER_PAGE)[n % 3]) for n in range(6)]
    known.reverse()
    document = await api.get(PATH, key=READ)
    assert [letter["dead_letter_id"] for letter in document["dead_letters"]] == known
    newest = document["dead_letters"][0]
    assert (newest["page_id"], newest["source"], newest["reason"], newest["bytes"]) == (
        OTHER_PAGE,
        "webhook",
        "why",
        1,
    )
    assert "raw_base64" not in newest
    assert document["dead_letters"][-1]["page_id"] is None
    assert await listed(api, limit="2") == known[:2]
    assert await listed(api, limit="2", before=known[1]) == known[2:4]
    parts = [await api.get(PATH, limit="4")]
    parts.append(await api.get(PATH, limit="4", before=parts[0]["next"]))
    assert [part["next"] for part in parts] == [known[3], None]
    assert [one["dead_letter_id"] for part in parts for one in part["dead_letters"]] == known
    assert (await api.get(PATH, limit="6"))["next"] is None
    assert await listed(api, page_id=PAGE) == [known[1], known[4]]
    assert await listed(api, page_id="", before="", limit="", resolved="") == known
    assert await listed(api, resolved="true") == []


async def test_one_is_shown_with_its_bytes(api: Api) -> None:
    raw = bytes(range(256))
    letter = await api.get(f"{PATH}/{await keep(api, raw)}")
    assert base64.b64decode(letter["raw_base64"], validate=True) == raw


async def test_a_replay_lands_what_it_says_once(api: Api, owner: Owner) -> None:
    number = await keep(api, envelope(MESSAGE))
    answers = await asyncio.gather(*(api("POST", f"{PATH}/{number}/replay") for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    assert sorted(answer.json["replayed"] for answer in answers) == [False] * 3 + [True]
    assert all(answer.json["resolution"] == "replayed" for answer in answers)
    rows = owner.execute("select message_id, body from convsync.contact_interaction_events").fetchall()
    assert rows == [{"message_id": "m_1", "body": "hello"}]
    assert await listed(api) == []
    assert await listed(api, resolved="true") == [number]


@pytest.mark.parametrize(
    ("raw", "source", "why"),
    [
        (b"\xff", "webhook", "not JSON"),
        (b'{"object":"page","entry":[{"id":"1","messaging":[{"message":{"mid":"m"}}]}]}', "webhook", "still"),
        (b'{"object":"page","entry":[]}', "webhook", "no facts"),
        (b'{"id":"t_1"}', "sync", "next sync"),
        (b'{"kind":"message","page_id":"1"}', "webhook", "missing or wrong"),
    ],
)
async def test_what_is_still_not_understood_keeps_waiting(
    api: Api, raw: bytes, source: str, why: str
) -> None:
    number = await keep(api, raw, source=source)
    document = (await api("POST", f"{PATH}/{number}/replay")).is_problem(422, "invalid_argument")
    assert why in document["detail"]
    assert (await api.get(f"{PATH}/{number}"))["resolved_at"] is None


async def test_a_fact_the_database_refuses_again_keeps_waiting(api: Api) -> None:
    fact = {**said("m_1").as_json(), "at": "no time at all"}
    number = await keep(api, orjson.dumps(fact))
    (await api("POST", f"{PATH}/{number}/replay")).is_problem(422, "bad_data")
    assert await listed(api) == [number]


async def test_a_discard_needs_a_reason(api: Api) -> None:
    number = await keep(api)
    for body in (
        {},
        {"reason": ""},
        {"reason": "  \n"},
        {"reason": None},
        {"reason": "x" * 501},
        {"why": "x"},
    ):
        answer = await api("POST", f"{PATH}/{number}/discard", body)
        answer.is_problem(422, "invalid_argument")
    assert await listed(api) == [number]
    answer = await api("POST", f"{PATH}/{number}/discard", {"reason": "a probe of ours"})
    assert answer.json == {"discarded": True, "resolution": "discarded: a probe of ours"}
    answer = await api("POST", f"{PATH}/{number}/discard", {"reason": "once more"})
    assert answer.json == {"discarded": False, "resolution": "discarded: a probe of ours"}
    answer = await api("POST", f"{PATH}/{number}/replay")
    assert answer.json == {"replayed": False, "resolution": "discarded: a probe of ours"}


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("77", 404),
        ("9223372036854775807", 404),
        ("x", 422),
        ("-1", 422),
        ("0", 422),
        ("9" * 5000, 422),
        ("٣", 422),
    ],
)
async def test_one_that_is_not_there(api: Api, number: str, status: int) -> None:
    for method, path, body in (
        ("GET", "", None),
        ("POST", "/replay", None),
        ("POST", "/discard", {"reason": "why"}),
    ):
        assert (await api(method, f"{PATH}/{number}{path}", body)).status == status


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "501"}, {"limit": "x"}, {"before": "x"}])
async def test_a_list_within_bounds(api: Api, query: Any) -> None:
    (await api("GET", PATH, **query)).is_problem(422, "invalid_argument")


async def test_a_reader_settles_nothing(api: Api) -> None:
    number = await keep(api)
    for path in ("replay", "discard"):
        answer = await api("POST", f"{PATH}/{number}/{path}", {"reason": "x"}, key=READ)
        answer.is_problem(403, "forbidden")
    (await api("GET", PATH, key="")).is_problem(401, "unauthorized")


async def test_a_key_limited_to_several_pages_sees_the_letters_of_all_of_them_part_by_part(api: Api) -> None:
    third = "104000000000003"
    pages = ("", OTHER_PAGE, PAGE, third)
    kept = [(page, await keep(api, b"%d" % n, page)) for n in range(3) for page in pages]
    mine = [number for page, number in reversed(kept) if page in (OTHER_PAGE, third)]
    assert await listed(api, key=LIMITED_TWICE) == mine
    parts = [await api.get(PATH, key=LIMITED_TWICE, limit="4")]
    parts.append(await api.get(PATH, key=LIMITED_TWICE, limit="4", before=parts[0]["next"]))
    assert [part["next"] for part in parts] == [mine[3], None]
    assert [one["dead_letter_id"] for part in parts for one in part["dead_letters"]] == mine
    assert await listed(api, key=LIMITED_TWICE, page_id=third) == mine[::2]
    assert await listed(api, key=LIMITED_TWICE, page_id="") == mine
    (await api("GET", PATH, key=LIMITED_TWICE, page_id=PAGE)).is_problem(404, "not_found")


async def test_a_key_limited_to_pages_sees_the_letters_of_these(api: Api) -> None:
    foreign, nobodys = await keep(api, b"1"), await keep(api, b"2", page="")
    mine = await keep(api, envelope(MESSAGE, page=OTHER_PAGE), page=OTHER_PAGE)
    assert await listed(api, key=LIMITED) == [mine]
    assert await listed(api, key=LIMITED, page_id=OTHER_PAGE) == [mine]
    (await api("GET", PATH, key=LIMITED, page_id=PAGE)).is_problem(404, "not_found")
    assert await listed(api, key=LIMITED_TWICE, page_id=OTHER_PAGE) == [mine]
    for number in (foreign, nobodys):
        for method, path, body in (
            ("GET", "", None),
            ("POST", "/replay", None),
            ("POST", "/discard", {"reason": "x"}),
        ):
            answer = await api(method, f"{PATH}/{number}{path}", body, key=LIMITED)
            unknown = await api(method, f"{PATH}/999{path}", body, key=LIMITED)
            told, as_of_none = answer.is_problem(404, "not_found"), unknown.is_problem(404, "not_found")
            assert told["detail"].replace(number, "999") == as_of_none["detail"]
    await api.get(f"{PATH}/{mine}", key=LIMITED)
