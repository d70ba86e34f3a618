"""Simulated processes and the connections between them; see `sim`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from flowkit import wire
from flowkit.codecs import codec_for
from flowkit.protocol import control, events, project
from flowkit.protocol import engine as core
from flowkit.protocol.ledger import Books
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.routing import Router
from tests.protocol.graphs import Node, key_of, positions, source_messages

if TYPE_CHECKING:
    from tests.protocol.sim import World

CODEC = codec_for(str, "msgpack")


class Failure(AssertionError):
    """The oracle is not satisfied. `kind`: lost, doubled, hung, books, order, rule, left, crash."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


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
                    lambda: (
                        self.open
                        and epoch == self.epoch
                        and self.consumer.from_producer(self.link, producer, parts)
                    )
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
        links = world.links_for(replica)
        for terms in links:
            if terms.source == self.node.name:
                row = world.row(terms.index, self)
                router = Router(terms.route, terms.consumers, key_of, terms.version)
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
                replica.origin,
                replica.life,
            ),
            [terms for terms in links if terms.target == self.node.name],
            outputs,
        )
        self.say(
            control.Ready("token", self.node.name, replica.number, self.incarnation, self.addresses)
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
            case control.Rest(round, leaving):
                self.engine.rest(round, renew=not leaving)
            case control.Resume():
                self.engine.resume()
            case control.Hold(node, replica, on):
                self.engine.hold(node, replica, on)
            case control.Retire():
                self.engine.retire()
            case control.Resize(round, _, sizes):
                for size in sizes:
                    self.engine.resize(size.link, size.producers, size.consumers, size.version)
                self.say(control.Resized(self.incarnation, round))
            case control.Leave():
                if not self.world.stats["kills"]:
                    self.world.check_empty(self)
                self.clean = True
                self.world.end(self)

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
            # A new connection replaces an old one before another frame of that one is heard.
            self.act()
            if not self.alive:
                return
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
                if self.node.refuses(message):
                    batch.dead_lettered += 1
                    continue
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
            case events.ReportRest(round):
                self.say(control.Resting(self.incarnation, round))
            case events.ReportHeld(node, replica):
                self.say(control.Held(self.incarnation, node, replica))
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
