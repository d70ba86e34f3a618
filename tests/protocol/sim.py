"""A simulator of whole projects: real cores, a toy network, toy processes, virtual time.

Everything that is random comes from one generator with a seed, so that a failure is repeated by its
seed. The cores (`Engine`, `Project`) and the bytes of the frames are the real ones; simulated are

* connections: FIFO in each direction with random delays; a broken one loses what is under way, and
  what its consumer says next comes from a new peer id;
* processes: frames wait in a mailbox and are handled in turns; a handler takes time; a process may
  be paused, or killed in the middle of a turn, when only some of its actions were carried out;
* the supervisor: control channels with delays, exits noticed before or after last words.

`run` plays one seed and raises `Failure` if the oracle is not satisfied.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flowkit.protocol import control, lineage, project
from flowkit.protocol.events import Terms
from flowkit.protocol.ledger import ROW, Books, Entry, total
from flowkit.protocol.restart import RestartPolicy
from tests.protocol.graphs import Expectation, Graph, Node, expect, key_of
from tests.protocol.processes import Connection, Failure, Process

PATIENCE = 150.0
"""Virtual seconds without any message handled, and without a fault, after which a run hangs."""

HARMLESS = re.compile(
    r"reset: unknown session"
    r"|session with replica \d+ ended"
    r"|refused: fenced"
)
"""Complaints that faults alone explain. Any other says that a peer broke a rule."""


@dataclass(frozen=True)
class Faults:
    """How many faults of each kind to inject. `sources`: whether they may be killed, too."""

    kills: int = 0
    breaks: int = 0
    pauses: int = 0
    slow: float = 0.02
    """Share of frames that are delayed by seconds."""
    sources: bool = False
    sinks: bool = True


class World:
    """One run of a graph."""

    process_class = Process

    def __init__(self, graph: Graph, seed: int, faults: Faults) -> None:
        self.graph = graph
        self.faults = faults
        self.random = random.Random(seed)
        self.fast = self.random.random() < 0.3
        if self.random.random() < 0.5:
            self.graph = graph = graph.where(window=self.random.choice((1, 2, 8)))
        self.now = 0.0
        self.progress_at = 0.0
        self.ending = False
        self.stats: Counter[str] = Counter()
        self.expectation: Expectation = expect(graph)
        self.wanted = sum(seen.total() for seen in self.expectation.total.values())
        self.observations = 0
        self.observed: dict[str, Counter[str]] = {node.name: Counter() for node in graph.nodes}
        self.per_replica: dict[tuple[str, int], Counter[str]] = {}
        self.last: dict[tuple[str, ...], int] = {}
        self.tainted: set[tuple[str, int]] = set()
        self.begun_again = False
        """Whether a replica died in which streams begin: a source, or one that groups."""
        self.committed: dict[tuple[str, int], int] = {}
        self.rows: dict[tuple[int, int, int], list[int]] = {}
        self.given_up: Counter[str] = Counter()
        self.buried: set[tuple[str, int, int]] = set()
        self.peers: dict[bytes, Connection] = {}
        self.bound: dict[str, Process] = {}
        self.processes: dict[tuple[str, int], Process] = {}
        self.arrived: dict[tuple[Process, int], set[bytes]] = {}
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        policy = RestartPolicy("on-failure", None, 60.0, 0.1, 2.0)
        self.members: list[project.Member] = []
        origin = 1
        for node in graph.nodes:
            member = project.Member(node.name, node.replicas, policy, node.source, False, origin)
            self.members.append(member)
            origin += node.replicas
        self.project = project.Project(self.members, graph.links)
        self.span = self.random.choice((4, 16, lineage.MAX_SPAN))
        self.plan = self._plan()

    # -- time ----------------------------------------------------------------------------------

    def at(self, time: float, event: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, event))

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        self.at(self.now + seconds, event)

    def delay(self) -> float:
        seconds = self.random.random() * 0.02
        if self.random.random() < self.faults.slow:
            seconds += self.random.random() * 4
        return seconds

    def run(self) -> None:
        """Play until every process has left; then the oracle is asked."""
        self.project.start(0.0)
        self.supervise()
        while self.project.status is project.Status.RUNNING:
            if not self._events:
                raise Failure("hung", self.describe())
            self.now, _, event = heapq.heappop(self._events)
            if self.now - self.progress_at > PATIENCE:
                raise Failure("hung", self.describe())
            event()
            if self.plan:
                self.inject()
        self.judge()

    def describe(self) -> str:
        lines = [f"at {self.now:.1f} s, {self.observations} of {self.wanted} seen"]
        for process in self.processes.values():
            if process.alive:
                engine = process.engine
                inputs = [
                    f"{receiver.terms.name} {receiver.producer}: {receiver.state.value}"
                    f" queue {len(receiver.queue)} held {receiver.held}"
                    for inbox in engine.inboxes.values()
                    for receiver in inbox.receivers
                ]
                outputs = [
                    f"{sender.terms.name}: {sender.messages} messages,"
                    f" sessions {[session.replica for session in sender.sessions]}"
                    for sender in engine.senders.values()
                ]
                lines.append(f"  {process} {engine.phase.value} {inputs} {outputs}")
        return "\n".join(lines)

    # -- the supervisor ------------------------------------------------------------------------

    def supervise(self) -> None:
        actions = self.project.actions
        while actions:
            action = actions.popleft()
            match action:
                case project.Launch(replica):
                    process = self.process_class(self, replica)
                    self.processes[replica.node, replica.number] = process
                case project.Tell(replica, message):
                    self.tell(self.processes[replica.node, replica.number], message)
                case project.Bury(replica, incarnation):
                    self.buried.add((replica.node, replica.number, incarnation))
                case project.Kill(replica):
                    self.kill(self.processes[replica.node, replica.number])
                case project.Completed(operation, error):
                    self.completed(operation, error)
        due = self.project.wake_at
        if due is not None:
            self.at(max(due, self.now), self._project_tick)

    def links_for(self, replica: project.Replica) -> Sequence[Terms]:
        """The links that a process is launched with."""
        return self.project.links

    def completed(self, operation: project.Operation, error: str) -> None:
        """An operation is over."""

    def _project_tick(self) -> None:
        due = self.project.wake_at
        if due is not None and due <= self.now:
            self.project.tick(self.now)
            self.supervise()

    def tell(self, process: Process, message: control.FromSupervisor) -> None:
        parts = control.encode(message)
        process.told_at = max(process.told_at, self.now + self.delay())
        deliver = process.from_supervisor
        self.at(process.told_at, lambda: process.receive(lambda: deliver(parts)))

    def heard(self, process: Process, message: control.FromReplica) -> None:
        replica = process.replica
        self.progress_at = self.now
        match message:
            case control.Ready(_, node, number, incarnation, addresses):
                self.project.ready(node, number, incarnation, addresses)
            case control.Done(incarnation):
                self.project.done(replica, incarnation)
            case control.Resting() | control.Held() | control.Resized():
                self.project.heard(replica, message)
        self.supervise()

    def end(self, process: Process) -> None:
        """The process is no more."""
        process.alive = False
        for connection in process.connections.values():
            connection.close()
        for address in process.addresses.values():
            del self.bound[address]
        noticed = self.now + self.random.random() * 0.5
        if self.random.random() < 0.7:
            noticed = max(process.says_at, noticed)
        code = 0 if process.clean else -9

        def notice() -> None:
            self.project.exited(process.replica, process.incarnation, code, None, self.now)
            self.supervise()

        self.at(noticed, notice)

    # -- faults --------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[float, str]]:
        """Faults by when they strike: a share of the work, or above 1 a chance at the end."""
        faults = self.faults
        kinds = ["kill"] * faults.kills + ["break"] * faults.breaks + ["pause"] * faults.pauses
        return sorted((self.random.random() * 1.3, kind) for kind in kinds)

    def inject(self) -> None:
        when, kind = self.plan[0]
        if when > 1:
            if not (self.ending and self.random.random() < 0.02):
                return
        elif self.observations < when * self.wanted or self.random.random() > 0.1:
            return
        self.plan.pop(0)
        self.progress_at = self.now
        living = [process for process in self.processes.values() if process.alive]
        if kind == "kill":
            self._inject_kill([process for process in living if self.may_kill(process)])
        elif kind == "break":
            connections = [
                connection
                for process in living
                for connection in process.connections.values()
                if connection.open
            ]
            if connections:
                self.stats["breaks"] += 1
                self.random.choice(connections).break_()
        elif living:
            process = self.random.choice(living)
            process.paused_until = self.now + self.random.choice((0.5, 3.0, 9.0))
            self.stats["pauses"] += 1

    def may_kill(self, process: Process) -> bool:
        node = process.node
        sink = not any(link.source == node.name for link in self.graph.links)
        return (
            not node.immune
            and (self.faults.sources or not node.source)
            and (self.faults.sinks or not sink)
        )

    def _inject_kill(self, victims: list[Process]) -> None:
        if not victims:
            return
        last = [process for process in victims if process.finishing]
        if last and self.random.random() < 0.5:
            victims = last
        many = self.random.choice((1, 1, 1, 2, len(victims)))
        for process in self.random.sample(victims, min(many, len(victims))):
            if self.random.random() < 0.5:
                process.dies_after = self.random.randint(0, 4)
                process.wake()
            else:
                self.kill(process)

    def kill(self, process: Process) -> None:
        """kill -9: the last words of it may be lost, but the books stay."""
        if not process.alive:
            return
        self.stats["kills"] += 1
        replica = process.replica
        self.tainted.add((replica.node, replica.number))
        self.begun_again |= process.node.source or bool(process.node.group)
        for connection in process.connections.values():
            connection.close()
        for connection in self.peers.values():
            if connection.address in process.addresses.values() and self.random.random() < 0.5:
                connection.epoch += 1
        self.end(process)

    def new_peer(self, connection: Connection) -> bytes:
        self._count += 1
        peer = b"peer%d" % self._count
        self.peers[peer] = connection
        return peer

    # -- the oracle ----------------------------------------------------------------------------

    def row(self, link: int, process: Process) -> list[int]:
        key = (link, process.replica.number, process.incarnation)
        return self.rows.setdefault(key, [0] * ROW)

    def observe(self, process: Process, channel: str, message: str) -> None:
        name, number = process.node.name, process.replica.number
        self.observations += 1
        self.progress_at = self.now
        self.observed[name][message] += 1
        self.per_replica.setdefault((name, number), Counter())[message] += 1
        if process.node.ordered and self.observed[name][message] == 1:
            stem, _, position = message.split("/", 1)[0].partition(".")
            stream = (name, channel, stem, key_of(message))
            if self.last.get(stream, -1) >= int(position):
                raise Failure("order", f"{process}: {message} after {self.last[stream]}")
            self.last[stream] = int(position)

    def commit(self, process: Process, position: int) -> None:
        """What is committed has happened, down to the last sink."""
        key = (process.replica.node, process.replica.number)
        for place in range(self.committed.get(key, 0), position):
            for (name, message), times in self.expectation.by_origin[(*key, place)].items():
                if self.observed[name][message] < times and not self.lossy:
                    raise Failure("rule", f"committed {position} before {name} saw {message}")
        self.committed[key] = max(position, self.committed.get(key, 0))

    @property
    def lossy(self) -> bool:
        return any(link.lossy for link in self.graph.links)

    def complaint(self, process: Process, text: str) -> None:
        self.stats["resets"] += 1
        if not HARMLESS.search(text):
            raise Failure("rule", f"{process} complains: {text}")

    def check_empty(self, process: Process) -> None:
        """A replica that leaves owes nothing and remembers little."""
        engine = process.engine
        for sender in engine.senders.values():
            if sender.messages or sender.bytes:
                raise Failure("left", f"{process} leaves {sender.messages} messages")
        if engine.in_hand or not engine.roots.idle or process.hands:
            raise Failure("left", f"{process} leaves work in hand")

    def judge(self) -> None:
        if self.project.status is not project.Status.DRAINED:
            raise Failure("hung", f"ended as {self.project.status}: {self.project.reason}")
        for node in self.graph.nodes:
            if not node.source:
                self._judge_node(node)
        self._judge_books()
        for name, refused in self.expectation.refused.items():
            copies = self.stats["kills"] or self.stats["breaks"]
            if self.given_up[name] < refused or (self.given_up[name] > refused and not copies):
                raise Failure("books", f"{name} gave up {self.given_up[name]}, not {refused}")

    def _judge_node(self, node: Node) -> None:
        wanted, got = self.expectation.total[node.name], self.observed[node.name]
        if unwanted := got.keys() - wanted.keys():
            raise Failure("rule", f"{node.name} saw what nobody sent: {sorted(unwanted)[:3]}")
        missing = wanted - got
        if missing and not self.lossy:
            raise Failure("lost", f"{node.name} missed {sorted(missing)[:5]} ({len(missing)})")
        dead = any(name == node.name for name, _ in self.tainted)
        if dead or self.begun_again or not self.graph.is_exact(node.name):
            return
        if doubled := got - wanted:
            raise Failure("doubled", f"{node.name} saw again {sorted(doubled)[:5]}")

    def _judge_books(self) -> None:
        for terms in self.graph.links:
            entries: list[Entry] = []
            replayed = self.graph.node(terms.source).source
            for (link, number, incarnation), row in self.rows.items():
                if link == terms.index:
                    entry = Books(row).read()
                    if (terms.source, number, incarnation) in self.buried:
                        entry.bury(replayed, terms.lossy)
                    if entry.in_flight or not entry.balanced:
                        raise Failure("books", f"{terms.name} {number}#{incarnation}: {entry}")
                    entries.append(entry)
            link_total = total(entries)
            self.given_up[terms.target] += link_total.dead_lettered
            self.stats["redelivered"] += link_total.redelivered
            if link_total.dropped and not terms.lossy:
                raise Failure("books", f"{terms.name} dropped {link_total.dropped}")
            self.judge_done(terms, link_total)

    def judge_done(self, terms: Terms, link_total: Entry) -> None:
        """As much is done on a link as its target must see."""
        wanted = self.expectation.total[terms.target].total()
        alone = sum(link.target == terms.target for link in self.graph.links) == 1
        if alone and not self.lossy:
            # A copy that a pool handled twice was sent on twice, and is done twice.
            copies = self.stats["kills"] or self.stats["breaks"]
            if link_total.done < wanted or (link_total.done > wanted and not copies):
                raise Failure("books", f"{terms.name} done {link_total.done}, not {wanted}")


def run(graph: Graph, seed: int, faults: Faults, world_class: type[World] = World) -> World:
    """Play one seed. Raises Failure; what the core raises is one, too."""
    world = world_class(graph, seed, faults)
    try:
        with replaced(lineage, MAX_SPAN=world.span):
            world.run()
    except Failure as failure:
        failure.add_note(f"graph {graph.name!r}, seed {seed}, {faults}")
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}; graph {graph.name!r}, seed {seed}, {faults}"
        raise Failure("crash", text) from error
    return world


@contextmanager
def replaced(module: Any, **members: object) -> Iterator[None]:
    """Members of a module or class replaced for a while: how mutants come in."""
    before = {name: getattr(module, name) for name in members}
    for name, member in members.items():
        setattr(module, name, member)
    try:
        yield
    finally:
        for name, member in before.items():
            setattr(module, name, member)
