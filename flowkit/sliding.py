"""Counting what happened in the last so many seconds. Pure: the time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable


class SlidingCounter:
    """Counts events of the last `window` seconds, by key if need be.

    The window is kept as `buckets` parts of equal length, `resolution` seconds each, and forgets
    one part at a time. So a count is never too small, and contains at most the events that are up
    to `resolution` older than the window: with 60 parts, and a steady stream, 1.7 % too many at
    most. Memory is one number for each part, and each key that it has seen; adding and counting
    take constant time, spread over the calls.

    Times are in seconds, of any clock, and should not go back: `add` returns False, and counts
    nothing, for an event that is older than the window. One that is late but not too old counts
    from its own time on.
    """

    def __init__(self, window: float, buckets: int = 60) -> None:
        if not window > 0 or buckets < 1:
            raise ValueError("a window is longer than nothing, and has at least one part")
        self.window = window
        self.resolution = window / buckets
        self._buckets = buckets
        # The parts that are in the window, with their numbers; the newest is the last.
        self._parts: deque[tuple[int, dict[Hashable, int]]] = deque()
        self._totals: dict[Hashable, int] = {}

    def add(self, now: float, key: Hashable = None, amount: int = 1) -> bool:
        """Count `amount` events of `key` at the time `now`."""
        number = self._number(now)
        parts = self._parts
        if not parts or number > parts[-1][0]:
            self._expire(number)
            parts.append((number, {}))
        elif number < parts[-1][0] - self._buckets:
            return False
        part = self._part(number)
        part[key] = part.get(key, 0) + amount
        self._totals[key] = self._totals.get(key, 0) + amount
        return True

    def count(self, now: float, key: Hashable = None) -> int:
        """How many events of `key` there were in the window that ends `now`."""
        self._expire(self._number(now))
        return self._totals.get(key, 0)

    def rate(self, now: float, key: Hashable = None) -> float:
        """The same for each second, as if the window had always been there."""
        return self.count(now, key) / self.window

    def counts(self, now: float) -> dict[Hashable, int]:
        """The counts of all keys that have any."""
        self._expire(self._number(now))
        return dict(self._totals)

    def _number(self, now: float) -> int:
        return int(now // self.resolution)

    def _part(self, number: int) -> dict[Hashable, int]:
        """The part of that number; made if nothing has happened in it so far."""
        parts = self._parts
        for at in range(len(parts) - 1, -1, -1):
            if parts[at][0] == number:
                return parts[at][1]
            if parts[at][0] < number:
                parts.insert(at + 1, (number, {}))
                return parts[at + 1][1]
        parts.appendleft((number, {}))
        return parts[0][1]

    def _expire(self, newest: int) -> None:
        """Forget what is older than the window when the part `newest` is the last one of it."""
        parts, totals = self._parts, self._totals
        while parts and parts[0][0] < newest - self._buckets:
            for key, amount in parts.popleft()[1].items():
                # Amounts of 0, or below, may have brought the total to 0 before.
                if left := totals.pop(key, 0) - amount:
                    totals[key] = left
