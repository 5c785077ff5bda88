"""What another database tells is hearsay: it holds while nobody else has told of the message."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from sessions import ADA, BOB, PAGE, Connection, at, call, ingest, rows, told

from convsync.adopt.reading import HEARSAY, Damage, Letter, PersonReader
from convsync.adopt.source import Person
from convsync.facts import Absence, DeadLetter, Edit, Fact, Message, Reaction, Thread, Unsend, dump

EVENTS = """
select to_jsonb(e) - '{conversation_id,received_at}'::text[]
  || jsonb_build_object('sender', c.sender_id) as event
from convsync.contact_interaction_events e
join convsync.messenger_conversations c using (page_id, conversation_id)
order by e.message_id
"""
CONVERSATIONS = """
select sender_id, message_count, last_message, last_message_id, last_message_time, sender_name
from convsync.messenger_conversations
where message_count > 0
order by sender_id
"""

# Everything in it is wrong, and greater than what is right.
WRONG = Message(
    PAGE, BOB, "m_1", "out", at(5000), "zzz", event_type="postback", metadata={"adopted": {"channel": "x"}}
)
ALSO_WRONG = Message(PAGE, "2009", "m_1", "out", at(9000), "zzzz", metadata={"adopted": {"also": 1}})
WEBHOOK = Message(PAGE, ADA, "m_1", "in", at(0.25), "hello", metadata={"webhook": {"nlp": {}}})
GRAPH = Message(
    PAGE, ADA, "m_1", "in", at(0), "hello", metadata={"graph": {"tags": ["inbox"]}}, observed_at=at(100)
)
WORDLESS = Message(PAGE, ADA, "m_1", "in", at(0), None, metadata={"graph": {}}, observed_at=at(200))

Telling = tuple[str, Fact]
HEARD: tuple[Telling, ...] = (("import", WRONG), ("import", ALSO_WRONG))
HISTORIES: dict[str, tuple[Telling, ...]] = {
    "a webhook": (*HEARD, ("webhook", WEBHOOK)),
    "a sync": (*HEARD, ("sync", GRAPH)),
    "a sync without its text": (*HEARD, ("sync", WORDLESS)),
    "both": (*HEARD, ("webhook", WEBHOOK), ("sync", GRAPH)),
    "an edit": (("import", WRONG), ("webhook", Edit(PAGE, ADA, "m_1", at(50), 1, "edited")), ("sync", GRAPH)),
    "a reaction": (
        ("import", WRONG),
        ("webhook", Reaction(PAGE, ADA, "m_1", at(150), ADA, "react", "love")),
        ("sync", GRAPH),
    ),
    "an unsend": (("import", WRONG), ("webhook", Unsend(PAGE, ADA, "m_1", at(60))), ("webhook", WEBHOOK)),
    "an absence": (*HEARD, ("sync", Absence(PAGE, ADA, "m_1", at(9500))), ("webhook", WEBHOOK)),
}
CLEAN = """
truncate convsync.pages, convsync.messenger_conversations, convsync.contact_interaction_events,
  convsync.pending_amendments, convsync.conversation_changes, convsync.webhook_losses cascade
