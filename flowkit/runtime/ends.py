"""The two ends of a pipe: standard streams, files and ZeroMQ sockets, by their URLs.

A `Tap` gives messages, a `Drain` takes them. Neither blocks the loop: a drain waits until what is
behind it has room. With streams and files a message is a line, without its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

import zmq

from flowkit.clock import monotonic
from flowkit.errors import OperatorError
from flowkit.protocol.sockets import Subscriptions
from flowkit.topology.addresses import Address, address
from flowkit.transport.foreign import ForeignSocket, Sent

CHUNK = 1 << 16
"""Bytes read at a time."""

SURE = 4096
"""Bytes that a pipe which is said to be writable takes without waiting: PIPE_BUF on Linux."""

LINE = 512 << 20
"""Bytes of a line at most."""

COMMITS = 1.0
"""Seconds between two notes of the position."""

LINGER = 30.0
"""Seconds that a socket gets at the end to hand over what it has taken."""

SCHEMES = ("-", "file://", "zmq+pull://", "zmq+sub://", "zmq+push://", "zmq+pub://")


class Tap(ABC):
    """Where messages come from."""

    @abstractmethod
    async def read(self, limit: int) -> list[bytes] | None:
        """At least one message and at most `limit`; None at the end."""

    def settle(self, count: int) -> bool:
        """`count` more messages are done, in the order they were read. True if it is time to note
        how far that is: call `commit` when all is written."""
        return False

    def commit(self) -> None:
        """Note how far everything is done."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


class Drain(ABC):
    """Where messages go to."""

    @abstractmethod
    async def write(self, messages: Iterable[bytes]) -> tuple[int, int]:
        """Take `messages`, as soon as there is room. How many were taken, and how many dropped."""

    async def flush(self) -> None:
        """What was taken is as safe as it gets."""
        return None

    async def finish(self) -> None:
        """Nothing more comes: wait until what was taken has left; only `close` may follow. Raises
        OperatorError if nobody takes it in time."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""


def open_tap(url: str, state: str | None = None) -> Tap:
    """The tap at `url`. `state`: a file that keeps how far a file was read.

    Raises OperatorError if it cannot be opened, or is none.
    """
    if state is not None and not url.startswith("file:"):
        raise OperatorError(f"{url} has no positions to keep", "--state is for file://")
    if url == "-":
        return StreamTap(0, None, "standard input")
    scheme, path, query = _parts(url)
    if scheme == "file":
        _no_more(url, query)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise OperatorError(f"cannot read {path}: {error.strerror}") from error
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OperatorError(f"cannot read {path}: it is a directory")
            return StreamTap(descriptor, state, path)
        except BaseException:
            os.close(descriptor)
            raise
    if scheme in ("zmq+pull", "zmq+sub"):
        return SocketTap(*_socket(url, scheme, path, query))
    raise OperatorError(
        f"cannot read from {url}", "--from is one of -, file://, zmq+pull://, zmq+sub://"
    )


def open_drain(url: str) -> Drain:
    """The drain at `url`. Raises OperatorError if it cannot be opened, or is none."""
    if url == "-":
        return StreamDrain(1, "standard output")
    scheme, path, query = _parts(url)
    if scheme == "file":
        _no_more(url, query)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            return StreamDrain(os.open(path, flags, 0o666), path)
        except OSError as error:
            raise OperatorError(f"cannot write {path}: {error.strerror}") from error
    if scheme in ("zmq+push", "zmq+pub"):
        return SocketDrain(*_socket(url, scheme, path, query))
    raise OperatorError(
        f"cannot write to {url}", "--to is one of -, file://, zmq+push://, zmq+pub://"
    )


def _parts(url: str) -> tuple[str, str, dict[str, list[str]]]:
    split = urlsplit(url)
    if not split.scheme or "://" not in url:
        raise OperatorError(
            f"{url} is no URL", "one of " + ", ".join(SCHEMES) + "; a file is file://PATH"
        )
    place = unquote(split.netloc + split.path)
    return split.scheme, place, parse_qs(split.query, keep_blank_values=True)


def _no_more(url: str, query: dict[str, list[str]]) -> None:
    if query:
        raise OperatorError(f"{url}: '{next(iter(query))}' means nothing here")


def _socket(
    url: str, scheme: str, place: str, query: dict[str, list[str]]
) -> tuple[str, str, bool, list[str]]:
    """Type, address, whether it is bound, and topics of a socket."""
    kind = scheme.removeprefix("zmq+").upper()
    where = f"ipc://{place}" if "/" in place else f"tcp://{place}"
    if where.startswith("tcp://:"):
        where = f"tcp://127.0.0.1{where[6:]}"
    flags = {"bind": False, "insecure": False}
    topics = query.pop("topic", [""]) if kind == "SUB" else [""]
    for name, values in query.items():
        if name not in flags or values[-1] not in ("0", "1", ""):
            known = "bind=1, insecure=1" + (", topic=PREFIX" if kind == "SUB" else "")
            raise OperatorError(
                f"{url}: '{name}={values[-1]}' means nothing here", f"known: {known}"
            )
        flags[name] = values[-1] != "0"
    parts = address(where)
    if not isinstance(parts, Address):
        raise OperatorError(f"{url}: {where} {parts}", f"like {scheme}://127.0.0.1:5555?bind=1")
    if not parts.local and not flags["insecure"]:
        raise OperatorError(
            f"{url} is beyond this machine, and nothing protects it",
            "tunnel it, or add insecure=1 to the URL",
        )
    return kind, where, flags["bind"], topics


# -- streams and files -----------------------------------------------------------------------


async def _ready(descriptor: int, writing: bool) -> None:
    """Wait until something can be read, or `SURE` bytes written. A regular file always can."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    )
    try:
        add(descriptor, ready)
    except PermissionError:  # epoll takes no regular files
        return
    try:
        await future
    finally:
        remove(descriptor)


