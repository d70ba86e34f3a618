"""What the system says of the processes of replicas: processor time and memory."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

MEMORY_AGE = 2.0
"""Seconds that a figure of memory is good for: the system adds up all pages for it."""


class Processes:
    """Looks at processes by pid, and remembers them between looks."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._memory: dict[int, tuple[float, int | None, str]] = {}

    def keep(self, pids: Iterable[int]) -> None:
        """Forget all others."""
        wanted = set(pids)
        for known in (self._known, self._memory):
            for pid in set(known) - wanted:
                del known[pid]

    def cpu_seconds(self, pid: int) -> float | None:
        """Processor time that it has used so far; None if it is gone."""
        try:
            times = self._process(pid).cpu_times()
        except (psutil.Error, OSError):
            return None
        return float(times.user + times.system)

    def memory(self, pid: int, now: float) -> tuple[int | None, str]:
        """Bytes it occupies and how they were counted, "pss" or "rss"; None if it is gone.

        Replicas are forked from one process and share most of what they have imported: where the
        system says so, each is charged its part of that (pss).
        """
        known = self._memory.get(pid)
        if known is None or now - known[0] >= MEMORY_AGE:
            known = self._memory[pid] = (now, *self._look(pid))
        return known[1:]

    def _look(self, pid: int) -> tuple[int | None, str]:
        try:
            process = self._process(pid)
            try:
                pss = getattr(process.memory_full_info(), "pss", 0)
            except psutil.AccessDenied:
                pss = 0
            if pss:
                return int(pss), "pss"
            return int(process.memory_info().rss), "rss"
        except (psutil.Error, OSError):
            return None, ""

    def _process(self, pid: int) -> psutil.Process:
        process = self._known.get(pid)
        if process is None:
            process = self._known[pid] = psutil.Process(pid)
        return process
