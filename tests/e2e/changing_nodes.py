"""The nodes of a stream that is changed while it runs; they notice what is lost, doubled, or out
of order."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from flowkit import In, Many, Meta, Node, Out, Source, every

SIZE = 250

KEYS = 100


class Item(Struct):
    """The `number`th message; its key is its rest."""

    number: int
    key: int

    @classmethod
    def of(cls, number: int) -> Item:
        return cls(number, number % KEYS)


class Stream(Source):
    """Numbers in order, `count` of them, and until the file `enough` is there; `pause` seconds
    between two batches."""

    numbers = Out(Item)

    def __init__(self, enough: str, count: int = 0, pause: float = 0.0) -> None:
        self.enough = enough
        self.count = count
        self.pause = pause

    async def read(self, position: int | None) -> AsyncIterator[Any]:
        at = position or 0
        while at < self.count or not os.path.exists(self.enough):
            yield Many([Item.of(number) for number in range(at, at + SIZE)]), at + SIZE
            at += SIZE
            if self.pause:
                await asyncio.sleep(self.pause)


class Ticker(Node):
    """A source without positions."""

    numbers = Out(Item)

    def __init__(self, enough: str) -> None:
        self.enough = enough

    async def run(self) -> None:
        number = 0
        while not os.path.exists(self.enough):
            await self.numbers.room()
            self.numbers.send(Item.of(number))
            number += 1
            await asyncio.sleep(0.001)


class Pass(Node):
    """Sends on what it gets, multiplied."""

    numbers = In(Item)
    results = Out(tuple[int, int])

    def __init__(self, factor: int = 1, fail: str = "") -> None:
        self.factor = factor
        if fail == "init":
            raise ValueError("these settings are no good")
        self.fail = fail

    async def setup(self) -> None:
        if self.fail == "setup":
            raise ValueError("no luck today")

    def on_numbers(self, item: Item) -> None:
        self.results.send((item.number, self.factor))


class Stateful(Pass):
    """The same, and it says that it has state."""

    stateful = True

    def __init__(self, factor: int = 1) -> None:
        super().__init__(factor)
        self.seen = 0

    def on_numbers(self, item: Item) -> None:
        self.seen += 1
        super().on_numbers(item)

    @every("20ms")
    def tick(self) -> None:
        self.results.send((-1, self.factor))


class Grouping(Node):
    """Takes many at a time, and would wait a long time for them."""

    numbers = In(Item, batch=100_000, within=120.0)
    results = Out(tuple[int, int])

    def on_numbers(self, items: list[Item]) -> None:
        for item in items:
            self.results.send((item.number, 1))


class Stuck(Node):
    """Waits for a file, for ever if need be."""

    numbers = In(Item)
    results = Out(tuple[int, int])

    def __init__(self, gate: str) -> None:
        self.gate = gate

    async def on_numbers(self, item: Item) -> None:
        while not os.path.exists(self.gate):
            await asyncio.sleep(0.01)
        self.results.send((item.number, 1))


class Goodbye(Node):
    """Counts, and says at the end how much."""

    stateful = True
    numbers = In(Item)
    results = Out(tuple[int, int])

    def __init__(self) -> None:
        self.count = 0

    def on_numbers(self, item: Item) -> None:
        self.count += 1

    def finish(self) -> None:
        self.results.send((self.count, self.replica))


class Ledger(Node):
    """Writes down, for each key, whether all numbers came once and in order. What it knows it
    takes along to its next incarnation."""

    results = In(tuple[int, int])

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def setup(self) -> None:
        self.seen: dict[str, Any] = {"count": 0, "last": {}, "faults": [], "factors": {}}
        if self.path.exists():
            self.seen = json.loads(self.path.read_text())

    def on_results(self, result: tuple[int, int], meta: Meta) -> None:
        number, factor = result
        if number < 0:
            return
        seen = self.seen
        seen["count"] += 1
        seen["factors"][str(factor)] = seen["factors"].get(str(factor), 0) + 1
        key = str(number % KEYS)
        wanted = seen["last"].get(key, number % KEYS - KEYS) + KEYS
        if number != wanted and len(seen["faults"]) < 20:
            seen["faults"].append([wanted, number, meta.id])
        seen["last"][key] = number

    def teardown(self) -> None:
        self.path.write_text(json.dumps(self.seen))


class Bag(Node):
    """Keeps how often it saw each number."""

    results = In(tuple[int, int])

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seen: dict[int, int] = {}

    def on_results(self, result: tuple[int, int]) -> None:
        self.seen[result[0]] = self.seen.get(result[0], 0) + 1

    def teardown(self) -> None:
        counts = sorted(self.seen.values())
        numbers = list(self.seen)
        text = {"distinct": len(counts), "most": counts[-1] if counts else 0}
        text |= {"top": max(numbers, default=-1), "sum": sum(numbers)}
        text["total"] = sum(number * times for number, times in self.seen.items())
        self.path.write_text(json.dumps(text))
