"""What counters did lately: differences over a sliding window of a few seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

SECONDS = 5.0
"""How far the window looks back: long enough that a rate holds still, short enough to be "now"."""

EVERY = 1.0
"""Seconds between samples at least: more often, they would only be noise."""


class Change(NamedTuple):
    """What the counters of one thing did in `seconds`; 0 seconds if nothing is known yet."""

    seconds: float
    counters: Sequence[float]

    def rate(self, place: int) -> float:
        """What counter `place` did per second."""
        return self.counters[place] / self.seconds if self.seconds > 0 else 0.0


class Window:
    """The samples of the last `seconds`, and one before them, which they are compared with.

    Counters only grow. One that is smaller than before (its thing was replaced) counts as 0.
    """

    def __init__(self, seconds: float = SECONDS, every: float = EVERY) -> None:
        self.seconds = seconds
        self._every = every
        self._samples: deque[tuple[float, Mapping[Hashable, Sequence[float]]]] = deque()

    def due(self, now: float) -> bool:
        """Whether it is time for another sample."""
        return not self._samples or now - self._samples[-1][0] >= self._every

    def add(self, now: float, counters: Mapping[Hashable, Sequence[float]]) -> None:
        """A sample: the counters of each thing as they are at `now`."""
        self._samples.append((now, counters))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self.seconds:
            self._samples.popleft()

    @property
    def since(self) -> float:
        """When the oldest sample was taken; 0 if there is none."""
        return self._samples[0][0] if self._samples else 0.0

    @property
    def covered(self) -> float:
        """Seconds between the oldest sample and the newest."""
        return self._samples[-1][0] - self._samples[0][0] if self._samples else 0.0

    def changes(self) -> dict[Hashable, Change]:
        """What the counters of everything did that the newest sample has."""
        return (
            {thing: self.change(thing) for thing in self._samples[-1][1]} if self._samples else {}
        )

    def change(self, thing: Hashable) -> Change:
        """What the counters of `thing` did, from the oldest sample that has it to the newest."""
        if not self._samples or thing not in self._samples[-1][1]:
            return Change(0.0, ())
        until, last = self._samples[-1]
        after = last[thing]
        since, before = next((at, sample[thing]) for at, sample in self._samples if thing in sample)
        changes = [max(0, new - old) for new, old in zip(after, before, strict=True)]
        return Change(until - since, changes)
