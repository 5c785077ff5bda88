"""What a page of a thread tells of the messages that it does not list: pages by hand, judged alone.

The mirror holds what its webhooks told. Graph's pages are newest first, in whole seconds. What
`_judge_listing` finds absent is compared with what a person would say from the same pages.
"""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sessions import ADA, BOB, PAGE, START, Connection, at, call, ingest, rows

from convsync.facts import Json, Message, Thread, dump

THREAD = "t_1"
GRANTED = START + timedelta(hours=1)
HEARD = START + timedelta(minutes=30)
"""When the messages of the mirror came here: before the call was granted."""

# A thread as the mirror knows it: seconds of its messages, by id. Two share second 20, two second 40.
MIRROR = {
    "m_10": 10.0,
    "m_20a": 20.1,
    "m_20b": 20.9,
    "m_30": 30.5,
    "m_40a": 40.0,
    "m_40b": 40.7,
    "m_50": 50.2,
}
NEWEST_FIRST = sorted(MIRROR, key=lambda mid: (MIRROR[mid], mid), reverse=True)
Listed = list[str | tuple[str, float] | None]


@pytest.fixture
def heard(owner: Connection) -> Connection:
    owner.execute("select set_config('convsync.now', %s, false)", [HEARD.isoformat()])
    ingest(owner, *(Message(PAGE, ADA, mid, "in", at(second), mid) for mid, second in MIRROR.items()))
    ingest(owner, Thread(PAGE, ADA, THREAD, HEARD, {}), source="sync")
    return owner


def facts_of(listed: Listed, thread: str = THREAD, sender: str = ADA) -> list[Message]:
    return [
        Message(PAGE, sender, mid, "in", at(int(second)), mid, observed_at=GRANTED, thread_id=thread)
        for mid, second in (
            item if isinstance(item, tuple) else (item, MIRROR[item]) for item in listed if item
        )
    ]


def judge(connection: Connection, facts: list[Any], *threads: Json) -> tuple[set[str], list[Json]]:
    """The ids of the absent, and how far each thread was read."""
    judged = call(
        connection,
        "select convsync_api._judge_listing(%(page)s, %(at)s, %(facts)s, %(threads)s)",
        page=PAGE,
        at=GRANTED,
        facts=dump(facts),
        threads=Jsonb(list(threads)),
    )
    assert all(fact["kind"] == "absence" and fact["page_id"] == PAGE for fact in judged["absences"])
    return {fact["message_id"] for fact in judged["absences"]}, judged["ranges"]


def read(
    connection: Connection, *pages: Listed, reported: int | None = None, ends: bool = True, **more: Any
) -> set[str]:
    """Read a thread page by page, as a sync does: the ids of all that are absent."""
    absent: set[str] = set()
    so_far: Json = {}
    for number, page in enumerate(pages):
        last = ends and number == len(pages) - 1
        found, ranges = judge(
            connection,
            facts_of(page),
            {
                "thread_id": THREAD,
                "sender_id": ADA,
                "message_count": sum(map(len, pages)) if reported is None else reported,
                "read": "complete" if last else "more",
                "cursor": str(number) if number else None,
                "nameless": page.count(None),
                **so_far,
                **more,
            },
        )
        absent |= found
        so_far = ranges[0] if ranges else {}
    return absent


def without(*missing: str) -> list[str]:
    return [mid for mid in NEWEST_FIRST if mid not in missing]


