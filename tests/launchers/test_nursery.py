"""Who dies with whom: supervisors, nurseries and children that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit.errors import ReplicaError
from flowkit.launchers.nursery import Birth, Launch

pytestmark = pytest.mark.e2e

Families = Callable[..., Any]
HOLDER = Path(__file__).parent / "holder.py"
STUBBORN = ["rest", "spin", "hold_gil", "rest"]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


@contextmanager
def holder(children: Path, *specs: str, preload: str = "") -> Iterator[tuple[Any, int, list[int]]]:
    """A process with a launcher: itself, the pid of its nursery, the pids of its children."""
    command = [sys.executable, str(HOLDER), str(children), preload, *specs]
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        forked: list[int] = []
        try:
            assert process.stdout is not None
            found = json.loads(process.stdout.readline())
            forked = found["forked"]
            yield process, found["nursery"], found["children"]
        finally:
            for pid in forked:
                os.kill(pid, signal.SIGKILL)
            process.kill()


def test_all_die_with_the_supervisor(children: Path, eventually: Any) -> None:
    with holder(children, *STUBBORN) as (process, nursery, pids):
        os.kill(pids[-1], signal.SIGSTOP)
        eventually(lambda: stopped(pids[-1]))
        assert not any(map(gone, pids))
        process.kill()
        eventually(lambda: all(map(gone, [nursery, *pids])), seconds=2)


def test_all_die_with_the_supervisor_while_everything_is_stopped(
    children: Path, eventually: Any
) -> None:
    with holder(children, *STUBBORN) as (process, nursery, pids):
        for pid in (process.pid, nursery, *pids):
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(map(stopped, [process.pid, nursery, *pids])))
        process.kill()
        eventually(lambda: all(map(gone, [nursery, *pids])), seconds=2)


def test_all_die_with_a_supervisor_whose_descriptors_live_on_in_somebody_else(
    children: Path, eventually: Any
) -> None:
    with holder(children, *STUBBORN, "+fork") as (process, nursery, pids):
        process.kill()
        eventually(lambda: all(map(gone, [nursery, *pids])), seconds=2)


def test_a_nursery_that_is_stuck_in_an_import_dies_with_the_supervisor(
    children: Path, eventually: Any
) -> None:
    with holder(children, preload="endless") as (process, nursery, _):
        assert not gone(nursery)
        process.kill()
        eventually(lambda: gone(nursery), seconds=2)


def test_all_die_with_the_nursery_and_are_reported_then(family: Families, eventually: Any) -> None:
    async def run() -> None:
        async with family() as them:
            for number, spec in enumerate(STUBBORN):
                them.launch(f"{spec}.{number}", spec)
            await them.speaking(*them.out)
            os.kill(them.pids["rest.0"], signal.SIGSTOP)
            nursery = them.launcher.pid
            os.kill(nursery, signal.SIGKILL)
            them.launch("too late", "rest")
            await them.until(lambda: len(them.exits) == 5, seconds=2)
            assert set(them.exits.values()) == {(-9, "launcher died (SIGKILL)")}
            # They have closed all their files; the kernel may still be busy with the rest.
            await eventually.on_loop(lambda: all(map(gone, [nursery, *them.pids.values()])), 0.5)
            assert them.launcher.pid is None
            them.launch("later still", "rest")
            await them.until(lambda: "later still" in them.exits)
            them.launcher.kill("later still")

    asyncio.run(run())


def test_a_child_is_not_reported_before_it_has_let_go(family: Families) -> None:
    held: list[str] = []

    async def run() -> None:
        async with family() as them:
            proper = them.launcher.on_exit

            def on_exit(name: str, exitcode: int, error: str | None) -> None:
                try:
                    held.extend(os.listdir(f"/proc/{them.pids[name]}/fd"))
                except OSError:
                    pass
                proper(name, exitcode, error)

            them.launcher.on_exit = on_exit
            them.launch("a", "fat")
            await them.until(lambda: them.out["a"].count(b"\n") == 2)
            await them.speaking("a")
            os.kill(them.launcher.pid, signal.SIGKILL)
            await them.until(lambda: "a" in them.exits, seconds=2)

    asyncio.run(run())
    assert held == []


def test_a_nursery_that_an_import_kills_says_which(family: Families) -> None:
    async def run() -> None:
        async with family(preload=["heavy", "deadly"]) as them:
            them.launch("a", "rest")
            await them.ended("a")
            assert them.exits == {"a": (-9, "launcher died (SIGKILL while importing deadly)")}

    asyncio.run(run())


def test_a_nursery_that_cannot_start(family: Families, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit(7)\n")

    async def run() -> None:
        with pytest.raises(ReplicaError, match=r"launcher died \(exit code 7\)"):
            async with family(path=[str(tmp_path)]):
                pass

    asyncio.run(run())


def test_closing_while_the_nursery_is_stopped(family: Families, eventually: Any) -> None:
    async def run() -> None:
        async with family() as them:
            them.launch("a", "hold_gil")
            await them.speaking("a")
            nursery = them.launcher.pid
            os.kill(nursery, signal.SIGSTOP)
            them.launch("b", "rest")
            await them.launcher.close()
            assert set(them.exits.values()) == {(-9, "launcher closed")}
            # They have closed all their files; the kernel may still be busy with the rest.
            await eventually.on_loop(lambda: all(map(gone, [nursery, *them.pids.values()])), 0.5)

    asyncio.run(run())


def test_a_child_whose_parent_has_died_before_it_could_ask(tmp_path: Path) -> None:
    command = Launch(name="a", spec=b"", title="", env={}, stdout=False, stderr=False)
    birth = Birth(
        parent=os.getppid(),  # not ours, so for the child below its parent is already gone
        entry="builtins:print",
        command=command,
        stdout=None,
        stderr=None,
        tether=0,
        unwanted=set(),
    )
    pid = os.fork()
    if pid == 0:
        try:
            birth()
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
