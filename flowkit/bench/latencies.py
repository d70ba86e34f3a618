"""How old messages are when they arrive, through each library.

A message is a stamp of the sender's clock. With a `rate` the sender keeps to it: it wakes every
`TICK`, or when the next message is due if that is later, and sends what is due; without one it
floods, which tells what the hop can pass.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import zmq

from flowkit.bench.crew import context, run_crew
from flowkit.bench.hops import ADDRESS, HIGH_WATER
from flowkit.bench.project import run_project
from flowkit.bench.results import percentile
from flowkit.channels import In, Out
from flowkit.clock import monotonic, monotonic_ns
from flowkit.node import Node

TICK = 0.001
"""Seconds between two bursts. The system's timers are not much finer than that."""

FLOOD = 1000
"""Messages between two looks at the event loop when there is no rate to keep to."""

WARM_UP = 0.1
"""The share of messages that is not looked at: caches, code and credit are still cold."""

Figures = dict[str, float]


class Pacer:
    """How many messages are due: `rate` a second, from the first call on, `count` in all."""

    def __init__(self, count: int, rate: float | None) -> None:
        self.left = count
        self._rate = rate
        self._sent = 0
        self._began = 0.0

    def due(self) -> int:
        """How many to send now."""
        if self._rate is None:
            now = min(FLOOD, self.left)
        else:
            self._began = self._began or monotonic()
            wanted = 1 + int((monotonic() - self._began) * self._rate)
            now = min(wanted - self._sent, self.left)
        self._sent += now
        self.left -= now
        return now

    @property
    def pause(self) -> float:
        """Seconds until it is worth asking again."""
        if self._rate is None:
            return 0.0
        return max(TICK, self._began + self._sent / self._rate - monotonic())


def stamp() -> bytes:
    return monotonic_ns().to_bytes(8, "little")


def age(message: bytes) -> int:
    """Nanoseconds since `message` was made."""
    return monotonic_ns() - int.from_bytes(message, "little")


def figures(ages: list[int], first: float, last: float) -> Figures:
    """Percentiles in seconds, and the rate at which messages have arrived."""
    kept = sorted(ages[int(len(ages) * WARM_UP) :])
    seconds = last - first
    rate = (len(ages) - 1) / seconds if seconds > 0 else float("inf")
    return {
        "p50": percentile(kept, 0.5) / 1e9,
        "p99": percentile(kept, 0.99) / 1e9,
        "p999": percentile(kept, 0.999) / 1e9,
        "rate": rate,
        "sent": rate,
        "seconds": seconds,
        "count": float(len(ages)),
    }


def send_all(send: Callable[[bytes], object], count: int, rate: float | None) -> None:
    """The sender of a blocking loop."""
    pacer = Pacer(count, rate)
    while pacer.left:
        for _ in range(pacer.due()):
            send(stamp())
        if pause := pacer.pause:
            time.sleep(pause)


def receive_all(receive: Callable[[], bytes], count: int) -> Figures:
    """The receiver of a blocking loop."""
    ages = [age(receive())]
    first = monotonic()
    note = ages.append
    for _ in range(count - 1):
        note(age(receive()))
    return figures(ages, first, monotonic())


# ---------------------------------------------------------------------------- contestants


def pipe(count: int, rate: float | None = None) -> Figures:
    """`multiprocessing.Pipe`."""
    reader, writer = context().Pipe(duplex=False)
    _, found = run_crew(
        (send_all, (writer.send_bytes, count, rate)), (receive_all, (reader.recv_bytes, count))
    )
    reader.close()
    writer.close()
    return dict(found)


def pyzmq(count: int, rate: float | None = None) -> Figures:
    """PUSH and PULL over ipc, in blocking loops."""
    _, found = run_crew((_push, (count, rate)), (_pull, (count,)))
    return dict(found)


def _push(count: int, rate: float | None) -> None:
    with zmq.Context() as ours, ours.socket(zmq.PUSH) as socket:
        socket.sndhwm = HIGH_WATER
        socket.immediate = True
        socket.connect(ADDRESS)
        _wait_for_peer(socket)
        send_all(socket.send, count, rate)


