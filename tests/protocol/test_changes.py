"""Graphs that change during a stream: scaled, restarted, stopped; with deaths and breaks at once.

The oracle is that of `test_graphs`: each message once at single and keyed consumers, order per
key, the books balance, nobody hangs. Every run is repeated by its seed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.protocol import graphs
from tests.protocol.changing import BroadcastWorld, ChangingWorld, FarewellWorld
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


@every_graph
def test_the_changes_do_something(graph: Graph) -> None:
    stats = play(graph, "all", range(100, 100 + 2 * SEEDS), ChangingWorld)
    for what in ("changed", "kills", "breaks", "redelivered"):
        assert stats[what], what


@every_fault
def test_what_finish_sends_comes_once_from_every_life(name: str) -> None:
    silent = replace(
        graphs.FINISH, nodes=tuple(replace(node, finish=None) for node in graphs.FINISH.nodes)
    )
    stats = play(silent, name, range(3 * SEEDS), FarewellWorld)
    assert stats["changed"]


@every_fault
def test_broadcast_is_scaled(name: str) -> None:
    assert play(graphs.BROADCAST, name, range(2 * SEEDS), BroadcastWorld)["changed"]


@pytest.mark.parametrize("name", ["none", "delays", "kills", "breaks", "pauses", "all"])
@pytest.mark.parametrize(
    "graph",
    [graphs.LOSSY, graphs.LOSSY_FIRST, graphs.LOSSY_LAST, graphs.DROPPING],
    ids=lambda graph: graph.name,
)
def test_lossy_graphs_are_changed_and_balance(graph: Graph, name: str) -> None:
    play(graph, name, range(2 * SEEDS), ChangingWorld)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@every_fault
@every_graph
@pytest.mark.parametrize("world", [Scaling, ChangingWorld], ids=lambda world: world.__name__)
def test_many_runs(graph: Graph, name: str, world: type[ChangingWorld]) -> None:
    play(graph, name, range(SEEDS, SEEDS + MANY_SEEDS), world)
