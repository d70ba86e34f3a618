"""What the ends of a link answer when the other one breaks a rule: a table, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from flowkit import wire
from flowkit.protocol import events
from flowkit.protocol.lineage import derive, root_id
from flowkit.protocol.receiver import State
from flowkit.wire import Ack, Close, Credit, Data, End, Frame, Heartbeat, Hello, Reject, Reset
from tests.protocol.link import (
    CODEC,
    HELLO,
    Producer,
    changed,
    consumer_engine,
    frames,
    producer_engine,
    said,
)

ID = derive(root_id(1, 1, 1), b"out", 0, 0)


def data(sequence: int, session: int = 7, **changes: object) -> Data:
    id = derive(root_id(1, 1, sequence), b"out", 0, 0)
    frame = Data(session, sequence, id, 0, 1, 1, 0, CODEC.encode([sequence]))
    return changed(frame, **changes)


# ---------------------------------------------------------------------------- to a producer


@dataclass(frozen=True)
class ToProducer:
    """`answers`: the frames that come back; `sessions`: how many live on."""

    name: str
    frame: Callable[[Producer], Frame]
    answers: list[str]
    sessions: int = 1
    peer: bytes = b"p"
    queued: int = 2


TO_PRODUCER = [
    ToProducer("ack of what was never sent", lambda p: p.ack(3), ["Reset"], 0),
    ToProducer("ack of everything there is", lambda p: p.ack(2**64 - 1), ["Reset"], 0),
    ToProducer(
        "ack of an unknown session", lambda p: p.ack(1, session=99), ["Reset 99 unknown session"]
    ),
    ToProducer("ack from another peer", lambda p: p.ack(1), ["Reset"], peer=b"q"),
    ToProducer("reset from another peer", lambda p: Reset(p.session, "x"), [], peer=b"q"),
    ToProducer("reset of an unknown session", lambda p: Reset(99, "x"), []),
    ToProducer("reset", lambda p: Reset(p.session, "x"), [], 0),
    ToProducer(
        "credit of an unknown session",
        lambda p: Credit(99, 9, 9, 1, 1),
        ["Reset 99 unknown session"],
    ),
    ToProducer("heartbeat of nobody", lambda p: Heartbeat(99, 0), ["Reset"], peer=b"q"),
    ToProducer("heartbeat", lambda p: Heartbeat(p.session, 0), []),
    ToProducer("reject", lambda p: Reject("no", "no"), ["Reset"]),
    ToProducer("DATA upstream", lambda p: data(1, p.session), ["Reset"], 0),
    ToProducer("WELCOME upstream", lambda p: wire.Welcome(p.session, 1), ["Reset"], 0),
    ToProducer("END upstream", lambda p: End(p.session, 1), ["Reset"], 0),
    ToProducer("CLOSE upstream", lambda p: Close(p.session), ["Reset"], 0),
    ToProducer("another run", lambda p: changed(HELLO, run="other", counter=9), ["Reject run"]),
    ToProducer("another token", lambda p: changed(HELLO, token="no", counter=9), ["Reject run"]),
    ToProducer(
        "a token that is not ASCII",
        lambda p: changed(HELLO, token="t\u00f6ken", counter=9),
        ["Reject run"],
    ),
    ToProducer("another link", lambda p: changed(HELLO, link="x", counter=9), ["Reject link"]),
    ToProducer("another node", lambda p: changed(HELLO, node="x", counter=9), ["Reject link"]),
    ToProducer("no such replica", lambda p: changed(HELLO, replica=2), ["Reject replica"]),
    ToProducer("a later version", lambda p: changed(HELLO, low=2, high=3), ["Reject version"]),
    ToProducer("an earlier version", lambda p: changed(HELLO, low=0, high=0), ["Reject version"]),
    ToProducer("batches of nothing", lambda p: changed(HELLO, max_count=0), ["Reject credit"]),
    ToProducer("chunks of nothing", lambda p: changed(HELLO, cut=0), ["Reject credit"]),
    ToProducer(
        "a lower incarnation", lambda p: changed(HELLO, incarnation=1, counter=9), ["Reject fenced"]
    ),
    ToProducer("the same HELLO again", lambda p: HELLO, ["Reject stale"]),
    ToProducer("a lower counter", lambda p: changed(HELLO, counter=2), ["Reject stale"], peer=b"q"),
    ToProducer(
        "a second session of the replica",
        lambda p: changed(HELLO, counter=4),
        ["Welcome", "Data 1", "Data 2"],
        peer=b"q",
        queued=0,
    ),
    ToProducer(
        "a second HELLO on the connection",
        lambda p: changed(HELLO, counter=4),
        ["Welcome", "Data 1", "Data 2"],
        queued=0,
    ),
]


def tell(frame: Frame) -> str:
    match frame:
        case Reset(session, reason):
            return f"Reset {session} {reason}"
        case Reject(code, _):
            return f"Reject {code}"
        case Data(_, sequence):
            return f"Data {sequence}"
        case _:
            return type(frame).__name__


@pytest.mark.parametrize("move", TO_PRODUCER, ids=lambda move: move.name)
def test_a_producer_hears_what_it_should_not(move: ToProducer) -> None:
    producer = Producer()
    producer.hear(move.frame(producer), move.peer)
    actions = said(producer.engine)
    answers = frames(actions)
    assert len(answers) == len(move.answers)
    for answer, wanted in zip(answers, move.answers, strict=True):
        assert tell(answer).startswith(wanted)
    assert all(one.peer == move.peer for one in actions if isinstance(one, events.ToConsumer)), (
        "the answer goes to who asked"
    )
    assert len(producer.sender.sessions) == move.sessions
    assert producer.sender.messages == 2, "nothing counts as acknowledged"
    if not move.sessions:
        # What was on its way waits for the next session, in order.
        producer.hear(changed(HELLO, counter=9), b"r")
        answers = frames(said(producer.engine))
        assert [tell(frame) for frame in answers] == ["Welcome", "Data 1", "Data 2"]
        again = [frame for frame in answers if isinstance(frame, Data)]
        assert [CODEC.decode(frame.payload, 1) for frame in again] == [[1], [2]]
        assert [frame.attempts for frame in again] == [1, 1]


def test_an_ack_that_comes_again_is_harmless() -> None:
    producer = Producer()
    for _ in range(3):
        producer.hear(producer.ack(1))
    assert not frames(said(producer.engine))
    assert producer.sender.messages == 1


def test_an_ack_that_goes_back_is_refused() -> None:
    producer = Producer()
    producer.hear(producer.ack(2))
    producer.hear(producer.ack(1))
    assert [tell(frame) for frame in frames(said(producer.engine))] == [
        f"Reset {producer.session} ack of 1, sent 2"
    ]


def test_credit_never_goes_back() -> None:
    producer = Producer()
    producer.hear(Credit(producer.session, 1, 0, 16, 16))
    session = producer.sender.sessions[0]
    assert (session.limit, session.limit_bytes) == (4, 1 << 20)


def test_no_batch_exceeds_the_credit() -> None:
    producer = Producer()
    for message in range(10):
        root = producer.engine.begin()
        producer.engine.release(root, "out", [message])
        root.finish()
    assert [tell(frame) for frame in frames(said(producer.engine))] == ["Data 3", "Data 4"]


def test_one_batch_larger_than_the_byte_credit_goes_alone() -> None:
    engine = producer_engine()
    engine.from_consumer(0, b"p", changed(HELLO, limit=9, limit_bytes=1))
    for message in range(3):
        root = engine.begin()
        engine.release(root, "out", [message])
        root.finish()
    assert [tell(frame) for frame in frames(said(engine))] == ["Welcome", "Data 1"]


def test_garbage_is_answered_with_reset() -> None:
    producer = Producer()
    producer.engine.garbage_from_consumer(0, b"q", "header")
    assert [tell(frame) for frame in frames(said(producer.engine))] == ["Reset 0 header"]
    assert len(producer.sender.sessions) == 1


@pytest.mark.parametrize("done", [True, False])
def test_an_announced_replica_is_fenced(done: bool) -> None:
    producer = Producer()
    producer.engine.peer_gone("t", 0, 2, done)
    assert not producer.sender.sessions
    for incarnation in (1, 2):
        producer.hear(changed(HELLO, incarnation=incarnation, counter=9))
        assert [tell(one) for one in frames(said(producer.engine))] == ["Reject fenced"]
    producer.hear(changed(HELLO, incarnation=3, counter=1))
    assert [tell(one) for one in frames(said(producer.engine))] == ["Welcome", "Data 1", "Data 2"]


def test_the_death_of_an_earlier_incarnation_does_not_touch_the_next() -> None:
    producer = Producer()
    producer.engine.peer_gone("t", 0, 1, False)
    assert len(producer.sender.sessions) == 1


@pytest.mark.parametrize("changes", [{"incarnation": 1}, {"counter": 2}, {"counter": 3}])
def test_a_late_hello_after_the_session_was_dropped(changes: dict[str, int]) -> None:
    producer = Producer()
    producer.hear(Reset(producer.session, "x"))
    said(producer.engine)
    producer.hear(changed(HELLO, **changes), b"late")
    assert [tell(one)[:6] for one in frames(said(producer.engine))] == ["Reject"]


def test_nothing_may_be_offered_after_close() -> None:
    producer = Producer()
    producer.hear(producer.ack(2))
    producer.sender.close()
    work = producer.engine.begin()
    with pytest.raises(AssertionError, match="after CLOSE"):
        producer.engine.release(work, "out", [1])


def test_a_session_after_close_is_closed_at_once() -> None:
    producer = Producer()
    producer.hear(producer.ack(2))
    producer.engine.end_stream()
    said(producer.engine)
    producer.engine.finished()
    producer.engine.released()
    assert [tell(one) for one in frames(said(producer.engine))] == ["End", "Close"]
    producer.hear(changed(HELLO, counter=4), b"q")
    assert [tell(one) for one in frames(said(producer.engine))] == ["Welcome", "End", "Close"]


def test_released_before_it_reported_is_a_complaint() -> None:
    producer = Producer()
    producer.engine.released()
    assert any(isinstance(one, events.Complain) for one in said(producer.engine))
    assert producer.engine.phase.value == "open"


# ---------------------------------------------------------------------------- to a consumer


class Consumer:
    """A consumer with session 7, one batch received."""

    def __init__(self, live: bool = True) -> None:
        self.engine = consumer_engine()
        self.engine.producer_at(0, 0, 1, "there")
        hello = frames(said(self.engine))
        assert [type(frame) for frame in hello] == [Hello]
        if live:
            self.hear(wire.Welcome(7, 1))
            self.hear(data(1))
            assert self.receiver.state is State.LIVE and self.receiver.held == 1
            said(self.engine)

    @property
    def receiver(self) -> Any:
        return self.engine.inboxes["in"].receivers[0]

    def hear(self, frame: Frame) -> None:
        self.engine.from_producer(0, 0, wire.decode(wire.encode(frame)))


RESTARTS = {
    "a gap": data(3),
    "a repeat": data(1),
    "a sequence of zero": data(0),
    "another session": data(2, session=8),
    "HELLO": HELLO,
    "ACK": Ack(7, 1, 0, 0, 1, 1, 1, 1),
    "CREDIT": Credit(7, 1, 1, 1, 1),
    "reset": Reset(7, "x"),
    "reset of what could not be read": Reset(0, "header"),
    "a heartbeat behind what was received": Heartbeat(7, 0),
    "a heartbeat ahead of what was received": Heartbeat(7, 2),
}
IGNORED = {
    "END": End(7, 1),
    "a heartbeat": Heartbeat(7, 1),
    "END of another session": End(8, 1),
    "CLOSE of another session": Close(8),
    "a heartbeat of another session": Heartbeat(8, 5),
    "RESET of another session": Reset(8, "x"),
    "a second WELCOME": wire.Welcome(9, 1),
    "a late REJECT": Reject("run", "no"),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_a_consumer_starts_a_new_session(name: str) -> None:
    consumer = Consumer()
    consumer.hear(RESTARTS[name])
    actions = said(consumer.engine)
    assert [tell(frame)[:7] for frame in frames(actions)] == ["Reset 7", "Hello"]
    assert sum(isinstance(one, events.Connect) for one in actions) == 1
    assert sum(isinstance(one, events.Complain) for one in actions) == 1
    assert consumer.receiver.state is State.OPENING
    assert len(consumer.receiver.queue) == 1, "taken stays taken"
    hello = frames(actions)[1]
    assert isinstance(hello, Hello) and hello.counter == 2
    assert hello.limit == consumer.receiver.pace.ahead - 1, "less what is still queued"


@pytest.mark.parametrize("name", IGNORED)
def test_a_consumer_goes_on(name: str) -> None:
    consumer = Consumer()
    consumer.hear(IGNORED[name])
    assert not said(consumer.engine)
    consumer.hear(data(2))
    assert consumer.receiver.held == 2


def test_a_batch_beyond_the_credit() -> None:
    consumer = Consumer()
    granted = consumer.receiver._granted
    for sequence in range(2, granted + 1):
        consumer.hear(data(sequence))
    assert consumer.receiver.held == granted
    consumer.hear(data(granted + 1))
    assert consumer.receiver.state is State.OPENING
    assert consumer.receiver.held == granted


def test_data_before_welcome_is_not_taken() -> None:
    consumer = Consumer(live=False)
    consumer.hear(data(1))
    assert not consumer.receiver.held
    assert consumer.receiver.state is State.OPENING


def test_garbage_starts_a_new_session() -> None:
    consumer = Consumer()
    consumer.engine.garbage_from_producer(0, 0, "header")
    assert [tell(frame)[:7] for frame in frames(said(consumer.engine))] == ["Reset 7", "Hello"]


@pytest.mark.parametrize("frame", [*RESTARTS.values(), *IGNORED.values(), Close(7)])
def test_nothing_reopens_a_closed_link(frame: Frame) -> None:
    consumer = Consumer()
    consumer.hear(Close(7))
    assert consumer.receiver.state is State.CLOSED
    said(consumer.engine)
    consumer.hear(frame)
    consumer.engine.producer_at(0, 0, 2, "elsewhere")
    consumer.engine.peer_gone("s", 0, 1, False)
    assert consumer.receiver.state is State.CLOSED
    assert not said(consumer.engine)


@pytest.mark.parametrize("code", ["version", "run", "link", "replica", "credit"])
def test_a_refused_consumer_leaves_and_does_not_spin(code: str) -> None:
    consumer = Consumer(live=False)
    consumer.hear(Reject(code, "because"))
    actions = said(consumer.engine)
    assert [type(one) for one in actions] == [events.Disconnect, events.Leave]
    assert "because" in actions[1].reason
    for _ in range(50):
        consumer.engine.tick()
    assert not said(consumer.engine)


def test_a_fenced_consumer_leaves() -> None:
    consumer = Consumer(live=False)
    consumer.hear(Reject("fenced", "replaced"))
    assert any(isinstance(one, events.Leave) for one in said(consumer.engine))


def test_a_stale_hello_is_not_the_last_one() -> None:
    consumer = Consumer(live=False)
    consumer.hear(Reject("stale", "overtaken"))
    assert not said(consumer.engine)
    consumer.hear(wire.Welcome(7, 1))
    assert consumer.receiver.state is State.LIVE


def test_old_news_of_a_producer_is_ignored() -> None:
    consumer = Consumer()
    consumer.engine.producer_at(0, 0, 3, "third")
    said(consumer.engine)
    consumer.engine.producer_at(0, 0, 2, "second")
    consumer.engine.peer_gone("s", 0, 2, False)
    assert not said(consumer.engine)
    assert consumer.receiver.state is State.OPENING


def test_a_dead_producer_is_let_go_but_what_it_sent_stays() -> None:
    consumer = Consumer()
    consumer.engine.peer_gone("s", 0, 1, False)
    assert [type(one) for one in said(consumer.engine)] == [events.Disconnect]
    assert consumer.receiver.state is State.ABSENT
    assert len(consumer.receiver.queue) == 1
