"""Counters of one incarnation in memory that outlives it: a small mapped file.

The replica writes, the supervisor reads, also after the replica was killed. Row 0 holds gauges, the
others the books of one output link each, in the order of the replica's outputs.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import NamedTuple

from flowkit.protocol.ledger import ROW, Books

BUSY_NS, WAITING_NS, HANDLED, LENGTH, READ, TURNED_NS, HANDLER, *CARE = range(11)
"""Places in row 0: nanoseconds in handlers and nanoseconds without room downstream; messages
handled; messages a source will yield in all (0: unknown) and has yielded; when its loop last
turned; the number of the input channel whose handler runs, from 1; and four for `note_care`."""


class InHand(NamedTuple):
    """The message that a replica had in hand, carefully, when it died."""

    link: int
    id: bytes
    place: int


def note_care(gauges: MutableSequence[int] | memoryview[int], link: int, id: bytes) -> None:
    """A batch is handled carefully from now on: write the index of each message to the last of
    `CARE` before it is handled. `done_care` when it is through."""
    place, high, low, index = CARE
    gauges[index] = -1
    gauges[high] = int.from_bytes(id[:8], signed=True)
    gauges[low] = int.from_bytes(id[8:], signed=True)
    gauges[place] = link + 1


def done_care(gauges: MutableSequence[int] | memoryview[int]) -> None:
    gauges[CARE[0]] = 0


def in_hand(gauges: Sequence[int] | memoryview[int]) -> InHand | None:
    """What `note_care` noted, if it was not done."""
    place, high, low, index = CARE
    if not gauges[place] or gauges[index] < 0:
        return None
    id = gauges[high].to_bytes(8, signed=True) + gauges[low].to_bytes(8, signed=True)
    return InHand(gauges[place] - 1, id, gauges[index])


class SharedRows:
    """`rows` rows of `ROW` integers in the file at `path`, which `create` makes."""

    def __init__(self, path: str | Path, rows: int, create: bool = False) -> None:
        size = rows * ROW * 8
        mode = "x+b" if create else "r+b"
        with open(path, mode) as file:
            if create:
                # Not a sparse file: without room for it, the first count would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("q")
        self.gauges = self._cells[:ROW]
        self.books = [Books(self._cells[row * ROW : (row + 1) * ROW]) for row in range(1, rows)]

    def close(self) -> None:
        """Unmap. The rows must not be used afterwards."""
        for book in self.books:
            book.close()
        self.gauges.release()
        self._cells.release()
        self._map.close()
