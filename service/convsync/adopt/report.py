"""What an adoption says of itself: what was found, what was repaired and how, what could not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from convsync.adopt.reading import Damage
from convsync.adopt.source import CONVERSATIONS, EVENTS, OldDatabase
from convsync.console import Table, escape_controls, stderr, stdout
from convsync.facts import Json
from convsync.store import Adopted

# What is read of the old tables; every other column stays behind, and is named.
_CARRIED = {
    CONVERSATIONS: frozenset(
        (
            *("id", "page_id", "sender_id", "user_id", "sender_name", "conversation_status"),
            *("last_message", "last_message_time", "message_count", "updated_at"),
        )
    ),
    EVENTS: frozenset(
        (
            *("id", "conversation_id", "event_type", "event_timestamp", "metadata", "message_id"),
            *("direction", "is_outbound", "page_id", "sender_id", "user_id"),
        )
    ),
}


@dataclass(slots=True)
class PageOwner:
    """Whose a Page is. `others` had conversations of it too; `set` if nobody had said here whose it is."""

    page_id: str
    owner_ref: str
    set: bool
    others: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """All of it. A dry run gives the same as the run that follows it."""

    dry_run: bool
    as_of: datetime
    schema: str
    damage: Damage = field(default_factory=Damage)
    shared_messages: int = 0
    added: Counter[str] = field(default_factory=Counter)
    owners: list[PageOwner] = field(default_factory=list)
    left_behind: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, old: OldDatabase, *, dry_run: bool) -> Report:
        left = {table: sorted(old.columns[table].keys() - carried) for table, carried in _CARRIED.items()}
        return cls(
            dry_run, old.as_of, old.schema, left_behind={t: names for t, names in left.items() if names}
        )

    def add(self, adopted: Adopted) -> None:
        self.added.update(asdict(adopted))

    @property
    def letters(self) -> int:
        """Rows that are kept as dead letters, or whose message has come since."""
        damage = self.damage
        return (
            damage.nameless
            + damage.unusable.total()
            + damage.last_messages_lost
            + damage.conversations_unusable
        )

    def as_json(self) -> Json:
        damage, added = self.damage, self.added
        return {
            "dry_run": self.dry_run,
            "as_of": self.as_of.astimezone(UTC).isoformat(),
            "schema": self.schema,
            "read": {"conversations": damage.conversations, "events": damage.events},
            "adopted": {
                "conversations": damage.people,
                "messages": damage.messages - self.shared_messages,
            },
            "new": {
                "conversations": added["conversations_added"],
                "messages": added["messages_added"],
                "statuses": added["statuses_set"],
                "dead_letters": added["letters_added"],
                "owners": sum(one.set for one in self.owners),
            },
            "repaired": {
                "people_with_several_conversations": damage.people_doubled,
                "conversations_merged": damage.conversations_doubled,
                "messages_with_several_events": damage.messages_doubled,
                "events_merged": damage.events_doubled,
                "events_merged_that_disagreed": damage.copies_disagree,
                "messages_with_several_people": self.shared_messages,
                "events_without_message_id_known_by_another": damage.twins,
                "counts_corrected": damage.counts_wrong,
                "people_with_several_statuses": damage.statuses_conflicting,
            },
            "not_repaired": {
                "events_without_message_id": damage.nameless,
                "last_messages_without_event": damage.last_messages_lost,
                "conversations_without_person": damage.conversations_unusable,
                "unusable_events": dict(sorted(damage.unusable.items())),
                "answered_by_the_mirror": added["letters_answered"],
                "refused_messages": added["refused"],
            },
            "pages": [asdict(one) for one in self.owners],
            "left_behind": self.left_behind,
        }

    def show(self) -> None:
        """The same for people."""
        document = self.as_json()
        read, adopted, new = document["read"], document["adopted"], document["new"]
        _say(
            f"Read{' (nothing is written)' if self.dry_run else ''}: {read['conversations']:,} conversations"
            f" and {read['events']:,} events of schema {self.schema}, as of {document['as_of']}."
        )
        _say(f"They are {adopted['conversations']:,} conversations with {adopted['messages']:,} messages.")
        said = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in new.items())
        _say(f"New here{' would be' if self.dry_run else ''}: {said}.")
        _table("Repaired", document["repaired"])
        losses = document["not_repaired"]
        unusable = losses.pop("unusable_events")
        _table(
            "Not repaired", losses | {f"unusable events: {why}": number for why, number in unusable.items()}
        )
        for one in self.owners:
            also = f"; conversations of it had also: {', '.join(one.others)}" if one.others else ""
            kept = "" if one.set else " (somebody is named here already, and stays)"
            _say(f"Page {one.page_id}: user_id {one.owner_ref} as owner_ref{kept}{also}")
        for table, names in self.left_behind.items():
            _say(f"Left behind, columns of {table}: {', '.join(names)}")
        if self.letters:
            _say("What could not be used is kept, row by row: convsync dead-letters list")


@contextmanager
def bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr over the events that are read; `quiet` shows none."""
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=quiet) as display:
        task = display.add_task("events", total=None)
        yield lambda read, expected: display.update(task, completed=read, total=expected)


def _say(text: str) -> None:
    stdout.print(escape_controls(text), highlight=False, markup=False, soft_wrap=True)


def _table(title: str, numbers: dict[str, int]) -> None:
    table = Table(title, "")
    for name, number in numbers.items():
        table.add_row(name.replace("_", " "), f"{number:,}")
    table.show()
