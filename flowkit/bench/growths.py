"""Memory over many messages."""

from __future__ import annotations

import asyncio

import psutil

from flowkit.bench.processes import memory
from flowkit.bench.project import run_project
from flowkit.bench.tally import figures
from flowkit.supervisor import Supervisor

EVERY = 0.05
"""Seconds between two looks."""

Samples = list[tuple[float, int]]
"""The share of the messages that is done, and bytes."""


def flowkit(count: int) -> dict[str, float]:
    """One hop of `count` messages, watched from outside."""
    samples: Samples = []

    async def watch(project: Supervisor) -> None:
        waiting = asyncio.ensure_future(project.wait())
        while not waiting.done():
            done = project.report().links[0].entry.done / count
            try:
                samples.append((done, sum(map(memory, project.pids.values()))))
            except (OSError, psutil.Error, StopIteration):  # one of them has just ended
                continue
            finally:
                await asyncio.wait([waiting], timeout=EVERY)

    _, words = run_project(
        {
            "produce": {"use": "flowkit.bench.nodes:Produce", "with": {"count": count}},
            "consume": {"use": "flowkit.bench.nodes:Consume"},
        },
        [{"from": "produce.messages", "to": "consume.messages"}],
        watch,
    )
    return {**figures(words.tallies, count), **growth(samples)}


def growth(samples: Samples) -> dict[str, float]:
    """The most bytes early in the stream, and how many more they were at its end.

    Empty if the stream was too short to be seen at both ends.
    """
    early = [size for done, size in samples if 0.1 <= done < 0.2]
    late = [size for done, size in samples if 0.9 <= done < 1.0]
    if not early or not late:
        return {}
    return {"memory": float(max(early)), "grown": float(max(late) - max(early))}
