"""Who is stuck, as far as one can tell from outside."""

from __future__ import annotations

import pytest

from flowkit.protocol.watch import Watch, interval


@pytest.mark.parametrize(
    ("watchdogs", "seconds"),
    [([], 1.0), ([30.0], 1.0), ([30.0, 2.0], 0.5), ([0.4, 100.0], 0.1)],
)
def test_how_often_to_look(watchdogs: list[float], seconds: float) -> None:
    assert interval(watchdogs) == pytest.approx(seconds)


def test_a_loop_that_stands_still() -> None:
    watch = Watch(0.5)
    for step in range(1, 20):
        now = 100 + step / 2
        stuck = watch.look(now, {"turns": (now - 0.1, 2.0), "stands": (100.0, 2.0)})
        assert stuck == (["stands"] if now > 102 else [])


def test_each_has_its_own_watchdog() -> None:
    watch = Watch(0.5)
    watch.look(99.5, {})
    assert watch.look(100.0, {"a": (95.0, 4.9), "b": (95.0, 5.0), "c": (95.0, 5.1)}) == ["a"]


def test_who_looks_late_blames_nobody() -> None:
    """All processes of a machine that slept stood still; none of them is to blame."""
    watch = Watch(0.5)
    watch.look(100.0, {})
    assert watch.look(160.0, {"a": (100.0, 30.0)}) == []
    # It had time to turn, and has not.
    assert watch.look(160.5, {"a": (100.0, 30.0), "b": (160.4, 30.0)}) == ["a"]
    # A little late is no reason.
    assert watch.look(161.5, {"a": (100.0, 30.0)}) == ["a"]


def test_the_first_look_may_find_somebody() -> None:
    assert Watch(0.5).look(100.0, {"a": (90.0, 5.0)}) == ["a"]
