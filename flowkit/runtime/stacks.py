"""Where a replica is: the stacks of its tasks, and of the code that holds its loop."""

from __future__ import annotations

import asyncio
import linecache
import logging
import selectors
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from flowkit.clock import Clock, monotonic

log = logging.getLogger("flowkit.replica")

LATE = 0.5
"""Seconds by which the guard may wake late before it says nothing: everything stood still."""

AFTER = 0.01
"""Seconds after a turn has become too long at which the guard looks at it."""

GUARD = "flowkit guard"
"""The name of the guard's thread."""

OURS = {"flowkit.runtime", "flowkit.launchers", "flowkit.transport"}
OURS |= {"asyncio", "multiprocessing", "tornado", "zmq"}
"""Modules whose frames say nothing to the author of a node."""


def task_stack(task: asyncio.Task[Any]) -> str:
    """Where a suspended task waits, down through what it awaits; asyncio shows the top alone."""
    entries: list[traceback.FrameSummary] = []
    waits: Any = task.get_coro()
    while waits is not None:
        kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(waits, f"{kind}_frame")), None)
        if kind is None:
            break
        frame = getattr(waits, f"{kind}_frame")
        if frame is not None and not _is_ours(frame):
            entries += traceback.extract_stack(frame, 1)
        waits = getattr(waits, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return "".join(traceback.format_list(entries)).rstrip()


def tasks_text() -> str:
    """Where the tasks of the running loop wait that run code of the node, for people.

    Empty if no loop runs. Safe to call anywhere, also from a signal's handler.
    """
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop, or one that makes tasks faster than they can be listed
        return ""
    found = Counter((task.get_name(), task_stack(task)) for task in tasks)
    parts = []
    for (name, stack), count in sorted(found.items()):
        who = f"Task {name} waits" if count == 1 else f"{count:,} tasks {name} wait"
        if stack:
            parts.append(f"{who} (most recent call last):\n{stack}\n")
    return "\n".join(parts or ["No task waits in code of the node.\n"])


def _is_ours(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__"))
    return any(module == one or module.startswith(f"{one}.") for one in OURS)


def holder(frame: FrameType | None) -> tuple[str, str]:
    """What holds a thread that is at `frame`: the function that flowkit has called, and the stack
    from there on, the most recent call last."""
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    start = 0
    ours = False
    for number, one in enumerate(frames):
        if _is_ours(one):
            ours = True
            start = number + 1
        elif not ours:
            start = number + 1  # what has started the process
        else:
            break
    mine = frames[start:]
    if not mine:  # flowkit itself
        mine = frames[-8:]
    entries = traceback.StackSummary.extract(
        ((one, one.f_lineno) for one in mine), capture_locals=False
    )
    return mine[0].f_code.co_qualname if mine else "?", "".join(entries.format()).rstrip()


class Guard:
    """Says, from a thread of its own, what has held the loop for more than `seconds`.

    `turn` is when the loop has begun its present turn, 0 while it waits: `GuardedSelector` notes
    it, 0.3 us a turn. The thread looks once in `seconds`, and again when a turn that it has met
    would be too long; so a replica that rests wakes for it once a second, which takes 0.1 ms.
    `tell` gets the seconds, the function and its stack, once for each turn; it runs on the thread.

    `faulthandler.dump_traceback_later` would do it too if the loop armed it again at every turn.
    But each arming waits, in the loop, until the thread of the one before has ended (0.1 ms; 2 ms
    on a busy machine); what comes out has no level, no time and no name; and there is one for the
    process, which belongs to the node. What it would show in addition is a call into C that does
    not let go of the interpreter: that is shown by the watchdog, and by SIGUSR1.
    """

    def __init__(
        self, seconds: float, tell: Callable[[float, str, str], None], clock: Clock = monotonic
    ) -> None:
        self.seconds = seconds
        self.clock = clock
        self.turn = 0.0
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._watched = 0
        self._over = threading.Lock()
        self._over.acquire()

    def start(self) -> None:
        """Begin to watch the thread that calls this. Once; not after `stop`."""
        if self._thread is None and self._over.locked():
            self._watched = threading.get_ident()
            self._thread = threading.Thread(target=self._watch, name=GUARD, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Twice is fine."""
        if self._over.locked():
            self._over.release()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        told = 0.0
        awake = last = self.clock()
        wait = self.seconds
        while not self._over.acquire(timeout=wait):
            now = self.clock()
            if now - last > wait + LATE:
                awake = now  # everything stood still: what was before is nobody's fault
            last = now
            turn, wait = self.turn, self.seconds
            if not turn or turn == told:
                continue
            held = now - max(turn, awake)
            if held < self.seconds:
                wait = self.seconds - held + AFTER
                continue
            frame = sys._current_frames().get(self._watched)
            if frame is None or turn != self.turn:
                continue
            told = turn
            linecache.checkcache()
            self._tell(held, *holder(frame))
        self._over.release()


class GuardedSelector(selectors.DefaultSelector):
    """What a loop waits with; notes in `guard` when it does."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        guard = self._guard
        guard.turn = 0.0
        try:
            return super().select(timeout)
        finally:
            guard.turn = guard.clock()


def warn_of_standstill(
    name: str, seconds: float, knobs: Sequence[str], stacks: Sequence[Sequence[str]]
) -> None:
    """Say that a replica has input and finishes nothing: what may be turned, and where it waits."""
    log.warning(
        "%s has had messages in hand for %g s and finished none%s\n%s",
        name,
        seconds,
        "".join(f"; {knob}" for knob in knobs),
        "\n".join(dict.fromkeys(stack for each in stacks for stack in each)),
    )
