"""What every test shares: nothing may be left behind, and waiting has a deadline.

A test that leaves a thread, a child process, an open file descriptor, a ZeroMQ socket or an event
loop behind fails in its teardown with a list of what it left. What ends on its own a moment
later (a process that is being reaped, a socket that libzmq closes in the background) is waited for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterator
from inspect import isawaitable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

try:
    import hypothesis
except ImportError:  # the tests that generate schedules need it, the others do not
    pass
else:
    # A busy machine is not a bug: examples have no deadline of their own, only the test has.
    hypothesis.settings.register_profile(
        "flowkit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.register_profile(
        "ci", hypothesis.settings.get_profile("flowkit"), derandomize=True
    )
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "flowkit")

# How long something that is on its way out may take. Only a test that leaks waits this long.
GRACE = 3.0
POLL = 0.005

# Inherited by every process a test starts, so that orphans are found at the end of the session.
SESSION_VARIABLE = "FLOWKIT_TEST_SESSION"
SESSION = uuid.uuid4().hex

DESCRIPTORS = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
TASKS = Path("/proc/self/task")
# Linux lists the children of a thread in a file (where the kernel was built with it); without
# that, psutil has to read the whole process table.
CHILDREN_FILE = (TASKS / str(os.getpid()) / "children").exists()


# ---------------------------------------------------------------------------- several processes


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist gets a directory with a short name: its tests make sockets there,
    whose paths may have 107 bytes."""
    if hasattr(config, "workerinput"):
        config.option.basetemp = tempfile.mkdtemp(prefix="fk")


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        shutil.rmtree(config.option.basetemp, ignore_errors=True)


# ---------------------------------------------------------------------------- waiting

T = TypeVar("T")


class Deadline:
    """A point in time. `left` is how many seconds remain, never less than 0."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left == 0.0


class Eventually:
    """Wait until a condition holds, or fail when it does not in time.

    `eventually(condition)` blocks the thread; `await eventually.on_loop(condition)` lets the event
    loop turn meanwhile. Both return the first true value of `condition`, which on the loop may
    also be a coroutine function.
    """

    def __call__(self, condition: Callable[[], T], seconds: float = 10.0) -> T:
        deadline = Deadline(seconds)
        while not (value := condition()):
            if deadline.passed:
                pytest.fail(f"not true within {seconds:g} s: {_name(condition)}")
            time.sleep(POLL)
        return value

    async def on_loop(self, condition: Callable[[], T | Awaitable[T]], seconds: float = 10.0) -> T:
        deadline = Deadline(seconds)
        while True:
            value = condition()
            if isawaitable(value):
                value = await asyncio.wait_for(value, deadline.left or POLL)
            if value:
                return value
            if deadline.passed:
                pytest.fail(f"not true within {seconds:g} s: {_name(condition)}")
            await asyncio.sleep(POLL)


def _name(condition: object) -> str:
    code = getattr(condition, "__code__", None)
    name = getattr(condition, "__qualname__", repr(condition))
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


@pytest.fixture
def deadline() -> Callable[[float], Deadline]:
    """`deadline(seconds)` gives a `Deadline` that starts now."""
    return Deadline


@pytest.fixture
def eventually() -> Eventually:
    """`eventually(condition, seconds=10)`, `await eventually.on_loop(condition, seconds=10)`."""
    return Eventually()


# ---------------------------------------------------------------------------- leaks


def _descriptors() -> set[int]:
    return {number for number in map(int, os.listdir(DESCRIPTORS)) if _is_open(number)}


def _is_open(descriptor: int) -> bool:
    """False for the descriptor with which the list itself was read."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _target(descriptor: int) -> str:
    try:
        return os.readlink(DESCRIPTORS / str(descriptor))
    except OSError:
        return "?"


def _children() -> set[int]:
    if not CHILDREN_FILE:
        return {child.pid for child in psutil.Process().children()}
    found: set[int] = set()
    for task in os.listdir(TASKS):
        try:
            found.update(map(int, (TASKS / task / "children").read_text().split()))
        except OSError:  # a thread that has just ended
            continue
    return found


