"""Where a stream begins: drives `Source.read`, `run()`, and what they send.

A source's batch closes when it holds as many messages as the consumers want in one, or when the
turn of the loop ends: under load batches grow, at rest a message leaves at once. A plain `read`
lets the loop turn only between its items, so the clock is looked at often enough that it does. That
also bounds what a batch of large messages takes: what can be read in a turn. A source reads on only
while its consumers take what it has.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any

from flowkit.channels import CLOSED, Outbox
from flowkit.clock import Clock
from flowkit.errors import ReplicaError
from flowkit.message import Many
from flowkit.node import Node, Source
from flowkit.protocol.engine import Engine
from flowkit.protocol.lineage import Work
from flowkit.runtime.handling import Ports
from flowkit.runtime.pauses import Pauses
from flowkit.runtime.shared import LENGTH, READ

Release = Callable[[Work, dict[str, Outbox]], None]

TURN = 0.010
"""Seconds that a source reads before the loop turns."""

LOOK = 128
"""Messages read between two looks at the clock, at most; fewer where they come slowly."""


class Backlog:
    """What was sent on one output and has found no room yet, in order."""

    def __init__(self) -> None:
        self._box = Outbox()
        self._start = 0
        """How many messages at the beginning of it have left."""

    def __len__(self) -> int:
        return len(self._box.messages) - self._start

    def add(self, box: Outbox) -> None:
        """Take over the contents of `box`."""
        self._box.extend(box)
        box.take()

    def part(self, count: int) -> Outbox:
        """Remove the first `count` messages, or as many as there are."""
        part = self._box.part(self._start, count)
        self._start += len(part.messages)
        if 2 * self._start >= len(self._box.messages):  # not each time: what follows is moved
            self._box.skip(self._start)
            self._start = 0
        return part


class Outflow:
    """What is sent outside of handlers, and who waits for room. `turn` asks for a turn."""

    def __init__(
        self,
        engine: Engine,
        ports: Ports,
        release: Release,
        turn: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.engine = engine
        self._clock = clock
        self._until = 0.0
        self._ports = ports
        self._release = release
        self.turn = turn
        self._boxes: dict[str, Outbox] = {}
        self._backlogs: dict[str, Backlog] = {}
        self._waiters: list[asyncio.Future[None]] = []

    def open(self) -> None:
        """Let the ports send while no handler runs: for `run()`."""
        for name in self._ports.names:
            self._boxes[name] = self._ports.idle[name] = Outbox(self.turn)
            self._backlogs[name] = Backlog()
        self._ports.close()

    async def close(self) -> None:
        """Send what is left, when there is room; nothing can be sent any more."""
        while any(self._count(name) for name in self._boxes):
            await self.room()
            self._flush_boxes()
        for name in self._ports.names:
            self._ports.idle[name] = CLOSED
        self._boxes = {}
        self._ports.close()

    def flush(self) -> None:
        """Once a turn of the loop: release what was sent, and wake who waits for room."""
        if self._flush_boxes() and any(self._backlogs.values()):
            self.turn()  # there is room for more when this has left
        if self._waiters and self.engine.room:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def emit(self, name: str, box: Outbox, position: Any = None) -> None:
        """Release `box` of output `name` as one root."""
        born = int(self._clock() * 1e9)
        self._release(self.engine.begin(position, born=born), {name: box})

    async def room(self) -> None:
        """Wait until consumers take what is there; let the loop turn now and then in any case."""
        if self._clock() >= self._until:
            await asyncio.sleep(0)
            self._until = self._clock() + TURN
        if any(self._count(name) >= self.engine.root_count(name) for name in self._boxes):
            self._flush_boxes(whole=True)
            self.turn()
        while not self.engine.room:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self.turn()
            await waiter

    def _flush_boxes(self, whole: bool = False) -> bool:
        """Release what was sent as far as there is room, in batches as the consumers want them now,
        or only `whole` ones. The rest waits: until then they may want other ones. Returns whether
        anything was released."""
        some = False
        for name, box in self._boxes.items():
            some = self._flush_box(name, box, whole) or some
        return some

    def _flush_box(self, name: str, box: Outbox, whole: bool) -> bool:
        engine, backlog = self.engine, self._backlogs[name]
        count = len(box.messages)
        if not count and not backlog:
            return False
        if not backlog and engine.takes(name):
            most = engine.root_count(name)
            if whole and count < most:
                return False
            if count <= most:
                self.emit(name, box)
                self._renew(name, box)
                return True
        if count:
            backlog.add(box)
            self._renew(name, box)
        engine.holds(name, len(backlog))
        some = False
        while backlog and engine.takes(name):
            most = engine.root_count(name)
            if whole and len(backlog) < most:
                break
            self.emit(name, backlog.part(most))
            engine.holds(name, len(backlog))
            some = True
        return some

    def _renew(self, name: str, box: Outbox) -> None:
        """The contents of `box` were taken: its port goes on with a new list."""
        if self._ports.idle[name] is box:
            self._ports.ports[name].use(box)

    def note(self) -> None:
        """The replica ends in disorder: bring into the books what will not leave any more."""
        for name in self._boxes:
            self.engine.holds(name, self._count(name))

    def _count(self, name: str) -> int:
        return len(self._boxes[name].messages) + len(self._backlogs[name])


class _Driver:
    """A task that runs until its stream has ended, or until it is told to end it. `pauses` tells
    how long it has waited, for input or for room."""

    def __init__(self, clock: Clock) -> None:
        self.pauses = Pauses(clock)
        self._task: asyncio.Future[Any] | None = None
        self._draining = False

    def drain(self) -> None:
        """End the stream: what waits, `run()` or `read`, is cancelled; what was sent stays sent."""
        self._draining = True
        if self._task is not None:
            self._task.cancel()

    def resume(self) -> None:
        """The project has rested, and goes on."""
        return None

    async def stop(self) -> None:
        """End it, also in the middle of a failure."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _until_ended(self, work: Awaitable[Any]) -> None:
        self._task = asyncio.ensure_future(self.pauses.drive(work))
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._draining:
                raise
        finally:
            if inspect.iscoroutine(work):
                work.close()  # it was never awaited if that came before its first step


