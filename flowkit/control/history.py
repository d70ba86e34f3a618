"""What a project has told before: lines and events read from the files in its state directory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from flowkit.control.logfile import lines_backwards, lines_of, parse_line
from flowkit.control.recorder import EVENTS, LOGS
from flowkit.control.records import LogLine, Mark, Marks

Wanted = Callable[[LogLine], bool]


def lines(
    state: Path,
    names: Sequence[str] = (),
    *,
    since: float = 0.0,
    last: int | None = None,
    wanted: Wanted = lambda line: True,
    marks: Marks | None = None,
) -> Iterator[LogLine]:
    """Lines of all replicas, in the order of their times: those of `names` (nodes or replicas; all
    if there are none), not before `since`, that are `wanted`; the `last` of these if it is given.

    `marks`: only what was written before a stream of lines began, which goes on from there.
    """
    logs = [path for path in sorted((state / LOGS).glob("*.log")) if _named(path, names)]
    if last is None:
        found = heapq.merge(*(_forwards(path, marks) for path in logs), key=_time)
        return (line for line in found if line.time >= since and wanted(line))
    newest = heapq.merge(
        *(_backwards(path, since, marks) for path in logs), key=_time, reverse=True
    )
    return iter([*islice((line for line in newest if wanted(line)), last)][::-1])


def events(
    state: Path, *, since: float = 0.0, marks: Marks | None = None
) -> Iterator[dict[str, Any]]:
    """Events, oldest first, as they are written."""
    for line in lines_of(state / EVENTS, _mark(marks, EVENTS)):
        try:
            event = msgspec.json.decode(line)
            time = datetime.fromisoformat(event["time"]).timestamp()
        except (ValueError, KeyError, TypeError):  # torn by a crash, or a full disk
            continue
        if time >= since:
            yield event


def names_in(state: Path) -> list[str]:
    """The replicas, and the supervisor, that have log files."""
    return [path.name.removesuffix(".log") for path in sorted((state / LOGS).glob("*.log"))]


def _named(path: Path, names: Sequence[str]) -> bool:
    replica = path.name.removesuffix(".log")
    return not names or replica in names or replica.rpartition(".")[0] in names


def _forwards(path: Path, marks: Marks | None) -> Iterator[LogLine]:
    replica = path.name.removesuffix(".log")
    until = _until(marks, replica)
    for line in lines_of(path, _mark(marks, replica)):
        parsed = parse_line(line, replica)
        if parsed and parsed.time < until:
            yield parsed


def _backwards(path: Path, since: float, marks: Marks | None) -> Iterator[LogLine]:
    replica = path.name.removesuffix(".log")
    until = _until(marks, replica)
    for line in lines_backwards(path, _mark(marks, replica)):
        parsed = parse_line(line, replica)
        if parsed is None or parsed.time >= until:
            continue
        if parsed.time < since:
            return
        yield parsed


def _mark(marks: Marks | None, name: str) -> Mark | None:
    return marks.places.get(name) if marks is not None else None


def _until(marks: Marks | None, name: str) -> float:
    """The time before which the lines of a log are that has no mark."""
    return math.inf if marks is None or name in marks.places else marks.at


def _time(line: LogLine) -> float:
    return line.time
