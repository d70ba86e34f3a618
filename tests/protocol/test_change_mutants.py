"""Planted bugs in how a graph is changed: the simulation must catch each of them."""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.protocol import change, departure, engine, lineage
from flowkit.protocol.events import Terms
from tests.protocol import graphs
from tests.protocol.changing import ChangingWorld, FarewellWorld
from tests.protocol.graphs import Graph
from tests.protocol.processes import Failure
from tests.protocol.sim import Faults, replaced, run
from tests.protocol.test_changes import Scaling

TRIES = 60


def caught(
    graph: Graph,
    faults: Faults,
    world: type[ChangingWorld],
    module: Any,
    **members: Any,
) -> None:
    """Some seed must fail with the mutant, and none of those without it."""
    for seed in range(TRIES):
        try:
            with replaced(module, **members):
                run(graph, seed, faults, world)
        except Failure:
            run(graph, seed, faults, world)
            return
    pytest.fail(f"not caught in {TRIES} runs")


def test_without_rest_the_order_of_keys_is_lost() -> None:
    caught(
        graphs.ORDER,
        Faults(slow=0.1),
        Scaling,
        change.Change,
        _restless=lambda self: [],
    )


def test_a_replica_that_comes_again_has_another_life() -> None:
    real = lineage.Roots.__init__

    def immortal(self: Any, origin: int, incarnation: int, life: int = 1) -> None:
        real(self, origin, incarnation, 1)

    silent = graphs.Graph(
        "goodbyes",
        tuple(graphs.replace(node, finish=None) for node in graphs.FINISH.nodes),
        graphs.FINISH.links,
    )
    caught(silent, Faults(slow=0), UpAndDown, lineage.Roots, __init__=immortal)


def test_what_was_paused_must_be_resumed() -> None:
    caught(
        graphs.POOL_SINK,
        Faults(slow=0),
        Scaling,
        engine.Engine,
        resume=lambda self: None,
    )


class UpAndDown(FarewellWorld):
    """Only the workers are scaled, and back again."""

    changes = 6

    def change(self, kind: str) -> None:
        count = len(self.project.replicas_of("w"))
        if not any(replica.done for replica in self.project.replicas_of("w")):
            self.scale("w", 3 if count == 1 else 1)


class Restarting(ChangingWorld):
    kinds = ("restart",)


def test_producers_must_hold_back() -> None:
    """Else what is under way to a replica that leaves is delivered again."""

    def at_once(self: departure.Departure, on: bool) -> None:
        self._awaited = {}

    class Counted(Restarting):
        def judge(self) -> None:
            super().judge()
            if self.stats["redelivered"]:
                raise Failure("doubled", "a planned restart delivers again")

    caught(graphs.POOL_SINK, Faults(slow=0.1), Counted, departure.Departure, _hold=at_once)


def test_the_version_of_the_map_is_told() -> None:
    """A producer that keeps the old map sends to replicas that are gone."""
    real = engine.Engine.resize

    def deaf(self: Any, link: int, producers: int, consumers: int, version: int) -> None:
        terms: Terms | None = next(
            (one.terms for one in self.senders.values() if one.terms.index == link), None
        )
        if terms is not None and terms.route == "key":
            consumers = terms.consumers
        real(self, link, producers, consumers, version)

    caught(graphs.ORDER, Faults(slow=0), Scaling, engine.Engine, resize=deaf)
