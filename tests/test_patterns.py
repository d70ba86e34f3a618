"""The topologies that show a pattern do what they say, in processes that may be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from examples import load_balancer
from flowkit.runtime.shared import HANDLER
from tests.e2e.harness import ROOT, Place

TOPOLOGIES = ROOT / "topologies"


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.mark.e2e
def test_the_load_balancer_finds_what_a_plain_loop_finds(place: Place) -> None:
    result = place.up(TOPOLOGIES / "load_balancer.yaml", env={"COUNT": "100"}).wait()
    result.check_drained()
    numbers = range(10**10, 10**10 + 100)
    primes = sum(len(load_balancer.factors_of(number)) == 1 for number in numbers)
    *rows, last = result.printed("table.0")
    assert last == f"100 numbers, {primes} of them prime"
    for row in rows:
        number, _, factors = row.partition(" = ")
        assert factors == " x ".join(map(str, load_balancer.factors_of(int(number))))
    asked = result.link("broker.work -> worker.work")
    assert asked["sent"] == asked["done"] == 100 and asked["redelivered"] == 0
    busy = [node["handled"] for node in result.report["nodes"] if node["node"] == "worker"]
    assert len(busy) == 3 and min(busy) > 0


@pytest.mark.e2e
def test_a_worker_that_is_killed_with_a_question_in_hand_still_answers_the_client(
    place: Place,
) -> None:
    prime = 10**15 + 37  # a second of work: time enough to be killed
    env = {"FIRST": str(prime), "COUNT": "1"}
    run = place.up(TOPOLOGIES / "load_balancer.yaml", env=env)

    def at_work() -> str:
        workers = [f"worker.{number}" for number in range(3)]
        return next((one for one in workers if run._rows(one, lambda r: r.gauges[HANDLER])), "")

    victim = run.until(at_work)
    run.kill(victim)
    result = run.wait()
    result.check_drained()
    assert result.printed("table.0") == [f"{prime} = {prime}", "1 numbers, 1 of them prime"]
    assert result.restarts("worker") == 1
    asked = result.link("broker.work -> worker.work")
    assert (asked["sent"], asked["done"], asked["redelivered"]) == (1, 1, 1)
    clients = result.link("client.factorize -> broker.factorize")
    assert (clients["done"], clients["redelivered"]) == (1, 0)
