"""A queue for those who cannot inherit it: other hosts, other languages.

The process that has made the queue listens at an address, on a thread, and puts and gets for
whoever asks there. A question and its answer are the frames of a REQ socket, or of a DEALER, with
or without the empty frame before them:

=====================  ============================================================================
``PUT item [ms]``      ``OK``; or ``FULL`` if there was no room within so many milliseconds
``GET [ms]``           ``ITEM item``; or ``EMPTY`` if there was none within so many milliseconds
``SIZE``               ``OK``, how many items are in the queue, how many may be (0: any number)
``DONE``               ``OK``: `task_done` of a `JoinableQueue`
=====================  ============================================================================

Without ``ms`` they wait. What is wrong is answered by ``ERROR`` and a text. Numbers are decimal
digits. An item is encoded by the codec of the queue; pickle is not offered here, since whoever may
send a pickle may run code.

An item that was sent to a peer which dies before it has read it is gone. One for a peer that is
known to have left is put back, at the end.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full
from typing import Any, Protocol

import zmq

from flowkit.clock import monotonic
from flowkit.errors import TransportError
from flowkit.mp.items import Codec
from flowkit.topology.addresses import to_bind

AGAIN = 0.01
"""Seconds after which it is looked again whether there is room: nobody tells when there is."""


class Served(Protocol):
    """What the gateway needs of its queue."""

    def put_nowait(self, obj: Any) -> None: ...
    def get_nowait(self) -> Any: ...
    def qsize(self) -> int: ...
    def call_for_news(self) -> None:
        """`Gateway.wake` is to be called once there is an item."""


@dataclass(slots=True)
class _Wish:
    """Somebody waits for an item, or for room for one, until `deadline`."""

    envelope: list[bytes]
    deadline: float | None
    item: Any = None


class Gateway:
    """Serves `queue` at `address` until it is stopped, or nobody refers to the queue any more.

    `endpoint` is the address as it is to be connected to. Raises TransportError if it cannot be
    bound, ValueError if it is none, or open to other hosts and that was not said to be meant.
    """

    def __init__(
        self, queue: Served, codec: Codec, maxsize: int, address: str, insecure: bool
    ) -> None:
        if codec.name == "pickle":
            raise ValueError("a queue with an address needs codec='msgpack' or 'raw', not pickle")
        if not to_bind(address).local and not insecure:
            raise ValueError(
                f"anybody who reaches {address} could put and get: pass insecure=True if that is"
                " meant, or an address of this host, and a tunnel"
            )
        self._queue = weakref.ref(queue)
        self._codec = codec
        self._maxsize = maxsize
        self._gets: deque[_Wish] = deque()
        self._puts: deque[_Wish] = deque()
        self._returned: deque[Any] = deque()
        self._stopped = False
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 1000  # milliseconds: the last answers
        self._router.router_mandatory = True
        try:
            self._router.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise TransportError(f"cannot listen at {address}: {error.strerror}", address) from None
        endpoint = self._router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.endpoint = endpoint.rstrip(b"\0").decode()
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        weakref.finalize(queue, self.stop).atexit = False
        self._thread = threading.Thread(target=self._run, name="flowkit.mp.gateway", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look whether there are items."""
        with suppress(OSError):
            os.write(self._waker, b"!")

    def stop(self) -> None:
        """Serve nobody any more."""
        self._stopped = True
        self.wake()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(self._patience()))
                if self._woken in ready:
                    os.read(self._woken, 4096)
                queue = self._queue()
                if self._stopped or queue is None:
                    return
                with suppress(ValueError, OSError, EOFError):  # it has just been closed
                    self._turn(queue)
                del queue
        finally:
            self._context.destroy()
            os.close(self._waker)
            os.close(self._woken)

    def _turn(self, queue: Served) -> None:
        with suppress(zmq.Again):
            while True:
                frames = self._router.recv_multipart(zmq.DONTWAIT)
                cut = 2 if frames[1:2] == [b""] else 1
                self._ask(queue, frames[:cut], frames[cut:])
        with suppress(Full):
            while self._returned:
                queue.put_nowait(self._returned[0])
                self._returned.popleft()
        self._serve_puts(queue)
        self._serve_gets(queue)

    def _ask(self, queue: Served, envelope: list[bytes], question: list[bytes]) -> None:
        try:
            match question:
                case [b"PUT", raw, *patience]:
                    item = self._codec.decode_one(raw)
                    self._puts.append(_Wish(envelope, _deadline(patience), item))
                case [b"GET", *patience]:
                    self._gets.append(_Wish(envelope, _deadline(patience)))
                case [b"SIZE"]:
                    self._answer(envelope, b"OK", b"%d" % queue.qsize(), b"%d" % self._maxsize)
                case [b"DONE"]:
                    queue.task_done()  # type: ignore[attr-defined]
                    self._answer(envelope, b"OK")
                case _:
                    raise ValueError("PUT item [ms], GET [ms], SIZE or DONE")
        except Exception as error:  # whatever a peer has sent, it is his
            text = f"{type(error).__name__}: {error}"
            self._answer(envelope, b"ERROR", text.encode("utf-8", "replace"))

    def _serve_puts(self, queue: Served) -> None:
        with suppress(Full):
            while self._puts:
                queue.put_nowait(self._puts[0].item)
                self._answer(self._puts.popleft().envelope, b"OK")
        for wish in _overdue(self._puts):
            self._answer(wish.envelope, b"FULL")

    def _serve_gets(self, queue: Served) -> None:
        with suppress(Empty):
            while self._gets:
                item = queue.get_nowait()
                wish = self._gets.popleft()
                if not self._answer(wish.envelope, b"ITEM", self._codec.encode_one(item)):
                    self._returned.append(item)
        for wish in _overdue(self._gets):
            self._answer(wish.envelope, b"EMPTY")
        if self._gets:
            queue.call_for_news()

    def _answer(self, envelope: list[bytes], *frames: bytes) -> bool:
        """Returns whether the peer is still there."""
        try:
            self._router.send_multipart([*envelope, *frames], zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True

    def _patience(self) -> int | None:
        """Milliseconds until something is to be done even if nothing happens."""
        wishes = [wish.deadline for wish in (*self._puts, *self._gets) if wish.deadline is not None]
        waits = [max(0.0, min(wishes) - monotonic())] if wishes else []
        if self._puts or self._returned:
            waits.append(AGAIN)
        return math.ceil(1000 * min(waits)) if waits else None


def _deadline(patience: list[bytes]) -> float | None:
    return monotonic() + int(patience[0]) / 1000 if patience else None


def _overdue(wishes: deque[_Wish]) -> list[_Wish]:
    """Those whose time is over, which are removed."""
    now = monotonic()
    over = [wish for wish in wishes if wish.deadline is not None and wish.deadline <= now]
    for wish in over:
        wishes.remove(wish)
    return over
