"""Pacing, ages and recovery, without any process."""

from __future__ import annotations

import pytest

from flowkit.bench import latencies, recoveries
from flowkit.bench.growths import growth
from flowkit.bench.latencies import Pacer
from tests.bench.clocks import at


def test_without_a_rate_everything_is_due_in_blocks() -> None:
    pacer = Pacer(2500, None)
    assert [pacer.due(), pacer.due(), pacer.due(), pacer.left] == [1000, 1000, 500, 0]
    assert pacer.pause == 0.0


def test_a_pacer_keeps_to_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = at(100.0, monkeypatch)
    pacer = Pacer(1000, 500.0)
    assert pacer.due() == 1
    assert pacer.pause == pytest.approx(0.002)
    clock.advance(0.01)
    assert pacer.due() == 5
    # What a late wake-up has missed is sent at once.
    clock.advance(1.0)
    assert pacer.due() == 500
    clock.advance(10.0)
    assert pacer.due() == 494
    assert pacer.left == 0


def test_ages_come_to_percentiles_without_the_first_tenth() -> None:
    ages = [10**9] * 10 + [1000] * 90
    found = latencies.figures(ages, first=0.0, last=0.99)
    assert found["p50"] == found["p999"] == pytest.approx(1e-6)
    assert found["rate"] == pytest.approx(100.0)


def timeline(*rates: int) -> list[tuple[float, int]]:
    """A look every 10 ms, for 0.1 s at each of `rates`, from 10.0 on."""
    found, when, count = [(10.0, 0)], 10.0, 0
    for rate in rates:
        for _ in range(10):
            when += 0.01
            count += rate // 100
            found.append((when, count))
    return found


def test_a_worker_that_nobody_misses() -> None:
    found = recoveries.recovery(timeline(*[1000] * 20), killed=11.0)
    assert found["back"] == 0.0
    assert found["rate"] == pytest.approx(1000.0)


def test_the_time_until_the_rate_is_back() -> None:
    # Killed at 11.0: half the rate for 0.4 s, then catching up.
    found = recoveries.recovery(timeline(*[1000] * 10, *[500] * 4, *[1200] * 6), killed=11.0)
    assert found["back"] == pytest.approx(0.3, abs=0.06)


def test_a_rate_that_never_comes_back_takes_all_the_time_there_was() -> None:
    found = recoveries.recovery(timeline(*[1000] * 10, *[500] * 10), killed=11.0)
    assert found["back"] == pytest.approx(1.0, abs=0.11)


def test_nothing_before_the_kill_is_an_error() -> None:
    with pytest.raises(ValueError, match="before the kill"):
        recoveries.recovery(timeline(*[1000] * 10), killed=10.1)


def test_a_sink_tells_lost_from_doubled() -> None:
    seen = bytearray([1, 2, 0, 1, 0])
    assert recoveries.tell(seen, 4, []) == {"distinct": 3, "doubled": 1, "timeline": []}


def test_memory_grows_by_the_most_late_over_the_most_early() -> None:
    samples = [(0.05, 999), (0.1, 100), (0.15, 110), (0.5, 500), (0.92, 130), (0.99, 125)]
    assert growth(samples) == {"memory": 110.0, "grown": 20.0}
    assert growth(samples[:3]) == {}
