"""Outgoing webhooks in the database: in order, one deliverer at a time, nothing left out without a word."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from sessions import OTHER_PAGE, PAGE, Connect, Connection, Json, call, eventually, ingest, rows, told

URL = "https://app.example.com/hook"
NOW = "2026-03-01T12:00:00Z"


def add(connection: Connection, name: str = "crm", **more: Any) -> Json:
    given = {"url": URL, "pages": None, "after": None, **more}
    document: Json = call(
        connection,
        """select convsync_api.add_outgoing(p_name => %(name)s, p_url => %(url)s, p_secret_sealed => 'sealed',
           p_secret_key_id => 'k1', p_pages => %(pages)s::text[], p_after => %(after)s)""",
        name=name,
        **given,
    )
    return document


def listed(connection: Connection, name: str = "crm") -> Json:
    found = [row["list_outgoing"] for row in rows(connection, "select convsync_api.list_outgoing()")]
    [one] = [document for document in found if document["name"] == name]
    return dict(one)


def claim(connection: Connection, batch: int = 100, lease: float = 30) -> Json | None:
    found = rows(
        connection,
        """select * from convsync_api.claim_outgoing(p_lease_seconds => %(lease)s::numeric,
           p_batch => %(batch)s)""",
        lease=lease,
        batch=batch,
    )
    return found[0] if found else None


def claimed(connection: Connection, **more: Any) -> Json:
    """What is claimed, as soon as no other transaction of the server holds the feed back."""
    found: Json = eventually(lambda: claim(connection, **more))
    return found


def record(connection: Connection, batch: Json, delivered: bool, **more: Any) -> str:
    given = {"status": None, "error": None, "retry": 0, "attempts": 3, **more}
    state: str = call(
        connection,
        """select convsync_api.record_outgoing(p_name => %(name)s, p_fence => %(fence)s,
           p_delivered => %(delivered)s, p_status => %(status)s, p_error => %(error)s,
           p_retry_seconds => %(retry)s::numeric, p_attempts => %(attempts)s)""",
        name=batch["name"],
        fence=batch["fence"],
        delivered=delivered,
        **given,
    )
    return state


def moved(connection: Connection, seconds: float) -> None:
    """Let the clock of this session stand that much later."""
    connection.execute(
        "select set_config('convsync.now', (%s::timestamptz + %s * interval '1 second')::text, false)",
        [NOW, seconds],
    )


def versions(batch: Json) -> list[int]:
    return [change["version"] for change in batch["changes"]]


def refused(connection: Connection, sqlstate: str, **more: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        add(connection, **more)
    assert caught.value.sqlstate == sqlstate
    return caught.value


@pytest.fixture
def service(service: Connection) -> Connection:
    moved(service, 0)
    return service


def test_a_new_one_is_told_what_changes_from_now_on(service: Connection) -> None:
    ingest(service, told("m_before"))
    eventually(lambda: rows(service, "select * from convsync_api.changes_after(null)"))
    added = add(service)
    assert (added["state"], added["delivered"], added["dead_letter"]) == ("active", 0, None)
    assert "sealed" not in str(added)
    assert claim(service) is None
    ingest(service, told("m_1", 1))
    batch = claimed(service)
    assert (batch["name"], batch["url"], batch["attempt"]) == ("crm", URL, 1)
    assert bytes(batch["secret_sealed"]) == b"sealed"
    [change] = batch["changes"]
    assert (change["page_id"], change["version"], change["kinds"]) == (PAGE, 2, ["message"])
    assert set(change) == {"position", "page_id", "conversation_id", "version", "kinds", "at"}


def test_batches_come_in_order_and_the_next_only_after_the_one_before(service: Connection) -> None:
    add(service)
    for number in range(5):
        ingest(service, told(f"m_{number}", number))
    eventually(lambda: len(rows(service, "select * from convsync_api.changes_after(null)")) == 5)
    seen = []
    while len(seen) < 5:
        batch = claimed(service, batch=2)
        assert claim(service) is None, "a second batch while the first is on its way"
        assert record(service, batch, True, status=200) == "active"
        seen += versions(batch)
    assert seen == [1, 2, 3, 4, 5]
    assert claim(service) is None
    known = listed(service)
    assert (known["delivered"], known["attempts"], known["last_status"]) == (5, 0, 200)
    assert known["position"] == batch["changes"][-1]["position"]


def test_what_was_not_delivered_comes_again_as_the_same_batch(service: Connection) -> None:
    add(service)
    ingest(service, told("m_1"))
    first = claimed(service)
    ingest(service, told("m_2", 1))
    assert record(service, first, False, status=500, retry=60) == "active"
    assert claim(service) is None, "it is not due yet"
    assert listed(service)["next_attempt_at"] == "2026-03-01T12:01:00+00:00"
    moved(service, 60)
    again = claimed(service)
    assert again["webhook_id"] == first["webhook_id"]
    assert (again["changes"], again["attempt"]) == (first["changes"], 2)
    record(service, again, True, status=204)
    other = claimed(service)
    assert other["webhook_id"] != first["webhook_id"]
    assert versions(other) == [2]


def test_after_its_attempts_it_is_a_dead_letter_and_the_webhook_waits(service: Connection) -> None:
    add(service)
    ingest(service, told("m_1"))
    for attempt in range(1, 4):
        batch = claimed(service)
        assert batch["attempt"] == attempt
        state = record(service, batch, False, status=502, error="no" * 400)
    assert state == "paused"
    known = listed(service)
    assert (known["state"], known["pause_reason"]) == ("paused", "not_delivered")
    letter = known["dead_letter"]
    assert (letter["changes"], letter["attempts"], letter["last_status"]) == (batch["changes"], 3, 502)
    assert (letter["webhook_id"], len(letter["last_error"])) == (batch["webhook_id"], 500)
    ingest(service, told("m_2", 1))
    moved(service, 10 * 86_400)
    assert claim(service) is None


@pytest.mark.parametrize(("skip", "wanted"), [(False, [1]), (True, [2])])
def test_it_goes_on_with_what_could_not_be_delivered_or_without_it(
    service: Connection, owner: Connection, skip: bool, wanted: list[int]
) -> None:
    add(service)
    ingest(service, told("m_1"))
    batch = claimed(service)
    record(service, batch, False, attempts=1)
    ingest(service, told("m_2", 1))
    resumed = call(
        service, "select convsync_api.resume_outgoing(p_name => 'crm', p_skip => %(skip)s)", skip=skip
    )
    assert (resumed["state"], resumed["dead_letter"], resumed["attempts"]) == ("active", None, 0)
    again = claimed(service)
    assert (versions(again), again["attempt"]) == (wanted, 1)
    assert (again["webhook_id"] == batch["webhook_id"]) == (not skip)
    [letter] = rows(owner, "select resolution from convsync.outgoing_dead_letters")
    assert letter["resolution"] == ("skipped" if skip else "resumed")


def test_nothing_is_left_out_of_one_that_is_not_paused(service: Connection) -> None:
    add(service)
    with pytest.raises(psycopg.Error) as caught:
        service.execute("select convsync_api.resume_outgoing('crm', true)")
    assert caught.value.sqlstate == "ZC003"
    # To try again at once is never wrong.
    assert call(service, "select convsync_api.resume_outgoing('crm')")["state"] == "active"


def test_one_process_delivers_and_another_takes_over_when_it_is_gone(
    service: Connection, connect: Connect
) -> None:
    other = connect()
    moved(other, 29)
    add(service)
    ingest(service, told("m_1"))
    batch = claimed(service)
    assert claim(other) is None
    moved(other, 31)
    taken = claimed(other)
    assert (taken["webhook_id"], taken["attempt"]) == (batch["webhook_id"], 2)
    with pytest.raises(psycopg.Error) as caught:
        record(service, batch, True)
    assert caught.value.sqlstate == "ZC004"
    assert record(other, taken, True) == "active"
    with pytest.raises(psycopg.Error) as caught:
        record(other, taken, True)
    assert caught.value.sqlstate == "ZC004", "twice"


def test_two_that_claim_at_once_do_not_wait_for_each_other(service: Connection, connect: Connect) -> None:
    other = connect()
    moved(other, 0)
    add(service)
    add(service, "mail")
    ingest(service, told("m_1"))
    eventually(lambda: rows(service, "select * from convsync_api.changes_after(null)"))
    service.execute("begin")
    first = claim(service)
    other.execute("set statement_timeout = '10s'")
    second = claim(other)
    service.execute("commit")
    assert first is not None
    assert second is not None
    assert {first["name"], second["name"]} == {"crm", "mail"}


def test_one_for_some_pages_is_told_of_these_and_is_not_behind_for_the_others(service: Connection) -> None:
    add(service, pages=[OTHER_PAGE])
    ingest(service, told("m_1"))
    end = "select convsync_api.feed_end()"
    eventually(lambda: rows(service, "select * from convsync_api.changes_after(null)"))
    assert claim(service) is None
    assert listed(service)["position"] == call(service, end)
    ingest(service, told("m_2", page=OTHER_PAGE))
    batch = claimed(service)
    assert [change["page_id"] for change in batch["changes"]] == [OTHER_PAGE]
    # Other Pages make another batch of the same place.
    add(service, pages=[PAGE])
    moved(service, 31)
    assert claim(service) is None


def test_its_position_is_a_consumers_and_may_be_set_back(service: Connection) -> None:
    start = add(service)["position"]
    ingest(service, told("m_1"))
    batch = claimed(service)
    record(service, batch, True)
    assert claim(service) is None
    service.execute("select convsync_api.set_feed_position('outgoing:crm', %s)", [start])
    assert claimed(service)["changes"] == batch["changes"]


def test_a_position_that_was_moved_meanwhile_stays_where_it_was_put(service: Connection) -> None:
    start = add(service)["position"]
    ingest(service, told("m_1"))
    record(service, claimed(service), True)
    ingest(service, told("m_2", 1))
    batch = claimed(service)
    service.execute("select convsync_api.set_feed_position('outgoing:crm', %s)", [start])
    assert record(service, batch, True) == "active"
    assert versions(claimed(service)) == [1, 2]


def test_one_whose_changes_have_expired_waits_until_somebody_says_so(
    service: Connection, owner: Connection
) -> None:
    add(service)
    for number in range(3):
        ingest(service, told(f"m_{number}", number))
    eventually(lambda: len(rows(service, "select * from convsync_api.changes_after(null)")) == 3)
    owner.execute("update convsync.conversation_changes set changed_at = changed_at - interval '400 days'")
    moved(service, 0)
    assert eventually(lambda: call(service, "select convsync_api.expire_changes(30, null, 2)")) == 2
    assert claim(service) is None
    known = listed(service)
    assert (known["state"], known["pause_reason"]) == ("paused", "changes_expired")
    call(service, "select convsync_api.resume_outgoing('crm')")
    assert claim(service) is None
    assert listed(service)["state"] == "paused"
    call(service, "select convsync_api.resume_outgoing('crm', true)")
    assert claim(service) is None
    assert listed(service)["state"] == "active"
    ingest(service, told("m_9", 9))
    assert versions(claimed(service)) == [4]


def test_to_add_it_again_changes_it_and_leaves_it_where_it_stood(service: Connection) -> None:
    add(service)
    ingest(service, told("m_1"))
    eventually(lambda: rows(service, "select * from convsync_api.changes_after(null)"))
    changed = add(service, url="https://app.example.com/other")
    assert changed["url"] == "https://app.example.com/other"
    batch = claimed(service)
    assert (batch["url"], versions(batch)) == ("https://app.example.com/other", [1])
    record(service, batch, True)
    add(service, after="0-0-0")
    assert versions(claimed(service)) == [1]


def test_what_is_removed_leaves_nothing(service: Connection, owner: Connection) -> None:
    add(service)
    ingest(service, told("m_1"))
    batch = claimed(service)
    record(service, batch, False, attempts=1)
    assert call(service, "select convsync_api.remove_outgoing('crm')")["name"] == "crm"
    for query in (
        "select from convsync.outgoing_webhooks",
        "select from convsync.outgoing_dead_letters",
        "select from convsync.feed_consumers",
    ):
        assert owner.execute(query).fetchall() == []
    for query in (
        "select convsync_api.remove_outgoing('crm')",
        "select convsync_api.resume_outgoing('crm')",
        "select convsync_api.record_outgoing('crm', 1, true)",
    ):
        with pytest.raises(psycopg.Error) as caught:
            service.execute(query)
        assert caught.value.sqlstate == "ZC001"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": ""}, "p_name"),
        ({"name": "a b"}, "p_name"),
        ({"name": "x" * 101}, "p_name"),
        ({"url": "ftp://app.example.com"}, "p_url"),
        ({"url": "https://app.example.com/a b"}, "p_url"),
        ({"url": None}, "p_url"),
        ({"pages": []}, "p_pages"),
        ({"pages": [""]}, "p_pages"),
        ({"pages": [None]}, "p_pages"),
        ({"after": "x"}, "after"),
        ({"after": "999999999-1-1"}, "after"),
    ],
)
def test_what_is_wrong_with_it_is_named(service: Connection, wrong: dict[str, Any], field: str) -> None:
    found = refused(service, "ZC003", **wrong)
    assert found.diag.message_hint == field
    assert rows(service, "select convsync_api.list_outgoing()") == []


@pytest.mark.parametrize("seconds", [None, -1, 604_801])
def test_it_is_tried_again_within_a_week(service: Connection, seconds: float | None) -> None:
    add(service)
    ingest(service, told("m_1"))
    batch = claimed(service)
    with pytest.raises(psycopg.Error) as caught:
        record(service, batch, False, retry=seconds)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_retry_seconds")


@pytest.mark.parametrize("seconds", [None, 0, 3601])
def test_a_lease_has_bounds(service: Connection, seconds: float | None) -> None:
    with pytest.raises(psycopg.Error) as caught:
        service.execute("select * from convsync_api.claim_outgoing(%s::numeric)", [seconds])
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", "p_lease_seconds")
