"""An event loop for tests: no sockets, no descriptors, and a time that passes only when told to.

It runs until nothing is left to do at this moment, and stops. What waits for later waits for
`advance`. What a handler runs in a thread (`asyncio.to_thread`) is waited for, since that takes
no time of this loop. A connection cannot be made on it: a test that needs one runs on a loop of
its own and awaits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from flowkit.clock import FakeClock, monotonic
from flowkit.errors import HarnessError

PATIENCE = 10.0
"""Seconds of real time that a loop may be busy before somebody is told that it never rests."""

BEGINNING = 1.0
"""Where the time of a loop begins. Not 0, which stands for "unknown" in places."""

_REFUSED = (
    "add_reader add_writer sock_accept sock_connect sock_recv sock_recv_into sock_sendall "
    "sock_sendfile create_server create_unix_connection create_unix_server "
    "create_datagram_endpoint connect_read_pipe connect_write_pipe connect_accepted_socket "
    "start_tls subprocess_exec subprocess_shell add_signal_handler"
).split()


class ManualLoop(asyncio.BaseEventLoop):
    """A loop that `settle` and `advance` run, on a clock of its own.

    Both may only be called where no other loop is running. Close it when it is not needed any more.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self._selector = self  # what `BaseEventLoop` asks for events; there are none
        self._woken = threading.Event()
        self._threads = 0
        self._deadline = 0.0
        self._until: Callable[[], object] | None = None
        self._busy = False

    def time(self) -> float:
        return self.clock()

    def settle(self, until: Callable[[], object] | None = None) -> None:
        """Run until nothing is left to do without time passing, or until `until()` holds.

        Raises HarnessError if that takes longer than `PATIENCE`, or where another loop runs.
        """
        __tracebackhide__ = True
        if asyncio._get_running_loop() is not None:
            raise HarnessError("an event loop is running here already: build the harness in it")
        self._deadline = monotonic() + PATIENCE
        self._until = until
        self._busy = False
        try:
            self.run_forever()
        finally:
            self._until = None
        if self._busy:
            raise HarnessError(
                f"still busy after {PATIENCE:g} s of real time: something never waits"
            )

    def advance(self, seconds: float, until: Callable[[], object] | None = None) -> None:
        """Let `seconds` pass, and everything happen that is due meanwhile, each at its time."""
        end = self.clock.now + seconds
        self.settle(until)
        while not (until is not None and until()):
            due = self._next()
            if due is None or due > end:
                self.clock.now = max(end, self.clock.now)
                return
            self.clock.now = max(due, self.clock.now)
            self.settle(until)

    def _next(self) -> float | None:
        """When the next timer is due that is not cancelled."""
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)

    def close(self) -> None:
        executor = getattr(self, "_default_executor", None)
        if executor is not None:
            executor.shutdown(wait=True)
        super().close()

    # -- what `BaseEventLoop` leaves to its subclasses ------------------------------------------

    def select(self, timeout: float | None) -> list[Any]:
        """Called once a turn, with 0 if there is something to do in this very moment."""
        if self._until is not None and self._until():
            self.stop()
        elif monotonic() > self._deadline:
            self._busy = True
            self.stop()
        elif timeout is None or timeout > 0:
            if not self._threads:
                self.stop()
            elif not self._woken.wait(max(0.0, self._deadline - monotonic())):
                self._busy = True
                self.stop()
            self._woken.clear()
        return []

    def _process_events(self, events: list[Any]) -> None:
        return None

    def _write_to_self(self) -> None:
        self._woken.set()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self._threads += 1
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: Any) -> None:
        self._threads -= 1


@contextmanager
def aside() -> Iterator[None]:
    """Let a loop run here although another one does: the garbage collector, say, comes when it
    likes, and what it ends may have to be ended on a loop of its own."""
    loop = asyncio._get_running_loop()
    # Since Python 3.12 the current task can be set aside too; since 3.14 it has to be.
    swap = getattr(asyncio.tasks, "_swap_current_task", None) if loop is not None else None
    task = swap(loop, None) if swap is not None else None
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
        if swap is not None:
            swap(loop, task)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refused(self: ManualLoop, *arguments: Any, **options: Any) -> NoReturn:
        raise HarnessError(
            f"{name}() needs an event loop that does I/O: make the test a coroutine, build the "
            "harness in it and await what it is fed"
        )

    return refused


for _name in _REFUSED:
    setattr(ManualLoop, _name, _refuse(_name))
