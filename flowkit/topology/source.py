"""Places in topology files: which text stands where, so that a problem can point at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowkit.errors import Problem

Path = tuple[str | int, ...]
"""Where a value is in the data: ``("nodes", "split", "replicas")``."""


@dataclass(frozen=True, slots=True)
class SourceText:
    """One file: `path` as the user would name it, and its lines without their ends."""

    path: str
    lines: tuple[str, ...] = ()

    def line(self, number: int) -> str:
        """The text of line `number`, counted from 1; empty if there is none."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


@dataclass(frozen=True, slots=True)
class Place:
    """`length` characters from `line` and `column` (both from 1; 0: the file as a whole)."""

    text: SourceText
    line: int = 0
    column: int = 0
    length: int = 1

    def problem(self, code: str, message: str, hint: str = "") -> Problem:
        """A problem that points here."""
        return Problem(
            path=self.text.path,
            line=self.line,
            column=self.column,
            code=code,
            message=message,
            hint=hint,
            length=max(1, self.length),
            source=self.text.line(self.line),
        )

    def within(self, part: str) -> Place:
        """The place of `part` inside this one; this place if it is not written there."""
        source = self.text.line(self.line)
        end = self.column - 1 + max(self.length, 1)
        at = source.find(part, self.column - 1, end) if part else -1
        return self if at < 0 else Place(self.text, self.line, at + 1, len(part))

    def __str__(self) -> str:
        return f"{self.text.path}:{self.line}"


@dataclass(slots=True)
class Marks:
    """Where the keys and values of the data were written."""

    whole: Place
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def value(self, path: Path) -> Place:
        """Where the value at `path` is written, or the innermost thing around it that is."""
        while path:
            if path in self.values:
                return self.values[path]
            path = path[:-1]
        return self.whole

    def key(self, path: Path) -> Place:
        """Where the key of the value at `path` is written; an item of a list has only a value."""
        return self.keys.get(path) or self.value(path)
