"""What a consumer has seen: how many messages, and when the first and the last of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowkit.clock import monotonic


@dataclass(frozen=True, slots=True)
class Tally:
    """Times are seconds of the monotonic clock, which all processes of a machine share."""

    count: int
    first: float
    last: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def received(receive: Callable[[], object], count: int) -> Tally:
    """Call `receive`, which waits for a message, `count` times."""
    receive()
    first = monotonic()
    for _ in range(count - 1):
        receive()
    return Tally(count, first, monotonic())


def figures(
    tallies: Sequence[Tally], expected: int, size: int = 0, lossy: bool = False
) -> dict[str, float]:
    """The figures of a round: from the first message of any consumer to the last of all.

    Raises ValueError unless all `expected` messages have arrived, or, if it is `lossy`, some of
    them and no more; `missed` is the share that has not. `size` is that of a message.
    """
    count = sum(tally.count for tally in tallies)
    if not (0 < count <= expected if lossy else count == expected):
        raise ValueError(f"{count:,} messages have arrived, and {expected:,} were sent")
    # A consumer to whom nothing came has no first message.
    first = min(tally.first for tally in tallies if tally.count)
    seconds = max(tally.last for tally in tallies if tally.count) - first
    # The clock starts when the first message is there, so that one is not part of what took time.
    rate = (count - 1) / seconds if seconds > 0 else float("inf")
    found = {"rate": rate, "seconds": seconds, "count": float(count)}
    found["missed"] = 1 - count / expected
    if size:
        found["bandwidth"] = rate * size
    return found
