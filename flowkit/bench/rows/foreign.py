"""The row `foreign`: frames of somebody who knows nothing of flowkit."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row


def row(quick: bool) -> Row:
    return Row(
        "foreign",
        "7-byte messages, one frame each, from a plain pyzmq PUSH",
        "The same blocking PUSH for all. Measured where one handler call for each message takes "
        "it, from the first message to the last.",
        [Figure("rate", "messages/s", "rate")],
        [
            Contestant("naive ZMQStream", "flowkit.bench.hops:stream", first=10_000),
            Contestant("pyzmq PULL, blocking", "flowkit.bench.hops:pyzmq", first=100_000),
            Contestant("flowkit node", "flowkit.bench.foreign:flowkit", first=50_000),
            Contestant("flowkit endpoint", "flowkit.bench.foreign:endpoint", first=10_000),
        ],
        note="flowkit's node is one whose run() owns a PULL socket and sends on what it receives, "
        "and a second node handles it, so this is two hops, the second of them acknowledged. The "
        "endpoint needs no code for the socket, and is one hop; it books each message by itself.",
    )
