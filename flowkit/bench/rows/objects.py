"""The row `objects`: messages that have to be encoded and decoded."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row

KINDS = {"dict": ("dict", "Dicts"), "msgspec.Struct": ("struct", "Structs")}
"""What is sent, by the name it is shown under, and the nodes that send and receive it."""


def row(quick: bool) -> Row:
    contestants = []
    for group, (kind, nodes) in KINDS.items():
        contestants += [
            Contestant("mp.Queue", "flowkit.bench.hops:queue", {"kind": kind}, group, first=15_000),
            Contestant(
                "mp.Pipe, send",
                "flowkit.bench.hops:pipe",
                {"kind": kind},
                group,
                first=20_000,
                quick=False,
            ),
            Contestant(
                "pyzmq, pickle",
                "flowkit.bench.hops:pyzmq_pickle",
                {"kind": kind},
                group,
                first=40_000,
                quick=False,
            ),
            Contestant(
                "pyzmq, msgspec",
                "flowkit.bench.hops:pyzmq",
                {"kind": kind},
                group,
                first=80_000,
            ),
            Contestant(
                "flowkit",
                "flowkit.bench.hops:flowkit",
                {"produce": f"Produce{nodes}", "consume": f"Consume{nodes}"},
                group,
                first=200_000,
            ),
        ]
    return Row(
        "objects",
        "objects of three fields (an int, a str, a float), one producer, one consumer",
        "As 'seed', but the objects are encoded and decoded: pickled by multiprocessing and by "
        "pyzmq's own send_pyobj, as msgpack by the others. The struct is checked on receipt.",
        [Figure("rate", "messages/s", "rate")],
        contestants,
    )
