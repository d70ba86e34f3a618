"""What the counters of a run say: which node limits it, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

BUSY = 0.6
"""Share of the time in handlers above which a node is taken to be the limit. One that shares its
core with others seldom gets far above it."""


@dataclass(frozen=True, slots=True)
class Share:
    """How the replicas of a node spent their time, as shares of it between 0 and 1.

    `busy` in handlers, or, for a source, reading; `waiting` for room downstream.
    """

    node: str
    busy: float
    waiting: float
    source: bool
    stateful: bool = False


class Verdict(Struct, frozen=True):
    """`bottleneck` is a node, or None if nothing limits but the input; `advice` is for people."""

    bottleneck: str | None
    busy: float
    advice: str


def verdict(shares: Sequence[Share]) -> Verdict:
    """Name the node that limits the flow.

    The busiest node does if it is busy most of the time, or if what is upstream waits; else a
    source that reads most of the time.
    """
    workers = [share for share in shares if not share.source]
    sources = [share for share in shares if share.source]
    busiest = max(workers, key=lambda share: share.busy, default=None)
    held_up = max((share.waiting for share in shares), default=0.0)
    if busiest is not None and (busiest.busy >= BUSY or held_up >= BUSY):
        advice = f"scale {busiest.node}"
        if busiest.stateful:
            advice += ", with route: key on its input, or make its handler faster"
        return Verdict(busiest.node, round(busiest.busy, 4), advice)
    reader = max(sources, key=lambda share: share.busy, default=None)
    if reader is None or reader.busy < BUSY:
        return Verdict(None, 0.0, "nothing limits: there is little to do")
    advice = f"everything waits for {reader.node} to read its input"
    return Verdict(reader.node, round(reader.busy, 4), advice)
