"""The log of a replica, on its way to the supervisor.

A record takes one of two ways:

* *Over the control connection*, with its level, logger, time and traceback apart from the text. The
  supervisor says what it has heard, and no more than `WINDOW` bytes are on the way: what is logged
  faster than that is skipped, counted and told, and the loop is never held up.
* *On stderr*, which the supervisor reads to the last byte: before there is a connection (importing,
  `__init__`, `setup`), after it, and from whoever was forked. There a record is one line of JSON
  behind a record separator (RFC 7464), so that nothing of it is lost either.

A record that was handed to a socket is lost if the process is killed at once, so it is also written
to the replica's black box, from which the supervisor reads what it has not heard.

Nothing here is installed but by `set_up`, in a child process that belongs to flowkit alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar

import msgspec

from flowkit.clock import wall
from flowkit.protocol import control
from flowkit.protocol.control import Record
from flowkit.runtime.blackbox import LARGEST, BlackBox

WINDOW = 1 << 20
"""Bytes of records that may be on the way to the supervisor: some thousand records."""

ORDINARY = WINDOW * 3 // 4
"""The part of it that records below WARNING may take, so that others still find room."""

TEXT, TRACEBACK = 8 << 10, 12 << 10
"""Characters of a record's text and of its traceback at most; the middle of a longer one is cut."""

SEPARATOR = b"\x1e"
"""Begins a record on stderr."""

OWN = "flowkit.logs"
"""The logger of what is said about the log itself."""

current_replica: ContextVar[tuple[str, int] | None] = ContextVar("flowkit_replica", default=None)
"""Node and number of the replica whose code runs, also where several share a process."""

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(Record).decode
_exceptions = logging.Formatter()


