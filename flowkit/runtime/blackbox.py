"""The newest log records of a replica, in memory that outlives it: a small mapped file.

A record that was handed to a socket is still in the memory of this process for a moment, and is
gone if the process is killed just then, which is when somebody will want to read it. So each is
written here first, and what the supervisor has not heard of an incarnation that is dead it reads
from here.

The file has two halves that are filled in turn, so that it always holds between one half and all of
its size of the newest records. A record is its length (4 bytes) and its bytes; a length of 0 ends
the half. The length is written last: what a death has left half written is not there.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

SIZE = 64 << 10
"""Bytes of the file: some hundreds of records."""

HALF = SIZE // 2

LARGEST = HALF - 8
"""Bytes of a record at most."""

_LENGTH = struct.Struct("<I")


class BlackBox:
    """The file at `path`; `create` makes it. One process writes; another reads it after that."""

    def __init__(self, path: str | Path, create: bool = False) -> None:
        with open(path, "x+b" if create else "r+b") as file:
            if create:
                # Not a sparse file: without room for it, the first record would end the process.
                os.posix_fallocate(file.fileno(), 0, SIZE)
            self._map = mmap.mmap(file.fileno(), SIZE)
        self._half = 0
        self._at = 0

    def write(self, record: bytes) -> None:
        """Keep `record`, of at most `LARGEST` bytes, and let go of the oldest if need be."""
        size = _LENGTH.size
        end = self._at + size + len(record)
        if end + size > HALF:
            self._half = HALF - self._half
            self._at = 0
            end = size + len(record)
            self._map[self._half : self._half + size] = bytes(size)
        at = self._half + self._at
        self._map[at + size : at + size + len(record)] = record
        self._map[self._half + end : self._half + end + size] = bytes(size)
        self._map[at : at + size] = _LENGTH.pack(len(record))
        self._at = end

    def read(self) -> list[bytes]:
        """Every record that is there, those of one half after those of the other."""
        found: list[bytes] = []
        for half in (0, HALF):
            at, end = half, half + HALF
            while at + _LENGTH.size <= end:
                (length,) = _LENGTH.unpack_from(self._map, at)
                at += _LENGTH.size
                if not 0 < length <= end - at:
                    break
                found.append(self._map[at : at + length])
                at += length
        return found

    def close(self) -> None:
        """Unmap; what was written stays in the file."""
        self._map.close()
