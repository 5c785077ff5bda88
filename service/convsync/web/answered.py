"""What the API answers, as models: the OpenAPI document shows them.

The documents themselves are made in SQL (`sql/045_documents.sql` and beside it). That each answer is as it
says here, without a field more or less, the tests see to.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Identity = Annotated[str, Field(examples=["17"])]
"""An id that the database gave; a number as text, because JavaScript's numbers may not hold it."""
FeedPosition = Annotated[str, Field(description="Opaque: where to go on from.", examples=["1-8301-55"])]
Version = Annotated[int, Field(ge=1, description="Rises with every visible change.")]
Count = Annotated[int, Field(ge=0)]
Metadata = Annotated[dict[str, Any], Field(description="What was told beside the fields, as it was told.")]
Status = Literal["queued", "running", "paused", "succeeded", "partial", "failed", "cancelled"]
Mode = Literal["full", "incremental", "reconcile"]
Source = Literal["webhook", "sync", "sql", "import"]


class Document(BaseModel):
    """An answer. Later releases may add fields."""

    model_config = ConfigDict(protected_namespaces=())


class Problem(Document):
    """An error (RFC 9457). `code` is what programs go by."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(examples=["urn:convsync:problem:not_found"])]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: str
    request_id: Annotated[str, Field(description="As in X-Request-ID; the log has it too.")]
    field: Annotated[str, Field(description="The parameter or field that is wrong.")] = ""
    run_id: Annotated[str, Field(description="Of sync_running: the run that is at work.")] = ""
    expected: Annotated[int, Field(description="Of version_conflict: the version that was sent.")] = 0
    actual: Annotated[int, Field(description="Of version_conflict: the version it has.")] = 0
    position: Annotated[
        str, Field(description="Of gone, of the change feed: where to go on from after a fresh read.")
    ] = ""


# --- syncs


class FailedBatch(Document):
    """What a run could not read after all its retries."""

    batch: int
    kind: Literal["list", "thread"]
    thread_id: str | None
    cursor: str | None
    attempts: int
    error: dict[str, Any]
    progress: str


class Run(Document):
    """A sync of a Page."""

    run_id: Identity
    page_id: str
    mode: Mode
    status: Status
    reason: Annotated[str | None, Field(description="Why it failed, paused or was cancelled.")]
    success: Annotated[bool, Field(description="Every page of it was applied.")]
    partial: Annotated[bool, Field(description="It came to its end, but could not read some batches.")]
    failed_batches: list[FailedBatch]
    conversations_seen: Count
    conversations_changed: Count
    messages_added: Count
    unreadable: Annotated[Count, Field(description="Messages that Graph listed and did not return.")]
    deletions_proposed: Count
    deletions_confirmed: Count
    calls: Count
    calls_left: Annotated[int | None, Field(description="About; null where it is not known.")]
    calls_per_second: Annotated[float | None, Field(description="Its pace, of the last minute.")]
    eta_seconds: int | None
    progress: Annotated[str, Field(description="Rises with each change; the id of a stream's event.")]
    open_threads: Count
    started_at: datetime
    finished_at: datetime | None
    request_id: str | None


class BegunRun(Run):
    """A run that was begun, or gone on with."""

    resumed: Annotated[bool, Field(description="It goes on where an earlier attempt stopped.")]


class AllowedDeletions(Document):
    """How many conversations that a run held back may be asked for."""

    page_id: str
    run_id: Identity
    conversations: int


class WatchedRun(Run):
    """A run as its stream tells it: where it stands."""

    stream_request_id: Annotated[str, Field(description="Of the request that watches.")]


class WatchedBatch(FailedBatch):
    """A batch that the run could not read, as its stream tells it."""

    run_id: Identity
    request_id: str | None
    stream_request_id: Annotated[str, Field(description="Of the request that watches.")]


class Ticket(Document):
    """What an EventSource shows instead of a key."""

    ticket: str
    expires_in: Annotated[int, Field(description="Seconds.")]


# --- Pages


class Budget(Document):
    """The Page's allowance of Graph calls, and what slows it."""

    calls: Count
    calls_per_second: float | None
    pace: float
    pace_reason: str | None
    usage_percent: float | None
    app_usage_percent: float | None
    response_ms: float | None
    blocked_until: datetime | None
    block_scope: Literal["page", "app"] | None
    block_reason: str | None


