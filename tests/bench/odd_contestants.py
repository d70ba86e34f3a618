"""Contestants that do what a contestant should not; imported by the rounds of `test_session`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from flowkit.bench.tally import Tally, figures


def fine() -> dict[str, float]:
    return {"rate": 1.0}


also_fine = fine


def talks() -> dict[str, float]:
    print("{}", flush=True)
    os.system("echo '{}'")
    return {"rate": 2.0}


def raises() -> dict[str, float]:
    raise ValueError("this contestant cannot")


def dies() -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def lies() -> dict[str, float]:
    return figures([Tally(99, 0.0, 1.0)], 100)


def hangs(pids: str) -> dict[str, float]:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}\n")
    child.wait()
    return {}
