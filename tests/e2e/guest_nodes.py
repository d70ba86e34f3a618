"""Nodes that applications attach, and an application to be hurt."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import flowkit
from flowkit import In, Meta, Node, Out, Sink


class Feed(Node):
    """What an application sends."""

    events = Out(int)


class Double(Node):
    """The work in between."""

    events = In(int)
    results = Out(int)

    def on_events(self, event: int) -> None:
        self.results.send(2 * event)


class Keep(Sink):
    """Appends what comes to a file, with the id of each message."""

    results = In(int)

    def __init__(self, path: str) -> None:
        self.file = open(path, "a", encoding="utf-8")

    def on_results(self, result: int, meta: Meta) -> None:
        self.file.write(f"{meta.id} {result}\n")

    def commit(self) -> None:
        self.file.flush()

    def teardown(self) -> None:
        self.file.close()


class Show(Node):
    """What an application gets to see. With `gate` nothing is done before that file exists."""

    results = In(int)

    def __init__(self, gate: str = "") -> None:
        self.gate = gate
        self.seen: list[int] = []
        self.begun = 0

    async def on_results(self, result: int) -> None:
        self.begun += 1
        while self.gate and not os.path.exists(self.gate):
            await asyncio.sleep(0.01)
        self.seen.append(result)


class Fails(Node):
    """Raises in `setup` as long as it is to."""

    results = In(int)

    def __init__(self) -> None:
        self.broken = True
        self.seen: list[int] = []
        self.setups = 0

    def setup(self) -> None:
        self.setups += 1
        if self.broken:
            raise LookupError("the disk is gone")

    def on_results(self, result: int) -> None:
        self.seen.append(result)


async def application(gate: str, log: str) -> None:
    """Attaches a `Show` and writes down what it has seen, until it is killed."""
    show = Show(gate)
    async with flowkit.attach(show, project="trial", wait=True):
        Path(log).write_text("attached")
        while True:
            await asyncio.sleep(0.01)
            Path(log).write_text(f"begun {show.begun} seen {len(show.seen)}")


if __name__ == "__main__":
    asyncio.run(application(*sys.argv[1:]))
