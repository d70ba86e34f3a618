"""The timers of a replica: the methods of its node that `@every` has declared."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from flowkit.channels import Outbox
from flowkit.errors import ReplicaError
from flowkit.node import Node
from flowkit.protocol.engine import Engine, Phase
from flowkit.runtime.handling import FAILED, Ports

log = logging.getLogger("flowkit.replica")


class Timers:
    """Calls the timers of `node` and releases what they send.

    `send` takes the outboxes of one tick; `spawn` starts a task that has a name; `fail` is told
    what a plain timer raised. Timers run in `context`.
    """

    def __init__(
        self,
        node: Node,
        engine: Engine,
        ports: Ports,
        context: Context,
        send: Callable[[Mapping[str, Outbox]], None],
        spawn: Callable[[Any, str], asyncio.Task[None]],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._node = node
        self._seconds = node.__flowkit__.timers
        self._engine = engine
        self._ports = ports
        self._context = context
        self._send = send
        self._spawn = spawn
        self._fail = fail
        self._handles: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Call each for the first time when its period has passed."""
        for name, seconds in self._seconds.items():
            self._later(name, seconds)

    @property
    def running(self) -> list[asyncio.Task[None]]:
        """The coroutine timers that have not returned."""
        return [task for task in self._running.values() if not task.done()]

    def cancel(self) -> None:
        """No more ticks."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    async def stop(self, patience: float) -> None:
        """No more ticks. Timers that run may end, for `patience` seconds; one that does not is
        cancelled, and sends nothing."""
        self.cancel()
        running = self.running
        if not running:
            return
        _, stuck = await asyncio.wait(running, timeout=patience)
        for task in stuck:
            name = f"{self._node.node}.{self._node.replica}"
            log.warning("%s: timer %s() has not returned for %g s", name, task.get_name(), patience)
            task.cancel()

    def _later(self, name: str, seconds: float) -> None:
        self._handles[name] = asyncio.get_running_loop().call_later(
            seconds, self._tick, name, seconds, context=self._context
        )

    def _tick(self, name: str, seconds: float) -> None:
        self._later(name, seconds)
        engine = self._engine
        if not engine.room or engine.phase is not Phase.OPEN or engine.paused:
            return  # a tick that finds no room is skipped
        function = getattr(self._node, name)
        boxes = self._ports.fresh()
        if inspect.iscoroutinefunction(function):
            before = self._running.get(name)
            if before is None or before.done():
                self._running[name] = self._spawn(self._wait_for(function, boxes), name)
            return
        try:
            self._ports.open(boxes)
            try:
                function()
            finally:
                self._ports.close()
            self._sent(name, boxes)
        except FAILED as error:
            self._fail(error)

    async def _wait_for(self, function: Any, boxes: dict[str, Outbox]) -> None:
        self._ports.open(boxes)
        try:
            await function()
        finally:
            self._ports.close()
        self._sent(function.__name__, boxes)

    def _sent(self, name: str, boxes: dict[str, Outbox]) -> None:
        if any(box.messages for box in boxes.values()):
            guard_state(self._node, f"the timer {name}()", boxes)
            self._send(boxes)


def guard_state(node: Node, where: str, boxes: Mapping[str, Outbox]) -> None:
    """Raise ReplicaError if `where` has sent what only the memory of `node` held, and the node does
    not say that it is stateful."""
    info = node.__flowkit__
    if info.source or info.stateful:
        return
    if any(box.messages for box in boxes.values()):
        raise ReplicaError(
            f"{type(node).__qualname__}: {where} sends from memory that is lost if the replica "
            "dies; declare it: stateful = True"
        )
