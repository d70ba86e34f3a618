"""The nursery: the process in which the replicas of one supervisor are born.

It exists for three reasons. Modules are imported once and shared by all replicas, so that a start
takes milliseconds. The process that forks has one thread and neither loop nor socket context,
whatever the application around the supervisor has. And every replica has a parent whose death
the kernel answers with SIGKILL, which nobody's GIL can hold up:

* The supervisor holds the only write end of a pipe, the *lifeline*. The nursery has its read end
  deliver SIGKILL (`F_SETSIG`) when the last writer is gone. So the nursery dies with its
  supervisor even while it is stopped, or stuck in the import of somebody's module.
* Each replica has `PR_SET_PDEATHSIG` set and so dies with the nursery. (The kernel forgets that
  request when a process changes its user; such a replica has to look after itself.)

Where the kernel has neither (macOS), the nursery sees the end of file on its command socket, kills
its children and exits; and the supervisor kills the children of a nursery that died.

The command socket carries length-prefixed msgpack: `Setup` first, then `Launch` and `Kill` one
way, `Ready`, `Preloading`, `Started` and `Exited` the other. Descriptors travel with the first
byte of the `Launch` they belong to. The nursery waits for the socket and for its children's ends
in one call; it never polls. Its children are `multiprocessing` processes, so that the code in them
finds what it expects there.
"""

from __future__ import annotations

import gc
import importlib
import io
import multiprocessing
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any

import msgspec
from msgspec import Struct

LENGTH = struct.Struct("!I")
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Setup(Struct, tag=True):
    """How children are made. `method` is a start method of `multiprocessing`."""

    title: str
    entry: str
    preload: list[str]
    method: str


class Launch(Struct, tag=True):
    """Start a child. `stdout`, `stderr`: whether a descriptor of that name comes along."""

    name: str
    spec: bytes
    title: str
    env: dict[str, str]
    stdout: bool
    stderr: bool


class Kill(Struct, tag=True):
    """Send a signal to a child."""

    name: str
    signal: int


class Ready(Struct, tag=True):
    """The nursery has read its `Setup`; what it imports comes next."""


class Preloading(Struct, tag=True):
    """A module is about to be imported; empty once all have been."""

    module: str


class Started(Struct, tag=True):
    """A child lives."""

    name: str
    pid: int


class Exited(Struct, tag=True):
    """A child is gone and has been waited for, or (`error`) could not be started."""

    name: str
    exitcode: int
    error: str | None = None


Command = Setup | Launch | Kill
Event = Ready | Preloading | Started | Exited

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def frame(body: Command | Event) -> bytes:
    """One command or event as it goes over the socket."""
    data = _encoder.encode(body)
    return LENGTH.pack(len(data)) + data


def main(command_fd: int, lifeline_fd: int, tether_fd: int, supervisor: int) -> None:
    """Be a nursery until the supervisor closes the command socket or dies. Does not return.

    The descriptors are inherited. `tether_fd` is the write end of a pipe that is never written:
    the nursery and all of its children hold it, so its reader learns when all are gone.
    `supervisor` is the process id of who started this.
    """
    # Of the signals that a terminal or a service manager sends to a whole group, none may take
    # the nursery away from under a supervisor that is about to drain.
    _ignore_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with_the_writer(lifeline_fd)
    if os.getppid() != supervisor:
        os._exit(0)
    _raise_descriptor_limit()
    exitcode = 0
    try:
        nursery = Nursery(socket.socket(fileno=command_fd), lifeline_fd, tether_fd, supervisor)
        nursery.run()
    except BaseException:
        traceback.print_exc()
        exitcode = 1
    os._exit(exitcode)  # what imported modules registered with atexit is not for this process


