"""A sink makes durable what its handlers did; only then is it acknowledged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from flowkit.clock import Clock
from flowkit.node import Node, Sink
from flowkit.protocol.lineage import Work
from flowkit.runtime.meter import Meter


class Committing:
    """Collects what is handled and calls `Sink.commit`, once at a time; `settle` is called with
    each work that is durable, and how many messages it was to handle."""

    def __init__(
        self,
        node: Node,
        meter: Meter,
        clock: Clock,
        settle: Callable[[Work, int], None],
        spawn: Callable[[Any], Any],
        wake: Callable[[], None],
    ) -> None:
        self._commit = (
            node.commit if isinstance(node, Sink) and type(node).commit is not Sink.commit else None
        )
        self._meter = meter
        self._clock = clock
        self._settle = settle
        self._spawn = spawn
        self._wake = wake
        self._handled: list[tuple[Work, int]] = []
        self.running = False

    def add(self, work: Work, count: int) -> None:
        """The handlers of `work` have returned."""
        if self._commit is None:
            self._settle(work, count)
        else:
            self._handled.append((work, count))

    def flush(self) -> None:
        """Once a turn of the loop: commit what there is, unless a commit is under way."""
        if not self._handled or self.running or self._commit is None:
            return
        works, self._handled = self._handled, []
        self._meter.commits(self._clock())
        result = self._commit()
        if inspect.isawaitable(result):
            self.running = True
            self._spawn(self._wait(result, works))
        else:
            self._done(works)

    async def _wait(self, committing: Any, works: list[tuple[Work, int]]) -> None:
        await committing
        self.running = False
        self._done(works)
        self._wake()

    def _done(self, works: list[tuple[Work, int]]) -> None:
        self._meter.commits(self._clock(), ends=True)
        for work, count in works:
            self._settle(work, count)
