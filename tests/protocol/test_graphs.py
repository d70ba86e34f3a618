"""Whole graphs under kills, breaks, pauses and delays: nothing lost, nothing doubled, nobody hangs.

Every run is repeated by its seed: ``run(graphs.DIAMOND, 17, Faults(kills=4))``.
"""

from __future__ import annotations

from collections import Counter

import pytest

from flowkit.protocol.ledger import Books, total
from tests.protocol import graphs
from tests.protocol.graphs import Graph, Node, graph, passing
from tests.protocol.sim import Faults, run
from tests.protocol.worlds import KillsAfterDone, KillsBeforeDone, Remembering

SEEDS = 5
MANY_SEEDS = 300

FAULTS = {
    "none": Faults(slow=0),
    "delays": Faults(slow=0.2),
    "kills": Faults(kills=5),
    "breaks": Faults(breaks=6),
    "pauses": Faults(pauses=3),
    "all": Faults(kills=4, breaks=4, pauses=2),
    "sources": Faults(kills=5, breaks=2, sources=True),
}

every_graph = pytest.mark.parametrize("graph", graphs.EXACT, ids=lambda graph: graph.name)
every_fault = pytest.mark.parametrize("name", FAULTS)


def play(graph: Graph, name: str, seeds: range) -> Counter[str]:
    """All seeds; how often what happened in them."""
    stats: Counter[str] = Counter()
    if name == "sources" and graph is graphs.COUNT:
        return stats  # a source that begins again is counted again
    for seed in seeds:
        stats += run(graph, seed, FAULTS[name]).stats
    return stats


@every_fault
@every_graph
def test_nothing_is_lost(graph: Graph, name: str) -> None:
    stats = play(graph, name, range(SEEDS))
    if name == "none":
        assert not stats["redelivered"] + stats["resets"] + stats["duplicates"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@every_fault
@every_graph
def test_nothing_is_lost_in_many_runs(graph: Graph, name: str) -> None:
    play(graph, name, range(SEEDS, SEEDS + MANY_SEEDS))


@every_graph
def test_the_faults_do_something(graph: Graph) -> None:
    """A schedule that never redelivers, resets or duplicates proves nothing."""
    stats: Counter[str] = Counter()
    for seed in range(100, 100 + SEEDS):
        stats += run(graph, seed, FAULTS["all"]).stats
    for what in ("kills", "breaks", "pauses", "redelivered", "resets", "duplicates"):
        assert stats[what], what


def test_runs_are_repeated_by_their_seed() -> None:
    def trace(seed: int) -> tuple[object, ...]:
        world = run(graphs.POOL_POOL_SINK, seed, FAULTS["all"])
        return world.now, world.stats, world.rows, world.observed

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


# ---------------------------------------------------------------------------- at most once


@pytest.mark.parametrize("name", ["none", "delays", "kills", "breaks", "pauses", "all"])
@pytest.mark.parametrize(
    "graph",
    [graphs.LOSSY, graphs.LOSSY_FIRST, graphs.LOSSY_LAST, graphs.DROPPING],
    ids=lambda graph: graph.name,
)
def test_at_most_once_ends_and_counts_its_losses(graph: Graph, name: str) -> None:
    for seed in range(SEEDS):
        world = run(graph, seed, FAULTS[name])
        if name == "none" and graph is not graphs.DROPPING:
            assert world.observed["t"] == world.expectation.total["t"]
        for terms in graph.links:
            entry = total(
                Books(row).read() for (link, _, _), row in world.rows.items() if link == terms.index
            )
            assert not terms.lossy or entry.redelivered == 0
        if graph in (graphs.LOSSY, graphs.DROPPING):
            seen = world.observed["t"]
            assert not seen or max(seen.values()) == 1, "delivered twice"


# ---------------------------------------------------------------------------- corners


@pytest.mark.parametrize("name", FAULTS)
def test_dead_letters_are_booked_once(name: str) -> None:
    for seed in range(2 * SEEDS):
        run(graphs.REFUSING, seed, FAULTS[name])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_almost_no_input(count: int, seed: int) -> None:
    few = graph(
        "few",
        [
            Node("s", count=count),
            Node("w", 3, handle=passing("w")),
            Node("t"),
        ],
        [("s.out", "w.in"), ("w.out", "t.in")],
    )
    run(few, seed, Faults(kills=2, breaks=2))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_death_after_done_is_no_crash(seed: int) -> None:
    world = run(graphs.FINISH, seed, Faults(), KillsAfterDone)
    assert world.stats["kills"]
    assert not world.buried
    assert all(replica.incarnation == 1 for replica in world.project.replicas.values())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_without_done_finish_runs_again_under_the_same_ids(seed: int) -> None:
    world = run(graphs.FINISH, seed, Faults(), KillsBeforeDone)
    assert all(
        replica.incarnation == 3
        for replica in world.project.replicas.values()
        if replica.node == "w"
    )
    assert not any((name, n) in world.tainted for name in ("k", "t") for n in (0, 1))


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize("seed", range(3))
def test_ids_are_forgotten(seed: int) -> None:
    long = graph(
        "long",
        [
            Node("s", count=600),
            Node("w", 2, handle=passing("w")),
            Node("t"),
        ],
        [("s.out", "w.in"), ("w.out", "t.in")],
    )
    world = run(long.where(window=8), seed, Faults(breaks=4), Remembering)
    assert isinstance(world, Remembering)
    assert world.ids > 400
    assert world.most <= 3 * 8 * 2, "ids of roots that are settled are not forgotten"
