"""What rounds come to: spreads, ratios, percentiles, and how long the next trial is."""

from __future__ import annotations

import pytest

from flowkit.bench.payload import messages
from flowkit.bench.results import (
    Contestant,
    Figure,
    Outcome,
    Row,
    RowResult,
    Spread,
    next_count,
    percentile,
    ratio,
)
from flowkit.bench.tally import Tally, figures


def outcome(name: str, *rates: float | None, group: str = "") -> Outcome:
    rounds = [None if rate is None else {"rate": rate} for rate in rates]
    return Outcome(Contestant(name, "m:f", group=group), rounds=list(rounds))


def test_a_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was half as fast in the second round, for both.
    ours, theirs = outcome("ours", 100.0, 50.0), outcome("theirs", 10.0, 5.0)
    assert ratio(ours, theirs, "rate") == Spread(10.0, 10.0, 10.0)


def test_a_failed_round_has_no_ratio() -> None:
    ours, theirs = outcome("ours", 100.0, None, 90.0), outcome("theirs", 10.0, 5.0)
    assert ratio(ours, theirs, "rate") == Spread(10.0, 10.0, 10.0)
    assert ratio(outcome("ours", None), theirs, "rate") is None
    assert outcome("ours", None).spread("rate") is None


def test_a_ratio_to_nothing_is_none() -> None:
    assert ratio(outcome("ours", 1.0), outcome("theirs", 0.0), "rate") is None


def test_the_baseline_is_the_first_of_the_group() -> None:
    outcomes = [outcome("a", group="x"), outcome("a", group="y"), outcome("b", group="y")]
    result = RowResult(Row("r", "", "", [Figure("rate", "", "rate")], []), outcomes)
    assert result.baseline(outcomes[2]) is outcomes[1]
    assert result.find("a", "y") is outcomes[1]
    assert result.find("b", "x") is None
    assert outcomes[2].contestant.key == "y: b"


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.0, 1)]
)
def test_percentiles_are_nearest_ranks(share: float, value: int) -> None:
    assert percentile(list(range(1, 101)), share) == value


def test_percentiles_of_little() -> None:
    assert percentile([7], 0.999) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_good_trial_tells_the_count() -> None:
    assert next_count(1000, 0.5, 1.0) == (2000, True)
    assert next_count(1000, 4.0, 1.0) == (250, True)


def test_a_short_trial_is_followed_by_a_longer_one() -> None:
    assert next_count(1000, 0.1, 1.0) == (10_000, False)
    assert next_count(1000, 0.0001, 1.0) == (30_000, False)
    assert next_count(1000, 0.0, 1.0) == (30_000, False)


def test_there_is_always_something_to_measure() -> None:
    assert next_count(5, 1000.0, 1.0) == (2, True)


def test_figures_are_from_the_first_message_to_the_last_of_all() -> None:
    found = figures([Tally(500, 10.0, 11.5), Tally(501, 10.5, 12.0)], 1001, size=8)
    assert (found["rate"], found["seconds"], found["bandwidth"]) == (500.0, 2.0, 4000.0)
    assert (found["count"], found["missed"]) == (1001, 0)


@pytest.mark.parametrize("count", [99, 101])
def test_a_round_in_which_messages_are_missing_is_none(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} messages have arrived, and 100 were sent"):
        figures([Tally(count, 0.0, 1.0)], 100)


def test_what_may_be_missed_is_told_and_does_not_count() -> None:
    # The third got nothing: it has no first message, and the end of its stream came later.
    tallies = [Tally(50, 10.0, 11.0), Tally(26, 10.5, 12.0), Tally(0, 0.0, 13.0)]
    found = figures(tallies, 300, lossy=True)
    assert found["rate"] == pytest.approx(75 / 2)
    assert (found["count"], found["missed"]) == (76, pytest.approx(224 / 300))
    assert figures([Tally(100, 0.0, 1.0)], 100)["missed"] == 0
    for count in (0, 101):
        with pytest.raises(ValueError, match="have arrived, and 100 were sent"):
            figures([Tally(count, 0.0, 1.0)], 100, lossy=True)


def test_messages_are_what_they_are_called() -> None:
    assert next(messages("bytes")) == b"message"
    assert len(next(messages("bytes", 1024))) == 1024
    first, second = messages("dict"), messages("struct")
    one, other = next(first), next(second)
    assert set(one) == {"id", "name", "value"} and one["name"] == other.name
    assert next(first) != one
