"""The log of the calls a simulator got: what a client really did, against what it says it did."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any

_KEPT = 100_000


@dataclass(slots=True)
class Call:
    """One call. `at` is Unix seconds; `code` is Graph's error code, `fault` the id of the planted fault that
    hit it.

    `query` never holds the token. `counted` calls are under the Page's limits; `refused` ones broke them,
    `blocked` ones were made into a block.
    `batch` is whether it came as an item of a batch.
    """

    at: float
    page_id: str | None
    method: str
    path: str
    query: str
    status: int | None = None
    code: int | None = None
    counted: bool = False
    refused: bool = False
    blocked: bool = False
    fault: int | None = None
    milliseconds: float = 0.0
    batch: bool = False


class CallLog:
    """The last 100,000 calls, and totals per Page since the last reset."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=_KEPT)
        self._totals: dict[str, Counter[str]] = {}

    def begin(self, call: Call) -> None:
        """Note a call when it arrives, so that one that never ends is seen too."""
        self.calls.append(call)

    def end(self, call: Call) -> None:
        """Count a call that ended, however it did."""
        totals = self._totals.setdefault(call.page_id or "", Counter())
        totals["calls"] += 1
        totals["counted"] += call.counted
        totals["refused"] += call.refused
        totals["blocked"] += call.blocked
        totals["errors"] += call.code is not None or call.status is None or call.status >= 400
        totals["faults"] += call.fault is not None

    def reset(self) -> None:
        self.calls.clear()
        self._totals.clear()

    def totals(self) -> dict[str, dict[str, int]]:
        """Per Page id (`""` where no token told): `calls`, `counted`, `refused`, `blocked`, `errors`,
        `faults`."""
        return {page_id: dict(counts) for page_id, counts in self._totals.items()}

    def rows(self, limit: int, page_id: str | None = None) -> list[dict[str, Any]]:
        """The last calls, oldest first."""
        chosen = [call for call in self.calls if page_id is None or call.page_id == page_id]
        return [asdict(call) for call in chosen[-limit:]] if limit > 0 else []