def _describe_process(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()) or process.name()
        return f"process {pid} ({process.status()}): {command[:160]}"
    except psutil.Error:
        return f"process {pid}"


def _of_the_interpreter() -> tuple[set[int], set[int]]:
    """Pids and descriptors that multiprocessing keeps for the life of the process."""
    tracker = getattr(
        sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None
    )
    pid, descriptor = getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)
    return {pid} - {None}, {descriptor} - {None}


class Belongings:
    """What this process holds at one moment."""

    def __init__(self) -> None:
        pids, descriptors = _of_the_interpreter()
        self.threads = set(threading.enumerate())
        self.children = _children() - pids
        self.descriptors = _descriptors() - descriptors

    def more_than(self, before: Belongings) -> bool:
        return bool(
            self.threads - before.threads
            or self.children - before.children
            # Numbers are reused, so it is their count that tells.
            or len(self.descriptors) > len(before.descriptors)
        )

    def leaked_since(self, before: Belongings) -> list[str]:
        found = [f"thread {thread.name!r}" for thread in self.threads - before.threads]
        found += [_describe_process(pid) for pid in sorted(self.children - before.children)]
        if len(self.descriptors) > len(before.descriptors):
            found += [
                f"file descriptor {descriptor}: {_target(descriptor)}"
                for descriptor in sorted(self.descriptors - before.descriptors)
            ]
            found += _suspects()
        return found


def _suspects() -> list[str]:
    """The open sockets, contexts and loops that are likely to own leaked descriptors."""
    zmq = sys.modules.get("zmq")
    found = []
    for thing in gc.get_objects():
        # type(), not isinstance: proxies answer isinstance by importing what they stand for.
        kind = type(thing)
        if issubclass(kind, asyncio.AbstractEventLoop) and not thing.is_closed():
            found.append(f"event loop not closed: {thing!r}")
        elif zmq and issubclass(kind, zmq.Socket | zmq.Context) and not thing.closed:
            found.append(f"ZeroMQ {kind.__name__.lower()} not closed: {thing!r}")
    return found


def _stop_zmq_garbage_thread() -> None:
    """End the thread with which pyzmq frees zero-copy messages; it starts again when needed."""
    garbage = getattr(sys.modules.get("zmq.utils.garbage"), "gc", None)
    if garbage is not None and garbage.thread is not None:
        garbage.stop()


def leaks_since(before: Belongings, grace: float = GRACE) -> list[str]:
    """What this process holds more than `before`, after all chance to let go of it."""
    if not (after := Belongings()).more_than(before):
        return []
    gc.collect()
    _stop_zmq_garbage_thread()
    deadline = Deadline(grace)
    while (after := Belongings()).more_than(before):
        if deadline.passed:
            return after.leaked_since(before)
        time.sleep(POLL)
    return []


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    # What was logged may hold half a surrogate pair, which no worker of pytest-xdist can hand over.
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind.

    Not one that has failed already: the traceback keeps its variables alive.
    """
    before = Belongings()
    yield
    if request.node.stash.get(_FAILED, False):
        return
    found = leaks_since(before)
    if request.node.get_closest_marker("e2e"):
        found += _orphans()
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


def _orphans(grace: float = GRACE) -> list[str]:
    """Processes that descend from this session but are no longer anybody's children."""
    deadline = Deadline(grace)
    while True:
        found = [process.pid for process in psutil.process_iter() if _is_orphan(process)]
        if not found or deadline.passed:
            return [f"orphan: {_describe_process(pid)}" for pid in found]
        time.sleep(10 * POLL)  # each look reads the whole process table


def _is_orphan(process: psutil.Process) -> bool:
    try:
        return (
            process.pid != os.getpid()
            and process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(SESSION_VARIABLE) == SESSION
            and os.getpid() not in {parent.pid for parent in process.parents()}
        )
    except (psutil.Error, OSError):
        return False


def pytest_sessionstart() -> None:
    os.environ[SESSION_VARIABLE] = SESSION


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    found = _orphans()
    if found:
        print("\nthe test session left processes behind:\n  " + "\n  ".join(found), file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
