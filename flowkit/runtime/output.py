"""What a replica prints: a pipe that is read on the loop, line by line, to the last byte."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

TAIL = 40
"""Lines kept for the report of a failure."""

READS = 32
"""Reads, of 64 KiB each, that empty a pipe: it holds 64 KiB, and 1 MiB if somebody enlarged it."""

LINE = 1 << 16
"""Bytes of a line at most; a longer one is cut."""


class Output:
    """A pipe. `writer` is to be given away; `on_line` gets each line without its end."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._on_line = on_line
        self._rest = b""
        self._tail: deque[bytes] = deque(maxlen=TAIL)
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._reader, self._read)

    @property
    def last_lines(self) -> str:
        return b"\n".join(self._tail).decode(errors="replace")

    def _read(self) -> bool:
        """Read what is there, at most a pipe's worth. False if there was nothing."""
        try:
            data = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._stop()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)
        if len(self._rest) > LINE:
            self._say(self._rest)
            self._rest = b""
        return True

    def drain(self) -> None:
        """The writer has ended: read what it left, which is what a pipe holds at most.

        A grandchild may hold the pipe open, and keep it full.
        """
        for _ in range(READS):
            if not self._open or not self._read():
                break

    def close(self) -> None:
        """Read what is left and close."""
        self.drain()
        self._stop()

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._reader)
            os.close(self._reader)
            if self._rest:
                self._say(self._rest)
                self._rest = b""

    def _say(self, line: bytes) -> None:
        self._tail.append(line)
        self._on_line(line)
