"""Histograms of times as rows of integers, which may be shared with another process.

Buckets are spaced as preferred numbers are (ISO 3, R10): ten in each factor of ten, so that a
percentile is right to about 12 %, whatever its size, and 1, 2 and 5 of each power of ten are
bounds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import MutableSequence, Sequence

_R10 = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)

BOUNDS = (*(float(f"{step}e{power}") for power in range(-6, 3) for step in _R10), 1000.0)
"""Upper bounds of the buckets in seconds, from a microsecond to a quarter of an hour; a value that
is equal belongs to the bucket. What is longer is counted in one more bucket."""

COARSE = tuple(place for place in range(len(BOUNDS)) if place % len(_R10) in (0, 3, 7))
"""Places in `BOUNDS` of 1, 2 and 5 of each power of ten: enough for who keeps many series."""

SUM = len(BOUNDS) + 1
"""The place after the buckets: the sum of all values, in nanoseconds."""

CELLS = SUM + 1
"""Integers that a histogram takes."""


def record(
    cells: MutableSequence[int] | memoryview[int], at: int, seconds: float, count: int = 1
) -> None:
    """Count `seconds`, `count` times, in the histogram that begins at cell `at`."""
    cells[at + bisect_left(BOUNDS, seconds)] += count
    cells[at + SUM] += int(seconds * count * 1e9)


def total(cells: Sequence[float]) -> int:
    """How many values the histogram `cells` holds."""
    return int(sum(cells[:SUM]))


def quantile(cells: Sequence[float], share: float) -> float | None:
    """The value below which `share` of those in the histogram lie; None if it is empty.

    Taken between the bounds of its bucket by proportion; never above the last bound.
    """
    whole = sum(cells[:SUM])
    if whole <= 0:
        return None
    wanted = share * whole
    below = 0.0
    for place, bound in enumerate(BOUNDS):
        inside = cells[place]
        if inside and below + inside >= wanted:
            lower = BOUNDS[place - 1] if place else 0.0
            return lower + (bound - lower) * (wanted - below) / inside
        below += inside
    return BOUNDS[-1]
