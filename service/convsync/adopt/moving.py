"""Landing what the old database holds: batch by batch, each in one transaction of ours.

A batch is told again if somebody was at the same rows. A run that is interrupted has landed whole batches; it
is gone on with by running it again: what is there is looked up and not written.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from convsync.adopt.reading import PersonReader, orphan
from convsync.adopt.report import PageOwner, Report
from convsync.adopt.source import OldDatabase, open_old_database
from convsync.facts import Fact, Message
from convsync.store import Store
from convsync.sync.ports import Time
from convsync.sync.retry import Backoff, patiently

BATCH = 2000
_PATIENCE = 60.0  # seconds that one batch may take while others are at its rows

Progress = Callable[[int, int], None]
"""How many events were read, of how many."""


class _Batch:
    """Facts on their way, of one Page at a time."""

    def __init__(self, store: Store, report: Report, backoff: Backoff, time: Time) -> None:
        self._store = store
        self._report = report
        self._backoff = backoff
        self._time = time
        self._page_id = ""
        self._facts: list[Fact] = []
        self._standing: dict[str, str] = {}

    async def of(self, page_id: str) -> None:
        """What comes next is of this Page."""
        if page_id != self._page_id:
            await self.flush()
            self._page_id = page_id

    def standing(self, sender_id: str, status: str) -> None:
        self._standing[sender_id] = status

    async def add(self, fact: Fact) -> None:
        # Copies of one message go together: a dry run, which stores none, would count them in each batch.
        if len(self._facts) >= BATCH and not _is_copy(fact, self._facts[-1]):
            await self.flush()
        self._facts.append(fact)

    async def flush(self) -> None:
        if not self._facts:
            return
        until = self._time.now() + _PATIENCE
        adopted = await patiently(
            partial(
                self._store.adopt_conversations,
                page_id=self._page_id,
                batch=self._facts,
                standing=self._standing,
                dry_run=self._report.dry_run,
            ),
            until=lambda: until,
            time=self._time,
            backoff=self._backoff,
        )
        self._report.add(adopted)
        self._facts, self._standing = [], {}


def _is_copy(fact: Fact, other: Fact) -> bool:
    return isinstance(fact, Message) and isinstance(other, Message) and fact.message_id == other.message_id


async def adopt(
    store: Store,
    url: str,
    *,
    dry_run: bool = False,
    progress: Progress = lambda read, expected: None,
    backoff: Backoff | None = None,
    time: Time | None = None,
) -> Report:
    """Move the old database at `url` in. Raises OldDatabaseError, and what `store` raises.

    With `dry_run` nothing is written anywhere.
    """
    async with open_old_database(url) as old:
        report = Report.of(old, dry_run=dry_run)
        _, expected = await old.count()
        progress(0, expected)
        await _owners(store, old, report)
        batch = _Batch(store, report, backoff or Backoff(), time or Time())
        await _people(old, report, batch, lambda read: progress(read, expected))
        await batch.of("")
        async with aclosing(old.orphans()) as orphans:
            async for row in orphans:
                await batch.add(orphan(row, report.damage))
        await batch.flush()
        report.shared_messages = await old.shared_messages()
        progress(report.damage.events, expected)
    return report


async def _owners(store: Store, old: OldDatabase, report: Report) -> None:
    """Of several users of a Page it becomes that of the one with the most conversations."""
    async with aclosing(old.owners()) as owners:
        async for page_id, user_id, _ in owners:
            if report.owners and report.owners[-1].page_id == page_id:
                report.owners[-1].others.append(user_id)
                continue
            news = await store.adopt_page(page_id=page_id, owner_ref=user_id, dry_run=report.dry_run)
            report.owners.append(PageOwner(page_id, user_id, news))


async def _people(old: OldDatabase, report: Report, batch: _Batch, progress: Callable[[int], None]) -> None:
    """Everybody with their events: two streams in one order, read side by side."""
    async with aclosing(old.people()) as people, aclosing(old.events()) as events:
        waiting = await anext(events, None)
        async for person in people:
            reader = PersonReader(person, report.damage, report.as_of)
            await batch.of(reader.page_id)
            for fact in reader.begin():
                await batch.add(fact)
            if (status := reader.standing) is not None:
                batch.standing(person.sender_id, status)
            while waiting is not None and waiting[:2] == (person.page_id, person.sender_id):
                for fact in reader.event(*waiting[2:]):
                    await batch.add(fact)
                waiting = await anext(events, None)
            for fact in reader.end():
                await batch.add(fact)
            progress(report.damage.events)
