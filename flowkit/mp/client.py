"""The thread of a process that talks with a broker: for all queues of that broker, both ways.

ZeroMQ's sockets belong to one thread, and neither they nor their context survive a fork. So
whoever puts or gets leaves word and, if the thread rests, wakes it; a forked child begins with a
client of its own, and what its parent had is never touched there.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import zmq

from flowkit.mp.items import Codec
from flowkit.mp.lifeline import Lifeline, hold

LEAST, MOST = 16, 2048
"""Items of one page: how many are tried first, and how many it has at most."""

PAGE = 32 << 10
"""Bytes that a page should have: so many items are put into one as were about that much before."""


PAGES = 64
"""Pages of one outbox that are sent, and frames that are received, before the others get a turn."""


class Listener(Protocol):
    """Who is told what comes from the broker, on the client's thread."""

    def arrived(self, first: int, pages: list[bytes]) -> None:
        """`pages` without a gap; their first item has the index `first`."""

    def broken(self) -> None:
        """The broker has died: nothing will come."""


class Outbox:
    """What has been put into the queue `name` and is not with the broker yet.

    Append to `items` at any time; then `Client.wake`, if the client rests. When it is `closed` and
    the broker has everything, or has died, it is `done`. `on_error(error, item)` is called, on
    the client's thread, for an item that cannot be encoded, which is gone then.
    """

    def __init__(self, name: bytes, codec: Codec, on_error: Callable[[Exception, Any], None]):
        self.name = name
        self.items: deque[Any] = deque()
        self.closed = False
        self.done = threading.Event()
        self._codec = codec
        self._on_error = on_error
        self._many = LEAST

    def page(self) -> tuple[int, bytes] | None:
        """The next page, and how many items it has; None if nothing is left that can be sent."""
        pop = self.items.popleft
        batch: list[Any] = []
        with suppress(IndexError):
            for _ in range(self._many):
                batch.append(pop())
        if not batch:
            return None
        try:
            page = self._codec.page(batch)
        except Exception:
            return self._without_the_culprits(batch)
        if len(page) < PAGE:
            self._many = min(2 * self._many, MOST)
        elif len(page) > 2 * PAGE:
            self._many = max(self._many * PAGE // len(page), 1)
        return len(batch), page

    def _without_the_culprits(self, batch: list[Any]) -> tuple[int, bytes] | None:
        good = []
        for item in batch:
            try:
                self._codec.page([item])
            except Exception as error:
                self._on_error(error, item)
            else:
                good.append(item)
        return (len(good), self._codec.page(good)) if good else self.page()


class Client:
    """A thread with a DEALER to the broker of `lifeline`; it ends when all outboxes are done."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self._members: dict[bytes, tuple[Outbox, Listener]] = {}
        self._orders: deque[tuple[bytes, ...]] = deque()
        self._asked: set[bytes] = set()  # closed outboxes, while the broker's answer is awaited
        self.resting = False
        self.dead = False
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._context = zmq.Context()

    def start(self) -> None:
        threading.Thread(target=self._run, name="flowkit.mp", daemon=True).start()

    # ------------------------------------------------------------ from any thread

    def add(self, outbox: Outbox, listener: Listener) -> None:
        """Send what is in `outbox`, and tell `listener` what comes for its queue."""
        self._members[outbox.name] = outbox, listener

    def wake(self) -> None:
        """Look into the outboxes. Needed only while `resting`. Raises BrokenPipeError if the broker
        has died."""
        if self.dead:
            raise BrokenPipeError("the process that keeps this queue's items has died")
        self.resting = False
        with suppress(BlockingIOError):
            os.write(self._waker, b"!")

    def close(self, outbox: Outbox) -> None:
        """Nothing more will be put there."""
        outbox.closed = True
        with suppress(OSError):  # it has ended already
            self.wake()

    def ask(self, name: bytes, index: int, wait: bool) -> None:
        """The items of the queue `name` from `index` on: now, or as soon as there is one."""
        self._order(b"A" if wait else b"L", name, b"%d" % index)

    def leave(self, name: bytes) -> None:
        """Nobody waits for an item of that queue here any more."""
        self._order(b"C", name)

    def _order(self, *frames: bytes) -> None:
        self._orders.append(frames)
        if self.resting:
            self.wake()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.sndhwm = socket.rcvhwm = socket.linger = 0
        socket.reconnect_ivl = 5  # milliseconds: the broker may only just be starting
        socket.connect(self._lifeline.address)
        lifeline = self._lifeline.end.fileno()
        poller = zmq.Poller()
        for each in (socket, self._woken, lifeline):
            poller.register(each, zmq.POLLIN)
        try:
            while not _retire(self):
                self.resting = True
                busy = self._orders or any(
                    outbox.items or outbox.closed and name not in self._asked
                    for name, (outbox, _) in list(self._members.items())
                )
                ready = dict(poller.poll(0 if busy else None))
                self.resting = False
                if self._woken in ready:
                    os.read(self._woken, 4096)
                if socket in ready:
                    self._receive(socket)
                if lifeline in ready:
                    self._break()
                    return
                self._send(socket)
        finally:
            self._context.destroy(linger=0)
            os.close(self._woken)
            os.close(self._waker)
            self._lifeline.release()

    def _send(self, socket: zmq.Socket[bytes]) -> None:
        while self._orders:
            socket.send_multipart(self._orders.popleft())
        for name, (outbox, _) in list(self._members.items()):
            for _ in range(PAGES):
                page = outbox.page()
                if page is None:
                    if outbox.closed and name not in self._asked and not outbox.items:
                        self._asked.add(name)
                        socket.send_multipart([b"F", name])
                    break
                socket.send_multipart([b"P", name, b"%d" % page[0], page[1]])

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(PAGES):
            try:
                verb, name, *rest = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            member = self._members.get(name)
            if member is None:
                continue
            outbox, listener = member
            if verb == b"F":
                del self._members[name]
                self._asked.discard(name)
                outbox.done.set()
            else:
                listener.arrived(int(rest[0]), rest[1:])

    def _break(self) -> None:
        self.dead = self.resting = True
        _retire(self)
        for outbox, listener in self._members.values():
            outbox.done.set()
            listener.broken()


_clients: dict[str, Client] = {}
"""The clients of this process, by the directory of their broker."""

_abandoned: list[Client] = []
"""Those of the parent: not to be used, and not to be destroyed either."""

_guard = threading.Lock()


def client_of(lifeline: Lifeline, outbox: Outbox, listener: Listener) -> Client:
    """The client of this process for a broker, with one outbox more."""
    with _guard:
        client = _clients.get(lifeline.directory)
        if client is None:
            client = _clients[lifeline.directory] = Client(hold(lifeline))
            client.add(outbox, listener)
            client.start()
        else:
            client.add(outbox, listener)
        return client


def _retire(client: Client) -> bool:
    """End a client that has nothing left to do."""
    with _guard:
        if client._members and not client.dead:
            return False
        if _clients.get(client._lifeline.directory) is client:
            del _clients[client._lifeline.directory]
        return True


def after_fork() -> None:
    """In a child: begin anew."""
    global _guard
    _guard = threading.Lock()
    for client in _clients.values():
        client._lifeline.users -= 1
        _abandoned.append(client)
    _clients.clear()
