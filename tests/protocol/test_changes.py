"""Graphs that change during a stream: scaled, restarted, stopped; with deaths and breaks at once.

The oracle is that of `test_graphs`: each message once at single and keyed consumers, order per
key, the books balance, nobody hangs. Every run is repeated by its seed.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.protocol import graphs
from tests.protocol.changing import ChangingWorld
from tests.protocol.graphs import Graph
from tests.protocol.sim import Faults, run

SEEDS = 2
MANY_SEEDS = 300

GRAPHS = (
    graphs.POOL_SINK,
    graphs.POOL_KEYED_SINK,
    graphs.POOL_POOL_SINK,
    graphs.SOURCES_CHUNKS,
    graphs.DIAMOND,
    graphs.TWO_INPUTS,
    graphs.ORDER,
    graphs.GROUPS,
)

FAULTS = {
    "none": Faults(slow=0),
    "delays": Faults(slow=0.2),
    "kills": Faults(kills=4),
    "breaks": Faults(breaks=5),
    "pauses": Faults(pauses=3),
    "all": Faults(kills=3, breaks=3, pauses=2),
    "sources": Faults(kills=4, breaks=2, sources=True),
}

every_graph = pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
every_fault = pytest.mark.parametrize("name", FAULTS)


class Scaling(ChangingWorld):
    kinds = ("scale",)


def play(graph: Graph, name: str, seeds: range, world: type[ChangingWorld]) -> Counter[str]:
    stats: Counter[str] = Counter()
    for seed in seeds:
        stats += run(graph, seed, FAULTS[name], world).stats
    return stats


@every_fault
@every_graph
def test_scaling_loses_and_doubles_nothing(graph: Graph, name: str) -> None:
    stats = play(graph, name, range(SEEDS), Scaling)
    assert stats["changed"]
    if name in ("none", "delays", "pauses"):
        assert not stats["failed"]
    if name == "none":
        assert not stats["redelivered"] + stats["resets"] + stats["duplicates"]


@every_fault
@every_graph
def test_all_changes_lose_and_double_nothing(graph: Graph, name: str) -> None:
    stats = play(graph, name, range(SEEDS), ChangingWorld)
    if name == "none":
        assert not stats["redelivered"] + stats["resets"] + stats["duplicates"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@every_fault
@every_graph
@pytest.mark.parametrize("world", [Scaling, ChangingWorld], ids=lambda world: world.__name__)
def test_many_runs(graph: Graph, name: str, world: type[ChangingWorld]) -> None:
    play(graph, name, range(SEEDS, SEEDS + MANY_SEEDS), world)
