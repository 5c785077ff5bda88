"""How long a version of the Graph API lives.

A version is "no longer usable two years after the date that the subsequent version is released"; calls
of a dead one are answered by the oldest that is left, without an error, and mean something else.
Source: developers.facebook.com/docs/graph-api/changelog/versions
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

WARN_DAYS: Final = 90

EXPIRES: Final[dict[str, date | None]] = {
    "v26.0": None,  # the newest: Meta names the day when the next one is out
    "v25.0": date(2028, 7, 29),
    "v24.0": date(2028, 2, 18),
    "v23.0": date(2027, 10, 8),
    "v22.0": date(2027, 5, 20),
    "v21.0": date(2027, 1, 21),
    "v20.0": date(2026, 9, 24),
    "v19.0": date(2026, 5, 21),
    "v18.0": date(2026, 1, 26),
}
_NEWEST: Final = max(int(version[1:-2]) for version in EXPIRES)
_OLDEST: Final = min(int(version[1:-2]) for version in EXPIRES)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """`state` is `current`, `ending` (within 90 days), `expired`, or `unknown` (newer than this release).

    `expires` is the last day's date, where Meta has named one; `told` what the operator is told, `None`
    while nothing is to be done.
    """

    version: str
    state: str
    expires: date | None
    told: str | None

    def as_json(self) -> dict[str, str | None]:
        return {
            "version": self.version,
            "state": self.state,
            "expires": None if self.expires is None else self.expires.isoformat(),
            "told": self.told,
        }


def lifetime(version: str, today: date | None = None) -> Lifetime:
    """How a version like `v26.0` stands `today` (by default, the day in UTC)."""
    today = today if today is not None else datetime.now(UTC).date()
    remedy = "Upgrade convsync, or set CONVSYNC_GRAPH_VERSION to a newer version."
    known = re.fullmatch(r"v(\d+)\.\d+", version)
    number = int(known[1]) if known else 0
    if version not in EXPIRES:
        if number > _NEWEST:
            told = (
                f"Graph API {version} is newer than this release of convsync, which was not tested with it."
            )
            return Lifetime(version, "unknown", None, told)
        if number >= _OLDEST:
            told = f"There is no Graph API {version}. {remedy}"
            return Lifetime(version, "unknown", None, told)
        told = f"Graph API {version} has expired; Meta answers with a newer one. {remedy}"
        return Lifetime(version, "expired", None, told)
    expires = EXPIRES[version]
    if expires is None:
        return Lifetime(version, "current", None, None)
    if today >= expires:
        told = f"Graph API {version} expired on {expires}; Meta answers with a newer one. {remedy}"
        return Lifetime(version, "expired", expires, told)
    left = (expires - today).days
    if left <= WARN_DAYS:
        days = "1 day" if left == 1 else f"{left} days"
        told = f"Graph API {version} expires on {expires}, in {days}. {remedy}"
        return Lifetime(version, "ending", expires, told)
    return Lifetime(version, "current", expires, None)


def warn_of_version(version: str, today: date | None = None) -> None:
    """Write a warning to the log if the version needs an operator's attention."""
    found = lifetime(version, today)
    if found.told is not None:
        _log.warning("graph_version", told=found.told, state=found.state, expires=str(found.expires))
