"""The only place that asks what time it is; everything else is told."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds since an arbitrary start; never goes back."""

monotonic: Clock = time.monotonic
"""The clock of a running process. It does not follow changes of the wall clock."""

wall: Clock = time.time
"""Seconds since the epoch, for records that people read. Never used to measure or to decide."""


processor: Clock = time.process_time
"""Seconds of processor time that this process has used."""


class FakeClock:
    """A clock for tests: stands still until it is advanced."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the time forward by `seconds`, which must not be negative."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self.now += seconds
