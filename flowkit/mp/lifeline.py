"""A broker as the processes see it that use it: started, found again, passed on, let go."""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from multiprocessing import reduction, spawn, util
from typing import Any

from flowkit.mp.broker import SOCKET

_held: dict[str, Lifeline] = {}
"""The brokers that this process holds an end of, by directory. A forked child inherits them."""

_guard = threading.Lock()


class Lifeline:
    """This process's end of the lifeline of the broker in `directory`.

    `pid` is the broker's if this process has started it. Each `hold` needs a `release`.
    """

    def __init__(self, directory: str, end: socket.socket, pid: int = 0) -> None:
        self.directory = directory
        self.end = end
        self.pid = pid
        self.users = 0
        self.owner = os.getpid()

    @property
    def address(self) -> str:
        return f"ipc://{self.directory}/{SOCKET}"

    @property
    def alive(self) -> bool:
        """Whether the broker still has its end."""
        poller = select.poll()
        poller.register(self.end, select.POLLIN)
        return not poller.poll(0)

    def file_of(self, name: str) -> str:
        """The path of the file with the cells of the queue `name`."""
        return f"{self.directory}/{name}"

    def __reduce__(self) -> tuple[object, ...]:
        return _arrive, (self.directory, reduction.DupFd(self.end.fileno()))

    def release(self) -> None:
        """One user less. The last one lets go; with that the broker ends, if no other process
        has an end of the lifeline."""
        with _guard:
            self.users -= 1
            if self.users:
                return
            _held.pop(self.directory, None)
            self.end.close()
        if self.pid and self.owner == os.getpid():
            arguments = self.pid, self.directory
            threading.Thread(target=_collect, args=arguments, daemon=True).start()


def hold(lifeline: Lifeline | None = None) -> Lifeline:
    """One user more of `lifeline`; by default of any that this process has, else of a new one.

    Raises OSError if a broker cannot be started.
    """
    with _guard:
        if lifeline is None:
            lifeline = next((each for each in _held.values() if each.alive), None) or _start()
        lifeline.users += 1
        _held[lifeline.directory] = lifeline
        return lifeline


def after_fork() -> None:
    """In a child: what was held is held twice now; a lock that a thread had, nobody has."""
    global _guard
    _guard = threading.Lock()


def _start() -> Lifeline:
    directory = tempfile.mkdtemp(prefix="fkmp-", dir=_short_directory())
    ours, theirs = socket.socketpair()
    ours.setblocking(True)  # whatever socket.setdefaulttimeout says
    try:
        executable = os.fsdecode(spawn.get_executable())
        pid = util.spawnv_passfds(
            os.fsencode(executable),
            [
                executable,
                *util._args_from_interpreter_flags(),  # type: ignore[attr-defined]
                "-c",
                "import sys; sys.path[:] = sys.argv[3:]; from flowkit.mp.broker import main;"
                " main(sys.argv[1], int(sys.argv[2]))",
                directory,
                str(theirs.fileno()),
                *sys.path,
            ],
            [theirs.fileno()],
        )
    finally:
        theirs.close()
    if not ours.recv(1):
        ours.close()
        os.waitpid(pid, 0)
        shutil.rmtree(directory, ignore_errors=True)
        raise OSError("the process that is to keep the items of queues does not start")
    return Lifeline(directory, ours, pid)


def _arrive(directory: str, duplicate: Any) -> Lifeline:
    """What was pickled in a parent, in its child."""
    end = socket.socket(fileno=duplicate.detach())
    with _guard:
        known = _held.get(directory)
        if known is None:
            return Lifeline(directory, end)
    end.close()
    return known


def _collect(pid: int, directory: str) -> None:
    """Wait for the end of a broker; clear up for it if it was killed."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    shutil.rmtree(directory, ignore_errors=True)


def _short_directory() -> str | None:
    """Sockets are in there, whose paths may have 107 bytes: not below a long TMPDIR."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 80 or not os.access("/tmp", os.W_OK) else "/tmp"
