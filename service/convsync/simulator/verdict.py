"""Comparing a mirror with the truth, row by row, without a database.

A `Comparison` is fed one conversation after the other and then what the mirror holds besides. It trusts
nothing: a row is right when it is there exactly once, under the right person, with the right direction, text,
second, attachments and deletion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class TruthMessage:
    """A message as Facebook has it. `second` is Unix seconds. A deleted one must not be live in a mirror."""

    message_id: str
    direction: str
    text: str
    second: int
    attachment_ids: tuple[str, ...] = ()
    sticker: str | None = None
    deleted: bool = False
    readable: bool = True


@dataclass(frozen=True, slots=True)
class TruthConversation:
    """A thread as Facebook has it; `customer_id` and `name` are None where Graph shows none."""

    thread_id: str
    customer_id: str | None
    name: str | None
    message_count: int
    messages: tuple[TruthMessage, ...]
    listed: bool = True
    """Whether a walk of the whole inbox can see it; if not, a mirror cannot be blamed for not having it."""

    @property
    def sender_id(self) -> str:
        """The person a mirror must file this thread under."""
        return self.customer_id if self.customer_id else f"thread:{self.thread_id}"


def truth_from_json(document: Mapping[str, Any]) -> TruthConversation:
    """A conversation of `/_sim/truth/{page_id}`."""
    messages = tuple(
        TruthMessage(
            message["id"],
            message["direction"],
            message["text"],
            message["created_time"] // 1000,
            tuple(message["attachment_ids"]),
            message["sticker"],
            message["deleted"],
            message["readable"],
        )
        for message in document["messages"]
    )
    return TruthConversation(
        document["thread_id"],
        document["customer_id"],
        document["name"],
        document["message_count"],
        messages,
        document["listed"],
    )


@dataclass(frozen=True, slots=True)
class MirrorConversation:
    """A row of `messenger_conversations`. `complete_at` (Unix seconds) is since when the mirror says that it
    has all of it, None if it says no such thing.
    """

    conversation_id: int
    sender_id: str
    sender_name: str | None
    thread_id: str | None
    last_message: str | None
    message_count: int
    deleted: bool = False
    complete_at: int | None = None


@dataclass(frozen=True, slots=True)
class MirrorMessage:
    """A message row of `contact_interaction_events`. `from_graph`: Graph's own form of it is kept, so that
    what it said of attachments can be checked; a row known from a webhook only has none.
    """

    message_id: str
    conversation_id: int
    direction: str
    text: str | None
    second: int
    deleted: bool = False
    from_graph: bool = False
    attachment_ids: tuple[str, ...] = ()
    sticker: str | None = None


@dataclass(slots=True)
class Verdict:
    """What is wrong with a mirror. Counts are of rows: a missing conversation is one, each of its messages
    another.

    `conversations` and `messages` say how much truth was compared; `unreadable` counts messages that Graph
    shows to nobody and the mirror does not have, `hidden` the conversations it lists to nobody and the mirror
    does not have; `attachments_unchecked` rows that came by webhook only.
    `examples` holds the first twenty findings.
    """

    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0
    hidden: int = 0
    conversations: int = 0
    messages: int = 0
    attachments_unchecked: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing missing, nothing extra, nothing different."""
        return self.missing == 0 and self.extra == 0 and self.differing == 0

    def __iadd__(self, other: Verdict) -> Verdict:
        """Of several Pages."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        del self.examples[_EXAMPLES:]
        return self


class Comparison:
    """One mirror against one truth. Call `conversation` for each thread, `besides` for the rest, then
    `finish`.
    """

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._suspects: dict[str, int] = {}
        """Live rows filed under a thread they do not belong to: extra, unless another thread misses them."""
        self._misplaced: set[str] = set()

    def conversation(
        self, truth: TruthConversation, mirrors: Sequence[MirrorConversation], rows: Iterable[MirrorMessage]
    ) -> None:
        """Compare a thread.

        `mirrors` are the live conversations under its person (there must be one); `rows` all message rows
        filed under it, and those that carry one of its message ids wherever they are filed.
        """
        self.verdict.conversations += 1
        by_id: dict[str, list[MirrorMessage]] = {}
        for row in rows:
            by_id.setdefault(row.message_id, []).append(row)
        mirror = mirrors[0] if mirrors else None
        if mirror is not None:
            self._compare_header(truth, mirror, by_id.keys())
        elif truth.listed:
            self._find("missing", "conversation", truth.thread_id, f"no conversation with {truth.sender_id}")
        else:
            self.verdict.hidden += 1
        for doubled in mirrors[1:]:
            self._find("extra", "conversation", truth.thread_id, f"again as {doubled.conversation_id}")
        own = mirror.conversation_id if mirror is not None else None

        for message in truth.messages:
            self._compare_message(message, by_id.pop(message.message_id, []), own)
        for message_id, left in by_id.items():
            live = sum(1 for row in left if not row.deleted)
            if live:
                self._suspects[message_id] = self._suspects.get(message_id, 0) + live

    def besides(self, conversations: Iterable[str], message_ids: Iterable[str]) -> None:
        """Live mirror rows outside every thread of the truth: names of conversations, ids of messages."""
        for name in conversations:
            self._find("extra", "conversation", name, "not in the truth")
        for message_id in message_ids:
            self._suspects[message_id] = self._suspects.get(message_id, 0) + 1

    def finish(self) -> Verdict:
        """The verdict, once everything was fed."""
        for message_id, count in self._suspects.items():
            # The thread it belongs to has reported it as filed under the wrong person: one fault, told once.
            for _ in range(count - (message_id in self._misplaced)):
                self._find("extra", "message", message_id, "not in the truth")
        self._suspects.clear()
        return self.verdict

    def _compare_header(
        self, truth: TruthConversation, mirror: MirrorConversation, present: Collection[str]
    ) -> None:
        """`present` are the ids of messages that the mirror has."""
        alive = [message for message in truth.messages if not message.deleted]
        # Nobody is shown these, so a mirror may lack them; whatever it says of the thread must fit that.
        lacking = [one for one in alive if not one.readable and one.message_id not in present]
        wrong = []
        if mirror.thread_id is not None and mirror.thread_id != truth.thread_id:
            wrong.append(f"thread_id {mirror.thread_id}")
        if truth.name and mirror.sender_name != truth.name:
            wrong.append(f"sender_name {mirror.sender_name!r}, not {truth.name!r}")
        if mirror.message_count != truth.message_count - len(lacking):
            wrong.append(f"message_count {mirror.message_count}, not {truth.message_count - len(lacking)}")
        complete_at = mirror.complete_at
        never = 0 if complete_at is None else sum(one.second <= complete_at for one in lacking)
        if never:
            wrong.append(f"complete, but it lacks {never} messages that nobody can read")
        shown = [message for message in alive if message.readable or message.message_id in present]
        newest = max((message.second for message in shown), default=None)
        # Graph gives whole seconds: which of the last second's messages came last cannot be known.
        accepted = {message.text for message in shown if message.second == newest} or {""}
        if (mirror.last_message or "") not in accepted:
            wrong.append(f"last_message {_short(mirror.last_message)}, not {_short(min(accepted))}")
        if wrong:
            self._find("differing", "conversation", truth.thread_id, "; ".join(wrong))

    def _compare_message(self, truth: TruthMessage, rows: list[MirrorMessage], own: int | None) -> None:
        if truth.deleted:
            for row in rows:
                if not row.deleted:
                    self._find("differing", "message", truth.message_id, "live, but it was unsent")
            return
        self.verdict.messages += 1
        # When it is there more than once, the row that is right (live, under its person) is the one to keep.
        rows = sorted(rows, key=lambda row: (row.deleted, row.conversation_id != own))
        for row in rows[1:]:
            if not row.deleted:
                self._find("extra", "message", truth.message_id, "there more than once")
                if row.conversation_id != own:
                    # Already counted here; the thread it is filed under must not count it again.
                    self._misplaced.add(truth.message_id)
        if not rows:
            if truth.readable:
                self._find("missing", "message", truth.message_id, "not in the mirror")
            else:
                self.verdict.unreadable += 1
            return
        row = rows[0]
        wrong = self._wrong(truth, row)
        if row.conversation_id != own:
            self._misplaced.add(truth.message_id)
            wrong.append(f"filed under conversation {row.conversation_id}, not {own}")
        if wrong:
            self._find("differing", "message", truth.message_id, "; ".join(wrong))

    def _wrong(self, truth: TruthMessage, row: MirrorMessage) -> list[str]:
        wrong = []
        if row.deleted:
            wrong.append("deleted, but it is not")
        if row.direction != truth.direction:
            wrong.append(f"direction {row.direction}")
        if (row.text or "") != truth.text:
            wrong.append(f"text {_short(row.text)}, not {_short(truth.text)}")
        if row.second != truth.second:
            wrong.append(f"second {row.second}, not {truth.second}")
        if not row.from_graph:
            self.verdict.attachments_unchecked += bool(truth.attachment_ids or truth.sticker)
            return wrong
        if sorted(row.attachment_ids) != sorted(truth.attachment_ids):
            wrong.append(f"attachments {sorted(row.attachment_ids)}, not {sorted(truth.attachment_ids)}")
        # The signed query of an address expires; the address is the sticker.
        if _address(row.sticker) != _address(truth.sticker):
            wrong.append(f"sticker {_address(row.sticker)}")
        return wrong

    def _find(self, kind: str, what: str, identity: str, detail: str) -> None:
        setattr(self.verdict, kind, getattr(self.verdict, kind) + 1)
        if len(self.verdict.examples) < _EXAMPLES:
            self.verdict.examples.append({"finding": kind, "what": what, "id": identity, "detail": detail})


def _address(url: str | None) -> str | None:
    return None if url is None else url.partition("?")[0]


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else text[:59] + "…")
