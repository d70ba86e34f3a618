"""Counters of one incarnation in memory that outlives it: a small mapped file.

The replica writes, the supervisor reads, also after the replica was killed. Row 0 holds gauges, the
others the books of one output link each, in the order of the replica's outputs. Row 0 is
`GAUGES` integers long, the others `ROW`. Clocks are monotonic ones, which all processes of a host
share.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import NamedTuple

from flowkit.histogram import CELLS
from flowkit.protocol.ledger import ROW, Books

BUSY_NS, WAITING_NS, HANDLED, READ, COMMIT_NS, CPU_NS, STARVED_NS, INPUT_NS, TIMES = range(9)
"""Counters in row 0: nanoseconds in handlers and nanoseconds without room downstream; messages
handled; messages a source has yielded; nanoseconds that a sink took to make things durable;
nanoseconds on a core, and ready for one without having it (0 if the process is not the replica's
own); nanoseconds that a source waited for its input; and the histogram of the seconds that handlers
take for one message."""
LATENCY = TIMES + CELLS
"""Where the other histogram begins: the age of messages, from their root to where they end."""
COUNTERS = LATENCY + CELLS
"""Places below this only grow."""
LENGTH, TURNED_NS, HANDLER, SINCE_NS, QUEUE, CONCURRENCY, LISTS, *CARE = range(
    COUNTERS, COUNTERS + 11
)
"""And how things stand: messages a source will yield in all (0: unknown); when its loop last
turned; the number of the input channel whose handler runs, from 1, and, if that is a plain one,
since when; messages received and not yet handled; how many handlers may run at once, if they are
coroutines (else 0); how many messages a handler takes at once, if it takes lists (else 0); and four
for `note_care`."""
GAUGES = COUNTERS + 16
"""Integers in row 0."""


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
    """The gauges and the books of `links` links in the file at `path`, which `create` makes; None:
    of as many as it holds."""

    def __init__(self, path: str | Path, links: int | None = None, create: bool = False) -> None:
        if links is None:
            links = (os.stat(path).st_size // 8 - GAUGES) // ROW
        size = (GAUGES + links * ROW) * 8
        mode = "x+b" if create else "r+b"
        with open(path, mode) as file:
            if create:
                # Not a sparse file: without room for it, the first count would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("q")
        self.gauges = self._cells[:GAUGES]
        self.books = [
            Books(self._cells[at : at + ROW]) for at in range(GAUGES, GAUGES + links * ROW, ROW)
        ]

    def close(self) -> None:
        """Unmap. The rows must not be used afterwards."""
        for book in self.books:
            book.close()
        self.gauges.release()
        self._cells.release()
        self._map.close()
