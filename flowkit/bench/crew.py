"""The processes of a round that flowkit does not start: each runs one function.

Everything a round starts is in the process group of that round, so that a session can end all of
it at once, and dies with its parent where the system has a way to say so.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import Any

Member = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function, and the arguments with which it is called in a process of its own."""

PR_SET_PDEATHSIG = 1


class MemberFailed(Exception):
    """A process of a round has raised, or has died."""


def context() -> BaseContext:
    """How the processes are started: forked on Linux, as `multiprocessing` does there by default
    up to Python 3.13. The process they are forked from has one thread and no ZeroMQ context."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def die_with_parent() -> None:
    """Be killed when the parent is: also when it was killed itself. Linux only."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it has died in between
            os.kill(os.getpid(), signal.SIGKILL)


def run_crew(*members: Member, endless: Sequence[Member] = ()) -> list[Any]:
    """Run each member in a process of its own; return what they return, in their order.

    Those of `endless` are killed when all members have returned. Raises MemberFailed as soon as one
    of either fails; the others are killed.
    """
    start = context()
    processes, ends = [], []
    results: list[Any] = [None] * (len(members) + len(endless))
    try:
        for function, arguments in [*members, *endless]:
            ours, theirs = start.Pipe(duplex=False)
            process = start.Process(  # type: ignore[attr-defined]
                target=_main, args=(theirs, function, arguments), name=function.__name__
            )
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
        waiting = dict(zip(ends, range(len(ends)), strict=True))
        while min(waiting.values(), default=len(members)) < len(members):
            for end in connection.wait(list(waiting)):
                assert isinstance(end, connection.Connection)
                number = waiting.pop(end)
                results[number] = _result(end, processes[number].name)
        for process in processes[: len(members)]:
            process.join()
        return results[: len(members)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
        for end in ends:
            end.close()


def _result(end: connection.Connection[Any, Any], name: str) -> Any:
    try:
        error, value = end.recv()
    except EOFError:
        raise MemberFailed(f"the process of {name}() has died") from None
    if error:
        raise MemberFailed(error)
    return value


def _main(
    end: connection.Connection[Any, Any], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    die_with_parent()
    try:
        answer = ("", function(*arguments))
    except Exception:
        answer = (traceback.format_exc(), None)
    end.send(answer)
    end.close()
