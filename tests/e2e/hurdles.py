"""Nodes that are slow, hold what they get, outlive their parent, or send too much; what they need.

`hurdle("Slow", ...)` is such a node of a topology.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil

from flowkit import In, Many, Node, Out, Source
from flowkit.runtime.shared import WAITING_NS, SharedRows
from tests.e2e.harness import Run
from tests.e2e.nodes import CHECK, TURN, Tally, appeared

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def hurdle(use: str, **facts: Any) -> dict[str, Any]:
    """A node of a topology; `settings` become its `with`."""
    settings = facts.pop("settings", None)
    return {"use": f"{__name__}:{use}", **({"with": settings} if settings else {}), **facts}


# ---------------------------------------------------------------------------- nodes


class Texts(Source):
    """`count` texts of `size` characters, as fast as they are taken."""

    texts = Out(str)

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.text = "x" * size

    def read(self, position: Any) -> Iterator[Any]:
        start = position or 0
        for number in range(start, self.count, 256):
            parcel = min(256, self.count - number)
            yield Many([self.text] * parcel), number + parcel


class Slow(Node):
    """Takes `pause` microseconds for each text, without using a processor."""

    texts = In(str)

    def __init__(self, pause: int) -> None:
        self.pause = pause / 1e6
        self.owed = 0.0

    def on_texts(self, text: str) -> None:
        # In portions that are worth a system call.
        self.owed += self.pause
        if self.owed > 0.001:
            time.sleep(self.owed)
            self.owed = 0.0


class Paced(Source):
    """0, 1, 2, ...: `count` numbers, never more than `lead` ahead of what `Uneven` replicas that
    are not slow have seen. They note that in `path`.atREPLICA; `fast` is how many they are."""

    numbers = Out(int)

    def __init__(self, count: int, path: str, fast: int, lead: int = 1000) -> None:
        self.count = count
        self.path = path
        self.fast = fast
        self.lead = lead

    async def read(self, position: Any) -> AsyncIterator[Any]:
        for number in range(position or 0, self.count, CHECK):
            # Who misses a message must not hang the test.
            patience = time.monotonic() + 2.0
            while self.seen() < number - self.lead and time.monotonic() < patience:
                await asyncio.sleep(TURN)
            end = min(number + CHECK, self.count)
            yield Many(range(number, end)), end
            await asyncio.sleep(0)
        print("has read all", flush=True)

    def seen(self) -> int:
        """The least that a fast replica has come to."""
        least = self.count
        for replica in range(self.fast):
            try:
                with open(f"{self.path}.at{replica}", "rb") as file:
                    least = min(least, int(file.read() or b"0"))
            except FileNotFoundError:
                return 0
        return least


class Uneven(Tally):
    """A `Tally` whose replica `slow` waits for the file `gate`, its loop standing still."""

    def __init__(self, path: str, gate: str, slow: int) -> None:
        super().__init__(path)
        self.gate = gate
        self.slow = slow
        self.at = -1

    def on_numbers(self, number: int) -> None:
        if self.replica == self.slow:
            while not os.path.exists(self.gate):
                time.sleep(TURN)
        self.note(number)

    def note(self, number: int) -> None:
        super().on_numbers(number)
        if self.replica != self.slow and number % 64 == 0:
            if self.at < 0:
                self.at = os.open(f"{self.path}.at{self.replica}", os.O_CREAT | os.O_WRONLY)
            os.pwrite(self.at, b"%d" % number, 0)

    def teardown(self) -> None:
        if self.at >= 0:
            os.close(self.at)


class Patient(Uneven):
    """The same with a loop that turns."""

    stateful = True

    async def on_numbers(self, number: int) -> None:  # type: ignore[override]
        if self.replica == self.slow:
            await appeared(self.gate)
        self.note(number)


class Pairs(Node):
    """Holds each number until number `distance` after it has come; `finish` lets the rest go."""

    numbers = In(int, concurrency=8)
    results = Out(int)

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self.come: dict[int, asyncio.Event] = {}

    async def on_numbers(self, number: int) -> None:
        if number in self.come:
            self.come.pop(number).set()
        waits = self.come[number + self.distance] = asyncio.Event()
        await waits.wait()
        self.results.send(number)


class Undying(Node):
    """Passes numbers on, and does not die with its parent."""

    numbers = In(int)
    results = Out(int)

    def setup(self) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)

    def on_numbers(self, number: int) -> None:
        self.results.send(number)


class Large(Node):
    """Sends bytes for each number: `size` for number `at`, few for the others."""

    numbers = In(int)
    results = Out(bytes)

    def __init__(self, at: int, size: int) -> None:
        self.at = at
        self.size = size

    def on_numbers(self, number: int) -> None:
        self.results.send(bytes(self.size if number == self.at else 8))


class Lengths(Node):
    """Takes bytes of any size."""

    blobs = In(bytes)

    def on_blobs(self, blob: bytes) -> None:
        pass


# ---------------------------------------------------------------------------- looking at a run


class Vitals:
    """What the processes of a run hold: looks at them again and again, keeps the extremes."""

    def __init__(self, run: Run) -> None:
        pids = {"supervisor": run.process.pid, "nursery": run.nursery, **run.replicas()}
        self.processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.looks: dict[str, list[tuple[int, int, int]]] = {name: [] for name in pids}

    def look(self) -> None:
        """Note memory that is the process's own, descriptors and threads of each."""
        for name, process in self.processes.items():
            with process.oneshot():
                size = process.memory_full_info().uss
            self.looks[name].append((size, process.num_fds(), process.num_threads()))

    def growth(self) -> dict[str, tuple[int, int, int]]:
        """By how much the later half of the looks goes beyond the first half: bytes, files,
        threads."""
        grown = {}
        for name, looks in self.looks.items():
            half = len(looks) // 2
            before = [max(column) for column in zip(*looks[:half], strict=True)]
            after = [max(column) for column in zip(*looks[half:], strict=True)]
            size, files, threads = (b - a for a, b in zip(before, after, strict=True))
            grown[name] = (size, files, threads)
        return grown

    def check_flat(self, size: int, files: int = 0, threads: int = 0) -> None:
        """Nothing has grown by more than that."""
        for name, grown in self.growth().items():
            allowed = (size, files, threads)
            flat = all(one <= most for one, most in zip(grown, allowed, strict=True))
            assert flat, f"{name} grew by {grown}, allowed are {allowed}: {self.looks[name]}"


def waited(run: Run, name: str) -> float:
    """Seconds that the incarnation of a replica that runs now had no room downstream."""
    directory = run.directory
    for path in directory.glob(f"{name}#*.rows") if directory else ():
        try:
            rows = SharedRows(path)
        except (OSError, ValueError):
            continue
        try:
            return float(rows.gauges[WAITING_NS]) / 1e9
        finally:
            rows.close()
    return 0.0
