"""The row `latency`: how old a message is when it is handled."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row

REST = 500.0
"""Messages per second that are no load for anybody."""

WAYS = {
    "mp.Pipe, send_bytes": ("pipe", 40_000),
    "pyzmq PUSH/PULL, blocking": ("pyzmq", 80_000),
    "bare ZMQStream": ("stream", 10_000),
    "flowkit": ("flowkit", 150_000),
}
"""The function of `flowkit.bench.latencies`, and the messages of its first trial."""


def row(quick: bool) -> Row:
    count = 300 if quick else 1500
    rest = [
        Contestant(
            name,
            f"flowkit.bench.latencies:{way}",
            {"count": count, "rate": REST},
            "at rest",
        )
        for name, (way, _) in WAYS.items()
    ]
    load = [
        Contestant(
            name, f"flowkit.bench.latencies:{way}", group="at half load", first=first, load=0.5
        )
        for name, (way, first) in WAYS.items()
    ]
    return Row(
        "latency",
        "one hop: from just before send until the message is there, or its handler is called",
        "Each message is 8 bytes: the monotonic clock of the sender, in nanoseconds, which the "
        f"receiver takes from its own. At rest one is sent every {1e3 / REST:g} ms; at half load "
        "half as many as this contestant passes when it is flooded with such messages, in bursts "
        "each millisecond. A round's percentiles are of all its messages but the first tenth.",
        [
            Figure("p50", "p50", "seconds", "less"),
            Figure("p99", "p99", "seconds", "less"),
            Figure("p999", "p99.9", "seconds", "less"),
            Figure("sent", "at", "rate"),
        ],
        [*rest, *load],
    )
