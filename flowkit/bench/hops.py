"""One producer, one consumer: the same hop, through each library.

Every function here is run in a process of its own, starts a producer and a consumer as further
processes, and returns the figures of `tally.figures`. All are measured in the consumer, from its
first message to its last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import zmq

from flowkit import mp
from flowkit.bench.crew import context, run_crew
from flowkit.bench.payload import SHORT, Reading, messages
from flowkit.bench.project import run_project
from flowkit.bench.tally import Tally, figures, received
from flowkit.clock import monotonic

BUFFERED = 64 << 20
"""Bytes that may be on their way where messages are large; flowkit's own default."""

HIGH_WATER = 100_000
"""Messages that pyzmq may queue on each side. Its default, 1,000, makes both sides stop and go."""

ADDRESS = "ipc://hop"
"""In the current directory, which is the round's own."""

Figures = dict[str, float]


# ---------------------------------------------------------------------------- multiprocessing


def queue(count: int, kind: str = "bytes", ours: bool = False) -> Figures:
    """`multiprocessing.Queue`, or `flowkit.mp.Queue`."""
    lane: Any = mp.Queue(ctx=context()) if ours else context().Queue()
    _, tally = run_crew((_put, (lane, count, kind)), (_get, (lane, count)))
    lane.close()
    return figures([tally], count)


def _put(lane: Any, count: int, kind: str) -> None:
    put = lane.put
    for message in islice(messages(kind), count):
        put(message)


def _get(lane: Any, count: int) -> Tally:
    return received(lane.get, count)


def pipe(
    count: int, kind: str = "bytes", size: int = SHORT, ours: bool = False, pickled: bool = False
) -> Figures:
    """`multiprocessing.Pipe`, or `flowkit.mp.Pipe`: `send_bytes` for bytes that are not to be
    `pickled`, else `send`."""
    reader, writer = mp.Pipe(duplex=False) if ours else context().Pipe(duplex=False)
    plain = kind == "bytes" and not pickled
    _, tally = run_crew(
        (_write, (writer, count, kind, size, plain)), (_read, (reader, count, plain))
    )
    reader.close()
    writer.close()
    return figures([tally], count, size if plain else 0)


def _write(writer: Any, count: int, kind: str, size: int, plain: bool) -> None:
    send = writer.send_bytes if plain else writer.send
    for message in islice(messages(kind, size), count):
        send(message)


def _read(reader: Any, count: int, plain: bool) -> Tally:
    return received(reader.recv_bytes if plain else reader.recv, count)


# ---------------------------------------------------------------------------- pyzmq


def pyzmq(count: int, kind: str = "bytes", size: int = SHORT, copy: bool = True) -> Figures:
    """PUSH and PULL over ipc, in blocking loops; objects as msgpack, by msgspec."""
    _, tally = run_crew(
        (push, (ADDRESS, count, kind, size, copy)), (_pull, (ADDRESS, count, kind, size, copy))
    )
    return figures([tally], count, size if kind == "bytes" else 0)


def pyzmq_pickle(count: int, kind: str) -> Figures:
    """PUSH and PULL over ipc with `send_pyobj` and `recv_pyobj`."""
    _, tally = run_crew((_push_pickled, (ADDRESS, count, kind)), (_pull_pickled, (ADDRESS, count)))
    return figures([tally], count)


def high_water(size: int) -> int:
    """How many messages of `size` may wait on one side of a socket."""
    return max(2, min(HIGH_WATER, BUFFERED // size))


def push(address: str, count: int, kind: str, size: int, copy: bool) -> None:
    """Connect to `address` and send `count` messages."""
    with zmq.Context() as ours, ours.socket(zmq.PUSH) as socket:
        socket.sndhwm = high_water(size)
        socket.connect(address)
        send = socket.send
        if kind == "bytes" and copy:
            for message in islice(messages(kind, size), count):
                send(message)
        elif kind == "bytes":
            for message in islice(messages(kind, size), count):
                send(message, copy=False)
        else:
            encode = msgspec.msgpack.Encoder().encode
            for message in islice(messages(kind, size), count):
                send(encode(message))


def _pull(address: str, count: int, kind: str, size: int, copy: bool) -> Tally:
    with zmq.Context() as ours, ours.socket(zmq.PULL) as socket:
        socket.rcvhwm = high_water(size)
        socket.bind(address)
        receive = socket.recv
        if kind == "bytes":
            return received(receive if copy else partial(receive, copy=False), count)
        # Not through a function that does both: it would be a call more than one would write.
        type_: Any = Reading if kind == "struct" else dict[str, Any]
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(type_).decode
        decode(receive())
        first = monotonic()
        for _ in range(count - 1):
            decode(receive())
        return Tally(count, first, monotonic())


def _push_pickled(address: str, count: int, kind: str) -> None:
    with zmq.Context() as ours, ours.socket(zmq.PUSH) as socket:
        socket.sndhwm = HIGH_WATER
        socket.connect(address)
        send = socket.send_pyobj
        for message in islice(messages(kind), count):
            send(message)


def _pull_pickled(address: str, count: int) -> Tally:
    with zmq.Context() as ours, ours.socket(zmq.PULL) as socket:
        socket.rcvhwm = HIGH_WATER
        socket.bind(address)
        return received(socket.recv_pyobj, count)


# ---------------------------------------------------------------------------- ZMQStream


def stream(count: int) -> Figures:
    """A blocking PUSH, and a `ZMQStream` whose `on_recv` is called for each message."""
    _, tally = run_crew((push, (ADDRESS, count, "bytes", SHORT, True)), (_listen, (ADDRESS, count)))
    return figures([tally], count)


def _listen(address: str, count: int) -> Tally:
    return asyncio.run(_listen_on_loop(address, count))


async def _listen_on_loop(address: str, count: int) -> Tally:
    from zmq.eventloop.zmqstream import ZMQStream

    ours = zmq.Context()
    lane = ZMQStream(ours.socket(zmq.PULL))
    lane.socket.rcvhwm = HIGH_WATER
    lane.bind(address)
    seen, first = 0, 0.0
    over = asyncio.Event()

    def on_message(frames: list[bytes]) -> None:
        nonlocal seen, first
        if not seen:
            first = monotonic()
        seen += 1
        if seen == count:
            over.set()

    lane.on_recv(on_message)
    await over.wait()
    last = monotonic()
    lane.close(linger=0)
    ours.term()
    return Tally(seen, first, last)


# ---------------------------------------------------------------------------- flowkit


def flowkit(
    count: int,
    produce: str = "Produce",
    consume: str = "Consume",
    size: int = SHORT,
    **link: Any,
) -> Figures:
    """Two nodes of `flowkit.bench.nodes`; `link` is what the topology says of their link."""
    settings = {"count": count} if size == SHORT else {"count": count, "size": size}
    _, words = run_project(
        {
            "produce": {"use": f"flowkit.bench.nodes:{produce}", "with": settings},
            "consume": {"use": f"flowkit.bench.nodes:{consume}"},
        },
        [{"from": "produce.messages", "to": "consume.messages", **link}],
    )
    return figures(words.tallies, count, size if produce in ("Produce", "ProduceMany") else 0)