class RunDriver(_Driver):
    """Drives a node's `run()`, plain or coroutine."""

    def __init__(self, node: Node, outflow: Outflow, clock: Clock) -> None:
        super().__init__(clock)
        self._node = node
        self._outflow = outflow

    async def run(self) -> None:
        """Return when the stream has ended, by itself or by `drain`."""
        if self._draining:
            return
        self._outflow.open()
        result = self._node.run()  # type: ignore[attr-defined]
        if inspect.isawaitable(result):
            await self._until_ended(result)


class SourceDriver(_Driver):
    """Pulls `read(position)` of a source, batch by batch."""

    def __init__(
        self,
        node: Source,
        position: Any,
        outflow: Outflow,
        turn: Callable[[], None],
        clock: Clock,
        gauges: Any,
    ) -> None:
        super().__init__(clock)
        self._node = node
        self._position = position
        self._engine = outflow.engine
        self._outflow = outflow
        self._turn = turn
        self._clock = clock
        self._gauges = gauges
        (self._name,) = node.__flowkit__.outputs
        self._box = Outbox()
        self._full = 1
        """Messages that the batch should hold."""
        self._limit = 1
        """Messages in the batch at which there is something to look at."""
        self._until = 0.0
        self._looked = 0.0
        self._step = 1
        self._turning = False
        """Whether the loop has not turned since a message was read, and tells when it does."""
        self._checked = False

    async def run(self) -> None:
        """Return when the stream has ended, by itself or by `drain`."""
        if self._draining:
            return
        length = self._node.length()
        if length is not None:
            self._gauges[LENGTH] = length
        items = self._node.read(self._position)
        try:
            if isinstance(items, AsyncIterator):
                await self._until_ended(self._pull_async(items))
            else:
                await self._until_ended(self._pull_plain(items))
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()
            elif isinstance(items, Generator):
                items.close()
        if self._box.messages:
            await self._outflow.room()
        self._emit()

    async def _pull_async(self, items: AsyncIterator[Any]) -> None:
        box = self._box
        async for item in items:
            message, position = item if self._checked else self._check(item)
            if type(message) is Many:
                box.messages.extend(message.messages)
            else:
                box.messages.append(message)
            self._position = position
            if len(box.messages) >= self._limit and not self._goes_on():
                await self._reached(self._turning)

    async def _pull_plain(self, items: Iterator[Any]) -> None:
        box = self._box
        self._begin_turn()
        for item in items:
            message, position = item if self._checked else self._check(item)
            if type(message) is Many:
                box.messages.extend(message.messages)
            else:
                box.messages.append(message)
            self._position = position
            if len(box.messages) >= self._limit and not self._goes_on():
                await self._reached(True)

    def _check(self, item: Any) -> tuple[Any, Any]:
        """The first item tells whether `read` yields pairs; a text of two letters is none."""
        if type(item) is not tuple or len(item) != 2:
            raise ReplicaError(
                f"{type(self._node).__qualname__}.read() must yield (message, position) pairs, not "
                f"{item!r:.60}"
            )
        self._checked = True
        return item

    def _begin_turn(self) -> None:
        self._looked = self._clock()
        self._until = self._looked + TURN

    def _goes_on(self) -> bool:
        """Whether the batch, which is not its first message alone, has room and time for more."""
        count = len(self._box.messages)
        now = self._clock()
        self._step = min(2 * self._step, LOOK) if now - self._looked < TURN / 4 else 1
        if self._limit == 1 or count >= self._full or now >= self._until:
            return False
        self._looked = now
        self._limit = min(count + self._step, self._full)
        return True

    async def _reached(self, in_turn: bool) -> None:
        """The batch is full, its turn is over, or this is its first message. `in_turn`: whether the
        loop cannot have turned since the turn began."""
        if not self._engine.room:
            await self._outflow.room()
            in_turn = False
        if not in_turn:
            self._begin_turn()
        self._full = self._engine.root_count(self._name)
        count = len(self._box.messages)
        if count < self._full and self._clock() < self._until:
            self._limit = min(count + self._step, self._full)
            # If `read` waits before the batch is full, it leaves at the end of this turn.
            if not self._turning:
                self._turning = True
                asyncio.get_running_loop().call_soon(self._turned)
            return
        self._emit()
        self._turn()
        if self._clock() >= self._until:
            await asyncio.sleep(0)
            self._begin_turn()
        if not self._engine.room:
            await self._outflow.room()
            self._begin_turn()

    def _turned(self) -> None:
        self._turning = False
        self._emit()

    def resume(self) -> None:
        self._emit()

    def _emit(self) -> None:
        count = len(self._box.messages)
        self._limit = 1
        if count and not self._engine.paused:
            self._gauges[READ] += count
            self._outflow.emit(self._name, self._box, self._position)
            self._outflow.turn()
