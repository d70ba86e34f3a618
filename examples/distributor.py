"""Search numbers whose SHA-256 begins with zeros. The nodes of work_distributor.yaml."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from msgspec import Struct

from flowkit import In, Node, Out, Source

STOP = b"STOP"


class Task(Struct, frozen=True):
    """The numbers from `first`, `count` of them."""

    first: int
    count: int


class Result(Struct, frozen=True):
    """What became of a task: the number that was found, if one was, or that nobody looked."""

    task: Task
    found: int | None = None
    searched: bool = True


class Ventilator(Source):
    """Hands out tasks; the position is the next number."""

    tasks = Out(Task)

    def __init__(self, limit: int = 10_000_000, size: int = 5_000) -> None:
        self.limit = limit
        self.size = size

    def read(self, position: int | None) -> Iterator[tuple[Task, int]]:
        for first in range(position or 0, self.limit, self.size):
            count = min(self.size, self.limit - first)
            yield Task(first, count), first + count


class Worker(Node):
    """Searches the numbers of a task, until somebody says that enough is known."""

    tasks = In(Task)
    control = In(bytes)
    results = Out(Result)

    def __init__(self, text: str = "flowkit", bits: int = 20) -> None:
        self.prefix = f"{text}:".encode()
        self.bound = 1 << (256 - bits)
        self.stopped = False

    def on_control(self, word: bytes) -> None:
        self.stopped = self.stopped or word == STOP

    def on_tasks(self, task: Task) -> None:
        if self.stopped:
            self.results.send(Result(task, searched=False))
            return
        self.results.send(Result(task, self.search(task)))

    def search(self, task: Task) -> int | None:
        """The first number of `task` whose hash is below the bound."""
        for number in range(task.first, task.first + task.count):
            digest = hashlib.sha256(self.prefix + b"%d" % number).digest()
            if int.from_bytes(digest) < self.bound:
                return number
        return None


class Sink(Node):
    """Collects results; from the first find on it stops the workers."""

    stateful = True

    results = In(Result)
    control = Out(bytes)

    def __init__(self) -> None:
        self.found: list[int] = []
        self.searched = self.skipped = 0

    def on_results(self, result: Result) -> None:
        self.searched += result.searched
        self.skipped += not result.searched
        if result.found is not None:
            self.found.append(result.found)
        if self.found and result.searched:
            # Once more for each that has not heard it: a SUB may connect after a PUB has sent.
            self.control.send(STOP)

    def finish(self) -> None:
        print(f"found {min(self.found)}" if self.found else "found nothing")
        print(f"{self.searched:,} tasks searched, {self.skipped:,} skipped")
