"""One event of a delivery -> facts.

What each kind becomes (decided here, and nowhere else):

- `message` -> `Message`, or `Unsend` when `is_deleted`; an echo (`is_echo`, or sent by the Page) has
  direction `out` and the recipient as its person.
- `message_edit` -> `Edit`; `reaction` -> `Reaction`; `read` and `delivery` -> `Watermark`.
- `postback` -> `Message` of type `postback`, in the thread if the platform gave it a mid.
- Everything else that has a person is kept as an event outside the thread (`in_thread` false) under a
  digest, of the type of its kind, or `unknown` for a kind nobody here has heard of, with the whole raw
  event in `metadata["webhook"]`. Likewise an edit without text, a `read` or `delivery` without a
  watermark (Instagram names a mid), and one that tells what the *Page* has read: they assert nothing
  about the customer's watermark or the message's text. Direction is `out` if the Page is the sender,
  else `in`: hand-overs and policy events too, since the platform tells them to the Page.
- A policy notice or the roles of apps that name no person are told of the Page itself: `PageEvent`. Any
  other event without a person becomes a dead letter, where an operator sees it.
- What an event says that nobody here has heard of is kept: in the metadata of its message, or, where it
  becomes an edit, a reaction, an unsend or a watermark, as the whole event beside that (`in_thread`
  false, of the type of its kind). `mids` of a delivery are not kept: its watermark says the same of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from convsync.facts import (
    Direction,
    Edit,
    Fact,
    Json,
    Message,
    PageEvent,
    Reaction,
    Unsend,
    Watermark,
    digest_id,
    drift_name,
)
from convsync.webhook.models import (
    EditBody,
    Head,
    MessageBody,
    OptinParty,
    Party,
    PostbackBody,
    ReactionBody,
    WatermarkBody,
)

NO_PERSON = "event without a person"
_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_HEAD_KEYS = frozenset(("sender", "recipient", "timestamp"))
_MESSAGE_OWN = frozenset(("mid", "text", "is_echo"))
_ACCOMPANYING = _HEAD_KEYS | {"prior_message"}
_OF_THE_PAGE = frozenset(("app_roles", "policy_enforcement", "policy-enforcement"))
# An object that is keyed by people has their ids for names, one each.
_Body = TypeVar("_Body", bound=BaseModel)


class NotUnderstoodError(Exception):
    """The item becomes a dead letter; the message names the field and holds nothing of its content."""


@dataclass(slots=True)
class Event:
    """An event with what its kinds share already read.

    `at` is the event's own time, else its entry's, else that of receipt; `stamp` is the same but for
    the last, which differs when the delivery is repeated and so has no part in a digest.
    """

    page_id: str
    raw: Json
    standby: bool
    sender: str | None
    recipient: str | None
    at: datetime
    stamp: datetime
    extras: Json
    around: Json
    drift: list[str]
    unheard: bool = False  # whether the body that was read last has a field that nobody has heard of

    @property
    def person(self) -> str | None:
        """The party that is not the Page; the sender if neither is."""
        for party in (self.sender, self.recipient):
            if party is not None and party != self.page_id:
                return party
        return None

    @property
    def direction(self) -> Direction:
        return "out" if self.sender == self.page_id else "in"


@dataclass(slots=True)
class Outcome:
    """`facts` of the event; `problems` are the reasons why it, or a part of it, was not understood."""

    facts: list[Fact] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_event(
    page_id: str,
    raw: Json,
    *,
    standby: bool,
    entry_time: datetime | None,
    received_at: datetime,
    around: Json,
    drift: list[str],
) -> Outcome:
    """The facts of one event of `messaging`, `standby`, or of a `changes` value of the same shape.

    Never raises for anything that JSON can hold. `around` is what nobody has heard of in its surroundings;
    `drift` is added to.
    """
    outcome = Outcome()
    try:
        event = _open(page_id, raw, standby, entry_time, received_at, around, drift)
    except NotUnderstoodError as problem:
        outcome.problems.append(str(problem))
        return outcome
    known: list[str] = []
    nulls: list[str] = []
    strange: list[str] = []
    for key, value in raw.items():
        if key in _READERS:
            (known if value is not None else nulls).append(key)
        elif key not in _ACCOMPANYING:
            strange.append(key)
            drift.append(drift_name("event", key))
            event.extras[key] = value
    if not known:
        # A null says nothing, but of the kinds that are kept as they come the bare name is worth keeping.
        known = [key for key in nulls if _READERS[key] is _keep]
        if nulls and not known:
            outcome.problems.append(f"{nulls[0]}: is null")
            return outcome
    kept = False
    try:
        for kind in known:
            event.unheard = False
            facts = _READERS[kind](event, kind)
            if event.unheard and not any(isinstance(fact, Message) for fact in facts):
                facts += _keep(event, kind)
            outcome.facts += facts
            kept = kept or any(isinstance(fact, (Message, PageEvent)) for fact in facts)
        if not known or ((strange or event.extras or event.around) and not kept):
            # A kind nobody here has heard of, alone or beside one that has no place to keep it.
            outcome.facts += _keep(event, "unknown")
    except NotUnderstoodError as problem:
        outcome.problems.append(str(problem))
    return outcome


def validated(model: type[_Body], value: object, name: str) -> _Body:
    """`value` as a `model`, or NotUnderstoodError naming the field under `name`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise NotUnderstoodError(_reason(error, name)) from None


