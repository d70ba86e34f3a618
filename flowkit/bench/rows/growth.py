"""The row `growth`: what becomes of speed and memory as a project grows."""

from __future__ import annotations

from flowkit.bench.results import Contestant, Figure, Row
from flowkit.units import human_count

PATIENCE = 900.0
"""Seconds that many messages may take on a slow machine."""


def row(quick: bool) -> Row:
    chain = [
        Contestant(
            f"{stages} node{'s' if stages > 1 else ''} between",
            "flowkit.bench.pipelines:flowkit",
            {"workers": 1, "stages": stages},
            "chain length",
            # So many that a long chain gets up to speed: each node has to find its pace first.
            first=1_000_000,
        )
        for stages in ((1, 4) if quick else (1, 2, 4, 8))
    ]
    replicas = [
        Contestant(
            f"{workers} worker{'s' if workers > 1 else ''}",
            "flowkit.bench.pipelines:flowkit",
            {"workers": workers},
            "replicas",
            first=100_000,
        )
        for workers in ((1, 4) if quick else (1, 2, 4, 8))
    ]
    counts = [
        Contestant(
            f"{human_count(count)} messages",
            "flowkit.bench.growths:flowkit",
            {"count": count},
            "message count",
            rounds=1,
            limit=PATIENCE,
        )
        for count in ((500_000, 2_000_000) if quick else (1_000_000, 10_000_000, 50_000_000))
    ]
    return Row(
        "growth",
        "7-byte messages through flowkit, as a project grows",
        "At the end of the pipeline, from the first message to the last. A chain has one replica "
        "of each node; replicas are those of the one node between source and sink. Memory is the "
        "PSS of a producer and a consumer together: the most while the second tenth of the "
        "messages went through, and how much more the most of the last tenth was.",
        [
            Figure("rate", "messages/s", "rate"),
            Figure("memory", "memory", "bytes", "less"),
            Figure("grown", "grown by", "bytes", "less"),
        ],
        [*chain, *replicas, *counts],
        note="Quick: memory over 2 million messages; 50 million in a full run." if quick else "",
    )
