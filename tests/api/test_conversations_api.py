"""Conversations by HTTP: lists and threads part by part, edits by version, when a person writes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from api_support import (
    LIMITED,
    OPERATE,
    OTHER_PAGE,
    OTHER_PERSON,
    PAGE,
    PERSON,
    READ,
    Api,
    Json,
    Owner,
    at,
    eventually,
    said,
)

from convsync.facts import Edit, Message, Thread, Unsend
from convsync.settings import Settings

BASE = f"/api/pages/{PAGE}"
LIST = f"{BASE}/conversations"


def person(number: int) -> str:
    return f"73000000000001{number:02}"


async def people(api: Api, number: int, page: str = PAGE) -> list[str]:
    """That many conversations, the first the newest; their ids in that order."""
    facts = [said(f"m_{n}", -n, f"text {n}", person(n), page) for n in range(number)]
    touched = {row.sender_id: row for row in await api.store.ingest(facts, "webhook")}
    return [str(touched[person(n)].conversation_id) for n in range(number)]


def ids(document: Json) -> list[str]:
    return [conversation["conversation_id"] for conversation in document["conversations"]]


# --- the list


async def test_the_newest_comes_first(api: Api) -> None:
    known = await people(api, 3)
    document = await api.get(LIST)
    assert (ids(document), document["next"]) == (known, None)
    first = document["conversations"][0]
    assert (first["page_id"], first["sender_id"], first["last_message"]) == (PAGE, person(0), "text 0")
    assert first["last_message_time"] == "2026-01-05T12:00:00+00:00"
    assert (first["message_count"], first["version"], first["conversation_status"]) == (1, 1, "active")
    await api.tell(said("m_new", 60, person=person(2)))
    assert ids(await api.get(LIST)) == [known[2], known[0], known[1]]


async def test_parts_follow_each_other_while_others_arrive(api: Api) -> None:
    """What was there when the reading began is read once each, whatever jumps to the front."""
    known = await people(api, 10)
    # ties, and one without any message
    await api.tell(*(said(f"m_tie{n}", -100, person=person(20 + n)) for n in range(5)))
    await api.tell(Thread(PAGE, person(40), "t_40", at(0), {"name": "Silent"}))
    whole = ids(await api.get(LIST))
    assert whole[:10] == known
    assert len(whole) == 16
    read: list[str] = []
    query: dict[str, str] = {"limit": "3"}
    for turn in range(20):
        document = await api.get(LIST, **query)
        read += ids(document)
        if document["next"] is None:
            break
        query["before"] = document["next"]
        await api.tell(said(f"m_late{turn}", 60 + turn, person=person(60 + turn)))
    assert read == whole


@pytest.mark.parametrize("seconds", [-3_000_000_000.000001, 0.123456, 9_999_999_999.999999, 250_000_000_000])
async def test_positions_are_exact_at_any_time(api: Api, seconds: float) -> None:
    when = at(0) + timedelta(microseconds=round(seconds * 1_000_000))
    await api.tell(
        *(
            Message(PAGE, PERSON, f"m_{n}", "in", when + timedelta(microseconds=n - 2), f"{n}")
            for n in range(5)
        )
    )
    for n in range(5):
        await api.tell(
            Message(PAGE, person(n), f"m_p{n}", "in", when + timedelta(microseconds=n - 2), f"{n}")
        )
    [me] = (await api.get(LIST, q=PERSON))["conversations"]
    for path, what, key in (
        (f"{LIST}/{me['conversation_id']}/events", "events", "message_id"),
        (LIST, "conversations", "conversation_id"),
    ):
        whole = [row[key] for row in (await api.get(path))[what]]
        read, query = [], {"limit": "1"}
        for _ in range(len(whole) + 3):
            document = await api.get(path, **query)
            read += [row[key] for row in document[what]]
            if document["next"] is None:
                break
            query["before"] = document["next"]
        assert read == whole
        assert len(whole) >= 5


async def test_it_is_searched_by_name_text_and_id_literally(api: Api) -> None:
    names = {
        "Ann 100% Example": "hello",
        "Ann_Example": "under_score",
        "AnnXExample": "back\\slash",
        "Zoë Müller": 'it\'s "quoted"',
    }
    found: dict[str, str] = {}
    for number, (name, text) in enumerate(names.items()):
        thread = Thread(PAGE, person(number), f"t_{number}", at(0), {"name": name})
        found[name] = str(await api.tell(thread, said(f"m_{number}", number, text, person(number))))

    async def search(q: str) -> set[str]:
        return set(ids(await api.get(LIST, q=q)))

    ann100, ann_, annx, zoe = found.values()
    assert await search("%") == {ann100}
    assert await search("100%") == {ann100}
    assert await search("_") == {ann_}
    assert await search("nn_E") == {ann_}
    assert await search("\\") == {annx}
    assert await search("k\\s") == {annx}
    assert await search("'s \"q") == {zoe}
    assert await search("müller") == {zoe}
    assert await search("ann") == {ann100, ann_, annx}
    assert await search(person(1)) == {ann_}
    assert await search(person(1)[:-1]) == set(), "an id is looked for as a whole"
    assert await search("") == set(found.values())
    assert await search("nobody") == set()
    assert await search("'; drop table x; --") == set()
    assert (await api("GET", LIST, q="\0")).status == 422


async def test_it_is_filtered_by_status(api: Api) -> None:
    known = await people(api, 3)
    answer = await api(
        "PATCH", f"{LIST}/{known[1]}", {"conversation_status": "done"}, headers={"If-Match": '"1"'}
    )
    assert answer.status == 200
    assert ids(await api.get(LIST, status="done")) == [known[1]]
    assert ids(await api.get(LIST, status="active")) == [known[0], known[2]]
    # a form sends what nobody filled in
    assert ids(await api.get(LIST, status="", q="", before="", limit="")) == known


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "1.5", "٣", "9" * 5000])
async def test_a_limit_is_within_bounds(api: Api, limit: str) -> None:
    await people(api, 1)
    (await api("GET", LIST, limit=limit)).is_problem(422, "invalid_argument")


@pytest.mark.parametrize(
    "before", ["x", "1", "1.", ".1", "1.2.3", "٣.1", f"{'9' * 19}.1", "-9999999999999999999.1", "1.1\n"]
)
async def test_what_is_no_position_is_refused(api: Api, before: str) -> None:
    known = await people(api, 1)
    document = (await api("GET", LIST, before=before)).is_problem(422, "invalid_argument")
    assert document["field"] == "before"
    if not before.startswith(("1.2", "1.1")):  # a message's id may be anything
        (await api("GET", f"{LIST}/{known[0]}/events", before=before)).is_problem(422, "invalid_argument")


# --- one


async def test_it_comes_with_its_version_as_a_tag(api: Api) -> None:
    [one] = await people(api, 1)
    answer = await api("GET", f"{LIST}/{one}")
    assert (answer.status, answer.headers["ETag"], answer.json["version"]) == (200, '"1"', 1)
    for known in ('"1"', 'W/"1"', '"9", "1"', "*", '"0",W/"1"'):
        same = await api("GET", f"{LIST}/{one}", headers={"If-None-Match": known})
        assert (same.status, same.body, same.headers["ETag"]) == (304, b"", '"1"')
    await api.tell(Edit(PAGE, person(0), "m_0", at(5), 1, "changed"))
    other = await api("GET", f"{LIST}/{one}", headers={"If-None-Match": '"1"'})
    assert (other.status, other.headers["ETag"], other.json["last_message"]) == (200, '"2"', "changed")


@pytest.mark.parametrize("one", ["999", "9223372036854775807"])
async def test_one_that_is_not_there(api: Api, one: str) -> None:
    await people(api, 1)
    for path in (f"{LIST}/{one}", f"{LIST}/{one}/events", f"{LIST}/{one}/timing"):
        (await api("GET", path)).is_problem(404, "not_found")
    (await api("PATCH", f"{LIST}/{one}", {}, headers={"If-Match": '"1"'})).is_problem(404, "not_found")


@pytest.mark.parametrize("one", ["0", "-1", "x", "1e3", "9223372036854775808", "9" * 5000, "٣"])
async def test_what_is_no_id(api: Api, one: str) -> None:
    for path in (f"{LIST}/{one}", f"{LIST}/{one}/events", f"{LIST}/{one}/timing"):
        (await api("GET", path)).is_problem(422, "invalid_argument")


async def test_one_of_another_page_is_not_found(api: Api) -> None:
    [one] = await people(api, 1)
    await people(api, 1, OTHER_PAGE)
    (await api("GET", f"/api/pages/{OTHER_PAGE}/conversations/{one}")).is_problem(404, "not_found")


async def test_of_an_erased_person_it_says_gone(api: Api) -> None:
    [one] = await people(api, 1)
    await api.store.erase_contact(page_id=PAGE, sender_id=person(0))
    for path in ("", "/events", "/timing"):
        (await api("GET", f"{LIST}/{one}{path}")).is_problem(410, "gone")
    answer = await api("PATCH", f"{LIST}/{one}", {"note": "who?"}, headers={"If-Match": '"2"'})
    answer.is_problem(410, "gone")
    assert ids(await api.get(LIST)) == []


# --- edits


async def test_an_edit_of_the_version_that_was_read(api: Api) -> None:
    [one] = await people(api, 1)
    patch = {"conversation_status": "waiting", "tags": ["vip", "a"], "assignee": "carol", "note": "call back"}
    answer = await api("PATCH", f"{LIST}/{one}", patch, headers={"If-Match": '"1"'})
    assert (answer.status, answer.headers["ETag"]) == (200, '"2"')
    assert answer.json == await api.get(f"{LIST}/{one}")
    assert {key: answer.json[key] for key in patch} == {**patch, "tags": ["a", "vip"]}
    answer = await api("PATCH", f"{LIST}/{one}", {"note": None}, headers={"If-Match": 'W/"2"'})
    assert (answer.json["note"], answer.json["assignee"], answer.json["version"]) == (None, "carol", 3)
    for same in ({}, {"assignee": "carol"}, None):
        answer = await api("PATCH", f"{LIST}/{one}", same, headers={"If-Match": '"3"'})
        assert (answer.status, answer.headers["ETag"]) == (200, '"3"')


async def test_a_stale_version_changes_nothing_and_tells_the_current_one(api: Api) -> None:
    [one] = await people(api, 1)
    await api.tell(Unsend(PAGE, person(0), "m_0", at(5)))
    before = await api.get(f"{LIST}/{one}")
    answer = await api("PATCH", f"{LIST}/{one}", {"note": "late"}, headers={"If-Match": '"1"'})
    document = answer.is_problem(412, "version_conflict")
    assert (document["expected"], document["actual"]) == (1, 2)
    assert await api.get(f"{LIST}/{one}") == before


async def test_of_many_at_once_one_edits(api: Api) -> None:
    [one] = await people(api, 1)
    answers = await asyncio.gather(
        *(api("PATCH", f"{LIST}/{one}", {"note": f"mine {n}"}, headers={"If-Match": '"1"'}) for n in range(8))
    )
    assert sorted(answer.status for answer in answers) == [200] + [412] * 7
    assert (await api.get(f"{LIST}/{one}"))["version"] == 2


async def test_an_answer_is_the_conversation_of_its_tag(api: Api) -> None:
    """Also where somebody else changes it between the edit and the reading of it."""
    [one] = await people(api, 1)

    async def edit(number: int) -> None:
        version = number * 0 + int((await api.get(f"{LIST}/{one}"))["version"])
        answer = await api(
            "PATCH", f"{LIST}/{one}", {"note": f"{number}"}, headers={"If-Match": f'"{version}"'}
        )
        if answer.status == 200:
            assert answer.headers["ETag"] == f'"{answer.json["version"]}"'

    await asyncio.gather(*(edit(n) for n in range(10)), *(api.tell(said(f"m_{n}x", n)) for n in range(10)))


async def test_edits_of_a_locked_conversation_do_not_keep_the_others_out(
    api: Api, database: Any, settings: Settings
) -> None:
    """As many as the service has connections: they are told to try again, and webhooks go on being taken."""
    number = await api.tell(said("m_1"))
    with (
        psycopg.connect(database.owner_url) as idle,
        psycopg.connect(database.owner_url, autocommit=True) as watcher,
    ):

        async def waiting() -> bool | None:
            row = watcher.execute(
                """select from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'"""
            ).fetchone()
            return None if row is None else True

        idle.execute("select from convsync.messenger_conversations for update")
        edits = [
            asyncio.create_task(api("PATCH", f"{LIST}/{number}", {"note": "x"}, headers={"If-Match": '"1"'}))
            for _ in range(settings.pool_max)
        ]
        await eventually(waiting)
        event = {
            "sender": {"id": OTHER_PERSON},
            "recipient": {"id": PAGE},
            "timestamp": 1_760_000_000_000,
            "message": {"mid": "m_2", "text": "hello"},
        }
        body = json.dumps({"object": "page", "entry": [{"id": PAGE, "messaging": [event]}]}).encode()
        assert (await api.deliver(body)).status == 200
        for edit in asyncio.as_completed(edits):
            (await edit).is_problem(503, "try_again")


