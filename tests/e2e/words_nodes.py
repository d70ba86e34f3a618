"""Nodes that log, print, wait and hold the loop, for the tests of what is heard of that."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from flowkit import In, Node, Out
from tests.e2e.nodes import appeared, die, first

log = logging.getLogger("trial.nodes")


class Talk(Node):
    """Logs at every level about message `at`, and fails at `fail`."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, at: int = 0, fail: int = -1) -> None:
        self.at = at
        self.fail = fail

    def setup(self) -> None:
        log.info("set up %s", self.replica)

    def on_numbers(self, number: int) -> None:
        if number == self.fail:
            raise ValueError("no good\nat all")
        if number == self.at:
            log.debug("not to be seen")
            log.warning("two\nlines")
            print("printed")
            try:
                raise KeyError(number)
            except KeyError:
                log.exception("caught")
        self.results.send(number)

    def teardown(self) -> None:
        log.info("torn down")


class LastWords(Node):
    """Logs `words` records about message `at`, and dies at once, the first time."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, at: int, marker: str, how: str, words: int) -> None:
        self.at = at
        self.marker = marker
        self.how = how
        self.words = words

    def on_numbers(self, number: int) -> None:
        if number == self.at and first(self.marker):
            for word in range(self.words):
                log.info("last word %d", word)
            die(self.how)
        self.results.send(number)


class Chatty(Node):
    """Logs about every message, at DEBUG."""

    numbers = In(int)
    results = Out(int)

    def on_numbers(self, number: int) -> None:
        log.debug("number %d", number)
        self.results.send(number)


class Holds(Node):
    """Holds the loop at message `at` until somebody makes a file: in a handler, or a coroutine."""

    numbers = In(int)
    results = Out(int)

    def __init__(self, at: int, gate: str) -> None:
        self.at = at
        self.gate = gate

    def on_numbers(self, number: int) -> None:
        if number == self.at:
            self.hold()
        self.results.send(number)

    def hold(self) -> None:
        while not os.path.exists(self.gate):
            time.sleep(0.005)


class HoldsLater(Node):
    """The same, in a handler that is a coroutine."""

    numbers = In(int, concurrency=4)
    results = Out(int)

    def __init__(self, at: int, gate: str) -> None:
        self.at = at
        self.gate = gate

    async def on_numbers(self, number: int) -> None:
        await asyncio.sleep(0)
        if number == self.at:
            while not os.path.exists(self.gate):
                time.sleep(0.005)
        self.results.send(number)


class Waits(Node):
    """Waits at message `at` for a file, and lets the loop turn."""

    numbers = In(int, concurrency=2)
    results = Out(int)

    def __init__(self, at: int, gate: str) -> None:
        self.at = at
        self.gate = gate

    async def on_numbers(self, number: int) -> None:
        if number == self.at:
            await appeared(self.gate)
        self.results.send(number)


class Traced(Node):
    """Sends numbers that all belong to one trace."""

    numbers = Out(int)

    def __init__(self, count: int, traceparent: str) -> None:
        self.count = count
        self.headers = {"traceparent": traceparent}

    async def run(self) -> None:
        for number in range(self.count):
            self.numbers.send(number, headers=self.headers)
            await self.numbers.room()


class Forks(Node):
    """Lets a process that it forks log something."""

    numbers = In(int)
    results = Out(int)

    def on_numbers(self, number: int) -> Any:
        if number == 0:
            pid = os.fork()
            if pid == 0:
                log.error("from a fork")
                os._exit(0)
            os.waitpid(pid, 0)
        self.results.send(number)
