"""What the system says of this process's use of the processor."""

from __future__ import annotations

from typing import NamedTuple

from flowkit.clock import processor

SCHEDULE = "/proc/self/schedstat"
"""Linux: nanoseconds on a core, nanoseconds ready to run without one, and a count, of the main
thread."""


class Use(NamedTuple):
    """Seconds on a core (all threads), and seconds that the main thread was ready for one and had
    none; 0 where the system does not say."""

    spent: float
    starved: float


def use() -> Use:
    """Of this process so far."""
    try:
        with open(SCHEDULE, "rb", buffering=0) as file:
            starved = int(file.read(100).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        starved = 0.0
    return Use(processor(), starved)
