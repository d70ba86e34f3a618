"""A node of an application as a replica of a running project, on the application's own loop.

::

    feed = Feed()
    async with flowkit.attach(feed, project="clicks"):
        await feed.clicks.deliver(click)

The project's topology declares the node, ``external: true``, and what it is linked to. The
application asks the project's supervisor for a place, is told what a process of its own would be
told, and runs the same `Runner`, in no process of its own. The request stays open as long as the
replica lives: it is the session whose loss is the replica's death.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from flowkit.control import arguments
from flowkit.control.aclient import AsyncClient
from flowkit.control.places import LISTED, choose
from flowkit.errors import (
    FlowkitError,
    NoSuchProject,
    NotRunning,
    OperatorError,
    RequestFailed,
)
from flowkit.node import Node, describe
from flowkit.protocol.requests import REFUSED
from flowkit.runtime import spec as specs
from flowkit.runtime.handling import theirs
from flowkit.runtime.inspector import class_facts
from flowkit.runtime.kit import Kit
from flowkit.runtime.runner import Runner
from flowkit.runtime.spans import of_application
from flowkit.runtime.spec import ReplicaSpec
from flowkit.transport.base import Transport
from flowkit.transport.memory import MemoryHub, MemoryTransport
from flowkit.transport.zmq import ZmqTransport

if TYPE_CHECKING:
    from flowkit.supervisor import Supervisor

log = logging.getLogger("flowkit.attach")

LEAVE_TIMEOUT = 10.0
"""Seconds that a replica may take to leave with nothing in hand; then it leaves as it is."""

AGAIN = 0.2
"""Seconds between looks for a project that does not run: nothing tells when one begins."""

LONGEST = 5.0
"""Seconds between two tries at most, while the project runs and has no place, or the node fails."""

PATIENCE = 60.0
"""Seconds without a word of the supervisor after which its project counts as gone; as long as it
waits for a word of the application."""


_held: dict[int, Node] = {}
"""The nodes that are in a block now, by their id."""


def attach(
    node: Node,
    project: str | os.PathLike[str] | Supervisor | None = None,
    *,
    name: str = "",
    wait: bool | float = False,
    leave_timeout: float = LEAVE_TIMEOUT,
) -> Attachment:
    """Run `node` on the running loop as a replica of the project `project`: its name, its topology
    file, a `Supervisor` of this program, or, without one, the project of the current directory.

    The node in the topology is the external one that `name` names, else the one of that class.
    Use it in an ``async with``. The block is entered when the replica is ready. Without `wait` a
    project that does not run raises `NotRunning`, and a place that is taken `RequestFailed`; with
    it both are waited for, a number being the seconds of patience. Later on the replica comes back
    by itself: to a project that is started again, or after it has failed (that is logged, to
    ``flowkit.attach``). `setup()` of the node is called each time that it joins a run, `teardown()`
    when it leaves.

    When the block is left the replica leaves, with nothing in hand: what it has sent is done by
    then. That takes at most `leave_timeout` seconds; what is in hand after that is delivered to
    others. An exception that leaves the block does not wait for that.

    While it is not attached `deliver` and `room` raise `NotRunning`, and `send` raises `SendError`.
    """
    return Attachment(node, project, name, wait, leave_timeout)


class Attachment:
    """What `attach` makes."""

    def __init__(
        self,
        node: Node,
        project: str | os.PathLike[str] | Supervisor | None,
        name: str,
        wait: bool | float,
        leave_timeout: float,
    ) -> None:
        info = describe(type(node))
        self.node = node
        self._project = project
        self._outputs = list(info.outputs)
        facts = class_facts(info.name, info)
        self._wanted = arguments.Attach(
            name,
            info.cls.__qualname__,
            [channel.name for channel in facts.inputs],
            [channel.name for channel in facts.outputs],
            os.getpid(),
            bool(wait),
        )
        self._called = name or info.cls.__qualname__
        self._patience = None if isinstance(wait, bool) or not wait else float(wait)
        self._leave_timeout = leave_timeout
        self._keeping: asyncio.Task[None] | None = None
        self._stay: _Stay | None = None
        self._why = "it never was"
        if id(node) not in _held:
            self._unbind(self._why)

    @property
    def attached(self) -> bool:
        """Whether the replica is ready, and part of a run."""
        return self._stay is not None and self._ready.is_set()

    async def joined(self) -> None:
        """Wait until it is attached. Raises `NotRunning` if the block has been left."""
        if self._keeping is not None:
            ready = asyncio.ensure_future(self._ready.wait())
            both: set[asyncio.Future[Any]] = {ready, self._keeping}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
        if not self.attached:
            raise NotRunning(f"{self._called} is not attached any more")

    # -- the block -----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if id(self.node) in _held:
            raise RuntimeError(f"this {self._called} is attached already: make another")
        _held[id(self.node)] = self.node
        loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._first: asyncio.Future[None] = loop.create_future()
        self._keeping = loop.create_task(self._keep(), name=f"flowkit: attach {self._called}")
        try:
            async with asyncio.timeout(self._patience):
                await self._first
        except TimeoutError as error:
            why = self._why if self._stay is None else self._stay.why
            await self._end()
            text = f"{self._called} could not be attached in {self._patience:g} s: {why}"
            raise NotRunning(text, LISTED) from error
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._stay is not None:
                await self._stay.leave(self._leave_timeout)
        finally:
            await self._end()

    async def _end(self) -> None:
        try:
            if self._keeping is not None:
                self._keeping.cancel()
                await asyncio.gather(self._keeping, return_exceptions=True)
        finally:
            _held.pop(id(self.node), None)

    # -- inside --------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Attach the node, again and again."""
        failures = 0
        while True:
            delay = AGAIN
            try:
                await self._join()
                failures = 0
            except Exception as error:
                waits = isinstance(error, NotRunning | NoSuchProject) or (
                    isinstance(error, RequestFailed) and error.code == REFUSED
                )
                self._note(error, waits)
                if not self._first.done() and not (waits and self._wanted.wait):
                    self._first.set_exception(error)
                    return
                if not isinstance(error, NotRunning | NoSuchProject):
                    failures += 1
                    delay = min(LONGEST, AGAIN * 2**failures)
            await asyncio.sleep(delay)

    async def _join(self) -> None:
        """Be a replica of the project, until that is over. Raises what prevents it."""
        if isinstance(self._project, str | os.PathLike | None):
            place = choose(None if self._project is None else os.fspath(self._project))
            hub = None
        else:
            place, hub = self._project.place, self._project.hub
        async with AsyncClient(place, patience=PATIENCE) as client:
            self._stay = _Stay(self.node, client, hub, self._joined)
            try:
                await self._stay.run(self._wanted)
            finally:
                self._stay = None
                self._ready.clear()
                self._unbind("it has left")

    def _joined(self) -> None:
        self._why = ""
        self._ready.set()
        if not self._first.done():
            self._first.set_result(None)

    def _note(self, error: Exception, waits: bool) -> None:
        """Say what is wrong, once."""
        why, self._why = self._why, str(error)
        self._unbind(self._why)
        if self._why == why:
            return
        if waits and (self._wanted.wait or self._first.done()):
            log.info("%s waits to be attached: %s", self._called, error)
        elif self._first.done():
            shown = None
            if not isinstance(error, FlowkitError):
                shown = (type(error), error, theirs(error))
            log.error(
                "%s has failed, and is attached again: %s", self._called, error, exc_info=shown
            )

    def _unbind(self, why: str) -> None:
        """While it is not attached nothing can be sent."""
        self._why = why

        async def refuse(*_: object) -> NoReturn:
            raise NotRunning(f"{self._called} is not attached: {why}")

        for name in self._outputs:
            getattr(self.node, name).attach(refuse, refuse)