class ReplicaContext(logging.Filter):
    """Adds `node` and `replica` to every record ("" and None outside of replicas).

    For an application that runs nodes in its own process: add it to a handler of its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        node, replica = current_replica.get() or ("", None)
        record.node, record.replica = node, replica
        return True


def record_of(entry: logging.LogRecord) -> Record:
    """What is sent of a log record. Raises what formatting its message raises."""
    traceback = entry.exc_text or ""
    if not traceback and entry.exc_info:
        traceback = _exceptions.formatException(entry.exc_info)
    if entry.stack_info:
        traceback = "\n".join(filter(None, (traceback, entry.stack_info)))
    record = Record(
        entry.created,
        entry.levelno,
        entry.name,
        _clean(entry.getMessage(), TEXT),
        _clean(traceback, TRACEBACK),
    )
    # Characters take up to four bytes, and more where JSON escapes them.
    while len(_to_json(record)) > LARGEST - 256:
        record.logger = record.logger[:200]
        record.text = _cut(record.text, max(200, len(record.text) // 2))
        record.traceback = _cut(record.traceback, max(200, len(record.traceback) // 2))
    return record


def line_of(record: Record) -> bytes:
    """A record as it is written to stderr, with its end of line."""
    return SEPARATOR + _to_json(record) + b"\n"


def parse_line(line: bytes) -> Record | None:
    """The record in a line of stderr, or None if it holds something else."""
    if not line.startswith(SEPARATOR):
        return None
    try:
        return _from_json(line[len(SEPARATOR) :])
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _clean(text: str, limit: int) -> str:
    """`text` without lone surrogates, which neither JSON nor msgpack takes, and not too long."""
    return _cut(text, limit).encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


class Courier(logging.Handler):
    """Carries log records to the supervisor; made in the thread of the loop.

    What begins with the replica's `name`, as flowkit's own records do, goes without: the supervisor
    says whose it is.
    """

    def __init__(self, name: str, incarnation: int = 1, box: BlackBox | None = None) -> None:
        super().__init__()
        self._prefix = f"{name}: "
        self._box = box
        self._incarnation = incarnation
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._guard = threading.RLock()
        self._send: Callable[[list[bytes]], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sequence = 0
        self._bytes = 0
        self._flying: deque[tuple[int, int]] = deque()
        self._queued: deque[bytes] = deque()
        """Records of other threads, which may not touch the connection."""
        self._skipped = 0
        self._settled: asyncio.Future[None] | None = None

    # -- logging calls -------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = record_of(record)
            said.text = said.text.removeprefix(self._prefix)
            self.say(said)
        except Exception:
            self.handleError(record)

    def say(self, record: Record) -> None:
        """Send `record` on its way; from any thread, also of a process that was forked."""
        if self._send is None or os.getpid() != self._process:
            write(record)
            return
        with self._guard:
            self._admit_skips()
            if not self._offer(record):
                self._skipped += 1

    # -- the connection ------------------------------------------------------------------------

    def connect(self, send: Callable[[list[bytes]], object]) -> None:
        """From now on records leave through `send`, which is called on this thread."""
        self._loop = asyncio.get_running_loop()
        self._send = send

    def heard(self, sequence: int) -> None:
        """The supervisor has heard everything up to `sequence`."""
        with self._guard:
            while self._flying and self._flying[0][0] <= sequence:
                self._bytes -= self._flying.popleft()[1]
            self._admit_skips()
            if not self._flying and self._settled is not None and not self._settled.done():
                self._settled.set_result(None)

    async def disconnect(self, seconds: float) -> None:
        """Wait for at most `seconds` until everything is heard; what follows goes to stderr."""
        if self._send is None or self._loop is None:
            return
        self._flush()
        if self._flying:
            self._settled = self._loop.create_future()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._settled, seconds)
        with self._guard:
            self._flush()
            self._send = None
            if self._skipped:
                write(_confession(self._skipped))
                self._skipped = 0

    def close(self) -> None:
        """The process ends: what the supervisor has not heard it reads from the box."""
        self._send = None
        if self._box is not None:
            self._box.close()
            self._box = None
        super().close()

    def _admit_skips(self) -> None:
        """Say how many were skipped, when there is room for many again."""
        if self._skipped and self._bytes <= ORDINARY // 2:
            skipped, self._skipped = self._skipped, 0
            self._offer(_confession(skipped))

    def _offer(self, record: Record) -> bool:
        """Send a record, if there is room."""
        said = control.Said(self._incarnation, self._sequence + 1, record)
        (data,) = control.encode(said)
        limit = WINDOW if record.level >= logging.WARNING else ORDINARY
        if self._bytes + len(data) > limit:
            return False
        self._sequence += 1
        self._bytes += len(data)
        self._flying.append((self._sequence, len(data)))
        if self._box is not None:
            self._box.write(data)
        self._queued.append(data)
        if threading.get_ident() == self._thread:
            self._flush()
        elif len(self._queued) == 1 and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the box has it
                self._loop.call_soon_threadsafe(self._flush)
        return True

    def _flush(self) -> None:
        with self._guard:
            while self._queued and self._send is not None:
                self._send([self._queued.popleft()])


def _confession(count: int) -> Record:
    what = "1 log record was" if count == 1 else f"{count:,} log records were"
    text = f"{what} skipped: more was logged than the supervisor could take"
    return Record(wall(), logging.WARNING, OWN, text)


def write(record: Record) -> None:
    """Write `record` to stderr, for the supervisor to read there."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    rest = memoryview(line_of(record))
    with suppress(OSError):
        while rest:
            rest = rest[os.write(2, rest) :]


def set_up(box: str, incarnation: int, name: tuple[str, int], levels: Mapping[str, int]) -> Courier:
    """Let the root logger's records travel; called once in a child process, never elsewhere.

    Every record, also for handlers of the node's own, has the attributes `node` and `replica`.
    """
    current_replica.set(name)
    make = logging.getLogRecordFactory()

    def make_record(*arguments: object, **more: object) -> logging.LogRecord:
        record: logging.LogRecord = make(*arguments, **more)
        record.node, record.replica = name
        return record

    logging.setLogRecordFactory(make_record)
    courier = Courier(f"{name[0]}.{name[1]}", incarnation, BlackBox(box) if box else None)
    root = logging.getLogger()
    root.handlers[:] = [courier]
    root.setLevel(logging.INFO)
    for logger, level in levels.items():
        set_level(logger, level)
    return courier


def set_level(logger: str, level: int) -> None:
    """Log what `logger` says from `level` on; the empty name is that of the root."""
    logging.getLogger(logger or None).setLevel(level)


def level_of(level: int | str) -> int:
    """The number of a log level, given as number or name. Raises ValueError for what is none."""
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    number = logging.getLevelNamesMapping().get(str(level).strip().upper())
    if number is None:
        raise ValueError(f"'{level}' is no log level")
    return number
