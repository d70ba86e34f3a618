"""A running project as a block of a program: ready when it is entered, ended when it is left."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from flowkit.errors import ProjectFailed
from flowkit.protocol.project import Status
from flowkit.report import Report

DRAIN_TIMEOUT = 60.0
"""Seconds that a drain may take unless the caller says otherwise; then what is left is given up."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Embeddable(ABC):
    """The part of a `Supervisor` that is its life inside an application.

    ``async with`` starts the project and waits until every replica is ready; it raises what is
    wrong, and nothing is left then. At the end of the block the sources stop, and what is in flight
    is done, for `drain_timeout` seconds at most; then whatever is left ends. An exception that
    leaves the block, or its cancellation, ends everything at once.

    A project that fails while the block runs does not interrupt it: await `drained` or `wait`
    beside what it does. If neither was awaited, leaving the block raises `ProjectFailed`.
    """

    drain_timeout = DRAIN_TIMEOUT

    # Both are there from `start` on.
    begun: asyncio.Future[None]
    """Done when all replicas are ready for the first time."""
    over: asyncio.Future[None]
    """Done when the project has ended."""

    _told = False
    """Whether somebody knows how the run has ended."""

    @abstractmethod
    async def start(self) -> None:
        """Take the run directory and start all replicas; `close` at the end, whatever happens."""

    @abstractmethod
    async def close(self) -> None:
        """End what is left at once, and free everything. Twice is fine."""

    @abstractmethod
    def drain(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Stop the sources and let everything in flight be done."""

    @abstractmethod
    def kill(self) -> None:
        """End everything at once."""

    @abstractmethod
    def report(self) -> Report:
        """The books as they are now."""

    async def ready(self) -> None:
        """Wait until all replicas are ready. Raises `ProjectFailed` if it does not come to that."""
        await asyncio.wait({self.begun, self.over}, return_when=asyncio.FIRST_COMPLETED)
        if not self.begun.done():
            self._told = True
            raise ProjectFailed(self.report())

    async def wait(self) -> Report:
        """Wait until the project has ended, however; return its report."""
        await asyncio.shield(self.over)
        self._told = True
        return self.report()

    async def drained(self) -> Report:
        """Wait until the project has ended; return its report if it was drained.

        That it ends by itself takes sources whose streams end; else call `drain` before. Raises
        `ProjectFailed` if it ended in another way.
        """
        report = await self.wait()
        if report.status is not Status.DRAINED:
            raise ProjectFailed(report)
        return report

    def check_first(self) -> None:
        """Raises RuntimeError if it was started before: a run has one beginning."""
        if hasattr(self, "over"):
            raise RuntimeError("a supervisor is started once: make another for another run")

    async def __aenter__(self) -> Self:
        self.check_first()  # here too: what is running is not ended by a second try
        try:
            await self.start()
            await self.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.drain(self.drain_timeout)
                await asyncio.shield(self.over)
        finally:
            await self.close()
        if kind is None and not self._told:
            report = self.report()
            if report.status not in (Status.DRAINED, Status.KILLED):
                raise ProjectFailed(report)


class Signals:
    """The first SIGINT or SIGTERM drains a project, a second one kills it, from `install`, which
    is called in the main thread, to `remove`. Several projects on a loop all hear them."""

    _installed: ClassVar[list[Signals]] = []

    def __init__(self, project: Embeddable, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        self._project = project
        self._timeout = drain_timeout
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def interrupt(self) -> None:
        """Do what a signal does."""
        if self._asked:
            self._project.kill()
        else:
            self._asked = True
            self._project.drain(self._timeout)

    def install(self) -> None:
        """Handle the signals on the running loop."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._interrupt_all, loop)
        self._loop = loop
        self._installed.append(self)

    def remove(self) -> None:
        """Give the signals back, unless another project wants them. Twice is fine."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._installed.remove(self)
        if not any(one._loop is loop for one in self._installed):
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    @classmethod
    def _interrupt_all(cls, loop: asyncio.AbstractEventLoop) -> None:
        for one in list(cls._installed):
            if one._loop is loop:
                one.interrupt()
