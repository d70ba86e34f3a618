"""The nodes of tests of durable links: a source that answers to the outside, workers that die."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from flowkit import In, Meta, Node, Out, Sink, Source
from tests.e2e.nodes import appeared, first

TURN = 0.002


class Push(Source):
    """Somebody pushes numbers, and is answered when they are safe, here by a line in `answers`.

    Nobody pushes a number again: what was answered and is lost, is lost for good. Numbers go on
    where the last incarnation stopped, since `pushed` says how many there were.
    """

    numbers = Out(int)

    def __init__(self, answers: str, pushed: str, until: str) -> None:
        self.answers = answers
        self.pushed = pushed
        self.until = until

    def setup(self) -> None:
        self.file = os.open(self.answers, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.log = os.open(self.pushed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    async def read(self, position: Any) -> Any:
        # Eight bytes for every number, written before it goes anywhere: none is used twice.
        number = os.fstat(self.log).st_size // 8
        while not os.path.exists(self.until):
            for _ in range(16):
                os.write(self.log, b"%07d\n" % number)
                yield number, number
                number += 1
            await asyncio.sleep(TURN)

    def commit(self, position: Any) -> None:
        os.write(self.file, f"{position}\n".encode())

    def teardown(self) -> None:
        os.close(self.file)
        os.close(self.log)


class Dying(Node):
    """Passes numbers on. At number `at` it dies, once, between journaling what it has sent and
    acknowledging what that was made of."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, at: int, marker: str) -> None:
        self.at = at
        self.marker = marker

    def on_numbers(self, number: int) -> None:
        self.results.send(number)
        if number == self.at and first(self.marker):
            # Not before this turn of the loop has ended, and not later.
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGKILL)


class Slow(Sink):
    """Writes "number id" lines to `path`; keeps them for itself until the file `gate` exists."""

    numbers = In(int, concurrency=4)

    def __init__(self, path: str, gate: str) -> None:
        self.path = path
        self.gate = gate

    async def on_numbers(self, number: int, meta: Meta) -> None:
        await appeared(self.gate)
        with open(self.path, "a") as file:
            file.write(f"{number} {meta.id}\n")


class Bulk(Node):
    """Makes `size` bytes of every number."""

    numbers = In(int)
    results = Out(bytes)

    def __init__(self, size: int) -> None:
        self.size = size

    def on_numbers(self, number: int) -> None:
        self.results.send(b"%08d" % number + bytes(self.size))


class BulkSink(Node):
    """Counts what a `Bulk` makes, when the file `gate` exists; writes it to `path` at the end."""

    stateful = True
    numbers = In(bytes, concurrency=4)

    def __init__(self, path: str, gate: str) -> None:
        self.path = path
        self.gate = gate
        self.seen: list[int] = []

    async def on_numbers(self, message: bytes) -> None:
        await appeared(self.gate)
        self.seen.append(int(message[:8]))

    def finish(self) -> None:
        Path(self.path).write_text(" ".join(map(str, sorted(self.seen))))
