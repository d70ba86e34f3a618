"""The two ends of one link, driven step by step: what `test_link` and `test_illegal` play with."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flowkit import wire
from flowkit.codecs import codec_for
from flowkit.protocol import events
from flowkit.protocol.engine import Engine, Phase
from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch, Receiver
from flowkit.protocol.routing import Router
from flowkit.protocol.sender import Sender

CODEC = codec_for(int)
TERMS = Terms(0, "s.out -> t.in", "s", "out", "t", "in", 1, 1)
ADDRESS = "there"


def identity(node: str, incarnation: int = 1, replica: int = 0) -> Identity:
    return Identity("run", "token", node, replica, incarnation, 1 if node == "s" else 2)


def producer_engine(terms: Terms = TERMS, incarnation: int = 1) -> Engine:
    books = Books([0] * ROW)
    output = (terms, Router(terms.route, terms.consumers), CODEC, books)
    return Engine(identity("s", incarnation), [], [output])


def consumer_engine(terms: Terms = TERMS, incarnation: int = 1, replica: int = 0) -> Engine:
    return Engine(identity("t", incarnation, replica), [terms], [])


HELLO = wire.Hello(1, 1, "run", "token", TERMS.name, "t", 0, 2, 3, 4, 1 << 20, 16, 16)


def changed(frame: Any, **changes: object) -> Any:
    values = {name: getattr(frame, name) for name in frame.__struct_fields__}
    return type(frame)(**(values | changes))


def said(engine: Engine) -> list[events.Action]:
    engine.flush()
    actions = list(engine.actions)
    engine.actions.clear()
    return actions


def frames(actions: list[events.Action]) -> list[wire.Frame]:
    return [one.frame for one in actions if isinstance(one, events.ToConsumer | events.ToProducer)]


class Producer:
    """A producer with two batches on their way to peer ``p``, and credit for four."""

    def __init__(self) -> None:
        self.engine = producer_engine(replace(TERMS, consumers=2))
        self.hear(HELLO)
        for message in (1, 2):
            root = self.engine.begin()
            self.engine.release(root, "out", [message])
            root.finish()
        actions = said(self.engine)
        assert [type(frame).__name__ for frame in frames(actions)] == ["Welcome", "Data", "Data"]
        self.session = self.sender.sessions[0].id

    @property
    def sender(self) -> Any:
        return self.engine.senders[0]

    def hear(self, frame: wire.Frame, peer: bytes = b"p") -> None:
        self.engine.from_consumer(0, peer, wire.decode(wire.encode(frame)))

    def ack(self, sequence: int, **changes: int) -> wire.Ack:
        return changed(wire.Ack(self.session, sequence, 0, 0, 4, 1 << 20, 16, 16), **changes)


class Pair:
    """A source and a sink, and the wire between them. The sink may die and be started again."""

    def __init__(self, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.stats: Counter[str] = Counter()
        self.producer = producer_engine(terms)
        self.incarnation = 0
        self.alive = False
        self.next = 0
        self.peers = 0
        self.peer = b""
        self.up: deque[tuple[bytes, list[bytes]]] = deque()
        self.down: deque[tuple[bytes, list[bytes]]] = deque()
        self.handled: list[tuple[int, int]] = []
        self.settled: list[int] = []
        self.hands: deque[tuple[InBatch, Work]] = deque()
        self.start()

    # -- the parts -----------------------------------------------------------------------------

    @property
    def sender(self) -> Sender:
        return self.producer.senders[0]

    @property
    def receiver(self) -> Receiver:
        return self.consumer.inboxes["in"].receivers[0]

    def start(self) -> None:
        """A new incarnation of the sink."""
        self.incarnation += 1
        self.alive = True
        self.left = False
        self.consumer = consumer_engine(self.terms, self.incarnation)
        self.consumer.producer_at(0, 0, 1, ADDRESS)
        self.turn_consumer()

    # -- steps ---------------------------------------------------------------------------------

    def send(self, count: int) -> None:
        """A root batch of `count` messages, unless the source has to wait."""
        if not self.producer.room or self.producer.phase is not Phase.OPEN:
            self.stats["waited"] += 1
            return
        root = self.producer.begin()
        messages = list(range(self.next, self.next + count))
        self.next += count
        before = root.settled

        def settled() -> None:
            assert set(messages) <= {message for _, message in self.handled}, "forgotten too soon"
            self.settled += messages
            before()

        root.settled = settled
        self.producer.release(root, "out", list(messages))
        root.finish()

    def take(self) -> None:
        if self.alive:
            taken = self.consumer.take("in")
            if taken is not None:
                self.hands.append(taken)

    def finish(self, oldest: bool = True) -> None:
        """The handlers of a batch return."""
        if self.hands:
            batch, work = self.hands.popleft() if oldest else self.hands.pop()
            for message in CODEC.decode(batch.payload, batch.count):
                self.handled.append((self.incarnation, message))
            self.consumer.inboxes["in"].pace.record(batch.count, batch.size, 0.001)
            work.finish()

    def turn_producer(self) -> None:
        self.producer.flush()
        for action in self._actions(self.producer):
            match action:
                case events.ToConsumer(0, peer, frame):
                    if peer == self.peer:
                        self.down.append((peer, wire.encode(frame)))
                case events.Complain():
                    self.stats["resets"] += 1
                case events.CallFinish():
                    self.producer.finished()
                case events.ReportDone():
                    self.producer.released()

    def turn_consumer(self) -> None:
        if not self.alive:
            return
        self.consumer.flush()
        for action in self._actions(self.consumer):
            match action:
                case events.ToProducer(0, 0, frame):
                    self.up.append((self.peer, wire.encode(frame)))
                case events.Connect(0, 0, address):
                    assert address == ADDRESS
                    self.peers += 1
                    self.peer = b"%d" % self.peers
                case events.Complain():
                    self.stats["resets"] += 1
                case events.CallFinish():
                    self.consumer.finished()
                case events.ReportDone():
                    self.consumer.released()
                case events.Leave():
                    self.left = True

    def _actions(self, engine: Engine) -> Iterator[events.Action]:
        while engine.actions:
            yield engine.actions.popleft()

    def deliver_up(self) -> None:
        if self.up:
            peer, parts = self.up.popleft()
            self.producer.from_consumer(0, peer, wire.decode(parts))

    def deliver_down(self) -> None:
        if self.down:
            peer, parts = self.down.popleft()
            if peer == self.peer and self.alive:
                frame = wire.decode(parts)
                if isinstance(frame, wire.Data) and frame.attempts:
                    self.stats["redelivered"] += 1
                    known = self.receiver._seen.look(frame.id, frame.span)
                    self.stats["duplicates"] += known is not None
                self.consumer.from_producer(0, 0, frame)

    def tick(self) -> None:
        self.producer.tick()
        if self.alive:
            self.consumer.tick()

    def break_(self) -> None:
        """What is under way is lost; what the sink says next comes from a new peer."""
        self.stats["breaks"] += 1
        self.up.clear()
        self.down.clear()
        self.peers += 1
        self.peer = b"%d" % self.peers

    def kill(self) -> None:
        """What the sink had said may arrive yet, even after its death was announced."""
        if self.alive:
            self.stats["kills"] += 1
            self.alive = False
            self.hands.clear()
            self.peer = b""

    def announce(self) -> None:
        if not self.alive:
            self.producer.peer_gone("t", 0, self.incarnation, done=False)
            self.start()

    # -- the end -------------------------------------------------------------------------------

    def settle(self) -> None:
        """No more faults: everything must be handled, and everybody must leave."""
        self.announce()
        self.producer.end_stream()
        for _ in range(400):
            self.turn_producer()
            self.turn_consumer()
            while self.up or self.down:
                self.deliver_up()
                self.deliver_down()
                self.turn_producer()
                self.turn_consumer()
            self.take()
            self.finish()
            if self.left:
                break
            if not self.hands and self.consumer.inboxes["in"].empty:
                self.tick()
        assert self.left, f"hung: {self.producer.phase} {self.receiver.state}"
        assert self.producer.phase is Phase.CLOSED
        assert sorted(self.settled) == list(range(self.next))
        assert self.sender.messages == self.sender.bytes == 0
        assert self.consumer.in_hand == self.consumer.waiting == self.sender.queued == 0
        entry = self.sender.books.read()
        assert entry.sent == entry.done == self.next and entry.in_flight == 0
        seen = Counter(message for _, message in self.handled)
        assert seen.keys() == set(range(self.next)), "lost"
        if not self.stats["kills"]:
            assert seen.total() == self.next, "doubled"
        for incarnation in range(1, self.incarnation + 1):
            mine = [message for who, message in self.handled if who == incarnation]
            assert len(mine) == len(set(mine)), "doubled in one incarnation"
