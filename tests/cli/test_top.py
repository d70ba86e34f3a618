"""`flowkit ps` and `flowkit top` in the hands of a user: terminals, keys, sizes, pipes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.cli.top import ENTER, LEAVE, Hands, Live
from flowkit.errors import NotRunning, OperatorError
from tests.conftest import Deadline, Eventually
from tests.e2e.harness import Place, Run, environment, link
from tests.figures import status

ANSI = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


# ---------------------------------------------------------------------------- the screen alone


class Terminal:
    """A terminal, and what was written to it."""

    def __init__(self, columns: int = 100, lines: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.text = ""

    def resize(self, columns: int, lines: int) -> None:
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self) -> str:
        """Everything so far."""
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self.master, 1 << 16):
                self.text += chunk.decode()
        return self.text

    def frame(self) -> list[str]:
        """The lines that are on the screen."""
        last = self.read().rpartition("\x1b[H")[2]
        return [ANSI.sub("", line) for line in last.split("\r\n")]

    def close(self) -> None:
        for descriptor in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


class Played:
    """A project that is shown, and changed, by nobody but the test."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, int]] = []
        self.looks = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self) -> Any:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return status()

    def scale(self, node: str, replicas: int) -> str:
        self.gate.wait(10)
        self.done.append(("scale", node, replicas))
        return f"{node} has {replicas} replicas"

    def restart(self, node: str, number: int) -> str:
        raise OperatorError(f"{node}.{number} cannot be restarted", hint="because")

    @property
    def hands(self) -> Hands:
        return Hands(self.fetch, self.scale, self.restart)


@contextlib.contextmanager
def live(terminal: Terminal, played: Played) -> Iterator[tuple[Live, threading.Thread, list[Any]]]:
    """The screen, in a thread; what it raised is in the list when it has ended."""
    raised: list[Any] = []
    with open(terminal.slave, "w", encoding="utf-8", closefd=False) as output:
        screen = Live(played.hands, output, terminal.slave, every=0.05)

        def run() -> None:
            try:
                screen.run()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield screen, thread, raised
        finally:
            if thread.is_alive():
                terminal.press("q")
            thread.join(10)
            assert not thread.is_alive()
            terminal.read()


def test_it_shows_looks_again_and_leaves(terminal: Terminal, eventually: Eventually) -> None:
    before = termios.tcgetattr(terminal.slave)
    played = Played()
    with live(terminal, played) as (_, thread, raised):
        eventually(lambda: terminal.frame()[-1].startswith("q quit"))
        assert len(terminal.frame()) == 24
        assert terminal.frame()[0].startswith("clicks · running 2m11s · 3 replicas")
        eventually(lambda: played.looks > 3)
        terminal.press("q")
        thread.join(10)
        assert not raised
    assert terminal.text.startswith(ENTER) and terminal.text.endswith(LEAVE)
    assert termios.tcgetattr(terminal.slave) == before


def test_it_follows_the_size_of_the_window(terminal: Terminal, eventually: Eventually) -> None:
    with live(terminal, Played()):
        eventually(lambda: len(terminal.frame()) == 24)
        terminal.resize(50, 9)
        eventually(lambda: len(terminal.frame()) == 9 and max(map(len, terminal.frame())) <= 50)


def test_keys_change_the_project(terminal: Terminal, eventually: Eventually) -> None:
    played = Played()
    played.gate.clear()
    with live(terminal, played):
        terminal.press("\x1b[B\x1b[B+")
        eventually(lambda: terminal.frame()[-1] == "scaling parse to 2 ...")
        looks = played.looks
        eventually(lambda: played.looks > looks + 2)  # it lives on meanwhile
        terminal.press("+")
        eventually(lambda: terminal.frame()[-1].startswith("one thing at a time"))
        played.gate.set()
        eventually(lambda: terminal.frame()[-1] == "parse has 2 replicas")
        assert played.done == [("scale", "parse", 2)]
        terminal.press("ry")
        eventually(lambda: terminal.frame()[-1] == "parse.0 cannot be restarted")


def test_a_change_that_is_under_way_is_spoken_of_at_the_end(terminal: Terminal) -> None:
    played = Played()
    with live(terminal, played) as (screen, thread, _):
        terminal.press("\x1b[B+q")
        thread.join(10)
    assert screen.finish() == "read has 2 replicas"


def test_a_project_that_ends_leaves_the_terminal_in_order(
    terminal: Terminal, eventually: Eventually
) -> None:
    before = termios.tcgetattr(terminal.slave)
    played = Played()
    with live(terminal, played) as (_, thread, raised):
        eventually(lambda: played.looks > 1)
        played.error = NotRunning("not running: clicks", "")
        thread.join(10)
        assert raised == [played.error]
    assert terminal.text.endswith(LEAVE)
    assert termios.tcgetattr(terminal.slave) == before


# ---------------------------------------------------------------------------- the commands