CASES: dict[str, tuple[list[Listed], set[str]]] = {
    "nothing is missing": ([[*without()]], set()),
    "one in the middle": ([[*without("m_30")]], {"m_30"}),
    "the newest": ([[*without("m_50")]], {"m_50"}),
    "the oldest": ([[*without("m_10")]], {"m_10"}),
    "one of two of a second": ([[*without("m_20a")]], {"m_20a"}),
    "all of them": ([[]], set(MIRROR)),
    "the page ends before it": ([["m_50", "m_40b"], ["m_40a", "m_30", "m_20b", "m_20a", "m_10"]], set()),
    "a second that both pages share, whole": (
        [["m_50", "m_40b"], ["m_40a", "m_30"], ["m_20b"], ["m_20a", "m_10"]],
        set(),
    ),
    "one of the second that both pages share": (
        [["m_50", "m_40b"], ["m_30", "m_20b", "m_20a", "m_10"]],
        {"m_40a"},
    ),
    "the other one": ([["m_50"], ["m_40a", "m_30", "m_20b", "m_20a", "m_10"]], {"m_40b"}),
    "between two pages": ([["m_50", "m_40b", "m_40a"], ["m_20b", "m_20a", "m_10"]], {"m_30"}),
    "a second over three pages": (
        [["m_50", "m_40b", "m_40a", "m_30", "m_20b"], [("x", 20)], ["m_20a", "m_10"]],
        set(),
    ),
    "an empty page in between": ([["m_50", "m_40b"], [], ["m_40a", "m_20b", "m_20a", "m_10"]], {"m_30"}),
    "an empty page at the end": ([[*without("m_10")], []], {"m_10"}),
    "not in order": ([["m_50", "m_30", "m_40b", "m_40a", "m_10"]], set()),
    "in no order on the second page": (
        [["m_50", "m_40b"], ["m_20b", "m_40a", "m_10"], [("x", 5)]],
        set(),
    ),
    "a page that begins after the end of the one before": ([["m_40b", "m_40a"], ["m_50", "m_10"]], {"m_50"}),
    "an item without an id": ([["m_50", None, "m_40b", "m_10"]], set()),
    "after an item without an id only what lies inside the page": (
        [["m_50", None, "m_40b"], ["m_30", "m_10"]],
        {"m_20a", "m_20b"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_listed_where_it_was_is_absent(heard: Connection, case: str) -> None:
    pages, absent = CASES[case]
    assert read(heard, *pages) == absent


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_removed_is_found_however_the_thread_is_cut_into_pages(
    heard: Connection, seed: int
) -> None:
    chance = Random(seed)  # noqa: S311 - the same every time
    ingest(
        heard,
        *(
            Message(PAGE, ADA, f"r_{n}", "in", at(100 + chance.choice((0, 0.4, 1, 1, 2, 3)) + n // 4))
            for n in range(16)
        ),
    )
    times = {
        row["message_id"]: row["at"]
        for row in rows(
            heard,
            """select message_id, extract(epoch from event_timestamp)::float8 as at
               from convsync.contact_interaction_events""",
        )
    }
    removed = {mid for mid in times if chance.random() < 0.3}
    # Of one second Graph's order is its own.
    listed = [mid for mid in times if mid not in removed]
    chance.shuffle(listed)
    listed.sort(key=lambda mid: -int(times[mid]))
    pages: list[Listed] = [[]]
    for mid in listed:
        pages[-1].append((mid, times[mid] - START.timestamp()))
        if chance.random() < 0.4:
            pages.append([])
    assert read(heard, *pages) == removed


def test_a_read_that_stops_judges_as_far_as_it_came(heard: Connection) -> None:
    assert read(heard, ["m_50", "m_40b", "m_30"], reported=7, ends=False) == {"m_40a"}
    # of its last second it has perhaps not seen everything
    assert read(heard, ["m_50", "m_40a"], reported=7, ends=False) == set()


def test_the_end_of_a_list_counts_only_if_the_reported_count_bears_it_out(heard: Connection) -> None:
    cut_short: Listed = ["m_50", "m_40b", "m_40a", "m_30"]
    assert read(heard, cut_short, reported=7) == set()
    assert read(heard, cut_short, reported=4) == {"m_10", "m_20a", "m_20b"}
    assert read(heard, cut_short[:2], cut_short[2:], reported=7) == set()
    assert read(heard, cut_short[:2], cut_short[2:], reported=4) == {"m_10", "m_20a", "m_20b"}
    # inside the list there is no doubt
    assert read(heard, ["m_50", "m_30"], reported=7) == {"m_40a", "m_40b"}
    assert read(heard, [], reported=7) == set()


def test_what_is_listed_without_content_is_not_absent(heard: Connection) -> None:
    assert read(heard, [*without("m_30", "m_20a")], unreadable_ids=["m_30"], reported=7) == {"m_20a"}
    assert read(heard, [*without("m_30", "m_20a")], unreadable_ids=["m_30"], reported=6) == {"m_20a"}


def test_what_is_listed_without_content_at_the_end_of_a_page_is_known_on_the_next(heard: Connection) -> None:
    thread = {"thread_id": THREAD, "sender_id": ADA, "message_count": 7, "read": "more"}
    absent, (so_far,) = judge(heard, facts_of(["m_50", "m_40b"]), {**thread, "unreadable_ids": ["m_40a"]})
    assert absent == set()
    rest = {**thread, "cursor": "c", **so_far}
    assert judge(heard, facts_of(["m_30", "m_10"]), rest)[0] == {"m_20a", "m_20b"}


def test_the_last_minutes_are_not_judged(owner: Connection) -> None:
    owner.execute(
        "select set_config('convsync.now', %s, false)", [(GRANTED - timedelta(minutes=1)).isoformat()]
    )
    for mid, seconds in {"m_old": 3600 - 301, "m_new": 3600 - 299, "m_on_time": 3600 - 300.5}.items():
        ingest(owner, Message(PAGE, ADA, mid, "in", at(seconds)))
    ingest(owner, Thread(PAGE, ADA, THREAD, HEARD, {}), source="sync")
    assert read(owner, []) == {"m_old", "m_on_time"}


def test_what_came_here_after_the_call_was_granted_is_not_judged(heard: Connection) -> None:
    heard.execute("select set_config('convsync.now', %s, false)", [GRANTED.isoformat()])
    ingest(heard, Message(PAGE, ADA, "m_late", "in", at(35), "delivered an hour late"))
    assert read(heard, [*without("m_30")]) == {"m_30"}


def test_what_is_deleted_or_no_message_of_the_thread_is_not_judged(heard: Connection) -> None:
    ingest(heard, Message(PAGE, ADA, "e_1", "in", at(35), None, "referral", in_thread=False))
    heard.execute(
        "update convsync.contact_interaction_events set unsent_at = now() where message_id = 'm_30'"
    )
    assert read(heard, [*without("m_30")]) == set()


def test_what_only_a_program_told_is_not_missed_there(heard: Connection) -> None:
    heard.execute(
        """update convsync.contact_interaction_events set source = 'sql'
           where message_id in ('m_30', 'm_10')"""
    )
    heard.execute("update convsync.contact_interaction_events set graph_at = now() where message_id = 'm_10'")
    assert read(heard, [*without("m_30", "m_10", "m_50")]) == {"m_10", "m_50"}


def test_another_threads_messages_are_not_judged(heard: Connection) -> None:
    ingest(heard, Message(PAGE, BOB, "m_bob", "in", at(30)))
    ingest(heard, Thread(PAGE, BOB, "t_2", HEARD, {}), source="sync")
    assert read(heard, [*without()]) == set()


def test_somebody_in_several_threads_is_not_judged(heard: Connection) -> None:
    """Which of the messages are of this thread, nobody can tell."""
    ingest(heard, Thread(PAGE, ADA, "t_group", HEARD - timedelta(days=1), {}), source="sync")
    (ada,) = rows(heard, "select thread_id, in_several_threads from convsync.messenger_conversations")
    assert ada == {"thread_id": THREAD, "in_several_threads": True}
    assert read(heard, [*without("m_30")]) == set()


@pytest.mark.parametrize("others", [[], [BOB]], ids=["theirs alone", "with others"])
def test_a_conversation_known_by_webhooks_only_is_judged_if_the_thread_is_theirs_alone(
    owner: Connection, others: list[str]
) -> None:
    owner.execute("select set_config('convsync.now', %s, false)", [HEARD.isoformat()])
    ingest(owner, *(Message(PAGE, ADA, mid, "in", at(second), mid) for mid, second in MIRROR.items()))
    snapshots = [Thread(PAGE, sender, THREAD, GRANTED, {}) for sender in (ADA, *others)]
    thread = {"thread_id": THREAD, "sender_id": ADA, "message_count": 6, "read": "complete"}
    absent, _ = judge(owner, [*snapshots, *facts_of([*without("m_30")])], thread)
    assert absent == (set() if others else {"m_30"})


def test_each_thread_of_a_list_is_judged_by_its_own_slice(heard: Connection) -> None:
    ingest(heard, *(Message(PAGE, BOB, f"b_{second}", "in", at(second)) for second in (15, 25, 35, 45)))
    ingest(heard, Thread(PAGE, BOB, "t_2", HEARD, {}), source="sync")
    facts = [*facts_of([*without("m_30")]), *facts_of([("b_45", 45), ("b_25", 25)], "t_2", BOB)]
    threads = [
        {"thread_id": THREAD, "sender_id": ADA, "message_count": 6, "read": "complete"},
        {"thread_id": "t_2", "sender_id": BOB, "message_count": 4, "read": "more", "next_cursor": "c"},
        {"thread_id": "t_3", "sender_id": "2009", "message_count": 1, "read": "unread"},
    ]
    absent, ranges = judge(heard, facts, *threads)
    assert absent == {"m_30", "b_35"}
    (b,) = [item for item in ranges if item["thread_id"] == "t_2"]
    assert (b["boundary_ids"], b["listed_count"]) == (["b_25"], 2)


def test_a_thread_that_the_mirror_does_not_know_costs_nothing(owner: Connection) -> None:
    absent, ranges = judge(
        owner, facts_of([*without()]), {"thread_id": THREAD, "sender_id": ADA, "read": "complete"}
    )
    assert (absent, ranges) == (set(), [])
