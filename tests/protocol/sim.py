"""A simulator of whole projects: real cores, a toy network, toy processes, virtual time.

Everything that is random comes from one generator with a seed, so that a failure is repeated by its
seed. The cores (`Engine`, `Project`) and the bytes of the frames are the real ones; simulated are

* connections: FIFO in each direction with random delays; a broken one loses what is under way, and
  what its consumer says next comes from a new peer id;
* processes: frames wait in a mailbox and are handled in turns; a handler takes time; a process may
  be paused, or killed in the middle of a turn, when only some of its actions were carried out;
* the supervisor: control channels with delays, exits noticed after what the dead had said.

`run` plays one seed and raises `Failure` if the oracle is not satisfied.
"""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flowkit import wire
from flowkit.codecs import codec_for
from flowkit.protocol import control, events, lineage, project
from flowkit.protocol import engine as core
from flowkit.protocol.ledger import ROW, Books, Entry, total
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.restart import RestartPolicy
from flowkit.protocol.routing import Router
from tests.protocol.graphs import (
    Expectation,
    Graph,
    Node,
    expect,
    key_of,
    positions,
    source_messages,
)

CODEC = codec_for(str, "msgpack")

PATIENCE = 400.0
"""Virtual seconds without any message handled, and without a fault, after which a run hangs."""

HARMLESS = re.compile(
    r"reset: unknown session"
    r"|session with replica \d+ ended"
    r"|refused: fenced"
)
"""Complaints that faults alone explain. Any other says that a peer broke a rule."""


