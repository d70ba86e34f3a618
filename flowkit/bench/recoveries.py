"""A worker is killed under load, and what becomes of its messages is counted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import zmq

from flowkit.bench.crew import context, die_with_parent
from flowkit.bench.hops import HIGH_WATER
from flowkit.bench.nodes import BLOCK
from flowkit.bench.pipelines import READY, RESULTS, TASKS, WORKERS
from flowkit.bench.project import run_project
from flowkit.channels import In, Out
from flowkit.clock import monotonic
from flowkit.node import Node, every
from flowkit.supervisor import Supervisor

MOST = 100_000_000
"""Messages: more than any machine passes in the seconds that this takes."""

WINDOW = 0.2
"""Seconds over which a rate is taken."""

FULL = 0.9
"""Of the rate before the kill: as much again is "full rate", since rates are never quite steady."""

POLL = 0.005

QUIET = 1.0
"""Seconds without a message after which nothing more comes, where nothing says so."""

Timeline = Sequence[tuple[float, int]]
"""When, and how many messages had come by then."""


class Number(Node):
    """Sends 0, 1, 2 ... until it is told to stop; prints how many."""

    numbers = Out(int)

    def __init__(self) -> None:
        self.sent = 0

    async def run(self) -> None:
        send = self.numbers.send
        while self.sent < MOST:
            for number in range(self.sent, self.sent + BLOCK):
                send(number)
            self.sent += BLOCK
            await self.numbers.room()

    def teardown(self) -> None:
        print(json.dumps({"sent": self.sent}), flush=True)


class Pass(Node):
    """Hands on what it gets."""

    numbers = In(int)
    passed = Out(int)

    def on_numbers(self, number: int) -> None:
        self.passed.send(number)


class TickOff(Node):
    """Ticks off each number; prints at the end how many there were, how often, and when."""

    stateful = True

    numbers = In(int)

    def __init__(self) -> None:
        self.seen = bytearray(MOST)
        self.count = 0
        self.timeline: list[tuple[float, int]] = []

    def on_numbers(self, number: int) -> None:
        self.seen[number] += 1
        self.count += 1

    @every("10ms")
    def look(self) -> None:
        self.timeline.append((monotonic(), self.count))

    def finish(self) -> None:
        print(json.dumps(tell(self.seen, self.count, self.timeline)), flush=True)


def tell(seen: bytearray, count: int, timeline: Timeline) -> dict[str, Any]:
    """What a sink has to say."""
    distinct = len(seen) - seen.count(0)
    return {"distinct": distinct, "doubled": count - distinct, "timeline": timeline}


def flowkit(before: float, after: float) -> dict[str, float]:
    """A pool of two workers, one of which is killed after `before` seconds of full load."""
    killed = restarted = 0.0

    async def kill(project: Supervisor) -> None:
        nonlocal killed, restarted
        while not project.report().links[-1].entry.done:
            await asyncio.sleep(POLL)
        await asyncio.sleep(before)
        victim = project.pids["work.0"]
        killed = monotonic()
        os.kill(victim, signal.SIGKILL)
        while project.pids.get("work.0", victim) == victim:
            await asyncio.sleep(POLL)
        restarted = monotonic() - killed
        await asyncio.sleep(max(0.0, after - restarted))
        project.drain()

    report, words = run_project(
        {
            "number": {"use": "flowkit.bench.recoveries:Number"},
            "work": {"use": "flowkit.bench.recoveries:Pass", "replicas": WORKERS},
            "sink": {"use": "flowkit.bench.recoveries:TickOff"},
        },
        [
            {"from": "number.numbers", "to": "work.numbers"},
            {"from": "work.passed", "to": "sink.numbers"},
        ],
        kill,
    )
    found: dict[str, Any] = {}
    for each in words.found:
        found |= each
    # Both must say so: the books of the run, and what has really come.
    unaccounted = report.lost + report.in_flight + report.dropped + report.dead_lettered
    lost = max(unaccounted, found["sent"] - found["distinct"])
    return {
        "lost": float(lost),
        "doubled": float(found["doubled"]),
        "redelivered": float(sum(link.entry.redelivered for link in report.links)),
        "restarted": restarted,
        **recovery(found["timeline"], killed),
    }


def recovery(timeline: Timeline, killed: float) -> dict[str, float]:
    """The rate before `killed`, and how long after it that rate was reached again: all the time
    there was, if it never was.

    Raises ValueError if there was nothing before.
    """
    times = [when for when, _ in timeline]

    def rate(start: float) -> float:
        first, last = bisect_left(times, start), bisect_left(times, start + WINDOW)
        if last >= len(times) or first == last:
            return 0.0
        return (timeline[last][1] - timeline[first][1]) / (times[last] - times[first])

    starts = [when for when in times if when <= times[-1] - WINDOW - POLL]
    earlier = sorted(rate(when) for when in starts if times[0] < when < killed - WINDOW)
    if not earlier:
        raise ValueError("nothing was measured before the kill")
    usual = earlier[len(earlier) // 2]
    later = [(when, rate(when) >= FULL * usual) for when in starts if when >= killed]
    dip = next((place for place, (_, full) in enumerate(later) if not full), None)
    back = 0.0
    if dip is not None:
        again = next((when for when, full in later[dip:] if full), times[-1])
        back = again - killed
    return {"rate": usual, "back": back}


# ---------------------------------------------------------------------------- pyzmq


def pyzmq(before: float, after: float) -> dict[str, float]:
    """PUSH to two workers and from them to a sink. A worker is killed, and another one started."""
    start: Any = context()
    (told, tells), (sent_end, sends) = start.Pipe(duplex=False), start.Pipe(duplex=False)
    going = start.Event()
    going.set()
    workers = [start.Process(target=_pass) for _ in range(WORKERS)]
    others = [
        start.Process(target=_number, args=(going, sends)),
        start.Process(target=_tick_off, args=(tells,)),
    ]
    for process in [*others, *workers]:
        process.start()
    told.recv()  # the first message is there
    time.sleep(before)
    killed = monotonic()
    workers[0].kill()
    workers[0].join()
    workers.append(start.Process(target=_pass))
    workers[-1].start()
    restarted = monotonic() - killed
    time.sleep(after)
    going.clear()
    sent, found = sent_end.recv(), told.recv()
    for process in [*others, *workers]:
        process.kill()
        process.join()
    return {
        "lost": float(sent - found["distinct"]),
        "doubled": float(found["doubled"]),
        "redelivered": 0.0,
        "restarted": restarted,
        **recovery(found["timeline"], killed),
    }


def _number(going: Any, sends: Any) -> None:
    die_with_parent()
    with zmq.Context() as ours, ours.socket(zmq.PUSH) as socket:
        socket.sndhwm = HIGH_WATER
        socket.bind(TASKS)
        with ours.socket(zmq.PULL) as ready:
            ready.bind(READY)
            for _ in range(WORKERS):
                ready.recv()
        sent = 0
        while going.is_set():
            for number in range(sent, sent + BLOCK):
                socket.send(number.to_bytes(8, "little"))
            sent += BLOCK
        sends.send(sent)
        signal.pause()


def _pass() -> None:
    die_with_parent()
    with zmq.Context() as ours, ours.socket(zmq.PULL) as tasks, ours.socket(zmq.PUSH) as results:
        tasks.rcvhwm = results.sndhwm = HIGH_WATER
        results.connect(RESULTS)
        tasks.connect(TASKS)
        with ours.socket(zmq.PUSH) as ready:
            ready.connect(READY)
            ready.send(b"")
            while True:
                results.send(tasks.recv())


def _tick_off(tells: Any) -> None:
    die_with_parent()
    seen, count = bytearray(MOST), 0
    timeline = []
    with zmq.Context() as ours, ours.socket(zmq.PULL) as results:
        results.rcvhwm = HIGH_WATER
        results.bind(RESULTS)
        receive = results.recv
        seen[int.from_bytes(receive(), "little")] += 1
        count = 1
        tells.send(True)
        results.rcvtimeo = int(QUIET * 1000)
        look = 0.0
        try:
            while True:
                for _ in range(100):
                    seen[int.from_bytes(receive(), "little")] += 1
                    count += 1
                if (now := monotonic()) >= look:
                    timeline.append((now, count))
                    look = now + 0.01
        except zmq.Again:
            pass
    tells.send(tell(seen, count, timeline))
