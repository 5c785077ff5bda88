"""verify: reads Graph again and compares it with the mirror, of which it changes nothing.

What differs is decided in SQL (`compare_facts`, `compare_thread`); here Graph is walked and the findings
are counted. Messages arrive and are edited while the reading goes on, so a finding that something under
way may explain counts only if it is there again a few seconds later, when its thread is read once more.

Kept in memory are ids: of the threads listed, of the people in them, and of what differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

import structlog

from convsync.facts import Fact, Json, Message, Thread, thread_key
from convsync.graph.catalogue import NO_WHOLE_ANSWER, UNREADABLE, ErrorClass
from convsync.graph.client import GraphAnswer, node_path
from convsync.graph.errors import GraphError
from convsync.graph.reading import (
    LIST_FIELDS,
    ListPage,
    MessagesPage,
    list_fields,
    message_fields,
    read_conversations,
    read_messages,
)
from convsync.pages import PageToken
from convsync.store import Finding, MirroredConversation, Store
from convsync.sync import refused
from convsync.sync.calls import Caller, Control
from convsync.sync.ports import Graph, Time
from convsync.sync.retry import BUDGETS, Backoff
from convsync.sync.sizes import (
    Place,
    Size,
    Sizes,
    conversation_place,
    list_place,
    person_place,
    thread_place,
)

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
_Key = tuple[str, str, str]  # finding, what, id
_Params = dict[str, str | int]

_EXAMPLES: Final = 20
_KEYS: Final = 1000
_OVERLAP: Final = timedelta(minutes=5)
_DATABASE_PATIENCE_SECONDS: Final = 60.0
# What Graph lists, but will not return to us, however often it is asked.
_NOT_RETURNED: Final = frozenset({ErrorClass.GONE, ErrorClass.PERMISSION, ErrorClass.BAD_REQUEST})
# Without these there is nothing to compare; any other field may be one that this version of Graph lacks.
_COMPARED: Final = frozenset(
    {
        "id",
        "created_time",
        "updated_time",
        "from",
        "to",
        "message",
        "participants",
        "message_count",
        "attachments",
    }
)


@dataclass(slots=True)
class Report:
    """What a verification found.

    `messages` were compared, in `conversations` that Graph has; without `deep` those of the first slice
    of each thread, and all of a thread whose count differs. `unreadable` is what Graph lists and does not
    return. `complete`: every conversation is, as the certificate has it. `calls` were made.
    `examples` are up to 20 of the findings, for people.
    """

    page_id: str
    conversations: int = 0
    messages: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0
    complete: bool = False
    calls: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is missing, extra or different."""
        return self.missing == self.extra == self.differing == 0

    def as_json(self) -> Json:
        document = asdict(self)
        del document["examples"]
        return document


async def verify_page(
    store: Store,
    graph: Graph,
    page_id: str,
    token: PageToken,
    *,
    deep: bool,
    calls_per_second: float,
    patience: float = 5.0,
    time: Time | None = None,
    backoff: Backoff | None = None,
) -> Report:
    """Read the Page again and compare it with the mirror; `deep` reads every thread to its end.

    `patience` is how many seconds what is under way gets to arrive before a finding is looked at again.
    Raises `GraphError` when the list, or a thread, cannot be read after all retries: then nothing is
    known, and nothing claimed. A block is waited for; a token that turns out dead is marked.
    """
    verification = _Verification(
        store,
        graph,
        page_id,
        token,
        deep=deep,
        calls_per_second=calls_per_second,
        patience=patience,
        time=time or Time(),
        backoff=backoff or Backoff(),
    )
    return await verification.run()


@dataclass(frozen=True, slots=True)
class _Place:
    """A thread to look at; where its id is not known, the person's."""

    thread_id: str | None
    sender_id: str


