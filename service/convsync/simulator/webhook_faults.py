"""What may go wrong with webhooks on their way, each a fault that is planted for a share of them.

On events: `lose`, `delay`, `batch`, `reorder`, `standby`, `string_seconds`, `numeric_ids`, `extra_field`. On
finished deliveries: `duplicate`, `forge`, `signature`, `unescaped`. What happened in the inbox stays as it
is; only what is told of it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

MAX_BATCH = 1000
"""Updates in one delivery: "a maximum of 1000 updates" (Meta, webhooks)."""

SIGNATURES = ("both", "sha256", "sha1", "wrong", "none")


class WebhookFaultError(ValueError):
    """A fault that cannot be planted; the text begins with the field that is to blame."""


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**7:
        raise ValueError("seconds from 0 to 10,000,000 are wanted")
    return float(value)


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most} is wanted")
        return value

    return check


def _signature(value: Any) -> str:
    if value not in SIGNATURES:
        raise ValueError(f"one of {', '.join(SIGNATURES)} is wanted")
    return str(value)


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is wanted")
    return value


_Parameter = tuple[Any, Callable[[Any], Any]]

# For each action its own parameters, with default and check.
PARAMETERS: dict[str, dict[str, _Parameter]] = {
    # It happened, and no webhook ever tells.
    "lose": {},
    # Told so many simulated seconds later; what happens meanwhile overtakes it.
    "delay": {"seconds": (60.0, _seconds)},
    # Up to `size` events in one delivery, of all Pages, gathered for `seconds` (real ones). Each event is an
    # entry of its own, as documented, or with `one_entry` all neighbours of one Page are one entry.
    "batch": {
        "size": (MAX_BATCH, _whole(2, MAX_BATCH)),
        "seconds": (0.2, _seconds),
        "one_entry": (False, _yes_or_no),
    },
    # `window` events are gathered for at most `seconds` and go out in another order, one after the other.
    "reorder": {"window": (10, _whole(2, MAX_BATCH)), "seconds": (0.2, _seconds)},
    # Another app owns the thread: the event comes in `standby` instead of `messaging`.
    "standby": {},
    # Times as strings of seconds, as the dashboard's test button sends them.
    "string_seconds": {},
    # Ids as JSON numbers, as old recordings have them.
    "numeric_ids": {},
    # A key that no documentation knows, in the event and beside it.
    "extra_field": {},
    # The same bytes, `copies` more times, all at once.
    "duplicate": {"copies": (1, _whole(1, 20))},
    # Beside the delivery one more, of something that never happened, signed with a guessed secret.
    "forge": {},
    # Other signature headers than both of the right ones.
    "signature": {"kind": ("wrong", _signature)},
    # UTF-8 as it is instead of `\\u` escapes and `\\/`.
    "unescaped": {},
}
_GATHERING = ("batch", "reorder")


@dataclass(slots=True)
class WebhookFault:
    """A fault on webhooks of `page_id` (None: any) whose subscription field is among `fields` (None: any).

    The first `after` of them are spared; of the rest each is hit with probability `share`, at most `times` in
    all (None: no end).
    """

    fault_id: int
    action: str
    page_id: str | None
    fields: frozenset[str] | None
    share: float
    after: int
    times: int | None
    params: dict[str, Any]
    random: Random
    seen: int = 0
    hits: int = 0

    def wants(self, page_id: str, field_name: str) -> bool:
        """Whether this one is hit; counts it."""
        if self.page_id is not None and self.page_id != page_id:
            return False
        if self.fields is not None and field_name not in self.fields:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.hits >= self.times):
            return False
        if self.share < 1 and self.random.random() >= self.share:
            return False
        self.hits += 1
        return True

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.fault_id,
            "action": self.action,
            "page_id": self.page_id,
            "fields": None if self.fields is None else sorted(self.fields),
            "share": self.share,
            "after": self.after,
            "times": self.times,
            "seen": self.seen,
            "hits": self.hits,
            **self.params,
        }


@dataclass(slots=True)
class WebhookFaults:
    """The faults on webhooks of one simulator. The same seed hits the same of the same events."""

    seed: int = 1
    _planted: list[WebhookFault] = field(default_factory=list)
    _ids: count[int] = field(default_factory=lambda: count(1))

    def add(self, action: str, **more: Any) -> WebhookFault:
        """Plant a fault, see `plant`."""
        return self.plant({"action": action, **more})

    def plant(self, description: Mapping[str, Any]) -> WebhookFault:
        """Plant a fault given as JSON: `{"action", "page_id"?, "fields"?, "share"?, "after"?, "times"?, ..}`.

        Raises WebhookFaultError, whose text begins with the name of the field.
        """
        number = next(self._ids)
        fault = parse_webhook_fault(description, number, self.seed)
        self._planted.append(fault)
        return fault

    def remove(self, fault_id: int) -> bool:
        """Take a fault back; whether it was there."""
        left = [fault for fault in self._planted if fault.fault_id != fault_id]
        found = len(left) < len(self._planted)
        self._planted = left
        return found

    def clear(self) -> None:
        self._planted.clear()

    def list(self) -> list[dict[str, Any]]:
        return [fault.describe() for fault in self._planted]

    def hit(self, action: str, page_id: str, field_name: str) -> WebhookFault | None:
        """The fault of this action that hits, if any; counts it."""
        for fault in self._planted:
            if fault.action == action and fault.wants(page_id, field_name):
                return fault
        return None

    def most_gathered(self) -> int:
        """How many events wait for each other, at most, before any of them is sent."""
        sizes = (fault.params.get("size", fault.params.get("window", 0)) for fault in self._planted)
        return max(sizes, default=0)

    def gathering(self, page_id: str, field_name: str) -> WebhookFault | None:
        """The `batch` or `reorder` fault that this event waits in, if any."""
        for action in _GATHERING:
            found = self.hit(action, page_id, field_name)
            if found is not None:
                return found
        return None


def parse_webhook_fault(description: Mapping[str, Any], number: int = 0, seed: int = 1) -> WebhookFault:
    """A fault from its description. Raises WebhookFaultError, whose text begins with the field's name."""
    given = dict(description)
    action = given.pop("action", None)
    if action not in PARAMETERS:
        raise WebhookFaultError(f"action: {action!r} is none of {', '.join(sorted(PARAMETERS))}")
    page_id = given.pop("page_id", None)
    if page_id is not None and not isinstance(page_id, str):
        raise WebhookFaultError("page_id: a string is wanted")
    fields = given.pop("fields", None)
    if fields is not None and (
        not isinstance(fields, list | tuple) or not all(isinstance(name, str) for name in fields)
    ):
        raise WebhookFaultError("fields: a list of subscription fields is wanted")
    share = given.pop("share", 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise WebhookFaultError("share: a number above 0, up to 1, is wanted")
    try:
        after = _whole(0, 10**9)(given.pop("after", 0))
    except ValueError as error:
        raise WebhookFaultError(f"after: {error}") from None
    times = given.pop("times", None)
    try:
        times = None if times is None else _whole(1, 10**9)(times)
    except ValueError as error:
        raise WebhookFaultError(f"times: {error}") from None
    known = PARAMETERS[action]
    for name in given:
        if name not in known:
            takes = ", ".join(("page_id", "fields", "share", "after", "times", *known))
            raise WebhookFaultError(f"{name}: {action} does not know it; it takes {takes}")
    params = {}
    for name, (default, check) in known.items():
        try:
            params[name] = check(given.get(name, default))
        except ValueError as error:
            raise WebhookFaultError(f"{name}: {error}") from None
    random = Random(f"webhook-fault:{seed}:{number}")  # noqa: S311 - made to be predictable
    return WebhookFault(
        number,
        action,
        page_id,
        None if fields is None else frozenset(fields),
        float(share),
        after,
        times,
        params,
        random,
    )