class Nursery:
    """Starts children on command, reports their ends, and kills them all at the end of file."""

    def __init__(
        self, commands: socket.socket, lifeline: int, tether: int, supervisor: int
    ) -> None:
        self._socket = commands
        self._tether = tether
        self._private = {commands.fileno(), lifeline}
        self._watched: list[socket.socket | int] = [commands]
        if sys.platform == "linux":
            # Somebody who was forked from the supervisor may hold its end of the socket open.
            pidfd = os.pidfd_open(supervisor)
            self._private.add(pidfd)
            self._watched.append(pidfd)
        self._children: dict[str, tuple[BaseProcess, int]] = {}
        self._keep: set[int] = set()
        self._entry = ""
        self._context: BaseContext = multiprocessing.get_context()

    def run(self) -> None:
        """Serve until the supervisor has closed its end or is gone."""
        received = self._receive()
        if received is None or not isinstance(received[0], Setup):
            return
        self._set_up(received[0])
        while self._turn():
            pass
        self._end()

    def _set_up(self, setup: Setup) -> None:
        _set_title(setup.title)
        self._entry = setup.entry
        self._context = multiprocessing.get_context(setup.method)
        self._report(Ready())
        if setup.method == "fork":
            self._preload([setup.entry.partition(":")[0], *setup.preload])
        self._report(Preloading(""))
        self._keep = _open_descriptors() - self._private

    def _preload(self, modules: Iterable[str]) -> None:
        """Import what children will need. A failure is theirs to report: they import it again."""
        # What a module prints when imported belongs to nobody's output.
        with suppress(OSError):
            stdout = os.dup(1)
            os.dup2(2, 1)
        for module in modules:
            self._report(Preloading(module))
            with suppress(BaseException):
                importlib.import_module(module)
        with suppress(OSError, UnboundLocalError):
            _flush()
            os.dup2(stdout, 1)
            os.close(stdout)
        _ignore_signals()  # a module may have thought that this process was its own
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gc.collect()
        gc.freeze()  # or the collector of each child would touch, and so copy, every shared page

    def _turn(self) -> bool:
        """Wait for something to happen and deal with it; False at the end."""
        ends = {end: name for name, (_, end) in self._children.items()}
        for ready in connection.wait([*self._watched, *ends]):
            if ready is self._socket:
                received = self._receive()
                if received is None:
                    return False
                command, descriptors = received
                if isinstance(command, Launch):
                    self._launch(command, descriptors)
                elif isinstance(command, Kill):
                    self._kill(command.name, command.signal)
            elif isinstance(ready, int) and ready in ends:
                self._reap(ends[ready])
            else:
                return False
        return True

    def _end(self) -> None:
        for name in self._children:
            self._kill(name, signal.SIGKILL)
        for name in list(self._children):
            self._reap(name)

    def _launch(self, command: Launch, descriptors: list[int]) -> None:
        try:
            process = self._give_birth(command, descriptors)
        except Exception as error:
            self._report(Exited(command.name, 1, f"cannot start: {error}"))
            return
        finally:
            for fd in descriptors:
                os.close(fd)
        pid = process.pid
        assert pid is not None
        end = process.sentinel
        if sys.platform == "linux":
            # The sentinel also waits for whoever the child has forked; this does not.
            with suppress(OSError):
                end = os.pidfd_open(pid)
        self._children[command.name] = (process, end)
        self._report(Started(command.name, pid))

    def _give_birth(self, command: Launch, descriptors: list[int]) -> BaseProcess:
        if len(descriptors) < command.stdout + command.stderr:
            raise OSError("its descriptors were lost: the limit of open files is reached")
        given = iter(descriptors)
        birth = Birth(
            parent=os.getpid(),
            entry=self._entry,
            command=command,
            stdout=next(given) if command.stdout else None,
            stderr=next(given) if command.stderr else None,
            tether=self._tether,
            unwanted=_open_descriptors() - self._keep - set(descriptors),
        )
        # typeshed does not say that every context has a Process.
        process: BaseProcess = self._context.Process(  # type: ignore[attr-defined]
            target=birth, name=command.name
        )
        process.start()
        return process

    def _kill(self, name: str, number: int) -> None:
        child = self._children.get(name)
        if child is not None and child[0].pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child[0].pid, number)  # not waited for yet, so the pid is still the child's

    def _reap(self, name: str) -> None:
        process, end = self._children.pop(name)
        process.join()
        exitcode = process.exitcode
        if end != process.sentinel:
            os.close(end)
        process.close()
        self._report(Exited(name, 1 if exitcode is None else exitcode))

    def _report(self, event: Event) -> None:
        # If nobody listens any more, the next turn finds out.
        with suppress(OSError):
            self._socket.sendall(frame(event))

    def _receive(self) -> tuple[Command, list[int]] | None:
        """One whole command and the descriptors that came with it; None at the end of file."""
        descriptors: list[int] = []
        header = b""
        with suppress(ConnectionError):
            while len(header) < LENGTH.size:
                data, fds, _, _ = socket.recv_fds(
                    self._socket,
                    LENGTH.size - len(header),
                    2,
                    socket.MSG_CMSG_CLOEXEC if sys.platform == "linux" else 0,
                )
                if not data:
                    return None
                descriptors += fds
                header += data
            (length,) = LENGTH.unpack(header)
            body = bytearray()
            while len(body) < length:
                data = self._socket.recv(min(length - len(body), 1 << 20))
                if not data:
                    return None
                body += data
            return _commands.decode(body), descriptors
        return None


