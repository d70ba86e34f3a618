"""Messages that kill their process: found, named, given up; all others are done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Place, Result, link, node

OWN = "tests.e2e.faulty_nodes:"
COUNT = 500
TEXTS = "texts.texts -> work.texts"


def own(use: str, **facts: Any) -> dict[str, Any]:
    return {**node("", **facts), "use": OWN + use}


def project(place: Place, use: str, at: list[int], how: str = "segfault", **facts: Any) -> Path:
    """Numbers become texts; workers of class `use` pass them on, and some kill them."""
    return place.topology(
        {
            "read": node("Numbers", settings={"count": COUNT}),
            "texts": own("Texts"),
            "work": own(use, settings={"at": at, "how": how}, **facts),
            "tally": own("TextTally", settings={"path": place.file("seen")}),
        },
        [
            link("read.numbers -> texts.numbers"),
            link(TEXTS),
            link("work.results -> tally.texts"),
        ],
    )


def check_all_but(place: Place, result: Result, *bad: int, grouped: bool = False) -> None:
    """All others are done, once; what is missing is said."""
    expected = sorted(f"text {number}" for number in range(COUNT) if number not in bad)
    seen = sorted((place.path / "seen").read_text().splitlines())
    # What waits for a full list may be sent again, since a list is made of several batches.
    assert (sorted(set(seen)) if grouped else seen) == expected
    assert result.report["status"] == "drained", result.text
    assert result.link(TEXTS)["redelivered"] > 0


def check_named(result: Result, *bad: int, how: str = "dead-lettered") -> None:
    """The terminal says which message it was, on which link, for which node, and what is in it."""
    for number in bad:
        # Once more when its batch is delivered again because of another one.
        line, *_ = (line for line in result.out.splitlines() if f"text {number}'" in line)
        assert f"{how} after 3 tries" in line and "killed its process 3 times" in line
        message = line.partition("(message ")[2].partition(",")[0]
        (said,) = (one for one in result.out.splitlines() if f"message {message} on " in one)
        assert f"on {TEXTS} kills work: it is given up" in said


@pytest.mark.parametrize(
    ("use", "how"),
    [
        ("One", "segfault"),
        ("Coroutines", "segfault"),
        ("Lists", "segfault"),
        ("Groups", "segfault"),
        pytest.param("One", "_exit", marks=pytest.mark.slow),
        ("Coroutines", "_exit"),
        pytest.param("Lists", "_exit", marks=pytest.mark.slow),
        pytest.param("Groups", "_exit", marks=pytest.mark.slow),
    ],
)
def test_the_seventh_message_kills(place: Place, use: str, how: str) -> None:
    result = place.up(project(place, use, [6], how, replicas=2)).wait()
    check_all_but(place, result, 6, grouped=use == "Groups")
    check_named(result, 6)
    assert result.code == 4
    entry = result.link(TEXTS)
    assert (entry["done"], entry["dead_lettered"]) == (COUNT - 1, 1)
    assert result.restarts("work") == 3


def test_a_single_worker(place: Place) -> None:
    """Nobody else is there to go on; order does not matter to who is careful."""
    result = place.up(project(place, "One", [6])).wait()
    check_all_but(place, result, 6)
    check_named(result, 6)
    assert (result.code, result.restarts("work")) == (4, 3)


def test_two_in_one_batch(place: Place) -> None:
    # The second is found sooner: its batch is handled with care already.
    result = place.up(project(place, "One", [300, 310], restart={"max": "unlimited"})).wait()
    check_all_but(place, result, 300, 310)
    # The last time both are given up together, and the content of one of them is shown.
    assert result.out.count(f"on {TEXTS} kills work: it is given up") == 2
    assert result.link(TEXTS)["dead_lettered"] == 2
    assert result.code == 4
    assert 5 <= result.restarts("work") <= 6


def test_several_with_the_default_limit_of_restarts(place: Place) -> None:
    """Deaths that were explained do not use up the patience with those that were not."""
    result = place.up(project(place, "One", [6, 200, 400])).wait()
    check_all_but(place, result, 6, 200, 400)
    check_named(result, 6, 200, 400)
    assert result.code == 4


def test_the_project_is_stopped(place: Place) -> None:
    policy = {"then": "stop"}
    result = place.up(project(place, "One", [6], on_error=policy, replicas=2)).wait()
    assert (result.code, result.report["status"]) == (3, "stopped"), result.text
    assert "killed its process 3 times" in result.report["reason"]
    assert result.restarts("work") == 3
    assert result.total("dead_lettered") == 0


def test_the_message_is_dropped(place: Place) -> None:
    policy = {"then": "drop"}
    result = place.up(project(place, "Coroutines", [6], on_error=policy, replicas=2)).wait()
    check_all_but(place, result, 6)
    check_named(result, 6, how="dropped")
    assert result.link(TEXTS)["dropped"] == {"handler failed": 1}
    assert result.code == 0
