"""CPython's own tests of queues and pipes pass with flowkit's classes put in their place."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("cpython.py")

LEAST = 100
"""So many of the tests are for every start method; some only for one."""


def run(method: str, whose: str, *names: str) -> dict[str, str]:
    """The outcome of each test."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), method, whose, *names],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)  # shown if the test fails
    assert isinstance(outcomes, dict)
    return outcomes


@pytest.mark.slow
@pytest.mark.timeout(1900)
@pytest.mark.skipif(
    importlib.util.find_spec("test._test_multiprocessing") is None,
    reason="this Python comes without its tests; on Debian they are in libpython3-testsuite",
)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_passes_with_the_originals_passes_with_ours(method: str) -> None:
    ours = run(method, "ours")
    failed = [name for name, outcome in ours.items() if outcome == "failed"]
    # Some of them depend on how fast the machine is just now: so those that failed, once more.
    again = run(method, "ours", *failed) if failed else {}
    theirs = run(method, "theirs", *failed) if failed else {}
    worse = [name for name in failed if again[name] == "failed" and theirs.get(name) == "passed"]
    assert not worse
    assert sum(outcome == "passed" for outcome in ours.values()) >= LEAST
