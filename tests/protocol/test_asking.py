"""Clients and servers of a request link under every order of events: schedules over a wire that
delays and breaks, with servers that die and are started again."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from

from flowkit import wire
from flowkit.codecs import codec_for
from flowkit.protocol import engine, events
from flowkit.protocol.asking import ANSWERED, REFUSED, Answerer, Asker, Outcome, Question
from flowkit.protocol.engine import Engine, Phase
from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.lineage import Work
from flowkit.protocol.receiver import InBatch
from flowkit.protocol.routing import Router
from flowkit.protocol.sender import Session

SERVERS = 2
TERMS = Terms(0, "c.ask -> s.ask", "c", "ask", "s", "ask", 1, SERVERS, lossy=True,
              pattern="request")  # fmt: skip
CODEC = codec_for(int)


def who(node: str, replica: int = 0, incarnation: int = 1) -> Identity:
    return Identity("run", "token", node, replica, incarnation, 1 if node == "c" else 2 + replica)


class Server:
    """One incarnation of a server, and its line to the client."""

    def __init__(self, world: World, replica: int, incarnation: int) -> None:
        self.world, self.replica, self.incarnation = world, replica, incarnation
        self.engine = Engine(who("s", replica, incarnation), [TERMS], [], {"ask": 2})
        self.peer = b""
        self.up: deque[tuple[bytes, list[bytes]]] = deque()
        self.down: deque[list[bytes]] = deque()
        self.hands: deque[tuple[InBatch, Work]] = deque()
        self.left = False
        self.engine.producer_at(0, 0, 1, "there")
        self.turn()

    def turn(self) -> None:
        self.engine.flush()
        while self.engine.actions:
            match self.engine.actions.popleft():
                case events.ToProducer(0, 0, frame):
                    self.up.append((self.peer, wire.encode(frame)))
                case events.Connect():
                    # The first line of all is no fault; that two ticks brought no answer is one.
                    self.world.faults |= bool(self.peer)
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
        if len(self.hands) < 2 and (taken := self.engine.take("ask")) is not None:
            batch, _ = taken
            (number,) = CODEC.decode(batch.payload, 1)
            self.world.runs[number].append((self.replica, self.incarnation))
            self.hands.append(taken)

    def finish(self, oldest: bool) -> None:
        if self.hands:
            batch, work = self.hands.popleft() if oldest else self.hands.pop()
            (number,) = CODEC.decode(batch.payload, 1)
            end = batch.receiver
            assert isinstance(end, Answerer)
            if number % 5 == 4:
                end.answer(batch, b"no", REFUSED)
            else:
                end.answer(batch, CODEC.encode([-number]), ANSWERED)
            work.finish()


class World:
    """A client, its servers, and what the client was told."""

    def __init__(self) -> None:
        self.row = [0] * ROW
        output = (TERMS, Router("balance", SERVERS), CODEC, Books(self.row))
        self.client = Engine(who("c"), [], [output])
        self.peers = 0
        self.lines: dict[bytes, Server] = {}
        self.runs: dict[int, list[tuple[int, int]]] = {}
        self.open: dict[int, Question] = {}
        self.retries: dict[int, int] = {}
        self.told: dict[int, Question] = {}
        self.faults = False
        self.dead: deque[Server] = deque()
        self.servers = [Server(self, replica, 1) for replica in range(SERVERS)]
        self.stats: Counter[str] = Counter()

    @property
    def asker(self) -> Asker:
        sender = self.client.senders[0]
        assert isinstance(sender, Asker)
        return sender

    def ask(self, retries: int = 0) -> None:
        number = len(self.runs)
        self.runs[number] = []
        self.retries[number] = retries

        def told(question: Question) -> None:
            assert number not in self.told, "told twice"
            self.told[number] = question
            self.open.pop(number, None)

        question = self.asker.ask(CODEC.encode([number]), b"", retries, told)
        self.open[number] = question

    def expire(self) -> None:
        if self.open:
            self.asker.expire(self.open[min(self.open)])

    def turn(self) -> None:
        self.client.flush()
        while self.client.actions:
            match self.client.actions.popleft():
                case events.ToConsumer(0, peer, frame):
                    server = self.lines.get(peer)
                    if server is not None and server.peer == peer:
                        server.down.append(wire.encode(frame))
                case events.CallFinish():
                    self.client.finished()
                case events.ReportDone():
                    self.client.released()

    def up(self, place: int) -> None:
        server = self.servers[place]
        if server.up:
            peer, parts = server.up.popleft()
            self.client.from_consumer(0, peer, wire.decode(parts))

    def down(self, place: int) -> None:
        server = self.servers[place]
        if server.down and server not in self.dead:
            server.engine.from_producer(0, 0, wire.decode(server.down.popleft()))

    def break_(self, place: int) -> None:
        """What is under way is lost; what the server says next comes from a new peer."""
        self.faults = True
        server = self.servers[place]
        server.up.clear()
        server.reconnect()

    def kill(self, place: int) -> None:
        """What it had said may arrive yet, also after its death was announced."""
        server = self.servers[place]
        if server not in self.dead:
            self.faults = True
            self.dead.append(server)
            server.hands.clear()
            server.down.clear()

    def announce(self) -> None:
        while self.dead:
            server = self.dead.popleft()
            self.client.peer_gone("s", server.replica, server.incarnation, done=False)
            again = Server(self, server.replica, server.incarnation + 1)
            again.up.extendleft(reversed(server.up))
            self.servers[server.replica] = again

    def each(self, do: Callable[[Server], Any]) -> None:
        for server in self.servers:
            if server not in self.dead:
                do(server)

    def settle(self) -> None:
        """No more faults: everybody is told, and everybody leaves."""
        self.announce()
        self.client.end_stream()
        for _ in range(100):
            self.turn()
            self.each(Server.turn)
            for place in range(SERVERS):
                while self.servers[place].up:
                    self.up(place)
                self.turn()
                while self.servers[place].down:
                    self.down(place)
            self.each(Server.take)
            self.each(lambda server: server.finish(True))
            if all(server.left for server in self.servers):
                break
            self.client.tick()
            self.each(lambda server: server.engine.tick())
        assert all(server.left for server in self.servers), "hung"
        assert self.client.phase is Phase.CLOSED

    def check(self) -> None:
        assert self.told.keys() == self.runs.keys(), "somebody waits for ever"
        outcomes = Counter(question.outcome for question in self.told.values())
        for number, question in self.told.items():
            runs = self.runs[number]
            assert len(runs) <= 1 + self.retries[number], "asked more often than allowed"
            self.stats["again"] += len(runs) > 1
            if question.outcome is Outcome.ANSWERED:
                assert CODEC.decode(question.answer, 1) == [-number] and runs
            elif question.outcome is Outcome.FAILED:
                assert question.answer == b"no" and number % 5 == 4
            elif question.outcome is Outcome.LOST:
                assert self.faults, "lost without a fault"
        entry = self.asker.books.read()
        assert entry.sent == len(self.told) and entry.in_flight == 0 and entry.balanced
        assert entry.done == outcomes[Outcome.ANSWERED]
        assert entry.dropped == {
            outcome.value: count
            for outcome, count in outcomes.items()
            if outcome is not Outcome.ANSWERED
        }
        assert self.asker.messages == self.asker.bytes == 0
        self.stats.update(outcome.name for outcome in outcomes.elements())


def of_each(do: Callable[[World, int], Any]) -> dict[str, Callable[[World], Any]]:
    return {f" {place}": (lambda world, place=place: do(world, place)) for place in range(SERVERS)}


GOOD: dict[str, Callable[[World], Any]] = {
    "ask": World.ask,
    "turn": World.turn,
    "turns": lambda world: world.each(Server.turn),
    "take": lambda world: world.each(Server.take),
    "finish the oldest": lambda world: world.each(lambda server: server.finish(True)),
    "finish the newest": lambda world: world.each(lambda server: server.finish(False)),
    **{"up" + name: do for name, do in of_each(World.up).items()},
    **{"down" + name: do for name, do in of_each(World.down).items()},
}
BAD: dict[str, Callable[[World], Any]] = {
    "ask once more": lambda world: world.ask(1),
    "ask for ever": lambda world: world.ask(100),
    "expire": World.expire,
    "announce": World.announce,
    "tick": lambda world: (world.client.tick(), world.each(lambda one: one.engine.tick())),
    **{"break" + name: do for name, do in of_each(World.break_).items()},
    **{"kill" + name: do for name, do in of_each(World.kill).items()},
}
CHOICE = [*BAD, *list(GOOD) * 6]


def play(schedule: Sequence[str]) -> World:
    world = World()
    for name in schedule:
        (GOOD | BAD)[name](world)
    world.settle()
    world.check()
    return world


@settings(max_examples=120, deadline=None)
@given(lists(sampled_from(CHOICE), min_size=40, max_size=200))
def test_everybody_is_told_once_and_the_books_balance(schedule: list[str]) -> None:
    play(schedule)


@settings(max_examples=60, deadline=None)
@given(lists(sampled_from(list(GOOD)), min_size=40, max_size=200))
def test_without_faults_every_question_is_asked_once_and_answered(schedule: list[str]) -> None:
    world = play(schedule)
    assert all(len(runs) == 1 for runs in world.runs.values())
    assert set(world.stats) <= {"ANSWERED", "FAILED", "again"} and not world.stats["again"]


def test_the_schedules_do_what_they_are_for() -> None:
    """They lose, ask again, time out and answer: else they prove nothing."""
    stats: Counter[str] = Counter()
    for seed in range(60):
        chance = random.Random(seed)
        stats += play(chance.choices(CHOICE, k=500)).stats
    assert min(stats[name] for name in ("ANSWERED", "FAILED", "LOST", "TIMED_OUT", "again")) > 5


def connected() -> World:
    world = World()
    for _ in range(3):
        world.each(Server.turn)
        for place in range(SERVERS):
            world.up(place)
        world.turn()
        for place in range(SERVERS):
            while world.servers[place].down:
                world.down(place)
    return world


def test_the_server_with_the_fewest_in_hand_gets_the_next_and_equals_take_turns() -> None:
    world = connected()
    for _ in range(3):
        world.ask()
        world.turn()
    assert [len(server.down) for server in world.servers] == [2, 1]
    world.ask()
    world.turn()
    assert [len(server.down) for server in world.servers] == [2, 2]
    world.ask()
    world.turn()
    assert [len(server.down) for server in world.servers] == [2, 2], "two handlers, two in hand"
    assert world.asker.queued == 1


def test_a_server_that_was_stopped_gets_nothing_new_and_its_question_may_expire() -> None:
    world = connected()
    world.ask()
    world.turn()
    for _ in range(10):
        world.client.tick()
        world.servers[1].turn()
        world.servers[1].engine.tick()
        world.up(1)
    for _ in range(2):
        world.ask()
        world.turn()
    assert (
        len([one for one in world.servers[1].down if isinstance(wire.decode(one), wire.Data)]) == 2
    )
    world.expire()
    assert world.told[0].outcome is Outcome.TIMED_OUT and world.told[0].server == 0


def test_what_a_server_has_not_begun_when_its_session_ends_it_does_not_begin() -> None:
    """The asker has been told that it is lost, or asks another."""
    world = connected()
    for _ in range(4):
        world.ask()
    world.turn()
    server = world.servers[0]
    while server.down:
        world.down(0)
    server.take()
    assert server.engine.waiting == 1 and len(server.hands) == 1
    world.faults = True
    server.engine.unreachable(0, 0)
    assert server.engine.waiting == 0 and server.engine.take("ask") is None
    world.settle()
    world.check()
    assert [question.outcome for question in world.told.values()].count(Outcome.LOST) == 2
    assert sum(len(runs) for runs in world.runs.values()) == 3


@pytest.mark.parametrize("sequence", [0, 2, 1 << 40])
def test_an_answer_to_what_was_not_asked_ends_the_session(sequence: int) -> None:
    world = connected()
    world.ask()
    world.turn()
    session = world.asker.sessions[1] if world.asker.sessions[1].unacked else None
    session = session or world.asker.sessions[0]
    frame = wire.Data(session.id, sequence, bytes(16), 0, 1, 1, 0, b"\x91\x01")
    world.client.from_consumer(0, session.peer, frame)
    assert session not in world.asker.sessions
    assert world.told[0].outcome is Outcome.LOST
    world.client.from_consumer(0, b"stranger", frame)  # answered with RESET, and no more
    assert world.asker.messages == 0


class AlwaysAgain(Asker):
    """Asks again whether the asker has allowed it or not."""

    def _take_back(self, session: Session, dead: bool) -> None:
        for question in session.unacked:
            assert isinstance(question, Question)
            question.retries += not question.over
        super()._take_back(session, dead)


class KeepsWhatIsOver(Asker):
    """Asks also what nobody waits for any more."""

    def _take_back(self, session: Session, dead: bool) -> None:
        self._queues[0].extendleft(session.unacked)


class Silent(Asker):
    """Tells nobody that a server was lost."""

    def _take_back(self, session: Session, dead: bool) -> None:
        return None


class HandsOverTwice(Asker):
    """Takes an answer to a question that is over for one to another."""

    def _conclude(self, question: Question, outcome: Outcome) -> None:
        told = question.told
        super()._conclude(question, outcome)
        question.told = told
        if outcome is Outcome.TIMED_OUT:
            question.outcome = Outcome.OPEN


@pytest.mark.parametrize("mutant", [AlwaysAgain, KeepsWhatIsOver, Silent, HandsOverTwice])
def test_a_rule_that_is_left_out_is_noticed(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "sender_for", lambda terms: mutant)
    for seed in range(100):
        chance = random.Random(seed)
        try:
            play(chance.choices(CHOICE, k=500))
        except AssertionError:
            return
    pytest.fail("nobody has noticed")
