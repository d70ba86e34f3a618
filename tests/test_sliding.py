"""Counters of sliding windows, against a list of everything that happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import SlidingCounter

steps = st.lists(
    st.tuples(
        st.floats(0, 7, allow_nan=False),  # seconds since the step before
        st.floats(0, 15, allow_nan=False),  # how late the event is
        st.sampled_from("ab"),
        st.integers(1, 5),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 12))
def test_a_count_is_never_too_small_and_at_most_one_part_too_old(
    steps: list[tuple[float, float, str, int]], buckets: int
) -> None:
    counter = SlidingCounter(10.0, buckets)
    happened: list[tuple[float, str, int]] = []
    now = 100.0
    for pause, late, key, amount in steps:
        now += pause
        if counter.add(now - late, key, amount):
            happened.append((now - late, key, amount))
        else:
            assert late >= 10.0
        for each in "ab":
            exact = sum(n for at, k, n in happened if k == each and at > now - 10.0)
            # Parts are cut where dividing rounds, so give it the width of a rounding error.
            reach = now - 10.0 - counter.resolution - 1e-9
            most = sum(n for at, k, n in happened if k == each and at >= reach)
            assert exact <= counter.count(now, each) <= most
        assert counter.counts(now) == {
            each: counter.count(now, each) for each in "ab" if counter.count(now, each)
        }


def test_memory_does_not_grow_with_events_or_time() -> None:
    counter = SlidingCounter(60.0, 30)
    for step in range(20_000):
        counter.add(step * 0.1, step // 1000)
    assert len(counter._parts) <= 31 and len(counter._totals) <= 3
    assert counter.count(1e9) == 0
    assert not counter._parts and not counter._totals and counter.counts(1e9) == {}


def test_amounts_of_nothing_and_amounts_that_are_taken_back() -> None:
    counter = SlidingCounter(10.0, 10)
    for now, amount in [(0, 1), (1, 0), (2, -1), (3, 1)]:
        counter.add(now, "a", amount)
    assert [counter.count(now, "a") for now in (3, 11, 12, 13, 14)] == [1, 0, 0, 1, 0]
    assert counter.counts(14) == {}


def test_a_rate_is_a_count_for_each_second() -> None:
    counter = SlidingCounter(10)
    for second in range(100):
        counter.add(second, amount=3)
    assert counter.rate(99) == pytest.approx(3, rel=0.2)
    assert counter.rate(1000) == 0


@pytest.mark.parametrize(("window", "buckets"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_a_window_has_a_length(window: float, buckets: int) -> None:
    with pytest.raises(ValueError, match="longer than nothing"):
        SlidingCounter(window, buckets)
