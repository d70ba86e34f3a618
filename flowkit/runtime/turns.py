"""When a replica takes its turns: soon, with what else comes until then, or at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from math import inf

from flowkit.clock import Clock

RESTED = 0.001
"""Seconds without a turn after which a replica is at rest. It takes its next one as soon as a batch
has come in or a message was sent, not when the loop has turned: there is nothing to take along.
That spares a turn of the loop, which is rarely run then, and so not in the caches: 20 to 30 us of a
hop. Of messages that are sent one after the other the first leaves alone."""


class Turns:
    """Has `take` called on the running loop, in `context`; it calls `begin` and `end`. Who asks for
    a turn `now` is not in that context itself."""

    def __init__(self, take: Callable[[], None], context: Context, clock: Clock) -> None:
        self._take = take
        self._context = context
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._asked = False
        self._ended = 0.0
        """When the last turn ended; never, as long as one is being taken."""

    def soon(self) -> None:
        """There may be something to do: take a turn when the loop has turned."""
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._called, context=self._context)

    def at_once(self) -> bool:
        """Take a turn if the replica is at rest. False if it is not."""
        if self._asked or self._clock() - self._ended < RESTED:
            return False
        self._context.run(self._take)
        return True

    def now(self) -> None:
        """There is something to do: take a turn at once if the replica is at rest, else soon."""
        if not self.at_once():
            self.soon()

    def begin(self) -> None:
        """A turn is being taken."""
        self._ended = inf

    def end(self) -> float:
        """It is over; returns the time."""
        self._ended = self._clock()
        return self._ended

    def _called(self) -> None:
        self._asked = False
        self._take()
