"""Worlds whose graph changes while messages are on their way; see `sim`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowkit.protocol import project
from flowkit.protocol.change import Change
from flowkit.protocol.departure import Arrival, Departure
from flowkit.protocol.events import Terms
from flowkit.protocol.ledger import Entry
from tests.protocol.graphs import Graph, Node
from tests.protocol.processes import Failure, Process
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


class Farewells(Process):
    """Workers say goodbye when their stream ends: something else in each life."""

    def finish(self) -> None:
        world, replica = self.world, self.replica
        assert isinstance(world, FarewellWorld)
        if self.node.name in world.polite:
            world.lives.add((replica.node, replica.number, replica.life))
            root = self.engine.begin_finish()
            self.release(root, [("out", text) for text in world.goodbyes(replica)])
            root.finish()
        self.engine.finished()


class ChangingWorld(World):
    """Now and then a node gets more or fewer replicas, is restarted, or stopped and started."""

    kinds: Sequence[str] = ("scale", "scale", "restart", "stop")
    changes = 4

    def __init__(self, graph: Graph, seed: int, faults: Faults) -> None:
        super().__init__(graph, seed, faults)
        self.nodes = [node.name for node in graph.nodes if not node.source]
        count = self.random.randint(1, self.changes)
        self.wanted_at = sorted(self.random.random() * 0.8 for _ in range(count))
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
        due = self.share_seen() >= self.wanted_at[0]
        if due and self.project.operation is None and self.project.started:
            self.wanted_at.pop(0)
            self.change(self.random.choice(self.kinds))
            self.supervise()

    def share_seen(self) -> float:
        """How much of the work is done."""
        return self.observations / self.wanted

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
        # A stream may end of itself in the middle of a change, which is abandoned then.
        self.stats["changed" if not error else "late" if "ended" in error else "failed"] += 1
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


class FarewellWorld(ChangingWorld):
    """What `finish()` sends arrives once, from every life of every replica."""

    kinds = ("scale",)
    process_class = Farewells
    polite = ("w", "k")

    def __init__(self, graph: Graph, seed: int, faults: Faults) -> None:
        self.lives: set[tuple[str, int, int]] = set()
        super().__init__(graph, seed, faults)

    def goodbyes(self, replica: project.Replica) -> list[str]:
        return [f"bye-{replica.name.replace('.', '')}-{replica.life}-{n}" for n in range(3)]

    def judge(self) -> None:
        for name, number, life in self.lives:
            replica = self.project.replicas[name, number]
            assert 1 <= life <= replica.life
        for replica in self.project.replicas.values():
            if replica.node in self.polite:
                said = {
                    life
                    for name, n, life in self.lives
                    if (name, n) == (replica.node, replica.number)
                }
                # A life that was never introduced, since the change was abandoned, says nothing.
                assert (
                    replica.life in said
                    or replica.discarded
                    or self.stats["failed"] + self.stats["late"]
                )
        for name, number, life in self.lives:
            texts = [f"bye-{name}{number}-{life}-{n}" for n in range(3)]
            for text in texts:
                self._follow(name, text)
        super().judge()

    def _follow(self, source: str, text: str) -> None:
        for link in self.graph.links:
            if link.source == source:
                self.expectation.total[link.target][text] += 1
                for _, sent in self.graph.node(link.target).handle(link.into, text):
                    self._follow(link.target, sent)


class BroadcastWorld(ChangingWorld):
    """Every replica that is there sees each message; how many there are, changes."""

    kinds = ("scale",)

    def __init__(self, graph: Graph, seed: int, faults: Faults) -> None:
        super().__init__(graph, seed, faults)
        for seen in self.expectation.by_origin.values():
            seen.update({output: 1 - times for output, times in seen.items()})

    def share_seen(self) -> float:
        return len(self.observed["w"]) / 24

    def judge_done(self, terms: Terms, link_total: Entry) -> None:
        """It depends on when the replicas came and went."""

    def _judge_node(self, node: Node) -> None:
        wanted, got = self.expectation.total[node.name], self.observed[node.name]
        if missing := wanted.keys() - got.keys():
            raise Failure("lost", f"{node.name} missed {sorted(missing)[:5]}")
        if node.name != "b" or self.faults.kills or self.faults.breaks:
            return
        for (name, number), seen in self.per_replica.items():
            if name == "b" and max(seen.values()) > 1:
                raise Failure("doubled", f"b.{number} saw a message again")
