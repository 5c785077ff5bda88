"""Whatever order, repetition and batching the same facts arrive in, the mirror is the same.

Hypothesis invents a history: few people, few messages and few instants, so that copies of one thing collide
and stamps tie. It is applied fact by fact, and again permuted, with repetitions, in random batches; and
again over several connections at once. Then the tables are compared, but for what tells how they came
about: ids, versions, sources and clocks of insertion.

``CONVSYNC_LONG_PROPERTY=10000`` runs that many examples instead of a few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import chain, groupby
from typing import Any, LiteralString, TypeAlias

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from convsync.facts import (
    Absence,
    DeadLetter,
    Edit,
    Fact,
    Gone,
    Json,
    Message,
    Reaction,
    Thread,
    Unsend,
    Watermark,
    dump,
)

EXAMPLES = int(os.environ.get("CONVSYNC_LONG_PROPERTY", "60"))
CAUGHT_WITHIN = 200

START = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
TABLES: dict[str, LiteralString] = {
    "conversations": """
        select to_jsonb(c)
          - '{conversation_id,version,version_xid,last_synced_version,created_at,updated_at}'::text[]
        from convsync.messenger_conversations as c
        where c.sender_id not like 'erased:%' order by c.page_id, c.sender_id
    """,
    "events": """
        select to_jsonb(e) - '{conversation_id,source,received_at}'::text[]
          || jsonb_build_object('owner', c.sender_id)
        from convsync.contact_interaction_events as e
        join convsync.messenger_conversations as c using (page_id, conversation_id)
        order by e.page_id, e.message_id
    """,
    "pending amendments": """
        select to_jsonb(a) - 'first_seen_at'
        from convsync.pending_amendments as a order by a.page_id, a.message_id
    """,
    "dead letters": """
        select to_jsonb(d) - '{dead_letter_id,first_seen_at,last_seen_at,attempts}'::text[]
        from convsync.dead_letters as d order by d.page_id, d.source, d.digest
    """,
    "pages": "select to_jsonb(p.page_id) from convsync.pages as p order by p.page_id",
}
EMPTY: tuple[LiteralString, ...] = (
    "delete from convsync.contact_interaction_events",
    "delete from convsync.pending_amendments",
    "delete from convsync.conversation_changes",
    "delete from convsync.dead_letters",
    "delete from convsync.messenger_conversations",
    "delete from convsync.erased_contacts",
    "delete from convsync.erased_messages",
    "delete from convsync.pages",
)
# What a conversation says of its events, and what they say themselves.
WRONG_FOLDS: LiteralString = """
select c.sender_id, c.message_count, n.live, c.last_message_id, n.newest_id, c.deleted_at, d.deleted_at
from convsync.messenger_conversations as c
cross join lateral (
  select count(*) as live,
    (array_agg(e.message_id order by e.event_timestamp desc, e.message_id desc))[1] as newest_id,
    (array_agg(e.body order by e.event_timestamp desc, e.message_id desc))[1] as newest,
    max(e.event_timestamp) as newest_at
  from convsync.contact_interaction_events as e
  where e.page_id = c.page_id and e.conversation_id = c.conversation_id
    and e.in_thread and e.deleted_at is null
) as n
cross join lateral (
  select case when not exists (
    select from convsync.contact_interaction_events as e
    where e.page_id = c.page_id and e.conversation_id = c.conversation_id
      and e.in_thread and e.event_timestamp >= c.gone_confirmed_at
  ) and not coalesce(c.thread_id_at >= c.gone_confirmed_at, false)
    and not coalesce(c.updated_time_at >= c.gone_confirmed_at, false)
  then c.gone_confirmed_at end as deleted_at
) as d
where (c.message_count, c.last_message_id, c.last_message, c.last_message_time, c.deleted_at)
  is distinct from (n.live, n.newest_id, n.newest, n.newest_at, d.deleted_at)
