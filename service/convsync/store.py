"""One async method per SQL function, of the same name. Nothing else in the service sends SQL.

Every call is one transaction (autocommit): the function commits as a whole or leaves nothing. Whatever
PostgreSQL or the pool raises becomes an exception of `convsync.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, LiteralString, TypeVar

import psycopg
import psycopg_pool
from psycopg.rows import class_row, scalar_row, tuple_row
from psycopg.types.json import Jsonb

from convsync import errors, facts
from convsync.facts import Fact, Json
from convsync.observe.drift import Drift
from convsync.observe.measures import DatabaseMeasures

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Touched:
    """A conversation that `ingest` touched; `created` is true exactly once per conversation."""

    page_id: str
    sender_id: str
    conversation_id: int
    version: int
    created: bool
    events_added: int
    events_changed: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that is the caller's now; `resumed` if it goes on where an earlier attempt stopped."""

    run_id: int
    fence: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One open cursor of a run: the list (`thread_id` empty) or a thread; `cursor` None is the front."""

    kind: str
    thread_id: str
    sender_id: str | None
    cursor: str | None
    walk_pass: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What an applied page did; `applied` is false for a page that was applied before."""

    applied: bool
    conversations_changed: int
    messages_added: int
    open_work: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Call now (`wait_ms` 0), observed at `granted_at`; or nothing is taken: ask again after `wait_ms`."""

    wait_ms: int
    granted_at: datetime | None


@dataclass(frozen=True, slots=True)
class RequestSize:
    """How much to ask Graph for: `size_limit` items, each with up to `nested` messages."""

    size_limit: int
    nested: int


@dataclass(frozen=True, slots=True)
class SealedToken:
    """A Page's token as it is stored (None: it has none); only `TokenBox.open` makes a token of it."""

    sealed: bytes | None
    key_id: str | None
    state: str


@dataclass(frozen=True, slots=True)
class Resumable:
    page_id: str
    mode: str
    run_id: int


