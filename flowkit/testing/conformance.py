"""What every transport must do, as tests: subclass these classes under pytest.

::

    class TestMine(EndpointConformance, ProcessConformance):
        def factory(self) -> Callable[[], Transport]:
            return partial(MyTransport, self.directory)

`factory` is asked once per transport; what it returns is called inside a running event loop, and
must be picklable for `ProcessConformance`, which also calls it in other processes. All transports
of one test must be able to reach each other.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowkit.clock import monotonic
from flowkit.errors import TransportError
from flowkit.transport.base import Binding, Connection, Transport

DEADLINE = 30.0
"""How long a test waits for what must happen, in seconds. Nothing waits for it to pass."""

BURST = 20_000
MIB = 1 << 20


class Peer:
    """A connection that keeps what it hears, and calls `then` for each message if there is one."""

    def __init__(self, transport: Transport, address: str) -> None:
        self.heard: list[list[bytes]] = []
        self.then: Callable[[list[bytes]], None] | None = None
        self.connection: Connection = transport.connect(address, self._on_message)

    def _on_message(self, parts: list[bytes]) -> None:
        self.heard.append(parts)
        if self.then is not None:
            self.then(parts)

    def send(self, *parts: bytes) -> bool:
        """Send one message."""
        return self.connection.send(parts)


class Hub:
    """A binding that keeps what it hears by peer, and calls `then` likewise."""

    def __init__(self, transport: Transport, name: str = "hub") -> None:
        self.heard: defaultdict[bytes, list[list[bytes]]] = defaultdict(list)
        self.count = 0
        self.then: Callable[[bytes, list[bytes]], None] | None = None
        self.binding: Binding = transport.bind(name, self._on_message)
        self.address = self.binding.address

    def _on_message(self, peer: bytes, parts: list[bytes]) -> None:
        self.heard[peer].append(parts)
        self.count += 1
        if self.then is not None:
            self.then(peer, parts)

    def send(self, peer: bytes, *parts: bytes) -> bool:
        """Send one message to `peer`."""
        return self.binding.send(peer, parts)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds; AssertionError when it does not in time."""
    end = monotonic() + DEADLINE
    while not condition():
        assert monotonic() < end, f"did not happen in {DEADLINE} s"
        await asyncio.sleep(0.001)


class _Conformance:
    """What the suites share."""

    def factory(self) -> Callable[[], Transport]:
        """To be overridden: return what makes a transport."""
        raise NotImplementedError

    def run(self, test: Callable[[Callable[[], Transport]], Coroutine[Any, Any, None]]) -> None:
        """Run `test` on a new event loop, with something that makes transports; clean up."""

        async def body() -> None:
            made: list[Transport] = []

            def make() -> Transport:
                made.append(self.factory()())
                return made[-1]

            try:
                await test(make)
            finally:
                for transport in made:
                    transport.close()
                for transport in made:
                    transport.join()

        asyncio.run(body())

    async def pair(self, transport: Transport) -> tuple[Hub, Peer, bytes]:
        """A binding and a connection that know each other, and the name of the latter."""
        hub = Hub(transport)
        peer, name = await self.join(transport, hub)
        return hub, peer, name

    async def join(self, transport: Transport, hub: Hub) -> tuple[Peer, bytes]:
        """One more connection to `hub`, and its name there."""
        known = set(hub.heard)
        peer = Peer(transport, hub.address)
        assert peer.send(b"hello")
        await until(lambda: len(hub.heard) > len(known))
        (name,) = set(hub.heard) - known
        hub.heard[name].clear()
        hub.count = 0
        return peer, name


