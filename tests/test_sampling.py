"""The sliding window: what counters did lately."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.sampling import Change, Window


def filled(*samples: tuple[float, dict[str, list[float]]], seconds: float = 5.0) -> Window:
    window = Window(seconds)
    for now, counters in samples:
        window.add(now, counters)
    return window


def test_nothing_is_known_before_two_samples() -> None:
    assert Window().change("a") == Change(0.0, ())
    assert Window().covered == 0.0
    once = filled((1.0, {"a": [10]}))
    assert once.change("a") == (0.0, [0])
    assert once.change("a").rate(0) == 0.0
    assert once.change("b").rate(7) == 0.0


def test_rates_are_differences_over_the_time_between() -> None:
    window = filled((10.0, {"a": [100, 7]}), (12.0, {"a": [150, 7]}))
    assert window.change("a") == (2.0, [50, 0])
    assert window.change("a").rate(0) == 25.0
    assert window.covered == 2.0


def test_it_looks_back_so_far_and_no_farther() -> None:
    # A burst in the first second, nothing since.
    window = filled(*((float(now), {"a": [1000 if now else 0]}) for now in range(6)))
    assert window.change("a").rate(0) == 200.0
    window.add(6.0, {"a": [1000]})
    assert window.change("a").rate(0) == 0.0
    assert window.covered == 5.0


def test_a_pause_between_looks_widens_it() -> None:
    window = filled((0.0, {"a": [0]}), (60.0, {"a": [600]}))
    assert window.change("a").rate(0) == 10.0


def test_what_is_new_is_compared_with_its_own_first_sample() -> None:
    window = filled((0.0, {}), (1.0, {"a": [5]}), (2.0, {"a": [9]}))
    assert window.change("a") == (1.0, [4])


def test_what_is_gone_has_no_change() -> None:
    assert filled((0.0, {"a": [5]}), (1.0, {})).change("a") == (0.0, ())


def test_a_counter_that_begins_anew_has_not_gone_back() -> None:
    assert filled((0.0, {"a": [5, 1]}), (1.0, {"a": [2, 3]})).change("a") == (1.0, [0, 2])


def test_samples_are_due_one_a_second() -> None:
    window = Window()
    assert window.due(100.0)
    window.add(100.0, {})
    assert not window.due(100.9)
    assert window.due(101.0)


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=60))
def test_it_holds_no_more_than_it_needs(steps: list[float]) -> None:
    window = Window(5.0)
    now = 0.0
    for step in steps:
        now += step
        window.add(now, {"a": [now]})
        assert window.change("a").rate(0) == pytest.approx(1.0) or window.covered == 0.0
    # All within the last five seconds, and one before them.
    assert window.covered < 5.0 + max(steps)
    assert window.covered >= min(5.0, sum(steps[1:])) - 1e-9
