"""Runs a topology for a round, as any user's application does: a file, and a `Supervisor`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowkit.bench.tally import Tally
from flowkit.report import Report
from flowkit.supervisor import Silent, Supervisor


class ProjectFailed(Exception):
    """A topology has not ended as it should."""


class Words(Silent):
    """Collects what the nodes of `flowkit.bench.nodes` print: one JSON object each, at the end."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.ready_after = 0.0

    def ready(self, seconds: float) -> None:
        self.ready_after = seconds

    def output(self, replica: str, line: bytes) -> None:
        if line.startswith(b"{"):
            self.found.append(json.loads(line))
        else:
            print(f"{replica}: {line.decode('utf-8', 'backslashreplace')}", file=sys.stderr)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    @property
    def tallies(self) -> list[Tally]:
        return [Tally(**found) for found in self.found]


def write_topology(
    name: str,
    nodes: Mapping[str, Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    endpoints: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """A topology file in the current directory, which is the round's own. (JSON is YAML.)"""
    path = Path(f"{name}.yaml")
    topology: dict[str, Any] = {"flowkit": 1, "project": name, "nodes": nodes, "links": links}
    if endpoints:
        topology["endpoints"] = endpoints
    path.write_text(json.dumps(topology, indent=2), encoding="utf-8")
    return path


def run_project(
    nodes: Mapping[str, Mapping[str, Any]],
    links: Sequence[Mapping[str, Any]],
    meanwhile: Callable[[Supervisor], Awaitable[None]] | None = None,
    endpoints: Sequence[Mapping[str, Any]] = (),
) -> tuple[Report, Words]:
    """Run a topology to its end, and `meanwhile` beside it.

    Raises ProjectFailed unless it has drained with nothing given up.
    """
    path = write_topology("bench", nodes, links, endpoints)
    words = Words()

    async def run() -> Report:
        project = Supervisor(path, fresh=True, watcher=words)
        try:
            await project.start()
            beside = asyncio.ensure_future(meanwhile(project)) if meanwhile else None
            report = await project.wait()
            if beside is not None:
                await beside
            return report
        finally:
            await project.close()

    report = asyncio.run(run())
    if report.exit:
        raise ProjectFailed(
            f"{report.status.value}, exit code {report.exit}: {report.reason}\n{report.traceback}"
        )
    return report, words
