"""The nodes of tests of messages that kill, of handlers that hang, and of dead letters."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from flowkit import In, Meta, Node, Out
from tests.e2e.nodes import appeared, die


class Texts(Node):
    """Makes texts of numbers, so that a message has something to show."""

    numbers = In(int)
    texts = Out(str, key="")

    def on_numbers(self, number: int) -> None:
        self.texts.send(f"text {number}")


class Tires(Node):
    """Passes numbers on: at once up to `after`, and then one in `busy` seconds."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, after: int, busy: float) -> None:
        self.after = after
        self.busy = busy

    def on_numbers(self, number: int) -> None:
        if number > self.after:
            time.sleep(self.busy)
        self.results.send(number)


class Coroutines(Node):
    """Passes texts on from coroutines; those in `at` kill it, as `how` says, in the middle."""

    texts = In(str, concurrency=8)
    results = Out(str)

    def __init__(self, at: list[int], how: str = "segfault") -> None:
        self.at = {f"text {number}" for number in at}
        self.how = how

    async def on_texts(self, text: str) -> None:
        await asyncio.sleep(0)
        if text in self.at:
            die(self.how)
        await asyncio.sleep(0)
        self.results.send(text)


class Lists(Node):
    """Passes texts on from lists."""

    texts = In(str, batch=16)
    results = Out(str)

    def __init__(self, at: list[int], how: str = "segfault") -> None:
        self.at = {f"text {number}" for number in at}
        self.how = how

    def on_texts(self, texts: list[str]) -> None:
        if self.at & set(texts):
            die(self.how)
        for text in texts:
            self.results.send(text)


class Groups(Lists):
    """The same, from lists that wait for more."""

    texts = In(str, batch=16, within="20ms")


class One(Node):
    """Passes texts on, one by one."""

    texts = In(str)
    results = Out(str)

    def __init__(self, at: list[int], how: str = "segfault") -> None:
        self.at = {f"text {number}" for number in at}
        self.how = how

    def on_texts(self, text: str) -> None:
        if text in self.at:
            die(self.how)
        self.results.send(text)


class TextTally(Node):
    """Appends the texts it has got to `path`, in one go at the end."""

    stateful = True
    texts = In(str)

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: list[str] = []

    def on_texts(self, text: str) -> None:
        self.seen.append(text)

    def finish(self) -> None:
        Path(self.path).write_text("\n".join(self.seen))


class Endless(Node):
    """A coroutine that does not come back, for number `at`."""

    numbers = In(int, concurrency=4)
    results = Out(int)

    def __init__(self, at: int, gate: str) -> None:
        self.at = at
        self.gate = gate

    async def on_numbers(self, number: int) -> None:
        if number == self.at:
            await appeared(self.gate)
        self.results.send(number)


class Strict(Node):
    """Refuses numbers of which `modulus` divides the next, until the file `mended` exists.

    Says to `path` what it has handled: "REPLICA number id".
    """

    numbers = In(int)

    def __init__(self, path: str, modulus: int, mended: str, kill: bool = False) -> None:
        self.path = path
        self.modulus = modulus
        self.mended = mended
        self.kill = kill

    def on_numbers(self, number: int, meta: Meta) -> None:
        bad = number % self.modulus == self.modulus - 1
        if bad and not os.path.exists(self.mended):
            raise ValueError(f"no {number} here")
        if bad and self.kill:
            die("segfault")
        with open(self.path, "a") as file:
            file.write(f"{self.replica} {number} {meta.id}\n")
