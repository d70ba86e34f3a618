"""How projects start, and what they take while they are idle."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

import psutil

from flowkit.bench.crew import context, die_with_parent
from flowkit.bench.processes import memory, processor_time
from flowkit.bench.project import write_topology
from flowkit.clock import monotonic

PROJECT = "idle"

SETTLE = 2.0
"""Seconds between "ready" and the measurements: what starts has still to finish starting."""

GRACE = 20.0
"""Seconds that a project of idle replicas may take to end."""

UP = (
    "import sys; from flowkit.bench.crew import die_with_parent; die_with_parent(); "
    "from flowkit.cli import main; sys.exit(main(sys.argv[1:]))"
)
"""`flowkit`, but it ends with this process, whatever happens to it."""


def flowkit(replicas: int, idle: float) -> dict[str, float]:
    """`flowkit up` of a project with `replicas` idle consumers."""
    path = write_topology(
        PROJECT,
        {
            "produce": {"use": "flowkit.bench.nodes:Idle"},
            "consume": {"use": "flowkit.bench.nodes:Consume", "replicas": replicas},
        },
        [{"from": "produce.messages", "to": "consume.messages"}],
    )
    began = monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", UP, "up", str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if b"ready in" in line:
                    break
            ready = monotonic() - began
            ours, others = _tell_apart(process.pid)
            if len(ours) != replicas:
                raise RuntimeError(f"{len(ours)} replicas are there, not {replicas}")
            figures = _measure(ours, others, idle)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=GRACE)
    return {"ready": ready, **figures}


def _tell_apart(pid: int) -> tuple[list[int], list[int]]:
    """The consumers among the processes below `pid`, and the others, by what `ps` shows of them."""
    ours: list[int] = []
    others = [pid]
    for child in psutil.Process(pid).children(recursive=True):
        title = " ".join(child.cmdline())
        (ours if f"{PROJECT}/consume." in title else others).append(child.pid)
    return ours, others


def _measure(ours: Sequence[int], others: Sequence[int], idle: float) -> dict[str, float]:
    time.sleep(SETTLE)
    before, began = (processor_time(ours), processor_time(others)), monotonic()
    time.sleep(idle)
    seconds = monotonic() - began
    return {
        "cpu": (processor_time(ours) - before[0]) / seconds,
        "others": (processor_time(others) - before[1]) / seconds,
        "pss": sum(map(memory, ours)) / len(ours),
    }


PROGRAM = (
    "import json, sys; from flowkit.bench.crew import die_with_parent; die_with_parent(); "
    "from flowkit.bench.starts import main; main(*json.loads(sys.argv[1]))"
)


def processes(replicas: int, idle: float) -> dict[str, float]:
    """A program that starts as many processes with `multiprocessing`, each with a `ZMQStream`."""
    began = monotonic()
    command = [sys.executable, "-c", PROGRAM, json.dumps([replicas, idle])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        ready = monotonic() - began
        text, _ = process.communicate(timeout=idle + 3 * GRACE)
    if not line or process.returncode:
        raise RuntimeError(f"has ended with exit code {process.returncode}")
    measured: Mapping[str, float] = json.loads(text)
    return {"ready": ready, **measured}


def main(replicas: int, idle: float) -> None:
    """The program that `processes` measures: says when all are ready, and then what they take."""
    import zmq.eventloop.zmqstream  # noqa: F401 - once, for all that are forked from here

    start: Any = context()
    children: list[Any] = []
    ends = []
    for number in range(replicas):
        ours, theirs = start.Pipe()
        process = start.Process(target=wait, args=(theirs, f"ipc://idle{number}"), daemon=True)
        process.start()
        theirs.close()
        children.append(process)
        ends.append(ours)
    waiting: list[Any] = list(ends)
    while waiting:
        for end in connection.wait(waiting):
            assert isinstance(end, connection.Connection)
            end.recv()
            waiting.remove(end)
    print("ready", flush=True)
    print(json.dumps(_measure([child.pid for child in children], [], idle)), flush=True)
    for child in children:
        child.kill()
        child.join()


def wait(end: Any, address: str) -> None:
    """A consumer to whom nothing is sent."""
    import zmq
    from zmq.eventloop.zmqstream import ZMQStream

    die_with_parent()

    async def run() -> None:
        lane = ZMQStream(zmq.Context.instance().socket(zmq.PULL))
        lane.bind(address)
        lane.on_recv(lambda frames: None)
        end.send(True)
        await asyncio.Event().wait()

    asyncio.run(run())
