"""What customers and agents do in an inbox, one function for each kind, with the webhooks that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from convsync.simulator import content, events
from convsync.simulator.events import Event
from convsync.simulator.messages import Message
from convsync.simulator.population import Conversation, Direction, Population

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

    def play(self, kind: str) -> list[Event]:
        """Let something happen and build the webhooks that tell of it, in the order they go out; none where
        Meta has none. Raises UnknownKindError.

        Where nothing fits (nobody wrote a text that could be edited) somebody new writes instead: a message
        never appears without a webhook of its own.
        """
        try:
            if kind in _ACTS:
                return [_ACTS[kind](self)]
            if kind in _ODD_ACTS:
                return _ODD_ACTS[kind](self)
        except _NothingFitsError:
            return [_new_person(self)]
        raise UnknownKindError(f"unknown kind {kind!r}; known: {', '.join(sorted(ALL_KINDS))}")

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

    def something(self, *, editable_by: Direction | None = None) -> tuple[Conversation, Message]:
        """A recent message; one that the person (`in`) or the Page (`out`) may edit has a text of theirs.
        Raises _NothingFitsError.
        """
        for _ in range(_TRIES):
            conversation = self.somebody()
            recent = self.population.visible_messages(conversation)[-20:]
            if editable_by is not None:
                own = editable_by == "out"
                recent = [
                    one for one in recent if one.outbound is own and one.text and one.edits < _MAX_EDITS
                ]
            if recent:
                return conversation, recent[int(self.random.random() * len(recent))]
        raise _NothingFitsError

    def now(self) -> int:
        return self.population.now()


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
    conversation, message = actor.something(editable_by="in")
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
"""What somebody does and one webhook tells."""


# -- what no mirror can rely on: several webhooks, webhooks of other kinds, or none at all


def _edit_before_message(actor: Actor) -> list[Event]:
    """A text is edited so soon that the edit arrives before it. The message tells the first text."""
    conversation, message = actor.write()
    first = events.message_event(conversation, message)
    actor.population.edit(message.message_id, content.text(actor.random) + " (edited)")
    return [events.edit_event(conversation, message, actor.now()), first]


def _reaction_before_message(actor: Actor) -> list[Event]:
    conversation, message = actor.write("out")
    echo = events.echo_event(conversation, message)
    actor.population.react(message.message_id, "love")
    return [events.reaction_event(conversation, message.message_id, "love", actor.now()), echo]


def _burst(actor: Actor) -> list[Event]:
    """A person writes five messages within a second."""
    conversation, _ = actor.something()
    population = actor.population
    written = [population.new_message(conversation, "in", content.text(actor.random)) for _ in range(5)]
    return [events.message_event(*one) for one in written]


def _agent_edit(actor: Actor) -> list[Event]:
    _, message = actor.something(editable_by="out")
    actor.population.edit(message.message_id, content.text(actor.random) + " (edited)")
    return []


def _agent_reaction(actor: Actor) -> list[Event]:
    _, target = actor.something()
    actor.population.react(target.message_id, actor.random.choice(content.REACTIONS)[0], by="page")
    return []


def _agent_read(actor: Actor) -> list[Event]:
    actor.population.read(actor.somebody(), by="page")
    return []


def _silent_unsend(actor: Actor) -> list[Event]:
    """As documented: no webhook of a Page tells that a message was taken back."""
    actor.population.unsend(actor.something()[1].message_id)
    return []


def _rename(actor: Actor) -> list[Event]:
    actor.population.rename(actor.somebody(), content.person_name(actor.random))
    return []


def _optin(actor: Actor) -> list[Event]:
    return [events.optin_event(actor.somebody(), actor.now())]


def _handover(actor: Actor) -> list[Event]:
    kind = actor.random.choice(("pass", "take", "request"))
    return [events.handover_event(actor.somebody(), kind, actor.now())]


def _app_roles(actor: Actor) -> list[Event]:
    return [events.app_roles_event(actor.somebody(), actor.now())]


def _policy(actor: Actor) -> list[Event]:
    action = actor.random.choice(("warning", "block", "unblock"))
    return [events.policy_event(actor.somebody(), action, actor.now())]


def _account_linking(actor: Actor) -> list[Event]:
    code = "LINK-7" if actor.random.random() < 0.5 else None
    return [events.account_linking_event(actor.somebody(), code, actor.now())]


def _feedback(actor: Actor) -> list[Event]:
    conversation, message = actor.something()
    return [events.feedback_event(conversation, message.message_id, actor.now())]


def _order(actor: Actor) -> list[Event]:
    return [events.order_event(actor.somebody(), actor.now())]


def _unknown(actor: Actor) -> list[Event]:
    return [events.unknown_event(actor.somebody(), actor.now())]


def _thread_change(actor: Actor) -> list[Event]:
    """Somebody writes, and both the message and a bare `conversations` change tell of it."""
    conversation, message = actor.write()
    return [events.thread_change_event(conversation), events.message_event(conversation, message)]


def _label(actor: Actor) -> list[Event]:
    return [events.label_event(actor.somebody(), "Stammkunde")]


_ODD_ACTS: dict[str, Callable[[Actor], list[Event]]] = {
    "edit_before_message": _edit_before_message,
    "reaction_before_message": _reaction_before_message,
    "burst": _burst,
    "agent_edit": _agent_edit,
    "agent_reaction": _agent_reaction,
    "agent_read": _agent_read,
    "silent_unsend": _silent_unsend,
    "rename": _rename,
    "optin": _optin,
    "handover": _handover,
    "app_roles": _app_roles,
    "policy": _policy,
    "account_linking": _account_linking,
    "feedback": _feedback,
    "order": _order,
    "unknown": _unknown,
    "thread_change": _thread_change,
    "label": _label,
}
ODD_KINDS = frozenset(_ODD_ACTS)
ALL_KINDS = KINDS | ODD_KINDS


def weights_of(kinds: Sequence[str] | Mapping[str, float] | None) -> dict[str, float]:
    """How often each kind happens: the given weights, the same for each of a list, or the ordinary mix.
    Raises UnknownKindError, or ValueError for a weight that is none.
    """
    if not kinds:
        return {kind: float(weight) for kind, weight in DEFAULT_KINDS.items()}
    given = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 1.0)
    for kind, weight in given.items():
        if kind not in ALL_KINDS:
            raise UnknownKindError(f"unknown kind {kind!r}; known: {', '.join(sorted(ALL_KINDS))}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise ValueError(f"the weight of {kind} is a number from 0 on")
    if not any(given.values()):
        raise ValueError("at least one kind needs a weight above 0")
    return {kind: float(weight) for kind, weight in given.items()}
