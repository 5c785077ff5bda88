"""Live traffic: customers and agents write against an inbox, and a webhook is sent for each thing they do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from convsync.simulator import content, events
from convsync.simulator.events import Event
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation, Direction, Population
from convsync.simulator.webhooks import WebhookSender

# How often each kind happens, by weight. `unsend` is not here: no webhook of a Page tells it, so a mirror
# cannot know before it reads the thread again; ask for it by name.
DEFAULT_KINDS = {
    "text": 36,
    "echo": 30,
    "new_person": 5,
    "attachment": 4,
    "sticker": 3,
    "share": 1,
    "reply": 3,
    "quick_reply": 2,
    "postback": 2,
    "postback_without_mid": 1,
    "read": 4,
    "delivery": 4,
    "reaction": 3,
    "edit": 2,
    "referral": 1,
}
_ATTACHMENTS = ("image", "video", "audio", "file", "gif", "album")


_MAX_EDITS = 5
_TRIES = 50


class _NothingFitsError(Exception):
    """The inbox has nobody, or no message, that the kind needs."""


class UnknownKindError(ValueError):
    """A kind of traffic that does not exist."""


@dataclass(slots=True)
class Actor:
    """Plays one thing after the other. The same seed and inbox give the same play."""

    population: Population
    random: Random

    def play(self, kind: str) -> Event:
        """Let something happen and build the webhook that tells of it. Raises UnknownKindError.

        Where nothing fits (nobody wrote a text that could be edited) somebody new writes instead: a message
        never appears without a webhook of its own.
        """
        act = _ACTS.get(kind)
        if act is None:
            raise UnknownKindError(f"unknown kind {kind!r}; known: {', '.join(sorted(_ACTS))}")
        try:
            return act(self)
        except _NothingFitsError:
            return _new_person(self)

    def somebody(self) -> Conversation:
        """A thread whose person can write; recent ones are busier. Raises _NothingFitsError."""
        threads = self.population.conversations
        for _ in range(_TRIES if threads else 0):
            chosen = threads[int(self.random.random() ** 2 * len(threads))]
            if chosen.customer_id is not None:
                return chosen
        raise _NothingFitsError

    def write(self, direction: Direction = "in", **more: Any) -> tuple[Conversation, Message]:
        """Somebody writes, or the Page writes to them."""
        more.setdefault("text", content.text(self.random))
        return self.population.new_message(self.somebody(), direction, **more)

    def something(self, *, editable: bool = False) -> tuple[Conversation, Message]:
        """A recent message; an editable one has a text of the person. Raises _NothingFitsError."""
        for _ in range(_TRIES):
            conversation = self.somebody()
            recent = self.population.visible_messages(conversation)[-20:]
            if editable:
                recent = [one for one in recent if not one.outbound and one.text and one.edits < _MAX_EDITS]
            if recent:
                return conversation, recent[int(self.random.random() * len(recent))]
        raise _NothingFitsError

    def now(self) -> int:
        return self.population.clock()


def _text(actor: Actor) -> Event:
    return events.message_event(*actor.write())


def _echo(actor: Actor) -> Event:
    return events.echo_event(*actor.write("out"))


def _new_person(actor: Actor) -> Event:
    return events.message_event(*actor.population.new_message(None, "in", content.text(actor.random)))


def _attachment(actor: Actor) -> Event:
    return events.message_event(*actor.write(text="", kind=actor.random.choice(_ATTACHMENTS)))


def _sticker(actor: Actor) -> Event:
    return events.message_event(*actor.write(text="", kind="sticker"))


def _share(actor: Actor) -> Event:
    return events.message_event(*actor.write(kind="share"))


def _reply(actor: Actor) -> Event:
    conversation, target = actor.something()
    text = content.text(actor.random)
    written = actor.population.new_message(conversation, "in", text, reply_to=target.message_id)
    return events.message_event(*written)


def _quick_reply(actor: Actor) -> Event:
    conversation, message = actor.write(text="Yes please")
    return events.message_event(conversation, message, quick_reply="ANSWER_YES")


def _postback(actor: Actor) -> Event:
    title = actor.random.choice(content.POSTBACK_TITLES)
    conversation, message = actor.write(text=title, postback_payload="BUTTON")
    moment, mid = message.created_ms, message.message_id
    return events.postback_event(conversation, title, "BUTTON", moment, mid=mid)


def _postback_without_mid(actor: Actor) -> Event:
    title = actor.random.choice(content.POSTBACK_TITLES)
    return events.postback_event(actor.somebody(), title, "BUTTON", actor.now())


def _read(actor: Actor) -> Event:
    conversation = actor.somebody()
    return events.read_event(conversation, actor.population.read(conversation))


def _delivery(actor: Actor) -> Event:
    conversation = actor.somebody()
    return events.delivery_event(conversation, *actor.population.deliver(conversation))


def _reaction(actor: Actor) -> Event:
    conversation, target = actor.something()
    mid = target.message_id
    reaction = None if actor.random.random() < 0.2 else actor.random.choice(content.REACTIONS)[0]
    actor.population.react(mid, reaction)
    return events.reaction_event(conversation, mid, reaction, actor.now())


def _edit(actor: Actor) -> Event:
    conversation, message = actor.something(editable=True)
    actor.population.edit(message.message_id, content.text(actor.random) + " (edited)")
    return events.edit_event(conversation, message, actor.now())


def _referral(actor: Actor) -> Event:
    return events.referral_event(actor.somebody(), "spring-campaign", actor.now())


def _unsend(actor: Actor) -> Event:
    conversation, message = actor.something()
    actor.population.unsend(message.message_id)
    return events.unsend_event(conversation, message, actor.now())


_ACTS: dict[str, Callable[[Actor], Event]] = {
    "text": _text,
    "echo": _echo,
    "new_person": _new_person,
    "attachment": _attachment,
    "sticker": _sticker,
    "share": _share,
    "reply": _reply,
    "quick_reply": _quick_reply,
    "postback": _postback,
    "postback_without_mid": _postback_without_mid,
    "read": _read,
    "delivery": _delivery,
    "reaction": _reaction,
    "edit": _edit,
    "referral": _referral,
    "unsend": _unsend,
}
KINDS = frozenset(_ACTS)


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """What a run of live traffic did. `played` happened in the inbox; deliveries are webhook documents."""

    played: int
    delivered: int
    failed: int
    not_sent: int


async def live_traffic(
    population: Population,
    sender: WebhookSender,
    *,
    rate: float,
    count: int | None = None,
    seconds: float | None = None,
    seed: int = 1,
    kinds: Sequence[str] | None = None,
    silent: bool = False,
    in_flight: int = 20,
) -> TrafficReport:
    """Let things happen at `rate` per second (0: as fast as the receiver takes them) and send the webhook of
    each.

    Ends after `count` things or `seconds`, whichever comes first (at least one of them must be given), and
    when the last webhook is delivered or given up. Up to `in_flight` webhooks are on their way at once, so
    they may arrive out of order, as Meta warns. `silent` lets everything happen and sends nothing: what a
    receiver that was away has missed. Raises UnknownKindError before anything happens.
    """
    if count is None and seconds is None:
        raise ValueError("say how many or how long")
    for kind in kinds or ():
        if kind not in KINDS:
            raise UnknownKindError(f"unknown kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    weights = dict.fromkeys(kinds, 1) if kinds else DEFAULT_KINDS
    random = Random(f"traffic:{population.page_id}:{seed}")  # noqa: S311 - made to be predictable
    actor = Actor(population, random)
    gate = asyncio.Semaphore(in_flight)
    outcomes: Counter[str] = Counter()

    async def deliver(event: Event) -> None:
        try:
            delivery = await sender.send(population.page_id, [event])
        finally:
            gate.release()
        if delivery is None:
            outcomes["not_sent"] += 1
        else:
            outcomes["delivered" if delivery.delivered else "failed"] += 1

    loop = asyncio.get_running_loop()
    started = loop.time()
    played = 0
    async with asyncio.TaskGroup() as group:
        while count is None or played < count:
            if rate > 0:
                await asyncio.sleep(max(0.0, started + played / rate - loop.time()))
            if seconds is not None and loop.time() - started >= seconds:
                break
            await gate.acquire()
            kind = random.choices(list(weights), weights=list(weights.values()))[0]
            event = actor.play(kind)
            played += 1
            if silent:
                outcomes["not_sent"] += 1
                gate.release()
                await asyncio.sleep(0)
            else:
                group.create_task(deliver(event))
    return TrafficReport(played, outcomes["delivered"], outcomes["failed"], outcomes["not_sent"])