"""

Told: TypeAlias = tuple[str, Fact]  # (source, fact)
Mirror: TypeAlias = dict[str, list[Any]]


# --- what is invented

PAGES = ("1001", "1001", "1001", "1002")
PEOPLE = ("2001", "thread:t_1", "2002")
MESSAGES = ("m_1", "m_1", "m_2", "m_3")
KINDS = (
    "message",
    "graph message",
    "edit",
    "reaction",
    "unsend",
    "absence",
    "receipt",
    "snapshot",
    "gone",
    "dead letter",
)

texts = st.sampled_from([None, "", "a", "A", "ä", "b", "a b", "😀", "z" * 300])
emojis = st.sampled_from([None, "❤", "👍"])
reactions = st.sampled_from([None, "love", "like"])
told_by_webhook: st.SearchStrategy[Json] = st.sampled_from(
    [
        {},
        {"webhook": {}},
        {"webhook": {"attachments": [{"type": "image", "payload": {"url": "https://cdn.example/1?sig=a"}}]}},
        {"webhook": {"attachments": [{"type": "image", "payload": {"url": "https://cdn.example/1?sig=b"}}]}},
        {"webhook": {"reply_to": {"mid": "m_1"}}, "new": 1},
        {"new": 2},
        # nobody of ours says so from here, but a caller of the SQL function may
        {"graph": {"said": "by another"}},
        {"graph": {"reactions": [{"actor": "2001", "reaction": "made up"}]}},
        {"reactions": [{"actor": "2001", "reaction": "made up"}]},
    ]
)
actors = st.sampled_from(["2001", "1001"])
told_by_graph: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from([{"graph": {}}, {"graph": {"tags": ["inbox"]}}, {"graph": {"sticker": "s"}}, {}]),
    st.lists(
        st.builds(
            lambda actor, reaction, emoji: {"actor": actor, "reaction": reaction, "emoji": emoji},
            actors,
            reactions,
            emojis,
        ),
        max_size=2,
        unique_by=lambda item: item["actor"],
    ).map(lambda items: {"graph": {"reactions": items}}),
)


@cache
def facts(
    kind: str, page: str, people: tuple[str, ...], message: str, seconds: tuple[int, ...]
) -> st.SearchStrategy[Told]:
    """Facts of one kind about one message of one of these people, at one of these seconds."""
    person = st.sampled_from(people)
    whole_second = st.sampled_from(seconds).map(lambda n: START + timedelta(seconds=n))

    def after(*microseconds: int) -> st.SearchStrategy[datetime]:
        return st.builds(
            lambda at, us: at + timedelta(microseconds=us), whole_second, st.sampled_from(microseconds)
        )

    millisecond = after(0, 0, 0, 1_000, 999_000)
    observed = after(0, 0, 0, 1, 999_999)
    match kind:
        case "message":
            types = st.sampled_from(["message", "unknown", "postback", "referral"])
            told = st.builds(
                Message,
                st.just(page),
                person,
                st.just(message),
                st.sampled_from(["in", "out"]),
                millisecond,
                texts,
                types,
                told_by_webhook,
                in_thread=st.sampled_from([True, True, False]),
            )
        case "graph message":
            told = st.builds(
                Message,
                st.just(page),
                person,
                st.just(message),
                st.sampled_from(["in", "out"]),
                whole_second,
                texts,
                st.just("message"),
                told_by_graph,
                observed_at=observed,
            )
        case "edit":
            some_text = st.sampled_from(["", "a", "A", "ä", "b"])
            told = st.builds(
                Edit, st.just(page), person, st.just(message), millisecond, st.integers(1, 2), some_text
            )
        case "reaction":
            acts = st.sampled_from(["react", "react", "unreact"])
            told = st.builds(
                Reaction,
                st.just(page),
                person,
                st.just(message),
                millisecond,
                actors,
                acts,
                reactions,
                emojis,
            )
        case "unsend":
            told = st.builds(Unsend, st.just(page), person, st.just(message), millisecond)
        case "absence":
            told = st.builds(Absence, st.just(page), person, st.just(message), observed)
        case "gone":
            told = st.builds(Gone, st.just(page), person, observed)
        case "receipt":
            told = st.builds(
                Watermark, st.just(page), person, st.sampled_from(["read", "delivered"]), millisecond
            )
        case "snapshot":
            requested = {
                "name": st.sampled_from([None, "", "Ada", "Bo"]),
                "unread_count": st.sampled_from([None, 0, 1, 2]),
                "snippet": st.sampled_from([None, "", "a", "b"]),
                "can_reply": st.sampled_from([None, True, False]),
                "reported_count": st.sampled_from([None, 0, 7]),
                "updated_time": st.one_of(st.none(), whole_second),
            }
            fields = st.one_of(
                st.fixed_dictionaries(requested), st.fixed_dictionaries({}, optional=requested)
            )
            told = st.builds(Thread, st.just(page), person, st.sampled_from(["t_1", "t_2"]), observed, fields)
        case _:
            told = st.builds(
                DeadLetter,
                st.sampled_from(["", "1001"]),
                st.sampled_from(["not an object", "no id"]),
                st.sampled_from([b"", b"{}", b"\x00\xff"]),
            )
    source = "sync" if kind in ("graph message", "snapshot", "absence", "gone") else "webhook"
    return st.tuples(st.just(source), told)


@st.composite
def copies(draw: st.DrawFn, people: tuple[str, ...]) -> list[Told]:
    """Facts of one kind that have so much in common that they have to be merged."""
    about = facts(
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(PAGES)),
        draw(st.sampled_from([people[:1], people[:1], people[:2], people])),
        draw(st.sampled_from(MESSAGES)),
        draw(st.sampled_from([(0,), (1,), (0, 1), (0, 1, 2, 3)])),
    )
    return draw(st.lists(about, min_size=1, max_size=4))


@st.composite
def rearranged(draw: st.DrawFn, people: tuple[str, ...] = PEOPLE) -> tuple[list[Told], list[list[Told]]]:
    """A history, and the same permuted, with repetitions, in batches; simplest of all: in reverse."""
    history = list(chain.from_iterable(draw(st.lists(copies(people), min_size=2, max_size=10))))
    again = draw(st.lists(st.sampled_from(history), max_size=4))
    shuffled = draw(st.permutations([*reversed(history), *again]))
    batch_of = [0]
    for cut in draw(st.lists(st.booleans(), min_size=len(shuffled) - 1, max_size=len(shuffled) - 1)):
        batch_of.append(batch_of[-1] + cut)
    batches = [
        [item for _, item in group]
        for _, group in groupby(zip(batch_of, shuffled, strict=True), key=lambda pair: pair[0])
    ]
    return history, batches


# --- what is done with it


def apply(connection: psycopg.Connection[Any], batches: Iterable[Sequence[Told]]) -> None:
    """Each batch in one call, or in one for each source that it holds."""
    for batch in batches:
        for source in ("webhook", "sync"):
            if chosen := [fact for told_by, fact in batch if told_by == source]:
                connection.execute("select from convsync_api.ingest(%s, %s)", [dump(chosen), source])


def apply_at_once(connections: Sequence[psycopg.Connection[Any]], batches: Sequence[Sequence[Told]]) -> None:
    """Each connection takes its share; what asks to be repeated is repeated, as the service does."""

    def carry(connection: psycopg.Connection[Any], share: Sequence[Sequence[Told]]) -> None:
        for batch in share:
            for one in batch:
                while True:
                    try:
                        apply(connection, [[one]])
                        break
                    except (psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable):
                        continue

    with ThreadPoolExecutor(len(connections)) as threads:
        for done in [
            threads.submit(carry, connection, batches[number :: len(connections)])
            for number, connection in enumerate(connections)
        ]:
            done.result()


def mirror(connection: psycopg.Connection[Any]) -> Mirror:
    return {name: [row[0] for row in connection.execute(query)] for name, query in TABLES.items()}


def empty(connection: psycopg.Connection[Any]) -> None:
    for query in EMPTY:  # not truncate: of a handful of rows each, that takes a hundred times as long
        connection.execute(query)


def check(
    connection: psycopg.Connection[Any],
    rearrange: Callable[[Sequence[Sequence[Told]]], None],
    examples: int,
    *,
    minimise: bool = True,
    people: tuple[str, ...] = PEOPLE,
    begin: Callable[[psycopg.Connection[Any]], None] = empty,
) -> None:
    """Raise AssertionError with a history that `rearrange` brings to another mirror, if one is found."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if minimise else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(rearranged(people))
    def holds(example: tuple[list[Told], list[list[Told]]]) -> None:
        history, batches = example
        begin(connection)
        apply(connection, [[item] for item in history])
        one_by_one = mirror(connection)
        begin(connection)
        rearrange(batches)
        assert mirror(connection) == one_by_one

    holds()