class _Stay:
    """One incarnation: a place in the project, and the replica that runs there."""

    def __init__(
        self, node: Node, client: AsyncClient, hub: MemoryHub | None, joined: Callable[[], None]
    ) -> None:
        self._node = node
        self._client = client
        self._hub = hub
        self._joined = joined
        self._spec: ReplicaSpec | None = None
        self._runner: Runner | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def why(self) -> str:
        """Why it is not ready yet."""
        if self._spec is None:
            return "no place of it is free: it is attached already, or stopped"
        return f"{self._spec.name} is being set up"

    async def run(self, wanted: arguments.Attach) -> None:
        """Return when the replica has left as it was to. Raises what made it fail, or what the
        supervisor has against it."""
        loop = asyncio.get_running_loop()
        told = self._client.attach(wanted)
        try:
            self._spec = specs.decode(await anext(told))  # type: ignore[arg-type]
            listening = loop.create_task(self._listen(told))
            running = loop.create_task(self._run(self._spec))
            try:
                await asyncio.wait({listening, running}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._stop(running, listening)
            if (error := running.exception()) is not None:
                await self._say_why(error)
                raise error
            if listening.done() and not listening.cancelled():
                listening.result()  # raises if the project is gone
        finally:
            await told.aclose()
            if not self._over.done():
                self._over.set_result(None)

    async def leave(self, timeout: float) -> None:
        """Leave with nothing in hand; return when that is done, or cannot be."""
        if self._spec is None:
            return
        wanted = arguments.Detach(
            self._spec.node.name, self._spec.replica, self._spec.incarnation, timeout
        )
        asking = asyncio.ensure_future(self._client.detach(wanted))
        try:
            async with asyncio.timeout(timeout):
                both: set[asyncio.Future[Any]] = {asking, self._over}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if asking.done() and asking.exception() is None:
                    await asyncio.shield(self._over)
        except TimeoutError:
            log.warning("%s has not left in %g s: it leaves as it is", self._spec.name, timeout)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _run(self, spec: ReplicaSpec) -> None:
        transport, tcp = self._transports(spec)
        try:
            tracer = of_application(spec.node.name, spec.replica)
            runner = Runner(spec, self._node, transport, tcp, kit=Kit(tracer=tracer))
            self._runner = runner
            log.info("%s runs as %s of %s", type(self._node).__name__, spec.name, spec.project)
            await runner.run()
        finally:
            for each in (transport, tcp):
                if each is not None:
                    each.close()
                    # What lingers takes its time, and the loop is not ours.
                    await asyncio.to_thread(each.join)

    def _transports(self, spec: ReplicaSpec) -> tuple[Transport, Transport | None]:
        if spec.control.startswith("memory:"):
            if self._hub is None:
                raise OperatorError(
                    f"{spec.project} runs in this process, without sockets",
                    hint="attach to it with project=SUPERVISOR",
                )
            return MemoryTransport(self._hub), None
        directory = Path(spec.run_directory)
        if any(link.transport == "tcp" for link in spec.outputs):
            return ZmqTransport(directory), ZmqTransport(directory, tcp=True)
        return ZmqTransport(directory), None

    async def _stop(self, running: asyncio.Task[None], listening: asyncio.Task[None]) -> None:
        if self._runner is not None:
            self._runner.leave()
        elif not running.done():
            running.cancel()  # it has not begun
        listening.cancel()
        await asyncio.gather(running, listening, return_exceptions=True)

    async def _say_why(self, error: BaseException) -> None:
        """Tell the supervisor what has failed, if it listens."""
        assert self._spec is not None
        place = self._spec.node.name, self._spec.replica, self._spec.incarnation
        text = f"{type(error).__name__}: {error}"
        with suppress(FlowkitError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._client.detach(arguments.Detach(*place, 0.0, text))

    async def _listen(self, told: AsyncIterator[object]) -> None:
        """Return when the replica is to leave; raises if its project is gone."""
        async for _ in told:
            self._joined()
