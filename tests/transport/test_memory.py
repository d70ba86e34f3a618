"""What the memory transport promises beyond what every transport does."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from flowkit.testing.conformance import Hub, Peer
from flowkit.transport.memory import TURN_MESSAGES, MemoryHub, MemoryTransport


class Turns:
    """A loop that turns when it is told to. Time passes when nothing else is left to do."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self.later: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self.now = 0.0
        self.errors: list[dict[str, object]] = []

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> None:
        self.ready.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> None:
        self.later.append((self.now + delay, len(self.later), callback, args))

    def call_exception_handler(self, context: dict[str, object], /) -> None:
        self.errors.append(context)

    def turn(self) -> None:
        for _ in range(len(self.ready)):
            callback, args = self.ready.popleft()
            callback(*args)

    def run(self) -> None:
        while self.ready or self.later:
            if not self.ready:
                self.later.sort()
                self.now, _, callback, args = self.later.pop(0)
                self.ready.append((callback, args))
            self.turn()


def make() -> tuple[MemoryHub, Turns, MemoryTransport]:
    hub, loop = MemoryHub(), Turns()
    return hub, loop, MemoryTransport(hub, loop)


def test_messages_of_all_lines_arrive_in_the_order_of_sending() -> None:
    _, loop, transport = make()
    trace: list[bytes] = []
    hub = Hub(transport)
    hub.then = lambda peer, parts: trace.append(parts[0])
    peers = [Peer(transport, hub.address) for _ in range(5)]
    for number in range(1000):
        peers[number * 7 % 5].send(b"%d" % number)
    loop.run()
    assert trace == [b"%d" % number for number in range(1000)]


def test_two_runs_are_the_same() -> None:
    def run(seed: int) -> list[object]:
        choice = random.Random(seed)
        network, loop, transport = make()
        trace: list[object] = []
        hub = Hub(transport)

        def answer(peer: bytes, parts: list[bytes]) -> None:
            trace.append((loop.now, peer, parts))
            network.delay = choice.choice((0.0, 0.0, 0.5, 1.0))
            for other in choice.sample(sorted(hub.heard), k=min(2, len(hub.heard))):
                hub.send(other, *parts)

        hub.then = answer
        for number in range(10):
            peer = Peer(transport, hub.address)
            peer.then = lambda parts, number=number: trace.append((loop.now, number, parts))
            for message in range(5):
                peer.send(b"%d" % message)
        loop.run()
        return trace

    assert len(run(1)) > 50
    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_turn_is_bounded() -> None:
    _, loop, transport = make()
    hub = Hub(transport)
    peer = Peer(transport, hub.address)
    for _ in range(3 * TURN_MESSAGES):
        peer.send(b"x")
    loop.turn()
    assert hub.count == TURN_MESSAGES
    loop.run()
    assert hub.count == 3 * TURN_MESSAGES


def test_delay_holds_back_and_keeps_the_order() -> None:
    network, loop, transport = make()
    hub = Hub(transport)
    peer = Peer(transport, hub.address)
    for number, delay in enumerate((1.0, 1.0, 3.0, 0.0, 2.0)):
        network.delay = delay
        peer.send(b"%d" % number)
    loop.run()
    assert [parts for (parts,) in hub.heard.popitem()[1]] == [b"%d" % n for n in range(5)]
    assert loop.now == 3.0


def test_a_cut_loses_what_is_under_way_and_breaks_the_lines_for_good() -> None:
    network, loop, transport = make()
    hub, other = Hub(transport), Hub(transport)
    peer, elsewhere = Peer(transport, hub.address), Peer(transport, other.address)
    peer.send(b"before")
    elsewhere.send(b"before")
    loop.run()
    (name,) = hub.heard
    peer.send(b"lost")
    hub.send(name, b"lost")
    elsewhere.send(b"not lost")
    assert network.cut(hub.address) == 1
    assert network.cut(hub.address) == 0
    assert network.cut("memory://nowhere") == 0
    loop.run()
    assert hub.count == 1
    assert peer.heard == []
    assert other.count == 2
    assert not peer.send(b"x")
    assert not hub.send(name, b"x")
    again = Peer(transport, hub.address)
    assert again.send(b"again")
    loop.run()
    assert hub.count == 2
    assert len(hub.heard) == 2


def test_close_without_linger_loses_what_is_under_way() -> None:
    for linger, arrives in ((0.0, 0), (1.0, 1)):
        _, loop, transport = make()
        hub = Hub(transport)
        peer, watcher = Peer(transport, hub.address), Peer(transport, hub.address)
        watcher.send(b"hello")
        loop.run()
        (name,) = hub.heard
        peer.send(b"last words")
        peer.connection.close(linger)
        loop.run()
        assert hub.count == 1 + arrives
        hub.send(name, b"last words")
        hub.binding.close(linger)
        loop.run()
        assert len(watcher.heard) == arrives


def test_a_closed_binding_does_not_hear_who_left_before() -> None:
    _, loop, transport = make()
    hub = Hub(transport)
    peer = Peer(transport, hub.address)
    peer.send(b"last words")
    peer.connection.close(1.0)
    hub.binding.close(1.0)
    loop.run()
    assert hub.count == 0


def test_an_exception_goes_to_the_loop_it_happened_on() -> None:
    network, loop, transport = make()
    other_loop = Turns()
    hub = Hub(transport)
    peer = Peer(MemoryTransport(network, other_loop), hub.address)
    hub.then = lambda name, parts: 1 / 0
    peer.send(b"x")
    loop.run()
    assert isinstance(loop.errors[0]["exception"], ZeroDivisionError)
    assert hub.address in str(loop.errors[0]["message"])
    assert other_loop.errors == []


def test_the_running_loop_is_used_when_none_is_given() -> None:
    async def main() -> None:
        transport = MemoryTransport(MemoryHub())
        hub = Hub(transport)
        Peer(transport, hub.address).send(b"x")
        while not hub.count:
            await asyncio.sleep(0)

    asyncio.run(main())
