"""A plain PUSH socket outside, and a node that listens to it, or has an endpoint for it."""

from __future__ import annotations

import asyncio
import json

import zmq

from flowkit.bench.crew import run_crew
from flowkit.bench.hops import HIGH_WATER, push
from flowkit.bench.nodes import BLOCK
from flowkit.bench.payload import SHORT
from flowkit.bench.project import run_project
from flowkit.bench.tally import Tally, figures
from flowkit.channels import In, Out
from flowkit.clock import monotonic
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


class Receive(Node):
    """Counts messages, and ends the project with the last of them: an endpoint has no end."""

    messages = In(bytes)

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self.first = self.last = 0.0

    def on_messages(self, message: bytes) -> None:
        if not self.seen:
            self.first = monotonic()
        self.seen += 1
        if self.seen == self.count:
            self.last = monotonic()
            self.drain()

    def finish(self) -> None:
        print(json.dumps(Tally(self.seen, self.first, self.last).as_dict()), flush=True)


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


def endpoint(count: int) -> dict[str, float]:
    """A foreign PUSH, and a node whose input has an endpoint, as the topology says."""
    [_, tallies] = run_crew((_push, (count,)), (_receive, (count,)))
    return figures(tallies, count)


def _receive(count: int) -> list[Tally]:
    _, words = run_project(
        {"receive": {"use": "flowkit.bench.foreign:Receive", "with": {"count": count}}},
        [],
        endpoints=[
            {
                "channel": "receive.messages",
                "socket": "PULL",
                "bind": ADDRESS,
                "options": {"rcvhwm": HIGH_WATER},
            }
        ],
    )
    return words.tallies
