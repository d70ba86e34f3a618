"""A ZeroMQ socket for foreign peers, on the Tornado loop.

It never waits: what cannot be received or sent now is said so, and `on_events` is called when that
may have changed. As in `flowkit.transport.zmq`, messages do not pass through the queues of a
ZMQStream, which have no bound; and the descriptor is edge-triggered, so `look_soon` after any use.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket as sockets
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import zmq
from zmq.backend import Socket as PlainSocket

from flowkit.errors import TransportError
from flowkit.transport.zmq import MAX_FRAME, Stream

PGM_HINT = (
    "the libzmq that pyzmq brings has no PGM: build pyzmq against one that does, like Debian's: "
    "apt-get install libzmq3-dev, then PYZMQ_NO_BUNDLE=ON pip install --no-binary pyzmq pyzmq"
)

_IN = {"PULL", "SUB", "XSUB"}
_WAIT_NOT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)


class Sent(Enum):
    """What became of a message."""

    TAKEN = "taken"
    FULL = "full"
    """It was not taken: try again when there is room."""
    GONE = "gone"
    """There is no such peer."""


class ForeignSocket:
    """A socket of type `kind`, bound or connected to all of `addresses`.

    Raises TransportError, which names the address, if that cannot be done.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: str,
        addresses: Sequence[str],
        *,
        bind: bool,
        on_events: Callable[[bool, bool], None],
        identity: str = "",
        topics: Sequence[str] = (),
        options: Mapping[str, int | str] | None = None,
        shared: bool = False,
    ) -> None:
        self.kind = kind
        self.addresses = list(addresses)
        self._bind = bind
        self._on_events = on_events
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._look_due = False
        self._joined: list[str] = []
        self._socket = socket = context.socket(getattr(zmq, kind))
        self.closed = False
        try:
            self._set(identity, topics, options or {})
            self.join()
            if kind == "XSUB":
                for topic in topics:
                    socket.send(b"\1" + topic.encode(), _WAIT_NOT)
        except BaseException:
            socket.close(0)
            raise
        self._receive_part = PlainSocket.recv.__get__(socket)
        self._send_part = PlainSocket.send.__get__(socket)
        self._get: Callable[[int], Any] = PlainSocket.get.__get__(socket)
        self._stream = Stream(socket)
        self._stream.ready = self._look
        self._stream.on_recv(lambda parts: None)

    def _set(self, identity: str, topics: Sequence[str], options: Mapping[str, int | str]) -> None:
        socket = self._socket
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME)
        socket.set(zmq.RECONNECT_IVL_MAX, 2000)
        if self.kind not in _IN and not self._bind:
            # What is sent before a peer is there would be lost with it if it never comes.
            socket.set(zmq.IMMEDIATE, 1)
        if self.kind == "ROUTER":
            socket.set(zmq.ROUTER_MANDATORY, 1)
        if self.kind == "XPUB":
            self.drop(False)
        if identity:
            socket.set(zmq.ROUTING_ID, identity.encode())
        if self.kind == "SUB":
            for topic in topics:
                socket.set(zmq.SUBSCRIBE, topic.encode())
        for name, value in options.items():
            if name == "linger":
                continue  # that is for the end
            try:
                given = value.encode() if isinstance(value, str) else value
                socket.set(getattr(zmq, name.upper()), given)
            except (zmq.ZMQError, AttributeError, TypeError) as error:
                raise TransportError(
                    f"cannot set {name}: {value} on a {self.kind}: {error}",
                    endpoint=self.addresses[0],
                    hint="see zmq_setsockopt(3) for what it takes",
                ) from error

    # -- addresses -----------------------------------------------------------------------------

    def join(self) -> None:
        """Bind or connect what is not."""
        for address in self.addresses:
            if address in self._joined:
                continue
            if "pgm://" in address and not zmq.has("pgm"):
                raise TransportError(
                    f"{address}: this ZeroMQ has no PGM", endpoint=address, hint=PGM_HINT
                )
            try:
                if address.startswith(("tcp://[", "tcp://localhost:", "tcp://ip6")):
                    self._socket.set(zmq.IPV6, 1)
                if not self._bind:
                    self._socket.connect(address)
                elif address.startswith("ipc://"):
                    self._bind_file(address)
                else:
                    self._socket.bind(address)
            except zmq.ZMQError as error:
                verb = "bind" if self._bind else "connect to"
                raise TransportError(
                    f"cannot {verb} {address}: {zmq.strerror(error.errno or 0)}",
                    endpoint=address,
                    hint=_hint(error.errno),
                ) from error
            self._joined.append(address)

    def leave(self) -> None:
        """Unbind or disconnect: nothing new comes in; what has come can be received."""
        for address in self._joined:
            with contextlib.suppress(zmq.ZMQError):
                if self._bind:
                    self._socket.unbind(address)
                else:
                    self._socket.disconnect(address)
        self._joined = []

    def _bind_file(self, address: str) -> None:
        # Binding over somebody who listens succeeds, and takes his peers away.
        path = address.removeprefix("ipc://")
        if not path.startswith("@") and os.path.exists(path):
            with sockets.socket(sockets.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    raise zmq.ZMQError(errno.EADDRINUSE)
        if self._shared:
            self._socket.bind(address)
            return
        before = os.umask(0o077)
        try:
            self._socket.bind(address)
        finally:
            os.umask(before)

    @property
    def bound(self) -> str:
        """The address it was bound to last, with the port that was found for ``*``."""
        return self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    # -- messages ------------------------------------------------------------------------------

    def receive(self) -> list[bytes] | None:
        """The next message; None if none is there."""
        receive = self._receive_part
        try:
            # Frames know whether another follows, which saves asking the socket.
            frame = receive(_WAIT_NOT, False)
            parts = [frame.bytes]
            while frame.more:
                frame = receive(_WAIT_NOT, False)
                parts.append(frame.bytes)
        except zmq.Again:
            return None
        return parts

    def send(self, frames: Sequence[bytes]) -> Sent:
        """Send a message, whole or not at all."""
        send = self._send_part
        try:
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _WAIT_NOT)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EINVAL):
                raise
            return Sent.GONE
        return Sent.TAKEN

    def drop(self, on: bool) -> None:
        """Whether an XPUB drops for subscribers that have no room, or says so."""
        self._socket.set(zmq.XPUB_NODROP, 0 if on else 1)

    # -- events --------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """The socket was used: look what else it has, in the next turn of the loop."""
        if not self._look_due:
            self._look_due = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._look_due = False
        if self.closed:
            return
        events = self._get(zmq.EVENTS)
        self._on_events(bool(events & zmq.POLLIN), bool(events & zmq.POLLOUT))

    def close(self, linger: float) -> None:
        """Close it; what was sent gets `linger` seconds to leave."""
        if not self.closed:
            self.closed = True
            self._stream.close(max(0, round(linger * 1000)))


def _hint(code: int | None) -> str:
    hints = {
        errno.EADDRINUSE: "another program listens there: stop it, or choose another address",
        errno.EACCES: "this user may not: choose a port above 1023, or another directory",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EINVAL: "the address is not one that this transport can use here",
        errno.ENODEV: "this machine has no such interface or host",
        errno.ENOENT: "the directory of the socket does not exist",
        errno.ECONNREFUSED: "with inproc, who binds must be there first",
    }
    return hints.get(code or 0, "")
