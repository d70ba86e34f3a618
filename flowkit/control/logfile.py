"""Files of lines that are rotated by size, and reading them again in either direction.

A line of a log is its time (UTC), its level and its text::

    2026-01-31T12:00:04.120041Z ERROR ValueError: bad date

A level of ``-`` means that the line was printed and not logged; one that begins with ``+`` that it
belongs to the line before, as those of a traceback do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from flowkit.control.records import LogLine, Mark

LIMIT = 10 << 20
"""Bytes of a file before it is rotated."""

KEEP = 4
"""Rotated files that are kept: with the present one, 50 MiB for each replica at most."""

BLOCK = 1 << 16
"""Bytes read at a time from the end of a file."""


class RotatedFile:
    """Lines are gathered by `add` and written by `flush`. Rotated files are called ``path.1``, the
    newest, to ``path.KEEP``.

    A disk that is full costs lines, which are counted in `lost`, and nothing else. A file that
    somebody has moved or removed (logrotate, say) is made anew.
    """

    def __init__(self, path: Path, limit: int = LIMIT, keep: int = KEEP) -> None:
        self.path = path
        self.lost = 0
        self._limit, self._keep = limit, keep
        self._waiting: list[bytes] = []
        self._file = -1
        self._size = 0
        self._torn = False

    def add(self, line: bytes) -> None:
        """Have a line written, which has no end."""
        self._waiting.append(line)

    def flush(self) -> bool:
        """Write what was added. False if some of it is lost."""
        if not self._waiting:
            return True
        lines, self._waiting = self._waiting, []
        data = b"\n".join(lines) + b"\n"
        try:
            if self._file < 0 or self._has_gone():
                self._open()
            if self._torn:
                data = b"\n" + data
            if self._size and self._size + len(data) > self._limit:
                self._rotate()
                self._open()
            while data:
                written = os.write(self._file, data)
                self._size += written
                self._torn = written < len(data) or not data.endswith(b"\n")
                data = data[written:]
        except OSError:
            self.lost += len(lines)
            return False
        return True

    def mark(self) -> Mark:
        """Where the next line will be, after everything that was added was written."""
        self.flush()
        if self._file < 0:
            with suppress(OSError):
                self._open()
        return Mark(os.fstat(self._file).st_ino if self._file >= 0 else 0, self._size)

    def close(self) -> None:
        self.flush()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _has_gone(self) -> bool:
        """Whether the path leads to another file now, or to none; ours is closed then."""
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == os.fstat(self._file).st_ino:
                return False
        os.close(self._file)
        self._file = -1
        return True

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self.path, flags, 0o600)
        self._size = os.fstat(self._file).st_size
        self._torn = False

    def _rotate(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        for number in range(self._keep - 1, 0, -1):
            older = _numbered(self.path, number)
            if older.exists():
                older.replace(_numbered(self.path, number + 1))
        self.path.replace(_numbered(self.path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


# -- lines of logs


def format_line(line: LogLine) -> bytes:
    """A line of a log as it is written."""
    level = f"{'+' if line.more else ''}{line.level or '-'}"
    return f"{timestamp(line.time)} {level} {line.text}".encode("utf-8", "backslashreplace")


def parse_line(line: bytes, replica: str) -> LogLine | None:
    """A line as it was written; None if it is not one."""
    stamp, _, rest = line.partition(b" ")
    level, _, text = rest.partition(b" ")
    try:
        time = datetime.fromisoformat(stamp.decode()).timestamp()
        name = level.decode()
    except ValueError:
        return None
    more = name.startswith("+")
    name = name.removeprefix("+")
    shown = text.decode("utf-8", "backslashreplace")
    return LogLine(time, replica, "" if name == "-" else name, shown, more)


def timestamp(time: float) -> str:
    """A time as it is written to files: UTC, to the microsecond."""
    return datetime.fromtimestamp(time, tz=UTC).isoformat(timespec="microseconds")[:-6] + "Z"


# -- reading


def lines_of(path: Path, mark: Mark | None = None) -> Iterator[bytes]:
    """All lines of a rotated file, oldest first; those before `mark` only, if one is given."""
    with ExitStack() as open_files:
        for file, end in _files(path, mark, open_files):
            left = end if end is not None else sys.maxsize
            for line in file:
                left -= len(line)
                if left < 0:
                    break
                yield line.rstrip(b"\n")


def lines_backwards(path: Path, mark: Mark | None = None) -> Iterator[bytes]:
    """All lines of a rotated file, newest first; those before `mark` only, if one is given."""
    with ExitStack() as open_files:
        for file, end in reversed(_files(path, mark, open_files)):
            at = file.seek(0, os.SEEK_END) if end is None else end
            rest = b""
            while at > 0:
                size = min(BLOCK, at)
                at -= size
                file.seek(at)
                first, *lines = (file.read(size) + rest).split(b"\n")
                yield from (line for line in reversed(lines) if line)
                rest = first
            if rest:
                yield rest


def _files(
    path: Path, mark: Mark | None, open_files: ExitStack
) -> list[tuple[IO[bytes], int | None]]:
    """The files of a rotated file that can be opened, oldest first, and where to stop in each."""
    found: list[tuple[IO[bytes], int | None]] = []
    seen: set[int] = set()
    # The newest first: a rotation meanwhile makes a file appear twice, never vanish unseen.
    for candidate in (path, *(_numbered(path, number) for number in range(1, KEEP + 2))):
        try:
            file = open_files.enter_context(open(candidate, "rb"))
        except OSError:
            continue
        inode = os.fstat(file.fileno()).st_ino
        if inode in seen:
            continue
        seen.add(inode)
        if mark is not None and inode == mark.file:
            found = [(file, mark.size)]
        else:
            found.append((file, None))
    return found[::-1]