def _wait_for_peer(socket: zmq.Socket[bytes]) -> None:
    """A socket that queues nothing before it is connected is writable once it is: so nothing grows
    old in the meantime."""
    socket.poll(flags=zmq.POLLOUT)


def _pull(count: int) -> Figures:
    with zmq.Context() as ours, ours.socket(zmq.PULL) as socket:
        socket.rcvhwm = HIGH_WATER
        socket.bind(ADDRESS)
        return receive_all(socket.recv, count)


def stream(count: int, rate: float | None = None) -> Figures:
    """`ZMQStream` on both sides, each in a Tornado loop."""
    _, found = run_crew((_run_stream, (True, count, rate)), (_run_stream, (False, count, rate)))
    return dict(found)


def _run_stream(sends: bool, count: int, rate: float | None) -> Figures | None:
    if sends:
        asyncio.run(_stream_out(count, rate))
        return None
    return asyncio.run(_stream_in(count))


async def _stream_out(count: int, rate: float | None) -> None:
    from zmq.eventloop.zmqstream import ZMQStream

    ours = zmq.Context()
    socket = ours.socket(zmq.PUSH)
    socket.sndhwm = HIGH_WATER
    socket.immediate = True
    socket.connect(ADDRESS)
    _wait_for_peer(socket)
    lane = ZMQStream(socket)
    pacer = Pacer(count, rate)
    while pacer.left:
        for _ in range(pacer.due()):
            lane.send(stamp())
        # Without a rate: its own queue has no bound, so what is in it goes first.
        while rate is None and lane.sending():
            await asyncio.sleep(0)
        await asyncio.sleep(pacer.pause)
    while lane.sending():
        await asyncio.sleep(0)
    lane.close()
    ours.term()


async def _stream_in(count: int) -> Figures:
    from zmq.eventloop.zmqstream import ZMQStream

    ours = zmq.Context()
    lane = ZMQStream(ours.socket(zmq.PULL))
    lane.socket.rcvhwm = HIGH_WATER
    lane.bind(ADDRESS)
    ages: list[int] = []
    first = 0.0
    over = asyncio.Event()

    def on_message(frames: list[bytes]) -> None:
        nonlocal first
        ages.append(age(frames[0]))
        if len(ages) == 1:
            first = monotonic()
        if len(ages) == count:
            over.set()

    lane.on_recv(on_message)
    await over.wait()
    last = monotonic()
    lane.close(linger=0)
    ours.term()
    return figures(ages, first, last)


class Stamp(Node):
    """Sends stamps of the clock, `rate` a second, or as many as there is room for."""

    stamps = Out(bytes)

    def __init__(self, count: int, rate: float | None = None) -> None:
        self.pacer = Pacer(count, rate)

    async def run(self) -> None:
        pacer, send = self.pacer, self.stamps.send
        while pacer.left:
            for _ in range(pacer.due()):
                send(stamp())
            if pause := pacer.pause:
                await asyncio.sleep(pause)
            await self.stamps.room()


class Age(Node):
    """Looks how old stamps are; prints the figures at the end."""

    stamps = In(bytes)

    def __init__(self) -> None:
        self.ages: list[int] = []
        self.first = self.last = 0.0

    def on_stamps(self, message: bytes) -> None:
        self.ages.append(age(message))
        if len(self.ages) == 1:
            self.first = monotonic()

    def finish(self) -> None:
        print(json.dumps(figures(self.ages, self.first, monotonic())), flush=True)


def flowkit(count: int, rate: float | None = None) -> Figures:
    """`Stamp` and `Age`, acknowledged."""
    settings = {"count": count} if rate is None else {"count": count, "rate": rate}
    _, words = run_project(
        {
            "stamp": {"use": "flowkit.bench.latencies:Stamp", "with": settings},
            "age": {"use": "flowkit.bench.latencies:Age"},
        },
        [{"from": "stamp.stamps", "to": "age.stamps"}],
    )
    (found,) = words.found
    return found