@dataclass(frozen=True, slots=True)
class Due:
    page_id: str
    mode: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """A conversation changed: what (`kinds`), to which version; `position` is where to go on from."""

    position: str
    page_id: str
    conversation_id: int
    version: int
    kinds: list[str]
    at: datetime

    def as_json(self) -> Json:
        return {
            "position": self.position,
            "page_id": self.page_id,
            "conversation_id": str(self.conversation_id),
            "version": self.version,
            "kinds": self.kinds,
            "at": self.at.astimezone(UTC).isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes to POST to an outgoing webhook, the caller's alone for a while; the `attempt` counts from 1."""

    name: str
    url: str
    secret_sealed: bytes
    secret_key_id: str
    fence: int
    webhook_id: str
    attempt: int
    changes: list[Json]


@dataclass(frozen=True, slots=True)
class FeedLag:
    """Committed changes that an older open transaction holds back, and whose it is."""

    held_back: int
    held_since: datetime | None
    blocking_pid: int | None
    blocking_application: str | None
    blocking_since: datetime | None

    def as_json(self) -> Json:
        return {
            "held_back": self.held_back,
            "held_since": _utc(self.held_since),
            "blocking_pid": self.blocking_pid,
            "blocking_application": self.blocking_application,
            "blocking_since": _utc(self.blocking_since),
        }


@dataclass(frozen=True, slots=True)
class Metrics:
    """What monitoring wants to know of the database; ages in seconds, 0 where there is nothing to be old."""

    dead_letters: list[Json]
    held_back: int
    held_seconds: float
    consumers: list[Json]
    refused_facts: list[Json] = field(default_factory=list)
    webhook_losses: list[Json] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Alert:
    """A problem of a Page that somebody is to be told of: `firing`, or `resolved`."""

    page_id: str
    problem: str
    state: Literal["firing", "resolved"]
    since: datetime
    details: Json


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference of Graph and mirror: `missing`, `extra` or `differing`, or a `count` to look into.

    `what` is `message` or `conversation`, `id` its message_id or sender_id; `thread_id` is not always
    known. One that is not `settled` may be explained by something still under way.
    """

    finding: str
    what: str
    id: str
    thread_id: str | None
    detail: str | None
    settled: bool


@dataclass(frozen=True, slots=True)
class FoundPage:
    """A Page by its name; `place` is where it stands in the list."""

    page_id: str
    name: str | None
    place: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, why it matters, what mends it; `page_id` is None for what belongs to no Page."""

    page_id: str | None
    problem: str
    what: str
    why: str
    mend: str


@dataclass(frozen=True, slots=True)
class Certified:
    """What is verified of a conversation, `complete` if all of it is. `unreadable` None: never listed."""

    conversation_id: int
    sender_id: str
    thread_id: str | None
    complete: bool
    verified_at: datetime | None
    verified_run_id: int | None
    verified_through: datetime | None
    full_read_at: datetime | None
    failed_at: datetime | None
    unreadable: int | None
    reported_count: int | None
    stored_count: int

    def as_json(self) -> Json:
        document = {
            key: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
            for key, value in asdict(self).items()
        }
        run_id = self.verified_run_id
        return document | {
            "conversation_id": str(self.conversation_id),
            "verified_run_id": None if run_id is None else str(run_id),
        }


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of a conversation's live messages, and of those that were taken back."""

    conversation_id: int
    sender_id: str
    messages: int
    checksum: str
    deleted: int
    deleted_checksum: str


@dataclass(frozen=True, slots=True)
class LostHour:
    """Messages whose webhook never came, sent in the hour that begins at `hour`: by people, by the Page."""

    hour: datetime
    received: int
    sent: int

    def as_json(self) -> Json:
        return {
            "hour": self.hour.astimezone(UTC).isoformat(),
            "received": self.received,
            "sent": self.sent,
        }


@dataclass(frozen=True, slots=True)
class Adopted:
    """What of another database was news here. `letters_answered` have their message here; `refused` messages
    are of people who were erased, or of before a retention horizon.
    """

    conversations_added: int = 0
    messages_added: int = 0
    statuses_set: int = 0
    letters_added: int = 0
    letters_answered: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class MirroredConversation:
    conversation_id: int
    sender_id: str
    thread_id: str | None


def _utc(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def create_pool(url: str, *, size: int, name: str) -> psycopg_pool.AsyncConnectionPool[Any]:
    """A pool its owner opens. Fit for a transaction pooler: nothing prepared, no session state."""
    return psycopg_pool.AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size,
        open=False,
        timeout=4.0,
        name=name,
        check=psycopg_pool.AsyncConnectionPool.check_connection,
        kwargs={"autocommit": True, "prepare_threshold": None, "application_name": f"convsync {name}"},
    )


class Store:
    """The functions of `convsync_api`, through a pool whose role may execute them and nothing else."""

    def __init__(
        self, pool: psycopg_pool.AsyncConnectionPool[Any], measures: DatabaseMeasures | None = None
    ) -> None:
        self._pool = pool
        self._measures = measures if measures is not None else DatabaseMeasures()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        task = asyncio.current_task()
        cancelled = task.cancelling() if task else 0
        try:
            async with self._pool.connection() as connection:
                if task is not None and task.cancelling() > cancelled:
                    # Python 3.11's wait_for, which the pool waits with, may lose a cancellation that comes in
                    # the moment a connection does.
                    raise asyncio.CancelledError
                yield connection
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed) as error:
            raise errors.from_database(error) from error

    async def _one(self, kind: type[Row], query: LiteralString, /, **values: Any) -> Row:
        with self._measures.call(query):
            async with self._connection() as connection:
                cursor = connection.cursor(row_factory=class_row(kind))
                row = await (await cursor.execute(query, values)).fetchone()
        if row is None:
            raise errors.DatabaseError("a function that always returns a row returned none")
        return row

    async def _all(self, kind: type[Row], query: LiteralString, /, **values: Any) -> list[Row]:
        with self._measures.call(query):
            async with self._connection() as connection:
                cursor = connection.cursor(row_factory=class_row(kind))
                return await (await cursor.execute(query, values)).fetchall()

    async def _values(self, query: LiteralString, /, **values: Any) -> list[Any]:
        with self._measures.call(query):
            async with self._connection() as connection:
                cursor = connection.cursor(row_factory=scalar_row)
                return await (await cursor.execute(query, values)).fetchall()

    async def _value(self, query: LiteralString, /, **values: Any) -> Any:
        with self._measures.call(query):
            async with self._connection() as connection:
                cursor = connection.cursor(row_factory=scalar_row)
                return await (await cursor.execute(query, values)).fetchone()

    # The mirror

    async def ingest(self, batch: Sequence[Fact], source: str) -> list[Touched]:
        """Merge facts of any number of Pages in one transaction."""
        return await self._all(
            Touched,
            "select * from convsync_api.ingest(p_facts => %(facts)s, p_source => %(source)s)",
            facts=_facts(batch),
            source=source,
        )

    async def update_conversation(
        self, *, page_id: str, conversation_id: int, expected_version: int, patch: Json
    ) -> int:
        """Change what people own of a conversation; the new version. `VersionConflict` when it moved on."""
        version: int = await self._value(
            """select convsync_api.update_conversation(p_page_id => %(page_id)s,
               p_conversation_id => %(conversation_id)s, p_expected_version => %(expected_version)s,
               p_patch => %(patch)s)""",
            page_id=page_id,
            conversation_id=conversation_id,
            expected_version=expected_version,
            patch=Jsonb(patch),
        )
        return version

    async def list_conversations(
        self,
        *,
        page_id: str,
        status: str | None = None,
        query: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Json:
        found: Json = await self._value(
            """select convsync_api.list_conversations(p_page_id => %(page_id)s, p_status => %(status)s,
               p_query => %(query)s, p_before => %(before)s, p_limit => %(limit)s)""",
            page_id=page_id,
            status=status,
            query=query,
            before=before,
            limit=limit,
        )
        return found

    async def get_conversation(self, *, page_id: str, conversation_id: int) -> Json:
        found: Json = await self._value(
            """select convsync_api.get_conversation(p_page_id => %(page_id)s,
               p_conversation_id => %(conversation_id)s)""",
            page_id=page_id,
            conversation_id=conversation_id,
        )
        return found

    async def list_page_events(self, *, page_id: str, before: str | None = None, limit: int = 50) -> Json:
        found: Json = await self._value(
            """select convsync_api.list_page_events(p_page_id => %(page_id)s, p_before => %(before)s,
               p_limit => %(limit)s)""",
            page_id=page_id,
            before=before,
            limit=limit,
        )
        return found

    async def list_events(
        self, *, page_id: str, conversation_id: int, before: str | None = None, limit: int = 50
    ) -> Json:
        found: Json = await self._value(
            """select convsync_api.list_events(p_page_id => %(page_id)s,
               p_conversation_id => %(conversation_id)s, p_before => %(before)s, p_limit => %(limit)s)""",
            page_id=page_id,
            conversation_id=conversation_id,
            before=before,
            limit=limit,
        )
        return found

    async def message_texts(
        self, *, page_id: str, conversation_id: int, message_ids: Collection[str]
    ) -> dict[str, str | None]:
        """By message id; None for what was taken back, is gone or has no text."""
        async with self._connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(
                """select message_id, body from convsync_api.message_texts(p_page_id => %(page_id)s,
                   p_conversation_id => %(conversation_id)s, p_message_ids => %(message_ids)s)""",
                {
                    "page_id": page_id,
                    "conversation_id": conversation_id,
                    "message_ids": sorted(message_ids),
                },
            )
            return dict(await cursor.fetchall())

    async def contact_timing(
        self, *, page_id: str, conversation_id: int | None = None, timezone: str | None = None
    ) -> Json:
        timing: Json = await self._value(
            """select convsync_api.contact_timing(p_page_id => %(page_id)s,
               p_conversation_id => %(conversation_id)s, p_timezone => %(timezone)s)""",
            page_id=page_id,
            conversation_id=conversation_id,
            timezone=timezone,
        )
        return timing

    async def erase_contact(self, *, page_id: str, sender_id: str) -> Json:
        erased: Json = await self._value(
            "select convsync_api.erase_contact(p_page_id => %(page_id)s, p_sender_id => %(sender_id)s)",
            page_id=page_id,
            sender_id=sender_id,
        )
        return erased

    async def purge_events(self, *, page_id: str, before: datetime, limit: int) -> Json:
        """Of at most that many conversations; again as long as `more` is true. The first sets the horizon."""
        purged: Json = await self._value(
            """select convsync_api.purge_events(p_page_id => %(page_id)s, p_before => %(before)s,
               p_limit => %(limit)s)""",
            page_id=page_id,
            before=before,
            limit=limit,
        )
        return purged

    async def list_horizons(self) -> list[tuple[str, datetime]]:
        """(page_id, purged_before) of each Page that was ever purged."""
        async with self._connection() as connection, connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute("select page_id, purged_before from convsync_api.list_horizons()")
            return await cursor.fetchall()

    async def list_problems(self, *, page_id: str | None = None) -> list[Problem]:
        """As far as the database can tell; empty: nothing."""
        return await self._all(
            Problem, "select * from convsync_api.list_problems(p_page_id => %(page_id)s)", page_id=page_id
        )

    async def list_refused_facts(self, *, pages: Sequence[str] | None = None, limit: int = 100) -> list[Json]:
        return await self._values(
            """select * from convsync_api.list_refused_facts(p_pages => %(pages)s,
               p_limit => %(limit)s)""",
            pages=None if pages is None else list(pages),
            limit=limit,
        )

    async def expire_pending_amendments(self, *, days: int) -> int:
        """Of how many messages what waited for them was deleted."""
        gone: int = await self._value(
            "select convsync_api.expire_pending_amendments(p_days => %(days)s)", days=days
        )
        return gone

    async def request_deletion(self, *, app_user_id: str) -> Json:
        request: Json = await self._value(
            "select convsync_api.request_deletion(p_app_user_id => %(app_user_id)s)", app_user_id=app_user_id
        )
        return request

    async def deletion_status(self, *, confirmation_code: str) -> Json:
        request: Json = await self._value(
            "select convsync_api.deletion_status(p_confirmation_code => %(code)s)", code=confirmation_code
        )
        return request

    # The change feed

    async def changes_after(
        self, *, after: str | None, limit: int = 100, pages: Sequence[str] | None = None
    ) -> list[Change]:
        """The changes after a position (None: all that are kept). `Erased` if some of them have expired."""
        return await self._all(
            Change,
            """select next_after as position, page_id, conversation_id, version, kinds, at
               from convsync_api.changes_after(p_after => %(after)s, p_limit => %(limit)s,
               p_pages => %(pages)s)""",
            after=after,
            limit=limit,
            pages=None if pages is None else list(pages),
        )

    async def feed_end(self) -> str:
        """Where who reads the mirror from here on has to go on reading its changes."""
        position: str = await self._value("select convsync_api.feed_end()")
        return position

    async def feed_position(self, *, consumer: str) -> str | None:
        position: str | None = await self._value(
            "select convsync_api.feed_position(p_consumer => %(consumer)s)", consumer=consumer
        )
        return position

    async def set_feed_position(self, *, consumer: str, position: str) -> None:
        await self._value(
            """select convsync_api.set_feed_position(p_consumer => %(consumer)s,
               p_position => %(position)s)""",
            consumer=consumer,
            position=position,
        )

    async def expire_changes(self, *, days: int, limit: int = 10_000) -> int:
        """How many were deleted, at most `limit`: to be called again until it is 0."""
        gone: int = await self._value(
            "select convsync_api.expire_changes(p_days => %(days)s, p_limit => %(limit)s)",
            days=days,
            limit=limit,
        )
        return gone

    async def feed_lag(self) -> FeedLag:
        return await self._one(FeedLag, "select * from convsync_api.feed_lag()")

    async def begin_feed_epoch(self) -> int:
        epoch: int = await self._value("select convsync_api.begin_feed_epoch()")
        return epoch

    # Outgoing webhooks

    async def add_outgoing(
        self,
        *,
        name: str,
        url: str,
        secret_sealed: bytes,
        secret_key_id: str,
        pages: Sequence[str] | None = None,
        after: str | None = None,
    ) -> Json:
        webhook: Json = await self._value(
            """select convsync_api.add_outgoing(p_name => %(name)s, p_url => %(url)s,
               p_secret_sealed => %(secret_sealed)s, p_secret_key_id => %(secret_key_id)s,
               p_pages => %(pages)s::text[], p_after => %(after)s)""",
            name=name,
            url=url,
            secret_sealed=secret_sealed,
            secret_key_id=secret_key_id,
            pages=None if pages is None else list(pages),
            after=after,
        )
        return webhook

    async def list_outgoing(self) -> list[Json]:
        async with self._connection() as connection, connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute("select * from convsync_api.list_outgoing()")
            return await cursor.fetchall()

    async def remove_outgoing(self, *, name: str) -> Json:
        webhook: Json = await self._value(
            "select convsync_api.remove_outgoing(p_name => %(name)s)", name=name
        )
        return webhook

    async def resume_outgoing(self, *, name: str, skip: bool = False) -> Json:
        webhook: Json = await self._value(
            "select convsync_api.resume_outgoing(p_name => %(name)s, p_skip => %(skip)s)",
            name=name,
            skip=skip,
        )
        return webhook

    async def claim_outgoing(self, *, lease_seconds: float = 60, batch: int = 100) -> Batch | None:
        """The next batch that is due, if there is one."""
        claimed = await self._all(
            Batch,
            """select * from convsync_api.claim_outgoing(p_lease_seconds => %(lease_seconds)s::numeric,
               p_batch => %(batch)s)""",
            lease_seconds=lease_seconds,
            batch=batch,
        )
        return claimed[0] if claimed else None

    async def record_outgoing(
        self,
        *,
        name: str,
        fence: int,
        delivered: bool,
        status: int | None = None,
        error: str | None = None,
        retry_seconds: float = 60,
        attempts: int = 12,
    ) -> str:
        """The state the webhook is in now: `active` or `paused`."""
        state: str = await self._value(
            """select convsync_api.record_outgoing(p_name => %(name)s, p_fence => %(fence)s,
               p_delivered => %(delivered)s, p_status => %(status)s, p_error => %(error)s,
               p_retry_seconds => %(retry_seconds)s::numeric, p_attempts => %(attempts)s)""",
            name=name,
            fence=fence,
            delivered=delivered,
            status=status,
            error=error,
            retry_seconds=retry_seconds,
            attempts=attempts,
        )
        return state

    # Dead letters

    async def list_dead_letters(
        self,
        *,
        page_id: str | None = None,
        resolved: bool = False,
        before: int | None = None,
        limit: int = 50,
        pages: Collection[str] | None = None,
    ) -> list[Json]:
        """Newest first: of one Page, or of all; with `pages` of no other than these."""
        return await self._values(
            """select * from convsync_api.list_dead_letters(p_page_id => %(page_id)s,
               p_resolved => %(resolved)s, p_before => %(before)s, p_limit => %(limit)s,
               p_pages => %(pages)s)""",
            page_id=page_id,
            resolved=resolved,
            before=before,
            limit=limit,
            pages=None if pages is None else sorted(pages),
        )

    async def get_dead_letter(self, *, dead_letter_id: int) -> Json:
        letter: Json = await self._value(
            "select convsync_api.get_dead_letter(p_dead_letter_id => %(dead_letter_id)s)",
            dead_letter_id=dead_letter_id,
        )
        return letter

    async def replay_dead_letter(self, *, dead_letter_id: int, facts: str) -> bool:
        """`facts` is the JSON array they are sent as; true if this call landed them."""
        replayed: bool = await self._value(
            """select convsync_api.replay_dead_letter(p_dead_letter_id => %(dead_letter_id)s,
               p_facts => %(facts)s)""",
            dead_letter_id=dead_letter_id,
            facts=Jsonb(facts, dumps=str),
        )
        return replayed

    async def discard_dead_letter(self, *, dead_letter_id: int, reason: str) -> bool:
        discarded: bool = await self._value(
            """select convsync_api.discard_dead_letter(p_dead_letter_id => %(dead_letter_id)s,
               p_reason => %(reason)s)""",
            dead_letter_id=dead_letter_id,
            reason=reason,
        )
        return discarded

    async def expire_dead_letters(self, *, days: int) -> int:
        gone: int = await self._value(
            "select convsync_api.expire_dead_letters(p_days => %(days)s)", days=days
        )
        return gone

    # Schema drift

    async def record_schema_drift(self, drift: Sequence[Drift]) -> int:
        """Add these counts; told again after an answer that got lost, they count again."""
        names: int = await self._value(
            "select convsync_api.record_schema_drift(p_drift => %(drift)s)",
            drift=Jsonb([asdict(one) for one in drift]),
        )
        return names

    async def list_schema_drift(self, *, pages: Sequence[str] | None = None, limit: int = 100) -> list[Json]:
        return await self._values(
            """select * from convsync_api.list_schema_drift(p_pages => %(pages)s,
               p_limit => %(limit)s)""",
            pages=None if pages is None else list(pages),
            limit=limit,
        )

    async def expire_schema_drift(self, *, days: int) -> int:
        gone: int = await self._value(
            "select convsync_api.expire_schema_drift(p_days => %(days)s)", days=days
        )
        return gone

    # Pages

    async def add_page(
        self,
        *,
        page_id: str,
        name: str | None = None,
        owner_ref: str | None = None,
        token_sealed: bytes | None = None,
        token_key_id: str | None = None,
    ) -> Json:
        page: Json = await self._value(
            """select convsync_api.add_page(p_page_id => %(page_id)s, p_name => %(name)s,
               p_owner_ref => %(owner_ref)s, p_token_sealed => %(token_sealed)s,
               p_token_key_id => %(token_key_id)s)""",
            page_id=page_id,
            name=name,
            owner_ref=owner_ref,
            token_sealed=token_sealed,
            token_key_id=token_key_id,
        )
        return page

    async def remove_page(self, *, page_id: str) -> Json:
        page: Json = await self._value(
            "select convsync_api.remove_page(p_page_id => %(page_id)s)", page_id=page_id
        )
        return page

    async def list_pages(
        self, *, pages: Collection[str] | None = None, after: str | None = None, limit: int | None = None
    ) -> list[Json]:
        """By id: all of them, or only `pages`, those after one, and at most `limit`."""
        return await self._values(
            """select * from convsync_api.list_pages(p_pages => %(pages)s, p_after => %(after)s,
               p_limit => %(limit)s)""",
            pages=None if pages is None else sorted(pages),
            after=after,
            limit=limit,
        )

    async def find_pages(
        self,
        *,
        query: str | None = None,
        pages: Collection[str] | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[FoundPage]:
        """By name, cheaply: those with a problem first. `after` is a `place`; `pages`: only these."""
        return await self._all(
            FoundPage,
            """select * from convsync_api.find_pages(p_query => %(query)s, p_pages => %(pages)s,
               p_after => %(after)s, p_limit => %(limit)s)""",
            query=query,
            pages=None if pages is None else sorted(pages),
            after=after,
            limit=limit,
        )

    async def get_page(self, *, page_id: str) -> Json:
        page: Json = await self._value(
            "select convsync_api.get_page(p_page_id => %(page_id)s)", page_id=page_id
        )
        return page

    async def page_token(self, *, page_id: str) -> SealedToken:
        return await self._one(
            SealedToken,
            """select token_sealed as sealed, token_key_id as key_id, token_state as state
               from convsync_api.page_token(p_page_id => %(page_id)s)""",
            page_id=page_id,
        )

    async def mark_token(
        self, *, page_id: str, state: str, error: str | None = None, token_sealed: bytes | None = None
    ) -> None:
        await self._value(
            """select convsync_api.mark_token(p_page_id => %(page_id)s, p_state => %(state)s,
               p_error => %(error)s, p_token_sealed => %(token_sealed)s)""",
            page_id=page_id,
            state=state,
            error=error,
            token_sealed=token_sealed,
        )

    async def mark_subscribed(self, *, page_id: str) -> None:
        await self._value("select convsync_api.mark_subscribed(p_page_id => %(page_id)s)", page_id=page_id)

    # The call budget

    async def acquire_call(
        self,
        *,
        page_id: str,
        lane: str,
        run_id: int | None = None,
        fence: int | None = None,
        calls_per_second: float = 2,
    ) -> Grant:
        return await self._one(
            Grant,
            """select * from convsync_api.acquire_call(p_page_id => %(page_id)s, p_lane => %(lane)s,
               p_run_id => %(run_id)s, p_fence => %(fence)s,
               p_calls_per_second => %(calls_per_second)s::numeric)""",
            page_id=page_id,
            lane=lane,
            run_id=run_id,
            fence=fence,
            calls_per_second=calls_per_second,
        )

    async def record_call(
        self,
        *,
        page_id: str,
        status: int | None,
        response_ms: int,
        usage: Json | None = None,
        error_code: int | None = None,
        error_subcode: int | None = None,
        block_scope: str | None = None,
        block_seconds: float | None = None,
        block_reason: str | None = None,
    ) -> datetime | None:
        """The end of the block that now holds, if any."""
        until: datetime | None = await self._value(
            """select convsync_api.record_call(p_page_id => %(page_id)s, p_status => %(status)s,
               p_response_ms => %(response_ms)s, p_usage => %(usage)s, p_error_code => %(error_code)s,
               p_error_subcode => %(error_subcode)s, p_block_scope => %(block_scope)s,
               p_block_seconds => %(block_seconds)s::numeric, p_block_reason => %(block_reason)s)""",
            page_id=page_id,
            status=status,
            response_ms=response_ms,
            usage=None if usage is None else Jsonb(usage),
            error_code=error_code,
            error_subcode=error_subcode,
            block_scope=block_scope,
            block_seconds=block_seconds,
            block_reason=block_reason,
        )
        return until

    async def request_size(
        self, *, page_id: str, kind: str, place: str, full_limit: int, full_nested: int
    ) -> RequestSize:
        return await self._one(
            RequestSize,
            """select * from convsync_api.request_size(p_page_id => %(page_id)s, p_kind => %(kind)s,
               p_place => %(place)s, p_full_limit => %(full_limit)s, p_full_nested => %(full_nested)s)""",
            page_id=page_id,
            kind=kind,
            place=place,
            full_limit=full_limit,
            full_nested=full_nested,
        )

    async def record_request_size(
        self,
        *,
        page_id: str,
        kind: str,
        place: str,
        size_limit: int,
        nested: int,
        outcome: str,
        full_limit: int,
        full_nested: int,
    ) -> bool:
        """Whether there is a smaller request to make."""
        smaller_left: bool = await self._value(
            """select convsync_api.record_request_size(p_page_id => %(page_id)s, p_kind => %(kind)s,
               p_place => %(place)s, p_size_limit => %(size_limit)s, p_nested => %(nested)s,
               p_outcome => %(outcome)s, p_full_limit => %(full_limit)s,
               p_full_nested => %(full_nested)s)""",
            page_id=page_id,
            kind=kind,
            place=place,
            size_limit=size_limit,
            nested=nested,
            outcome=outcome,
            full_limit=full_limit,
            full_nested=full_nested,
        )
        return smaller_left

    # Sync runs

    async def begin_sync(
        self,
        *,
        page_id: str,
        mode: str,
        owner: str,
        lease_seconds: float = 15,
        restart: bool = False,
        request_id: str | None = None,
        depth_seconds: float = 604800,
    ) -> Begun:
        return await self._one(
            Begun,
            """select * from convsync_api.begin_sync(p_page_id => %(page_id)s, p_mode => %(mode)s,
               p_owner => %(owner)s, p_lease_seconds => %(lease_seconds)s::numeric,
               p_restart => %(restart)s, p_request_id => %(request_id)s,
               p_depth_seconds => %(depth_seconds)s::numeric)""",
            page_id=page_id,
            mode=mode,
            owner=owner,
            lease_seconds=lease_seconds,
            restart=restart,
            request_id=request_id,
            depth_seconds=depth_seconds,
        )

    async def retry_sync(
        self,
        *,
        page_id: str,
        run_id: int,
        owner: str,
        lease_seconds: float = 15,
        request_id: str | None = None,
    ) -> Begun:
        return await self._one(
            Begun,
            """select * from convsync_api.retry_sync(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_owner => %(owner)s, p_lease_seconds => %(lease_seconds)s::numeric,
               p_request_id => %(request_id)s)""",
            page_id=page_id,
            run_id=run_id,
            owner=owner,
            lease_seconds=lease_seconds,
            request_id=request_id,
        )

    async def allow_deletions_of_run(self, *, page_id: str, run_id: int) -> int:
        allowed: int = await self._value(
            """select convsync_api.allow_deletions_of_run(p_page_id => %(page_id)s,
               p_run_id => %(run_id)s)""",
            page_id=page_id,
            run_id=run_id,
        )
        return allowed

    async def expire_sync_runs(self, *, days: int, limit: int = 10_000) -> int:
        """At most `limit` runs and as many cursors go; repeat until none does."""
        gone: int = await self._value(
            "select convsync_api.expire_sync_runs(p_days => %(days)s, p_limit => %(limit)s)",
            days=days,
            limit=limit,
        )
        return gone

    async def next_sync_work(self, *, page_id: str, run_id: int, fence: int, limit: int = 1) -> list[Work]:
        return await self._all(
            Work,
            """select kind, thread_id, sender_id, last_cursor as cursor, walk_pass
               from convsync_api.next_sync_work(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_limit => %(limit)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            limit=limit,
        )

    async def apply_sync_page(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        cursor: str | None,
        next_cursor: str | None,
        observed_at: datetime,
        facts: Sequence[Fact],
        threads: Sequence[Json] = (),
        unreadable: int = 0,
        lease_seconds: float = 15,
        walk_pass: int | None = None,
        oldest: datetime | None = None,
        newest: datetime | None = None,
    ) -> Applied:
        return await self._one(
            Applied,
            """select * from convsync_api.apply_sync_page(p_page_id => %(page_id)s,
               p_run_id => %(run_id)s, p_fence => %(fence)s, p_kind => %(kind)s,
               p_thread_id => %(thread_id)s, p_cursor => %(cursor)s, p_next_cursor => %(next_cursor)s,
               p_observed_at => %(observed_at)s, p_facts => %(facts)s, p_threads => %(threads)s,
               p_unreadable => %(unreadable)s, p_lease_seconds => %(lease_seconds)s::numeric,
               p_walk_pass => %(walk_pass)s, p_oldest => %(oldest)s, p_newest => %(newest)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            kind=kind,
            thread_id=thread_id,
            cursor=cursor,
            next_cursor=next_cursor,
            observed_at=observed_at,
            facts=_facts(facts),
            threads=Jsonb(list(threads)),
            unreadable=unreadable,
            lease_seconds=lease_seconds,
            walk_pass=walk_pass,
            oldest=oldest,
            newest=newest,
        )

    async def apply_confirmation(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        observed_at: datetime,
        found: bool,
        updated_time: datetime | None = None,
        message_count: int | None = None,
        token: int = 0,
        error: Json | None = None,
        lease_seconds: float = 15,
    ) -> bool:
        applied: bool = await self._value(
            """select convsync_api.apply_confirmation(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_kind => %(kind)s, p_thread_id => %(thread_id)s,
               p_observed_at => %(observed_at)s, p_found => %(found)s, p_updated_time => %(updated_time)s,
               p_message_count => %(message_count)s, p_token => %(token)s, p_error => %(error)s,
               p_lease_seconds => %(lease_seconds)s::numeric)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            kind=kind,
            thread_id=thread_id,
            observed_at=observed_at,
            found=found,
            updated_time=updated_time,
            message_count=message_count,
            token=token,
            error=None if error is None else Jsonb(error),
            lease_seconds=lease_seconds,
        )
        return applied

    async def restart_sync_list(
        self, *, page_id: str, run_id: int, fence: int, thread_id: str, cursor: str | None
    ) -> int | None:
        restarts: int | None = await self._value(
            """select convsync_api.restart_sync_list(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_cursor => %(cursor)s, p_thread_id => %(thread_id)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            cursor=cursor,
            thread_id=thread_id,
        )
        return restarts

    async def fail_sync_batch(
        self,
        *,
        page_id: str,
        run_id: int,
        fence: int,
        kind: str,
        thread_id: str,
        cursor: str | None,
        attempts: int,
        error: Json,
    ) -> int | None:
        batch: int | None = await self._value(
            """select convsync_api.fail_sync_batch(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_kind => %(kind)s, p_thread_id => %(thread_id)s,
               p_cursor => %(cursor)s, p_attempts => %(attempts)s, p_error => %(error)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            kind=kind,
            thread_id=thread_id,
            cursor=cursor,
            attempts=attempts,
            error=Jsonb(error),
        )
        return batch

    async def renew_sync_lease(
        self, *, page_id: str, run_id: int, fence: int, lease_seconds: float = 15
    ) -> datetime:
        expiry: datetime = await self._value(
            """select convsync_api.renew_sync_lease(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_lease_seconds => %(lease_seconds)s::numeric)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            lease_seconds=lease_seconds,
        )
        return expiry

    async def pause_sync(
        self, *, page_id: str, run_id: int, fence: int, reason: str, resume_after_seconds: float = 60
    ) -> None:
        await self._value(
            """select convsync_api.pause_sync(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_reason => %(reason)s,
               p_resume_after_seconds => %(resume_after_seconds)s::numeric)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            reason=reason,
            resume_after_seconds=resume_after_seconds,
        )

    async def finish_sync(self, *, page_id: str, run_id: int, fence: int, failure: str | None = None) -> str:
        """The status the run's ledger amounts to, or `failed` for the reason given."""
        status: str = await self._value(
            """select convsync_api.finish_sync(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s, p_failure => %(failure)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
            failure=failure,
        )
        return status

    async def cancel_sync(self, *, page_id: str, run_id: int, fence: int | None = None) -> str:
        status: str = await self._value(
            """select convsync_api.cancel_sync(p_page_id => %(page_id)s, p_run_id => %(run_id)s,
               p_fence => %(fence)s)""",
            page_id=page_id,
            run_id=run_id,
            fence=fence,
        )
        return status

    async def get_sync_run(self, *, run_id: int) -> Json:
        run: Json = await self._value(
            "select convsync_api.get_sync_run(p_run_id => %(run_id)s)", run_id=run_id
        )
        return run

    async def list_sync_runs(self, *, page_id: str, before: int | None = None, limit: int = 20) -> Json:
        found: Json = await self._value(
            """select convsync_api.list_sync_runs(p_page_id => %(page_id)s, p_before => %(before)s,
               p_limit => %(limit)s)""",
            page_id=page_id,
            before=before,
            limit=limit,
        )
        return found

    async def resumable_syncs(self) -> list[Resumable]:
        """The runs nobody carries that are due."""
        return await self._all(Resumable, "select * from convsync_api.resumable_syncs()")

    async def set_sync_schedule(self, *, sync_seconds: float, reconcile_seconds: float) -> None:
        await self._value(
            """select convsync_api.set_sync_schedule(p_sync_seconds => %(sync_seconds)s::numeric,
               p_reconcile_seconds => %(reconcile_seconds)s::numeric)""",
            sync_seconds=sync_seconds,
            reconcile_seconds=reconcile_seconds,
        )

    async def due_syncs(self, *, modes: Sequence[str]) -> list[Due]:
        """The syncs that are due, of these modes; the longest due first."""
        return await self._all(
            Due, "select * from convsync_api.due_syncs(p_modes => %(modes)s::text[])", modes=list(modes)
        )

    async def begin_due_sync(
        self,
        *,
        page_id: str,
        mode: str,
        owner: str,
        lease_seconds: float = 15,
        request_id: str | None = None,
        depth_seconds: float = 604800,
    ) -> Begun | None:
        """None if it is not due any more."""
        begun = await self._all(
            Begun,
            """select * from convsync_api.begin_due_sync(p_page_id => %(page_id)s, p_mode => %(mode)s,
               p_owner => %(owner)s, p_lease_seconds => %(lease_seconds)s::numeric,
               p_request_id => %(request_id)s, p_depth_seconds => %(depth_seconds)s::numeric)""",
            page_id=page_id,
            mode=mode,
            owner=owner,
            lease_seconds=lease_seconds,
            request_id=request_id,
            depth_seconds=depth_seconds,
        )
        return begun[0] if begun else None

    async def lay_down_syncs(self) -> int:
        """Pause the runs whose process is gone; how many."""
        laid_down: int = await self._value("select convsync_api.lay_down_syncs()")
        return laid_down

    # The installation

    async def schema_version(self) -> str | None:
        version: str | None = await self._value("select convsync_api.schema_version()")
        return version

    async def health(self) -> Json:
        """Whether the database keeps what it says it kept: its durable settings, and the schema's version."""
        health: Json = await self._value("select convsync_api.health()")
        return health

    async def metrics(self) -> Metrics:
        """Open dead letters, refused facts, and the lag of the change feed and of each of its consumers."""
        found: Json = await self._value("select convsync_api.metrics()")
        # By name: while releases change, the database may be a newer one that tells more.
        return Metrics(
            dead_letters=found["dead_letters"],
            held_back=found["held_back"],
            held_seconds=found["held_seconds"],
            consumers=found["consumers"],
            # An older one does not count them yet.
            refused_facts=found.get("refused_facts", []),
            webhook_losses=found.get("webhook_losses", []),
        )

    async def page_metrics(self) -> Json:
        """Tokens, freshness, problems, budgets and open runs, for monitoring."""
        found: Json = await self._value("select convsync_api.page_metrics()")
        return found

    async def certificate_metrics(self) -> Json:
        """Reads a row of each conversation."""
        found: Json = await self._value("select convsync_api.certificate_metrics()")
        return found

    async def take_alerts(
        self, *, again_seconds: float, hold_seconds: float, limit: int, look_seconds: float
    ) -> list[Alert]:
        """Pages with one problem that somebody is to be told of; this caller's for `hold_seconds`."""
        return await self._all(
            Alert,
            """select * from convsync_api.take_alerts(p_again_seconds => %(again_seconds)s::numeric,
               p_hold_seconds => %(hold_seconds)s::numeric, p_limit => %(limit)s,
               p_look_seconds => %(look_seconds)s::numeric)""",
            again_seconds=again_seconds,
            hold_seconds=hold_seconds,
            limit=limit,
            look_seconds=look_seconds,
        )

    async def alert_told(self, *, page_ids: Sequence[str], problem: str, state: str) -> None:
        await self._value(
            """select convsync_api.alert_told(p_page_ids => %(page_ids)s, p_problem => %(problem)s,
               p_state => %(state)s)""",
            page_ids=list(page_ids),
            problem=problem,
            state=state,
        )

    def pool_stats(self) -> Mapping[str, int]:
        """What the pool counts; psycopg_pool's own names."""
        return self._pool.get_stats()

    # Proof

    async def compare_facts(self, *, page_id: str, facts: Sequence[Fact]) -> list[Finding]:
        """What the mirror holds otherwise than messages and threads that Graph just told. Changes nothing."""
        return await self._all(
            Finding,
            "select * from convsync_api.compare_facts(p_page_id => %(page_id)s, p_facts => %(facts)s)",
            page_id=page_id,
            facts=_facts(facts),
        )

    async def compare_thread(
        self,
        *,
        page_id: str,
        thread_id: str,
        message_ids: Sequence[str],
        observed_at: datetime,
        sender_id: str | None = None,
    ) -> list[Finding]:
        """The live messages of a thread that are not among all those Graph listed in it. Changes nothing."""
        return await self._all(
            Finding,
            """select * from convsync_api.compare_thread(p_page_id => %(page_id)s,
               p_thread_id => %(thread_id)s, p_message_ids => %(message_ids)s::text[],
               p_observed_at => %(observed_at)s, p_sender_id => %(sender_id)s)""",
            page_id=page_id,
            thread_id=thread_id,
            message_ids=list(message_ids),
            observed_at=observed_at,
            sender_id=sender_id,
        )

    async def conversations_to_find(
        self, *, page_id: str, before: datetime, after: int = 0, limit: int = 1000
    ) -> list[MirroredConversation]:
        """The next conversations, after `after`, that a list of the Page read since `before` must show."""
        return await self._all(
            MirroredConversation,
            """select * from convsync_api.conversations_to_find(p_page_id => %(page_id)s,
               p_before => %(before)s, p_after => %(after)s, p_limit => %(limit)s)""",
            page_id=page_id,
            before=before,
            after=after,
            limit=limit,
        )

    async def history_complete(self, *, page_id: str) -> bool:
        complete: bool = await self._value(
            "select convsync_api.history_complete(p_page_id => %(page_id)s)", page_id=page_id
        )
        return complete

    async def certificate(self, *, page_id: str) -> Json:
        """How much of a Page is proved."""
        certificate: Json = await self._value(
            "select convsync_api.certificate(p_page_id => %(page_id)s)", page_id=page_id
        )
        return certificate

    async def certificate_conversations(
        self, *, page_id: str, after: int = 0, limit: int = 100, incomplete_only: bool = False
    ) -> list[Certified]:
        return await self._all(
            Certified,
            """select * from convsync_api.certificate_conversations(p_page_id => %(page_id)s,
               p_after => %(after)s, p_limit => %(limit)s, p_incomplete_only => %(incomplete_only)s)""",
            page_id=page_id,
            after=after,
            limit=limit,
            incomplete_only=incomplete_only,
        )

    async def mirror_checksum(self, *, page_id: str, since: datetime | None = None) -> Json:
        """Reads every message of the Page."""
        checksum: Json = await self._value(
            "select convsync_api.mirror_checksum(p_page_id => %(page_id)s, p_from => %(since)s)",
            page_id=page_id,
            since=since,
        )
        return checksum

    async def conversation_checksums(
        self, *, page_id: str, since: datetime | None = None, after: int = 0, limit: int = 100
    ) -> list[Checksum]:
        return await self._all(
            Checksum,
            """select * from convsync_api.conversation_checksums(p_page_id => %(page_id)s,
               p_from => %(since)s, p_after => %(after)s, p_limit => %(limit)s)""",
            page_id=page_id,
            since=since,
            after=after,
            limit=limit,
        )

    async def set_loss_grace(self, *, seconds: float) -> None:
        await self._value(
            "select convsync_api.set_loss_grace(p_seconds => %(seconds)s::numeric)", seconds=seconds
        )

    async def webhook_losses(
        self, *, page_id: str, since: datetime, until: datetime | None = None
    ) -> list[LostHour]:
        """The hours in which messages were sent whose webhook never came."""
        return await self._all(
            LostHour,
            """select * from convsync_api.webhook_losses(p_page_id => %(page_id)s, p_from => %(since)s,
               p_to => %(until)s)""",
            page_id=page_id,
            since=since,
            until=until,
        )

    async def explain_message(self, *, page_id: str, message_id: str) -> Json:
        """The life of one message; `NotFound` if nothing was ever heard of it."""
        life: Json = await self._value(
            """select convsync_api.explain_message(p_page_id => %(page_id)s,
               p_message_id => %(message_id)s)""",
            page_id=page_id,
            message_id=message_id,
        )
        return life

    # Moving in

    async def adopt_page(self, *, page_id: str, owner_ref: str, dry_run: bool) -> bool:
        """Say whose a Page is, if nobody has yet; whether that was news."""
        news: bool = await self._value(
            """select convsync_api.adopt_page(p_page_id => %(page_id)s, p_owner_ref => %(owner_ref)s,
               p_dry_run => %(dry_run)s)""",
            page_id=page_id,
            owner_ref=owner_ref,
            dry_run=dry_run,
        )
        return news

    async def adopt_conversations(
        self, *, page_id: str, batch: Sequence[Fact], standing: Mapping[str, str], dry_run: bool
    ) -> Adopted:
        """Take over what another database holds of a Page; `standing` is the status of people, by id."""
        return await self._one(
            Adopted,
            """select * from convsync_api.adopt_conversations(p_page_id => %(page_id)s,
               p_facts => %(facts)s, p_standing => %(standing)s, p_dry_run => %(dry_run)s)""",
            page_id=page_id,
            facts=_facts(batch),
            standing=Jsonb(dict(standing)),
            dry_run=dry_run,
        )


def _facts(batch: Sequence[Fact]) -> Jsonb:
    return Jsonb(facts.dump(batch), dumps=str)
