"""The machine that is measured, in words."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import tornado
import zmq

from flowkit import __version__

BUSY = 0.25
"""Of the processors: with a higher load average something else is at work here."""


@dataclass(frozen=True, slots=True)
class Machine:
    """`facts` are for people, in the order in which they are shown."""

    facts: dict[str, str]
    cores: int
    load: tuple[float, float, float]
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """What makes figures of this machine doubtful; empty if nothing does."""
        if self.load[0] <= BUSY * self.cores:
            return ""
        return (
            f"the machine is busy (load average {self.load[0]:.1f} on {self.cores} cores): figures "
            "are too low and scattered, ratios less so"
        )


def look() -> Machine:
    """The machine as it is now."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    load = os.getloadavg()
    governor = _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    facts = {
        "flowkit": __version__,
        "processor": f"{_processor()}, {cores} core{'s' if cores != 1 else ''}",
        "governor": governor or "not known",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": (
            f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, tornado {tornado.version}, "
            f"msgspec {msgspec.__version__}"
        ),
        "load average": " ".join(f"{each:.2f}" for each in load),
    }
    return Machine(facts, cores, load)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def _line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