def node(use: str, replicas: int = 1, **settings: Any) -> dict[str, Any]:
    facts = {"use": f"tests.e2e.paced_nodes:{use}", "replicas": replicas}
    return {**facts, "with": settings} if settings else facts


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Place, Run]]:
    """A project with a slow sink, which runs for some seconds already."""
    place = Place()
    topology = place.topology(
        {"read": node("Endless"), "parse": node("Paced", 2), "store": node("Ends", seconds=0.02)},
        [link("read.numbers -> parse.numbers"), link("parse.results -> store.numbers")],
    )
    run = place.up(topology)
    run.says("ready in")
    eventually = Eventually()
    eventually(lambda: "bottleneck: store" in flowkit(place, "ps").stdout, 30)
    yield place, run
    run.interrupt()
    run.says("draining: ")
    run.interrupt()
    run.process.wait(30)
    place.close()


def flowkit(place: Place, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowkit", *arguments],
        cwd=place.path,
        env=environment(place.path, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def on_terminal(
    place: Place, *arguments: str, done: Callable[[Terminal], bool], keys: str = "", **env: str
) -> tuple[int, str]:
    """Run a command on a terminal; when it is `done`, press `keys`."""
    terminal = Terminal()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowkit", *arguments],
        cwd=place.path,
        env=environment(place.path, TERM="xterm-256color", **env),
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches it
    )
    try:
        Eventually()(lambda: done(terminal) or process.poll() is not None, 30)
        terminal.press(keys)
        deadline = Deadline(30)
        while process.poll() is None and not deadline.passed:
            terminal.read()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        return process.wait(1), terminal.read()
    finally:
        process.kill()
        process.wait()
        terminal.close()


def test_ps_of_a_running_project(running: tuple[Place, Run]) -> None:
    place, _ = running
    done = flowkit(place, "ps")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "NAME", "STATE", "UPTIME", "CPU", "MEM", "IN/S", "OUT/S", "QUEUE", "P99", "RESTARTS"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:5]] == ["read.0", "parse.0", "parse.1", "store.0"]
    assert re.search(r"^read\.0 +waiting ", done.stdout, re.MULTILINE)
    assert lines[5].startswith("bottleneck: store (busy ") and len(lines) == 6
    assert "\x1b" not in done.stdout


def test_ps_as_json(running: tuple[Place, Run]) -> None:
    place, _ = running
    rows = [
        json.loads(line) for line in flowkit(place, "ps", "--format", "json").stdout.splitlines()
    ]
    assert [(row["node"], row["replica"]) for row in rows] == [
        ("read", 0), ("parse", 0), ("parse", 1), ("store", 0)
    ]  # fmt: skip
    store = rows[-1]
    assert store["ends"] and 5 < store["in_rate"] <= 51
    assert 0.02 <= store["p99"] < 5 and store["age_p99"] > store["p50"] >= 0.019
    assert store["memory"] > 1 << 20 and 0 <= store["cpu"] < 0.9
    assert rows[0]["in_rate"] is None and rows[0]["waiting"] > 0.5


def test_top_once(running: tuple[Place, Run]) -> None:
    place, _ = running
    done = flowkit(place, "top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trial · running ") and " · http://127.0.0.1:" in lines[0]
    assert lines[1].startswith("bottleneck: store ")
    assert any(line.startswith("parse.results -> store.numbers ") for line in lines)


def test_plain_letters_where_the_locale_is_c(running: tuple[Place, Run]) -> None:
    place, _ = running
    done = flowkit(place, "top", "--once", LANG="C", LC_ALL="C")
    assert done.returncode == 0 and done.stdout.isascii()
    assert done.stdout.startswith("trial - running ")


def test_top_needs_a_terminal(running: tuple[Place, Run]) -> None:
    place, _ = running
    done = flowkit(place, "top")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: top needs a terminal\nhint: flowkit top --once prints it once; so does flowkit ps\n"
    )


def test_top_on_a_terminal(running: tuple[Place, Run]) -> None:
    place, _ = running
    code, text = on_terminal(
        place, "top", done=lambda terminal: "bottleneck: store" in terminal.read(), keys="q"
    )
    assert code == 0 and "Traceback" not in text
    assert ENTER in text and text.endswith(LEAVE)
    assert "\x1b[36mwaiting" in text, "in colour"


def test_top_is_interrupted(running: tuple[Place, Run]) -> None:
    place, _ = running
    code, text = on_terminal(
        place, "top", done=lambda terminal: "bottleneck: store" in terminal.read(), keys="\x03"
    )
    assert code in (0, -2) and "Traceback" not in text and text.endswith(LEAVE)


def test_colours_only_if_wanted(running: tuple[Place, Run]) -> None:
    place, _ = running

    def never(terminal: Terminal) -> bool:
        terminal.read()
        return False

    _, coloured = on_terminal(place, "ps", done=never)
    assert "\x1b[" in coloured
    _, plain = on_terminal(place, "ps", done=never, NO_COLOR="1")
    assert "\x1b" not in plain and "bottleneck: store" in plain


def test_ps_without_a_project(tmp_path: Path) -> None:
    place = Place()
    try:
        for verb in ("ps", "top"):
            done = flowkit(place, verb, "nothing")
            assert done.returncode == 6 and done.stdout == ""
            assert "Traceback" not in done.stderr and "not" in done.stderr
    finally:
        place.close()
