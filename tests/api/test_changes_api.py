"""The change feed by HTTP: at least once for a named consumer, and a stream that resumes without a gap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from api_support import (
    LIMITED,
    LIMITED_TWICE,
    OPERATE,
    OTHER_PAGE,
    OTHER_PERSON,
    PAGE,
    PERSON,
    READ,
    Api,
    Json,
    Owner,
    Sent,
    eventually,
    said,
    sent_events,
)
from structlog.testing import capture_logs

from convsync import store as store_module
from convsync.errors import DatabaseUnavailable, TryAgain
from convsync.facts import dump
from convsync.web import sse
from convsync.web.app import create_app, serve
from convsync.web.state import LIFECYCLE

CHANGES, STREAM, END = "/api/changes", "/api/changes/stream", "/api/changes/end"


async def all_changes(api: Api, number: int, **query: Any) -> list[Json]:
    """The feed from its beginning, once that many are to be had: autovacuum may hold it back for a moment."""

    async def look() -> list[Json] | None:
        changes: list[Json] = (await api.get(CHANGES, limit="1000", **query))["changes"]
        return changes if len(changes) >= number else None

    return await eventually(look)


@asynccontextmanager
async def streaming(api: Api, key: str = READ, last: str | None = None, **query: str) -> AsyncIterator[Any]:
    headers = {"Authorization": f"Bearer {key}"} | ({"Last-Event-ID": last} if last is not None else {})
    async with api.client.get(STREAM, params=query, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield sent_events(response)


async def take(events: AsyncIterator[Sent], number: int) -> list[Sent]:
    async with asyncio.timeout(30):
        return [await anext(events) for _ in range(number)]


# --- by request


async def test_what_changed_since_a_position(api: Api) -> None:
    assert await api.get(CHANGES) == {"changes": [], "position": None, "more": False}
    mine = await api.tell(said("m_1"))
    await api.tell(said("m_2", 1))
    first, second = await all_changes(api, 2)
    assert {key: first[key] for key in ("page_id", "conversation_id", "version", "kinds")} == {
        "page_id": PAGE,
        "conversation_id": str(mine),
        "version": 1,
        "kinds": ["message"],
    }
    assert second["version"] == 2
    document = await api.get(CHANGES, limit="1")
    assert document == {"changes": [first], "position": first["position"], "more": True}
    document = await api.get(CHANGES, after=document["position"])
    assert document == {"changes": [second], "position": second["position"], "more": False}
    end = await api.get(CHANGES, after=second["position"])
    assert end == {"changes": [], "position": second["position"], "more": False}


async def test_who_begins_at_the_end_gets_what_comes_after(api: Api, database: Any) -> None:
    """What was written before and commits after is not in the mirror that is read: it is a change to come."""
    beginning = (await api.get(END))["position"]
    await api.tell(said("m_1"))
    [first] = await all_changes(api, 1, after=beginning)
    async with await psycopg.AsyncConnection.connect(database.service_url) as slow:
        await slow.execute(
            "select convsync_api.ingest(%s, 'webhook')", [dump([said("m_slow", person=OTHER_PERSON)])]
        )
        await api.tell(said("m_2", 1))
        end = (await api.get(END))["position"]
        assert end == first["position"], "what is held back comes later"
        await slow.commit()
    await api("POST", "/api/changes/crm/position", {"position": end})
    for query in ({"after": end}, {"consumer": "crm"}):
        later = await all_changes(api, 2, **query)
        assert sorted(one["version"] for one in later) == [1, 2], "the slow one, and the second of the other"
    assert (await api.get(END))["position"] == later[-1]["position"]


async def test_a_consumer_sees_again_what_it_has_not_confirmed(api: Api) -> None:
    for number in range(5):
        await api.tell(said(f"m_{number}", number))
    known = [change["position"] for change in await all_changes(api, 5)]

    async def next_ones() -> list[str]:
        return [
            change["position"] for change in (await api.get(CHANGES, consumer="crm", limit="2"))["changes"]
        ]

    for _ in range(2):
        assert await next_ones() == known[:2], "it crashed before it confirmed"
    answer = await api("POST", "/api/changes/crm/position", {"position": known[1]})
    assert (answer.status, answer.json) == (200, {"consumer": "crm", "position": known[1]})
    for _ in range(2):
        assert await next_ones() == known[2:4]
    await api("POST", "/api/changes/crm/position", {"position": known[4]})
    document = await api.get(CHANGES, consumer="crm")
    assert document == {"changes": [], "position": known[4], "more": False}
    # what it says itself goes before what is stored, and other consumers have their own
    assert (await api.get(CHANGES, consumer="crm", after=known[3]))["position"] == known[4]
    assert len((await api.get(CHANGES, consumer="analytics"))["changes"]) == 5


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "9" * 5000, "٣"])
async def test_a_limit_is_within_bounds(api: Api, limit: str) -> None:
    (await api("GET", CHANGES, limit=limit)).is_problem(422, "invalid_argument")


async def test_how_far_an_outgoing_webhook_has_come_is_not_said_by_callers(api: Api) -> None:
    """Moved by a caller it would leave out what it has not told, and nobody would know."""
    end = (await api.get("/api/changes/end"))["position"]
    answer = await api("POST", "/api/changes/outgoing:crm/position", {"position": end})
    assert answer.is_problem(422, "invalid_argument")["field"] == "consumer"


@pytest.mark.parametrize(
    "position", ["x", "1-2", "1-2-3-4", "٣-1-1", "1-2-3\n", "9" * 70, "999999999-1-1", "2-1-1"]
)
async def test_what_is_no_position_is_refused(api: Api, position: str) -> None:
    (await api("GET", CHANGES, after=position)).is_problem(422, "invalid_argument")
    (await api("GET", STREAM, after=position)).is_problem(422, "invalid_argument")
    answer = await api("POST", "/api/changes/crm/position", {"position": position})
    answer.is_problem(422, "invalid_argument")


async def test_a_position_that_is_wrong_as_a_body(api: Api) -> None:
    for body in (
        {},
        {"position": None},
        {"position": 1},
        {"position": ""},
        {"position": "1-2-3", "x": 1},
        [],
    ):
        answer = await api("POST", "/api/changes/crm/position", body)
        answer.is_problem(422, "invalid_argument")
    answer = await api("POST", f"/api/changes/{'x' * 201}/position", {"position": "1-2-3"})
    assert answer.is_problem(422, "invalid_argument")["field"] == "consumer"


async def test_who_may(api: Api) -> None:
    for path in (CHANGES, STREAM):
        (await api("GET", path, key="")).is_problem(401, "unauthorized")
    answer = await api("POST", "/api/changes/crm/position", {"position": "1-2-3"}, key=READ)
    answer.is_problem(403, "forbidden")
    await api.get(CHANGES, key=READ)


async def test_a_key_limited_to_pages_sees_the_changes_of_these(api: Api) -> None:
    await api.tell(said("m_1"), said("m_2", page=OTHER_PAGE), said("m_3", page="104000000000003"))
    await all_changes(api, 3)
    for key, pages in ((LIMITED, [OTHER_PAGE]), (LIMITED_TWICE, [OTHER_PAGE, "104000000000003"])):
        found = (await api.get(CHANGES, key=key))["changes"]
        assert [change["page_id"] for change in found] == pages
        async with streaming(api, key) as events:
            assert [one.data["page_id"] for one in await take(events, len(pages))] == pages


async def test_a_key_limited_to_pages_has_consumers_of_its_own(api: Api) -> None:
    """It can neither learn of another's, nor make it skip."""
    await api.tell(said("m_1", page=OTHER_PAGE))
    [change] = await all_changes(api, 1)
    position = change["position"]
    await api("POST", "/api/changes/crm/position", {"position": position})
    assert len((await api.get(CHANGES, consumer="crm", key=LIMITED))["changes"]) == 1
    later = position + "9"
    answer = await api("POST", "/api/changes/crm/position", {"position": later}, key=LIMITED)
    assert answer.json == {"consumer": "crm", "position": later}
    assert (await api.get(CHANGES, consumer="crm", key=LIMITED))["position"] == later
    assert (await api.get(CHANGES, consumer="crm"))["position"] == position
    assert (await api.get(CHANGES, consumer="crm", key=LIMITED_TWICE))["changes"] != []
    answer = await api("POST", f"/api/changes/{'x' * 200}/position", {"position": later}, key=LIMITED)
    answer.is_problem(422, "invalid_argument")


