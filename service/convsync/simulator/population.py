"""A Page's whole inbox, made from a seed, and changed by live traffic.

Of each conversation a length and a time exist from the start, sixteen bytes in all. The rest of it and its
messages are made when somebody looks, from the seed, and forgotten again: the messages when too many are in
memory, the conversation when nobody holds it. One that live traffic touched is kept, since its present can no
longer be made from the seed.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from random import Random
from typing import Literal, overload
from weakref import WeakValueDictionary

from convsync.simulator import content
from convsync.simulator.messages import Message, MessageIds, attach, past
from convsync.simulator.shape import PersonKind, kinds, sizes, window

Direction = Literal["in", "out"]

_SPAN_MS = 2 * 365 * 86_400_000
_CACHED_MESSAGES = 150_000

# Ids count through a range in steps: all different, none in order. Both numbers are multiples of five, so the
# steps come back to the first id after a fifth of the range; within that an id tells its number.
_ID_RANGE = 10**15
_ID_STEP = 618_033_988_749_895
_ID_ROUND = _ID_RANGE // 5
_ID_BACK = pow(_ID_STEP // 5, -1, _ID_ROUND)


def wall_clock_ms() -> int:
    """Unix time in milliseconds."""
    return int(time.time() * 1000)


class Conversation:
    """The header of a thread. Ask the population for its messages."""

    __slots__ = (
        "__weakref__",
        "_name",
        "_named",
        "index",
        "kind",
        "live",
        "message_count",
        "population",
        "psid",
        "removed",
        "size",
        "thread_id",
        "unread",
    )

    def __init__(self, population: Population, index: int, size: int, kind: PersonKind = "normal") -> None:
        self.population = population
        self.index = index
        self.size = size
        """Messages ever made here, unsent ones included."""
        self.message_count = size
        self.kind: PersonKind = kind
        self.thread_id = f"t_{population.scramble(index, 7)}"
        self.psid = str(population.scramble(index, 3))
        self.live: list[Message] | None = None
        """The messages, once live traffic changed any."""
        self.unread: int | None = None
        """None: still as generated, see `Population.unread_count`."""
        self.removed = False
        """Deleted by the Page's people: Graph knows no such thread."""
        self._name: str | None = None
        self._named = False

    @property
    def updated_ms(self) -> int:
        """When the last message was written."""
        return self.population.key_of(self.index)[0]

    @property
    def key(self) -> tuple[int, int]:
        """Its place in the inbox; descending is newest first."""
        return self.population.key_of(self.index)

    @property
    def customer_id(self) -> str | None:
        """The person's PSID, None where Graph shows no id."""
        return None if self.kind in ("gone", "no_id") else self.psid

    @property
    def name(self) -> str | None:
        """The person's name, None where Graph shows none."""
        if not self._named:
            if self.kind == "facebook_user":
                self._name = "Facebook User"
            elif self.kind in ("normal", "no_id"):
                self._name = content.person_name(self.population.generator("name", self.index))
            self._named = True
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        self._name = name
        self._named = True


class _Conversations(Sequence[Conversation]):
    """All conversations by index, in the order they were made; each is made when it is asked for."""

    def __init__(self, make: Callable[[int], Conversation], sizes: Sequence[int]) -> None:
        self._make = make
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> Conversation: ...
    @overload
    def __getitem__(self, place: slice) -> list[Conversation]: ...
    def __getitem__(self, place: int | slice) -> Conversation | list[Conversation]:
        found = range(len(self._sizes))[place]
        return self._make(found) if isinstance(found, int) else [self._make(index) for index in found]


