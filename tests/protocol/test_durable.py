"""The producer's end of a durable link: nothing is let go before the journal has it."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from flowkit import wire
from flowkit.protocol import events
from flowkit.protocol.engine import Engine
from flowkit.protocol.lineage import JOURNAL, MAX_SPAN, Work, root_id
from flowkit.protocol.sender import WAITING, OutBatch
from tests.protocol.link import HELLO, TERMS, changed, frames, producer_engine, said

DURABLE = replace(TERMS, durable=True, origin=9)
CREDIT = {"limit": 1 << 20, "limit_bytes": 1 << 40, "max_count": 8, "cut": 8}


class Durable:
    """A source with a journal that is written when the test says so."""

    def __init__(self, terms: events.Terms = DURABLE, incarnation: int = 1) -> None:
        self.engine: Engine = producer_engine(terms, incarnation)
        self.sender = self.engine.senders[0]
        self.asked: list[OutBatch] = []
        self.erased: list[int] = []
        self.data: list[wire.Data] = []
        self.sequence = 0
        self.settled: list[int] = []
        self.session = 0
        self.tidy = True
        """Whether what is to be erased is erased at once."""

    def hello(self, peer: bytes = b"p", **changes: object) -> None:
        self.engine.from_consumer(0, peer, changed(HELLO, **{**CREDIT, **changes}))
        self.turn()

    def turn(self) -> None:
        actions = deque(said(self.engine))
        while actions:
            action = actions.popleft()
            if isinstance(action, events.Persist):
                self.asked += action.batches
            elif isinstance(action, events.Erase):
                self.erased.append(action.sequence)
                if self.tidy:
                    self.engine.erased(0, [action.sequence])
                    actions += said(self.engine)
            elif isinstance(action, events.ToConsumer):
                (frame,) = frames([action])
                wire.encode(frame)
                if isinstance(frame, wire.Data):
                    self.data.append(frame)
                elif isinstance(frame, wire.Welcome):
                    self.session = frame.session

    def send(self, *messages: int) -> Work:
        root = self.engine.begin()
        before = root.settled

        def settled() -> None:
            self.settled += messages
            before()

        root.settled = settled
        self.engine.release(root, "out", list(messages))
        root.finish()
        self.turn()
        return root

    def save(self, count: int | None = None) -> None:
        """The journal has written the first `count` of what it was asked to."""
        count = len(self.asked) if count is None else count
        batches, self.asked = self.asked[:count], self.asked[count:]
        sequences = list(range(self.sequence + 1, self.sequence + 1 + len(batches)))
        self.sequence += len(batches)
        self.engine.persisted(0, batches, sequences)
        self.turn()

    def ack(self, sequence: int) -> None:
        frame = wire.Ack(self.session, sequence, 0, 0, *CREDIT.values())
        self.engine.from_consumer(0, b"p", frame)
        self.turn()


def test_nothing_moves_before_it_is_saved() -> None:
    producer = Durable()
    producer.hello()
    producer.send(1, 2)
    assert len(producer.asked) == 1
    assert producer.settled == [] and producer.data == []
    producer.save()
    assert producer.settled == [1, 2], "saved: what it was made of may be acknowledged"
    (frame,) = producer.data
    assert frame.id == root_id(9, JOURNAL, 1) and frame.span == 0
    assert not producer.sender.idle and producer.erased == []
    producer.ack(1)
    assert producer.sender.idle and producer.erased == [1]
    entry = producer.sender.books.read()
    assert (entry.sent, entry.done, entry.in_flight) == (2, 2, 0)


def test_it_needs_no_consumer_to_be_saved() -> None:
    producer = Durable()
    producer.send(1)
    producer.save()
    assert producer.settled == [1] and producer.data == []
    producer.hello()
    assert len(producer.data) == 1


def test_ids_and_spans() -> None:
    """Ids are the journal's; the span is how far a batch is above the lowest that is kept."""
    producer = Durable(replace(DURABLE, origin=20))
    producer.hello()
    for number in range(5):
        producer.send(number)
        producer.save()
    assert [frame.id for frame in producer.data] == [root_id(20, JOURNAL, n) for n in range(1, 6)]
    assert [frame.span for frame in producer.data] == [0, 1, 2, 3, 4]
    producer.ack(3)
    producer.send(5)
    producer.save()
    assert producer.data[-1].span == 2  # 4 is the lowest
    assert producer.erased == [1, 2, 3]


def test_what_is_acknowledged_may_come_again_until_it_is_erased() -> None:
    """A producer that dies before it has erased a batch finds it when it comes back: a consumer
    that had been told to forget it would take it for news."""
    producer = Durable()
    producer.tidy = False
    producer.hello()
    for number in range(3):
        producer.send(number)
        producer.save()
    producer.ack(2)
    producer.send(3)
    producer.save()
    assert producer.erased == [1, 2] and producer.data[-1].span == 3
    producer.engine.erased(0, [1])
    producer.send(4)
    producer.save()
    assert producer.data[-1].span == 3  # 2 is still there
    producer.engine.erased(0, [2])
    producer.send(5)
    producer.save()
    assert producer.data[-1].span == 3  # 3 is not acknowledged


