"""The launcher for one process: replicas are tasks of the running loop.

For debugging and tests: breakpoints, coverage and tracebacks work as in any program. Replicas share
the process, so one that blocks blocks all, and `env` is not applied. The transport between them is
memory; a replica that is killed is a task that is cancelled, and its `teardown` runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from signal import SIGKILL

from flowkit.errors import OperatorError
from flowkit.launchers.base import Launcher, OnExit, OnStarted
from flowkit.protocol.project import CONFIGURATION
from flowkit.runtime import spec as specs
from flowkit.runtime.child import build, explain, flush_files
from flowkit.runtime.kit import Kit
from flowkit.runtime.runner import Runner
from flowkit.runtime.spans import of_application
from flowkit.transport.memory import MemoryHub, MemoryTransport


class _Misconfigured(Exception):
    """The node cannot be built; the cause says why."""


class InProcessLauncher(Launcher):
    """Starts replicas as tasks; `hub` joins their transports and the supervisor's."""

    def __init__(self, on_started: OnStarted, on_exit: OnExit, hub: MemoryHub) -> None:
        super().__init__(on_started, on_exit)
        self._hub = hub
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        return None

    def launch(
        self,
        name: str,
        spec: bytes,
        *,
        title: str,
        env: Mapping[str, str],
        stdout: int | None,
        stderr: int | None,
    ) -> None:
        for descriptor in (stdout, stderr):
            if descriptor is not None:
                os.close(descriptor)
        task = asyncio.get_running_loop().create_task(self._run(spec), name=title)
        self._tasks[name] = task
        task.add_done_callback(lambda task: self._ended(name, spec, task))
        self.on_started(name, os.getpid())

    async def _run(self, data: bytes) -> None:
        spec = specs.decode(data)
        try:
            node = build(spec)
        except Exception as error:
            raise _Misconfigured(spec.name) from error
        transport = MemoryTransport(self._hub, asyncio.get_running_loop())
        try:
            try:
                kit = Kit(tracer=of_application(spec.node.name, spec.replica))
                runner = Runner(spec, node, transport, kit=kit)
            except OperatorError as error:
                raise _Misconfigured(spec.name) from error
            await runner.run()
        finally:
            flush_files()
            # The last frames are still on their way through the loop; the hub keeps them.
            transport.close(1.0)

    def _ended(self, name: str, spec: bytes, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if task.cancelled():
            self.on_exit(name, -SIGKILL, None)
        elif (error := task.exception()) is not None:
            misconfigured = isinstance(error, _Misconfigured)
            cause = error.__cause__ if misconfigured else error
            explain(specs.decode(spec), cause or error)
            self.on_exit(name, CONFIGURATION if misconfigured else 1, None)
        else:
            self.on_exit(name, 0, None)

    def kill(self, name: str, signal: int = SIGKILL) -> None:
        if name in self._tasks:
            self._tasks[name].cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task
        while self._tasks:  # their ends are told in the next turn of the loop
            await asyncio.sleep(0)
