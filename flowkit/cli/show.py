"""What `flowkit up` shows: prefixed output, what happens, a progress bar, the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from flowkit.control.watcher import death, drain, poison
from flowkit.protocol.control import Record
from flowkit.protocol.project import Died, Poisoned, Status
from flowkit.report import Report
from flowkit.topology.plan import Plan
from flowkit.units import human_count, human_seconds

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow")
SUPERVISOR = "supervisor"

VERDICT_AFTER = 2.0
"""Seconds that a run must have lasted for its shares to say something."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the program here; `Screen` drains first."""
        raise  # the BrokenPipeError that is being handled


class Screen:
    """The terminal, or the file, that `up` writes to. A `Watcher` of the supervisor."""

    def __init__(self, stream: TextIO, colour: bool) -> None:
        self._console = _Console(
            file=stream,
            force_terminal=colour or None,
            no_color=not colour,
            color_system="auto" if colour else None,
            highlight=False,
            soft_wrap=True,
            emoji=False,
            markup=False,
        )
        self.live = stream.isatty() and colour
        """Whether a progress bar can be shown."""
        self.on_broken: Callable[[], None] = lambda: None
        """Called once when nobody reads what is printed any more."""
        self.on_ready: Callable[[float], None] = lambda seconds: None
        """Called when all replicas are ready, with the seconds that took."""
        self.quiet = False
        """Print the report alone: nobody watches, and everything else is kept in log files."""
        self._broken = False
        self._width = len(SUPERVISOR)
        self._colours: dict[str, str] = {SUPERVISOR: "bold"}
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._plan: Plan | None = None

    def begin(self, version: str, plan: Plan, url: str | None = None) -> None:
        """Say what is started; `url` is where it is served over HTTP."""
        self._plan = plan
        palette = cycle(COLOURS)
        for node in plan.nodes:
            colour = next(palette)
            for replica in range(node.replicas):
                name = f"{node.name}.{replica}"
                self._width = max(self._width, len(name))
                self._colours[name] = colour
        count = plan.processes
        replicas = f"{count} replica{'s' if count != 1 else ''}"
        metrics = f" · metrics {url}/metrics" if url else ""
        self._print(Text(f"flowkit {version} · {plan.project} · {replicas}{metrics}"))
        for line in window_of_loss(plan):
            self._print(Text(line))

    # -- the supervisor tells ------------------------------------------------------------------

    def output(self, replica: str, line: bytes) -> None:
        self._line(replica, line.decode("utf-8", "backslashreplace"))

    def record(self, replica: str, record: Record) -> None:
        first, *others = lines_of(record)
        self._line(replica, first, record.level)
        for line in others:
            self._line(replica, line)

    def ready(self, seconds: float) -> None:
        assert self._plan is not None
        names = [
            f"{node.name}.0" if node.replicas == 1 else f"{node.name}.0-{node.replicas - 1}"
            for node in self._plan.nodes
            if not node.external
        ]
        self._line(SUPERVISOR, f"{' '.join(names)} ready in {human_seconds(seconds)}")
        external = [node.name for node in self._plan.nodes if node.external]
        if external:
            self._line(SUPERVISOR, f"applications attach {', '.join(external)}")
        self.on_ready(seconds)

    def died(self, event: Died, budget: int | None) -> None:
        level = logging.ERROR if event.delay is None else logging.WARNING
        self._line(SUPERVISOR, death(event, budget), level)

    def note(self, text: str) -> None:
        self._line(SUPERVISOR, text, logging.WARNING)

    def poisoned(self, event: Poisoned) -> None:
        links = self._plan.links if self._plan is not None else ()
        names = [link.name for link in links if link.index == event.message.link]
        # One that came later, with a reload, is in no plan here.
        text = poison(event, names[0] if names else f"a link to {event.replica.node}")
        self._line(SUPERVISOR, text, logging.ERROR)

    def draining(self, in_flight: int) -> None:
        self._line(SUPERVISOR, f"{drain(in_flight)} (Ctrl-C again to kill)")

    # -- progress ------------------------------------------------------------------------------

    def progress(self, done: int, length: int | None) -> None:
        """Show how far the sources' messages are done, if their number is known."""
        if not length:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=40),
                TextColumn("{task.percentage:>3.0f} % of {task.fields[whole]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("progress", total=length, whole="")
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=length, whole=human_count(length))

    def stop(self) -> None:
        """Take the progress bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    # -- the end -------------------------------------------------------------------------------

    def end(self, report: Report, state_directory: Path) -> None:
        """Print the books and what they come to."""
        rows = [["LINK", "SENT", "DONE", "REDELIVERED", "DROPPED", "DEAD", "IN FLIGHT"]]
        superseded = any(link.entry.superseded for link in report.links)
        if superseded:
            rows[0].insert(4, "SUPERSEDED")
        for link in report.links:
            entry = link.entry
            figures = [
                entry.sent,
                entry.done,
                entry.redelivered,
                sum(entry.dropped.values()),
                entry.dead_lettered,
                entry.in_flight,
            ]
            if superseded:
                figures.insert(3, entry.superseded)
            rows.append([link.name, *(f"{figure:,}" for figure in figures)])
        for text in table(rows):
            self._print(Text(text))
        for link in report.links:
            for reason, count in link.entry.dropped.items():
                self._print(Text(f"{link.name}: {count:,} dropped: {reason}"))
        for node in report.nodes:
            if node.lost_state:
                self._print(
                    Text(
                        f"{node.node}.{node.replica} died {node.restarts} time"
                        f"{'' if node.restarts == 1 else 's'} and lost what it held in memory",
                        style="yellow",
                    )
                )
        self._print(Text(_summary(report), style=_style(report)))
        if report.dead_lettered:
            self._print(Text(f"look at them: flowkit dead-letters ls {report.project}"))
        if report.seconds >= VERDICT_AFTER and report.verdict.bottleneck:
            self._print(Text(report.verdict.text))

    def _line(self, name: str, text: str, level: int = logging.INFO) -> None:
        """Print a line of a replica, or of the supervisor; the word of its level has a colour."""
        if self.quiet:
            return
        if not self._console.color_system:
            self._print(Text(f"{name:<{self._width}} | {text}"))
            return
        shown = Text.from_ansi(text)
        if level >= logging.WARNING and name != SUPERVISOR:
            style = "bold red" if level >= logging.ERROR else "yellow"
            shown.highlight_words([logging.getLevelName(level)], style)
        self._print(Text(f"{name:<{self._width}} | ", self._colours.get(name, "")) + shown)

    def _print(self, text: Text) -> None:
        if self._broken:
            return
        try:
            self._console.print(text)
        except BrokenPipeError:
            self._broken = True
            self.on_broken()


def lines_of(record: Record) -> list[str]:
    """A log record as people read it."""
    when = datetime.fromtimestamp(record.time).strftime("%H:%M:%S")
    first, *others = record.text.split("\n")
    first = f"{when} {logging.getLevelName(record.level)} {first}"
    return [first, *others, *record.traceback.splitlines()]


def window_of_loss(plan: Plan) -> list[str]:
    """What the durable links may lose with the machine, as they are configured."""
    lines = []
    for link in plan.links:
        if link.durable and link.fsync == "never":
            window = "with the machine, what the system has not yet written to the disk"
            lines.append(f"{link.name}: fsync never: may lose, {window}")
        elif link.durable and link.fsync != "group":
            window = f"with the machine, the last {link.fsync.partition(':')[2]}"
            lines.append(f"{link.name}: fsync {link.fsync}: may lose, {window}")
    return lines


def _summary(report: Report) -> str:
    seconds = human_seconds(report.seconds)
    in_flight = f"{report.in_flight:,} message{'' if report.in_flight == 1 else 's'} in flight"
    if report.status is not Status.DRAINED:
        text = f"{report.status.value} after {seconds}"
        if report.reason and report.reason != report.status.value:
            text += f": {report.reason}"
        last = report.traceback.strip().rpartition("\n")[2]
        if last and report.status in (Status.FAILED, Status.MISCONFIGURED):
            text += f"; its last words: {last}"
        return f"{text}; {in_flight} given up" if report.in_flight else text
    parts = []
    wrong = [link.name for link in report.links if not link.entry.balanced]
    if wrong:
        parts.append(f"but the books of {', '.join(wrong)} do not balance: a bug in flowkit")
    elif report.in_flight:
        parts.append(f"{in_flight}, unaccounted for")
    if report.dead_lettered:
        plural = "" if report.dead_lettered == 1 else "s"
        parts.append(f"{report.dead_lettered:,} dead letter{plural}")
    if report.dropped:
        parts.append(f"{report.dropped:,} dropped")
    forgetful = [f"{node.node}.{node.replica}" for node in report.nodes if node.lost_state]
    complete = not (wrong or report.in_flight or report.dropped)
    if forgetful:
        but = "no message lost, but " if complete else "lost: "
        parts.append(f"{but}what {', '.join(forgetful)} held in memory")
    elif complete:
        parts.append("nothing else lost" if parts else "nothing lost")
    # These seconds are those of the run: of one that was stopped, the drain was only the end.
    drained = "stopped and drained after" if report.interrupted else "drained in"
    return f"{drained} {seconds}, {', '.join(parts)}"


def _style(report: Report) -> str:
    if report.exit == 0 and not any(node.lost_state for node in report.nodes):
        return "green"
    return "yellow" if report.exit in (0, 4) else "red"


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """`rows` as aligned lines; the columns `left` are flush left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
