"""The messages that are sent: the same ones by every contestant of a row."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import msgspec

SHORT = 7
"""Bytes of a short message, as in the talk that flowkit began with."""

VARIETY = 1000
"""So many different objects are sent in turn: as many as a batch holds, so that nothing can be
gained by looking at one object twice."""


class Reading(msgspec.Struct):
    """An object of three fields, typed."""

    id: int
    name: str
    value: float


def messages(kind: str, size: int = SHORT) -> Iterator[Any]:
    """Messages without end: ``bytes`` of `size`, ``dict`` or ``struct`` of three fields."""
    if kind == "bytes":
        return cycle([bytes(size) if size != SHORT else b"message"])
    if kind == "dict":
        return cycle([{"id": n, "name": f"sensor {n}", "value": n / 7} for n in range(VARIETY)])
    return cycle([Reading(n, f"sensor {n}", n / 7) for n in range(VARIETY)])
