"""What is claimed of a Page, and on which ground: certificate, checksum, loss meter, a message's life."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import (
    ADA,
    BOB,
    PAGE,
    START,
    Connect,
    Connection,
    at,
    call,
    ingest,
    one_behind_the_other,
    rows,
    told,
)

from convsync.facts import DeadLetter, Edit, Fact, Gone, Json, Message, Reaction, Thread, Unsend, dump

MID, MINUTE = "m_$cAAB/1", 60


def clock(connection: Connection, seconds: float) -> None:
    connection.execute("select set_config('convsync.now', %s, false)", [at(seconds).isoformat()])


def read(
    mid: str, seconds: float = 0, observed: float = 60, text: str | None = "hello", sender: str = ADA
) -> Message:
    """A message as Graph tells it, in whole seconds."""
    return Message(PAGE, sender, mid, "in", at(int(seconds)), text, observed_at=at(observed))


@pytest.fixture
def page(service: Connection) -> Connection:
    clock(service, 0)
    call(service, "select convsync_api.add_page(%(page)s)", page=PAGE)
    return service


def purge(connection: Connection, before: datetime) -> None:
    for _ in ("sets the horizon", "deletes"):
        call(connection, "select convsync_api.purge_events(%(page)s, %(before)s)", page=PAGE, before=before)


def certificate(connection: Connection) -> Json:
    found: Json = call(connection, "select convsync_api.certificate(%(page)s)", page=PAGE)
    assert found == found | document(connection)["certificate"]
    # The whole is the sum of its parts.
    each = certified(connection, limit=1000)
    assert found["conversations"] == len(each)
    assert found["complete"] == sum(one["complete"] for one in each)
    assert found["unreadable"] == sum(one["unreadable"] or 0 for one in each)
    return found


def document(connection: Connection) -> Json:
    found: Json = call(connection, "select convsync_api.get_page(%(page)s)", page=PAGE)
    return found


def counts(connection: Connection) -> tuple[int, int, int, bool]:
    found = certificate(connection)
    return found["complete"], found["conversations"], found["unreadable"], found["whole"]


def certified(connection: Connection, **options: Any) -> list[Json]:
    options = {"after": 0, "limit": 100, "incomplete": False} | options
    return rows(
        connection,
        """select * from convsync_api.certificate_conversations(%(page)s, %(after)s, %(limit)s,
           %(incomplete)s)""",
        page=PAGE,
        **options,
    )


def listed(number: int, read_as: str = "complete", unreadable: int = 0, count: int = 1) -> Json:
    return {
        "thread_id": f"t_{number}",
        "sender_id": f"200{number}",
        "updated_time": at(0).isoformat(),
        "message_count": count,
        "newest_id": f"m_{number}",
        "newest": at(0).isoformat(),
        "oldest": at(0).isoformat(),
        "read": read_as,
        "next_cursor": "c" if read_as == "more" else None,
        "unreadable": unreadable,
    }


class Sync:
    """A run of the Page, page by page."""

    def __init__(self, connection: Connection, mode: str = "full") -> None:
        self.connection = connection
        [begun] = rows(
            connection, "select * from convsync_api.begin_sync(%(page)s, %(mode)s)", page=PAGE, mode=mode
        )
        self.run = {"page": PAGE, "run": begun["run_id"], "fence": begun["fence"]}

    def work(self) -> Json:
        [work] = rows(
            self.connection,
            "select * from convsync_api.next_sync_work(%(page)s, %(run)s, %(fence)s)",
            **self.run,
        )
        return work

    def apply(
        self,
        facts: Sequence[Fact] = (),
        threads: Sequence[Json] = (),
        *,
        next_cursor: str | None = None,
        unreadable: int = 0,
    ) -> None:
        work = self.work()
        call(
            self.connection,
            """select applied from convsync_api.apply_sync_page(p_page_id => %(page)s, p_run_id => %(run)s,
               p_fence => %(fence)s, p_kind => %(kind)s, p_thread_id => %(thread)s, p_cursor => %(cursor)s,
               p_next_cursor => %(next)s, p_facts => %(facts)s,
               p_observed_at => current_setting('convsync.now')::timestamptz,
               p_threads => %(threads)s, p_unreadable => %(unreadable)s)
            """,
            kind=work["kind"],
            thread=work["thread_id"],
            cursor=work["last_cursor"],
            next=next_cursor,
            facts=dump(facts),
            threads=Jsonb(list(threads)),
            unreadable=unreadable,
            **self.run,
        )

    def snapshots(self, *numbers: int) -> list[Fact]:
        return [
            Thread(PAGE, f"200{n}", f"t_{n}", at(1), {"name": f"Person {n}", "reported_count": 1})
            for n in numbers
        ]

    def walk(self, *threads: Json) -> None:
        """The whole list on one page, and again as the second pass wants it."""
        facts: list[Fact] = self.snapshots(*(int(one["thread_id"][2:]) for one in threads))
        facts += [
            read(one["newest_id"], 0, 1, sender=one["sender_id"])
            for one in threads
            if one["read"] != "unread"
        ]
        self.apply(facts, threads)

    def fail(self, error: str = "server") -> None:
        work = self.work()
        call(
            self.connection,
            """select convsync_api.fail_sync_batch(%(page)s, %(run)s, %(fence)s, %(kind)s, %(thread)s,
               %(cursor)s, 3, %(error)s)""",
            kind=work["kind"],
            thread=work["thread_id"],
            cursor=work["last_cursor"],
            error=Jsonb({"class": error}),
            **self.run,
        )

    def finish(self) -> str:
        ended: str = call(
            self.connection, "select convsync_api.finish_sync(%(page)s, %(run)s, %(fence)s)", **self.run
        )
        return ended


# --- the certificate


def test_nothing_is_claimed_before_a_sync(page: Connection) -> None:
    assert counts(page) == (0, 0, 0, False)
    assert certificate(page)["list_known"] is False
    ingest(page, told("m_1"))

    assert counts(page) == (0, 1, 0, False)
    [one] = certified(page)
    assert (one["complete"], one["verified_at"], one["unreadable"], one["stored_count"]) == (
        False,
        None,
        None,
        1,
    )
    with pytest.raises(psycopg.DatabaseError) as error:
        call(page, "select convsync_api.certificate('nobody')")
    assert error.value.sqlstate == "ZC001"


def test_only_threads_read_to_their_end_with_all_that_is_in_them_are_complete(page: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    threads = [listed(1), listed(2, "more", count=9), listed(3, unreadable=2), listed(4, "unread")]
    sync.walk(*threads)
    assert counts(page) == (1, 4, 2, False)

    clock(page, 6)
    sync.apply([read("m_2b", sender="2002", observed=6)])  # the rest of t_2
    assert counts(page) == (2, 4, 2, False)
    sync.fail()  # t_4
    assert counts(page) == (2, 4, 2, False)
    sync.walk(*threads[:3])
    assert sync.finish() == "partial"

    found = certificate(page)
    assert (found["list_known"], found["whole"]) == (True, False)
    assert found["list_run"] == {
        "run_id": str(sync.run["run"]),
        "mode": "full",
        "status": "partial",
        "started_at": at(0).isoformat(),
        "finished_at": at(6).isoformat(),
    }
    whole, deep, unreadable, failed = certified(page)
    assert [one["complete"] for one in (whole, deep, unreadable, failed)] == [True, True, False, False]
    assert (whole["verified_at"], whole["verified_run_id"]) == (at(5), sync.run["run"])
    assert (whole["reported_count"], whole["stored_count"]) == (1, 1)
    assert (unreadable["unreadable"], failed["failed_at"]) == (2, at(6))
    assert [one["sender_id"] for one in certified(page, incomplete=True)] == ["2003", "2004"]


def test_whole_when_every_conversation_of_a_known_list_is_complete(page: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    sync.walk(listed(1), listed(2))
    sync.walk(listed(1), listed(2))
    assert counts(page) == (2, 2, 0, False)  # the list is not known before its run has ended
    assert sync.finish() == "succeeded"

    assert counts(page) == (2, 2, 0, True)
    assert certificate(page)["verified_since"] == at(5).isoformat()
    # A new person is not verified by having written.
    ingest(page, told("m_9", 10, sender="2009"))
    assert counts(page) == (2, 3, 0, False)


def test_complete_one_whose_later_read_fails_is_complete_no_more_until_it_is_read(page: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    sync.walk(listed(1))
    sync.walk(listed(1))
    sync.finish()
    assert counts(page) == (1, 1, 0, True)

    clock(page, 100)
    moved = listed(1, "unread", count=2) | {"updated_time": at(90).isoformat(), "newest_id": "m_1b"}
    sync = Sync(page, "incremental")
    sync.apply(sync.snapshots(1), [moved])
    sync.fail()
    assert sync.finish() == "partial"
    assert counts(page) == (0, 1, 0, False)

    clock(page, 200)
    sync = Sync(page, "incremental")
    sync.apply(sync.snapshots(1), [moved])
    sync.apply([read("m_1b", 90, 200, sender="2001")])
    assert sync.finish() == "succeeded"
    assert counts(page) == (1, 1, 0, True)


def test_verify_and_the_certificate_mean_the_same_by_complete(page: Connection) -> None:
    """A thread was read to its end, and cannot be read any more: its history is no longer proved."""

    def complete() -> tuple[bool, bool, list[bool]]:
        found = certificate(page)
        return (
            call(page, "select convsync_api.history_complete(%(page)s)", page=PAGE),
            found["complete"] == found["conversations"],
            [one["complete"] for one in certified(page)],
        )

    run = Sync(page)
    run.walk(listed(1))
    run.apply()
    run.finish()
    assert complete() == (True, True, [True])
    clock(page, MINUTE)
    run = Sync(page)
    run.apply(run.snapshots(1), [listed(1, "more", count=200)], next_cursor="c1")
    run.fail()
    assert complete() == (False, False, [False])


def test_unreadable_message_found_later_takes_the_completeness_away(page: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    sync.walk(listed(1))
    sync.walk(listed(1))
    sync.finish()
    clock(page, 100)
    sync = Sync(page)
    moved = listed(1, count=2) | {"updated_time": at(90).isoformat(), "newest_id": "m_1b", "unreadable": 1}
    sync.apply(sync.snapshots(1), [moved])
    assert counts(page) == (0, 1, 1, False)


def test_erased_and_deleted_are_not_counted_among_the_complete(page: Connection, owner: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    sync.walk(listed(1), listed(2, unreadable=3), listed(3))
    sync.walk(listed(1), listed(2, unreadable=3), listed(3))
    sync.finish()
    assert counts(page) == (2, 3, 3, False)

    call(page, "select convsync_api.erase_contact(%(page)s, '2002')", page=PAGE)
    owner.execute(
        "update convsync.messenger_conversations set deleted_at = %s where sender_id = '2003'", [at(9)]
    )

    assert counts(page) == (1, 1, 0, True)
    found = certificate(page)
    assert (found["erased"], found["deleted"]) == (1, 1)
    assert [one["sender_id"] for one in certified(page)] == ["2001"]


def test_conversations_come_in_parts(page: Connection) -> None:
    ingest(page, *(told(f"m_{n}", sender=f"20{n}") for n in range(25)))
    seen: list[int] = []
    while part := certified(page, after=seen[-1] if seen else 0, limit=10):
        seen += [one["conversation_id"] for one in part]
    assert seen == [one["conversation_id"] for one in certified(page)]
    assert len(seen) == 25
    assert len(certified(page, limit=0)) == 1


def test_purge_is_told(page: Connection) -> None:
    purge(page, at(-100))
    assert certificate(page)["purged_before"] == at(-100).isoformat()


# --- the checksum


def checksum(connection: Connection, since: Any = None) -> Json:
    found: Json = call(
        connection, "select convsync_api.mirror_checksum(%(page)s, %(since)s)", page=PAGE, since=since
    )
    return {key: value for key, value in found.items() if key != "as_of"}


def checksums(connection: Connection) -> dict[str, str]:
    found = rows(connection, "select * from convsync_api.conversation_checksums(%(page)s)", page=PAGE)
    return {one["sender_id"]: one["checksum"] for one in found}


HELD: list[Fact] = [
    told("m_1", 0.25, "one"),
    told("m_2", 1, "two"),
    told("m_3", 2, "three", sender=BOB),
    Edit(PAGE, ADA, "m_2", at(30), 1, "two, edited"),
    told("m_4", 3, "gone"),
    Unsend(PAGE, ADA, "m_4", at(40)),
]


def test_checksum_does_not_depend_on_order_or_number_of_tellings(page: Connection, owner: Connection) -> None:
    ingest(page, *HELD)
    first, each = checksum(page), checksums(page)
    assert (first["messages"], first["deleted"], first["conversations"]) == (3, 1, 2)
    assert len({first["checksum"], *each.values(), "0" * 32}) == 4
    owner.execute("delete from convsync.contact_interaction_events")
    for fact in reversed(HELD * 2):
        ingest(page, fact)
    assert (checksum(page), checksums(page)) == (first, each)


def test_webhook_and_graph_copy_of_the_same_messages_give_the_same_checksum(
    page: Connection, owner: Connection
) -> None:
    ingest(page, told("m_1", 0.25, "one"), told("m_3", 2, "three", sender=BOB))
    first = checksum(page)
    owner.execute("delete from convsync.contact_interaction_events")
    ingest(page, read("m_1", 0, text="one"), read("m_3", 2, text="three", sender=BOB), source="sync")
    assert checksum(page) == first


CHANGES: dict[str, LiteralString] = {
    "body": "update convsync.contact_interaction_events set text_original = 'One' where message_id = 'm_1'",
    "second": """update convsync.contact_interaction_events
        set event_timestamp = event_timestamp + interval '1 second' where message_id = 'm_1'""",
    "direction": "update convsync.contact_interaction_events set direction = 'out' where message_id = 'm_1'",
    "id": "update convsync.contact_interaction_events set message_id = 'm_0' where message_id = 'm_1'",
    "owner": """update convsync.contact_interaction_events e set conversation_id = c.conversation_id
        from convsync.messenger_conversations c where c.sender_id = '2002' and message_id = 'm_1'""",
    "missing": "delete from convsync.contact_interaction_events where message_id = 'm_1'",
}


@pytest.mark.parametrize("change", [*CHANGES, "unsent"])
def test_any_difference_changes_the_checksum(page: Connection, owner: Connection, change: str) -> None:
    ingest(page, *HELD)
    first, each = checksum(page), checksums(page)
    if change == "unsent":
        ingest(page, Unsend(PAGE, ADA, "m_1", at(50)))
    else:
        owner.execute(CHANGES[change])
    assert checksum(page)["checksum"] != first["checksum"]
    assert checksums(page)[ADA] != each[ADA]
    assert (checksums(page)[BOB] == each[BOB]) == (change != "owner")


def test_checksum_knows_erasure_and_purge(page: Connection, owner: Connection) -> None:
    """Who kept more compares from the horizon on, and person by person without the erased one."""
    ingest(page, *HELD)
    everything, each = checksum(page), checksums(page)
    later = checksum(page, since=at(1))
    clock(page, 100)

    purge(page, at(1))
    assert checksum(page) == later != everything
    assert later["from"] is not None

    call(page, "select convsync_api.erase_contact(%(page)s, %(sender)s)", page=PAGE, sender=ADA)
    left = checksum(page)
    assert checksums(page) == {BOB: each[BOB]}
    assert (left["checksum"], left["messages"], left["erased"]) == (each[BOB], 1, 1)


# --- the loss meter


@pytest.fixture
def subscribed(page: Connection) -> Connection:
    call(page, "select convsync_api.mark_subscribed(%(page)s)", page=PAGE)
    return page


def losses(
    connection: Connection, since: float = -86400, until: float | None = None
) -> dict[str, tuple[int, int]]:
    found = rows(
        connection,
        "select * from convsync_api.webhook_losses(%(page)s, %(since)s, %(until)s)",
        page=PAGE,
        since=at(since),
        until=None if until is None else at(until),
    )
    return {
        f"{(one['hour'] - START) / timedelta(hours=1):g}": (one["received"], one["sent"]) for one in found
    }


def test_message_that_a_sync_told_first_counts_after_the_grace(subscribed: Connection) -> None:
    clock(subscribed, 600)
    ingest(subscribed, read("m_1", 500, 600), source="sync")
    assert losses(subscribed) == {}
    clock(subscribed, 500 + 15 * MINUTE - 1)
    assert losses(subscribed) == {}
    clock(subscribed, 500 + 15 * MINUTE)
    assert losses(subscribed) == {"0": (1, 0)}
    assert document(subscribed)["webhook_losses"] == {
        "since": at(0).isoformat(),
        "grace_seconds": 900,
        "last_day": 1,
    }
    assert call(subscribed, "select convsync_api.metrics() -> 'webhook_losses'") == [
        {"page_id": PAGE, "last_day": 1}
    ]
    # A day later it is of the past, and still in its hour.
    clock(subscribed, 500 + 86401)
    assert document(subscribed)["webhook_losses"]["last_day"] == 0
    assert call(subscribed, "select convsync_api.metrics() -> 'webhook_losses'") == []
    assert losses(subscribed) == {"0": (1, 0)}


def test_losses_are_counted_by_hour_and_way(subscribed: Connection) -> None:
    echo = Message(PAGE, ADA, "m_3", "out", at(3700), "an answer", observed_at=at(9000))
    clock(subscribed, 9000)
    ingest(subscribed, read("m_1", 100, 9000), read("m_2", 3600, 9000), echo, source="sync")
    assert losses(subscribed) == {"0": (1, 0), "1": (1, 1)}
    assert losses(subscribed, 101) == {"1": (1, 1)}
    assert losses(subscribed, 0, 3600) == {"0": (1, 0)}


@pytest.mark.parametrize("webhook_first", [True, False])
def test_webhook_that_came_or_comes_late_is_no_loss(subscribed: Connection, webhook_first: bool) -> None:
    copies = [(told("m_1", 100.5), "webhook"), (read("m_1", 100, 600), "sync")]
    for fact, source in copies if webhook_first else reversed(copies):
        ingest(subscribed, fact, source=source)
    ingest(subscribed, read("m_1", 100, 700), source="sync")
    clock(subscribed, 10_000)
    assert losses(subscribed) == {}


def test_loss_stays_while_only_other_webhooks_come(subscribed: Connection) -> None:
    ingest(subscribed, read("m_1", 100, 600), source="sync")
    ingest(
        subscribed,
        told("m_2", 120),
        Edit(PAGE, ADA, "m_1", at(130), 1, "edited"),
        Reaction(PAGE, ADA, "m_1", at(140), ADA, "react", "love", "x"),
    )
    ingest(subscribed, read("m_1", 100, 700), source="sync")
    ingest(subscribed, told("m_1", 100), source="import")
    clock(subscribed, 10_000)
    assert losses(subscribed) == {"0": (1, 0)}


def test_what_was_sent_before_webhooks_came_is_no_loss(page: Connection) -> None:
    ingest(page, read("m_0", 100, 600), source="sync")
    clock(page, 1000)
    ingest(page, told("m_1", 1000))  # the first webhook
    clock(page, 2000)
    call(page, "select convsync_api.mark_subscribed(%(page)s)", page=PAGE)
    ingest(page, read("m_2", 999, 2000), read("m_3", 1001, 2000), source="sync")
    clock(page, 10_000)
    assert losses(page) == {"0": (1, 0)}
    assert document(page)["webhook_losses"]["since"] == at(1000).isoformat()
    # A Page that was removed has no webhooks any more.
    call(page, "select convsync_api.remove_page(%(page)s)", page=PAGE)
    call(page, "select convsync_api.add_page(%(page)s)", page=PAGE)
    ingest(page, read("m_4", 5000, 10_000), source="sync")
    clock(page, 20_000)
    assert losses(page) == {"0": (1, 0)}
    assert document(page)["webhook_losses"]["since"] is None


def test_what_its_sender_took_back_is_no_loss(subscribed: Connection) -> None:
    ingest(subscribed, read("m_1", 100, 600), read("m_2", 100, 600), source="sync")
    ingest(subscribed, Unsend(PAGE, ADA, "m_1", at(700)))
    clock(subscribed, 10_000)
    assert losses(subscribed) == {"0": (1, 0)}


def test_what_is_gone_with_its_conversation_is_no_loss_and_not_held(subscribed: Connection) -> None:
    """A mirror that is made later never hears of it."""
    ingest(subscribed, read("m_1", 100, 600), read("m_2", 100, 600, sender=BOB), source="sync")
    clock(subscribed, 10_000)
    assert losses(subscribed) == {"0": (2, 0)}
    ada = checksums(subscribed)[ADA]
    ingest(subscribed, Gone(PAGE, BOB, at(9000)), source="sync")
    assert losses(subscribed) == {"0": (1, 0)}
    assert life(subscribed, "m_2")["loss"]["counts"] is False
    assert ("conversation_gone", at(9000).isoformat()) in [
        (one["what"], one["at"]) for one in life(subscribed, "m_2")["life"]
    ]
    assert checksums(subscribed) == {ADA: ada, BOB: "0" * 32}
    assert (checksum(subscribed)["checksum"], checksum(subscribed)["messages"]) == (ada, 1)


def test_event_that_is_no_message_and_other_ways_in_are_no_loss(subscribed: Connection) -> None:
    referral = Message(
        PAGE, ADA, "r_1", "in", at(100), None, "referral", in_thread=False, observed_at=at(600)
    )
    ingest(subscribed, referral, source="sync")
    ingest(subscribed, told("m_1", 100), source="import")
    ingest(subscribed, told("m_2", 100), source="sql")
    clock(subscribed, 10_000)
    assert losses(subscribed) == {}


def test_erased_and_purged_losses_are_gone(subscribed: Connection, owner: Connection) -> None:
    ingest(
        subscribed,
        read("m_1", 100, 600),
        read("m_2", 100, 600, sender=BOB),
        read("m_3", 200, 600, sender=BOB),
        source="sync",
    )
    clock(subscribed, 10_000)
    left = "select message_id from convsync.webhook_losses order by 1"
    call(subscribed, "select convsync_api.erase_contact(%(page)s, %(sender)s)", page=PAGE, sender=ADA)
    assert [one["message_id"] for one in rows(owner, left)] == ["m_2", "m_3"]
    purge(subscribed, at(150))
    assert [one["message_id"] for one in rows(owner, left)] == ["m_3"]


def test_loss_that_turns_out_to_be_of_before_an_erasure_is_gone(
    subscribed: Connection, owner: Connection
) -> None:
    clock(subscribed, 100)
    call(subscribed, "select convsync_api.erase_contact(%(page)s, %(sender)s)", page=PAGE, sender=ADA)
    ingest(subscribed, read("m_1", 101, 200), source="sync")
    left = "select message_id from convsync.webhook_losses"
    assert len(rows(owner, left)) == 1
    ingest(subscribed, told("m_1", 99))
    assert rows(owner, left) == []


def test_grace_is_what_the_service_says(subscribed: Connection) -> None:
    ingest(subscribed, read("m_1", 100, 600), source="sync")
    clock(subscribed, 160)
    call(subscribed, "select convsync_api.set_loss_grace(60)")
    assert losses(subscribed) == {"0": (1, 0)}
    call(subscribed, "select convsync_api.set_loss_grace(61)")
    assert losses(subscribed) == {}
    with pytest.raises(psycopg.DatabaseError) as error:
        call(subscribed, "select convsync_api.set_loss_grace(-1)")
    assert error.value.sqlstate == "ZC003"


@pytest.mark.parametrize("late", ["webhook", "sync"])
def test_two_copies_at_once_are_no_loss_whoever_is_first(
    subscribed: Connection, connect: Connect, owner: Connection, late: str
) -> None:
    """Also where they are told of two conversations, so that no lock of one keeps them apart."""
    first, second = connect(), connect()
    for connection in (first, second):
        clock(connection, 600)
    whose = {"webhook": ADA, "sync": "thread:t_1"}

    def say(connection: Connection, source: str) -> Any:
        fact = read("m_1", 100, 600, sender=whose[source]) if source == "sync" else told("m_1", 100.5)
        return ingest(connection, fact, source=source)

    early = "sync" if late == "webhook" else "webhook"
    one_behind_the_other(owner, first, lambda: say(first, early), second, lambda: say(second, late))
    clock(subscribed, 10_000)
    assert losses(subscribed) == {}


# --- the life of a message


def life(connection: Connection, mid: str = MID) -> Json:
    found: Json = call(
        connection, "select convsync_api.explain_message(%(page)s, %(mid)s)", page=PAGE, mid=mid
    )
    return found


def state_of(error: pytest.ExceptionInfo[psycopg.DatabaseError]) -> str | None:
    return error.value.sqlstate


def test_life_of_a_message_is_told_in_order(subscribed: Connection) -> None:
    clock(subscribed, 101)
    ingest(subscribed, told(MID, 100.5, "teh first"))
    ingest(subscribed, Edit(PAGE, ADA, MID, at(200), 1, "the first"))
    ingest(subscribed, Reaction(PAGE, ADA, MID, at(210), ADA, "react", "love", "❤"))
    ingest(subscribed, read(MID, 100, 300, "the first"), source="sync")
    ingest(subscribed, Unsend(PAGE, ADA, MID, at(400)))

    found = life(subscribed)

    assert found["state"] == "deleted"
    assert [(one["at"], one["what"], one["detail"]) for one in found["life"]] == [
        (at(100.5).isoformat(timespec="milliseconds").replace(".500", ".5"), "sent", "by the customer"),
        (at(101).isoformat(), "first_learnt", "webhook"),
        (at(200).isoformat(), "edited", "edit 1: the first"),
        (at(210).isoformat(), "reaction", f"{ADA} ❤ love"),
        (at(300).isoformat(), "text_read", "the first"),
        (at(300).isoformat(), "last_read", "from Graph"),
        (at(400).isoformat(), "unsent", None),
    ]
    assert (found["webhook_copy"], found["graph_copy"], found["loss"]) == (True, True, None)
    assert found["stored"]["text_original"] == "teh first"
    assert found["stored"]["graph_at"] == at(300).isoformat()
    assert found["conversation"]["sender_id"] == ADA
    assert found["conversation"]["complete"] is False


def test_life_tells_a_loss_and_its_end(subscribed: Connection) -> None:
    clock(subscribed, 600)
    ingest(subscribed, read(MID, 100, 600), source="sync")
    found = life(subscribed)
    assert (found["webhook_copy"], found["graph_copy"]) == (False, True)
    assert found["loss"] == {"learnt_at": at(600).isoformat(), "counts": False}
    assert "webhook_missing" in [one["what"] for one in found["life"]]
    clock(subscribed, 2000)
    assert life(subscribed)["loss"]["counts"] is True
    ingest(subscribed, told(MID, 100.5))
    found = life(subscribed)
    assert (found["webhook_copy"], found["graph_copy"], found["loss"]) == (True, True, None)


def test_life_tells_what_is_verified_of_the_conversation(page: Connection) -> None:
    sync = Sync(page)
    clock(page, 5)
    sync.walk(listed(1))
    found = life(page, "m_1")
    assert (found["conversation"]["complete"], found["conversation"]["thread_id"]) == (True, "t_1")
    assert found["conversation"]["verified_run_id"] == str(sync.run["run"])
    assert {
        "at": at(5).isoformat(),
        "what": "thread_verified",
        "detail": f"by run {sync.run['run']}",
    } in found["life"]


def test_message_that_is_only_spoken_of_is_awaited(page: Connection) -> None:
    ingest(page, Edit(PAGE, ADA, MID, at(200), 2, "better"))
    found = life(page)
    assert (found["state"], found["stored"], found["conversation"]) == ("awaited", None, None)
    assert [one["what"] for one in found["life"]] == ["amendment_waits", "edited"]
    assert found["waiting"]["edited_text"] == "better"


@pytest.mark.parametrize("escaped", [False, True])
def test_dead_letters_that_name_it_are_told(page: Connection, escaped: bool) -> None:
    raw = f'{{"mid":"{MID}"}}'.replace("/", "\\/" if escaped else "/").encode()
    ingest(page, DeadLetter(PAGE, "no time", raw), DeadLetter(PAGE, "no time", b'{"mid":"m_other"}'))
    found = life(page)
    assert found["state"] == "not_understood"
    assert [one["reason"] for one in found["dead_letters"]] == ["no time"]


def test_message_nobody_has_heard_of_is_not_found(page: Connection) -> None:
    with pytest.raises(psycopg.DatabaseError, match=r"nothing was ever heard(\nCONTEXT|$)") as error:
        life(page, "m_never")
    assert state_of(error) == "ZC001"
    purge(page, at(-100))
    with pytest.raises(
        psycopg.DatabaseError, match=r"sent before 2025-03-01T11:58:20Z and was purged"
    ) as error:
        life(page, "m_never")
    assert state_of(error) == "ZC001"


def test_erased_message_is_said_to_be_erased_and_nothing_else(page: Connection) -> None:
    ingest(page, told(MID, 1, "MARKER"))
    clock(page, 100)
    call(page, "select convsync_api.erase_contact(%(page)s, %(sender)s)", page=PAGE, sender=ADA)
    with pytest.raises(psycopg.DatabaseError) as error:
        life(page)
    assert state_of(error) == "ZC006"
    assert ADA not in str(error.value)
    assert "MARKER" not in str(error.value)
