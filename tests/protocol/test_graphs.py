"""Whole graphs under kills, breaks, pauses and delays: nothing lost, nothing doubled, nobody hangs.

Every run is repeated by its seed: ``run(graphs.DIAMOND, 17, Faults(kills=4))``.
"""

from __future__ import annotations

from collections import Counter

import pytest

from flowkit.protocol import project
from flowkit.protocol.ledger import Books, total
from tests.protocol import graphs
from tests.protocol.graphs import Graph, Node, graph, passing
from tests.protocol.sim import Faults, Process, World, run

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


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", ["none", "delays", "kills", "breaks", "pauses", "all"])
def test_at_most_once_ends_and_counts_its_losses(name: str, seed: int) -> None:
    world = run(graphs.LOSSY, seed, FAULTS[name])
    seen = world.observed["t"]
    assert not seen or max(seen.values()) == 1, "delivered twice"
    if name == "none":
        assert seen == world.expectation.total["t"]
    first = total(Books(row).read() for (link, _, _), row in world.rows.items() if link == 0)
    assert first.sent == 30
    assert first.redelivered == 0
    assert first.done + sum(first.dropped.values()) == 30


# ---------------------------------------------------------------------------- corners


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


class Bystander(World):
    """A run in which one replica is killed at a chosen moment, again and again."""

    moment = project.Phase.DONE
    times = 3

    def supervise(self) -> None:
        super().supervise()
        for process in list(self.processes.values()):
            chosen = process.replica.phase is self.moment and process.node.name == "w"
            if chosen and process.alive and self.times:
                self.times -= 1
                self.kill(process)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_death_after_done_is_no_crash(seed: int) -> None:
    world = run(graphs.FINISH, seed, Faults(), Bystander)
    assert world.stats["kills"]
    assert not world.buried
    assert all(replica.incarnation == 1 for replica in world.project.replicas.values())


class Finishing(World):
    """Every replica of the pool is killed when it has reported DONE, before that is heard."""

    def heard(self, process: Process, message: project.control.FromReplica) -> None:
        known = isinstance(message, project.control.Done) and process.node.name == "w"
        if known and process.incarnation < 3:
            self.kill(process)
            return
        super().heard(process, message)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_without_done_finish_runs_again_under_the_same_ids(seed: int) -> None:
    world = run(graphs.FINISH, seed, Faults(), Finishing)
    assert all(
        replica.incarnation == 3
        for replica in world.project.replicas.values()
        if replica.node == "w"
    )
    assert not any((name, n) in world.tainted for name in ("k", "t") for n in (0, 1))


# ---------------------------------------------------------------------------- memory


class Remembering(World):
    """Looks at how many ids consumers remember."""

    most = 0
    ids = 0

    def observe(self, process: Process, channel: str, message: str) -> None:
        super().observe(process, channel, message)
        for inbox in process.engine.inboxes.values():
            for receiver in inbox.receivers:
                self.most = max(self.most, len(receiver._seen))

    def judge(self) -> None:
        self.ids = max(len(ids) for ids in self.arrived.values())
        super().judge()


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
