"""A slow sink and a fast source, and many restarts: no process grows.

The long tests take as long as they are told: ``FLOWKIT_SLOW_SINK=SECONDS`` the slow sink, at least
a million messages in any case; ``FLOWKIT_RESTARTS=TIMES:SECONDS`` so many restarts over so long a
time. Ten minutes of the one and an hour of the other::

    FLOWKIT_SLOW_SINK=600 FLOWKIT_RESTARTS=100:3600 pytest tests/e2e/test_memory.py -m slow -s
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.harness import PATIENCE, Place, Run, link, node
from tests.e2e.hurdles import Vitals, hurdle, waited

MIB = 1 << 20
LINK = "read.texts -> slow.texts"


SINK_SECONDS = float(os.environ.get("FLOWKIT_SLOW_SINK", "0"))
TIMES, RESTART_SECONDS = map(int, os.environ.get("FLOWKIT_RESTARTS", "100:30").split(":"))
LONG = 600 + SINK_SECONDS + RESTART_SECONDS
"""Seconds after which a long test has failed."""


def watch(run: Run, vitals: Vitals, name: str, count: int, seconds: float, looks: int = 40) -> int:
    """Look at the run while `name` handles `count` messages, and so long; the most that were under
    way."""
    most = 0
    began = time.monotonic()

    def passed() -> bool:
        nonlocal most
        done = run.handled(name)
        most = max(most, run.sent("read.0") - done)
        passed = time.monotonic() - began
        share = min(done / count, passed / seconds if seconds else 1.0)
        if share * looks >= len(vitals.looks["supervisor"]):
            vitals.look()
        return share >= 1.0

    run.until(passed, LONG)
    return most


def slow_sink(place: Place, count: int, size: int, pause: int, seconds: float = 0.0) -> None:
    """At least `count` messages of `size` bytes, and as many more as `seconds` take, through a
    window of 4,096, `pause` microseconds each."""
    topology = place.topology(
        {
            "read": hurdle(
                "Texts", settings={"count": count, "size": size, "until": place.file("stop")}
            ),
            "slow": hurdle("Slow", settings={"pause": pause}),
        },
        [link(LINK, window=4096)],
    )
    run = place.up(topology)
    run.until(lambda: run.handled("slow.0") > count // 10)  # all have their working size
    vitals = Vitals(run)
    assert set(vitals.processes) == {"supervisor", "nursery", "read.0", "slow.0"}
    most = watch(run, vitals, "slow.0", count * 9 // 10, seconds)
    assert waited(run, "read.0") > 0.0
    place.touch("stop")
    result = run.wait(LONG)
    result.check_drained()
    done = result.link(LINK)["done"]
    assert done >= count and result.link(LINK)["sent"] == done
    print(f"{done:,} messages in {result.report['seconds']:.0f} s, {most:,} under way\n{vitals}")
    # The window, the batch that overshoots it, and what was handled between two looks at counters.
    assert most < 4 * 4096
    # What piled up instead would be half of all that passed.
    vitals.check_flat(4 * MIB, files=2, threads=1)
    assert count * size / 2 > 16 * MIB


def test_a_slow_sink_holds_the_source_back(place: Place) -> None:
    slow_sink(place, count=80_000, size=500, pause=20)


@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_a_slow_sink_for_a_million_messages(place: Place) -> None:
    slow_sink(place, count=1_100_000, size=500, pause=20, seconds=SINK_SECONDS)


def restarts(place: Place, times: int, seconds: float = 0.0) -> None:
    """One of two workers is killed again and again, for so long; all others live on, and do not
    grow, nor do the files in the directories of the run."""
    restart = {"max": "unlimited", "backoff": "1ms", "backoff_max": "5ms"}
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=2, restart=restart, settings={"busy": 20}),
            "sieve": hurdle("Sieve", settings={"path": place.file("sieve")}),
        },
        [
            # Small: what the sieve has to remember is as much as may be out of order.
            link("read.numbers -> work.numbers", window=4096),
            link("work.results -> sieve.numbers", window=1000),
        ],
    )
    run = place.up(topology)
    pid = 0
    files: list[int] = []
    vitals: Vitals | None = None
    began = 0.0
    for number in range(-4, times):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 100)
        if number == 0:  # everybody has met a death
            vitals = Vitals(run)
            del vitals.processes["work.0"], vitals.looks["work.0"]
            began = time.monotonic()
        if vitals is not None:
            due = began + number * seconds / times
            run.until(lambda due=due: time.monotonic() >= due, PATIENCE + seconds)
            vitals.look()
            files.append(len(list(place.path.glob("[rs]/*/*"))))
        os.kill(pid, signal.SIGKILL)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    count = result.link("read.numbers -> work.numbers")["sent"]
    low, beyond, doubled = map(int, (place.path / "sieve").read_text().split())
    assert (low, beyond, doubled) == (count, 0, 0)
    assert result.restarts("work") == times + 4
    print(f"{times} restarts in {time.monotonic() - began:.0f} s, {count:,} messages\n{vitals}")
    assert result.total("redelivered") > 0
    assert vitals is not None
    # A restart opens a few descriptors before it has closed the old ones.
    vitals.check_flat(3 * MIB, files=4, threads=1)
    assert max(files[times // 2 :]) <= max(files[: times // 2]) + 2, files


def test_thirty_restarts(place: Place) -> None:
    restarts(place, 30)


@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_many_restarts(place: Place) -> None:
    restarts(place, TIMES, RESTART_SECONDS)


@pytest.mark.slow
def test_a_stream_of_restarts_and_pauses_ends(place: Place) -> None:
    """Ten seconds of a worker that is stopped and goes on, below its watchdog."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=2, watchdog="5s"),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")],
    )
    run = place.up(topology)
    pid = run.pid("work.0")
    end = time.monotonic() + 10
    stops = 0
    while time.monotonic() < end:
        before = run.handled("work.0")
        run.until(lambda before=before: run.handled("work.0") > before)
        os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 0.3
        run.until(lambda until=until: time.monotonic() >= until)
        os.kill(pid, signal.SIGCONT)
        stops += 1
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert stops > 10 and result.restarts("work") == 0 and result.total("redelivered") == 0
