"""The transport between processes: ZeroMQ on the Tornado loop.

A binding is a ROUTER, a connection a DEALER; the shape of the code follows what they do wrong
when they are left alone:

* A queue that is full makes `send` wait: nothing is limited here (high-water marks of 0), credit
  limits it. Sends go to the socket itself, never to the stream's queue, and never wait.
* A ROUTER drops what it cannot deliver unless it is told to fail. A routing id that is chosen can
  be chosen twice: it is left to the ROUTER, which makes a new one per line.
* A DEALER reconnects for ever. So no address is used twice, and what comes back over a line that
  was mended comes from a new peer. It does not notice that its binding is gone.
* A socket's file descriptor is edge-triggered: any call on the socket may swallow the edge. See
  `_Endpoint`.
* A process that runs out of file descriptors while a peer connects is aborted by libzmq.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq
from zmq.backend import Socket as PlainSocket
from zmq.eventloop.zmqstream import ZMQStream

from flowkit.clock import monotonic
from flowkit.errors import TransportError
from flowkit.transport.base import (
    FAILURES,
    Answered,
    Binding,
    Connection,
    Heard,
    Transport,
    guard,
)

try:
    import resource
except ImportError:  # not on Windows, which has no ipc sockets either
    resource = None  # type: ignore[assignment]

NAME_EXTRA = 7
"""By how many bytes a socket's file name is longer than the name it was bound under."""

PATH_LIMIT = int(zmq.IPC_PATH_MAX_LEN)
"""The longest path of a socket, in bytes: the system's structure less the final zero."""

TURN_SECONDS = 0.010
TURN_MESSAGES = 1000
"""For how long, and for how many messages, an endpoint may hold the loop before others come."""

ZERO_COPY = 256 << 10
"""Length from which on a part that cannot be changed, bytes, is sent from where it lies. Below that
a copy is cheaper than the thread of pyzmq that is told when ZeroMQ is done with it."""

MAX_FRAME = (1 << 30) + (1 << 16)
"""A line that announces a larger part is dropped before memory is taken for it."""

SPARE_FILES = 64
"""Descriptors that are kept free for lines of peers, and for what a node opens."""

_SOCKETS = 8192  # a few bytes each, taken at once
_WANTED_FILES = 1 << 20
_WAIT_NOT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)
_GONE = (errno.EHOSTUNREACH, errno.EAGAIN)


class Stream(ZMQStream):
    """A ZMQStream that leaves its events to `ready`.

    A stream asks for EVENTS, receives one message and asks again; what `ready` does in its place
    takes a third off the time of a round trip (ipc: 155 us, 105 us so). Nor does it complain about
    an event that it had scheduled before it was closed. With a ZMQStream in which this method has
    no effect, everything works as before: messages come through `on_recv`.
    """

    ready: Callable[[], None]

    def _handle_events(self, fd: Any, events: int) -> None:
        if self.socket is not None:
            self.ready()


