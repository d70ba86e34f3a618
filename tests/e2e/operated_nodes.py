"""Nodes that are looked at and operated while they run."""

from __future__ import annotations

import asyncio
import logging
import os

from flowkit import In, Node, Out

log = logging.getLogger("tests.operated")


class Chatter(Node):
    """Prints numbered lines, `burst` at a time, and sends their numbers, until `until` exists; or
    it prints nothing more once the file `hush` exists."""

    numbers = Out(int)

    def __init__(self, until: str, burst: int = 10, hush: str = "", padding: int = 0) -> None:
        self.until = until
        self.burst = burst
        self.hush = hush
        self.padding = padding

    async def run(self) -> None:
        number = 0
        while not os.path.exists(self.until):
            if not self.hush or not os.path.exists(self.hush):
                lines = [f"line {number + each}{'.' * self.padding}" for each in range(self.burst)]
                print("\n".join(lines), flush=True)
                number += self.burst
            self.numbers.send(number)
            await asyncio.sleep(0.01)


class Critic(Node):
    """Has an opinion on every thousandth number, and fails on one."""

    numbers = In(int)

    def __init__(self, fails_at: int = -1) -> None:
        self.fails_at = fails_at
        self.seen = 0

    def on_numbers(self, number: int) -> None:
        self.seen += 1
        if self.seen == 1:
            log.warning("the first one is %d", number)
        if self.seen == self.fails_at:
            raise ValueError("this one is too much")
