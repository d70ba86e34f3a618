"""Random projects and random harm, all from one seed.

`Scenario(seed)` is a project of three to six nodes and what will be done to it; `suffer` does it to
a run; `judge` says whether the result is right. The same seed gives the same project and the same
choices; when they strike depends on the machine.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.e2e.harness import Place, Result, Run, link, node

RESTART = {"max": "unlimited", "backoff": "20ms", "backoff_max": "100ms"}

MANY, FEW = 20_000, 3_000
"""Numbers of each source; few if they have to go through a window of one message at a time."""


class Scenario:
    """A project, its victims, and the random choices of the harm."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = chance = random.Random(seed)
        self.sources = chance.choice([1, 1, 2])
        self.shape = chance.choice(["pool", "pools", "diamond", "chain"])
        self.sink = chance.choice(["one", "keyed", "journal"])
        self.transport = chance.choice(["auto", "auto", "tcp"])
        self.kills_sources = self.sink == "journal" and chance.random() < 0.5
        self.harms = 0
        self.pause = 0.25
        """Seconds between two harms, at most."""
        self.stages = {"pool": 1, "pools": 2, "diamond": 2, "chain": 3}[self.shape]
        self.replicas = [chance.choice([1, 2, 3]) for _ in range(self.stages)]
        self.busy = [chance.choice([0, 5, 50]) for _ in range(self.stages)]
        self.windows = [chance.choice([1, 100, 4096, 65536]) for _ in range(6)]
        # The journals of durable links cost time on the disk, so there are fewer numbers then.
        self.durable = [chance.random() < 0.5 for _ in range(6)]
        if chance.random() < 0.6:
            self.durable = [False] * 6
        self.count = FEW if 1 in self.windows or any(self.durable) else MANY

    def __repr__(self) -> str:
        return (
            f"seed {self.seed}: {self.sources} sources, {self.shape} of {self.replicas} workers, "
            f"{self.sink}, {self.transport}, windows {self.windows}, durable {self.durable}, "
            f"sources {'' if self.kills_sources else 'not '}killed"
        )

    @property
    def ways(self) -> int:
        """On how many ways each number arrives at the end."""
        return 2 if self.shape == "diamond" else 1

    def topology(self, place: Place) -> Path:
        # What a journal keeps has to be read by the judge, so it does not get without end.
        use = "Held" if self.sink == "journal" else "Numbers"
        settings = {"count": self.count, "until": place.file("stop")}
        sources = [f"read{number}" for number in range(self.sources)]
        nodes: dict[str, Any] = {
            name: node(use, settings=settings, restart=RESTART) for name in sources
        }
        links: list[Any] = []
        ends = [f"{name}.numbers" for name in sources]
        work = [f"work{number}" for number in range(self.stages)]
        for name, replicas, busy in zip(work, self.replicas, self.busy, strict=True):
            nodes[name] = node("Work", replicas=replicas, restart=RESTART, settings={"busy": busy})
            links += [link(f"{end} -> {name}.numbers") for end in ends]
            if self.shape != "diamond":
                ends = [f"{name}.results"]
        if self.shape == "diamond":
            ends = [f"{name}.results" for name in work]
        if self.sink == "journal":
            nodes["sink"] = node(
                "Journal", restart=RESTART, settings={"path": place.file("journal")}
            )
        else:
            replicas = 2 if self.sink == "keyed" else 1
            nodes["sink"] = node("Tally", replicas=replicas, settings={"path": place.file("tally")})
        route = {"route": "key"} if self.sink == "keyed" else {}
        links += [link(f"{end} -> sink.numbers", **route) for end in ends]
        for each, window, durable in zip(links, self.windows, self.durable, strict=False):
            each.update(window=window, transport=self.transport, durable=durable)
        return place.topology(nodes, links, project=f"chaos{self.seed}")

    def victims(self, run: Run) -> dict[str, int]:
        """The replicas that may be hurt, and their pids."""
        kinds = ["work"]
        kinds += ["sink"] if self.sink == "journal" else []
        kinds += ["read"] if self.kills_sources else []
        return {name: pid for name, pid in run.replicas().items() if name.startswith(tuple(kinds))}

    def suffer(self, run: Run, seconds: float) -> None:
        """Hurt `run` for a while: kills of one and of many, and stops."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            pause = now + self.chance.uniform(0.0, self.pause)
            run.until(lambda pause=pause: time.monotonic() >= pause)
            there = self.victims(run)
            if not there:
                continue
            many = self.chance.choice([1, 1, 1, 2, len(there)])
            names = self.chance.sample(sorted(there), min(many, len(there)))
            if self.chance.random() < 0.2:
                self._stop([there[name] for name in names], run)
            else:
                for name in names:
                    _send(there[name], signal.SIGKILL)
                self.harms += len(names)

    def _stop(self, pids: Sequence[int], run: Run) -> None:
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        until = time.monotonic() + self.chance.uniform(0.0, 0.5)
        run.until(lambda: time.monotonic() >= until)
        for pid in pids:
            _send(pid, signal.SIGCONT)

    def judge(self, place: Place, result: Result) -> None:
        """Nothing lost, nothing doubled where that is promised, and the books say so."""
        result.check_drained()
        assert self.harms > 0
        assert sum(entry["restarts"] for entry in result.report["nodes"]) > 0
        if self.sink != "journal":
            sent = [
                entry["sent"]
                for entry in result.report["links"]
                if entry["from"].startswith("read")  # in a diamond: each source's links to both
            ]
            seen = place.tally()
            assert len(seen) == max(sent)
            due = [0] * (max(sent) + 1)
            for number in sent:
                due[number] += 1
            expected = sum(due)
            for number, times in enumerate(seen):
                expected -= due[number]
                assert times == expected, f"{number} came {times} times, not {expected}"
            return
        counts, ids = place.journal()
        assert set(counts) == set(range(self.count))
        if self.kills_sources:
            assert min(counts.values()) >= self.ways * self.sources
        else:
            assert len(ids) == self.count * self.ways * self.sources


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