class ListRun(Document):
    run_id: Identity
    mode: Mode
    status: Status
    started_at: datetime
    finished_at: datetime | None


class PageCertificate(Document):
    """What of a Page is proved."""

    conversations: Count
    complete: Count
    whole: Annotated[bool, Field(description="The list is known, and every conversation complete.")]
    unreadable: Count
    verified_since: datetime | None
    list_known: bool
    list_walked_at: datetime | None
    list_run: ListRun | None
    deleted: Count
    erased: Count
    purged_before: datetime | None


class Certificate(PageCertificate):
    page_id: str
    as_of: datetime


class Losses(Document):
    """The loss meter: since when webhooks come, and of how many messages of the last day none came."""

    since: datetime | None
    grace_seconds: Count
    last_day: Count


class NextSync(Document):
    """The sync of a Page that is due next."""

    mode: Mode
    due_at: datetime


class Page(Document):
    """A Page. Its token goes in, never out."""

    page_id: str
    name: str | None
    owner_ref: str | None
    token: Literal["none", "unchecked", "valid", "invalid"]
    token_error: str | None
    added_at: Annotated[datetime | None, Field(description="null while it is known by webhook only.")]
    subscribed_at: datetime | None
    last_webhook_at: datetime | None
    conversations: Count
    messages: Count
    dead_letters: Count
    budget: Budget
    last_run: Run | None
    last_success_at: datetime | None
    next_sync: Annotated[
        NextSync | None, Field(description="null: none is planned, or one is at work that decides when.")
    ]
    webhooks_last_hour: Annotated[
        Count, Field(description="Messages sent in the last hour whose webhook has come.")
    ]
    certificate: PageCertificate
    webhook_losses: Losses
    freshness: Literal["fresh", "late", "stale", "broken"]
    freshness_reason: str | None
    synced_at: datetime | None


class Pages(Document):
    pages: list[Page]
    next: Annotated[str | None, Field(description="The `after` of the next part; null at the end.")]


class CertifiedConversation(Document):
    conversation_id: Identity
    sender_id: str
    thread_id: str | None
    complete: bool
    verified_at: datetime | None
    verified_run_id: Identity | None
    verified_through: datetime | None
    full_read_at: datetime | None
    failed_at: datetime | None
    unreadable: Count | None
    reported_count: Count | None
    stored_count: Count


class CertifiedConversations(Document):
    conversations: list[CertifiedConversation]
    next: Annotated[Identity | None, Field(description="The `after` of the next part.")]


class Checksum(Document):
    """To compare mirrors by."""

    model_config = ConfigDict(populate_by_name=True)

    page_id: str
    as_of: datetime
    since: Annotated[datetime | None, Field(alias="from")]
    conversations: Count
    messages: Count
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    deleted: Count
    deleted_checksum: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    erased: Count


class LostHour(Document):
    hour: datetime
    received: Count
    sent: Count


class LostHours(Document):
    hours: list[LostHour]


class Moment(Document):
    at: datetime
    what: str
    detail: str | None


class MessageLife(Document):
    """The life of one message: what happened to it, and every register as it is stored."""

    page_id: str
    message_id: str
    state: Literal["live", "deleted", "awaited", "not_understood"]
    life: list[Moment]
    webhook_copy: bool | None
    graph_copy: bool | None
    loss: dict[str, Any] | None
    stored: dict[str, Any] | None
    waiting: dict[str, Any] | None
    dead_letters: list[dict[str, Any]]
    conversation: dict[str, Any] | None


# --- conversations


class Conversation(Document):
    page_id: str
    conversation_id: Identity
    sender_id: str
    sender_name: str | None
    thread_id: str | None
    last_message: str | None
    last_message_id: str | None
    last_message_time: datetime | None
    last_inbound_time: datetime | None
    message_count: Count
    unread_count: Count
    snippet: str | None
    can_reply: bool | None
    conversation_status: str
    tags: list[str]
    assignee: str | None
    note: str | None
    timezone: str | None
    read_watermark: datetime | None
    delivered_watermark: datetime | None
    deleted_at: datetime | None
    history_complete_at: datetime | None
    version: Version
    created_at: datetime
    updated_at: datetime


