"""Entry of a child process: a spec in, an exit code out.

Exit codes: 0 left in order; 1 failed; `protocol.project.CONFIGURATION` cannot start as it is
configured; 143 ended by SIGTERM, after `teardown`.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import io
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

from zmq.utils.garbage import GarbageCollectorThread

from flowkit.channels import guard_sends
from flowkit.clock import wall
from flowkit.errors import FlowkitError, OperatorError
from flowkit.importing import load_object
from flowkit.node import Node, describe
from flowkit.protocol.control import Record
from flowkit.protocol.project import CONFIGURATION
from flowkit.runtime import logs, spans
from flowkit.runtime import spec as specs
from flowkit.runtime.handling import theirs
from flowkit.runtime.kit import Kit
from flowkit.runtime.processor import use
from flowkit.runtime.runner import Runner
from flowkit.runtime.settings import fit
from flowkit.runtime.stacks import GUARD, Guard, GuardedSelector, tasks_text
from flowkit.transport.zmq import ZmqTransport

log = logging.getLogger("flowkit.replica")

GARBAGE = 20_000
"""Objects more than were freed before the collector looks at the youngest; Python's own 700 is a
fraction of a batch. Streams of dictionaries take 10 % less time so, 13 % with no collector at all.
A node that wants something else says so when it is imported or built."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


def main(data: bytes) -> int:
    """Run the replica that the encoded `ReplicaSpec` describes, until its end."""
    spec = specs.decode(data)
    keep_memory()
    gc.set_threshold(GARBAGE)
    name = (spec.node.name, spec.replica)
    courier = logs.set_up(spec.box, spec.incarnation, name, spec.levels)
    # The stacks of threads are shown also while a handler holds the loop, or the interpreter: the
    # watchdog asks for them. Those of tasks follow as soon as any Python code can run.
    signal.signal(signal.SIGUSR1, _show_tasks)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
    first = spec.replica == 0 and spec.incarnation == 1
    tracer, end_traces = spans.set_up(spec.project, *name, first)
    try:
        try:
            node = build(spec)
        except Exception as error:
            explain(spec, error)
            return CONFIGURATION
        if not node.__flowkit__.tasks:
            trust_the_only_thread()
        guard = make_loop = None
        if spec.node.blocked > 0:
            guard = Guard(spec.node.blocked, partial(_held_up, spec))
            make_loop = partial(_guarded_loop, guard)
        try:
            with asyncio.Runner(loop_factory=make_loop) as runner:
                return runner.run(_run(spec, node, Kit(courier, guard, tracer)))
        finally:
            flush_files()
    finally:
        end_traces()
        courier.close()


def _guarded_loop(guard: Guard) -> asyncio.AbstractEventLoop:
    """asyncio's own loop. With uvloop's, replicas passed 4.5 million short messages a second, not
    4.7, and the median of a hop at rest was 370 us, not 390: less than what rounds differ by."""
    return asyncio.SelectorEventLoop(GuardedSelector(guard))


def _held_up(spec: specs.ReplicaSpec, seconds: float, function: str, stack: str) -> None:
    """Log what holds the loop. Not over the connection, which is the held loop's."""
    text = (
        f"{spec.node.name}: {function}() has held the event loop for {seconds:.1f} s; nothing else "
        "runs in this replica meanwhile"
    )
    logger = "flowkit.blocked"
    if logging.getLogger(logger).isEnabledFor(logging.WARNING):
        stack = f"Stack (most recent call last):\n{stack}"
        logs.write(Record(wall(), logging.WARNING, logger, text, stack))


def _show_tasks(number: int, frame: object) -> None:
    # Not through sys.stderr: it may be just this that was interrupted.
    with suppress(OSError):
        os.write(2, tasks_text().encode("utf-8", "backslashreplace"))


def keep_memory() -> None:
    """Have glibc keep what is freed, up to a bound, instead of giving it back at once: a stream
    wants it again for its next batch. With messages of 64 KiB to 1 MiB the system time is less
    than half so (page faults); small ones do not notice. See mallopt(3)."""
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_TRIM_THRESHOLD, 64 << 20)
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes


def trust_the_only_thread() -> None:
    """Have no `send` look at its thread until there is another: that would be half of what it
    costs. Threads are noticed that `threading` starts, before they run anything."""
    if threading.active_count() > 1:
        return
    before = threading.getprofile()

    def notice(frame: FrameType, event: str, argument: object) -> None:
        thread = threading.current_thread()
        if isinstance(thread, GarbageCollectorThread) or thread.name == GUARD:
            sys.setprofile(None)  # pyzmq's, and flowkit's own: they know nothing of nodes
            return
        guard_sends(True)
        threading.setprofile(before)
        sys.setprofile(before)

    threading.setprofile(notice)
    guard_sends(False)


def flush_files() -> None:
    """Write out what open files still hold, as the end of a program does: a child of
    `multiprocessing` ends without it, and a node may have no `teardown` that closes its files."""
    for one in gc.get_objects():
        if isinstance(one, io.TextIOWrapper | io.BufferedWriter) and not one.closed:
            with suppress(OSError, ValueError):
                one.flush()


def build(spec: specs.ReplicaSpec) -> Node:
    """The node object: imports its class and calls it with the settings.

    Raises what importing or constructing raises.
    """
    info = describe(load_object(spec.node.use))
    return info.cls(**fit(info, spec.node.settings))


async def _run(spec: specs.ReplicaSpec, node: Node, kit: Kit) -> int:
    transport = ZmqTransport(Path(spec.run_directory))
    tcp = None
    if any(link.transport == "tcp" for link in spec.outputs):
        tcp = ZmqTransport(Path(spec.run_directory), tcp=True)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        runner.leave()

    try:
        try:
            runner = Runner(spec, node, transport, tcp, cpu=use, kit=kit)
        except OperatorError as error:  # a journal that does not fit, or cannot be read
            explain(spec, error)
            return CONFIGURATION
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        await runner.run()
    except FlowkitError as error:
        explain(spec, error)
        return 1
    except Exception as error:
        log.error("%s failed", spec.name, exc_info=(type(error), error, theirs(error)))
        return 1
    finally:
        for each in (transport, tcp):
            if each is not None:
                each.close()
                each.join()
    return 143 if terminated else 0


def explain(spec: specs.ReplicaSpec, error: BaseException) -> None:
    """Print why a replica cannot start or go on; a traceback only if the error is not flowkit's."""
    if not isinstance(error, FlowkitError):
        traceback.print_exception(type(error), error, theirs(error))
    print(f"{spec.name} ({spec.node.use}): {type(error).__name__}: {error}", file=sys.stderr)
    if hint := getattr(error, "hint", ""):
        print(f"hint: {hint}", file=sys.stderr)
