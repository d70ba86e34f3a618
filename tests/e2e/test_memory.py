"""A slow sink and a fast source, and many restarts: no process grows."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Place, Run, link, node
from tests.e2e.hurdles import Vitals, hurdle, waited

MIB = 1 << 20
LINK = "read.texts -> slow.texts"


def watch(run: Run, vitals: Vitals, name: str, count: int, looks: int = 40) -> int:
    """Look at the run while `name` handles `count` messages; the most that were under way."""
    most = 0

    def passed() -> bool:
        nonlocal most
        done = run.handled(name)
        most = max(most, run.sent("read.0") - done)
        if done >= len(vitals.looks["supervisor"]) * count / looks:
            vitals.look()
        return done >= count

    run.until(passed, 600)
    return most


def slow_sink(place: Place, count: int, size: int, pause: int) -> None:
    """`count` messages of `size` bytes through a window of 4,096, `pause` microseconds each."""
    topology = place.topology(
        {
            "read": hurdle("Texts", settings={"count": count, "size": size}),
            "slow": hurdle("Slow", settings={"pause": pause}),
        },
        [link(LINK, window=4096)],
    )
    run = place.up(topology)
    run.until(lambda: run.handled("slow.0") > count // 10)  # all have their working size
    vitals = Vitals(run)
    assert set(vitals.processes) == {"supervisor", "nursery", "read.0", "slow.0"}
    most = watch(run, vitals, "slow.0", count * 9 // 10)
    assert waited(run, "read.0") > 0.0
    result = run.wait(600)
    result.check_drained()
    assert result.link(LINK)["done"] == count
    # The window, the batch that overshoots it, and what was handled between two looks at counters.
    assert most < 4 * 4096
    # What piled up instead would be half of all that passed.
    vitals.check_flat(4 * MIB, files=2, threads=1)
    assert count * size / 2 > 16 * MIB


def test_a_slow_sink_holds_the_source_back(place: Place) -> None:
    slow_sink(place, count=80_000, size=500, pause=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_sink_for_a_million_messages(place: Place) -> None:
    slow_sink(place, count=1_100_000, size=500, pause=20)


def restarts(place: Place, times: int) -> None:
    """One of two workers is killed again and again; all others live on, and do not grow."""
    restart = {"max": "unlimited", "backoff": "1ms", "backoff_max": "5ms"}
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 1, "until": place.file("stop")}),
            "work": node("Work", replicas=2, restart=restart, settings={"busy": 20}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers", window=1000)],
    )
    run = place.up(topology)
    pid = 0
    files: list[int] = []
    vitals: Vitals | None = None
    for number in range(times + 4):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 100)
        if number == 4:  # everybody has met a death
            vitals = Vitals(run)
            del vitals.processes["work.0"], vitals.looks["work.0"]
        if vitals is not None:
            vitals.look()
            files.append(sum(1 for _ in Path(run.directory or "").iterdir()))
        os.kill(pid, signal.SIGKILL)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == times + 4
    assert result.total("redelivered") > 0
    assert vitals is not None
    # A restart opens a few descriptors before it has closed the old ones.
    vitals.check_flat(3 * MIB, files=4, threads=1)
    assert max(files[times // 2 :]) <= max(files[: times // 2]) + 2, files


def test_thirty_restarts(place: Place) -> None:
    restarts(place, 30)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_restarts(place: Place) -> None:
    restarts(place, 200)


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
