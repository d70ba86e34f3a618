"""One producer, four consumers that get every message, through each library."""

from __future__ import annotations

from itertools import islice
from typing import Any

import zmq

from flowkit.bench.crew import context, run_crew
from flowkit.bench.hops import HIGH_WATER
from flowkit.bench.payload import messages
from flowkit.bench.project import run_project
from flowkit.bench.tally import Tally, figures
from flowkit.clock import monotonic

CONSUMERS = 4

ADDRESSES = [f"ipc://fan{number}" for number in range(CONSUMERS)]


def queues(count: int) -> dict[str, float]:
    """One `multiprocessing.Queue` for each consumer."""
    lanes: list[Any] = [context().Queue() for _ in range(CONSUMERS)]
    _, *tallies = run_crew(
        (_put, ([lane.put for lane in lanes], count)),
        *[(_get, (lane.get, count)) for lane in lanes],
    )
    for lane in lanes:
        lane.close()
    return figures(tallies, CONSUMERS * count)


def pipes(count: int) -> dict[str, float]:
    """One `multiprocessing.Pipe` for each consumer."""
    lanes: list[tuple[Any, Any]] = [context().Pipe(duplex=False) for _ in range(CONSUMERS)]
    _, *tallies = run_crew(
        (_put, ([writer.send_bytes for _, writer in lanes], count)),
        *[(_get, (reader.recv_bytes, count)) for reader, _ in lanes],
    )
    for lane in lanes:
        for end in lane:
            end.close()
    return figures(tallies, CONSUMERS * count)


def _put(puts: list[Any], count: int) -> None:
    for message in islice(messages("bytes"), count):
        for put in puts:
            put(message)


def _get(get: Any, count: int) -> Tally:
    get()
    first = monotonic()
    for _ in range(count - 1):
        get()
    return Tally(count, first, monotonic())


def pushes(count: int) -> dict[str, float]:
    """One PUSH and PULL for each consumer, in blocking loops."""
    _, *tallies = run_crew(
        (_push, (count,)), *[(_receive, (zmq.PULL, address, count)) for address in ADDRESSES]
    )
    return figures(tallies, CONSUMERS * count)


def _push(count: int) -> None:
    with zmq.Context() as ours:
        sockets = [ours.socket(zmq.PUSH) for _ in ADDRESSES]
        for socket, address in zip(sockets, ADDRESSES, strict=True):
            socket.sndhwm = HIGH_WATER
            socket.connect(address)
        _put([socket.send for socket in sockets], count)
        for socket in sockets:
            socket.close()


def subscribers(count: int) -> dict[str, float]:
    """XPUB, which is PUB that knows when all have subscribed, and SUB, in blocking loops."""
    _, *tallies = run_crew(
        (_publish, (count,)), *[(_receive, (zmq.SUB, ADDRESSES[0], count))] * CONSUMERS
    )
    return figures(tallies, CONSUMERS * count)


def _publish(count: int) -> None:
    with zmq.Context() as ours, ours.socket(zmq.XPUB) as socket:
        socket.sndhwm = HIGH_WATER
        socket.xpub_verboser = True
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.bind(ADDRESSES[0])
        for _ in range(CONSUMERS):
            socket.recv()
        _put([socket.send], count)


def _receive(kind: int, address: str, count: int) -> Tally:
    with zmq.Context() as ours, ours.socket(kind) as socket:
        socket.rcvhwm = HIGH_WATER
        if kind == zmq.SUB:
            socket.subscribe(b"")
            socket.connect(address)
        else:
            socket.bind(address)
        return _get(socket.recv, count)


def flowkit(count: int, route: str) -> dict[str, float]:
    """Four replicas by ``route: broadcast``, or four nodes in one list of inputs."""
    produce = {"use": "flowkit.bench.nodes:Produce", "with": {"count": count}}
    consume = "flowkit.bench.nodes:Consume"
    if route == "broadcast":
        _, words = run_project(
            {"produce": produce, "consume": {"use": consume, "replicas": CONSUMERS}},
            [{"from": "produce.messages", "to": "consume.messages", "route": route}],
        )
    else:
        names = [f"consume{number}" for number in range(CONSUMERS)]
        _, words = run_project(
            {"produce": produce, **{name: {"use": consume} for name in names}},
            [{"from": "produce.messages", "to": [f"{name}.messages" for name in names]}],
        )
    return figures(words.tallies, CONSUMERS * count)


def published(count: int) -> dict[str, float]:
    """Four replicas that subscribe to everything, with ``pattern: pubsub``: counted is what has
    arrived.

    Whoever is in the file gets what is published before its first session, so nobody has to wait
    for subscriptions.
    """
    report, words = run_project(
        {
            "produce": {"use": "flowkit.bench.nodes:Produce", "with": {"count": count}},
            "consume": {"use": "flowkit.bench.nodes:Consume", "replicas": CONSUMERS},
        },
        [{"from": "produce.messages", "to": "consume.messages", "pattern": "pubsub"}],
    )
    found = figures(words.tallies, CONSUMERS * count, lossy=True)
    # What the library says it has dropped is what has not arrived.
    if found["count"] + report.dropped != CONSUMERS * count:
        raise ValueError(
            f"{found['count']:,.0f} messages have arrived and {report.dropped:,} were dropped, "
            f"of {CONSUMERS * count:,}"
        )
    return found
