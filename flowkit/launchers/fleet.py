"""A launcher that can be renewed: replicas to come are born in a fresh nursery.

Modules are imported in the nursery, once, and every replica inherits them; so new code takes a new
nursery. Replicas that live stay where they are. An old nursery ends with its last replica, but the
one before the newest is kept until it is sure that the new code is of use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from signal import SIGKILL

from flowkit.launchers.base import Launcher, OnExit, OnStarted
from flowkit.launchers.process import ProcessLauncher

Make = Callable[[OnStarted, OnExit], ProcessLauncher]


class Fleet(Launcher):
    """Launches from the newest of its launchers, each of which `make` makes."""

    def __init__(self, on_started: OnStarted, on_exit: OnExit, make: Make) -> None:
        super().__init__(on_started, on_exit)
        self._make = make
        self._newest = make(on_started, self._exited)
        self._old: list[ProcessLauncher] = []
        self._before: tuple[ProcessLauncher, Make] | None = None
        """What `revert` goes back to."""
        self._where: dict[str, ProcessLauncher] = {}
        self._closings: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process id of the newest nursery, None if it is not there."""
        return self._newest.pid

    async def start(self) -> None:
        await self._newest.start()

    async def renew(self, make: Make | None = None) -> None:
        """Launch from a fresh nursery from now on: one of `make`, or another one like the newest,
        which has died. Raises what `start` raises, and then nothing has changed. After a renewal
        with `make`, call `keep` or `revert`."""
        fresh = (make or self._make)(self.on_started, self._exited)
        try:
            await fresh.start()
        except BaseException:
            await fresh.close()
            raise
        if make is not None:
            self._before = self._newest, self._make
            self._make = make
        self._old.append(self._newest)
        self._newest = fresh
        self._let_go()

    def keep(self) -> None:
        """The newest nursery is the one that is wanted."""
        self._before = None
        self._let_go()

    def revert(self) -> None:
        """Launch from the nursery before the last `renew` again, unless it was kept."""
        if self._before is None:
            return
        (before, self._make), self._before = self._before, None
        self._old.remove(before)
        self._old.append(self._newest)
        self._newest = before
        self._let_go()

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
        launcher = self._where[name] = self._newest
        launcher.launch(name, spec, title=title, env=env, stdout=stdout, stderr=stderr)

    def kill(self, name: str, signal: int = SIGKILL) -> None:
        launcher = self._where.get(name)
        if launcher is not None:
            launcher.kill(name, signal)

    async def close(self) -> None:
        self._closed = True
        for launcher in [*self._old, self._newest]:
            await launcher.close()
        self._old.clear()
        await asyncio.gather(*self._closings, return_exceptions=True)

    def _exited(self, name: str, code: int, error: str | None) -> None:
        self._where.pop(name, None)
        self._let_go()
        self.on_exit(name, code, error)

    def _let_go(self) -> None:
        """Close the old launchers that have no replica any more."""
        if self._closed:
            return
        needed = {*self._where.values()}
        if self._before is not None:
            needed.add(self._before[0])
        for launcher in [one for one in self._old if one not in needed]:
            self._old.remove(launcher)
            task = asyncio.get_running_loop().create_task(launcher.close())
            self._closings.add(task)
            task.add_done_callback(self._closings.discard)
