"""Counters of one incarnation in memory that outlives it: a small mapped file.

The replica writes, the supervisor reads, also after the replica was killed. Row 0 holds gauges, the
others the books of one output link each, in the order of the replica's outputs.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from flowkit.protocol.ledger import ROW, Books

BUSY_NS, WAITING_NS, HANDLED, LENGTH, READ, STARTED_NS = range(6)
"""Places in row 0: nanoseconds in handlers and nanoseconds without room downstream; messages
handled; messages a source will yield in all (0: unknown) and has yielded; when it became ready."""


class SharedRows:
    """`rows` rows of `ROW` integers in the file at `path`, which `create` makes."""

    def __init__(self, path: str | Path, rows: int, create: bool = False) -> None:
        size = rows * ROW * 8
        mode = "x+b" if create else "r+b"
        with open(path, mode) as file:
            if create:
                file.truncate(size)
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
