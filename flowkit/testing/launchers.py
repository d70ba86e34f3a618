"""What every `Launcher` must do, as tests: subclass `LauncherConformance` under pytest.

::

    class TestMine(LauncherConformance):
        control = "ipc:///tmp/nowhere"

        def launcher(self, on_started: OnStarted, on_exit: OnExit) -> Launcher:
            return MyLauncher(on_started, on_exit)

Replicas are given a supervisor's address, `control`, at which nobody answers, and nodes of this
module: one that is set up for ever, one that fails.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from flowkit.channels import In
from flowkit.clock import monotonic
from flowkit.launchers.base import Launcher, OnExit, OnStarted
from flowkit.node import Node
from flowkit.protocol.project import CONFIGURATION
from flowkit.runtime import spec as specs
from flowkit.topology.plan import ErrorPolicy, NodePlan, RestartPlan

DEADLINE = 30.0
"""How long a test waits for what must happen, in seconds. Nothing waits for it to pass."""


class Stays(Node):
    """Is set up for ever."""

    x = In(int)

    def on_x(self, number: int) -> None: ...

    async def setup(self) -> None:
        await asyncio.Event().wait()


class Fails(Node):
    """Cannot be set up."""

    x = In(int)

    def on_x(self, number: int) -> None: ...

    def setup(self) -> None:
        raise RuntimeError("this replica is to fail")


class Family:
    """A launcher and what it has reported: `started` and `ended`, by name."""

    def __init__(self, suite: LauncherConformance, directory: Path) -> None:
        self.started: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.told: list[str] = []
        self._control = suite.control
        self._directory = directory
        self.launcher = suite.launcher(self._on_started, self._on_exit)

    def _on_started(self, name: str, pid: int) -> None:
        assert name not in self.started, "started twice"
        assert name not in self.ended, "started after its end"
        self.started[name] = pid
        self.told.append(name)

    def _on_exit(self, name: str, exitcode: int, error: str | None) -> None:
        assert name not in self.ended, "ended twice"
        self.ended[name] = exitcode
        self.told.append(name)

    def launch(self, name: str, use: str = "Stays") -> None:
        node = NodePlan(
            name="node",
            use=f"{__name__}:{use}",
            settings={},
            replicas=1,
            env={},
            restart=RestartPlan(),
            on_error=ErrorPolicy(),
            watchdog=DEADLINE,
            origin=0,
            stateful=False,
            source=False,
            positions=False,
            inputs=["x"],
        )
        spec = specs.ReplicaSpec(
            project="conformance",
            run="run",
            token="token",
            node=node,
            replica=0,
            incarnation=1,
            inputs=[],
            outputs=[],
            control=self._control,
            run_directory=str(self._directory),
            books="",
            journals=str(self._directory),
            store=str(self._directory / "store.db"),
        )
        data = specs.encode(spec)
        self.launcher.launch(name, data, title=name, env={}, stdout=None, stderr=None)

    async def until(self, condition: Callable[[], object]) -> None:
        end = monotonic() + DEADLINE
        while not condition():
            assert monotonic() < end, f"did not happen in {DEADLINE} s: {self.told}"
            await asyncio.sleep(0.002)


class LauncherConformance:
    """Whoever is launched is reported once when it has started, and once when it has ended."""

    control = "memory://nowhere"

    def launcher(self, on_started: OnStarted, on_exit: OnExit) -> Launcher:
        """To be overridden: make a launcher; called inside a running event loop."""
        raise NotImplementedError

    # -- the tests -----------------------------------------------------------------------------

    def test_what_is_killed_has_ended(self) -> None:
        async def test(family: Family) -> None:
            family.launch("a.0#1")
            family.launch("a.1#1")
            await family.until(lambda: len(family.started) == 2)
            family.launcher.kill("a.0#1")
            assert not family.ended, "a callback inside a call"
            await family.until(lambda: family.ended)
            assert family.ended == {"a.0#1": -signal.SIGKILL}

        self._run(test)

    def test_what_fails_has_ended(self) -> None:
        async def test(family: Family) -> None:
            family.launch("a.0#1", "Fails")
            await family.until(lambda: family.ended)
            assert family.ended == {"a.0#1": 1} and "a.0#1" in family.started

        self._run(test)

    def test_what_cannot_be_built_says_so(self) -> None:
        """With an exit code of its own: to start it again would change nothing."""

        async def test(family: Family) -> None:
            family.launch("a.0#1", "Nowhere")
            await family.until(lambda: family.ended)
            assert family.ended == {"a.0#1": CONFIGURATION}

        self._run(test)

    def test_a_name_is_free_when_its_replica_has_ended(self) -> None:
        async def test(family: Family) -> None:
            for _ in range(2):
                family.launch("a.0#1")
                await family.until(lambda: "a.0#1" in family.started)
                family.launcher.kill("a.0#1")
                await family.until(lambda: "a.0#1" in family.ended)
                family.started.clear()
                family.ended.clear()

        self._run(test)

    def test_a_name_is_launched_once(self) -> None:
        async def test(family: Family) -> None:
            family.launch("a.0#1")
            try:
                family.launch("a.0#1")
            except ValueError:
                return
            raise AssertionError("two replicas of one name")

        self._run(test)

    def test_to_kill_nobody_is_nothing(self) -> None:
        async def test(family: Family) -> None:
            family.launcher.kill("nobody.0#1")
            family.launch("a.0#1", "Fails")
            await family.until(lambda: family.ended)
            family.launcher.kill("a.0#1")

        self._run(test)

    def test_close_ends_and_reports_everybody(self) -> None:
        async def test(family: Family) -> None:
            for number in range(3):
                family.launch(f"a.{number}#1")
            await family.until(lambda: len(family.started) == 3)
            await family.launcher.close()
            assert sorted(family.ended) == ["a.0#1", "a.1#1", "a.2#1"]
            told = len(family.told)
            await family.launcher.close()
            await asyncio.sleep(0)
            assert len(family.told) == told, "a callback after close"

        self._run(test)

    # -- helpers -------------------------------------------------------------------------------

    def _run(self, test: Callable[[Family], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            async with self._family() as family:
                await test(family)

        asyncio.run(body())

    @asynccontextmanager
    async def _family(self) -> AsyncIterator[Family]:
        with tempfile.TemporaryDirectory(prefix="fk") as directory:
            family = Family(self, Path(directory))
            try:
                await family.launcher.start()
                yield family
            finally:
                await family.launcher.close()
