"""What `flowkit up --log-format json` prints: one JSON object a line, for programs that read logs.

Each has `time` (RFC 3339, UTC) and `message`. What a replica has logged or printed has `node` and
`replica`; what it has logged also `level`, `logger`, and `traceback` if there is one. What the
supervisor says has the logger ``flowkit.supervisor``; the last object has the run's `report`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from flowkit.cli.show import SUPERVISOR, Screen, window_of_loss
from flowkit.clock import wall
from flowkit.protocol.control import Record
from flowkit.report import Report
from flowkit.topology.plan import Plan


class JsonLines(Screen):
    """A `Screen` for programs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = wall) -> None:
        super().__init__(stream, colour=False)
        self._stream = stream
        self._clock = clock
        self.live = False

    def begin(self, version: str, plan: Plan, url: str | None = None) -> None:
        self._plan = plan
        count = plan.processes
        replicas = f"{count} replica{'s' if count != 1 else ''}"
        text = f"flowkit {version}, {plan.project}, {replicas}"
        served = {"http": url} if url else {}
        self._supervisor(logging.INFO, text, project=plan.project, **served)
        for line in window_of_loss(plan):
            self._supervisor(logging.WARNING, line)

    def record(self, replica: str, record: Record) -> None:
        if self.quiet:
            return
        facts: dict[str, Any] = {
            "level": logging.getLevelName(record.level),
            **_place(replica),
            "logger": record.logger,
            "message": record.text,
        }
        if record.traceback:
            facts["traceback"] = record.traceback
        self._write(record.time, facts)

    def end(self, report: Report, state_directory: Path) -> None:
        text = f"{report.status.value} after {report.seconds:.1f} s"
        level = logging.INFO if report.exit == 0 else logging.ERROR
        self._supervisor(level, text, report=report.as_dict())

    def _line(self, name: str, text: str, level: int = logging.INFO) -> None:
        if self.quiet:
            return
        if name == SUPERVISOR:
            self._supervisor(level, text)
        else:
            self._write(self._clock(), {**_place(name), "message": text})

    def _supervisor(self, level: int, text: str, **more: Any) -> None:
        name = logging.getLevelName(level)
        facts = {"level": name, "logger": "flowkit.supervisor", "message": text, **more}
        self._write(self._clock(), facts)

    def _write(self, time: float, facts: dict[str, Any]) -> None:
        if self._broken:
            return
        when = datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": when.replace("+00:00", "Z"), **facts})
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except BrokenPipeError:
            self._broken = True
            self.on_broken()


def _place(replica: str) -> dict[str, Any]:
    if replica == SUPERVISOR:
        return {}
    node, _, number = replica.rpartition(".")
    return {"node": node, "replica": int(number)}
