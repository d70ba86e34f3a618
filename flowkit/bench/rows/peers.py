"""The row `peers`: other libraries, as far as they are installed."""

from __future__ import annotations

import importlib.util

from flowkit.bench.results import Contestant, Figure, Row

PEERS = {
    "streamz": Contestant(
        "streamz, in one process", "flowkit.bench.peers:streamz", first=10_000, needs="streamz"
    ),
    "bytewax": Contestant(
        "bytewax, in one process", "flowkit.bench.peers:bytewax", first=50_000, needs="bytewax"
    ),
    "ezmsg": Contestant(
        "ezmsg, two processes", "flowkit.bench.peers:ezmsg", first=3_000, needs="ezmsg"
    ),
    "ray": Contestant("ray, actor calls", "flowkit.bench.peers:ray", first=1_000, needs="ray"),
}


def installed() -> bool:
    """Whether there is any of them: otherwise the row has nothing to say."""
    return any(importlib.util.find_spec(name) is not None for name in PEERS)


def row(quick: bool) -> Row:
    return Row(
        "peers",
        "7-byte messages through other libraries that are installed here",
        "As 'seed': one send and one call for each message, measured where they arrive. What runs "
        "in one process moves nothing between processes, and shows what its own bookkeeping costs.",
        [Figure("rate", "messages/s", "rate")],
        [
            Contestant("mp.Queue", "flowkit.bench.hops:queue", first=20_000),
            *PEERS.values(),
            Contestant("flowkit, two processes", "flowkit.bench.hops:flowkit", first=300_000),
        ],
    )
