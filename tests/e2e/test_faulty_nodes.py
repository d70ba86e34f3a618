"""Nodes whose code is at fault: messages that kill, loops that do not turn."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, Result, alive, link, node

LINKS = [link("read.numbers -> work.numbers"), link("work.results -> tally.numbers")]


def project(place: Place, count: int, until: str = "", **facts: Any) -> Path:
    """A source, two workers (`facts` are theirs) and a counter."""
    return place.topology(
        {
            "read": node(
                "Numbers",
                settings={"count": count, "until": place.file(until) if until else ""},
            ),
            "work": node("Work", replicas=2, **facts),
            "tally": node("Tally", settings={"path": place.file("tally")}),
        },
        LINKS,
    )


def check_all_but(place: Place, result: Result, count: int, bad: int) -> None:
    """All was done once, but number `bad`, which is a dead letter."""
    assert (result.code, result.report["status"]) == (4, "drained"), result.text
    assert [n for n, times in enumerate(place.tally()) if times != 1] == [bad]
    assert len(place.tally()) == count
    entry = result.link("read.numbers -> work.numbers")
    assert (entry["done"], entry["dead_lettered"]) == (count - 1, 1)
    assert entry["redelivered"] > 0


def test_a_message_that_crashes_its_process(place: Place) -> None:
    """It is found, named and given up at the third death; all others are done once."""
    settings = {"at": 7, "how": "segfault"}
    result = place.up(project(place, 2000, settings=settings)).wait()
    check_all_but(place, result, 2000, 7)
    assert result.restarts("work") == 3
    assert result.out.count("was killed by SIGSEGV") == 3


def test_a_message_that_ends_its_process(place: Place) -> None:
    settings = {"at": 1234, "how": "_exit"}
    result = place.up(project(place, 2000, settings=settings)).wait()
    check_all_but(place, result, 2000, 1234)
    assert result.restarts("work") == 3


@pytest.mark.parametrize("how", ["spin", "hold"])
def test_a_handler_that_never_returns(place: Place, how: str) -> None:
    """The watchdog shows where it is, kills the process, and the message is delivered again."""
    settings = {"at": 7, "how": how, "marker": place.file("stuck")}
    result = place.up(project(place, 2000, settings=settings, watchdog="500ms")).wait()
    assert (place.path / "stuck").exists()
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    place.check_exact(2000)
    assert result.restarts("work") == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    (victim,) = (
        f"work.{number}" for number in (0, 1) if result.replica(f"work.{number}")["restarts"]
    )
    assert "in die" in "\n".join(result.printed(victim)), result.text
    assert "on_numbers" in result.out


def test_a_process_that_is_stopped_for_too_long(place: Place) -> None:
    """The watchdog kills it: fenced, and what it had is delivered to others."""
    run = place.up(project(place, 2000, until="stop", settings={"busy": 5}, watchdog="500ms"))
    run.until(lambda: run.handled("work.0") > 500)
    (pid,) = run.kill("work.0", number=signal.SIGSTOP)
    run.pid("work.0", other_than=pid)
    place.touch("stop")
    result = run.wait()
    result.check_drained()
    place.check_exact(result.link("read.numbers -> work.numbers")["sent"])
    assert result.replica("work.0")["restarts"] == 1
    assert result.link("read.numbers -> work.numbers")["redelivered"] > 0
    assert not alive(pid)
