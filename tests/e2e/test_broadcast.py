"""One slow replica of several under `broadcast`: it holds the source back, or loses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, Run, link
from tests.e2e.hurdles import hurdle, waited

pytestmark = pytest.mark.slow

LINK = "read.numbers -> all.numbers"
COUNT = 10_000
WINDOW = 2000


def project(place: Place, kind: str = "Uneven", **facts: Any) -> Path:
    """A source and three counters that all get everything; the last waits for the file `gate`."""
    source = {"count": COUNT, "path": place.file("tally"), "fast": 2}
    settings = {"path": place.file("tally"), "gate": place.file("gate"), "slow": 2}
    return place.topology(
        {
            "read": hurdle("Paced", settings=source),
            "all": hurdle(kind, replicas=3, settings=settings, watchdog="60s"),
        },
        [link(LINK, route="broadcast", window=WINDOW, **facts)],
    )


def comes_to_rest(run: Run) -> int:
    """Wait until the source has sent something, and nothing more for half a second."""
    sent, since = 0, time.monotonic()

    def rests() -> bool:
        nonlocal sent, since
        now = run.sent("read.0")
        if now != sent or not now:
            sent, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    run.until(rests)
    return sent


def parts(place: Place) -> list[list[int]]:
    """What each of the three has seen."""
    return [list((place.path / f"tally.{number}").read_bytes()) for number in range(3)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "delivery"),
    [
        ("Uneven", "at-least-once"),
        pytest.param("Patient", "at-least-once", marks=SLOW),
        pytest.param("Uneven", "at-most-once", marks=SLOW),
        ("Patient", "at-most-once"),
    ],
)
def test_block_holds_the_source_back(place: Place, delivery: str, kind: str) -> None:
    """What the slow one has not taken bounds what the others get; nobody loses anything."""
    run = place.up(project(place, kind, delivery=delivery, when_full="block"))
    sent = comes_to_rest(run)
    assert "has read all" not in run.out
    assert sent <= 3 * (WINDOW + 4096)
    run.until(lambda: run.handled("all.0") == run.handled("all.1") == sent // 3)
    place.touch("gate")
    run.until(lambda: waited(run, "read.0") > 0.4)
    result = run.wait()
    result.check_drained()
    assert parts(place) == [[1] * COUNT] * 3
    assert result.link(LINK)["sent"] == 3 * COUNT
    assert result.total("redelivered") == 0


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("drop-oldest", "Uneven"),
        pytest.param("drop-oldest", "Patient", marks=SLOW),
        pytest.param("drop-newest", "Uneven", marks=SLOW),
        ("drop-newest", "Patient"),
    ],
)
def test_dropping_lets_the_others_go_on(place: Place, policy: str, kind: str) -> None:
    """The source does not wait; what the slow one has missed is counted, to the message."""
    run = place.up(project(place, kind, delivery="at-most-once", when_full=policy))
    run.says("has read all")  # the gate is still closed
    assert run.handled("all.2") == 0
    place.touch("gate")
    result = run.wait()
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    entry = result.link(LINK)
    seen = parts(place)
    assert max(map(max, seen)) == 1
    missed = [COUNT - sum(each) for each in seen]
    assert missed[2] >= COUNT - 2 * WINDOW  # the fault happened
    assert missed[:2] == [0, 0]  # and is not the others'
    assert set(entry["dropped"]) <= {"no room: oldest", "no room: newest"}
    assert sum(entry["dropped"].values()) == sum(missed)
    assert (entry["sent"], entry["done"]) == (3 * COUNT, 3 * COUNT - sum(missed))
    assert entry["in_flight"] == entry["redelivered"] == 0
    if policy == "drop-oldest":  # the slow one has the end of the stream, else its beginning
        assert seen[2][-1] == 1
    else:
        assert "no room: oldest" not in entry["dropped"]


def test_a_killed_replica_takes_with_it_what_it_had(place: Place) -> None:
    """At most once: counted as dropped, with its reason; the others do not notice."""
    run = place.up(project(place, delivery="at-most-once", when_full="block"))
    sent = comes_to_rest(run)
    (pid,) = run.kill("all.2")
    run.pid("all.2", other_than=pid)
    place.touch("gate")
    result = run.wait()
    assert (result.code, result.report["status"]) == (0, "drained"), result.text
    entry = result.link(LINK)
    assert set(entry["dropped"]) == {"consumer died"}
    assert 0 < entry["dropped"]["consumer died"] <= sent
    seen = parts(place)
    assert seen[:2] == [[1] * COUNT] * 2
    assert COUNT - sum(seen[2]) == entry["dropped"]["consumer died"]
    assert result.replica("all.2")["restarts"] == 1
