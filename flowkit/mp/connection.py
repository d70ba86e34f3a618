"""`Pipe`: two ends that are joined by the kernel, and frames of many messages between them.

An end can be inherited by a fork, be held by several processes, and be waited for with
`multiprocessing.connection.wait`; it is at its end when the last holder of the other one has closed
it or died. A ZeroMQ socket can do none of this, and a kernel's socket does all of it; what
makes ZeroMQ fast is that it puts many messages into one system call, and so does this.

* **Sending.** The first message after a pause goes out at once. What follows within a millisecond
  (`PAUSE`) is collected, and goes out as one packet: when it is `FULL`; when this end is about to
  wait for an answer; or when the pause is over, by a thread. A packet is atomic, so several
  processes may send. Once a second one does, nothing is collected any more: whoever sends after
  somebody else, by whatever clock they share, must not be overtaken.
* **Receiving.** A packet is looked at (``MSG_PEEK``) and stays with the kernel until its last
  message is taken; how many are taken stands in memory that all holders share. So the descriptor
  is readable as long as there is a message; processes that take turns at one end go on where the
  other has stopped; and one that is killed takes nothing with it but what it had got.
* **Large messages** (`LARGE`) are left in a file in memory whose descriptor is passed on, and
  `send` waits until the message is taken: so it does, from about that size on, in multiprocessing.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import secrets
import select
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, reduction, util
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import msgspec

from flowkit.clock import monotonic
from flowkit.mp.cells import map_cells
from flowkit.mp.items import REFUSED, Pickle, is_flat

PAUSE = 0.001
"""Seconds that a message may be kept back while more are being sent."""

FULL = 32 << 10
"""Bytes of messages that are sent without waiting for more."""

LARGE = 128 << 10
"""Bytes of a message that is passed on in a file."""

BUFFER = 208 << 10
"""Bytes of the kernel's buffer: what Linux allows, and gives where nobody has changed it. A packet
must fit into it: `FULL`, one message more, and what frames `MOST` of them."""

MOST = 4096
"""Messages of one packet at most."""

LINGER = 0.2
"""Seconds after which the thread that has nothing to send ends."""

_HEADER = struct.Struct("<QI")
"""The number of a packet, which is unique, and of the messages in it; 0 for one in a file."""

_HEAD, _TAKEN, _SENDER, _KEPT = range(4)
"""The cells of a direction: the number of the packet that is first, and how many of it are taken;
who sends, and whether he keeps something back."""

_CELLS = 4

_SEVERAL = 1
"""In the place of a sender: there are several."""

GRACE = 0.1
"""Seconds that the second sender gives the first to send what it keeps back."""

SHORT = 4 << 10
"""Bytes of an object that travels among others; a larger one is pickled."""

_FIXED = frozenset({float, bool, type(None)})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def Pipe(duplex: bool = True) -> tuple[connection.Connection, connection.Connection]:
    """Two ends that are connected, as `multiprocessing.Pipe`; if not `duplex`, one to receive and
    one to send. Where the system has no sockets that keep packets apart, its own is returned."""
    if not sys.platform.startswith("linux"):
        return connection.Pipe(duplex)
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (first, second):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    memory = os.memfd_create("flowkit.mp", os.MFD_CLOEXEC)
    os.ftruncate(memory, 2 * 8 * _CELLS)
    return (
        Connection(first.detach(), memory, 0, writable=duplex),
        Connection(second.detach(), os.dup(memory), 1, readable=duplex),
    )


class Connection(connection.Connection):
    """End number `side` of a `Pipe`. `handle` and `memory` are descriptors, of which it is the
    owner."""

    if TYPE_CHECKING:  # what the original has, and its stubs do not tell
        _handle: int | None
        _readable: bool
        _writable: bool

        def _check_closed(self) -> None: ...
        def _check_readable(self) -> None: ...
        def _check_writable(self) -> None: ...

    def __init__(
        self, handle: int, memory: int, side: int, readable: bool = True, writable: bool = True
    ) -> None:
        super().__init__(handle, readable, writable)
        self._memory = memory
        self._side = side
        cells = map_cells(memory, 2 * 8 * _CELLS)
        ways = [cells[:_CELLS], cells[_CELLS:]]
        self._cells, self._outward = ways[side], ways[1 - side]
        self._socket = socket.socket(fileno=handle)
        self._socket.setblocking(True)  # whatever socket.setdefaulttimeout says
        self._space: memoryview | None = None
        self._begin()

    def _begin(self) -> None:
        """Have nothing to send and nothing at hand: in a process that has just got this end."""
        self._number = self._sender = (secrets.randbits(32) | 1) << 32
        self._pending: list[Any] = []
        self._size = 0
        self._writing = threading.Lock()
        self.hot = False
        self._failure: OSError | None = None
        self._head = 0
        self._items: list[Any] = []
        _living.add(self)

    # ------------------------------------------------------------ sending

    def send(self, obj: Any) -> None:
        """Send an object that can be pickled."""
        if self._handle is None or not self._writable:
            self._check_closed()
            self._check_writable()
        message, size = _message(obj)
        if size >= LARGE:
            self._send_file(message)
        else:
            self._post(message, size)

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send `size` bytes of `buf` from `offset` on, by default all."""
        if (
            type(buf) is bytes
            and offset == 0
            and size is None
            and self._handle is not None
            and self._writable
            and len(buf) < LARGE
        ):
            self._post(buf, len(buf))
        else:
            super().send_bytes(buf, offset, size)

    def _send_bytes(self, buf: memoryview) -> None:
        raw = bytes(buf)
        if len(raw) >= LARGE:
            self._send_file(raw)
        else:
            self._post(raw, len(raw))

    def _post(self, message: Any, size: int) -> None:
        """Send a message, as `_message` makes it, now or soon."""
        if self._failure is not None:
            raise self._failure
        alone = self._outward[_SENDER] == self._sender or self._share()
        pending = self._pending
        if not pending:
            self._size = 0
        pending.append(message)
        self._size += size
        if self.hot and alone and self._size < FULL and len(pending) < MOST:
            if len(pending) == 1:
                self._outward[_KEPT] = 1
            return
        self.flush()
        if alone and not self.hot:
            self.hot = True
            _flusher.add(self)

    def _share(self) -> bool:
        """Be the only sender, which is returned; or one of several, who keep nothing back."""
        cells = self._outward
        if not cells[_SENDER]:
            cells[_SENDER] = self._sender
            return True
        if cells[_SENDER] != _SEVERAL:
            cells[_SENDER] = _SEVERAL
            deadline = monotonic() + GRACE
            while cells[_KEPT] and monotonic() < deadline:
                select.select([], [], [], PAUSE)
        return False

    def flush(self, wait: bool = True) -> None:
        """Send what is pending. What cannot be sent now is left pending, unless it may `wait`: then
        all is sent, also what the thread has in hand just now."""
        if not wait and not self._pending:
            return
        if not self._writing.acquire(wait):
            return
        pending = self._pending
        try:
            if self._socket.fileno() < 0:
                return  # closed meanwhile, or before: whoever looks after it has not noticed
            while pending:
                batch = pending[:MOST]
                # Other threads may have left more in the meantime than one packet can have.
                while len(body := _encode(batch)) > BUFFER - _HEADER.size and len(batch) > 1:
                    batch = batch[: len(batch) // 2]
                packet = self._header(len(batch)) + body
                self._socket.send(packet, 0 if wait else socket.MSG_DONTWAIT)
                del pending[: len(batch)]
            self._outward[_KEPT] = 0
            if pending:  # just now
                self._outward[_KEPT] = 1
        except BlockingIOError:
            if not self.hot:
                self.hot = True
                _flusher.add(self)
        except OSError as error:
            self._failure = error
            if wait:
                raise
        finally:
            self._writing.release()

    def _send_file(self, raw: bytes) -> None:
        self.flush()
        file = os.memfd_create("flowkit.mp", os.MFD_CLOEXEC)
        end, passed = os.pipe()
        try:
            with memoryview(raw) as rest:
                at = 0
                while at < len(raw):
                    at += os.write(file, rest[at:])
            with self._writing:
                socket.send_fds(self._socket, [self._header(0)], [file, passed])
            os.close(passed)
            passed = -1
            if not os.read(end, 1):  # closed with the last holder of the other end, or by his death
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        finally:
            for descriptor in (file, end, passed):
                if descriptor >= 0:
                    os.close(descriptor)

    def _header(self, count: int) -> bytes:
        self._number += 1
        return _HEADER.pack(self._number, count)

    def cool(self) -> None:
        """A pause is over: send what is pending; if nothing is, send what comes next at once."""
        if self.closed or self._failure is not None:
            self.hot = False
        elif self._pending:
            self.flush(wait=False)
        else:
            self.hot = False
            if self._pending:  # just now
                self.hot = True

    # ------------------------------------------------------------ receiving

    def recv(self) -> Any:
        """Receive an object. Raises EOFError when there is nothing more and nobody can send."""
        message = self.take()
        return message[0] if type(message) is list else ForkingPickler.loads(message)

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive what was sent with `send_bytes`. Raises EOFError as `recv`."""
        if maxlength is not None:
            return super().recv_bytes(maxlength)
        return _bytes_of(self.take())

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO | None:
        raw = _bytes_of(self.take())
        if maxsize is not None and len(raw) > maxsize:
            return None
        buffer = io.BytesIO()
        buffer.write(raw)
        return buffer

    def _poll(self, timeout: float | None) -> bool:
        self.flush(wait=False)
        return bool(connection.wait([self], timeout))

    def take(self) -> Any:
        """The next message as it is: for `unpickled`."""
        if self._handle is None or not self._readable:
            self._check_closed()
            self._check_readable()
        cells = self._cells
        while True:
            items = self._items
            if items and cells[_HEAD] == self._head:
                taken = cells[_TAKEN]
                if taken < len(items):
                    item = items[taken]
                    taken += 1
                    cells[_TAKEN] = taken
                    if taken == len(items):
                        self._items = []
                        self._socket.recv_into(_nowhere, 1)  # the rest of the packet goes with it
                    return item
            if (raw := self._look()) is not None:
                return raw

    def _look(self) -> bytes | None:
        """Wait for a packet and have its messages at hand; or return the one in a file."""
        # Whoever receives must not wait for room: the other end may need its own messages taken
        # before it makes some, while another thread here waits to send.
        self.flush(wait=False)
        if self._space is None:
            self._space = memoryview(bytearray(BUFFER))
        space, cells = self._space, self._cells
        size = self._socket.recv_into(space, 0, socket.MSG_PEEK)
        if not size:
            raise EOFError
        number, count = _HEADER.unpack_from(space)
        if not count:
            return self._receive_file()
        if cells[_HEAD] != number:
            cells[_TAKEN] = 0
            cells[_HEAD] = number
        elif cells[_TAKEN] >= count:  # somebody was killed after he had taken the last one
            self._socket.recv_into(_nowhere, 1)
            return None
        self._head, self._items = number, _decode(space[_HEADER.size : size])
        return None

    def _receive_file(self) -> bytes:
        _, (file, passed), _, _ = socket.recv_fds(self._socket, _HEADER.size, 2)
        try:
            size = os.fstat(file).st_size
            with mmap.mmap(file, size, prot=mmap.PROT_READ) as content:
                raw = content[:]
            with suppress(BrokenPipeError):
                os.write(passed, b"!")
            return raw
        finally:
            os.close(file)
            os.close(passed)

    # ------------------------------------------------------------ the end

    def _close(self) -> None:
        try:
            with suppress(OSError):
                self.flush()
        finally:
            with self._writing:  # the thread may be sending just now
                self._pending.clear()
                self._socket.close()
                self._cells.release()
                self._outward.release()
            os.close(self._memory)


_nowhere = bytearray(1)


class _Flusher:
    """Sends what is pending at the ends that are hot, on a thread that runs while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hot: set[Connection] = set()
        self._more = threading.Event()
        self._running = False
        self._at_exit: util.Finalize | None = None

    def add(self, end: Connection) -> None:
        """Look after `end` until it is cool."""
        with self._lock:
            self._hot.add(end)
            if self._at_exit is None:
                self._at_exit = util.Finalize(None, self.flush, exitpriority=-6)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="flowkit.mp.pipe", daemon=True).start()
        self._more.set()

    def flush(self) -> None:
        """Send everything that is pending in this process."""
        for end in list(self._hot):
            with suppress(OSError):
                end.flush()

    def _run(self) -> None:
        while True:
            if not self._more.wait(LINGER):
                with self._lock:
                    if not self._hot:
                        self._running = False
                        return
            self._more.clear()
            while self._hot:
                select.select([], [], [], PAUSE)
                for end in list(self._hot):
                    end.cool()
                with self._lock:
                    self._hot = {end for end in self._hot if end.hot}


