"""What a project tells of itself: lines that were printed, events, and the record of its run.

The names of events are stable, for programs; their `text` is for people and may change.

=============  ====================================================================================
event          what has happened (`facts`)
=============  ====================================================================================
starting       the supervisor has begun (pid, file)
ready          all replicas were ready for the first time (seconds)
draining       the sources were told to stop (in_flight)
ended          the project has ended (status, reason, exit, seconds)
started        a replica was started for the first time (pid)
restarted      a replica was started again (pid)
attached       an application runs a replica (pid)
detached       the application has let it go, in order
died           a replica has died and will be started again (code, delay)
finished       a replica has reached the end of its stream, and begins again (code, delay)
given-up       a replica has died and will not be started again (code)
poisoned       a message has killed its replica again and is given up (link, message)
note           something else that the operator should know
scaled         a node has another number of replicas (replicas)
rolled         a node's replicas, or one of them, were restarted on request
stopped        a node was stopped on request
resumed        a node was started again on request
reloaded       the running project was changed to fit its file
levelled       the level of a node's log was changed (level)
=============  ====================================================================================
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

SUPERVISOR = "supervisor"
"""Where lines come from that no replica has printed."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class LogLine(Struct, frozen=True):
    """One line. `level` is empty where it was printed and not logged; `time` since the epoch. A log
    record of several lines, with a traceback say, is several; all but the first are `more` of it.
    """

    time: float
    replica: str
    level: str
    text: str
    more: bool = False


class Event(Struct, frozen=True):
    """One thing that has happened; `node` and `replica` where it has happened to one."""

    time: float
    event: str
    text: str
    node: str | None = None
    replica: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class RunRecord(Struct, frozen=True):
    """A run, as it is kept in the state directory: the present one, or the last.

    `state` is "starting", "running" or "draining", else how it ended: the status of its report.
    """

    project: str
    file: str
    directory: str
    """Where it was started."""
    pid: int
    run: str
    started: float
    state: str
    ended: float | None = None
    reason: str = ""
    exit: int | None = None
    replicas: int = 0
    nodes: list[str] = []


class Mark(Struct, frozen=True):
    """A place in a log file: nothing before it comes in a stream, everything after it does."""

    file: int
    """The number of the file's inode, since a file that is rotated gets another name."""
    size: int


class Marks(Struct, frozen=True):
    """Where a stream of lines or events begins: in the files that were written to in this run, by
    the name of who wrote them; in others at a time, since they hold earlier runs and what came
    after `at`."""

    places: dict[str, Mark]
    at: float


class Changed(Struct, frozen=True):
    """A change that is true now: one line that says so, and what was done, for programs."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)


class Ended(Struct, frozen=True):
    """How a project ended: the report, as `up --report` writes it, and the line that sums it up."""

    report: dict[str, Any]