class Population:
    """The inbox of one Page.

    Promises: the same `page_id`, `seed`, `conversations`, `mean_messages` and `now` give the same
    conversations, ids, times and texts; ids and texts do not depend on `now`. The mean length is
    `mean_messages` (at least one message each), but for one thread that has `longest`, if that is not 0.
    `now` is where the generated past ends; live changes happen at `clock` (Unix milliseconds) but never
    before anything that already happened.
    """

    def __init__(
        self,
        page_id: str,
        seed: int,
        conversations: int,
        mean_messages: float,
        now: datetime,
        *,
        page_name: str = "",
        clock: Callable[[], int] = wall_clock_ms,
        longest: int = 0,
    ) -> None:
        self.page_id = page_id
        self.page_name = page_name
        self.clock = clock
        self.moment: int | None = None
        """When what is played happens, if that is not now: life keeps to its plan, not to the clock."""
        self._secret = f"{seed}:{page_id}"
        self._message_ids = MessageIds(self._secret)
        self._id_bases = [self.generator("ids", leading).randrange(_ID_RANGE) for leading in range(10)]
        self._last_ms = int(now.timestamp() * 1000)
        self._cache: OrderedDict[int, list[Message]] = OrderedDict()
        self._cached = 0
        self.live_changes = 0

        rng = self.generator("headers", 0)
        lengths = sizes(conversations, mean_messages)
        if longest and lengths:
            lengths[lengths.index(max(lengths))] = longest
        rng.shuffle(lengths)
        self._special = kinds(conversations, rng)
        self._sizes = array("I", lengths)
        random, end = rng.random, self._last_ms
        # Newest first, denser towards today.
        ages = (_SPAN_MS * ((index + random()) / conversations) ** 2.2 for index in range(conversations))
        self._updated = array("q", (end - int(age) - 1000 for age in ages))
        self._order = array("I", sorted(range(conversations), key=self._updated.__getitem__))
        """Indexes by key, ascending."""
        self._held: dict[int, Conversation] = {}
        """What the seed alone no longer gives."""
        self._made: WeakValueDictionary[int, Conversation] = WeakValueDictionary()
        self.conversations: Sequence[Conversation] = _Conversations(self._conversation, self._sizes)

    # -- reading

    def generator(self, purpose: str, index: int) -> Random:
        """A random generator of its own for one purpose."""
        return Random(f"{self._secret}:{purpose}:{index}")  # noqa: S311 - made to be predictable

    def scramble(self, index: int, leading: int) -> int:
        """A 16-digit number with a given first digit, different for each index."""
        return leading * _ID_RANGE + (self._id_bases[leading] + index * _ID_STEP) % _ID_RANGE

    def key_of(self, index: int) -> tuple[int, int]:
        """The place of a conversation in the inbox, see `Conversation.key`."""
        return (self._updated[index], index)

    def conversation(self, thread_id: str) -> Conversation | None:
        found = self._found(thread_id.removeprefix("t_"), 7) if thread_id.startswith("t_") else None
        return None if found is None or found.removed else found

    def conversation_with(self, psid: str) -> Conversation | None:
        """The thread with a person Graph shows the id of."""
        conversation = self._found(psid, 3)
        if conversation is None or conversation.removed or not conversation.customer_id:
            return None
        return conversation

    def _found(self, number: str, leading: int) -> Conversation | None:
        """The conversation whose index `scramble` made into this number."""
        if not number.isascii() or not number.isdecimal() or len(number) > 16:
            return None
        steps, rest = divmod((int(number) - self._id_bases[leading]) % _ID_RANGE, 5)
        index = steps * _ID_BACK % _ID_ROUND
        if rest or index >= len(self._sizes) or number != str(self.scramble(index, leading)):
            return None
        return self._conversation(index)

    def _conversation(self, index: int) -> Conversation:
        """The one object of a conversation there is at a time."""
        found = self._held.get(index) or self._made.get(index)
        if found is None:
            found = Conversation(self, index, self._sizes[index], self._special.get(index, "normal"))
            self._made[index] = found
        return found

    def hold(self, conversation: Conversation) -> None:
        """Keep a conversation that is no longer as the seed makes it."""
        self._held[conversation.index] = conversation

    def find_message(self, message_id: str) -> tuple[Conversation, Message] | None:
        """A message, unsent or not, with its thread."""
        place = self._message_ids.find(message_id)
        if place is None or place[0] >= len(self.conversations):
            return None
        conversation = self.conversations[place[0]]
        if place[1] >= conversation.size:
            return None
        # Nothing is ever taken out of this list, so a message's number is its place.
        return conversation, self.all_messages(conversation)[place[1]]

    def newest_first(
        self, limit: int, after: tuple[int, int] | None = None, before: tuple[int, int] | None = None
    ) -> tuple[list[Conversation], bool, bool]:
        """A slice of the inbox: the conversations, whether newer ones and whether older ones exist beyond it.

        A position is a key, not an offset: a thread that meanwhile jumped to the front is not shown again,
        and one that jumped past the reader is missed, as it happens there.
        """
        start, stop = window(self._order, self.key_of, limit, after, before)
        found = [self._conversation(index) for index in reversed(self._order[start:stop])]
        return found, stop < len(self._order), start > 0

    def all_messages(self, conversation: Conversation) -> list[Message]:
        """Every message of a thread, oldest first, unsent ones included. Do not change the list."""
        if conversation.live is not None:
            return conversation.live
        cached = self._cache.get(conversation.index)
        if cached is not None:
            self._cache.move_to_end(conversation.index)
            return cached
        made = past(
            self._message_ids,
            conversation.index,
            conversation.size,
            conversation.updated_ms,
            self.generator("past", conversation.index),
        )
        self._cache[conversation.index] = made
        self._cached += len(made)
        while self._cached > _CACHED_MESSAGES and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1])
        return made

    def visible_messages(self, conversation: Conversation) -> list[Message]:
        """What Graph shows of a thread, oldest first."""
        messages = self.all_messages(conversation)
        if conversation.message_count == len(messages):
            return messages
        return [message for message in messages if not message.deleted]

    def messages_newest_first(
        self,
        conversation: Conversation,
        limit: int,
        after: tuple[int, int] | None = None,
        before: tuple[int, int] | None = None,
    ) -> tuple[list[Message], bool, bool]:
        """A slice of a thread, see `newest_first`."""
        messages = self.visible_messages(conversation)
        start, stop = window(messages, lambda message: message.key, limit, after, before)
        return messages[start:stop][::-1], stop < len(messages), start > 0

    def unread_count(self, conversation: Conversation) -> int:
        """Inbound messages the Page has not seen."""
        if conversation.unread is None:
            count = 0
            if conversation.index % 5 < 2:
                for message in reversed(self.visible_messages(conversation)):
                    if message.outbound:
                        break
                    count += 1
            conversation.unread = count
        return conversation.unread

    def message_total(self) -> int:
        """Messages Graph shows in all threads."""
        changed = sum(one.message_count - self._sizes[index] for index, one in self._held.items())
        return sum(self._sizes) + changed

    def iterate(self, start: int = 0, count: int | None = None) -> Iterator[Conversation]:
        """Conversations by index, which never changes while the inbox is reordered."""
        index = start
        while index < len(self._sizes) and (count is None or index < start + count):
            yield self._conversation(index)
            index += 1

    # -- living

    def new_message(
        self,
        conversation: Conversation | None,
        direction: Direction,
        text: str = "",
        *,
        kind: str | None = None,
        reply_to: str | None = None,
        postback_payload: str | None = None,
    ) -> tuple[Conversation, Message]:
        """Somebody writes now. Without a conversation a new person writes for the first time.

        `kind` puts a sticker, share or attachment on it (see `messages.attach`). The thread moves to the
        front of the inbox; an inbound message is unread, an outbound one means that the Page has read what
        was there.
        """
        now = self._tick()
        if conversation is None:
            conversation = self._new_conversation(now)
        messages = self._enliven(conversation)
        number = conversation.size
        message = Message(self._message_ids, conversation.index, number, now, direction == "out", text)
        message.reply_to, message.postback_payload = reply_to, postback_payload
        if kind is not None:
            attach(message, kind, self.generator("live", conversation.index * 100_003 + number))
        unread = self.unread_count(conversation)
        messages.append(message)
        conversation.size += 1
        conversation.message_count += 1
        conversation.unread = 0 if message.outbound else unread + 1
        self._move(conversation, now)
        return conversation, message

    def edit(self, message_id: str, text: str) -> tuple[Conversation, Message]:
        """The author changes the text. Nothing of the thread moves, so only a webhook tells."""
        conversation, message = self._live_message(message_id)
        message.text = text
        message.edits += 1
        return conversation, message

    def react(
        self, message_id: str, reaction: str | None, by: str = "person"
    ) -> tuple[Conversation, Message]:
        """`person` or `page` reacts; None takes the reaction back."""
        conversation, message = self._live_message(message_id)
        kept = [given for given in message.reactions if given[0] != by]
        message.reactions = kept if reaction is None else [*kept, (by, reaction)]
        return conversation, message

    def unsend(self, message_id: str) -> tuple[Conversation, Message]:
        """The author takes a message back: Graph no longer shows it. `updated_time` stays."""
        conversation, message = self._live_message(message_id)
        if not message.deleted:
            self.unread_count(conversation)
            message.deleted = True
            conversation.message_count -= 1
        return conversation, message

    def remove(self, conversation: Conversation) -> None:
        """The Page's people delete the thread, with all that was in it. No webhook tells. It is there again,
        under its id and with what is new, when somebody writes in it.
        """
        self._tick()
        for message in self._enliven(conversation):
            message.deleted = True
        self._unlist(conversation)
        conversation.message_count = 0
        conversation.unread = 0
        conversation.removed = True

    def read(self, conversation: Conversation, by: str = "person") -> int:
        """`person` reads the Page's messages, or `page` the person's. The watermark in milliseconds."""
        now = self._tick()
        if by == "page":
            conversation.unread = 0
            self.hold(conversation)
        return now

    def deliver(self, conversation: Conversation) -> tuple[int, list[str]]:
        """The person's device got the Page's messages: watermark in milliseconds, ids of the newest ones."""
        outbound = [message for message in self.visible_messages(conversation)[-5:] if message.outbound]
        return self._tick(), [message.message_id for message in outbound]

    def rename(self, conversation: Conversation, name: str | None) -> None:
        """The person's name changes or disappears."""
        conversation.name = name
        self.hold(conversation)

    def now(self) -> int:
        """When what happens now happens, Unix milliseconds."""
        return self.clock() if self.moment is None else self.moment

    def _tick(self) -> int:
        self.live_changes += 1
        self._last_ms = max(self.now(), self._last_ms + 1)
        return self._last_ms

    def _new_conversation(self, now: int) -> Conversation:
        index = len(self._sizes)
        self._sizes.append(0)
        self._updated.append(now)
        insort(self._order, index, key=self.key_of)
        conversation = self._conversation(index)
        conversation.live = []
        conversation.unread = 0
        self.hold(conversation)
        return conversation

    def _enliven(self, conversation: Conversation) -> list[Message]:
        if conversation.live is None:
            conversation.live = self.all_messages(conversation)
            self._cached -= len(self._cache.pop(conversation.index))
            self.hold(conversation)
        return conversation.live

    def _live_message(self, message_id: str) -> tuple[Conversation, Message]:
        found = self.find_message(message_id)
        if found is None:
            raise KeyError(message_id)
        self._enliven(found[0])
        self._tick()
        return found

    def _move(self, conversation: Conversation, now: int) -> None:
        if not conversation.removed:
            self._unlist(conversation)
        conversation.removed = False
        self._updated[conversation.index] = now
        insort(self._order, conversation.index, key=self.key_of)

    def _unlist(self, conversation: Conversation) -> None:
        del self._order[bisect_left(self._order, conversation.key, key=self.key_of)]
