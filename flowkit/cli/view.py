"""A `Status` as text: the tables of `ps` and `top`. Pure: what is shown depends on the arguments.

Numbers are for people; exact ones are in the JSON. Where the width is bounded, the columns that
matter least are left out first, and then names are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import click
import msgspec

from flowkit.metrics import Verdict
from flowkit.status import LinkStatus, ReplicaStatus, Status
from flowkit.units import human_count, human_seconds

GAP = "  "
NOTHING = "-"
ELLIPSIS = "…"
SHORTEST = 6
"""Letters of a name that are left at least."""

STYLES = {
    "pending": "blue",
    "starting": "blue",
    "running": "green",
    "busy": "yellow",
    "waiting": "cyan",
    "stopping": "blue",
    "stopped": "bright_black",
    "absent": "magenta",
    "done": "bright_black",
    "lost": "red",
}
"""Colours of states."""


@dataclass(frozen=True)
class Column:
    """`value` gives what a row shows, `rank` how soon it is left out: the highest first, 0 never.
    `order` is what it is sorted by, largest first; None: by text."""

    title: str
    value: Callable[[ReplicaStatus], str]
    rank: int = 0
    left: bool = False
    order: Callable[[ReplicaStatus], float] | None = None


def _known(value: float | None, show: Callable[[float], str]) -> str:
    return NOTHING if value is None else show(value)


def percent(share: float) -> str:
    """``97%``"""
    return f"{100 * share:.0f}%"


def short_bytes(value: float) -> str:
    """A size in at most four characters: ``512``, ``38M``, ``1.2G``; powers of 1024."""
    for unit in ("", "K", "M", "G"):
        if value < 1023.5:
            return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}T" if value < 9.95 else f"{value:.0f}T"


NAME = Column("NAME", lambda one: one.name, left=True)
STATE = Column("STATE", lambda one: one.state, left=True)
UPTIME = Column(
    "UPTIME",
    lambda one: human_seconds(one.uptime) if one.uptime else "-",
    8,
    order=lambda one: one.uptime,
)
CPU = Column("CPU", lambda one: _known(one.cpu, percent), 4, order=lambda one: one.cpu or 0)
MEM = Column(
    "MEM", lambda one: _known(one.memory, short_bytes), 6, order=lambda one: one.memory or 0
)
BUSY = Column("BUSY", lambda one: percent(one.busy), 1, order=lambda one: one.busy)
WAIT = Column("WAIT", lambda one: percent(one.waiting), 3, order=lambda one: one.waiting)
IN = Column(
    "IN/S", lambda one: _known(one.in_rate, human_count), order=lambda one: one.in_rate or 0
)
OUT = Column(
    "OUT/S", lambda one: _known(one.out_rate, human_count), 2, order=lambda one: one.out_rate or 0
)
QUEUE = Column(
    "QUEUE", lambda one: _known(one.queue, human_count), 2, order=lambda one: one.queue or 0
)
P99 = Column("P99", lambda one: _known(one.p99, human_seconds), 5, order=lambda one: one.p99 or 0)
RESTARTS = Column("RESTARTS", lambda one: str(one.restarts), 7, order=lambda one: one.restarts)

PS = (NAME, STATE, UPTIME, CPU, MEM, IN, OUT, QUEUE, P99, RESTARTS)
TOP = (NAME, STATE, UPTIME, CPU, MEM, BUSY, WAIT, IN, OUT, QUEUE, P99, RESTARTS)


def ps_lines(status: Status, width: int | None = None, colour: bool = False) -> list[str]:
    """What `ps` shows: a row for each replica, then what limits. No line is wider than `width`, but
    for the last."""
    return [
        *replica_lines(status.replicas, PS, status.verdict, width, colour),
        *([verdict_line(status.verdict, colour)] if status.replicas else []),
    ]


def json_lines(status: Status) -> Iterator[str]:
    """JSON Lines: a replica each, with exact figures."""
    for replica in status.replicas:
        yield msgspec.json.encode(replica).decode()


def title_line(status: Status, colour: bool = False) -> str:
    """Which project it is, and how it is."""
    count = len(status.replicas)
    parts = [
        _paint(status.project, colour, bold=True),
        f"{status.state} {human_seconds(status.uptime)}",
        f"{count} replica{'' if count == 1 else 's'}",
    ]
    if status.http is not None:
        parts.append(status.http)
    return " · ".join(parts)


def verdict_line(verdict: Verdict, colour: bool = False) -> str:
    """What limits."""
    return _paint(verdict.text, colour, fg="yellow" if verdict.bottleneck is not None else None)


def replica_lines(
    replicas: Sequence[ReplicaStatus],
    columns: Sequence[Column],
    verdict: Verdict,
    width: int | None = None,
    colour: bool = False,
) -> list[str]:
    """A line of titles, and one for each replica."""
    rows = [[column.title for column in columns]]
    rows += [[column.value(one) for column in columns] for one in replicas]
    kept = _kept(rows, [column.rank for column in columns], width)
    columns = [columns[place] for place in kept]
    rows = [[row[place] for place in kept] for row in rows]
    left = [place for place, column in enumerate(columns) if column.left]
    cells = _aligned(rows, left, width)
    lines = [_paint(GAP.join(cells[0]).rstrip(), colour, bold=True)]
    for one, row in zip(replicas, cells[1:], strict=True):
        if colour:
            row[0] = _paint(row[0], colour, bold=one.node == verdict.bottleneck)
            row[1] = _paint(row[1], colour, fg=STYLES.get(one.state))
        lines.append(GAP.join(row).rstrip())
    return lines


LINK_TITLES = (
    ("LINK", 0),
    ("SENT", 3),
    ("DONE", 0),
    ("DONE/S", 0),
    ("IN FLIGHT", 1),
    ("QUEUED", 5),
    ("FULL", 2),
    ("REDELIVERED", 6),
    ("DROPPED", 4),
    ("DEAD", 4),
)
"""Titles of the columns of links, and how soon each is left out."""


def link_lines(
    links: Sequence[LinkStatus], width: int | None = None, colour: bool = False
) -> list[str]:
    """A line of titles, and one for each link."""
    rows = [[title for title, _ in LINK_TITLES]]
    for link in links:
        figures = [link.sent, link.done, link.rate, link.in_flight, link.queued]
        gone = [link.redelivered, sum(link.dropped.values()), link.dead_lettered]
        rows.append(
            [
                link.name,
                *map(human_count, figures),
                percent(link.full),
                *map(human_count, gone),
            ]
        )
    kept = _kept(rows, [rank for _, rank in LINK_TITLES], width)
    cells = _aligned([[row[place] for place in kept] for row in rows], [0], width)
    lines = [GAP.join(row).rstrip() for row in cells]
    return [_paint(lines[0], colour, bold=True), *lines[1:]]


def _kept(rows: Sequence[Sequence[str]], ranks: Sequence[int], width: int | None) -> list[int]:
    """The places of the columns that there is room for."""
    kept = list(range(len(ranks)))
    if width is None:
        return kept
    widths = [max(len(row[place]) for row in rows) for place in kept]
    while sum(widths[place] + len(GAP) for place in kept) - len(GAP) > width:
        last = max(kept, key=lambda place: (ranks[place], place))
        if not ranks[last]:
            break
        kept.remove(last)
    return kept


def _aligned(
    rows: Sequence[Sequence[str]], left: Sequence[int], width: int | None
) -> list[list[str]]:
    """Cells of equal width; if even so a line is too wide, the first column is cut."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    if width is not None:
        over = sum(widths) + len(GAP) * (len(widths) - 1) - width
        widths[0] = max(min(widths[0], SHORTEST), widths[0] - max(0, over))
    result = []
    for row in rows:
        cells = []
        for place, cell in enumerate(row):
            if len(cell) > widths[place]:
                cell = cell[: widths[place] - 1] + ELLIPSIS
            cells.append(cell.ljust(widths[place]) if place in left else cell.rjust(widths[place]))
        result.append(cells)
    return result


def _paint(text: str, colour: bool, fg: str | None = None, bold: bool = False) -> str:
    if not colour or not (fg or bold):
        return text
    return click.style(text, fg=fg, bold=bold or None)


def strong(text: str) -> str:
    """In bold."""
    return _paint(text, True, bold=True)


def warn(text: str, verdict: Verdict) -> str:
    """In the colour of a verdict."""
    return _paint(text, True, fg="yellow" if verdict.bottleneck is not None else None)