async def test_without_a_version_it_is_refused(api: Api) -> None:
    [one] = await people(api, 1)
    (await api("PATCH", f"{LIST}/{one}", {"note": "x"})).is_problem(428, "precondition_required")
    for condition in ("1", "*", '"x"', '"1", "2"', '""', f'"{"9" * 30}"'):
        answer = await api("PATCH", f"{LIST}/{one}", {"note": "x"}, headers={"If-Match": condition})
        answer.is_problem(400, "bad_request")
    assert (await api.get(f"{LIST}/{one}"))["note"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"conversation_status": ""}, "conversation_status"),
        ({"conversation_status": "x" * 65}, "conversation_status"),
        ({"conversation_status": None}, "conversation_status"),
        ({"tags": "vip"}, "tags"),
        ({"tags": [""]}, "tags.0"),
        ({"tags": [1]}, "tags.0"),
        ({"tags": ["x"] * 201}, "tags"),
        ({"tags": None}, "tags"),
        ({"assignee": 7}, "assignee"),
        ({"note": {"a": 1}}, "note"),
        ({"timezone": 7}, "timezone"),
        ({"timezone": "Mars/Phobos"}, "timezone"),
        ({"timezone": ""}, "timezone"),
        ({"sender_id": "other"}, "sender_id"),
        ({"version": 9}, "version"),
        ({"last_message": "mine"}, "last_message"),
        ([], None),
    ],
)
async def test_what_nobody_may_write(api: Api, body: Any, field: str | None) -> None:
    [one] = await people(api, 1)
    answer = await api("PATCH", f"{LIST}/{one}", body, headers={"If-Match": '"1"'})
    document = answer.is_problem(422, "invalid_argument")
    if field:
        assert document["field"] == field
    assert (await api.get(f"{LIST}/{one}"))["version"] == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b'{"note": "\\ud800"}', 400),
        (b'{"note": "\\u0000"}', 422),
        (b"[" * 100_000, 400),
        (b"null", 422),
    ],
)
async def test_a_body_that_is_none(api: Api, data: bytes, status: int) -> None:
    [one] = await people(api, 1)
    answer = await api(
        "PATCH",
        f"{LIST}/{one}",
        data=data,
        headers={"If-Match": '"1"', "Content-Type": "application/json"},
    )
    assert answer.status == status, answer.body


