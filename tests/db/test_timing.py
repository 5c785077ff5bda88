"""When people write: weekday and hour of their zone, also on the two days a year that have 23 or 25 hours."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import ADA, BOB, OTHER_PAGE, PAGE, Connection, call, ingest, rows

from convsync.facts import Json, Message, Unsend

MONDAY, SUNDAY = 1, 7


def write(connection: Connection, *times: str, sender: str = ADA, page: str = PAGE, **more: Any) -> None:
    ingest(
        connection,
        *(
            Message(page, sender, f"m_{sender}_{time}", "in", datetime.fromisoformat(time), "x", **more)
            for time in times
        ),
    )


def timing(
    connection: Connection, zone: str | None = None, conversation_id: int | None = None, page: str = PAGE
) -> Json:
    found: Json = call(
        connection,
        "select convsync_api.contact_timing(%(page)s, %(id)s, %(zone)s)",
        page=page,
        id=conversation_id,
        zone=zone,
    )
    return found


def hours(document: Json) -> dict[tuple[int, int], int]:
    """The hours in which anybody wrote: (weekday, hour) -> messages."""
    assert [len(row) for row in document["counts"]] == [24] * 7
    counted = {
        (weekday, hour): messages
        for weekday, row in enumerate(document["counts"], start=MONDAY)
        for hour, messages in enumerate(row)
        if messages
    }
    assert sum(counted.values()) == document["messages"]
    return counted


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", (SUNDAY, 23)),
        ("Europe/Berlin", (MONDAY, 0)),
        ("Asia/Kolkata", (MONDAY, 4)),
        ("Asia/Kathmandu", (MONDAY, 5)),
        ("America/St_Johns", (SUNDAY, 19)),
        ("Pacific/Kiritimati", (MONDAY, 13)),
        ("Pacific/Marquesas", (SUNDAY, 13)),
    ],
)
def test_weekday_and_hour_are_those_of_the_zone(
    service: Connection, zone: str, expected: tuple[int, int]
) -> None:
    write(service, "2026-01-04T23:20:00+00:00")
    service.execute("set timezone = 'America/New_York'")
    assert hours(timing(service, zone)) == {expected: 1}


def test_half_an_hour_of_a_zone_parts_an_hour_of_utc(service: Connection) -> None:
    write(service, "2026-01-05T10:29:59+00:00", "2026-01-05T10:30:00+00:00")
    assert hours(timing(service)) == {(1, 10): 2}
    assert hours(timing(service, "Asia/Kolkata")) == {(1, 15): 1, (1, 16): 1}


def test_when_the_clock_is_put_forward_an_hour_is_left_out(service: Connection) -> None:
    """Berlin, 2026-03-29: after 01:59:59 comes 03:00:00."""
    write(
        service,
        "2026-03-29T00:59:59+00:00",
        "2026-03-29T01:00:00+00:00",
        "2026-03-28T01:30:00+00:00",
        "2026-03-30T01:30:00+00:00",
    )
    assert hours(timing(service, "Europe/Berlin")) == {
        (SUNDAY, 1): 1,
        (SUNDAY, 3): 1,
        (6, 2): 1,
        (MONDAY, 3): 1,
    }


def test_when_the_clock_is_put_back_an_hour_counts_twice(service: Connection) -> None:
    """Berlin, 2026-10-25: 02:00 to 02:59 happens at 00:xx and again at 01:xx UTC."""
    write(
        service,
        "2026-10-24T23:59:59+00:00",
        "2026-10-25T00:00:00+00:00",
        "2026-10-25T00:59:59+00:00",
        "2026-10-25T01:00:00+00:00",
        "2026-10-25T01:59:59+00:00",
        "2026-10-25T02:00:00+00:00",
    )
    assert hours(timing(service, "Europe/Berlin")) == {(SUNDAY, 1): 1, (SUNDAY, 2): 4, (SUNDAY, 3): 1}


def test_only_what_a_person_wrote_and_let_stand_counts(service: Connection) -> None:
    at = datetime.fromisoformat("2026-01-05T10:00:00+00:00")
    write(service, "2026-01-05T10:00:00+00:00")
    ingest(
        service,
        Message(PAGE, ADA, "m_out", "out", at, "ours"),
        Message(PAGE, ADA, "m_gone", "in", at, "taken back"),
        Unsend(PAGE, ADA, "m_gone", at),
        Message(PAGE, ADA, "m_ref", "in", at, event_type="referral", in_thread=False),
    )
    assert hours(timing(service)) == {(1, 10): 1}


def test_a_conversation_and_its_page(service: Connection, owner: Connection) -> None:
    write(service, "2026-01-05T10:00:00+00:00")
    write(service, "2026-01-06T11:00:00+00:00", sender=BOB)
    write(service, "2026-01-07T12:00:00+00:00", page=OTHER_PAGE)
    bob = call(owner, "select conversation_id from convsync.messenger_conversations where sender_id = '2002'")
    assert hours(timing(service, conversation_id=bob)) == {(2, 11): 1}
    assert timing(service, conversation_id=bob)["conversation_id"] == str(bob)
    whole = timing(service)
    assert (whole["page_id"], whole["conversation_id"], whole["timezone"]) == (PAGE, None, "UTC")
    assert hours(whole) == {(1, 10): 1, (2, 11): 1}


def known(owner: Connection, sender: str) -> Json:
    [row] = rows(
        owner,
        """select conversation_id, version from convsync.messenger_conversations
           where page_id = '1001' and sender_id = %(sender)s""",
        sender=sender,
    )
    return row


def lives_in(service: Connection, owner: Connection, zone: str | None, sender: str = ADA) -> int:
    """Say it as a person would; the new version."""
    one = known(owner, sender)
    version: int = call(
        service,
        "select convsync_api.update_conversation(%(page)s, %(id)s, %(version)s, %(patch)s)",
        page=PAGE,
        id=one["conversation_id"],
        version=one["version"],
        patch=Jsonb({"timezone": zone}),
    )
    return version


def test_the_hours_of_a_contact_are_those_of_its_own_zone(service: Connection, owner: Connection) -> None:
    """In Auckland both are half past eleven in the evening: in January its clock is an hour ahead."""
    write(service, "2026-01-05T10:30:00+00:00", "2026-07-06T11:30:00+00:00")
    write(service, "2026-01-05T10:30:00+00:00", sender=BOB)
    ada, bob = known(owner, ADA)["conversation_id"], known(owner, BOB)["conversation_id"]
    before = timing(service, conversation_id=ada)
    assert (before["timezone"], hours(before)) == ("UTC", {(1, 10): 1, (1, 11): 1})
    assert lives_in(service, owner, "Pacific/Auckland") == 2
    own = timing(service, conversation_id=ada)
    assert (own["timezone"], hours(own)) == ("Pacific/Auckland", {(1, 23): 2})
    # a zone that is asked for goes before it, and it is nobody else's
    asked = timing(service, "Asia/Kolkata", ada)
    assert (asked["timezone"], hours(asked)) == ("Asia/Kolkata", {(1, 16): 1, (1, 17): 1})
    assert timing(service, conversation_id=bob)["timezone"] == "UTC"
    # a Page has one grid, so one clock
    whole = timing(service)
    assert (whole["timezone"], hours(whole)) == ("UTC", {(1, 10): 2, (1, 11): 1})
    assert timing(service, "Europe/Berlin")["timezone"] == "Europe/Berlin"
    assert lives_in(service, owner, None) == 3
    assert timing(service, conversation_id=ada) == before
    # a server that was moved may not know a name that another one knew
    owner.execute("update convsync.messenger_conversations set timezone = 'Mars/Phobos'")
    assert timing(service, conversation_id=ada) == before


def test_a_zone_is_set_like_a_tag(service: Connection, owner: Connection) -> None:
    """At the version that was read, told by the feed, shown where it is read; once is enough."""
    write(service, "2026-01-05T10:30:00+00:00")
    one = known(owner, ADA)["conversation_id"]
    for zone in ("Mars/Phobos", "Mars4", "utc+3", "", "europe/berlin"):
        with pytest.raises(psycopg.DatabaseError) as caught:
            lives_in(service, owner, zone)
        assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_patch.timezone")
    assert lives_in(service, owner, "Europe/Berlin") == 2
    assert lives_in(service, owner, "Europe/Berlin") == 2
    shown = call(service, "select convsync_api.get_conversation('1001', %(id)s)", id=one)
    assert (shown["timezone"], shown["version"]) == ("Europe/Berlin", 2)
    assert rows(owner, "select timezone from convsync_read.conversations") == [{"timezone": "Europe/Berlin"}]
    kinds = "select kinds from convsync.conversation_changes where version = 2"
    assert rows(owner, kinds) == [{"kinds": ["edit_by_person"]}]
    with pytest.raises(psycopg.DatabaseError) as caught:
        call(
            service,
            """select convsync_api.update_conversation('1001', %(id)s, 1, '{"timezone": "UTC"}')""",
            id=one,
        )
    assert caught.value.sqlstate == "ZC002"
    # facts say nothing about it, and an erasure takes it away
    write(service, "2026-01-06T10:30:00+00:00")
    assert rows(owner, "select timezone from convsync.messenger_conversations") == [
        {"timezone": "Europe/Berlin"}
    ]
    call(service, "select convsync_api.erase_contact('1001', %(sender)s)", sender=ADA)
    assert rows(owner, "select timezone from convsync.messenger_conversations") == [{"timezone": None}]


def test_the_best_hours_are_the_busiest_then_the_latest(service: Connection) -> None:
    write(
        service,
        # the same hour of three Mondays
        *(f"2026-01-{day:02}T09:10:00+00:00" for day in (5, 12, 19)),
        # twice each, the Wednesday more recently
        *(f"2026-01-{day:02}T20:10:00+00:00" for day in (6, 13)),
        *(f"2026-01-{day:02}T08:10:00+00:00" for day in (7, 14)),
        *(f"2026-01-08T{hour:02}:10:00+00:00" for hour in (1, 2, 3, 4)),
    )
    assert timing(service)["best_hours"] == [
        {"weekday": 1, "hour": 9, "messages": 3},
        {"weekday": 3, "hour": 8, "messages": 2},
        {"weekday": 2, "hour": 20, "messages": 2},
        {"weekday": 4, "hour": 4, "messages": 1},
        {"weekday": 4, "hour": 3, "messages": 1},
    ]


def test_a_page_where_nobody_wrote(service: Connection) -> None:
    call(service, "select convsync_api.add_page('1001')")
    found = timing(service)
    assert hours(found) == {}
    assert (found["messages"], found["best_hours"]) == (0, [])


@pytest.mark.parametrize("zone", ["Mars/Phobos", "Mars4", "", "utc+3", "'; select 1", "../../etc/passwd"])
def test_what_is_no_time_zone(service: Connection, zone: str) -> None:
    call(service, "select convsync_api.add_page('1001')")
    with pytest.raises(psycopg.DatabaseError) as caught:
        timing(service, zone)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "tz")


def test_what_is_not_there(service: Connection) -> None:
    write(service, "2026-01-05T10:00:00+00:00")
    for page, conversation in (("9", None), (PAGE, 999), ("9", 1)):
        for zone in (None, "Asia/Kolkata"):
            with pytest.raises(psycopg.DatabaseError) as caught:
                timing(service, zone, conversation, page)
            assert caught.value.sqlstate == "ZC001"
    call(service, "select convsync_api.add_page('1001')")
    call(service, "select convsync_api.remove_page('1001')")
    with pytest.raises(psycopg.DatabaseError) as caught:
        timing(service)
    assert caught.value.sqlstate == "ZC001"