# --- what has expired


async def expired(api: Api, owner: Owner, number: int) -> list[str]:
    """Changes of which all but the last are gone; their positions."""
    for turn in range(number):
        await api.tell(said(f"m_{turn}", turn))
    known = [change["position"] for change in await all_changes(api, number)]
    owner.execute("update convsync.conversation_changes set changed_at = changed_at - interval '31 days'")
    assert await api.store.expire_changes(days=30, limit=number - 1) == number - 1
    return known


async def test_who_was_away_for_too_long_is_told(api: Api, owner: Owner) -> None:
    known = await expired(api, owner, 4)
    # from the beginning of what is kept, and from where the deletion ended
    assert [change["position"] for change in (await api.get(CHANGES))["changes"]] == known[3:]
    assert [change["position"] for change in (await api.get(CHANGES, after=known[2]))["changes"]] == known[3:]
    for path in (CHANGES, STREAM):
        document = (await api("GET", path, after=known[1])).is_problem(410, "gone")
        assert document["position"] == known[3]
    answer = await api("GET", STREAM, headers={"Last-Event-ID": known[1]})
    answer.is_problem(410, "gone")
    # a consumer goes on once it has read the mirror and says from where
    await api("POST", "/api/changes/crm/position", {"position": known[0]})
    document = (await api("GET", CHANGES, consumer="crm")).is_problem(410, "gone")
    await api("POST", "/api/changes/crm/position", {"position": document["position"]})
    assert (await api.get(CHANGES, consumer="crm"))["changes"] == []
    await api.tell(said("m_new", 9))
    [change] = await all_changes(api, 1, consumer="crm")
    assert change["version"] == 5


