"""What a check comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from convsync.facts import Json

State = Literal["ok", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    `what` is what was found: for an `ok` what is there, for a `problem` what is wrong, for a `skipped` why
    it could not be looked at. Of a problem `problem` is the name, `why` says why it matters, and `mend` is
    the command that mends it. No text holds a secret.
    """

    check: str
    state: State
    what: str
    page_id: str | None = None
    problem: str | None = None
    why: str | None = None
    mend: str | None = None

    def as_json(self) -> Json:
        return asdict(self)


def ok(check: str, what: str, *, page_id: str | None = None) -> Check:
    return Check(check, "ok", what, page_id)


def skipped(check: str, what: str, *, page_id: str | None = None) -> Check:
    return Check(check, "skipped", what, page_id)


def problem(check: str, name: str, what: str, why: str, mend: str, *, page_id: str | None = None) -> Check:
    return Check(check, "problem", what, page_id, name, why, mend)
