"""The row `pipeline`: a ventilator, two workers, a sink."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row


def row(quick: bool) -> Row:
    return Row(
        "pipeline",
        "7-byte messages through a ventilator, two workers that write them in capitals, and a sink",
        "Four processes. Measured in the sink, from its first message to its last. flowkit "
        "acknowledges every message end to end; the others lose what a worker holds when it dies.",
        [Figure("rate", "messages/s", "rate")],
        [
            Contestant("mp.Queue", "flowkit.bench.pipelines:queue", first=10_000),
            Contestant("pyzmq PUSH/PULL, blocking", "flowkit.bench.pipelines:pyzmq", first=50_000),
            Contestant("flowkit", "flowkit.bench.pipelines:flowkit", first=150_000),
        ],
    )
