"""What a process takes: memory and processor time, as the system tells it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def memory(pid: int) -> int:
    """Bytes of process `pid`, its share of what it shares with others included (PSS).

    Where the system does not tell (it is not Linux), what it shares with nobody (USS).
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except FileNotFoundError:
        return int(psutil.Process(pid).memory_full_info().uss)
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss"))


def processor_time(pids: Iterable[int]) -> float:
    """Seconds of a processor that the processes `pids` have used."""
    return sum(_processor_time(pid) for pid in pids)


def _processor_time(pid: int) -> float:
    """To the nanosecond where the system says so: an idle process uses less than a clock tick."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9
    except (FileNotFoundError, NotADirectoryError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