_flusher = _Flusher()
_living: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork() -> None:
    """In a child: what was pending is the parent's to send."""
    global _flusher
    _flusher = _Flusher()
    for end in list(_living):
        if not end.closed:
            end._begin()


os.register_at_fork(after_in_child=_after_fork)


_dumps = Pickle().encode_one


def unpickled(message: Any) -> Any:
    """The object that was sent as `message`: bytes, which are a pickle, or a list of it."""
    return message[0] if type(message) is list else ForkingPickler.loads(message)


def _bytes_of(message: Any) -> bytes:
    return _dumps(message[0]) if type(message) is list else message


def _message(obj: Any) -> tuple[Any, int]:
    """`obj` as a message, and about how many bytes it has: a pickle; or the object in an array, if
    msgpack gives it back as it is (see `flowkit.mp.items`), encoded now if it could change."""
    kind = type(obj)
    if kind is bytes or (kind is str and obj.isascii()):
        if len(obj) < SHORT:
            return (obj,), len(obj) + 5
    elif kind is int:
        if -(1 << 63) <= obj < 1 << 64:
            return (obj,), 9
    elif kind in _FIXED:
        return (obj,), 9
    elif (kind is dict or kind is list) and is_flat(obj):
        try:
            raw = _encode(obj)
        except REFUSED:
            pass
        else:
            if len(raw) < SHORT:
                return (msgspec.Raw(raw),), len(raw)
    pickled = _dumps(obj)
    return pickled, len(pickled)


def _reduce(end: Connection) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
    end.flush()
    arguments = reduction.DupFd(end.fileno()), reduction.DupFd(end._memory)
    return _rebuild, (*arguments, end._side, end.readable, end.writable)


def _rebuild(handle: Any, memory: Any, side: int, readable: bool, writable: bool) -> Connection:
    return Connection(handle.detach(), memory.detach(), side, readable, writable)


ForkingPickler.register(Connection, _reduce)
