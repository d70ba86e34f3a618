"""The receiver and the sender of foreign links, without a socket: books, lineage, envelopes."""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.codecs import encode_extras
from flowkit.codecs.single import Single
from flowkit.errors import DecodeError, EncodeError
from flowkit.protocol.engine import Engine, Outlet
from flowkit.protocol.events import Identity, Terms
from flowkit.protocol.foreign import NO_PEER, ForeignReceiver, ForeignSender
from flowkit.protocol.ledger import ROW, Books
from flowkit.protocol.routing import Router
from flowkit.protocol.sockets import ENVELOPE, to_header

ME = Identity("run", "token", "node", 0, 1, 0)
ASKED = b"\0abcd"


class World:
    """An engine with a foreign input and a foreign output of the same socket."""

    def __init__(self, kind: str = "REP", window: int = 10, address: Any = None) -> None:
        self.came, self.went = Books([0] * ROW), Books([0] * ROW)
        inlet = Terms(-3, "in", kind, "", "node", "x", 0, 1, lossy=True, window=window)
        outlet = Terms(-4, "out", "node", "y", kind, "", 1, 0, lossy=True, window=window)
        self.engine = Engine(ME, [], [])
        self.receiver = ForeignReceiver(ME, inlet, self.came)
        codec = Single(bytes)
        self.sender = ForeignSender(
            kind, outlet, self.went, frames_of=codec.frames_of, inlet=-3, address=address
        )
        way = Outlet(self.sender, Router("balance", 1), codec, b"y")
        self.engine.join([self.receiver], [way])

    def ask(self, *envelope: bytes, message: bytes = b"q") -> None:
        self.receiver.push([message], encode_extras(None, [{ENVELOPE: to_header(envelope)}]))

    def answer(self, *messages: bytes, headers: Any = None) -> Any:
        taken = self.engine.take("x")
        assert taken is not None
        _, work = taken
        assert not self.engine.release(work, "y", list(messages), None, headers)
        work.finish()
        return work


def test_an_answer_has_the_envelope_of_what_is_in_hand() -> None:
    world = World()
    world.ask(ASKED, b"")
    world.ask(b"\0efgh", b"\0hop", b"")
    world.answer(b"a")
    world.answer(b"b", b"c")
    assert world.sender.next() == [ASKED, b"", b"a"]
    world.sender.sent()
    for body in (b"b", b"c"):
        assert world.sender.next() == [b"\0efgh", b"\0hop", b"", body]
        world.sender.sent()
    assert world.sender.next() is None
    assert (world.came.read().done, world.went.read().done) == (2, 3)


def test_what_comes_in_is_done_when_what_came_of_it_has_left() -> None:
    world = World()
    world.ask(ASKED, b"")
    world.answer(b"a")
    assert (world.came.read().done, world.came.read().in_flight) == (0, 1)
    assert not world.engine.settled
    world.sender.next()
    world.sender.sent()
    assert (world.came.read().done, world.came.read().in_flight) == (1, 0)
    assert world.engine.settled


def test_a_header_goes_before_the_message_in_hand_and_both_before_the_address() -> None:
    world = World("ROUTER", address=[b"default"])
    world.ask(ASKED)
    world.answer(b"a", headers=[{ENVELOPE: to_header([b"other"])}])
    assert world.sender.next() == [b"other", b"a"]
    world.sender.sent()
    world.ask(ASKED)
    world.answer(b"b")
    assert world.sender.next() == [ASKED, b"b"]
    world.sender.sent()
    root = world.engine.begin()
    world.engine.release(root, "y", [b"c"])
    root.finish()
    assert world.sender.next() == [b"default", b"c"]


def test_what_has_no_address_is_dropped_and_counted() -> None:
    world = World("REP")
    root = world.engine.begin()
    world.engine.release(root, "y", [b"a", b"b"], None, [None, {ENVELOPE: "nonsense"}])
    root.finish()
    assert world.sender.next() is None
    assert world.sender.unaddressed == 2
    entry = world.went.read()
    assert (entry.sent, entry.done, entry.dropped) == (2, 0, {NO_PEER: 2})
    assert entry.balanced and entry.in_flight == 0


@pytest.mark.parametrize("window", [1, 5])
def test_both_ways_are_bounded(window: int) -> None:
    world = World("PULL", window)
    for _ in range(window):
        assert world.receiver.room > 0
        world.receiver.push([b"x"])
    assert world.receiver.room == 0
    for _ in range(window):
        assert world.engine.room
        world.answer(b"y")
    assert world.receiver.room == window
    assert world.sender.full and not world.engine.room
    world.sender.next()
    world.sender.lost(NO_PEER)
    assert not world.sender.full


def test_the_ids_of_messages_are_their_own() -> None:
    world = World("PULL")
    other = World("PULL")
    other.receiver.terms = Terms(-5, "another", "PULL", "", "node", "x", 0, 1, lossy=True)
    for each in (world, other):
        for _ in range(3):
            each.receiver.push([b"x"])
    ids = [batch.id for each in (world, other) for batch in each.receiver.queue]
    assert len(set(ids)) == 6


def test_a_node_ends_with_its_links_if_the_input_is_aside() -> None:
    world = World("PULL")
    assert not world.engine.inboxes["x"].closed
    world.receiver.close()
    assert world.engine.inboxes["x"].closed
    aside = ForeignReceiver(ME, world.receiver.terms, Books([0] * ROW), aside=True)
    assert aside.ended
    aside.push([b"x"])
    assert aside.held == 1, "what has come is handled all the same"


def test_the_codec_of_messages_that_travel_alone() -> None:
    codec = Single(int, "json")
    assert list(codec.encode([1, 23]).parts) == [b"1", b"23"]
    assert codec.decode(codec.encode([1, 23]), 2) == [1, 23]
    with pytest.raises(DecodeError):
        codec.decode(codec.encode([1]), 2)
    with pytest.raises(DecodeError, match="2 frames"):
        codec.decode_one(codec.raw_of([b"1", b"2"]))
    many = Single(list[bytes])
    assert many.frames_of(many.raw_of([b"", b"a"])) == [b"", b"a"]
    assert many.decode_one(many.raw_of([b"", b"a"])) == [b"", b"a"]


def test_a_message_of_no_frames_is_refused_where_it_is_sent() -> None:
    with pytest.raises(EncodeError, match="no frames"):
        Single(list[bytes]).encode([[b"x"], []])
    assert Single(list[int], "json").encode_one([]) == b"[]"
