"""What one hop between two processes costs.

Usage: ``PYTHONPATH=. python tests/bench/transport.py [memory] [ipc] [tcp]``

Sends 60-byte headers with bodies of several sizes from a binding to a connection in another
process, both on event loops, with a bound on what is under way as credit would set it; then
measures the round trip of single messages. Prints the time per message and the bytes per second.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flowkit.transport.base import Binding, Transport
from flowkit.transport.memory import MemoryHub, MemoryTransport
from flowkit.transport.zmq import ZmqTransport

HEADER = b"h" * 60
WINDOW = 64


class Echo:
    """The far side: acknowledges every eighth message, echoes what is marked for it."""

    def __init__(self, transport: Transport, address: str, done: asyncio.Event) -> None:
        self.done = done
        self.heard = 0
        self.connection = transport.connect(address, self.on_message)
        self.connection.send([b"hello", b""])

    def on_message(self, parts: list[bytes]) -> None:
        if parts[0] == b"echo":
            self.connection.send(parts)
        elif parts[0] == b"end":
            self.done.set()
        else:
            self.heard += 1
            if self.heard % 8 == 0:
                self.connection.send([b"ack", self.heard.to_bytes(8, "big")])


class Near:
    """The near side: keeps `WINDOW` messages under way."""

    def __init__(self, transport: Transport) -> None:
        self.binding: Binding = transport.bind("bench", self.on_message)
        self.peer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.acked = self.sent = self.total = 0
        self.body = b""
        self.done = asyncio.Event()
        self.echo = asyncio.Event()

    def on_message(self, peer: bytes, parts: list[bytes]) -> None:
        if parts[0] == b"ack":
            self.acked = int.from_bytes(parts[1], "big")
            self.fill(peer)
        elif parts[0] == b"echo":
            self.echo.set()
        else:
            self.peer.set_result(peer)

    def fill(self, peer: bytes) -> None:
        limit = min(self.total, self.acked + WINDOW)
        while self.sent < limit:
            self.binding.send(peer, [HEADER, self.body])
            self.sent += 1
        if self.acked >= self.total:
            self.done.set()

    async def stream(self, count: int, size: int) -> float:
        peer = await self.peer
        self.body = b"b" * size
        self.total += count
        self.done.clear()
        start = time.perf_counter()
        self.fill(peer)
        await self.done.wait()
        return (time.perf_counter() - start) / count

    async def round_trip(self) -> float:
        peer = await self.peer
        times = []
        for _ in range(2000):
            start = time.perf_counter()
            self.echo.clear()
            self.binding.send(peer, [b"echo", b""])
            await self.echo.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


async def measure(near: Near) -> None:
    for size, count in ((100, 80_000), (8192, 40_000), (65536, 8_000), (1 << 20, 800)):
        cpu = time.process_time()
        took = await near.stream(count, size)
        cpu = (time.process_time() - cpu) / count
        print(
            f"{size:>8} bytes: {took * 1e6:8.1f} us per message, {1 / took:>9,.0f}/s, "
            f"{size / took / 1e6:>7,.0f} MB/s, {cpu * 1e6:6.1f} us of this side's processor"
        )
    print(f"round trip: {await near.round_trip() * 1e6:.0f} us")
    near.binding.send(await near.peer, [b"end", b""])


def far(directory: Path, address: str) -> None:
    async def run() -> None:
        transport = ZmqTransport(directory)
        done = asyncio.Event()
        Echo(transport, address, done)
        await done.wait()
        transport.close()
        transport.join()

    asyncio.run(run())


async def processes(directory: Path, tcp: bool) -> None:
    transport = ZmqTransport(directory, tcp=tcp)
    near = Near(transport)
    child = multiprocessing.get_context("spawn").Process(
        target=far, args=(directory, near.binding.address)
    )
    child.start()
    await measure(near)
    await asyncio.to_thread(child.join)
    transport.close()
    transport.join()


async def memory() -> None:
    hub = MemoryHub()
    near = Near(MemoryTransport(hub))
    Echo(MemoryTransport(hub), near.binding.address, asyncio.Event())
    await measure(near)


def main() -> None:
    for kind in sys.argv[1:] or ["memory", "ipc", "tcp"]:
        print(kind)
        if kind == "memory":
            asyncio.run(memory())
            continue
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(processes(Path(directory), tcp=kind == "tcp"))


if __name__ == "__main__":
    main()
