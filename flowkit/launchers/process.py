"""The launcher for this machine: replicas are processes, born in a nursery.

This is the supervisor's side. It starts the nursery (see `flowkit.launchers.nursery`, which says
what the pieces are for), talks to it through a non-blocking socket on the running loop, and answers
for the children if the nursery dies. No thread, no polling.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from flowkit.errors import LocalProtocolError, OperatorError, ReplicaError
from flowkit.launchers.base import Launcher, OnExit, OnStarted
from flowkit.launchers.nursery import (
    LENGTH,
    Event,
    Exited,
    Kill,
    Launch,
    Preloading,
    Ready,
    Setup,
    Started,
    frame,
)

GRACE = 2.0
"""Seconds that the nursery gets to kill and collect its children in `close`, and that children of
a dead nursery get to vanish. The kernel does either in milliseconds; longer means that something
is stuck in it, and nobody can wait for that."""

_BOOT = "import sys; sys.path[:] = {path!r}; from flowkit.launchers.nursery import main; main{fds}"

_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class ProcessLauncher(Launcher):
    """Starts replicas as `multiprocessing` children of one helper process.

    `entry` ("module:attribute") is called in the child as ``entry(spec) -> exit code``. It and the
    modules of `preload` are imported once, ahead of the first child (with `method` "fork"; a
    module that fails to import is left to the children, where it fails again for all to see).
    `path` goes in front of `sys.path`, in the nursery and the children. `title` is what `ps` shows
    for the nursery. `method` is "fork" (the default on Linux) or "spawn" (elsewhere).

    Children have stdin from /dev/null, ignore SIGINT, take SIGTERM as it comes, and hold none of
    the nursery's descriptors. Forked children share what preloaded modules did when imported,
    among it the state of `numpy.random`: nodes that draw numbers seed a generator of their own.
    """

    def __init__(
        self,
        on_started: OnStarted,
        on_exit: OnExit,
        *,
        entry: str = "flowkit.runtime.child:main",
        preload: Sequence[str] = (),
        path: Sequence[str] = (),
        method: str | None = None,
        title: str = "flowkit",
    ) -> None:
        super().__init__(on_started, on_exit)
        if method is None:
            method = "fork" if sys.platform == "linux" else "spawn"
        if method not in ("fork", "spawn"):
            raise ValueError(f"method must be 'fork' or 'spawn', not {method!r}")
        self._setup = Setup(title=title, entry=entry, preload=list(preload), method=method)
        self._path = list(path)
        self._live: dict[str, int | None] = {}  # name -> pid, None until it has started
        self._outgoing: deque[tuple[memoryview, list[int]]] = deque()
        self._incoming = bytearray()
        self._preloading = ""
        self._nursery: subprocess.Popen[bytes] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._closing = False
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id of the nursery, None if there is none."""
        return None if self._nursery is None or self._gone.is_set() else self._nursery.pid

    async def start(self) -> None:
        """Start the nursery and wait until it listens; modules are imported after that."""
        if self._nursery is not None or self._closing:
            raise LocalProtocolError("a launcher is started once")
        if not hasattr(socket, "send_fds"):
            raise OperatorError("processes cannot be launched here", "this needs Unix sockets")
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._socket, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._tether, tether = os.pipe()
        try:
            self._nursery = _spawn(self._path, theirs.fileno(), lifeline, tether)
        except BaseException:
            self._socket.close()
            os.close(self._lifeline)
            os.close(self._tether)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
            os.close(tether)
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._readable)
        self._send(frame(self._setup))
        await self._ready

    def launch(
        self,
        name: str,
        spec: bytes,
        *,
        title: str,
        env: Mapping[str, str],
        stdout: int | None,
        stderr: int | None,
    ) -> None:
        descriptors = [fd for fd in (stdout, stderr) if fd is not None]
        if self._nursery is None or self._closing or name in self._live:
            _close(descriptors)
            if name in self._live:
                raise ValueError(f"{name!r} is still alive")
            raise LocalProtocolError("launch() on a launcher that is not running")
        if self._gone.is_set():
            _close(descriptors)
            self._live[name] = None
            self._loop.call_soon(self._exited, name, -signal.SIGKILL, self._epitaph)
            return
        command = Launch(
            name=name,
            spec=spec,
            title=title,
            env=dict(env),
            stdout=stdout is not None,
            stderr=stderr is not None,
        )
        self._live[name] = None
        self._send(frame(command), descriptors)

    def kill(self, name: str, signal: int = signal.SIGKILL) -> None:
        # Through the nursery: it knows for sure whether the pid is still this child's.
        if name in self._live and not self._closing and not self._gone.is_set():
            self._send(frame(Kill(name, signal)))

    async def close(self) -> None:
        first, self._closing = not self._closing, True
        nursery = self._nursery
        if nursery is None:
            return
        if first and not self._gone.is_set():
            self._discard_outgoing()
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._timers.append(self._loop.call_later(GRACE, nursery.kill))
        await self._gone.wait()
        self._report_rest("launcher closed")

    # The socket.

    def _send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        self._outgoing.append((memoryview(data), list(descriptors)))
        if len(self._outgoing) == 1:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._outgoing:
                data, descriptors = self._outgoing[0]
                if descriptors:
                    sent = socket.send_fds(self._socket, [data], descriptors)
                    _close(descriptors)
                else:
                    sent = self._socket.send(data)
                if sent == len(data):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = (data[sent:], [])
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._writable)
            return
        except OSError:
            self._discard_outgoing()  # the reader is about to see the end of file, and answers
            return
        self._loop.remove_writer(self._socket)

    def _discard_outgoing(self) -> None:
        self._loop.remove_writer(self._socket)
        while self._outgoing:
            _close(self._outgoing.popleft()[1])

    def _readable(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._nursery_died()
            return
        self._incoming += data
        start = 0
        while len(self._incoming) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._incoming, start)
            end = start + LENGTH.size + length
            if len(self._incoming) < end:
                break
            self._event(_events.decode(self._incoming[start + LENGTH.size : end]))
            start = end
        del self._incoming[:start]

    def _event(self, event: Event) -> None:
        match event:
            case Started(name, pid):
                if name in self._live:
                    self._live[name] = pid
                    self._call(self.on_started, name, pid)
            case Exited(name, exitcode, error):
                self._exited(name, exitcode, error)
            case Preloading(module):
                self._preloading = module
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(None)

    # The end.

    def _nursery_died(self) -> None:
        nursery = self._nursery
        assert nursery is not None
        self._loop.remove_reader(self._socket)
        self._discard_outgoing()
        self._socket.close()
        self._cancel_timers()
        nursery.kill()  # closing its socket is the last thing it does; never wait for more
        nursery.wait()
        self._epitaph = f"launcher died ({_how(nursery.returncode)}"
        self._epitaph += f" while importing {self._preloading})" if self._preloading else ")"
        if not self._live:
            self._all_gone()
            return
        if sys.platform != "linux":
            for pid in self._live.values():
                if pid is not None:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
        # They are being killed; report it when it is true. A process that dies closes its files,
        # among them the tether, when its memory is already gone.
        self._loop.add_reader(self._tether, self._all_gone)
        self._timers.append(self._loop.call_later(GRACE, self._all_gone))

    def _all_gone(self) -> None:
        self._cancel_timers()
        self._loop.remove_reader(self._tether)
        os.close(self._tether)
        os.close(self._lifeline)
        self._gone.set()
        if not self._ready.done():
            self._ready.set_exception(ReplicaError(f"{self._epitaph} before it was ready"))
        if not self._closing:
            self._report_rest(self._epitaph)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _report_rest(self, error: str) -> None:
        for name in list(self._live):
            self._exited(name, -signal.SIGKILL, error)

    def _exited(self, name: str, exitcode: int, error: str | None) -> None:
        if name in self._live:
            del self._live[name]
            self._call(self.on_exit, name, exitcode, error)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call into the supervisor; what it raises must not keep us from reporting the rest."""
        try:
            callback(*arguments)
        except Exception as error:
            self._loop.call_exception_handler(
                {"message": f"{callback!r} of a launcher raised", "exception": error}
            )


def _spawn(path: Sequence[str], *descriptors: int) -> subprocess.Popen[bytes]:
    """Start a nursery; it inherits nothing but `descriptors` and the standard streams."""
    where = [entry or os.getcwd() for entry in [*path, *sys.path]]
    boot = _BOOT.format(path=where, fds=(*descriptors, os.getpid()))
    options = [f"-W{option}" for option in sys.warnoptions]
    if sys.flags.dev_mode:
        options.append("-Xdev")
    # A Ctrl-C before the nursery has learned to ignore it would kill it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            [sys.executable, *options, "-c", boot],
            stdin=subprocess.DEVNULL,
            stdout=_or_nothing(1),
            stderr=_or_nothing(2),
            pass_fds=descriptors,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _or_nothing(descriptor: int) -> int | None:
    """Inherit a standard stream, or give the child something harmless if it is closed here."""
    try:
        os.fstat(descriptor)
    except OSError:
        return subprocess.DEVNULL
    return None


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    with suppress(ValueError):
        return signal.Signals(-returncode).name
    return f"signal {-returncode}"


def _close(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
