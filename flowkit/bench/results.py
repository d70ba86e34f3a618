"""Rows, contestants, and what their rounds come to: statistics without any I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Better = Literal["more", "less"]

Figures = Mapping[str, float]
"""What one round of one contestant has measured, by the key of a `Figure`."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is measured. `unit` tells how it is shown: see `render.show`."""

    key: str
    label: str
    unit: str
    better: Better = "more"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One answer to the question of a row.

    `run` ("module:function") is called in a process of its own with `settings`, and returns
    `Figures`. If `first` is not 0 it is also given a `count`: so many messages in the first trial,
    from which the session finds how many take as long as a round should. If `load` is given too,
    the rounds get a `rate` in messages per second: that share of what the trial has reached.
    Ratios are to the first contestant of the same `group`. `needs` names a module that is an
    optional peer's: without it, the contestant is left out.
    """

    name: str
    run: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    first: int = 0
    load: float = 0.0
    needs: str = ""
    quick: bool = True
    """Whether it is in a quick run too."""
    rounds: int | None = None
    """At most so many rounds, for what takes long."""
    limit: float = 60.0
    """Seconds after which a round is given up. A busy machine is slow, but a hang is a hang."""

    @property
    def key(self) -> str:
        """Names it within its row."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True, slots=True)
class Row:
    """One question. The first of `figures` is the one that is drawn and compared."""

    name: str
    title: str
    method: str
    figures: Sequence[Figure]
    contestants: Sequence[Contestant]
    note: str = ""
    compared: bool = True
    """Whether a ratio of the first figure says anything."""


def for_quick(row: Row) -> Row:
    """`row` without the contestants that only a full run has time for."""
    return replace(row, contestants=[each for each in row.contestants if each.quick])


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of several figures, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.low, "max": self.high}


@dataclass(slots=True)
class Outcome:
    """The rounds of one contestant, in order; None stands for a round that failed."""

    contestant: Contestant
    count: int = 0
    rate: float = 0.0
    rounds: list[Figures | None] = field(default_factory=list)
    failure: str = ""
    """What went wrong, if something did."""
    skipped: str = ""
    """Why it was not run at all."""

    def values(self, key: str) -> list[float]:
        """The figure of each round that has it."""
        return [figures[key] for figures in self.rounds if figures is not None and key in figures]

    def spread(self, key: str) -> Spread | None:
        """None if no round has measured it."""
        values = self.values(key)
        return Spread.of(values) if values else None


@dataclass(slots=True)
class RowResult:
    """What a row has come to, so far."""

    row: Row
    outcomes: list[Outcome]

    def find(self, name: str, group: str = "") -> Outcome | None:
        """The outcome of a contestant, by name."""
        for outcome in self.outcomes:
            if (outcome.contestant.name, outcome.contestant.group) == (name, group):
                return outcome
        return None

    def baseline(self, outcome: Outcome) -> Outcome:
        """The first contestant of the same group: what the others are compared with."""
        group = outcome.contestant.group
        return next(each for each in self.outcomes if each.contestant.group == group)


def ratio(ours: Outcome, theirs: Outcome, key: str) -> Spread | None:
    """`ours` over `theirs`, round by round, so that what slows the machine slows both.

    None if there is no round that both have done.
    """
    pairs = [
        (one[key], other[key])
        for one, other in zip(ours.rounds, theirs.rounds, strict=False)
        if one is not None and other is not None and key in one and other.get(key)
    ]
    return Spread.of([one / other for one, other in pairs]) if pairs else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted `ordered` lies, by the nearest rank."""
    if not ordered:
        raise ValueError("no values")
    rank = math.ceil(share * len(ordered))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


CALIBRATED = 0.4
"""A trial that took this share of a round tells well enough how long a round will take. A much
shorter one does not: what gets up to speed slowly would be given too few messages."""

LEAP = 30
"""A trial much shorter than a round is followed by one at most so many times as long: the first
milliseconds of anything are no measure of the rest."""


def next_count(count: int, seconds: float, target: float) -> tuple[int, bool]:
    """How many messages take `target` seconds if `count` took `seconds`.

    The second is True if that is good enough; otherwise it is the count of another trial.
    """
    factor = target / seconds if seconds > 0 else LEAP
    good = seconds >= CALIBRATED * target
    if not good:
        factor = min(factor, LEAP)
    return max(2, round(count * factor)), good
