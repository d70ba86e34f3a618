"""Replicas are killed, in every way and at every point: nothing is lost, and nothing doubled.

Each test asserts that its fault has really happened.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, alive, link, node

RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "50ms"}

POOL_LINKS = [
    link("read.numbers -> work.numbers"),
    link("work.results -> tally.numbers"),
]


def pool(place: Place, workers: int = 2, tallies: int = 1, **settings: Any) -> Path:
    """A source, a pool of workers, one counter or several keyed ones; ends with the file `stop`."""
    route = {"route": "key"} if tallies > 1 else {}
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 3000, "until": place.file("stop")}),
            "work": node("Work", replicas=workers, restart=RESTART, settings=settings),
            "tally": node("Tally", replicas=tallies, settings={"path": place.file("tally")}),
        },
        [POOL_LINKS[0], link("work.results -> tally.numbers", **route)],
    )


def journaled(place: Place, workers: int = 2, **settings: Any) -> Path:
    """A source, a pool of workers, and a sink whose effect is a file."""
    settings["path"] = place.file("journal")
    return place.topology(
        {
            "read": node("Numbers", settings={"count": 3000, "until": place.file("stop")}),
            "work": node("Work", replicas=workers, restart=RESTART),
            "sink": node("Journal", restart=RESTART, settings=settings),
        },
        [POOL_LINKS[0], link("work.results -> sink.numbers")],
    )


# ---------------------------------------------------------------------------- workers


@pytest.mark.parametrize("tallies", [1, 2], ids=["single", "keyed"])
def test_a_worker_is_killed_under_load(place: Place, tallies: int) -> None:
    run = place.up(pool(place, tallies=tallies, busy=5))
    run.until(lambda: run.handled("work.0") > 1000)
    (pid,) = run.kill("work.0")
    run.pid("work.0", other_than=pid)
    run.until(lambda: run.handled("work.0") > 1000)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.replica("work.0")["restarts"] == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    assert "work.0 was killed by SIGKILL" in result.out
    assert not any(entry["lost_state"] for entry in result.report["nodes"])


def test_all_workers_are_killed_at_once(place: Place) -> None:
    run = place.up(pool(place, workers=3, tallies=2, busy=5))
    run.until(lambda: all(run.handled(f"work.{number}") > 500 for number in range(3)))
    pids = run.kill("work.0", "work.1", "work.2")
    for number, pid in enumerate(pids):
        run.pid(f"work.{number}", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert [result.replica(f"work.{number}")["restarts"] for number in range(3)] == [1, 1, 1]
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0


@pytest.mark.parametrize("how", ["_exit", "exit"])
def test_a_worker_ends_itself_in_a_handler(place: Place, how: str) -> None:
    """Also an orderly exit is a crash while there is work."""
    place.touch("stop")
    run = place.up(pool(place, at=1500, how=how, marker=place.file("died")))
    result = run.wait()
    assert (place.path / "died").exists()
    result.check_drained()
    place.check_exact(3000)
    assert result.restarts("work") == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    assert "left before its work was done" in result.out


def test_a_worker_dies_many_times(place: Place) -> None:
    run = place.up(pool(place, tallies=2, busy=5))
    pid = 0
    for _ in range(6):
        pid = run.pid("work.0", other_than=pid)
        run.until(lambda: run.handled("work.0") > 300)
        os.kill(pid, signal.SIGKILL)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == 6


def test_a_worker_is_killed_between_end_and_close(place: Place) -> None:
    """The source has sent all it had; nothing is acknowledged yet."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 2000}),
            "work": node("Work", replicas=2, restart=RESTART),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [
            link("read.numbers -> work.numbers"),
            link("work.results -> gate.numbers"),
            link("gate.results -> tally.numbers"),
        ],
    )
    run = place.up(topology)
    run.says("has read all")
    run.until(lambda: run.handled("work.0") and run.handled("work.1"))
    (pid,) = run.kill("work.0")
    run.pid("work.0", other_than=pid)
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    place.check_exact(2000)
    assert result.restarts("work") == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0


# ---------------------------------------------------------------------------- sinks


@pytest.mark.parametrize("where", ["handler", "commit"])
def test_a_sink_is_killed(place: Place, where: str) -> None:
    """Before or after its effect is durable: nothing is lost, and the ids tell what is double."""
    place.touch("stop")
    run = place.up(journaled(place, die_in=where, marker=place.file("died")))
    result = run.wait()
    assert (place.path / "died").exists()
    result.check_drained()
    counts, ids = place.journal()
    assert set(counts) == set(range(3000))
    assert len(ids) == 3000
    assert result.restarts("sink") == 1
    assert result.link("work.results -> sink.numbers")["redelivered"] > 0
    if where == "commit":  # what was durable and not yet acknowledged came again
        assert counts.total() > 3000


def test_a_sink_is_killed_after_its_last_acknowledgement(place: Place) -> None:
    """It starts again, learns that all links are closed, and ends."""
    place.touch("stop")
    run = place.up(journaled(place, die_in="finish", marker=place.file("died")))
    result = run.wait()
    assert (place.path / "died").exists()
    result.check_drained()
    counts, _ = place.journal()
    assert set(counts) == set(range(3000)) and counts.total() == 3000
    assert result.restarts("sink") == 1
    assert result.total("redelivered") == 0


