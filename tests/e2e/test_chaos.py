"""Random projects under random harm: nothing is lost, every run ends, the books balance.

The seed of a failure is in its output. ``FLOWKIT_CHAOS="FIRST:LAST:SECONDS"`` runs other seeds::

    FLOWKIT_CHAOS=1:200:20 pytest tests/e2e/test_chaos.py -m slow
"""

from __future__ import annotations

import os

import pytest

from tests.e2e.chaos import Scenario
from tests.e2e.harness import Place

FIRST, LAST, SECONDS = map(int, os.environ.get("FLOWKIT_CHAOS", "1:6:10").split(":"))


def trial(place: Place, seed: int, seconds: float, pause: float = 0.25) -> None:
    scenario = Scenario(seed)
    scenario.pause = pause
    print(scenario)
    run = place.up(scenario.topology(place))
    run.ready()
    scenario.suffer(run, seconds)
    place.touch("stop")
    scenario.judge(place, run.wait(90))


def test_a_little(place: Place) -> None:
    trial(place, 1002, 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(FIRST, LAST + 1))
def test_much(place: Place, seed: int) -> None:
    trial(place, seed, SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [10, 167])
def test_pools_before_a_durable_link(place: Place, seed: int) -> None:
    """Workers are killed more often than they can be started, many of them in an fsync."""
    trial(place, seed, SECONDS, pause=0.12)
