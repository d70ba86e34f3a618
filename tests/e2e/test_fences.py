"""Who is dead stays dead, who lives is not blamed, and clocks and held messages hang nobody."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import textwrap
import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from flowkit import In, Many, Node, Out, Source
from flowkit.errors import ReplicaError
from flowkit.launchers.base import Launcher
from flowkit.launchers.inprocess import InProcessLauncher
from flowkit.supervisor import Supervisor
from flowkit.transport.memory import MemoryHub
from tests.conftest import Eventually
from tests.e2e.harness import ROOT, Place, alive, link, node
from tests.e2e.hurdles import hurdle
from tests.runtime.stage import Part, Stage, books, check, collect
from tests.runtime.stage import link as wire

RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "50ms"}
LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]

# ---------------------------------------------------------------------------- old incarnations


class Read(Source):
    """0, 1, 2, ... until `enough` is set."""

    numbers = Out(int)
    enough: asyncio.Event

    async def read(self, position: Any) -> Any:
        number = position or 0
        while not self.enough.is_set():
            yield Many(range(number, number + 16)), number + 16
            number += 16
            await asyncio.sleep(0.001)


class Pass(Node):
    numbers = In(int)
    results = Out(int)

    def on_numbers(self, number: int) -> None:
        self.results.send(number)


class _Necropolis(InProcessLauncher):
    """A launcher that can be wrong: it reports the death of what goes on."""

    undead: dict[str, asyncio.Task[None]]

    def mourn(self, name: str) -> None:
        """Say that `name` was killed, and do nothing to it."""
        self.undead[name] = self._tasks[name]
        self.on_exit(name, -SIGKILL, None)

    def _ended(self, name: str, spec: bytes, task: asyncio.Task[None]) -> None:
        if name in self.undead:
            del self._tasks[name]
        else:
            super()._ended(name, spec, task)


class _Mistaken(Supervisor):
    def _make_launcher(self, hub: MemoryHub) -> Launcher:
        launcher = _Necropolis(self._started, self._exited, hub)
        launcher.undead = {}
        return launcher


@pytest.mark.parametrize("victim", ["work", "sink", "read"])
def test_an_old_incarnation_goes_on_after_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, victim: str
) -> None:
    """It is fenced: what it says counts for nothing, and it leaves by itself."""
    monkeypatch.setenv("FLOWKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", str(tmp_path / "state"))
    seen: list[int] = []

    async def whole() -> None:
        Read.enough = asyncio.Event()
        parts: dict[str, Any] = {
            "read": Read,
            "work": Part(Pass, replicas=2),
            "sink": collect(seen),
        }
        ends = ["read.numbers -> work.numbers", "work.results -> sink.x"]
        stage = Stage(tmp_path, parts, [wire(each) for each in ends])
        stage.supervisor = _Mistaken(stage.plan, in_process=True, watcher=stage)
        async with stage:
            await eventually.on_loop(lambda: len(seen) > 200)
            launcher = stage.supervisor._launcher
            assert isinstance(launcher, _Necropolis)
            launcher.mourn(f"{victim}.0#1")
            old = launcher.undead[f"{victim}.0#1"]
            assert not old.done()  # it goes on
            await eventually.on_loop(lambda: f"{victim}.0#2" in launcher._tasks)
            await eventually.on_loop(old.done)
            assert isinstance(old.exception(), ReplicaError)
            assert "replaced by a later incarnation" in str(old.exception())
            goal = len(seen) + 200
            await eventually.on_loop(lambda: len(seen) > goal)
            Read.enough.set()
            report = check(await stage.wait())
        assert len(stage.deaths) == 1
        count = books(report, ends[0]).entry.sent
        if victim == "work":
            assert sorted(seen) == list(range(count))
        else:  # a source or a sink that died costs duplicates
            assert set(seen) == set(range(max(seen) + 1))

    asyncio.run(whole())


def test_a_process_outlives_the_nursery_and_its_replacement(place: Place) -> None:
    """It was stopped when all others were killed. When it goes on, it ends."""
    topology = place.topology(
        {
            "read": node(
                "Held", restart=RESTART, settings={"count": 5000, "until": place.file("stop")}
            ),
            "work": hurdle("Undying", restart=RESTART),
            "sink": node("Journal", restart=RESTART, settings={"path": place.file("journal")}),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> sink.numbers")],
    )
    run = place.up(topology)
    run.until(lambda: run.handled("work.0") > 100)
    (old,) = run.kill("work.0", number=signal.SIGSTOP)
    try:
        os.kill(run.nursery, signal.SIGKILL)
        new = run.pid("work.0", other_than=old)
        run.until(lambda: run.handled("work.0") > 0)
        assert alive(old) and new != old  # the fault happened
        os.kill(old, signal.SIGCONT)
        run.until(lambda: not alive(old), 10)
    finally:
        if alive(old):
            os.kill(old, signal.SIGKILL)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    counts, ids = place.journal()
    assert set(counts) == set(range(5000))
    assert result.replica("work.0")["restarts"] == 1
    assert "launcher died (SIGKILL)" in result.out


# ---------------------------------------------------------------------------- nobody is blamed


@pytest.mark.parametrize(
    "whom", [pytest.param("the supervisor", marks=pytest.mark.slow), "everybody"]
)
def test_who_was_stopped_with_the_supervisor_is_not_blamed(place: Place, whom: str) -> None:
    """The supervisor stands still for longer than the watchdog: then it is the one that is late."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=2, watchdog="500ms", settings={"busy": 5}),
            "tally": node("Tally", watchdog="500ms", settings={"path": place.file("tally")}),
        },
        LINKS,
    )
    run = place.up(topology)
    run.until(lambda: run.handled("work.0") > 500 and run.handled("work.1") > 500)
    pids = [run.process.pid]
    if whom == "everybody":
        pids += [run.nursery, *run.replicas().values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 2.0
    run.until(lambda: time.monotonic() >= until)
    handled = run.handled("work.0")
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    run.until(lambda: run.handled("work.0") > handled)
    until = time.monotonic() + 1.0  # time enough to blame somebody
    run.until(lambda: time.monotonic() >= until)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert [entry["restarts"] for entry in result.report["nodes"]] == [0, 0, 0, 0]
    assert result.total("redelivered") == 0


def test_a_process_that_the_system_kills(place: Place) -> None:
    """As the kernel does when memory is short: said to be so, and nothing lost."""
    settings = {"at": 700, "how": "kill", "marker": place.file("died")}
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 2000}),
            "work": node("Work", replicas=2, settings=settings),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )
    result = place.up(topology).wait()
    assert (place.path / "died").exists()
    result.check_drained()
    place.check_exact(2000)
    assert "was killed by SIGKILL (out of memory?)" in result.out
    assert result.restarts("work") == 1 and result.total("redelivered") > 0


