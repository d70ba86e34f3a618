"""Numbers in memory that processes share, and the lock of a queue's cursor.

A queue has a small file, mapped by everybody who uses it: how many items the broker has got so
far (`TOTAL`, written by the broker alone), and how many have been taken (`TAKEN`, the cursor,
written under the lock). Both only grow.

The lock is one of multiprocessing's, and such a lock stays locked if its owner is killed. So each
consumer says in a cell of its own that it is about to lock, and that it has unlocked; whoever
waits for the lock too long looks whether one of those who said so is dead, and unlocks for it.
What is done under the lock is one store of one number, so it was done or it was not.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

TOTAL, TAKEN = 0, 1
_FIRST_SLOT = 8
_SLOTS = 1000
SIZE = 8 * (_FIRST_SLOT + 2 * _SLOTS)
"""Bytes of the file of a queue."""

LONG = 0.2
"""Seconds after which somebody is suspected to have died with the lock: what is done under it takes
less than a microsecond, but a machine can be busy."""


def map_cells(descriptor: int, size: int) -> memoryview:
    """The numbers in a file, 64 bits each."""
    return memoryview(mmap.mmap(descriptor, size)).cast("Q")


class Cursor:
    """The cells of the queue whose file is `path`, and the lock (a `multiprocessing.Lock`).

    To take an item: ``cells[flag] = 1``, lock, look and move ``cells[TAKEN]``, unlock,
    ``cells[flag] = 0``: see `flowkit.mp.reader`. `flag` is 0 until `enter` has found one.
    """

    def __init__(self, path: str, lock: Any) -> None:
        self.path = path
        self.acquire, self.release = lock._semlock.acquire, lock._semlock.release
        self.flag = 0
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.cells = map_cells(descriptor, SIZE)
        finally:
            os.close(descriptor)

    @staticmethod
    def create(path: str) -> None:
        """Make the file. Everything in it is 0."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, SIZE)
        finally:
            os.close(descriptor)

    def enter(self) -> int:
        """Find a cell for this process: its `flag`. Raises RuntimeError if there is none left."""
        cells, ours = self.cells, os.getpid()
        with _Alone(self.path):
            for owner in range(_FIRST_SLOT, _FIRST_SLOT + 2 * _SLOTS, 2):
                if not cells[owner] or (not cells[owner + 1] and _is_dead(cells[owner])):
                    cells[owner], cells[owner + 1] = ours, 0
                    self.flag = owner + 1
                    return self.flag
        raise RuntimeError(f"{_SLOTS} processes take items from this queue already")

    def leave(self) -> None:
        """Give the cell back, unless it is that of a parent, and the memory."""
        if self.flag and self.cells[self.flag - 1] == os.getpid():
            self.cells[self.flag - 1] = 0
        self.flag = 0
        self.cells.release()

    def lock(self) -> None:
        """Get the lock when it was not free. The flag must be up."""
        while not self.acquire(True, LONG):
            with _Alone(self.path):
                self._unlock_for_the_dead()

    def _unlock_for_the_dead(self) -> None:
        cells = self.cells
        for owner in range(_FIRST_SLOT, _FIRST_SLOT + 2 * _SLOTS, 2):
            if cells[owner + 1] and _is_dead(cells[owner]):
                cells[owner + 1] = 0
                self.acquire(False)  # free, if the dead one had only waited for it
                self.release()
                return


class _Alone:
    """A lock that ends with its owner: for what is rare, and may be slow."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _is_dead(pid: int) -> bool:
    """Whether there is no such process, or its parent has only not looked yet."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