class _Endpoint:
    """A socket, received from through a ZMQStream and sent to directly.

    Per wake-up everything is received that is there, in a loop bounded by count and time, which is
    what makes the difference between 70,000 messages/s and many times that. Every reading ends
    when the socket says that it is empty, or with a further look at it in the next turn of the
    loop. So the edge that a reading swallows is not missed.

    A send may swallow it too. The look at EVENTS that it calls for is asked of the loop with
    `call_soon`, once for all sends of a turn: a loop that has something to call does not sleep, so
    it comes after the last of those sends and before the descriptor is waited for. A look costs
    1.8 us, as much as the send of a header and 8 KiB (2.0 us; 5.1 us with zmq.Socket's own method).
    """

    def __init__(
        self,
        transport: ZmqTransport,
        socket: zmq.Socket[bytes],
        deliver: Callable[[list[bytes]], None],
    ) -> None:
        self._transport = transport
        self._socket = socket
        self._deliver = deliver
        self._loop = transport.loop
        self._closed = False
        self._look_due = False
        self._reading = False
        # The methods of zmq.Socket itself look at every argument in Python again.
        self._send_part: Callable[..., object] = PlainSocket.send.__get__(socket)
        self._receive_part: Callable[..., Any] = PlainSocket.recv.__get__(socket)
        self._get: Callable[[int], Any] = PlainSocket.get.__get__(socket)
        self._stream = Stream(socket)
        self._stream.ready = self._read
        self._stream.on_recv(self._read)

    def _look(self) -> None:
        self._look_due = False
        if not self._closed and self._get(_EVENTS) & _POLLIN:
            self._read()

    def _look_soon(self) -> None:
        if not self._look_due:
            self._look_due = True
            self._loop.call_soon(self._look)

    def _read(self, parts: list[bytes] | None = None) -> None:
        """Receive until nothing is left, or the turn is over: then a look is due.

        `parts` is a message that was received before.
        """
        receive, call = self._receive_part, self._call
        until = monotonic() + TURN_SECONDS
        self._reading = True
        try:
            if parts is not None:
                call(parts)
                if self._closed:
                    return
            for _ in range(TURN_MESSAGES):
                # Frames know whether another follows, which saves asking the socket: 3.0 us for
                # a message of three parts, where recv_multipart takes 6.2 us.
                frame = receive(_WAIT_NOT, False)
                parts = [frame.bytes]
                while frame.more:
                    frame = receive(_WAIT_NOT, False)
                    parts.append(frame.bytes)
                call(parts)
                if self._closed:
                    return
                if monotonic() > until:
                    break
        except zmq.Again:
            return
        finally:
            self._reading = False
        self._look_soon()

    def _call(self, parts: list[bytes]) -> None:
        try:
            self._deliver(parts)
        except FAILURES as error:
            guard(self._loop, self, error)

    def _send(self, first: bytes | None, parts: Sequence[bytes]) -> bool:
        if not parts:
            raise ValueError("a message has at least one part")
        for part in parts:
            # A part that is refused after others were taken would leave half a message behind.
            if type(part) is not bytes:
                memoryview(part)
        if self._closed:
            return False
        send = self._send_part
        try:
            if first is not None:
                send(first, _MORE)
            for part in parts[:-1]:
                send(part, _MORE, len(part) < ZERO_COPY or type(part) is not bytes)
            last = parts[-1]
            send(last, _WAIT_NOT, len(last) < ZERO_COPY or type(last) is not bytes)
        except zmq.ZMQError as error:
            if error.errno not in _GONE:
                raise
            return False
        finally:
            if not self._look_due and not self._reading:
                self._look_soon()
        return True

    def close(self, linger: float = 0.0) -> None:
        """Close the socket and what belongs to it."""
        self._end(linger)

    def _end(self, linger: float) -> bool:
        """Close the socket; False when it was closed before."""
        if self._closed:
            return False
        self._closed = True
        self._stream.close(max(0, math.ceil(linger * 1000)))
        self._transport._ended(self, linger)
        return True


class ZmqBinding(_Endpoint, Binding):
    """A ROUTER. `path` is its socket file, None on tcp."""

    def __init__(
        self,
        transport: ZmqTransport,
        socket: zmq.Socket[bytes],
        address: str,
        path: Path | None,
        on_message: Heard,
    ) -> None:
        self.address = address
        self.path = path

        def heard(parts: list[bytes]) -> None:
            on_message(parts[0], parts[1:])

        super().__init__(transport, socket, heard)

    def __repr__(self) -> str:
        return f"<binding {self.address}>"

    def send(self, peer: bytes, parts: Sequence[bytes]) -> bool:
        return self._send(peer, parts)

    def close(self, linger: float = 0.0) -> None:
        if self._end(linger) and self.path is not None:
            self.path.unlink(missing_ok=True)


class ZmqConnection(_Endpoint, Connection):
    """A DEALER. It takes messages for a binding that is gone, and keeps them."""

    def __init__(
        self,
        transport: ZmqTransport,
        socket: zmq.Socket[bytes],
        address: str,
        on_message: Answered,
    ) -> None:
        self.address = address
        super().__init__(transport, socket, on_message)

    def __repr__(self) -> str:
        return f"<connection to {self.address}>"

    def send(self, parts: Sequence[bytes]) -> bool:
        return self._send(None, parts)


