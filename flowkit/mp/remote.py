"""`connect`: a queue with an address, from a process that has not inherited it."""

from __future__ import annotations

import os
import threading
from queue import Empty, Full
from typing import Any

import zmq

from flowkit.clock import monotonic
from flowkit.errors import TransportError
from flowkit.mp.items import codec as codec_of
from flowkit.topology.addresses import to_connect

SLICE = 2.0
"""Seconds that one question waits for an item, or for room, before it is asked again: so it is
noticed in time that nobody is there."""

SILENCE = 5.0
"""Seconds after which a gateway that does not answer is taken for gone."""


def connect(address: str, codec: str = "msgpack") -> RemoteQueue:
    """The queue that is served at `address`; `codec` is the one that it was made with.

    Raises ValueError if `address` is none to connect to, or there is no such codec.
    """
    return RemoteQueue(address, codec)


class RemoteQueue:
    """Puts into and gets from a queue that another process serves: see `flowkit.mp.gateway`.

    One round trip for each call. Every method raises TransportError if nobody answers; of an item
    that was being put or got then, nobody knows where it is. So it is with a call that is
    interrupted; the next one is made over a new connection.
    """

    def __init__(self, address: str, codec: str) -> None:
        to_connect(address)  # raises ValueError
        self._address = address
        self._codec = codec_of(codec)
        self._lock = threading.Lock()
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[Any] | None = None
        self._pid = 0

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put `obj` into the queue. Raises Full if there is no room (within `timeout` seconds)."""
        if not self._within(block, timeout, b"OK", b"PUT", self._codec.encode_one(obj)):
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item out of the queue. Raises Empty if there is none (within `timeout`)."""
        if not (answer := self._within(block, timeout, b"ITEM", b"GET")):
            raise Empty
        return self._codec.decode_one(answer[1])

    def put_nowait(self, obj: Any) -> None:
        self.put(obj, False)

    def get_nowait(self) -> Any:
        return self.get(False)

    def qsize(self) -> int:
        """How many items are in the queue."""
        return int(self._ask(SILENCE, b"SIZE")[1])

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        _, size, limit = self._ask(SILENCE, b"SIZE")
        return int(limit) > 0 and int(size) >= int(limit)

    def task_done(self) -> None:
        """One item that was got is done with. Raises ValueError if none is left."""
        self._ask(SILENCE, b"DONE")

    def close(self) -> None:
        """Give up the connection; it is made again when it is needed."""
        with self._lock:
            self._drop()

    def _within(
        self, block: bool, timeout: float | None, good: bytes, *question: bytes
    ) -> list[bytes] | None:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            left = 0.0 if not block else SLICE if deadline is None else deadline - monotonic()
            wait = min(max(left, 0.0), SLICE)
            answer = self._ask(wait + SILENCE, *question, b"%d" % round(wait * 1000))
            if answer[0] == good:
                return answer
            if not block or (deadline is not None and monotonic() >= deadline):
                return None

    def _ask(self, patience: float, *question: bytes) -> list[bytes]:
        with self._lock:
            try:
                socket = self._connected()
                socket.send_multipart(question)
                if not socket.poll(round(patience * 1000)):
                    raise TransportError(f"nobody answers at {self._address}", self._address)
                answer = socket.recv_multipart()
            except BaseException:  # Ctrl-C too: a REQ that was not answered asks nothing more
                self._drop()
                raise
        if answer[0] == b"ERROR":
            raise ValueError(answer[1].decode("utf-8", "replace"))
        return answer

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None or self._pid != os.getpid():  # neither survives a fork
            self._context = self._socket = None
            self._pid = os.getpid()
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.REQ)
            self._socket.linger = 0
            self._socket.connect(self._address)
        return self._socket

    def _drop(self) -> None:
        try:
            if self._context is not None and self._pid == os.getpid():
                self._context.destroy(linger=0)
        finally:
            self._context = self._socket = None
