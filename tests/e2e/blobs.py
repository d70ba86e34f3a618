"""The nodes of tests of large messages: a blob is made from its number, and told by a digest."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from flowkit import In, Node, Out, Source
from tests.e2e.nodes import appeared, die, first

SIZES = [262_143, 1 << 20, 20 << 20, 65_536, 262_144, 65_535, 8]
"""On both sides of the sizes from which on a message is a piece of its own, and sent uncopied; in
an order in which batches of such pieces have several, and others are of both kinds."""

ROUND = len(SIZES)


def blob(number: int) -> bytes:
    size = SIZES[number % ROUND]
    return number.to_bytes(8, "big") + random.Random(number).randbytes(size - 8)


def number_of(blob: bytes) -> int:
    return int.from_bytes(blob[:8], "big")


def line_of(blob: bytes) -> str:
    """What is kept of a blob: its number, its size and what it holds."""
    return f"{number_of(blob)} {len(blob)} {hashlib.sha256(blob).hexdigest()}"


class Blobs(Source):
    """`count` blobs of all sizes in turn; then it waits for the file `until`, if one is named."""

    blobs = Out(bytes)

    def __init__(self, count: int, until: str = "") -> None:
        self.count = count
        self.until = until

    async def read(self, position: int | None) -> AsyncIterator[Any]:
        for number in range(position or 0, self.count):
            yield blob(number), number + 1
            if number % 3 == 0:
                await asyncio.sleep(0)
        if self.until:
            await appeared(self.until)


class Pass(Node):
    """Passes blobs on. At number `at` it is killed, once."""

    blobs = In(bytes)
    passed = Out(bytes)

    def __init__(self, at: int = -1, marker: str = "") -> None:
        self.at = at
        self.marker = marker

    def on_blobs(self, blob: bytes) -> None:
        if number_of(blob) == self.at and first(self.marker):
            die("kill")
        self.passed.send(blob)


class PassLists(Node):
    """The same with lists that may be of several batches."""

    blobs = In(bytes, batch=5, within="50ms")
    passed = Out(bytes)

    def __init__(self, at: int = -1, marker: str = "") -> None:
        self.at = at
        self.marker = marker

    def on_blobs(self, blobs: list[bytes]) -> None:
        if self.at in map(number_of, blobs) and first(self.marker):
            die("kill")
        self.passed.send_many(blobs)


class Digests(Node):
    """Writes a line for each blob to `path`.REPLICA: see `line_of`.

    Handles nothing before the file `gate` exists, and refuses number `refused` until `mended` does.
    """

    blobs = In(bytes)

    def __init__(self, path: str, gate: str = "", refused: int = -1, mended: str = "") -> None:
        self.path = path
        self.gate = gate
        self.refused = refused
        self.mended = mended
        self.lines: list[str] = []

    async def on_blobs(self, blob: bytes) -> None:
        if self.gate:
            await appeared(self.gate)
        if number_of(blob) == self.refused and not os.path.exists(self.mended):
            raise ValueError("not this one")
        self.lines.append(line_of(blob) + "\n")

    def finish(self) -> None:
        Path(f"{self.path}.{self.replica}").write_text("".join(self.lines))