async def test_a_note_is_kept_as_it_is(api: Api) -> None:
    [one] = await people(api, 1)
    note = "'; drop table x; --\\ \u202e bidi 🚲 \u00e4\n<script>%s{}" * 100
    answer = await api("PATCH", f"{LIST}/{one}", {"note": note}, headers={"If-Match": '"1"'})
    assert answer.json["note"] == note


# --- who may


async def test_a_reader_reads_and_does_not_write(api: Api) -> None:
    [one] = await people(api, 1)
    for path in (LIST, f"{LIST}/{one}", f"{LIST}/{one}/events", f"{LIST}/{one}/timing", f"{BASE}/timing"):
        await api.get(path, key=READ)
        (await api("GET", path, key="")).is_problem(401, "unauthorized")
    answer = await api("PATCH", f"{LIST}/{one}", {}, key=READ, headers={"If-Match": '"1"'})
    answer.is_problem(403, "forbidden")


async def test_a_key_limited_to_pages_finds_nothing_of_others(api: Api) -> None:
    [one] = await people(api, 1)
    [theirs] = await people(api, 1, OTHER_PAGE)
    for path in (LIST, f"{LIST}/{one}", f"{LIST}/{one}/events", f"{LIST}/{one}/timing", f"{BASE}/timing"):
        (await api("GET", path, key=LIMITED)).is_problem(404, "not_found")
    answer = await api("PATCH", f"{LIST}/{one}", {"note": "x"}, key=LIMITED, headers={"If-Match": '"1"'})
    answer.is_problem(404, "not_found")
    assert ids(await api.get(f"/api/pages/{OTHER_PAGE}/conversations", key=LIMITED)) == [theirs]


