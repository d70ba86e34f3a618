"""The topologies that show a pattern do what they say, in processes that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import load_balancer, pubsub_fanout
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


@pytest.mark.e2e
def test_the_fanout_publishes_to_each_what_it_has_subscribed_to(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    def one(self): ...\n    def two(self): ...\n")
    (tmp_path / "below" / "b.py").write_text("def broken(:\n")
    (tmp_path / "notes.rst").write_text("four words\nare here\n")
    (tmp_path / "raw.md").write_bytes(b"\xff\xfe no text")
    (tmp_path / "data.json").write_text("{}\n")
    (tmp_path / ".hidden.py").write_text("hidden = 1\n")
    env = {"ROOT": str(tmp_path)}
    result = place.up(TOPOLOGIES / "pubsub_fanout.yaml", env=env).wait()
    result.check_drained()
    assert len(pubsub_fanout.documents(str(tmp_path))) == 4
    assert result.printed("python.0") == [
        "   2 methods in a.py: A",
        "2 Python files (1 broken), 2 functions, 1 classes",
    ]
    assert result.printed("prose.0") == ["     4 words in notes.rst", "4 words in 1 texts"]
    assert result.printed("audit.0") == [
        "       4 lines of .py",
        "       2 lines of .rst",
        "       1 lines of .json",
    ]
    sent = {link["to"]: (link["sent"], link["dropped"]) for link in result.report["links"]}
    assert sent == {
        "python.documents": (2, {}),
        "prose.documents": (1, {}),
        "audit.documents": (4, {}),
    }


@pytest.mark.e2e
def test_a_broker_that_is_killed_is_asked_again_when_it_is_back(place: Place) -> None:
    env = {"COUNT": "1000"}
    run = place.up(TOPOLOGIES / "load_balancer.yaml", env=env)
    run.until(lambda: run.handled("table.0") > 20)
    run.kill("broker.0")
    result = run.wait()
    assert result.report["exit"] == 0 and result.report["status"] == "drained"
    assert result.printed("table.0")[-1].startswith("1000 numbers")
    assert result.restarts("broker") == 1
    clients = result.link("client.factorize -> broker.factorize")
    assert clients["sent"] == clients["done"] == 1000 and clients["redelivered"] > 0
    workers = result.link("broker.work -> worker.work")
    assert workers["sent"] == workers["done"] + sum(workers["dropped"].values())
    assert set(workers["dropped"]) <= {"producer died"}
