"""A transport inside one process: no sockets, no threads, no chance.

Each transport delivers what was sent to it in the order in which it was sent, over all its lines,
in turns of the event loop that are bounded by count. Two runs that send the same things in the
same order see the same things in the same order. It is the reference for the other transports,
and strict where they have a choice: what is under way at a `close` without linger, or at a cut,
is lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from flowkit.errors import TransportError
from flowkit.transport.base import (
    FAILURES,
    Answered,
    Binding,
    Connection,
    Heard,
    Scheduler,
    Transport,
    guard,
)

TURN_MESSAGES = 256
"""How many messages a transport delivers before the loop goes on to other things."""

_SCHEME = "memory://"


class MemoryHub:
    """The place where the memory transports of one thread meet, and where tests break lines.

    `delay` holds every message back for so many seconds; the order of a line stays. It may be
    changed at any time and counts for what is sent after that.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self._bindings: dict[str, MemoryBinding] = {}
        self._addresses = 0
        self._peers = 0

    def cut(self, address: str) -> int:
        """Break every line to the binding at `address` and lose what is under way on them.

        Both sides keep their endpoints, and are told by nothing but `send` returning False. New
        connections work. Returns the number of lines that were broken.
        """
        binding = self._bindings.get(address)
        return binding.cut() if binding is not None else 0

    def _new_address(self, name: str) -> str:
        self._addresses += 1
        return f"{_SCHEME}{name}-{self._addresses}"

    def _new_peer(self) -> bytes:
        self._peers += 1
        return b"\0" + self._peers.to_bytes(4, "big")


class _Inbox:
    """What is to be delivered on one loop, in order."""

    def __init__(self, loop: Scheduler) -> None:
        self._loop = loop
        self._due: deque[_Lane] = deque()
        self._scheduled = False

    def put(self, lane: _Lane, delay: float) -> None:
        """Have `lane` deliver its next message, after `delay` seconds."""
        if delay > 0:
            self._loop.call_later(delay, self.put, lane, 0.0)
            return
        self._due.append(lane)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        for _ in range(min(len(self._due), TURN_MESSAGES)):
            lane = self._due.popleft()
            try:
                lane.arrive()
            except FAILURES as error:
                guard(self._loop, lane.owner, error)
        self._scheduled = bool(self._due)
        if self._scheduled:
            self._loop.call_soon(self._turn)


class _Lane:
    """One direction of a line: what is under way, in order."""

    def __init__(
        self,
        hub: MemoryHub,
        inbox: _Inbox,
        owner: object,
        deliver: Callable[[list[bytes]], None],
    ) -> None:
        self.owner = owner
        self.open = True
        self._hub = hub
        self._inbox = inbox
        self._deliver = deliver
        self._waiting: deque[list[bytes]] = deque()

    def put(self, parts: Sequence[bytes]) -> bool:
        message = [part if type(part) is bytes else bytes(memoryview(part)) for part in parts]
        if not message:
            raise ValueError("a message has at least one part")
        if not self.open:
            return False
        self._waiting.append(message)
        self._inbox.put(self, self._hub.delay)
        return True

    def arrive(self) -> None:
        """Deliver the oldest message, if it is not lost.

        It is the oldest whoever asks: timers that are due at the same moment fire in any order.
        """
        if self._waiting:
            self._deliver(self._waiting.popleft())

    def end(self, lose: bool) -> None:
        """Take nothing more. What is under way still arrives, unless it is to be lost."""
        self.open = False
        if lose:
            self._waiting.clear()


class _Line:
    """A pair of lanes between a connection and its binding."""

    def __init__(self, up: _Lane, down: _Lane) -> None:
        self.up = up
        self.down = down