class EndpointConformance(_Conformance):
    """What can be seen from inside one process."""

    def test_messages_of_a_peer_arrive_in_order(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            expected = [[b"%d" % n, b"x"] for n in range(2000)]
            for parts in expected:
                assert peer.send(*parts)
                assert hub.send(name, *parts)
            await until(lambda: hub.count == len(peer.heard) == 2000)
            assert hub.heard[name] == expected
            assert peer.heard == expected

        self.run(test)

    def test_a_message_arrives_whole(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            expected = [
                [bytes([n]) * (n * size) for n in range(parts)]
                for parts in (1, 2, 3, 50)
                for size in (0, 1, 300, 10_000)
            ]
            for parts in expected:
                assert peer.send(*parts)
                assert hub.send(name, *parts)
            await until(lambda: hub.count == len(peer.heard) == len(expected))
            assert hub.heard[name] == expected
            assert peer.heard == expected
            assert all(type(part) is bytes for parts in peer.heard for part in parts)

        self.run(test)

    def test_what_is_sent_may_be_changed_afterwards(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            hub.then = lambda name, parts: _true(hub.send(name, b"heard"))
            for number, size in enumerate((200_000, 2_000_000), 1):
                content = b"a" * size
                first, last = bytearray(content), bytearray(content)
                parts = [b"header", content]
                assert peer.connection.send(parts)
                parts[1] = b"other"
                parts.append(b"more")
                assert peer.connection.send([first, memoryview(last)])  # type: ignore[list-item]
                first[:] = last[:] = b"b" * size
                while len(peer.heard) < 2 * number:
                    await asyncio.sleep(0.001)
                assert hub.heard[name][-2:] == [[b"header", content], [content, content]]

        self.run(test)

        self.run(test)

    def test_many_peers_are_told_apart(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            here, there = make(), make()
            hub = Hub(here)
            hub.then = lambda name, parts: _true(hub.send(name, b"you are", *parts))
            peers = [Peer(there, hub.address) for _ in range(100)]
            for number, peer in enumerate(peers):
                assert peer.send(b"%d" % number)
                assert peer.send(b"again %d" % number)
            await until(lambda: all(len(peer.heard) == 2 for peer in peers))
            assert len(hub.heard) == 100
            for number, peer in enumerate(peers):
                assert peer.heard == [
                    [b"you are", b"%d" % number],
                    [b"you are", b"again %d" % number],
                ]

        self.run(test)

    def test_big_messages_pass_both_ways(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            body = os.urandom(16 * MIB)
            for _ in range(2):
                assert peer.send(b"header", body)
                assert hub.send(name, b"header", body)
            await until(lambda: hub.count == len(peer.heard) == 2)
            for parts in hub.heard[name] + peer.heard:
                assert parts[0] == b"header"
                assert parts[1] == body

        self.run(test)

    def test_bursts_both_ways_leave_nobody_deaf(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            for _ in range(BURST):
                peer.send(b"up")
                hub.send(name, b"down")
            await until(lambda: hub.count == len(peer.heard) == BURST)
            await self._talk(hub, peer, name)

        self.run(test)

    def test_bursts_in_answer_to_a_burst_leave_nobody_deaf(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            hub.then = lambda name, parts: _true(hub.send(name, *parts))
            for number in range(BURST):
                peer.send(b"%d" % number)
            await until(lambda: len(peer.heard) == BURST)
            assert peer.heard[-1] == [b"%d" % (BURST - 1)]
            hub.then = None
            await self._talk(hub, peer, name)

        self.run(test)

    def test_sending_without_pause_leaves_nobody_deaf(self) -> None:
        """Calls on a socket may hide from the loop that something came: it must be told."""

        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            for turn in range(1, 20):
                assert peer.send(b"now")
                # No turn of the loop until the message has come in, behind the back of the loop.
                end = monotonic() + 0.005
                while monotonic() < end:
                    hub.send(name, b"x")
                await until(lambda turn=turn: hub.count == turn)  # type: ignore[misc]

        self.run(test)

    async def _talk(self, hub: Hub, peer: Peer, name: bytes) -> None:
        """Send to and fro, one message at a time."""
        for turn in range(1, 40):
            before = hub.count, len(peer.heard)
            assert peer.send(b"ping %d" % turn)
            await until(lambda before=before: hub.count == before[0] + 1)  # type: ignore[misc]
            assert hub.send(name, b"pong %d" % turn)
            await until(lambda before=before: len(peer.heard) == before[1] + 1)  # type: ignore[misc]

    def test_a_burst_does_not_hold_the_loop(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, _ = await self.pair(make())
            loop = asyncio.get_running_loop()
            seen: list[int] = []

            def first(name: bytes, parts: list[bytes]) -> None:
                hub.then = None
                loop.call_soon(lambda: seen.append(hub.count))

            hub.then = first
            for _ in range(BURST):
                peer.send(b"x")
            await until(lambda: hub.count == BURST)
            assert seen[0] < BURST / 2

        self.run(test)

    def test_callbacks_are_not_called_within_a_call(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            inside = False

            def check(*_: object) -> None:
                assert not inside

            hub.then, peer.then = check, check
            errors = _collect_errors()
            for _ in range(1000):
                inside = True
                peer.send(b"x")
                hub.send(name, b"x")
                inside = False
            await until(lambda: hub.count == len(peer.heard) == 1000)
            assert errors == []

        self.run(test)

    def test_a_callback_that_raises_deafens_nobody(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            errors = _collect_errors()

            def fail(*_: object) -> None:
                raise (LookupError if hub.count % 2 else asyncio.CancelledError)("on purpose")

            hub.then, peer.then = fail, fail
            for _ in range(50):
                peer.send(b"x")
                hub.send(name, b"x")
            await until(lambda: hub.count == len(peer.heard) == 50)
            await until(lambda: len(errors) == 100)
            assert {type(error) for error in errors} == {LookupError, asyncio.CancelledError}
            hub.then = peer.then = None
            await self._talk(hub, peer, name)

        self.run(test)

    def test_a_peer_that_left_cannot_be_reached(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            assert not hub.send(b"nobody", b"x")
            assert not hub.send(b"\0\1\2\3\4", b"x")
            peer.connection.close()
            await until(lambda: not hub.send(name, b"x", b"y"))
            assert not peer.send(b"x")
            other, other_name = await self.join(make(), hub)
            await self._talk(hub, other, other_name)

        self.run(test)

    def test_a_binding_that_is_gone_blocks_nobody(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            here = make()
            hub, peer, name = await self.pair(here)
            other = Hub(here, "other")
            hub.binding.close()
            assert not hub.send(name, b"x")
            for _ in range(2000):
                peer.send(b"x" * 1000)
            stranger = Peer(here, other.address)
            stranger.send(b"x")
            await until(lambda: other.count == 1)
            assert hub.count == 0
            late = Peer(here, hub.address)
            late.send(b"x")

        self.run(test)

    def test_a_new_connection_is_a_new_peer_and_a_new_binding_a_new_address(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            hub = Hub(transport)
            names = set()
            for _ in range(20):
                peer, name = await self.join(transport, hub)
                names.add(name)
                peer.connection.close()
            assert len(names) == 20
            addresses = {hub.address}
            for _ in range(5):
                again = Hub(transport)
                addresses.add(again.address)
                again.binding.close()
            assert len(addresses) == 6

        self.run(test)

    def test_nothing_is_heard_after_close(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            hub, peer, name = await self.pair(transport)
            quiet = Hub(transport, "quiet")
            errors = _collect_errors()

            def leave(*_: object) -> None:
                hub.binding.close()
                peer.connection.close()
                peer.connection.close(1.0)

            hub.then = leave
            for _ in range(3000):
                peer.send(b"x")
                hub.send(name, b"x")
            await until(lambda: hub.count)
            other = Peer(transport, quiet.address)
            heard = len(peer.heard)
            other.send(b"x")
            await until(lambda: quiet.count)
            assert hub.count == 1
            assert len(peer.heard) == heard
            assert not peer.send(b"x")
            assert not hub.send(name, b"x")
            assert errors == []

        self.run(test)

    def test_what_lingers_is_delivered(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            here, there = make(), make()
            hub, peer, name = await self.pair(here)
            far, far_name = await self.join(there, hub)
            for number in range(5000):
                assert far.send(b"%d" % number, b"x" * 100)
            far.connection.close(DEADLINE)
            there.close()
            await until(lambda: len(hub.heard[far_name]) == 5000)
            assert hub.heard[far_name][-1][0] == b"4999"
            for number in range(5000):
                assert hub.send(name, b"%d" % number, b"x" * 100)
            hub.binding.close(DEADLINE)
            here_too = make()
            Hub(here_too, "unconcerned")
            await until(lambda: len(peer.heard) == 5000)
            assert peer.heard[-1][0] == b"4999"

        self.run(test)

    def test_what_is_no_message_is_refused_and_does_no_harm(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub, peer, name = await self.pair(make())
            for parts, error in (([], ValueError), ([b"x", "text"], TypeError), ([1], TypeError)):
                for send in (peer.connection.send, lambda parts: hub.binding.send(name, parts)):
                    try:
                        send(parts)  # type: ignore[arg-type]
                    except error:
                        continue
                    raise AssertionError(f"{parts} was taken")
            await self._talk(hub, peer, name)
            assert hub.heard[name][0] == [b"ping 1"]

        self.run(test)

    def test_an_endpoint_that_cannot_be_is_refused(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            _refuses(lambda: transport.connect("carrier-pigeon://roof", lambda parts: None))
            hub = Hub(transport)
            transport.close()
            _refuses(lambda: transport.connect(hub.address, lambda parts: None))
            _refuses(lambda: transport.bind("late", lambda peer, parts: None))
            transport.close()
            transport.join()
            transport.join()

        self.run(test)

    def test_transports_of_one_loop_do_not_mind_each_other(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            first, second, third = make(), make(), make()
            hubs = [Hub(transport, "same") for transport in (first, second, third)]
            assert len({hub.address for hub in hubs}) == 3
            lines = [
                (*await self.join(transport, hub), hub)
                for transport in (first, second, third)
                for hub in hubs
            ]
            for number, (peer, name, hub) in enumerate(lines):
                peer.send(b"%d" % number)
                hub.send(name, b"%d" % number)
            await until(
                lambda: all(
                    len(peer.heard) == len(hub.heard[name]) == 1 for peer, name, hub in lines
                )
            )
            for number, (peer, name, hub) in enumerate(lines):
                assert peer.heard == hub.heard[name] == [[b"%d" % number]]
            second.close()
            second.join()
            for peer, name, hub in (lines[0], lines[-1]):
                await self._talk(hub, peer, name)

        self.run(test)

    def test_nothing_is_left_behind(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            hub, peer, name = await self.pair(transport)
            await self._talk(hub, peer, name)
            for linger in (0.0, 0.2):
                other, _ = await self.join(transport, hub)
                other.connection.close(linger)

        self.run(test)
        before = _resources()
        for _ in range(5):
            self.run(test)
        assert _resources() <= before


class ProcessConformance(_Conformance):
    """What takes a peer in another process, and what may become of it."""

    def test_what_lingers_is_delivered_when_the_process_ends(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub = Hub(make())
            with self.child(_talk_and_leave, hub.address, BURST):
                await until(lambda: hub.count == BURST)
            (messages,) = hub.heard.values()
            assert [parts[0] for parts in messages] == [b"%d" % n for n in range(BURST)]

        self.run(test)

    def test_a_peer_that_is_killed_cannot_be_reached(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            hub, friend, friend_name = await self.pair(transport)
            with self.child(_echo, hub.address) as child:
                await until(lambda: len(hub.heard) == 2)
                (name,) = set(hub.heard) - {friend_name}
                child.kill()
                await until(lambda: not hub.send(name, b"x" * 1000))
            assert hub.send(friend_name, b"still here")
            await until(lambda: friend.heard == [[b"still here"]])

        self.run(test)

    def test_a_peer_that_is_stopped_blocks_nobody(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            transport = make()
            hub, friend, friend_name = await self.pair(transport)
            with self.child(_echo, hub.address) as child:
                await until(lambda: len(hub.heard) == 2)
                (name,) = set(hub.heard) - {friend_name}
                hub.heard[name].clear()
                assert child.pid is not None
                os.kill(child.pid, signal.SIGSTOP)
                slowest = 0.0
                for number in range(3000):
                    start = monotonic()
                    assert hub.send(name, b"%d" % number, b"x" * 10_000)
                    slowest = max(slowest, monotonic() - start)
                    assert hub.send(friend_name, b"x")
                assert slowest < DEADLINE / 6, f"a send took {slowest:.1f} s"
                await until(lambda: len(friend.heard) == 3000)
                assert hub.heard[name] == []
                os.kill(child.pid, signal.SIGCONT)
                await until(lambda: len(hub.heard[name]) == 3000)
                assert [parts[0] for parts in hub.heard[name]] == [b"%d" % n for n in range(3000)]

        self.run(test)

    def test_bursts_between_processes_leave_nobody_deaf(self) -> None:
        async def test(make: Callable[[], Transport]) -> None:
            hub = Hub(make())
            with self.child(_echo, hub.address):
                await until(lambda: len(hub.heard) == 1)
                (name,) = hub.heard
                hub.heard[name].clear()
                for number in range(BURST):
                    assert hub.send(name, b"%d" % number)
                await until(lambda: len(hub.heard[name]) == BURST)
                for turn in range(200):
                    assert hub.send(name, b"x")
                    await until(
                        lambda turn=turn: len(hub.heard[name]) == BURST + turn + 1  # type: ignore[misc]
                    )

        self.run(test)

    @contextmanager
    def child(
        self, main: Callable[..., None], *args: object
    ) -> Iterator[multiprocessing.process.BaseProcess]:
        """Run `main` in a new process with the factory and `args`; end it with the block."""
        process = multiprocessing.get_context("spawn").Process(
            target=main, args=(self.factory(), *args)
        )
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()
            process.close()


def _talk_and_leave(factory: Callable[[], Transport], address: str, count: int) -> None:
    async def talk() -> Transport:
        transport = factory()
        peer = Peer(transport, address)
        for number in range(count):
            assert peer.send(b"%d" % number, b"x" * 500)
        peer.connection.close(DEADLINE)
        transport.close()
        return transport

    asyncio.run(talk()).join()
    os._exit(0)


def _echo(factory: Callable[[], Transport], address: str) -> None:
    async def echo() -> None:
        peer = Peer(factory(), address)
        peer.then = lambda parts: _true(peer.send(*parts))
        peer.send(b"hello")
        await asyncio.Event().wait()

    asyncio.run(echo())


def _true(value: bool) -> None:
    assert value


def _refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except TransportError as error:
        assert str(error)
    else:
        raise AssertionError("was not refused")


def _collect_errors() -> list[BaseException | None]:
    """From now on, keep what reaches the loop's exception handler."""
    errors: list[BaseException | None] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    return errors


def _resources() -> int:
    """How many files and threads this process has."""
    count = threading.active_count()
    if sys.platform == "linux":
        for what in ("fd", "task"):
            count += len(list(Path(f"/proc/self/{what}").iterdir()))
    return count
