"""Keeps the gauges of one replica, which its supervisor reads: see `flowkit.runtime.shared`.

Everything is counted once a batch or once a turn of the loop, nothing once a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowkit.histogram import record
from flowkit.protocol.engine import Engine
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import Work
from flowkit.runtime import shared
from flowkit.runtime.inlet import Inlet, Shop
from flowkit.runtime.pauses import Pauses
from flowkit.runtime.processor import Use

FLOWS = 0.1
"""Seconds between looks at the queues, and at the use of the processor."""

IDLE = 5.0
"""Seconds between looks at the use of the processor while nothing is handled."""


class Meter:
    """Writes to `gauges` what a replica does. Times are by the clock of its runner.

    `ends`: whether the way of messages ends here, so that their age is noted. `cpu` tells of
    the process's use of the processor, if it is the replica's own.
    """

    def __init__(
        self,
        gauges: Any,
        engine: Engine,
        shop: Shop,
        inlets: Sequence[Inlet],
        ends: bool,
        cpu: Callable[[], Use] | None,
    ) -> None:
        self._clock = shop.clock
        self._cpu = cpu
        self._gauges = gauges
        self._engine = engine
        self._shop = shop
        self._inlets = inlets
        self._ends = ends
        self._reading: tuple[float, Pauses] | None = None
        """When a source began to read, while it does, and how long it waits meanwhile."""
        self._committing_since: float | None = None
        self._blocked_since: float | None = None
        self._blocking: list[tuple[Books, bool]] = []
        self._flows_due = 0.0
        self._use_due = 0.0
        self._use_busy = 0.0
        if inlets and all(inlet.how.coroutine for inlet in inlets):
            gauges[shared.CONCURRENCY] = max(inlet.channel.concurrency for inlet in inlets)
        gauges[shared.LISTS] = max((inlet.channel.batch or 0 for inlet in inlets), default=0)

    def note(self, now: float) -> None:
        """Bring the gauges up to date; once a turn."""
        gauges = self._gauges
        room = self._engine.room
        if self._blocked_since is not None:
            seconds = now - self._blocked_since
            gauges[shared.WAITING_NS] += int(seconds * 1e9)
            for books, window in self._blocking:
                books.held_up(seconds, window)
            self._blocked_since = None
        if not room:
            self._blocked_since = now
            self._blocking = [
                (one.books, one.at_window) for one in self._engine.senders.values() if one.full
            ]
        if self._reading is not None:
            # A source is busy while its stream lasts, unless it is held up or waits for its input.
            since, pauses = self._reading
            waited, paused = gauges[shared.WAITING_NS] / 1e9, pauses.seconds(now)
            self._shop.busy = max(0.0, now - since - max(waited, paused))
            gauges[shared.INPUT_NS] = max(gauges[shared.INPUT_NS], int((paused - waited) * 1e9))
        self.accrue()
        if self._committing_since is not None:
            self.commits(now)
        gauges[shared.BUSY_NS] = int(self._shop.busy * 1e9)
        gauges[shared.HANDLED] = self._shop.handled
        if now >= self._flows_due:
            self._flows_due = now + FLOWS
            gauges[shared.QUEUE] = self._engine.waiting
            if now >= self._use_due or self._shop.busy != self._use_busy:
                self._use(now)
            for sender in self._engine.senders.values():
                sender.books.flows(sender.queued, sender.credit)

    def _use(self, now: float) -> None:
        self._use_due, self._use_busy = now + IDLE, self._shop.busy
        if self._cpu is not None:
            spent, starved = self._cpu()
            self._gauges[shared.CPU_NS] = int(spent * 1e9)
            self._gauges[shared.STARVED_NS] = int(starved * 1e9)

    def accrue(self) -> None:
        """Count the time of handlers that run: how many of them do is about to change."""
        now = self._clock()
        for inlet in self._inlets:
            inlet.accrue(now)

    def turned(self, now: float) -> None:
        """The loop has turned."""
        self.note(now)
        self._gauges[shared.TURNED_NS] = int(now * 1e9)

    def reads(self, pauses: Pauses | None) -> None:
        """A source begins to read, and waits as `pauses` will say; or it has read all (None)."""
        now = self._clock()
        self.note(now)
        self._reading = (now, pauses) if pauses is not None else None

    def commits(self, now: float, ends: bool = False) -> None:
        """A sink makes something durable, or has done so."""
        if self._committing_since is not None:
            self._gauges[shared.COMMIT_NS] += int((now - self._committing_since) * 1e9)
        self._committing_since = None if ends else now

    def settled(self, work: Work, count: int) -> None:
        """`count` messages of `work` are done."""
        if self._ends and work.born and count:
            age = self._clock() - work.born / 1e9
            if age >= 0:  # else a clock that is not ours has stamped it
                record(self._gauges, shared.LATENCY, age, count)
