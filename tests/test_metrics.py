"""The verdict: which node limits the flow, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.metrics import Share, Verdict, verdict


def source(name: str = "read", waiting: float = 0.0) -> Share:
    return Share(name, 0.0, waiting, True)


def worker(name: str, busy: float, waiting: float = 0.0, **more: Any) -> Share:
    return Share(name, busy, waiting, False, **more)


def test_the_busiest_node_is_the_bottleneck() -> None:
    said = verdict([source(waiting=0.9), worker("split", 0.97123), worker("count", 0.3)])
    assert said == Verdict("split", 0.9712, "scale split")


def test_a_node_that_all_wait_for_is_one_even_if_it_is_not_busy_all_the_time() -> None:
    said = verdict([source(waiting=0.8), worker("fetch", 0.2), worker("show", 0.1)])
    assert (said.bottleneck, said.advice) == ("fetch", "scale fetch")


def test_a_stateful_node_cannot_just_be_scaled() -> None:
    said = verdict([source(), worker("count", 0.9, stateful=True)])
    assert said.bottleneck == "count"
    assert said.advice == "scale count, with route: key on its input, or make its handler faster"


def test_a_source_that_reads_all_the_time_limits() -> None:
    reading = Share("slow", 0.9, 0.1, True)
    said = verdict([reading, Share("fast", 0.5, 0.5, True), worker("split", 0.4)])
    assert said == Verdict("slow", 0.9, "everything waits for slow to read its input")


@pytest.mark.parametrize("shares", [[], [source(waiting=1.0)], [worker("idle", 0.0)]])
def test_nothing_limits_when_there_is_nothing_to_do(shares: list[Share]) -> None:
    assert verdict(shares) == Verdict(None, 0.0, "nothing limits: there is little to do")


share = st.floats(0, 1)
shares = st.lists(
    st.builds(Share, st.sampled_from("abcdef"), share, share, st.booleans(), st.booleans()),
    max_size=6,
)


@given(shares)
def test_any_verdict_names_a_node_that_there_is(all_shares: list[Share]) -> None:
    said = verdict(all_shares)
    assert said.bottleneck is None or said.bottleneck in {one.node for one in all_shares}
    assert 0.0 <= said.busy <= 1.0
    assert said.advice and (said.bottleneck or "") in said.advice
