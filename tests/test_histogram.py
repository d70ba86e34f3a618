"""Histograms of times: where values are counted, and what percentiles are read off them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.histogram import BOUNDS, CELLS, COARSE, SUM, quantile, record, total

times = st.floats(2e-6, 1000.0)


def histogram(*values: float) -> list[int]:
    cells = [0] * CELLS
    for value in values:
        record(cells, 0, value)
    return cells


def test_the_bounds_are_ten_in_each_power_of_ten() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS)) and len(BOUNDS) == 91
    assert (BOUNDS[0], BOUNDS[-1]) == (1e-6, 1000.0)
    assert all(1.2 < after / before < 1.3 for before, after in pairwise(BOUNDS))
    assert [BOUNDS[place] for place in COARSE][:4] == [1e-6, 2e-6, 5e-6, 1e-5]
    assert [BOUNDS[place] for place in COARSE][-2:] == [500.0, 1000.0]


@pytest.mark.parametrize(
    ("value", "place"),
    [(0.0, 0), (1e-6, 0), (1.01e-6, 1), (1.0, 60), (1000.0, 90), (1000.1, 91), (1e9, 91)],
)
def test_a_value_belongs_to_the_bucket_that_it_does_not_exceed(value: float, place: int) -> None:
    cells = histogram(value)
    assert [at for at, count in enumerate(cells[:SUM]) if count] == [place]
    assert cells[SUM] == int(value * 1e9)


def test_a_histogram_may_lie_anywhere_in_a_row_and_count_many_at_once() -> None:
    row = [0] * (CELLS + 20)
    record(row, 10, 0.5, 7)
    assert total(row[10 : 10 + CELLS]) == 7 and row[10 + SUM] == 3_500_000_000
    assert not any(row[:10]) and not any(row[10 + CELLS :])


def test_nothing_has_no_percentile() -> None:
    assert quantile([0] * CELLS, 0.5) is None


def test_what_is_longer_than_all_bounds_counts_as_the_last() -> None:
    assert quantile(histogram(5000.0), 0.99) == 1000.0


@given(st.lists(times, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_right_to_the_width_of_a_bucket(values: list[float], share: float) -> None:
    found = quantile(histogram(*values), share)
    exact = sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]
    assert found is not None and exact / 1.3 <= found <= exact * 1.3


@given(st.lists(times, max_size=50), st.lists(times, max_size=50))
def test_histograms_add_up(one: list[float], two: list[float]) -> None:
    both = [first + second for first, second in zip(histogram(*one), histogram(*two), strict=True)]
    assert both == histogram(*one, *two)
