"""A launcher that is renewed: new children have new code, old ones stay, old nurseries go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from flowkit.launchers.base import OnExit, OnStarted
from flowkit.launchers.fleet import Fleet
from flowkit.launchers.process import ProcessLauncher
from tests.conftest import Eventually

pytestmark = pytest.mark.e2e
eventually = Eventually()

ENTRY = """
import sys
import wording

def main(spec):
    with open(spec.decode(), "w") as file:
        file.write(wording.WORD)
    if spec.endswith(b"stay"):
        import time
        time.sleep(60)
    return 0
"""


def test_new_code_takes_a_new_nursery(tmp_path: Path) -> None:
    (tmp_path / "entering.py").write_text(ENTRY)
    module = tmp_path / "wording.py"
    exits: list[tuple[str, int]] = []

    async def scenario() -> None:
        def make(started: OnStarted, exited: OnExit) -> ProcessLauncher:
            return ProcessLauncher(
                started,
                exited,
                entry="entering:main",
                preload=["entering"],
                path=[str(tmp_path)],
                method="fork",
            )

        fleet = Fleet(
            lambda name, pid: None, lambda name, code, error: exits.append((name, code)), make
        )

        def launch(name: str) -> Path:
            path = tmp_path / name
            fleet.launch(name, str(path).encode(), title="trial", env={}, stdout=None, stderr=None)
            return path

        async def says(path: Path, word: str) -> None:
            await eventually.on_loop(lambda: path.exists() and path.read_text() == word)

        module.write_text("WORD = 'first'")
        await fleet.start()
        try:
            old = fleet.pid
            await says(launch("one-stay"), "first")
            module.write_text("WORD = 'the second'")
            await says(launch("two"), "first")
            await fleet.renew()
            new = fleet.pid
            assert old is not None and new is not None and old != new
            await says(launch("three"), "the second")
            assert psutil.pid_exists(old), "it has a child still"
            fleet.kill("one-stay")
            await eventually.on_loop(lambda: ("one-stay", -9) in exits)
            await eventually.on_loop(lambda: not psutil.pid_exists(old))
            await eventually.on_loop(lambda: ("three", 0) in exits)
            psutil.Process(new).kill()
            await eventually.on_loop(lambda: fleet.pid is None)
            await fleet.renew()
            await says(launch("four"), "the second")
            await eventually.on_loop(lambda: ("four", 0) in exits)

            second = fleet.pid
            module.write_text("WORD = 'third'")
            await fleet.renew(make)
            await says(launch("five"), "third")
            third = fleet.pid
            fleet.revert()
            assert fleet.pid == second, "it was kept, though it had no child"
            await says(launch("six"), "the second")
            await eventually.on_loop(lambda: not psutil.pid_exists(third))
            await fleet.renew(make)
            fleet.keep()
            await eventually.on_loop(lambda: not psutil.pid_exists(second))
            fleet.revert()
            await says(launch("seven"), "third")
            await eventually.on_loop(lambda: len(exits) == 7)
        finally:
            await fleet.close()
        # One of them may end before another is killed.
        names = ["five", "four", "one-stay", "seven", "six", "three", "two"]
        assert sorted(name for name, _ in exits) == names

    asyncio.run(scenario())
