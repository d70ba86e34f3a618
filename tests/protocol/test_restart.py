"""Restart policy, checked against histories of deaths."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.protocol.restart import GiveUp, Restart, RestartPolicy, RestartState

policies = st.builds(
    RestartPolicy,
    policy=st.sampled_from(["on-failure", "always"]),
    max=st.none() | st.integers(0, 8),
    window=st.sampled_from([0.5, 5.0, 60.0]),
    backoff=st.sampled_from([0.0, 0.1, 1.0]),
    backoff_max=st.sampled_from([1.0, 10.0]),
)
# How long the replica lived after each start.
lives = st.lists(st.sampled_from([0.0, 0.01, 0.4, 0.6, 4.0, 30.0, 59.0, 61.0]), max_size=60)
Story = list[tuple[float, Restart | GiveUp]]


def play(policy: RestartPolicy, lives: list[float]) -> Story:
    """Live, die, wait as told, live again; up to the decision to give up."""
    state, now, story = RestartState(policy), 0.0, []
    for life in lives:
        now += life
        decision = state.died(now, clean=False)
        story.append((now, decision))
        if isinstance(decision, GiveUp):
            break
        now += decision.after
    assert state.total == sum(isinstance(decision, Restart) for _, decision in story)
    return story


@given(policies, lives)
def test_no_more_restarts_in_a_window_than_allowed_and_no_fewer(
    policy: RestartPolicy, lives: list[float]
) -> None:
    restarts: list[float] = []
    for now, decision in play(policy, lives):
        recent = [time for time in restarts if now - time < policy.window]
        if isinstance(decision, Restart):
            assert decision.number == len(recent) + 1
            restarts.append(now)
            assert policy.max is None or decision.number <= policy.max
        else:
            assert decision.failed
            assert policy.max is not None and len(recent) == policy.max


@given(policies, lives)
def test_the_delay_doubles_up_to_its_limit_and_starts_over_after_health(
    policy: RestartPolicy, lives: list[float]
) -> None:
    story = [(now, d) for now, d in play(policy, lives) if isinstance(d, Restart)]
    if story:
        assert story[0][1].after == min(policy.backoff, policy.backoff_max)
    for (before, previous), (now, decision) in pairwise(story):
        if now - before - previous.after >= policy.window:
            assert decision.after == policy.backoff
        else:
            assert decision.after == min(2 * previous.after, policy.backoff_max)


@given(policies, st.lists(st.booleans(), max_size=20))
def test_a_clean_end_is_restarted_only_by_always(policy: RestartPolicy, ends: list[bool]) -> None:
    state = RestartState(policy)
    for number, clean in enumerate(ends):
        decision = state.died(number * 100.0, clean)
        if clean and policy.policy == "on-failure":
            assert decision == GiveUp("ended cleanly", failed=False)
        elif clean:
            assert decision == Restart(policy.backoff, 0)
        elif policy.max == 0:
            assert isinstance(decision, GiveUp) and decision.failed
        else:
            assert decision == Restart(policy.backoff, 1)


def test_clean_ends_use_up_no_restarts_but_wait_longer_each_time() -> None:
    state = RestartState(RestartPolicy("always", max=1, backoff_max=0.5))
    ends = [state.died(float(second), clean=True) for second in range(5)]
    assert ends == [Restart(after, 0) for after in (0.1, 0.2, 0.4, 0.5, 0.5)]
    assert state.died(5.0, clean=False) == Restart(0.5, 1)
    assert state.died(6.0, clean=True) == Restart(0.5, 1)
    assert isinstance(state.died(7.0, clean=False), GiveUp)


def test_never() -> None:
    state = RestartState(RestartPolicy("never"))
    decision = state.died(0.0, clean=False)
    assert isinstance(decision, GiveUp) and decision.failed
    assert state.died(0.0, clean=True) == GiveUp("ended cleanly", failed=False)


def test_a_replica_that_is_killed_every_two_seconds_is_given_up_at_the_sixth_death() -> None:
    story = play(RestartPolicy(), [2.0] * 10)
    assert [getattr(d, "after", None) for _, d in story] == [0.1, 0.2, 0.4, 0.8, 1.6, None]
    assert [getattr(d, "number", None) for _, d in story] == [1, 2, 3, 4, 5, None]
    assert story[-1][1] == GiveUp("died 6 times in 60 s, 5 restarts are allowed")


def test_a_back_off_longer_than_the_window_is_no_health() -> None:
    story = play(RestartPolicy(window=1.0), [0.01] * 12)
    delays = [decision.after for _, decision in story if isinstance(decision, Restart)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10])
    assert RestartState(RestartPolicy(window=1.0)).died(0.0, clean=False) == Restart(0.1, 1)


def test_unlimited_goes_on_for_ever() -> None:
    story = play(RestartPolicy(max=None), [0.0] * 5000)
    assert len(story) == 5000
    assert isinstance(story[-1][1], Restart) and story[-1][1].after == 10.0


def test_time_that_goes_back_counts_as_standing_still() -> None:
    state = RestartState(RestartPolicy(max=2))
    assert state.died(100.0, clean=False) == Restart(0.1, 1)
    assert state.died(10.0, clean=False) == Restart(0.2, 2)
    assert isinstance(state.died(120.0, clean=False), GiveUp)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"policy": "sometimes"}, "policy"),
        ({"max": -1}, "max"),
        ({"window": 0.0}, "window"),
        ({"window": float("nan")}, "window"),
        ({"backoff": -0.1}, "backoff"),
        ({"backoff": 11.0}, "backoff"),
        ({"backoff": float("nan")}, "backoff"),
    ],
)
def test_numbers_that_make_no_sense(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        RestartPolicy(**fields)  # type: ignore[arg-type]
