"""Which replicas are stuck: their loop has not turned for too long. Pure; the times are told."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

LOOKS = 4
"""How many times the supervisor looks within the shortest watchdog."""


def interval(watchdogs: list[float]) -> float:
    """Seconds between two looks: a few within the shortest watchdog, a second at most."""
    return min([1.0, *(watchdog / LOOKS for watchdog in watchdogs)])


class Watch:
    """Told when each loop last turned, says which have stood still for their `watchdog`."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._last: float | None = None

    def look(self, now: float, turned: Mapping[K, tuple[float, float]]) -> list[K]:
        """Those of `turned` (when the loop last turned, and its watchdog) that are stuck.

        All times are seconds of one clock. If the look before is long ago it was this process that
        stood still, maybe with all others: then nobody is blamed before the next look.
        """
        late = self._last is not None and now - self._last > 2 * self._every + 0.5
        self._last = now
        if late:
            return []
        return [key for key, (last, watchdog) in turned.items() if now - last > watchdog]
