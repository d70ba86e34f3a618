"""The live screen of `flowkit top`: what it shows and what its keys do. Pure.

`Screen` is told of keys and of what is known, and answers with the lines to show and with what is
to be done; who owns a terminal and a project does that: see `flowkit.cli.top`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.cli import view
from flowkit.cli.view import TOP, Column
from flowkit.status import ReplicaStatus, Status

KEYS = (
    ("q", "leave"),
    ("up, down", "select a replica"),
    ("s, S", "sort by the next column, by the one before"),
    ("R", "the other way round"),
    ("+, -", "give the node of the selected replica one more, or one fewer"),
    ("r", "restart the selected replica (asks first)"),
    ("l", "show the links, or not"),
    ("space", "look again now"),
    ("?", "this help, or not"),
)

FOOT = "q quit · ↑↓ select · s sort · + - scale · r restart · l links · ? help"

LOW = 12
"""Lines that a screen has at least for what is not rows."""

ESCAPES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}
"""What terminals send for the keys that send more than a letter."""


class Quit(NamedTuple):
    """Leave."""


class Look(NamedTuple):
    """Look again, without waiting."""


class Scale(NamedTuple):
    """Give the node so many replicas."""

    node: str
    replicas: int


class Restart(NamedTuple):
    """Restart that replica."""

    node: str
    replica: int


Action = Quit | Look | Scale | Restart


def keys_of(data: str) -> list[str]:
    """The keys in what a terminal has sent."""
    keys = []
    at = 0
    while at < len(data):
        for sequence, name in ESCAPES.items():
            if data.startswith(sequence, at):
                keys.append(name)
                at += len(sequence)
                break
        else:
            if data[at] == "\x1b":
                # Some other key, of which nothing is wanted: up to its last letter.
                at += 1
                if data[at : at + 1] in ("[", "O"):
                    at += 1
                    while at < len(data) and not data[at].isalpha() and data[at] != "~":
                        at += 1
                    at += 1
                continue
            keys.append(data[at])
            at += 1
    return keys


class Screen:
    """What is shown, and how it is looked at."""

    def __init__(self) -> None:
        self.note = ""
        """What became of the last action, for people."""
        self._status: Status | None = None
        self._sort: Column | None = None
        self._reverse = False
        self._selected: str | None = None
        self._links = True
        self._help = False
        self._asked: Restart | None = None

    # -- what happens --------------------------------------------------------------------------

    def show(self, status: Status) -> None:
        """This is how the project is now."""
        self._status = status

    def press(self, key: str) -> Action | None:
        """A key was pressed; what is to be done, if anything."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self.note = ""
            return asked if key == "y" else None
        if key in ("q", "\x03"):
            return Quit()
        self.note = ""
        if key in ("up", "k"):
            self._move(-1)
        elif key in ("down", "j"):
            self._move(1)
        elif key in ("s", "S"):
            self._sort_by_next(1 if key == "s" else -1)
        elif key == "R":
            self._reverse = not self._reverse
        elif key == "l":
            self._links = not self._links
        elif key in ("?", "h"):
            self._help = not self._help
        elif key == " ":
            return Look()
        elif key in ("+", "=", "-"):
            return self._scale(-1 if key == "-" else 1)
        elif key == "r":
            self._ask_to_restart()
        return None

    def _move(self, by: int) -> None:
        names = [one.name for one in self._rows()]
        if names:
            place = names.index(self._selected) + by if self._selected in names else 0
            self._selected = names[max(0, min(place, len(names) - 1))]

    def _sort_by_next(self, by: int) -> None:
        choices: list[Column | None] = [None, *(one for one in TOP if one.order is not None)]
        self._sort = choices[(choices.index(self._sort) + by) % len(choices)]
        self._reverse = False

    def _scale(self, by: int) -> Scale | None:
        replica = self._chosen()
        if replica is None or self._status is None:
            return None
        count = sum(one.node == replica.node for one in self._status.replicas) + by
        if count < 1:
            self.note = f"{replica.node} has one replica: flowkit stop {replica.node} stops it"
            return None
        return Scale(replica.node, count)

    def _ask_to_restart(self) -> None:
        replica = self._chosen()
        if replica is not None:
            self._asked = Restart(replica.node, replica.replica)
            self.note = f"restart {replica.name}? y: yes, any other key: no"

    def _chosen(self) -> ReplicaStatus | None:
        """The selected replica; says how to select one if none is."""
        for one in self._status.replicas if self._status is not None else ():
            if one.name == self._selected:
                return one
        self.note = "select a replica first: up and down"
        return None

    # -- what is shown -------------------------------------------------------------------------

    def lines(self, width: int, height: int, colour: bool = False) -> list[str]:
        """The lines to show on a screen of that size: `height` at most, none wider."""
        if self._status is None:
            return ["connecting ..."][:height]
        status = self._status
        head = [
            _fit(view.title_line(status), width),
            *_wrapped(status.verdict.text, width, 2 if height >= LOW else 1),
        ]
        if colour:
            head[0] = head[0].replace(status.project, view.strong(status.project), 1)
            head[1:] = [view.warn(line, status.verdict) for line in head[1:]]
        foot = [_fit(self.note or FOOT, width)]
        if self._help:
            body = [f"{keys:<10} {text}" for keys, text in KEYS]
            return _stacked(head, [_fit(line, width) for line in body], [], foot, height)
        rows = self._rows()
        table = view.replica_lines(rows, TOP, status.verdict, width - 2, colour)
        marks = ["  ", *("> " if one.name == self._selected else "  " for one in rows)]
        table = [mark + line for mark, line in zip(marks, table, strict=True)]
        if self._sort is not None and height >= LOW:
            way = "smallest" if self._reverse else "largest"
            foot.insert(0, _fit(f"sorted by {self._sort.title}, {way} first", width))
        room = max(2, height - len(head) - len(foot) - 2)
        table = self._around_the_selected(table, rows, room)
        links = view.link_lines(status.links, width - 2, colour) if self._links else []
        return _stacked(head, table, [f"  {line}" for line in links], foot, height)

    def _rows(self) -> list[ReplicaStatus]:
        rows = list(self._status.replicas) if self._status is not None else []
        if self._sort is not None and self._sort.order is not None:
            rows.sort(key=self._sort.order, reverse=not self._reverse)
        elif self._reverse:
            rows.reverse()
        return rows

    def _around_the_selected(
        self, table: list[str], rows: Sequence[ReplicaStatus], room: int
    ) -> list[str]:
        """As many rows as there is room for, the selected one among them."""
        names = [one.name for one in rows]
        if len(table) <= room:
            return table
        place = names.index(self._selected) if self._selected in names else 0
        first = max(0, min(place - (room - 1) // 2, len(rows) - (room - 1)))
        return [table[0], *table[1 + first : first + room]]


def _stacked(
    head: list[str], table: list[str], links: list[str], foot: list[str], height: int
) -> list[str]:
    """The parts below each other; links, and empty lines, where there is room for them."""
    lines = [*head, "", *table] if len(head) + len(table) + len(foot) < height else [*head, *table]
    if links and len(lines) + 1 + len(links) + 1 + len(foot) <= height:
        lines += ["", *links]
    lines = lines[: max(0, height - len(foot))]
    return [*lines, *[""] * (height - len(lines) - len(foot)), *foot][:height]


def _fit(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(0, width - 1)] + view.ELLIPSIS


def _wrapped(text: str, width: int, most: int = 2) -> list[str]:
    """`text` in at most `most` lines."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines[most - 1 :] = [_fit(" ".join(lines[most - 1 :]), width)]
    return [_fit(line, width) for line in lines]