class MemoryBinding(Binding):
    """A binding of a `MemoryTransport`."""

    def __init__(
        self, transport: MemoryTransport, inbox: _Inbox, name: str, on_message: Heard
    ) -> None:
        hub = transport.hub
        self.address = hub._new_address(name)
        self._transport = transport
        self._hub = hub
        self._inbox = inbox
        self._on_message = on_message
        self._lines: dict[bytes, _Line] = {}
        hub._bindings[self.address] = self

    def __repr__(self) -> str:
        return f"<binding {self.address}>"

    def send(self, peer: bytes, parts: Sequence[bytes]) -> bool:
        line = self._lines.get(peer)
        return line.down.put(parts) if line is not None else False

    def close(self, linger: float = 0.0) -> None:
        self._hub._bindings.pop(self.address, None)
        self._transport._forget(self)
        for line in self._lines.values():
            line.up.end(lose=True)
            line.down.end(lose=linger <= 0)
        self._lines.clear()

    def cut(self) -> int:
        """Break every line. Returns how many there were."""
        broken = len(self._lines)
        for line in self._lines.values():
            line.up.end(lose=True)
            line.down.end(lose=True)
        self._lines.clear()
        return broken

    def _join(self, connection: MemoryConnection, inbox: _Inbox, on_message: Answered) -> _Line:
        hub, peer = self._hub, connection.peer

        def heard(parts: list[bytes]) -> None:
            # A peer that left may have lingering messages on a line that is no longer listed.
            if self.address in hub._bindings:
                self._on_message(peer, parts)

        line = _Line(
            up=_Lane(hub, self._inbox, self, heard), down=_Lane(hub, inbox, connection, on_message)
        )
        self._lines[peer] = line
        return line

    def _leave(self, peer: bytes) -> None:
        self._lines.pop(peer, None)


class MemoryConnection(Connection):
    """A connection of a `MemoryTransport`. Unlike others it notices when its binding is gone."""

    def __init__(
        self, transport: MemoryTransport, inbox: _Inbox, address: str, on_message: Answered
    ) -> None:
        hub = transport.hub
        self.address = address
        self._transport = transport
        self.peer = hub._new_peer()
        self._binding = hub._bindings.get(address)
        self._line = self._binding._join(self, inbox, on_message) if self._binding else None

    def __repr__(self) -> str:
        return f"<connection to {self.address}>"

    def send(self, parts: Sequence[bytes]) -> bool:
        return self._line.up.put(parts) if self._line is not None else False

    def close(self, linger: float = 0.0) -> None:
        self._transport._forget(self)
        if self._line is None or self._binding is None:
            return
        self._line.up.end(lose=linger <= 0)
        self._line.down.end(lose=True)
        self._binding._leave(self.peer)
        self._line = self._binding = None


class MemoryTransport(Transport):
    """Endpoints on a `MemoryHub`. `loop` is the running event loop unless one is given.

    All transports of a hub belong to one thread; they may use different loops of it.
    """

    def __init__(self, hub: MemoryHub, loop: Scheduler | None = None) -> None:
        self.hub = hub
        self._inbox = _Inbox(loop if loop is not None else asyncio.get_running_loop())
        self._endpoints: dict[Binding | Connection, None] = {}  # in the order of making
        self._closed = False

    def bind(self, name: str, on_message: Heard) -> MemoryBinding:
        self._check_open(name)
        binding = MemoryBinding(self, self._inbox, name, on_message)
        self._endpoints[binding] = None
        return binding

    def connect(self, address: str, on_message: Answered) -> MemoryConnection:
        self._check_open(address)
        if not address.startswith(_SCHEME):
            raise TransportError(
                f"{address!r} is no address of the memory transport",
                endpoint=address,
                hint=f"its addresses begin with {_SCHEME}",
            )
        connection = MemoryConnection(self, self._inbox, address, on_message)
        self._endpoints[connection] = None
        return connection

    def close(self, linger: float = 0.0) -> None:
        self._closed = True
        for endpoint in list(self._endpoints):
            endpoint.close(linger)

    def join(self) -> None:
        """Nothing to free. What lingers arrives as long as the loop turns."""

    def _forget(self, endpoint: Binding | Connection) -> None:
        self._endpoints.pop(endpoint, None)

    def _check_open(self, endpoint: str) -> None:
        if self._closed:
            raise TransportError("the transport is closed", endpoint=endpoint)
