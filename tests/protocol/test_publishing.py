"""A publisher and its subscribers under every order of events: what each misses is counted."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from

from flowkit import wire
from flowkit.codecs import codec_for
from flowkit.errors import EncodeError
from flowkit.protocol import engine, events
from flowkit.protocol.batching import MAX_COUNT
from flowkit.protocol.engine import Engine, Phase
from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.lineage import Work
from flowkit.protocol.publishing import Publisher, Topics
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.routing import itself
from flowkit.protocol.sender import OutBatch, Sender

SUBSCRIBERS = 2
WINDOW = 8
CODEC = codec_for(int)


def terms(policy: str, window: int = WINDOW) -> Terms:
    return Terms(0, "p.out -> s.in", "p", "out", "s", "in", 1, SUBSCRIBERS, "broadcast", lossy=True,
                 when_full=policy, window=window, pattern="pubsub")  # fmt: skip


def who(node: str, replica: int = 0, incarnation: int = 1) -> Identity:
    return Identity("run", "token", node, replica, incarnation, 1 if node == "p" else 2 + replica)


class Subscriber:
    """One incarnation of a subscriber, and its line to the publisher."""

    def __init__(self, world: World, replica: int, incarnation: int) -> None:
        self.world, self.replica, self.incarnation = world, replica, incarnation
        self.engine = Engine(who("s", replica, incarnation), [world.terms], [])
        self.up: deque[tuple[bytes, list[bytes]]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.hands: deque[tuple[InBatch, Work]] = deque()
        self.left = False
        self.peer = b""
        self.engine.producer_at(0, 0, 1, "there")
        self.turn()

    def turn(self) -> None:
        self.engine.flush()
        while self.engine.actions:
            match self.engine.actions.popleft():
                case events.ToProducer(0, 0, frame):
                    self.up.append((self.peer, wire.encode(frame)))
                case events.Connect():
                    if self.peer:  # a line that was slow is given up, with what is on it
                        self.world.faults.add(self.replica)
                    self.reconnect()
                case events.CallFinish():
                    self.engine.finished()
                case events.ReportDone():
                    self.engine.released()
                case events.Leave():
                    self.left = True

    def reconnect(self) -> None:
        self.world.peers += 1
        self.peer = b"%d" % self.world.peers
        self.world.lines[self.peer] = self
        self.down.clear()

    def take(self) -> None:
        if len(self.hands) < 3 and (taken := self.engine.take("in")) is not None:
            batch, _ = taken
            numbers = CODEC.decode(batch.payload, batch.count)
            got = self.world.got[self.replica]
            assert not got or got[-1] < numbers[0], "out of order, or twice"
            if self.replica not in self.world.faults:
                missed = numbers[0] - (got[-1] + 1 if got else 0)
                assert batch.span == missed, "it is told how many it has missed before"
            got += numbers
            self.hands.append(taken)

    def finish(self) -> None:
        if self.hands:
            self.hands.popleft()[1].finish()


class World:
    def __init__(self, policy: str = "drop-newest", window: int = WINDOW) -> None:
        self.terms = terms(policy, window)
        self.books = Books([0] * ROW)
        output = (self.terms, Topics(SUBSCRIBERS, itself, ()), CODEC, self.books)
        self.publisher = Engine(who("p"), [], [output])
        self.published = 0
        self.peers = 0
        self.lines: dict[bytes, Subscriber] = {}
        self.got: list[list[int]] = [[] for _ in range(SUBSCRIBERS)]
        self.dead: deque[Subscriber] = deque()
        self.faults: set[int] = set()
        self.subscribers = [Subscriber(self, replica, 1) for replica in range(SUBSCRIBERS)]

    def publish(self, count: int = 1) -> None:
        assert self.publisher.room, "a publisher waits for nobody"
        root = self.publisher.begin()
        numbers = list(range(self.published, self.published + count))
        self.published += count
        self.publisher.release(root, "out", numbers)
        root.finish()

    def turn(self) -> None:
        self.publisher.flush()
        while self.publisher.actions:
            match self.publisher.actions.popleft():
                case events.ToConsumer(0, peer, frame):
                    subscriber = self.lines.get(peer)
                    if subscriber is not None and subscriber.peer == peer:
                        subscriber.down.append(wire.encode(frame))
                case events.CallFinish():
                    self.publisher.finished()
                case events.ReportDone():
                    self.publisher.released()

    def up(self, place: int) -> None:
        subscriber = self.subscribers[place]
        if subscriber.up:
            peer, parts = subscriber.up.popleft()
            self.publisher.from_consumer(0, peer, wire.decode(parts))

    def down(self, place: int) -> None:
        subscriber = self.subscribers[place]
        if subscriber.down and subscriber not in self.dead:
            subscriber.engine.from_producer(0, 0, wire.decode(subscriber.down.popleft()))

    def break_(self, place: int) -> None:
        self.faults.add(place)
        self.subscribers[place].up.clear()
        self.subscribers[place].reconnect()

    def kill(self, place: int) -> None:
        subscriber = self.subscribers[place]
        if subscriber not in self.dead:
            self.faults.add(place)
            self.dead.append(subscriber)
            subscriber.down.clear()

    def announce(self) -> None:
        while self.dead:
            dead = self.dead.popleft()
            self.publisher.peer_gone("s", dead.replica, dead.incarnation, done=False)
            again = Subscriber(self, dead.replica, dead.incarnation + 1)
            again.up.extendleft(reversed(dead.up))
            self.subscribers[dead.replica] = again

    def each(self, do: Callable[[Subscriber], Any]) -> None:
        for subscriber in self.subscribers:
            if subscriber not in self.dead:
                do(subscriber)

    def settle(self) -> World:
        self.announce()
        self.publisher.end_stream()
        for _ in range(100):
            self.turn()
            self.each(Subscriber.turn)
            for place in range(SUBSCRIBERS):
                while self.subscribers[place].up:
                    self.up(place)
                self.turn()
                while self.subscribers[place].down:
                    self.down(place)
            self.each(Subscriber.take)
            self.each(Subscriber.finish)
            if all(subscriber.left for subscriber in self.subscribers):
                break
            self.publisher.tick()
            self.each(lambda subscriber: subscriber.engine.tick())
        assert all(subscriber.left for subscriber in self.subscribers), "hung"
        assert self.publisher.phase is Phase.CLOSED
        self.check()
        return self

    def check(self) -> None:
        entry = self.books.read()
        sender = self.publisher.senders[0]
        assert sender.messages == sender.bytes == 0 and sender.idle
        assert entry.sent == SUBSCRIBERS * self.published and entry.in_flight == 0
        assert entry.balanced and set(entry.dropped) <= {"gap", "consumer died", "link broken"}
        handled = sum(map(len, self.got))
        if not self.faults:
            assert entry.done == handled == entry.sent - entry.dropped.get("gap", 0)
        else:  # what was handled by somebody who died before he could say so counts as lost
            assert entry.done <= handled


def of_each(do: Callable[[World, int], Any]) -> dict[str, Callable[[World], Any]]:
    return {
        f" {place}": (lambda world, place=place: do(world, place)) for place in range(SUBSCRIBERS)
    }


GOOD: dict[str, Callable[[World], Any]] = {
    "publish": World.publish,
    "publish some": lambda world: world.publish(5),
    "turn": World.turn,
    "turns": lambda world: world.each(Subscriber.turn),
    "take": lambda world: world.each(Subscriber.take),
    "finish": lambda world: world.each(Subscriber.finish),
    **{"up" + name: do for name, do in of_each(World.up).items()},
    **{"down" + name: do for name, do in of_each(World.down).items()},
}
BAD: dict[str, Callable[[World], Any]] = {
    "announce": World.announce,
    "tick": lambda world: (world.publisher.tick(), world.each(lambda one: one.engine.tick())),
    **{"break" + name: do for name, do in of_each(World.break_).items()},
    **{"kill" + name: do for name, do in of_each(World.kill).items()},
}
CHOICE = [*BAD, *list(GOOD) * 4]


def play(schedule: Sequence[str], policy: str = "drop-newest") -> World:
    world = World(policy)
    for name in schedule:
        (GOOD | BAD)[name](world)
    return world.settle()


@pytest.mark.parametrize("policy", ["drop-newest", "drop-oldest"])
@settings(max_examples=60, deadline=None)
@given(lists(sampled_from(CHOICE), min_size=40, max_size=150))
def test_what_each_misses_is_counted_whatever_happens(policy: str, schedule: list[str]) -> None:
    play(schedule, policy)


@settings(max_examples=60, deadline=None)
@given(lists(sampled_from(list(GOOD)), min_size=40, max_size=150))
def test_without_faults_only_who_is_slow_misses_something(schedule: list[str]) -> None:
    world = play(schedule)
    assert set(world.books.read().dropped) <= {"gap"}


def test_the_schedules_do_what_they_are_for() -> None:
    dropped: Counter[str] = Counter()
    for seed in range(60):
        world = play(random.Random(seed).choices(CHOICE, k=400))
        dropped.update(world.books.read().dropped)
    assert min(dropped[reason] for reason in ("gap", "consumer died", "link broken")) > 20


class ForgetsTheBooks(Publisher):
    """Drops what is for one that is away, and counts it as nothing."""

    def _drop_for(self, batch: OutBatch) -> bool:
        return self._is_away(batch.group) or super()._drop_for(batch)


class BooksTwice(Publisher):
    """Counts what was queued for one that dies, and keeps it queued."""

    def gone(self, replica: int, incarnation: int) -> None:
        for batch in self._queues[replica]:
            self._lose(batch, "is away")
        super().gone(replica, incarnation)


@pytest.mark.parametrize("mutant", [ForgetsTheBooks, BooksTwice])
def test_a_rule_that_is_left_out_is_noticed(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sender_for", lambda terms: mutant)
    for seed in range(100):
        try:
            play(random.Random(seed).choices(CHOICE, k=400))
        except AssertionError:
            return
    pytest.fail("nobody has noticed")


def test_nothing_waits_for_one_that_is_away() -> None:
    world = World()
    world.kill(0)
    world.publisher.peer_gone("s", 0, 1, done=False)
    for _ in range(3):
        world.publish()
    assert world.books.read().dropped == {"gap": 3}
    assert world.publisher.senders[0].messages == 3, "of the other one, which comes yet"

    def complaints() -> list[str]:
        said = [one.text for one in world.publisher.actions if isinstance(one, events.Complain)]
        return [text for text in said if "gap" in text]

    assert complaints() == ["p.out -> s.in: s.0 is away: what it misses counts as gap"]
    for _ in range(3):
        world.publisher.tick()
        world.publish()
    assert len(complaints()) == 1, "it still misses something"
    for _ in range(2):
        world.publisher.tick()
    world.publish()
    assert len(complaints()) == 2


@pytest.mark.parametrize(
    ("window", "least", "most"),
    [(1, 1, 1), (8, 1, 1), (64, 8, 8), (1024, 64, 128), (1 << 16, 64, MAX_COUNT)],
)
def test_who_waits_for_nobody_makes_no_crumbs_and_no_lumps(
    window: int, least: int, most: int
) -> None:
    """Whatever the subscribers ask, or if they have not asked yet: of its batches a window holds
    several, and it is not filled with single messages."""
    world = World(window=window)

    def size(asked: int) -> int:
        for subscriber in world.subscribers:
            subscriber.engine.inboxes["in"].pace.max_count = asked
            subscriber.turn()
            while subscriber.up:
                world.up(subscriber.replica)
            world.turn()
            while subscriber.down:
                world.down(subscriber.replica)
        return world.publisher.root_count("out")

    assert world.publisher.root_count("out") == least
    size(1)  # opens the sessions
    assert [size(asked) for asked in (1, 100, 10 * MAX_COUNT, 1)] == [
        least,
        min(max(100, least), most),
        most,
        least,
    ]
    root = world.publisher.begin()
    assert root.cut == MAX_COUNT, "they have no say in what others get"
    root.finish()
    world.publish(5)
    world.settle()


@pytest.mark.parametrize(("route", "least"), [("balance", 16), ("key", 64), ("broadcast", 64)])
def test_a_pool_shares_what_one_batch_would_hold(route: str, least: int) -> None:
    """And the size for what is made of input depends on nothing that may be another the next time:
    ids are made of it."""
    mine = replace(terms("drop-oldest", 1 << 16), route=route, consumers=4, pattern="pipeline")
    sender = Sender(who("p"), mine, Books([0] * ROW), lambda action: None)
    assert (sender.max_count, sender.cut) == (least, MAX_COUNT)
    assert [sender.fit(asked) for asked in (1, 100, 10 * MAX_COUNT)] == [least, 100, MAX_COUNT]
    sender.resize(replace(mine, consumers=8))
    assert sender.max_count == (8 if route == "balance" else 64)


def test_topics_are_beginnings_of_keys() -> None:
    topics = Topics(1, itself, ["a.", "b"])
    messages = ["a.b", "a", "bc", "cb", "b"]

    def passed(*arguments: Any) -> list[Any]:
        return [message for cut in topics.cut(*arguments, 100) for message in cut.messages]

    assert passed(messages, None, None) == ["a.b", "bc", "b"]
    assert passed([1, 2, 3], [b"a.", b"x", "b"], None) == [1, 3]
    (cut,) = topics.cut([1, 2], ["x", "b"], [None, {"h": "2"}], 100)
    assert (cut.messages, cut.keys, cut.headers) == ([2], ["b"], [{"h": "2"}])
    assert topics.cut(["c"], None, None, 100) == []
    assert [cut.group for cut in topics.resized(3, 1).cut(["b"], None, None, 100)] == [0, 1, 2]
    with pytest.raises(EncodeError, match="1 is no topic"):
        topics.cut([1], None, None, 100)
    with pytest.raises(EncodeError, match="no topic"):
        topics.cut(["a."], [("a.", 1)], None, 100)
    assert len(Topics(2, itself, ()).cut([object(), 1], None, None, 100)) == 2