async def test_of_a_page_that_is_unknown_or_removed_there_is_nothing(api: Api) -> None:
    (await api("GET", LIST)).is_problem(404, "not_found")
    await api.store.add_page(page_id=PAGE)
    assert await api.get(LIST) == {"conversations": [], "next": None}
    [one] = await people(api, 1)
    await api.store.remove_page(page_id=PAGE)
    for path in (LIST, f"{LIST}/{one}", f"{LIST}/{one}/events", f"{LIST}/{one}/timing", f"{BASE}/timing"):
        (await api("GET", path)).is_problem(404, "not_found")


# --- the thread


async def test_a_thread_newest_first_with_what_became_of_it(api: Api) -> None:
    mine = await api.tell(
        said("m_1", 1, "one"),
        replace(said("m_2", 2, "two"), direction="out", metadata={"webhook": {"big": 2**53 + 1}}),
        said("m_3", 3, "three"),
        Message(PAGE, PERSON, "evt_1", "in", at(4), event_type="referral", in_thread=False),
        Edit(PAGE, PERSON, "m_1", at(9), 1, "one!"),
        Unsend(PAGE, PERSON, "m_3", at(9)),
        said("m_x", 5, "another person's", OTHER_PERSON),
    )
    document = await api.get(f"{LIST}/{mine}/events")
    assert [(e["message_id"], e["body"], e["direction"]) for e in document["events"]] == [
        ("evt_1", None, "in"),
        ("m_3", "three", "in"),
        ("m_2", "two", "out"),
        ("m_1", "one!", "in"),
    ]
    newest, unsent, answer, edited = document["events"]
    assert (newest["event_type"], newest["in_thread"]) == ("referral", False)
    assert unsent["deleted_at"] == edited["edited_at"] == at(9).isoformat()
    assert answer["metadata"]["webhook"]["big"] == 2**53 + 1
    assert document["next"] is None


