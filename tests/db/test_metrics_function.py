"""What monitoring asks of the database: waiting dead letters, and how far the feed's readers are behind."""

from __future__ import annotations

from sessions import ADA, BOB, PAGE, Connect, Connection, at, call, eventually, ingest, rows, told

from convsync.facts import DeadLetter, Json


def metrics(connection: Connection) -> Json:
    found: Json = call(connection, "select convsync_api.metrics()")
    return found


def set_clock(connection: Connection, seconds: float) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [at(seconds).isoformat()])


def confirm(connection: Connection, consumer: str, position: str) -> None:
    rows(
        connection,
        "select convsync_api.set_feed_position(%(consumer)s, %(position)s)",
        consumer=consumer,
        position=position,
    )


def positions(connection: Connection, number: int) -> list[str]:
    """The positions of that many changes, once nothing that is still open could come before them."""
    return eventually(
        lambda: (
            [row["next_after"] for row in found]
            if len(found := rows(connection, "select next_after from convsync_api.changes_after(null)"))
            == number
            else []
        )
    )


def test_an_empty_database_has_nothing_that_waits(service: Connection) -> None:
    assert metrics(service) == {
        "dead_letters": [],
        "refused_facts": [],
        "webhook_losses": [],
        "held_back": 0,
        "held_seconds": 0,
        "consumers": [],
    }


def test_open_dead_letters_are_counted_by_source_and_reason(service: Connection) -> None:
    set_clock(service, 0)
    ingest(service, DeadLetter(PAGE, "refused: 22003 out of range", b"1"))
    set_clock(service, 10)
    ingest(
        service,
        DeadLetter(PAGE, "refused: 23514 a check", b"2"),
        DeadLetter("", "message.mid: missing", b"3"),
    )
    ingest(service, DeadLetter(PAGE, "participants[0].id: missing (7)", b"4"), source="sync")
    # What a person settled waits for nobody.
    ingest(service, DeadLetter(PAGE, "messaging: no object", b"5"))
    settled = call(service, "select max(d ->> 'dead_letter_id') from convsync_api.list_dead_letters() d")
    call(service, "select convsync_api.discard_dead_letter(%(id)s::bigint, 'seen')", id=settled)

    set_clock(service, 12.5)
    assert metrics(service)["dead_letters"] == [
        {"source": "sync", "reason": "not_understood", "open": 1, "oldest_seconds": 2.5},
        {"source": "webhook", "reason": "not_understood", "open": 1, "oldest_seconds": 2.5},
        {"source": "webhook", "reason": "refused", "open": 2, "oldest_seconds": 12.5},
    ]


def test_a_consumer_is_behind_by_what_it_has_not_confirmed(service: Connection) -> None:
    for number, sender in enumerate((ADA, BOB, ADA)):
        set_clock(service, number)
        ingest(service, told(f"m_{number}", number, sender=sender))
    first, _, last = positions(service, 3)
    confirm(service, "crm", first)
    confirm(service, "analytics", last)
    set_clock(service, 11)
    assert metrics(service)["consumers"] == [
        {"consumer": "analytics", "behind": 0, "behind_seconds": 0},
        {"consumer": "crm", "behind": 2, "behind_seconds": 10},
    ]
    confirm(service, "crm", last)
    assert [one["behind"] for one in metrics(service)["consumers"]] == [0, 0]


def test_what_is_held_back_is_told_with_its_age_and_counts_against_nobody(
    connect: Connect, service: Connection
) -> None:
    set_clock(service, 0)
    ingest(service, told("m_a0"), told("m_b0", sender=BOB))
    confirm(service, "crm", positions(service, 2)[-1])
    slow = connect("a slow report")
    slow.execute("begin")
    ingest(slow, told("m_a1", 1))
    eventually(lambda: metrics(service)["held_back"] == 0)
    set_clock(service, 5)
    ingest(service, told("m_b1", 1, sender=BOB))
    set_clock(service, 7)
    found = metrics(service)
    assert (found["held_back"], found["held_seconds"]) == (1, 2)
    # It is not to be had yet, so the consumer that has not confirmed it is not slow.
    assert found["consumers"] == [{"consumer": "crm", "behind": 0, "behind_seconds": 0}]
    slow.execute("rollback")
    assert eventually(lambda: metrics(service)["consumers"][0]["behind"] == 1)
    assert metrics(service)["held_back"] == 0


def test_however_many_consumers_are_named_the_answer_stays_short(service: Connection) -> None:
    for number in range(150):
        set_clock(service, number)
        confirm(service, f"c{number:03}", "1-1-1")
    named = [one["consumer"] for one in metrics(service)["consumers"]]
    assert named == [f"c{number:03}" for number in range(50, 150)]