def test_worker_and_sink_are_killed_together(place: Place) -> None:
    run = place.up(journaled(place))
    run.until(lambda: run.handled("work.0") > 500 and run.handled("sink.0") > 500)
    pids = run.kill("work.0", "sink.0")
    run.pid("work.0", other_than=pids[0])
    run.pid("sink.0", other_than=pids[1])
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    counts, ids = place.journal()
    sent = result.link("read.numbers -> work.numbers")["sent"]
    assert set(counts) == set(range(sent))
    assert len(ids) == sent
    assert result.restarts("work") == result.restarts("sink") == 1
    assert result.total("redelivered") > 0


def test_a_killed_counter_is_reported(place: Place) -> None:
    """What it held in memory is lost, and that is never silent."""
    run = place.up(pool(place, tallies=2))
    run.until(lambda: run.handled("tally.1") > 500)
    (pid,) = run.kill("tally.1")
    run.pid("tally.1", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    assert [result.replica(f"tally.{number}")["lost_state"] for number in (0, 1)] == [False, True]
    assert result.replica("tally.1")["restarts"] == 1
    assert "tally.1 died 1 time and lost what it held in memory" in result.out
    assert max(place.tally()) == 1


# ---------------------------------------------------------------------------- sources


def test_a_source_with_positions_goes_on_where_it_was(place: Place) -> None:
    topology = place.topology(
        {
            "read": node(
                "Held", restart=RESTART, settings={"count": 20000, "until": place.file("stop")}
            ),
            "work": node("Work", replicas=2),
            "sink": node("Journal", settings={"path": place.file("journal")}),
        },
        [POOL_LINKS[0], link("work.results -> sink.numbers")],
    )
    run = place.up(topology)
    position = run.until(place.position)
    (pid,) = run.kill("read.0")
    run.pid("read.0", other_than=pid)
    run.says("reads from", times=2)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    counts, _ = place.journal()
    assert set(counts) == set(range(20000))
    assert result.restarts("read") == 1
    starts = [int(line.split()[-1]) for line in result.printed("read.0") if "reads from" in line]
    assert starts[0] == 0 and starts[1] >= position > 0


def test_a_source_without_positions_says_what_it_lost(place: Place) -> None:
    topology = place.topology(
        {
            "read": node("Ticks", restart=RESTART),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [link("read.numbers -> gate.numbers"), link("gate.results -> tally.numbers")],
    )
    run = place.up(topology)
    run.until(lambda: run.sent("read.0"))
    (pid,) = run.kill("read.0")
    run.pid("read.0", other_than=pid)
    run.until(lambda: run.sent("read.0"))
    place.touch("gate")
    run.until(lambda: run.handled("tally.0"))
    run.terminate()
    result = run.wait()
    assert (result.code, result.report["status"]) == (5, "drained"), result.text
    assert result.restarts("read") == 1
    entry = result.link("read.numbers -> gate.numbers")
    assert set(entry["dropped"]) == {"producer died"}
    assert entry["dropped"]["producer died"] > 0
    assert entry["in_flight"] == 0


# ---------------------------------------------------------------------------- others


def test_the_nursery_is_killed(place: Place) -> None:
    """All replicas die with it; workers and keyed consumers lose no message in flight."""
    topology = place.topology(
        {
            "read": node(
                "Held", restart=RESTART, settings={"count": 20000, "until": place.file("stop")}
            ),
            "work": node("Work", replicas=2, restart=RESTART, settings={"busy": 20}),
            "sink": node("Journal", restart=RESTART, settings={"path": place.file("journal")}),
        },
        [POOL_LINKS[0], link("work.results -> sink.numbers")],
    )
    run = place.up(topology)
    run.until(lambda: run.handled("sink.0") > 100)
    nursery, before = run.nursery, run.replicas()
    assert len(before) == 4
    os.kill(nursery, signal.SIGKILL)
    for name, pid in before.items():
        run.pid(name, other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    assert not any(alive(pid) for pid in before.values())
    counts, _ = place.journal()
    assert set(counts) == set(range(20000))
    assert [entry["restarts"] for entry in result.report["nodes"]] == [1, 1, 1, 1]
    assert "launcher died (SIGKILL)" in result.out


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_while(place: Place) -> None:
    """It is suspect and nothing more: no restart, nothing delivered again."""
    run = place.up(pool(place, tallies=2, busy=5))
    run.until(lambda: run.handled("work.0") > 500)
    (pid,) = run.kill("work.0", number=signal.SIGSTOP)
    until = time.monotonic() + 5
    run.until(lambda: time.monotonic() >= until)
    handled = run.handled("work.0")
    os.kill(pid, signal.SIGCONT)
    run.until(lambda: run.handled("work.0") > handled)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == 0
    assert result.total("redelivered") == 0


@pytest.mark.slow
def test_workers_are_killed_all_the_time(place: Place) -> None:
    run = place.up(pool(place, workers=3, tallies=2, busy=5))
    run.ready()
    end = time.monotonic() + 15
    pids = dict.fromkeys(range(3), 0)
    while time.monotonic() < end:
        for number in pids:
            pids[number] = run.pid(f"work.{number}", other_than=pids[number])
            run.until(lambda number=number: run.handled(f"work.{number}") > 50)
            os.kill(pids[number], signal.SIGKILL)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") > 10
    assert result.total("redelivered") > 0
