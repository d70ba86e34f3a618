"""One process for everything: what debuggers, coverage and tracebacks see."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import trace
from collections.abc import Iterator

import pytest

import flowkit
from flowkit.errors import OperatorError, ProjectFailed
from tests.e2e.harness import Place, environment, link

pytestmark = pytest.mark.e2e

NODES = """\
from flowkit import In, Node, Out, Source


class Read(Source):
    numbers = Out(int)

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def read(self, position):
        for number in range(position or 0, self.count):
            yield number, number + 1


class Work(Node):
    numbers = In(int)

    def __init__(self, how: str = "") -> None:
        self.how = how

    def on_numbers(self, number: int) -> None:
        secret = 7 * number
        if self.how == "debug" and number == 2:
            breakpoint()
        if self.how == "fail":
            self.divide(secret, number - number)

    def divide(self, one: int, other: int) -> float:
        return one / other  # here it fails
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place()
    monkeypatch.setenv("FLOWKIT_RUN_DIR", place.file("r"))
    monkeypatch.setenv("FLOWKIT_STATE_DIR", place.file("s"))
    monkeypatch.chdir(place.path)
    (place.path / "debugged.py").write_text(NODES)
    path = list(sys.path)
    yield place
    sys.path[:] = path
    sys.modules.pop("debugged", None)
    place.close()


def topology(place: Place, how: str = "", **work: object) -> str:
    nodes = {
        "read": {"use": "debugged:Read"},
        "work": {"use": "debugged:Work", "with": {"how": how}, **work},
    }
    return str(place.topology(nodes, [link("read.numbers -> work.numbers")]))


def debug(place: Place, commands: str) -> subprocess.CompletedProcess[str]:
    """Run `up --in-process` with `commands` for the debugger."""
    command = [sys.executable, "-m", "flowkit", "up", topology(place, "debug"), "--in-process"]
    return subprocess.run(
        [*command, "--no-http"],
        input=commands,
        capture_output=True,
        text=True,
        cwd=place.path,
        env=environment(place.path),
        timeout=60,
    )


def test_a_breakpoint_stops_in_the_handler_and_listens(place: Place) -> None:
    done = debug(place, "p secret + 1\nc\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "debugged.py(" in done.stdout and "on_numbers()" in done.stdout
    assert "(Pdb) 15\n" in done.stdout
    assert "nothing lost" in done.stdout


def test_leaving_the_debugger_ends_the_run(place: Place) -> None:
    done = debug(place, "q\n")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the debugger was left" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_lines_of_nodes_are_counted(place: Place) -> None:
    """By whatever traces the thread, as coverage does."""
    tracer = trace.Trace(count=1, trace=0, ignoremods=("flowkit",))
    report = tracer.runfunc(flowkit.run_in_process, topology(place))
    assert report.links[0].entry.done == 3
    counts = tracer.results().counts
    line = 1 + NODES.splitlines().index("        secret = 7 * number")
    assert counts[str(place.path / "debugged.py"), line] == 3


def test_a_traceback_names_the_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        report = flowkit.run_in_process(topology(place, "fail"))
    assert (report.exit, report.dead_lettered) == (4, 3)
    (first, *_) = (one for one in caplog.records if one.exc_info)
    assert first.exc_info is not None and first.exc_info[2] is not None
    text = caplog.handler.format(first)
    assert "return one / other  # here it fails" in text
    assert "ZeroDivisionError" in text
    assert "flowkit" + "/runtime" not in text, "frames that say nothing to its author"


def test_what_fails_raises(place: Place) -> None:
    with pytest.raises(ProjectFailed, match="work.0: numbers: ZeroDivisionError"):
        flowkit.run_in_process(topology(place, "fail", on_error={"then": "stop"}))


def test_not_inside_a_loop(place: Place) -> None:
    path = topology(place)

    async def wrong() -> None:
        flowkit.run_in_process(path)

    with pytest.raises(RuntimeError, match="in_process=True"):
        asyncio.run(wrong())


def test_nobody_could_attach() -> None:
    topology = flowkit.Topology("alone")
    feed = topology.node("feed", "tests.e2e.nodes:Numbers", external=True)
    topology.link(feed.numbers, topology.node("talk", "tests.e2e.nodes:Talker").numbers)
    with pytest.raises(OperatorError, match="nobody can attach feed"):
        flowkit.run_in_process(topology)
