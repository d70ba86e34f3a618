"""What flowkit is to reach, and whether it did in this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowkit.bench.results import Better, RowResult, Spread, ratio


@dataclass(frozen=True, slots=True)
class Side:
    """A contestant of a row."""

    name: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """`key` of `ours`, as it is or, if there is another side, over that of `theirs`."""

    row: str
    text: str
    ours: Side
    theirs: Side | None
    key: str
    least: float
    aim: float
    unit: str = "ratio"
    better: Better = "more"


_SEED = Side("flowkit at-least-once")
_QUEUE = Side("mp.Queue")

TARGETS = (
    Target("seed", "at-least-once over mp.Queue", _SEED, _QUEUE, "rate", 21, 35),
    Target(
        "seed",
        "at-least-once over blocking pyzmq",
        _SEED,
        Side("pyzmq PUSH/PULL, blocking"),
        "rate",
        3.5,
        6,
    ),
    Target(
        "seed",
        "send_many and batch handler over mp.Queue",
        Side("flowkit, send_many and batch handler"),
        _QUEUE,
        "rate",
        35,
        60,
    ),
    Target(
        "seed",
        "at-least-once over at-most-once",
        _SEED,
        Side("flowkit at-most-once"),
        "rate",
        0.8,
        0.95,
    ),
    Target(
        "objects",
        "dictionaries over mp.Queue",
        Side("flowkit", "dict"),
        Side("mp.Queue", "dict"),
        "rate",
        10,
        20,
    ),
    Target(
        "objects",
        "structs over mp.Queue",
        Side("flowkit", "msgspec.Struct"),
        Side("mp.Queue", "msgspec.Struct"),
        "rate",
        10,
        20,
    ),
    Target(
        "mp",
        "flowkit.mp.Queue over mp.Queue",
        Side("flowkit.mp", "Queue"),
        Side("multiprocessing", "Queue"),
        "rate",
        5,
        15,
    ),
    Target(
        "mp",
        "flowkit.mp.Pipe over mp.Pipe, send",
        Side("flowkit.mp", "Pipe, send"),
        Side("multiprocessing", "Pipe, send"),
        "rate",
        5,
        15,
    ),
    Target(
        "pipeline",
        "over the mp.Queue pipeline",
        Side("flowkit"),
        Side("mp.Queue"),
        "rate",
        12,
        20,
    ),
    Target(
        "latency",
        "p50 at rest over a bare ZMQStream hop",
        Side("flowkit", "at rest"),
        Side("bare ZMQStream", "at rest"),
        "p50",
        1.3,
        1.0,
        better="less",
    ),
    Target(
        "large",
        "1 MiB over pyzmq copy=False",
        Side("flowkit", "1 MiB"),
        Side("pyzmq, copy=False", "1 MiB"),
        "bandwidth",
        0.85,
        1.0,
    ),
    Target(
        "foreign",
        "over a naive ZMQStream handler",
        Side("flowkit node"),
        Side("naive ZMQStream"),
        "rate",
        4,
        8,
    ),
    Target(
        "start",
        "20 replicas ready",
        Side("flowkit up", "20 replicas"),
        None,
        "ready",
        2.0,
        0.8,
        "seconds",
        "less",
    ),
    Target(
        "start",
        "memory of an idle replica (PSS)",
        Side("flowkit up", "20 replicas"),
        None,
        "pss",
        15 * 2**20,
        8 * 2**20,
        "bytes",
        "less",
    ),
    Target(
        "start",
        "idle processor time of 20 replicas, of a core",
        Side("flowkit up", "20 replicas"),
        None,
        "cpu",
        0.03,
        0.01,
        "share",
        "less",
    ),
    Target(
        "recovery",
        "messages lost",
        Side("flowkit, a worker killed"),
        None,
        "lost",
        0,
        0,
        "count",
        "less",
    ),
)
"""Names of contestants are those of the rows; a test sees to it that each of them exists."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A target, and what was measured: None if the run had no such row, or it failed."""

    target: Target
    measured: Spread | None

    @property
    def met(self) -> bool | None:
        """Whether the median is at least what is to be reached. None: not measured."""
        return self._reaches(self.target.least)

    @property
    def aim_met(self) -> bool | None:
        return self._reaches(self.target.aim)

    @property
    def word(self) -> str:
        if self.met is None:
            return "not measured"
        return "aim met" if self.aim_met else "met" if self.met else "NOT MET"

    def _reaches(self, wanted: float) -> bool | None:
        if self.measured is None:
            return None
        median = self.measured.median
        return median >= wanted if self.target.better == "more" else median <= wanted


def judge(results: Mapping[str, RowResult]) -> list[Judgement]:
    """Every target whose row is among `results`."""
    return [
        Judgement(target, _measure(target, results[target.row]))
        for target in TARGETS
        if target.row in results
    ]


def _measure(target: Target, result: RowResult) -> Spread | None:
    ours = result.find(target.ours.name, target.ours.group)
    if ours is None:
        return None
    if target.theirs is None:
        return ours.spread(target.key)
    theirs = result.find(target.theirs.name, target.theirs.group)
    return ratio(ours, theirs, target.key) if theirs is not None else None
