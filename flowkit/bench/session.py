"""Runs rows: each contestant in turn, each round in a process group of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flowkit
from flowkit.bench.results import Contestant, Figures, Outcome, Row, RowResult, next_count

SHORT = 0.3
"""Seconds of a round for which the first trials of the rows are meant; shorter ones begin with
fewer messages."""

TRIALS = 4
"""Trials at most, to find out how many messages make a round."""

TAIL = 12
"""Lines of a failed round's last words that are shown."""

ROOT = str(Path(flowkit.__file__).parents[1])

Progress = Callable[[Row, Contestant, str], None]
"""Told what is run next: the row, the contestant, and which of its rounds."""


class RoundFailed(Exception):
    """A contestant has not done what it should; says why."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is measured: `seconds` a round should take, and `rounds` of each contestant."""

    seconds: float
    rounds: int


def run_row(row: Row, pace: Pace, progress: Progress) -> RowResult:
    """Run every contestant of `row` in turn, A B A B. What fails is in the result."""
    result = RowResult(row, [Outcome(contestant) for contestant in row.contestants])
    for outcome in result.outcomes:
        needs = outcome.contestant.needs
        if needs and importlib.util.find_spec(needs) is None:
            outcome.skipped = f"{needs} is not installed"
            continue
        if outcome.contestant.first:
            progress(row, outcome.contestant, "trial")
            with _noting(outcome):
                _calibrate(outcome, pace.seconds)
    for number in range(pace.rounds):
        for outcome in result.outcomes:
            contestant = outcome.contestant
            rounds = min(pace.rounds, contestant.rounds or pace.rounds)
            if outcome.failure or outcome.skipped or number >= rounds:
                continue
            progress(row, contestant, f"round {number + 1}/{rounds}")
            outcome.rounds.append(None)
            with _noting(outcome):
                outcome.rounds[-1] = run_round(contestant, **_arguments(outcome, pace.seconds))
    return result


@contextmanager
def _noting(outcome: Outcome) -> Iterator[None]:
    """A contestant that fails is not run again; the others go on."""
    try:
        yield
    except RoundFailed as error:
        outcome.failure = str(error)


def _calibrate(outcome: Outcome, target: float) -> None:
    """Find how many messages take `target` seconds."""
    count = max(2, round(outcome.contestant.first * min(1.0, target / SHORT)))
    for _ in range(TRIALS):
        found = run_round(outcome.contestant, count=count)
        outcome.rate = found["rate"]
        count, good = next_count(count, found["seconds"], target)
        if good:
            break
    outcome.count = count


def _arguments(outcome: Outcome, seconds: float) -> dict[str, Any]:
    contestant = outcome.contestant
    if not contestant.first:
        return {}
    if not contestant.load:
        return {"count": outcome.count}
    rate = outcome.rate * contestant.load
    return {"count": max(2, round(rate * seconds)), "rate": rate}


def run_round(contestant: Contestant, **arguments: Any) -> Figures:
    """Run `contestant` once, in a process group and a directory of its own. Raises RoundFailed.

    Nothing of it is left when this returns, or raises.
    """
    # Sockets are in here, and their paths may be 107 bytes long: not below a long TMPDIR.
    folder = tempfile.mkdtemp(prefix="fkb-", dir=_short_directory())
    task = {"run": contestant.run, "arguments": {**contestant.settings, **arguments}}
    environment = {
        **os.environ,
        # -P: what lies in the current directory must not stand before what is measured.
        "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")])),
        "FLOWKIT_RUN_DIR": f"{folder}/run",
        "FLOWKIT_STATE_DIR": f"{folder}/state",
    }
    try:
        with open(f"{folder}/words", "w+b") as words:
            code, answer = _in_group(
                [sys.executable, "-P", "-m", "flowkit.bench.round", json.dumps(task)],
                folder,
                environment,
                words,
                contestant.limit,
            )
            words.seek(0)
            last = words.read().decode("utf-8", "backslashreplace").strip().splitlines()[-TAIL:]
        if code != 0:
            raise RoundFailed("\n".join([_how(code, contestant.limit), *last]))
        found: Figures = json.loads(answer)
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_group(
    command: Sequence[str], folder: str, environment: dict[str, str], words: Any, limit: float
) -> tuple[int | None, bytes]:
    """The exit code of `command`, None if it was killed for taking too long, and what it wrote."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=words,
        start_new_session=True,
    ) as process:
        try:
            answer, _ = process.communicate(timeout=limit)
            return process.returncode, answer
        except subprocess.TimeoutExpired:
            return None, b""
        finally:
            # Also on Ctrl-C. The leader of the group is not yet collected, or the group is empty.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()  # `Popen` itself does not wait for long after Ctrl-C


def _how(code: int | None, limit: float) -> str:
    if code is None:
        return f"has not ended after {limit:g} s"
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"


def _short_directory() -> str | None:
    folder = tempfile.gettempdir()
    return folder if len(folder) < 40 or not os.access("/tmp", os.W_OK) else "/tmp"
