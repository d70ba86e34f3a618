"""A plain PUSH socket outside, and a node that listens to it."""

from __future__ import annotations

import asyncio

import zmq

from flowkit.bench.crew import run_crew
from flowkit.bench.hops import HIGH_WATER, push
from flowkit.bench.nodes import BLOCK
from flowkit.bench.payload import SHORT
from flowkit.bench.project import run_project
from flowkit.bench.tally import Tally, figures
from flowkit.channels import Out
from flowkit.node import Node

ADDRESS = "ipc://foreign"
"""In the current directory, which is the round's own."""


class Listen(Node):
    """Sends on what comes in at a PULL socket bound to `address`, until `count` messages did."""

    messages = Out(bytes)

    def __init__(self, address: str, count: int) -> None:
        self.address = address
        self.count = count

    def setup(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PULL)
        self.socket.rcvhwm = HIGH_WATER
        self.socket.bind(self.address)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        # The descriptor reports edges, so the socket is read until it has nothing more.
        loop.add_reader(self.socket.fileno(), readable.set)
        try:
            while self.count:
                if self._drain():
                    await self.messages.room()
                elif self.count and not self.socket.poll(0):
                    await readable.wait()
                    readable.clear()
        finally:
            loop.remove_reader(self.socket.fileno())

    def _drain(self) -> int:
        """Send on a block of what is there; return how many messages."""
        receive, send = self.socket.recv, self.messages.send
        taken = 0
        try:
            while taken < min(BLOCK, self.count):
                send(receive(zmq.NOBLOCK))
                taken += 1
        except zmq.Again:
            pass
        self.count -= taken
        return taken

    def teardown(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


def flowkit(count: int) -> dict[str, float]:
    """A foreign PUSH, `Listen`, and `Consume`."""
    [_, tallies] = run_crew((_push, (count,)), (_listen, (count,)))
    return figures(tallies, count)


def _push(count: int) -> None:
    push(ADDRESS, count, "bytes", SHORT, True)


def _listen(count: int) -> list[Tally]:
    _, words = run_project(
        {
            "listen": {
                "use": "flowkit.bench.foreign:Listen",
                "with": {"address": ADDRESS, "count": count},
            },
            "consume": {"use": "flowkit.bench.nodes:Consume"},
        },
        [{"from": "listen.messages", "to": "consume.messages"}],
    )
    return words.tallies
