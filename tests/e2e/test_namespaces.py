"""Processes in two network namespaces: packets get lost, and one way is cut for a minute.

Needs root and tun devices. ``FLOWKIT_PARTITION`` is how many seconds the wire is cut, 60 by
default::

    FLOWKIT_PARTITION=300 pytest tests/e2e/test_namespaces.py -m slow
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.harness import Place, Run, link
from tests.e2e.namespaces import HERE, THERE, Unavailable, Wire, far

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PARTITION = float(os.environ.get("FLOWKIT_PARTITION", "60"))
RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "100ms"}
OVER_THE_WIRE = "read.numbers -> work.numbers"


@pytest.fixture
def wire() -> Iterator[Wire]:
    try:
        wire = Wire()
    except Unavailable as error:
        pytest.skip(str(error))
    yield wire
    wire.close()


def project(place: Place, wire: Wire) -> Path:
    """A source here, workers and a counter there; only the first link goes over the wire."""
    here, there = wire.namespaces
    settings = {"count": 2000, "until": place.file("stop")}
    return place.topology(
        {
            "read": far("FarNumbers", here, settings=settings, restart=RESTART),
            "work": far("FarWork", there, replicas=2, settings={"busy": 5}, restart=RESTART),
            "tally": far("FarTally", there, settings={"path": place.file("tally")}),
        },
        [
            link(OVER_THE_WIRE, transport="tcp", window=4096),
            link("work.results -> tally.numbers"),
        ],
    )


def begin(place: Place, wire: Wire) -> Run:
    """Start it; make sure that it is where it should be, and that its messages go over the wire."""
    run = place.up(project(place, wire))
    run.until(lambda: run.handled("work.0") > 500 and run.handled("work.1") > 500)
    own = os.stat("/proc/self/ns/net").st_ino
    places = {name: os.stat(f"/proc/{pid}/ns/net").st_ino for name, pid in run.replicas().items()}
    assert own not in places.values() and places["read.0"] != places["work.0"]
    assert places["work.0"] == places["work.1"] == places["tally.0"]
    assert min(wire.carried) > 20
    return run


def pause(run: Run, seconds: float) -> None:
    end = time.monotonic() + seconds
    run.until(lambda: time.monotonic() >= end, seconds + 10)


def both_go_on(run: Run, seconds: float) -> None:
    """Both workers handle more than they had."""
    before = {name: run.handled(name) for name in ("work.0", "work.1")}
    run.until(
        lambda: all(run.handled(name) > handled + 100 for name, handled in before.items()), seconds
    )


def test_one_packet_in_twenty_is_lost(place: Place, wire: Wire) -> None:
    """And a worker is killed besides: TCP makes good the one, the link the other."""
    run = begin(place, wire)
    wire.loss, wire.delay = 0.05, 0.001
    both_go_on(run, 60)
    pause(run, 5)
    (pid,) = run.kill("work.0")
    run.pid("work.0", other_than=pid)
    run.until(lambda: run.handled("work.0") > 500)
    pause(run, 3)
    place.touch("stop")
    result = run.wait(120)
    lost = sum(wire.lost) / (sum(wire.lost) + sum(wire.carried))
    print(f"{sum(wire.lost)} packets lost, {lost:.1%}; {result.total('sent')} messages sent")
    assert sum(wire.lost) > 100 and min(wire.lost) > 0
    result.check_drained()
    place.check_exact(result.link(OVER_THE_WIRE)["sent"])
    assert result.restarts("work") == 1
    assert result.link(OVER_THE_WIRE)["redelivered"] > 0


@pytest.mark.parametrize(
    "end", [pytest.param(HERE, id="messages"), pytest.param(THERE, id="acknowledgements")]
)
def test_one_way_is_cut(place: Place, wire: Wire, end: int) -> None:
    """What was sent does not arrive, or is not answered. When the wire is mended there are new
    sessions, and nothing is lost or doubled; nobody was killed for it."""
    run = begin(place, wire)
    wire.loss = 0.05
    pause(run, 1)
    wire.cut = end
    pause(run, 2)  # what was in queues is handled
    sent, handled = run.sent("read.0"), run.handled("work.0") + run.handled("work.1")
    began = time.monotonic()
    pause(run, PARTITION - 2)
    assert run.sent("read.0") == sent, "the source went on without acknowledgements"
    assert run.handled("work.0") + run.handled("work.1") == handled
    assert wire.lost[end] > 0
    wire.cut = None
    # TCP tries again after twice the time that it has waited last.
    both_go_on(run, 2 * PARTITION + 60)
    print(f"it went on after {time.monotonic() - began - (PARTITION - 2):.1f} s")
    place.touch("stop")
    result = run.wait(120)
    result.check_drained()
    place.check_exact(result.link(OVER_THE_WIRE)["sent"])
    assert [entry["restarts"] for entry in result.report["nodes"]] == [0, 0, 0, 0]
    if PARTITION >= 60:
        assert result.link(OVER_THE_WIRE)["redelivered"] > 0


def test_both_ways_are_cut_and_a_worker_is_replaced(place: Place, wire: Wire) -> None:
    """The supervisor knows it dead at once, so what it had goes to the other, although nobody on
    the wire has heard of it; its successor gets through when the wire is mended."""
    run = begin(place, wire)
    wire.loss = 1.0
    pause(run, 2)
    (pid,) = run.kill("work.0")
    new = run.pid("work.0", other_than=pid)
    pause(run, 5)
    assert run.handled("work.0") == 0 and psutil.pid_exists(new)
    wire.loss = 0.0
    run.until(lambda: run.handled("work.0") > 100, 120)
    place.touch("stop")
    result = run.wait(120)
    result.check_drained()
    place.check_exact(result.link(OVER_THE_WIRE)["sent"])
    assert result.restarts("work") == 1
    assert result.link(OVER_THE_WIRE)["redelivered"] > 0