class Failure(AssertionError):
    """The oracle is not satisfied. `kind`: lost, doubled, hung, books, order, rule, left, crash."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


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


class Connection:
    """From one consumer replica to one producer replica."""

    def __init__(self, world: World, consumer: Process, link: int, address: str) -> None:
        self.world = world
        self.consumer = consumer
        self.link = link
        self.address = address
        self.open = True
        self.epoch = 0
        self.up_at = 0.0
        self.down_at = 0.0
        self.peer = b""
        self.rename()

    def rename(self) -> None:
        self.peer = self.world.new_peer(self)

    def up(self, frame: wire.Frame) -> None:
        """Consumer to producer."""
        parts = wire.encode(frame)
        self.up_at = max(self.up_at, self.world.now + self.world.delay())
        epoch, peer = self.epoch, self.peer

        def arrive() -> None:
            producer = self.world.bound.get(self.address)
            if epoch == self.epoch and producer is not None:
                producer.receive(lambda: producer.from_consumer(self.link, peer, parts))

        self.world.at(self.up_at, arrive)

    def down(self, frame: wire.Frame, producer: int) -> None:
        """Producer to consumer."""
        parts = wire.encode(frame)
        self.down_at = max(self.down_at, self.world.now + self.world.delay())
        epoch = self.epoch

        def arrive() -> None:
            if epoch == self.epoch and self.open:
                self.consumer.receive(
                    lambda: self.open
                    and epoch == self.epoch
                    and self.consumer.from_producer(self.link, producer, parts)
                )

        self.world.at(self.down_at, arrive)

    def break_(self) -> None:
        """Lose what is under way; the transport connects again by itself."""
        self.epoch += 1
        self.rename()

    def close(self) -> None:
        """The consumer lets go; what it said may still arrive, or may not."""
        self.open = False
        if self.world.random.random() < 0.5:
            self.epoch += 1


class Process:
    """One incarnation of one replica: an engine, a mailbox, handlers."""

    handling = (0.001, 0.004, 0.03)
    """Seconds that the handlers of a batch may take."""

    def __init__(self, world: World, replica: project.Replica) -> None:
        self.world = world
        self.replica = replica
        self.incarnation = replica.incarnation
        self.node: Node = world.graph.node(replica.node)
        self.alive = True
        self.clean = False
        self.paused_until = 0.0
        self.dies_after: int | None = None
        self.mail: deque[Callable[[], object]] = deque()
        self.turn_at: float | None = None
        self.hands: list[tuple[float, str, list[InBatch], Work]] = []
        self.handled = 0
        self.ahead: dict[str, int] = {}
        self.connections: dict[tuple[int, int], Connection] = {}
        self.told_at = 0.0
        self.says_at = 0.0
        self.started = False
        self.position = world.committed.get((replica.node, replica.number), 0)
        self.finishing = False
        outputs = []
        self.addresses: dict[int, str] = {}
        for terms in world.graph.links:
            if terms.source == self.node.name:
                row = world.row(terms.index, self)
                router = Router(terms.route, terms.consumers, by=key_of)
                outputs.append((terms, router, CODEC, Books(row)))
                address = f"{terms.index}.{replica.number}.{self.incarnation}"
                self.addresses[terms.index] = address
                world.bound[address] = self
        self.engine = core.Engine(
            events.Identity(
                "run",
                "token",
                self.node.name,
                replica.number,
                self.incarnation,
                world.origins[replica.node, replica.number],
            ),
            [terms for terms in world.graph.links if terms.target == self.node.name],
            outputs,
        )
        self.say(
            control.Ready(
                "token", self.node.name, replica.number, self.incarnation, self.addresses
            )
        )
        world.after(world.random.random(), self.tick)
        self.wake()

    def __repr__(self) -> str:
        return f"{self.replica.name}#{self.incarnation}"

    # -- what comes in -------------------------------------------------------------------------

    def receive(self, item: Callable[[], object]) -> None:
        if self.alive:
            self.mail.append(item)
            self.wake()

    def from_consumer(self, link: int, peer: bytes, parts: list[bytes]) -> None:
        self.engine.from_consumer(link, peer, wire.decode(parts))

    def from_producer(self, link: int, producer: int, parts: list[bytes]) -> None:
        frame = wire.decode(parts)
        if isinstance(frame, wire.Data):
            ids = self.world.arrived.setdefault((self, link), set())
            self.world.stats["duplicates"] += frame.id in ids
            ids.add(frame.id)
        self.engine.from_producer(link, producer, frame)
        self.check_queue(link, producer)

    def check_queue(self, link: int, producer: int) -> None:
        """A producer never sends more than the most that was asked for."""
        inbox = self.engine.inboxes[self.world.graph.links[link].into]
        receiver = next(
            receiver
            for receiver in inbox.receivers
            if (receiver.terms.index, receiver.producer) == (link, producer)
        )
        if len(receiver.queue) > self.ahead.get(inbox.channel, 0):
            raise Failure("rule", f"{self}: {len(receiver.queue)} batches queued")

    def from_supervisor(self, parts: list[bytes]) -> None:
        message = control.from_supervisor(parts)
        match message:
            case control.Start():
                self.started = True
            case control.ProducerAt(link, replica, incarnation, address):
                self.engine.producer_at(link, replica, incarnation, address)
            case control.Gone(node, replica, incarnation, done):
                self.engine.peer_gone(node, replica, incarnation, done)
            case control.Released():
                self.engine.released()

    def tick(self) -> None:
        if self.alive:
            if self.world.now >= self.paused_until:
                self.receive(self.engine.tick)
            self.world.after(1.0, self.tick)

    # -- turns ---------------------------------------------------------------------------------

    def wake(self, at: float | None = None) -> None:
        soon = self.world.now + self.world.random.random() * 0.01
        at = soon if at is None else max(at, soon)
        if self.turn_at is None or at < self.turn_at:
            self.turn_at = at
            self.world.at(at, lambda: self.turn(at))

    def turn(self, at: float) -> None:
        if not self.alive or self.turn_at != at:
            return
        self.turn_at = None
        if self.world.now < self.paused_until:
            self.wake(self.paused_until)
            return
        for channel, inbox in self.engine.inboxes.items():
            self.ahead[channel] = max(inbox.pace.ahead, self.ahead.get(channel, 0))
        for _ in range(min(len(self.mail), self.world.random.randint(1, 6))):
            self.mail.popleft()()
        self.work()
        self.engine.flush()
        self.act()
        if self.alive:
            if self.mail or self.has_work():
                self.wake()
            elif self.hands:
                self.wake(min(ready for ready, *_ in self.hands))

    def work(self) -> None:
        if self.node.source and self.started and self.engine.phase is core.Phase.OPEN:
            self.emit()
        ready = [hand for hand in self.hands if hand[0] <= self.world.now]
        for hand in ready[:2]:
            self.hands.remove(hand)
            self.handle(*hand[1:])
        while len(self.hands) < self.node.concurrency and self.take():
            pass

    def has_work(self) -> bool:
        if self.node.source:
            waits = self.started and self.engine.phase is core.Phase.OPEN
            return waits and self.engine.room
        return len(self.hands) < self.node.concurrency and self.queued and self.engine.room

    @property
    def queued(self) -> bool:
        return any(not inbox.empty for inbox in self.engine.inboxes.values())

    def emit(self) -> None:
        engine = self.engine
        for _ in range(self.world.random.randint(1, 4)):
            if self.position >= positions(self.node):
                engine.end_stream()
                return
            if not engine.room:
                return
            position, self.position = self.position, self.position + 1
            sent = source_messages(self.node, self.replica.number, position)
            root = engine.begin(self.position)
            self.release(root, sent)
            root.finish()

    def take(self) -> bool:
        channels = list(self.engine.inboxes)
        self.world.random.shuffle(channels)
        seconds = self.handling[0] if self.world.fast else self.world.random.choice(self.handling)
        for channel in channels:
            batches: list[InBatch] = []
            works: list[Work] = []
            while len(batches) < max(1, self.node.group):
                taken = self.engine.take(channel)
                if taken is None:
                    break
                batches.append(taken[0])
                works.append(taken[1])
                self.engine.inboxes[channel].pace.record(taken[0].count, taken[0].size, seconds)
            if batches:
                work = works[0]
                if self.node.group:
                    work = self.engine.begin(parents=tuple(works))
                    for held in works:
                        held.finish()
                if self.world.random.random() < 0.02:
                    seconds += 1.0
                self.hands.append((self.world.now + seconds, channel, batches, work))
                return True
        return False

    def handle(self, channel: str, batches: list[InBatch], work: Work) -> None:
        sent = []
        for batch in batches:
            for message in CODEC.decode(batch.payload, batch.count):
                self.world.observe(self, channel, message)
                self.handled += 1
                sent += self.node.handle(channel, message)
        self.release(work, sent)
        work.finish()

    def release(self, work: Work, sent: list[tuple[str, str]]) -> None:
        for channel in self.node.outs:
            messages = [message for out, message in sent if out == channel]
            if messages:
                assert not self.engine.release(work, channel, messages)

    def finish(self) -> None:
        if self.node.finish is not None:
            root = self.engine.begin_finish()
            self.release(root, self.node.finish(self.replica.number, self.handled))
            root.finish()
        self.engine.finished()

    # -- what goes out -------------------------------------------------------------------------

    def act(self) -> None:
        actions = self.engine.actions
        while actions and self.alive:
            if self.dies_after is not None:
                if self.dies_after == 0:
                    self.world.kill(self)
                    return
                self.dies_after -= 1
            self.carry_out(actions.popleft())
        if self.dies_after == 0 and self.alive:
            self.world.kill(self)

    def carry_out(self, action: events.Action) -> None:
        match action:
            case events.ToConsumer(link, peer, frame):
                connection = self.world.peers.get(peer)
                known = connection is not None and connection.address == self.addresses[link]
                if connection is not None and known and connection.peer == peer:
                    connection.down(frame, self.replica.number)
            case events.ToProducer(link, producer, frame):
                self.connections[link, producer].up(frame)
            case events.Connect(link, producer, address):
                self.disconnect(link, producer)
                connection = Connection(self.world, self, link, address)
                self.connections[link, producer] = connection
            case events.Disconnect(link, producer):
                self.disconnect(link, producer)
            case events.Complain(text):
                self.world.complaint(self, text)
            case events.CallFinish():
                self.finishing = True
                self.world.ending = True
                if self.world.random.random() < 0.5:
                    self.finish()
                else:
                    late = self.world.now + self.world.random.random()
                    self.world.at(late, lambda: self.receive(self.finish))
            case events.ReportDone():
                self.say(control.Done(self.incarnation))
            case events.Commit(position):
                self.world.commit(self, position)
            case events.Leave():
                self.leave()

    def disconnect(self, link: int, producer: int) -> None:
        connection = self.connections.pop((link, producer), None)
        if connection is not None:
            connection.close()

    def say(self, message: control.FromReplica) -> None:
        """To the supervisor."""
        parts = control.encode(message)
        self.says_at = max(self.says_at, self.world.now + self.world.delay())

        def arrive() -> None:
            self.world.heard(self, control.from_replica(parts))

        self.world.at(self.says_at, arrive)

    def leave(self) -> None:
        self.clean = self.engine.phase is core.Phase.CLOSED
        if self.clean:
            self.world.check_empty(self)
        self.world.end(self)


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
        self.source_killed = False
        self.committed: dict[tuple[str, int], int] = {}
        self.rows: dict[tuple[int, int, int], list[int]] = {}
        self.buried: set[tuple[str, int, int]] = set()
        self.peers: dict[bytes, Connection] = {}
        self.bound: dict[str, Process] = {}
        self.processes: dict[tuple[str, int], Process] = {}
        self.arrived: dict[tuple[Process, int], set[bytes]] = {}
        self.origins: dict[tuple[str, int], int] = {}
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        for node in graph.nodes:
            for replica in range(node.replicas):
                self.origins[node.name, replica] = len(self.origins) + 1
        policy = RestartPolicy("on-failure", None, 60.0, 0.1, 2.0)
        self.project = project.Project(
            [
                project.Member(node.name, node.replicas, policy, node.source, False)
                for node in graph.nodes
            ],
            graph.links,
        )
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
        due = self.project.wake_at
        if due is not None:
            self.at(max(due, self.now), self._project_tick)

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
        self.supervise()

    def end(self, process: Process) -> None:
        """The process is no more. What it said is heard before its end is noticed."""
        process.alive = False
        for connection in process.connections.values():
            connection.close()
        for address in process.addresses.values():
            del self.bound[address]
        noticed = max(process.says_at, self.now) + self.random.random() * 0.5
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
        self.source_killed = self.source_killed or process.node.source
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

    def _judge_node(self, node: Node) -> None:
        wanted, got = self.expectation.total[node.name], self.observed[node.name]
        if unwanted := got.keys() - wanted.keys():
            raise Failure("rule", f"{node.name} saw what nobody sent: {sorted(unwanted)[:3]}")
        missing = wanted - got
        if missing and not self.lossy:
            raise Failure("lost", f"{node.name} missed {sorted(missing)[:5]} ({len(missing)})")
        dead = any((node.name, replica) in self.tainted for replica in range(node.replicas))
        if dead or self.source_killed or (self.graph.is_pool(node.name) and not self.lossy):
            return
        if doubled := got - wanted:
            raise Failure("doubled", f"{node.name} saw again {sorted(doubled)[:5]}")

    def _judge_books(self) -> None:
        for terms in self.graph.links:
            entries: list[Entry] = []
            replayed = not self.graph.node(terms.source).source or self.faults.sources
            for (link, number, incarnation), row in self.rows.items():
                if link == terms.index:
                    entry = Books(row).read()
                    if (terms.source, number, incarnation) in self.buried:
                        entry.bury(replayed)
                    if entry.in_flight or not entry.balanced:
                        raise Failure("books", f"{terms.name} {number}#{incarnation}: {entry}")
                    entries.append(entry)
            link_total = total(entries)
            self.stats["redelivered"] += link_total.redelivered
            if link_total.dropped and not terms.lossy:
                raise Failure("books", f"{terms.name} dropped {link_total.dropped}")
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
