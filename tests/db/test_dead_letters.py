"""Dead letters: kept once, replayed once, discarded for a reason, gone after their time."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
import pytest
from sessions import (
    ADA,
    PAGE,
    Connect,
    Connection,
    at,
    call,
    eventually,
    ingest,
    one_behind_the_other,
    rows,
    told,
)

from convsync.dead_letters import read_again, replay
from convsync.errors import InvalidArgument, NotFound
from convsync.facts import DeadLetter, Json, Thread, Watermark, dump, instant
from convsync.store import Store, create_pool
from convsync.webhook.payload import parse

RAW = b'{"object":"page","entry":[{"id":"1001","messaging":[{"sender":{"id":"2001"},"new":1}]}]}'


def letter(connection: Connection, raw: bytes = RAW, page: str = PAGE, source: str = "webhook") -> int:
    """Keep one; its number."""
    ingest(connection, DeadLetter(page, "not understood", raw), source=source)
    found = call(connection, "select convsync_api.list_dead_letters(p_limit => 1)")
    return int(found["dead_letter_id"])


def replayed(connection: Connection, number: int, *batch: Any) -> bool:
    done: bool = call(
        connection,
        "select convsync_api.replay_dead_letter(%(number)s, %(facts)s)",
        number=number,
        facts=dump(batch),
    )
    return done


def shown(connection: Connection, number: int) -> Json:
    found: Json = call(connection, "select convsync_api.get_dead_letter(%(number)s)", number=number)
    return found


def refusal(caught: pytest.ExceptionInfo[psycopg.DatabaseError]) -> tuple[str | None, str | None]:
    return caught.value.sqlstate, caught.value.diag.message_hint


# --- kept


def test_the_same_letter_again_is_one_more_attempt(service: Connection) -> None:
    number = letter(service)
    for _ in range(2):
        assert letter(service) == number
    assert letter(service, RAW + b" ") != number
    assert letter(service, source="sync") != number
    found = shown(service, number)
    assert found["attempts"] == 3
    assert found["first_seen_at"] < found["last_seen_at"]


def test_the_same_letter_twice_at_once_is_one(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    one_behind_the_other(owner, first, lambda: letter(first), second, lambda: letter(second))[1].result()
    assert [row["attempts"] for row in rows(owner, "select attempts from convsync.dead_letters")] == [2]


def test_it_is_shown_with_its_bytes_and_in_utc(service: Connection) -> None:
    raw = bytes(range(256)) * 3
    service.execute("set timezone = 'Asia/Kolkata'")
    number = letter(service, raw)
    found = shown(service, number)
    assert "\n" not in found["raw_base64"]
    assert base64.b64decode(found["raw_base64"], validate=True) == raw
    assert found["bytes"] == len(raw)
    assert found["first_seen_at"].endswith("+00:00")
    [listed] = rows(service, "select convsync_api.list_dead_letters()")
    assert listed["list_dead_letters"] == {k: v for k, v in found.items() if k != "raw_base64"}


def test_they_are_listed_newest_first_by_page_and_in_parts(service: Connection) -> None:
    def listed(**where: Any) -> list[str]:
        values = {"page": None, "resolved": False, "before": None, "limit": 50, "pages": None, **where}
        return [
            row["letter"]["dead_letter_id"]
            for row in rows(
                service,
                """select convsync_api.list_dead_letters(%(page)s, %(resolved)s, %(before)s, %(limit)s,
                     %(pages)s) as letter""",
                **values,
            )
        ]

    numbers = [letter(service, b"%d" % n, page=("", "1001", "1002")[n % 3]) for n in range(6)]
    newest_first = [str(n) for n in reversed(numbers)]
    assert listed() == newest_first
    assert listed(limit=2) == newest_first[:2]
    assert listed(limit=2, before=numbers[4]) == newest_first[2:4]
    assert listed(page="1002") == [newest_first[0], newest_first[3]]
    assert listed(pages=["1001", "1002"]) == [newest_first[n] for n in (0, 1, 3, 4)]
    assert listed(pages=["1001", "1002"], limit=2, before=numbers[4]) == [newest_first[3], newest_first[4]]
    assert listed(page="1002", pages=["1001"]) == listed(pages=[]) == []
    call(service, "select convsync_api.discard_dead_letter(%(n)s, 'a test')", n=numbers[2])
    assert listed() == [n for n in newest_first if n != str(numbers[2])]
    assert listed(resolved=True) == [str(numbers[2])]


@pytest.mark.parametrize(
    "query",
    [
        "select convsync_api.get_dead_letter(77)",
        "select convsync_api.replay_dead_letter(77, '[]')",
        "select convsync_api.discard_dead_letter(77, 'why')",
    ],
)
def test_one_that_is_not_there(service: Connection, query: Any) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute(query)
    assert caught.value.sqlstate == "ZC001"


# --- replayed


def test_two_operators_who_press_at_once_replay_it_once(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    number = letter(first)
    early, late = one_behind_the_other(
        owner,
        first,
        lambda: replayed(first, number, told("m_1")),
        second,
        lambda: replayed(second, number, told("m_1")),
    )
    assert (early, late.result()) == (True, False)
    assert [
        row["message_id"] for row in rows(owner, "select * from convsync.contact_interaction_events")
    ] == ["m_1"]
    assert rows(owner, "select version from convsync.messenger_conversations") == [{"version": 1}]
    found = shown(first, number)
    assert (found["resolution"], found["resolved_at"] is not None) == ("replayed", True)
    assert replayed(first, number, told("m_2")) is False
    assert len(rows(owner, "select from convsync.contact_interaction_events")) == 1


def test_it_is_the_others_when_the_first_gives_up(connect: Connect, owner: Connection) -> None:
    first, second = connect(), connect()
    number = letter(first)
    first.execute("begin")
    assert replayed(first, number, told("m_1"))
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(replayed, second, number, told("m_1"))
        eventually(lambda: rows(owner, "select from pg_stat_activity where wait_event_type = 'Lock'"))
        first.execute("rollback")
        assert late.result() is True


def test_what_is_still_not_understood_keeps_waiting(service: Connection, owner: Connection) -> None:
    number = letter(service)
    with pytest.raises(psycopg.DatabaseError) as caught:
        replayed(service, number, told("m_1"), DeadLetter(PAGE, "no person", RAW))
    assert refusal(caught) == ("ZC003", "dead_letter_id")
    assert "no person" in str(caught.value)
    assert shown(service, number)["resolved_at"] is None
    assert rows(owner, "select from convsync.messenger_conversations") == []
    with pytest.raises(psycopg.DatabaseError):
        service.execute(
            "select convsync_api.replay_dead_letter(%s, %s)",
            [number, '[{"kind": "message", "page_id": "1001"}]'],
        )
    assert shown(service, number)["resolved_at"] is None
    assert replayed(service, number, told("m_1")) is True


def test_a_replay_and_a_delivery_of_the_same_letter_do_not_lock_each_other(
    connect: Connect, owner: Connection
) -> None:
    """Both lock conversations first: else each would hold what the other wants."""
    first, second = connect(), connect()
    number = letter(first)
    ingest(first, told("m_0"))

    def deliver() -> int:
        ingest(second, told("m_1", 1), DeadLetter(PAGE, "not understood", RAW))
        return 1

    second.execute("begin")
    ingest(second, told("m_1", 1))
    with ThreadPoolExecutor(1) as thread:
        late = thread.submit(replayed, first, number, told("m_2", 2))
        eventually(lambda: rows(owner, "select from pg_stat_activity where wait_event_type = 'Lock'"))
        deliver()
        second.execute("commit")
        assert late.result() is True
    assert rows(owner, "select message_count from convsync.messenger_conversations") == [{"message_count": 3}]


# --- read again, by the service


def kept(raw: bytes, source: str = "webhook", first_seen_at: str = "2026-01-02T03:04:05+00:00") -> Json:
    return {
        "raw_base64": base64.b64encode(raw).decode(),
        "source": source,
        "first_seen_at": first_seen_at,
        "resolved_at": None,
    }


def test_a_webhook_item_is_read_by_the_code_of_today() -> None:
    event = {
        "sender": {"id": ADA},
        "recipient": {"id": PAGE},
        "timestamp": 1_700_000_000_123,
        "message": {"mid": "m_1", "text": "hello"},
    }
    raw = orjson.dumps({"object": "page", "entry": [{"id": PAGE, "messaging": [event]}]})
    [fact] = orjson.loads(read_again(kept(raw)))
    assert (fact["message_id"], fact["text"]) == ("m_1", "hello")
    assert datetime.fromisoformat(fact["at"]) == instant(1_700_000_000_123)


def test_an_event_without_a_time_is_of_when_it_came_and_the_same_each_time() -> None:
    event = {"sender": {"id": ADA}, "recipient": {"id": PAGE}, "optin": {"ref": "x"}}
    raw = orjson.dumps({"object": "page", "entry": [{"id": PAGE, "messaging": [event]}]})
    again = read_again(kept(raw))
    assert again == read_again(kept(raw))
    assert datetime.fromisoformat(orjson.loads(again)[0]["at"]) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    # as the delivery itself would have been read
    arrived = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert orjson.loads(again) == orjson.loads(dump(parse(raw, arrived).facts))


@pytest.mark.parametrize(
    "fact",
    [told("m_1", text="hello"), Watermark(PAGE, ADA, "read", at(1)), Thread(PAGE, ADA, "t_1", at(1), {})],
    ids=lambda fact: type(fact).__name__,
)
def test_a_fact_that_the_database_refused_is_itself_again(fact: Any) -> None:
    raw = orjson.dumps(fact.as_json())
    for source in ("webhook", "sync"):
        assert orjson.loads(read_again(kept(raw, source))) == [orjson.loads(raw)]


@pytest.mark.parametrize(
    ("raw", "source", "why"),
    [
        (b"\xff\x00", "webhook", "not JSON"),
        (b"[1]", "webhook", "not an object"),
        (b'{"object":"page","entry":[]}', "webhook", "no facts"),
        (b'{"id":"t_1","participants":{}}', "sync", "next sync"),
        (b"[" * 5000, "webhook", "not JSON"),
    ],
)
def test_what_cannot_be_read_says_why(raw: bytes, source: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        read_again(kept(raw, source))


async def test_a_replay_after_the_parser_was_mended_lands_the_facts_once(
    database: Any, owner: Connection
) -> None:
    event = {
        "sender": {"id": ADA},
        "recipient": {"id": PAGE},
        "timestamp": 1_700_000_000_123,
        "message": {"mid": "m_1", "text": "hello"},
    }
    raw = orjson.dumps({"object": "page", "entry": [{"id": PAGE, "messaging": [event]}]})
    pool = create_pool(database.service_url, size=4, name="test")
    async with pool:
        store = Store(pool)
        await store.ingest([DeadLetter(PAGE, "not understood yesterday", raw)], "webhook")
        [found] = await store.list_dead_letters()
        number = int(found["dead_letter_id"])
        assert sorted(await asyncio.gather(*(replay(store, number) for _ in range(4)))) == [False] * 3 + [
            True
        ]
        assert await replay(store, number) is False
        with pytest.raises(NotFound):
            await replay(store, number + 1)
    [event_row] = rows(owner, "select * from convsync.contact_interaction_events")
    assert (event_row["message_id"], event_row["body"], event_row["source"]) == ("m_1", "hello", "webhook")


# --- discarded, expired


@pytest.mark.parametrize("reason", [None, "", "   ", "\n\t "])
def test_a_discard_says_why(service: Connection, reason: str | None) -> None:
    number = letter(service)
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.discard_dead_letter(%s, %s)", [number, reason])
    assert refusal(caught) == ("ZC003", "reason")


def test_a_discarded_one_is_settled_once_and_keeps_its_bytes(service: Connection) -> None:
    number = letter(service)
    query: Any = "select convsync_api.discard_dead_letter(%(n)s, %(why)s)"
    assert call(service, query, n=number, why="a probe of ours") is True
    assert call(service, query, n=number, why="again") is False
    assert replayed(service, number, told("m_1")) is False
    found = shown(service, number)
    assert found["resolution"] == "discarded: a probe of ours"
    assert base64.b64decode(found["raw_base64"]) == RAW


def test_they_expire_by_when_they_were_last_seen(service: Connection) -> None:
    def expire(now: str) -> int:
        service.execute("select set_config('convsync.now', %s, false)", [now])
        gone: int = call(service, "select convsync_api.expire_dead_letters(30)")
        return gone

    service.execute("set convsync.now = '2026-01-01T00:00:00Z'")
    old, seen_again, settled = letter(service, b"old"), letter(service, b"again"), letter(service, b"settled")
    call(service, "select convsync_api.discard_dead_letter(%(n)s, 'why')", n=settled)
    service.execute("set convsync.now = '2026-01-20T00:00:00Z'")
    letter(service, b"again")
    assert expire("2026-01-30T00:00:00Z") == 0
    assert expire("2026-02-01T00:00:00Z") == 2
    assert [
        r["l"]["dead_letter_id"] for r in rows(service, "select convsync_api.list_dead_letters() as l")
    ] == [str(seen_again)]
    with pytest.raises(psycopg.DatabaseError):
        shown(service, old)
    assert expire("2026-02-19T00:00:01Z") == 1


@pytest.mark.parametrize("days", [None, 0, -1])
def test_an_expiry_has_days(service: Connection, days: int | None) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.expire_dead_letters(%s)", [days])
    assert refusal(caught) == ("ZC003", "p_days")


def test_of_two_janitors_at_once_one_finds_nothing_to_do(connect: Connect) -> None:
    first, second = connect(), connect()
    for number in range(5):
        letter(first, b"%d" % number)
    for janitor in (first, second):
        janitor.execute("set convsync.now = '2099-01-01T00:00:00Z'")
    first.execute("begin")
    assert call(first, "select convsync_api.expire_dead_letters(30)") == 5
    assert call(second, "select convsync_api.expire_dead_letters(30)") == 0
    first.execute("commit")
    assert call(second, "select convsync_api.expire_dead_letters(30)") == 0
