"""The shape of an inbox: how long threads are, who is no ordinary person, how a slice of it is found."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from random import Random
from statistics import NormalDist
from typing import Literal, TypeVar

PersonKind = Literal["normal", "no_name", "facebook_user", "gone", "no_id"]
Key = tuple[int, int]
Item = TypeVar("Item")

_SPECIAL: tuple[PersonKind, ...] = ("no_name", "facebook_user", "gone", "no_id")

# Log-normal with this deviation: half of the threads are shorter than 0.28 times the mean, and of 1,000
# threads with a mean of 30 the longest has well over 1,000 messages.
_SIGMA = 1.6


def sizes(count: int, mean: float) -> list[int]:
    """Skewed lengths whose mean is `mean`: evenly spaced quantiles of a log-normal, so every seed has its
    giants.
    """
    if count == 0:
        return []
    inverse = NormalDist().inv_cdf
    raw = [2.718281828 ** (_SIGMA * inverse((place + 0.5) / count)) for place in range(count)]
    scale = count * mean / sum(raw)
    return [max(1, round(length * scale)) for length in raw]


def kinds(count: int, rng: Random) -> dict[int, PersonKind]:
    """Who is not an ordinary person: one of each from eight conversations on, and a few in a hundred."""
    kinds: dict[int, PersonKind] = {}
    if count < 2 * len(_SPECIAL):
        return kinds
    chosen = rng.sample(range(count), len(_SPECIAL) + count * 2 // 100)
    for place, index in enumerate(chosen):
        kinds[index] = _SPECIAL[place % len(_SPECIAL)]
    return kinds


def window(
    items: Sequence[Item],
    key: Callable[[Item], Key],
    limit: int,
    after: Key | None,
    before: Key | None,
) -> tuple[int, int]:
    """Where a slice of an ascending list starts and stops: the `limit` newest items older than `after`, or
    the oldest ones newer than `before`, or the newest of all.
    """
    if after is not None:
        stop = bisect_left(items, after, key=key)
        return max(0, stop - limit), stop
    if before is not None:
        start = bisect_right(items, before, key=key)
        return start, min(len(items), start + limit)
    return max(0, len(items) - limit), len(items)