class StreamTap(Tap):
    """The lines of standard input, or of a file, whose position is kept in the file `state`."""

    def __init__(self, descriptor: int, state: str | None, path: str) -> None:
        self._descriptor = descriptor
        self._state = state
        self._path = path
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []  # of a line whose end has not come; its bytes are `_length`
        self._length = 0
        self._ended = False
        self._under_way: deque[int] = deque()
        self._position = self._noted = self._start() if state is not None else 0
        self._committed_at = monotonic()
        if state is not None:
            os.lseek(descriptor, self._position, os.SEEK_SET)

    def _start(self) -> int:
        assert self._state is not None
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise OperatorError(f"{self._path} is no regular file, so it has no positions")
        try:
            with open(self._state, encoding="ascii") as file:
                position = int(file.read())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise OperatorError(f"cannot use the position in {self._state}: {error}") from error
        if not 0 <= position <= os.fstat(self._descriptor).st_size:
            raise OperatorError(
                f"{self._path} is shorter than the position in {self._state}",
                f"if it is another file now, remove {self._state}",
            )
        return position

    async def read(self, limit: int) -> list[bytes] | None:
        while not self._lines and not self._ended:
            await _ready(self._descriptor, writing=False)
            try:
                data = os.read(self._descriptor, CHUNK)
            except OSError as error:
                raise OperatorError(f"cannot read {self._path}: {error.strerror}") from error
            first, *others = data.split(b"\n")
            self._rest.append(first)
            self._length += len(first)
            if self._length > LINE:
                raise OperatorError(f"{self._path} has a line of more than {LINE >> 20} MiB")
            if others:
                *middle, last = others
                self._lines.append(b"".join(self._rest) + b"\n")
                self._lines.extend(line + b"\n" for line in middle)
                self._rest, self._length = [last], len(last)
            elif not data:
                self._ended = True
                if rest := b"".join(self._rest):
                    self._lines.append(rest)
        if not self._lines:
            return None
        batch: list[bytes] = []
        while self._lines and len(batch) < limit:
            line = self._lines.popleft()
            self._under_way.append(len(line))
            batch.append(line.removesuffix(b"\n"))
        return batch

    def settle(self, count: int) -> bool:
        for _ in range(count):
            self._position += self._under_way.popleft()
        return self._state is not None and monotonic() - self._committed_at >= COMMITS

    def commit(self) -> None:
        if self._state is None or self._position == self._noted:
            return
        with open(f"{self._state}.new", "w", encoding="ascii") as file:
            file.write(f"{self._position}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{self._state}.new", self._state)
        self._noted, self._committed_at = self._position, monotonic()

    def close(self) -> None:
        if self._descriptor > 2:
            os.close(self._descriptor)


