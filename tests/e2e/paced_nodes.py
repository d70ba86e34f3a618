"""Nodes that are slow in one way or another, for what is measured and said of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from flowkit import In, Node, Out, Sink, Source


class Endless(Source):
    """Numbers without an end, as fast as they are taken."""

    numbers = Out(int)

    def read(self, position: int | None) -> Iterator[tuple[int, int]]:
        number = position or 0
        while True:
            yield number, number + 1
            number += 1


class Trickle(Source):
    """A number now and then: most of the time it waits for the next one."""

    numbers = Out(int)

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds

    async def read(self, position: int | None) -> AsyncIterator[tuple[int, int]]:
        number = position or 0
        while True:
            await asyncio.sleep(self.seconds)
            yield number, number + 1
            number += 1


class Paced(Node):
    """Passes numbers on, each after a while."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def on_numbers(self, number: int) -> None:
        if self.seconds:
            time.sleep(self.seconds)
        self.results.send(number)


class Keyed(Node):
    """Gives numbers a key: nearly all of them the same."""

    numbers = In(int)
    results = Out(int)

    def on_numbers(self, number: int) -> None:
        self.results.send(number, key=0 if number % 50 else number)


class Ends(Node):
    """Takes numbers, each for a while."""

    numbers = In(int)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def on_numbers(self, number: int) -> None:
        if self.seconds:
            time.sleep(self.seconds)


class Counts(Ends):
    """The same, with something in memory."""

    stateful = True


class Fetches(Node):
    """Waits for something outside, for many numbers at once."""

    numbers = In(int, concurrency=100)

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds

    async def on_numbers(self, number: int) -> None:
        await asyncio.sleep(self.seconds)


class Commits(Sink):
    """Handles numbers in no time, and takes its time to make them durable."""

    numbers = In(int)

    def on_numbers(self, number: int) -> None:
        pass

    def commit(self) -> Any:
        time.sleep(0.05)
