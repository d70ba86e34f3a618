"""What is shown of a replica that waits, and of one whose loop is held up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flowkit.runtime.stacks import Guard, GuardedSelector, holder, tasks_text
from tests.conftest import Eventually

Told = list[tuple[float, str, str]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def guard(told: Told) -> Iterator[Guard]:
    guard = Guard(0.04, lambda *facts: told.append(facts))
    yield guard
    guard.stop()
    guard.stop()


def test_who_holds_the_loop_is_told_once_while_it_does(
    guard: Guard, told: Told, eventually: Eventually
) -> None:
    def some_handler() -> None:
        eventually(lambda: told)
        release.wait(0.2)  # it is held on and on

    release = threading.Event()
    guard.turn = time.monotonic()
    guard.start()
    some_handler()
    assert len(told) == 1
    seconds, function, stack = told[0]
    assert 0.04 < seconds
    assert "some_handler()" in stack and stack.rstrip().count("\n") > 1
    assert function


def test_each_blockage_anew(guard: Guard, told: Told, eventually: Eventually) -> None:
    guard.start()
    for count in range(1, 4):
        guard.turn = time.monotonic()
        eventually(lambda count=count: len(told) == count)  # type: ignore[misc]


def test_a_loop_that_turns_is_not_told_of(told: Told, eventually: Eventually) -> None:
    now, looks = 0.0, 0

    def clock() -> float:
        nonlocal now, looks
        looks += 1
        now += 0.02
        guard.turn = now - 0.01  # another turn each time
        return now

    guard = Guard(0.02, lambda *facts: told.append(facts), clock)
    guard.start()
    eventually(lambda: looks > 20)
    guard.stop()
    assert not told


def test_a_loop_that_waits_is_not_told_of(told: Told, eventually: Eventually) -> None:
    """It looks at the loop of each turn, and at none while the loop waits for something."""
    guard = Guard(0.02, lambda *facts: told.append(facts))
    turns: list[float] = []

    async def run() -> None:
        guard.start()
        await asyncio.sleep(0)
        for _ in range(3):
            turns.append(guard.turn)
            await asyncio.sleep(0.05)
        assert not told
        eventually(lambda: told)  # it holds the loop

    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(GuardedSelector(guard))
    ) as runner:
        runner.run(run())
    guard.stop()
    assert 0 < turns[0] < turns[1] < turns[2]
    [(seconds, _, stack)] = told
    assert seconds >= 0.02 and "in run" in stack


def test_the_guard_rests_while_the_loop_waits(eventually: Eventually) -> None:
    """It wakes once in `seconds`, not more often."""
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    guard = Guard(0.05, lambda *facts: None, clock)
    guard.start()
    eventually(lambda: len(looks) > 5)
    guard.stop()
    assert looks[5] - looks[0] >= 5 * 0.05


def test_a_guard_that_was_stopped_does_not_begin() -> None:
    guard = Guard(0.01, lambda *facts: None)
    guard.stop()
    guard.start()
    assert guard._thread is None


def test_everything_that_stands_still_blames_nobody(told: Told, eventually: Eventually) -> None:
    """After SIGSTOP, the watch itself is late."""
    now = [0.0]
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        now[0] += 5.0
        return now[0]

    guard = Guard(0.02, lambda *facts: told.append(facts), clock)
    guard.turn = 1.0
    guard.start()
    eventually(lambda: looks > 10)
    guard.stop()
    assert not told


def held_by(*modules: str) -> tuple[str, str]:
    """What holds a thread whose frames are of these modules, the outermost first; each function
    is named after its module."""

    def inner() -> tuple[str, str]:
        frame = sys._getframe(1)
        outermost: Any = frame
        for _ in modules[1:]:
            outermost = outermost.f_back
        found: list[Any] = [frame]
        while found[-1] is not outermost:
            found.append(found[-1].f_back)
        return holder(_Frame.chain(found))

    call: Any = inner
    for module in reversed(modules):
        name = module.replace(".", "_")
        space: dict[str, Any] = {"__name__": module, "inner": call}
        exec(f"def {name}():\n    return inner()", space)
        call = space[name]
    result: tuple[str, str] = call()
    return result


class _Frame:
    """A frame whose `f_back` ends where the chain does."""

    def __init__(self, frame: Any, back: Any) -> None:
        self.f_back = back
        self.f_code, self.f_lineno = frame.f_code, frame.f_lineno
        self.f_globals, self.f_locals = frame.f_globals, {}

    @classmethod
    def chain(cls, frames: list[Any]) -> Any:
        back = None
        for frame in reversed(frames):
            back = cls(frame, back)
        return back


def test_the_function_that_flowkit_called_is_the_holder() -> None:
    start = ("__main__", "flowkit.launchers.nursery", "multiprocessing.process", "asyncio.events")
    name, stack = held_by(*start, "flowkit.runtime.inlet", "users.nodes", "asyncio.x", "lib.http")
    assert name == "users_nodes"
    assert [line.split()[-1] for line in stack.splitlines()] == [
        "users_nodes", "asyncio_x", "lib_http",
    ]  # fmt: skip


def test_flowkit_alone() -> None:
    name, stack = held_by("__main__", "asyncio.events", "flowkit.runtime.runner", "zmq.socket")
    assert name == "__main__" and "flowkit_runtime_runner" in stack


def test_tasks_that_wait_alike_are_counted() -> None:
    async def deep(event: asyncio.Event) -> None:
        await event.wait()

    async def handler(event: asyncio.Event) -> None:
        await deep(event)

    async def main() -> str:
        event = asyncio.Event()
        tasks = [asyncio.create_task(handler(event), name="on_x") for _ in range(3)]
        tasks.append(asyncio.create_task(deep(event), name="other"))
        await asyncio.sleep(0)
        text = tasks_text()
        event.set()
        await asyncio.gather(*tasks)
        return text

    text = asyncio.run(main())
    assert "3 tasks on_x wait (most recent call last):" in text
    assert "Task other waits (most recent call last):" in text
    assert "in handler\n    await deep(event)" in text and "in deep" in text
    assert text.index("in handler") < text.index("in deep")


ALONE = """
import time
from flowkit import channels
from flowkit.runtime.child import trust_the_only_thread
from flowkit.runtime.stacks import Guard

told = []
trust_the_only_thread()
guard = Guard(0.01, lambda *facts: told.append(facts))
guard.turn = time.monotonic()
guard.start()
while not told:
    time.sleep(0.001)
print(channels._kind.__name__)
guard.stop()
"""


def test_the_guard_makes_no_send_look_at_its_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["Messages"]


def test_no_loop_and_no_tasks() -> None:
    assert tasks_text() == ""