def person_of(party: Party | None) -> str | None:
    if party is None:
        return None
    if party.id is not None:
        return party.id
    return None if party.user_ref is None else f"user_ref:{party.user_ref}"


def _reason(error: ValidationError, name: str) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(step) for step in ((name, *first["loc"]) if name else first["loc"]))
    return f"{path or 'event'}: {first['msg']}"[:300]


def _open(
    page_id: str,
    raw: Json,
    standby: bool,
    entry_time: datetime | None,
    received_at: datetime,
    around: Json,
    drift: list[str],
) -> Event:
    head = validated(Head, raw, "")
    extras: Json = {}
    for name, party in (("sender", head.sender), ("recipient", head.recipient)):
        if party is not None and party.model_extra:
            extras[name] = party.model_extra
            drift.extend(drift_name(name, key) for key in party.model_extra)
    stamp = head.timestamp or entry_time
    return Event(
        page_id=page_id,
        raw=raw,
        standby=standby,
        sender=person_of(head.sender),
        recipient=person_of(head.recipient),
        at=stamp or received_at,
        stamp=stamp or _NO_TIME,
        extras=extras,
        around=around,
        drift=drift,
    )


def _body(event: Event, kind: str, model: type[_Body]) -> _Body:
    body = validated(model, event.raw[kind], kind)
    if body.model_extra:
        event.unheard = True
        event.drift.extend(drift_name(kind, key) for key in body.model_extra)
    return body


def _person(event: Event, kind: str) -> str:
    person = event.person
    if person is None:
        raise NotUnderstoodError(f"{NO_PERSON}: {kind}"[:300])
    return person


def _told(event: Event, rest: Json) -> Json:
    """`metadata` of a message: what the platform said beside the columns, `standby` and surroundings."""
    if "prior_message" in event.raw:
        rest["prior_message"] = event.raw["prior_message"]
    if event.standby:
        rest["standby"] = True
    if event.extras:
        rest["event"] = event.extras
    if event.around:
        rest["around"] = event.around
    return {"webhook": rest}


def _message(event: Event, kind: str) -> list[Fact]:
    body = _body(event, kind, MessageBody)
    if body.is_echo or event.sender == event.page_id:
        # Instagram's entry may bear another id of the account than its messages: is_echo decides.
        direction: Direction = "out"
        person = event.recipient
        if person is None or person == event.page_id:
            raise NotUnderstoodError("recipient.id: an echo without the person it was sent to")
    else:
        direction = "in"
        if event.sender is None:
            raise NotUnderstoodError("sender.id: a message without a sender")
        person = event.sender
    if body.is_deleted:
        return [Unsend(event.page_id, person, body.mid, event.at)]
    raw: Json = event.raw[kind]
    rest = {key: value for key, value in raw.items() if key not in _MESSAGE_OWN}
    return [
        Message(
            event.page_id,
            person,
            body.mid,
            direction,
            event.at,
            body.text,
            "message",
            _told(event, rest),
        )
    ]


