"""The broker: a process that keeps what was put into queues until it is taken.

It is started with the first queue of a program, as `multiprocessing` starts its resource tracker,
and serves all queues of it and of its children. Every process that has one of them holds an end of
the *lifeline*, a pair of sockets whose other end the broker holds: when the last of those
processes has let go or died, the broker ends and clears up; when the broker dies, they notice.
The one byte that it sends there says that it is ready.

Frames to the broker, after its ROUTER's routing id (`count` and `index` in decimal digits):

====  ======================  ===================================================================
verb  then                    means
====  ======================  ===================================================================
P     queue, count, page      put `count` items
A     queue, index            ask for what there is from that item on; if nothing, wait
L     queue, index            look for it: as above, and be told also if there is nothing
C     queue                   do not wait any longer
F     anything                everything before this has arrived: sent back as it is
====  ======================  ===================================================================

The one answer to A and L is ``D, queue, index of the first item, page, ...``.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from contextlib import suppress

import zmq
from setproctitle import setproctitle

from flowkit.mp.cells import SIZE, TAKEN, TOTAL, map_cells
from flowkit.mp.log import Answer, Log

SOCKET = "s"
"""The name of the broker's socket in its directory; beside it each queue has its file of cells."""

AGAIN = 10
"""Milliseconds after which another one of those who wait is told of an item that nobody took: the
one who was told first may have died, or may have given up just then."""

MANY = 100
"""Frames that are handled before those who wait are looked after."""


class Broker:
    """The logs of all queues whose files are in `directory`."""

    def __init__(self, directory: str, router: zmq.Socket[bytes]) -> None:
        self._directory = directory
        self._router = router
        self._queues: dict[bytes, tuple[Log, memoryview]] = {}
        self._news: dict[bytes, int] = {}  # queues that somebody may have to be told of, and items

    def serve(self, lifeline: int) -> None:
        """Until nobody holds the other end of the lifeline."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(lifeline, zmq.POLLIN)
        pending = False
        while True:
            ready = dict(poller.poll(AGAIN if pending else None))
            if lifeline in ready:
                return
            if self._router in ready:
                for _ in range(MANY):
                    try:
                        frames = self._router.recv_multipart(zmq.DONTWAIT)
                    except zmq.Again:
                        break
                    self._handle(*frames)
            for name, news in list(self._news.items()):
                if not self._awaken(name, max(news, 1)):
                    del self._news[name]
            pending = bool(self._news)

    def _handle(self, peer: bytes, verb: bytes, name: bytes, *rest: bytes) -> None:
        if verb == b"F":
            self._router.send_multipart([peer, verb, name])
            return
        log, cells = self._queue(name)
        if verb == b"P":
            count = int(rest[0])
            log.put(count, rest[1])
            cells[TOTAL] = log.total
            self._news[name] = self._news.get(name, 0) + count
        elif verb == b"C":
            log.leave(peer)
        else:
            index = int(rest[0])
            log.forget(cells[TAKEN])
            answer = log.ask(peer, max(index, log.first), verb == b"A")
            if answer is not None:
                self._answer(peer, name, answer)
            elif verb == b"L":
                self._answer(peer, name, (log.total, []))

    def _awaken(self, name: bytes, news: int) -> bool:
        """Tell as many as there is news for; returns whether to come back to this queue."""
        log, cells = self._queue(name)
        for peer, answer in log.awaken(cells[TAKEN], news):
            self._answer(peer, name, answer)
        self._news[name] = 0
        log.forget(cells[TAKEN])
        if log.idle:
            del self._queues[name]
        return log.pending(cells[TAKEN])

    def _answer(self, peer: bytes, name: bytes, answer: Answer) -> None:
        first, pages = answer
        self._router.send_multipart([peer, b"D", name, b"%d" % first, *pages])

    def _queue(self, name: bytes) -> tuple[Log, memoryview]:
        found = self._queues.get(name)
        if found is None:
            path = os.path.join(self._directory, name.decode("ascii"))
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                cells = map_cells(descriptor, SIZE)
            finally:
                os.close(descriptor)
            found = self._queues[name] = (Log(cells[TOTAL]), cells)
        return found


def main(directory: str, lifeline: int) -> None:
    """The broker's process."""
    os.setsid()  # Ctrl-C is for those who use the queues; they may still have to say something
    setproctitle(f"flowkit: queues of process {os.getppid()}")
    ours = socket.socket(fileno=lifeline)
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.sndhwm = router.rcvhwm = router.linger = 0
    try:
        router.bind(f"ipc://{directory}/{SOCKET}")
        ours.send(b"!")
        Broker(directory, router).serve(ours.fileno())
    finally:
        with suppress(OSError):
            shutil.rmtree(directory)
        context.destroy(linger=0)
        ours.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
