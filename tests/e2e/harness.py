"""Runs real projects for tests: starts `flowkit up`, hurts its processes, reads what came out.

A `Place` is a directory for one test: topologies, results, run and state directories. `Place.up`
starts a project as a process, a `Run`; `Run.wait` gives a `Result`. A place that is closed looks
for what was left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowkit.runtime.shared import HANDLED, SharedRows
from flowkit.store import Store
from tests.conftest import Deadline, Eventually

ROOT = Path(__file__).parents[2]
NODES = "tests.e2e.nodes:"
PATIENCE = 60.0
"""Seconds that a run may take before a test gives it up; a busy machine is not a bug."""

eventually = Eventually()

# Without byte code, every process would compile all that it imports.
_UNWANTED = ("LC_", "LANG", "NO_COLOR", "FORCE_COLOR", "TERM")
_UNWANTED += ("PYTHONIOENCODING", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE")


def environment(place: Path, **more: str) -> dict[str, str]:
    """An environment without wishes about language or colour, with all directories in `place`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_UNWANTED)}
    return {
        **clean,
        "FLOWKIT_RUN_DIR": str(place / "r"),
        "FLOWKIT_STATE_DIR": str(place / "s"),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "LANG": "C.UTF-8",
        **more,
    }


def node(use: str, **facts: Any) -> dict[str, Any]:
    """A node of a topology; `settings` become its `with`."""
    settings = facts.pop("settings", None)
    return {"use": NODES + use, **({"with": settings} if settings else {}), **facts}


def link(ends: str, **facts: Any) -> dict[str, Any]:
    """A link of a topology: ``"read.numbers -> work.numbers"``."""
    source, target = ends.split(" -> ")
    return {"from": source, "to": target, **facts}


# ---------------------------------------------------------------------------- processes


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
        return [int(child) for text in texts for child in text.split()]
    except OSError:
        try:
            return [child.pid for child in psutil.Process(pid).children()]
        except psutil.Error:
            return []


def title_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline()).strip()
    except psutil.Error:
        return ""


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# ---------------------------------------------------------------------------- results


@dataclass
class Result:
    """What became of a run."""

    code: int
    out: str
    err: str
    report: dict[str, Any] = field(default_factory=dict)

    def link(self, ends: str) -> dict[str, Any]:
        """The report of the link ``"read.numbers -> work.numbers"``."""
        source, target = ends.split(" -> ")
        (found,) = (
            entry
            for entry in self.report["links"]
            if (entry["from"], entry["to"]) == (source, target)
        )
        return found  # type: ignore[no-any-return]

    def replica(self, name: str) -> dict[str, Any]:
        """The report of the replica "work.0"."""
        (found,) = (
            entry for entry in self.report["nodes"] if f"{entry['node']}.{entry['replica']}" == name
        )
        return found  # type: ignore[no-any-return]

    def restarts(self, name: str) -> int:
        """Restarts of all replicas of a node."""
        return sum(entry["restarts"] for entry in self.report["nodes"] if entry["node"] == name)

    def total(self, figure: str) -> int:
        """The sum of a figure over all links."""
        return sum(entry[figure] for entry in self.report["links"])

    def printed(self, name: str) -> list[str]:
        """The lines that the replica `name` has printed."""
        pattern = re.compile(rf"^{re.escape(name)} +\| (.*)$")
        return [found[1] for line in self.out.splitlines() if (found := pattern.match(line))]

    def check_books(self) -> None:
        """Whatever happened, the books add up."""
        for entry in self.report["links"]:
            given_up = sum(entry["dropped"].values()) + entry["dead_lettered"]
            settled = entry["done"] + given_up + entry["superseded"] + entry["in_flight"]
            assert entry["sent"] == settled, entry
            assert min(value for value in entry.values() if isinstance(value, int)) >= 0, entry

    def check_drained(self) -> None:
        """It ended well: nothing in flight, nothing given up, every replica done."""
        assert self.code == 0, self.text
        assert (self.report["status"], self.report["exit"]) == ("drained", 0), self.text
        self.check_books()
        for entry in self.report["links"]:
            assert entry["in_flight"] == entry["dead_lettered"] == 0, entry
            assert not entry["dropped"], entry
        assert {entry["state"] for entry in self.report["nodes"]} == {"done"}
        assert "Traceback" not in self.out + self.err, self.text

    @property
    def text(self) -> str:
        return f"exit {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


