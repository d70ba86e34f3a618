"""The launcher for replicas that are nobody's child: applications attach them.

What is launched here is an offer, until an application takes it with the command "attach". The
replica lives as long as that request: when the session is lost, or the application says that it
has left, the replica counts as dead, whatever became of its process. The end of a process on this
machine is noticed at once, since the kernel tells.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from signal import SIGKILL, SIGUSR1
from typing import NamedTuple, Protocol

from flowkit.control.arguments import Attach, Detach
from flowkit.control.commands import Denial
from flowkit.errors import OperatorError
from flowkit.importing import did_you_mean
from flowkit.launchers.base import Launcher, OnExit, OnStarted, parse_name
from flowkit.protocol import requests
from flowkit.protocol.project import Phase, Project
from flowkit.topology.plan import NodePlan, Plan


class Host(Protocol):
    """What else is needed of a supervisor."""

    @property
    def plan(self) -> Plan: ...

    async def withdraw(self, node: str, number: int, limit: float) -> None: ...


class _Guest(NamedTuple):
    """An application that runs a replica; `ended` says why it is to leave."""

    pid: int
    offer: Callable[[bytes], None]
    ended: asyncio.Future[str]


class Guests(Launcher):
    """Offers places to applications. `alone`: only this process can take one, since its project
    has no sockets."""

    def __init__(
        self, on_started: OnStarted, on_exit: OnExit, project: Project, host: Host, alone: bool
    ) -> None:
        super().__init__(on_started, on_exit)
        self._project = project
        self._host = host
        self._alone = alone
        self._offers: dict[str, bytes] = {}
        self._guests: dict[str, _Guest] = {}
        self._farewells: dict[str, str] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    # -- what the supervisor wants -------------------------------------------------------------

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
        self._offers[name] = spec
        self._wake()

    def kill(self, name: str, signal: int = SIGKILL) -> None:
        """Withdraw an offer, or have an application leave; there is no process to be killed."""
        if signal == SIGUSR1:
            return
        loop = asyncio.get_running_loop()
        if self._offers.pop(name, None) is not None:
            loop.call_soon(self._exited, name, -SIGKILL, None)
        elif name in self._guests:
            self._leave(name, "the project wants it to leave")
            loop.call_soon(self._exited, name, -SIGKILL, None)

    def ready(self, key: tuple[str, int]) -> None:
        """A replica is part of the run; an application is told that its own is."""
        for name, guest in self._guests.items():
            if parse_name(name)[0] == key:
                guest.offer(b"")

    async def close(self) -> None:
        for name in list(self._guests):
            self._leave(name, "the project has ended")
        self._offers.clear()
        self._closed = True
        self._wake()

    # -- what applications want ----------------------------------------------------------------

    async def attach(self, wanted: Attach, offer: Callable[[bytes], None]) -> str:
        """Let an application run a replica: `offer` gets its spec, and nothing more when it is
        ready. Returns when it is to leave, and why; cancelled when it has left by itself.

        Raises OperatorError if there is no such place, or none that is free.
        """
        plan = self._host.plan
        node = _find(plan, wanted)
        if self._alone and wanted.pid != os.getpid():
            raise Denial(
                requests.NOT_SUPPORTED,
                f"{plan.project} runs in one process, without sockets",
                "attach it there, with project=SUPERVISOR; or leave out --in-process",
            )
        with _handle_of(wanted.pid) as process:
            return await self._take_in(node, wanted, process, offer)

    async def _take_in(
        self, node: NodePlan, wanted: Attach, process: int | None, offer: Callable[[bytes], None]
    ) -> str:
        name, spec = await self._place(node, wanted.wait)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        self._guests[name] = _Guest(wanted.pid, offer, ended)
        try:
            self.on_started(name, wanted.pid)
            if process is not None:
                loop.add_reader(process, self._gone, name, process)
            offer(spec)
            return await ended
        finally:
            if process is not None:
                loop.remove_reader(process)
            if self._guests.pop(name, None) is not None:
                self._exited(name, 0, self._farewells.pop(name, "has left"))

    async def detach(self, wanted: Detach) -> bool:
        """Let a replica leave. False if that will happen by itself, since the project ends; with an
        error it says why it will leave at once."""
        name = f"{wanted.node}.{wanted.replica}#{wanted.incarnation}"
        if wanted.error:
            if name in self._guests:
                self._farewells[name] = f"says that it has failed: {wanted.error}"
        elif self._project.draining:
            return False
        else:
            await self._host.withdraw(wanted.node, wanted.replica, wanted.timeout)
        return True

    # -- inside --------------------------------------------------------------------------------

    async def _place(self, node: NodePlan, wait: bool) -> tuple[str, bytes]:
        """The first offer of a node, when there is one."""
        while True:
            for name in self._offers:
                if parse_name(name)[0][0] == node.name:
                    return name, self._offers.pop(name)
            replicas = self._project.replicas_of(node.name)
            if self._closed or all(one.done or one.over for one in replicas):
                raise OperatorError(f"{node.name} has ended: its input has, or the project")
            if not wait:
                self._refuse(node, [one.name for one in replicas if one.phase is Phase.STOPPED])
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)

    def _refuse(self, node: NodePlan, stopped: list[str]) -> None:
        """Raise the reason why there is no place, unless there will be one in a moment."""
        if stopped:
            raise OperatorError(f"{node.name} is stopped", hint=f"flowkit start {node.name}")
        taken = [
            f"process {guest.pid}"
            for name, guest in self._guests.items()
            if parse_name(name)[0][0] == node.name
        ]
        if len(taken) >= node.replicas:
            raise OperatorError(
                f"{node.name} is attached already, by {', '.join(dict.fromkeys(taken))}",
                hint="end that first, wait for it (wait=True), or give the node more replicas",
            )

    def _gone(self, name: str, process: int) -> None:
        """The process of a guest has ended."""
        asyncio.get_running_loop().remove_reader(process)
        pid = self._guests[name].pid
        self._leave(name, "its process has ended")
        self._exited(name, 1, f"has gone: process {pid} has ended")

    def _leave(self, name: str, reason: str) -> None:
        """Tell an application to leave."""
        ended = self._guests.pop(name).ended
        self._farewells.pop(name, None)
        if not ended.done():
            ended.set_result(reason)

    def _exited(self, name: str, code: int, error: str | None) -> None:
        if not self._closed:
            self.on_exit(name, code, error)
            self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


@contextmanager
def _handle_of(pid: int) -> Iterator[int | None]:
    """A descriptor that becomes readable when that process ends, where the kernel gives one."""
    handle = None
    if pid != os.getpid() and hasattr(os, "pidfd_open"):
        with suppress(OSError):  # on another host, or in another container
            handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _find(plan: Plan, wanted: Attach) -> NodePlan:
    """The external node that an application means."""
    external = [node for node in plan.nodes if node.external]
    if wanted.name:
        found = [node for node in external if node.name == wanted.name]
        what = f"'{wanted.name}'"
    else:
        found = [node for node in external if node.use.partition(":")[2] == wanted.cls]
        what = f"of class {wanted.cls}"
    if len(found) > 1:
        several = ", ".join(node.name for node in found)
        text = f"{plan.project} has several nodes {what}: {several}"
        raise Denial(requests.NO_SUCH, text, "name one")
    if not found:
        names = [node.name for node in external]
        hint = did_you_mean(wanted.name, names) or (
            f"its external nodes are {', '.join(names)}"
            if names
            else "add 'external: true' to the node in its topology file"
        )
        raise Denial(requests.NO_SUCH, f"{plan.project} has no external node {what}", hint)
    (node,) = found
    if sorted(wanted.inputs) != sorted(node.inputs) or sorted(wanted.outputs) != sorted(
        node.outputs
    ):
        raise Denial(
            requests.NO_SUCH,
            f"{node.name} in {plan.project} is {node.use}, which has other channels than "
            f"{wanted.cls}",
            "is one of the two of another version? restart the project, or the application",
        )
    return node