async def test_a_key_whose_pages_lost_nothing_is_not_told(api: Api, owner: Owner) -> None:
    """A Page on which nothing happens is no reason to read it again."""
    await api.tell(said("m_quiet", page=OTHER_PAGE))
    [quiet] = [change["position"] for change in await all_changes(api, 1)]
    await expired(api, owner, 4)
    (await api("GET", CHANGES, after=quiet)).is_problem(410, "gone")
    assert (await api.get(CHANGES, after=quiet, key=LIMITED))["changes"] == []


async def test_a_stream_that_falls_too_far_behind_ends(
    api: Api, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot tell any more with what it has begun; who comes back with its last position is told."""
    known = await expired(api, owner, 3)
    real, behind = store_module.Store.changes_after, False

    async def changes_after(self: Any, **more: Any) -> Any:
        return await real(self, **({**more, "after": known[0]} if behind else more))

    monkeypatch.setattr(store_module.Store, "changes_after", changes_after)
    async with api.client.get(STREAM, headers={"Authorization": f"Bearer {READ}"}) as response:
        await take(sent_events(response), 1)
        with capture_logs() as logs:
            behind = True
            async with asyncio.timeout(10):
                assert await response.content.read() == b""
    assert [line["event"] for line in logs if line["event"] == "stream_broken"] == []


async def test_the_janitor_deletes_what_is_old_in_batches(
    settings: Any, database: Any, owner: Owner, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turn in range(5):
        await api.tell(said(f"m_{turn}", turn))
    await all_changes(api, 5)
    owner.execute(
        """update convsync.conversation_changes set changed_at = changed_at - interval '8 days'
           where version < 5"""
    )
    real, asked = store_module.Store.expire_changes, []

    async def expire_changes(self: Any, *, days: int) -> Any:
        asked.append(days)
        return await real(self, days=days, limit=2)

    monkeypatch.setattr(store_module.Store, "expire_changes", expire_changes)
    app = create_app(settings.model_copy(update={"changes_days": 7}), database.service_url)
    runner = await serve(app, "127.0.0.1", 0)

    async def tidied() -> bool | None:
        return len(asked) >= 3 or None

    await eventually(tidied)
    await runner.cleanup()
    assert asked == [7, 7, 7], "two, two, and none"
    assert [change["version"] for change in (await api.get(CHANGES))["changes"]] == [5]


# --- as a stream


async def test_the_stream_goes_on_with_what_comes(api: Api) -> None:
    await api.tell(said("m_1"))
    async with streaming(api) as events:
        [first] = await take(events, 1)
        await api.tell(said("m_2", 1))
        [second] = await take(events, 1)
    known = await all_changes(api, 2)
    for sent, change in zip((first, second), known, strict=True):
        assert (sent.event, sent.id) == ("change", change["position"])
        assert {key: sent.data[key] for key in change} == change


async def test_it_resumes_after_the_last_event(api: Api) -> None:
    for number in range(4):
        await api.tell(said(f"m_{number}", number))
    known = [change["position"] for change in await all_changes(api, 4)]
    async with streaming(api) as events:
        seen = [one.id for one in await take(events, 2)]
    async with streaming(api, last=seen[-1]) as events:
        seen += [one.id for one in await take(events, 2)]
    assert seen == known
    async with streaming(api, after=known[2]) as events:
        assert [one.id for one in await take(events, 1)] == known[3:]
    # a browser that comes back says so by header, whatever its address says
    async with streaming(api, last=known[2], after=known[0]) as events:
        assert [one.id for one in await take(events, 1)] == known[3:]


async def test_no_gap_while_writers_commit_out_of_order(api: Api, database: Any, owner: Owner) -> None:
    """A reader that loses its connection again and again, while transactions end in any order."""
    writers, rounds = 3, 15

    async def write(number: int) -> None:
        chance = random.Random(number)  # noqa: S311
        connection = await psycopg.AsyncConnection.connect(database.service_url, autocommit=True)
        async with connection:
            for turn in range(rounds):
                async with connection.transaction():
                    fact = said(f"m_{number}_{turn}", turn, person=f"73000000000001{number:02}")
                    await connection.execute("select convsync_api.ingest(%s, 'webhook')", [dump([fact])])
                    await asyncio.sleep(chance.choice([0, 0, 0.01, 0.05]))

    await api.tell(*(said(f"m_{n}", person=f"73000000000001{n:02}") for n in range(writers)))
    total = writers * (rounds + 1)
    seen: list[str] = []

    async def read() -> None:
        chance = random.Random(0)  # noqa: S311
        while len(seen) < total:
            async with streaming(api, last=seen[-1] if seen else None) as events:
                part = min(chance.randint(1, 9), total - len(seen))
                seen.extend([one.id for one in await take(events, part)])

    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number))
        group.create_task(read())
    stored = owner.execute(
        "select epoch, xid, change_id from convsync.conversation_changes order by 1, 2, 3"
    ).fetchall()
    assert seen == [f"{row['epoch']}-{row['xid']}-{row['change_id']}" for row in stored]
    assert len(set(seen)) == total


async def test_what_is_held_back_comes_when_it_is_free(api: Api, database: Any) -> None:
    await api.tell(said("m_a"), said("m_b", person=OTHER_PERSON))
    start = (await all_changes(api, 2))[-1]["position"]
    async with (
        await psycopg.AsyncConnection.connect(database.service_url) as slow,
        streaming(api, last=start) as events,
    ):
        await slow.execute("select convsync_api.ingest(%s, 'webhook')", [dump([said("m_a2", 1)])])
        await api.tell(said("m_b2", 1, person=OTHER_PERSON))
        lag = await api.store.feed_lag()
        assert (lag.held_back, lag.blocking_pid) == (1, slow.info.backend_pid)
        assert (await api.get(CHANGES, after=start))["changes"] == []
        await slow.commit()
        both = await take(events, 2)
    assert [one.data["version"] for one in both] == [2, 2]
    assert both[0].data["conversation_id"] != both[1].data["conversation_id"]


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), TryAgain("locked")])
async def test_a_database_that_is_away_is_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await api.tell(said("m_1"))
    real, away = store_module.Store.changes_after, 0

    async def changes_after(self: Any, **more: Any) -> Any:
        nonlocal away
        if away:
            away -= 1
            raise error
        return await real(self, **more)

    monkeypatch.setattr(store_module.Store, "changes_after", changes_after)
    async with streaming(api) as events:
        [first] = await take(events, 1)
        away = 5
        await api.tell(said("m_2", 1))
        [second] = await take(events, 1)
    assert away == 0
    assert (first.data["version"], second.data["version"]) == (1, 2)


async def test_a_defect_ends_the_stream_and_writes_nothing_into_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.tell(said("m_1"))
    real, broken = store_module.Store.changes_after, False

    async def changes_after(self: Any, **more: Any) -> Any:
        if broken:
            raise RuntimeError("a defect")
        return await real(self, **more)

    monkeypatch.setattr(store_module.Store, "changes_after", changes_after)
    headers = {"Authorization": f"Bearer {READ}"}
    async with api.client.get(STREAM, headers=headers) as response:
        [first] = await take(sent_events(response), 1)
        broken = True
        async with asyncio.timeout(10):
            rest = await response.content.read()
    assert first.id
    assert b"problem" not in rest
    assert b"HTTP/1.1" not in rest


async def test_a_quiet_stream_says_that_it_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from convsync.web.routes import changes

    assert changes.HEARTBEAT_SECONDS == sse.HEARTBEAT_SECONDS
    monkeypatch.setattr(changes, "HEARTBEAT_SECONDS", 0.05)
    async with api.client.get(STREAM, headers={"Authorization": f"Bearer {READ}"}) as response:
        async with asyncio.timeout(10):
            assert (await response.content.readline()).startswith(b":")


async def test_a_ticket_opens_the_stream_of_the_feed_for_the_pages_of_its_key(api: Api) -> None:
    await api.tell(said("m_1"), said("m_2", page=OTHER_PAGE))
    await all_changes(api, 2)
    answer = await api("POST", "/api/stream-tickets", {"stream": "changes"}, key=LIMITED)
    assert (answer.status, answer.json["expires_in"]) == (201, 60)
    ticket = answer.json["ticket"]
    async with api.client.get(STREAM, params={"ticket": ticket}) as response:
        assert response.status == 200, await response.text()
        [sent] = await take(sent_events(response), 1)
    assert sent.data["page_id"] == OTHER_PAGE
    for path, query in (
        (STREAM, {"ticket": ticket[:-1] + ("0" if ticket[-1] != "0" else "1")}),
        (STREAM, {"ticket": ticket.replace("limited.", "operator.")}),
        (CHANGES, {"ticket": ticket}),
        ("/api/conversations/sync-stream", {"ticket": ticket, "run_id": "changes"}),
    ):
        answer = await api("GET", path, key="", **query)
        # Even one that says the right word opens no other stream.
        assert answer.status in (401, 422), (path, answer.body)


@pytest.mark.parametrize("body", [{}, {"run_id": "1", "stream": "changes"}, {"stream": "runs"}])
async def test_a_ticket_is_for_one_stream(api: Api, body: Json) -> None:
    (await api("POST", "/api/stream-tickets", body)).is_problem(422, "invalid_argument")


async def test_streams_end_when_the_service_does(api: Api) -> None:
    async with api.client.get(STREAM, headers={"Authorization": f"Bearer {OPERATE}"}) as response:
        api.app[LIFECYCLE].stopping = True
        async with asyncio.timeout(10):
            assert await response.content.read() == b""


async def test_a_person_is_told_of_once_per_transaction(api: Api) -> None:
    await api.tell(*(said(f"m_{n}", n) for n in range(20)))
    [change] = await all_changes(api, 1)
    assert (change["version"], change["kinds"]) == (1, ["message"])
    done = await api.store.erase_contact(page_id=PAGE, sender_id=PERSON)
    [_, erased] = await all_changes(api, 2)
    assert (erased["conversation_id"], erased["kinds"]) == (done["conversation_id"], ["erased"])
