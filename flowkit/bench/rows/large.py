"""The row `large`: messages that are copied, or are not."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row

SIZES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}

QUICK = "1 MiB"
"""The only size of a quick run."""

TRIAL = 256 << 20
"""Bytes of the first trial."""


def row(quick: bool) -> Row:
    contestants = []
    for group, size in SIZES.items():
        first = max(8, TRIAL // size)
        ways = {
            "mp.Pipe, send_bytes": ("pipe", {}),
            "pyzmq, copy=True": ("pyzmq", {}),
            "pyzmq, copy=False": ("pyzmq", {"copy": False}),
            "flowkit": ("flowkit", {}),
        }
        contestants += [
            Contestant(
                name,
                f"flowkit.bench.hops:{way}",
                {"size": size, **settings},
                group,
                first=first,
                quick=group == QUICK,
            )
            for name, (way, settings) in ways.items()
        ]
    return Row(
        "large",
        "large messages (bytes), one producer, one consumer",
        "As 'seed'. The same object is sent again and again, and nobody looks into what arrives. "
        "With copy=False pyzmq hands over a view of ZeroMQ's own memory; flowkit hands over bytes. "
        "64 MiB may be on their way.",
        [Figure("bandwidth", "bytes/s", "bytes/s"), Figure("rate", "messages/s", "rate")],
        contestants,
    )
