"""What a replica prints: a pipe that is read on the loop, line by line, to the last byte."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

from flowkit.protocol.control import Record
from flowkit.runtime.logs import SEPARATOR, parse_line

TAIL = 40
"""Lines kept for the report of a failure."""

READS = 32
"""Reads, of 64 KiB each, that empty a pipe: it holds 64 KiB, and 1 MiB if somebody enlarged it."""

LINE = 1 << 16
"""Bytes of a line at most; a longer one is cut."""


class Output:
    """A pipe. `writer` is to be given away; `on_line` gets each line without its end, and
    `on_record` the log records that came this way."""

    def __init__(
        self, on_line: Callable[[bytes], None], on_record: Callable[[Record], None]
    ) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._on_line = on_line
        self._on_record = on_record
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

    def remember(self, record: Record) -> None:
        """Keep a log record, which may have come another way, among the last lines."""
        text = f"{record.text}\n{record.traceback}" if record.traceback else record.text
        self._tail.extend(line.encode("utf-8", "replace") for line in text.splitlines())

    def _say(self, line: bytes) -> None:
        # A record may follow something that was printed without an end of line.
        before, separator, rest = line.partition(SEPARATOR)
        record = parse_line(separator + rest) if separator else None
        if record is None:
            self._tail.append(line)
            self._on_line(line)
            return
        if before:
            self._tail.append(before)
            self._on_line(before)
        self._on_record(record)
