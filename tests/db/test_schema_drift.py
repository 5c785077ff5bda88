"""Schema drift is counted by name: counts add up, names are bounded, and forgotten after their time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import OTHER_PAGE, PAGE, Connect, Connection, at, call, rows

from convsync.facts import Json

MOST = 1000


def drift(name: str, occurrences: Any = 1, page: str = PAGE, source: str = "webhook") -> Json:
    return {"page_id": page, "source": source, "name": name, "occurrences": occurrences}


def record(connection: Connection, *told: Json) -> int:
    names: int = call(
        connection, "select convsync_api.record_schema_drift(%(drift)s)", drift=Jsonb(list(told))
    )
    return names


def listed(connection: Connection, **more: Any) -> list[Json]:
    found = rows(
        connection,
        "select d from convsync_api.list_schema_drift(p_pages => %(pages)s, p_limit => %(limit)s) d",
        **{"pages": None, "limit": 1000, **more},
    )
    return [row["d"] for row in found]


def counts(owner: Connection) -> dict[tuple[str, str, str], int]:
    found = rows(owner, "select page_id, source, name, occurrences from convsync.schema_drift")
    return {(one["page_id"], one["source"], one["name"]): one["occurrences"] for one in found}


def stand_at(connection: Connection, seconds: float) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [at(seconds).isoformat()])


def test_counts_of_one_name_add_up(service: Connection, owner: Connection) -> None:
    assert record(service, drift("message.mood", 2), drift("message.mood", 3), drift("event.x")) == 2
    assert record(service, drift("message.mood", 10**14), drift("message.mood", source="sync")) == 2
    record(service, drift("message.mood", page=OTHER_PAGE), drift("object.user", page=""))
    assert counts(owner) == {
        (PAGE, "webhook", "message.mood"): 10**14 + 5,
        (PAGE, "webhook", "event.x"): 1,
        (PAGE, "sync", "message.mood"): 1,
        (OTHER_PAGE, "webhook", "message.mood"): 1,
        ("", "webhook", "object.user"): 1,
    }
    assert {one["page_id"] for one in listed(service)} == {PAGE, OTHER_PAGE, None}
    assert record(service) == 0


def test_the_newest_name_is_listed_first(service: Connection) -> None:
    for seconds, name in enumerate(("old", "new", "old")):
        stand_at(service, seconds)
        record(service, drift(name))
    new, old = listed(service)
    assert (new["name"], new["first_seen_at"], new["last_seen_at"]) == ("new", *[at(1).isoformat()] * 2)
    assert (old["name"], old["first_seen_at"], old["last_seen_at"]) == (
        "old",
        at(0).isoformat(),
        at(2).isoformat(),
    )
    record(service, drift("elsewhere", page=OTHER_PAGE))
    assert [one["name"] for one in listed(service, pages=[OTHER_PAGE])] == ["elsewhere"]
    assert listed(service, pages=[]) == []
    assert len(listed(service, limit=1)) == len(listed(service, limit=0)) == 1


def test_of_a_page_and_source_a_thousand_names_are_kept_and_no_count_is_lost(
    service: Connection, owner: Connection
) -> None:
    for start in range(0, 1500, 300):
        record(service, *(drift(f"field_{n:04}", 2) for n in range(start, start + 300)))
    found = counts(owner)
    assert len(found) == MOST + 1
    assert found.pop((PAGE, "webhook", "(other)")) == 2 * 500
    assert set(found.values()) == {2}
    # a known name goes on under its own, another Page and source have their own room
    record(service, drift("field_0007"), drift("one more"), drift("one more", source="sync"))
    record(service, drift("one more", page=OTHER_PAGE), drift("(other)"))
    found = counts(owner)
    assert found[PAGE, "webhook", "field_0007"] == 3
    assert found[PAGE, "webhook", "(other)"] == 2 * 500 + 2
    assert (found[PAGE, "sync", "one more"], found[OTHER_PAGE, "webhook", "one more"]) == (1, 1)


def test_several_who_record_at_once_keep_the_bound_and_every_count(
    connect: Connect, owner: Connection
) -> None:
    def write(number: int) -> None:
        connection = connect()
        for turn in range(10):
            record(connection, drift("common"), *(drift(f"{number}_{turn}_{n}") for n in range(50)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    found = counts(owner)
    assert len(found) == MOST + 1
    assert found[PAGE, "webhook", "common"] == 40
    assert sum(found.values()) == 40 + 4 * 10 * 50


def test_a_long_name_is_cut(service: Connection, owner: Connection) -> None:
    record(service, drift("ä" * 500), drift("ä" * 600))
    assert rows(owner, "select name, occurrences from convsync.schema_drift") == [
        {"name": "ä" * 200, "occurrences": 2}
    ]


@pytest.mark.parametrize(
    ("told", "field"),
    [
        (Jsonb(None), "p_drift"),
        (Jsonb({}), "p_drift"),
        (None, "p_drift"),
        (Jsonb([1]), "p_drift[0].page_id"),
        (Jsonb([drift("a"), {**drift("a"), "page_id": None}]), "p_drift[1].page_id"),
        (Jsonb([drift("a", source="sql")]), "p_drift[0].source"),
        (Jsonb([drift("")]), "p_drift[0].name"),
        (Jsonb([drift("a", 0)]), "p_drift[0].occurrences"),
        (Jsonb([drift("a", -1)]), "p_drift[0].occurrences"),
        (Jsonb([drift("a", 1.5)]), "p_drift[0].occurrences"),
        (Jsonb([drift("a", 10**15)]), "p_drift[0].occurrences"),
        (Jsonb([drift("a", None)]), "p_drift[0].occurrences"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_counted(service: Connection, told: Any, field: str) -> None:
    with pytest.raises(psycopg.DatabaseError) as caught:
        service.execute("select convsync_api.record_schema_drift(%s)", [told])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", field)
    assert listed(service) == []


def test_a_name_that_comes_no_more_is_forgotten(service: Connection) -> None:
    for days, name in ((0, "gone"), (20, "kept")):
        stand_at(service, days * 86400)
        record(service, drift(name))
    stand_at(service, 31 * 86400)
    assert call(service, "select convsync_api.expire_schema_drift(30)") == 1
    assert [one["name"] for one in listed(service)] == ["kept"]
    for days in (0, None):
        with pytest.raises(psycopg.DatabaseError) as caught:
            service.execute("select convsync_api.expire_schema_drift(%s)", [days])
        assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_days")


def test_who_forgets_does_not_wait_for_who_records(connect: Connect, service: Connection) -> None:
    busy = connect()
    busy.execute("begin")
    record(busy, drift("a"))
    assert call(service, "select convsync_api.expire_schema_drift(30)") == 0
    busy.execute("commit")
