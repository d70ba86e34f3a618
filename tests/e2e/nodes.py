"""The nodes that end-to-end tests run: they count, keep what they see, and die when told to.

A fault that a node does to itself happens once in a run, in whichever replica comes first: a file
remembers it, so that the next incarnation goes on in peace.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from flowkit import In, Many, Meta, Node, Out, Sink, Source, every

CHECK = 256
"""How many messages a source sends between two looks at a file."""

TURN = 0.002
"""Seconds between two looks at a file that a node waits for."""


def first(path: str) -> bool:
    """True for the first who asks, in whatever process; that it happened is written to `path`."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die(how: str) -> None:
    """End this process, or its work, in one of the ways that happen."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "_exit":
        os._exit(0)
    elif how == "exit":
        sys.exit(0)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "spin":
        while True:
            pass
    elif how == "hold":  # the interpreter's lock, for some hours
        sum(range(10**13))
    else:
        raise ValueError(how)


async def appeared(path: str) -> None:
    """Return when somebody has made the file at `path`."""
    while not os.path.exists(path):
        await asyncio.sleep(TURN)


class Numbers(Source):
    """0, 1, 2, ...: `count` of them, and then more until the file `until` exists."""

    numbers = Out(int)

    def __init__(self, count: int = 0, until: str = "", known: bool = False) -> None:
        self.count = count
        self.until = until
        self.known = known

    def length(self) -> int | None:
        return self.count if self.known else None

    def read(self, position: Any) -> Iterator[Any]:
        start = position or 0
        print(f"reads from {start}", flush=True)
        yield from ((number, number + 1) for number in range(start, self.count))
        number = max(start, self.count)
        while self.until and not os.path.exists(self.until):
            yield from ((each, each + 1) for each in range(number, number + CHECK))
            number += CHECK
        print("has read all", flush=True)


class Held(Source):
    """0, 1, 2, ... in parcels: `count` of them, then it waits for the file `until` to end."""

    numbers = Out(int)

    def __init__(self, count: int, until: str, known: bool = False) -> None:
        self.count = count
        self.until = until
        self.known = known

    def length(self) -> int | None:
        return self.count if self.known else None

    async def read(self, position: Any) -> AsyncIterator[Any]:
        start = position or 0
        print(f"reads from {start}", flush=True)
        for number in range(start, self.count, CHECK):
            end = min(number + CHECK, self.count)
            yield Many(range(number, end)), end
            await asyncio.sleep(0)
        await appeared(self.until)


class Parcels(Source):
    """0, 1, 2, ...: `count` numbers from its position on, then its stream ends."""

    numbers = Out(int)

    def __init__(self, count: int) -> None:
        self.count = count

    def read(self, position: Any) -> Iterator[Any]:
        start = position or 0
        for number in range(start, start + self.count):
            yield number, number + 1


class Ticks(Node):
    """Numbers without positions, sent from `run()` until it is told to end."""

    numbers = Out(int)

    async def run(self) -> None:
        number = 0
        while True:
            self.numbers.send(number)
            number += 1
            await asyncio.sleep(TURN)


class Work(Node):
    """Passes numbers on; `busy` microseconds each. At number `at` it dies, once, as `how` says.

    `marker` is the file that remembers it; without one, every incarnation dies.
    """

    numbers = In(int)
    results = Out(int)

    def __init__(self, busy: int = 0, at: int = -1, how: str = "kill", marker: str = "") -> None:
        self.busy = busy / 1e6
        self.at = at
        self.how = how
        self.marker = marker

    def on_numbers(self, number: int) -> None:
        if number == self.at and (not self.marker or first(self.marker)):
            die(self.how)
        if self.busy:
            end = time.perf_counter() + self.busy
            while time.perf_counter() < end:
                pass
        self.results.send(number)


class Tally(Node):
    """Counts how often it has seen each number; writes it to `path`.REPLICA at the end.

    One byte per number. If it dies, what it had counted is lost.
    """

    stateful = True
    numbers = In(int)

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen = bytearray()

    def on_numbers(self, number: int) -> None:
        try:
            self.seen[number] += 1
        except IndexError:
            self.seen.extend(bytes(number + 1 - len(self.seen)))
            self.seen[number] += 1

    def finish(self) -> None:
        path = Path(f"{self.path}.{self.replica}")
        path.write_bytes(self.seen)


class Journal(Sink):
    """Appends "number id" lines to `path`, in one write for each commit.

    A kill may cut a write short at the end of a page: what follows the last whole line was never
    acknowledged, and is cut off before anything is appended to it.

    `die_in` names the hook ("handler", "commit", "finish") in which it is killed, once, when it has
    written something before; `gate` is a file without which no handler returns.
    """

    numbers = In(int)

    def __init__(self, path: str, die_in: str = "", marker: str = "") -> None:
        self.path = path
        self.die_in = die_in
        self.marker = marker
        self.lines: list[str] = []
        self.commits = 0

    def setup(self) -> None:
        self.file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND)
        content = Path(self.path).read_bytes()
        os.ftruncate(self.file, content.rfind(b"\n") + 1)

    def on_numbers(self, number: int, meta: Meta) -> None:
        self.lines.append(f"{number} {meta.id}\n")
        if len(self.lines) > 1:
            self._die("handler")

    def commit(self) -> None:
        data = "".join(self.lines).encode()
        while data:
            data = data[os.write(self.file, data) :]
        self.lines.clear()
        self._die("commit")
        self.commits += 1

    def finish(self) -> None:
        self._die("finish")

    def teardown(self) -> None:
        os.close(self.file)

    def _die(self, where: str) -> None:
        if where == self.die_in and (self.commits or where == "finish") and first(self.marker):
            die("kill")


class Gate(Node):
    """Lets nothing through, and acknowledges nothing, before the file `gate` exists."""

    numbers = In(int, concurrency=8)
    results = Out(int)

    def __init__(self, gate: str) -> None:
        self.gate = gate

    async def on_numbers(self, number: int) -> None:
        await appeared(self.gate)
        self.results.send(number)


class SlowStart(Node):
    """Is not ready before the file `gate` exists."""

    numbers = In(int)

    def __init__(self, gate: str) -> None:
        self.gate = gate

    async def setup(self) -> None:
        print("sets up", flush=True)
        await appeared(self.gate)

    def on_numbers(self, number: int) -> None:
        pass


class Talker(Node):
    """Prints what it gets, and much more when it ends; the last line has no end."""

    numbers = In(int)

    def __init__(self, lines: int = 0, how: str = "") -> None:
        self.lines = lines
        self.how = how

    def on_numbers(self, number: int) -> None:
        print(f"got {number} ünïcode")

    def finish(self) -> None:
        for number in range(self.lines):
            print(f"line {number} {'-' * 60}")

    def teardown(self) -> None:
        sys.stdout.flush()
        os.write(1, b"the last word")


class Misconfigured(Node):
    """Cannot be built."""

    numbers = In(int)

    def __init__(self) -> None:
        raise LookupError("there is no such table")

    def on_numbers(self, number: int) -> None:
        pass


class Broken(Node):
    """Is built, but never gets ready."""

    numbers = In(int)

    def setup(self) -> None:
        raise LookupError("the disk is gone")

    def on_numbers(self, number: int) -> None:
        pass


class Picky(Node):
    """Refuses every `modulus`-th number, with an error or so."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus

    def on_numbers(self, number: int) -> None:
        self.results.send(number)
        if number % self.modulus == self.modulus - 1:
            raise ValueError(f"no {number} here")


class Beacon(Node):
    """Has a timer and no end of its own: runs until it is told to stop."""

    numbers = Out(int)

    def __init__(self) -> None:
        self.next = 0

    @every("5ms")
    def tick(self) -> None:
        self.numbers.send(self.next)
        self.next += 1


class Environment(Node):
    """Writes what it knows of itself to `path` as JSON."""

    numbers = In(int)

    def __init__(self, path: str) -> None:
        self.path = path

    def on_numbers(self, number: int) -> None:
        facts = {
            "node": self.node,
            "replica": self.replica,
            "replicas": self.replicas,
            "cwd": os.getcwd(),
            "stdin": os.readlink("/proc/self/fd/0") if os.path.isdir("/proc/self/fd") else "",
            "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "env": os.environ.get("FLOWKIT_TEST_VALUE", ""),
        }
        Path(self.path).write_text(json.dumps(facts), encoding="utf-8")