class StreamDrain(Drain):
    """Lines to standard output, or to the end of a file."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)

    async def write(self, messages: Iterable[bytes]) -> tuple[int, int]:
        count = 0
        parts = []
        for message in messages:
            parts += [message, b"\n"]
            count += 1
        data = memoryview(b"".join(parts))
        try:
            while data:
                if not self._regular:
                    await _ready(self._descriptor, writing=True)
                written = os.write(self._descriptor, data if self._regular else data[:SURE])
                data = data[written:]
        except BrokenPipeError:  # of standard output: as with any program before a `head`
            raise
        except OSError as error:
            raise OperatorError(f"cannot write {self._name}: {error.strerror}") from error
        return count, 0

    async def flush(self) -> None:
        if self._regular:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor > 2:
            os.close(self._descriptor)


# -- sockets ---------------------------------------------------------------------------------


class _Socket:
    """A socket of its own context, and what tells that it can do something again."""

    def __init__(self, kind: str, where: str, bind: bool, topics: list[str]) -> None:
        self._context = zmq.Context()
        self.readable, self.writable = asyncio.Event(), asyncio.Event()
        try:
            self.socket = ForeignSocket(
                self._context, kind, [where], bind=bind, on_events=self._on_events, topics=topics
            )
        except BaseException:
            self._context.term()
            raise

    def _on_events(self, readable: bool, writable: bool) -> None:
        for event, on in ((self.readable, readable), (self.writable, writable)):
            if on:
                event.set()

    async def until(self, event: asyncio.Event) -> None:
        """Wait for `event`, which is looked for anew."""
        event.clear()
        self.socket.look_soon()
        await event.wait()

    async def leave(self, linger: float) -> bool:
        """Close it; what was sent gets `linger` seconds to leave. Whether that was enough."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        begun = monotonic()
        self.socket.close(linger)

        def end() -> None:
            self._context.term()
            with contextlib.suppress(RuntimeError):  # nobody waited, and the loop is closed
                loop.call_soon_threadsafe(done.cancel)

        # On a thread: here no signal would be seen meanwhile, or it would end the waiting.
        threading.Thread(target=end, name="flowkit.pipe", daemon=True).start()
        await asyncio.wait([done])
        return monotonic() - begun < linger

    def close(self) -> None:
        """Close it, unless it was left already; what has not left is lost."""
        if not self.socket.closed:
            self.socket.close(0)
            self._context.term()


class SocketTap(Tap):
    """A PULL or a SUB. Of a multipart message the last frame is taken: topics stand before it."""

    def __init__(self, kind: str, where: str, bind: bool, topics: list[str]) -> None:
        self._socket = _Socket(kind, where, bind, topics)

    async def read(self, limit: int) -> list[bytes] | None:
        batch: list[bytes] = []
        while not batch:
            while len(batch) < limit and (frames := self._socket.socket.receive()) is not None:
                batch.append(frames[-1])
            if not batch:
                await self._socket.until(self._socket.readable)
        return batch

    def close(self) -> None:
        self._socket.close()


class SocketDrain(Drain):
    """A PUSH, which waits for peers, or a PUB, which does not."""

    def __init__(self, kind: str, where: str, bind: bool, topics: list[str]) -> None:
        self._publishes = kind == "PUB"
        self._subscriptions = Subscriptions()
        self._socket = _Socket("XPUB" if self._publishes else kind, where, bind, [])

    async def write(self, messages: Iterable[bytes]) -> tuple[int, int]:
        written = dropped = 0
        socket = self._socket.socket
        for message in messages:
            if self._publishes:
                while (frames := socket.receive()) is not None:
                    self._subscriptions.heard(frames[0])
                if not self._subscriptions.wants(message) or socket.send([message]) is Sent.FULL:
                    dropped += 1
                    continue
            else:
                while socket.send([message]) is Sent.FULL:
                    await self._socket.until(self._socket.writable)
            written += 1
        if self._publishes:
            await asyncio.sleep(0)
        return written, dropped

    async def finish(self) -> None:
        if not await self._socket.leave(LINGER):
            raise OperatorError(
                f"not all that was written has left: nobody took it within {LINGER:g} s"
            )

    def close(self) -> None:
        self._socket.close()
