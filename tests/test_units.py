"""Durations, sizes and counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.units import duration, human_bytes, human_count, human_seconds, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("100ms", 0.1),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
        ("1m30s", 90.0),
        ("1h 5m", 3900.0),
        ("1.5h", 5400.0),
        ("250us", 0.00025),
        (" 5 s ", 5.0),
        ("7", 7.0),
        (1.5, 1.5),
        (3, 3.0),
        (0, 0.0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "s", "5 parsecs", "-5s", -1, math.inf, math.nan, "5s3", "1m 30", "5,5s", True]
)
def test_no_durations(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"duration|unit"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 * 2**20),
        ("10kB", 10_000),
        ("10KiB", 10_240),
        ("1.5 GB", 1_500_000_000),
        ("512B", 512),
        ("512", 512),
        ("2k", 2000),
        (4096, 4096),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "5 MiBs", "-5kB", -1, "1.2.3MB", True, 1.5])
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"size|unit"):
        size(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (5012, "5.0k"),
        (61_204, "61k"),
        (999_499, "999k"),
        (999_600, "1.0M"),
        (1_699_180, "1.7M"),
        (2.5e13, "25T"),
        (-5012, "-5.0k"),
    ],
)
def test_human_counts(value: float, text: str) -> None:
    assert human_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (8_500_000, "8.1 MiB"), (2**26, "64 MiB")],
)
def test_human_bytes(value: float, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0s"),
        (0.000084, "84us"),
        (0.0021, "2.1ms"),
        (0.084, "84ms"),
        (3.2, "3.2s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (131, "2m11s"),
        (3900, "1h05m"),
        (90_000, "1d01h"),
        (-3.2, "-3.2s"),
    ],
)
def test_human_seconds(value: float, text: str) -> None:
    assert human_seconds(value) == text


@given(st.floats(min_value=0, max_value=1e15))
def test_columns_stay_narrow(value: float) -> None:
    assert len(human_count(value)) <= 5
    assert len(human_bytes(value)) <= 9


@given(st.text(max_size=12))
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    for parse in (duration, size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)