def test_the_same_batch_is_redelivered_under_the_same_id() -> None:
    producer = Durable()
    producer.hello()
    producer.send(1)
    producer.save()
    producer.engine.peer_gone("t", 0, 2, done=False)
    producer.hello(b"q", incarnation=3, counter=1)
    first, again = producer.data
    assert (again.id, again.payload, again.attempts) == (first.id, first.payload, 1)


def test_back_pressure_while_it_is_saved() -> None:
    producer = Durable()
    producer.hello()
    sent = 0
    while producer.engine.room:
        producer.send(sent)
        sent += 1
        assert sent <= WAITING
    assert sent == WAITING
    producer.save(1)
    assert producer.engine.room


def test_a_batch_that_is_made_again() -> None:
    """The process died after it was journaled, and before what it was made of was acknowledged."""
    producer = Durable()
    producer.hello()
    root = producer.engine.begin_finish()
    producer.engine.release(root, "out", [1])
    root.finish()
    producer.turn()
    (batch,) = producer.asked
    made = batch.id
    producer.save()

    again = Durable(incarnation=2)
    again.sender.made([made])
    kept = OutBatch(Work(made, 0, 1, lambda: None), made, 1, batch.payload, b"", -1, own=False)
    again.sender.restore([kept], [1])
    again.hello()
    done: list[int] = []
    root = again.engine.begin_finish()
    before = root.settled

    def settled() -> None:
        done.append(1)
        before()

    root.settled = settled
    again.engine.release(root, "out", [1])
    root.finish()
    again.turn()
    assert again.asked == [], "it is in the journal already"
    assert done == [1]
    (frame,) = again.data
    assert frame.id == producer.data[0].id, "a consumer that had it knows it"
    again.ack(1)
    assert again.sender.idle
    entry = again.sender.books.read()
    assert (entry.sent, entry.done) == (1, 1)


def test_a_batch_that_another_replica_has() -> None:
    """It is not sent from here, nor in the books; what it was made of is acknowledged."""
    producer = Durable()
    producer.hello()
    root = producer.engine.begin_finish()
    producer.engine.release(root, "out", [1])
    root.finish()
    producer.turn()
    (batch,) = producer.asked
    assert not producer.engine.settled
    producer.sender.superseded([batch])
    producer.asked.clear()
    assert producer.engine.settled and producer.data == []
    assert producer.sender.bytes == 0 and not producer.sender.full
    producer.send(2)
    producer.save()
    producer.ack(1)
    entry = producer.sender.books.read()
    assert (entry.sent, entry.done, entry.in_flight) == (1, 1, 0)


def test_what_was_restored_goes_first_and_in_order() -> None:
    producer = Durable(replace(DURABLE, consumers=2, route="key"))
    batches = []
    for number in range(6):
        id = root_id(1, 1, number)
        work = Work(id, 0, 1, lambda: None)
        batches.append(OutBatch(work, id, 3, b"%d" % number, b"", number % 2, own=False))
    producer.sender.restore(batches, [3, 5, 6, 9, 10, 11])
    assert producer.sender.messages == 18 and not producer.sender.idle
    producer.hello()
    assert [frame.payload for frame in producer.data] == [b"0", b"2", b"4"]
    assert [int.from_bytes(frame.id[4:10]) for frame in producer.data] == [3, 6, 10]
    assert [frame.span for frame in producer.data] == [0, 3, 7]
    assert producer.sender.books.read().sent == 18


def test_more_batches_than_a_span_holds() -> None:
    """One piece of input may become any number of batches; consumers are told of a few at a time,
    since they have to remember what they cannot know to be settled."""
    producer = Durable()
    producer.hello(max_count=1, cut=1)
    count = 70_000
    producer.send(*range(count))
    assert len(producer.asked) == count
    producer.save()
    rounds = 0
    while not producer.sender.idle:
        rounds += 1
        assert max(frame.span for frame in producer.data) <= MAX_SPAN
        assert rounds <= count / MAX_SPAN + 2
        producer.ack(len(producer.data))
    assert rounds > 2
    ids = [int.from_bytes(frame.id[4:10]) for frame in producer.data]
    assert ids == list(range(1, count + 1))


@pytest.mark.parametrize("route", ["balance", "key", "broadcast"])
def test_the_lowest_of_a_span_is_never_held_back(route: str) -> None:
    producer = Durable(replace(DURABLE, consumers=2, route=route))
    for number, sequence in enumerate((1, 1 + MAX_SPAN, 2 + MAX_SPAN)):
        id = root_id(1, 1, number)
        group = -1 if route == "balance" else number % 2
        work = Work(id, 0, 1, lambda: None)
        batch = OutBatch(work, id, 1, b"x", b"", group, own=False)
        producer.sender.restore([batch], [sequence])
    producer.hello(b"q", replica=1, counter=1)
    producer.hello()
    spans = [frame.span for frame in producer.data]
    assert 0 in spans and max(spans) <= MAX_SPAN
