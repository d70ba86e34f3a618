"""The nodes that are measured: what a user would write, and nothing else.

Consumers print what they have seen as one line of JSON when their input has ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from flowkit.bench.payload import SHORT, Reading, messages
from flowkit.bench.tally import Tally
from flowkit.channels import In, Out, OutPort
from flowkit.clock import monotonic
from flowkit.node import Node

T = TypeVar("T")

BLOCK = 1000
"""So many messages are sent between two looks at whether there is room,"""

BLOCK_BYTES = 1 << 20
"""or about so many bytes."""


class Produce(Node):
    """Sends `count` messages of `size` bytes, with one `send` each."""

    messages = Out(bytes)

    def __init__(self, count: int, size: int = SHORT) -> None:
        self.count = count
        self.size = size

    async def run(self) -> None:
        await _send(self.messages, messages("bytes", self.size), self.count, self.size)


class ProduceMany(Node):
    """Sends lists of messages, with `send_many`."""

    messages = Out(bytes)

    def __init__(self, count: int) -> None:
        self.count = count

    async def run(self) -> None:
        stream = messages("bytes")
        for start in range(0, self.count, BLOCK):
            self.messages.send_many(list(islice(stream, min(BLOCK, self.count - start))))
            await self.messages.room()


class ProduceDicts(Node):
    """Sends dictionaries of three fields."""

    messages = Out(dict[str, Any])

    def __init__(self, count: int) -> None:
        self.count = count

    async def run(self) -> None:
        await _send(self.messages, messages("dict"), self.count)


class ProduceStructs(Node):
    """Sends instances of a `msgspec.Struct` of three fields."""

    messages = Out(Reading)

    def __init__(self, count: int) -> None:
        self.count = count

    async def run(self) -> None:
        await _send(self.messages, messages("struct"), self.count)


async def _send(port: OutPort[T], stream: Iterator[T], count: int, size: int = SHORT) -> None:
    send = port.send
    block = max(1, min(BLOCK, BLOCK_BYTES // size))
    for start in range(0, count, block):
        for message in islice(stream, min(block, count - start)):
            send(message)
        await port.room()


class _Counter:
    """What a consumer remembers, and prints."""

    count = 0
    first = 0.0

    def finish(self) -> None:
        # The end of the stream comes after the last message, so this is later than that.
        tally = Tally(self.count, self.first, monotonic())
        print(json.dumps(tally.as_dict()), flush=True)


class Consume(_Counter, Node):
    """Counts messages, one call of the handler for each."""

    messages = In(bytes)

    def on_messages(self, message: bytes) -> None:
        if not self.count:
            self.first = monotonic()
        self.count += 1


class ConsumeBatches(_Counter, Node):
    """Counts messages, one call of the handler for a list of them."""

    messages = In(bytes, batch=BLOCK)

    def on_messages(self, batch: list[bytes]) -> None:
        if not self.count:
            self.first = monotonic()
        self.count += len(batch)


class ConsumeDicts(_Counter, Node):
    """Counts dictionaries."""

    messages = In(dict[str, Any])

    def on_messages(self, message: dict[str, Any]) -> None:
        if not self.count:
            self.first = monotonic()
        self.count += 1


class ConsumeStructs(_Counter, Node):
    """Counts instances of a `msgspec.Struct`, validated on receipt."""

    messages = In(Reading)

    def on_messages(self, message: Reading) -> None:
        if not self.count:
            self.first = monotonic()
        self.count += 1


class Work(Node):
    """Hands on what it gets, in capitals."""

    messages = In(bytes)
    worked = Out(bytes)

    def on_messages(self, message: bytes) -> None:
        self.worked.send(message.upper())


class Idle(Node):
    """A source of nothing, until it is told to stop."""

    messages = Out(bytes)

    async def run(self) -> None:
        await asyncio.Event().wait()