@pytest.fixture
def owner(database: Any) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        yield connection


def test_order_repetition_and_batching_of_the_same_facts_change_nothing(
    owner: psycopg.Connection[Any],
) -> None:
    check(owner, lambda batches: apply(owner, batches), EXAMPLES)


def test_several_connections_at_once_change_nothing(database: Any, owner: psycopg.Connection[Any]) -> None:
    with ExitStack() as stack:
        connections = [
            stack.enter_context(psycopg.connect(database.owner_url, autocommit=True)) for _ in range(3)
        ]
        # Who comes first is chance, so a smaller example need not fail again.
        check(owner, lambda batches: apply_at_once(connections, batches), EXAMPLES // 2, minimise=False)


def test_counts_and_last_messages_are_those_of_the_events(owner: psycopg.Connection[Any]) -> None:
    """The same invention, held against a second reading of the rules: folds written as plain queries."""

    def rearrange(batches: Sequence[Sequence[Told]]) -> None:
        apply(owner, batches)
        assert owner.execute(WRONG_FOLDS).fetchall() == []

    check(owner, rearrange, EXAMPLES // 2)


def erased(connection: psycopg.Connection[Any]) -> None:
    """The person was erased amid the seconds of which the facts are, before any of them is told."""
    empty(connection)
    connection.execute("insert into convsync.pages (page_id) values ('1001')")
    instant = (START + timedelta(seconds=1.5)).isoformat()
    connection.execute("select set_config('convsync.now', %s, false)", [instant])
    connection.execute("select convsync_api.erase_contact('1001', '2001')")
    connection.execute("select set_config('convsync.now', '', false)")


def test_what_is_told_of_before_and_after_an_erasure_in_any_order_gives_the_same(
    owner: psycopg.Connection[Any],
) -> None:
    """Of one name: where copies name several people, an empty contact may be left (test_erasure.py)."""
    check(owner, lambda batches: apply(owner, batches), EXAMPLES, people=PEOPLE[:1], begin=erased)


# --- and that it would be noticed

# A rule of the real functions, and what it becomes: the later write wins.
PLANTED = {
    "the time of the last copy": (
        "_merge_messages",
        "event_timestamp = greatest(o.event_timestamp, f.at)",
        "event_timestamp = f.at",
    ),
    "the type of the last copy": ("_more_specific", 'greatest(p_a collate "C", p_b collate "C")', "p_b"),
    "the direction of the last copy": (
        "_merge_messages",
        "direction = greatest(o.direction, f.direction)",
        "direction = f.direction",
    ),
    "the text Graph told last": (
        "_merge_messages",
        "(f.observed_at, f.text) > (o.text_graph_at, o.text_graph)",
        "true",
    ),
    "the last edit": (
        "_ingest_amendments",
        "(f.num_edit, f.at, f.text) > (o.num_edit, o.edited_at, o.edited_text)",
        "true",
    ),
    "the last reaction": (
        "_merge_keys",
        "greatest(p_a -> key, p_b -> key)",
        "coalesce(p_b -> key, p_a -> key)",
    ),
    "the owner the last copy names": (
        "_outranks",
        "(p_new_sender not like 'thread:%', ",
        "(true, ",
    ),
    "a snapshot of the same instant": (
        "_ingest_threads",
        "(s.at, s.unread) > (o.unread_count_at, o.unread_count)",
        "s.at >= o.unread_count_at",
    ),
    "the last inbound message to arrive": (
        "_fold",
        "last_inbound_time = greatest(c.last_inbound_time, t.inbound_at)",
        "last_inbound_time = coalesce(t.inbound_at, c.last_inbound_time)",
    ),
    "the last unsend that waits": (
        "_ingest_amendments",
        "unsent_at = least(a.unsent_at, excluded.unsent_at)",
        "unsent_at = excluded.unsent_at",
    ),
    "the last absence": (
        "_ingest_amendments",
        "f.at > o.absent_at",
        "f.at <> o.absent_at",
    ),
    "the last absence that waits": (
        "_ingest_amendments",
        "absent_at = greatest(a.absent_at, excluded.absent_at)",
        "absent_at = excluded.absent_at",
    ),
    "gone as it was told last": (
        "_ingest_gone",
        "gone_confirmed_at = greatest(c.gone_confirmed_at, g.at)",
        "gone_confirmed_at = g.at",
    ),
    "a conversation that stays gone": (
        "_fold",
        "case when o.gone_confirmed_at is null then o.deleted_at",
        "case when o.gone_confirmed_at is null or o.deleted_at is not null then o.deleted_at",
    ),
}


def plant(owner: psycopg.Connection[Any], function: str, rule: str, planted: str) -> None:
    definition = owner.execute(
        """select pg_get_functiondef(oid) from pg_proc
           where proname = %s and pronamespace = 'convsync_api'::regnamespace""",
        [function],
    ).fetchone()
    assert definition is not None
    assert rule in definition[0], "the function reads differently now: plant the fault anew"
    owner.execute(definition[0].replace(rule, planted).encode())


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(owner: psycopg.Connection[Any], fault: str) -> None:
    plant(owner, *PLANTED[fault])
    with pytest.raises(AssertionError):
        check(owner, lambda batches: apply(owner, batches), CAUGHT_WITHIN, minimise=False)


def test_a_fault_that_only_an_erasure_shows_is_found(owner: psycopg.Connection[Any]) -> None:
    """Without the digests of messages, what is done later to one of before stays if it comes after it."""
    plant(owner, "_sift", "j.of_before or j.known", "j.of_before")
    with pytest.raises(AssertionError):
        check(
            owner,
            lambda batches: apply(owner, batches),
            CAUGHT_WITHIN,
            minimise=False,
            people=PEOPLE[:1],
            begin=erased,
        )
