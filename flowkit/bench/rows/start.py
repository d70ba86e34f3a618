"""The row `start`: how long until a project works, and what it takes while nothing happens."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row

PATIENCE = 180.0
"""Seconds that a hundred processes may take to start on a slow machine."""


def row(quick: bool) -> Row:
    idle = 1.0 if quick else 5.0
    contestants = []
    for replicas in (1, 20) if quick else (1, 20, 100):
        group = f"{replicas} replica{'s' if replicas > 1 else ''}"
        ways = {"mp.Process, ZMQStream": "processes", "flowkit up": "flowkit"}
        contestants += [
            Contestant(
                name,
                f"flowkit.bench.starts:{way}",
                {"replicas": replicas, "idle": idle},
                group,
                rounds=1 if replicas == 100 else None,
                limit=PATIENCE,
            )
            for name, way in ways.items()
        ]
    return Row(
        "start",
        "from the command until all replicas are ready; then nothing happens",
        "For flowkit from the start of `flowkit up` until it says that all are ready: a source "
        "that sends nothing, and so many consumers. For multiprocessing from the start of Python "
        "until as many processes have bound a ZMQStream. Memory is the mean PSS of a replica: what "
        "is its own, and its share of what it shares. Processor time is that of all replicas "
        f"together over {idle:g} s, in per cent of one core; 'others' is that of the supervisor "
        "and its helper.",
        [
            Figure("ready", "ready after", "seconds", "less"),
            Figure("pss", "memory each", "bytes", "less"),
            Figure("cpu", "idle", "share", "less"),
            Figure("others", "others", "share", "less"),
        ],
        contestants,
    )
