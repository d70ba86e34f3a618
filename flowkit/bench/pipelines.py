"""A ventilator, workers, a sink: the same pipeline, through each library.

Through queues the ventilator ends the stream with one empty message for each worker, which hands it
on. PUSH does not promise which worker gets what, so with pyzmq the sink counts, and then they end.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import zmq

from flowkit.bench.crew import context, run_crew
from flowkit.bench.hops import HIGH_WATER
from flowkit.bench.payload import messages
from flowkit.bench.project import run_project
from flowkit.bench.tally import Tally, figures, received
from flowkit.clock import monotonic

WORKERS = 2

END = b""

TASKS, RESULTS, READY = "ipc://tasks", "ipc://results", "ipc://ready"
"""In the current directory, which is the round's own."""


def queue(count: int) -> dict[str, float]:
    """Two `multiprocessing.Queue`s, from one to many and from many to one."""
    tasks: Any = context().Queue()
    results: Any = context().Queue()
    *_, tally = run_crew(
        (_put, (tasks, count)),
        *[(_get_and_put, (tasks, results))] * WORKERS,
        (_get, (results,)),
    )
    tasks.close()
    results.close()
    return figures([tally], count)


def _put(tasks: Any, count: int) -> None:
    put = tasks.put
    for message in islice(messages("bytes"), count):
        put(message)
    for _ in range(WORKERS):
        put(END)


def _get_and_put(tasks: Any, results: Any) -> None:
    get, put = tasks.get, results.put
    while message := get():
        put(message.upper())
    put(END)


def _get(results: Any) -> Tally:
    get = results.get
    get()
    first = monotonic()
    count, left = 1, WORKERS
    while left:
        if get():
            count += 1
        else:
            left -= 1
    return Tally(count, first, monotonic())


def pyzmq(count: int) -> dict[str, float]:
    """PUSH to workers, PUSH to the sink, in blocking loops."""
    _, tally = run_crew(
        (_ventilate, (count,)), (_collect, (count,)), endless=[(_work, ())] * WORKERS
    )
    return figures([tally], count)


def _ventilate(count: int) -> None:
    with zmq.Context() as ours, ours.socket(zmq.PUSH) as socket:
        socket.sndhwm = HIGH_WATER
        socket.bind(TASKS)
        with ours.socket(zmq.PULL) as ready:
            ready.bind(READY)
            for _ in range(WORKERS):
                ready.recv()
        send = socket.send
        for message in islice(messages("bytes"), count):
            send(message)


def _work() -> None:
    with (
        zmq.Context() as ours,
        ours.socket(zmq.PULL) as tasks,
        ours.socket(zmq.PUSH) as results,
        ours.socket(zmq.PUSH) as ready,
    ):
        tasks.rcvhwm = results.sndhwm = HIGH_WATER
        tasks.connect(TASKS)
        results.connect(RESULTS)
        ready.connect(READY)
        ready.send(b"")
        receive, send = tasks.recv, results.send
        while True:
            send(receive().upper())


def _collect(count: int) -> Tally:
    with zmq.Context() as ours, ours.socket(zmq.PULL) as results:
        results.rcvhwm = HIGH_WATER
        results.bind(RESULTS)
        return received(results.recv, count)


def flowkit(count: int, workers: int = WORKERS, stages: int = 1) -> dict[str, float]:
    """`Produce`, `stages` pools of `workers` replicas of `Work`, and `Consume`."""
    nodes: dict[str, Mapping[str, Any]] = {
        "ventilate": {"use": "flowkit.bench.nodes:Produce", "with": {"count": count}}
    }
    links, before = [], "ventilate.messages"
    for number in range(stages):
        nodes[f"work{number}"] = {"use": "flowkit.bench.nodes:Work", "replicas": workers}
        links.append({"from": before, "to": f"work{number}.messages"})
        before = f"work{number}.worked"
    nodes["sink"] = {"use": "flowkit.bench.nodes:Consume"}
    links.append({"from": before, "to": "sink.messages"})
    _, words = run_project(nodes, links)
    return figures(words.tallies, count)
