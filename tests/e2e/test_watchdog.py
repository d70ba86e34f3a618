"""Processes that stand still: shown, killed, replaced. Those that merely wait are left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, alive, link, node

OWN = "tests.e2e.faulty_nodes:"
LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]


def project(place: Place, work: dict[str, Any], until: str = "", **reader: Any) -> Path:
    settings = {"count": 1000, **reader, **({"until": place.file(until)} if until else {})}
    return place.topology(
        {
            "read": node("Numbers", settings=settings),
            "work": work,
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )


def test_stopped_and_woken_after_its_replacement(place: Place) -> None:
    """SIGSTOP beyond the watchdog: killed, so that there is nobody left to wake."""
    topology = project(
        place, node("Work", replicas=2, watchdog="400ms", settings={"busy": 5}), "stop"
    )
    run = place.up(topology)
    run.until(lambda: run.handled("work.0") > 300)
    (pid,) = run.kill("work.0", number=signal.SIGSTOP)
    run.pid("work.0", other_than=pid)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.replica("work.0")["restarts"] == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    assert "work.0 did not turn its loop for 0.4 s" in result.out


def test_the_only_worker_is_stopped(place: Place) -> None:
    topology = project(place, node("Work", watchdog="400ms", settings={"busy": 5}), "stop")
    run = place.up(topology)
    run.until(lambda: run.handled("work.0") > 300)
    (pid,) = run.kill("work.0", number=signal.SIGSTOP)
    run.pid("work.0", other_than=pid)
    assert not alive(pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.restarts("work") == 1


@pytest.mark.parametrize(
    ("how", "replicas"), [("spin", 1), ("hold", 2), pytest.param("hold", 1, marks=pytest.mark.slow)]
)
def test_a_handler_that_spins(place: Place, how: str, replicas: int) -> None:
    """Also one that never lets go of the interpreter. Named with node, handler and stack."""
    settings = {"at": 7, "how": how, "marker": place.file("stuck")}
    work = node("Work", replicas=replicas, settings=settings, watchdog="400ms")
    result = place.up(project(place, work)).wait()
    assert (place.path / "stuck").exists()
    result.check_drained()
    place.check_exact(1000)
    assert result.restarts("work") == 1
    (said,) = (line for line in result.out.splitlines() if "did not turn its loop" in line)
    assert "in on_numbers and was killed" in said and "supervisor | work." in said
    name = said.partition("| ")[2].partition(" ")[0]
    stack = "\n".join(result.printed(name))
    assert "in die" in stack and "in on_numbers" in stack, result.text


def test_a_message_that_always_spins(place: Place) -> None:
    """The watchdog's kills accuse no message: its node is given up."""
    work = node(
        "Work",
        settings={"at": 7, "how": "spin"},
        watchdog="200ms",
        restart={"max": 2, "backoff": "10ms"},
    )
    result = place.up(project(place, work)).wait()
    assert (result.code, result.report["status"]) == (3, "failed"), result.text
    assert result.out.count("did not turn its loop") == 3
    assert result.total("dead_lettered") == 0


def test_a_handler_that_has_become_slow_is_not_stuck(place: Place) -> None:
    """Its batches were cut for a fast one: each takes longer than the watchdog now, and no message
    does."""
    settings = {"after": 7000, "busy": 0.001}
    work = {**node("", settings=settings, watchdog="500ms"), "use": OWN + "Tires"}
    result = place.up(project(place, work, count=10_000)).wait()
    result.check_drained()
    place.check_exact(10_000)
    assert result.restarts("work") == 0


def test_waiting_for_room_is_not_stuck(place: Place) -> None:
    """A worker that has input, and no room to send, waits longer than its watchdog."""
    topology = place.topology(
        {
            "read": node("Numbers", settings={"count": 3000}),
            "work": node("Work", watchdog="200ms"),
            "gate": node("Gate", settings={"gate": place.file("gate")}),
            "watched": node("Work", settings={"at": 0, "how": "spin", "marker": place.file("m")},
                            watchdog="1s"),
            "other": node("Tally", settings={"path": place.file("other")}),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        [
            link("read.numbers -> work.numbers"),
            link("work.results -> gate.numbers", window=64),
            link("read.numbers -> watched.numbers"),
            link("watched.results -> other.numbers"),
            link("gate.results -> tally.numbers"),
        ],
    )  # fmt: skip
    run = place.up(topology)
    # Somebody with a longer watchdog is killed: so much time has passed.
    run.says("watched.0 did not turn its loop for 1 s")
    assert run.handled("work.0") < 3000
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    place.check_exact(3000)
    assert (result.restarts("work"), result.restarts("watched")) == (0, 1)
    assert "work.0 has had messages in hand" not in result.out


def test_a_coroutine_that_never_returns(place: Place) -> None:
    """It is shown where it waits, and not killed: it may know why."""
    work = {
        **node("", watchdog="400ms", settings={"at": 7, "gate": place.file("gate")}),
        "use": OWN + "Endless",
    }
    run = place.up(project(place, work))
    pid = run.pid("work.0")
    run.says("work.0 has had messages in hand for 0.4 s and finished none")
    run.says("await appeared(self.gate)")
    run.says("in on_numbers")
    assert run.pid("work.0") == pid
    place.touch("gate")
    result = run.wait()
    result.check_drained()
    place.check_exact(1000)
    assert result.restarts("work") == 0
    assert result.link("read.numbers -> work.numbers")["redelivered"] == 0
