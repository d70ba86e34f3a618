"""Messages that somebody waits for: `OutPort.deliver`.

Each is a root of its own, a batch of one. It is settled when all that was made of it is
acknowledged, and the acknowledgements have brought its taint along: whether something was given up
on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from flowkit.channels import Outbox
from flowkit.errors import DeadLettered, Dropped, SendError
from flowkit.protocol.engine import Engine, Phase
from flowkit.protocol.lineage import FAILED, LOST, Root, Work


class Confirms:
    """The deliveries of one replica. `forgets` names, by output, a link downstream that forgets;
    `born` tells the time, as a root's."""

    def __init__(
        self,
        engine: Engine,
        release: Callable[[Work, Mapping[str, Outbox]], None],
        wake: Callable[[], None],
        born: Callable[[], int],
        forgets: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._release = release
        self._wake = wake
        self._born = born
        self._forgets = forgets
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        self._queue: list[asyncio.Future[None]] = []
        self._left = False
        self.open = False
        """Whether `setup()` has returned: before that nobody is there who could do anything."""

    async def deliver(self, name: str, box: Outbox) -> None:
        """Send the one message in `box`; see `OutPort.deliver`."""
        if asyncio.get_running_loop() is not self._loop:
            raise SendError("deliver() on another event loop than the replica's")
        if not self.open:
            raise SendError(f"{name}.deliver() in setup(): no consumer is connected yet")
        if lossy := self._forgets.get(name):
            raise SendError(
                f"{name}.deliver(): nobody learns what becomes of a message on {lossy}, which is "
                "at-most-once; use send(), in a handler or run(), or make that link at-least-once"
            )
        while self._is_open() and not self._may_begin():
            room = self._loop.create_future()
            self._queue.append(room)
            self._wake()
            await room
        if not self._is_open():
            raise SendError(f"{name}.deliver(): the stream of this replica has ended")
        done = self._loop.create_future()
        self._waiting.add(done)
        root = self._engine.begin(born=self._born())
        settle = root.settled

        def settled() -> None:
            settle()
            if not done.done():
                _conclude(done, root)

        root.settled = settled
        try:
            self._release(root, {name: box})
            self._wake()
            await done
        finally:
            self._waiting.discard(done)

    def flush(self) -> None:
        """Once a turn of the loop: wake who waits for room."""
        if self._queue and (self._may_begin() or not self._is_open()):
            queue, self._queue = self._queue, []
            for room in queue:
                if not room.done():
                    room.set_result(None)

    def leave(self) -> None:
        """The replica ends: what is not done by now, it will not learn of."""
        self._left = True
        self.flush()
        for done in self._waiting:
            if not done.done():
                done.set_exception(
                    Dropped("the replica ended before the message was done; it may still be")
                )

    def _may_begin(self) -> bool:
        return self._engine.room and not self._engine.paused

    def _is_open(self) -> bool:
        return self._engine.phase is Phase.OPEN and not self._left


def _conclude(done: asyncio.Future[None], root: Root) -> None:
    if root.taint & LOST:
        done.set_exception(Dropped("the message, or one that was made of it, was dropped"))
    elif root.taint & FAILED:
        done.set_exception(
            DeadLettered("the message, or one that was made of it, is a dead letter now")
        )
    else:
        done.set_result(None)