def _edit(event: Event, kind: str) -> list[Fact]:
    body = _body(event, kind, EditBody)
    person = _person(event, kind)
    if body.text is None:
        return _keep(event, kind)
    # Without a number, edits are ordered by their time alone.
    number = 1 if body.num_edit is None else body.num_edit
    return [Edit(event.page_id, person, body.mid, event.at, number, body.text)]


def _reaction(event: Event, kind: str) -> list[Fact]:
    body = _body(event, kind, ReactionBody)
    person = _person(event, kind)
    if event.sender is None:
        raise NotUnderstoodError("sender.id: a reaction without an actor")
    value, emoji = (body.reaction, body.emoji) if body.action == "react" else (None, None)
    return [Reaction(event.page_id, person, body.mid, event.at, event.sender, body.action, value, emoji)]


def _watermark(event: Event, kind: str) -> list[Fact]:
    body = _body(event, kind, WatermarkBody)
    person = _person(event, kind)
    if body.watermark is None or event.sender != person:
        return _keep(event, kind)
    return [Watermark(event.page_id, person, "read" if kind == "read" else "delivered", body.watermark)]


def _postback(event: Event, kind: str) -> list[Fact]:
    body = _body(event, kind, PostbackBody)
    person = _person(event, kind)
    raw: Json = event.raw[kind]
    rest = {key: value for key, value in raw.items() if key not in ("mid", "title")}
    return [
        Message(
            page_id=event.page_id,
            sender_id=person,
            message_id=body.mid or digest_id(event.page_id, person, event.stamp, kind, raw),
            direction=event.direction,
            at=event.at,
            text=body.title,
            event_type=kind,
            metadata=_told(event, rest),
            in_thread=body.mid is not None,
        )
    ]


def _optin(event: Event, kind: str) -> list[Fact]:
    if event.person is None and isinstance(event.raw[kind], dict):
        party = validated(OptinParty, event.raw[kind], kind)
        if party.user_ref is not None:
            event.sender = f"user_ref:{party.user_ref}"
    return _keep(event, kind)


def _keep(event: Event, kind: str) -> list[Fact]:
    """The event as it came, outside the thread; told of the Page itself if it names no person."""
    payload: Any = event.raw.get(kind)
    if payload is None:
        payload = {key: value for key, value in event.raw.items() if key not in _HEAD_KEYS}
    metadata = {**event.raw, "standby": True} if event.standby else event.raw
    if event.around:
        metadata = {**metadata, "around": event.around}
    event_type = kind.replace("-", "_")
    if event.person is None and kind in _OF_THE_PAGE:
        return [
            PageEvent(
                page_id=event.page_id,
                event_id=digest_id(event.page_id, "", event.stamp, event_type, payload),
                at=event.at,
                event_type=event_type,
                metadata={"webhook": metadata},
            )
        ]
    person = _person(event, kind)
    return [
        Message(
            page_id=event.page_id,
            sender_id=person,
            message_id=digest_id(event.page_id, person, event.stamp, event_type, payload),
            direction=event.direction,
            at=event.at,
            event_type=event_type,
            metadata={"webhook": metadata},
            in_thread=False,
        )
    ]


_READERS: dict[str, Callable[[Event, str], list[Fact]]] = {
    "message": _message,
    "message_edit": _edit,
    "reaction": _reaction,
    "read": _watermark,
    "delivery": _watermark,
    "postback": _postback,
    "optin": _optin,
    "referral": _keep,
    "pass_thread_control": _keep,
    "take_thread_control": _keep,
    "request_thread_control": _keep,
    "app_roles": _keep,
    "policy_enforcement": _keep,
    "policy-enforcement": _keep,
    "account_linking": _keep,
    "response_feedback": _keep,
    "order": _keep,
}
