"""Which of the processes tells of a cause that several of them see."""

from __future__ import annotations

from collections.abc import Hashable


class Tellers:
    """Whoever saw it first tells of it, and again while it lasts; whoever is the last, that it is over."""

    def __init__(self) -> None:
        # By alert, who sees it, the longest first.
        self._seeing: dict[str, dict[Hashable, None]] = {}

    def tells(self, who: Hashable, alert: str, state: str) -> bool:
        """Whether this one is to tell that the alert is `firing` (or `resolved`) for it."""
        seeing = self._seeing.setdefault(alert, {})
        if state == "firing":
            seeing.setdefault(who)
            return next(iter(seeing)) is who
        seeing.pop(who, None)
        return not seeing

    def gone(self, who: Hashable) -> None:
        """It sees nothing any more."""
        for seeing in self._seeing.values():
            seeing.pop(who, None)