class ZmqTransport(Transport):
    """Endpoints on ipc sockets in `directory`, or on tcp ports of this machine.

    `directory` exists and is private to this user: the sockets in it are, but whoever can write to
    it can replace them. It connects to either kind of address. The ZeroMQ context is the
    transport's own unless one is given, which is then left to its owner. `close` frees an own
    context at once when nothing lingers; otherwise it takes a `join`, and without one Python warns
    of the context (ResourceWarning). A line that announces a part of more than `largest` bytes is
    dropped before memory is taken for it.

    On tcp, a peer that closes while messages to it are unread resets the line, and what it had
    sent last may be lost whatever its linger: be done talking before you leave.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tcp: bool = False,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        largest: int = MAX_FRAME,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._directory = directory.absolute()
        self._tcp = tcp
        self._largest = largest
        self._files = raise_file_limit()
        self._owns_context = context is None
        self._context = zmq.Context() if context is None else context
        if self._owns_context:
            self._context.set(zmq.MAX_SOCKETS, _SOCKETS)
        self._endpoints: dict[_Endpoint, None] = {}
        self._lingers_until = 0.0
        self._closed = False

    def bind(self, name: str, on_message: Heard) -> ZmqBinding:
        if "/" in name or "\0" in name or not name:
            raise ValueError(f"not a name for a socket: {name!r}")
        path = None if self._tcp else self._new_path(name)
        address = "tcp://127.0.0.1:*" if path is None else f"ipc://{path}"
        socket = self._socket(zmq.ROUTER, address)
        try:
            socket.set(zmq.ROUTER_MANDATORY, 1)
            socket.set(zmq.BACKLOG, 4096)
            if path is None:
                socket.bind(address)
                address = socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
            else:
                _bind_private(socket, address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise _refused("bind", address, error) from error
        binding = ZmqBinding(self, socket, address, path, on_message)
        self._endpoints[binding] = None
        return binding

    def connect(self, address: str, on_message: Answered) -> ZmqConnection:
        if not address.startswith(("ipc://", "tcp://")):
            raise TransportError(
                f"{address!r} is no address of this transport",
                endpoint=address,
                hint="its addresses begin with ipc:// or tcp://",
            )
        socket = self._socket(zmq.DEALER, address)
        try:
            socket.set(zmq.RECONNECT_IVL_MAX, 2000)
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise _refused("connect to", address, error) from error
        connection = ZmqConnection(self, socket, address, on_message)
        self._endpoints[connection] = None
        return connection

    def close(self, linger: float = 0.0) -> None:
        self._closed = True
        for endpoint in list(self._endpoints):
            endpoint.close(linger)
        if monotonic() >= self._lingers_until:
            self.join()

    def join(self) -> None:
        self._closed = True
        for endpoint in list(self._endpoints):
            endpoint.close()
        if self._owns_context and not self._context.closed:
            self._context.term()

    def _ended(self, endpoint: _Endpoint, linger: float) -> None:
        self._endpoints.pop(endpoint, None)
        if linger > 0:
            self._lingers_until = max(self._lingers_until, monotonic() + linger)

    def _socket(self, kind: int, address: str) -> zmq.Socket[bytes]:
        """A socket with everything set that both ends need set before they are used."""
        if self._closed:
            raise TransportError("the transport is closed", endpoint=address)
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as error:
            raise _refused("make a socket for", address, error) from error
        for option in (zmq.SNDHWM, zmq.RCVHWM, zmq.LINGER):
            socket.set(option, 0)
        socket.set(zmq.MAXMSGSIZE, self._largest)
        if address.startswith("tcp"):
            # A line that is cut without a word is noticed by nothing else. Not sooner: a process
            # that was stopped for a while is no reason for a new session.
            socket.set(zmq.HEARTBEAT_IVL, 10_000)
            socket.set(zmq.HEARTBEAT_TIMEOUT, 60_000)
        # The system gives out the lowest free number, so this one tells how many are in use.
        if socket.fileno() >= self._files - SPARE_FILES:
            socket.close(0)
            raise TransportError(
                f"out of file descriptors: nearly all of {self._files} are in use",
                endpoint=address,
                hint="raise the limit (ulimit -n), or run fewer replicas",
            )
        return socket

    def _new_path(self, name: str) -> Path:
        while True:
            path = self._directory / f"{name}-{secrets.token_hex((NAME_EXTRA - 1) // 2)}"
            if not os.path.lexists(path):
                break
        length = len(os.fsencode(path))
        if length > PATH_LIMIT:
            raise TransportError(
                f"the path of a socket is {length} bytes long, {PATH_LIMIT} are possible: {path}",
                endpoint=str(path),
                hint="choose a shorter run directory: set FLOWKIT_RUN_DIR",
            )
        return path


def raise_file_limit() -> int:
    """Raise the number of files this process may open as far as it may; return what it is now.

    Raises TransportError when that is too few for any sockets at all.
    """
    if resource is None:
        return _WANTED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    wanted = _WANTED_FILES if hard == infinite else min(hard, _WANTED_FILES)
    if soft != infinite and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = _WANTED_FILES if soft == infinite else soft
    if limit < 2 * SPARE_FILES:
        raise TransportError(
            f"this process may open {limit} files only", hint="raise the limit (ulimit -n)"
        )
    return limit


def _bind_private(socket: zmq.Socket[bytes], address: str) -> None:
    """Bind an ipc socket that only this user can connect to."""
    filter_uid = getattr(zmq, "IPC_FILTER_UID", None)
    if filter_uid is not None:
        with contextlib.suppress(zmq.ZMQError):  # known to pyzmq, but not to this system
            socket.set(filter_uid, os.getuid())
    before = os.umask(0o077)
    try:
        socket.bind(address)
    finally:
        os.umask(before)
    os.chmod(address.removeprefix("ipc://"), 0o600)


def _refused(doing: str, address: str, error: zmq.ZMQError) -> TransportError:
    hint = ""
    if error.errno == errno.EMFILE:
        hint = "raise the limit of open files (ulimit -n), or run fewer replicas"
    elif error.errno == errno.ENAMETOOLONG:
        hint = "choose a shorter run directory: set FLOWKIT_RUN_DIR"
    return TransportError(f"cannot {doing} {address}: {error}", endpoint=address, hint=hint)
