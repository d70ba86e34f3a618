"""The row `seed`: the measurement of the talk that flowkit began with."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row

QUEUE = "mp.Queue"
PYZMQ = "pyzmq PUSH/PULL, blocking"
STREAM = "naive ZMQStream"
LOSSY = "flowkit at-most-once"
CERTAIN = "flowkit at-least-once"
BATCHES = "flowkit, send_many and batch handler"


def row(quick: bool) -> Row:
    return Row(
        "seed",
        "7-byte messages, one producer, one consumer",
        "Measured in the consumer, from its first message to its last. One send and one receive, "
        "or one call of a handler, for each message, except in the last contestant.",
        [Figure("rate", "messages/s", "rate")],
        [
            Contestant(QUEUE, "flowkit.bench.hops:queue", first=20_000),
            Contestant("mp.Pipe, send_bytes", "flowkit.bench.hops:pipe", first=50_000),
            Contestant(PYZMQ, "flowkit.bench.hops:pyzmq", first=100_000),
            Contestant(STREAM, "flowkit.bench.hops:stream", first=10_000),
            Contestant(
                LOSSY,
                "flowkit.bench.hops:flowkit",
                {"delivery": "at-most-once"},
                first=300_000,
            ),
            Contestant(CERTAIN, "flowkit.bench.hops:flowkit", first=300_000),
            Contestant(
                BATCHES,
                "flowkit.bench.hops:flowkit",
                {"produce": "ProduceMany", "consume": "ConsumeBatches"},
                first=500_000,
            ),
        ],
    )
