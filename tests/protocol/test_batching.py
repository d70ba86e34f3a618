"""Batches are as large as is handled in a few milliseconds, and no more wait than that takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis.strategies import floats, integers, lists, tuples

from flowkit.protocol.batching import (
    AHEAD_SECONDS,
    FAST,
    LARGE,
    LARGE_WHOLE,
    MAX_AHEAD,
    MAX_COUNT,
    SLOW,
    Pace,
)


def settled(each: float, size: int = 10, concurrency: int = 1, batches: int = 300) -> Pace:
    """The pace after many full batches of messages that take `each` seconds."""
    pace = Pace(concurrency)
    for _ in range(batches):
        count = pace.max_count
        pace.record(count, count * size, count * each)
    return pace


def test_it_starts_with_single_messages() -> None:
    pace = Pace()
    assert (pace.max_count, pace.ahead) == (1, 2)


def test_fast_handlers_get_large_batches_soon() -> None:
    pace = Pace()
    before = 1
    batches = 0
    while before < MAX_COUNT:
        batches += 1
        pace.record(pace.max_count, pace.max_count, pace.max_count * 1e-7)
        assert before <= pace.max_count <= 4 * before, "neither back nor in leaps"
        before = pace.max_count
        assert batches <= 13


def test_batches_grow_to_what_takes_a_few_milliseconds() -> None:
    for each in (1e-5, 1e-4, 1e-3):
        pace = settled(each)
        assert FAST / 2 <= pace.max_count * each <= SLOW


def test_slow_handlers_get_single_messages() -> None:
    assert settled(1.0).max_count == 1
    pace = settled(1e-7)
    for _ in range(20):
        pace.record(pace.max_count, 10, 1.0)
    assert pace.max_count == 1


def test_a_slow_small_batch_halves_from_its_own_size() -> None:
    pace = settled(1e-7)
    pace.record(10, 100, 0.1)
    assert pace.max_count == 5


def test_between_the_two_it_stays() -> None:
    pace = settled(1e-4)
    before = pace.max_count
    for _ in range(50):
        pace.record(before, 100, (FAST + SLOW) / 2)
    assert pace.max_count == before


def test_large_batches_are_halved_whatever_time_they_take() -> None:
    pace = settled(1e-7)
    pace.record(64, LARGE + 1, 0.0001)
    assert pace.max_count == 32
    assert settled(1e-7, size=10_000).max_count * 10_000 <= LARGE


def test_messages_that_are_not_copied_may_fill_a_larger_batch() -> None:
    pace = settled(1e-7, size=1 << 20)
    assert 1 << 20 < pace.max_count << 20 <= LARGE_WHOLE
    pace.record(64, LARGE_WHOLE + 1, 0.0001)
    assert pace.max_count < 64


def test_messages_that_become_large_come_in_small_batches_soon() -> None:
    """What arrives was cut to what a frame may hold: that is no sign of its being small."""
    pace = settled(1e-7)
    assert pace.max_count == MAX_COUNT
    for _ in range(12):
        count = min(pace.max_count, LARGE_WHOLE >> 20)
        pace.record(count, count << 20, 0.0001)
    assert 1 < pace.max_count <= LARGE_WHOLE >> 20


def test_a_list_that_is_larger_than_any_batch_does_not_make_them_small() -> None:
    pace = settled(1e-7)
    for _ in range(12):
        pace.record(500, 500 << 20, 0.005)
    assert LARGE_WHOLE >> 22 < pace.max_count <= LARGE_WHOLE >> 20


def test_a_message_larger_than_all_travels_alone() -> None:
    assert settled(1e-7, size=100 * LARGE).max_count == 1


def test_slow_handlers_get_little_ahead() -> None:
    assert settled(1.0).ahead == 2
    assert settled(1.0, concurrency=10).ahead == 20


def test_fast_handlers_get_much_ahead_but_not_without_limit() -> None:
    assert settled(1e-9).ahead == MAX_AHEAD


def test_what_is_ahead_is_a_time() -> None:
    pace = settled(0.010)
    assert abs(pace.ahead - AHEAD_SECONDS / 0.010) <= 1


def test_one_hiccup_does_not_close_the_window() -> None:
    pace = settled(0.004)
    before = pace.ahead
    pace.record(1, 100, 0.1)
    assert pace.ahead > before // 5


def test_no_time_at_all_is_no_division_by_zero() -> None:
    pace = Pace()
    pace.record(1, 0, 0.0)
    assert pace.ahead == MAX_AHEAD


def test_a_batch_of_nothing() -> None:
    pace = Pace()
    pace.record(0, 0, 0.0)
    pace.record(0, 0, 0.1)
    assert pace.max_count == 1


@given(lists(tuples(integers(0, MAX_COUNT), integers(0, 1 << 30), floats(0, 100))))
def test_it_never_leaves_its_limits(batches: list[tuple[int, int, float]]) -> None:
    pace = Pace(concurrency=3)
    for batch in batches:
        pace.record(*batch)
        assert 1 <= pace.max_count <= MAX_COUNT
        assert 6 <= pace.ahead <= MAX_AHEAD
