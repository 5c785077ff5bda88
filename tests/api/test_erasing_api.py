"""Erasing and purging by HTTP: what was done is counted, what is wrong is named, other Pages do not exist."""

from __future__ import annotations

from typing import Any

import pytest
from api_support import LIMITED, OTHER_PAGE, OTHER_PERSON, PAGE, PERSON, READ, Api, Owner, said

from convsync.web.routes import erasing

ERASURES, PURGES = f"/api/pages/{PAGE}/erasures", f"/api/pages/{PAGE}/purges"


async def test_a_person_is_erased(api: Api) -> None:
    one = await api.tell(said("m_1"), said("m_2", 1))
    other = await api.tell(said("m_3", person=OTHER_PERSON))
    answer = await api("POST", ERASURES, {"sender_id": PERSON})
    assert answer.status == 200, answer.body
    assert answer.json | {"erased_at": None} == {
        "conversation_id": str(one),
        "events": 2,
        "waiting_amendments": 0,
        "dead_letters": 0,
        "erased_at": None,
    }
    (await api("GET", f"/api/pages/{PAGE}/conversations/{one}")).is_problem(410, "gone")
    assert (await api.get(f"/api/pages/{PAGE}/conversations/{other}"))["message_count"] == 1
    assert await api.tell(said("m_1")) == 0, "what comes again stays out"
    again = await api("POST", ERASURES, {"sender_id": PERSON})
    assert (again.status, again.json["conversation_id"], again.json["events"]) == (200, None, 0)
    (await api("POST", ERASURES, {"sender_id": f"erased:{one}"})).is_problem(410, "gone")


async def test_what_is_older_is_deleted_in_parts(
    api: Api, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "PART", 1)
    for person in (PERSON, OTHER_PERSON):
        await api.tell(*(said(f"m_{person}_{day}", 86400 * day, person=person) for day in range(3)))
    moved, first, second = [await api("POST", PURGES, {"before": "2026-01-07"}) for _ in range(3)]
    horizon = "2026-01-07T00:00:00+00:00"
    part = {"events": 2, "conversations": 1, "purged_before": horizon}
    assert (moved.status, moved.json) == (200, part | {"events": 0, "conversations": 0, "more": True})
    assert (first.status, first.json) == (200, part | {"more": True})
    assert (second.status, second.json) == (200, part | {"more": False})
    stored = owner.execute("select message_id from convsync.contact_interaction_events order by 1").fetchall()
    assert [row["message_id"] for row in stored] == [f"m_{PERSON}_2", f"m_{OTHER_PERSON}_2"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (ERASURES, {}, "sender_id"),
        (ERASURES, {"sender_id": ""}, "sender_id"),
        (ERASURES, {"sender_id": 7}, "sender_id"),
        (ERASURES, {"sender_id": "a\0b"}, "sender_id"),
        (ERASURES, {"sender_id": PAGE}, "sender_id"),
        (ERASURES, {"sender_id": PERSON, "page_id": PAGE}, "page_id"),
        (PURGES, {}, "before"),
        (PURGES, {"before": None}, "before"),
        (PURGES, {"before": "soon"}, "before"),
        (PURGES, {"before": 1700000000}, "before"),
        (PURGES, {"before": "2999-01-01"}, "before"),
        (PURGES, {"before": "infinity"}, "before"),
        (PURGES, {"before": "2026-01-01", "limit": 1}, "limit"),
        ("/api/pages/a%00b/erasures", {"sender_id": PERSON}, "page_id"),
        ("/api/pages/a%00b/purges", {"before": "2026-01-01"}, "page_id"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, path: str, body: Any, field: str) -> None:
    one = await api.tell(said("m_1"))
    document = (await api("POST", path, body)).is_problem(422, "invalid_argument")
    assert document["field"] == field
    assert (await api.get(f"/api/pages/{PAGE}/conversations/{one}"))["message_count"] == 1


@pytest.mark.parametrize(
    ("path", "body"), [(ERASURES, {"sender_id": PERSON}), (PURGES, {"before": "2026-02-01"})]
)
async def test_who_may(api: Api, path: str, body: Any) -> None:
    one = await api.tell(said("m_1"))
    (await api("POST", path, body, key="")).is_problem(401, "unauthorized")
    (await api("POST", path, body, key=READ)).is_problem(403, "forbidden")
    (await api("POST", path, body, key=LIMITED)).is_problem(404, "not_found")
    # a Page that nobody knows, and one that a limited key may see but is not there
    (await api("POST", path.replace(PAGE, "9"), body)).is_problem(404, "not_found")
    (await api("POST", path.replace(PAGE, OTHER_PAGE), body, key=LIMITED)).is_problem(404, "not_found")
    assert (await api.get(f"/api/pages/{PAGE}/conversations/{one}"))["message_count"] == 1
    await api.tell(said("m_2", page=OTHER_PAGE))
    done = await api("POST", path.replace(PAGE, OTHER_PAGE), body, key=LIMITED)
    if path == PURGES:
        assert done.json["more"], "the horizon is set"
        done = await api("POST", path.replace(PAGE, OTHER_PAGE), body, key=LIMITED)
    assert (done.status, done.json["events"]) == (200, 1)


async def test_a_page_that_was_removed_can_still_be_erased_from(api: Api) -> None:
    await api.tell(said("m_1"), said("m_2", person=OTHER_PERSON))
    await api("POST", "/api/pages", {"page_id": PAGE})
    assert (await api("DELETE", f"/api/pages/{PAGE}")).status == 200
    assert (await api("POST", ERASURES, {"sender_id": PERSON})).json["events"] == 1
    assert [(await api("POST", PURGES, {"before": "2026-02-01"})).json["events"] for _ in range(2)] == [0, 1]
