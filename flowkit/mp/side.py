"""One process's side of a queue: what is on its way out, what has come, and who fetches it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from multiprocessing import util
from typing import Any

from flowkit.mp.cells import Cursor
from flowkit.mp.client import Client, Outbox, client_of
from flowkit.mp.items import Codec
from flowkit.mp.lifeline import Lifeline
from flowkit.mp.reader import Reader

_starting = threading.Lock()


class Side:
    """This process's side of the queue `name` of the broker of `lifeline`, of which it is a user.

    `lock` is the queue's; `lost(error, item)` is called for an item that cannot be encoded, and
    `taken()` for one that is taken. `close` it; that is no more than a word to the client.
    """

    def __init__(
        self,
        lifeline: Lifeline,
        name: str,
        codec: Codec,
        lock: Any,
        lost: Callable[[Exception, Any], None],
        taken: Callable[[], object],
    ) -> None:
        self.lifeline = lifeline
        self.client: Client | None = None
        self.outbox = Outbox(name.encode("ascii"), codec, lost)
        self.cursor = Cursor(lifeline.file_of(name), lock)
        self.reader = Reader(self.outbox.name, codec, self.cursor, self.connect, taken)
        self._closed = False
        self._exit: util.Finalize | None = None
        self._waits_at_exit = True

    def connect(self) -> Client:
        """The client of this process, which knows this queue from now on."""
        with _starting:
            if self.client is None:
                self.client = client_of(self.lifeline, self.outbox, self.reader)
                if self._waits_at_exit:
                    # As multiprocessing's own: after the children that are no daemons were joined.
                    self._exit = util.Finalize(self, _flush, [weakref.ref(self)], exitpriority=-5)
        return self.client

    def close(self) -> None:
        """Nothing more is put or taken here. What was put is still sent."""
        if self._closed:
            return
        self._closed = True
        if self.client is not None:
            self.client.close(self.outbox)
        self.cursor.leave()
        self.lifeline.release()

    def flush(self) -> None:
        """Close, and wait until what was put is with the broker, or the broker has died."""
        self.close()
        if self.client is not None:
            self.outbox.done.wait()

    def cancel(self) -> None:
        """Do not wait for that when the process ends."""
        self._waits_at_exit = False
        if self._exit is not None:
            self._exit.cancel()


def _flush(side: weakref.ref[Side]) -> None:
    if (ours := side()) is not None:
        ours.flush()


def after_fork() -> None:
    """In a child: nobody is starting anything."""
    global _starting
    _starting = threading.Lock()
