"""A launcher that is renewed: new children have new code, old ones stay, old nurseries go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

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
        fleet = Fleet(
            lambda name, pid: None,
            lambda name, code, error: exits.append((name, code)),
            lambda started, exited: ProcessLauncher(
                started,
                exited,
                entry="entering:main",
                preload=["entering"],
                path=[str(tmp_path)],
                method="fork",
            ),
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
        finally:
            await fleet.close()
        # One of them may end before another is killed.
        assert sorted(name for name, _ in exits) == ["four", "one-stay", "three", "two"]

    asyncio.run(scenario())