def complaint(result: Result) -> str:
    """What `up` said when it refused to run; fails if it did not, or did not say it well."""
    assert result.code == 2, result.text
    assert "Traceback" not in result.out + result.err, result.text
    assert result.err.startswith("error: "), result.text
    return result.err


# ---------------------------------------------------------------------------- runs


class Run:
    """A project that runs as a process of its own, in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        name: str,
        report: Path | None,
        stdout: int | None = None,
    ) -> None:
        self.name = name
        self.report_path = report
        self.environment = env
        self._out, self._err = cwd / f"{name}.out", cwd / f"{name}.err"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="backslashreplace")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="backslashreplace")

    # Its processes.

    @property
    def nursery(self) -> int:
        """The process that the replicas are children of; 0 if there is none."""
        for pid in children_of(self.process.pid):
            if title_of(pid).startswith("flowkit: "):
                return pid
        return 0

    def replicas(self) -> dict[str, int]:
        """The pid of each replica that runs, by the name in its title."""
        found = {}
        for pid in children_of(self.nursery or self.process.pid):
            _, slash, name = title_of(pid).partition("/")
            if slash:
                found[name] = pid
        return found

    def pid(self, name: str, other_than: int = 0) -> int:
        """The pid of a replica, once it has one (`other_than`: one that has a new one)."""
        return self.until(
            lambda: (pid := self.replicas().get(name, 0)) != other_than and pid,
        )

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until `condition` holds while the project runs; returns its value."""
        deadline = Deadline(seconds)
        while not (value := condition()):
            if self.process.poll() is not None:
                pytest.fail(f"it ended too early: {self.result().text}")
            if deadline.passed:
                pytest.fail(f"not true within {seconds:g} s\n{self.result().text}")
            time.sleep(0.01)
        return value

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has printed `text`."""
        self.until(lambda: self.out.count(text) >= times)

    def ready(self) -> None:
        """Wait until all replicas are."""
        self.until(lambda: re.search(r"^supervisor +\| .* ready in ", self.out, re.MULTILINE))

    def handled(self, name: str) -> int:
        """How many messages the incarnation of a replica that runs now has handled."""
        return self._rows(name, lambda rows: int(rows.gauges[HANDLED]))

    def sent(self, name: str) -> int:
        """How many messages the incarnation of a replica that runs now has sent."""
        return self._rows(name, lambda rows: sum(book.read().sent for book in rows.books))

    @property
    def directory(self) -> Path | None:
        """Its run directory: the one whose lock names it."""
        for path in Path(self.environment["FLOWKIT_RUN_DIR"]).glob("*/lock"):
            with contextlib.suppress(OSError):
                if path.read_text().strip() == str(self.process.pid):
                    return path.parent
        return None

    def _rows(self, name: str, look: Callable[[SharedRows], int]) -> int:
        """Look at the counters that a replica shares with its supervisor."""
        directory = self.directory
        for path in directory.glob(f"{name}#*.rows") if directory else ():
            try:
                rows = SharedRows(path)
            except (OSError, ValueError, OverflowError):  # it has just died, or is being born
                continue
            try:
                return look(rows)
            finally:
                rows.close()
        return 0

    # What is done to it.

    def kill(self, *names: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to replicas, as fast as possible one after the other; their pids."""
        pids = [self.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, number)
        return pids

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C: SIGINT to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """What a service manager does: SIGTERM to the main process."""
        self.process.terminate()

    # Its end.

    def wait(self, seconds: float = PATIENCE, books: bool = True) -> Result:
        """Wait for its end; its `books` must add up."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            text = self.result().text
            self.end()
            pytest.fail(f"still running after {seconds:g} s\n{text}")
        result = self.result()
        if result.report and books:
            result.check_books()
        return result

    def result(self) -> Result:
        """What there is of it now."""
        report = {}
        if self.report_path is not None and self.report_path.exists():
            report = json.loads(self.report_path.read_text(encoding="utf-8"))
        code = self.process.returncode
        return Result(code if code is not None else 999, self.out, self.err, report)

    def end(self) -> None:
        """Kill it, if it runs: its children have to end by themselves."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Place:
    """A directory for one test, with a short path, since sockets go into it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fk", dir="/tmp"))
        self.runs: list[Run] = []

    def file(self, name: str) -> str:
        """The path of a file that a node may use."""
        return str(self.path / name)

    def touch(self, name: str) -> None:
        """Make the file that a node waits for."""
        (self.path / name).touch()

    def topology(
        self,
        nodes: Mapping[str, Any],
        links: Iterable[Any],
        project: str = "trial",
        folder: str = "",
        **more: Any,
    ) -> Path:
        """Write a topology file; JSON is YAML."""
        where = self.path / folder
        where.mkdir(exist_ok=True)
        path = where / f"{project}.yaml"
        content = {"flowkit": 1, "project": project, "nodes": nodes, "links": list(links), **more}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return path

    def up(
        self,
        topology: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
    ) -> Run:
        """Start `flowkit up`."""
        name = f"run{len(self.runs)}"
        report = self.path / f"{name}.json"
        command = [sys.executable, "-m", "flowkit", "up", str(topology)]
        command += ["--report", str(report), *options]
        where = environment(self.path, **(env or {}))
        run = Run(command, cwd or self.path, where, name, report, stdout)
        self.runs.append(run)
        return run

    def position(self, node: str = "read", replica: int = 0) -> Any:
        """The position that is stored for a source; None if there is none."""
        for path in (self.path / "s").glob("*/flowkit.db"):
            store = Store(str(path))
            try:
                return store.position(node, replica)
            finally:
                store.close()
        return None

    # The oracle.

    def tally(self, name: str = "tally") -> list[int]:
        """How often all replicas of a `Tally` have seen 0, 1, 2, ..."""
        seen: list[int] = []
        for path in self.path.glob(f"{name}.[0-9]*"):
            part = path.read_bytes()
            seen += [0] * (len(part) - len(seen))
            for number, count in enumerate(part):
                if count:
                    seen[number] += count
        return seen

    def journal(self, name: str = "journal") -> tuple[Counter[int], dict[str, int]]:
        """What a `Journal` holds: how often each number, and the number of each id."""
        counts: Counter[int] = Counter()
        ids: dict[str, int] = {}
        for line in (self.path / name).read_text().splitlines():
            number, message_id = line.split()
            counts[int(number)] += 1
            assert ids.setdefault(message_id, int(number)) == int(number)
        return counts, ids

    def check_exact(self, count: int, name: str = "tally") -> None:
        """Every number below `count` was seen once, and nothing else was."""
        seen = self.tally(name)
        lost = [number for number in range(count) if number >= len(seen) or not seen[number]]
        doubled = [number for number, times in enumerate(seen) if times > 1]
        assert not lost, f"{len(lost)} of {count} lost, from {lost[0]} to {lost[-1]}"
        assert not doubled, f"{len(doubled)} of {count} doubled, from {doubled[0]}"
        assert len(seen) == count

    # The end.

    def leftovers(self) -> list[str]:
        """What runs have left in their run directories, other than the root."""
        return sorted(str(path.relative_to(self.path)) for path in (self.path / "r").glob("*/*"))

    def close(self) -> None:
        """Check that nothing stays, remove the directory; kill what a failed test has left."""
        ended = all(run.process.poll() is not None for run in self.runs)
        for run in self.runs:
            run.end()
        left = self.leftovers()
        shutil.rmtree(self.path, ignore_errors=True)
        if ended:
            assert not left, f"left in the run directory: {left}"