class _Verification:
    """One verification, from its first call to its report."""

    def __init__(
        self,
        store: Store,
        graph: Graph,
        page_id: str,
        token: PageToken,
        *,
        deep: bool,
        calls_per_second: float,
        patience: float,
        time: Time,
        backoff: Backoff,
    ) -> None:
        self._store = store
        self._page_id = page_id
        self._sealed = token.sealed
        self._deep = deep
        self._patience = patience
        self._time = time
        self._control = Control(time=time, lease_until=time.now(), backoff=backoff)
        self._caller = Caller(
            store=store,
            graph=graph,
            page_id=page_id,
            run_id=None,  # these calls belong to no run
            fence=None,
            lane="repair",
            calls_per_second=calls_per_second,
            token=token.token,
            control=self._control,
        )
        self._sizes = Sizes(store, page_id, self._database)
        self._unknown_fields: set[str] = set()
        self._report = Report(page_id)
        self._held_back = 0  # conversations that the list has and does not return
        self._listed: set[str] = set()  # threads
        self._people: set[str] = set()
        self._suspects: dict[_Place, dict[_Key, Finding]] = {}
        self._suspected_at = time.now()
        self._found: dict[tuple[str, str], str] = {}
        self._examples: dict[tuple[str, str], str] = {}

    async def run(self) -> Report:
        began = await self._walk(None)
        # The list moves while it is walked: what jumped over the reader is at its front now.
        await self._walk(began - _OVERLAP)
        await self._find_the_unlisted(began)
        await self._look_again()
        report = self._report
        found = Counter(self._found.values())
        report.missing, report.extra, report.differing = (
            found["missing"],
            found["extra"],
            found["differing"],
        )
        report.examples = list(self._examples.values())
        report.conversations = len(self._listed)
        report.unreadable += self._held_back
        report.complete = await self._database(lambda: self._store.history_complete(page_id=self._page_id))
        return report

    # Looking

    async def _walk(self, since: datetime | None) -> datetime:
        """Look at each thread of the list that was not looked at yet, down to those older than `since`.

        Returns when the first page was granted.
        """
        began: datetime | None = None
        cursor: str | None = None
        restarts = held_back = 0
        while True:
            try:
                page, at = await self._read_list(cursor)
            except GraphError as error:
                if not self._starts_again(error, cursor, restarts):
                    raise
                restarts += 1
                cursor, held_back = None, 0
                continue
            began = began or at
            held_back += page.unreadable - sum(thread["unreadable"] for thread in page.threads)
            self._held_back = max(self._held_back, held_back)
            await self._compare_list(page, at)
            cursor = page.next_cursor
            older = since is not None and page.newest_updated is not None and page.newest_updated < since
            if cursor is None or older:
                return began

    async def _compare_list(self, page: ListPage, at: datetime) -> None:
        """Compare the threads of a page that are new to us, and read to its end what has to be."""
        facts = _by_thread(page.facts)
        fresh = {
            thread["thread_id"]: thread for thread in page.threads if thread["thread_id"] not in self._listed
        }
        homes = {message_id: name for name in fresh for message_id in _message_ids(facts[name])}
        self._report.messages += len(homes)
        rows = await self._compare([fact for name in fresh for fact in facts[name]])
        by_thread: dict[str, list[Finding]] = {name: [] for name in fresh}
        for row in rows:
            by_thread[row.thread_id or homes[row.id]].append(row)
        for name, thread in fresh.items():
            found = by_thread[name]
            self._listed.add(name)
            if self._deep or any(row.finding == "count" for row in found):
                found += await self._compare_rest(thread, facts[name], at, count=True)
            else:
                self._report.unreadable += thread["unreadable"]
            self._note(_Place(name, thread["sender_id"]), found)

    async def _find_the_unlisted(self, began: datetime) -> None:
        """Ask Graph for each conversation of the mirror that the list should have shown and did not."""
        after = 0
        while True:
            rows = await self._unlisted_after(began, after)
            for row in rows:
                # Graph may name nobody any more: then the thread itself is listed as the person.
                if row.sender_id in self._people or (
                    row.thread_id is not None and thread_key(row.thread_id) in self._people
                ):
                    continue
                thread_id = row.thread_id
                if thread_id is None and row.sender_id.startswith(thread_key("")):
                    thread_id = row.sender_id.removeprefix(thread_key(""))
                place = _Place(thread_id, row.sender_id)
                found = await self._look(place)
                if found is None:
                    found = [Finding("extra", "conversation", row.sender_id, thread_id, None, False)]
                self._note(place, found)
            if len(rows) < _KEYS:
                return
            after = rows[-1].conversation_id

    async def _unlisted_after(self, began: datetime, after: int) -> list[MirroredConversation]:
        return await self._database(
            lambda: self._store.conversations_to_find(
                page_id=self._page_id, before=began, after=after, limit=_KEYS
            )
        )

    async def _look_again(self) -> None:
        """Look at the suspects a second time, and count what is there again."""
        if not self._suspects:
            return
        self._patience -= self._time.now() - self._suspected_at
        if self._patience > 0:
            await self._control.pause(self._patience)
        for place, before in self._suspects.items():
            found = await self._look(place)
            if found is None:
                # Not to be had again: what was seen the first time is all that is known.
                found = list(before.values())
            for row in found:
                if _key(row) in before:
                    self._count(row, place)

    async def _look(self, place: _Place) -> list[Finding] | None:
        """Read one conversation by itself, to its end, and compare it; `None` if Graph does not return it."""
        try:
            page, at = await self._read_one(place)
        except GraphError as error:
            if error.error_class not in _NOT_RETURNED:
                raise
            return None
        if not page.threads:
            return None
        fresh = {thread["thread_id"] for thread in page.threads} - self._listed
        self._listed |= fresh
        found = await self._compare(page.facts)
        facts = _by_thread(page.facts)
        for thread in page.threads:
            name = thread["thread_id"]
            if name in fresh:
                self._report.messages += len(_message_ids(facts[name]))
            found += await self._compare_rest(thread, facts[name], at, count=name in fresh)
        return found

    async def _compare_rest(
        self, thread: Json, facts: list[Fact], at: datetime, *, count: bool
    ) -> list[Finding]:
        """Read what the slice left of a thread, and compare it; then what the mirror has beyond all of it."""
        thread_id, owner = thread["thread_id"], thread["sender_id"]
        ids = _message_ids(facts)
        unreadable = thread["unreadable"]
        found: list[Finding] = []
        cursor, ended = thread["next_cursor"], thread["read"] == "complete"
        restarts = 0
        while not ended:
            try:
                page = await self._read_messages(thread_id, owner, cursor)
            except GraphError as error:
                if self._starts_again(error, cursor, restarts):
                    restarts += 1
                    cursor, unreadable = None, 0
                    continue
                if error.error_class not in _NOT_RETURNED:
                    raise
                unreadable += 1
                break
            found += await self._compare(page.facts)
            news = _message_ids(page.facts) - ids
            ids |= news
            if count:
                self._report.messages += len(news)
            unreadable += page.unreadable
            cursor = page.next_cursor
            ended = cursor is None
        if count:
            self._report.unreadable += unreadable
        if unreadable:
            # What Graph holds back may be what the mirror has.
            return found
        return found + await self._database(
            lambda: self._store.compare_thread(
                page_id=self._page_id,
                thread_id=thread_id,
                message_ids=list(ids),
                observed_at=at,
                sender_id=owner,
            )
        )

    async def _compare(self, facts: Iterable[Fact]) -> list[Finding]:
        told = [fact for fact in facts if isinstance(fact, (Message, Thread))]
        if not told:
            return []
        self._people.update(fact.sender_id for fact in told)
        return await self._database(lambda: self._store.compare_facts(page_id=self._page_id, facts=told))

    # Counting

    def _note(self, place: _Place, found: Iterable[Finding]) -> None:
        """Count what is settled; remember the rest for a second look."""
        for row in found:
            if row.settled:
                self._count(row, place)
            elif row.finding != "count":
                self._suspects.setdefault(place, {})[_key(row)] = row
                self._suspected_at = self._time.now()

    def _count(self, row: Finding, place: _Place) -> None:
        """One thing is counted once. A message under the wrong person differs; there it is not extra too."""
        key = (row.what, row.id)
        if self._found.get(key, "extra") != "extra":
            return
        self._found[key] = row.finding
        if key in self._examples or len(self._examples) < _EXAMPLES:
            where = f" in {place.thread_id}" if place.thread_id else ""
            detail = f": {row.detail}" if row.detail else ""
            self._examples[key] = f"{row.finding} {row.what} {row.id}{where}{detail}"

    # Reading

    async def _read_list(self, cursor: str | None) -> tuple[ListPage, datetime]:
        def params(size: Size) -> _Params:
            asked: _Params = {"platform": "messenger", "limit": size.limit, "fields": self._fields(size)}
            return asked if cursor is None else {**asked, "after": cursor}

        def read(answer: GraphAnswer, at: datetime) -> tuple[ListPage, datetime]:
            page = self._conversations(answer.data, at)
            _moves_on(cursor, page.next_cursor)
            return page, at

        try:
            return await self._get(
                node_path(self._page_id, "conversations"), params, list_place(cursor), read
            )
        except GraphError as error:
            raise await refused.named(error, self._page_id, self._probe) from None

    async def _probe(self, path: str, params: Mapping[str, str | int]) -> GraphError | None:
        """Make one call for what becomes of it; `None` if it is answered."""
        while True:
            self._control.lease_until = self._time.now() + _DATABASE_PATIENCE_SECONDS
            self._report.calls += 1
            try:
                await self._caller.call(path, params, lambda answer, at: None)
            except GraphError as error:
                if error.error_class is not ErrorClass.THROTTLED:
                    return error
            else:
                return None

    async def _read_one(self, place: _Place) -> tuple[ListPage, datetime]:
        """Read one conversation, as a list of it."""
        if place.thread_id is None:
            path = node_path(self._page_id, "conversations")
            who: _Params = {"platform": "messenger", "user_id": place.sender_id}
        else:
            path, who = node_path(place.thread_id), {}

        def read(answer: GraphAnswer, at: datetime) -> tuple[ListPage, datetime]:
            body = answer.data if place.thread_id is None else {"data": [answer.data]}
            return self._conversations(body, at), at

        one = (
            person_place(place.sender_id) if place.thread_id is None else conversation_place(place.thread_id)
        )
        return await self._get(path, lambda size: {**who, "fields": self._fields(size)}, one, read)

    async def _read_messages(self, thread_id: str, owner: str, cursor: str | None) -> MessagesPage:
        def params(size: Size) -> _Params:
            asked: _Params = {"limit": size.limit, "fields": message_fields(self._unknown_fields)}
            return asked if cursor is None else {**asked, "after": cursor}

        def read(answer: GraphAnswer, at: datetime) -> MessagesPage:
            page = read_messages(self._page_id, thread_id, owner, answer.data, at)
            _moves_on(cursor, page.next_cursor)
            return page

        return await self._get(
            node_path(thread_id, "messages"), params, thread_place(thread_id, cursor), read
        )

    def _fields(self, size: Size) -> str:
        return list_fields(size.nested, self._unknown_fields)

    def _conversations(self, body: Json, at: datetime) -> ListPage:
        requested = [name for name in LIST_FIELDS if name not in self._unknown_fields]
        return read_conversations(self._page_id, body, at, requested)

    async def _get(
        self,
        path: str,
        params: Callable[[Size], Mapping[str, str | int]],
        place: Place,
        read: Callable[[GraphAnswer, datetime], _T],
    ) -> _T:
        """Call until an answer is read, waiting and asking for less as the error catalogue says."""
        failures: Counter[ErrorClass] = Counter()
        while True:
            size = await self._sizes.now(place)
            self._control.lease_until = self._time.now() + _DATABASE_PATIENCE_SECONDS
            self._report.calls += 1
            try:
                page = await self._caller.call(path, params(size), read)
            except GraphError as error:
                failures[error.error_class] += 1
                _log.warning("verify_call_failed", page_id=self._page_id, path=path, error=error.as_json())
                await self._after(error, place, size, failures[error.error_class])
            else:
                await self._sizes.accepted(place, size)
                return page

    async def _after(self, error: GraphError, place: Place, size: Size, failed: int) -> None:
        """Do what an error asks for before the next try, or raise it."""
        match error.error_class:
            case ErrorClass.THROTTLED:
                # The block is recorded; the budget says when to call again.
                return
            case ErrorClass.SHRINK:
                if not await self._sizes.refused(place, size):
                    raise error
                return
            case ErrorClass.BAD_CURSOR:
                raise error
            case ErrorClass.TOKEN:
                await self._database(
                    lambda: self._store.mark_token(
                        page_id=self._page_id,
                        state="invalid",
                        error=error.explained(),
                        token_sealed=self._sealed,
                    )
                )
                raise error
            case ErrorClass.BAD_REQUEST if error.unknown_field is not None:
                if error.unknown_field in _COMPARED | self._unknown_fields:
                    raise error
                self._unknown_fields.add(error.unknown_field)
                return
            case ErrorClass.TRANSIENT if failed > 1 and (error.code == 1 or error.type in NO_WHOLE_ANSWER):
                await self._sizes.suspected(place, size)
        if failed >= BUDGETS.get(error.error_class, 1):
            raise error
        await self._control.pause(self._control.backoff.delay(failed, self._time.random()))

    async def _database(self, what: Callable[[], Awaitable[_T]]) -> _T:
        self._control.lease_until = self._time.now() + _DATABASE_PATIENCE_SECONDS
        return await self._control.patiently(what)

    @staticmethod
    def _starts_again(error: GraphError, cursor: str | None, restarts: int) -> bool:
        """Whether a list whose cursor died is to be read from its front again."""
        dead = error.error_class is ErrorClass.BAD_CURSOR and cursor is not None
        return dead and restarts < BUDGETS[ErrorClass.BAD_CURSOR]


def _key(row: Finding) -> _Key:
    return row.finding, row.what, row.id


def _moves_on(cursor: str | None, next_cursor: str | None) -> None:
    """A list whose next page is this page would be read for ever."""
    if next_cursor is not None and next_cursor == cursor:
        raise GraphError("the list goes on where it is", type=UNREADABLE, http_status=200)


def _message_ids(facts: Iterable[Fact]) -> set[str]:
    return {fact.message_id for fact in facts if isinstance(fact, Message)}


def _by_thread(facts: Iterable[Fact]) -> dict[str, list[Fact]]:
    """The facts of a list by thread: the messages of a thread come after its snapshot."""
    found: dict[str, list[Fact]] = {}
    current: list[Fact] = []
    for fact in facts:
        if isinstance(fact, Thread):
            current = found.setdefault(fact.thread_id, [])
        current.append(fact)
    return found