"""


def stored(owner: Connection, *, without: str = "") -> tuple[list[Any], list[Any]]:
    events = [row["event"] for row in rows(owner, EVENTS)]
    for event in events:
        event["metadata"].pop(without, None)
        # The first that was no hearsay; of several witnesses whoever came first.
        event["source"] = event["source"] == "import"
    return events, rows(owner, CONVERSATIONS)


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_in_any_order_hearsay_gives_way_to_the_witnesses(
    owner: Connection, history: tuple[Telling, ...]
) -> None:
    told_by_witnesses = [one for one in history if one[0] != "import"]
    owner.execute("begin")
    for source, fact in told_by_witnesses:
        ingest(owner, fact, source=source)
    expected = stored(owner)
    owner.execute("rollback")

    results = []
    for order in itertools.permutations(history):
        owner.execute("begin")
        for source, fact in order:
            ingest(owner, fact, source=source)
            ingest(owner, fact, source=source)
        assert stored(owner, without="adopted") == expected, order
        results.append(stored(owner))
    assert all(result == results[0] for result in results), (
        "what else the old system had is kept in any order"
    )


def test_of_hearsay_alone_the_usual_rules_hold(owner: Connection) -> None:
    results = []
    for order in itertools.permutations((WRONG, ALSO_WRONG, Message(PAGE, ADA, "m_1", "in", at(0), "a"))):
        for batches in ([order], [[fact] for fact in order]):
            owner.execute("begin")
            for batch in batches:
                ingest(owner, *batch, source="import")
            results.append(stored(owner))
            owner.execute("rollback")
    (event,), _ = results[0]
    assert (event["body"], event["direction"], event["sender"]) == ("zzzz", "out", "2009")
    assert all(result == results[0] for result in results)


def test_a_witness_in_one_call_with_others_takes_over_each_message(owner: Connection) -> None:
    """Counts and last messages follow the events, also to the right person."""
    ingest(owner, WRONG, told("m_2", 10, sender=BOB), told("m_3", 20), source="import")
    found = ingest(owner, WEBHOOK, told("m_2", 11), told("m_3", 21), told("m_4", 30))
    assert sum(row["events_added"] for row in found) == 1
    (ada,) = rows(owner, CONVERSATIONS)
    assert (ada["sender_id"], ada["message_count"], ada["last_message_id"]) == (ADA, 4, "m_4")
    sources = rows(owner, "select distinct source from convsync.contact_interaction_events")
    assert sources == [{"source": "webhook"}]


def test_a_message_that_was_adopted_and_then_read_is_no_loss(owner: Connection) -> None:
    owner.execute("select convsync_api.add_page(%s)", [PAGE])
    owner.execute("select convsync_api.mark_subscribed(%s)", [PAGE])
    ingest(owner, told("m_1"), source="import")
    ingest(owner, GRAPH, source="sync")
    assert rows(owner, "select from convsync.webhook_losses") == []


def test_repeated_hearsay_changes_nothing_and_tells_nobody(owner: Connection) -> None:
    ingest(owner, WEBHOOK)
    ingest(owner, WRONG, source="import")
    before = rows(owner, "select version from convsync.messenger_conversations order by sender_id")
    for source, fact in (("import", WRONG), ("webhook", WEBHOOK)):
        (found, *_) = ingest(owner, fact, source=source)
        assert (found["events_added"], found["events_changed"]) == (0, 0)
    assert rows(owner, "select version from convsync.messenger_conversations order by sender_id") == before


@pytest.mark.parametrize("source", ["import", "webhook"])
def test_a_known_message_costs_a_lookup_and_no_walk_through_the_pages_people(
    owner: Connection, source: str
) -> None:
    """At this size, and with these statistics, all people of the Page once looked cheaper than one."""
    for start in range(0, 1600, 200):
        told_now = [told(f"m_{n}", n, sender=f"{n:06}") for n in range(start, start + 200)]
        ingest(owner, *told_now, source="import")
    owner.execute("analyze convsync.messenger_conversations")

    def read() -> int:
        owner.execute("select pg_stat_force_next_flush()")
        return call(
            owner,
            """select sum(idx_tup_read) from pg_stat_user_indexes
               where schemaname = 'convsync' and relname = 'messenger_conversations'""",
        )

    before = read()
    ingest(owner, *(told(f"m_{n}", n, sender=f"{n:06}") for n in range(1000, 1300)), source=source)
    assert read() - before < 300 * 20


# --- adopt_conversations


def adopt(
    connection: Connection, *batch: Fact, standing: dict[str, str] | None = None, dry: bool = False
) -> dict[str, int]:
    (found,) = connection.execute(
        "select * from convsync_api.adopt_conversations(%s, %s, %s, %s)",
        [PAGE, dump(batch), Jsonb(standing or {}), dry],
    ).fetchall()
    return {name: value for name, value in found.items() if value}


def person(sender: str = ADA, name: str = "Ada") -> Thread:
    return Thread(PAGE, sender, f"t_{sender}", HEARSAY, {"name": name})


def letter(text: str = "hello", seconds: float = 0.4, sender: str | None = ADA) -> Letter:
    moment = at(seconds)
    return Letter(PAGE, "without message id", text.encode(), sender, moment, "in", text)


def test_what_is_news_is_counted_and_a_dry_run_counts_the_same(
    service: Connection, owner: Connection
) -> None:
    batch = [person(), told("m_1"), told("m_2", 5), letter("other"), letter("hello", 0.4)]
    standing = {ADA: "archived"}
    news = {"conversations_added": 1, "messages_added": 2, "statuses_set": 1, "letters_added": 1}
    dry = adopt(service, *batch, standing=standing, dry=True)
    # It cannot know yet that this call's own message is what a letter seems to be.
    assert dry == news | {"letters_added": 2}
    assert rows(owner, "select from convsync.pages") == []
    assert adopt(service, *batch, standing=standing) == news | {"letters_answered": 1}
    state = "select to_jsonb(d) as letter from convsync.dead_letters d"
    before = rows(owner, state)
    assert adopt(service, *batch, standing=standing) == {"letters_answered": 1}
    assert adopt(service, *batch, standing=standing, dry=True) == {"letters_answered": 1}
    assert rows(owner, state) == before, "a letter that is told again is as it was"


def test_a_letter_whose_message_comes_is_settled(service: Connection, owner: Connection) -> None:
    adopt(service, person(), letter())
    ingest(service, person(BOB), told("m_9", 0, sender=BOB), told("m_2", 0, "hullo"), told("m_3", 1))
    assert adopt(service, person(), letter()) == {}
    assert call(owner, "select resolved_at from convsync.dead_letters") is None
    ingest(service, GRAPH, source="sync")
    assert adopt(service, person(), letter()) == {"letters_answered": 1}
    assert call(owner, "select resolution from convsync.dead_letters") == "its message is here"


def test_a_status_is_taken_over_once_and_never_over_one_that_was_given_here(
    service: Connection, owner: Connection
) -> None:
    status = "select conversation_status from convsync.messenger_conversations"

    def give(name: str) -> None:
        owner.execute(
            """select convsync_api.update_conversation(page_id, conversation_id, version, %s)
               from convsync.messenger_conversations""",
            [Jsonb({"conversation_status": name})],
        )

    assert adopt(service, person(), standing={ADA: "closed"}) == {"conversations_added": 1, "statuses_set": 1}
    assert call(owner, status) == "closed"
    changes = rows(owner, "select version, kinds from convsync.conversation_changes")
    assert changes == [{"version": 1, "kinds": ["adopted", "thread"]}], "in one transaction with the rest"
    give("active")
    assert adopt(service, person(), standing={ADA: "closed"}) == {}
    assert call(owner, status) == "active", "somebody has opened it again"

    owner.execute(CLEAN)
    ingest(service, told("m_1"))
    give("in progress")
    assert adopt(service, person(), standing={ADA: "closed"}) == {}
    assert call(owner, status) == "in progress"


def test_a_name_of_the_old_system_gives_way_to_graphs(service: Connection, owner: Connection) -> None:
    name = "select sender_name from convsync.messenger_conversations"
    adopt(service, person(name="Zoe"))
    assert call(owner, name) == "Zoe"
    ingest(service, Thread(PAGE, ADA, "t_1", at(0), {"name": "Ada"}), source="sync")
    adopt(service, person(name="Zoe"))
    assert call(owner, name) == "Ada"


def test_who_was_erased_is_not_adopted_again(service: Connection, owner: Connection) -> None:
    adopt(service, person(), told("m_1"))
    call(owner, "select convsync_api.erase_contact(%(page)s, %(who)s)", page=PAGE, who=ADA)
    assert adopt(service, person(), told("m_1"), standing={ADA: "closed"}, dry=True) == {"refused": 1}
    assert adopt(service, person(), told("m_1"), standing={ADA: "closed"}) == {"refused": 1}
    assert rows(owner, "select from convsync.contact_interaction_events") == []
    assert call(owner, "select count(*) from convsync.messenger_conversations where sender_id = '2001'") == 0


def test_the_rows_of_somebody_who_is_erased_are_not_kept(service: Connection, owner: Connection) -> None:
    """An old event names no person, only a conversation."""
    old = {"conversation_id": 7, "event_type": "message_received", "event_timestamp": "2025-03-01T12:00:00"}
    reader = PersonReader(Person(PAGE, ADA, [{"id": 7}]), Damage(), at(10**6))
    (*told_now, kept) = [
        *reader.begin(),
        *reader.event(None, old | {"metadata": {"text": "hi"}}),
        *reader.end(),
    ]
    assert adopt(service, *told_now, kept) == {"conversations_added": 1, "letters_added": 1}
    raw = "select convert_from(raw, 'UTF8') as raw from convsync.dead_letters"
    assert '"hi"' in call(owner, raw)
    call(owner, "select convsync_api.erase_contact(%(page)s, %(who)s)", page=PAGE, who=ADA)
    assert rows(owner, raw) == []
    # Adopted again, it is kept that there was such a row, once.
    assert adopt(service, *told_now, kept) == {"letters_added": 1}
    assert adopt(service, *told_now, kept) == {}
    assert rows(owner, raw) == [{"raw": ""}]


def test_whose_a_page_is_is_said_once(service: Connection, owner: Connection) -> None:
    adopting = "select convsync_api.adopt_page(%(page)s, %(who)s, %(dry)s)"
    page = "select owner_ref, added_at, removed_at from convsync.pages"
    assert call(service, adopting, page=PAGE, who="u1", dry=True) is True
    assert rows(owner, page) == []
    assert call(service, adopting, page=PAGE, who="u1", dry=False) is True
    assert call(service, adopting, page=PAGE, who="u2", dry=False) is False
    assert call(service, adopting, page=PAGE, who="u2", dry=True) is False
    assert rows(owner, page) == [{"owner_ref": "u1", "added_at": None, "removed_at": None}]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((None, "[]", "{}"), "p_page_id"),
        ((PAGE, dump([told("m_1", page="1002")]), "{}"), "p_facts"),
        ((PAGE, "[]", "[]"), "p_standing"),
        ((PAGE, "[]", '{"2001": null}'), "p_standing"),
        ((PAGE, "[]", '{"2001": ""}'), "p_standing"),
        (("", dump([told("m_1", page="")]), "{}"), "facts[0].page_id"),
    ],
)
def test_wrong_arguments_are_named(service: Connection, arguments: tuple[Any, ...], field: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        service.execute("select * from convsync_api.adopt_conversations(%s, %s, %s)", arguments)
    assert (caught.value.sqlstate, caught.value.diag.message_hint) == ("ZC003", field)
    for page, who in ((None, "u"), ("1", None)):
        with pytest.raises(psycopg.Error) as caught:
            service.execute("select convsync_api.adopt_page(%s, %s)", [page, who])
        assert caught.value.sqlstate == "ZC003"


def test_letters_of_no_page_are_kept_once(service: Connection, owner: Connection) -> None:
    for news in (1, 0):
        (found,) = service.execute(
            "select letters_added from convsync_api.adopt_conversations('', %s)",
            [dump([DeadLetter("", "of no conversation", b"{}")])],
        ).fetchall()
        assert found == {"letters_added": news}
    assert call(owner, "select attempts from convsync.dead_letters") == 1
