"""What the children of the launcher tests do: `main` is their entry point."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import threading


def main(spec: bytes) -> int:
    verb, _, argument = spec.decode().partition(" ")
    print(verb, flush=True)
    return VERBS[verb](argument) or 0


def code(argument: str) -> int:
    return int(argument)


def fail(argument: str) -> None:
    raise ValueError(argument)


def leave(argument: str) -> None:
    sys.exit(int(argument))


def vanish(argument: str) -> None:
    os._exit(int(argument))


def own_signal(argument: str) -> None:
    os.kill(os.getpid(), getattr(signal, argument))
    signal.pause()


def segfault(argument: str) -> None:
    ctypes.string_at(0)


def rest(argument: str) -> None:
    signal.pause()


def fat(argument: str) -> None:
    """Rests with so much memory that the kernel takes a while to take it back."""
    memory = b"x" * 200_000_000
    print(len(memory), flush=True)
    signal.pause()


def spin(argument: str) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def hold_gil(argument: str) -> None:
    ctypes.PyDLL(None).sleep(600)


def talk(argument: str) -> None:
    """Writes as much as asked for to both streams, and leaves the last line unfinished."""
    sys.stdout.write("o" * int(argument) + "out!")
    sys.stderr.write("e" * int(argument) + "err!")


def linewise(argument: str) -> None:
    print("a line")
    signal.pause()


def facts(argument: str) -> None:
    print(
        json.dumps(
            {
                "env": {name: os.environ.get(name) for name in argument.split()},
                "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
                "terminate": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
                "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
                "stdin": os.readlink("/proc/self/fd/0"),
                "stdout": os.readlink("/proc/self/fd/1"),
                "descriptors": sorted(
                    os.readlink(f"/proc/self/fd/{fd}")
                    for fd in os.listdir("/proc/self/fd")
                    if os.path.exists(f"/proc/self/fd/{fd}")
                ),
                "threads": threading.active_count(),
                "zmq": [m for m in ("zmq", "tornado") if m in sys.modules],
                "main": getattr(sys.modules["__main__"], "__file__", None),
                "path": sys.path[0],
                "seen": getattr(sys.modules.get("heavy"), "PID", None),
                "parent": os.getppid(),
            }
        )
    )


def orphan(argument: str) -> None:
    """Ends while a process that it has forked goes on with all of its descriptors."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    print(pid)


VERBS = {
    function.__name__: function
    for function in (
        code,
        fail,
        leave,
        vanish,
        own_signal,
        segfault,
        rest,
        fat,
        spin,
        hold_gil,
        talk,
        linewise,
        facts,
        orphan,
    )
}
