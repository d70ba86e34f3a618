"""Worlds whose graph changes while messages are on their way; see `sim`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowkit.protocol import project
from flowkit.protocol.change import Change
from flowkit.protocol.departure import Arrival, Departure
from flowkit.protocol.events import Terms
from tests.protocol.graphs import Graph
from tests.protocol.processes import Process
from tests.protocol.sim import Faults, World

LIMIT = 90.0
"""Virtual seconds for each step of a change: faults may hold it up, not make it fail."""


def resized(
    members: Sequence[project.Member], links: Sequence[Terms], node: str, replicas: int
) -> tuple[list[project.Member], list[Terms]]:
    """The same graph with another number of replicas of one node."""
    fresh = []
    for link in links:
        if link.source == node:
            link = replace(link, producers=replicas)
        if link.target == node:
            version = link.version + (link.route == "key")
            link = replace(link, consumers=replicas, version=version)
        fresh.append(link)
    return [
        member._replace(replicas=replicas) if member.name == node else member for member in members
    ], fresh


class ChangingWorld(World):
    """Now and then a node gets more or fewer replicas, is restarted, or stopped and started."""

    kinds: Sequence[str] = ("scale", "scale", "restart", "stop")
    changes = 4

    def __init__(self, graph: Graph, seed: int, faults: Faults) -> None:
        super().__init__(graph, seed, faults)
        self.nodes = [node.name for node in graph.nodes if not node.source]
        count = self.random.randint(1, self.changes)
        self.wanted_at = sorted(self.random.random() * 0.95 for _ in range(count))
        self.after(0.1, self.look)

    def links_for(self, replica: project.Replica) -> Sequence[Terms]:
        operation = self.project.operation
        if isinstance(operation, Change) and replica in operation.added:
            return operation.links
        return super().links_for(replica)

    def look(self) -> None:
        """Begin the next change, if it is due."""
        if not self.wanted_at or self.project.status is not project.Status.RUNNING:
            return
        self.after(0.05, self.look)
        due = self.observations >= self.wanted_at[0] * self.wanted
        if due and self.project.operation is None and self.project.started:
            self.wanted_at.pop(0)
            self.change(self.random.choice(self.kinds))
            self.supervise()

    def change(self, kind: str) -> None:
        name = self.random.choice(self.nodes)
        if kind == "restart":
            name = self.random.choice([node.name for node in self.graph.nodes])
        replicas = self.project.replicas_of(name)
        if any(replica.done for replica in replicas):
            return
        if kind == "scale":
            last = name == self.nodes[-1]  # is single, and tells what was doubled
            if last or self.graph.node(name).group or self.project_has_stopped():
                return  # copies in a group, in a pool, have other ids
            self.scale(name, self.random.randint(1, 4))
            return
        replica = self.random.choice(replicas)
        if replica.phase is project.Phase.STOPPED:
            self.operate(Arrival(self.project, replica, LIMIT))
            return
        self.operate(Departure(self.project, replica, kind == "restart", LIMIT))

    def scale(self, name: str, count: int) -> None:
        members, links = resized(self.members, self.project.links, name, count)
        pool = any(link.target == name and link.route == "balance" for link in links)
        if pool and count > 1 and (self.faults.kills or self.faults.breaks):
            self.tainted.add((name, 0))  # a copy may go to another replica
        self.operate(Change(self.project, members, links, LIMIT))

    def operate(self, operation: project.Operation) -> None:
        self.progress_at = self.now
        self.stats[f"begun {type(operation).__name__}"] += 1
        self.project.operate(operation, self.now)

    def project_has_stopped(self) -> bool:
        stopped = project.Phase.STOPPED
        return any(replica.phase is stopped for replica in self.project.replicas.values())

    def completed(self, operation: project.Operation, error: str) -> None:
        self.progress_at = self.now
        self.stats["failed" if error else "changed"] += 1
        match operation:
            case Change():
                if not error:
                    self.members = list(operation.members.values())
                    for replica in operation.removed:
                        assert replica.phase is project.Phase.REMOVED
            case Departure(replica=replica, again=again):
                faults = self.faults
                if faults.kills or faults.breaks:
                    # What it knew of ids is forgotten; copies come only where others die as well.
                    self.tainted.add((replica.node, replica.number))
                    self.begun_again |= bool(self.graph.node(replica.node).group)
                    self.begun_again |= replica.source and bool(faults.kills)
                if not again:
                    self.after(self.random.random() * 10, lambda: self.start_again(replica))

    def start_again(self, replica: project.Replica) -> None:
        if self.project.status is not project.Status.RUNNING:
            return
        if self.project.operation is not None:
            self.after(1.0, lambda: self.start_again(replica))
        elif replica.phase is project.Phase.STOPPED:
            self.operate(Arrival(self.project, replica, LIMIT))
            self.supervise()

    def kill(self, process: Process) -> None:
        self.progress_at = self.now
        super().kill(process)
