"""The usage headers: how much of its allowance a Page or an app has used up.

Meta sends them as JSON strings on answers of endpoints "that receive enough requests", so any of
them may be missing, and on errors too. Their percentages are opaque (the documentation contradicts
itself about the window); 100 means throttled.
Source: developers.facebook.com/docs/graph-api/overview/rate-limiting
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from convsync.facts import clean

_HEADERS: Final = {
    "business": "X-Business-Use-Case-Usage",
    "app": "X-App-Usage",
    "page": "X-Page-Usage",
}
# "call_volume" and "cpu_time" are what the Instagram login API says instead
_PERCENTAGES: Final = ("call_count", "total_time", "total_cputime", "call_volume", "cpu_time")
# allowances of other products that share the header but not our calls
_FOREIGN_PREFIXES: Final = ("ads_", "custom_audience", "instagram", "leadgen", "whatsapp", "catalog")
_MAX_HEADER: Final = 16_384


@dataclass(frozen=True, slots=True)
class Usage:
    """What the headers of one answer say.

    `percent` is the highest percentage of any allowance of the Page's that our calls draw on, `app_percent`
    that of the app's, which all its Pages share; `None` where no header told. `regain_seconds` is how long
    Meta estimates until calls of the Page succeed again (0: they do). `raw` holds the decoded headers, by
    `business`, `app`, `page`.
    """

    percent: float | None
    regain_seconds: int
    raw: dict[str, Any] = field(default_factory=dict)
    app_percent: float | None = None

    @property
    def used_up_seconds(self) -> int:
        """How long the Page is not to be called, though this call succeeded: it was the last for now."""
        return self.regain_seconds if self.percent is not None and self.percent >= 100 else 0

    def as_json(self) -> dict[str, Any]:
        return {
            "percent": self.percent,
            "app_percent": self.app_percent,
            "regain_seconds": self.regain_seconds,
            "raw": self.raw,
        }


def read_usage(headers: Mapping[str, str]) -> Usage | None:
    """Read the usage headers of an answer; `None` if it has none that can be read."""
    raw: dict[str, Any] = {}
    highest: dict[str, float] = {}
    regain = 0
    for name, header in _HEADERS.items():
        value = _decode(headers.get(header))
        if value is None:
            continue
        raw[name] = value
        whose = "app" if name == "app" else "page"
        for allowance in _allowances(value):
            used = max((_number(allowance.get(key)) for key in _PERCENTAGES), default=0.0)
            highest[whose] = max(highest.get(whose, 0.0), used)
            minutes = _number(allowance.get("estimated_time_to_regain_access"))
            regain = max(regain, math.ceil(min(minutes, 10_080.0) * 60))
    return Usage(highest.get("page"), regain, raw, highest.get("app")) if raw else None


def _decode(header: str | None) -> dict[str, Any] | None:
    if not header or len(header) > _MAX_HEADER:
        return None
    try:
        value = orjson.loads(header)
    except orjson.JSONDecodeError:
        return None
    # kept as JSON in PostgreSQL, which cannot hold every text that JSON can
    return clean(value) if isinstance(value, dict) else None


def _allowances(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the flat object of X-App-Usage, or each object of the lists of the business header."""
    yield value
    for item in value.values():
        for allowance in item if isinstance(item, list) else [item]:
            if not isinstance(allowance, dict):
                continue
            if not str(allowance.get("type", "")).startswith(_FOREIGN_PREFIXES):
                yield allowance


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return 0.0
    try:
        number = float(value)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0