class Inherited:
    """A descriptor that follows a process object into the child, whatever the start method."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[object, ...]:
        return _arrive, (DupFd(self.fd),)


def _arrive(passed: Any) -> Inherited:
    return Inherited(passed.detach())


class Birth:
    """What a child does from its first instruction to its exit code; made in the nursery."""

    def __init__(
        self,
        *,
        parent: int,
        entry: str,
        command: Launch,
        stdout: int | None,
        stderr: int | None,
        tether: int,
        unwanted: set[int],
    ) -> None:
        self.parent = parent
        self.entry = entry
        self.command = command
        self.stdout = None if stdout is None else Inherited(stdout)
        self.stderr = None if stderr is None else Inherited(stderr)
        self.tether = Inherited(tether)
        self.unwanted = unwanted

    def __getstate__(self) -> dict[str, Any]:
        # Pickled means spawned: such a child has inherited nothing that was not passed to it.
        return {**self.__dict__, "unwanted": set()}

    def __call__(self) -> None:
        _die_with_the_parent(self.parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the supervisor answers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for fd in self.unwanted:
            with suppress(OSError):
                os.close(fd)
        # While they are what they were made for: a stream on a file wants to know its position.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # UTF-8 whatever the locale is: that is what the other end of the pipe expects.
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        for given, standard in ((self.stdout, 1), (self.stderr, 2)):
            if given is not None:
                os.dup2(given.fd, standard)
                os.close(given.fd)
        os.environ.update(self.command.env)
        _set_title(self.command.title)
        sys.exit(self._run())

    def _run(self) -> int:
        try:
            module, _, attribute = self.entry.partition(":")
            entry = getattr(importlib.import_module(module), attribute)
            return entry(self.command.spec) or 0
        except Exception as error:
            traceback.print_exception(error)
            return 1


def _ignore_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _set_title(title: str) -> None:
    import setproctitle

    setproctitle.setproctitle(title)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _raise_descriptor_limit() -> None:
    """Allow as many open files as may be had: a child costs the nursery three."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS calls its limit infinite and then refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_descriptors() -> set[int]:
    """The open descriptors of this process."""
    found = set()
    for entry in os.listdir("/dev/fd"):
        with suppress(OSError):  # the one that read the directory
            os.fstat(int(entry))
            found.add(int(entry))
    return found


def _die_with_the_writer(fd: int) -> None:
    """Have the kernel kill this process once no writer of the pipe `fd` is left."""
    if sys.platform != "linux":
        return
    import fcntl
    import select

    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # it had gone before the signal was arranged
        os._exit(0)


def _die_with_the_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, is gone."""
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)