async def test_a_long_thread_in_parts_while_messages_arrive(api: Api) -> None:
    # many of one instant, with ids that sort otherwise by language than by byte
    odd = ["m_a", "m_B", "m_ä", "m_.x", "m_-1", "m_Z.9"]
    mine = await api.tell(
        *(said(mid, 0) for mid in odd), *(said(f"m_{n}", n // 3, str(n)) for n in range(20))
    )
    path = f"{LIST}/{mine}/events"
    whole = [event["message_id"] for event in (await api.get(path, limit="200"))["events"]]
    assert len(whole) == 26
    read: list[str] = []
    query = {"limit": "4"}
    for turn in range(20):
        document = await api.get(path, **query)
        read += [event["message_id"] for event in document["events"]]
        if document["next"] is None:
            break
        query["before"] = document["next"]
        await api.tell(said(f"m_late{turn}", 1000 + turn))
    assert read == whole


# --- timing


async def test_when_a_person_and_when_all_of_a_page_write(api: Api) -> None:
    mine = await api.tell(said("m_1", 0), said("m_2", 60))
    await api.tell(said("m_3", 3600, person=OTHER_PERSON))
    one = await api.get(f"{LIST}/{mine}/timing", tz="Asia/Kolkata")
    assert (one["counts"][0][17], one["messages"], one["timezone"]) == (2, 2, "Asia/Kolkata")
    assert one["best_hours"] == [{"weekday": 1, "hour": 17, "messages": 2}]
    for query in ({}, {"tz": ""}):
        page = await api.get(f"{BASE}/timing", **query)
        assert (page["counts"][0][12:14], page["timezone"]) == ([2, 1], "UTC")
    # what was said of the person is their clock, and nobody else's
    answer = await api("PATCH", f"{LIST}/{mine}", {"timezone": "Asia/Kathmandu"}, headers={"If-Match": '"1"'})
    assert (answer.status, answer.json["timezone"], answer.headers["ETag"]) == (200, "Asia/Kathmandu", '"2"')
    for query in ({}, {"tz": ""}):
        own = await api.get(f"{LIST}/{mine}/timing", **query)
        assert (own["best_hours"], own["timezone"]) == (one["best_hours"], "Asia/Kathmandu")
        assert (await api.get(f"{BASE}/timing", **query))["timezone"] == "UTC"
    assert (await api.get(f"{LIST}/{mine}/timing", tz="UTC"))["timezone"] == "UTC"
    for zone in ("Nowhere/Else", "' or 1=1 --", "x" * 1000):
        (await api("GET", f"{BASE}/timing", tz=zone)).is_problem(422, "invalid_argument")
    (await api("GET", f"{BASE}/timing", tz="a\0b")).is_problem(422, "invalid_argument")


async def test_times_are_utc_whatever_the_database_thinks(
    settings: Any, database: Any, owner: Owner, aiohttp_client: Any
) -> None:
    from convsync.web.app import create_app  # a pool of its own, made after the setting

    owner.execute(f"alter database {database.name} set timezone = 'Asia/Kolkata'".encode())
    app = create_app(settings, database.service_url)
    api = Api(await aiohttp_client(app), app)
    mine = await api.tell(said("m_1"))
    assert (await api.get(f"{LIST}/{mine}"))["last_message_time"] == "2026-01-05T12:00:00+00:00"
    assert (await api.get(LIST))["conversations"][0]["last_message_time"] == "2026-01-05T12:00:00+00:00"
    [event] = (await api.get(f"{LIST}/{mine}/events"))["events"]
    assert event["event_timestamp"] == "2026-01-05T12:00:00+00:00"
    [change] = (await api.get("/api/changes", key=OPERATE))["changes"]
    assert change["at"].endswith("+00:00")