Next = Annotated[str | None, Field(description="The `before` of the next part; null at the end.")]


class Runs(Document):
    runs: list[Run]
    next: Next


class Conversations(Document):
    conversations: list[Conversation]
    next: Next


class Event(Document):
    """A message, a postback, or another thing that happened in a thread."""

    message_id: str
    event_type: str
    direction: Literal["in", "out"]
    in_thread: bool
    event_timestamp: datetime
    received_at: datetime
    source: Source
    body: str | None
    metadata: Metadata
    edited_at: datetime | None
    deleted_at: datetime | None


class Events(Document):
    events: list[Event]
    next: Next


class PageEvent(Document):
    """What the platform told a Page of itself."""

    event_id: str
    event_type: str
    event_timestamp: datetime
    received_at: datetime
    source: Source
    metadata: Metadata


class PageEvents(Document):
    events: list[PageEvent]
    next: Next


class BusyHour(Document):
    weekday: Annotated[int, Field(ge=1, le=7, description="1 is Monday.")]
    hour: Annotated[int, Field(ge=0, le=23)]
    messages: Count


class Timing(Document):
    """When people write: inbound messages by weekday (Monday first) and local hour."""

    page_id: str
    conversation_id: Identity | None
    timezone: str
    messages: Count
    counts: Annotated[
        list[Annotated[list[Count], Field(min_length=24, max_length=24)]], Field(min_length=7, max_length=7)
    ]
    best_hours: Annotated[list[BusyHour], Field(max_length=5)]


class Erased(Document):
    """What was erased; conversation_id is null where the Page knew nobody by that id."""

    conversation_id: Identity | None
    events: Count
    waiting_amendments: Count
    dead_letters: Count
    erased_at: datetime


class Purged(Document):
    events: Count
    conversations: Count
    purged_before: datetime
    more: Annotated[bool, Field(description="Call again.")]


# --- the change feed


class Change(Document):
    position: FeedPosition
    page_id: str
    conversation_id: Identity
    version: Version
    kinds: Annotated[list[str], Field(description="What changed it: message, edit, thread, erased, ..")]
    at: datetime


class StreamedChange(Change):
    stream_request_id: Annotated[str, Field(description="Of the request that watches.")]


class Changes(Document):
    changes: list[Change]
    position: FeedPosition | None
    more: Annotated[bool, Field(description="There may be more: ask again at once.")]


class FeedEnd(Document):
    position: FeedPosition


class ConsumerPosition(Document):
    consumer: str
    position: FeedPosition


# --- what was not understood


class DeadLetter(Document):
    dead_letter_id: Identity
    page_id: str | None
    source: Source
    reason: str
    bytes: Count
    first_seen_at: datetime
    last_seen_at: datetime
    attempts: Count
    resolved_at: datetime | None
    resolution: str | None


class WholeDeadLetter(DeadLetter):
    raw_base64: str


class DeadLetters(Document):
    dead_letters: list[DeadLetter]
    next: Next


class Replayed(Document):
    replayed: Annotated[bool, Field(description="false if it was settled before.")]
    resolution: str | None


class Discarded(Document):
    discarded: Annotated[bool, Field(description="false if it was settled before.")]
    resolution: str | None


class Drift(Document):
    page_id: str | None
    source: Literal["webhook", "sync"]
    name: str
    first_seen_at: datetime
    last_seen_at: datetime
    occurrences: Count


class SchemaDrift(Document):
    schema_drift: list[Drift]


# --- Meta's callbacks, health


class DeletionRequested(Document):
    url: str
    confirmation_code: str


class Deauthorized(Document):
    success: Literal[True]


class Health(Document):
    status: Literal["ok"]
    release: str


class Checks(Document):
    database: bool
    durable: bool
    schema_: Annotated[bool, Field(alias="schema")]
    serving: bool


class Readiness(Document):
    status: Literal["ready", "not_ready"]
    checks: Checks
