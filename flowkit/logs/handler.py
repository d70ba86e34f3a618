"""`Handler`: sends the log records of a process to a collector."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from typing import Any

import zmq

from flowkit.clock import wall
from flowkit.logs import keys
from flowkit.logs.signing import Entry, sign
from flowkit.runtime.logs import record_of
from flowkit.topology.addresses import to_connect

WAITING = 10_000
"""Records that wait in memory while nobody collects."""

LINGER = 1000
"""Milliseconds that `close` gives what still waits."""


class Handler(logging.Handler):
    """Sends records to the collector at `address`, signed with `key`; by default with the one that
    `flowkit.logs.keys.find` finds.

    It never waits: what does not fit into `WAITING` is skipped, and the next record that is sent
    says how many were. A collector may come later, and may be started again. A forked child sends
    a stream of its own. Raises ValueError if `address` is none to connect to, OperatorError if
    there is no key.
    """

    def __init__(
        self, address: str, key: bytes | None = None, level: int | str = logging.NOTSET
    ) -> None:
        to_connect(address)  # raises ValueError
        super().__init__(level)
        self._address = address
        self._key = key if key is not None else keys.find()
        self._host = socket.gethostname()
        self._pid = 0
        self._context: zmq.Context[Any] | None = None
        self.skipped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Called under the handler's lock."""
        try:
            self._send(record)
        except zmq.Again:
            self.skipped += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Give what still waits a second, and let go of the socket."""
        self.acquire()
        try:
            if self._context is not None and self._pid == os.getpid():
                self._context.destroy(linger=LINGER)
            self._context = None
        finally:
            self.release()
        super().close()

    def _send(self, record: logging.LogRecord) -> None:
        if self._context is None or self._pid != os.getpid():
            self._open()
        entry = Entry(
            self._stream,
            self._number + 1,
            wall(),
            self._host,
            record.processName or "",
            os.getpid(),
            record_of(record),
            self.skipped,
        )
        self._socket.send_multipart(sign(entry, self._key), zmq.DONTWAIT)
        self._number += 1
        self.skipped = 0

    def _open(self) -> None:
        self._pid = os.getpid()
        self._stream = secrets.token_bytes(16)
        self._number = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.sndhwm = WAITING
        self._socket.linger = LINGER
        self._socket.connect(self._address)