# ---------------------------------------------------------------------------- clocks

# Python imports this module at its start. The wall clock jumps by an hour, forth and back, ten
# times a second; who asks for it is noted.
_JUMPING = """
    import os, sys, time

    _true, _steady, _asked = time.time, time.monotonic, set()
    _log = os.open(os.environ["FLOWKIT_TEST_ASKED"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def _jumping(_nanoseconds=False):
        frame = sys._getframe(1 if not _nanoseconds else 2)
        name = frame.f_globals.get("__name__", "?")
        hours = int(_steady() * 10) % 2
        if (name, hours) not in _asked:
            _asked.add((name, hours))
            os.write(_log, f"{name} {hours}\\n".encode())
        return _true() + 3600 * hours

    time.time = _jumping
    time.time_ns = lambda: int(_jumping(True) * 1e9)
"""

RECORDS = {
    "flowkit.store",
    "flowkit.cli.dead_letters",
    "flowkit.control.reception",
    "flowkit.control.recorder",
}
"""What may ask for the wall clock: records that people read."""


def test_the_wall_clock_jumps(place: Place) -> None:
    """By an hour, all the time, in every process: restarts, watchdogs and links do not care."""
    site = place.path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(_JUMPING))
    topology = place.topology(
        {
            "read": node(
                "Held", restart=RESTART, settings={"count": 20000, "until": place.file("stop")}
            ),
            "work": node("Work", replicas=2, restart=RESTART, watchdog="1s", settings={"busy": 5}),
            "picky": node("Picky", settings={"modulus": 1000}, on_error={"retry": 1}),
            "sink": node("Journal", settings={"path": place.file("journal")}),
        },
        [
            link("read.numbers -> work.numbers"),
            link("work.results -> picky.numbers"),
            link("picky.results -> sink.numbers"),
        ],
    )
    env = {"PYTHONPATH": f"{site}:{ROOT}", "FLOWKIT_TEST_ASKED": place.file("asked")}
    run = place.up(topology, env=env)
    run.until(lambda: run.handled("work.0") > 500)
    (pid,) = run.kill("work.0")
    run.pid("work.0", other_than=pid)
    run.until(place.position)
    until = time.monotonic() + 1.5  # beyond the watchdog
    run.until(lambda: time.monotonic() >= until)
    place.touch("stop")
    result = run.wait()
    assert (result.code, result.report["status"]) == (4, "drained"), result.text
    counts, _ = place.journal()
    assert set(counts) == {n for n in range(20000) if n % 1000 != 999}
    assert [entry["restarts"] for entry in result.report["nodes"]] == [0, 1, 0, 0, 0]
    asked = {tuple(line.split()) for line in (place.path / "asked").read_text().splitlines()}
    assert {hours for _, hours in asked} == {"0", "1"}  # it jumped
    assert ("flowkit.store", "0") in asked or ("flowkit.store", "1") in asked
    assert {name for name, _ in asked if name.startswith("flowkit")} <= RECORDS
    # What is measured is measured by another clock.
    assert result.report["seconds"] < 600
    assert json.loads(json.dumps(result.report)) == result.report


# ---------------------------------------------------------------------------- held inputs


@pytest.mark.parametrize(
    ("distance", "window", "knob"),
    [(100, 65536, "concurrency"), pytest.param(6, 4, "window", marks=pytest.mark.slow)],
)
def test_a_node_holds_its_inputs(place: Place, distance: int, window: int, knob: str) -> None:
    """Its handlers wait for messages that cannot come before they return: who, and what to turn,
    is said within the watchdog; it can still be stopped."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 500}),
            "pairs": hurdle("Pairs", settings={"distance": distance}, watchdog="500ms"),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [
            link("read.numbers -> pairs.numbers", window=window),
            link("pairs.results -> tally.numbers"),
        ],
    )
    run = place.up(topology, "--drain-timeout", "200ms")
    run.ready()
    began = time.monotonic()
    run.says("pairs.0 has had messages in hand for 0.5 s and finished none")
    assert time.monotonic() - began < 5.0
    run.until(lambda: knob in "\n".join(run.result().printed("pairs.0")), 5)
    assert "on_numbers" in run.out  # where it waits
    run.terminate()
    result = run.wait()
    assert (result.code, result.report["status"]) == (5, "timed out"), result.text
    assert result.link("read.numbers -> pairs.numbers")["in_flight"] > 0
    assert result.restarts("pairs") == 0
