"""The row `fanout`: one to four, each of whom gets every message."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row


def row(quick: bool) -> Row:
    return Row(
        "fanout",
        "7-byte messages from one producer to four consumers, each of whom gets all of them",
        "Counted are deliveries, from the first message of any consumer to the last of all. PUB "
        "is told to wait for slow subscribers (XPUB_NODROP) instead of dropping what they miss. Of "
        "what is missed, where that is allowed, the share is shown, and it counts for nothing.",
        [Figure("rate", "deliveries/s", "rate"), Figure("missed", "missed", "share", "less")],
        [
            Contestant("four mp.Queues", "flowkit.bench.fans:queues", first=4_000),
            Contestant(
                "four mp.Pipes, send_bytes", "flowkit.bench.fans:pipes", first=15_000, quick=False
            ),
            Contestant("pyzmq, four PUSH", "flowkit.bench.fans:pushes", first=20_000, quick=False),
            Contestant("pyzmq PUB/SUB", "flowkit.bench.fans:subscribers", first=20_000),
            Contestant(
                "flowkit, to: four inputs",
                "flowkit.bench.fans:flowkit",
                {"route": "balance"},
                first=80_000,
            ),
            Contestant(
                "flowkit, route: broadcast",
                "flowkit.bench.fans:flowkit",
                {"route": "broadcast"},
                first=80_000,
            ),
            Contestant("flowkit, pattern: pubsub", "flowkit.bench.fans:published", first=80_000),
        ],
        note="flowkit's first two ways are acknowledged, and wait for the slowest consumer. "
        "pattern: pubsub waits for nobody, and drops what a slow subscriber has no room for: here "
        "the producer sends as fast as it can, and what exceeds a window may be missed, so the "
        "share depends on how many messages a round has.",
    )
