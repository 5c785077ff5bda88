"""A database as the old system left it, planted with damage that is known to the row.

Made from the truth of the simulator: what Facebook has is what the old system once read, and then doubled,
lost the ids of, and miscounted. `Planted.expected` is counted from the rows themselves, by other means than
the product's.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

Json = dict[str, Any]
USERS = ("4f6a1f0e-user-a", "9c2b7d31-user-b")

# As on Supabase: ids are uuids, row security is on, and the constraint is the older of the two.
TABLES: LiteralString = """
create table public.messenger_conversations (
  id uuid primary key,
  user_id text not null,
  page_id text not null,
  sender_id text not null,
  sender_name text,
  last_message text,
  last_message_time timestamptz,
  conversation_status text not null default 'active',
  message_count integer not null default 0,
  pipeline_stage text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (user_id, page_id, sender_id)
);
create table public.contact_interaction_events (
  id uuid primary key,
  user_id text,
  conversation_id uuid not null references public.messenger_conversations,
  event_type text not null,
  event_timestamp timestamptz not null,
  metadata jsonb not null,
  created_at timestamptz not null default now()
);
alter table public.messenger_conversations enable row level security;
alter table public.contact_interaction_events enable row level security;
"""


@dataclass
class Planted:
    """The rows, and what is to be reported of them."""

    page_id: str
    conversations: list[Json] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)
    statuses: dict[str, str] = field(default_factory=dict)
    times: dict[str, datetime] = field(default_factory=dict)

    def person_of(self) -> dict[uuid.UUID, str]:
        return {row["id"]: row["sender_id"] for row in self.conversations}

    def messages(self) -> dict[str, set[str]]:
        """The message ids that are left, by person."""
        people, found = self.person_of(), defaultdict(set)
        for event in self.events:
            if event["metadata"].get("message_id"):
                found[people[event["conversation_id"]]].add(event["metadata"]["message_id"])
        return found

    @property
    def expected(self) -> Json:
        people, messages = self.person_of(), self.messages()
        held = sum(map(len, messages.values()))
        named = [one for one in self.events if one["metadata"].get("message_id")]
        words = {_words(people, one) for one in named}
        nameless = [one for one in self.events if not one["metadata"].get("message_id")]
        twins = sum(_words(people, one) in words for one in nameless)
        seconds = {(people[one["conversation_id"]], _second(one["event_timestamp"])) for one in self.events}
        rows_of = defaultdict(int)
        for row in self.conversations:
            rows_of[row["sender_id"]] += 1
        copies = defaultdict(int)
        for one in named:
            copies[one["metadata"]["message_id"]] += 1
        return {
            "read": {"conversations": len(self.conversations), "events": len(self.events)},
            "adopted": {"conversations": len(rows_of), "messages": held},
            "repaired": {
                "people_with_several_conversations": sum(number > 1 for number in rows_of.values()),
                "conversations_merged": len(self.conversations) - len(rows_of),
                "messages_with_several_events": sum(number > 1 for number in copies.values()),
                "events_merged": len(named) - held,
                "messages_with_several_people": 0,
                "events_without_message_id_known_by_another": twins,
                "counts_corrected": sum(
                    row["message_count"] != len(messages[row["sender_id"]]) for row in self.conversations
                ),
            },
            "not_repaired": {
                "events_without_message_id": len(nameless) - twins,
                "last_messages_without_event": len(
                    {
                        (row["sender_id"], _second(row["last_message_time"]))
                        for row in self.conversations
                        if (row["sender_id"], _second(row["last_message_time"])) not in seconds
                    }
                ),
                "conversations_without_person": 0,
                "unusable_events": {},
            },
        }


def _second(at: datetime) -> datetime:
    return at.replace(microsecond=0)


def _words(people: dict[uuid.UUID, str], event: Json) -> tuple[Any, ...]:
    text = event["metadata"]["text"]
    return (
        people[event["conversation_id"]],
        _second(event["event_timestamp"]),
        event["event_type"],
        text if text and text.strip() else None,
    )


def invent(page_id: str, truth: Iterable[Json], seed: int = 1) -> Planted:
    """One conversation in ten is doubled under the other constraint, one event in five is doubled, one in
    twenty has lost its message id, three counts in ten are wrong, and two in a hundred have a last message
    that never became an event.
    """
    random = Random(seed)  # noqa: S311 - made to be predictable
    planted = Planted(page_id)
    told = [one for one in truth if one["customer_id"]]
    doubled = set(random.sample(range(len(told)), round(len(told) * 0.1)))
    for number, one in enumerate(told):
        messages = [message for message in one["messages"] if not message["deleted"]]
        newest = messages[-1]
        if len(messages) > 1 and random.random() < 0.02:
            messages = messages[:-1]
        status = random.choice(("active", "active", "archived", "closed"))
        if status != "active":
            planted.statuses[one["customer_id"]] = status
        rows = []
        for user in USERS[: 1 + (number in doubled)]:
            rows.append(
                {
                    "id": uuid.UUID(int=random.getrandbits(128)),
                    "user_id": user,
                    "page_id": page_id,
                    "sender_id": one["customer_id"],
                    "sender_name": one["name"] if random.random() < 0.9 else None,
                    "last_message": newest["text"],
                    "last_message_time": _at(newest),
                    "conversation_status": status,
                    "message_count": 0,
                    "updated_at": _at(newest) + timedelta(minutes=len(rows)),
                }
            )
        planted.conversations += rows
        for message in messages:
            event = {
                "id": uuid.UUID(int=random.getrandbits(128)),
                "conversation_id": random.choice(rows)["id"],
                "event_type": "message_sent" if message["direction"] == "out" else "message_received",
                "event_timestamp": _second(_at(message)),
                "metadata": {"message_id": message["id"], "text": message["text"], "channel": "messenger"},
            }
            planted.events.append(event)
            planted.times[message["id"]] = event["event_timestamp"]
    for event in random.sample(planted.events, round(len(planted.events) * 0.2)):
        # Under the constraint that was meant to prevent it a copy differs in its time.
        late = timedelta(seconds=random.choice((0, 0, 0, 90)))
        planted.events.append(
            event
            | {
                "id": uuid.UUID(int=random.getrandbits(128)),
                "event_timestamp": event["event_timestamp"] + late,
                "metadata": dict(event["metadata"]),
            }
        )
    for event in random.sample(planted.events, round(len(planted.events) * 0.05)):
        del event["metadata"]["message_id"]
    held = planted.messages()
    for row in planted.conversations:
        right = len(held[row["sender_id"]])
        row["message_count"] = right if random.random() < 0.7 else random.choice((0, right + 1))
    random.shuffle(planted.conversations)
    random.shuffle(planted.events)
    return planted


def plant(url: str, planted: Planted) -> None:
    """Make the tables in the database at `url` and fill them."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES)
        _copy(cursor, "messenger_conversations", planted.conversations)
        events = [event | {"metadata": Jsonb(event["metadata"])} for event in planted.events]
        _copy(cursor, "contact_interaction_events", events)


def _copy(cursor: psycopg.Cursor[Any], table: str, rows: list[Json]) -> None:
    names = list(rows[0])
    query = f"copy public.{table} ({', '.join(names)}) from stdin"
    with cursor.copy(query) as copy:  # type: ignore[arg-type]
        for row in rows:
            copy.write_row([row[name] for name in names])


def _at(message: Json) -> datetime:
    return datetime.fromtimestamp(message["created_time"] / 1000, UTC)
