"""The row `mp`: the queue and the pipe of multiprocessing, and what flowkit has in their place."""

from __future__ import annotations

from typing import Any

from flowkit.bench.results import Contestant, Figure, Row

WAYS: dict[str, tuple[str, dict[str, Any], int]] = {
    "Queue": ("queue", {}, 20_000),
    "Queue, dicts": ("queue", {"kind": "dict"}, 15_000),
    "Pipe, send": ("pipe", {"pickled": True}, 20_000),
    "Pipe, send_bytes": ("pipe", {}, 50_000),
}
"""A function of `flowkit.bench.hops`, its settings, and the messages of the first trial."""

QUICK = ("Queue", "Pipe, send")


def row(quick: bool) -> Row:
    contestants = []
    for group, (way, settings, first) in WAYS.items():
        for name, ours in (("multiprocessing", False), ("flowkit.mp", True)):
            contestants.append(
                Contestant(
                    name,
                    f"flowkit.bench.hops:{way}",
                    {**settings, "ours": ours},
                    group,
                    first=first * (5 if ours else 1),
                    quick=group in QUICK,
                )
            )
    return Row(
        "mp",
        "multiprocessing's classes, and flowkit.mp's in their place: one producer, one consumer",
        "As 'seed' and 'objects': 7-byte messages, and dictionaries of three fields. The same "
        "program with either class, one put and one get (or send and recv) for each message.",
        [Figure("rate", "messages/s", "rate")],
        contestants,
    )
