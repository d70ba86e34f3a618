"""Keeps what a project tells: log files of its replicas, a file of events, the record of its run.

They lie in the state directory and stay there after the run::

    run.json              the record of this run, or of the last (`RunRecord`)
    events.jsonl          events, one JSON object a line (`Event`)
    logs/NODE.N.log       what a replica has printed; logs/supervisor.log: what became of it

Whoever listens is told the same at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flowkit.clock import Clock, wall
from flowkit.control import watcher
from flowkit.control.logfile import RotatedFile, format_line, timestamp
from flowkit.control.records import LEVELS, SUPERVISOR, Event, LogLine, Marks, RunRecord
from flowkit.message import message_id
from flowkit.protocol import project as core
from flowkit.protocol.control import Record
from flowkit.rundir import make_private

RUN = "run.json"
EVENTS = "events.jsonl"
LOGS = "logs"

EVENTS_LIMIT = 1 << 20
"""Bytes of the file of events before it is rotated: some ten thousand events."""

_TRACEBACK = "Traceback (most recent call last):"

OnLine = Callable[[LogLine], None]
OnEvent = Callable[[Event], None]


class Recorder:
    """A `Watcher` that keeps everything. `state` is the state directory of the project, `link_name`
    gives the name of a link by its index."""

    def __init__(
        self, state: Path, run: RunRecord, link_name: Callable[[int], str], clock: Clock = wall
    ) -> None:
        self._state = state
        self._clock = clock
        self._link_name = link_name
        self._loop = asyncio.get_running_loop()
        self._logs: dict[str, RotatedFile] = {}
        self._levels: dict[str, _Level] = {}
        self._dirty: dict[RotatedFile, None] = {}
        self.on_line: set[OnLine] = set()
        self.on_event: set[OnEvent] = set()
        make_private(state / LOGS)
        self._events = RotatedFile(state / EVENTS, EVENTS_LIMIT)
        self.run = run
        self._write_record()
        self.event("starting", f"{run.project} starts", pid=run.pid, file=run.file)

    # -- the supervisor tells ------------------------------------------------------------------

    def output(self, replica: str, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        level = self._levels.setdefault(replica, _Level()).of(text)
        self.line(LogLine(self._clock(), replica, level, text))

    def record(self, replica: str, record: Record) -> None:
        text = f"{record.text}\n{record.traceback}" if record.traceback else record.text
        self.line(LogLine(record.time, replica, _level_name(record.level), text.rstrip("\n")))

    def ready(self, seconds: float) -> None:
        self._note_state("running")
        text = f"{self.run.replicas} replicas are ready after {seconds:.2f} s"
        self.event("ready", text, seconds=round(seconds, 3))

    def launched(self, replica: core.Replica, pid: int) -> None:
        """The process of a replica has started."""
        again = replica.incarnation > 1
        if replica.external:
            text = f"{replica.name} was attached by process {pid}"
            self._of_replica("attached", text, replica, "INFO", pid=pid)
            return
        text = f"{replica.name} {'was started again' if again else 'was started'} (pid {pid})"
        self._of_replica("restarted" if again else "started", text, replica, "INFO", pid=pid)

    def detached(self, event: core.Vacated) -> None:
        """An application has left in order."""
        self._of_replica("detached", watcher.vacancy(event), event.replica, "INFO")

    def died(self, event: core.Died, budget: int | None) -> None:
        name, level = "died", "WARNING"
        if event.delay is None:
            name, level = "given-up", "ERROR"
        elif event.number == 0:
            name, level = "finished", "INFO"
        text = watcher.death(event, budget)
        self._of_replica(name, text, event.replica, level, code=event.code, delay=event.delay)

    def note(self, text: str) -> None:
        self.event("note", text, "WARNING")

    def poisoned(self, event: core.Poisoned) -> None:
        link = self._link_name(event.message.link)
        text = watcher.poison(event, link)
        message = message_id(event.message.id, event.message.index)
        self._of_replica("poisoned", text, event.replica, "ERROR", link=link, message=message)

    def draining(self, in_flight: int) -> None:
        self._note_state("draining")
        self.event("draining", watcher.drain(in_flight), in_flight=in_flight)

    def resized(self, replicas: int, nodes: list[str]) -> None:
        """The project has so many replicas, and these nodes, from now on."""
        if (replicas, nodes) != (self.run.replicas, self.run.nodes):
            self.run = msgspec.structs.replace(self.run, replicas=replicas, nodes=nodes)
            self._write_record()

    def ended(self, report: dict[str, Any]) -> None:
        """The project has ended; `report` as `up --report` writes it."""
        status, code = report["status"], report["exit"]
        self.run = msgspec.structs.replace(
            self.run, state=status, reason=report["reason"], exit=code, ended=self._clock()
        )
        self._write_record()
        text = f"{self.run.project} has ended: {status}"
        if report["reason"] and report["reason"] != status:
            text += f" ({report['reason']})"
        facts = {name: report[name] for name in ("status", "reason", "exit", "seconds")}
        self.event("ended", text, "INFO" if code == 0 else "WARNING", **facts)

    # -- keeping -------------------------------------------------------------------------------

    def line(self, line: LogLine) -> None:
        """Keep a line, or several in one, and tell them to who listens."""
        log = self._logs.get(line.replica)
        if log is None:
            path = self._state / LOGS / f"{line.replica}.log"
            log = self._logs[line.replica] = RotatedFile(path)
        first, *others = line.text.split("\n")
        lines = [line]
        if others:
            lines = [LogLine(line.time, line.replica, line.level, first)]
            lines += [LogLine(line.time, line.replica, line.level, text, True) for text in others]
        for one in lines:
            log.add(format_line(one))
            for listener in list(self.on_line):
                listener(one)
        self._soon(log)

    def event(
        self,
        name: str,
        text: str,
        level: str = "INFO",
        node: str | None = None,
        replica: int | None = None,
        **facts: Any,
    ) -> None:
        """Keep an event, also as a line of the supervisor, and tell it to who listens."""
        event = Event(self._clock(), name, text, node, replica, facts)
        self._events.add(msgspec.json.encode(as_dict(event)))
        self._soon(self._events)
        for listener in list(self.on_event):
            listener(event)
        self.line(LogLine(event.time, SUPERVISOR, level, text))

    def line_marks(self) -> Marks:
        """Where the lines that listeners are told from now on begin in the files."""
        places = {name: log.mark() for name, log in self._logs.items()}
        return Marks(places, self._clock())

    def event_marks(self) -> Marks:
        return Marks({EVENTS: self._events.mark()}, self._clock())

    def close(self) -> None:
        self._flush()
        for log in self._logs.values():
            log.close()
        self._events.close()

    # -- inside --------------------------------------------------------------------------------

    def _of_replica(
        self, name: str, text: str, replica: core.Replica, level: str, **facts: Any
    ) -> None:
        self.event(name, text, level, replica.node, replica.number, **facts)

    def _soon(self, file: RotatedFile) -> None:
        """One write for all that one turn of the loop brings."""
        if not self._dirty:
            self._loop.call_soon(self._flush)
        self._dirty[file] = None

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for file in dirty:
            file.flush()

    def _note_state(self, state: str) -> None:
        self.run = msgspec.structs.replace(self.run, state=state)
        self._write_record()

    def _write_record(self) -> None:
        """Who reads it finds the old one or the new one. A full disk leaves the old one."""
        path = self._state / RUN
        new = path.with_name(f"{RUN}.new")
        try:
            new.write_bytes(msgspec.json.encode(self.run))
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)


class _Level:
    """The level of what one replica has printed and not logged: a traceback is an error, all else
    has none."""

    def __init__(self) -> None:
        self._traceback = False

    def of(self, text: str) -> str:
        if text == _TRACEBACK:
            self._traceback = True
        elif self._traceback and not text.startswith(" "):
            # The line that names the exception ends it; another may follow, which was its cause.
            self._traceback = False
            return "ERROR"
        return "ERROR" if self._traceback else ""


def _level_name(level: int) -> str:
    """The highest level that is not above `level`, which may be one of somebody's own."""
    return LEVELS[min(max(level // 10, 1), len(LEVELS)) - 1]


def as_dict(event: Event) -> dict[str, Any]:
    """An event as it is written and printed: without what it does not have."""
    found: dict[str, Any] = {"time": timestamp(event.time), "event": event.event}
    if event.node is not None:
        found["node"] = event.node
    if event.replica is not None:
        found["replica"] = event.replica
    return {**found, **event.facts, "text": event.text}
