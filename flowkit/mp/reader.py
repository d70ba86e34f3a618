"""The consumer's side of a queue in one process: pages that have come, and what is taken from them.

Every consumer of a queue has copies of the same pages; the cursor, which they share, says which
item is next. To take it is to move the cursor by one, under the lock, with the page at hand.
Whoever has not got the page waits for it without the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from flowkit.clock import monotonic
from flowkit.mp.cells import TAKEN, TOTAL, Cursor
from flowkit.mp.items import Codec, Decode

NOTHING: Any = object()
"""There is no item."""


class Desk(Protocol):
    """Whom a reader asks for pages: `flowkit.mp.client`."""

    def ask(self, name: bytes, index: int, wait: bool) -> None: ...

    def leave(self, name: bytes) -> None: ...


class Reader:
    """Takes the items of the queue `name`. `desk()` is the client, started if need be; `taken()` is
    called under the lock with each item that is taken."""

    def __init__(
        self,
        name: bytes,
        codec: Codec,
        cursor: Cursor,
        desk: Callable[[], Desk],
        taken: Callable[[], object],
    ) -> None:
        self._name = name
        self._open = codec.open
        self._cursor = cursor
        self._cells = cursor.cells
        self._desk = desk
        self._taken = taken
        self._first = 0  # the index of the first item of `_items`, which are those at hand
        self._items: list[Any] = []
        self._decode: Decode = None
        self._later: deque[tuple[int, list[Any], Decode]] = deque()
        self._end = 0  # the index after the last item of all pages that have come
        self._news = threading.Condition()
        self._arrivals = 0
        self._waiting = 0  # threads
        self._listener: Callable[[], None] | None = None

    # ------------------------------------------------------------ the caller's thread

    def take(self) -> Any:
        """The next item if it is at hand, else NOTHING."""
        cursor, cells = self._cursor, self._cells
        flag = cursor.flag or cursor.enter()
        cells[flag] = 1
        if not cursor.acquire(False):
            cursor.lock()
        try:
            index = cells[TAKEN]
            try:
                item = self._items[index - self._first]
            except IndexError:
                if not self._turn(index):
                    return NOTHING
                item = self._items[index - self._first]
            decode = self._decode
            cells[TAKEN] = index + 1
            self._taken()
        finally:
            cursor.release()
            cells[flag] = 0
        return decode(item) if decode else item

    def wait(self, block: bool, timeout: float | None) -> Any:
        """The next item; NOTHING if there is none, or none within `timeout` seconds if `block`.

        Raises EOFError if the broker has died and no item is at hand.
        """
        deadline = None if timeout is None else monotonic() + timeout
        cells = self._cells
        while True:
            arrivals = self._arrivals
            if (item := self.take()) is not NOTHING:
                return item
            if not block and cells[TOTAL] <= cells[TAKEN]:
                return NOTHING
            try:
                if not self._await_news(arrivals, block, deadline if block else None):
                    return NOTHING
            except BrokenPipeError as error:
                raise EOFError(*error.args) from None

    def _await_news(self, arrivals: int, wait: bool, deadline: float | None) -> bool:
        """Ask, and wait until something has come since there were so many `arrivals`."""
        desk = self._desk()
        with self._news:
            self._waiting += 1
            try:
                desk.ask(self._name, self._cells[TAKEN], wait)
                while self._arrivals == arrivals:
                    left = None if deadline is None else deadline - monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._news.wait(left)
                return True
            finally:
                self._waiting -= 1
                if self._arrivals == arrivals and wait and not (self._waiting or self._listener):
                    desk.leave(self._name)

    def empty(self) -> bool:
        """Whether the broker has nothing that has not been taken."""
        return self._cells[TOTAL] <= self._cells[TAKEN]

    def call(self, listener: Callable[[], None]) -> None:
        """Call `listener` when there may be an item, from another thread or at once: for somebody
        who cannot block."""
        self._listener = listener
        if not self.empty():
            listener()
            return
        self._desk().ask(self._name, self._cells[TAKEN], True)

    def _turn(self, index: int) -> bool:
        """Have the page at hand that holds `index`, and ask for what follows the last one."""
        later = self._later
        while later:
            first, items, decode = later.popleft()
            if index < first + len(items):
                self._first, self._items, self._decode = first, items, decode
                if not later and self._end < self._cells[TOTAL]:
                    self._desk().ask(self._name, self._end, False)
                return True
        return False

    # ------------------------------------------------------------ the client's thread

    def arrived(self, first: int, pages: list[bytes]) -> None:
        for page in pages:
            items, decode = self._open(page)
            if first + len(items) > self._end:
                self._end = first + len(items)
                self._later.append((first, items, decode))
            first += len(items)
        self._stir()

    def broken(self) -> None:
        self._stir()  # who asks now is told

    def _stir(self) -> None:
        with self._news:
            self._arrivals += 1
            self._news.notify_all()
        if (listener := self._listener) is not None:
            self._listener = None
            listener()
